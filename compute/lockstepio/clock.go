package lockstepio

import (
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/lockstep"
)

// tickEvery is how often a core is told the time: often enough for its horizons.
const tickEvery = 5 * time.Millisecond

// now is CLOCK_BOOTTIME.
func now() lockstep.Instant {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return lockstep.Instant(time.Now().UnixNano()) // no Linux that this runs on
	}
	return lockstep.Instant(t.Nano())
}
