package lockstep

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steadfast/compute/device"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	ownerP = vmlock.Owner{Host: 1, Boot: 4}
	ownerS = vmlock.Owner{Host: 2, Boot: 9}
)

// lockBlock is a block of these tests' pair at a turn.
func lockBlock(turn uint32, owner, partner vmlock.Owner) [vmlock.BlockSize]byte {
	return vmlock.Block{VM: vmlock.ID{1}, Generation: 3, Owner: owner, Attempt: 1, Nonce: [16]byte{byte(turn)}, Held: true, Turn: turn, Partner: partner}.Encode()
}

// all returns the effects of one kind.
func all[E any](list []Effect) (found []E) {
	for _, e := range list {
		if e, ok := e.(E); ok {
			found = append(found, e)
		}
	}
	return found
}

// records returns the records that are sent.
func records(list []Effect) (found []Record) {
	for _, s := range all[Send](list) {
		if r, ok := s.Message.(Record); ok {
			found = append(found, r)
		}
	}
	return found
}

// numbers returns the outputs that leave.
func numbers(list []Effect) (found []uint64) {
	for _, r := range all[Release](list) {
		for _, o := range r.Outputs {
			found = append(found, o.Number)
		}
	}
	return found
}

// bench is a side with a clock.
type bench struct {
	t   *testing.T
	now Instant
	p   *Primary
	s   *Secondary
}

func (b *bench) step(in Input) []Effect {
	if b.p != nil {
		return b.p.Step(b.now, in)
	}
	return b.s.Step(b.now, in)
}

// pass lets time pass, with a Tick every TickEvery, and hears nothing.
func (b *bench) pass(d time.Duration, heard ...Message) (out []Effect) {
	for end := b.now + Instant(d); b.now < end; {
		b.now = min(b.now+Instant(TickEvery), end)
		if len(heard) > 0 {
			out = append(out, b.step(Received{Management, heard})...)
		}
		out = append(out, b.step(Tick{})...)
	}
	return out
}

// hear has messages come on the link of the log.
func (b *bench) hear(list ...Message) []Effect { return b.step(Received{Logging, list}) }

// output is one of a class at a count.
func output(at uint64, c Class) Out { return Out{Class: c, Output: device.Output{At: at}} }

// alonePrimary has run to count 1000.
func alonePrimary(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, now: 1_000_000}
	b.p = NewPrimary(PrimaryConfig{Limits: DefaultLimits(), Next: 1}, b.now)
	b.step(Ran{Count: 1000})
	return b
}

// loadingPrimary has copied its machine.
func loadingPrimary(t *testing.T) *bench {
	t.Helper()
	b := alonePrimary(t)
	for _, step := range []struct {
		in   Input
		want Effect
	}{
		{TurnOn{ownerS}, Copy{1}},
		{Copied{Bytes: 512 << 20, Left: 1 << 10}, Pause{}}, // without a digest: Start has one
		{Paused{}, SendState{Output: b.p.next}},
		{StateSent{}, Resume{}},
	} {
		b.now += Instant(time.Millisecond)
		if out := b.step(step.in); !slices.Contains(out, step.want) {
			t.Fatalf("%T: %v, and no %T", step.in, out, step.want)
		}
	}
	return b
}

// pairedPrimary has a secondary that has said to have the block: records 1 and 2.
func pairedPrimary(t *testing.T) *bench {
	t.Helper()
	b := loadingPrimary(t)
	if out := b.hear(Ready{}); !slices.Equal(all[ChangeLock](out), []ChangeLock{{ownerS}}) {
		t.Fatalf("ready: %v", out)
	}
	out := b.step(LockChanged{lockBlock(1, ownerP, ownerS)})
	r := records(out)
	if len(r) != 2 || r[0] != (Horizon{1000, b.p.next - 1}) || r[1] != (Pairing{lockBlock(1, ownerP, ownerS)}) {
		t.Fatalf("the pairing is told by %v", r)
	}
	if b.p.Protected() {
		t.Fatal("it is protected, and nobody has said so")
	}
	out = b.hear(Ack{Got: 2, Done: 1, Count: 1000})
	if e := all[Event](out); len(e) != 1 || e[0].Kind != Protected || !b.p.Protected() {
		t.Fatalf("after the acknowledgement: %v", out)
	}
	return b
}

