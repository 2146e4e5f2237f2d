// Package pair simulates two storage nodes and a witness, with their clients, on
// one seed and in virtual time: the real raft, the real rules of cluster/quorum
// and cluster/group, the real mirror, on stores, links and clocks that fail.
//
// Everything is one event loop. A seed decides every delay, fault and request,
// so a history that fails can be run again.
//
// Judges: each block is a linearizable register (what was acknowledged is never
// lost, a read is never stale, nothing of an abandoned request lands after its
// client went on elsewhere); two nodes never serve in the same epoch; a snapshot is
// of one moment, and one that was refused is nowhere; nothing is stored for a resync
// before the state is kept; when the faults end, both nodes serve again, the copies
// are equal, what one node could read is healed on the other, and every client gets
// its answers.
package pair
