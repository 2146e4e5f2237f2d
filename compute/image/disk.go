package image

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// Of what Each gives, in bytes: a grain of zeros is left out.
const (
	grainBytes = 64 << 10
	pieceBytes = 256 << 10
)

// Disk is a disk's file, open to be read: raw, or qcow2 of version 2 or 3 without another
// file below it.
type Disk struct {
	// Bytes is the disk's size.
	Bytes int64
	f     *os.File
	q     *qcow2 // nil: it is raw
}

// OpenDisk opens a disk's file of whichever kind it is. Fails with fault.NotFound,
// fault.Invalid for kinds that are not read, and fault.Corrupt.
func OpenDisk(name string) (*Disk, error) { return openDisk(name, false) }

// OpenRawDisk opens a raw disk's file: what begins with it is its guest's to choose, and
// tells nothing. Fails as OpenDisk does.
func OpenRawDisk(name string) (*Disk, error) { return openDisk(name, true) }

func openDisk(name string, raw bool) (*Disk, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "a disk's file")
	}
	d, err := newDisk(f, raw)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

func newDisk(f *os.File, raw bool) (*Disk, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "%s is no regular file", f.Name())
	}
	packed := false
	if !raw {
		if packed, err = kindOf(f); err != nil {
			return nil, err
		}
	}
	d := &Disk{Bytes: st.Size(), f: f}
	if packed {
		if d.q, err = openQcow2(f); err != nil {
			return nil, err
		}
		d.Bytes = d.q.size
	}
	if d.Bytes <= 0 || d.Bytes > SizeMax {
		return nil, fault.New(fault.Invalid, "%s is a disk of %d bytes", f.Name(), d.Bytes)
	}
	return d, nil
}

// kindOf tells by a file's beginning whether it is qcow2. Fails with fault.Invalid for kinds that
// are not read.
func kindOf(f *os.File) (packed bool, err error) {
	head := make([]byte, 64)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	head = head[:n]
	for magic, kind := range foreign {
		if len(head) >= len(magic) && string(head[:len(magic)]) == magic {
			return false, fault.New(fault.Invalid, "%s is a %s file; make it one that is read with: qemu-img convert -O raw", f.Name(), kind)
		}
	}
	return isQcow2(head), nil
}

// Each calls do with what is on the disk, ascending; what is left out is zeros. A piece has at
// most 256 KiB, begins at a multiple of 512 bytes, and ends at one or with the disk; it
// is do's until that returns. Fails as do does, and with fault.Canceled.
func (d *Disk) Each(ctx context.Context, do func(off int64, piece []byte) error) error {
	if d.q != nil {
		return d.q.copyTo(ctx, gathering(do))
	}
	buf := make([]byte, pieceBytes)
	for at := int64(0); at < d.Bytes; {
		if err := ctx.Err(); err != nil {
			return fault.Wrap(fault.Canceled, err, "reading "+d.f.Name())
		}
		data, err := unix.Seek(int(d.f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but a hole is left
		}
		if err == nil {
			at = max(at, data/grainBytes*grainBytes)
		}
		if at >= d.Bytes {
			return nil // what follows has come since it was opened
		}
		p := buf[:min(int64(len(buf)), d.Bytes-at)]
		if _, err := d.f.ReadAt(p, at); err != nil {
			return fault.Wrap(fault.Failed, err, "reading "+d.f.Name())
		}
		if err := eachGrain(p, at, do); err != nil {
			return err
		}
		at += int64(len(p))
	}
	return nil
}

// eachGrain calls do with what is not zero of p, which is at off of the disk.
func eachGrain(p []byte, off int64, do func(int64, []byte) error) error {
	for from := 0; from < len(p); {
		to := from
		for to < len(p) && !isZero(p[to:min(to+grainBytes, len(p))]) {
			to = min(to+grainBytes, len(p))
		}
		if to == from {
			from = min(from+grainBytes, len(p))
			continue
		}
		if err := do(off+int64(from), p[from:to]); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// gathering is an io.WriterAt that hands on what is written, in pieces: clusters of a qcow2
// file have up to 2 MiB.
type gathering func(off int64, piece []byte) error

// WriteAt implements io.WriterAt.
func (g gathering) WriteAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); n += pieceBytes {
		if err := eachGrain(p[n:min(n+pieceBytes, len(p))], off+int64(n), g); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// Close closes the file.
func (d *Disk) Close() error { return d.f.Close() }
