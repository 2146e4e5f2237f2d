package store

import (
	"steadfast/fault"
	"steadfast/san/store/format"
)

// Maintain does one bounded piece (about ten milliseconds) of background
// work: cleaning, freeing what was deleted, checkpoints, sealing the log. It
// reports whether there is more to do now.
func (p *Pool) Maintain() (more bool, err error) {
	more, err = p.maintainOnce()
	p.tellThresholds()
	if err != nil || more {
		return more, err
	}
	return false, p.seal()
}

func (p *Pool) maintainOnce() (more bool, err error) {
	p.work.Lock()
	defer p.work.Unlock()
	if err := p.admitting(); err != nil {
		return false, err
	}
	p.wanted.Store(false)
	if r := p.room(); r.free <= r.floor && p.space.clearLimits() {
		p.recapacity() // perhaps the filesystem below has room again
	}
	if p.checkpointDue() {
		return true, p.checkpoint()
	}
	// What fails in one must not keep the others from their work; it is told
	// when they have none.
	for _, step := range []func() (bool, error){p.prepareStep, p.cleanStep, p.reclaimStep, p.scrubStep} {
		m, e := step()
		if err == nil {
			err = e
		}
		if m {
			return true, nil
		}
	}
	if err != nil {
		return false, err
	}
	p.space.clearLimits()
	p.recapacity()
	p.tellGone()
	return false, nil
}

// seal ends an idle log with an empty chunk, so that the last answered write
// has a witness: were its chunk damaged later, recovery would know it from the
// end of the log.
func (p *Pool) seal() error {
	p.logMu.Lock()
	t := p.tail.sequence
	idle := !p.tail.sealed && !p.tailBroken() && p.bg.idle == t
	p.bg.idle = t
	p.logMu.Unlock()
	if !idle {
		return nil
	}
	if err := p.flushLog(); err != nil {
		return err
	}
	err := p.commit(&op{sealing: true, durable: true})
	if fault.Is(err, fault.Full) {
		return nil // space is short: cleaning comes first, and it checkpoints
	}
	return err
}

// room is how the pool stands for free segments.
type room struct {
	tally
	least, batch, floor, low, high int
}

// room computes the marks: what is free at least is for a checkpoint; under
// floor, writers wait; under low, cleaning begins; at high it may end. Between
// least and floor the cleaner has room to empty a batch of segments: several
// times what the checkpoint fills that frees them. One that freed each segment
// by itself would write more than it frees.
func (p *Pool) room() room {
	r := room{tally: p.space.tally()}
	meta := p.tree.DirtyNodes() + int(2*p.blobBlocks.Load()) + 2
	r.least = 5
	if r.total > 0 {
		fills := int(int64(meta) * int64(r.total) / r.blocks) // segments, by a checkpoint
		r.least += fills
		r.batch = min(r.total/50, 4*fills)
	}
	r.floor = r.least + r.batch
	r.low = r.floor + max(3, r.total/50)
	r.high = r.low + max(3, r.total/50)
	return r
}

// checkpointDue tells whether a checkpoint should be written now: the log has
// to move, recovery would take long, changed nodes fill the cache, or segments
// wait to be free.
func (p *Pool) checkpointDue() bool {
	limit, _ := p.tree.CacheNodes()
	r := p.room()
	p.logMu.Lock()
	blocks, broken := p.tail.blocks, p.tailBroken() || p.tailLeaves(r)
	p.logMu.Unlock()
	return broken || blocks > logBlocksMax || p.tree.DirtyNodes() > limit/2 || p.deadDue(r) || r.dead >= max(4, r.total/16)
}

// cleanable tells whether cleaning should go on before the next checkpoint.
func (p *Pool) cleanable(r room) bool {
	return r.free > r.least && r.free+r.spare+r.dead < r.high && p.pickVictim() != nil
}

// deadDue tells whether a checkpoint should free the dead segments now: when
// writers wait and there is a batch of them, or when cleaning cannot go on.
func (p *Pool) deadDue(r room) bool {
	return r.dead > 0 && (r.free <= r.floor && r.dead > r.batch || r.free+r.spare <= r.low && !p.cleanable(r))
}

// wantsWork tells, cheaply, whether Maintain would find work.
func (p *Pool) wantsWork() bool {
	if p.wanted.Load() {
		return true
	}
	limit, _ := p.tree.CacheNodes()
	return p.tree.DirtyNodes() > limit/2
}

// headwayMax is how many pieces of background work a writer does before it
// believes that they lead nowhere: enough to empty a hundred of the largest
// segments.
const headwayMax = 100 * format.SegmentBlocksMax / cleanWindow

// ensureRoom makes sure that the leader's chunk finds a segment, doing
// background work itself if nobody else has done it in time. Called with no
// lock held.
func (p *Pool) ensureRoom(sealing bool) error {
	for range headwayMax {
		if err := p.usable(); err != nil {
			return err
		}
		p.logMu.Lock()
		t := p.tail
		broken := p.tailBroken()
		p.logMu.Unlock()
		limit, _ := p.tree.CacheNodes()
		pressed := t.blocks > 3*logBlocksMax || p.tree.DirtyNodes() > limit*3/4
		if t.blocks > logBlocksMax {
			p.wanted.Store(true)
		}
		if !broken && !pressed {
			if t.at.room() >= uint32(format.ChunkBlocksMax) {
				return nil
			}
			r := p.room()
			if r.free <= r.high {
				p.wanted.Store(true) // to reserve, or to clean
			}
			if r.free > r.floor {
				return nil
			}
		}
		if sealing {
			return fault.New(fault.Full, "no room to seal the log")
		}
		progress, err := p.makeRoom(pressed)
		if err != nil {
			return err
		}
		if !progress {
			return fault.New(fault.Full, "the pool has no free segment and nothing to clean; delete something or add a drive")
		}
	}
	return fault.New(fault.Internal, "cleaning makes no headway")
}