// TestAlone: without a secondary nothing waits, and nothing is recorded.
func TestAlone(t *testing.T) {
	b := alonePrimary(t)
	out := b.step(Ran{1010, []Out{output(1001, Stream), output(1002, Ask), output(1003, Change)}})
	if n := numbers(out); !slices.Equal(n, []uint64{1, 2, 3}) || len(all[Send](out)) > 0 {
		t.Errorf("%v", out)
	}
	if out := b.pass(time.Minute); len(out) > 0 {
		t.Errorf("alone for a minute: %v", out)
	}
}

// TestOutputRule: an output leaves when the horizon past it is acknowledged, and not
// before; several share one; reads do not wait.
func TestOutputRule(t *testing.T) {
	b := pairedPrimary(t)
	in := &device.Input{At: 1005}
	if r := records(b.step(Delivered{in})); !slices.Equal(r, []Record{Entry{in}}) { // 3
		t.Fatalf("an input: %v", r)
	}
	out := b.step(Ran{1020, []Out{output(1001, Stream), output(1005, Ask), output(1012, Change)}})
	if n := numbers(out); !slices.Equal(n, []uint64{2}) {
		t.Fatalf("these left at once: %v", n)
	}
	if r := records(out); !slices.Equal(r, []Record{Horizon{1020, 0}}) { // 4
		t.Fatalf("%v", r)
	}
	if n := numbers(b.hear(Ack{Got: 3})); len(n) > 0 {
		t.Fatalf("%v left without their horizon", n)
	}
	// One that an input caused needs the input, whose count nothing precedes any more.
	in = &device.Input{At: 1020}
	b.step(Delivered{in}) // 5
	out = b.step(Ran{1020, []Out{output(1020, Stream)}})
	if r := records(out); len(r) > 0 {
		t.Errorf("a horizon that says nothing: %v", r)
	}
	if n := numbers(b.hear(Ack{Got: 4})); !slices.Equal(n, []uint64{1, 3}) {
		t.Errorf("with the horizon these left: %v", n)
	}
	if n := numbers(b.hear(Ack{Got: 5})); !slices.Equal(n, []uint64{4}) {
		t.Errorf("with the input these left: %v", n)
	}
	// What has left is told with the next horizon.
	if r := records(b.pass(20 * time.Millisecond)); !slices.Contains(r, Record(Horizon{1020, 4})) {
		t.Errorf("%v", r)
	}
}

// TestLost: a secondary that is silent is shut out by the lock before anything leaves.
func TestLost(t *testing.T) {
	for name, lose := range map[string]func(b *bench) []Effect{
		"silence": func(b *bench) []Effect { return b.pass(DefaultLimits().Silence) },
		"no acknowledgement": func(b *bench) []Effect {
			return b.pass(DefaultLimits().Stalled+TickEvery, Beat{})
		},
		"its process":          func(b *bench) []Effect { return b.step(Gone{}) },
		"by demand":            func(b *bench) []Effect { return b.step(TurnOff{}) },
		"a nonsense":           func(b *bench) []Effect { return b.hear(Ack{Got: 99}) },
		"another nonsense":     func(b *bench) []Effect { return b.hear(Ack{Got: 3, Done: 4}) },
		"its connection":       func(b *bench) []Effect { return b.step(Broken{Logging, fault.New(fault.Corrupt, "flipped")}) },
		"a handing over, late": func(b *bench) []Effect { b.step(HandOver{}); return b.pass(DefaultLimits().YieldWithin, Beat{}) },
	} {
		t.Run(name, func(t *testing.T) {
			b := pairedPrimary(t)
			b.step(Ran{1020, []Out{output(1001, Stream)}}) // 3
			out := lose(b)
			if c := all[ChangeLock](out); len(c) != 1 || c[0] != (ChangeLock{}) || len(numbers(out)) > 0 {
				t.Fatalf("lost: %v", out)
			}
			out = b.step(Ran{1030, []Out{output(1021, Change)}})
			if len(numbers(out)) > 0 {
				t.Fatal("an output left before the lock said alone")
			}
			// The log goes on: what is acknowledged after all may leave.
			if n := numbers(b.hear(Ack{Got: 3})); !slices.Equal(n, []uint64{1}) {
				t.Errorf("acknowledged late: %v", n)
			}
			out = b.step(LockChanged{lockBlock(2, ownerP, vmlock.Owner{})})
			if n := numbers(out); !slices.Equal(n, []uint64{2}) || b.p.State() != Alone || len(all[Drop](out)) != 1 || all[Event](out)[0].Kind != Unprotected {
				t.Errorf("alone: %v", out)
			}
			// A side of the pair that was is not heard any more.
			if out := b.hear(Ack{Got: 3}, Live{}, Bye{WhyDiverged}); len(out) > 0 || b.p.State() != Alone {
				t.Errorf("after the end: %v", out)
			}
		})
	}
}

