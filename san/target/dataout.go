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
	if c.granted = c.length == 0; !c.granted && c.failure == nil {
		s.reserveWrite(c, n, first)
	}
	err := s.receiveInto(c, h, n)
	s.mu.Lock()
	if err != nil {
		s.track(c)
		s.mu.Unlock()
		return err // the connection ends; its teardown ends c
	}
	if c.collects() {
		s.collect[c.task.Tag] = c
		if behind {
			s.awaitMemory(c)
		}
	}
	if behind {
		s.hold(c)
		s.mu.Unlock()
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
// it if there is memory, and else for what comes unsolicited. When there is
// none for that either, c ends with BUSY, and the initiator tries again.
func (s *session) reserveWrite(c *command, n, first int) {
	b := &s.srv.budget
	if b.take(c, int64(c.length)) {
		c.granted = true
		c.buf = bufpool.Get(c.length)
		return
	}
	unsolicited := n
	if c.unsolicited {
		unsolicited = first
	}
	if unsolicited == 0 {
		return
	}
	// The data is on its way whether there is room or not.
	if !s.ease() {
		c.failure = failBusy
		return
	}
	b.hold(s, int64(unsolicited))
	c.held = int64(unsolicited)
	c.granted = unsolicited == c.length
	c.buf = bufpool.Get(unsolicited)
}

// awaitMemory puts a write that has no room for all its data into the
// budget's queue. Under s.mu.
func (s *session) awaitMemory(c *command) {
	if c.granted || c.queued || c.failure != nil {
		return
	}
	c.queued = true
	s.srv.budget.wait(c, int64(c.length)-c.held)
}

// receiveInto reads c's next n bytes of data, and their digest.
func (s *session) receiveInto(c *command, h *iscsi.Header, n int) error {
	if n == 0 {
		return nil
	}
	// Only the reader fails a command that still receives.
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
		s.reject(h, iscsi.RejectDataDigest)
		s.mu.Lock()
		c.fail(failCRC)
		s.mu.Unlock()
		return nil
	}
	c.got += n
	return nil
}

// advance moves a begun write on after data came: to the logical unit, to its
// next R2T, to the budget's queue, or to its failure. On the reader's
// goroutine, which flushes afterwards. Called with s.mu held, since a worker
// may be about to have c; returns with it released.
func (s *session) advance(c *command) {
	if c.queued && !c.collects() {
		// It needs no more memory. If that came just now, a worker has c, and
		// will see what there is to do.
		if !s.srv.budget.cancel(c) {
			s.mu.Unlock()
			return
		}
		c.queued = false
	}
	switch {
	case c.unsolicited || c.nseqs > 0:
		s.track(c)
		s.awaitMemory(c)
		s.mu.Unlock()
	case c.failure != nil:
		s.mu.Unlock()
		s.fail(c)
	case c.got < c.length:
		s.track(c)
		s.awaitMemory(c)
		s.proceed(c)
		s.mu.Unlock()
	default:
		s.uncollect(c)
		s.mu.Unlock()
		c.task.DataOut = c.buf[:c.got]
		if !s.port.TryExecute(&c.task) {
			s.dispatch(c)
			return
		}
		s.mu.Lock()
		s.retire(c)
		s.unlink(c)
		s.appendResponse(c)
		s.mu.Unlock()
	}
}

// track makes c a task that waits for data. Under s.mu.
func (s *session) track(c *command) {
	c.state = collecting
	if c.next == nil {
		s.link(c)
	}
}

// uncollect makes Data-Out for c a stranger's. Under s.mu.
func (s *session) uncollect(c *command) {
	if s.collect[c.task.Tag] == c {
		delete(s.collect, c.task.Tag)
	}
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
	if c == nil {
		// Data of a task that was aborted, or that ended with an error while
		// the initiator was still sending.
		s.mu.Unlock()
		return s.in.discard(n)
	}
	end, stray := s.expected(c, h, n)
	s.mu.Unlock()
	if stray != nil {
		return s.strayData(c, n, stray)
	}
	if err := s.receiveInto(c, h, n); err != nil {
		return err // the connection ends; its teardown ends c
	}
	s.mu.Lock()
	if !h.Final() {
		if c.got == end {
			// All is here and the initiator says more will come.
			c.fail(failAmount)
		}
		s.mu.Unlock()
		return nil
	}
	if h.TargetTag() == iscsi.NoTag {
		c.unsolicited = false
	} else {
		if c.got < end {
			c.fail(failAmount)
		}
		copy(c.seqs[:], c.seqs[1:c.nseqs])
		c.nseqs--
		s.proceed(c)
	}
	if c.state == held {
		s.mu.Unlock() // unhold sees to it
		return nil
	}
	s.advance(c)
	return nil
}

// expected checks a Data-Out PDU against the sequence it should be part of,
// and returns the offset that sequence ends at. When the data belongs to no
// sequence of c, it returns why that ends c. Under s.mu.
func (s *session) expected(c *command, h *iscsi.Header, n int) (end int, stray *failure) {
	var sn *uint32
	unasked := h.TargetTag() == iscsi.NoTag
	switch {
	case unasked && c.unsolicited:
		sn, end = &c.unsolSN, min(s.params.FirstBurstLength, c.length)
	case !unasked && c.nseqs > 0 && c.seqs[0].tag == h.TargetTag():
		sn, end = &c.seqs[0].expectSN, c.seqs[0].end
	case unasked:
		return 0, failUnsolicited
	default:
		return 0, failSequence
	}
	switch {
	case c.failure != nil:
	case h.DataSN() != *sn || int(h.BufferOffset()) != c.got:
		c.fail(failSequence)
	case c.got+n > end:
		c.fail(failAmount)
	}
	*sn++
	return end, nil
}

// fail notes why c's data went wrong; the first reason stands. Under s.mu once
// others know c.
func (c *command) fail(f *failure) {
	if c.failure == nil {
		c.failure = f
	}
}

// strayData throws away data that belongs to no sequence of c, and ends c if
// it awaits none.
func (s *session) strayData(c *command, n int, why *failure) error {
	tag := c.task.Tag
	if err := s.in.discard(n); err != nil {
		return err
	}
	s.mu.Lock()
	if s.collect[tag] != c {
		s.mu.Unlock() // ended meanwhile, by a worker
		return nil
	}
	c.fail(why)
	if c.unsolicited || c.nseqs > 0 || c.state == held {
		s.mu.Unlock()
		return nil
	}
	s.advance(c)
	return nil
}
