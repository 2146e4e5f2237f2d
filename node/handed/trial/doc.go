// Package trial shows that a disk survives what is done to its nodes: a small iSCSI
// initiator, and a load that stamps every block it writes and judges every block it
// reads. "steadfast up" and "steadfast demo" run it.
//
//	Load    workers, each with blocks of its own: write a stamp, read it back
//	Disk    requests, which wait until they are answered, over any number of sessions
//	session one connection, from its login to its end
//
// What has no answer when a session ends is sent again in the next one, oldest
// first, as initiators do. A disk that goes away for a while is thus a slow one.
//
// It is no initiator to build on: requests are small, digests and CHAP are left
// out, and one connection is all there is. It trusts the target to keep to the
// protocol, checks lengths all the same, and takes nothing on faith that it reads.
//
// Locks: Disk.mu and Load.mu, never both.
package trial
