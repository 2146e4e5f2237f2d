package lockstep

import (
	"slices"
	"testing"
	"time"

	"steadfast/compute/device"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// loadingSecondary has a copy, and makes a machine of it.
func loadingSecondary(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, now: 5_000_000}
	b.s = NewSecondary(SecondaryConfig{Limits: DefaultLimits(), Me: ownerS}, b.now)
	out := b.hear(Pages{0, make([]byte, 4096)}, Part{[]byte{1}}, Start{Count: 1000, Output: 5})
	if len(all[Store](out)) != 2 || len(all[Load](out)) != 1 {
		t.Fatalf("%v", out)
	}
	return b
}

// protectedSecondary knows the block: record 2.
func protectedSecondary(t *testing.T) *bench {
	t.Helper()
	b := loadingSecondary(t)
	// What comes while it loads is acknowledged, and executed then.
	out := b.hear(Horizon{1000, 4})
	if a := all[Send](out); len(a) != 1 || a[0].Message != (Ack{Got: 1, Count: 1000}) || len(all[Execute](out)) > 0 {
		t.Fatalf("while it loads: %v", out)
	}
	out = b.step(Loaded{})
	if s := all[Send](out); s[0].Message != (Ready{}) || !slices.Equal(all[Execute](out), []Execute{{1, Horizon{1000, 4}}}) {
		t.Fatalf("loaded: %v", out)
	}
	out = b.hear(Pairing{lockBlock(1, ownerP, ownerS)})
	if e := all[Event](out); len(e) != 1 || e[0].Kind != Protected || b.s.State() != Protecting {
		t.Fatalf("told: %v", out)
	}
	b.step(Executed{Seq: 2, Count: 1000})
	return b
}

// TestAcknowledges: what came is acknowledged at once, together, whether it was executed or
// not, and what was executed after a while.
func TestAcknowledges(t *testing.T) {
	b := protectedSecondary(t)
	out := b.hear(Entry{&device.Input{At: 1001}}, Horizon{1100, 4}, Beat{})
	if s := all[Send](out); len(s) != 1 || s[0].Message != (Ack{Got: 4, Done: 2, Count: 1000}) {
		t.Errorf("%v", out)
	}
	if e := all[Execute](out); len(e) != 2 || e[0].Seq != 3 || e[1].Seq != 4 {
		t.Errorf("%v", e)
	}
	if s := all[Send](b.step(Executed{Seq: 3, Count: 1001})); len(s) > 0 {
		t.Errorf("executed a moment later: %v", s)
	}
	if s := all[Send](b.pass(2 * TickEvery)); !slices.ContainsFunc(s, func(s Send) bool { return s.Message == (Ack{Got: 4, Done: 3, Count: 1001}) }) {
		t.Errorf("a while later: %v", s)
	}
	b.now += Instant(2 * DefaultLimits().AckEvery)
	if s := all[Send](b.step(Executed{Seq: 4, Count: 1100})); len(s) != 1 || s[0].Message != (Ack{Got: 4, Done: 4, Count: 1100}) {
		t.Errorf("executed: %v", s)
	}
	// A record counts on the log's link alone.
	if b.step(Received{Management, []Message{Horizon{2000, 4}}}); b.s.got != 4 {
		t.Error("a record on the other link")
	}
}

// TestTakesOver: silence or the other's end lead to the lock, from the block that the
// log told; from then on nothing is acknowledged or taken; what was is executed first.
func TestTakesOver(t *testing.T) {
	for name, lose := range map[string]func(b *bench) []Effect{
		"silence":     func(b *bench) []Effect { return b.pass(DefaultLimits().Silence) },
		"its process": func(b *bench) []Effect { return b.step(Gone{}) },
		"its connections": func(b *bench) []Effect {
			if out := b.step(Broken{Logging, nil}); len(out) > 0 {
				b.t.Errorf("one of them: %v", out)
			}
			return b.step(Broken{Management, nil})
		},
		"a log that is silent": func(b *bench) []Effect { return b.pass(2*DefaultLimits().Stalled, Beat{}) },
	} {
		t.Run(name, func(t *testing.T) {
			b := protectedSecondary(t)
			b.hear(Horizon{1100, 6})
			out := lose(b)
			if l := all[TakeLock](out); !slices.Equal(l, []TakeLock{{lockBlock(1, ownerP, ownerS)}}) {
				t.Fatalf("%v", out)
			}
			got := b.s.got
			if out := b.hear(Horizon{1300, 8}, Entry{&device.Input{At: 1300}}); len(out) > 0 || b.s.got != got {
				t.Fatalf("after it has asked: %v", out)
			}
			out = b.step(LockChanged{lockBlock(2, ownerS, vmlock.Owner{})})
			if len(all[GoLive](out)) > 0 || b.s.State() != Draining {
				t.Fatalf("the log is not executed: %v", out)
			}
			// 5 is known to have left, and 6 if the last horizon said so.
			outs := []Out{output(1001, Stream), output(1002, Stream), output(1003, Change), output(1004, Stream)}
			out = b.step(Executed{Seq: got, Count: 1200, Outputs: outs})
			live := all[GoLive](out)
			if len(live) != 1 || live[0].Next != 9 || len(live[0].Streams) != 1 || live[0].Streams[0].Number != 8 {
				t.Fatalf("%v", out)
			}
			if s := all[Send](out); len(s) != 2 || s[0].Message != (Live{}) {
				t.Errorf("%v", s)
			}
			if out := b.step(Tick{}); len(out) > 0 {
				t.Errorf("after all: %v", out)
			}
		})
	}
}

