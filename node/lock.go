package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// lockDir takes the data directory for this process: two nodes on one control
// state would each undo what the other did. The kernel drops the lock with
// the process, however it ends. Fails with fault.Busy, naming the process.
func lockDir(dir string) (io.Closer, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "cannot lock the data directory")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fault.Wrap(fault.Denied, err, "cannot lock "+path)
		}
		pid, _ := io.ReadAll(io.LimitReader(f, 20)) // for the message only
		who := strings.TrimSpace(string(pid))
		if who == "" {
			who = "unknown"
		}
		return nil, fault.New(fault.Busy, "the data directory %s is in use by a node with process id %s; stop it first, or give this one another data_dir", dir, who)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(fault.Failed, err, "cannot write "+path), f.Close())
	}
	return f, nil
}
