package nexus

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"steadfast/fault"
	"steadfast/scsi"
)

// world is a dumb twin of what targets know: which commands may still have an
// effect, and where.
type world struct {
	t     *testing.T
	k     Core
	now   Instant
	alive map[*Command]*Nexus // sent, and not known to be over
	order map[*Command]int    // when it was submitted
	once  map[*Command]bool   // Once commands that were sent and may have been performed
	ended map[*Command]bool
	log   []string
}

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	for _, l := range w.log[max(0, len(w.log)-40):] {
		w.t.Log(l)
	}
	w.t.Fatalf(format, args...)
}

// pump sends what may be sent, and judges it.
func (w *world) pump() {
	for c := w.k.Next(); c != nil; c = w.k.Next() {
		w.note("send %d on %d", w.order[c], c.Nexus.Tag)
		n := c.Nexus
		if n.Phase == Down || n.Phase == Draining || n.Phase == Probing && !c.Probe || n.Barred && c.Pin == nil {
			w.fail("a command goes to nexus %d in phase %d", n.Tag, n.Phase)
		}
		if c.Pin != nil && c.Pin != n {
			w.fail("a pinned command goes elsewhere")
		}
		if w.once[c] {
			w.fail("a Once is sent twice")
		}
		if c.Kind != Read {
			if at := w.alive[c]; at != nil {
				w.fail("a write that may still land on %d goes to %d", at.Tag, n.Tag)
			}
			for o := range w.alive {
				if o != c && o.Kind != Read && c.Len > 0 && o.Len > 0 && c.overlaps(o) {
					w.fail("%d is sent while %d, which it overlaps, may land", w.order[c], w.order[o])
				}
			}
			for o, at := range w.order {
				if !w.ended[o] && o != c && o.Kind != Read && c.Len > 0 && o.Len > 0 && at < w.order[c] && c.overlaps(o) {
					w.fail("%d overtakes %d", w.order[c], at)
				}
			}
			w.once[c] = c.Kind == Once
		}
		w.alive[c] = n
	}
}

func (w *world) over(c *Command) {
	w.note("end %d", w.order[c])
	delete(w.alive, c)
	delete(w.once, c)
	w.ended[c] = true
}

func (w *world) unknown(list []*Command, probes bool) {
	for _, c := range list {
		if c.Kind != Once && !(probes && c.Probe) {
			w.fail("a command that may be repeated ends")
		}
		w.over(c)
	}
}

// TestModel drives the core at random, on three nexuses, and then lets
// everything come to its end.
func TestModel(t *testing.T) {
	seeds := 300
	if testing.Short() {
		seeds = 60
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(uint64(seed), 3))
		w := &world{
			t: t, alive: map[*Command]*Nexus{}, order: map[*Command]int{}, once: map[*Command]bool{}, ended: map[*Command]bool{},
		}
		nexuses := []*Nexus{w.k.Nexus(1), w.k.Nexus(2), w.k.Nexus(3)}
		for i := range 400 {
			w.now += Instant(time.Millisecond)
			w.step(rng, nexuses, i)
			w.pump()
		}
		w.finish(nexuses)
	}
}

func (w *world) login(n *Nexus, rng *rand.Rand) {
	w.note("log in to %d", n.Tag)
	for c, at := range w.alive {
		if at == n {
			delete(w.alive, c)
		}
	}
	w.unknown(w.k.LoggedIn(n, 1, 1+rng.IntN(5), nil), false)
	n.Window(1, 1+uint32(rng.IntN(8)))
}

