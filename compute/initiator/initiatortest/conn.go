package initiatortest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"steadfast/block"
	"steadfast/iscsi"
	"steadfast/scsi"
)

// errDropped ends a connection on purpose.
var errDropped = errors.New("dropped")

// conn is one connection of the double: one goroutine, one PDU at a time.
type conn struct {
	t     *Target
	sock  net.Conn
	group uint16
	s     *session
	p     iscsi.Params
	login *iscsi.Login

	statSN, cmdSN uint32
	tasks         map[uint32]*task
	silent        bool
	attentions    int          // unit attentions to tell
	last          iscsi.Header // received
	ttt           uint32
}

// task is a command under way.
type task struct {
	h     iscsi.Header
	out   []byte
	got   int
	r2tSN uint32
	w     *write
	fault Fault
}

// end leaves what is under way to its fate. Under Target.mu.
func (c *conn) end() {
	for _, k := range c.tasks {
		if k.w != nil && !k.w.late {
			// Never completed: it cannot land. It counts as open until the
			// nexus is reinstated all the same, as its initiator cannot know.
			k.w.apply = nil
		}
	}
}

func (c *conn) serve() {
	if c.wire(c.t.strike(c.group, Accept)) != nil {
		return
	}
	c.p = iscsi.DefaultParams()
	c.login = iscsi.NewLogin(policy{c}, c.t.o.Params, c.group)
	for rounds := 0; !c.login.Done; rounds++ {
		h, data, err := c.receive()
		if err != nil {
			return
		}
		c.t.mu.Lock()
		refused := c.t.refuse[c.group]
		c.t.mu.Unlock()
		if refused {
			return
		}
		step := LoginFirst
		if h.Transit() && h.NSG() == iscsi.StageFullFeature {
			step = LoginLast
		}
		if c.cmdSN == 0 {
			c.cmdSN = h.CmdSN()
		}
		resp, text := c.login.Step(&h, data)
		f := c.t.strike(c.group, step)
		if f == Odd {
			resp, text = iscsi.Header{}, nil
			resp.SetOpcode(iscsi.OpLoginResp)
			resp.SetISID(h.ISID())
			resp.SetLoginStatus(iscsi.LoginUnavailable)
		}
		if c.send(&resp, text, f) != nil || c.login.Failed || f == Odd {
			return
		}
	}
	c.p = c.login.Params
	c.attentions = 1
	for {
		h, data, err := c.receive()
		if err != nil {
			return
		}
		c.last = h
		if c.silent {
			continue
		}
		if err := c.handle(&h, data); err != nil {
			return
		}
	}
}

// receive reads a PDU, digests and all.
func (c *conn) receive() (h iscsi.Header, data []byte, err error) {
	if _, err = io.ReadFull(c.sock, h[:]); err != nil {
		return h, nil, err
	}
	digest := func(want uint32) error {
		var d [4]byte
		if _, err := io.ReadFull(c.sock, d[:]); err != nil {
			return err
		}
		if binary.LittleEndian.Uint32(d[:]) != want {
			c.t.mu.Lock()
			c.t.accuse("a digest of %v is wrong", h.Opcode())
			c.t.mu.Unlock()
			return errDropped
		}
		return nil
	}
	if c.p.HeaderDigest {
		if err := digest(iscsi.Digest(h[:])); err != nil {
			return h, nil, err
		}
	}
	n := h.DataLength()
	if n > 1<<20 {
		return h, nil, errDropped
	}
	data = make([]byte, n+iscsi.Padding(n))
	if _, err = io.ReadFull(c.sock, data); err != nil {
		return h, nil, err
	}
	if n > 0 && c.p.DataDigest {
		if err := digest(iscsi.Digest(data)); err != nil {
			return h, nil, err
		}
	}
	return h, data[:n], nil
}

// wire does what a fault does to a connection, without a PDU.
func (c *conn) wire(f Fault) error {
	switch f {
	case Drop:
		return errDropped
	case Reset:
		_ = c.sock.(*net.TCPConn).SetLinger(0)
		return errDropped
	case Delay:
		time.Sleep(20 * time.Millisecond) // this is the fault
	case Silence:
		c.silent = true
	case Garbage:
		b := make([]byte, 256)
		for i := range b {
			b[i] = byte(i*31 + 7)
		}
		_, _ = c.sock.Write(b)
	default:
	}
	return nil
}

