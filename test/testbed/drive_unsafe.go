package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Drive is a drive that can be made to fail: a filesystem of its own on a loop
// device, which the kernel can be told to shut down. From then on every read,
// write and flush of files on it is EIO, for all who have them open, as with a
// drive that left its bus. Without device mapper that is the error nearest to a
// real one that needs nothing in the program under test.
type Drive struct {
	image, mount string
}

// NewDrive makes a drive of some bytes under dir. It needs root, mkfs.ext4 and a
// free loop device.
func NewDrive(ctx context.Context, dir string, size int64) (*Drive, error) {
	d := &Drive{image: filepath.Join(dir, "drive.img"), mount: filepath.Join(dir, "drive")}
	if err := os.MkdirAll(d.mount, 0o755); err != nil {
		return nil, err
	}
	if err := sparse(d.image, size); err != nil {
		return nil, err
	}
	mkfs, err := lookup("mkfs.ext4")
	if err != nil {
		return nil, err
	}
	if _, err := run(ctx, mkfs, "-q", "-F", "-m", "0", d.image); err != nil {
		return nil, err
	}
	if err := d.attach(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// attach mounts the drive. The loop device is a new one, and goes with the mount:
// mount by itself would take the one before if anybody still has that, and with
// it the filesystem that failed.
func (d *Drive) attach(ctx context.Context) error {
	losetup, err := lookup("losetup")
	if err != nil {
		return err
	}
	out, err := run(ctx, losetup, "--find", "--show", d.image)
	if err != nil {
		return err
	}
	device := strings.TrimSpace(out)
	_, err = run(ctx, "mount", device, d.mount)
	_, detach := run(ctx, losetup, "--detach", device) // as soon as nobody has it mounted
	return errors.Join(err, detach)
}

// Path names a file of the drive.
func (d *Drive) Path(name string) string { return filepath.Join(d.mount, name) }

// shutdownNoFlush is EXT4_GOING_FLAGS_NOLOGFLUSH (linux/ext4.h): nothing more
// is written, as if the power had gone.
const shutdownNoFlush = 2

// shutdownRequest is EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32).
const shutdownRequest = 2<<30 | 4<<16 | 'X'<<8 | 125

// Fail makes the drive fail, until Repair.
func (d *Drive) Fail() error {
	f, err := os.Open(d.mount)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	flags := uint32(shutdownNoFlush)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdownRequest, uintptr(unsafe.Pointer(&flags)))
	if errno != 0 {
		return fmt.Errorf("shut down %s: %w", d.mount, errno)
	}
	return nil
}

// Repair puts the drive back as it was. Nobody may have it open: a filesystem
// that failed goes on writing its cached blocks for as long as somebody does.
func (d *Drive) Repair(ctx context.Context) error {
	err := unix.Unmount(d.mount, 0)
	for end := time.Now().Add(5 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond) // what was just killed is let go a moment later
		err = unix.Unmount(d.mount, 0)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", d.mount, err)
	}
	return d.attach(ctx)
}

// Close takes the drive away.
func (d *Drive) Close() error {
	err := unix.Unmount(d.mount, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) {
		err = nil // not mounted
	}
	return errors.Join(err, os.Remove(d.image))
}

// MountsUnder returns what is mounted in a folder, the last one first.
func MountsUnder(dir string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append([]string{f[4]}, out...)
		}
	}
	return out, nil
}
