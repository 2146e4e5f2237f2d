package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Stall holds up what a process writes to a device, its flushes included, and lets
// it go again: a drive that hangs and comes back.
type Stall struct {
	dir    string
	device string // major:minor
}

// blkio is where version 1 of the controller is.
const blkio = "/sys/fs/cgroup/blkio"

// NewStall makes a control group for a process that writes below folder. It needs
// root and the blkio controller, version 1.
func NewStall(folder string, pid int) (*Stall, error) {
	if _, err := os.Stat(filepath.Join(blkio, "blkio.throttle.write_iops_device")); err != nil {
		return nil, errors.New("no blkio cgroup (version 1) on this machine")
	}
	var st unix.Stat_t
	if err := unix.Stat(folder, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", folder, err)
	}
	// Limits are of whole devices, also when the filesystem is on a partition.
	device := wholeDevice(fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	dir, err := os.MkdirTemp(blkio, "steadfast-test-stall-")
	if err != nil {
		return nil, fmt.Errorf("make a blkio cgroup (root is needed): %w", err)
	}
	s := &Stall{dir: dir, device: device}
	if err := s.write("cgroup.procs", strconv.Itoa(pid)); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// wholeDevice returns the device that a partition is of, or the device itself.
func wholeDevice(device string) string {
	path, err := filepath.EvalSymlinks("/sys/dev/block/" + device)
	if err != nil {
		return device
	}
	if _, err := os.Stat(filepath.Join(path, "partition")); err != nil {
		return device
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(path), "dev"))
	if err != nil {
		return device
	}
	return string(b[:len(b)-1])
}

// Begin lets one write a second through, which is as good as none.
func (s *Stall) Begin() error { return s.write("blkio.throttle.write_iops_device", s.device+" 1") }

// End lets everything through.
func (s *Stall) End() error { return s.write("blkio.throttle.write_iops_device", s.device+" 0") }

func (s *Stall) write(file, text string) error {
	if err := os.WriteFile(filepath.Join(s.dir, file), []byte(text), 0o644); err != nil {
		return fmt.Errorf("blkio cgroup: %w", err)
	}
	return nil
}

// Close moves the process back and removes the group.
func (s *Stall) Close() error {
	var errs []error
	b, err := os.ReadFile(filepath.Join(s.dir, "cgroup.procs"))
	if err == nil {
		for pid := range strings.FieldsSeq(string(b)) {
			// It may have ended between.
			_ = os.WriteFile(filepath.Join(blkio, "cgroup.procs"), []byte(pid), 0o644)
		}
	}
	errs = append(errs, os.Remove(s.dir))
	return errors.Join(errs...)
}