// TestLockLost: whoever lost the lock lets nothing leave any more.
func TestLockLost(t *testing.T) {
	for _, how := range []Input{LockLost{fault.New(fault.Fenced, "another's")}, Received{Management, []Message{Live{}}}} {
		b := pairedPrimary(t)
		b.step(Ran{1020, []Out{output(1001, Stream)}})
		b.step(Gone{})
		out := b.step(how)
		if len(all[Halt](out)) != 1 || len(numbers(out)) > 0 || b.p.State() != PrimaryOver {
			t.Errorf("%T: %v", how, out)
		}
		for _, in := range []Input{LockChanged{lockBlock(2, ownerP, vmlock.Owner{})}, Ran{1040, []Out{output(1030, Stream)}}, Received{Logging, []Message{Ack{Got: 3}}}, Tick{}} {
			if out := b.step(in); len(out) > 0 {
				t.Errorf("%T after the end: %v", in, out)
			}
		}
	}
}

// TestStorageAway: a lock that cannot be reached is asked again, outputs wait, the machine
// stands at its bound, and people are told once.
func TestStorageAway(t *testing.T) {
	b := pairedPrimary(t)
	b.step(Gone{})
	var asked, told int
	for i := range uint64(20) {
		out := b.step(LockRefused{fault.New(fault.Unreachable, "away")})
		told += len(all[Event](out))
		out = b.pass(DefaultLimits().RetryEvery)
		asked += len(all[ChangeLock](out))
		out = append(out, b.step(Ran{2000 + i, []Out{{Class: Change, Output: device.Output{At: 2000 + i - 1, Data: make([]byte, 4<<20)}}}})...)
		if len(numbers(out)) > 0 {
			t.Fatal("an output left")
		}
	}
	if asked != 20 || told != 1 || b.p.pace != 0 {
		t.Errorf("asked %d times, told %d times, pace %d", asked, told, b.p.pace)
	}
	out := b.step(LockChanged{lockBlock(2, ownerP, vmlock.Owner{})})
	if n := numbers(out); len(n) != 20 || !slices.IsSorted(n) || b.p.pace != 100 {
		t.Errorf("%v left, pace %d", n, b.p.pace)
	}
}

// TestTurnOn: until the secondary is told the lock block nothing waits, whatever fails, and
// the lock is only changed when it is ready.
func TestTurnOn(t *testing.T) {
	b := alonePrimary(t)
	b.step(TurnOn{ownerS})
	rounds := 1
	for b.p.State() == Copying {
		b.now += Instant(time.Second)
		b.hear(Beat{})
		out := b.step(Copied{Bytes: 100 << 20, Left: 50 << 20})
		rounds += len(all[Copy](out))
		if b.p.State() == Copying && rounds > 9 && b.p.pace != 25 {
			t.Errorf("round %d at pace %d", rounds, b.p.pace)
		}
	}
	if rounds != DefaultLimits().RoundsMax || b.p.State() != Alone || b.p.why != WhyTooFast || b.p.pace != 100 {
		t.Errorf("a guest that is too fast: %d rounds, %v, %v", rounds, b.p.State(), b.p.why)
	}

	b = loadingPrimary(t)
	if out := b.step(Ran{1010, []Out{output(1001, Stream)}}); len(numbers(out)) != 1 {
		t.Errorf("while it loads: %v", out)
	}
	if out := b.step(Gone{}); len(all[ChangeLock](out)) > 0 || b.p.State() != Alone {
		t.Errorf("lost while it loads: %v", out)
	}

	// Lost while the lock is changed: nobody knows the block, and it is changed back.
	b = loadingPrimary(t)
	b.hear(Ready{})
	if out := b.step(Gone{}); len(all[ChangeLock](out)) > 0 || b.p.State() != Parting {
		t.Errorf("lost while the lock is changed: %v", out)
	}
	if out := b.step(Ran{1010, []Out{output(1001, Stream)}}); len(numbers(out)) != 1 {
		t.Errorf("%v", out)
	}
	if out := b.step(LockChanged{lockBlock(1, ownerP, ownerS)}); !slices.Equal(all[ChangeLock](out), []ChangeLock{{}}) || len(records(out)) > 0 {
		t.Errorf("a block that nobody needs: %v", out)
	}
	if b.step(TurnOn{ownerS}); b.p.State() != Parting {
		t.Error("another pair before the lock says alone")
	}
	b.step(LockChanged{lockBlock(2, ownerP, vmlock.Owner{})})
	if out := b.step(TurnOn{ownerS}); !slices.Contains(out, Effect(Copy{1})) {
		t.Errorf("another pair: %v", out)
	}
	if out := b.step(Broken{Management, nil}); len(out) > 0 {
		t.Errorf("without the management link: %v", out)
	}
	if out := b.step(Broken{}); b.p.State() != Alone || len(all[Drop](out)) != 1 {
		t.Errorf("broken while it copies: %v", out)
	}
}

