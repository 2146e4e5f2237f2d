package mirror

import (
	"slices"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
)

// An owner's operation ends when it is where it has to be. What becomes of one ends no
// other, as long as what all stand on is the same: then a step looks at those that it
// has touched, and else at all.

// footing is what all operations stand on: what may end one, beside what becomes of
// itself.
type footing struct {
	role    group.Role
	epoch   quorum.Epoch
	others  int // who they are changes by decisions only, which concern all
	serving bool
	stream  *stream
	whole   bool // there is no stream, or its end is an entry that has everything
}

func (m *Mirror) footing() footing {
	s := m.stream
	whole := s == nil || s.phase == phaseJoined && slices.Contains(m.at.Others, s.to)
	return footing{m.at.Role, m.at.Epoch, len(m.at.Others), m.at.Serving, s, whole}
}

// concernsFew tells whether an input can end no operations but those that it touches,
// as long as the footing is what it was.
func concernsFew(in Input) bool {
	switch in := in.(type) {
	case Begin, Applied:
		return true
	case Received:
		return in.Kind == Ack || in.Kind == Forward || in.Kind == Complete
	default:
		return false
	}
}

// owned returns those of the operations that did not come from the other node.
func (m *Mirror) owned() []uint64 {
	ids := m.scratch[:0]
	for id, o := range m.ops {
		if o.from == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	m.scratch = ids
	return ids
}

// concerned returns those of them that may be complete since the last look.
func (m *Mirror) concerned(few bool) []uint64 {
	touched, before := m.touched, m.footed
	m.touched, m.footed = m.touched[:0], m.footing()
	if !few || m.footed != before || !before.whole {
		return m.owned()
	}
	ids := append(m.scratch[:0], touched...)
	slices.Sort(ids)
	m.scratch = slices.Compact(ids)
	return m.scratch
}

// complete tells whether an owner's operation is where it has to be.
func (m *Mirror) complete(o *operation) bool {
	if m.at.Role != group.Owner || !o.granted || !o.local || !m.reached(o) {
		return false
	}
	return o.op.Kind != Read || m.agent.MayRead(m.now, o.asked) || m.cfg.Fault.has(pastLease)
}

// Overlooked returns how many operations are complete and have not ended. After a
// step there are none: a simulator asks.
func (m *Mirror) Overlooked() (n int) {
	for _, o := range m.ops {
		if o.from == nil && m.complete(o) {
			n++
		}
	}
	return n
}

// finish ends an owner's operation that is complete.
func (m *Mirror) finish(o *operation) {
	if o.damage.bad.Count > 0 && m.at.Role == group.Owner {
		m.heal(o)
	}
	if !m.complete(o) {
		return
	}
	if o.op.changes() && !o.op.Durable && len(m.at.Others) == 0 && !m.cfg.Fault.has(memoryOfOne) {
		// The others went while it was under way: one memory is not enough.
		if !o.through {
			o.through, o.local = true, false
			m.do(Sync{o.id})
		}
		return
	}
	if (o.refused || o.refusedThere) && m.restore(o) || o.damage.any() && m.rejoin(o) {
		return
	}
	m.answer(o)
	m.forget(o)
}

// answer tells who waits for an operation that it is complete.
func (m *Mirror) answer(o *operation) {
	switch o.op.Kind {
	case Barrier:
		m.ledger.complete(o.id)
		m.took(o)
	case Write:
		m.ledger.complete(o.id)
	case Flush:
		m.save(m.ledger.flushed(o.id))
	case copied, stepping, ending:
		m.ended(o)
	default: // a read leaves nothing, and a compare is one or a write by now
	}
	switch {
	case o.aborted:
		m.do(Aborted{o.id})
	case o.client && (o.refused || o.refusedThere) && o.op.Kind == Write && o.damage.heals > 0:
		m.do(Refuse{ID: o.id, Damaged: true}) // what was healed is what it wrote
	case o.client && (o.refused || o.refusedThere):
		r := Refuse{ID: o.id}
		if o.op.Kind == Barrier {
			r.Why = o.was
		}
		m.do(r)
	case o.client && o.damage.spoiled:
		m.do(Refuse{ID: o.id, Damaged: true})
	case o.client:
		m.govern.feel(m, o.op.Kind, o.op.Count, time.Duration(m.now-o.began))
		m.do(Done{o.id})
	}
}

// reached tells whether an operation is where it has to be.
func (m *Mirror) reached(o *operation) bool {
	if o.op.Kind == Read || m.cfg.Fault.has(ackEarly) && o.op.changes() {
		return true
	}
	for _, e := range m.at.Others {
		if !slices.Contains(o.acks, e) {
			return false
		}
	}
	s := m.stream
	switch {
	case o.op.own():
		return s != nil && slices.Contains(o.acks, s.to)
	case s != nil && (s.phase >= phaseEnding && o.number >= s.firm || o.awaits):
		return slices.Contains(o.acks, s.to)
	}
	return true
}
