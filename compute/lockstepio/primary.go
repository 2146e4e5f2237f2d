package lockstepio

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"steadfast/compute/device"
	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
	"steadfast/compute/machineio"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// Primary is the gate of a machine that lives here, and may have a secondary. Its methods
// may be called by any goroutine.
type Primary struct {
	*side
	live  *machineio.Live
	ports ports
	core  *lockstep.Primary // stepped by the side

	logs atomic.Bool // what happens is recorded for a secondary

	mu     sync.Mutex
	orders orders
	status Status

	// The machine's goroutine's.
	copy     copying
	stood    uint64           // the pause that was told
	tail     *tail            // of the pair's log
	given    uint64           // the count of the last input
	digestAt uint64           // count
	striped  uint32           // the last stripe that was digested
	rests    lockstep.Instant // it is to stand still until then; 0: it is not
	unrung   int              // bytes of inputs that the core was not woken for

	drain, finished chan struct{} // the core has said so
}

// orders are what the core wants of the machine's goroutine.
type orders struct {
	halted error
	pace   int
	pause  uint64 // the number of the pause, 0 for none
	digest bool   // when it stands still
	state  uint64 // send the state with this output's number
	copy   uint64 // the number of the round since this began, 0 for none
	round  int
	to     *link // the copy's
	keep   bool  // the machine and its log, for they differ from the secondary's
	forget bool  // the log: the pair has ended
}

// Status is how a side of a pair does.
type Status struct {
	// State is the core's, by name, and Protected tells whether the other one can go on.
	State     string `json:"state"`
	Protected bool   `json:"protected"`
	// LagBytes of the log and LagCounts of the machine were not executed by the secondary, as far as
	// it has said. LagNS is the lockstep interval, in nanoseconds: how long ago the machine was where
	// the secondary is. Of a secondary they are not known.
	LagBytes  uint64 `json:"lag_bytes"`
	LagCounts uint64 `json:"lag_counts"`
	LagNS     int64  `json:"lag_ns"`
	// LogBytes were sent on the log's link of this pair, the copy among them.
	LogBytes int64 `json:"log_bytes"`
	// CopyBytes were pages and state of the last copy, PauseNS is how long the machine stood
	// still for it, in nanoseconds.
	CopyBytes uint64 `json:"copy_bytes"`
	PauseNS   int64  `json:"pause_ns"`
}

func newPrimary(o Options) *Primary {
	o.fill()
	p := &Primary{side: newSide(o), drain: make(chan struct{}), finished: make(chan struct{}), orders: orders{pace: 100}}
	p.side.do, p.told = p.doEffect, p.note
	p.side.step = func(at lockstep.Instant, in lockstep.Input) []lockstep.Effect { return p.core.Step(at, in) }
	return p
}

// Attach puts a Primary before a machine that lives, alone. Close is to follow when the life
// has ended. Fails with fault.Stale when it has.
func Attach(l *machineio.Live, o Options) (*Primary, error) {
	p := newPrimary(o)
	p.live = l
	if !l.Attach(p, func(m *machine.Machine) { p.begin(m, 1) }) {
		return nil, fault.New(fault.Stale, "the machine has ended")
	}
	return p, nil
}

// begin starts the core's goroutine.
func (p *Primary) begin(m *machine.Machine, next uint64) {
	p.ports = portsOf(m)
	p.core = lockstep.NewPrimary(lockstep.PrimaryConfig{Limits: p.o.Limits, Count: m.Count(), Next: next, Broken: p.o.broken}, p.o.clock())
	p.note()
	go p.run()
}

// TurnOn gives the machine a secondary, which is at the other end of the links: they are
// the Primary's, whatever it returns. What becomes of it the events tell. Fails with
// fault.Busy when there is one already, and with fault.Stale when the machine has ended.
func (p *Primary) TurnOn(links Links, session lockstep.Session, partner vmlock.Owner) error {
	err := fault.New(fault.Stale, "the machine has ended")
	p.call(func() {
		if p.core.State() != lockstep.Alone || p.links != [lockstep.Links]*link{} {
			err = fault.New(fault.Busy, "the machine has a secondary, or is about to part from one: %s", p.core.State())
			return
		}
		p.connect(links, session, false)
		p.mu.Lock()
		p.status = Status{}
		p.mu.Unlock()
		p.take(item{in: lockstep.TurnOn{Partner: partner}})
		err = nil
	})
	if err != nil {
		_ = links.close() // that it failed is said
	}
	return err
}

