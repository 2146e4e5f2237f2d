package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// errNoCap is why a process cannot be given a share of a processor.
var errNoCap = errors.New("no control group here bounds the processor (version 1 cpu.cfs_quota_us, version 2 cpu.max; root is needed)")

// ftCap bounds a process to a share of a processor.
type ftCap struct {
	dir, home string // home is the group to go back to
	pid       int
}

// ftCapPeriod is what the share is of: short, so that what waits for the next one waits little.
const ftCapPeriod = 5 * time.Millisecond

// newFTCap bounds a process, with all its threads. Fails with errNoCap.
func newFTCap(pid int, share float64) (*ftCap, error) {
	period := ftCapPeriod.Microseconds()
	quota := strconv.FormatInt(int64(share*float64(period)), 10)
	base := "/sys/fs/cgroup/cpu"
	settings := [][2]string{{"cpu.cfs_period_us", strconv.FormatInt(period, 10)}, {"cpu.cfs_quota_us", quota}}
	if _, err := os.Stat(filepath.Join(base, "cgroup.procs")); err != nil {
		base = "/sys/fs/cgroup"
		settings = [][2]string{{"cpu.max", fmt.Sprintf("%s %d", quota, period)}}
		// May be on already, or refused: the write of the bound tells.
		_ = os.WriteFile(filepath.Join(base, "cgroup.subtree_control"), []byte("+cpu"), 0o644)
	}
	dir, err := os.MkdirTemp(base, "steadfast-test-ft-")
	if err != nil {
		return nil, errors.Join(errNoCap, err)
	}
	c := &ftCap{dir: dir, home: base, pid: pid}
	for _, s := range append(settings, [2]string{"cgroup.procs", strconv.Itoa(pid)}) {
		if err := os.WriteFile(filepath.Join(dir, s[0]), []byte(s[1]), 0o644); err != nil {
			return nil, errors.Join(errNoCap, err, c.close())
		}
	}
	return c, nil
}

// close lets the process have all of a processor again.
func (c *ftCap) close() error {
	back := os.WriteFile(filepath.Join(c.home, "cgroup.procs"), []byte(strconv.Itoa(c.pid)), 0o644)
	return errors.Join(back, os.Remove(c.dir))
}
