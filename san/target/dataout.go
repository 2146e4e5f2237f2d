package target

import (
	"steadfast/internal/bufpool"
	"steadfast/iscsi"
)

// startWrite takes the rest of a SCSI Command PDU that brings data, or
// announces it. n bytes of immediate data are next in the input. behind says
// that a task management function runs and c has not begun.
func (s *session) startWrite(c *command, h *iscsi.Header, n int, behind bool) error {
	first := min(s.params.FirstBurstLength, c.length)
	c.unsolicited = !h.Final() && c.write
	c.asked = n
	if c.unsolicited {
		c.asked = first
	}
	if c.failure == nil {
		c.failure = s.checkUnsolicited(c, n, first)
	}
	if c.failure == nil && c.length > 0 {
		if err := s.reserveWrite(c, n, first); err != nil {
			s.track(c)
			return err // the connection ends; its teardown ends c
		}
	}
	if err := s.receiveInto(c, h, n); err != nil {
		s.track(c)
		return err
	}
	if c.collects() {
		s.mu.Lock()
		s.collect[c.task.Tag] = c
		s.mu.Unlock()
		if behind {
			s.awaitMemory(c)
		}
	}
	if behind {
		s.hold(c)
		return nil
	}
	s.advance(c)
	return nil
}

// checkUnsolicited applies the rules for data that comes without an R2T.
// RFC 7143, 11.3 and 13.10, 13.11, 13.14.
func (s *session) checkUnsolicited(c *command, n, first int) *failure {
	switch {
	case n > 0 && (!c.write || !s.params.ImmediateData):
		return failUnsolicited
	case n > first:
		return failAmount
	case c.unsolicited && (!c.write || s.params.InitialR2T):
		return failUnsolicited
	}
	return nil
}

// reserveWrite reserves memory for c's data and gives it a buffer: for all of
// it if there is memory, and else for what comes unsolicited.
func (s *session) reserveWrite(c *command, n, first int) error {
	b := &s.srv.budget
	if b.take(c, int64(c.length)) {
		c.granted = true
		c.buf = bufpool.Get(c.length)
		return nil
	}
	unsolicited := n
	if c.unsolicited {
		unsolicited = first
	}
	if unsolicited == 0 {
		return nil
	}
	// The data is on its way whether there is room or not. The limit that
	// holds then is how long we leave it in the socket.
	if err := s.ease(); err != nil {
		return err
	}
	b.overdraw(c, int64(unsolicited))
	c.granted = unsolicited == c.length
	c.buf = bufpool.Get(unsolicited)
	return nil
}

// awaitMemory puts a write that has no room for all its data into the
// budget's queue.
func (s *session) awaitMemory(c *command) {
	s.mu.Lock()
	if c.granted || c.queued || c.failure != nil {
		s.mu.Unlock()
		return
	}
	c.queued = true
	need := int64(c.length) - c.reserved
	s.mu.Unlock()
	if s.srv.budget.wait(c, need) {
		s.srv.workers.submit(c)
	}
}

// receiveInto reads c's next n bytes of data, and their digest.
func (s *session) receiveInto(c *command, h *iscsi.Header, n int) error {
	if n == 0 {
		return nil
	}
	if c.failure != nil {
		return s.in.discard(n)
	}
	ok, err := s.in.segment(c.buf[c.got : c.got+n : c.got+n])
	if err != nil {
		return err
	}
	if !ok {
		// RFC 7143, 7.8: reject the PDU, and end the task when its sequence
		// is over, with the sense that says so.
		c.failure = failCRC
		s.reject(h, iscsi.RejectDataDigest)
		return nil
	}
	c.got += n
	return nil
}

// advance moves a begun write on after data came: to the logical unit, to its
// next R2T, to the budget's queue, or to its failure. On the reader's
// goroutine, which flushes afterwards.
func (s *session) advance(c *command) {
	s.mu.Lock()
	more := c.unsolicited || c.nseqs > 0
	queued := c.queued
	s.mu.Unlock()
	switch {
	case more:
		s.track(c)
		s.awaitMemory(c)
	case c.failure != nil:
		if queued && !s.srv.budget.cancel(c) {
			return // a worker has it already, and will see the failure
		}
		s.fail(c)
	case c.got < c.length:
		s.track(c)
		s.awaitMemory(c)
		s.mu.Lock()
		s.proceed(c)
		s.mu.Unlock()
	default:
		s.mu.Lock()
		delete(s.collect, c.task.Tag)
		s.mu.Unlock()
		c.task.DataOut = c.buf[:c.got]
		if s.port.TryExecute(&c.task) {
			s.mu.Lock()
			s.retire(c)
			s.unlink(c)
			s.appendResponse(c)
			s.mu.Unlock()
			return
		}
		s.dispatch(c)
	}
}