// TurnOff has the machine live alone again.
func (p *Primary) TurnOff() { p.post(lockstep.TurnOff{}) }

// HandOver has the secondary take over now.
func (p *Primary) HandOver() { p.post(lockstep.HandOver{}) }

// Gone tells that the secondary's process has ended.
func (p *Primary) Gone() { p.post(lockstep.Gone{}) }

// Status tells how it does.
func (p *Primary) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// note makes known how the core does.
func (p *Primary) note() {
	state := p.core.State()
	p.logs.Store(state >= lockstep.PrimaryLoading && state <= lockstep.Yielding)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.State, p.status.Protected = state.String(), p.core.Protected()
	lag := p.core.Lag()
	p.status.LagBytes, p.status.LagCounts, p.status.LagNS = lag.Bytes, lag.Counts, lag.Time.Nanoseconds()
	if l := p.links[lockstep.Logging]; l != nil {
		p.status.LogBytes = l.bytes()
	}
}

// order changes the orders, and has the machine's goroutine look at them.
func (p *Primary) order(change func(o *orders)) {
	p.mu.Lock()
	change(&p.orders)
	p.mu.Unlock()
	p.live.Wake()
}

// doEffect does an effect of the core's.
func (p *Primary) doEffect(e lockstep.Effect) {
	switch e := e.(type) {
	case lockstep.Release:
		if p.o.leaves != nil {
			for _, o := range e.Outputs {
				p.o.leaves(o)
			}
		}
		p.live.Leave(plain(e.Outputs))
	case lockstep.ChangeLock:
		p.ask(func(ctx context.Context, l Lock) ([vmlock.BlockSize]byte, error) { return l.Change(ctx, e.Partner) })
	case lockstep.Pace:
		p.order(func(o *orders) { o.pace = e.Percent })
	case lockstep.Copy:
		p.order(func(o *orders) { o.copy, o.round, o.to = o.copy+1, e.Round, p.links[lockstep.Logging] })
	case lockstep.Pause:
		p.order(func(o *orders) { o.pause, o.digest = p.pauses(), e.Digest })
	case lockstep.SendState:
		p.order(func(o *orders) { o.state = e.Output })
	case lockstep.Resume:
		p.order(func(o *orders) { o.pause, o.state = 0, 0 })
	case lockstep.Drop:
		p.order(func(o *orders) { o.round, o.to, o.forget = 0, nil, true })
		p.part()
	case lockstep.Drain:
		close(p.drain)
	case lockstep.Finish:
		close(p.finished)
		p.part()
	case lockstep.Halt:
		err := fault.Wrap(fault.Fenced, e.Err, "the machine goes on elsewhere: "+e.Why.String())
		if e.Err == nil {
			err = fault.New(fault.Fenced, "the machine goes on elsewhere: %s", e.Why)
		}
		p.order(func(o *orders) { o.halted = err })
		p.part()
		p.cancel()
	case lockstep.Keep:
		p.o.Logger.Error("the secondary is another machine by now", slog.Uint64("count", e.Count))
		p.order(func(o *orders) { o.keep = true })
	}
}

// pauses numbers the pauses.
func (p *Primary) pauses() uint64 { return uint64(now()) }

// standNS is how long a machine that stands still does so until it looks at its orders
// again, unless it is woken.
const standNS = uint64(100 * time.Millisecond)

// Turn implements machineio.Gate.
func (p *Primary) Turn(m *machine.Machine) (stand uint64, err error) {
	p.mu.Lock()
	o := p.orders
	p.orders.state = 0
	p.mu.Unlock()
	p.forget(m, o)
	switch {
	case o.halted != nil:
		return 0, o.halted
	case o.pause != 0:
		p.pause(m, o)
		return standNS, nil
	case o.pace == 0:
		return standNS, nil
	}
	p.copyTurn(m, o)
	if p.logs.Load() && m.Count() >= p.digestAt && m.Count() > p.given {
		p.digest(m, true)
	}
	if p.rests == 0 {
		return 0, nil
	}
	if at := now(); at < p.rests {
		return uint64(p.rests.Sub(at)), nil
	}
	p.rests = 0
	return 0, nil
}

