package mirror

import (
	"container/heap"
	"slices"
	"testing"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
)

// yield is an owner with a drive that does one thing at a time, clients that ask
// again as soon as they have their answers, and a peer that is to be resynced and
// acknowledges at once.
type yield struct {
	t       *testing.T
	m       *Mirror
	now     group.Instant
	queue   yieldQueue
	order   int
	drive   group.Instant // it is busy until then
	began   map[uint64]group.Instant
	took    []time.Duration
	ids     uint64
	clients int
	copied  int
	joined  group.Instant
}

type yieldEvent struct {
	at    group.Instant
	order int
	in    Input
}

type yieldQueue []yieldEvent

func (q yieldQueue) Len() int { return len(q) }
func (q yieldQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q yieldQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *yieldQueue) Push(x any)   { *q = append(*q, x.(yieldEvent)) }
func (q *yieldQueue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

// What the drive needs for a client's block, and for a copy.
const (
	yieldBlock  = 100 * time.Microsecond
	yieldCopy   = 400 * time.Microsecond
	yieldBlocks = 1 << 18
)

var yieldPeer = quorum.Incarnation{Member: "b", Boot: 1}

func newYield(t *testing.T, slowdown, clients int) *yield {
	y := &yield{t: t, began: map[uint64]group.Instant{}, clients: clients}
	me := quorum.Incarnation{Member: "a", Boot: 1}
	y.m = New(Config{
		Agent: group.Config{
			Me: me, Group: "g", Lease: time.Second, Renew: 100 * time.Millisecond, Silence: 400 * time.Millisecond, Drift: 1000,
			Revive: time.Second, Retry: 100 * time.Millisecond,
		},
		Copies: 16, CopyBlocks: 16, Settle: time.Second, Pause: time.Second, Slowdown: slowdown,
	}, 0)
	s := quorum.NewState()
	for i, c := range []quorum.Command{{Kind: quorum.KindBoot, By: me}, {Kind: quorum.KindCreate, Group: "g", By: me}} {
		if err := s.Apply(uint64(i+1), c); err != nil {
			t.Fatal(err)
		}
	}
	y.later(0, group.Decided{State: s})
	y.later(0, group.Tick{})
	for i := range clients {
		y.later(time.Duration(i)*time.Microsecond, Begin{})
	}
	return y
}

func (y *yield) later(d time.Duration, in Input) {
	y.order++
	heap.Push(&y.queue, yieldEvent{y.now.Add(d), y.order, in})
}

// busy has the drive do something, when it has done the rest.
func (y *yield) busy(d time.Duration, in Input) {
	y.drive = max(y.drive, y.now).Add(d)
	y.later(time.Duration(y.drive-y.now), in)
}

func (y *yield) run(d time.Duration) {
	for end := y.now.Add(d); len(y.queue) > 0 && y.queue[0].at <= end && y.joined == 0; {
		e := heap.Pop(&y.queue).(yieldEvent)
		y.now = e.at
		switch in := e.in.(type) {
		case group.Tick:
			y.later(5*time.Millisecond, in)
			if y.m.link != nil { // it lives
				y.step(group.Heard{From: yieldPeer})
			}
		case Begin:
			y.ids++
			in = Begin{y.ids, Op{Kind: []Kind{Read, Write}[y.ids%2], Block: yieldBlocks + y.ids%1024, Count: 1}}
			y.began[in.ID] = y.now
			e.in = in
		}
		y.step(e.in)
	}
}

func (y *yield) step(in Input) {
	for _, e := range y.m.Step(y.now, in) {
		switch e := e.(type) {
		case Apply:
			y.busy(yieldBlock, Applied{ID: e.ID})
		case Load:
			if e.Op.Kind == copied {
				y.copied++
				y.busy(yieldCopy, Applied{ID: e.ID})
			} else {
				y.busy(yieldBlock, Applied{ID: e.ID})
			}
		case Sync:
			y.busy(yieldBlock, Applied{ID: e.ID})
		case List:
			y.later(time.Millisecond, Changes{Number: e.Number, Ranges: []Range{{Count: yieldBlocks}}})
		case Done:
			y.took = append(y.took, time.Duration(y.now-y.began[e.ID]))
			delete(y.began, e.ID)
			y.later(time.Millisecond, Begin{})
		case Transmit:
			y.peer(e.Packet)
		case Resynced:
			y.joined = y.now
		}
	}
}

func (y *yield) peer(p Packet) {
	answer := Packet{Epoch: p.Epoch, Stream: p.Stream, Sequence: p.Sequence}
	switch p.Kind {
	case Hello:
		answer.Kind = Differ
	case Forward:
		answer.Kind = Ack
	default:
		return
	}
	y.later(50*time.Microsecond, Received{From: yieldPeer, Packet: answer})
}

// felt returns the mean of what clients' operations took, and how long nine of
// ten took at most.
func (y *yield) felt(d time.Duration) (mean, most time.Duration) {
	y.took = nil
	y.run(d)
	for _, t := range y.took {
		mean += t
	}
	slices.Sort(y.took)
	return mean / time.Duration(max(1, len(y.took))), y.took[len(y.took)*9/10]
}

// TestYield holds that clients' operations take less than twice as long during a
// resync, and that the resync goes on all the same.
func TestYield(t *testing.T) {
	for _, clients := range []int{1, 4, 8} {
		alone := newYield(t, 200, clients)
		without, _ := alone.felt(2 * time.Second)
		free := newYield(t, 0, clients)
		free.later(0, Linked{yieldPeer})
		ungoverned, _ := free.felt(2 * time.Second)

		y := newYield(t, 200, clients)
		y.later(100*time.Millisecond, Linked{yieldPeer}) // when the clients are out of step
		y.run(time.Second)                               // it finds out
		before := y.copied
		with, most := y.felt(6 * time.Second)
		t.Logf("%d clients: %v alone, %v during a resync that is not governed, %v (nine of ten within %v) during one that is; %d copies a second, of %d",
			clients, without, ungoverned, with, most, (y.copied-before)/6, free.copied/2)
		if with >= 2*without {
			t.Errorf("%d clients: %v during a resync, %v without", clients, with, without)
		}
		if ungoverned < 2*without {
			t.Errorf("%d clients: %v during a resync that is not governed, %v without: this shows nothing", clients, ungoverned, without)
		}
		if y.copied-before < 6 {
			t.Errorf("%d clients: the resync stands still", clients)
		}
	}
}

// TestYieldToNobody holds that a resync of an idle group is as fast as one that is
// not governed.
func TestYieldToNobody(t *testing.T) {
	var ended [2]group.Instant
	for i, slowdown := range []int{0, 200} {
		y := newYield(t, slowdown, 0)
		y.later(0, Linked{yieldPeer})
		y.run(10 * time.Minute)
		if ended[i] = y.joined; y.joined == 0 {
			t.Fatalf("slowdown %d: the resync has not ended", slowdown)
		}
	}
	t.Logf("ended after %v, and governed after %v", time.Duration(ended[0]), time.Duration(ended[1]))
	if ended[1] > ended[0].Add(time.Second) {
		t.Errorf("a resync of an idle group ended after %v, one that is not governed after %v", time.Duration(ended[1]), time.Duration(ended[0]))
	}
}
