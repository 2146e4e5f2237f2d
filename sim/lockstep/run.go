package lockstep

import (
	"math/rand/v2"
	"time"

	"steadfast/compute/lockstep"
	"steadfast/compute/vmlock"
)

// mutant is a rule that is broken: one of the core's, of the lock's, or of this model's.
type mutant struct {
	core   lockstep.Flaw
	lock   vmlock.Flaw
	driver string
}

// drivers are this model's own mutants.
var drivers = []string{"no-reissue"}

// counts are what histories came across.
type counts struct {
	lives, pairs, protections, takeovers, restarts, divergences, excused          int
	reissued, resent, conflicts, damaged, severed, slowed, waits, promises, ended int
	why                                                                           [16]int // pairs that ended, and takeovers
}

// list is all of them, in their order.
func (c *counts) list() []*int {
	all := []*int{
		&c.lives, &c.pairs, &c.protections, &c.takeovers, &c.restarts, &c.divergences, &c.excused,
		&c.reissued, &c.resent, &c.conflicts, &c.damaged, &c.severed, &c.slowed, &c.waits, &c.promises, &c.ended,
	}
	for i := range c.why {
		all = append(all, &c.why[i])
	}
	return all
}

func (c *counts) event(e lockstep.Event) {
	switch e.Kind {
	case lockstep.Protected:
		c.protections++
	case lockstep.Unprotected:
		c.why[e.Why]++
	case lockstep.Diverged:
		c.divergences++
	case lockstep.Waiting:
		c.waits++
	case lockstep.TookOver:
		c.why[e.Why]++
	}
}

// Outcome is what a history came to.
type Outcome struct {
	Failure string
	Trace   []string
	counts  counts
}

// Run runs one seed, with a rule broken or none.
func Run(seed uint64, m mutant, trace bool) Outcome {
	w := newWorld(seed, m, trace)
	w.after(time.Second, nil, w.fault)
	w.run(lockstep.Instant(w.profile.length))
	w.calmDown()
	if w.judge.wrong == "" && w.rng.IntN(4) == 0 {
		w.shutDown()
	}
	return Outcome{w.judge.wrong, w.trace, w.counts}
}

// newWorld is a world in which all begins.
func newWorld(seed uint64, m mutant, trace bool) *world {
	rng := rand.New(rand.NewPCG(seed, 8))
	w := &world{rng: rng, mutant: m, tracing: trace}
	w.profile = profile{
		faults: w.delay(150*time.Millisecond, 1500*time.Millisecond), loss: rng.IntN(80), late: rng.IntN(30), length: w.delay(4*time.Second, 14*time.Second),
	}
	if w.profile.flow = 100 * time.Microsecond; rng.IntN(3) == 0 {
		w.profile.flow = 4 * time.Millisecond
	}
	w.store, w.judge = newStore(w), newJudge(w)
	for i := range 3 {
		w.hosts = append(w.hosts, &host{number: uint16(i + 1), boot: 1, attempts: map[uint64]uint8{}})
	}
	w.quorum = &quorum{w: w}
	w.quorum.start()
	for i := range clients {
		c := &client{w: w, number: uint8(i)}
		w.clients = append(w.clients, c)
		c.start()
	}
	return w
}

// calmDown ends the faults: after a while the machine is protected again, and clients
// have their answers, or that is the failure.
func (w *world) calmDown() {
	w.calm = true
	w.say("calm")
	w.profile.loss, w.profile.late = 0, 0
	for _, h := range w.hosts {
		w.start(h)
		w.thaw(h)
		w.store.back(h)
		for _, p := range h.procs {
			w.goOn(p)
		}
	}
	for _, c := range w.wires {
		c.heal()
	}
	if w.quorum.finished {
		w.run(w.now + lockstep.Instant(5*time.Second))
		return
	}
	had := [clients]int{}
	for step := range 120 {
		w.run(w.now + lockstep.Instant(250*time.Millisecond))
		if w.judge.wrong != "" || w.quorum.finished {
			return
		}
		if step == 20 {
			for i, c := range w.clients {
				had[i] = c.had
			}
		}
		fine := step > 24
		for i, c := range w.clients {
			fine = fine && c.had > had[i]
		}
		if p := w.quorum.primary; fine && p.runs() && p.prim != nil && p.prim.Protected() {
			return
		}
	}
	p := w.quorum.primary
	w.judge.fail("it is calm, and the machine does not come back: primary %v, ended %t; clients have %d %d %d", p, p.ended, w.clients[0].had, w.clients[1].had, w.clients[2].had)
}

// shutDown has the guest end: both sides do, the lock is given back, and nobody goes on. Where the
// links are cut about then, the other one may, if it cannot know; then the guest ends there.
func (w *world) shutDown() {
	p, takeovers, restarts := w.quorum.primary, w.counts.takeovers, w.counts.restarts
	if w.quorum.finished || p == nil {
		return
	}
	w.attached = p
	cut := w.rng.IntN(3) == 0
	w.cutOff = cut
	for range 40 {
		if w.quorum.primary != nil {
			w.attached = w.quorum.primary
		}
		w.frame([]byte{shutdown, 0, 0, 0, 0})
		w.run(w.now + lockstep.Instant(250*time.Millisecond))
		if w.quorum.finished {
			break
		}
	}
	w.run(w.now + lockstep.Instant(5*time.Second))
	w.counts.ended++
	b := decode(w.store.block)
	if !w.quorum.finished || b.Held || w.counts.takeovers > takeovers && !cut || w.counts.restarts > restarts {
		w.judge.fail("the guest was shut down: finished %t, block %+v, takeovers %d, restarts %d", w.quorum.finished, b, w.counts.takeovers-takeovers, w.counts.restarts-restarts)
	}
}

