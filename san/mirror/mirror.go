// Package mirror keeps a group's volumes the same on two nodes: it orders what
// clients write, sends it to the other node, decides when it may be answered,
// and after a separation copies what differs. Pure: see Mirror.Step.
//
// # Writes and reads
//
// Operations that overlap go one after the other; others go side by side. An
// owner's write is done when it is stored here and acknowledged by every other
// entry of the set (group.Standing.Others). Until then it holds its blocks, so a
// read never returns what an entry could still lack: it waits. What is answered
// is in the store of whoever may succeed.
//
// An entry applies what it is sent if the epoch and the stream are still the
// present ones at that moment, not when it came. What it has begun to apply
// holds its blocks there, too: when it becomes the owner, it goes on after that.
// So nothing of a dead owner lands later.
//
// A set of one has no second copy in memory: it writes through, and what had
// been answered from two memories is flushed when the set shrinks.
//
// # Streams
//
//	          Hello                 Differ              all steps done
//	down  -------------->  asking  -------->  copying  ------------>  ending
//	  |                                                                  | flushed on both
//	  |  Hello, to an entry                                              v
//	  +--------------------------------------------------------------> joined
//
// A stream carries the owner's operations to one incarnation, in order. When
// the connection is lost it is over; the next one sends again what was not
// acknowledged (to an entry), or begins the resync again where it was. From
// ending on, an operation is done only when the stream's end has it, too; before,
// only when too much is on its way (Config.AheadBlocks).
//
// Who is resynced keeps first what it has: see prepare.go. How many copies are
// under way follows from what clients feel: see govern.go.
//
// # What differs
//
// Each node keeps one position of its own store: all that it changed up to there
// is stable on both nodes. A block that neither has changed since its position is
// the same on both. So a resync copies what either has changed since. The
// position may be too old, never too new. Of a volume that a node cannot tell
// anything of (it is new there, or the node's disk is) both list all they have.
//
// # Barriers
//
// A Barrier is an operation on all blocks of all volumes: what came before it is
// on a node when the node does it, and nothing that came after. Its payload is an
// action, as to take a snapshot. It may be done twice, when a connection breaks;
// the second time must change nothing. What one node refuses the other takes back:
// see full.go. Who is being resynced is sent no barriers until it is about to be
// whole; the snapshots that they took are steps of its resync: see steps.go.
//
// # Damage
//
// What a node cannot read, for its checksum is wrong, it has from the other node:
// see heal.go. What a scrubber found is looked at a bounded number at a time: see
// look.go.
package mirror

import (
	"slices"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
)

// Mirror is one node's part in one group.
type Mirror struct {
	cfg   Config
	agent *group.Agent
	at    group.Standing

	link  *quorum.Incarnation // who is connected
	locks locks
	ops   map[uint64]*operation
	ids   uint64 // given to the mirror's own operations, from ownIDs up
	held  []Begin

	position Position
	lists    uint64 // number of the latest List; answers to others are too old
	ledger   ledger
	free     []uint64 // operations that wait for no blocks
	flushed  group.Instant

	stream  *stream       // as the owner
	streams uint64        // number of the latest one
	missed  *missed       // of a resync that was cut off
	inbound *inbound      // as the other
	hello   *Received     // that came before what it is about was decided
	early   []Received    // and what followed it
	broken  bool          // the store has failed
	opens   uint64        // number of the latest Open
	pausing group.Instant // no stream is opened before
	keeping keeping       // what this node was before a resync
	govern  governor      // of the resync's copies
	looks   looks         // at damage that this node was told of
	totals  totals
	now     group.Instant
	out     []Effect
	touched []uint64 // operations that something has become of since the last look
	footed  footing  // at that look
	scratch []uint64
}

// ownIDs is where the identifiers of the mirror's own operations begin; clients'
// are below.
const ownIDs = 1 << 62

// operation is one under way.
type operation struct {
	id      uint64
	op      Op
	client  bool // to be answered
	granted bool
	local   bool // applied, loaded or flushed here
	listed  bool // its list is made
	through bool // is being flushed because the set is one
	dead    bool // nobody waits for it, but the store is at it
	aborted bool // its end is waited for, not its result
	applied bool // there was an Apply: Freed is due
	awaits  bool // the stream's end has to have it, for too much is on its way
	began   group.Instant
	asked   group.Instant
	acks    []quorum.Incarnation
	// refused and refusedThere tell that a node had no room; was is what that
	// node has in its place. restoring: the one that had room is given that.
	refused, refusedThere, restoring bool
	was                              any
	damage                           damage
	look                             bool // at what may be damaged; nobody waits for it
	// As the other: where it came from.
	from   *inbound
	number uint64
}

