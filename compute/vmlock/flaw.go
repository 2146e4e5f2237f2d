package vmlock

// Flaw is a rule that a test has this package break, to see that breaking it is
// noticed. The product never sets one.
type Flaw uint8

const (
	flawNone           Flaw = iota
	flawWriteFirst          // data is written before others are preempted
	flawPreemptFirst        // others are preempted before the block is won
	flawNonceUnchecked      // the block is one's own if it is of one's host
	flawKeyReused           // a host has one key, in all its lives
	flawNoLook              // the block is not looked at before a preemption
	flawNoJoinCheck         // the block is not read again before Open
	flawTidy                // a reservation is given back with the lock
	flawNoAbort             // PREEMPT, without ABORT
	flawNoPreempt           // others stay registered
	flawBlindRetry          // a COMPARE AND WRITE without an answer is sent again, and a miscompare believed
	flawSameTurn            // a pairing has the turn and the nonce of the one before
	flawAnyPairing          // a secondary replaces whatever block it finds
)

// Flaws by name, for the simulation.
func Flaws() map[string]Flaw {
	return map[string]Flaw{"no-preempt": flawNoPreempt, "blind-retry": flawBlindRetry, "same-turn": flawSameTurn, "any-pairing": flawAnyPairing}
}
