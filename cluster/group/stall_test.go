package group

import (
	"testing"
	"time"

	"steadfast/cluster/quorum"
)

// TestStall: an owner that did not run for longer than Silence does not take the
// other for silent before it has listened; one that ran does.
func TestStall(t *testing.T) {
	a, b := quorum.Incarnation{Member: "a", Boot: 1}, quorum.Incarnation{Member: "b", Boot: 1}
	state := quorum.NewState()
	for i, c := range []quorum.Command{
		{Kind: quorum.KindBoot, By: a},
		{Kind: quorum.KindBoot, By: b},
		{Kind: quorum.KindCreate, Group: "g", By: a},
		{Kind: quorum.KindAdmit, Group: "g", By: a, Who: b, Revision: 1},
	} {
		if err := state.Apply(uint64(i+1), c); err != nil {
			t.Fatal(err)
		}
	}
	const tick = Instant(10 * time.Millisecond)
	for _, tc := range []struct {
		stall  time.Duration
		missed bool
	}{{0, true}, {80 * time.Millisecond, false}} {
		now := Instant(time.Hour)
		ag := New(Config{
			Me: a, Group: "g", Lease: 500 * time.Millisecond, Renew: 80 * time.Millisecond, Silence: 350 * time.Millisecond,
			Revive: time.Second, Retry: time.Second, Stall: tc.stall,
		}, now)
		ag.Step(now, Decided{state})
		ag.Step(now, Heard{b})
		now += Instant(400 * time.Millisecond) // it did not run
		ag.Step(now, Tick{})
		if got := ag.Missed(now, b); got != tc.missed {
			t.Errorf("with a bound of %v: missed %t after a stall, want %t", tc.stall, got, tc.missed)
		}
		for range 36 {
			now += tick
			ag.Step(now, Tick{})
		}
		if !ag.Missed(now, b) {
			t.Errorf("with a bound of %v: silence is not noticed any more", tc.stall)
		}
	}
}
