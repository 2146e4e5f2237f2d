package mirror

import (
	"slices"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
)

// phase is how far a stream is; see the package doc.
type phase uint8

const (
	phaseAsking phase = iota
	phaseCopying
	phaseEnding
	phaseJoined
)

// stream carries an owner's operations to the other node.
type stream struct {
	to       quorum.Incarnation
	number   uint64
	phase    phase
	sequence uint64          // of the last operation
	sent     map[uint64]sent // not acknowledged
	open     map[uint64]bool // acknowledged or not, its operation has not ended
	low      uint64          // the first that is one of these, or the next
	complete uint64          // as last told
	firm     uint64          // from this one on, the stream's end must have them

	// Of a resync.
	steps     steps  // see steps.go
	stuck     ranges // what cannot be read here
	again     group.Instant
	ahead     uint64 // blocks of writes in sent
	copies    int
	hello     *Packet  // to be sent when it is known of which volumes this node knows nothing
	theirs    []Range  // what the other has changed
	has       any      // and the snapshots that it has
	whole     []Range  // volumes of which it knows nothing
	asked     bool     // the steps are asked for
	stale     bool     // and may be others by now
	planned   bool     // they are known
	old       *Changes // with the mutation oldList: an answer of another role
	pruned    bool     // the other is told which snapshots there are
	opening   uint64   // the present step's Open, or 0
	opened    bool     // it is answered
	acting    bool     // the other is to take the present step's snapshot
	lossy     bool     // the present step's snapshot cannot be read whole
	lost      []Moment // those that could not
	told      bool     // Synced
	toldSince group.Instant
}

// sent is an operation on its way.
type sent struct {
	id     uint64
	what   Range
	write  bool
	client bool // it is a client's write
	// barrier: it is one.
	barrier bool
}

// missed is what a cut resync had left.
type missed struct {
	to    quorum.Incarnation
	steps steps
	lost  []Moment
}

// steer opens the stream, and takes a resync further.
func (m *Mirror) steer() {
	if m.at.Role != group.Owner || m.link == nil || m.broken || m.now < m.pausing {
		return
	}
	if m.stream == nil {
		m.openStream(*m.link)
	}
	s := m.stream
	switch s.phase {
	case phaseAsking:
		if s.planned {
			s.phase = phaseCopying
		}
	case phaseCopying:
		m.stepOn(s)
		if m.cfg.AheadBlocks > 0 && s.ahead > m.cfg.AheadBlocks && m.agent.Missed(m.now, s.to) {
			m.closeStream() // clients wait for it
			m.pausing = m.now.Add(m.cfg.Pause)
		}
	case phaseEnding:
		if !slices.Contains(m.at.Others, s.to) && m.agent.Missed(m.now, s.to) {
			m.closeStream() // clients wait for it
		}
	case phaseJoined:
		m.join(s)
	}
	if s == m.stream {
		m.tellComplete(s)
	}
}

// openStream begins a stream to an incarnation.
func (m *Mirror) openStream(to quorum.Incarnation) {
	m.streams++
	s := &stream{to: to, number: m.streams, sent: map[uint64]sent{}, open: map[uint64]bool{}, low: 1, steps: newSteps()}
	m.stream = s
	hello := Packet{Kind: Hello, Epoch: m.at.Epoch, Stream: s.number}
	if slices.Contains(m.at.Others, to) {
		s.phase = phaseJoined
		again := m.underWay()
		hello.Sequence = uint64(len(again))
		m.transmit(to, hello)
		for _, o := range again {
			m.forward(o)
		}
		m.ledger.resume()
		return
	}
	hello.Op.Kind = ending // it is to be resynced
	if m.missed != nil && m.missed.to == to {
		s.phase, s.steps, s.lost, hello.Op.Kind = phaseCopying, m.missed.steps, m.missed.lost, copied // where it was
	} else {
		for _, r := range m.unsettled() {
			s.steps.last().add(r)
		}
		s.hello = &hello
		m.list(List{Brief: true}, nil)
	}
	m.missed = nil
	m.govern.restart(m)
	if s.hello == nil {
		m.transmit(to, hello)
	}
}

// underWay lists the operations that the other may lack.
func (m *Mirror) underWay() (list []*operation) {
	for _, id := range m.sorted() {
		if o := m.ops[id]; o.from == nil && o.granted && !o.refusedThere && (o.op.changes() || o.op.Kind == Flush) {
			list = append(list, o)
		}
	}
	return list
}

