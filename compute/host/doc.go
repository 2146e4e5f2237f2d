// Package host is what a host process runs machines with: it follows the inventory, and for
// each machine that is placed on this host, in this life of it, takes the machine's lock, starts
// its process, looks after it, and says how it ended.
//
//	Active placement                                                       said
//	------> opening --> locking --> reading home --> running --> draining ------> forgotten
//	          disks      vmlock        vmhome          vmm       release    End, or another
//	            |          |             |              |           |       placement
//	            +----------+-------------+--------------+-----------+
//	                 stop wanted, lock lost, life over, process closed
//
// A machine may have a secondary on another host (docs/adr/0008-lockstep.md), which is a run
// of that host's:
//
//	Placement.Second                                      TookOver                       said
//	------> opening --> waiting ------> following ----------------> running, as above ------>
//	          disks       primary's       vmm        |
//	                      links                      +--> the pair has ended: Part
//
// Its volumes are opened and its networks attached beforehand; nothing passes either way until
// the lock was taken over from the pair's block.
//
// # Who decides what
//
// The inventory says what shall run here; the lock block on the machine's home volume says
// whether it may (package vmlock). What becomes of a machine that ended is package placement's to
// judge: this host asks it with its own word as the only report, and makes that one decision
// come true itself. So a guest's shutdown is known as such however
// few nodes there are to tell, and a machine that cannot run here is placed elsewhere, or has
// ended, by the same rules as one whose host was lost.
//
// Of a pair the inventory says which host is to have the secondary, and what has become of it: the
// machine's host says that it can go on, or is no more, and the secondary's that it has taken
// over. Between the two the lock decides, and neither asks anybody else. What is said
// late, or never, costs nothing but that another secondary comes later.
//
// # What must be true
//
//   - Nothing is written to a machine's volumes before its lock was told Held, and nothing is
//     sent after Stop: between each volume and everybody who uses it there is a gate, which is shut
//     before anything else is done. What was sent before is the target's to refuse.
//   - An attempt has nexuses of its own: its initiators are opened for it, with an ISID that no
//     other has had in this life, and closed with it. See Host.isid.
//   - A machine that is one of a pair has its lock say so, from before its secondary may go
//     on until after that may no more; and a life of the guest begins only when the lock says
//     that there is none: what goes on from the life before would write over this one.
//   - Of a machine whose process died, or that goes on elsewhere, the lock is not given back: its
//     secondary takes it over from the block as it is.
//   - A guest whose lock is lost is answered nothing any more by its disks, and its process is
//     killed: one that reads on would show people a past. The lock is looked at every
//     Times.Check, for a guest that only reads meets no conflict.
//   - A life of the guest begins when all that the one before had asked of the disks
//     has ended. So has it before the lock is given back; if it does not within Times.Drain,
//     the lock is left as it is, for the next holder to fence.
//   - A life of the host that was declared lost, or followed by another, ends all
//     machines before a new one is entered. What those machines were is not said then; what
//     had ended before is.
//
// # What waits without end
//
// A guest, while storage is away: it sees a pause, as package initiator says. And a
// machine that is to start while its volumes cannot be reached: after a power cut storage
// may come back last. Everything else is bounded, and what cannot be done is said. A
// machine that waits can be stopped.
//
// # Goroutines and locks
//
// Host has one goroutine that follows the inventory and one that says how machines ended; a
// run has one that carries a machine from beginning to end; a keeper one that owns the lock's
// core, and one for each of its commands that is under way. Host.mu guards the list of
// runs, run.mu what is told of one and what is wanted of it; the first may be held when the
// second is taken. Neither is held while something waits.
package host
