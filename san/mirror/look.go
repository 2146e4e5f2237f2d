package mirror

import "steadfast/cluster/group"

// A scrubber finds damage by the thousand when a drive goes bad, and not all that it
// finds is still so, or is of what the volumes are now: a snapshot's blocks stay as
// they are. So this node first reads what it was told of, a few blocks at a time. What
// it cannot read the owner fetches (see heal.go), and an entry asks the owner for:
//
//	waiting --> read --> fine
//	   ^          |
//	   |          +----> asked --> mended, or the owner cannot read it, either
//	   |                   |
//	   +-------------------+ the stream ended before the answer
//
// Each that is begun ends, so all have their turn, however many cannot be healed.

// looksMax bounds what is read or asked for at a time, in operations.
const looksMax = 64

// waitingMax bounds the ranges that wait to be looked at. The next scrub finds the
// others again.
const waitingMax = 1 << 14

// answersMax is how long an owner may take to answer, in Config.Pause: one that says
// nothing must not keep the rest waiting for ever.
const answersMax = 30

// looks is what this node was told of.
type looks struct {
	waiting ranges
	under   map[uint64]bool // operations that read
	asked   []asked         // of an entry
}

// asked is what the owner was asked for.
type asked struct {
	what Range
	left uint64 // blocks without an answer
	at   group.Instant
}

// healing notes blocks of this node to be looked at.
func (m *Mirror) healing(what Range) {
	if !m.broken && len(m.looks.waiting) < waitingMax {
		m.looks.waiting.add(what)
	}
}

// mayAsk tells whether the owner would send this node what it cannot read.
func (m *Mirror) mayAsk() bool {
	in := m.inbound
	return m.at.Role == group.Entry && in != nil && (!in.resync || in.ended)
}

// look reads of what waits as much as may be under way.
func (m *Mirror) look() {
	l := &m.looks
	for len(l.asked) > 0 && m.now >= l.asked[0].at.Add(answersMax*m.cfg.Pause) {
		l.asked = l.asked[1:]
	}
	if m.broken || !m.mayAsk() && !(m.at.Role == group.Owner && m.at.Serving) {
		return
	}
	for len(l.waiting) > 0 && len(l.under)+len(l.asked) < looksMax {
		r := l.waiting.pop(max(1, m.cfg.CopyBlocks))
		o := m.own(Op{Kind: Read, Volume: r.Volume, Block: r.Block, Count: r.Count})
		o.look = true
		l.under[o.id] = true
		m.start(o)
	}
}

// looked takes what an entry has read.
func (m *Mirror) looked(o *operation, a Applied) {
	m.forget(o)
	switch bad := a.Bad; {
	case a.Failed:
		m.fail()
	case bad.Count == 0: // it can be read
	case !m.mayAsk():
		m.looks.waiting.add(bad)
	default:
		m.looks.asked = append(m.looks.asked, asked{bad, bad.Count, m.now})
		in := m.inbound
		m.transmit(in.owner, Packet{Kind: Mend, Epoch: in.epoch, Stream: in.stream, Ranges: []Range{bad}})
	}
}

// had notes that the owner has answered for some blocks.
func (m *Mirror) had(what Range) {
	kept := m.looks.asked[:0]
	for _, a := range m.looks.asked {
		first, end := max(a.what.Block, what.Block), min(a.what.Block+a.what.Count, what.Block+what.Count)
		if a.what.Volume == what.Volume && first < end {
			a.left -= min(a.left, end-first)
		}
		if a.left > 0 {
			kept = append(kept, a)
		}
	}
	m.looks.asked = kept
}

// unhad takes the owner's word that it cannot read blocks, either.
func (m *Mirror) unhad(p Packet) {
	if m.at.Role != group.Entry || !m.Current(p) {
		return
	}
	for _, r := range p.Ranges {
		m.had(r)
		m.totals.unhealed += r.Count
		m.do(Healed{r, false})
	}
}

// askAnew has what was asked of an owner be looked at again: its stream is over.
func (m *Mirror) askAnew() {
	for _, a := range m.looks.asked {
		m.looks.waiting.add(a.what)
	}
	m.looks.asked = nil
}

// lookAnew begins to look anew: the node is to the group something else now.
func (m *Mirror) lookAnew() {
	for _, id := range m.sorted() {
		o := m.ops[id]
		if !o.look || o.dead {
			continue
		}
		m.looks.waiting.add(o.op.what())
		if o.granted && !o.local && !o.damage.idle() {
			o.dead = true // the store is at it
		} else {
			m.forget(o)
		}
	}
	m.askAnew()
}