// TestYields: it takes over on demand when it has executed the log, and not if it is another
// machine: then the primary goes on.
func TestYields(t *testing.T) {
	for _, differs := range []bool{false, true} {
		b := protectedSecondary(t)
		out := b.hear(Horizon{1200, 6}, Digest{Count: 1200}, Yield{})
		if s := all[Send](out); len(s) != 1 || s[0].Message != (Ack{Got: 5, Done: 2, Count: 1000}) || len(all[TakeLock](out)) > 0 {
			t.Fatalf("%v", out)
		}
		if out := b.step(Executed{Seq: 3, Count: 1200}); len(all[TakeLock](out)) > 0 {
			t.Fatalf("before the digest: %v", out)
		}
		if differs {
			out = b.step(Differs{Count: 1200})
			if len(all[TakeLock](out)) > 0 || len(all[Halt](out)) != 1 || !slices.Contains(out, Effect(Send{Logging, 0, Bye{WhyDiverged}})) {
				t.Errorf("%v", out)
			}
			continue
		}
		b.step(Executed{Seq: 4, Count: 1200})
		if out := b.step(Executed{Seq: 5, Count: 1200}); len(all[TakeLock](out)) != 1 {
			t.Fatalf("%v", out)
		}
		if out := b.step(LockChanged{lockBlock(2, ownerS, vmlock.Owner{})}); len(all[GoLive](out)) != 1 {
			t.Errorf("%v", out)
		}
	}
}

// TestOnlyThePair: a secondary that was not told, or told another's block, takes no lock.
func TestOnlyThePair(t *testing.T) {
	b := loadingSecondary(t)
	b.step(Loaded{})
	if out := b.pass(DefaultLimits().StuckAfter - TickEvery); len(all[Halt](out)) > 0 {
		t.Errorf("not told, and a primary that takes its time: %v", out)
	}
	out := b.pass(DefaultLimits().StuckAfter)
	if len(all[TakeLock](out)) > 0 || len(all[Halt](out)) != 1 || b.s.State() != SecondaryOver {
		t.Errorf("not told: %v", out)
	}
	for name, block := range map[string][vmlock.BlockSize]byte{
		"another's": lockBlock(1, ownerP, vmlock.Owner{Host: 3, Boot: 1}), "a former life's": lockBlock(1, ownerP, vmlock.Owner{Host: 2, Boot: 8}),
		"alone": lockBlock(2, ownerP, vmlock.Owner{}), "nonsense": {},
	} {
		b := loadingSecondary(t)
		b.step(Loaded{})
		out := b.hear(Pairing{block})
		if h := all[Halt](out); len(h) != 1 || !fault.Is(h[0].Err, fault.Invalid) || b.s.State() != SecondaryOver {
			t.Errorf("%s: %v", name, out)
		}
	}
	b = &bench{t: t}
	b.s = NewSecondary(SecondaryConfig{Limits: DefaultLimits(), Me: ownerS}, 0)
	out = b.step(Broken{Logging, fault.New(fault.Corrupt, "flipped")})
	if h := all[Halt](out); len(h) != 1 || h[0].Why != WhyBroken || !fault.Is(h[0].Err, fault.Corrupt) {
		t.Errorf("broken before the start: %v", out)
	}
	// The primary may take its time to begin.
	b = &bench{t: t}
	b.s = NewSecondary(SecondaryConfig{Limits: DefaultLimits(), Me: ownerS}, 0)
	b.pass(DefaultLimits().StuckAfter - TickEvery)
	if b.s.State() != Loading {
		t.Errorf("a primary that takes its time: %v", b.s.State())
	}
	if b.pass(DefaultLimits().StuckAfter); b.s.State() != SecondaryOver {
		t.Errorf("a primary that never begins: %v", b.s.State())
	}
}

