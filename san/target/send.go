package target

import (
	"encoding/binary"
	"errors"
	"runtime"

	"golang.org/x/sys/unix"

	"steadfast/internal/invariant"
	"steadfast/iscsi"
	"steadfast/scsi"
)

// copyMax is the longest payload copied behind its header; longer ones are
// sent from where they lie.
const copyMax = 8 << 10

// batchMax is how many bytes the reader collects before it sends although
// there is more input.
const batchMax = 256 << 10

// backlogMax is how many bytes may wait to be sent before the reader stops
// reading. Data-in counts, but is bounded by the budget already: what this
// stops is answers without data, to a peer that asks and never listens.
const backlogMax = 1 << 20

// batch is a run of PDUs on their way out: headers and small payloads in
// arena, large payloads by reference, in order in vecs.
type batch struct {
	arena []byte
	start int // arena[start:] is not in vecs yet
	vecs  [][]byte
	done  []*command // freed when the batch was sent
	bytes int
}

func (b *batch) empty() bool { return b.bytes == 0 && len(b.done) == 0 }

// seal moves the arena's tail into vecs. The arena may move when it grows;
// sealed parts keep the old memory, which nobody writes to any more.
func (b *batch) seal() {
	if len(b.arena) > b.start {
		b.vecs = append(b.vecs, b.arena[b.start:])
		b.start = len(b.arena)
	}
}

// reset empties b, and lets go of an arena that grew beyond reason.
func (b *batch) reset() {
	if cap(b.arena) > 2*batchMax {
		b.arena = nil
	}
	clear(b.vecs)
	clear(b.done)
	b.arena, b.vecs, b.done, b.start, b.bytes = b.arena[:0], b.vecs[:0], b.done[:0], 0, 0
}

// header begins a PDU in the current batch and fills in what all of them
// carry. The pointer is good until endHeader. Under s.mu.
func (s *session) header() *iscsi.Header {
	b := s.out
	s.at = len(b.arena)
	b.arena = append(b.arena, zeroHeader[:]...)
	h := (*iscsi.Header)(b.arena[s.at:])
	h.SetExpCmdSN(s.expCmdSN)
	h.SetMaxCmdSN(s.window())
	return h
}

var zeroHeader iscsi.Header

// endHeader completes the header with its digest. Under s.mu.
func (s *session) endHeader() {
	b := s.out
	if s.params.HeaderDigest {
		b.arena = binary.LittleEndian.AppendUint32(b.arena, iscsi.Digest(b.arena[s.at:]))
	}
	b.bytes += len(b.arena) - s.at
}

// payload adds a data segment behind the header just ended. p must stay as it
// is until the batch was sent. Under s.mu.
func (s *session) payload(p []byte) {
	if len(p) == 0 {
		return
	}
	b := s.out
	if len(p) <= copyMax {
		b.arena = append(b.arena, p...)
	} else {
		b.seal()
		b.vecs = append(b.vecs, p)
	}
	pad := iscsi.Padding(len(p))
	b.arena = append(b.arena, zeroHeader[:pad]...)
	b.bytes += len(p) + pad
	if s.params.DataDigest {
		b.arena = binary.LittleEndian.AppendUint32(b.arena, iscsi.DataDigest(p))
		b.bytes += iscsi.DigestSize
	}
}

// stat numbers a PDU that carries status. Under s.mu.
func (s *session) stat(h *iscsi.Header) {
	h.SetStatSN(s.statSN)
	s.statSN++
}

// window returns MaxCmdSN. It never goes back (RFC 7143, 4.2.2.1); it stays
// while memory is short or answers pile up. A session with nothing
// outstanding always may send one command, or nothing would ever tell it
// that the window is open again. Under s.mu.
func (s *session) window() uint32 {
	open := s.srv.limits.QueueDepth - s.outstanding - s.shelved
	if s.memory.waiters.Load() > 0 || s.srv.budget.short() || s.out.bytes > backlogMax {
		open = 0
	}
	if s.outstanding == 0 {
		open = max(open, 1)
	}
	if limit := s.expCmdSN + uint32(max(open, 0)) - 1; iscsi.SNLess(s.maxCmdSN, limit) {
		s.maxCmdSN = limit
	}
	return s.maxCmdSN
}

