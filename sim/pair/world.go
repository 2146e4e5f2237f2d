package pair

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"time"

	"steadfast/cluster/quorum"
)

// instant is virtual time: nanoseconds since the world began.
type instant int64

func (t instant) add(d time.Duration) instant { return t + instant(d) }

// event is something that happens at a time.
type event struct {
	at    instant
	order uint64 // of two at the same time, the one planned first
	do    func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].order < e[j].order
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// world is one history. All that is random is drawn from rand, in the order in which it
// happens: whoever ranges over a map on the way makes a seed mean another history each
// time (TestSame).
type world struct {
	rand    *rand.Rand
	now     instant
	queue   events
	planned uint64
	cfg     profile

	nodes      []*node // two that store, and the witness
	clients    []*client
	hosts      []*host
	net        network
	conn       *connection
	conns      int
	late       float64          // share of proposals that come late, by a fault
	ops        []record         // what clients asked for and got
	latest     map[uint64]value // what some client last saw of a block
	deeds      []*deed          // what hosts asked for and got
	seen       map[int]value    // what some host last saw of a cell
	snapped    []*snapped
	unreadable map[value]bool // snapshots; see spoiled
	trace      []string
	count      counts
	failure    string
	calm       bool // the faults are over
	running    *fiber
	owners     map[quorum.Epoch]int
	// revivals of a group whose writes may be in memory only: what no flush
	// covered may be gone.
	revivals []instant
}

// at plans something.
func (w *world) at(t instant, do func()) {
	w.planned++
	heap.Push(&w.queue, event{max(t, w.now), w.planned, do})
}

func (w *world) after(d time.Duration, do func()) { w.at(w.now.add(d), do) }

// runUntil lets time pass.
func (w *world) runUntil(t instant) {
	for w.failure == "" && len(w.queue) > 0 && w.queue[0].at <= t {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
	w.now = max(w.now, t)
}

// between draws a duration.
func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rand.Int64N(int64(hi-lo)+1))
}

// chance draws whether something with probability p happens.
func (w *world) chance(p float64) bool { return w.rand.Float64() < p }

func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%10.6f  ", time.Duration(w.now).Seconds())+fmt.Sprintf(format, args...))
}

// fail ends the history.
func (w *world) fail(format string, args ...any) {
	if w.failure == "" {
		w.failure = fmt.Sprintf(format, args...)
		w.note("FAILED: %s", w.failure)
	}
}

// outside is where the clients are, in the network; members are at their index.
const outside = 3

// network is what carries messages: each direction can be cut by itself.
type network struct {
	cut  [4][4]bool
	drop float64 // of datagrams
	slow time.Duration
}

// delay draws how long a message takes.
func (w *world) delay() time.Duration {
	d := w.between(20*time.Microsecond, 200*time.Microsecond)
	if w.net.slow > 0 && w.chance(0.2) {
		d += w.between(0, w.net.slow)
	}
	return d
}

// datagram delivers something unless it is lost; it may come twice and in any
// order.
func (w *world) datagram(from, to int, do func()) {
	copies := 1
	if w.chance(w.net.drop) {
		copies = w.rand.IntN(3) // none, one, or two
	}
	for range copies {
		w.after(w.delay(), func() {
			if !w.net.cut[from][to] {
				do()
			}
		})
	}
}
