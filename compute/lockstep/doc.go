// Package lockstep decides how one machine lives on two hosts: what may leave it,
// who is taken for dead, and who goes on. See docs/adr/0008-lockstep.md. Pure: Step
// takes the time and one input, and returns what is to be done, in order; package
// lockstepio has the links, the machine, and the lock (package vmlock).
//
//	primary's host                                        secondary's host
//	                      pages, state, then the log
//	 machine ---> Primary ------------------------------> Secondary ---> machine
//	    ^ inputs    |   <--------- acknowledgements ---------   |
//	    | disks     | outputs, when they may leave              | nothing leaves
//	    v network   v                                           v
//	 ============ lock block: paired(P, S), alone(P), alone(S) ============ SAN
//
// A Primary:
//
//	         TurnOn       few pages are left   S is Ready, and near   the lock says so
//	Alone ----------> Copying -------> Pausing --> Loading --> Pairing -------------> Paired
//	  ^                  |                |            |          |                   |   |
//	  +------------------+----------------+------------+          | S is lost         |   | HandOver
//	  |   the lock says alone                                     v                   |   v
//	  +------------------------------------------------------- Parting <--------------+-- Yielding
//	                                                              |                        |
//	  Over <--- the lock is another's, or the guest has ended ----+------------------------+
//
// A Secondary:
//
//	Loading --> Following --(the log tells the block)--> Protecting --> Taking --> Draining --> Live
//	   |            |                                        |             |           |
//	   +------------+------------------ Over ----------------+-------------+-----------+
//
// # What must be true
//
//  1. The log is complete up to a horizon. A record of an input says that all
//     inputs of earlier counts are before it; a Horizon says that nothing of an
//     earlier count is to come. The secondary executes no further.
//  2. The Output Rule. An output is numbered where it comes out, and needs a record
//     whose horizon is past the instruction that caused it. It leaves when the
//     secondary has acknowledged that record, or can take the lock no more.
//     Reads are asked at once: nobody sees them.
//  3. A secondary acknowledges what it has in memory, and nothing from the moment on
//     in which it asks for the lock: what it acknowledged it will execute.
//  4. It takes the lock over from one block only, the one that the log told it. The
//     primary tells it after the lock was written, and holds its outputs from that
//     record on; before it goes that record's horizon, so what left earlier is in
//     the log, too.
//  5. A primary lets held outputs go without acknowledgement only when the lock
//     block says alone, or when the secondary said itself that it has ended. A block
//     of one turn never comes again.
//  6. A secondary that has won executes the log to its last horizon, issues each
//     request again that has no completion in the log, sends what was not said to
//     have left, and only then gives the machine new inputs.
//  7. A digest that differs ends the secondary, before the lock or after. It is never
//     papered over: of a machine that nobody can vouch for, the quorum starts a new life.
//
// Silence is no proof of anything and needs to be none: the lock decides. Who was
// not run itself for a while begins to count anew. A connection that ends is no proof,
// either: without the log's the primary parts from its secondary, and the secondary
// waits for the primary's word on the other link, until that ends or is silent, too.
//
// # What is bounded
//
// Whatever a primary waits for has an end, and then it goes on alone: that something
// is heard (Silence), or acknowledged (Stalled), that bytes of the copy are taken, or
// records executed while the machine stands (StuckAfter), that the secondary is ready and
// near (LoadWithin), that it takes over on demand (YieldWithin). Only for the lock it waits,
// and nothing of its machine leaves meanwhile. A machine that is slowed for its
// secondary, which loads or catches up, still goes at a quarter of its speed.
//
// # What its user does
//
// Effects are done in their order. Delivered, Ran and Hashed come in the order of the
// machine's life, and may come late: a count in them says nothing of where the machine
// is now, only that it will never be given an input of an earlier one that was not told.
// A digest is told at a stated interval of counts, right after the Ran of its count. To
// ChangeLock and TakeLock comes one answer each (LockChanged, LockRefused, LockLost);
// LockLost comes unasked, too. Tick comes at least each TickEvery, and Received is
// stepped before a Tick that is due at the same time, both from a goroutine that
// executes no guest.
//
// A session is one pair, from the copy on, on one connection for each link: messages of
// another are not given to a core. A connection whose stream Reader refuses is ended, and
// Broken. Links have to prove who the other one is (the members' mutual TLS).
//
// StateSent may come after what the secondary says to it, and all that the machine does
// after the state was taken comes after StateSent.
//
// A network card is announced more than once when a secondary goes live: the first
// frame may be lost, or be followed by a last one of the old host. What is behind a
// network card must not live in the process that dies: a user-mode network per
// machine does.
package lockstep