// New returns the mirror of a life that begins now.
func New(cfg Config, now group.Instant) *Mirror {
	return &Mirror{cfg: cfg, agent: group.New(cfg.Agent, now), ops: map[uint64]*operation{}, position: cfg.Position, ledger: newLedger(cfg.Position), ids: ownIDs, looks: looks{under: map[uint64]bool{}}, now: now}
}

// Standing tells what the node is to the group.
func (m *Mirror) Standing() group.Standing { return m.at }

// MayRead tells whether a read that needs no question may be answered now.
func (m *Mirror) MayRead(now group.Instant) bool { return m.agent.MayRead(now, 0) }

// Resyncing tells whether the node is the end of a resync that has not ended.
func (m *Mirror) Resyncing() bool {
	return m.inbound != nil && m.inbound.resync && !m.inbound.ended
}

// Current tells whether a packet is of the present stream.
func (m *Mirror) Current(p Packet) bool {
	in := m.inbound
	return in != nil && in.epoch == p.Epoch && in.stream == p.Stream
}

// Step takes one input and returns what is to be done, in order.
func (m *Mirror) Step(now group.Instant, in Input) []Effect {
	m.now, m.out = now, nil
	switch in := in.(type) {
	case group.Input:
		m.tell(in)
	case Begin:
		m.begin(in)
	case Abort:
		m.abort(in.ID)
	case Applied:
		m.applied(in)
	case Changes:
		m.changes(in)
	case Opened:
		m.opened(in)
	case Linked:
		m.unlink()
		m.link = &in.To
		m.tell(group.Heard{From: in.To})
	case Unlinked:
		m.unlink()
	case Received:
		m.received(in)
	case Heal:
		m.healing(in.What)
	case Prepared:
		m.prepared(in)
	case Felt:
		m.govern.feel(m, Read, in.Count, in.Took)
	}
	m.restand()
	m.greet()
	m.advance(concernsFew(in))
	return m.out
}

// unlink ends what went over the connection.
func (m *Mirror) unlink() {
	m.closeStream()
	m.leave()
	m.link, m.hello, m.early = nil, nil, nil
	m.dropQueued()
}

func (m *Mirror) do(e ...Effect) { m.out = append(m.out, e...) }

// tell passes an input to the agent.
func (m *Mirror) tell(in group.Input) {
	m.relay(m.agent.Step(m.now, in))
	m.restand()
}

// relay does what the agent wants.
func (m *Mirror) relay(effects []group.Effect) {
	for _, e := range effects {
		if s, ok := e.(group.Send); ok {
			m.transmit(s.To, Packet{Kind: Control, Control: s.Message})
			continue
		}
		m.do(e)
	}
}

func (m *Mirror) transmit(to quorum.Incarnation, p Packet) {
	if m.link != nil && *m.link == to {
		m.do(Transmit{to, p})
	}
}

// restand follows a change of what the node is.
func (m *Mirror) restand() {
	was := m.at
	m.at = m.agent.Standing()
	if m.at.Epoch != was.Epoch || m.at.Role != was.Role {
		m.closeStream()
		m.missed = nil
		m.lookAnew()
		if was.Role == group.Owner {
			m.abandon()
		}
		if m.at.Role == group.Owner {
			m.totals.takeovers++
			m.keeping = keeping{number: m.keeping.number}
		}
		if m.inbound != nil && (m.inbound.epoch != m.at.Epoch || m.at.Role == group.Owner) {
			m.leave()
		}
		if !m.cfg.Fault.has(epochAtEntry) {
			m.dropQueued()
		}
		m.ledger.restart()
	}
	if m.at.Role == group.Owner && len(m.at.Others) < len(was.Others) {
		m.closeStream() // who was removed comes back by a resync only
		m.ledger.pause()
		m.through()
	}
}

// abandon ends what clients wait for: this node cannot answer any more. What
// the store has begun goes on and keeps its blocks.
func (m *Mirror) abandon() {
	for _, b := range m.held {
		m.do(Abandon{b.ID})
	}
	m.held = nil
	for _, id := range m.sorted() {
		o := m.ops[id]
		if o.client {
			o.client = false
			m.do(Abandon{o.id})
		}
		switch {
		case o.from != nil:
		case !o.granted || o.local || o.damage.idle():
			m.forget(o)
		default:
			o.dead = true
		}
	}
}