// unsettled lists the blocks that this node's store is at now: a list of its
// changes may not have them.
func (m *Mirror) unsettled() (list []Range) {
	for _, o := range m.ops {
		if o.granted && (o.op.Kind == Write || o.op.Copies() && o.from != nil) {
			list = append(list, o.op.what())
		}
	}
	return list
}

// closeStream ends the stream. What it leaves of a resync is kept for the next.
func (m *Mirror) closeStream() {
	s := m.stream
	if s == nil {
		return
	}
	m.stream = nil
	m.shut(s)
	if s.phase == phaseCopying || s.phase == phaseEnding {
		m.missed = m.left(s)
	}
	for _, id := range m.sorted() {
		o := m.ops[id]
		if o.from == nil {
			o.number, o.awaits, o.damage.fetch = 0, false, 0 // which were of this stream
			switch {
			case !o.op.own():
			case o.damage.mending:
				o.dead = true // the store is at it
			default:
				m.forget(o)
			}
		}
	}
}

// left returns what a stream leaves of a resync: what is under way is of the
// present step. What it must ask the store for again is nothing.
func (m *Mirror) left(s *stream) *missed {
	s.unstick()
	left := &missed{to: s.to, steps: s.steps, lost: s.lost}
	for _, w := range s.sent {
		switch {
		case w.barrier:
			return nil // who has its snapshot?
		case w.write:
			left.steps.first().add(w.what)
		}
	}
	for _, o := range m.ops {
		if o.op.Kind == copied && o.from == nil {
			left.steps.first().add(o.op.what())
		}
	}
	return left
}

// forward sends an operation on the stream, or notes that it was not sent.
func (m *Mirror) forward(o *operation) {
	s := m.stream
	what := o.op.what()
	switch {
	case s == nil && m.missed != nil && o.op.Kind == Write:
		m.missed.steps.last().add(what)
		return
	case s == nil, s.phase == phaseCopying && (o.op.Kind == Flush || o.op.Kind == Barrier):
		return // the end has nothing whole yet
	case s.phase == phaseAsking, s.phase == phaseCopying && len(s.steps) > 1 && o.op.Kind == Write:
		if o.op.Kind == Write {
			s.steps.last().add(what)
		}
		return
	}
	delete(s.open, o.number)
	s.open[s.sequence+1] = true
	o.number = m.put(s, o, o.op)
	if o.op.Kind == Write {
		s.ahead += what.Count
		o.awaits = m.cfg.AheadBlocks > 0 && s.ahead > m.cfg.AheadBlocks
	}
	if o.op.Kind == ending {
		s.firm = o.number + 1
	}
}

// put puts something into the stream, and returns its place.
func (m *Mirror) put(s *stream, o *operation, op Op) uint64 {
	s.sequence++
	s.sent[s.sequence] = sent{o.id, op.what(), op.Kind == Write || op.Copies(), op.Kind == Write, op.Kind == Barrier}
	m.transmit(s.to, Packet{Kind: Forward, Epoch: m.at.Epoch, Stream: s.number, Sequence: s.sequence, Complete: m.completeUpTo(s), Op: op})
	return s.sequence
}

// list asks what this node's store has changed since the position, and all that
// it has of the whole volumes.
func (m *Mirror) list(l List, whole []Range) {
	m.lists++
	l.Number, l.Since = m.lists, m.position
	for _, r := range whole {
		l.Whole = append(l.Whole, r.Volume)
	}
	m.do(l)
}

// unknown returns those of the ranges that say: nothing is known of this volume.
func unknown(list []Range) (out []Range) {
	for _, r := range list {
		if r.Count == 0 {
			out = append(out, r)
		}
	}
	return out
}

// changes takes what this node's store has changed.
func (m *Mirror) changes(c Changes) {
	if c.Number != m.lists { // it was asked in another role, and lacks what was changed since
		if !m.cfg.Fault.has(oldList) {
			return
		}
		if s := m.stream; s != nil && s.hello != nil {
			s.old = &c
			return
		}
	}
	list := c.Ranges
	switch s := m.stream; {
	case s == nil || s.phase != phaseAsking:
	case s.hello != nil:
		s.hello.Ranges = unknown(list)
		m.transmit(s.to, *s.hello)
		s.hello = nil
		return
	case s.asked && !s.planned:
		m.planned(s, c)
		return
	}
	if in := m.inbound; in != nil && in.listing {
		in.listing = false
		m.transmit(in.owner, Packet{Kind: Differ, Epoch: in.epoch, Stream: in.stream, Ranges: append(list, in.unsettled...), Op: Op{Payload: c.Snapshots}})
	}
}

