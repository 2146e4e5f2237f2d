// Package lockstepio has one machine live on two hosts: it drives the cores of package
// lockstep with real machines, connections and clocks. See docs/adr/0008-lockstep.md.
//
//	                  Primary                                      Secondary
//	disks, wires, <-- Leave <-- core's goroutine --- links ---> core's goroutine
//	console             ^            ^     |                        |      ^
//	     |              |     what it did  orders                records   what it did
//	     v              |            |     v                        v      |
//	  machineio.Live: the machine's goroutine                    the machine's goroutine
//
// A Primary is the gate (machineio.Gate) of a machine that lives: Attach puts it there, and
// TurnOn gives it a secondary. A Secondary executes what the primary says, until it
// takes over: its Takeover lives on, with a Primary that is alone.
//
// # Goroutines
//
// The core's goroutine owns the core and never waits for the machine, a connection, a disk or
// the lock: it takes inputs from a box, has the core step, and does the effects. It has a
// clock of its own. The machine's goroutine puts into the box what the machine did, a turn at
// a time, and looks at its orders before each. Each link has one goroutine that reads and one
// that writes; the lock is asked by one of its own.
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
