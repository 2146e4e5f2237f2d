package vmlock

// flaw is a rule that a test has this package break, to see that breaking it is
// noticed. Outside of tests there is none.
type flaw uint8

const (
	flawNone           flaw = iota
	flawWriteFirst          // data is written before others are preempted
	flawPreemptFirst        // others are preempted before the block is won
	flawNonceUnchecked      // the block is one's own if it is of one's host
	flawKeyReused           // a host has one key, in all its lives
	flawNoLook              // the block is not looked at before a preemption
	flawNoJoinCheck         // the block is not read again before Open
	flawTidy                // a reservation is given back with the lock
	flawNoAbort             // PREEMPT, without ABORT
)
