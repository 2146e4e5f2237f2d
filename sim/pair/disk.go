package pair

import (
	"slices"

	"steadfast/san/mirror"
)

// content is what an operation carries.
type content struct {
	values  []value
	partial bool // a write of parts of blocks: what is around them has to be read
}

// change does what an Apply asks for, now.
func (n *node) change(e mirror.Apply) mirror.Applied {
	w, s := n.world, n.store
	if e.Op.Kind == mirror.Barrier {
		return n.barrier(e)
	}
	c := e.Op.Payload.(content)
	switch bad := s.damaged(e.Op.Block, e.Op.Count); {
	case s.failNext && e.Op.Kind == mirror.Write:
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
	n.store.failNext, n.broken = false, true
	n.world.count.driveFailures++
	n.world.note("the drive of %s fails", memberOf(n.index))
	return mirror.Applied{ID: id, Failed: true}
}

// barrier takes a snapshot, or takes it back. A full node refuses.
func (n *node) barrier(e mirror.Apply) mirror.Applied {
	w, s, name := n.world, n.store, e.Op.Payload.(value)
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

// load reads what a Load asks for, now.
func (n *node) load(e mirror.Load) mirror.Applied {
	s, a := n.store, n.asks[e.ID]
	if s.failNext && e.Op.Kind == mirror.Read && len(n.mirror.Standing().Others) > 0 {
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
			if n.store.bad[b] && (w.calm || w.chance(0.02)) {
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
		if m.store.snaps[a.snapshot] != nil && (m == n || len(n.mirror.Standing().Others) > 0) {
			w.fail("snapshot %d was refused, and %s has it", a.snapshot, memberOf(m.index))
		}
	}
}

// whole holds that what one node could read is healed on the other.
func (w *world) whole() {
	a, b := w.nodes[0].store, w.nodes[1].store
	for block := range w.cfg.blocks {
		if a.bad[block] != b.bad[block] {
			w.fail("block %d cannot be read on one node, and was not healed", block)
		}
	}
}
