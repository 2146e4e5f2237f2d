package target

import (
	"steadfast/internal/bufpool"
	"steadfast/iscsi"
	"steadfast/scsi"
)

// maxR2T is the most requests for data one command has outstanding.
const maxR2T = 8

// state is where a command that was not answered on the spot stands. Guarded
// by session.mu.
type state uint8

const (
	held       state = iota // behind a task management function; not begun
	collecting              // begun; data-out is arriving
	waiting                 // begun; memory is not there yet
	executing               // with the logical unit, or on the way there or to its drop
)

// sequence is one run of Data-Out PDUs: what an R2T asked for.
type sequence struct {
	tag      uint32 // target transfer tag
	end      int    // offset behind its last byte
	expectSN uint32 // next DataSN
}

// command is one SCSI command from its PDU to its answer. It comes from a pool
// and goes back when its last byte was sent.
type command struct {
	s    *session
	task scsi.Task
	cdb  [16]byte

	state     state
	begun     bool // Port.Begin was called: Execute or Drop is owed
	queued    bool // in the budget's queue, or on the way from it to a worker
	immediate bool // the I bit: outside the command window
	read      bool // R bit
	write     bool // W bit
	aborted   bool // ended by our own initiator's task management: no answer

	// Data-out. Data arrives in order (DataPDUInOrder, DataSequenceInOrder),
	// so that got says all: bytes below it are there.
	buf    []byte
	length int // bytes the initiator will send: the expected length
	got    int
	asked  int // bytes asked for by R2T or allowed unsolicited
	// unsolicited says that Data-Out without an R2T may still come, granted
	// that memory for the whole is reserved.
	unsolicited bool
	granted     bool
	failure     *failure // set: the rest of the data is read and thrown away
	r2tSN       uint32
	seqs        [maxR2T]sequence // outstanding, oldest first
	nseqs       int
	unsolSN     uint32 // next DataSN of the unsolicited sequence

	held, reserved, wants int64 // budget, in bytes

	seq        uint64 // order of arrival in the session
	prev, next *command
}

// failure is why a command ends without the logical unit's doing: with CHECK
// CONDITION and sense data, or without a key with BUSY. RFC 7143, 11.4.7.2.
type failure struct {
	key, asc, ascq byte
	why            string
}

var (
	failCRC         = &failure{0xb, 0x47, 0x05, "data digest error"}
	failUnsolicited = &failure{0xb, 0x0c, 0x0c, "unexpected unsolicited data"}
	failAmount      = &failure{0xb, 0x0c, 0x0d, "incorrect amount of data"}
	failSequence    = &failure{0xb, 0x4b, 0x00, "data sequence error"}
	failLength      = &failure{0x5, 0x24, 0x00, "expected data transfer length over the limit"}
	failBusy        = &failure{why: "no memory for unsolicited data"}
	failBidi        = &failure{0x5, 0x20, 0x00, "bidirectional command"}
)

// newCommand takes a command from the pool.
func (s *session) newCommand() *command {
	c, _ := s.srv.commands.Get().(*command)
	if c == nil {
		c = new(command)
	}
	c.s = s
	return c
}

// free gives a command, its buffers and its memory back. Nothing may refer to
// it any more.
func (c *command) free() {
	s := c.s
	if c.task.Release != nil {
		c.task.Release()
	}
	if c.buf != nil {
		bufpool.Put(c.buf)
	}
	s.srv.budget.release(c)
	*c = command{}
	s.srv.commands.Put(c)
}

// link puts c into the session's task list. Under s.mu.
func (s *session) link(c *command) {
	c.prev, c.next = s.tasks.prev, &s.tasks
	c.prev.next, c.next.prev = c, c
}

// unlink takes c out, and tells task management that waits for it. Under s.mu.
func (s *session) unlink(c *command) {
	if c.next == nil {
		return
	}
	c.prev.next, c.next.prev = c.next, c.prev
	c.prev, c.next = nil, nil
	if s.waiters > 0 {
		s.left.Broadcast()
	}
}

// retire ends c's place in the command window. Under s.mu.
func (s *session) retire(c *command) {
	if c.immediate {
		s.immediates--
	} else {
		s.outstanding--
	}
	if s.waiters > 0 {
		s.left.Broadcast() // drain may wait for it
	}
}

