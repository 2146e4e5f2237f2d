package drive

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/internal/invariant"
)

// bufferedMax is the largest WriteAt, in bytes, that goes through the page
// cache. A small write that need not be stable is answered faster from there
// than from any drive; a larger one, which many wait for together, costs less
// when the kernel does not copy it and write it back later.
const bufferedMax = 12 << 10

// iovMax is how many buffers one system call takes. Linux: UIO_MAXIOV.
const iovMax = 1024

// File is a Drive on a regular file or a block device.
type File struct {
	path   string
	direct *os.File // O_DIRECT where the filesystem has it, else as plain
	plain  *os.File // through the page cache
	device bool     // a block device
	size   int64    // bytes, a multiple of BlockSize
	ring   *ring    // for reads when there are several; nil where there is no io_uring

	reading atomic.Int32 // reads in flight

	// failed holds the first error of a write or flush. It is never cleared:
	// after a failed fsync the kernel marks the pages clean, so that the next
	// fsync succeeds although the data is lost.
	failed atomic.Pointer[error]
}

var _ Drive = (*File)(nil)

// CreateFile makes a sparse file of size bytes for a drive. It refuses a path
// that exists (fault.Exists).
func CreateFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Exists, "%s exists already; choose another path or remove it first", path)
	}
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot create the drive file")
	}
	err = f.Truncate(size / BlockSize * BlockSize)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fault.Wrap(fault.Failed, err, "cannot size the drive file")
	}
	return nil
}

// OpenFile opens the file or block device at path as a drive, for this process
// alone: fault.Busy when another one has it (or, for a device, when it is
// mounted). fault.NotFound when there is none.
func OpenFile(path string) (*File, error) {
	d, err := openFile(path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.plain.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = d.Close() // nothing was written
		return nil, fault.New(fault.Busy, "drive %s is in use by another process; stop it first (fuser -v %s tells which)", path, path)
	}
	return d, nil
}

// OpenFileReadOnly opens a drive for reading only, beside whoever has it. What
// it reads of a drive in use may be of two moments.
func OpenFileReadOnly(path string) (*File, error) { return openFile(path, os.O_RDONLY) }

func openFile(path string, mode int) (*File, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "drive %s does not exist", path)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot look at drive "+path)
	}
	d := &File{path: path, device: info.Mode()&fs.ModeDevice != 0}
	if !d.device && !info.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "drive %s is neither a regular file nor a block device", path)
	}
	if d.device && mode != os.O_RDONLY {
		mode |= unix.O_EXCL // the kernel refuses a device that is mounted or otherwise held
	}
	if d.plain, err = os.OpenFile(path, mode, 0); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return nil, fault.New(fault.Busy, "device %s is mounted or held by another program", path)
		}
		return nil, fault.Wrap(fault.Denied, err, "cannot open drive "+path)
	}
	// The second opening shares the first one's exclusive hold, so without O_EXCL.
	if d.direct, err = os.OpenFile(path, mode&^unix.O_EXCL|unix.O_DIRECT, 0); err != nil {
		d.direct = d.plain
	}
	size, err := d.plain.Seek(0, 2)
	if err != nil {
		_ = d.Close() // nothing was written
		return nil, fault.Wrap(fault.Failed, err, "cannot size drive "+path)
	}
	d.size = size / BlockSize * BlockSize
	if r, err := newRing(int(d.direct.Fd())); err == nil { // else: an old kernel, or a sandbox forbids it
		d.ring = r
	}
	return d, nil
}

// Direct reports whether the drive is read and written past the page cache.
func (d *File) Direct() bool { return d.direct != d.plain }

// Path returns what the drive was opened by.
func (d *File) Path() string { return d.path }

// Size implements Drive.
func (d *File) Size() int64 { return d.size }

// ReadAt implements Drive.
func (d *File) ReadAt(p []byte, off int64) error {
	d.check(off, len(p))
	defer d.reading.Add(-1)
	// A lone read is answered soonest by a plain system call; several at once
	// would each take a thread.
	read := d.pread
	if d.reading.Add(1) > 1 && d.ring != nil {
		read = d.ring.read
	}
	for len(p) > 0 {
		n, err := read(p, off)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return fault.Wrap(fault.Corrupt, err, fmt.Sprintf("drive %s: reading %d bytes at %d", d.path, len(p), off))
		case n == 0:
			return fault.New(fault.Failed, "drive %s ends before %d: was it truncated?", d.path, off)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// ReadBatch implements Drive. What comes back short is read again alone.
func (d *File) ReadBatch(reads []Read) {
	if d.ring == nil || len(reads) == 1 {
		ReadEach(d, reads)
		return
	}
	for i := range reads {
		d.check(reads[i].Off, len(reads[i].P))
	}
	d.reading.Add(1)
	defer d.reading.Add(-1)
	results := make([]int32, len(reads))
	d.ring.readBatch(reads, results)
	for i := range reads {
		reads[i].Err = nil
		if int(results[i]) != len(reads[i].P) {
			reads[i].Err = d.ReadAt(reads[i].P, reads[i].Off)
		}
	}
}

func (d *File) pread(p []byte, off int64) (int, error) {
	return unix.Pread(int(d.direct.Fd()), p, off)
}

// WriteAt implements Drive.
func (d *File) WriteAt(bufs [][]byte, off int64) error {
	fd := d.direct
	if length(bufs) <= bufferedMax {
		fd = d.plain
	}
	return d.write(fd, bufs, off, 0)
}

// WriteDurable implements Drive. RWF_DSYNC makes the kernel use the device's
// force-unit-access write where it has one, and a flush after it where not.
func (d *File) WriteDurable(bufs [][]byte, off int64) error {
	return d.write(d.direct, bufs, off, unix.RWF_DSYNC)
}

func (d *File) write(f *os.File, bufs [][]byte, off int64, flags int) error {
	d.check(off, length(bufs))
	if err := d.failed.Load(); err != nil {
		return *err
	}
	fd := int(f.Fd())
	for len(bufs) > 0 {
		n, err := unix.Pwritev2(fd, bufs[:min(len(bufs), iovMax)], off, flags)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
			return fault.Wrap(fault.Full, err, fmt.Sprintf("drive %s: no space in its filesystem", d.path))
		case err == nil && n == 0:
			err = unix.EIO
			fallthrough
		case err != nil:
			return d.fail(err, fmt.Sprintf("writing at %d", off))
		}
		off += int64(n)
		bufs = advance(bufs, n)
	}
	return nil
}

// Flush implements Drive.
func (d *File) Flush() error {
	if err := d.failed.Load(); err != nil {
		return *err
	}
	for {
		err := unix.Fdatasync(int(d.plain.Fd()))
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		default:
			return d.fail(err, "flushing")
		}
	}
}

