package lockstep

import (
	"time"

	"steadfast/compute/device"
	"steadfast/compute/machine"
	"steadfast/compute/vmlock"
)

// Instant is a host's time in nanoseconds, of a clock that does not step and goes on
// while the process is stopped (CLOCK_BOOTTIME).
type Instant int64

// Sub is the time between two instants.
func (t Instant) Sub(o Instant) time.Duration { return time.Duration(t - o) }

// Seq numbers the records of a log, from 1. 0 is none.
type Seq uint64

// Link is one of the two ways between the hosts.
type Link uint8

// Links.
const (
	Logging Link = iota
	Management
)

// Links is how many there are.
const Links = 2

// Message is what one side tells the other.
type Message interface{ message() }

// Record is a message of the log: numbered from 1 in its order, and acknowledged.
type Record interface {
	Message
	record()
}

// Records of the log.
type (
	// Entry is an input of the machine.
	Entry struct{ In *device.Input }
	// Horizon tells that nothing comes before Count that is not in the log. Frames and
	// bytes of the outputs up to Released have left.
	Horizon struct{ Count, Released uint64 }
	// Digest is what a part of the machine was at Count, before inputs of that count
	// that follow. Stripe 0 is the machine's digest, from 1 on stripes of its memory.
	Digest struct {
		Count  uint64
		Stripe uint32
		Hash   machine.Hash
	}
	// Pairing tells the lock block, from which the secondary may take over now.
	Pairing struct{ Block [vmlock.BlockSize]byte }
	// Yield asks the secondary to take over, once it has executed all before: the
	// primary's machine stands still.
	Yield struct{}
	// Finished tells that the guest has ended, and nothing is left to do.
	Finished struct{}
)

func (Entry) message()    {}
func (Horizon) message()  {}
func (Digest) message()   {}
func (Pairing) message()  {}
func (Yield) message()    {}
func (Finished) message() {}
func (Entry) record()     {}
func (Horizon) record()   {}
func (Digest) record()    {}
func (Pairing) record()   {}
func (Yield) record()     {}
func (Finished) record()  {}

// Messages that are no records.
type (
	// Pages are pages of guest memory, from First on: Data is whole pages.
	Pages struct {
		First uint32
		Data  []byte
	}
	// Part is the next part of a machine's saved state.
	Part struct{ Data []byte }
	// Start ends the copy: the machine is at Count, its digest is Hash, and the next
	// output is number Output. The log begins.
	Start struct {
		Count, Output uint64
		Hash          machine.Hash
	}
	// Beat tells that its sender lives.
	Beat struct{}
	// Ack acknowledges all records up to Got, which the secondary has in memory. It has
	// executed those up to Done, and the machine to Count.
	Ack struct {
		Got, Done Seq
		Count     uint64
	}
	// Ready tells that the machine was loaded.
	Ready struct{}
	// Live tells that the secondary goes on alone.
	Live struct{}
	// Bye is the last word of a side: it has ended, and takes no lock from here on.
	Bye struct{ Why Why }
)

func (Pages) message() {}
func (Part) message()  {}
func (Start) message() {}
func (Beat) message()  {}
func (Ack) message()   {}
func (Ready) message() {}
func (Live) message()  {}
func (Bye) message()   {}

// Why is the reason that a pair ended for.
type Why uint8

// Reasons.
const (
	WhyNone       Why = iota
	WhyAsked          // by a person
	WhySilent         // nothing was heard on either link
	WhyStalled        // the log is not acknowledged
	WhyGone           // the other's process has ended
	WhyDiverged       // digests differ
	WhyFailed         // the other could not load or execute the machine
	WhyLock           // the lock could not be changed
	WhyFinished       // the guest has ended
	WhyHandedOver     // on demand
	WhyTooFast        // memory changes faster than it is copied
	WhyBroken         // a connection ended, or brought what makes no sense
	WhySlow           // the secondary takes nothing of the copy, is never ready, or executes nothing
	whyEnd
)

var whys = [whyEnd]string{
	"none", "asked for", "silence", "the log is not acknowledged", "the process has ended", "divergence", "the machine could not be loaded",
	"the lock could not be changed", "the guest has ended", "handed over", "memory changes faster than it is copied", "the connection broke", "the secondary makes no progress",
}

// String returns the reason in words.
func (w Why) String() string {
	if w < whyEnd {
		return whys[w]
	}
	return "?"
}

// Class is what becomes of an output.
type Class uint8

// Classes.
const (
	// Ask changes nothing outside: a read, a wish for randomness. It leaves at once.
	Ask Class = iota
	// Change is a write, flush or discard of a disk. It has a completion.
	Change
	// Stream is a frame, or bytes of a console. It has none.
	Stream
)

// Out is an output of the machine with its number, from 1 in the order in which they came
// out; both sides count alike.
type Out struct {
	Number uint64
	Class  Class
	device.Output
}

// Limits are what a pair is held to.
type Limits struct {
	// BeatEvery is between two heartbeats, Silence how long nothing is heard on both
	// links before the other one of a pair is suspected, Stalled how long a record may be without
	// acknowledgement while something is heard.
	BeatEvery, Silence, Stalled time.Duration
	// HorizonEvery is how long the secondary is left without a horizon when no output
	// needs one, AckEvery how often it tells how far it has come.
	HorizonEvery, AckEvery time.Duration
	// RetryEvery is between attempts at a lock that could not be reached.
	RetryEvery time.Duration
	// YieldWithin is how long a handing over may take.
	YieldWithin time.Duration
	// LagTime is how far the secondary may be behind, and LagBytes how much of the log it may
	// not have executed: from half of that on the primary is slowed, and at it, it waits.
	// HeldBytes is likewise for outputs that wait.
	LagTime             time.Duration
	LagBytes, HeldBytes uint64
	// StuckAfter is how long a primary waits for a secondary that executes nothing, or takes
	// not a byte of the copy, and how long the silence of a side may last for which nothing
	// waits yet: until the lock is asked for, and the secondary was told.
	StuckAfter time.Duration
	// LoadWithin is how long a secondary may take from the copy's end until it is ready, and
	// no farther behind than LagTime.
	LoadWithin time.Duration
	// PauseMax is how long the last pages may take while the machine stands still,
	// RoundsMax how often pages are sent while it runs.
	PauseMax  time.Duration
	RoundsMax int
}

// TickEvery is how often at least a core is told the time.
const TickEvery = 20 * time.Millisecond

// DefaultLimits returns the limits that the product has.
func DefaultLimits() Limits {
	return Limits{
		BeatEvery: 100 * time.Millisecond, Silence: 500 * time.Millisecond, Stalled: 700 * time.Millisecond,
		HorizonEvery: 10 * time.Millisecond, AckEvery: 5 * time.Millisecond, RetryEvery: 200 * time.Millisecond, YieldWithin: 2 * time.Second,
		LagTime: 100 * time.Millisecond, LagBytes: 16 << 20, HeldBytes: 32 << 20,
		StuckAfter: 5 * time.Second, LoadWithin: 30 * time.Second, PauseMax: 100 * time.Millisecond, RoundsMax: 12,
	}
}
