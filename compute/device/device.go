// Package device is what a machine and its devices agree on: the two doors through
// which everything passes that a machine is not a function of, what a device is, and
// the codec of saved states. It knows nothing of any processor.
//
// A machine's next state follows from its state and its Inputs. So a device must be a
// function, too: of the accesses of the processor, of guest RAM, of Inputs delivered
// to it, and of the guest's time. It reads no clock and no randomness of the host,
// starts no goroutine, and iterates over no map where that shows.
//
// What it wants of the world it says by an Output; what comes of it is an Input, at
// an instruction count that the world (a recorder, a log) has decided. An Output
// changes nothing in the machine by itself.
//
// A machine with its devices is one goroutine's property: nothing here locks.
package device

// Port numbers a device of a machine, in the order in which it was made up. Port 0 is
// the machine itself: its clock, its power.
type Port uint16

// Input is one event that comes in from the world.
type Input struct {
	// At is the count of instructions after which, and before the next of which, it
	// is there. Inputs of one count keep their order.
	At   uint64
	Port Port
	// Kind, ID, Status and Data are the device's own. ID is that of the Output which it
	// is the answer to, if it is one.
	Kind   uint8
	Status uint8
	ID     uint64
	Data   []byte
}

// Output is one event that goes out to the world.
type Output struct {
	// At is the count of instructions when it went out: those before the one that
	// caused it.
	At   uint64
	Port Port
	// Kind, ID, Offset, Length and Data are the device's own. Data is the receiver's:
	// the device does not touch it again, and it is no guest RAM.
	Kind   uint8
	ID     uint64
	Offset int64
	Length int64
	Data   []byte
}

// Device is one device on the machine's bus.
type Device interface {
	// Load reads size bytes (1, 2, 4 or 8) of its registers at offset, aligned to
	// size. What is not there reads as zero.
	Load(offset uint64, size int) uint64
	// Store writes them. What is not there ignores it.
	Store(offset uint64, size int, value uint64)
	// Deliver takes an Input. One that makes no sense is ignored: it may come
	// from a log that does not fit, which the machine's hash shows.
	Deliver(in *Input)
	// Save appends the device's state; Restore takes it from a device made up alike.
	// Restore errs with fault.Invalid or fault.Corrupt and is not to be used then.
	Save(e *Encoder)
	Restore(d *Decoder) error
}

// Board is what the machine is for a device.
type Board interface {
	// Emit sends an Output. The machine fills in At and Port.
	Emit(out Output)
	// Interrupt sets the level of the device's interrupt line.
	Interrupt(up bool)
	// Now is the guest's time in nanoseconds since the machine began.
	Now() uint64
	// Wall is the guest's wall clock in nanoseconds since 1970, UTC.
	Wall() uint64
}