// TestPrimaryGoesOn: a secondary whose log broke leaves it to a primary that says so, and tells what
// was the matter.
func TestPrimaryGoesOn(t *testing.T) {
	b := protectedSecondary(t)
	out := b.step(Broken{Logging, fault.New(fault.Corrupt, "flipped")})
	out = append(out, b.pass(DefaultLimits().Stalled, Beat{})...)
	if len(all[TakeLock](out)) > 0 {
		t.Fatalf("%v", out)
	}
	out = b.step(Received{Management, []Message{Bye{WhyBroken}}})
	if h := all[Halt](out); len(h) != 1 || h[0].Why != WhyBroken || !fault.Is(h[0].Err, fault.Corrupt) {
		t.Errorf("%v", out)
	}
}

// TestLockAway: it asks again until the lock says who has it.
func TestLockAway(t *testing.T) {
	b := protectedSecondary(t)
	b.step(Gone{})
	asked, told := 0, 0
	for i := range 10 {
		told += len(all[Event](b.step(LockRefused{fault.New(fault.Unreachable, "away")})))
		asked += len(all[TakeLock](b.pass(DefaultLimits().RetryEvery << min(i, retrySlower))))
	}
	if asked != 10 || told != 1 {
		t.Errorf("asked %d times, told %d times", asked, told)
	}
	out := b.step(LockLost{fault.New(fault.Stale, "the primary's")})
	if h := all[Halt](out); len(h) != 1 || !fault.Is(h[0].Err, fault.Stale) || len(all[GoLive](out)) > 0 || b.s.State() != SecondaryOver {
		t.Errorf("%v", out)
	}
}

// TestDivergence: a machine that is another never goes on, at whatever point it shows.
func TestDivergence(t *testing.T) {
	bad := Differs{Count: 1050, Err: fault.New(fault.Invalid, "another machine")}
	b := protectedSecondary(t)
	out := b.step(bad)
	var byes int
	for _, s := range all[Send](out) {
		if s.Message == (Bye{WhyDiverged}) {
			byes++
		}
	}
	if byes != 2 || !slices.Equal(all[Keep](out), []Keep{{1050}}) || b.s.State() != SecondaryOver {
		t.Errorf("in the log: %v", out)
	}
	// While it asks for the lock: if it has won, nobody goes on with it.
	b = protectedSecondary(t)
	b.step(Gone{})
	if out := b.step(bad); len(out) > 0 {
		t.Errorf("while it asks: %v", out)
	}
	out = b.step(LockChanged{lockBlock(2, ownerS, vmlock.Owner{})})
	if len(all[GoLive](out)) > 0 || len(all[Halt](out)) != 1 || len(all[Keep](out)) != 1 {
		t.Errorf("and has won: %v", out)
	}
	// In what was left to execute.
	b = protectedSecondary(t)
	b.hear(Digest{Count: 1050})
	b.step(Gone{})
	b.step(LockChanged{lockBlock(2, ownerS, vmlock.Owner{})})
	out = b.step(bad)
	if len(all[GoLive](out)) > 0 || len(all[Halt](out)) != 1 || all[Halt](out)[0].Why != WhyDiverged {
		t.Errorf("in the rest of the log: %v", out)
	}
	// One that could not be loaded.
	b = loadingSecondary(t)
	out = b.step(Differs{Err: fault.New(fault.Full, "no memory")})
	if len(all[Keep](out)) > 0 || all[Halt](out)[0].Why != WhyFailed {
		t.Errorf("not loaded: %v", out)
	}
}

// TestGuestEndsThere: the end of the guest is no failover.
func TestGuestEndsThere(t *testing.T) {
	for _, end := range []Message{Finished{}, Bye{WhyFinished}} {
		b := protectedSecondary(t)
		out := b.hear(end)
		out = append(out, b.step(Gone{})...)
		out = append(out, b.pass(time.Second)...)
		if h := all[Halt](out); len(h) != 1 || h[0].Why != WhyFinished || len(all[TakeLock](out)) > 0 {
			t.Errorf("%T: %v", end, out)
		}
	}
}

// TestSecondaryBeats: it is heard on both links, while it asks for the lock, too.
func TestSecondaryBeats(t *testing.T) {
	b := protectedSecondary(t)
	b.step(Gone{})
	n := 0
	for _, s := range all[Send](b.pass(time.Second)) {
		if s.Message == (Beat{}) {
			n++
		}
	}
	if n != 20 {
		t.Errorf("%d heartbeats in a second", n)
	}
}

// TestSecondaryTurnsOff: one that is ended says so, but for one that is about to go on.
func TestSecondaryTurnsOff(t *testing.T) {
	b := protectedSecondary(t)
	if out := b.step(TurnOff{}); !slices.Contains(out, Effect(Send{Management, 0, Bye{WhyAsked}})) || len(all[Halt](out)) != 1 {
		t.Errorf("%v", out)
	}
	b = protectedSecondary(t)
	b.step(Gone{})
	if out := b.step(TurnOff{}); len(out) > 0 || b.s.State() != Taking {
		t.Errorf("%v", out)
	}
}
