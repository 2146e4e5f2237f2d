package host

import (
	"sync"

	"steadfast/block"
	"steadfast/fault"
)

// gate is between a volume and everybody who uses its data. It lets changes pass only while
// the lock is held, which it has no opinion of: a pair check beside the target's
// reservations, which hold for what has passed it already.
type gate struct {
	volume Volume
	// conflict is told when the target refuses; it must not wait.
	conflict func()

	mu    sync.Mutex
	state gateState
	size  int64 // what the guest's disk has, bytes; 0: what the volume has
	// gone is closed when the present life of the guest is over.
	gone chan struct{}
}

type gateState uint8

const (
	gateBefore gateState = iota // the lock was not told Held: only reads pass
	gateOpen
	gateShut // nothing passes any more
)

var _ block.Device = (*gate)(nil)

func newGate(v Volume, conflict func()) *gate { return &gate{volume: v, conflict: conflict} }

// open lets changes pass.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == gateBefore {
		g.state = gateOpen
	}
}

// shut lets nothing pass from now on.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state = gateShut
}

// begin says what ends a life of the guest, and how large its disk is.
func (g *gate) begin(size int64, gone chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.size, g.gone = size, gone
}

// pass does a request, if it may.
func (g *gate) pass(changes bool, do func() error) error {
	g.mu.Lock()
	state, gone := g.state, g.gone
	g.mu.Unlock()
	switch {
	case state == gateShut:
		return wait(gone, fault.New(fault.Fenced, "the machine's lock was given up"))
	case state == gateBefore && changes:
		return fault.New(fault.Fenced, "the machine's lock is not held yet")
	}
	err := do()
	if fault.Is(err, fault.Fenced) {
		// RESERVATION CONFLICT.
		g.shut()
		g.conflict()
	}
	if g.isShut() {
		// A guest that is over is not to see its end, nor to act on what it is told: it could
		// show people what another has changed since.
		return wait(gone, err)
	}
	return err
}

func (g *gate) isShut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state == gateShut
}

// wait returns an error when the guest that would see it is gone.
func wait(gone chan struct{}, err error) error {
	if gone != nil {
		<-gone
	}
	return err
}

// ReadAt implements block.Device.
func (g *gate) ReadAt(p []byte, off int64) error {
	return g.pass(false, func() error { return g.volume.ReadAt(p, off) })
}

// WriteAt implements block.Device.
func (g *gate) WriteAt(p []byte, off int64, flags block.Flags) error {
	return g.pass(true, func() error { return g.volume.WriteAt(p, off, flags) })
}

// Flush implements block.Device.
func (g *gate) Flush() error { return g.pass(true, g.volume.Flush) }

// Trim implements block.Device.
func (g *gate) Trim(off, n int64) error {
	return g.pass(true, func() error { return g.volume.Trim(off, n) })
}

// Zero implements block.Device.
func (g *gate) Zero(off, n int64, flags block.Flags) error {
	return g.pass(true, func() error { return g.volume.Zero(off, n, flags) })
}

// CompareAndWrite implements block.Device.
func (g *gate) CompareAndWrite(off int64, old, data []byte, flags block.Flags) (at int64, err error) {
	err = g.pass(true, func() (e error) {
		at, e = g.volume.CompareAndWrite(off, old, data, flags)
		return e
	})
	return at, err
}

// Size implements block.Device: that of the machine's disk, which grows at its next
// start and not with the volume.
func (g *gate) Size() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.size > 0 {
		return min(g.size, g.volume.Size())
	}
	return g.volume.Size()
}
