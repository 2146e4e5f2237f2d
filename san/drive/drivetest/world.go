// Package drivetest has drives in memory that lose power, lie and break, for
// tests and the simulation. Everything that happens to them follows from their
// calls and from one random source, so that a seed repeats it.
//
// A Disk is what stays when the node dies; a Handle is a drive.Drive on it for
// one life of the node. All disks of one World share its power: World counts
// every operation that changes a disk (a boundary), and can be told to end in
// the middle of one. From then on every operation of every handle fails, until
// Kill (the process died) or PowerLoss says what the disks hold now and the
// next life begins.
//
// What survives, in units of a sector of 512 bytes:
//   - a stable sector always: WriteDurable returned, or Flush after a write;
//   - a cached one survives Kill, and after PowerLoss is either there or one of
//     its older contents down to the stable one, each sector on its own;
//   - a write in flight when the world ended may be there in any part.
package drivetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"steadfast/fault"
)

// World is what disks share: the power, and the count of boundaries.
type World struct {
	mu         sync.Mutex
	disks      []*Disk
	boundaries int // operations begun that change a disk
	end        int // the boundary in which the world ends; 0: none is planned
	ended      bool
	life       int // handles of earlier lives stay dead
	writes     uint64
	lying      bool
	watch      func(line string)
}

// NewWorld returns a world with the power on and no disks.
func NewWorld() *World { return &World{} }

// Boundaries returns how many operations that change a disk have begun.
func (w *World) Boundaries() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.boundaries
}

// EndAfter lets the world end in the n-th boundary from now, n >= 1.
func (w *World) EndAfter(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = w.boundaries + n
}

// Endless cancels EndAfter.
func (w *World) Endless() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = 0
}

// Ended reports whether the world has ended and waits for Kill or PowerLoss.
func (w *World) Ended() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended
}

// Watch lets fn see every operation that changes a disk, in words.
func (w *World) Watch(fn func(line string)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watch = fn
}

// say tells the watcher. Called with mu held.
func (w *World) say(format string, args ...any) {
	if w.watch != nil {
		w.watch(fmt.Sprintf(format, args...))
	}
}

// Lie makes drives answer durable writes and flushes without doing them. No
// store can stand on such drives; it shows that a judge notices.
func (w *World) Lie() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lying = true
}

// Kill ends the node's process here, if it has not ended in a boundary, and
// begins the next life: what was written is in the drives' caches and stays
// readable, a write in flight is there in part.
func (w *World) Kill(r *rand.Rand) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.disks {
		for _, f := range d.flights {
			d.apply(f, tear(r))
		}
		d.flights = nil
	}
	w.restart()
}

// PowerLoss ends the node here, if it has not ended in a boundary, decides
// what its disks hold, and begins the next life.
func (w *World) PowerLoss(r *rand.Rand) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.disks {
		d.loseCache(r)
	}
	w.restart()
}

func (w *World) restart() {
	w.ended = false
	w.end = 0
	w.life++
}

// begin counts a boundary for an operation of h that changes n blocks of its
// disk from block b on. It returns an error if h's world is over, and inFlight
// if it ends just now. Called with mu held.
func (w *World) begin(h *Handle, verb string, b, n int64) (inFlight bool, err error) {
	if err := w.alive(h); err != nil {
		return false, err
	}
	w.boundaries++
	w.say("boundary %d: %s %s %d blocks at %d", w.boundaries, h.disk.name, verb, n, b)
	if w.end != 0 && w.boundaries >= w.end {
		w.ended = true
		return true, errEnded
	}
	return false, nil
}

// alive returns an error if h cannot be used any more. Called with mu held.
func (w *World) alive(h *Handle) error {
	if w.ended || h.life != w.life || h.closed {
		return errEnded
	}
	return nil
}

var errEnded = fault.New(fault.Failed, "the world has ended")

// loseCache settles each cached sector of d and each sector in flight, after a
// power loss. What drives do with their caches differs, so the way is drawn
// too: a way that mixes everything would rarely leave a plain old state.
func (d *Disk) loseCache(r *rand.Rand) {
	for _, f := range d.flights {
		d.world.writes++
		for i, p := range f.pages {
			d.cache(f.block+int64(i), p, d.world.writes)
		}
	}
	inFlight := len(d.flights) > 0
	d.flights = nil
	keep := d.survival(r, inFlight)
	for _, b := range d.dirtyBlocks() {
		c := d.cells[b]
		settled := *c.stablePage()
		for s := range sectorsPerBlock {
			for _, v := range slices.Backward(c.cached) {
				if keep(v.write, b, s) {
					copy(sector(&settled, s), sector(v.page, s))
					break
				}
			}
		}
		c.stable, c.cached = &settled, nil
	}
	clear(d.dirty)
}

// survival draws a way in which cached writes survive: keep says of one write
// and one sector whether it reached the platter.
func (d *Disk) survival(r *rand.Rand, inFlight bool) (keep func(write uint64, block int64, sector int) bool) {
	last := d.world.writes
	fates := map[uint64]bool{}
	perWrite := func(write uint64) bool {
		if _, ok := fates[write]; !ok {
			fates[write] = r.IntN(2) == 0
		}
		return fates[write]
	}
	chance := 1 + r.IntN(9)
	way := r.IntN(5)
	torn := inFlight && r.IntN(3) > 0
	stop := last - min(last, uint64(r.IntN(20)))
	return func(write uint64, _ int64, _ int) bool {
		if torn && write == last { // whatever the cache does, a write in flight can be cut anywhere
			return r.IntN(10) < chance
		}
		switch way {
		case 0:
			return false
		case 1:
			return true
		case 2: // whole writes, in any order
			return perWrite(write)
		case 3: // in order, up to some write
			return write <= stop
		default: // each sector by itself
			return r.IntN(10) < chance
		}
	}
}

// tear draws how much of a write that was in flight when its process was
// killed has happened: sector i of n.
func tear(r *rand.Rand) func(i, n int) bool {
	switch r.IntN(4) {
	case 0:
		return func(int, int) bool { return false }
	case 1:
		return func(int, int) bool { return true }
	case 2: // from the front
		part := r.Float64()
		return func(i, n int) bool { return float64(i) < part*float64(n) }
	default:
		return func(int, int) bool { return r.IntN(2) == 0 }
	}
}
