// Package drive is what a pool stands on: one file or block device, reached
// past the page cache where the operating system allows it.
//
// A Drive is a plain array of blocks. It retries nothing and remembers one
// thing: after a failed write or flush it fails every later one, because the
// kernel may have dropped the data the failure was about, and a later success
// would say otherwise.
package drive

// BlockSize is the unit of every offset and length, in bytes.
const BlockSize = 4096

// Read is one read of a batch.
type Read struct {
	P   []byte
	Off int64 // bytes
	Err error // as ReadAt would have returned it
}

// ReadEach does a batch one read after the other, for drives that know no
// better.
func ReadEach(d interface{ ReadAt([]byte, int64) error }, reads []Read) {
	for i := range reads {
		reads[i].Err = d.ReadAt(reads[i].P, reads[i].Off)
	}
}

// Drive is one storage device of a pool. Offsets and lengths are bytes and
// multiples of BlockSize; buffers start at multiples of BlockSize (package
// bufpool makes such). Methods may be called from several goroutines;
// overlapping writes in flight are the caller's mistake.
//
// Errors carry fault.Full when the filesystem below has no space (nothing was
// harmed, the drive goes on), fault.Corrupt when a read cannot be had (a bad
// sector: others may be fine), and fault.Failed for everything else.
type Drive interface {
	// ReadAt fills p from off.
	ReadAt(p []byte, off int64) error

	// ReadBatch does several reads at once, each into its P from its Off, and
	// sets each one's Err. Drives that can have them in flight together.
	ReadBatch(reads []Read)

	// WriteAt stores bufs one after the other from off. When it returns the
	// data survives the death of this process, but not the loss of power.
	WriteAt(bufs [][]byte, off int64) error

	// WriteDurable is WriteAt, and the data survives the loss of power too.
	// It says nothing about earlier calls of WriteAt.
	WriteDurable(bufs [][]byte, off int64) error

	// Flush returns when everything written before the call is stable.
	Flush() error

	// Reserve makes sure that later writes into the range cannot fail for
	// want of space, and are as fast as overwriting. Its content is undefined
	// afterwards. Fails with fault.Full.
	Reserve(off, n int64) error

	// Discard says that the range's content is not needed. A hint.
	Discard(off, n int64) error

	// Size returns the usable length in bytes; a grown device grows.
	Size() int64

	// Close releases the device. It does not flush.
	Close() error
}
