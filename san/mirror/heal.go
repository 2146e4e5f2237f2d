package mirror

import "steadfast/cluster/group"

// A block whose checksum is wrong is healed by what the other node has of it: the
// owner fetches it in the stream, where it comes behind everything that changes
// it, and stores it before it goes on with the operation that needed it. The
// operation holds its blocks meanwhile, so nothing newer is overwritten. Only who
// has joined has what the owner had.
//
// A write of parts of blocks needs what is around them. An entry that cannot read
// that says so, and the owner sends the whole blocks once they are stored here.
//
// What a scrubber found is looked at first: see look.go.

// mendsMax bounds the copies for an entry that are under way. An entry does not ask
// for more at once.
const mendsMax = looksMax

// healsMax bounds how often one operation is tried again.
const healsMax = 4

// damage is what an operation has to do with blocks that cannot be read.
type damage struct {
	bad       Range  // here, to be fetched
	fetch     uint64 // the fetch's place in the stream, 0 when there is none
	mending   bool   // what was fetched is being stored
	heals     int
	hopeless  bool // the other cannot read it, either
	spoiled   bool // it cannot be done here
	there     bool // the other cannot do it
	resending bool // the other is sent whole blocks
}

func (d *damage) any() bool { return d.spoiled || d.there }

// idle tells whether the operation waits for another node, not for the store.
func (d *damage) idle() bool { return d.bad.Count > 0 && !d.mending }

// corrupt notes that an operation needs what the store cannot read.
func (m *Mirror) corrupt(o *operation, bad Range) {
	switch d := &o.damage; {
	case o.from != nil && o.op.Kind == fetching:
		o.refused = true
		m.appliedInbound(o, nil)
	case o.from != nil && o.op.Kind == Write && (!o.refused || m.at.Role == group.Out):
		// Who is being resynced need not say what it has for want of room, either.
		d.spoiled, o.refused = true, false
		m.appliedInbound(o, nil)
	case o.from != nil, o.restoring, d.resending, d.mending:
		m.failed(o)
	default:
		d.bad = bad
	}
}

// heal takes an operation of the owner further that needs blocks which cannot be
// read here.
func (m *Mirror) heal(o *operation) {
	d := &o.damage
	switch {
	case d.fetch != 0 || d.mending:
	case !d.hopeless && m.entire(m.stream):
		d.fetch = m.put(m.stream, o, Op{Kind: fetching, Volume: d.bad.Volume, Block: d.bad.Block, Count: d.bad.Count})
		if m.cfg.Fault.has(lateHeal) && o.op.Kind == Read {
			m.locks.drop(o.id)
		}
	case !d.hopeless && o.op.Kind == Write && len(m.at.Others) > 0:
		// It waits for the other anyway.
	default:
		m.unhealed(o)
	}
}

// entire tells whether a stream's end has everything.
func (m *Mirror) entire(s *stream) bool {
	if m.cfg.Fault.has(healStale) && s != nil && s.phase >= phaseCopying {
		return true
	}
	return s != nil && s.phase == phaseJoined
}

// fetched takes what the other has.
func (m *Mirror) fetched(o *operation, p Packet) {
	d := &o.damage
	d.fetch = 0
	if p.Refused || p.Op.Payload == nil {
		d.hopeless = true
		return
	}
	d.mending = true
	m.apply(o, Op{Kind: copied, Volume: d.bad.Volume, Block: d.bad.Block, Count: d.bad.Count, Payload: p.Op.Payload})
}

// repaired goes on with an operation whose blocks can be read now.
func (m *Mirror) repaired(o *operation) {
	d := &o.damage
	m.totals.healed += d.bad.Count
	m.do(Healed{d.bad, true})
	d.bad, d.mending = Range{}, false
	d.heals++
	d.hopeless = d.heals == healsMax
	if o.op.Kind == Write {
		m.apply(o, o.op)
		return
	}
	m.do(Load{o.id, o.op})
}

// unhealed ends an operation that needs what nobody can read.
func (m *Mirror) unhealed(o *operation) {
	bad := o.damage.bad
	o.damage.bad = Range{}
	m.totals.unhealed += bad.Count
	m.do(Healed{bad, false})
	switch o.op.Kind {
	case copied:
		m.stick(o, bad)
	case mended:
		m.unmended(o, bad)
	case Write:
		o.damage.spoiled, o.local = true, true
	default: // the client has its error
		o.op.Kind, o.local = Read, true
	}
}

// rejoin makes both nodes the same again after one of them could not do a write
// for what it cannot read. It reports whether there is something to wait for.
// Everyone has answered.
func (m *Mirror) rejoin(o *operation) (wait bool) {
	d := &o.damage
	switch {
	case d.spoiled && len(m.at.Others) > 0 && !d.there:
		// The other has it, and this node cannot.
		m.failed(o)
		return true
	case d.spoiled:
		m.again(o)
		if s := m.stream; s != nil && s.phase >= phaseEnding && o.number > 0 {
			m.closeStream() // who is not yet an entry may have it
		}
		return false
	case len(m.at.Others) == 0:
		d.there = false
		return false
	}
	d.there, d.resending, o.local = false, true, false
	m.do(Load{o.id, o.op})
	return true
}

// mend sends an entry what it cannot read.
func (m *Mirror) mend(p Packet) {
	if p.Refused {
		m.unhad(p)
		return
	}
	s := m.stream
	if !m.entire(s) || p.Stream != s.number || p.Epoch != m.at.Epoch {
		return
	}
	under := 0
	for _, o := range m.ops {
		if o.op.Kind == mended {
			under++
		}
	}
	for _, r := range p.Ranges {
		if under++; r.Count > 0 && under <= mendsMax {
			m.start(m.own(Op{Kind: mended, Volume: r.Volume, Block: r.Block, Count: r.Count}))
		}
	}
}

// unmended tells the entry what the owner cannot read, either, and goes on with
// what is around that.
func (m *Mirror) unmended(o *operation, bad Range) {
	whole := o.op.what()
	m.forget(o)
	s := m.stream
	if !m.entire(s) {
		return
	}
	m.transmit(s.to, Packet{Kind: Mend, Refused: true, Epoch: m.at.Epoch, Stream: s.number, Ranges: []Range{bad}})
	end, last := whole.Block+whole.Count, bad.Block+bad.Count
	for _, r := range []Range{{bad.Volume, whole.Block, bad.Block - whole.Block}, {bad.Volume, last, end - last}} {
		if r.Count > 0 {
			m.start(m.own(Op{Kind: mended, Volume: r.Volume, Block: r.Block, Count: r.Count}))
		}
	}
}
