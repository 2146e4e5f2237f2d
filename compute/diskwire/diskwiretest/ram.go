// Package diskwiretest is a disk in memory that a test makes slow, full, larger or
// faulty.
package diskwiretest

import (
	"bytes"
	"sync"

	"steadfast/block"
	"steadfast/fault"
)

// Op is what a device was asked for.
type Op string

// The operations of a block.Device.
const (
	Read            Op = "read"
	Write           Op = "write"
	Flush           Op = "flush"
	Trim            Op = "trim"
	Zero            Op = "zero"
	CompareAndWrite Op = "compare and write"
)

// Request is what a device was asked for.
type Request struct {
	Op     Op
	Off, N int64
	Flags  block.Flags
}

// RAM is a disk in memory. It errs as a block.Device should.
type RAM struct {
	// Before, if any, is called with each request that is in range before it is done, by
	// many at once; it may wait, and what it returns fails the request. It is set
	// before the device is used.
	Before func(Request) error

	mu       sync.RWMutex
	data     []byte
	requests int
}

var _ block.Device = (*RAM)(nil)

// NewRAM returns a disk of zeros, of so many bytes.
func NewRAM(size int64) *RAM { return &RAM{data: make([]byte, size)} }

// begin judges a request and lets Before have it.
func (d *RAM) begin(r Request) error {
	d.mu.Lock()
	size := int64(len(d.data))
	d.requests++
	d.mu.Unlock()
	if r.Off < 0 || r.N < 0 || r.Off > size-r.N || r.Off%block.SectorSize != 0 || r.N%block.SectorSize != 0 {
		return fault.New(fault.Invalid, "%d bytes at %d of a disk of %d", r.N, r.Off, size)
	}
	if d.Before == nil {
		return nil
	}
	return d.Before(r)
}

// Requests returns how many it was asked.
func (d *RAM) Requests() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.requests
}

// Grow makes the disk larger.
func (d *RAM) Grow(size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.data = append(d.data, make([]byte, size-int64(len(d.data)))...)
}

// ReadAt implements block.Device.
func (d *RAM) ReadAt(p []byte, off int64) error {
	if err := d.begin(Request{Read, off, int64(len(p)), 0}); err != nil {
		return err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	copy(p, d.data[off:])
	return nil
}

// WriteAt implements block.Device.
func (d *RAM) WriteAt(p []byte, off int64, flags block.Flags) error {
	if err := d.begin(Request{Write, off, int64(len(p)), flags}); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:], p)
	return nil
}

// Flush implements block.Device.
func (d *RAM) Flush() error { return d.begin(Request{Op: Flush}) }

// Trim implements block.Device.
func (d *RAM) Trim(off, n int64) error { return d.clear(Request{Trim, off, n, 0}) }

// Zero implements block.Device.
func (d *RAM) Zero(off, n int64, flags block.Flags) error {
	return d.clear(Request{Zero, off, n, flags})
}

func (d *RAM) clear(r Request) error {
	if err := d.begin(r); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[r.Off : r.Off+r.N])
	return nil
}

// CompareAndWrite implements block.Device.
func (d *RAM) CompareAndWrite(off int64, old, new []byte, flags block.Flags) (int64, error) {
	if err := d.begin(Request{CompareAndWrite, off, int64(len(old)), flags}); err != nil {
		return -1, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if is := d.data[off : off+int64(len(old))]; !bytes.Equal(is, old) {
		for i := range is {
			if is[i] != old[i] {
				return int64(i), nil
			}
		}
	}
	copy(d.data[off:], new)
	return -1, nil
}

// Size implements block.Device.
func (d *RAM) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return int64(len(d.data))
}
