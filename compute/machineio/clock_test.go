package machineio

import (
	"testing"
	"time"
)

// TestHostClock: it is the computer's clock, also after a sleep, and never goes back.
func TestHostClock(t *testing.T) {
	c := newHostClock(bootTime, 0)
	last := uint64(0)
	for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); {
		before := bootTime()
		at := c.now()
		after := bootTime()
		if off := uint64(time.Millisecond); at+off < before || at > after+off {
			t.Fatalf("it is %d, between %d and %d", at, before, after)
		}
		if at < last {
			t.Fatalf("%d after %d", at, last)
		}
		last = at
	}

	slept := uint64(0)
	c = newHostClock(func() uint64 { return bootTime() + slept }, 0)
	before := c.now()
	slept = uint64(time.Hour)
	time.Sleep(2 * time.Duration(offsetEvery))
	for end := time.Now().Add(time.Minute); c.now() < before+slept; {
		if time.Now().After(end) {
			t.Fatal("an hour of sleep was not noticed")
		}
	}
	before = c.now()
	slept = 0
	time.Sleep(2 * time.Duration(offsetEvery))
	if at := c.now(); at < before {
		t.Errorf("it went back from %d to %d", before, at)
	}

	from := bootTime() + uint64(time.Hour)
	if at := newHostClock(bootTime, from).now(); at != from {
		t.Errorf("from %d on it is %d", from, at)
	}
}