// TestReadyEarly: the secondary may be ready before the core hears that the state was sent.
func TestReadyEarly(t *testing.T) {
	b := alonePrimary(t)
	b.step(TurnOn{ownerS})
	b.step(Copied{Bytes: 1, Left: 0})
	b.step(Paused{})
	b.hear(Beat{}, Ready{})
	if out := b.step(StateSent{}); b.p.State() != PairingUp || !slices.Equal(all[ChangeLock](out), []ChangeLock{{ownerS}}) {
		t.Errorf("%v: %v", b.p.State(), out)
	}
	// Of another pair it means nothing.
	b.step(Gone{})
	b.step(LockChanged{lockBlock(2, ownerP, vmlock.Owner{})})
	b.step(TurnOn{ownerS})
	b.step(Copied{Bytes: 1, Left: 0})
	b.step(Paused{})
	if out := b.step(StateSent{}); b.p.State() != PrimaryLoading || len(all[ChangeLock](out)) > 0 {
		t.Errorf("the next one: %v: %v", b.p.State(), out)
	}
}

// TestNoProgress: a secondary that lives and takes nothing of the copy, or is never ready, is given up
// after the stated time, and the machine goes on. One whose bytes move is not.
func TestNoProgress(t *testing.T) {
	l := DefaultLimits()
	for name, c := range map[string]struct {
		begin func(b *bench)
		bound time.Duration
	}{
		"the copy": {func(b *bench) { b.step(TurnOn{ownerS}) }, l.StuckAfter},
		"a later round": {func(b *bench) {
			b.step(TurnOn{ownerS})
			b.pass(l.StuckAfter/2, Beat{})
			b.step(Copied{Bytes: 1 << 20, Left: 1 << 30})
		}, l.StuckAfter},
		"loading": {func(b *bench) {
			b.step(TurnOn{ownerS})
			b.step(Copied{Bytes: 1 << 20, Left: 0})
			b.step(Paused{})
			b.step(StateSent{})
		}, l.LoadWithin},
	} {
		t.Run(name, func(t *testing.T) {
			b := alonePrimary(t)
			c.begin(b)
			state := b.p.State()
			b.pass(c.bound-TickEvery, Beat{})
			if b.p.State() != state {
				t.Fatalf("given up early: %v", b.p.why)
			}
			out := b.pass(2*TickEvery, Beat{})
			e := all[Event](out)
			if b.p.State() != Alone || len(e) != 1 || e[0].Kind != Unprotected || e[0].Why != WhySlow || !fault.Is(e[0].Err, fault.Unreachable) || len(all[Drop](out)) != 1 {
				t.Errorf("%v, %v", b.p.State(), out)
			}
		})
	}
	b := alonePrimary(t)
	b.step(TurnOn{ownerS})
	for i := range int64(100) {
		b.pass(time.Second, Beat{})
		b.step(Tick{Carried: i})
	}
	if b.p.State() != Copying {
		t.Errorf("a slow link: %v", b.p.why)
	}
	// One that is silent may have to begin.
	b = alonePrimary(t)
	b.step(TurnOn{ownerS})
	if b.pass(l.StuckAfter - TickEvery); b.p.State() != Copying {
		t.Errorf("one that takes its time: %v", b.p.why)
	}
	if b.pass(2 * TickEvery); b.p.State() != Alone || b.p.why != WhySilent {
		t.Errorf("one that never begins: %v, %v", b.p.State(), b.p.why)
	}
}

