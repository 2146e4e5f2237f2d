package mirror

import (
	"slices"
	"testing"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
)

// looking is an entry whose store is damaged, and what its owner answers.
type looking struct {
	t       *testing.T
	m       *Mirror
	now     group.Instant
	bad     map[uint64]bool // blocks that it cannot read
	owners  map[uint64]bool // and the owner cannot
	loads   []Load          // under way
	asks    []Range         // not answered
	stream  uint64
	sent    uint64 // in the stream
	most    int    // loads and asks at once
	looks   int
	healed  map[uint64]bool // told
	useless []uint64        // blocks that were asked for and can be read
}

var looksOwner, looksEntry = quorum.Incarnation{Member: "a", Boot: 1}, quorum.Incarnation{Member: "b", Boot: 1}

func newLooking(t *testing.T) *looking {
	l := &looking{t: t, bad: map[uint64]bool{}, owners: map[uint64]bool{}, healed: map[uint64]bool{}}
	l.m = New(Config{
		Agent: group.Config{
			Me: looksEntry, Group: "g", Lease: time.Second, Renew: 100 * time.Millisecond, Silence: 400 * time.Millisecond, Drift: 1000,
			Revive: time.Second, Retry: 100 * time.Millisecond,
		},
		Copies: 16, CopyBlocks: 16, Settle: time.Second, Pause: time.Second,
	}, 0)
	s := quorum.NewState()
	for i, c := range []quorum.Command{
		{Kind: quorum.KindBoot, By: looksOwner},
		{Kind: quorum.KindBoot, By: looksEntry},
		{Kind: quorum.KindCreate, Group: "g", By: looksOwner},
		{Kind: quorum.KindAdmit, Group: "g", By: looksOwner, Who: looksEntry, Revision: 1},
	} {
		if err := s.Apply(uint64(i+1), c); err != nil {
			t.Fatal(err)
		}
	}
	l.step(group.Decided{State: s})
	if l.m.Standing().Role != group.Entry {
		t.Fatalf("it is %+v", l.m.Standing())
	}
	l.connect()
	return l
}

// connect begins a stream of the owner's.
func (l *looking) connect() {
	l.step(Unlinked{})
	l.step(Linked{looksOwner})
	l.stream++
	l.sent, l.asks = 0, nil
	l.receive(Packet{Kind: Hello})
}

func (l *looking) receive(p Packet) {
	p.Epoch, p.Stream = 1, l.stream
	l.step(Received{From: looksOwner, Packet: p})
}

func (l *looking) step(in Input) {
	for _, e := range l.m.Step(l.now, in) {
		switch e := e.(type) {
		case Load:
			l.loads = append(l.loads, e)
			l.looks++
		case Apply:
			for b := e.Op.Block; b < e.Op.Block+e.Op.Count; b++ {
				delete(l.bad, b)
			}
			defer l.step(Applied{ID: e.ID})
		case Transmit:
			if e.Kind == Mend {
				l.asks = append(l.asks, e.Ranges...)
			}
		case Healed:
			for b := e.What.Block; b < e.What.Block+e.What.Count; b++ {
				if l.bad[b] != !e.OK {
					l.t.Errorf("block %d: healed %t, and is damaged: %t", b, e.OK, l.bad[b])
				}
				l.healed[b] = e.OK
			}
		}
	}
	l.most = max(l.most, len(l.loads)+len(l.asks))
}

// load answers the oldest read.
func (l *looking) load() {
	e := l.loads[0]
	l.loads = l.loads[1:]
	a := Applied{ID: e.ID}
	for b := e.Op.Block; b < e.Op.Block+e.Op.Count; b++ {
		if !l.bad[b] {
			continue
		}
		if a.Bad.Count == 0 {
			a.Bad.Block = b
		}
		a.Bad.Count = b + 1 - a.Bad.Block
	}
	l.step(a)
}

// answer has the owner deal with what it was asked first.
func (l *looking) answer() {
	r := l.asks[0]
	l.asks = l.asks[1:]
	damaged := func(b uint64) bool { return l.owners[b] }
	for at := r.Block; at < r.Block+r.Count; at++ {
		if !l.bad[at] {
			l.useless = append(l.useless, at)
		}
		if damaged(at) {
			l.receive(Packet{Kind: Mend, Refused: true, Ranges: []Range{{0, at, 1}}})
			continue
		}
		l.sent++
		l.receive(Packet{Kind: Forward, Sequence: l.sent, Op: Op{Kind: mended, Block: at, Count: 1, Payload: "what the owner has"}})
	}
}

// run goes on until there is nothing to do.
func (l *looking) run() {
	for i := 0; len(l.loads)+len(l.asks) > 0; i++ {
		if len(l.loads) > 0 && (i%2 == 0 || len(l.asks) == 0) {
			l.load()
		} else {
			l.answer()
		}
	}
}

