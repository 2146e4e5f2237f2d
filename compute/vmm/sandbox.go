package vmm

import (
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// nofileMax is how many descriptors the process may have: the machine's, and a few.
const nofileMax = 128

// controlFD is the one descriptor that the process is given.
const controlFD = 3

// confine gives up everything that a machine does not need. Nothing that it does can be
// undone. Descriptors up to controlFD stay.
func confine() error {
	// The time zone would be read from a file when a time is first printed.
	_ = time.Now().Local().String()
	if err := closeInherited(); err != nil {
		return err
	}
	for what, most := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: nofileMax} {
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return fault.Wrap(fault.Failed, err, "limits of a machine's process")
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fault.Wrap(fault.Failed, err, "keeping a machine's process from being read")
	}
	return installFilter()
}

// closeInherited closes what this process did not open itself: that is what is not to be
// closed on execve(2), or it would not have got here. What the runtime opens is.
func closeInherited() error {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fault.Wrap(fault.Failed, err, "this process's descriptors")
	}
	for _, e := range list {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= controlFD {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if errors.Is(err, unix.EBADF) { // it was the listing's own
			continue
		}
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			err = unix.Close(fd)
		}
		if err != nil {
			return fault.Wrap(fault.Failed, err, "closing what was inherited")
		}
	}
	return nil
}
