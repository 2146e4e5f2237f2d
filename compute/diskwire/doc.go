// Package diskwire carries a block.Device from the process that has it to one that must
// have nothing else: a machine's.
//
//	vmm process                                                host process
//	Client (a block.Device) --- socket pair: requests -------> Server ---> block.Device
//	    |                  <--- answers, the device's size ---    |        (an initiator)
//	    +------------- memfd, mapped by both: data ---------------+
//
// Server makes both descriptors and serves; Client takes them. No data goes through the
// socket, and nothing but it wakes anybody.
//
// # The memory
//
// A memfd of slots of SlotBytes each, sealed against any change of its size before the
// other side has it: a mapping that can be cut short would kill who reads it. A request
// owns one slot from when it is sent until it is answered; there are as many requests
// under way as there are slots. Larger reads and writes are cut at multiples of
// block.BlockSize into some of a slot's size, since a block is never to be torn.
//
// # The socket
//
// A pair of SOCK_SEQPACKET sockets. A packet is one or more records, little-endian, and
// as many as there are when it is sent: at depth a system call is shared by many requests.
//
//	request, 24 bytes                          answer, 16 bytes
//	 0  operation: 1 read, 2 write, 3 flush,    0  1: an answer
//	    4 trim, 5 zero, 6 compare and write     1  0: done; else 1 + the fault.Kind
//	 1  flags: 1 FUA                            2  slot
//	 2  slot                                    4  bytes of text, in the slot, of a fault
//	 4  0                                       8  compare and write: the mismatch, or -1
//	 8  offset, in bytes
//	16  length, in bytes                       size, 16 bytes
//	                                            0  2: the device's size
//	                                            1  0
//	                                            8  bytes
//
// A write's data is at the beginning of its slot, and so is a read's afterwards; compare
// and write has what is compared there, and what is written right behind it. The first
// packet of the server is the size; there is another one whenever that has changed.
//
// # Trust
//
// The client trusts its server. The server trusts nothing:
//
//   - A record that no Client sends (unknown, reserved bits, a slot that is in use or
//     that there is not, a length beyond it, a range that is no range) ends the service,
//     with an error: whoever sent it is no client of ours any more. A range
//     outside of the device is answered as a fault, and never gets to it.
//   - What is written is copied out of the shared memory once, before anything looks at
//     it, and what was read is copied into it when the device is done. The device would
//     otherwise see memory that changes under it: an initiator's data digest
//     would not match what it sent, a request that is asked again would not be the same, and
//     two halves of a mirror would differ.
//   - What it may ask for at once is bounded by its slots, answers that it does not take
//     by twice as many. Descriptors that it sends are dropped by the kernel.
//
// # Requests that take long
//
// Each request under way has a goroutine of the server's, so that one that is held (by an
// initiator, during a takeover, for minutes) holds up nothing but its slot. When the
// client has gone, Serve returns as soon as its requests have ended: until then they may
// still change the device.
//
// # Locks
//
// Client.mu and outbox.mu are never held together, and nothing waits under them.
package diskwire