// dropQueued forgets what the peer sent and has not begun.
func (m *Mirror) dropQueued() {
	for _, id := range m.sorted() {
		if o := m.ops[id]; o.from != nil && !o.granted && o.from != m.inbound {
			m.forget(o)
		}
	}
}

// sorted returns the operations' identifiers ascending: no order is a map's.
func (m *Mirror) sorted() []uint64 {
	ids := make([]uint64, 0, len(m.ops))
	for id := range m.ops {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (m *Mirror) forget(o *operation) {
	m.locks.drop(o.id)
	delete(m.ops, o.id)
	delete(m.looks.under, o.id)
	if m.stream != nil && o.from == nil {
		delete(m.stream.open, o.number)
	}
	if o.applied {
		m.do(Freed{o.id})
	}
}

// apply has the store make a change for an operation.
func (m *Mirror) apply(o *operation, op Op) {
	o.applied = true
	m.do(Apply{o.id, op})
}

// start claims an operation's blocks. A flush needs none: it is about what is
// done already. At the end of a resync the other waits for all that came before.
// What is read of a snapshot does not change; which snapshots there are, barriers do.
func (m *Mirror) start(o *operation) {
	m.ops[o.id] = o
	switch {
	case o.op.Prunes() && (o.from == nil || !o.op.Ends()):
		m.locks.claim(o.id, beside, false)
	case o.op.Kind == Flush, o.from == nil && (o.op.Kind == stepping || o.op.Kind == copied && o.op.Moment != 0), o.op.Kind == Read && m.cfg.Fault.has(readPending), o.op.Kind == Barrier && m.cfg.Fault.has(looseBarrier):
		m.free = append(m.free, o.id)
	default:
		m.locks.claim(o.id, o.op.span(), o.shares())
	}
}

// shares tells whether the operation leaves its blocks as they are.
func (o *operation) shares() bool {
	return o.op.Kind == Read || o.op.Kind == fetching || o.op.Copies() && o.from == nil
}

// own returns an operation of the mirror's own.
func (m *Mirror) own(op Op) *operation {
	m.ids++
	return &operation{id: m.ids, op: op}
}

// begin takes a client's operation, or holds it until the node may serve.
func (m *Mirror) begin(b Begin) {
	if !m.at.Serving {
		if m.at.Role != group.Owner {
			m.do(Abandon{b.ID})
			return
		}
		m.held = append(m.held, b)
		return
	}
	m.start(&operation{id: b.ID, op: b.Op, client: true, began: m.now})
}

// abort ends what has not begun, and waits for what has.
func (m *Mirror) abort(id uint64) {
	for i, b := range m.held {
		if b.ID == id {
			m.held = slices.Delete(m.held, i, i+1)
			m.do(Aborted{id})
			return
		}
	}
	o := m.ops[id]
	switch {
	case o == nil || !o.client:
	case !o.granted:
		m.forget(o)
		m.do(Aborted{id})
	case m.cfg.Fault.has(ghost):
		m.forget(o)
		m.do(Aborted{id})
	default:
		o.aborted = true
	}
}

// advance does what has become possible.
func (m *Mirror) advance(few bool) {
	if m.at.Serving && len(m.held) > 0 {
		held := m.held
		m.held = nil
		for _, b := range held {
			m.begin(b)
		}
	}
	m.steer()
	m.prepare()
	m.look()
	m.grant()
	for _, id := range m.concerned(few) {
		if o := m.ops[id]; o != nil && o.from == nil {
			m.finish(o)
		}
	}
	m.settle()
	m.grant() // who waited for the blocks of what has ended
	if m.at.Role == group.Owner && !m.at.Serving && !m.busy() {
		m.relay(m.agent.Step(m.now, group.Drained{}))
	}
}

// grant begins what waits for nothing any more.
func (m *Mirror) grant() {
	free := m.free
	m.free = nil
	for _, id := range append(free, m.locks.grant()...) {
		if o := m.ops[id]; o != nil {
			m.granted(o)
		}
	}
}

func (m *Mirror) busy() bool {
	for _, o := range m.ops {
		if o.from == nil {
			return true
		}
	}
	return false
}

// granted begins an operation whose turn has come.
func (m *Mirror) granted(o *operation) {
	o.granted = true
	m.touched = append(m.touched, o.id)
	if o.from != nil {
		m.grantedInbound(o)
		return
	}
	switch o.op.Kind {
	case Read, Compare:
		if m.at.Role == group.Owner { // an entry only looks at what it has
			o.asked = m.ask()
		}
		m.do(Load{o.id, o.op})
	case copied, mended, pruning, stepping, ending:
		m.do(Load{o.id, o.op})
	case Flush:
		m.ledger.flushing(o.id)
		m.forward(o)
		m.do(Sync{o.id})
	case Write, Barrier:
		m.write(o)
	case fetching: // comes from the owner only
	}
}

// write sends a change to the other, and stores it here.
func (m *Mirror) write(o *operation) {
	if len(m.at.Others) == 0 && !m.cfg.Fault.has(memoryOfOne) {
		o.op.Durable = true
	}
	m.forward(o)
	m.ledger.begin(o.id)
	m.apply(o, o.op)
}

// ask puts the question that a read stands on, where clocks are not trusted.
func (m *Mirror) ask() group.Instant {
	if !m.cfg.Agent.Confirm {
		return 0
	}
	stamp, effects := m.agent.Ask(m.now)
	m.relay(effects)
	return stamp
}

// applied notes that the store has done an operation.
func (m *Mirror) applied(a Applied) {
	o := m.ops[a.ID]
	if o == nil {
		return
	}
	m.touched = append(m.touched, o.id)
	if o.dead {
		m.forget(o) // its blocks are free now
		return
	}
	if o.look && m.at.Role != group.Owner {
		m.looked(o, a)
		return
	}
	switch {
	case a.Failed:
		m.failed(o)
		return
	case a.Full:
		m.full(o, a.Payload)
		return
	case a.Bad.Count > 0:
		m.corrupt(o, a.Bad)
		return
	case o.damage.mending:
		m.ledger.entered(a.Position)
		m.repaired(o)
		return
	}
	if (o.op.changes() || o.op.own() && o.from != nil) && !o.through {
		m.ledger.entered(a.Position)
	}
	if o.from != nil {
		m.appliedInbound(o, a.Payload)
		return
	}
	if (o.restoring && o.refused || o.damage.resending) && !o.local {
		o.op.Payload, o.acks, o.local = a.Payload, nil, true
		m.forward(o)
		return
	}
	if o.op.Kind == Compare {
		// It holds its blocks. When it differs, it is a read of what is there.
		if o.op.Kind = Write; !a.Differs {
			m.write(o)
			return
		}
		o.op.Kind = Read
	}
	if o.op.Lists() && !o.listed {
		m.listed(o, a.Payload)
		return
	}
	if o.op.Copies() && !o.local {
		o.op.Payload = a.Payload
		o.local = true
		m.forward(o)
		return
	}
	o.local = true
	if o.through { // it is stable now
		o.op.Durable = true
	}
}

// listed sends a list of snapshots. Barriers may go on then: they come after it in
// the stream, and so does what they do.
func (m *Mirror) listed(o *operation, list any) {
	o.listed, o.op.Payload = true, list
	m.forward(o)
	m.locks.drop(o.id)
	if !o.op.Ends() {
		o.local = true
		return
	}
	m.ledger.whole(o.id)
	m.do(Sync{o.id})
}

// failed ends an operation that the store could not do. A client of a node that
// is alone has nowhere else to go: a read is answered with its error.
func (m *Mirror) failed(o *operation) {
	if o.from == nil && (o.op.Kind == Read || o.op.Kind == Compare) && !o.damage.mending && len(m.at.Others) == 0 {
		o.op.Kind, o.local = Read, true
		return
	}
	m.fail()
	if o.from == nil && o.client {
		m.do(Abandon{o.id})
	}
	m.forget(o)
}

// fail ends this node's part: what its store lacks now is not known.
func (m *Mirror) fail() {
	m.broken = true
	m.closeStream()
	m.leave()
	m.tell(group.Broken{})
}

// through makes a set that has become smaller as safe as it can be: what was
// answered from memories that are gone is flushed.
func (m *Mirror) through() {
	if !m.cfg.Fault.has(memoryOfOne) {
		m.start(m.own(Op{Kind: Flush}))
	}
}

// settle looks for a position now and then: of all that is on both in memory,
// and, by a flush of its own, of what is stable.
func (m *Mirror) settle() {
	m.ledger.look(m.now, m.cfg.Settle)
	if m.at.Role == group.Owner && m.at.Serving && m.ledger.candidate > m.position && m.now >= m.flushed.Add(4*m.cfg.Settle) {
		m.flushed = m.now
		m.start(m.own(Op{Kind: Flush}))
	}
}

// save moves the position.
func (m *Mirror) save(p Position) {
	if p > m.position && !m.broken {
		m.position = p
		m.do(SavePosition{p})
	}
}
