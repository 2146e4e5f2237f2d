// Package block is the seam between the two halves of Steadfast: storage
// serves a Device, a virtual machine (or a SCSI logical unit) consumes one.
//
// It names the smallest set of operations that a disk must have to carry a
// cluster: reads, writes, an explicit flush, space reclamation, and the atomic
// compare-and-write that test-and-set locks stand on.
package block

// Sizes every Device agrees on, in bytes.
const (
	SectorSize = 512  // logical block: the unit of addressing
	BlockSize  = 4096 // physical block: the unit that is fast and checksummed
)

// Flags modify one write.
type Flags uint8

// FUA (force unit access): the answer means stable storage, whatever the
// device's write cache would allow. SBC-3, 4.15.
const FUA Flags = 1

// Device is a random-access disk. Offsets and lengths are bytes and multiples
// of SectorSize; a request outside [0, Size()) fails with fault.Invalid and
// touches nothing.
//
// Methods may be called from several goroutines. Requests that overlap in time
// and in place are applied in some one order, each block of BlockSize as a
// whole; a request that has been answered comes before any issued after.
//
// Errors carry a fault.Kind: Corrupt (the stored bytes are not what was
// written), Full, Failed, ReadOnly, Fenced.
type Device interface {
	// ReadAt fills p from off. On error p's content is undefined.
	ReadAt(p []byte, off int64) error

	// WriteAt stores p at off. p is not retained after the return. When it
	// returns nil the data is stable if the device has no write cache or if
	// flags has FUA, and else survives the death of this process but not the
	// loss of power before the next Flush.
	WriteAt(p []byte, off int64, flags Flags) error

	// Flush returns when every write answered before the call is stable.
	Flush() error

	// Trim says that the range's content is no longer needed: it reads as
	// zeros afterwards and its space is free. Durability as for WriteAt.
	Trim(off, n int64) error

	// Zero makes the range read as zeros. It may free space, as Trim does,
	// but unlike Trim it covers parts of blocks as well.
	Zero(off, n int64, flags Flags) error

	// CompareAndWrite stores new at off if the device holds old there, as one
	// atomic step against every other request. It returns -1 when it wrote,
	// and else the offset in bytes, within old, of the first difference.
	// len(old) == len(new).
	CompareAndWrite(off int64, old, new []byte, flags Flags) (mismatch int64, err error)

	// Size returns the device's length in bytes. It can grow while in use.
	Size() int64
}
