// Package initiator is an iSCSI initiator (RFC 7143, error recovery level 0,
// one connection a session) that is a block.Device: a disk on a target that
// fails over. A guest of it sees pauses, and no error that it could be spared.
//
// A path is one portal group; its portals are ways to the same nexus, of which
// one is used at a time:
//
//	+--> dial --> log in --> probing --> up <--> up, but not serving (ALUA)
//	|     |         |           |         |            |
//	|     v         v           v         v            v
//	+-- pause <---- failed ---- lost <- draining <-----+ (logout asked for)
//
// The first attempt after a loss is at once; the next ones are at most 250 ms
// apart, without end. Only a target that ends the session and says how long not to
// come back for is waited for longer, 30 s at most. What commands do meanwhile is package nexus's: see there
// for their states.
//
// # What is asked again, and when
//
// Reads are asked again at once, on any path. A write whose answer was lost is
// in doubt: it stays where it is, and holds up what overlaps it, until the
// target can no more perform what was sent. Two things say so, and nothing else:
// the completed login of the same name (InitiatorName and ISID, same portal
// group), by which the target ends the old session's tasks first (RFC 7143,
// 6.3.5); and a PREEMPT AND ABORT of our own registration by another path of
// ours, which ends the lost path's tasks and refuses what is still on its way
// (SPC-4, 5.13.11). The latter needs a reservation of type Write Exclusive –
// Registrants Only, is done when a path has held writes up for Times.Fence, and
// bars the path until Register is called again. Without one, a portal group that
// never comes back keeps its writes in doubt for good: an alias moves, and does
// not do this. A LOGICAL UNIT RESET by another path would not be enough: it ends
// tasks, and not what the old connection still carries.
//
// COMPARE AND WRITE is asked again only after an answer that says it was not
// performed (UNIT ATTENTION, BUSY, TASK SET FULL, NOT READY). If it may have
// been, it ends with ErrUnknown, and only when it can have no effect any more,
// so that reading tells.
//
// # What is an error
//
// Medium errors (fault.Corrupt), a reservation conflict (Fenced), write
// protection (ReadOnly), a full pool (Full), a hardware error (Failed), a
// request the target finds wrong (Invalid), a unit that is not there for
// Times.Missing (NotFound), and a request that was rejected three times
// (Internal). All else is a pause.
//
// # Write caches
//
// There is no journal here. A write that was answered and not flushed, on a
// device with a write cache, is the target's to keep: the mirrored SAN does, over
// a takeover; a target that restarts and loses it is to the guest a loss of
// power. Flush is not more than the target's SYNCHRONIZE CACHE.
//
// Trim makes zeros only as far as the target keeps to LBPRZ for what it unmaps.
//
// # Registrations
//
// A path is never registered by itself: a registration that somebody preempted
// must stay gone, or a host that was fenced would fence itself back in. When the
// target tells that it is gone (REGISTRATIONS PREEMPTED), the request that hears of it
// fails with fault.Fenced, or the next one if none was under way, and all that change
// the disk do until Register is called.
//
// # Trust
//
// Of a target nothing is trusted but the two promises above. Lengths, offsets,
// tags and sequence numbers are checked before use; whatever breaks the
// protocol ends the connection and is asked again. A path that leads to another
// unit than the first one did is not used.
//
// # Goroutines and locks
//
// For each portal a keeper dials and watches; a connection has a receiver, a
// sender and a prober. A caller sends what it begins itself, with what others
// queued meanwhile; when its command is the only one, it receives the answer itself,
// too, which spares a change of goroutines. When nothing is awaited any more nobody
// receives until the next command, or the keeper's next tick, a quarter of Times.Retry
// later at most: that late is heard what a target says unasked, and its end.
//
// Disk.mu is the only lock; it guards the core and all queues, and is not held over
// a read or write of a socket. The last act of who receives is to declare the loss,
// when no sender is left: from then on nobody touches the callers' memory.
package initiator
