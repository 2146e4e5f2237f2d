package diskwire

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
)

// Options say how a device is served.
type Options struct {
	// Slots is how many requests can be under way, 1 to SlotsMax; 0: SlotsDefault. Each takes
	// SlotBytes of memory, once it was used.
	Slots int
	// ReadOnly has every change fail with fault.ReadOnly.
	ReadOnly bool
}

// Server serves a device to one client.
type Server struct {
	d        block.Device
	readOnly bool
	sock     *os.File
	mem      []byte
	out      outbox
	theirs   [2]*os.File

	slots   []served
	work    chan int // slots; never full, since a slot is in it at most once
	workers sync.WaitGroup
	// pending are the requests that a worker has or has yet to take.
	pending atomic.Int32

	told   atomic.Int64 // the size that the client knows, or is about to
	notice atomic.Bool  // the size is to be told
}

// served is a slot.
type served struct {
	busy atomic.Bool // until its answer is about to be sent
	req  request
}

// NewServer makes what is needed to serve a device. Serve or Close is to follow. Fails with
// fault.Invalid for Options that cannot be, and with fault.Limit when the kernel has no
// more descriptors or memory.
func NewServer(d block.Device, o Options) (s *Server, err error) {
	if o.Slots == 0 {
		o.Slots = SlotsDefault
	}
	if o.Slots < 0 || o.Slots > SlotsMax {
		return nil, fault.New(fault.Invalid, "%d slots of a disk: 1 to %d", o.Slots, SlotsMax)
	}
	s = &Server{d: d, readOnly: o.ReadOnly, slots: make([]served, o.Slots), work: make(chan int, o.Slots)}
	memory, err := share(o.Slots)
	if err != nil {
		return nil, err
	}
	if s.mem, _, err = mapped(memory); err != nil {
		return nil, errors.Join(err, memory.Close())
	}
	ours, theirs, err := sockets()
	if err != nil {
		return nil, errors.Join(err, memory.Close(), unix.Munmap(s.mem))
	}
	s.sock, s.theirs = ours, [2]*os.File{theirs, memory}
	s.out = outbox{f: ours, taken: s.taken}
	s.told.Store(d.Size())
	return s, nil
}

// Theirs are the client's descriptors: socket and memory. They are open until Given, which
// is to follow in any case.
func (s *Server) Theirs() (socket, memory *os.File) { return s.theirs[0], s.theirs[1] }

// Given closes the client's descriptors here, once its process has them: until then the
// client's end is not noticed.
func (s *Server) Given() error {
	err := errors.Join(s.theirs[0].Close(), s.theirs[1].Close())
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Close ends a server that was not to Serve.
func (s *Server) Close() error {
	return errors.Join(s.Given(), s.sock.Close(), unix.Munmap(s.mem))
}

// Serve serves until the client has gone or ctx ends, and all requests that were under way
// have ended: the device is not used any more. It is called once, and closes the server but
// for Theirs, which somebody may be about to hand over.
// Fails with fault.Invalid when the client has sent what no Client does: its process is
// not to live on.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		_ = s.sock.SetDeadline(time.Unix(1, 0)) // it is closed, else
	})
	s.Resized()
	err := s.receive()
	stop()
	close(s.work)
	// The client is to know before the last request has ended, which may take long.
	err = errors.Join(err, s.sock.Close())
	s.workers.Wait()
	s.out.end()
	return errors.Join(err, unix.Munmap(s.mem))
}

// Resized tells the client the device's size, in case that it has changed. It may be
// called any time, and does not wait for the client.
func (s *Server) Resized() {
	if s.notice.Swap(true) {
		return // taken will look
	}
	var b [answerBytes]byte
	(&answer{says: saysSize}).put(b[:])
	s.out.later(b[:])
}

// taken frees the slots whose answers are in a packet: before it is sent, since the client
// may use them from then on.
func (s *Server) taken(packet []byte) {
	for b := packet; len(b) > 0; b = b[answerBytes:] {
		switch b[0] {
		case saysAnswer:
			s.slots[binary.LittleEndian.Uint16(b[2:])].busy.Store(false)
		case saysSize:
			s.notice.Store(false) // before the look: who comes after it tells again
			size := s.d.Size()
			s.told.Store(size)
			binary.LittleEndian.PutUint64(b[8:], uint64(size))
		}
	}
}

// receive takes requests until the client has gone, nil, or sends what is none.
func (s *Server) receive() error {
	// One byte more than the longest packet tells a longer one.
	b := make([]byte, len(s.slots)*requestBytes+1)
	for running := 0; ; {
		n, err := s.sock.Read(b)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fault.Wrap(fault.Failed, err, "the socket of a machine's disk")
		case n%requestBytes != 0 || n == len(b):
			return fault.New(fault.Invalid, "a packet of %d bytes to a disk", n)
		}
		for p := b[:n]; len(p) > 0; p = p[requestBytes:] {
			var r request
			if err := r.get(p, len(s.slots)); err != nil {
				return err
			}
			at := &s.slots[r.slot]
			if !at.busy.CompareAndSwap(false, true) {
				return fault.New(fault.Invalid, "a request in slot %d of a disk, which is in use", r.slot)
			}
			at.req = r
			// There are as many workers as requests, so that none waits for another; and one
			// more when there are many, which may still be sending answers.
			if int(s.pending.Add(1)) > running && running <= len(s.slots) {
				running++
				s.workers.Go(s.worker)
			}
			s.work <- r.slot
		}
	}
}

func (s *Server) worker() {
	for i := range s.work {
		s.do(i)
		s.pending.Add(-1)
	}
}

// do does a request, and has it answered.
func (s *Server) do(i int) {
	r, mem := s.slots[i].req, slot(s.mem, i)
	a := answer{says: saysAnswer, slot: i}
	var err error
	a.value, err = s.ask(&r, mem)
	if err != nil {
		a.status, a.text = statusOf(err), copy(mem[:textMax], err.Error())
	}
	var b [answerBytes]byte
	a.put(b[:])
	if s.d.Size() != s.told.Load() {
		s.Resized() // before the answer, or soon after it
	}
	s.out.put(b[:], s.pending.Load() > 1)
}

// ask has the device do a request. The shared memory is looked at, or changed, once.
func (s *Server) ask(r *request, mem []byte) (mismatch int64, err error) {
	switch {
	case s.readOnly && r.op.changes():
		return 0, fault.New(fault.ReadOnly, "the disk is read-only")
	case r.off > s.told.Load()-r.n:
		return 0, fault.New(fault.Invalid, "%d bytes at %d of a disk of %d", r.n, r.off, s.told.Load())
	}
	switch r.op {
	case opRead:
		b := bufpool.Get(int(r.n))
		if err = s.d.ReadAt(b, r.off); err == nil {
			copy(mem, b)
		}
		bufpool.Put(b)
	case opWrite:
		b := bufpool.Get(int(r.n))
		copy(b, mem)
		err = s.d.WriteAt(b, r.off, r.flags)
		bufpool.Put(b)
	case opFlush:
		err = s.d.Flush()
	case opTrim:
		err = s.d.Trim(r.off, r.n)
	case opZero:
		err = s.d.Zero(r.off, r.n, r.flags)
	case opCompareAndWrite:
		b := bufpool.Get(int(2 * r.n))
		copy(b, mem)
		mismatch, err = s.d.CompareAndWrite(r.off, b[:r.n], b[r.n:2*r.n], r.flags)
		bufpool.Put(b)
	}
	return mismatch, err
}
