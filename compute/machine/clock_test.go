package machine

import (
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

// TestClock holds a clock against arithmetic without bounds: what it reads, that it
// never falls, and that CountOf is the first count of a time.
func TestClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Clock{rate: rateStart}
		now, exact := uint64(0), new(big.Int) // exact is in units of 2^-32 ns
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			step := rapid.Uint64Range(0, 1<<40).Draw(t, "step")
			exact.Add(exact, new(big.Int).Mul(new(big.Int).SetUint64(step), new(big.Int).SetUint64(c.rate)))
			now += step
			if want := new(big.Int).Rsh(exact, 32).Uint64(); c.Now(now) != want {
				t.Fatalf("%d at %d, want %d", c.Now(now), now, want)
			}
			c.SetRate(now, rapid.Uint64Range(RateMin, RateMax).Draw(t, "rate"))
			if want := new(big.Int).Rsh(exact, 32).Uint64(); c.Now(now) != want {
				t.Fatalf("a change of the rate made %d of %d", c.Now(now), want)
			}
		}
		ns := c.Now(now) + rapid.Uint64Range(0, 1<<45).Draw(t, "ns")
		at := c.CountOf(ns)
		if at == never {
			t.Fatal("never")
		}
		if c.Now(at) < ns || at > now && c.Now(at-1) >= ns {
			t.Fatalf("the first count of %d is %d, which is %d, and %d before", ns, at, c.Now(at), c.Now(at-1))
		}
		ticks := rapid.Uint64().Draw(t, "ticks")
		if at := c.CountAt(ticks); at != never && (c.Time(at) < ticks || at > c.count && c.Time(at-1) >= ticks) {
			t.Fatalf("the first count of %d ticks is %d", ticks, at)
		}
	})
}

// TestClockBounds: times that are not reached.
func TestClockBounds(t *testing.T) {
	c := Clock{rate: RateMin, count: 1 << 63}
	if at := c.CountAt(never); at != never {
		t.Errorf("the end of time is at %d", at)
	}
	if at := c.CountOf(never); at != never {
		t.Errorf("the end of nanoseconds is at %d", at)
	}
	c.SetRate(0, 0)
	if c.Rate() != RateMin || c.Now(5) != 0 {
		t.Errorf("a rate of 0 is %d, and before it is %d", c.Rate(), c.Now(5))
	}
}