// TestBye: a secondary that has ended, and says so, holds nothing up.
func TestBye(t *testing.T) {
	b := pairedPrimary(t)
	b.step(Ran{1020, []Out{output(1001, Stream)}})
	out := b.hear(Bye{WhyDiverged})
	if n := numbers(out); !slices.Equal(n, []uint64{1}) || len(all[Keep](out)) != 1 || !slices.Equal(all[ChangeLock](out), []ChangeLock{{}}) {
		t.Errorf("diverged: %v", out)
	}
	if out := b.step(Ran{1030, []Out{output(1021, Stream)}}); len(numbers(out)) != 1 {
		t.Errorf("after it: %v", out)
	}
	out = b.step(LockChanged{lockBlock(2, ownerP, vmlock.Owner{})})
	if e := all[Event](out); len(e) != 1 || e[0].Kind != Unprotected || e[0].Why != WhyDiverged {
		t.Errorf("%v", out)
	}
}

// TestPace: the farther behind the secondary is, the slower; and one that executes nothing is
// given up.
func TestPace(t *testing.T) {
	l := DefaultLimits()
	b := pairedPrimary(t)
	b.hear(Ack{Got: b.p.seq, Done: b.p.seq, Count: b.p.count})
	began := b.now
	b.step(Ran{Count: 2000})
	for _, c := range []struct {
		lag  time.Duration
		want int
	}{{l.LagTime / 4, 100}, {l.LagTime / 2, 75}, {l.LagTime * 7 / 8, 25}, {l.LagTime, 0}, {2 * l.LagTime, 0}} {
		for b.now < began+Instant(c.lag) {
			b.now = min(b.now+Instant(5*time.Millisecond), began+Instant(c.lag))
			b.step(Ran{Count: b.p.count + 1000})
			b.step(Tick{})
			b.hear(Ack{Got: b.p.seq})
		}
		if b.p.pace != c.want {
			t.Errorf("%v behind: pace %d", c.lag, b.p.pace)
		}
		if lag := b.p.Lag(); lag.Time != c.lag || lag.Counts != b.p.count-1000 {
			t.Errorf("%v behind, and it says %+v", c.lag, lag)
		}
	}
	// It was told how far it may go.
	if b.p.horizon < b.p.count {
		t.Errorf("the machine stands at its bound at %d, and the horizon is %d", b.p.count, b.p.horizon)
	}
	b.hear(Ack{Got: b.p.seq, Done: b.p.seq, Count: b.p.count})
	if lag := b.p.Lag(); lag != (Lag{}) {
		t.Errorf("caught up: %+v", lag)
	}
	// What the machine does after it stood counts from then on.
	b.pass(400*time.Millisecond, Beat{})
	b.step(Ran{Count: b.p.count + 1000})
	if lag := b.p.Lag(); lag.Time != 0 || b.p.pace != 100 {
		t.Errorf("a moment after it stood: %+v, pace %d", lag, b.p.pace)
	}
	b.step(Tick{})
	b.hear(Ack{Got: b.p.seq, Done: b.p.seq, Count: b.p.count})
	if b.p.pace != 100 {
		t.Errorf("caught up: pace %d", b.p.pace)
	}
	b.step(Delivered{&device.Input{At: b.p.count, Data: make([]byte, l.LagBytes)}})
	if lag := b.p.Lag(); lag.Bytes < l.LagBytes || b.p.pace != 0 {
		t.Errorf("%d bytes behind: pace %d", lag.Bytes, b.p.pace)
	}
	got := Ack{Got: b.p.seq, Done: b.p.seq - 1, Count: b.p.count}
	out := b.pass(l.StuckAfter-time.Second, got)
	if b.p.State() != Paired {
		t.Errorf("given up after %v: %v", b.now, out)
	}
	b.pass(2*time.Second, got)
	if b.p.State() != Parting || b.p.why != WhySlow {
		t.Errorf("one that executes nothing: %v", b.p.State())
	}
}

