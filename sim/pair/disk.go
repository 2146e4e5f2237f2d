package pair

import (
	"slices"
	"time"

	"steadfast/san/mirror"
)

// content is what an operation carries.
type content struct {
	values  []value
	partial bool // a write of parts of blocks: what is around them has to be read
}

// change does what an Apply asks for, now.
func (s *toy) change(n *node, e mirror.Apply) mirror.Applied {
	w := n.world
	switch _, removes := e.Op.Payload.(removal); {
	case e.Op.Lists():
		return s.followList(n, e)
	case removes:
		return s.remove(n, e)
	case e.Op.Kind == mirror.Barrier:
		return s.barrier(n, e)
	}
	c := e.Op.Payload.(content)
	switch bad := s.damaged(e.Op.Block, e.Op.Count); {
	case s.failNext && e.Op.Kind == mirror.Write:
		s.failNext = false
		return n.breakDown(e.ID)
	case c.partial && bad.Count > 0:
		w.count.partials++
		w.note("%s cannot read what a write of block %d needs", memberOf(n.index), e.Op.Block)
		return mirror.Applied{ID: e.ID, Bad: bad}
	case !s.fits(e.Op.Block, e.Op.Count):
		w.count.full++
		w.note("%s has no room for %v at block %d", memberOf(n.index), c.values, e.Op.Block)
		return mirror.Applied{ID: e.ID, Full: true}
	}
	p := s.write(e.Op.Block, e.Op.Count, c.values, e.Op.Durable)
	w.note("%s stores %v at block %d, position %d, kind %d, durable %t", memberOf(n.index), c.values, e.Op.Block, p, e.Op.Kind, e.Op.Durable)
	return mirror.Applied{ID: e.ID, Position: p}
}

// breakDown has the drive fail.
func (n *node) breakDown(id uint64) mirror.Applied {
	n.broken = true
	n.world.count.driveFailures++
	n.world.note("the drive of %s fails", memberOf(n.index))
	return mirror.Applied{ID: id, Failed: true}
}

// barrier takes a snapshot, or takes it back. A full node refuses.
func (s *toy) barrier(n *node, e mirror.Apply) mirror.Applied {
	w, name := n.world, e.Op.Payload.(value)
	switch {
	case e.Op.Undo:
		w.count.undone++
		w.note("%s takes snapshot %d back", memberOf(n.index), name)
		return mirror.Applied{ID: e.ID, Position: s.forget(name)}
	case s.room == 0 && s.snaps[name] == nil:
		w.note("%s refuses snapshot %d", memberOf(n.index), name)
		return mirror.Applied{ID: e.ID, Full: true, Payload: "no room"}
	}
	w.note("%s takes snapshot %d", memberOf(n.index), name)
	return mirror.Applied{ID: e.ID, Position: s.snapshot(name)}
}

// begin implements medium.
func (s *toy) begin(*node) (mirror.Position, bool) {
	s.pinned = 0
	return s.saved[len(s.saved)-1], true
}

// end implements medium.
func (s *toy) end(power bool) {
	if power {
		s.powerLoss()
	}
	s.slow, s.failNext = 0, false
}

func (s *toy) ended() bool { return false }

func (s *toy) sync(*node) (failed bool) {
	s.flush()
	return false
}

func (s *toy) list(_ *node, e mirror.List) []mirror.Range {
	return s.changed(e.Since, len(e.Whole) > 0)
}

func (s *toy) save(p mirror.Position) { s.saved = append(s.saved, p) }

func (s *toy) keepState() bool {
	s.kept = true
	return true
}

func (s *toy) stateKept() bool { return s.kept }
func (s *toy) dropState()      { s.kept = false }
func (s *toy) breakNext()      { s.failNext = true }
func (s *toy) repair()         { clear(s.bad) }

func (s *toy) calm() { s.slow, s.failNext, s.room = 0, false, -1 }

func (s *toy) slowDown(most time.Duration) { s.slow = most }

func (s *toy) squeeze(on bool) {
	if s.room = -1; on {
		s.room = s.world.rand.IntN(3)
	}
}

// rot implements medium.
func (s *toy) rot() {
	w := s.world
	for range 1 + w.rand.IntN(3) {
		b := w.rand.Uint64N(w.cfg.blocks)
		if len(s.blocks[b]) > 0 {
			w.count.flips++
			s.bad[b] = true
			w.note("block %d of %s is damaged", b, s.owner)
		}
	}
}

// renew implements medium.
func (s *toy) renew() { *s = *newToy(s.world, s.owner) }

// load reads what a Load asks for, now.
func (s *toy) load(n *node, e mirror.Load) mirror.Applied {
	a := n.asks[e.ID]
	switch {
	case e.Op.Lists():
		return s.listSnapshots(e)
	case e.Op.Moment != 0:
		return s.loadSnapshot(e)
	}
	if s.failNext && e.Op.Kind == mirror.Read && len(n.mirror.Standing().Others) > 0 {
		s.failNext = false
		return n.breakDown(e.ID)
	}
	bad := s.damaged(e.Op.Block, e.Op.Count)
	if a != nil {
		a.damaged = bad.Count > 0
	}
	if bad.Count > 0 {
		return mirror.Applied{ID: e.ID, Bad: bad}
	}
	values := make([]value, e.Op.Count)
	for i := range values {
		values[i] = s.read(e.Op.Block + uint64(i)).value
	}
	differs := false
	if a != nil {
		a.loaded = values
		differs = e.Op.Kind == mirror.Compare && !slices.Equal(values, a.expected)
		a.differs = differs
	}
	return mirror.Applied{ID: e.ID, Payload: content{values: values}, Differs: differs}
}

// scrub has the node look at blocks that cannot be read, now and then.
func (w *world) scrub() {
	for _, n := range w.nodes[:2] {
		if !n.up || n.frozen {
			continue
		}
		for b := range w.cfg.blocks {
			if n.toy.bad[b] && (w.calm || w.chance(0.02)) {
				n.step(mirror.Heal{What: mirror.Range{Block: b, Count: 1}})
			}
		}
	}
	w.after(w.between(100*1e6, 500*1e6), w.scrub)
}

// takenBack holds that a refused snapshot is on no node of the set.
func (w *world) takenBack(n *node, a *ask) {
	if a.kind != mirror.Barrier {
		return
	}
	w.count.refusedSnapshots++
	for _, m := range w.nodes[:2] {
		if m.toy.snaps[a.snapshot] != nil && (m == n || len(n.mirror.Standing().Others) > 0) {
			w.fail("snapshot %d was refused, and %s has it", a.snapshot, memberOf(m.index))
		}
	}
}

// whole holds that what one node could read is healed on the other.
func (w *world) whole() {
	a, b := w.nodes[0].toy, w.nodes[1].toy
	for block := range w.cfg.blocks {
		if a.bad[block] != b.bad[block] {
			w.fail("block %d cannot be read on one node, and was not healed", block)
		}
	}
}