func (w *world) step(rng *rand.Rand, nexuses []*Nexus, i int) {
	n := nexuses[rng.IntN(len(nexuses))]
	switch rng.IntN(12) {
	case 0, 1, 2, 3:
		c := &Command{Kind: Kind(rng.IntN(3))}
		switch rng.IntN(8) {
		case 0:
			c.Pin = n
			c.Probe = n.Phase != Down && rng.IntN(2) == 0
			if c.Probe {
				c.Kind = Read
			}
		default:
			c.Off, c.Len = int64(rng.IntN(20)), int64(1+rng.IntN(6))
		}
		w.order[c] = i
		w.note("submit %d: kind %d, %d+%d", i, c.Kind, c.Off, c.Len)
		w.k.Submit(c)
	case 4:
		if n.Phase == Down {
			w.login(n, rng)
		} else {
			n.Phase, n.Access = Up, scsi.AccessState(rng.IntN(3))
			n.Barred = rng.IntN(6) == 0
		}
	case 5:
		if n.Phase == Down {
			return
		}
		w.note("lose %d", n.Tag)
		for c := range w.alive {
			if w.alive[c] == n && c.Kind == Read {
				delete(w.alive, c)
			}
		}
		w.unknown(w.k.Lost(n, w.now, nil), true)
	case 6:
		if rng.IntN(4) == 0 {
			w.note("fence")
			for c, at := range w.alive {
				if at.Phase == Down {
					delete(w.alive, c)
				}
			}
			w.unknown(w.k.Fenced(nil, nil), false)
		}
	case 7:
		w.k.Wake(w.now)
	default:
		c := n.Oldest()
		if c == nil || n.Phase == Down {
			return
		}
		n.Window(c.CmdSN+1, c.CmdSN+1+uint32(rng.IntN(8)))
		switch rng.IntN(4) {
		case 0:
			if c.Kind == Once {
				delete(w.once, c) // BUSY: not performed
			}
			delete(w.alive, c)
			w.note("again %d", w.order[c])
			w.k.Again(c, Instant(rng.IntN(2))*(w.now+Instant(rng.IntN(20))*Instant(time.Millisecond)))
		default:
			w.over(c)
			w.k.End(c)
		}
	}
}

// finish mends everything: all commands must end.
func (w *world) finish(nexuses []*Nexus) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 10_000 {
		w.now += Instant(time.Second)
		w.k.Wake(w.now)
		for _, n := range nexuses {
			if n.Phase == Down {
				w.login(n, rng)
			}
			n.Phase, n.Access, n.Barred = Up, scsi.ActiveOptimized, false
			n.Window(n.cmdSN, n.cmdSN+8)
		}
		w.pump()
		for _, n := range nexuses {
			if c := n.Oldest(); c != nil {
				w.over(c)
				w.k.End(c)
			}
		}
		if w.k.Pending() == 0 {
			if len(w.ended) != len(w.order) {
				w.fail("%d of %d commands ended", len(w.ended), len(w.order))
			}
			return
		}
	}
	w.fail("%d commands never end", w.k.Pending())
}

// TestAbandon ends everything, whatever waits for what.
func TestAbandon(t *testing.T) {
	var k Core
	n := k.Nexus(1)
	k.LoggedIn(n, 1, 8, nil)
	n.Phase = Up
	n.Window(1, 8)
	for i := range 9 {
		k.Submit(&Command{Kind: Write, Off: int64(i), Len: 2})
	}
	k.Submit(&Command{Kind: Once, Off: 100, Len: 1})
	for k.Next() != nil {
	}
	k.Lost(n, 1, nil)
	if n.InDoubt() == 0 {
		t.Error("nothing is in doubt")
	}
	if got := len(k.Abandon(nil)); got != 10 || k.Pending() != 0 {
		t.Errorf("%d ended, %d pending", got, k.Pending())
	}
}

