package mirror

import "steadfast/cluster/group"

// A resync leaves its target's volumes in a state that they never were in, until
// it ends. So the target first keeps what they are now: if the owner is lost for
// good meanwhile, that is what is left. Nothing is stored for the resync before.

// keeping is how far that is.
type keeping struct {
	number uint64 // of the latest Prepare
	asked  bool   // it is not answered
	kept   bool   // since a resync that has not ended
	retry  group.Instant
}

// prepare has this node's state kept, if a resync waits for that.
func (m *Mirror) prepare() {
	k := &m.keeping
	if in := m.inbound; in == nil || !in.resync || in.ended || k.kept || k.asked || m.now < k.retry {
		return
	}
	k.number++
	k.asked = true
	m.do(Prepare{k.number})
}

// prepared takes the answer.
func (m *Mirror) prepared(p Prepared) {
	k := &m.keeping
	if p.Number != k.number || !k.asked {
		return
	}
	k.asked = false
	if p.Failed {
		k.retry = m.now.Add(m.cfg.Pause)
		return
	}
	in := m.inbound
	k.kept = in != nil && in.resync // else it is made anew for the next
	if !k.kept {
		return
	}
	waiting := in.waiting
	in.waiting = nil
	for _, r := range waiting {
		m.follow(r)
	}
}

// settled tells that a resync is over here.
func (m *Mirror) settled(ok bool) {
	if ok {
		m.keeping.kept = false
	}
	m.do(Settled{ok})
}

// leave ends this node's part as a stream's end.
func (m *Mirror) leave() {
	in := m.inbound
	m.inbound = nil
	m.askAnew()
	if in != nil && in.resync && !in.ended {
		m.settled(false)
	}
}
