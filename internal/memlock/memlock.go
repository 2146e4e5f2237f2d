// Package memlock keeps a program in memory. Who answers for silence, as a node, a host and each
// side of a pair of machines do, must not wait for a page of its own program: a kernel that takes pages
// which were not used for a while, for want of memory or to have some ready (DAMON), has threads
// wait for as long as it is at it, which is a second when processors are busy, and with them
// whoever waits for a lock of theirs. corosync and keepalived do the same.
package memlock

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Lock reads this program in, and keeps it from being taken until execve(2): children call it themselves.
// What the runtime allocates is left out: it gives memory back by madvise(2), which fails for what is locked, and would
// have it mapped anew instead, with all threads waiting. It takes some milliseconds. Fails
// where the system does not allow that much.
func Lock() error {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("the mappings of this process: %w", err)
	}
	defer maps.Close()
	list, err := programOf(maps)
	if err != nil {
		return fmt.Errorf("the mappings of this process: %w", err)
	}
	size := uint64(0)
	for _, m := range list {
		size += uint64(m.to - m.from)
	}
	if err := allow(size); err != nil && !unlimited() {
		return fmt.Errorf("%d bytes of locked memory (LimitMEMLOCK=, ulimit -l): %w", size, err)
	}
	for _, m := range list {
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK, m.from, m.to-m.from, 0); errno != 0 {
			return fmt.Errorf("keeping this program in memory: %w", errno)
		}
	}
	return nil
}

// allow raises the limit of locked memory so far.
func allow(bytes uint64) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return err
	}
	if l.Cur >= bytes {
		return nil
	}
	l.Cur, l.Max = bytes, max(l.Max, bytes)
	return unix.Setrlimit(unix.RLIMIT_MEMLOCK, &l)
}

// unlimited tells whether this process has CAP_IPC_LOCK, to which limits do not apply. capabilities(7).
func unlimited() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	err := unix.Capget(&h, &d[0])
	return err == nil && d[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0
}

// mapping is a range of addresses.
type mapping struct{ from, to uintptr }

// programOf reads what is mapped of files, of a list as in /proc/self/maps. proc_pid_maps(5).
func programOf(maps io.Reader) (list []mapping, err error) {
	for s := bufio.NewScanner(maps); ; {
		if !s.Scan() {
			return list, s.Err()
		}
		// 00400000-010be000 r-xp 00000000 fd:00 123 /usr/bin/steadfast
		f := strings.Fields(s.Text())
		if len(f) < 6 || f[1][0] != 'r' || f[5][0] != '/' {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		a, err := strconv.ParseUint(from, 16, 64)
		b, err2 := strconv.ParseUint(to, 16, 64)
		if err := errors.Join(err, err2); err != nil {
			return list, err
		}
		list = append(list, mapping{uintptr(a), uintptr(b)})
	}
}