// numbered tells whether a PDU takes a StatSN.
func numbered(h *iscsi.Header) bool {
	switch h.Opcode() {
	case iscsi.OpDataIn:
		return h.Flags()&iscsi.FlagStatus != 0
	case iscsi.OpNopIn:
		return h.InitiatorTag() != iscsi.NoTag
	default:
		return h.Opcode() != iscsi.OpR2T
	}
}

// send sends a PDU, or what the fault makes of it.
func (c *conn) send(h *iscsi.Header, data []byte, f Fault) error {
	if err := c.wire(f); err != nil {
		return err
	}
	if c.silent {
		return nil
	}
	var extra iscsi.Header
	extra.SetOpcode(iscsi.OpAsync)
	extra.SetFlags(iscsi.FlagFinal)
	extra.SetInitiatorTag(iscsi.NoTag)
	switch f {
	case AskLogout:
		extra.SetAsyncEvent(iscsi.AsyncLogout)
		extra.SetAsyncParameter(3, 1)
	case DropSession:
		extra.SetAsyncEvent(iscsi.AsyncDropSession)
	case DropConnection:
		extra.SetAsyncEvent(iscsi.AsyncDropConnection)
	case Attention:
		extra.SetAsyncEvent(iscsi.AsyncSCSI)
	case RejectIt:
		extra.SetOpcode(iscsi.OpReject)
		extra.SetResponse(uint8(iscsi.RejectProtocolError))
		if err := c.put(&extra, c.last[:], None); err != nil {
			return err
		}
		return errDropped
	default:
	}
	if f >= AskLogout && f <= Attention {
		if err := c.put(&extra, nil, None); err != nil {
			return err
		}
		if f == DropSession || f == DropConnection {
			return errDropped
		}
	}
	if err := c.put(h, data, f); err != nil {
		return err
	}
	if f == Twice {
		return c.put(h, data, None)
	}
	return nil
}

// put puts a PDU on the wire.
func (c *conn) put(h *iscsi.Header, data []byte, f Fault) error {
	h.SetDataLength(len(data))
	h.SetExpCmdSN(c.cmdSN)
	h.SetMaxCmdSN(c.cmdSN + 31)
	h.SetStatSN(c.statSN)
	if numbered(h) {
		c.statSN++
	}
	w := *h
	switch f {
	case BadOpcode:
		w.SetOpcode(0x3a)
	case WrongTag:
		w.SetInitiatorTag(w.InitiatorTag() ^ 0x4321)
	case WrongStatSN:
		w.SetStatSN(w.StatSN() - 3)
	case WrongOffset:
		w.SetBufferOffset(w.BufferOffset() + 512)
	case WrongDataSN:
		w.SetDataSN(w.DataSN() + 1)
	case WrongResidual:
		w.SetFlags(w.Flags() | iscsi.FlagUnderflow)
		w.SetResidual(512)
	case TooLong:
		w.SetDataLength(1<<24 - 1)
	case WithAHS:
		w.SetAHSLength(8)
	default:
	}
	wire := append([]byte(nil), w[:]...)
	if c.p.HeaderDigest {
		d := iscsi.Digest(w[:])
		if f == BadDigest {
			d++
		}
		wire = binary.LittleEndian.AppendUint32(wire, d)
	}
	if len(data) > 0 {
		wire = append(wire, data...)
		wire = append(wire, make([]byte, iscsi.Padding(len(data)))...)
		if c.p.DataDigest {
			d := iscsi.DataDigest(data)
			if f == BadDigest && !c.p.HeaderDigest {
				d++
			}
			wire = binary.LittleEndian.AppendUint32(wire, d)
		}
	}
	if f == Torn {
		_, _ = c.sock.Write(wire[:len(wire)/2])
		return errDropped
	}
	_, err := c.sock.Write(wire)
	return err
}

