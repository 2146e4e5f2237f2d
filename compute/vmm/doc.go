// Package vmm is the process that one machine runs in, and what its parent does to have
// one: a guest that breaks out of the emulation is still in a process that has nothing.
//
//	parent (names, secrets, sockets, files)          vmm process
//	  Start ----------- control socket ------------> Run: sandbox, then machineio.Live
//	    disks, console, wires, log, states: as descriptors
//
// # The process
//
// It is this program again, under the hidden command Command, with no environment to speak of and one
// descriptor: the control socket. Everything else that it ever uses comes through that:
// open files and sockets, never a name. Before it looks at the first message it
//
//   - closes every descriptor that it has inherited, but that and the standard ones;
//   - takes limits on descriptors and core dumps, and makes itself not dumpable;
//   - gives up gaining privileges, and installs a seccomp filter on all threads, which
//     kills it for any system call that is not on the list of seccomp.go: it cannot open
//     a file, make a socket, connect one, start a program or signal another process.
//
// It ends with its parent: by the kernel's parent-death signal, and by the control
// socket's end. Its session is its own: what is typed at the parent's terminal to end the
// parent does not reach it.
//
// # The control socket
//
// A pair of SOCK_SEQPACKET sockets: a packet is one JSON object, at most messageMax bytes.
// The parent sends a request; descriptors come with it, in the order that it says. Each
// is answered by one reply with its ID, and when the machine has ended there is one with
// the ID 0. docs/OPERATING.md says what the commands of steadfast make of that.
//
// # Disks
//
// A disk is an open file, which the process has, or a device of the parent's: an initiator,
// with its sessions and secrets. The process has a socket and a memory of that, and
// package diskwire is between. Its requests can take as long as a takeover does; the guest
// waits for those, and nothing else does. A machine that is ended lets them go, and
// what they do to the device is over when Process.Drained says so.
//
// # Two hosts
//
// A machine may live in two processes, on two hosts: package lockstepio is in both. TurnOn gives
// a process a secondary, which another host has started with Options.Secondary; both have the
// ends of two stream sockets, and their parents have made sure who is at the other one. A
// secondary has descriptors of the same disks, and uses none before it goes on. Each parent has
// the machine's lock, and its process asks for it on the control socket, as it tells of events: in
// packets with the ID 0.
//
// # Trust
//
// The process trusts its parent. The parent trusts nothing that comes from the process:
// packets are bounded, descriptors are not taken, frames are the network's to judge, and
// what it prints is kept to its last bytes, without what a terminal would obey. A packet that
// is no answer to anything is the end of the process, and so is a wish to have the lock
// shared with whom nobody has named, a request that it does
// not take, one to a disk that nobody makes, or no end after its last word.
//
// # Locks
//
// Process.mu guards the list of requests that are not answered yet. Nothing waits under it.
package vmm
