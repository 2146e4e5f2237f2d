package lockstep

import (
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// PrimaryState is where a Primary is, as the package doc draws it.
type PrimaryState uint8

// States of a Primary.
const (
	Alone PrimaryState = iota
	Copying
	Pausing
	PrimaryLoading // the secondary does
	PairingUp
	Paired
	Yielding
	Parting
	PrimaryOver
)

var primaryStates = [...]string{"alone", "copying", "pausing", "loading", "pairing", "paired", "yielding", "parting", "over"}

// String names the state.
func (s PrimaryState) String() string { return primaryStates[s] }

// sent is a record that the secondary has not executed.
type sent struct {
	seq   Seq
	at    Instant
	since Instant // the machine was where it begins
	size  uint64
}

// held is an output that waits for a record's acknowledgement.
type held struct {
	Out
	need Seq
}

// PrimaryConfig is what a Primary is made with.
type PrimaryConfig struct {
	Limits Limits
	// Count is the machine's, Next the number of its next output.
	Count, Next uint64
	// Broken is a rule to break, for tests and the simulation.
	Broken Flaw
}

// Primary is the side whose machine the world sees. It holds the machine's lock.
type Primary struct {
	peer
	state   PrimaryState
	partner vmlock.Owner

	count    uint64 // the machine's, as far as it was told
	next     uint64 // output
	released uint64 // outputs up to this have left, but for asks that overtook
	held     []held
	heldSize uint64
	pace     int
	paused   bool
	ending   bool // the guest has ended
	drained  bool // asked to
	ended    bool // and has: only the other one's answer is missing, or the lock's

	session   bool   // there is a secondary
	ready     bool   // it has loaded
	told      bool   // it may know a block that it can take over from: outputs wait
	sure      bool   // it does know, and said so
	pairing   Seq    // the record that told it
	log       []sent // what is not executed
	acked     int    // so many of it are acknowledged
	logSize   uint64
	seq       Seq     // of the last record
	got, done Seq     // acknowledged, executed
	at        uint64  // the count that it has executed to
	progress  Instant // of it, or of the copy
	carried   int64   // by the log's connection
	loadBy    Instant
	horizon   uint64
	horizonAt Instant
	ahead     Instant // the machine went beyond the last horizon
	let       uint64  // Released of the last Horizon

	copyAt    Instant
	round     int // of copying
	why       Why
	err       error // what was the matter
	yieldBy   Instant
	asked     bool // ChangeLock is not answered
	retryAt   Instant
	complains bool // that the lock cannot be reached
}

// NewPrimary returns the side of a machine that runs, alone: its lock says so.
func NewPrimary(cfg PrimaryConfig, now Instant) *Primary {
	return &Primary{
		peer:  peer{limits: cfg.Limits, now: now, ran: now, broken: cfg.Broken},
		count: cfg.Count, next: cfg.Next, released: cfg.Next - 1, pace: 100,
	}
}

// State returns where it is.
func (p *Primary) State() PrimaryState { return p.state }

// Protected tells whether the secondary can go on.
func (p *Primary) Protected() bool { return p.state == Paired && p.sure }

// Step takes one input and returns what is to be done, in order.
func (p *Primary) Step(now Instant, in Input) []Effect {
	p.wake(now)
	if p.state == PrimaryOver {
		return nil
	}
	switch in := in.(type) {
	case Delivered, Ran, Hashed, Ended, Drained, Copied, Paused, StateSent:
		p.machine(in)
	case Received:
		for _, m := range in.List {
			p.receive(in.Link, m)
		}
	case Broken:
		// Of the other one the log's silence would tell.
		if p.session && in.Link == Logging {
			p.lose(WhyBroken, in.Err)
		}
	case Gone:
		p.lose(WhyGone, nil)
	case LockChanged:
		p.lockChanged(in.Block)
	case LockRefused:
		p.asked, p.retryAt = false, p.now+Instant(p.limits.RetryEvery)
		if p.state == PairingUp {
			p.lose(WhyLock, in.Err)
		}
		if !p.complains {
			p.complains = true
			p.do(Event{Kind: Waiting, Err: in.Err})
		}
	case LockLost:
		p.over(Halt{p.why, in.Err})
	case TurnOn:
		p.turnOn(in.Partner)
	case TurnOff:
		p.lose(WhyAsked, nil)
	case HandOver:
		if p.Protected() && !p.ending {
			p.state, p.yieldBy = Yielding, p.now+Instant(p.limits.YieldWithin)
			p.pause(true)
		}
	case Tick:
		if in.Carried != p.carried && p.state == Copying {
			p.progress = p.now
		}
		p.carried = in.Carried
		p.tick()
	}
	p.settle()
	return p.list
}

// machine takes what the machine did.
func (p *Primary) machine(in Input) {
	switch in := in.(type) {
	case Delivered:
		p.count = max(p.count, in.In.At)
		p.append(Entry(in), in.In.At)
	case Ran:
		p.ranTo(in)
	case Hashed:
		p.append(Digest(in), in.Count)
	case Ended:
		p.ending = true
		p.tellHorizon()
	case Drained:
		p.end()
	case Copied:
		p.copied(in)
	case Paused:
		switch p.state {
		case Pausing:
			p.do(SendState{p.next})
		case Yielding:
			p.tellHorizon()
			p.append(Yield{}, 0)
		default:
		}
	case StateSent:
		if p.state == Pausing {
			p.state = PrimaryLoading
			p.seq, p.got, p.done, p.at = 0, 0, 0, p.count
			p.loadBy = p.now + Instant(p.limits.LoadWithin)
			p.horizon, p.horizonAt, p.let = p.count, p.now, p.released
			p.resume()
		}
	}
}

// logs tells whether what happens is recorded for a secondary.
func (p *Primary) logs() bool { return p.session && p.state >= PrimaryLoading }

// append adds a record to the log, which is complete up to a count then.
func (p *Primary) append(r Record, to uint64) {
	if !p.logs() {
		return
	}
	p.seq++
	s := sent{seq: p.seq, at: p.now, since: p.now, size: recordCost}
	if p.count > p.horizon {
		s.since = p.ahead
	}
	p.horizon = max(p.horizon, to)
	if e, ok := r.(Entry); ok {
		s.size += uint64(len(e.In.Data))
	}
	p.log = append(p.log, s)
	p.logSize += s.size
	p.do(Send{Logging, p.seq, r})
}

// recordCost is about what a record takes, but for its data, in bytes.
const recordCost = 32

// tellHorizon tells the secondary how far it may go.
func (p *Primary) tellHorizon() {
	if p.logs() {
		p.horizonAt, p.let = p.now, p.released
		p.append(Horizon{p.count, p.released}, p.count)
	}
}

// ranTo takes the outputs that came out, and lets go or holds them. All inputs
// up to Count that there ever will be, but those of Count itself, are in the log:
// a horizon of Count covers every output that an instruction before it caused, and
// the inputs of Count that were delivered cover those that they caused.
func (p *Primary) ranTo(in Ran) {
	if in.Count > p.horizon && p.count <= p.horizon {
		p.ahead = p.now
	}
	p.count = max(p.count, in.Count)
	waits := false
	for _, o := range in.Outputs {
		o.Number = p.next
		p.next++
		switch {
		case o.Class == Ask:
			p.do(Release{[]Out{o}})
		case !p.holds():
			p.released = o.Number
			p.do(Release{[]Out{o}})
		default:
			waits = true
			p.held = append(p.held, held{o, 0})
			p.heldSize += recordCost + uint64(len(o.Data))
		}
	}
	if !waits {
		return
	}
	if p.horizon < p.count && p.broken != flawNoHorizon {
		p.tellHorizon()
	}
	for i := len(p.held) - 1; i >= 0 && p.held[i].need == 0; i-- {
		p.held[i].need = p.seq
	}
}

// holds tells whether outputs wait.
func (p *Primary) holds() bool {
	return p.told && p.broken != flawEarly && (p.sure || p.broken != flawLateHold)
}

// letGo lets outputs leave whose records are acknowledged, or all that wait when
// none has to.
func (p *Primary) letGo() {
	n := 0
	for n < len(p.held) && (!p.holds() || p.held[n].need <= p.got) {
		n++
	}
	if n == 0 {
		return
	}
	list := make([]Out, n)
	for i, h := range p.held[:n] {
		list[i], p.held[i] = h.Out, held{}
		p.heldSize -= recordCost + uint64(len(h.Data))
	}
	p.held = p.held[n:]
	p.released = list[n-1].Number
	p.do(Release{list})
}

// receive takes a message of the secondary.
func (p *Primary) receive(l Link, m Message) {
	if !p.session || p.state == PrimaryOver {
		return
	}
	p.hear(l)
	switch m := m.(type) {
	case Ack:
		p.ack(m)
	case Ready:
		// It may come before StateSent does.
		p.ready = p.ready || l == Logging && (p.state == Pausing || p.state == PrimaryLoading)
	case Live:
		p.over(Halt{WhyHandedOver, nil})
	case Bye:
		// It takes no lock any more, so nothing has to wait for it.
		if m.Why == WhyDiverged && p.logs() {
			p.do(Event{Kind: Diverged, Why: m.Why}, Keep{p.at})
		}
		if p.ended && (p.state == Paired || p.state == Yielding) {
			p.finish()
			return
		}
		p.told = false
		p.lose(m.Why, nil)
		p.drop(m.Why)
	default: // a heartbeat, or what a secondary does not say
	}
}

// ack takes an acknowledgement. One that cannot be right is of a broken secondary.
func (p *Primary) ack(a Ack) {
	if !p.logs() || a.Got < p.got {
		return
	}
	if a.Got > p.seq || a.Done > a.Got {
		p.lose(WhyFailed, fault.New(fault.Corrupt, "the secondary has acknowledged record %d and executed %d, and there are %d", a.Got, a.Done, p.seq))
		return
	}
	if a.Done > p.done || a.Count > p.at {
		p.progress = p.now
	}
	p.got, p.done, p.at = a.Got, max(p.done, a.Done), max(p.at, a.Count)
	for p.acked < len(p.log) && p.log[p.acked].seq <= p.got {
		p.acked++
	}
	for len(p.log) > 0 && p.log[0].seq <= p.done {
		p.logSize -= p.log[0].size
		p.log, p.acked = p.log[1:], p.acked-1
	}
	if p.state == Paired && p.got >= p.pairing && !p.sure {
		p.sure = true
		p.do(Event{Kind: Protected})
	}
}

// turnOn begins to copy the machine.
func (p *Primary) turnOn(partner vmlock.Owner) {
	if p.state != Alone || p.session || p.ending {
		return
	}
	p.partner, p.session, p.ready, p.told, p.sure = partner, true, false, false, false
	p.log, p.acked, p.logSize, p.why, p.err = nil, 0, 0, WhyNone, nil
	p.hear(Logging)
	p.copyAt, p.progress, p.carried, p.round = p.now, p.now, 0, 0
	p.state = Copying
	p.do(Copy{Round: 1})
}

// lockChanged follows a change of the lock.
func (p *Primary) lockChanged(block [vmlock.BlockSize]byte) {
	p.asked, p.complains = false, false
	b, err := vmlock.Decode(block)
	switch {
	case p.state == PairingUp && err == nil && b.Paired():
		// What has left until now is before this horizon; what comes waits.
		p.state, p.told = Paired, true
		p.tellHorizon()
		p.append(Pairing{block}, 0)
		p.pairing = p.seq
	case p.state == Parting && err == nil && b.Paired():
		p.change(vmlock.Owner{})
	case p.state == Parting:
		p.alone()
	default:
	}
}

// change asks for a change of the lock.
func (p *Primary) change(partner vmlock.Owner) {
	p.asked = true
	p.do(ChangeLock{partner})
}

// lose gives the secondary up. One that may know the block is first shut out by the
// lock: until then outputs wait, and what it still acknowledges counts.
func (p *Primary) lose(why Why, err error) {
	switch p.state {
	case Copying, Pausing, PrimaryLoading:
		p.why, p.err = why, err
		p.alone()
	case PairingUp:
		p.state, p.why, p.err = Parting, why, err
		p.drop(why)
	case Paired, Yielding:
		p.state, p.why, p.err = Parting, why, err
		if p.broken == flawNoAlone {
			p.alone()
			return
		}
		p.change(vmlock.Owner{})
	case Alone, Parting, PrimaryOver:
	}
}

// alone goes on without a secondary.
func (p *Primary) alone() {
	p.state, p.told, p.sure = Alone, false, false
	p.letGo()
	p.drop(p.why)
	p.do(Event{Kind: Unprotected, Why: p.why, Err: p.err})
	p.resume()
}

// drop ends the session.
func (p *Primary) drop(why Why) {
	if !p.session {
		return
	}
	p.both(Bye{why})
	p.do(Drop{why})
	p.session, p.log, p.acked, p.logSize = false, nil, 0, 0
}

// over is the end of a machine that another runs now.
func (p *Primary) over(h Halt) {
	p.state, p.held, p.log = PrimaryOver, nil, nil
	p.do(h)
}

// end follows a guest that has ended, when all that came out of it is done. A secondary that can
// take over, or is about to, is waited for: it has to know first, or the lock has to shut it out.
func (p *Primary) end() {
	if !p.drained || p.ended {
		return
	}
	p.ended = true
	p.append(Finished{}, 0)
	if p.state < PairingUp || p.broken == flawHasty {
		p.finish()
	}
}

// finish ends this side.
func (p *Primary) finish() {
	p.drop(WhyFinished)
	p.do(Finish{})
	p.state = PrimaryOver
}

// tick does what is due.
func (p *Primary) tick() {
	if p.logs() && p.now.Sub(p.horizonAt) >= p.limits.HorizonEvery && (p.count > p.horizon || p.released > p.let) {
		p.tellHorizon()
	}
	switch {
	case p.session && p.silent() && (p.state >= PairingUp || p.since(p.heard) >= p.limits.StuckAfter):
		// Before anything waits for the other one there is no haste: its process has to begin.
		p.lose(WhySilent, nil)
	case p.state == Paired && p.stalled():
		p.lose(WhyStalled, nil)
	case p.broken == flawPatient:
	case p.state == Copying && p.since(p.progress) >= p.limits.StuckAfter:
		p.lose(WhySlow, fault.New(fault.Unreachable, "the secondary has taken nothing of the copy for %v", p.limits.StuckAfter))
	case p.state == PrimaryLoading && p.now >= p.loadBy:
		p.lose(WhySlow, fault.New(fault.Unreachable, "the secondary is not ready, or too far behind, %v after the copy", p.limits.LoadWithin))
	case p.logs() && p.pace == 0 && p.since(p.progress) >= p.limits.StuckAfter:
		p.lose(WhySlow, fault.New(fault.Unreachable, "the secondary has executed nothing for %v", p.limits.StuckAfter))
	case p.state == Yielding && p.now >= p.yieldBy:
		p.lose(WhySlow, fault.New(fault.Unreachable, "the secondary has not taken over within %v", p.limits.YieldWithin))
	}
	if p.state == Parting && !p.asked && p.now >= p.retryAt {
		p.change(vmlock.Owner{})
	}
}

// stalled tells whether a record waits too long to be acknowledged.
func (p *Primary) stalled() bool {
	return p.acked < len(p.log) && p.since(p.log[p.acked].at) >= p.limits.Stalled
}

// settle does what follows from any input.
func (p *Primary) settle() {
	if p.state == PrimaryOver {
		return
	}
	if p.session {
		p.beat()
	}
	p.letGo()
	if p.state == PrimaryLoading && p.ready && !p.ending && p.behind() < p.limits.LagTime {
		p.state = PairingUp
		p.change(p.partner)
	}
	p.setPace()
	switch {
	case p.ending && !p.drained && len(p.held) == 0:
		p.drained = true
		p.do(Drain{})
	case p.ended && p.state == Alone:
		p.finish()
	}
}