// TestCatchUp: what happens while the secondary loads does not slow the machine; once it is ready the
// machine goes slower, and does not stand, and it is paired when it is no farther behind than the
// bound.
func TestCatchUp(t *testing.T) {
	l := DefaultLimits()
	b := loadingPrimary(t)
	run := func(d time.Duration, pace int) {
		t.Helper()
		for end := b.now + Instant(d); b.now < end; {
			b.now += Instant(5 * time.Millisecond)
			b.step(Ran{Count: b.p.count + 1000})
			b.step(Tick{})
			b.hear(Ack{Got: b.p.seq, Done: b.p.done, Count: b.p.at})
		}
		if b.p.pace != pace || b.p.State() != PrimaryLoading {
			t.Fatalf("%v, pace %d instead of %d", b.p.State(), b.p.pace, pace)
		}
	}
	run(2*time.Second, 100)
	b.hear(Ready{})
	run(time.Second, 25)
	behind := b.p.log[len(b.p.log)-2]
	if out := b.hear(Ack{Got: b.p.seq, Done: behind.seq, Count: b.p.count}); b.p.State() != PairingUp || len(all[ChangeLock](out)) != 1 {
		t.Errorf("it has caught up: %v", b.p.State())
	}
	// One that does not is given up.
	b = loadingPrimary(t)
	run(time.Second, 100)
	b.hear(Ready{})
	run(l.LoadWithin-2*time.Second, 25)
	b.pass(2*time.Second, Beat{})
	if b.p.State() != Alone || b.p.why != WhySlow {
		t.Errorf("one that is too slow: %v, %v", b.p.State(), b.p.why)
	}
}

// TestClockBack: a clock that goes back an hour has stood still, as far as a side can tell; one that
// goes forth is a time in which it was not run.
func TestClockBack(t *testing.T) {
	for _, by := range []time.Duration{-time.Hour, time.Hour} {
		b, s := pairedPrimary(t), protectedSecondary(t)
		for _, side := range []*bench{b, s} {
			side.now = max(side.now+Instant(by), 0)
			var out []Effect
			for range 100 {
				side.now += Instant(TickEvery)
				out = append(out, side.hear(Beat{})...)
				out = append(out, side.step(Tick{})...)
			}
			if n := len(all[Send](out)); n < 38 {
				t.Errorf("by %v: %d messages in two seconds", by, n)
			}
		}
		if b.p.State() != Paired || s.s.State() != Protecting {
			t.Errorf("by %v: %v and %v", by, b.p.State(), s.s.State())
		}
	}
}

// TestHandOver: the machine stands still, the log ends with Yield, and the other side is
// alive.
func TestHandOver(t *testing.T) {
	b := loadingPrimary(t)
	if out := b.step(HandOver{}); len(out) > 0 {
		t.Errorf("to one that cannot: %v", out)
	}
	b = pairedPrimary(t)
	if out := b.step(HandOver{}); !slices.Equal(all[Pause](out), []Pause{{Digest: true}}) {
		t.Fatalf("%v", out)
	}
	b.step(Ran{1020, []Out{output(1001, Stream)}})
	if r := records(b.step(Paused{})); !slices.Equal(r, []Record{Horizon{1020, 0}, Yield{}}) {
		t.Fatalf("%v", r)
	}
	if n := numbers(b.hear(Ack{Got: b.p.seq})); len(n) != 1 {
		t.Errorf("%v", n)
	}
	if out := b.hear(Live{}); len(all[Halt](out)) != 1 || all[Halt](out)[0].Why != WhyHandedOver {
		t.Errorf("%v", out)
	}
	// To one that does not take it: the lock decides, and the machine runs on.
	b = pairedPrimary(t)
	b.step(HandOver{})
	b.step(Paused{})
	b.pass(DefaultLimits().YieldWithin, Beat{})
	if out := b.step(LockChanged{lockBlock(2, ownerP, vmlock.Owner{})}); len(all[Resume](out)) != 1 || b.p.State() != Alone {
		t.Errorf("%v", out)
	}
}