// forget forgets the log of a pair that has ended, and has it and the machine kept before, if
// the two sides differ: as of a count for which nothing was delivered yet.
func (p *Primary) forget(m *machine.Machine, o orders) {
	switch {
	case o.keep && m.Count() == p.given && m.End() == machine.Running:
		return // at the next turn
	case o.keep:
		p.o.keep(m, p.tail)
	case !o.forget:
		return
	}
	p.tail = nil
	p.mu.Lock()
	p.orders.keep, p.orders.forget = false, false
	p.mu.Unlock()
}

// pause stands still as it was ordered, and does what is to be done meanwhile.
func (p *Primary) pause(m *machine.Machine, o orders) {
	if p.stood != o.pause {
		p.stood = o.pause
		p.flushed(m)
		if o.digest {
			p.digest(m, false)
		}
		p.copy.paused = now()
		p.post(lockstep.Paused{})
	}
	if o.state != 0 {
		p.sendState(m, o)
	}
}

// flushed tells what came out since the last turn.
func (p *Primary) flushed(m *machine.Machine) { p.Ran(m.Count(), 0, m.Outputs()) }

// digest tells what the machine is now, and with striped one stripe of its memory.
func (p *Primary) digest(m *machine.Machine, striped bool) {
	p.flushed(m)
	p.digestAt = m.Count() + p.o.DigestEvery
	in := lockstep.Hashed{Count: m.Count(), Hash: m.Hash()}
	p.put(item{in: in}, false)
	p.remember(lockstep.Digest(in))
	if striped {
		p.striped = p.striped%stripes(m) + 1
		p.put(item{in: lockstep.Hashed{Count: m.Count(), Stripe: p.striped, Hash: stripe(m, p.striped)}}, false)
	}
}

// unrungMax is how many bytes of inputs may wait for the clock's tick.
const unrungMax = 256 << 10

// remember keeps the last of the log.
func (p *Primary) remember(r lockstep.Record) {
	if p.tail != nil {
		p.tail.add(r)
	}
}

// Delivered implements machineio.Gate.
func (p *Primary) Delivered(in *device.Input) {
	p.given = in.At
	p.remember(lockstep.Entry{In: in})
	p.unrung += len(in.Data)
	ring := p.unrung > unrungMax
	if ring {
		p.unrung = 0
	}
	p.put(item{in: lockstep.Delivered{In: in}}, ring)
}

// Ran implements machineio.Gate.
func (p *Primary) Ran(count, busyNS uint64, out []device.Output) {
	p.put(item{in: lockstep.Ran{Count: count, Outputs: p.ports.classify(out)}}, len(out) > 0)
	p.mu.Lock()
	pace := uint64(p.orders.pace)
	p.mu.Unlock()
	if pace > 0 && pace < 100 {
		p.rests = max(p.rests, now()) + lockstep.Instant(busyNS*(100-pace)/pace)
	}
}

// Ended implements machineio.Gate.
func (p *Primary) Ended(guest bool) error {
	if !guest {
		// The other one goes on: this is a death like any other.
		p.stop()
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.orders.halted
	}
	p.post(lockstep.Ended{})
	select {
	case <-p.drain:
	case <-p.over:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.orders.halted
	}
	return nil
}

// Close ends it when the life has ended: nothing is under way any more. A secondary
// is told that the guest has ended, if it has: that is with the system when Close returns.
func (p *Primary) Close() {
	select {
	case <-p.drain:
		p.post(lockstep.Drained{})
		select {
		case <-p.finished:
		case <-p.over:
		}
	default:
	}
	p.stop()
	p.last.Wait()
}

// copying is a copy of the machine, of its goroutine.
type copying struct {
	on     bool
	number uint64 // of the order
	list   []uint32
	first  bool // the list is of all pages, from next on
	next   uint32
	sent   uint64
	total  uint64
	told   bool             // the round's end
	rests  lockstep.Instant // nothing is sent until then
	paused lockstep.Instant
}

// Bounds of a turn's copying, and of what waits to be sent.
const (
	copyBytes  = 512 << 10
	copyPages  = 8192 // looked at
	runPages   = 64   // of one message
	queuedMax  = 4 << 20
	queuedLeft = 256 << 10
	restLeast  = 500 * time.Microsecond
	restMost   = 5 * time.Millisecond
)

