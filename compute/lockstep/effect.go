package lockstep

import (
	"steadfast/compute/device"
	"steadfast/compute/machine"
	"steadfast/compute/vmlock"
)

// Input is what happens to a side.
type Input interface{ input() }

// Inputs of both sides.
type (
	// Tick tells the time, and a Primary how many bytes the log's connection has carried.
	Tick struct{ Carried int64 }
	// Received are messages of a link, of this pair's session, in their order.
	Received struct {
		Link Link
		List []Message
	}
	// Broken tells that the connection of a link has ended, or brought what makes no sense:
	// nothing comes or goes on it any more.
	Broken struct {
		Link Link
		Err  error
	}
	// Gone tells that the other's process is known to have ended.
	Gone struct{}
	// TurnOff ends the pair: the primary goes on. A secondary that takes the lock already
	// does not heed it.
	TurnOff struct{}
	// LockChanged tells that the lock is what ChangeLock asked for, or was taken.
	LockChanged struct{ Block [vmlock.BlockSize]byte }
	// LockRefused tells that it could not be changed, as far as is known.
	LockRefused struct{ Err error }
	// LockLost tells that it is another's.
	LockLost struct{ Err error }
)

// Inputs of a Primary.
type (
	// Delivered tells that the machine was given an input.
	Delivered struct{ In *device.Input }
	// Ran tells that the machine is at Count, and what came out since the last one;
	// their numbers are the core's.
	Ran struct {
		Count   uint64
		Outputs []Out
	}
	// Hashed tells a digest of the machine as it is at the count of the last Ran, or of
	// an input delivered after.
	Hashed struct {
		Count  uint64
		Stripe uint32
		Hash   machine.Hash
	}
	// Ended tells that the guest has ended; Ran came before.
	Ended struct{}
	// Drained tells that all that left before Drain has ended.
	Drained struct{}
	// TurnOn has the machine get a secondary.
	TurnOn struct{ Partner vmlock.Owner }
	// HandOver has the secondary take over now, for a test or a host's maintenance.
	HandOver struct{}
	// Copied tells that a round of pages was sent: Bytes in it, and Left bytes have
	// changed meanwhile.
	Copied struct{ Bytes, Left uint64 }
	// Paused tells that the machine stands still.
	Paused struct{}
	// StateSent tells that the last pages and the state were sent, with Start.
	StateSent struct{}
)

// Inputs of a Secondary.
type (
	// Loaded tells that the machine was made of what came.
	Loaded struct{}
	// Executed tells that the machine has done all up to a record, and is at Count.
	Executed struct {
		Seq     Seq
		Count   uint64
		Outputs []Out
	}
	// Differs tells that the machine is not what a Digest says, cannot be loaded
	// (at 0), or cannot do what the log says.
	Differs struct {
		Count uint64
		Err   error
	}
)

func (Tick) input()        {}
func (Received) input()    {}
func (Broken) input()      {}
func (Gone) input()        {}
func (LockChanged) input() {}
func (LockRefused) input() {}
func (LockLost) input()    {}
func (Delivered) input()   {}
func (Ran) input()         {}
func (Hashed) input()      {}
func (Ended) input()       {}
func (Drained) input()     {}
func (TurnOn) input()      {}
func (TurnOff) input()     {}
func (HandOver) input()    {}
func (Copied) input()      {}
func (Paused) input()      {}
func (StateSent) input()   {}
func (Loaded) input()      {}
func (Executed) input()    {}
func (Differs) input()     {}

// Effect is what a side wants done.
type Effect interface{ effect() }

// Effects of both sides.
type (
	// Send sends a message on a link, if it is connected: what is a Record has a
	// number, and is sent on the log's.
	Send struct {
		Link Link
		Seq  Seq
		Message
	}
	// Release lets outputs leave, in this order.
	Release struct{ Outputs []Out }
	// Event tells people. Why says why a pair ended, and Err, if any, what was the matter.
	Event struct {
		Kind EventKind
		Why  Why
		Err  error
	}
	// Keep has a side keep its log and the machine's state for "machine replay": they
	// differ from the other's at Count.
	Keep struct{ Count uint64 }
	// Halt ends the machine at once: nothing leaves it any more, and the lock is not
	// given back.
	Halt struct {
		Why Why
		Err error
	}
)

// Effects of a Primary.
type (
	// ChangeLock has the lock say that the machine is paired with Partner, or alone:
	// vmlock.Change.
	ChangeLock struct{ Partner vmlock.Owner }
	// Pace has the machine execute for that many percent of the time; at 0 it stands, and
	// gets no inputs either.
	Pace struct{ Percent int }
	// Copy sends pages: all in round 1, then those that changed.
	Copy struct{ Round int }
	// Pause has the machine stand still, until Resume: Ran tells where, with Digest
	// a Hashed follows, then Paused.
	Pause struct{ Digest bool }
	// SendState sends the last pages, the state, and Start with this number of the next
	// output.
	SendState struct{ Output uint64 }
	// Resume has it run.
	Resume struct{}
	// Drop ends the pair's session and its connections.
	Drop struct{ Why Why }
	// Drain asks for Drained: the guest has ended, and all has left.
	Drain struct{}
	// Finish gives the lock back: all is done.
	Finish struct{}
)

// Effects of a Secondary.
type (
	// Load has a machine made of the pages and the parts that came.
	Load struct{ Start Start }
	// Store keeps pages and parts as they come.
	Store struct{ Message }
	// Execute has the machine do what a record says: run to its count, and take the
	// input or compare the digest.
	Execute struct {
		Seq    Seq
		Record Record
	}
	// TakeLock has the lock taken over from this block: vmlock.Config.Pairing, with an
	// attempt of its own, and new connections. LockChanged tells that it is held.
	TakeLock struct{ Block [vmlock.BlockSize]byte }
	// GoLive comes when the log was executed: each output of Machine.Pending is issued
	// again, then Streams leave, the machine's addresses are announced, and it runs with
	// a Primary that begins with the output number Next.
	GoLive struct {
		Streams []Out
		Next    uint64
	}
)

func (Send) effect()       {}
func (Release) effect()    {}
func (Event) effect()      {}
func (Keep) effect()       {}
func (Halt) effect()       {}
func (ChangeLock) effect() {}
func (Pace) effect()       {}
func (Copy) effect()       {}
func (Pause) effect()      {}
func (SendState) effect()  {}
func (Resume) effect()     {}
func (Drop) effect()       {}
func (Drain) effect()      {}
func (Finish) effect()     {}
func (Load) effect()       {}
func (Store) effect()      {}
func (Execute) effect()    {}
func (TakeLock) effect()   {}
func (GoLive) effect()     {}

// EventKind is what people are told.
type EventKind uint8

// Events.
const (
	// Protected: from now on the secondary can go on.
	Protected EventKind = iota + 1
	// Unprotected: there is no secondary any more, and Why.
	Unprotected
	// Diverged: the two machines are not one any more.
	Diverged
	// Waiting: the lock cannot be reached, and nothing leaves until it is.
	Waiting
	// TookOver: the secondary goes on.
	TookOver
)
