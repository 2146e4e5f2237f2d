package main

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// disk is a block device past the page cache.
type disk struct {
	fd   int
	size int64
}

func openDisk(path string) (*disk, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	size, err := unix.Seek(fd, 0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("size of %s: %w", path, err), unix.Close(fd))
	}
	return &disk{fd: fd, size: size}, nil
}

// Size implements verify.Disk.
func (d *disk) Size() int64 { return d.size }

// alignment is what O_DIRECT wants of an address in memory. The runtime gives
// blocks as large as the load's at a page's begin; a change of that shall show.
const alignment = 512

// whole has a request done that may be interrupted, and must be done whole.
func whole(p []byte, do func() (int, error)) error {
	if uintptr(unsafe.Pointer(unsafe.SliceData(p)))%alignment != 0 {
		return errors.New("memory that is not aligned")
	}
	for {
		n, err := do()
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n != len(p):
			return io.ErrUnexpectedEOF
		default:
			return nil
		}
	}
}

// ReadAt implements verify.Disk.
func (d *disk) ReadAt(p []byte, off int64) error {
	return whole(p, func() (int, error) { return unix.Pread(d.fd, p, off) })
}

// WriteAt implements verify.Disk.
func (d *disk) WriteAt(p []byte, off int64, fua bool) error {
	return whole(p, func() (int, error) {
		if fua {
			return unix.Pwritev2(d.fd, [][]byte{p}, off, unix.RWF_DSYNC)
		}
		return unix.Pwrite(d.fd, p, off)
	})
}

// Flush implements verify.Disk.
func (d *disk) Flush() error { return unix.Fdatasync(d.fd) }

// Close implements verify.Disk.
func (d *disk) Close() error { return unix.Close(d.fd) }
