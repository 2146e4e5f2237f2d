// Package lockstepio has one machine live on two hosts: it drives the cores of package
// lockstep with real machines, connections and clocks. See docs/adr/0008-lockstep.md.
//
//	                  Primary                             Secondary
//	disks, wires, <-- Leave <-- the core --- links ---> the core
//	console             ^        ^     |                 |     ^
//	     |              |  what it did  orders     records  what it did
//	     v              |        |     v                 v     |
//	  machineio.Live: the machine's goroutine      the machine's goroutine
//
// A Primary is the gate (machineio.Gate) of a machine that lives: Attach puts it there, and
// TurnOn gives it a secondary. A Secondary executes what the primary says, until it
// takes over: its Takeover lives on, with a Primary that is alone.
//
// # Goroutines
//
// Inputs of the core are put into a box. One goroutine at a time takes what is in it, has the core
// step, and does the effects; it never waits for the machine, a connection, a disk or the lock. It
// is the core's own goroutine, by a clock or when the machine's rings, or a link's, which has read what
// came: so an answer of the other host need not wake a goroutine more. It is never the machine's,
// which may wait for a processor when there are few: it puts into the box what the machine did, a
// turn at a time, and looks at its orders before each. What is to be sent goes to the socket at once;
// each link has a goroutine that writes what that does not take. The lock is asked by one of its own.
//
// What is in the box and in a link's buffer is bounded by the core: by LagBytes, by
// HeldBytes, and by what one turn of a machine does. The last of the log is kept in memory
// on both sides, up to 32 MiB, for a difference between them: Options.Keep and KeepLog.
//
// # What it trusts
//
// The links bring the other host's bytes, or end: whoever makes them has made sure who is at
// the other end, and that it is of the same build. What a link says is checked all the same,
// and the lock decides, whatever it says. One that says what makes no sense is closed; the pair
// ends when it is the log's.
package lockstepio