// scsiCommand takes a SCSI Command PDU whose CmdSN is in order. Its data
// segment of n bytes is next in the input. RFC 7143, 11.3.
func (s *session) scsiCommand(h *iscsi.Header, ahs []byte, n int) error {
	if s.port == nil {
		return s.refusePDU(h, n, iscsi.RejectProtocolError, "SCSI command in a discovery session")
	}
	if s.collecting(h.InitiatorTag()) {
		return s.refusePDU(h, n, iscsi.RejectTaskInProgress, "initiator task tag in use")
	}
	c := s.newCommand()
	c.immediate = h.Immediate()
	c.cdb = [16]byte(h.CDB())
	c.task.CDB = c.cdb[:]
	c.task.LUN = scsi.LUN(h.LUN())
	c.task.Tag = h.InitiatorTag()
	c.task.Attribute = scsi.Attribute(h.Flags() & 7)
	c.read, c.write = h.Flags()&iscsi.FlagRead != 0, h.Flags()&iscsi.FlagWrite != 0
	edtl := int(h.ExpectedLength())
	s.arrived++
	c.seq = s.arrived
	s.commands.Add(1)

	if len(ahs) > 0 {
		a, err := iscsi.ParseAHS(ahs)
		if err != nil || len(a.ExtendedCDB) > 260-16 {
			c.free()
			return s.refusePDU(h, n, iscsi.RejectProtocolError, "malformed additional header")
		}
		if len(a.ExtendedCDB) > 0 {
			c.task.CDB = append(append(make([]byte, 0, 260), c.cdb[:]...), a.ExtendedCDB...)
		}
	}
	if c.read && c.write {
		// Bidirectional commands (XDWRITEREAD) have no user left; the data
		// that comes with one is read and dropped.
		c.failure = failBidi
	}
	if c.read {
		c.task.ExpectedIn = edtl
	}
	if c.write {
		c.length, c.task.ExpectedOut = edtl, edtl
	}
	if edtl > s.srv.limits.MaxTransferLength && c.write {
		c.failure = failLength
	}
	s.mu.Lock()
	if s.draining {
		return s.shelve(c, n)
	}
	if c.immediate {
		s.immediates++
	} else {
		s.outstanding++
	}
	s.noteAlone(n)
	behind := s.managing > 0
	if !behind {
		s.begin(c)
	}
	s.mu.Unlock()
	if c.write || n > 0 {
		return s.startWrite(c, h, n, behind)
	}
	if behind {
		s.mu.Lock()
		s.hold(c)
		s.mu.Unlock()
		return nil
	}
	s.startRead(c)
	return nil
}

// collecting reports whether a task of that tag awaits data. Data for two of
// them could not be told apart; other tags are the initiator's to keep apart.
func (s *session) collecting(tag uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.collect[tag] != nil
}

// begin enters c into its logical unit's task set, unless it is refused
// before. Under s.mu, which keeps Begin calls in command order.
func (s *session) begin(c *command) {
	if c.failure == nil {
		c.begun = true
		s.port.Begin(&c.task)
	}
}

// startRead runs a begun command without data-out; on the reader's goroutine,
// which flushes afterwards.
func (s *session) startRead(c *command) {
	if c.failure != nil {
		s.fail(c)
		return
	}
	if !s.reserveRead(c) {
		return
	}
	if s.port.TryExecute(&c.task) {
		s.mu.Lock()
		s.retire(c)
		s.appendResponse(c)
		s.mu.Unlock()
		return
	}
	s.dispatch(c)
}

// reserveRead reserves memory for c's data-in. When it returns false, c waits
// for memory and is no longer the caller's.
func (s *session) reserveRead(c *command) bool {
	need := int64(min(c.task.ExpectedIn, s.srv.limits.MaxTransferLength))
	if need == 0 || s.srv.budget.take(c, need) {
		return true
	}
	s.mu.Lock()
	c.state, c.queued = waiting, true
	if c.next == nil {
		s.link(c)
	}
	s.mu.Unlock()
	s.srv.budget.wait(c, need)
	return false
}

