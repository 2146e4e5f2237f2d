// Package filedisk is a disk in a file: a machine's on a single host.
//
// What is written is in the page cache until a flush, and stable after it; with
// block.FUA a write is stable when it returns. CompareAndWrite is atomic against
// writes of this device that overlap it, and against no other program's.
package filedisk

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/block"
	"steadfast/fault"
)

// File is a file as a block.Device.
type File struct {
	f        *os.File
	size     int64
	readOnly bool
	failed   atomic.Bool // a flush failed: what was written may be gone, and nobody can say what

	// changes is held for reading by what changes something, and for writing by
	// CompareAndWrite.
	changes sync.RWMutex
}

var _ block.Device = (*File)(nil)

// Open opens a file whose size is a multiple of block.SectorSize. Close closes it. Fails
// as OpenFile, and with fault.Invalid for another size.
func Open(name string, readOnly bool) (*File, error) {
	f, err := OpenFile(name, readOnly)
	if err != nil {
		return nil, err
	}
	return FromFile(f, readOnly)
}

// lockPatience is how long a lock is waited for: the process of a machine whose parent
// was killed has its files for a moment more.
const lockPatience = 2 * time.Second

// OpenFile opens a disk's file and locks it against other machines, for as long as the
// file, or a process that has it, lives. Fails with fault.NotFound, fault.Denied, or
// fault.Busy when another machine has it, and goes on to.
func OpenFile(name string, readOnly bool) (*os.File, error) {
	flags, lock := os.O_RDWR, unix.LOCK_EX
	if readOnly {
		flags, lock = os.O_RDONLY, unix.LOCK_SH
	}
	f, err := os.OpenFile(name, flags, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fault.Wrap(fault.NotFound, err, "a disk's file")
	case err != nil:
		return nil, fault.Wrap(fault.Denied, err, "a disk's file")
	}
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPatience / 200) {
		switch err := unix.Flock(int(f.Fd()), lock|unix.LOCK_NB); {
		case err == nil:
			return f, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, errors.Join(fault.Wrap(fault.Failed, err, "locking "+name), f.Close())
		case time.Now().After(end):
			return nil, errors.Join(fault.New(fault.Busy, "%s is in use by another machine", name), f.Close())
		}
	}
}

// FromFile makes a device of an open file, which is the device's then.
func FromFile(f *os.File, readOnly bool) (*File, error) {
	size, err := f.Seek(0, io.SeekEnd)
	switch {
	case err != nil:
		err = fault.Wrap(fault.Invalid, err, "a disk's file")
	case size == 0 || size%block.SectorSize != 0:
		err = fault.New(fault.Invalid, "%s has %d bytes: a disk has a multiple of %d", f.Name(), size, block.SectorSize)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &File{f: f, size: size, readOnly: readOnly}, nil
}

// Close closes the file; what was not flushed is the page cache's.
func (d *File) Close() error { return d.f.Close() }

// Size implements block.Device.
func (d *File) Size() int64 { return d.size }

func (d *File) check(off, n int64, change bool) error {
	switch {
	case off < 0 || n < 0 || off > d.size-n:
		return fault.New(fault.Invalid, "%d bytes at %d of a disk of %d", n, off, d.size)
	case change && d.readOnly:
		return fault.New(fault.ReadOnly, "the disk is read-only")
	case change && d.failed.Load():
		return errPoisoned
	}
	return nil
}

// errPoisoned ends a disk whose flush has failed: the kernel may have dropped what it
// could not write, and would say of the next flush that all is well.
var errPoisoned = fault.New(fault.Failed, "a flush of the disk's file has failed: what was written may be lost")

func failed(err error, doing string) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.Wrap(fault.Full, err, doing)
	}
	return fault.Wrap(fault.Failed, err, doing)
}

// ReadAt implements block.Device.
func (d *File) ReadAt(p []byte, off int64) error {
	if err := d.check(off, int64(len(p)), false); err != nil {
		return err
	}
	_, err := d.f.ReadAt(p, off)
	return failed(err, "reading a disk's file")
}

// WriteAt implements block.Device.
func (d *File) WriteAt(p []byte, off int64, flags block.Flags) error {
	if err := d.check(off, int64(len(p)), true); err != nil {
		return err
	}
	d.changes.RLock()
	defer d.changes.RUnlock()
	return d.write(p, off, flags)
}

func (d *File) write(p []byte, off int64, flags block.Flags) error {
	if _, err := d.f.WriteAt(p, off); err != nil {
		return failed(err, "writing a disk's file")
	}
	return d.stable(flags)
}

// stable flushes if flags ask for it.
func (d *File) stable(flags block.Flags) error {
	if flags&block.FUA == 0 {
		return nil
	}
	return d.Flush()
}

// Flush implements block.Device.
func (d *File) Flush() error {
	if d.failed.Load() {
		return errPoisoned
	}
	if err := unix.Fdatasync(int(d.f.Fd())); err != nil {
		d.failed.Store(true)
		return failed(err, "flushing a disk's file")
	}
	return nil
}

// Trim implements block.Device.
func (d *File) Trim(off, n int64) error { return d.Zero(off, n, 0) }

// Zero implements block.Device.
func (d *File) Zero(off, n int64, flags block.Flags) error {
	if err := d.check(off, n, true); err != nil || n == 0 {
		return err
	}
	d.changes.RLock()
	defer d.changes.RUnlock()
	err := unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) { // a filesystem without holes
		err = d.writeZeros(off, n)
	}
	if err != nil {
		return failed(err, "zeroing a disk's file")
	}
	return d.stable(flags)
}

var zeros [1 << 20]byte

func (d *File) writeZeros(off, n int64) error {
	for n > 0 {
		part := min(n, int64(len(zeros)))
		if _, err := d.f.WriteAt(zeros[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// CompareAndWrite implements block.Device.
func (d *File) CompareAndWrite(off int64, old, new []byte, flags block.Flags) (mismatch int64, err error) {
	if err := d.check(off, int64(len(old)), true); err != nil {
		return -1, err
	}
	d.changes.Lock()
	defer d.changes.Unlock()
	is := make([]byte, len(old))
	if _, err := d.f.ReadAt(is, off); err != nil {
		return -1, failed(err, "reading a disk's file")
	}
	if !bytes.Equal(is, old) {
		for i := range is {
			if is[i] != old[i] {
				return int64(i), nil
			}
		}
	}
	return -1, d.write(new, off, flags)
}
