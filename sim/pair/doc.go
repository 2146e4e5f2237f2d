// Package pair simulates two storage nodes and a witness, with their clients, on
// one seed and in virtual time: the real raft, the real rules of cluster/quorum
// and cluster/group, the real mirror, on stores, links and clocks that fail.
//
// Everything is one event loop. A seed decides every delay, fault and request,
// so a history that fails can be run again. Histories are of two families.
//
// The pair's (Run) stand on toy stores and toy clients: many a second, for the
// rules of who may act, what may be answered, and resync.
//
// The units' (RunUnits) have the real pool (san/store, through mirrorio.PoolStore)
// on a drive that crashes, tears, loses, misdirects and rots (drivetest), the real
// device server (san/lun) with the real state volume (san/statevol), and initiators
// that log in to the alias and send SCSI commands: reads, writes, FUA, SYNCHRONIZE
// CACHE, COMPARE AND WRITE, WRITE SAME, UNMAP, PERSISTENT RESERVE IN and OUT, ABORT
// TASK, LOGICAL UNIT RESET. What joins them to the mirror, to the quorum and to the
// alias (mirrorio.Group, node/ha, san/aliasio, san/target) is a model, on fibers:
// the device server's tasks block, and one runs at a time; see fiber.go.
//
// Faults: crash of the process, loss of power, both in the middle of a write or of
// the recovery; pause, with the clock stopped, too; drift, steps of the wall clock;
// slow drives, failing ones, full ones; damage at rest; links cut one way or both,
// datagrams lost, doubled and out of order; connections that break; packets and
// decisions that are late; a node replaced by an empty one.
//
// Judges of the units' family: each sector, and each large piece that is
// written as one, is a linearizable register, where nothing lands after the answer to
// what ended it; who is fenced by PREEMPT AND ABORT writes nothing from its answer
// on, and who is registered is known to be, over takeovers, and with APTPL over losses
// of power; of those who take a lock by COMPARE AND WRITE one wins; a snapshot is of
// one moment of both units; one node answers for the alias at a time; every task of a
// device server ends; both copies and their common snapshots are equal in the end.
//
// Judges of both: each block is a linearizable register (what was acknowledged is never
// lost, a read is never stale, nothing of an abandoned request lands after its
// client went on elsewhere); two nodes never serve in the same epoch; a snapshot is
// of one moment, and one that was refused is nowhere; nothing is stored for a resync
// before the state is kept; when the faults end, both nodes serve again, the copies
// are equal, what one node could read is healed on the other, and every client gets
// its answers.
//
// # A history
//
// world.history: the nodes start, clients begin to ask, some faults happen one after
// the other, each with its end planned. Then it is calm: no new faults, and everything
// has to come back by itself (calmDown), or that is the failure. Last the judges look
// at what clients saw, and at what is on the disks.
//
// # When one fails
//
// go test ./sim/pair -run TestUnits -seed N prints the history whole; its last lines
// are of the judge, and explain what it says by the operations that it is about. Fix it,
// and put the seed with what it found into testdata/seeds.txt. A judge that never fails
// judges nothing: TestMutants breaks one rule at a time, and each must be noticed.
// Likewise coverage: what no history comes across is not tried.
//
// # What is forgiven
//
// After every node of the set had lost its memory at once (world.revivals), what no
// flush had made stable may be gone, as of any disk with a cache. A drive that lies
// (profile.lies) may lose what one node alone had. A snapshot that could not be read
// whole when the other node was given it (world.unreadable) may be on one node only.
// Nothing else is.
//
// # Where things are
//
//	world, run      virtual time, the network; profiles, faults, the end
//	node            a member's lives: raft, mirror, and what joins them
//	medium          what a node keeps its copy on:
//	  store, disk, snapshots         a toy
//	  pool, snapshots_pool           the real pool on a drive that fails
//	client, judge   of the pair's family: what clients do, and what is held of it
//	host, command, fence, deeds      likewise of the units'
//	serve, unit, fiber               what node/ha and mirrorio are, as a model
package pair