// dispatch hands a begun command with all its data to a worker, or leaves it
// to the reader. On the reader's goroutine.
func (s *session) dispatch(c *command) {
	s.mu.Lock()
	c.state = executing
	if c.next == nil {
		s.link(c)
	}
	inline := s.mayInline()
	s.mu.Unlock()
	if inline {
		s.inline.next = c
		return
	}
	s.srv.workers.submit(c)
}

// hold puts c behind the running task management function. Its data, if any
// came with it, is in its buffer. Under s.mu.
func (s *session) hold(c *command) {
	c.state = held
	if c.next == nil {
		s.link(c)
	}
	if s.managing == 0 {
		// The function ended between our look and now.
		s.unhold()
	}
}

// unhold begins what was held, in order, once no task management runs. Under
// s.mu throughout, so that the reader's own Begin calls cannot come between.
func (s *session) unhold() {
	for c := s.tasks.next; c != &s.tasks; c = c.next {
		if c.state != held {
			continue
		}
		s.begin(c)
		if c.collects() {
			c.state = collecting
			s.proceed(c)
			continue
		}
		c.state = executing
		if c.queued && !s.srv.budget.cancel(c) {
			continue // on its way to a worker already
		}
		c.queued = false
		s.srv.workers.submit(c)
	}
}

// collects reports whether c still waits for data from the initiator.
func (c *command) collects() bool {
	return c.unsolicited || c.nseqs > 0 || c.failure == nil && c.write && c.got < c.length
}

// work continues c on a worker, and sends what came of it.
func (c *command) work() {
	s := c.s
	c.perform()
	s.flush()
}

// perform continues c: its memory came, or it is to be executed. The caller
// flushes; c may be gone.
func (c *command) perform() {
	s := c.s
	s.mu.Lock()
	c.queued = false
	if c.aborted {
		s.mu.Unlock()
		s.abandon(c)
		return
	}
	if c.state != executing && c.collects() {
		c.granted = true
		if c.state == collecting {
			s.proceed(c)
		}
		s.mu.Unlock()
		return
	}
	s.uncollect(c) // its data went wrong while it waited for memory
	needsMemory := c.state == executing && c.reserved == 0 && c.task.ExpectedIn > 0 && c.failure == nil
	c.state = executing
	if c.write && c.failure == nil {
		c.task.DataOut = c.buf[:c.got]
	}
	s.mu.Unlock()
	if c.failure != nil {
		s.fail(c)
		return
	}
	if needsMemory && !s.reserveRead(c) {
		return
	}
	if !s.port.Execute(&c.task) {
		c.begun = false
		s.abandon(c)
		// No answer will carry the window that has opened again; another
		// nexus may have ended every task of this one.
		s.mu.Lock()
		s.nopIn(iscsi.NoTag)
		s.mu.Unlock()
		return
	}
	s.mu.Lock()
	s.retire(c)
	s.unlink(c)
	s.appendResponse(c)
	s.mu.Unlock()
}

// abandon ends a command that will not be answered; nobody else may hold it.
func (s *session) abandon(c *command) {
	if c.begun {
		s.port.Drop(&c.task)
	}
	s.mu.Lock()
	s.retire(c)
	s.uncollect(c)
	s.unlink(c)
	s.mu.Unlock()
	c.free()
}

// fail answers a command that the logical unit will not see, or whose data
// went wrong. The caller flushes.
func (s *session) fail(c *command) {
	if c.begun {
		s.port.Drop(&c.task)
	}
	f := c.failure
	c.task.Status = scsi.BusyStatus
	if f.key != 0 {
		c.task.Status = scsi.CheckCondition
		// Fixed format, current. SPC-4, 4.5.3.
		c.task.Sense = []byte{0x70, 0, f.key, 0, 0, 0, 0, 10, 0, 0, 0, 0, f.asc, f.ascq, 0, 0, 0, 0}
	}
	c.task.Required = c.length
	s.srv.logs.warn("command failed", f.why, s.remote, "initiator", s.id.InitiatorName, "target", s.id.TargetName)
	s.mu.Lock()
	s.retire(c)
	s.uncollect(c)
	s.unlink(c)
	s.appendResponse(c)
	s.mu.Unlock()
}
