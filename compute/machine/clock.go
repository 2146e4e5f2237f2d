package machine

import (
	"math"
	"math/bits"

	"steadfast/compute/device"
)

// Clock is the guest's time: a function of the instruction count that is a straight
// line between changes of its rate. It never falls, and a change of the rate changes no
// reading of the moment. What the processor calls the time is in ticks of 100 ns.
type Clock struct {
	// At count, the time was ns and frac/2^32 nanoseconds.
	count uint64
	ns    uint64
	frac  uint32
	// rate is nanoseconds an instruction, in units of 2^-32; never 0.
	rate uint64
}

// Rates of a clock, in units of 2^-32 nanoseconds an instruction.
const (
	RateOne = 1 << 32
	// RateMin is 100,000 million instructions a second, RateMax one million.
	RateMin = RateOne / 100
	RateMax = RateOne * 1000
	// rateStart is 200 million a second, until the first synchronisation.
	rateStart = RateOne * 5
)

// tickNS is the processor's unit of time: a timebase of 10 MHz.
const tickNS = 100

// never is a count that is not reached.
const never = math.MaxUint64

// Now is the time at a count, in nanoseconds since the machine began. Counts before the
// last change of the rate have that change's time.
func (c *Clock) Now(count uint64) uint64 {
	ns, _ := c.at(count)
	return ns
}

func (c *Clock) at(count uint64) (ns uint64, frac uint32) {
	if count < c.count {
		return c.ns, c.frac
	}
	hi, lo := bits.Mul64(count-c.count, c.rate)
	lo, carry := bits.Add64(lo, uint64(c.frac), 0)
	hi += carry
	return c.ns + hi<<32 + lo>>32, uint32(lo)
}

// CountOf is the first count at which Now is at least ns, never if it is none.
func (c *Clock) CountOf(ns uint64) uint64 {
	if ns <= c.ns {
		return c.count
	}
	// The least d with d*rate + frac >= (ns - c.ns) << 32.
	delta := ns - c.ns
	hi, lo := delta>>32, delta<<32
	lo, borrow := bits.Sub64(lo, uint64(c.frac), 0)
	hi -= borrow
	if hi >= c.rate {
		return never
	}
	d, rest := bits.Div64(hi, lo, c.rate)
	if rest > 0 {
		d++
	}
	if d > never-1-c.count {
		return never
	}
	return c.count + d
}

// Time implements riscv.Clock.
func (c *Clock) Time(count uint64) uint64 { return c.Now(count) / tickNS }

// CountAt implements riscv.Clock.
func (c *Clock) CountAt(time uint64) uint64 {
	if time > math.MaxUint64/tickNS {
		return never
	}
	return c.CountOf(time * tickNS)
}

// SetRate changes the rate from a count on, which is not before that of the last change.
func (c *Clock) SetRate(count, rate uint64) {
	c.ns, c.frac = c.at(count)
	c.count = max(c.count, count)
	c.rate = min(max(rate, RateMin), RateMax)
}

// Rate is in units of 2^-32 nanoseconds an instruction.
func (c *Clock) Rate() uint64 { return c.rate }

func (c *Clock) save(e *device.Encoder) {
	e.U64(c.count)
	e.U64(c.ns)
	e.U32(c.frac)
	e.U64(c.rate)
}

func (c *Clock) restore(d *device.Decoder) {
	c.count, c.ns, c.frac, c.rate = d.U64(), d.U64(), d.U32(), d.U64()
	if c.rate < RateMin || c.rate > RateMax {
		d.Fail("a clock's rate")
	}
}
