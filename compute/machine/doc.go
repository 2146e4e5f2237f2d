// Package machine is a whole virtual machine as a function: its next state follows from
// its state and the Inputs delivered to it, and from nothing else. See
// docs/adr/0006-machine.md, and docs/DETERMINISM.md for each source of chance and how it
// is kept out.
//
//	Inputs, each at a count                 Outputs, in order
//	   ---------> [ devices <--> RAM <--> processor ] --------->
//	                            Clock
//
// Run takes it to a count of instructions. What a host's clock, disks, networks and
// people add comes in as Inputs, which the caller logs; package machineio does that for a
// machine that lives now, Replay for one whose life is in a log.
//
// Everything but board.go, where the parts are put together, knows nothing of the
// processor's kind. A Machine is one goroutine's property and holds no lock.
package machine