// fault has something go wrong, and the next thing later.
func (w *world) fault() {
	if w.calm {
		return
	}
	w.after(time.Duration(float64(w.profile.faults)*w.rng.ExpFloat64()), nil, w.fault)
	h := w.hosts[w.rng.IntN(len(w.hosts))]
	var p *proc
	for _, q := range []*proc{w.quorum.primary, w.quorum.secondary} {
		if q != nil && (p == nil || w.rng.IntN(2) == 0) {
			p = q
		}
	}
	if p != nil && w.rng.IntN(3) > 0 {
		h = p.host
	}
	long := w.delay(20*time.Millisecond, time.Second)
	if w.rng.IntN(3) == 0 {
		long = w.delay(time.Second, 6*time.Second)
	}
	switch k := w.rng.IntN(100); {
	case k < 14:
		w.freeze(h, long)
	case k < 20:
		w.crash(h, long)
	case k < 48:
		w.part(h, long)
	case k < 58:
		w.away(h, long)
	case k < 64:
		for _, c := range w.wires[max(0, len(w.wires)-2):] {
			c.sever()
		}
	case p == nil:
	default:
		w.hurt(p, k, long)
	}
}

// hurt has something happen to a process, or people want something of it.
func (w *world) hurt(p *proc, k int, long time.Duration) {
	switch {
	case k < 74:
		w.say("%v is stopped for %v", p, long)
		p.frozen = true
		w.after(long, nil, func() { w.goOn(p) })
	case k < 80:
		p.kill(w.rng.IntN(3) > 0)
	case k < 88 && p.prim != nil:
		p.step(p.session, lockstep.HandOver{})
	case k < 91 && p.prim != nil:
		p.step(p.session, lockstep.TurnOff{})
	case k < 95 && p.sec != nil:
		p.speed = w.delay(perCount/4, perCount*3)
	case k < 97 && p.sec != nil && p.m != nil && !p.tainted:
		w.say("%v: its machine is changed", p)
		p.tainted = true
		p.m.chain ^= 1
	case k == 99 && w.rng.IntN(4) == 0:
		w.frame([]byte{shutdown, 0, 0, 0, 0})
	}
}

func (w *world) goOn(p *proc) {
	if p.frozen {
		p.frozen = false
		if !p.host.frozen {
			w.wake(p)
		}
	}
}

func (w *world) freeze(h *host, long time.Duration) {
	if !h.runs() {
		return
	}
	w.say("host %d.%d is frozen for %v", h.number, h.boot, long)
	h.frozen, h.since = true, w.now
	w.after(long, nil, func() { w.thaw(h) })
}

// thaw has a host go on. One that was declared lost hears so after a while.
func (w *world) thaw(h *host) {
	if !h.frozen {
		return
	}
	h.frozen = false
	w.say("host %d.%d goes on", h.number, h.boot)
	for _, p := range h.procs {
		if !p.frozen {
			w.wake(p)
		}
	}
	if boot := h.boot; h.lost >= boot {
		w.after(w.delay(0, time.Second), nil, func() {
			if h.boot == boot {
				w.reborn(h)
			}
		})
	}
}

func (w *world) reborn(h *host) {
	for _, p := range h.procs {
		p.dead = true
	}
	h.boot++
	h.attempts = map[uint64]uint8{}
}

func (w *world) crash(h *host, long time.Duration) {
	if !h.runs() {
		return
	}
	w.say("host %d.%d loses power for %v", h.number, h.boot, long)
	h.down, h.since = true, w.now
	for _, p := range h.procs {
		p.dead = true
	}
	w.after(long, nil, func() { w.start(h) })
}

func (w *world) start(h *host) {
	if h.down {
		h.down = false
		w.reborn(h)
		w.say("host %d.%d begins", h.number, h.boot)
	}
}

// part cuts links of a host: one or both, one way or both.
func (w *world) part(h *host, long time.Duration) {
	ways, which := w.rng.IntN(3), w.rng.IntN(4)
	w.say("host %d is cut off: ways %d, links %d, for %v", h.number, ways, which, long)
	set := func(to bool) {
		for l := range w.cut {
			if which < 2 && l != which {
				continue
			}
			for _, o := range w.hosts {
				if ways != 1 {
					w.cut[l][h.number][o.number] = to
				}
				if ways != 0 {
					w.cut[l][o.number][h.number] = to
				}
			}
		}
	}
	set(true)
	sever := w.rng.IntN(2) == 0 && long > time.Second
	w.after(min(long, w.delay(300*time.Millisecond, 2*time.Second)), nil, func() {
		for _, c := range w.wires {
			if sever && (c.cut(0) || c.cut(1)) {
				c.sever()
			}
		}
	})
	w.after(long, nil, func() {
		set(false)
		for _, c := range w.wires {
			c.heal()
		}
	})
}

// away cuts the way to the SAN, of one host or of all.
func (w *world) away(h *host, long time.Duration) {
	list := []*host{h}
	if w.rng.IntN(3) == 0 {
		list = w.hosts
	}
	for _, h := range list {
		w.say("host %d does not reach the SAN for %v", h.number, long)
		h.away = true
		w.after(long, nil, func() { w.store.back(h) })
	}
}
