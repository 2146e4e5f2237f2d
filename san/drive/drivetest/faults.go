package drivetest

import (
	"slices"

	"steadfast/fault"
	"steadfast/san/drive"
)

// Fault is something that one operation of a disk does wrong.
type Fault uint8

// Faults of operations.
const (
	NoFault        Fault = iota
	LoseWrite            // a write is acknowledged and not done
	MisdirectWrite       // a write lands in another place
	FailWrite            // a write fails, and all of this handle after it
	FailFlush            // a flush fails, and all of this handle after it
)

// occasion is when a fault can strike.
type occasion uint8

const (
	onWrite occasion = iota
	onFlush
)

func (f Fault) occasion() occasion {
	if f == FailFlush {
		return onFlush
	}
	return onWrite
}

// plan is a fault that waits for its operation.
type plan struct {
	fault Fault
	after int // operations of its kind before it
}

// Plan lets the n-th write or flush from now (n >= 1) go wrong.
func (d *Disk) Plan(f Fault, n int) {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	d.planned = append(d.planned, plan{f, n})
}

// Planned returns how many faults still wait, and forgets them.
func (d *Disk) Planned() int {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	n := len(d.planned)
	d.planned = nil
	return n
}

// Broken reports whether a write or flush of this disk has ever failed.
func (d *Disk) Broken() bool {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	return d.broken
}

// next counts an operation and returns the fault whose turn it is.
func (d *Disk) next(on occasion) Fault {
	due := NoFault
	d.planned = slices.DeleteFunc(d.planned, func(p plan) bool {
		if p.fault.occasion() == on && p.after <= 1 && due == NoFault {
			due = p.fault
			return true
		}
		return false
	})
	for i, p := range d.planned {
		if p.fault.occasion() == on {
			d.planned[i].after--
		}
	}
	return due
}

// elsewhere draws where a misdirected write of n blocks meant for first lands.
func (d *Disk) elsewhere(first, n int64) int64 {
	blocks := d.size / drive.BlockSize
	if d.rand.IntN(2) == 0 { // off by a little is what happens most
		if other := first + 1 + d.rand.Int64N(8); other+n <= blocks {
			return other
		}
	}
	return d.rand.Int64N(blocks - n + 1)
}

// SetSpace bounds the bytes that the filesystem below the disk can give;
// n < 0 lifts the bound. What has space keeps it.
func (d *Disk) SetSpace(n int64) {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	d.space = n
}

// Space returns the bytes that the disk takes up in the filesystem below.
func (d *Disk) Space() int64 {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	return int64(len(d.cells)) * drive.BlockSize
}

// missing counts blocks of a range that have no space yet.
func (d *Disk) missing(first, n int64) (count int64) {
	for b := first; b < first+n; b++ {
		if d.cells[b] == nil {
			count++
		}
	}
	return count
}

// allocate takes space for a range, or fails with fault.Full and takes none.
func (d *Disk) allocate(first, n int64) error {
	need := d.missing(first, n)
	if d.space >= 0 && need > 0 && (int64(len(d.cells))+need)*drive.BlockSize > d.space {
		return fault.New(fault.Full, "disk %s: no space in its filesystem", d.name)
	}
	for b := first; need > 0 && b < first+n; b++ {
		d.at(b)
	}
	return nil
}

// Written lists the blocks that hold something else than zeros, ascending.
func (d *Disk) Written() []int64 {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	var out []int64
	for b := range d.cells {
		if *d.newest(b) != zeroPage {
			out = append(out, b)
		}
	}
	slices.Sort(out)
	return out
}

// FlipBit changes one bit of a block at rest, in the cache and below.
func (d *Disk) FlipBit(block int64, bit int) {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	p := *d.newest(block)
	p[bit/8] ^= 1 << (bit % 8)
	d.settle(block, &p)
}

// MakeUnreadable lets reads of a block fail until it is written again.
func (d *Disk) MakeUnreadable(block int64) {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	d.at(block).unreadable = true
}

// Block returns what a read of the block gives.
func (d *Disk) Block(block int64) []byte {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	return slices.Clone(d.newest(block)[:])
}

// Bounded reports whether SetSpace bounds the disk.
func (d *Disk) Bounded() bool {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	return d.space >= 0
}