// appendResponse adds c's answer to the batch: its data-in, and its status in
// the last of it when the status is GOOD. c is freed when it was sent. Under
// s.mu. RFC 7143, 11.4 and 11.7.
func (s *session) appendResponse(c *command) {
	t := &c.task
	flags, residual := byte(0), 0
	send := 0
	switch {
	case c.read:
		send = min(len(t.DataIn), t.ExpectedIn)
		flags, residual = residuals(len(t.DataIn), t.ExpectedIn)
	case c.write:
		flags, residual = residuals(t.Required, t.ExpectedOut)
	default:
		flags, residual = residuals(max(len(t.DataIn), t.Required), 0)
	}
	dataSN := c.r2tSN
	if send > 0 && s.appendDataIn(c, send, flags, residual, &dataSN) {
		s.out.done = append(s.out.done, c)
		return
	}
	h := s.header()
	h.SetOpcode(iscsi.OpSCSIResponse)
	h.SetFlags(iscsi.FlagFinal | flags)
	h.SetResponse(iscsi.ResponseComplete)
	h.SetSCSIStatus(uint8(t.Status))
	h.SetInitiatorTag(t.Tag)
	s.stat(h)
	h.SetDataSN(dataSN) // ExpDataSN: how many Data-In and R2T were sent
	h.SetResidual(uint32(residual))
	if c.read && c.write {
		h.SetFlags(h.Flags() | iscsi.FlagBidiUnderflow)
		h.SetBidiResidual(uint32(t.ExpectedIn))
	}
	if len(t.Sense) == 0 {
		s.endHeader()
	} else {
		h.SetDataLength(2 + len(t.Sense))
		s.endHeader()
		s.payload(append([]byte{byte(len(t.Sense) >> 8), byte(len(t.Sense))}, t.Sense...))
	}
	s.out.done = append(s.out.done, c)
}

// residuals compares what a command had or wanted with what the initiator
// expected. RFC 7143, 11.4.5.
func residuals(actual, expected int) (flag byte, count int) {
	switch {
	case actual > expected:
		return iscsi.FlagOverflow, actual - expected
	case actual < expected:
		return iscsi.FlagUnderflow, expected - actual
	}
	return 0, 0
}

// appendDataIn adds the first n bytes of c's data-in, in segments the
// initiator takes and bursts it agreed to; it returns whether the status went
// with the last. Under s.mu.
func (s *session) appendDataIn(c *command, n int, flags byte, residual int, dataSN *uint32) (withStatus bool) {
	t := &c.task
	burst := 0
	for off := 0; off < n; {
		// Segments are whole words but for the last. RFC 7143, 11.7.
		k := min(n-off, s.params.MaxSendLength&^3, s.params.MaxBurstLength-burst)
		burst += k
		last := off+k == n
		h := s.header()
		h.SetOpcode(iscsi.OpDataIn)
		h.SetInitiatorTag(t.Tag)
		h.SetTargetTag(iscsi.NoTag)
		h.SetDataSN(*dataSN)
		h.SetBufferOffset(uint32(off))
		h.SetDataLength(k)
		switch {
		case last && t.Status == scsi.Good:
			withStatus = true
			h.SetFlags(iscsi.FlagFinal | iscsi.FlagStatus | flags)
			h.SetSCSIStatus(uint8(t.Status))
			h.SetResidual(uint32(residual))
			s.stat(h)
		case last || burst == s.params.MaxBurstLength:
			h.SetFlags(iscsi.FlagFinal)
			burst = 0
		}
		s.endHeader()
		s.payload(t.DataIn[off : off+k])
		*dataSN++
		off += k
	}
	return withStatus
}

// flush sends what is collected, unless somebody does so already.
func (s *session) flush() {
	s.mu.Lock()
	s.send()
}