// differ takes what the other's store has changed.
func (m *Mirror) differ(p Packet) {
	s := m.stream
	if s == nil || p.Stream != s.number || p.Epoch != m.at.Epoch || s.phase != phaseAsking || s.asked || s.hello != nil {
		return
	}
	if !m.cfg.Fault.has(forgetIntent) {
		s.theirs = p.Ranges
	}
	if !m.cfg.Fault.has(partly) {
		s.whole = unknown(p.Ranges)
	}
	s.asked, s.has = true, p.Op.Payload
	m.plan(s)
}

// ended takes the end of a copy, of a step, or of the resync.
func (m *Mirror) ended(o *operation) {
	s := m.stream
	if o.op.Kind == copied {
		s.copies--
		m.totals.copied += o.op.Count
		m.govern.copied(m, time.Duration(m.now-o.began))
		return
	}
	if o.op.Kind == stepping {
		m.next(s)
		return
	}
	s.phase = phaseJoined
	for _, f := range m.ops {
		if f.from == nil && f.op.Kind == Flush && f.granted && f.number == 0 {
			f.acks = append(f.acks, s.to) // it was not sent: the resync's end was its flush there
		}
	}
	m.save(m.ledger.flushed(o.id))
	m.do(Resynced{})
}

// join has the stream's end admitted, again until it is.
func (m *Mirror) join(s *stream) {
	if slices.Contains(m.at.Others, s.to) {
		m.ledger.resume()
		return
	}
	if !s.told || m.now >= s.toldSince.Add(m.cfg.Agent.Retry) {
		s.told, s.toldSince = true, m.now
		m.tell(group.Synced{Who: s.to})
	}
	if m.stream == s && !slices.Contains(m.at.Others, s.to) && m.agent.Missed(m.now, s.to) {
		m.closeStream()
	}
}

// acknowledged notes that the other has an operation.
func (m *Mirror) acknowledged(p Packet) {
	s := m.stream
	if s == nil || p.Stream != s.number || p.Epoch != m.at.Epoch {
		return
	}
	w, ok := s.sent[p.Sequence]
	if !ok {
		return
	}
	delete(s.sent, p.Sequence)
	m.touched = append(m.touched, w.id)
	o := m.ops[w.id]
	if o != nil && o.damage.fetch == p.Sequence {
		m.fetched(o, p)
		return
	}
	if w.client {
		s.ahead -= w.what.Count
	}
	if o == nil || o.number != p.Sequence || o.from != nil {
		o = nil
	}
	switch {
	case p.Refused && (o == nil || !slices.Contains(m.at.Others, s.to)):
		// It has no room for a resync: that is for later, and no client waits.
		// At the end it is that the other lacks a snapshot: it begins anew.
		if w.write {
			s.steps.first().add(w.what)
		}
		anew := o != nil && o.op.Ends()
		if m.closeStream(); anew {
			m.missed = nil
		}
		m.pausing = m.now.Add(m.cfg.Pause)
	case p.Damaged && (o == nil || !slices.Contains(m.at.Others, s.to)):
		s.steps.first().add(w.what) // a copy is of whole blocks: it heals them
		if s.phase != phaseCopying {
			m.closeStream()
		} else if o != nil {
			o.acks = append(o.acks, s.to)
		}
	case o != nil:
		o.acks = append(o.acks, s.to)
		o.refusedThere, o.damage.there = p.Refused, p.Damaged
		if p.Refused {
			o.was = p.Op.Payload
		}
	}
}

// completeUpTo returns the sequence up to which everything is on both.
func (m *Mirror) completeUpTo(s *stream) uint64 {
	for s.low <= s.sequence {
		if _, ok := s.sent[s.low]; ok || s.open[s.low] {
			break
		}
		s.low++
	}
	return s.low - 1
}

// tellComplete tells the other how far everything is on both.
func (m *Mirror) tellComplete(s *stream) {
	if n := m.completeUpTo(s); n > s.complete {
		s.complete = n
		m.transmit(s.to, Packet{Kind: Complete, Epoch: m.at.Epoch, Stream: s.number, Complete: n})
	}
}
