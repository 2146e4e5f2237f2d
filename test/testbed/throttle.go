package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Throttle bounds how fast the processes in it read and write a drive: two of
// them on one machine have a drive each, as long as the one they share is faster
// than both. Only I/O past the page cache is bounded under version 1 of the
// controller; what the page cache writes back is not.
type Throttle struct {
	dir    string
	device string // major:minor
	v2     bool
}

// throttlePrefix begins the names of our groups; the process that made one
// follows.
const throttlePrefix = "steadfast-test-drive-"

// NewThrottle makes a group for the drive that a folder lies on, without a bound
// yet. It needs root. Groups that dead processes left are removed first.
func NewThrottle(folder string) (*Throttle, error) {
	device, err := driveOf(folder)
	if err != nil {
		return nil, err
	}
	t := &Throttle{device: device}
	base := "/sys/fs/cgroup/blkio"
	if _, err := os.Stat(filepath.Join(base, "blkio.throttle.write_bps_device")); err != nil {
		base, t.v2 = "/sys/fs/cgroup", true
		controllers, err := os.ReadFile(filepath.Join(base, "cgroup.controllers"))
		if err != nil || !strings.Contains(string(controllers), "io") {
			return nil, errors.New("no control group here bounds I/O (version 1 blkio.throttle, version 2 io)")
		}
		// May be on already, or refused: Set tells.
		_ = os.WriteFile(filepath.Join(base, "cgroup.subtree_control"), []byte("+io"), 0o644)
	}
	sweepThrottles(base)
	if t.dir, err = os.MkdirTemp(base, fmt.Sprintf("%s%d-", throttlePrefix, os.Getpid())); err != nil {
		return nil, fmt.Errorf("make a control group (root is needed): %w", err)
	}
	return t, nil
}

// sweepThrottles removes groups whose makers are gone. A group that still has a
// process cannot be removed, and stays.
func sweepThrottles(base string) {
	found, _ := filepath.Glob(filepath.Join(base, throttlePrefix+"*")) // the pattern is good
	for _, dir := range found {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), throttlePrefix), "-")
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(dir)
		}
	}
}

// driveOf names the whole drive under a folder, as major:minor: partitions
// cannot be bounded.
func driveOf(folder string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(folder, &st); err != nil {
		return "", fmt.Errorf("%s: %w", folder, err)
	}
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	sys, err := filepath.EvalSymlinks("/sys/dev/block/" + device)
	if err != nil {
		return "", fmt.Errorf("%s lies on no drive of its own (device %s)", folder, device)
	}
	if _, err := os.Stat(filepath.Join(sys, "partition")); err != nil {
		return device, nil
	}
	whole, err := os.ReadFile(filepath.Join(filepath.Dir(sys), "dev"))
	return strings.TrimSpace(string(whole)), err
}

// Set bounds reads and writes, each, in bytes a second; 0 takes the bounds away.
// It holds at once.
func (t *Throttle) Set(bytesPerSecond int64) error {
	for name, text := range throttleSettings(t.v2, t.device, bytesPerSecond) {
		if err := os.WriteFile(filepath.Join(t.dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("bound the I/O of a control group: %w", err)
		}
	}
	return nil
}

// throttleSettings are the control files and what is written to each.
func throttleSettings(v2 bool, device string, bytesPerSecond int64) map[string]string {
	if !v2 {
		text := fmt.Sprintf("%s %d", device, bytesPerSecond)
		return map[string]string{"blkio.throttle.read_bps_device": text, "blkio.throttle.write_bps_device": text}
	}
	rate := "max"
	if bytesPerSecond > 0 {
		rate = strconv.FormatInt(bytesPerSecond, 10)
	}
	return map[string]string{"io.max": fmt.Sprintf("%s rbps=%s wbps=%s", device, rate, rate)}
}

// Command is argv in the group: a shell enters it and becomes the command, so
// that nothing of it is outside.
func (t *Throttle) Command(argv ...string) []string {
	return append([]string{"/bin/sh", "-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(t.dir, "cgroup.procs")}, argv...)
}

// Close removes the group; its processes must have ended. On nil it does nothing.
func (t *Throttle) Close() error {
	if t == nil {
		return nil
	}
	for until := time.Now().Add(leavePatience); ; time.Sleep(20 * time.Millisecond) {
		err := os.Remove(t.dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if time.Now().After(until) {
			return err
		}
	}
}

// leavePatience is how long a group may take to be empty: a node's guard goes on
// for a few seconds after the node, when there is nobody left whom it could tell.
const leavePatience = 10 * time.Second
