package pair

import (
	"maps"
	"slices"

	"steadfast/san/mirror"
)

// Snapshots that were made or deleted while a member was away: what a resync needs
// of a store for them. A snapshot's name is its moment, and never used twice.

// removal is the action that deletes a snapshot.
type removal value

// inventory is a list of snapshots.
type inventory struct {
	names []value
	lost  []value // which need not be there
}

// snapshotCounts are what histories came to with them.
type snapshotCounts struct{ steps, reproduced, pruned, deleted, lacking int }

// coverage is counts.coverage.
func (c *snapshotCounts) coverage() []counter {
	return []counter{
		{"steps of resyncs", &c.steps, ofBoth},
		{"snapshots made by a resync", &c.reproduced, ofBoth},
		{"deleted by a resync", &c.pruned, ofToys},
		{"deleted by clients", &c.deleted, ofToys},
	}
}

// snapshotter is a disk that a resync makes snapshots on.
type snapshotter interface {
	// changes answers a List; ranges are what changed.
	changes(n *node, e mirror.List, ranges []mirror.Range) mirror.Changes
	// pin keeps a moment's snapshots from being deleted, and returns the volumes that
	// have one.
	pin(at mirror.Moment) []uint32
	unpin()
}

// pins are the Open that is pinned in a life, and the latest Shut: an Open may come
// after it.
type pins struct {
	life         int
	opened, shut uint64
}

// answerList makes the answer to a List.
func (n *node) answerList(e mirror.List, ranges []mirror.Range) mirror.Changes {
	if s, ok := n.disk.(snapshotter); ok {
		return s.changes(n, e, ranges)
	}
	return mirror.Changes{Number: e.Number, Ranges: ranges}
}

// openSnapshot answers an Open.
func (n *node) openSnapshot(e mirror.Open) {
	n.later(n.disk.delay(false), func() {
		in, p := mirror.Opened{Number: e.Number}, n.pinsNow()
		if s, ok := n.disk.(snapshotter); ok && e.Number > p.shut {
			p.opened, in.Volumes = e.Number, s.pin(e.Moment)
		}
		if len(in.Volumes) > 0 {
			n.world.count.steps++
		}
		n.step(in)
	})
}

// pinsNow returns those of the present life.
func (n *node) pinsNow() *pins {
	if n.pins.life != n.life {
		n.pins = pins{life: n.life}
	}
	return &n.pins
}

// shutSnapshot does a Shut.
func (n *node) shutSnapshot(e mirror.Shut) {
	p := n.pinsNow()
	p.shut = max(p.shut, e.Number)
	if s, ok := n.disk.(snapshotter); ok && p.opened <= e.Number {
		s.unpin()
	}
}

// spoiled notes a snapshot that cannot be read whole where it is: the other node has
// none then.
func (w *world) spoiled(name value) {
	if w.unreadable == nil {
		w.unreadable = map[value]bool{}
	}
	w.unreadable[name] = true
}

// origin is where a snapshot's blocks were entered, and where it was taken.
type origin struct {
	positions map[uint64]mirror.Position
	taken     mirror.Position
}

// noteOrigin notes a snapshot that was taken just now.
func (s *toy) noteOrigin(name value) {
	if s.origins == nil {
		s.origins = map[value]origin{}
	}
	o := origin{map[uint64]mirror.Position{}, s.last}
	for b := range s.blocks {
		o.positions[b] = s.read(b).position
	}
	s.origins[name] = o
}

// pin implements snapshotter.
func (s *toy) pin(at mirror.Moment) []uint32 {
	if s.pinned = value(at); s.snaps[s.pinned] == nil {
		return nil
	}
	return []uint32{0}
}

// unpin implements snapshotter.
func (s *toy) unpin() { s.pinned = 0 }

// names lists the snapshots in the order in which they were taken here.
func (s *toy) names() []value {
	return slices.SortedFunc(maps.Keys(s.snaps), func(a, b value) int { return int(s.origins[a].taken) - int(s.origins[b].taken) })
}

// changes implements snapshotter.
func (s *toy) changes(_ *node, e mirror.List, ranges []mirror.Range) mirror.Changes {
	c := mirror.Changes{Number: e.Number, Ranges: ranges}
	if !e.Steps {
		c.Snapshots = inventory{names: s.names()}
		return c
	}
	has, _ := e.Has.(inventory)
	var before map[uint64]mirror.Position // of each block, in the step before
	for _, name := range s.names() {
		if slices.Contains(has.names, name) {
			continue
		}
		at := s.origins[name].positions
		step := mirror.Step{Moment: mirror.Moment(name)}
		for b := range s.world.cfg.blocks {
			differs := before != nil && before[b] != at[b]
			if before == nil {
				whole := len(e.Whole) > 0 || e.Since == 0
				differs = at[b] > e.Since || whole || s.origins[name].taken <= e.Since && (at[b] != s.read(b).position || s.read(b).position > e.Since)
			}
			if differs {
				step.Ranges = append(step.Ranges, mirror.Range{Block: b, Count: 1})
			}
		}
		c.Steps, before = append(c.Steps, step), at
	}
	if before == nil {
		return c
	}
	c.Ranges = nil
	for b := range s.world.cfg.blocks {
		if s.read(b).position != before[b] {
			c.Ranges = append(c.Ranges, mirror.Range{Block: b, Count: 1})
		}
	}
	return c
}