// handle serves one request.
func (c *conn) handle(h *iscsi.Header, data []byte) error {
	if !h.Immediate() && h.Opcode() != iscsi.OpDataOut {
		if h.CmdSN() != c.cmdSN {
			c.t.mu.Lock()
			c.t.accuse("%v with CmdSN %d, not %d", h.Opcode(), h.CmdSN(), c.cmdSN)
			c.t.mu.Unlock()
			return errDropped
		}
		c.cmdSN++
	}
	switch h.Opcode() {
	case iscsi.OpNopOut:
		if h.InitiatorTag() == iscsi.NoTag {
			return nil
		}
		var r iscsi.Header
		r.SetOpcode(iscsi.OpNopIn)
		r.SetFlags(iscsi.FlagFinal)
		r.SetInitiatorTag(h.InitiatorTag())
		r.SetTargetTag(iscsi.NoTag)
		return c.send(&r, nil, c.t.strike(c.group, Ping))
	case iscsi.OpLogoutReq:
		var r iscsi.Header
		r.SetOpcode(iscsi.OpLogoutResp)
		r.SetFlags(iscsi.FlagFinal)
		r.SetInitiatorTag(h.InitiatorTag())
		_ = c.send(&r, nil, c.t.strike(c.group, Farewell))
		return errDropped
	case iscsi.OpTextReq:
		var r iscsi.Header
		r.SetOpcode(iscsi.OpTextResp)
		r.SetFlags(iscsi.FlagFinal)
		r.SetInitiatorTag(h.InitiatorTag())
		r.SetTargetTag(iscsi.NoTag)
		text := iscsi.AppendPair(nil, "TargetName", Name)
		for _, g := range c.t.o.Groups {
			text = iscsi.AppendPair(text, "TargetAddress", c.t.Addr(g)+","+string(rune('0'+g)))
		}
		return c.send(&r, text, None)
	case iscsi.OpTaskRequest:
		return c.manage(h)
	case iscsi.OpSCSICommand:
		return c.command(h, data)
	case iscsi.OpDataOut:
		return c.dataOut(h, data)
	default:
		return errDropped
	}
}

// manage is LOGICAL UNIT RESET: every task of every nexus ends.
func (c *conn) manage(h *iscsi.Header) error {
	c.t.mu.Lock()
	for w := range c.t.open {
		delete(c.t.open, w)
	}
	c.t.mu.Unlock()
	clear(c.tasks)
	c.t.Resets.Add(1)
	var r iscsi.Header
	r.SetOpcode(iscsi.OpTaskResponse)
	r.SetFlags(iscsi.FlagFinal)
	r.SetInitiatorTag(h.InitiatorTag())
	return c.send(&r, nil, None)
}

// command takes a SCSI Command PDU.
func (c *conn) command(h *iscsi.Header, data []byte) error {
	c.t.Commands.Add(1)
	k := &task{h: *h, got: len(data), fault: c.t.strike(c.group, Command)}
	if k.fault < Statuses && k.fault != Late {
		if err := c.wire(k.fault); err != nil {
			return err
		}
	}
	if h.Flags()&iscsi.FlagWrite != 0 {
		k.out = make([]byte, h.ExpectedLength())
		copy(k.out, data)
		if len(data) > min(c.p.FirstBurstLength, c.p.MaxRecvLength) || !c.p.ImmediateData && len(data) > 0 {
			c.t.mu.Lock()
			c.t.accuse("%d bytes of immediate data", len(data))
			c.t.mu.Unlock()
		}
	}
	if off, n, ok := k.writes(); ok {
		c.t.mu.Lock()
		gone := c.s.gone
		if !gone {
			k.w = c.t.begin(c.s, off, n)
		}
		c.t.mu.Unlock()
		if gone {
			return errDropped // the session was reinstated: what comes of it still is nothing
		}
		c.t.Writes.Add(1)
	}
	c.tasks[h.InitiatorTag()] = k
	if h.Final() {
		return c.next(k)
	}
	return nil
}

