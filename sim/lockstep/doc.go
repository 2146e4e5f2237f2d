// Package lockstep simulates one machine on two of three hosts, on one seed and in virtual
// time: the real cores of both sides (compute/lockstep), their stream with its codec, and the
// real lock (compute/vmlock), on hosts, links and storage that fail.
//
// What joins them (lockstepio, compute/host, the quorum's books) is a model. The machine is a
// toy, but a function of its inputs at their counts as a real one is: it promises something to
// each client once, numbered, writes that to its disk before it says so, reads back what it
// wrote, and has a chain in which everything shows that it lived through.
//
// Faults: hosts that freeze (and are declared lost meanwhile, and wake up all the same), lose
// power, and come back under another boot; processes that stop, or are killed, with their guard
// telling or not; logging and management links cut one way or both, late, broken, and flipping
// bits; a SAN that is away for one host or all, answers the lock late, wrongly or not at all, and
// has commands land seconds later, unless they are aborted; secondaries that are slow, take
// nothing of the copy, are never ready, have no room, or whose machine is changed by nothing;
// people who hand over, turn off, and shut the guest down.
//
// Judges: no output leaves whose inputs, and horizon, are not with the secondary that could take
// over, or has; of those that replace a pairing's block one wins; no write lands of one that has
// lost the machine; a promise, and each byte of the console, is said once or the same again,
// without a gap; a read finds what was written; a life that begins anew finds what clients were
// told; nobody begins one while a side is well that has the lock or could take it; nobody goes on
// whose digest was another. When the faults end the machine is protected again and answers, and
// when its guest ends, both sides do, and the lock is given back.
//
// # When one fails
//
// go test ./sim/lockstep -run TestLockstep -seed N prints the history. Fix it, and put the seed
// with what it found into testdata/seeds.txt. -mutant NAME breaks a rule: TestMutants does so with
// each, and each must be noticed.
//
// # What is forgiven
//
// A host that was declared lost, and wakes, may send frames of its life until it hears so: so it
// is without lockstep. A machine that was changed by nothing and goes live before a digest could
// tell is judged no further in this life.
package lockstep
