package statevol

import (
	"errors"
	"sync"

	"steadfast/block"
	"steadfast/fault"
)

// drive is a block device in memory with a write cache that a test can lose:
// blocks land whole or not at all, in any order and number.
type drive struct {
	block.Device // what a state volume has no use for

	mu     sync.Mutex
	stable map[int64][]byte // by block
	cached []landing        // since the last flush, in order
	writes int              // WriteAt calls
	blocks int              // blocks of all writes

	gate func() // before each write, without locks
	fail func(op string) error
	// tear, if not nil, chooses what lands of the next write, by block; the
	// write then fails.
	tear func() bool
}

// landing is one block of a write that is in the cache.
type landing struct {
	at   int64
	data []byte
}

var errPower = errors.New("the power is gone")

func newDrive() *drive { return &drive{stable: map[int64][]byte{}} }

func (d *drive) Size() int64 { return Size }

// held returns what a block reads as. Under mu.
func (d *drive) held(at int64) []byte {
	for i := len(d.cached) - 1; i >= 0; i-- {
		if d.cached[i].at == at {
			return d.cached[i].data
		}
	}
	if b := d.stable[at]; b != nil {
		return b
	}
	return make([]byte, block.BlockSize)
}

func (d *drive) ReadAt(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off%block.BlockSize != 0 || len(p)%block.BlockSize != 0 || off+int64(len(p)) > Size {
		return fault.New(fault.Invalid, "read of %d at %d", len(p), off)
	}
	for n := 0; n < len(p); n += block.BlockSize {
		copy(p[n:], d.held((off+int64(n))/block.BlockSize))
	}
	return nil
}

func (d *drive) WriteAt(p []byte, off int64, flags block.Flags) error {
	if d.gate != nil {
		d.gate()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if off%block.BlockSize != 0 || len(p)%block.BlockSize != 0 || off+int64(len(p)) > Size {
		return fault.New(fault.Invalid, "write of %d at %d", len(p), off)
	}
	if d.fail != nil {
		if err := d.fail("write"); err != nil {
			return err
		}
	}
	d.writes++
	for n := 0; n < len(p); n += block.BlockSize {
		if d.tear != nil && !d.tear() {
			continue
		}
		d.blocks++
		l := landing{(off + int64(n)) / block.BlockSize, append([]byte(nil), p[n:n+block.BlockSize]...)}
		if flags&block.FUA == 0 || d.tear != nil {
			d.cached = append(d.cached, l)
			continue
		}
		d.stable[l.at] = l.data
		d.forget(l.at)
	}
	if d.tear != nil {
		return errPower
	}
	return nil
}

// forget drops what the cache has of a block that was written past it. Under
// mu.
func (d *drive) forget(at int64) {
	left := d.cached[:0]
	for _, l := range d.cached {
		if l.at != at {
			left = append(left, l)
		}
	}
	d.cached = left
}

func (d *drive) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		if err := d.fail("flush"); err != nil {
			return err
		}
	}
	for _, l := range d.cached {
		d.stable[l.at] = l.data
	}
	d.cached = nil
	return nil
}

// crash loses the power: of what is in the cache, lands says for each block of
// each write whether it got to the medium.
func (d *drive) crash(lands func() bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.cached {
		if lands() {
			d.stable[l.at] = l.data
		}
	}
	d.cached, d.tear = nil, nil
}