// track makes c a task that waits for data.
func (s *session) track(c *command) {
	s.mu.Lock()
	c.state = collecting
	if c.next == nil {
		s.link(c)
	}
	s.mu.Unlock()
}

// proceed asks for c's next data by R2T, as far as the negotiated number of
// outstanding requests allows. Under s.mu. RFC 7143, 11.8.
func (s *session) proceed(c *command) {
	if !c.granted || c.unsolicited || c.failure != nil || c.state != collecting {
		return
	}
	if len(c.buf) < c.length {
		// Memory for all of it has come; nothing is being received now.
		whole := bufpool.Get(c.length)
		copy(whole, c.buf[:c.got])
		if c.buf != nil {
			bufpool.Put(c.buf)
		}
		c.buf = whole
	}
	if c.nseqs == 0 {
		c.asked = c.got
	}
	for c.asked < c.length && c.nseqs < min(s.params.MaxOutstandingR2T, maxR2T) {
		n := min(c.length-c.asked, s.params.MaxBurstLength)
		s.lastTag++
		if s.lastTag == iscsi.NoTag {
			s.lastTag = 1
		}
		c.seqs[c.nseqs] = sequence{tag: s.lastTag, end: c.asked + n}
		c.nseqs++
		h := s.header()
		h.SetOpcode(iscsi.OpR2T)
		h.SetFlags(iscsi.FlagFinal)
		h.SetLUN(uint64(c.task.LUN))
		h.SetInitiatorTag(c.task.Tag)
		h.SetTargetTag(s.lastTag)
		h.SetStatSN(s.statSN) // the next one, not used up. RFC 7143, 11.8.3
		h.SetDataSN(c.r2tSN)
		h.SetBufferOffset(uint32(c.asked))
		h.SetDesiredLength(uint32(n))
		s.endHeader()
		c.r2tSN++
		c.asked += n
	}
}

// dataOut takes a Data-Out PDU, whose n bytes are next in the input.
// RFC 7143, 11.7.
func (s *session) dataOut(h *iscsi.Header, n int) error {
	s.mu.Lock()
	c := s.collect[h.InitiatorTag()]
	s.mu.Unlock()
	if c == nil {
		// Data of a task that was aborted, or that ended with an error while
		// the initiator was still sending.
		return s.in.discard(n)
	}
	end, ok := s.expected(c, h, n)
	if !ok {
		return s.strayData(c, n)
	}
	if err := s.receiveInto(c, h, n); err != nil {
		return err // the connection ends; its teardown ends c
	}
	if !h.Final() {
		if c.failure == nil && c.got == end {
			// All is here and the initiator says more will come.
			c.fail(failAmount)
		}
		return nil
	}
	s.mu.Lock()
	if h.TargetTag() == iscsi.NoTag {
		c.unsolicited = false
	} else {
		if c.failure == nil && c.got < end {
			c.fail(failAmount)
		}
		copy(c.seqs[:], c.seqs[1:c.nseqs])
		c.nseqs--
		s.proceed(c)
	}
	// Looked at under the same lock: from here on, unhold may run it.
	behind := c.state == held
	s.mu.Unlock()
	if !behind {
		s.advance(c)
	}
	return nil
}

// expected checks a Data-Out PDU against the sequence it should be part of,
// and returns the offset that sequence ends at. When it returns false, the
// data belongs to no sequence of c.
func (s *session) expected(c *command, h *iscsi.Header, n int) (end int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sn *uint32
	unasked := h.TargetTag() == iscsi.NoTag
	switch {
	case unasked && c.unsolicited:
		sn, end = &c.unsolSN, min(s.params.FirstBurstLength, c.length)
	case !unasked && c.nseqs > 0 && c.seqs[0].tag == h.TargetTag():
		sn, end = &c.seqs[0].expectSN, c.seqs[0].end
	case unasked:
		c.fail(failUnsolicited)
		return 0, false
	default:
		c.fail(failSequence)
		return 0, false
	}
	switch {
	case c.failure != nil:
	case h.DataSN() != *sn || int(h.BufferOffset()) != c.got:
		c.fail(failSequence)
	case c.got+n > end:
		c.fail(failAmount)
	}
	*sn++
	return end, true
}

// fail notes why c's data went wrong; the first reason stands.
func (c *command) fail(f *failure) {
	if c.failure == nil {
		c.failure = f
	}
}

// strayData throws away data that belongs to no sequence of c, and ends c if
// it awaits none.
func (s *session) strayData(c *command, n int) error {
	if err := s.in.discard(n); err != nil {
		return err
	}
	s.mu.Lock()
	busy := c.unsolicited || c.nseqs > 0 || c.state == held
	s.mu.Unlock()
	if !busy {
		s.advance(c)
	}
	return nil
}