// copyTurn sends some pages.
func (p *Primary) copyTurn(m *machine.Machine, o orders) {
	c := &p.copy
	switch {
	case o.round == 0:
		if c.on {
			m.Copy(false)
			*c = copying{number: c.number}
		}
		return
	case c.number != o.copy:
		c.number, c.sent, c.told, c.first = o.copy, 0, false, o.round == 1
		if c.first {
			c.on, c.next, c.list, c.total = true, 0, nil, 0
			m.Copy(true)
			p.sendConfig(m, o.to)
		}
	}
	if c.told {
		return
	}
	at := now()
	if at < c.rests {
		return
	}
	// Half of the goroutine's time is the guest's, and one that waits is woken for the next pages.
	defer func() {
		if !c.told {
			took := min(max(now().Sub(at), restLeast), restMost)
			c.rests = now() + lockstep.Instant(took)
			time.AfterFunc(took, p.live.Wake)
		}
	}()
	if o.to.queued() > queuedMax {
		return
	}
	if c.first {
		c.next = p.sendAll(m, o.to, c.next)
		if c.next < m.RAM().Pages() {
			return
		}
	} else {
		n := min(len(c.list), copyBytes/pageBytes)
		p.sendPages(m, o.to, c.list[:n])
		if c.list = c.list[n:]; len(c.list) > 0 {
			return
		}
	}
	if o.to.flush(); o.to.queued() > queuedLeft {
		return // it is not sent yet
	}
	c.told, c.list = true, m.Changed()
	p.post(lockstep.Copied{Bytes: c.sent, Left: uint64(len(c.list)) * pageBytes})
}

// sendConfig begins a copy.
func (p *Primary) sendConfig(m *machine.Machine, to *link) {
	cfg := m.Config()
	b, err := cfg.Encode()
	if err == nil {
		err = to.send(lockstep.Part{Data: b})
	}
	if err != nil {
		p.lost(to, err)
	}
}

// sendAll sends pages from one on that were not zeros when the copy began, and returns how far it
// came. What was stored to since then a later round sends.
func (p *Primary) sendAll(m *machine.Machine, to *link, from uint32) uint32 {
	end := min(from+copyPages, m.RAM().Pages())
	was := p.copy.sent
	for from < end && p.copy.sent-was < copyBytes {
		n := uint32(0)
		for from+n < end && n < runPages && !m.Zeros(from+n) {
			n++
		}
		if n == 0 {
			from++
			continue
		}
		p.sendRun(m, to, from, n)
		from += n
	}
	to.flush()
	return from
}

// sendPages sends pages of an ascending list.
func (p *Primary) sendPages(m *machine.Machine, to *link, list []uint32) {
	for len(list) > 0 {
		n := 1
		for n < len(list) && n < runPages && list[n] == list[0]+uint32(n) {
			n++
		}
		p.sendRun(m, to, list[0], uint32(n))
		list = list[n:]
	}
	to.flush()
}

// sendRun sends n pages.
func (p *Primary) sendRun(m *machine.Machine, to *link, first, n uint32) {
	data := m.RAM().Bytes()[uint64(first)*pageBytes:][:uint64(n)*pageBytes]
	if err := to.send(lockstep.Pages{First: first, Data: data}); err != nil {
		p.lost(to, err)
	}
	p.copy.sent += uint64(len(data))
	p.copy.total += uint64(len(data))
}

// sendState sends what is left, and the state; the log begins here.
func (p *Primary) sendState(m *machine.Machine, o orders) {
	c := &p.copy
	if o.to == nil {
		return // the pair has ended meanwhile
	}
	p.sendPages(m, o.to, c.list)
	p.sendPages(m, o.to, m.Changed())
	parts := m.SaveParts()
	c.total += uint64(len(parts))
	for len(parts) > 0 {
		n := min(len(parts), lockstep.PartMax)
		if err := o.to.send(lockstep.Part{Data: parts[:n]}); err != nil {
			p.lost(o.to, err)
		}
		parts = parts[n:]
	}
	if err := o.to.send(lockstep.Start{Count: m.Count(), Output: o.state, Hash: m.Hash()}); err != nil {
		p.lost(o.to, err)
	}
	p.put(item{in: lockstep.StateSent{}, from: o.to}, true)
	m.Copy(false)
	p.tail = &tail{}
	total, took := c.total, now().Sub(c.paused)
	*c = copying{number: c.number}
	p.digestAt = m.Count() + p.o.DigestEvery
	p.mu.Lock()
	p.orders.round, p.orders.to = 0, nil
	p.status.CopyBytes, p.status.PauseNS = total, took.Nanoseconds()
	p.mu.Unlock()
}
