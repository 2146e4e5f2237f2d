package mirror

import "slices"

// Snapshots that were taken while a node was away are made there by its resync,
// with the content that they have on the owner. A resync goes in steps: one for
// each snapshot that its target lacks, oldest first, and one for what is there now.
//
//	target:  what it has --> as in S1, snapshot --> as in S2, snapshot --> as it is
//	copied:              from S1               from S2               from the volumes
//
// During a snapshot's step nothing that clients write is sent: it is noted for the
// last step. The copies are read from the snapshot, so they wait for no client. When
// all of them are acknowledged, the target takes the snapshot; and the next step
// begins when that is acknowledged. What a step has to copy is what differs between
// its snapshot and the one before, and of the first what either node has changed.
//
// A snapshot that clients take during the last step makes a step of it: at that
// moment nothing is under way, and what the step had still to copy is what its
// target still lacks of the snapshot.
//
// First and last the target is told which snapshots there are: it deletes others,
// and at the end it refuses when it lacks one. Then the resync begins anew.

// stepsMax bounds the steps that come about by clients' snapshots.
const stepsMax = 1024

// step is a part of a resync: it makes its target what a moment is.
type step struct {
	moment Moment
	dirty  ranges
}

// steps are what a resync has to do; the last one is about what is there now.
type steps []step

func newSteps() steps { return make(steps, 1) }

// first returns the present step's blocks.
func (s steps) first() *ranges { return &s[0].dirty }

// last returns the blocks of what is there now.
func (s steps) last() *ranges { return &s[len(s)-1].dirty }

// blocks counts the blocks of all steps.
func (s steps) blocks() (n uint64) {
	for i := range s {
		n += s[i].dirty.blocks()
	}
	return n
}

// took makes what the last step has still to do a step of its own, for a snapshot
// that was taken just now. It reports whether there is room for that.
func (s *steps) took(at Moment) bool {
	if len(*s) >= stepsMax {
		return false
	}
	(*s)[len(*s)-1].moment = at
	*s = append(*s, step{})
	return true
}

// skip leaves the first step's blocks, but for those of the volumes, to the next.
func (s steps) skip(but []uint32) {
	kept := s[0].dirty[:0:0]
	for _, r := range s[0].dirty {
		if slices.Contains(but, r.Volume) {
			kept = append(kept, r)
		} else {
			s[1].dirty.add(r)
		}
	}
	s[0].dirty = kept
}

// plan asks what the steps are for a target that has some snapshots.
func (m *Mirror) plan(s *stream) {
	s.stale = false
	m.list(List{Steps: true, Has: s.has}, s.whole)
}

// planned takes the steps. Those that clients' snapshots could have changed
// meanwhile are asked for again.
func (m *Mirror) planned(s *stream, c Changes) {
	if s.stale {
		m.plan(s)
		return
	}
	if s.old != nil {
		c = *s.old
	}
	list := newSteps()[:0]
	for _, p := range c.Steps {
		if m.cfg.Fault.has(skipSteps) {
			break
		}
		st := step{moment: p.Moment}
		st.dirty.take(p.Ranges, m.cfg.Fault)
		list = append(list, st)
	}
	// What clients changed since the stream was opened is younger than any snapshot
	// in the plan, or the plan has it.
	live := s.steps[0]
	live.dirty.take(c.Ranges, m.cfg.Fault)
	s.steps = append(list, live)
	for _, r := range s.theirs {
		s.steps.first().add(r)
	}
	s.theirs, s.planned = nil, true
}

// take adds what this node's store has changed.
func (s *ranges) take(list []Range, fault Mutation) {
	if fault.has(skipDirty) {
		return
	}
	for _, r := range list {
		s.add(r)
	}
}

// stepOn takes the present step further: copies are kept under way, and when there
// is nothing left the target takes the snapshot, or has everything.
func (m *Mirror) stepOn(s *stream) {
	if !s.pruned {
		s.pruned = true
		m.start(m.own(Op{Kind: pruning}))
	}
	if len(s.stuck) > 0 && m.now >= s.again {
		s.unstick() // they may have been written anew
	}
	if !m.open(s) {
		return
	}
	dirty, at := s.steps.first(), s.steps[0].moment
	for len(*dirty) > 0 && !s.lossy && m.govern.copies(m, s.copies) {
		r := dirty.pop(m.cfg.CopyBlocks)
		s.copies++
		o := m.own(Op{Kind: copied, Volume: r.Volume, Block: r.Block, Count: r.Count, Moment: at})
		if m.cfg.Fault.has(stepFromHead) {
			o.op.Moment = 0
		}
		o.began = m.now
		m.start(o)
	}
	switch {
	case at != 0 && m.cfg.Fault.has(actEarly) && len(*dirty) == 0 && !s.acting:
	case s.copies > 0 || len(s.stuck) > 0:
		return
	case s.lossy:
		s.lost = append(s.lost, at)
		s.steps.skip(nil)
		m.next(s)
		return
	case len(*dirty) > 0:
		return
	case at == 0:
		if !m.barring() {
			s.phase = phaseEnding
			m.start(m.own(Op{Kind: ending, Payload: slices.Clone(s.lost)}))
		}
		return
	}
	if !s.acting {
		s.acting = true
		m.start(m.own(Op{Kind: stepping, Moment: at}))
	}
}

