package mirror

import (
	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
)

// inbound is the other end of a stream.
type inbound struct {
	owner   quorum.Incarnation
	epoch   quorum.Epoch
	stream  uint64
	resync  bool
	listing bool // this node's changes are being listed
	// unsettled are blocks that the store was at when the listing began.
	unsettled []Range
	again     uint64 // the first so many operations were sent before
	arrived   uint64
	ended     bool // of a resync: everything is here
	open      []numbered
	waiting   []Received // for Prepared
}

// numbered is an operation of a stream that is not known to be on both.
type numbered struct {
	number, id uint64
	flush      bool
}

// received takes a packet.
func (m *Mirror) received(r Received) {
	m.tell(group.Heard{From: r.From})
	switch r.Kind {
	case Control:
		m.tell(group.Received{From: r.From, Message: r.Control})
	case Hello:
		m.hello, m.early = &r, nil
		m.greet()
	case Forward, Complete:
		if m.hello != nil && m.hello.Epoch == r.Epoch && m.hello.Stream == r.Stream {
			m.early = append(m.early, r)
			return
		}
		m.follow(r)
	case Differ:
		m.differ(r.Packet)
	case Ack:
		m.acknowledged(r.Packet)
	case Mend:
		m.mend(r.Packet)
	}
}

// follow takes what comes on the stream.
func (m *Mirror) follow(r Received) {
	if in := m.inbound; m.Current(r.Packet) && in.resync && !in.ended && !m.keeping.kept && !m.cfg.Fault.has(unprepared) {
		in.waiting = append(in.waiting, r)
		return
	}
	if r.Kind == Forward {
		m.take(r)
	} else {
		m.completed(r.Packet)
	}
}

// greet answers a Hello when what it is about is known here: it may come before
// the decision that made its sender the owner.
func (m *Mirror) greet() {
	h := m.hello
	if h == nil || h.Epoch > m.at.Epoch {
		return
	}
	early := m.early
	m.hello, m.early = nil, nil
	if h.Epoch < m.at.Epoch || h.From != m.at.Owner || m.at.Role == group.Owner || m.broken {
		return
	}
	m.leave()
	m.inbound = &inbound{owner: h.From, epoch: h.Epoch, stream: h.Stream, resync: h.Op.Kind != 0, again: h.Sequence}
	m.dropQueued()
	m.ledger.restart()
	if h.Op.Kind == ending {
		m.inbound.listing, m.inbound.unsettled = true, m.unsettled()
		m.list(List{}, h.Ranges)
	}
	m.prepare()
	for _, r := range early {
		m.follow(r)
	}
}

// take queues an operation of the owner.
func (m *Mirror) take(r Received) {
	if !m.Current(r.Packet) && !m.cfg.Fault.has(staleEpoch) && !(r.Admitted && m.cfg.Fault.has(epochAtEntry)) {
		return
	}
	in := m.inbound
	if in == nil {
		in = &inbound{owner: r.From, epoch: r.Epoch, stream: r.Stream}
	}
	in.arrived = r.Sequence
	m.completed(r.Packet)
	o := m.own(r.Op)
	o.from, o.number = in, r.Sequence
	in.open = append(in.open, numbered{r.Sequence, o.id, r.Op.Kind == Flush || r.Op.Kind == ending})
	if r.Op.changes() || r.Op.Copies() {
		m.ledger.begin(o.id)
	}
	m.start(o)
}

// grantedInbound applies what the owner sent, if it is the owner still.
func (m *Mirror) grantedInbound(o *operation) {
	if o.from != m.inbound && !m.cfg.Fault.has(epochAtEntry) && !m.cfg.Fault.has(staleEpoch) {
		m.forget(o)
		return
	}
	switch o.op.Kind {
	case ending:
		m.ledger.whole(o.id)
		o.op.Durable = true
		m.apply(o, o.op)
	case Flush:
		m.ledger.flushing(o.id)
		m.do(Sync{o.id})
	case fetching:
		m.do(Load{o.id, o.op})
	default:
		m.apply(o, o.op)
	}
}

// appliedInbound acknowledges what is applied, whoever the owner is by now: if
// it is another, nobody listens.
func (m *Mirror) appliedInbound(o *operation, was any) {
	in := o.from
	m.forget(o)
	if in != m.inbound {
		return
	}
	ack := Packet{Kind: Ack, Epoch: in.epoch, Stream: in.stream, Sequence: o.number, Refused: o.refused, Damaged: o.damage.spoiled}
	if o.refused || o.op.Kind == fetching {
		ack.Op = Op{Kind: o.op.Kind, Volume: o.op.Volume, Block: o.op.Block, Count: o.op.Count, Payload: was}
	}
	m.transmit(in.owner, ack)
	switch o.op.Kind {
	case ending:
		if !o.refused {
			in.ended = true
			m.settled(true)
		}
	case mended:
		m.had(o.op.what())
		m.do(Healed{o.op.what(), !o.damage.hopeless})
	default: // nothing more is due
	}
	m.resumeInbound()
}

// completed notes how far everything is on both.
func (m *Mirror) completed(p Packet) {
	if !m.Current(p) {
		return
	}
	in := m.inbound
	for len(in.open) > 0 && in.open[0].number <= p.Complete {
		n := in.open[0]
		in.open = in.open[1:]
		m.ledger.complete(n.id)
		if n.flush {
			m.save(m.ledger.flushed(n.id))
		}
	}
	m.resumeInbound()
}

// resumeInbound lets positions be marked when all that is under way is known.
func (m *Mirror) resumeInbound() {
	in := m.inbound
	if m.at.Role == group.Entry && (in.resync && in.ended || !in.resync && in.arrived >= in.again) {
		m.ledger.resume()
	}
}