// TestGuestEnds: what has left has ended before the lock is given back, and the secondary has
// said that it knows, or is shut out.
func TestGuestEnds(t *testing.T) {
	b := pairedPrimary(t)
	b.step(Ran{1020, []Out{output(1001, Change)}})
	if out := b.step(Ended{}); len(all[Drain](out)) > 0 {
		t.Fatalf("with an output that waits: %v", out)
	}
	if out := b.step(Drained{}); len(out) > 0 {
		t.Fatalf("drained, and nobody has asked: %v", out)
	}
	if out := b.hear(Ack{Got: b.p.seq}); len(all[Drain](out)) != 1 || len(numbers(out)) != 1 {
		t.Fatalf("%v", out)
	}
	out := b.step(Drained{})
	if r := records(out); !slices.Equal(r, []Record{Finished{}}) || len(all[Finish](out)) > 0 {
		t.Errorf("%v", out)
	}
	lost := *b.p
	if out = b.hear(Bye{WhyFinished}); len(all[Finish](out)) != 1 || len(all[ChangeLock](out)) > 0 {
		t.Errorf("the secondary knows: %v", out)
	}
	differs := lost
	b.p = &differs
	if out = b.hear(Bye{WhyDiverged}); len(all[Finish](out)) != 1 || len(all[Keep](out)) != 1 {
		t.Errorf("the secondary is another machine: %v", out)
	}
	b.p = &lost
	if out = b.pass(2 * DefaultLimits().Silence); len(all[Finish](out)) > 0 || len(all[ChangeLock](out)) != 1 {
		t.Errorf("nothing is heard: %v", out)
	}
	if out = b.step(LockChanged{lockBlock(2, ownerP, vmlock.Owner{})}); len(all[Finish](out)) != 1 {
		t.Errorf("the secondary is shut out: %v", out)
	}
	b = loadingPrimary(t)
	b.step(Ended{})
	if out := b.step(Drained{}); len(all[Finish](out)) != 1 {
		t.Errorf("a secondary that knows no block: %v", out)
	}
	b = alonePrimary(t)
	if out := b.step(Ended{}); len(all[Drain](out)) != 1 {
		t.Errorf("alone: %v", out)
	}
}

// TestLoadIsNoDeath: who was not run for a while waits for what the other said meanwhile.
func TestLoadIsNoDeath(t *testing.T) {
	b := pairedPrimary(t)
	b.now += Instant(10 * time.Second)
	if out := b.step(Tick{}); b.p.State() != Paired {
		t.Errorf("the first tick after ten seconds: %v", out)
	}
	s := protectedSecondary(t)
	s.now += Instant(10 * time.Second)
	if out := s.step(Tick{}); s.s.State() != Protecting {
		t.Errorf("the first tick after ten seconds: %v", out)
	}
	// But one that is never run in time waits no longer than that.
	for range 3 {
		s.now += Instant(DefaultLimits().Silence - 1)
		s.step(Tick{})
	}
	if s.s.State() != Taking {
		t.Errorf("a side that is seldom run never takes the other for dead: %v", s.s.State())
	}
}

// TestBeatsUnticked: a side whose clock's goroutine is not run says that it lives whenever another
// thing comes: that the other one does, or what its machine did.
func TestBeatsUnticked(t *testing.T) {
	p, s := pairedPrimary(t), protectedSecondary(t)
	for name, side := range map[string]struct {
		*bench
		in Input
	}{
		"primary, by its machine": {p, Ran{Count: 1020}}, "primary, by the other": {p, Received{Management, []Message{Beat{}}}},
		"secondary, by its machine": {s, Executed{Seq: 2, Count: 1000}}, "secondary, by the other": {s, Received{Management, []Message{Beat{}}}},
	} {
		side.now += Instant(DefaultLimits().BeatEvery)
		out := all[Send](side.step(side.in))
		for l := range Link(Links) {
			if !slices.ContainsFunc(out, func(e Send) bool { return e.Link == l && e.Message == (Beat{}) }) {
				t.Errorf("%s: no heartbeat on link %d: %v", name, l, out)
			}
		}
		if out := all[Send](side.step(side.in)); slices.ContainsFunc(out, func(e Send) bool { return e.Message == (Beat{}) }) {
			t.Errorf("%s: too soon: %v", name, out)
		}
	}
}

// TestBeats: a heartbeat on each link, at the stated interval.
func TestBeats(t *testing.T) {
	b := pairedPrimary(t)
	n := map[Link]int{}
	for _, s := range all[Send](b.pass(time.Second, Ack{Got: 2, Done: 2})) {
		if s.Message == (Beat{}) {
			n[s.Link]++
		}
	}
	if fmt.Sprint(n) != "map[0:10 1:10]" {
		t.Errorf("in a second: %v", n)
	}
}
