package mirrorio

import (
	"sync/atomic"
	"time"

	"steadfast/cluster/group"
	"steadfast/fault"
	"steadfast/san/mirror"
)

// A read of the owner need not go through the core, if it sees nothing that an
// entry could lack, and the owner may answer when it is done. So what the store
// is at is marked, from before an Apply until the core says Freed: by stretches of
// volumes, each with how many operations are at it and how many have been. A read
// whose stretches were free before, and are free and untouched after, has seen
// what both nodes have. Whether the node may answer is looked at last: the read
// counts as of then.
//
// What cannot be read so (something is under way there, it is not known whether
// the node may answer, the checksum is wrong) goes through the core.

const (
	stretchBlocks = 256 // of one stretch
	stretches     = 1024
	stretchesMax  = 16 // an operation of more is marked as one on everything
	usedOne       = 1 << 32
)

// underWay is what the store is at: in each word the lower half counts the
// operations now, and the upper half those that there have been.
type underWay struct {
	all     atomic.Uint64
	stretch [stretches]atomic.Uint64
}

// of calls do for each word of an operation's blocks.
func (u *underWay) of(op *mirror.Op, do func(w *atomic.Uint64)) {
	first, last := op.Block/stretchBlocks, (op.Block+max(op.Count, 1)-1)/stretchBlocks
	if op.Count == 0 || last-first >= stretchesMax {
		do(&u.all)
		return
	}
	for s := first; s <= last; s++ {
		do(u.at(op.Volume, s))
	}
}

func (u *underWay) at(volume uint32, stretch uint64) *atomic.Uint64 {
	h := (stretch + uint64(volume)*0x9E3779B9) * 0x9E3779B97F4A7C15
	return &u.stretch[h>>54]
}

func (u *underWay) begin(op *mirror.Op) {
	u.of(op, func(w *atomic.Uint64) { w.Add(usedOne + 1) })
}

func (u *underWay) end(op *mirror.Op) {
	u.of(op, func(w *atomic.Uint64) { w.Add(^uint64(0)) })
}

// free sums the words of a read's blocks, and tells whether nothing is under way
// there. Sums that are equal are of words that are: they only grow.
func (u *underWay) free(op *mirror.Op) (sum uint64, free bool) {
	sum = u.all.Load()
	if free = sum%usedOne == 0; !free {
		return 0, false
	}
	for s := op.Block / stretchBlocks; s <= (op.Block+op.Count-1)/stretchBlocks; s++ {
		w := u.at(op.Volume, s).Load()
		if w%usedOne != 0 {
			return 0, false
		}
		sum += w
	}
	return sum, true
}

// mark notes that the store is to be at an operation. Of the driver.
func (g *Group) mark(e mirror.Apply) {
	if _, ok := g.marked[e.ID]; ok {
		return // again, or a part of it
	}
	op := mirror.Op{Volume: e.Op.Volume, Block: e.Op.Block, Count: e.Op.Count}
	g.marked[e.ID] = op
	g.under.begin(&op)
}

// unmark notes that whoever may read has what an operation wrote. Of the driver.
func (g *Group) unmark(id uint64) {
	op := g.marked[id]
	delete(g.marked, id)
	g.under.end(&op)
}

// past reads past the core, if that is as good.
func (g *Group) past(op *mirror.Op, read func() bool) bool {
	if g.reads.Load() == never || (op.Count-1)/stretchBlocks >= stretchesMax {
		return false
	}
	g.direct.RLock()
	defer g.direct.RUnlock()
	select {
	case <-g.ended:
		return false
	default:
	}
	before, free := g.under.free(op)
	if !free || !read() {
		return false
	}
	after, free := g.under.free(op)
	return free && before == after && g.opt.Now() < group.Instant(g.reads.Load())
}

// sampleEvery is how many reads past the core there are for one that the core is
// told of: it governs a resync by what clients feel.
const sampleEvery = 8

// readPast is past for a read that may wait for a drive.
func (g *Group) readPast(op mirror.Op, p []byte, off int64) bool {
	sampled := g.sample.Add(1)%sampleEvery == 0
	var began group.Instant
	if sampled {
		began = g.opt.Now()
	}
	ok := g.past(&op, func() bool { return g.opt.Store.Read(op.Volume, p, off) == nil })
	if ok && sampled {
		g.offer(mirror.Felt{Count: op.Count, Took: time.Duration(g.opt.Now() - began)})
	}
	return ok
}

// tryReadPast is past for a read that waits for nothing.
func (g *Group) tryReadPast(op mirror.Op, p []byte, off int64) bool {
	return g.past(&op, func() bool { return g.opt.Store.TryRead(op.Volume, p, off) })
}

// errDamaged is the answer for what neither node can read.
var errDamaged = fault.New(fault.Corrupt, "what is there cannot be read, and the other node cannot give it")
