package lockstep

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"time"

	"steadfast/compute/lockstep"
	"steadfast/compute/vmlock"
)

var theVM = vmlock.ID{1}

// event is something that will happen: to the world, or to a process, which gets it when
// it runs.
type event struct {
	at    lockstep.Instant
	order uint64
	to    *proc
	do    func()
}

type events []*event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].order < e[j].order
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(*event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// host is a host in one life after the other.
type host struct {
	number   uint16
	boot     uint32
	down     bool
	frozen   bool
	since    lockstep.Instant // down or frozen
	lost     uint32           // the boot up to which the quorum has declared it lost
	away     bool             // the way to the SAN is cut
	attempts map[uint64]uint8 // at the lock, of this boot, by generation
	procs    []*proc
}

func (h *host) runs() bool { return !h.down && !h.frozen }

func (h *host) attempt(generation uint64) uint8 {
	h.attempts[generation]++
	return h.attempts[generation]
}

// profile is how rough a world is.
type profile struct {
	faults time.Duration // between two, on average
	loss   int           // of answers to the lock's commands, per mille
	late   int           // of commands to the SAN, per mille
	flow   time.Duration // from the machine to the core, at most
	length time.Duration
}

// world is one history.
type world struct {
	rng     *rand.Rand
	now     lockstep.Instant
	order   uint64
	queue   events
	hosts   []*host
	cut     [lockstep.Links][4][4]bool // from, to, by numbers of hosts
	wires   []*wire
	store   *store
	judge   *judge
	quorum  *quorum
	clients []*client
	profile profile
	calm    bool
	mutant  mutant
	trace   []string
	tracing bool
	procs   int
	counts  counts

	attached *proc // to whom the switch sends the machine's frames
	cutOff   bool  // both links of a pair, about when its guest has ended
}

func (w *world) say(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf("%11.6f ", float64(w.now)/1e9)+fmt.Sprintf(format, args...))
	}
}

// after has something happen after a time.
func (w *world) after(d time.Duration, to *proc, do func()) {
	w.order++
	heap.Push(&w.queue, &event{w.now + lockstep.Instant(d), w.order, to, do})
}

func (w *world) delay(least, most time.Duration) time.Duration {
	return least + time.Duration(w.rng.Int64N(int64(most-least)+1))
}

// chance is true so many times of a thousand, and never when it is calm.
func (w *world) chance(permille int) bool { return w.rng.IntN(1000) < permille && !w.calm }

// run lets things happen until a time, or until a judge has seen enough.
func (w *world) run(until lockstep.Instant) {
	for len(w.queue) > 0 && w.queue[0].at <= until && w.judge.wrong == "" {
		e := heap.Pop(&w.queue).(*event)
		w.now = max(w.now, e.at)
		switch {
		case e.to == nil:
			e.do()
		case e.to.dead:
		case e.to.frozen || e.to.host.frozen:
			e.to.deferred = append(e.to.deferred, e.do)
		default:
			e.do()
		}
	}
	w.now = max(w.now, until)
}

// wake gives a process what came while it was frozen.
func (w *world) wake(p *proc) {
	list := p.deferred
	p.deferred = nil
	for _, f := range list {
		w.after(0, p, f)
	}
}

func (w *world) nonce() (n [16]byte) {
	for i := range n {
		n[i] = byte(w.rng.Uint32())
	}
	return n
}
