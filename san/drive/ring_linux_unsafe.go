package drive

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring reads from one file through Linux's io_uring: with many reads in
// flight it takes no thread for each, and several are handed to the kernel by
// one system call. Only reads go through it; a store has one write in flight.
//
// Memory: the kernel writes into the caller's buffer while the caller waits in
// read, which keeps the buffer alive; Go's heap does not move, and a buffer
// passed to read escapes to it.
//
// Layouts and semantics: io_uring(7), io_uring_setup(2), io_uring_enter(2).
type ring struct {
	fd     int
	target int      // the file read from
	event  *os.File // signalled by the kernel at each completion; in Go's poller
	done   chan struct{}

	sqMem, cqMem, sqeMem []byte

	sqTail  *uint32
	sqMask  uint32
	sqArray []uint32
	sqes    []sqe
	cqHead  *uint32
	cqTail  *uint32
	cqMask  uint32
	cqes    []cqe

	slots []chan int32 // where each read in flight waits for its result
	free  chan uint32  // indices of idle slots: the bound on reads in flight

	mu         sync.Mutex // guards the submission queue
	queued     int        // entries not yet handed to the kernel
	submitting bool       // someone is handing entries over, and will take new ones too
}

// sqe is a submission queue entry, 64 bytes. linux/io_uring.h.
type sqe struct {
	opcode   uint8
	_        [3]byte // flags, ioprio
	fd       int32
	off      uint64
	addr     uint64
	len      uint32
	_        uint32 // flags of the operation
	userData uint64
	_        [24]byte
}

// cqe is a completion queue entry, 16 bytes. linux/io_uring.h.
type cqe struct {
	userData uint64
	res      int32
	_        uint32 // flags
}

// params is struct io_uring_params, 120 bytes. linux/io_uring.h.
type params struct {
	sqEntries, cqEntries, flags, threadCPU, threadIdle, features, wqFd uint32
	_                                                                  [3]uint32
	sq                                                                 struct {
		head, tail, mask, entries, flags, dropped, array, resv uint32
		user                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, resv uint32
		user                                                   uint64
	}
}

const (
	ringEntries  = 256 // reads in flight; more wait
	opRead       = 22  // IORING_OP_READ
	offSQRing    = 0   // IORING_OFF_SQ_RING
	offCQRing    = 0x8000000
	offSQEs      = 0x10000000
	regEventFD   = 4 // IORING_REGISTER_EVENTFD
	sqeBytes     = 64
	cqeBytes     = 16
	uint32Length = 4
)

// newRing makes a ring that reads from the file descriptor target, which must
// outlive it. It fails where the kernel has no io_uring or forbids it.
func newRing(target int) (*ring, error) {
	var p params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, ringEntries, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &ring{fd: int(fd), target: target, done: make(chan struct{})}
	if err := r.setUp(&p); err != nil {
		return nil, errors.Join(err, r.release())
	}
	r.slots = make([]chan int32, p.sq.entries)
	r.free = make(chan uint32, p.sq.entries)
	for i := range r.slots {
		r.slots[i] = make(chan int32, 1)
		r.free <- uint32(i)
	}
	go r.reap()
	return r, nil
}

// setUp maps the queues and registers the event descriptor.
func (r *ring) setUp(p *params) error {
	p.sq.entries, p.cq.entries = p.sqEntries, p.cqEntries
	var err error
	mmap := func(off int64, n uint32) (b []byte) {
		if err == nil {
			b, err = unix.Mmap(r.fd, off, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		}
		return b
	}
	r.sqMem = mmap(offSQRing, p.sq.array+p.sqEntries*uint32Length)
	r.cqMem = mmap(offCQRing, p.cq.cqes+p.cqEntries*cqeBytes)
	r.sqeMem = mmap(offSQEs, p.sqEntries*sqeBytes)
	if err != nil {
		return fmt.Errorf("mapping an io_uring: %w", err)
	}
	r.sqTail = at[uint32](r.sqMem, p.sq.tail)
	r.sqMask = *at[uint32](r.sqMem, p.sq.mask)
	r.sqArray = unsafe.Slice(at[uint32](r.sqMem, p.sq.array), p.sqEntries)
	r.sqes = unsafe.Slice(at[sqe](r.sqeMem, 0), p.sqEntries)
	r.cqHead, r.cqTail = at[uint32](r.cqMem, p.cq.head), at[uint32](r.cqMem, p.cq.tail)
	r.cqMask = *at[uint32](r.cqMem, p.cq.mask)
	r.cqes = unsafe.Slice(at[cqe](r.cqMem, p.cq.cqes), p.cqEntries)

	ev, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	r.event = os.NewFile(uintptr(ev), "io_uring events")
	efd := int32(ev)
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), regEventFD, uintptr(unsafe.Pointer(&efd)), 1, 0, 0); errno != 0 {
		return fmt.Errorf("io_uring_register: %w", errno)
	}
	return nil
}

