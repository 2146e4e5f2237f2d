// Package virtio is a machine's paravirtual devices: block, net, console, entropy
// and a power button, on split virtqueues behind the memory-mapped transport.
// Virtual I/O Device (VIRTIO) Version 1.2, OASIS; sections below are its own.
//
//	driver (guest)                                    device (here)
//	  descriptors + available ring  -- QueueNotify -->  parse, copy out, Output
//	  used ring + buffers           <-- interrupt ----  Input: copy in, used ring
//
// # When guest memory is read and written
//
// A chain is parsed, and what it holds for the device is copied out, by the store
// that notifies of it. What needs the world leaves as an Output; its answer is an Input,
// and only then are the buffers and the used ring written. What the device can answer
// by itself (a frame that leaves, a request that makes no sense) is answered by the
// notifying store at once. So the guest's memory changes at counts that the log
// or the guest's own instructions give, and at no others. A queue that had to be left
// for a while (a bound is reached) is looked at again when an Input makes room.
//
// # A driver that cannot be trusted
//
// Everything in the guest's memory may be nonsense. Rings are within RAM before a
// queue is ready. A chain is no longer than its queue, and every piece of it within
// RAM; one that is not ends with DEVICE_NEEDS_RESET (2.1), after which the device does
// nothing until it is reset. A notification looks at no more chains than the queue
// has descriptors, and each kind bounds the bytes that it keeps.
//
// # Saved states
//
// Every device saves its registers, the rings' places, and what is in flight. The level
// of its interrupt line is the interrupt controller's to save: Restore does not call
// Board.Interrupt. See docs/formats/machine.md.
//
// It trusts the machine to deliver Inputs in the log's order, and locks nothing: a
// device is the machine's goroutine's own.
package virtio