// makeRoom does one piece of what gives the log room again.
func (p *Pool) makeRoom(pressed bool) (progress bool, err error) {
	p.work.Lock()
	defer p.work.Unlock()
	p.logMu.Lock()
	broken, blocks := p.tailBroken(), p.tail.blocks
	p.logMu.Unlock()
	r := p.room()
	limit, _ := p.tree.CacheNodes()
	switch {
	case broken, pressed && (blocks > 3*logBlocksMax || p.tree.DirtyNodes() > limit*3/4), p.deadDue(r):
		return true, p.checkpoint()
	case pressed, r.free > r.floor:
		return true, nil // somebody else made it
	case r.spare > 0:
		return p.space.prepare(), nil
	}
	progress, err = p.cleanStep()
	if progress || err != nil || p.bg.lastResort {
		p.bg.lastResort = p.bg.lastResort && !progress
		return progress, err
	}
	// A checkpoint writes catalog, table and changed nodes elsewhere, which may
	// leave a segment dead.
	p.bg.lastResort = true
	return true, p.checkpoint()
}

// refreshUsed brings the admission's numbers up to date.
func (p *Pool) refreshUsed() {
	p.used.Store(p.dataBlocks.Load() + int64(p.tree.Nodes()) + p.blobBlocks.Load())
}

// recapacity computes how much users may fill; to be called when drives or
// their limits changed.
func (p *Pool) recapacity() {
	t := p.space.tally()
	if t.total == 0 {
		p.capacity.Store(0)
		p.reserved.Store(0)
		return
	}
	users := func(segments int) int64 {
		reserve := max(segments*reservePercent/100, reserveSegmentsMin)
		return max(0, t.blocks/int64(t.total)*int64(segments-reserve))
	}
	p.capacity.Store(users(t.total))
	p.reserved.Store(users(t.ready))
}

// prepareStep reserves segments ahead of need: while writers wait for a
// filesystem to find space, they wait for nothing else. Under work.
func (p *Pool) prepareStep() (more bool, err error) {
	r := p.room()
	ahead := p.reserved.Load() - p.used.Load() - p.pending.Load()
	if r.spare == 0 || r.free > r.high && ahead > r.blocks/64 {
		return false, nil
	}
	more = p.space.prepare()
	p.recapacity()
	return more, nil
}

// reserveFor makes sure that what users store, and the cleaner's room beside
// it, is reserved in the filesystems below: a pool that believed in space that
// is not there could not even delete when it learns so. It reports whether n
// blocks fit.
func (p *Pool) reserveFor(n int64) bool {
	for p.used.Load()+n > p.reserved.Load() {
		if !p.space.prepare() {
			p.recapacity()
			return p.used.Load()+n <= p.reserved.Load()
		}
		p.recapacity()
	}
	return true
}

// admit sets n blocks aside, or refuses with fault.Full. The caller gives them
// back through op.reserve.
func (p *Pool) admit(n int64) error {
	if n == 0 {
		return nil
	}
	if all := p.pending.Add(n); p.used.Load()+all <= p.capacity.Load() && p.reserveFor(all) {
		if p.full.Load() && p.full.CompareAndSwap(true, false) {
			p.notify(Event{Kind: EventSpaceBack, Text: "the pool takes writes again"})
		}
		return nil
	}
	p.pending.Add(-n)
	p.wanted.Store(true)
	if p.full.CompareAndSwap(false, true) {
		p.notify(Event{Kind: EventFull, Text: "the pool is full: writes that need space are refused; delete something or add a drive"})
	}
	return fault.New(fault.Full, "the pool is full; delete something or add a drive")
}

// tellThresholds tells of thresholds that use has crossed upwards.
func (p *Pool) tellThresholds() {
	used, capacity := p.used.Load(), p.capacity.Load()
	if capacity == 0 {
		return // no drive can be written: other events tell that
	}
	p.mu.RLock()
	above := int32(0)
	crossed := uint8(0)
	for _, t := range p.cat.thresholds {
		if used*100 >= int64(t)*capacity {
			above++
			crossed = t
		}
	}
	before := p.aboveBefore.Swap(above)
	var tell []func(VolumeEvent)
	if above > before {
		for _, v := range p.cat.volumes {
			tell = append(tell, v.watcherList()...)
		}
	}
	p.mu.RUnlock()
	if above > before {
		p.notify(Event{Kind: EventThreshold, Text: percentText(crossed, used, capacity)})
	}
	for _, fn := range tell {
		fn(VolumeThreshold)
	}
}

// tellGone tells of evacuated drives that hold nothing any more, once.
func (p *Pool) tellGone() {
	p.space.mu.Lock()
	var names []string
	for _, d := range p.space.devs {
		if d != nil && d.leaving && d.live == 0 && !d.told {
			d.told = true
			names = append(names, d.name)
		}
	}
	p.space.mu.Unlock()
	for _, n := range names {
		p.notify(Event{Kind: EventDriveGone, Drive: n, Text: "drive " + n + " holds nothing any more"})
	}
}

// blockBytes turns blocks into bytes.
func blockBytes(n int64) int64 { return n * format.BlockSize }
