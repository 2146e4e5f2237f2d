package lockstep

import (
	"time"

	"steadfast/compute/lockstep"
	"steadfast/compute/vmlock"
)

// quorum keeps the books, as package placement and the hosts' runners do: which
// process has the machine, which is its secondary, when both are lost.
type quorum struct {
	w          *world
	generation uint64
	primary    *proc
	secondary  *proc
	finished   bool // the guest has ended
}

// lostAfter is the silence of a host for which it is declared lost.
const lostAfter = 3 * time.Second

func (q *quorum) start() {
	q.w.after(q.w.delay(50*time.Millisecond, 200*time.Millisecond), nil, q.look)
}

// over tells whether it is known that a process does nothing for the machine any more.
func (q *quorum) over(p *proc) bool {
	return p == nil || p.host.lost >= p.owner.Boot || p.gone() && p.host.runs() && p.host.boot == p.owner.Boot
}

func (q *quorum) look() {
	w := q.w
	for _, h := range w.hosts {
		switch {
		case h.lost < h.boot && !h.runs() && w.now.Sub(h.since) >= lostAfter:
			w.say("host %d.%d is declared lost", h.number, h.boot)
			h.lost = h.boot
		case h.lost < h.boot-1:
			h.lost = h.boot - 1
		}
	}
	if s := q.secondary; s != nil && s.prim != nil && s.host.runs() && !s.dead {
		q.primary, q.secondary = s, nil
	}
	switch {
	case q.finished:
	case q.over(q.primary) && q.over(q.secondary):
		q.place()
	case q.secondary != nil && q.over(q.secondary):
		q.secondary = nil
	case q.secondary == nil && q.primary.runs() && q.primary.prim != nil && q.primary.prim.State() == lockstep.Alone && w.rng.IntN(3) == 0:
		q.protect()
	}
	q.start()
}

// place places the machine anew.
func (q *quorum) place() {
	h := q.pick(nil)
	if h == nil {
		return
	}
	if q.primary != nil {
		q.w.judge.anew()
		q.w.counts.restarts++
	}
	q.secondary = nil
	q.generation = max(q.generation, decode(q.w.store.block).Generation) + 1
	q.primary = q.w.newProc(h, q.generation)
	q.w.say("generation %d is placed: %v", q.generation, q.primary)
	q.primary.tryLock(q.primary.lockConfig(nil))
}

// protect has a primary get a secondary. A process of an earlier pair may still be there on the
// host, stopped, and wake up.
func (q *quorum) protect() {
	h := q.pick(q.primary.host)
	if h == nil || q.generation > vmlock.GenerationMax || h.attempts[q.generation] > 200 {
		return
	}
	if p := q.primary; p.prim.State() != lockstep.Alone || p.session != nil {
		return
	}
	q.secondary = q.primary.turnOn(h)
	q.w.counts.pairs++
}

// pick returns a host that can take the machine.
func (q *quorum) pick(but *host) *host {
	var list []*host
	for _, h := range q.w.hosts {
		if h != but && h.runs() && h.lost < h.boot {
			list = append(list, h)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list[q.w.rng.IntN(len(list))]
}