// listSnapshots makes the list that an operation of a resync carries.
func (s *toy) listSnapshots(e mirror.Load) mirror.Applied {
	list := inventory{names: s.names()}
	if e.Op.Moment != 0 {
		list.names = []value{value(e.Op.Moment)}
	}
	lost, _ := e.Op.Payload.([]mirror.Moment)
	for _, m := range lost {
		list.lost = append(list.lost, value(m))
		s.world.spoiled(value(m))
	}
	return mirror.Applied{ID: e.ID, Payload: list}
}

// followList does what a list of the owner's snapshots asks for.
func (s *toy) followList(n *node, e mirror.Apply) mirror.Applied {
	w := n.world
	list, _ := e.Op.Payload.(inventory)
	for _, name := range list.names {
		switch {
		case s.snaps[name] != nil || e.Op.Prunes() && slices.Contains(list.lost, name):
		case e.Op.Prunes() && !e.Op.Ends():
		case e.Op.Ends():
			w.count.lacking++
			w.note("%s lacks snapshot %d at the end of a resync", memberOf(n.index), name)
			return mirror.Applied{ID: e.ID, Full: true, Payload: "lacks a snapshot"}
		case s.room == 0:
			return mirror.Applied{ID: e.ID, Full: true, Payload: "no room"}
		default:
			w.count.reproduced++
			w.note("%s makes snapshot %d, which it lacked", memberOf(n.index), name)
			s.snapshot(name)
		}
	}
	for _, name := range s.names() {
		if e.Op.Prunes() && !slices.Contains(list.names, name) {
			w.count.pruned++
			w.note("%s deletes snapshot %d, which the owner has not", memberOf(n.index), name)
			s.forget(name)
		}
	}
	if e.Op.Ends() {
		s.flush()
	}
	return mirror.Applied{ID: e.ID, Position: s.last}
}

// remove deletes a snapshot for a client; one that a resync copies from stays.
func (s *toy) remove(n *node, e mirror.Apply) mirror.Applied {
	name := value(e.Op.Payload.(removal))
	switch {
	case e.Op.Undo:
	case s.pinned == name:
		n.world.note("%s refuses to delete snapshot %d: it is being copied", memberOf(n.index), name)
		return mirror.Applied{ID: e.ID, Full: true, Payload: "it is being copied"}
	case s.snaps[name] != nil:
		n.world.count.deleted++
		n.world.note("%s deletes snapshot %d", memberOf(n.index), name)
		return mirror.Applied{ID: e.ID, Position: s.forget(name)}
	}
	return mirror.Applied{ID: e.ID, Position: s.last}
}

// loadSnapshot reads blocks of a snapshot for a resync. What is damaged in the
// volume is so there, too, if it is the same.
func (s *toy) loadSnapshot(e mirror.Load) mirror.Applied {
	name := value(e.Op.Moment)
	values, bad := make([]value, e.Op.Count), mirror.Range{}
	for i := range values {
		b := e.Op.Block + uint64(i)
		values[i] = s.snaps[name][b]
		if !s.bad[b] || s.origins[name].positions[b] != s.read(b).position {
			continue
		}
		if bad.Count == 0 {
			bad.Block = b
		}
		bad.Count = b + 1 - bad.Block
	}
	if bad.Count > 0 {
		return mirror.Applied{ID: e.ID, Bad: bad}
	}
	return mirror.Applied{ID: e.ID, Payload: content{values: values}}
}

// sameSnapshots holds that both nodes have the same snapshots.
func (w *world) sameSnapshots(a, b *toy) {
	names := slices.Concat(a.names(), b.names())
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if (a.snaps[name] == nil) != (b.snaps[name] == nil) && !w.unreadable[name] {
			w.fail("snapshot %d is on one node only", name)
		}
	}
}

// someSnapshot returns a snapshot that a client was told of, or 0.
func (w *world) someSnapshot() value {
	var taken []value
	for _, r := range w.ops {
		if r.kind == mirror.Barrier && r.answered && !r.refused && r.snapshot != 0 {
			taken = append(taken, r.snapshot)
		}
	}
	if len(taken) == 0 {
		return 0
	}
	return taken[w.rand.IntN(len(taken))]
}
