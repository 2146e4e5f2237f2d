package aliasio

import (
	"time"

	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// Instant is a reading of CLOCK_BOOTTIME in nanoseconds. It counts a machine's
// sleep, so that a right that is over in the morning is not used.
type Instant int64

// Now reads the clock.
func Now() Instant {
	var ts unix.Timespec
	// It cannot fail: the clock exists on every Linux that has nftables.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return Instant(ts.Nano())
}

// Add returns i a duration later.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Options is how a Holder does its work. The zero value of each field stands
// for the default that its comment names.
type Options struct {
	// Table is the first part of the nftables tables' names: steadfast.
	Table string
	// Grant is how long a grant lasts without a Refresh: 600 ms. Refresh three
	// times as often.
	Grant time.Duration
	// MarkGate and MarkClean are bits of packet marks that nobody else on this
	// machine uses: 1<<29 and 1<<28.
	MarkGate, MarkClean uint32
	// Probe is when, counted from the start of a Hold, the network is asked
	// whether someone has the address; the last entry ends the wait for answers:
	// 0, 7, 14, 25 ms. RFC 5227 waits for seconds; a takeover cannot.
	Probe []time.Duration
	// Announce is when, counted from the opening of the gate, the new place is
	// announced: 0, 50, 200 ms, 1, 3 s.
	Announce []time.Duration
	// Tickle is when, counted from its start, Tickle sends: 3, 20, 100, 600, 1200
	// ms. Not at once after a Hold: a client that takes the tickle in before the
	// announcement answers to the old owner. Every second try is of the kind that
	// a client answers without a limit.
	Tickle []time.Duration
	// Namespace is the file descriptor of the network namespace to work in: the
	// process's own. Tests have several nodes in one process.
	Namespace int
}

// withDefaults fills in what o leaves open.
func (o Options) withDefaults() (Options, error) {
	if o.Table == "" {
		o.Table = "steadfast"
	}
	if o.Grant == 0 {
		o.Grant = 600 * time.Millisecond
	}
	if o.MarkGate == 0 {
		o.MarkGate = 1 << 29
	}
	if o.MarkClean == 0 {
		o.MarkClean = 1 << 28
	}
	ms := func(ns ...time.Duration) []time.Duration {
		for i := range ns {
			ns[i] *= time.Millisecond
		}
		return ns
	}
	if o.Probe == nil {
		o.Probe = ms(0, 7, 14, 25)
	}
	if o.Announce == nil {
		o.Announce = ms(0, 50, 200, 1000, 3000)
	}
	if o.Tickle == nil {
		o.Tickle = ms(3, 20, 100, 600, 1200)
	}
	one := func(bits uint32) bool { return bits&(bits-1) == 0 }
	switch {
	case o.Grant < grantMin:
		return o, fault.New(fault.Invalid, "a grant of %v is too short: at least %v", o.Grant, grantMin)
	case !one(o.MarkGate), !one(o.MarkClean), o.MarkGate == o.MarkClean:
		return o, fault.New(fault.Invalid, "marks %#x and %#x: give two different bits", o.MarkGate, o.MarkClean)
	}
	return o, nil
}

// LateMax bounds how long after its holder's right a grant ends, but for a tick
// of the kernel's clock and for a stop that is noticed only when it is over: who
// takes an alias over waits that much longer.
const LateMax = 10 * time.Millisecond

// grantMin is a few ticks of the slowest kernel clock.
const grantMin = 50 * time.Millisecond