// at returns the T that lies off bytes into b.
func at[T any](b []byte, off uint32) *T { return (*T)(unsafe.Pointer(&b[off])) }

// read reads once into p from off: as pread(2), it may return fewer bytes.
func (r *ring) read(p []byte, off int64) (int, error) {
	id := <-r.free
	r.mu.Lock()
	r.enqueue(id, p, off)
	r.submit()
	n := <-r.slots[id]
	r.free <- id
	runtime.KeepAlive(p)
	if n < 0 {
		return 0, unix.Errno(-n)
	}
	return int(n), nil
}

// enqueue makes an entry for one read. Called with mu held.
func (r *ring) enqueue(id uint32, p []byte, off int64) {
	tail := *r.sqTail // only written under mu
	i := tail & r.sqMask
	r.sqes[i] = sqe{opcode: opRead, fd: int32(r.target), off: uint64(off), addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))), len: uint32(len(p)), userData: uint64(id)}
	r.sqArray[i] = i
	atomic.StoreUint32(r.sqTail, tail+1) // publishes the entry to the kernel
	r.queued++
}

// batchMax is how many entries one batch has in flight.
const batchMax = 16

// readBatch does several reads and sets their results: bytes, or a negative
// errno.
func (r *ring) readBatch(reads []Read, results []int32) {
	for len(reads) > 0 {
		n := min(len(reads), batchMax)
		r.readSome(reads[:n], results[:n])
		reads, results = reads[n:], results[n:]
	}
}

func (r *ring) readSome(reads []Read, results []int32) {
	var ids [batchMax]uint32
	// Wait for the first slot only: two batches that each hold some and wait for
	// more would wait for ever.
	ids[0] = <-r.free
	n := 1
	for n < len(reads) && r.tryTake(&ids[n]) {
		n++
	}
	r.mu.Lock()
	for i := range n {
		r.enqueue(ids[i], reads[i].P, reads[i].Off)
	}
	r.submit()
	for i := range n {
		results[i] = <-r.slots[ids[i]]
		r.free <- ids[i]
		runtime.KeepAlive(reads[i].P)
	}
	if n < len(reads) {
		r.readSome(reads[n:], results[n:])
	}
}

func (r *ring) tryTake(id *uint32) bool {
	select {
	case *id = <-r.free:
		return true
	default:
		return false
	}
}

// submit hands queued entries to the kernel, unless another goroutine is at it
// and will take these too. Called with mu held; returns without it.
func (r *ring) submit() {
	if r.submitting {
		r.mu.Unlock()
		return
	}
	r.submitting = true
	for r.queued > 0 {
		n := r.queued
		r.queued = 0
		r.mu.Unlock()
		took, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(n), 0, 0, 0, 0)
		r.mu.Lock()
		if errno != 0 {
			took = 0 // EINTR, EAGAIN, EBUSY: nothing was taken; offer again
		}
		r.queued += n - int(took)
		if errno != 0 {
			r.mu.Unlock()
			runtime.Gosched()
			r.mu.Lock()
		}
	}
	r.submitting = false
	r.mu.Unlock()
}

// reap wakes the readers whose results have come, until the ring is closed.
func (r *ring) reap() {
	defer close(r.done)
	var count [8]byte
	for {
		if _, err := r.event.Read(count[:]); err != nil {
			return // closed
		}
		for head := *r.cqHead; head != atomic.LoadUint32(r.cqTail); head++ {
			c := r.cqes[head&r.cqMask]
			atomic.StoreUint32(r.cqHead, head+1)
			r.slots[c.userData] <- c.res
		}
	}
}

// close ends the ring. No read may be in flight.
func (r *ring) close() error {
	err := r.event.Close()
	<-r.done
	r.event = nil
	return errors.Join(err, r.release())
}

// release gives back what setUp took, as far as it came.
func (r *ring) release() error {
	var errs []error
	for _, m := range [][]byte{r.sqMem, r.cqMem, r.sqeMem} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	if r.event != nil {
		errs = append(errs, r.event.Close())
	}
	return errors.Join(append(errs, unix.Close(r.fd))...)
}
