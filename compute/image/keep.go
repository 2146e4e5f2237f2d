package image

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// tempPrefix begins the names of folders that are being made.
const tempPrefix = ".making-"

// lockRetry is how often a lock that another process holds is tried.
const lockRetry = 200 * time.Millisecond

// lock waits for an exclusive lock on a file, which is made if need be and stays, or on a
// folder. waits is called once if another has it. The lock ends with the process, or with the
// function that is returned.
func lock(ctx context.Context, path string, waits func()) (func(), error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	}
	if err != nil {
		return nil, err
	}
	for first := true; ; first = false {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			_ = f.Close()
			return nil, fault.Wrap(fault.Failed, err, "locking "+path)
		case first && waits != nil:
			waits()
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fault.Wrap(fault.Canceled, ctx.Err(), "waiting for "+path)
		case <-time.After(lockRetry):
		}
	}
}

// making is a folder that is being made, locked by its maker. It becomes the folder that it is for when it is
// whole, or nothing.
type making struct {
	dir    string
	unlock func()
}

// beginMaking makes a folder beside what it will become, and removes those there whose makers
// have died.
func beginMaking(ctx context.Context, parent string) (*making, error) {
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	// One at a time, so that a folder is not taken for a dead maker's before it is locked.
	done, err := lock(ctx, parent, nil)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := sweep(parent); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, tempPrefix)
	if err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, dir, nil)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &making{dir, unlock}, nil
}

// sweep removes folders of dead makers.
func sweep(parent string) error {
	all, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range all {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err := removeAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// removeAll removes a tree, also one with folders that may not be written to.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, os.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// become renames the folder to its name, once all that is in it is stable: after a loss of
// power there is the whole of it, or nothing. Fails with fault.Exists if there is something else.
func (m *making) become(path string) error {
	if err := os.Chmod(m.dir, 0o755); err != nil {
		return err
	}
	if err := syncAll(m.dir); err != nil {
		return fault.Wrap(fault.Failed, err, "making "+m.dir+" stable")
	}
	// rename(2) replaces an empty folder and nothing else.
	err := os.Rename(m.dir, path)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTDIR) {
		return fault.New(fault.Exists, "%s is there already", path)
	}
	if err != nil {
		return err
	}
	m.dir = ""
	return fault.Wrap(fault.Failed, syncPath(filepath.Dir(path)), "making "+path+" stable")
}

// syncAll makes a folder's files and the folders themselves stable.
func syncAll(dir string) error {
	return filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		return syncPath(p)
	})
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// end removes the folder if it has not become anything.
func (m *making) end() error {
	defer m.unlock()
	if m.dir == "" {
		return nil
	}
	return removeAll(m.dir)
}

// copySparse copies a file; what is a hole, or can be shared with the source, stays so.
// The copy is on stable storage when it returns.
func copySparse(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return out.Sync()
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	for at := int64(0); at < st.Size(); {
		data, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := copyRange(out, in, data, hole-data); err != nil {
			return err
		}
		at = hole
	}
	return out.Sync()
}

// copyRange copies n bytes at the same offset of both files.
func copyRange(out, in *os.File, at, n int64) error {
	if _, err := in.Seek(at, io.SeekStart); err != nil {
		return err
	}
	if _, err := out.Seek(at, io.SeekStart); err != nil {
		return err
	}
	// The kernel copies, where it can.
	_, err := io.CopyN(out, in, n)
	return err
}

// usedBytes returns how much space the files below a folder take.
func usedBytes(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		sum += st.Blocks * 512
		return nil
	})
	return sum, err
}