// writes returns the range of a command that changes the disk.
func (k *task) writes() (off, n int, ok bool) {
	cdb := k.h.CDB()
	switch scsi.Opcode(cdb[0]) {
	case scsi.OpWrite16, scsi.OpCompareAndWrite, scsi.OpWriteSame16:
		t, _ := scsi.DecodeTransfer(cdb)
		return int(t.LBA) * block.SectorSize, int(t.Blocks) * block.SectorSize, true
	case scsi.OpUnmap:
		list, _ := scsi.DecodeUnmap(k.out)
		if list.Len() == 1 {
			e := list.At(0)
			return int(e.LBA) * block.SectorSize, int(e.Blocks) * block.SectorSize, true
		}
	default:
	}
	return 0, 0, false
}

// dataOut takes data.
func (c *conn) dataOut(h *iscsi.Header, data []byte) error {
	if err := c.wire(c.t.strike(c.group, Data)); err != nil {
		return err
	}
	k := c.tasks[h.InitiatorTag()]
	if k == nil {
		return nil // it was answered before it was all there
	}
	if int(h.BufferOffset()) != k.got || k.got+len(data) > len(k.out) || len(data) > c.t.o.Params.MaxRecvLength {
		c.t.mu.Lock()
		c.t.accuse("%d bytes of data at %d, after %d of %d", len(data), h.BufferOffset(), k.got, len(k.out))
		c.t.mu.Unlock()
		return errDropped
	}
	copy(k.out[k.got:], data)
	k.got += len(data)
	if h.Final() {
		return c.next(k)
	}
	return nil
}

// next asks for more data, or performs.
func (c *conn) next(k *task) error {
	if k.got == len(k.out) {
		return c.perform(k)
	}
	c.ttt++
	var r iscsi.Header
	r.SetOpcode(iscsi.OpR2T)
	r.SetFlags(iscsi.FlagFinal)
	r.SetLUN(k.h.LUN())
	r.SetInitiatorTag(k.h.InitiatorTag())
	r.SetTargetTag(c.ttt)
	r.SetDataSN(k.r2tSN)
	k.r2tSN++
	r.SetBufferOffset(uint32(k.got))
	n := min(len(k.out)-k.got, c.p.MaxBurstLength)
	f := c.t.strike(c.group, R2T)
	r.SetDesiredLength(uint32(n))
	if f == WrongResidual { // the same place: more than there is
		r.SetDesiredLength(uint32(len(k.out) + 512))
		f = None
	}
	return c.send(&r, nil, f)
}

// statusOf returns what a command's fault answers.
func statusOf(f Fault) (scsi.Status, *scsi.Check) {
	check := func(key, asc, ascq uint8) (scsi.Status, *scsi.Check) {
		return scsi.CheckCondition, scsi.Fail(key, asc, ascq)
	}
	switch f {
	case Busy:
		return scsi.BusyStatus, nil
	case TaskSetFull:
		return scsi.TaskSetFull, nil
	case UnitAttention:
		return check(scsi.KeyUnitAttention, 0x2a, 0x09)
	case Expelled:
		return check(scsi.KeyUnitAttention, 0x2a, 0x05)
	case BecomingReady:
		return check(scsi.KeyNotReady, 0x04, 0x01)
	case Transition:
		return check(scsi.KeyNotReady, 0x04, 0x0a)
	case AbortedCommand:
		return check(scsi.KeyAbortedCommand, 0, 0)
	case TaskAborted:
		return scsi.TaskAborted, nil
	case NoUnit:
		return check(scsi.KeyIllegalRequest, 0x25, 0)
	default:
		return scsi.Good, nil
	}
}

// perform performs a command and answers.
func (c *conn) perform(k *task) error {
	tag := k.h.InitiatorTag()
	f := k.fault
	if f == Late && k.w != nil {
		c.seen(k)
		c.t.leave(k.w, func() { c.apply(k) })
		delete(c.tasks, tag)
		return errDropped
	}
	if c.attentions > 0 && scsi.Opcode(k.h.CDB()[0]) != scsi.OpInquiry {
		c.attentions--
		return c.answer(k, scsi.CheckCondition, scsi.Fail(scsi.KeyUnitAttention, 0x29, 0x07), nil, false)
	}
	if f > Statuses {
		status, check := statusOf(f)
		perhaps := f == AbortedCommand || f == TaskAborted || f == TargetFailure
		if perhaps && k.w != nil {
			c.seen(k)
			if c.t.chance(2) {
				c.t.mu.Lock()
				if !c.s.gone {
					c.apply(k)
				}
				c.t.mu.Unlock()
			}
		}
		return c.answer(k, status, check, nil, f == TargetFailure)
	}
	c.t.mu.Lock()
	if c.s.gone {
		c.t.mu.Unlock()
		return errDropped
	}
	status, check, in := c.execute(k)
	c.t.mu.Unlock()
	return c.answer(k, status, check, in, false)
}