// open has the present step's snapshot kept from being deleted, and reports whether
// it is. Until all that was sent is acknowledged it is not known what the step has
// to copy.
func (m *Mirror) open(s *stream) bool {
	switch {
	case s.steps[0].moment == 0 || s.opened:
		return true
	case s.opening == 0 && !s.writing():
		m.opens++
		s.opening = m.opens
		m.do(Open{s.opening, s.steps[0].moment})
	}
	return false
}

// opened takes the answer: which of the volumes have the snapshot still.
func (m *Mirror) opened(in Opened) {
	s := m.stream
	if s == nil || in.Number != s.opening || s.opened {
		return
	}
	s.opened = true
	if s.steps.skip(in.Volumes); len(in.Volumes) == 0 {
		m.next(s)
	}
}

// next goes on to the next step.
func (m *Mirror) next(s *stream) {
	m.shut(s)
	s.steps = s.steps[1:]
}

// shut lets the present step's snapshot be deleted.
func (m *Mirror) shut(s *stream) {
	if s.opening != 0 {
		m.do(Shut{s.opening})
	}
	s.opening, s.opened, s.acting, s.lossy = 0, false, false, false
}

// writing tells whether something that is stored at the target is not
// acknowledged.
func (s *stream) writing() bool {
	for _, w := range s.sent {
		if w.write {
			return true
		}
	}
	return false
}

// barring tells whether a client's barrier waits or is under way.
func (m *Mirror) barring() bool {
	for _, o := range m.ops {
		if o.from == nil && o.op.Kind == Barrier {
			return true
		}
	}
	return false
}

// took notes, for a resync, that a barrier is done which its target was not sent.
// Its blocks are held still: nothing is under way.
func (m *Mirror) took(o *operation) {
	if o.number != 0 {
		return
	}
	room := true
	at := o.op.Moment
	if o.refused || o.refusedThere || m.cfg.Fault.has(skipSteps) {
		at = 0
	}
	switch s := m.stream; {
	case s != nil && s.phase == phaseAsking:
		s.stale = true
	case at == 0:
	case s != nil && s.phase == phaseCopying:
		s.unstick()
		m.recall(s)
		room = s.steps.took(at)
	case s == nil && m.missed != nil:
		room = m.missed.steps.took(at)
	}
	if !room { // it begins anew, and asks the store
		m.closeStream()
		m.missed = nil
	}
}

// recall takes back the copies that have waited for a barrier: they would be of
// what is there after it.
func (m *Mirror) recall(s *stream) {
	for _, id := range m.sorted() {
		if o := m.ops[id]; o.from == nil && o.op.Kind == copied && !o.granted && !m.cfg.Fault.has(lateCopy) {
			s.copies--
			s.steps.last().add(o.op.what())
			m.forget(o)
		}
	}
}

// unstick tries again what could not be read here.
func (s *stream) unstick() {
	for _, r := range s.stuck {
		s.steps.last().add(r)
	}
	s.stuck = nil
}

// stick leaves blocks out of a resync that cannot be read here. It does not end
// without them: a client may write them anew. Nobody will in a snapshot: that one
// is not made at the target.
func (m *Mirror) stick(o *operation, bad Range) {
	s := m.stream
	s.copies--
	if o.op.Moment != 0 {
		s.lossy = true
		s.steps.first().add(o.op.what())
		m.forget(o)
		return
	}
	s.stuck.add(bad)
	s.again = m.now.Add(m.cfg.Pause)
	end, last := o.op.Block+o.op.Count, bad.Block+bad.Count
	s.steps.last().add(Range{bad.Volume, o.op.Block, bad.Block - o.op.Block})
	s.steps.last().add(Range{bad.Volume, last, end - last})
	m.forget(o)
}