// TestJudge has one of each answer.
func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		status scsi.Status
		sense  fault.Sense
		want   Verdict
	}{
		{scsi.Good, fault.Sense{}, Verdict{}},
		{scsi.BusyStatus, fault.Sense{}, Verdict{Action: Later}},
		{scsi.TaskSetFull, fault.Sense{}, Verdict{Action: Later}},
		{scsi.ReservationConflict, fault.Sense{}, Verdict{Action: Failed, Kind: fault.Fenced}},
		{scsi.TaskAborted, fault.Sense{}, Verdict{Action: Ended}},
		{scsi.ACAActive, fault.Sense{}, Verdict{Action: Later}},
		{scsi.CheckCondition, fault.Sense{Key: 6, ASC: 0x29, ASCQ: 7}, Verdict{Action: AtOnce, News: Lost}},
		{scsi.CheckCondition, fault.Sense{Key: 6, ASC: 0x2a, ASCQ: 9}, Verdict{Action: AtOnce, News: Capacity}},
		{scsi.CheckCondition, fault.Sense{Key: 6, ASC: 0x2a, ASCQ: 6}, Verdict{Action: AtOnce, News: Paths}},
		{scsi.CheckCondition, fault.Sense{Key: 6, ASC: 0x2a, ASCQ: 3}, Verdict{Action: AtOnce}},
		{scsi.CheckCondition, fault.Sense{Key: 6, ASC: 0x2a, ASCQ: 4}, Verdict{Action: AtOnce}},
		{scsi.CheckCondition, fault.Sense{Key: 6, ASC: 0x2a, ASCQ: 5}, Verdict{Action: AtOnce, News: Preempted}},
		{scsi.CheckCondition, fault.Sense{Key: 2, ASC: 4, ASCQ: 1}, Verdict{Action: Later}},
		{scsi.CheckCondition, fault.Sense{Key: 2, ASC: 4, ASCQ: 0xa}, Verdict{Action: Elsewhere, Access: scsi.Transitioning, News: Paths}},
		{scsi.CheckCondition, fault.Sense{Key: 2, ASC: 4, ASCQ: 0xb}, Verdict{Action: Elsewhere, Access: scsi.Standby, News: Paths}},
		{scsi.CheckCondition, fault.Sense{Key: 2, ASC: 4, ASCQ: 0xc}, Verdict{Action: Elsewhere, Access: scsi.Unavailable, News: Paths}},
		{scsi.CheckCondition, fault.Sense{Key: 2, ASC: 0x3a}, Verdict{Action: Failed, Kind: fault.Failed}},
		{scsi.CheckCondition, fault.Sense{Key: 3, ASC: 0x11}, Verdict{Action: Failed, Kind: fault.Corrupt}},
		{scsi.CheckCondition, fault.Sense{Key: 4, ASC: 0x44}, Verdict{Action: Failed, Kind: fault.Failed}},
		{scsi.CheckCondition, fault.Sense{Key: 5, ASC: 0x24}, Verdict{Action: Failed, Kind: fault.Invalid}},
		{scsi.CheckCondition, fault.Sense{Key: 5, ASC: 0x25}, Verdict{Action: Missing}},
		{scsi.CheckCondition, fault.Sense{Key: 7, ASC: 0x27}, Verdict{Action: Failed, Kind: fault.ReadOnly}},
		{scsi.CheckCondition, fault.Sense{Key: 7, ASC: 0x27, ASCQ: 7}, Verdict{Action: Failed, Kind: fault.Full}},
		{scsi.CheckCondition, fault.Sense{Key: 0xb}, Verdict{Action: Ended}},
		{scsi.CheckCondition, fault.Sense{Key: 0xe, ASC: 0x1d}, Verdict{Action: Differs}},
		{scsi.CheckCondition, fault.Sense{Key: 1}, Verdict{}},
	} {
		if got := Judge(tc.status, tc.sense); got != tc.want {
			t.Errorf("%x %+v: %+v, want %+v", tc.status, tc.sense, got, tc.want)
		}
	}
	for i := range 40 {
		if p := Pause(i); p <= 0 || p > PauseMax {
			t.Errorf("pause %d is %v", i, p)
		}
	}
}

// TestChoice prefers the best path, spreads over equals, and waits for a full
// one rather than to take a worse.
func TestChoice(t *testing.T) {
	var k Core
	a, b, c := k.Nexus(1), k.Nexus(2), k.Nexus(3)
	for _, n := range []*Nexus{a, b, c} {
		k.LoggedIn(n, 1, 2, nil)
		n.Window(1, 10)
		n.Phase = Up
	}
	c.Access = scsi.ActiveNonOptimized
	for range 6 {
		k.Submit(&Command{Kind: Read})
	}
	for k.Next() != nil {
	}
	if a.Outstanding() != 2 || b.Outstanding() != 2 || c.Outstanding() != 0 {
		t.Errorf("%d, %d, %d", a.Outstanding(), b.Outstanding(), c.Outstanding())
	}
	a.Access, b.Access = scsi.Standby, scsi.Unavailable
	for k.Next() != nil {
	}
	if c.Outstanding() != 2 {
		t.Errorf("%d on the path that is left", c.Outstanding())
	}
}

// TestFencedSpares: what is in doubt on the nexus that fenced stays so.
func TestFencedSpares(t *testing.T) {
	var k Core
	by, other := k.Nexus(1), k.Nexus(2)
	for _, n := range []*Nexus{by, other} {
		k.LoggedIn(n, 1, 4, nil)
		n.Phase = Up
		n.Window(1, 9)
		k.Submit(&Command{Kind: Once, Pin: n})
		if k.Next() == nil {
			t.Fatal("nothing was sent")
		}
	}
	k.Lost(other, 1, nil)
	k.Lost(by, 2, nil)
	if ended := k.Fenced(by, nil); len(ended) != 1 || by.InDoubt() != 1 || other.InDoubt() != 0 {
		t.Errorf("%d ended, %d and %d in doubt", len(ended), by.InDoubt(), other.InDoubt())
	}
}