// zeroBytes is how much Reserve writes at a time: a small durable write that
// comes meanwhile waits for one such on the device.
const zeroBytes = 128 << 10

// Reserve implements Drive. For a file, blocks are allocated and then written:
// a filesystem that only promises space has to commit its own journal when a
// durable write first uses it, which costs more than the write.
func (d *File) Reserve(off, n int64) error {
	d.check(off, int(n))
	if d.device || d.written(off, n) {
		return nil
	}
	if err := d.failed.Load(); err != nil {
		return *err
	}
	err := unix.Fallocate(int(d.plain.Fd()), 0, off, n)
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.Wrap(fault.Full, err, fmt.Sprintf("drive %s: its filesystem has no space for %d more bytes", d.path, n))
	case err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINTR):
		return d.fail(err, "allocating space")
	}
	zeros := bufpool.Get(zeroBytes)
	defer bufpool.Put(zeros)
	clear(zeros)
	for done := int64(0); done < n; {
		part := min(n-done, int64(len(zeros)))
		if err := d.write(d.plain, [][]byte{zeros[:part]}, off+done, 0); err != nil {
			return err
		}
		if err := d.writeOut(off+done, part); err != nil {
			return err
		}
		done += part
	}
	_ = unix.Fadvise(int(d.plain.Fd()), off, n, unix.FADV_DONTNEED)
	return nil
}

// writeOut has a range of the page cache written, as no flush does for what lies
// elsewhere. A filesystem that finds space only now may find none: then it is
// full, and the drive has not failed.
func (d *File) writeOut(off, n int64) error {
	for {
		err := unix.SyncFileRange(int(d.plain.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
			return fault.Wrap(fault.Full, err, fmt.Sprintf("drive %s: no space in its filesystem", d.path))
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ESPIPE):
			return d.Flush() // a kernel or a filesystem without it
		default:
			return d.fail(err, "writing zeros")
		}
	}
}

// written reports whether the filesystem holds data for all of the range.
func (d *File) written(off, n int64) bool {
	data, err := unix.Seek(int(d.plain.Fd()), off, unix.SEEK_DATA)
	if err != nil || data != off {
		return false
	}
	hole, err := unix.Seek(int(d.plain.Fd()), off, unix.SEEK_HOLE)
	return err == nil && hole >= off+n
}

// Discard implements Drive.
func (d *File) Discard(off, n int64) error {
	d.check(off, int(n))
	err := unix.Fallocate(int(d.plain.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINTR) {
		return d.fail(err, "discarding")
	}
	return nil
}

// Close implements Drive.
func (d *File) Close() error {
	var errs []error
	if d.ring != nil {
		errs = append(errs, d.ring.close())
	}
	if d.direct != nil && d.direct != d.plain {
		errs = append(errs, d.direct.Close())
	}
	if d.plain != nil {
		errs = append(errs, d.plain.Close())
	}
	return errors.Join(errs...)
}

// fail remembers the first failure and returns it.
func (d *File) fail(err error, doing string) error {
	err = fault.Wrap(fault.Failed, err, fmt.Sprintf("drive %s: %s", d.path, doing))
	d.failed.CompareAndSwap(nil, &err)
	return *d.failed.Load()
}

func (d *File) check(off int64, n int) {
	invariant.Check(off >= 0 && off%BlockSize == 0 && n%BlockSize == 0 && off <= math.MaxInt64-int64(n) && off+int64(n) <= d.size,
		"drive %s of %d bytes: %d bytes at %d", d.path, d.size, n, off)
}

func length(bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return n
}

// advance returns bufs without their first n bytes, and leaves the caller's
// slice as it was.
func advance(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n == 0 {
		return bufs
	}
	rest := append([][]byte(nil), bufs...)
	rest[0] = rest[0][n:]
	return rest
}
