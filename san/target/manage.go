package target

import (
	"steadfast/iscsi"
	"steadfast/scsi"
)

// management is one task management function on its way.
type management struct {
	s        *session
	function scsi.Function
	lun      scsi.LUN
	tag      uint32 // referenced task
	itt      uint32
	seq      uint64 // tasks that arrived before are its concern
	immed    bool
	ended    bool // the transport ended the task itself
	response scsi.FunctionResponse
}

// concerns reports whether the function ends c.
func (m *management) concerns(c *command) bool {
	if c.seq >= m.seq {
		return false
	}
	if m.function == scsi.AbortTask {
		return c.task.Tag == m.tag
	}
	return m.reaches(c.task.LUN)
}

// reaches reports whether the function ends tasks on a logical unit.
func (m *management) reaches(lun scsi.LUN) bool {
	switch m.function {
	case scsi.AbortTaskSet, scsi.ClearTaskSet, scsi.LogicalUnitResetFunction:
		return lun == m.lun
	case scsi.TargetWarmReset, scsi.TargetColdReset:
		return true
	default:
		return false
	}
}

// taskRequest takes a task management request. It runs on a worker, so that
// the connection is still read while the function waits for writes to land;
// commands that come meanwhile are held: the function is not about them.
// RFC 7143, 11.5 and 4.2.3.
func (s *session) taskRequest(h *iscsi.Header, n int) error {
	if err := s.in.discard(n); err != nil {
		return err
	}
	if s.port == nil {
		s.reject(h, iscsi.RejectProtocolError)
		return nil
	}
	s.arrived++
	m := &management{
		s: s, function: scsi.Function(h.Function()), lun: scsi.LUN(h.LUN()), tag: h.ReferencedTag(),
		itt: h.InitiatorTag(), seq: s.arrived, immed: h.Immediate(),
	}
	s.mu.Lock()
	if m.immed {
		s.immediates++
	} else {
		s.outstanding++
	}
	s.managing++
	s.mu.Unlock()
	switch {
	case m.function == scsi.TaskReassign:
		// Level 0: allegiance cannot move. RFC 7143, 11.6.1.
		m.response = scsi.ReassignUnsupported
		m.finish()
		return nil
	case m.function == 0 || m.function > scsi.TaskReassign:
		m.response = scsi.FunctionUnsupported
		m.finish()
		return nil
	case m.function == scsi.AbortTask:
		m.ended = s.skipTask(h, m)
	default:
		// Commands numbered before the function are its concern, although
		// their turn comes after it. RFC 7143, 4.2.3.2.
		s.skipEarly(func(e *iscsi.Header) bool {
			return e.Opcode() == iscsi.OpSCSICommand && iscsi.SNLess(e.CmdSN(), h.CmdSN()) && m.reaches(scsi.LUN(e.LUN()))
		})
	}
	if s.dropWaiting(m.concerns) > 0 {
		m.ended = true
	}
	s.srv.workers.submit(m)
	return nil
}

// skipTask looks whether ABORT TASK is about a request that is in the window
// and has not come: it is then taken as received, and the function is
// complete. RFC 7143, 11.6.1 (a).
func (s *session) skipTask(h *iscsi.Header, m *management) bool {
	sn := h.RefCmdSN()
	if s.skipEarly(func(e *iscsi.Header) bool { return e.CmdSN() == sn && e.InitiatorTag() == m.tag }) > 0 {
		return true
	}
	s.mu.Lock()
	max := s.maxCmdSN
	s.mu.Unlock()
	// "Within the window" and before the function's own CmdSN.
	if iscsi.SNLess(sn, s.expCmdSN) || iscsi.SNLess(max, sn) || !iscsi.SNLess(sn, h.CmdSN()) || s.reorder[sn] != nil {
		return false
	}
	s.reorder[sn] = &early{skip: true}
	return true
}

// dropWaiting ends every task that match wants and that is not with a logical
// unit, and returns how many. On the reader's goroutine: nothing is being
// received for them.
func (s *session) dropWaiting(match func(*command) bool) int {
	var drop []*command
	n := 0
	s.mu.Lock()
	for c := s.tasks.next; c != &s.tasks; c = c.next {
		if c.state == executing || !match(c) {
			continue
		}
		n++
		// From here on Data-Out for it is a stranger's, and a function that
		// ends right now does not let it go on.
		s.uncollect(c)
		c.state = executing
		if c.queued && !s.srv.budget.cancel(c) {
			// A worker is about to have it, and drops it.
			c.aborted = true
			continue
		}
		c.queued = false
		drop = append(drop, c)
	}
	s.mu.Unlock()
	for _, c := range drop {
		s.abandon(c)
	}
	return n
}

// work performs the function.
func (m *management) work() {
	s := m.s
	m.response = s.port.Manage(m.function, m.lun, m.tag)
	if m.ended && m.response == scsi.TaskDoesNotExist {
		m.response = scsi.FunctionComplete
	}
	if m.response == scsi.FunctionComplete || m.response == scsi.TaskDoesNotExist {
		// A task that ended before the function did still owes its answer,
		// which must be sent before ours: after it, the initiator reuses the
		// tag. RFC 7143, 4.2.3.3.
		s.mu.Lock()
		for m.pending() {
			s.waiters++
			s.left.Wait()
			s.waiters--
		}
		s.mu.Unlock()
	}
	m.finish()
	s.flush()
	if m.function == scsi.TargetColdReset && m.response == scsi.FunctionComplete {
		// RFC 7143, 11.5.1: a cold reset ends all sessions of the target. The
		// answer goes first: the end of this session would take it from a
		// sender that is only about to write it.
		s.mu.Lock()
		s.waitSent()
		s.mu.Unlock()
		s.srv.mu.Lock()
		all := s.srv.all(func(o *session) bool { return o.id.TargetName == s.id.TargetName && !o.id.Discovery })
		s.srv.mu.Unlock()
		for _, o := range all {
			o.drop("target cold reset")
		}
	}
}

// pending reports whether a task of m's concern is still there. Under s.mu.
func (m *management) pending() bool {
	for c := m.s.tasks.next; c != &m.s.tasks; c = c.next {
		if c.state == executing && m.concerns(c) {
			return true
		}
	}
	return false
}

// finish answers the function and lets held commands go.
func (m *management) finish() {
	s := m.s
	s.mu.Lock()
	h := s.header()
	h.SetOpcode(iscsi.OpTaskResponse)
	h.SetFlags(iscsi.FlagFinal)
	h.SetResponse(uint8(m.response))
	h.SetInitiatorTag(m.itt)
	if m.immed {
		s.immediates--
	} else {
		s.outstanding--
	}
	s.stat(h)
	s.endHeader()
	if s.managing--; s.managing == 0 {
		s.unhold()
	}
	if s.waiters > 0 {
		s.left.Broadcast()
	}
	s.mu.Unlock()
}