// TestLook tells an entry of many blocks: some are damaged, of those the owner
// cannot read some, and the rest is as it should be. All have their turn, a bounded
// number at a time, and the owner is asked for nothing that can be read.
func TestLook(t *testing.T) {
	const blocks = 1000
	l := newLooking(t)
	for b := range uint64(blocks) {
		at := 3 * b
		l.bad[at], l.owners[at] = b%2 == 0, b < 300
		if !l.bad[at] {
			delete(l.bad, at)
		}
		l.step(Heal{Range{0, at, 1}})
	}
	hopeless := 150
	l.run()
	if len(l.bad) != hopeless || len(l.healed) != blocks/2 {
		t.Errorf("%d blocks are damaged still, of %d that cannot be healed; told of %d", len(l.bad), hopeless, len(l.healed))
	}
	if l.most > looksMax {
		t.Errorf("%d at a time", l.most)
	}
	if len(l.useless) > 0 {
		t.Errorf("asked for %d blocks that can be read", len(l.useless))
	}
	if st := l.m.Status(); st.Unhealed != uint64(hopeless) || st.Operations != 0 {
		t.Errorf("%+v", st)
	}
}

// TestLookAtRuns tells an entry of a run of blocks, some of which are damaged.
func TestLookAtRuns(t *testing.T) {
	l := newLooking(t)
	for _, b := range []uint64{7, 9, 40} {
		l.bad[b] = true
	}
	l.owners[9] = true
	l.step(Heal{Range{0, 0, 64}})
	l.run()
	if len(l.bad) != 1 || !l.bad[9] || l.healed[9] || !l.healed[7] || !l.healed[40] {
		t.Errorf("damaged still: %v; told: %v", l.bad, l.healed)
	}
	if l.looks != 4 {
		t.Errorf("%d reads of 64 blocks, 16 at a time", l.looks)
	}
}

// TestLookAnew ends the stream while blocks are asked for: they are asked for again
// on the next, once.
func TestLookAnew(t *testing.T) {
	l := newLooking(t)
	for b := uint64(0); b < 400; b += 2 {
		l.bad[b] = true
		l.step(Heal{Range{0, b, 1}})
	}
	for len(l.loads) > 0 {
		l.load()
	}
	if len(l.asks) != looksMax {
		t.Fatalf("%d are asked for", len(l.asks))
	}
	l.answer()
	l.connect()
	l.run()
	if len(l.bad) != 0 {
		t.Errorf("damaged still: %v", l.bad)
	}
}

// TestLookWithoutAnswer has an owner that never answers for some blocks: the others
// have their turn when it had its time.
func TestLookWithoutAnswer(t *testing.T) {
	l := newLooking(t)
	for b := uint64(0); b < 4*looksMax; b += 2 {
		l.bad[b] = true
		l.step(Heal{Range{0, b, 1}})
	}
	for len(l.loads) > 0 {
		l.load()
	}
	l.asks = nil // and are lost
	l.now = l.now.Add(answersMax*time.Second - 1)
	if l.step(group.Tick{}); len(l.loads) > 0 {
		t.Error("the owner has time still")
	}
	l.now++
	l.step(group.Tick{})
	l.run()
	if len(l.bad) != looksMax {
		t.Errorf("%d are damaged still, and %d were never answered", len(l.bad), looksMax)
	}
}

// TestLookEnds makes the entry the owner, and an owner something else, while blocks
// are looked at: no look is left of the former role, and all blocks are looked at in
// the next.
func TestLookEnds(t *testing.T) {
	l := newLooking(t)
	for b := uint64(0); b < 6; b += 2 {
		l.step(Heal{Range{0, b, 1}})
	}
	l.load()
	old := slices.Clone(l.loads)
	l.loads = nil
	s := quorum.NewState()
	for i, c := range []quorum.Command{
		{Kind: quorum.KindBoot, By: looksOwner},
		{Kind: quorum.KindBoot, By: looksEntry},
		{Kind: quorum.KindCreate, Group: "g", By: looksOwner},
		{Kind: quorum.KindAdmit, Group: "g", By: looksOwner, Who: looksEntry, Revision: 1},
		{Kind: quorum.KindSucceed, Group: "g", By: looksEntry, Revision: 2},
	} {
		if err := s.Apply(uint64(i+1), c); err != nil {
			t.Fatal(err)
		}
	}
	l.step(group.Decided{State: s})
	for range 100 {
		l.now = l.now.Add(100 * time.Millisecond)
		l.step(group.Tick{})
	}
	if at := l.m.Standing(); at.Role != group.Owner || !at.Serving {
		t.Fatalf("it is %+v", at)
	}
	var again []uint64
	for _, e := range l.loads {
		again = append(again, e.Op.Block)
	}
	if !slices.Equal(again, []uint64{2, 4}) {
		t.Errorf("blocks %v are looked at by the owner", again)
	}
	for _, e := range append(old, l.loads...) {
		l.step(Applied{ID: e.ID})
	}
	if n := len(l.m.looks.under) + len(l.m.looks.waiting); n > 0 {
		t.Errorf("%d looks are left: %+v", n, l.m.looks)
	}
}
