// Package vmlock decides how a host takes the lock of a machine, keeps it, gives
// it back and loses it: the lock block in the machine's home volume, and the
// reservations of all its volumes. Pure: commands are effects, their answers
// inputs, one at a time.
//
//	            read it, register home,  register, reserve, PREEMPT AND ABORT
//	            COMPARE AND WRITE       on each volume, read the block again
//	Taking  ----------------------> won ------------------------------------> Holding
//	   |                             |                                          |
//	   | another is newer            | another is newer        Release: block   | conflict, or the
//	   v                             v                                          v block is another's
//	 Over <---------------------------------------------------------------------+  Stop
//
// # What must be true
//
// Once a host was told Held, nothing lands on the volumes that another host sent,
// or this one under an earlier lock, until another is told Held. Clocks have no
// part in it.
//
//  1. The block decides who is newer. It is replaced by COMPARE AND WRITE only,
//     by a greater generation (or by the same host's later attempt at the same
//     one, or as 7 says), and never has the same bytes twice: each has a nonce. So
//     among those who try, the order is that of the block's values.
//
//  2. A host writes data only on nexuses that were registered, with a key that no
//     other attempt has, before it read the block for the last time and found
//     its own value. Who wins the block after that reads the keys later still, so
//     it finds that key, and PREEMPT AND ABORT takes it away; with its answer
//     the tasks of that key's nexuses have ended. SPC-4, 5.13.11.
//
//  3. Who won the block before that read was found by it. (The keys would show
//     it, too: of two hosts that each register and then read, one finds the other
//     on every volume. The read of the block spares a machine's start.)
//
//  4. Nothing undoes a preemption: a reservation stays on each volume from
//     its first holder on. When the lock is given back, only the block says so:
//     keys and reservations stay for the next one to preempt. Were they given
//     back, a host that froze two holders ago could wake to volumes that take its
//     queued writes.
//
//  5. A host looks at the block between reading the keys and preempting one: who
//     registered there before that look and is newer, it finds newer. So a host
//     that froze half way, and wakes, takes nothing from a newer holder.
//
//  6. A nexus that may carry data is registered once. If it was preempted, so is
//     everything that waits behind it.
//
//  7. Within a generation a block changes by its holder (Change: one of a pair, or
//     alone again) and by the partner that a pair's block names (Config.Pairing), each
//     time with the next turn. The partner replaces the very block that it was told, so
//     of the two one wins, and a partner of an earlier pairing never does. What it
//     does then is what everybody does who has won.
//
//  8. A change whose answer tells nothing is read: the block is as it was, as it was to
//     be, or another's. One that failed may have landed; whatever follows it looks first.
//
// The home volume is reserved, too, and COMPARE AND WRITE is a write: so a host
// registers there before it has won anything. That right is all it uses there.
//
// # What it trusts
//
//   - Nexuses are this attempt's own and fresh: an earlier attempt's connections,
//     of this process too, are never used again, and their session identifiers
//     are others. A key is of a nexus, and what was queued on a nexus before it
//     was preempted would pass if it registered again.
//   - A command that was answered Unknown does not land any more: the initiator
//     says so only when the nexus was reinstated, which ends its tasks (RFC 7143,
//     6.3.5). A host that is frozen is told nothing, and its command may land at
//     any time.
//   - The target keeps reservations over its own restarts and takeovers (APTPL).
//   - Attempts of one host's life at one generation are one after the other, with
//     Attempt going up. A host that was Held and lost the lock does not try that
//     generation again, but as another pair's partner.
//   - A pair's block is told to one process only.
//
// # What its user does
//
// One command at a time, each answer with its Seq. Data is written from Held on,
// to begin with on the nexuses of Config; on others when they are Opened. Any
// RESERVATION CONFLICT of a data command, or its nexus's REGISTRATIONS PREEMPTED,
// is a Conflicted input. Stop means now: end the machine, let nothing it has
// queued be sent, and write nothing more. Release is for when the machine has
// ended and all its commands were answered. Check reads the block now and then:
// a host that only reads would not notice otherwise that it is not the holder.
package vmlock