// seen notes a COMPARE AND WRITE that may be performed.
func (c *conn) seen(k *task) {
	if scsi.Opcode(k.h.CDB()[0]) != scsi.OpCompareAndWrite {
		return
	}
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	if id := string(k.h.CDB()[:14]) + string(k.out); c.t.onceSeen[id] {
		c.t.accuse("a COMPARE AND WRITE came twice")
	} else {
		c.t.onceSeen[id] = true
	}
}

// answer sends data and status, and the write is over.
func (c *conn) answer(k *task, status scsi.Status, check *scsi.Check, in []byte, failure bool) error {
	tag := k.h.InitiatorTag()
	delete(c.tasks, tag)
	if k.w != nil {
		// Over, as far as the target goes. The answer may be lost, and the
		// initiator send it again: after a reinstatement or not is the same.
		c.t.mu.Lock()
		delete(c.t.open, k.w)
		c.t.mu.Unlock()
	}
	expected := int(k.h.ExpectedLength())
	read := k.h.Flags()&iscsi.FlagRead != 0
	under := 0
	if read {
		if len(in) > expected {
			in = in[:expected]
		}
		under = expected - len(in)
	}
	for sn := uint32(0); len(in) > 0; sn++ {
		part := min(len(in), c.p.MaxSendLength, 4096)
		var h iscsi.Header
		h.SetOpcode(iscsi.OpDataIn)
		h.SetInitiatorTag(tag)
		h.SetTargetTag(iscsi.NoTag)
		h.SetDataSN(sn)
		h.SetBufferOffset(uint32(expected - under - len(in)))
		last := part == len(in)
		if last {
			h.SetFlags(iscsi.FlagFinal)
			if status == scsi.Good && c.t.chance(2) {
				flags := byte(iscsi.FlagFinal | iscsi.FlagStatus)
				if under > 0 {
					flags |= iscsi.FlagUnderflow
					h.SetResidual(uint32(under))
				}
				h.SetFlags(flags)
			}
		}
		if err := c.send(&h, in[:part], c.t.strike(c.group, DataIn)); err != nil {
			return err
		}
		if h.Flags()&iscsi.FlagStatus != 0 {
			return nil
		}
		in = in[part:]
	}
	var h iscsi.Header
	h.SetOpcode(iscsi.OpSCSIResponse)
	h.SetInitiatorTag(tag)
	h.SetSCSIStatus(uint8(status))
	if failure {
		h.SetResponse(iscsi.ResponseFailure)
	}
	flags := byte(iscsi.FlagFinal)
	if under > 0 {
		flags |= iscsi.FlagUnderflow
		h.SetResidual(uint32(under))
	}
	h.SetFlags(flags)
	var sense []byte
	if check != nil {
		body := check.AppendSense(nil, false)
		sense = append([]byte{0, byte(len(body))}, body...)
	}
	f := c.t.strike(c.group, Response)
	err := c.send(&h, sense, f)
	if k.w != nil && hides(f) {
		c.t.mu.Lock()
		if !c.s.gone && !c.t.closed {
			// The initiator does not know that it is over.
			k.w.late, k.w.apply = true, nil
			c.t.open[k.w] = true
		}
		c.t.mu.Unlock()
	}
	return err
}

// hides tells whether a fault keeps a status from the initiator.
func hides(f Fault) bool {
	switch f {
	case Drop, Reset, Silence, Torn, BadOpcode, WrongTag, WrongStatSN, TooLong, WithAHS, RejectIt, DropSession, DropConnection:
		return true
	default:
		return false
	}
}