// send becomes the sender if there is none, and sends until nothing is left.
// Called with s.mu held; returns with it released.
func (s *session) send() {
	if s.sending || s.out.empty() {
		s.mu.Unlock()
		return
	}
	s.sending = true
	s.mu.Unlock()
	// Commands that end together, as those of one group commit do, are let
	// finish first: their answers go out in one write.
	runtime.Gosched()
	s.mu.Lock()
	s.sendLoop(false)
}

// sendNow sends what the socket takes at once, and leaves the rest to a
// goroutine. Called with s.mu held; returns with it released.
func (s *session) sendNow() {
	if s.sending || s.out.empty() {
		s.mu.Unlock()
		return
	}
	s.sending = true
	s.sendLoop(true)
}

// sendLoop sends batch after batch: while one is written, others collect the
// next. With aside, it does not wait for the socket: a goroutine goes on when
// the peer's window is full. The reader sends so, and thus never stops to read
// (task management, the peer's own data) because the peer is slow to take
// answers. Called with s.mu held and s.sending set; returns with it released.
func (s *session) sendLoop(aside bool) {
	for !s.out.empty() {
		invariant.Check(s.spare.empty(), "two batches on their way out")
		b := s.out
		s.out, s.spare = s.spare, b
		broken := s.broken
		s.mu.Unlock()
		var err error
		if !broken {
			b.seal()
			s.toSend = b.vecs
			err = s.write(aside)
		}
		if errors.Is(err, errWouldBlock) {
			go func() {
				s.sent(b, s.write(false))
				s.sendLoop(false)
			}()
			return
		}
		s.sent(b, err)
	}
	s.sending = false
	if s.waiters > 0 {
		s.left.Broadcast()
	}
	s.mu.Unlock()
}

// sent ends a batch that was written, or failed to be. It returns with s.mu
// held.
func (s *session) sent(b *batch, err error) {
	for _, c := range b.done {
		c.free()
	}
	s.toSend = nil
	s.mu.Lock()
	b.reset()
	if s.waiters > 0 {
		s.left.Broadcast() // the reader may wait for the backlog to shrink
	}
	if err != nil && !s.broken {
		s.broken = true
		if !errors.Is(err, errSilent) { // who silenced it closes it
			s.close("write: " + err.Error())
		}
	}
}

// errSilent says that nothing may be sent any more.
var errSilent = errors.New("silenced")

// errWouldBlock says that the socket takes no more for now.
var errWouldBlock = errors.New("socket full")

// write sends what is left of s.toSend. Unless try, it waits for the socket
// as long as it must; the ticker ends a session whose peer takes nothing.
func (s *session) write(try bool) error {
	s.writeTry = try
	if err := s.raw.Write(s.writeReady); err != nil {
		return err
	}
	return s.writeErr
}

// writeOnce gives the socket what it takes at once, and counts it. When silence
// has returned, no more is given: not by a goroutine either that was about to.
func (s *session) writeOnce(fd int) (n int, err error) {
	s.wire.Lock()
	defer s.wire.Unlock()
	switch {
	case s.mute.Load():
		return 0, errSilent
	case len(s.toSend) == 1:
		n, err = unix.Write(fd, s.toSend[0])
	default:
		n, err = unix.Writev(fd, s.toSend[:min(len(s.toSend), maxVectors)])
	}
	s.bytesOut.Add(uint64(max(n, 0)))
	return n, err
}

// maxVectors is how many pieces one writev takes (IOV_MAX).
const maxVectors = 1024

// writeReadyFunc is given to raw.Write: it writes while the socket takes bytes.
func (s *session) writeReadyFunc(fd uintptr) bool {
	s.writeErr = nil
	for len(s.toSend) > 0 {
		n, err := s.writeOnce(int(fd))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if s.writeTry {
				s.writeErr = errWouldBlock
			}
			return s.writeTry
		case err != nil:
			s.writeErr = err
			return true
		}
		for n > 0 && n >= len(s.toSend[0]) {
			n -= len(s.toSend[0])
			s.toSend = s.toSend[1:]
		}
		if n > 0 {
			s.toSend[0] = s.toSend[0][n:]
		}
	}
	return true
}
