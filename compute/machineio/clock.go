package machineio

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is CLOCK_BOOTTIME in nanoseconds.
func bootTime() uint64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return uint64(time.Now().UnixNano()) // no Linux that this runs on
	}
	return uint64(t.Nano())
}

// hostClock tells CLOCK_BOOTTIME without a system call, of which a turn of executing would be two:
// by Go's monotonic clock, from which that differs only by what the computer has slept. How
// much that is is looked at now and then. It never goes back. For one goroutine.
type hostClock struct {
	boot   func() uint64 // bootTime, but for tests
	base   time.Time
	offset uint64 // of the clock to base's
	looked uint64 // nanoseconds since base when it was found
	told   uint64
}

const (
	// offsetEvery is how often the offset is looked at, and offsetTight within how much time
	// both clocks are to be read: else somebody else had the processor between them.
	offsetEvery = 10 * uint64(time.Millisecond)
	offsetTight = 20 * uint64(time.Microsecond)
)

// newHostClock tells the time from some time on.
func newHostClock(boot func() uint64, from uint64) *hostClock {
	c := &hostClock{boot: boot, base: time.Now(), told: from}
	const tries = 10
	for try := 1; !c.look(try == tries); try++ {
		continue
	}
	return c
}

// look finds the offset. It returns false when that is not exact, unless it must do.
func (c *hostClock) look(must bool) bool {
	before := uint64(time.Since(c.base))
	at := c.boot()
	after := uint64(time.Since(c.base))
	if after-before > offsetTight && !must {
		return false
	}
	c.offset, c.looked = at-before, after
	return true
}

// now is the time.
func (c *hostClock) now() uint64 {
	since := uint64(time.Since(c.base))
	if since-c.looked >= offsetEvery && c.look(false) {
		since = c.looked
	}
	c.told = max(c.told, since+c.offset)
	return c.told
}
