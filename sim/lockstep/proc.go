package lockstep

import (
	"fmt"
	"time"

	"steadfast/compute/device"
	"steadfast/compute/lockstep"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

const (
	perCount    = 50 * time.Microsecond // of the toy's clock
	digestEvery = 3000                  // counts
)

// proc is a process that has one side of a machine: what lockstepio and compute/host are,
// as a model. The machine's part and the core's are apart: what the machine did
// reaches the core a little later, in its order.
type proc struct {
	w          *world
	id         int
	host       *host
	owner      vmlock.Owner
	generation uint64
	dead       bool // it is no more
	frozen     bool
	ended      bool // its side is over
	deferred   []func()

	m       *toy
	prim    *lockstep.Primary
	sec     *lockstep.Secondary
	session *session
	pair    *session // its last one as a primary, for the judge
	lock    *vmlock.Lock
	nexus   *nexus
	taking  bool // the lock is asked for, for the secondary

	inbox   []device.Input
	outside int // commands that have left and were not answered
	drain   bool
	pace    int
	paused  bool
	at      lockstep.Instant // of the last turn
	spare   time.Duration    // that was not executed
	digest  uint64
	flow    []lockstep.Input // from the machine to the core
	todo    []lockstep.Execute
	speed   time.Duration // of a secondary, for a count
	next    uint64        // number of the next output
	caused  map[uint64]sent

	tainted  bool // its machine was changed by nothing
	compared bool // and a digest was compared since

	// of a secondary: what it has in memory of the log, for the judge
	told    bool
	inputs  uint64
	horizon uint64
}

// sent is what the judge wants to know of an output.
type sent struct {
	cause
	at uint64
}

func (p *proc) String() string {
	return fmt.Sprintf("process %d (host %d.%d)", p.id, p.owner.Host, p.owner.Boot)
}

func (w *world) newProc(h *host, generation uint64) *proc {
	w.procs++
	p := &proc{
		w: w, id: w.procs, host: h, owner: vmlock.Owner{Host: h.number, Boot: h.boot}, generation: generation, pace: 100, at: w.now,
		caused: map[uint64]sent{}, speed: w.delay(perCount/4, perCount/2),
	}
	h.procs = append(h.procs, p)
	p.tick()
	return p
}

func (p *proc) gone() bool { return p.dead || p.ended }
func (p *proc) runs() bool { return !p.gone() && !p.frozen && p.host.runs() }

// limits are the product's, but for what a toy is smaller in.
func limits() lockstep.Limits {
	l := lockstep.DefaultLimits()
	l.LagBytes, l.HeldBytes, l.StuckAfter, l.LoadWithin = 64<<10, 64<<10, 3*time.Second, 4*time.Second
	return l
}

// tick tells the core the time, and has the keeper look at the lock now and then.
func (p *proc) tick() {
	p.w.after(p.w.delay(10*time.Millisecond, lockstep.TickEvery), p, func() {
		if p.ended {
			return
		}
		p.step(p.session, lockstep.Tick{})
		if p.lock != nil && p.w.rng.IntN(50) == 0 && p.lock.State() == vmlock.Holding {
			p.lockStep(vmlock.Check{})
		}
		p.tick()
	})
}

// step gives the core an input, of a session that still is the present one.
func (p *proc) step(s *session, in lockstep.Input) {
	if p.gone() || s != p.session {
		return
	}
	var out []lockstep.Effect
	switch {
	case p.prim != nil:
		out = p.prim.Step(p.w.now, in)
	case p.sec != nil:
		out = p.sec.Step(p.w.now, in)
	}
	for _, e := range out {
		p.effect(e)
	}
}

// received gives the core a message.
func (p *proc) received(c *wire, m lockstep.Message) {
	if p.sec != nil && p.sec.State() < lockstep.Taking && c.s == p.session {
		p.remember(m)
	}
	p.step(c.s, lockstep.Received{Link: c.link, List: []lockstep.Message{m}})
}

// remember is the judge's own account of what a secondary has in memory.
func (p *proc) remember(m lockstep.Message) {
	switch m := m.(type) {
	case lockstep.Start:
		p.inputs, p.horizon = p.session.state.inputs, m.Count
	case lockstep.Entry:
		p.inputs++
		p.horizon = max(p.horizon, m.In.At)
	case lockstep.Horizon:
		p.horizon = max(p.horizon, m.Count)
	case lockstep.Pairing:
		p.told = true
	}
}

// covers tells whether a secondary has all that an output follows from.
func (p *proc) covers(s sent) bool {
	return p.inputs >= s.inputs && (p.horizon > s.at || p.horizon == s.at && s.input)
}

// effect does what a core wants.
func (p *proc) effect(e lockstep.Effect) {
	switch e := e.(type) {
	case lockstep.Send:
		if p.session != nil {
			p.session.wires[e.Link].send(p, e.Message)
		}
	case lockstep.Release:
		for _, o := range e.Outputs {
			p.leave(o)
		}
	case lockstep.ChangeLock:
		p.lockStep(vmlock.Change{Partner: e.Partner, Nonce: p.w.nonce()})
	case lockstep.TakeLock:
		p.takeLock(e.Block)
	case lockstep.Pace:
		p.turn()
		p.pace = e.Percent
		p.w.counts.slowed++
	case lockstep.Pause:
		p.turn()
		p.paused = true
		if e.Digest {
			p.push(lockstep.Hashed{Count: p.m.count, Hash: p.m.hash()})
		}
		p.push(lockstep.Paused{})
	case lockstep.Resume:
		p.paused, p.at = false, p.w.now
	case lockstep.Copy, lockstep.SendState:
		p.copy(e)
	case lockstep.Drop:
		p.session.hangUp() // what was sent may still arrive
		p.session = nil
	case lockstep.Store, lockstep.Load, lockstep.Execute:
		p.follow(e)
	case lockstep.GoLive:
		p.goLive(e)
	case lockstep.Drain:
		if p.w.cutOff && p.session != nil { // only now
			p.w.cutOff = false
			for _, c := range p.session.wires {
				c.sever()
			}
			if p.w.rng.IntN(2) == 0 { // nor does it reach the lock
				p.host.away = true
				p.w.after(p.w.delay(20*time.Millisecond, 2*time.Second), nil, func() { p.w.store.back(p.host) })
			}
		}
		p.drain = true
		p.drained()
	case lockstep.Finish:
		p.w.say("%v: the guest has ended", p)
		p.w.quorum.finished = true
		p.w.judge.over = p.m.life
		p.ended = true
		p.lockStep(vmlock.Release{})
	case lockstep.Halt:
		p.w.say("%v: halts: %v %v", p, e.Why, e.Err)
		if e.Why == lockstep.WhyFinished {
			p.w.quorum.finished = true
		}
		if p.session != nil {
			p.session.hangUp()
		}
		p.ended, p.lock = true, nil
	case lockstep.Event:
		p.w.say("%v: event %d: %v %v", p, e.Kind, e.Why, e.Err)
		p.w.counts.event(e)
	case lockstep.Keep:
	}
}

// push tells the core what the machine did, a little later.
func (p *proc) push(in lockstep.Input) {
	p.flow = append(p.flow, in)
	p.w.after(p.w.delay(0, p.w.profile.flow), p, func() {
		in := p.flow[0]
		p.flow = p.flow[1:]
		p.step(p.session, in)
	})
}

// begin has a machine run from now on.
func (p *proc) begin() {
	p.at, p.digest = p.w.now, p.m.count/digestEvery
	p.announce()
	p.loop()
}

func (p *proc) loop() {
	p.w.after(p.w.delay(time.Millisecond, 3*time.Millisecond), p, func() {
		if p.ended || p.prim == nil {
			return
		}
		p.turn()
		p.loop()
	})
}

// announce tells the switch where the machine is, again and again: the first may be lost.
func (p *proc) announce() {
	if p.gone() || p.prim == nil {
		return
	}
	p.w.attached = p
	p.w.after(400*time.Millisecond, p, p.announce)
}

// turn has the machine of a primary execute what is due, and take what came in.
func (p *proc) turn() {
	elapsed := p.w.now.Sub(p.at)
	p.at = p.w.now
	if p.prim == nil || p.ended || p.paused || p.pace == 0 {
		return
	}
	p.spare += min(elapsed, 20*time.Millisecond) * time.Duration(p.pace) / 100
	n := p.spare / perCount
	p.spare -= n * perCount
	to := p.m.count + uint64(n)
	was := p.m.ended
	if len(p.inbox) > 0 { // what came, came at some count in between
		p.m.run(p.m.count + uint64(p.w.rng.IntN(int(n)+1)))
		list := p.inbox
		p.inbox = nil
		for _, in := range list {
			in.At = p.m.count
			p.m.deliver(&in)
			p.push(lockstep.Delivered{In: &in})
		}
	}
	p.m.run(to)
	out, caused := p.m.take()
	for i := range out {
		p.caused[p.next] = sent{caused[i], out[i].At}
		p.next++
	}
	p.push(lockstep.Ran{Count: p.m.count, Outputs: out})
	if d := p.m.count / digestEvery; d != p.digest {
		p.digest = d
		p.push(lockstep.Hashed{Count: p.m.count, Hash: p.m.hash()})
	}
	if p.m.ended && !was {
		p.push(lockstep.Ended{})
	}
	p.bad()
}

// bad tells the judge of a read that cannot be, of the one that has the machine. Who has
// lost it, and does not know, may read what it likes: nothing of it leaves.
func (p *proc) bad() {
	if p.m.bad != "" && !p.tainted && p.prim != nil && p.w.judge.current == p.nexus && !p.w.judge.excused[p.m.life] {
		p.w.judge.fail("%v: %s", p, p.m.bad)
	}
}

// leave has an output of a primary leave.
func (p *proc) leave(o lockstep.Out) {
	info := p.caused[o.Number]
	delete(p.caused, o.Number)
	if o.Class != lockstep.Ask {
		p.w.judge.left(p, o, info)
	}
	p.issue(o)
}

// issue does what an output wants.
func (p *proc) issue(o lockstep.Out) {
	switch o.Port {
	case portDisk:
		p.outside++
		p.w.store.issue(p, p.nexus, o)
	case portNet:
		a := promiseOf(o.Data)
		p.w.judge.frame(p, a)
		p.w.attached = p
		p.w.clients[a.client].answer(a)
	case portConsole:
		p.w.judge.console(p, o)
	}
}

// completed takes the answer of the SAN.
func (p *proc) completed(n *nexus, o lockstep.Out, data []byte) {
	if p.ended || n != p.nexus {
		return
	}
	p.outside--
	p.inbox = append(p.inbox, device.Input{Port: portDisk, Kind: 1, ID: o.ID, Data: data})
	p.soon()
	p.drained()
}

func (p *proc) conflicted(n *nexus) {
	if !p.ended && n == p.nexus && p.lock != nil {
		p.w.counts.conflicts++
		p.lockStep(vmlock.Conflicted{})
	}
}

func (p *proc) soon() { p.w.after(20*time.Microsecond, p, p.turn) }

func (p *proc) drained() {
	if p.drain && p.outside == 0 && !p.ended {
		p.drain = false
		p.push(lockstep.Drained{})
	}
}

// lockConfig is what an attempt at the lock is made with.
func (p *proc) lockConfig(pairing *[vmlock.BlockSize]byte) vmlock.Config {
	return vmlock.Config{
		VM: theVM, Me: p.owner, Generation: p.generation, Attempt: p.host.attempt(p.generation), Nonce: p.w.nonce(), Nexuses: []int{1, 1},
		Pairing: pairing, Broken: p.w.mutant.lock,
	}
}

// tryLock begins an attempt, on a nexus of its own.
func (p *proc) tryLock(cfg vmlock.Config) {
	lock, err := vmlock.NewLock(cfg)
	if err != nil {
		p.w.judge.fail("%v: %v", p, err)
		return
	}
	p.lock, p.nexus = lock, &nexus{by: p, key: lock.Key()}
	p.lockStep(vmlock.Begin{})
}

// takeLock is a secondary's.
func (p *proc) takeLock(block [vmlock.BlockSize]byte) {
	p.taking = true
	p.w.say("%v: takes the lock", p)
	p.tryLock(p.lockConfig(&block))
}

// lockStep gives the lock an input, and does what it wants.
func (p *proc) lockStep(in vmlock.Input) {
	if p.lock == nil || p.dead {
		return
	}
	for _, e := range p.lock.Step(in) {
		switch e := e.(type) {
		case vmlock.Do:
			p.w.store.do(p, p.nexus, p.lock, e)
		case vmlock.Held:
			p.w.say("%v: has the lock", p)
			p.w.judge.held(p)
			if p.taking {
				p.step(p.session, lockstep.LockChanged{Block: p.lock.Block()})
			} else {
				p.boot()
			}
		case vmlock.Changed:
			p.step(p.session, lockstep.LockChanged{Block: e.Block})
		case vmlock.Refused:
			if e.Change {
				p.step(p.session, lockstep.LockRefused{Err: e.Err})
			}
		case vmlock.Stop:
			p.lockOver(e.Err, true)
		case vmlock.Done:
			p.lockOver(e.Err, e.Found != 0)
		}
	}
}

// lockOver follows the end of an attempt, or of a lock.
func (p *proc) lockOver(err error, lost bool) {
	p.w.say("%v: has no lock: %v", p, err)
	switch {
	case p.ended:
	case p.taking && !lost:
		p.step(p.session, lockstep.LockRefused{Err: err})
	case p.prim == nil && p.sec == nil:
		p.ended = true
	default:
		p.step(p.session, lockstep.LockLost{Err: err})
		p.ended = true
	}
}

// boot begins a machine's life: the lock is held.
func (p *proc) boot() {
	p.w.counts.lives++
	p.m = newToy(uint32(p.generation), p.w.rng.Uint64())
	p.next = 1
	p.prim = lockstep.NewPrimary(lockstep.PrimaryConfig{Limits: limits(), Next: 1, Broken: p.w.mutant.core}, p.w.now)
	p.w.judge.life(p.m.life)
	p.begin()
}

// turnOn gives a primary a secondary on a host.
func (p *proc) turnOn(h *host) *proc {
	s := p.w.newProc(h, p.generation)
	s.sec = lockstep.NewSecondary(lockstep.SecondaryConfig{Limits: limits(), Me: s.owner, Broken: p.w.mutant.core}, p.w.now)
	x := newSession(p.w, p, s)
	p.session, s.session, p.pair = x, x, x
	p.w.say("%v: gets a secondary, %v", p, s)
	p.step(x, lockstep.TurnOn{Partner: s.owner})
	return s
}

// copy sends what a secondary begins with. Pages are only a time that passes.
func (p *proc) copy(e lockstep.Effect) {
	x := p.session
	if x.deaf {
		return
	}
	if c, ok := e.(lockstep.Copy); ok {
		bytes, left := uint64(1<<20)>>c.Round, uint64(1<<19)>>c.Round
		if x.hot {
			left = bytes * 20
		}
		p.w.after(p.w.delay(5*time.Millisecond, 40*time.Millisecond), p, func() { p.step(x, lockstep.Copied{Bytes: bytes, Left: left}) })
		return
	}
	p.w.after(p.w.delay(time.Millisecond, 30*time.Millisecond), p, func() {
		if p.session != x {
			return
		}
		x.state = p.m.clone()
		x.wires[lockstep.Logging].send(p, lockstep.Part{Data: []byte{1}})
		x.wires[lockstep.Logging].send(p, lockstep.Start{Count: p.m.count, Output: e.(lockstep.SendState).Output, Hash: p.m.hash()})
		p.w.after(p.w.delay(0, p.w.profile.flow), p, func() { p.step(x, lockstep.StateSent{}) })
	})
}

// follow is what a secondary's machine has to do.
func (p *proc) follow(e lockstep.Effect) {
	switch e := e.(type) {
	case lockstep.Load:
		x := p.session
		if x.inert {
			return
		}
		p.w.after(p.w.delay(0, 100*time.Millisecond), p, func() {
			if x.small {
				p.step(x, lockstep.Differs{Err: fault.New(fault.Full, "no room")})
				return
			}
			p.m = x.state.clone()
			if h := p.m.hash(); h != e.Start.Hash {
				p.w.judge.fail("%v: the copy is another machine", p)
			}
			p.next = e.Start.Output
			p.step(x, lockstep.Loaded{})
		})
	case lockstep.Execute:
		p.todo = append(p.todo, e)
		if len(p.todo) == 1 {
			p.w.after(10*time.Microsecond, p, p.execute)
		}
	}
}

// execute does the next record of the log, in the time that it takes.
func (p *proc) execute() {
	if p.gone() || p.sec == nil || len(p.todo) == 0 {
		return
	}
	e := p.todo[0]
	was := p.m.count
	switch r := e.Record.(type) {
	case lockstep.Entry:
		p.m.run(r.In.At)
		p.m.deliver(r.In)
	case lockstep.Horizon:
		p.m.run(r.Count)
	case lockstep.Digest:
		p.m.run(r.Count)
		p.compared = p.tainted
		if p.m.hash() != r.Hash {
			if !p.tainted {
				p.w.judge.fail("%v diverged by itself at %d", p, r.Count)
			}
			p.step(p.session, lockstep.Differs{Count: r.Count})
			if p.gone() {
				return
			}
		}
	}
	out, _ := p.m.take()
	p.step(p.session, lockstep.Executed{Seq: e.Seq, Count: p.m.count, Outputs: out})
	if p.sec == nil || len(p.todo) == 0 {
		return
	}
	if p.todo = p.todo[1:]; len(p.todo) > 0 {
		p.w.after(time.Duration(p.m.count-was)*p.speed+time.Microsecond, p, p.execute)
	}
}

// goLive makes a secondary the primary.
func (p *proc) goLive(e lockstep.GoLive) {
	p.w.counts.takeovers++
	p.w.say("%v: goes live at %d", p, p.m.count)
	if p.m.life == p.w.judge.over {
		p.w.judge.fail("%v goes live, and the guest has ended", p)
	}
	if p.tainted {
		if p.compared {
			p.w.judge.fail("%v goes live, and its digest was another", p)
		}
		p.w.judge.excuse(p.m.life)
	}
	p.sec, p.todo, p.taking = nil, nil, false
	p.session = nil
	p.next = e.Next
	p.prim = lockstep.NewPrimary(lockstep.PrimaryConfig{Limits: limits(), Count: p.m.count, Next: e.Next, Broken: p.w.mutant.core}, p.w.now)
	for _, o := range p.m.pending() {
		if p.w.mutant.driver == "no-reissue" && o.Class == lockstep.Change {
			continue
		}
		p.w.counts.reissued++
		p.issue(o)
	}
	for _, o := range e.Streams {
		p.w.counts.resent++
		p.issue(o)
	}
	if p.m.ended {
		p.push(lockstep.Ended{})
	}
	p.begin()
}

// kill ends a process. The guard tells its partner, or not.
func (p *proc) kill(tells bool) {
	if p.dead {
		return
	}
	p.dead = true
	p.w.say("%v: is killed", p)
	x := p.session
	if x == nil || p.host.down {
		return
	}
	x.hangUp()
	if !tells {
		return
	}
	for _, o := range x.sides {
		if o != p {
			p.w.after(p.w.delay(time.Millisecond, 5*time.Millisecond), o, func() { o.step(x, lockstep.Gone{}) })
		}
	}
}
