package initiator

import (
	"encoding/binary"
	"fmt"
	"time"

	"steadfast/compute/initiator/nexus"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/scsi"
)

// readBuffer is the receiver's buffer in bytes. Data that is longer than what
// is in it goes straight from the socket to where it belongs.
const readBuffer = 32 << 10

// directMin is from how many bytes on a read of its own is worth it.
const directMin = 8 << 10

// reader is a buffered reader that can leave its buffer out.
type reader struct {
	c    *conn
	buf  []byte
	r, w int
}

// more reads once into p.
func (b *reader) more(p []byte) (int, error) {
	b.c.tellEnded()
	n, err := b.c.sock.Read(p)
	if n > 0 {
		b.c.heard.Store(int64(b.c.d.now()))
		return n, nil
	}
	if err == nil {
		err = fmt.Errorf("a read of nothing")
	}
	return 0, err
}

// peek returns the next n bytes, n at most len(buf), which are then consumed.
func (b *reader) take(n int) ([]byte, error) {
	if b.w-b.r < n && len(b.buf)-b.r < n {
		copy(b.buf, b.buf[b.r:b.w])
		b.w -= b.r
		b.r = 0
	}
	for b.w-b.r < n {
		m, err := b.more(b.buf[b.w:])
		if err != nil {
			return nil, err
		}
		b.w += m
	}
	p := b.buf[b.r : b.r+n]
	b.r += n
	if b.r == b.w {
		b.r, b.w = 0, 0
	}
	return p, nil
}

// full fills p.
func (b *reader) full(p []byte) error {
	n := copy(p, b.buf[b.r:b.w])
	if b.r += n; b.r == b.w {
		b.r, b.w = 0, 0
	}
	p = p[n:]
	for len(p) >= directMin {
		n, err := b.more(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	if len(p) == 0 {
		return nil
	}
	q, err := b.take(len(p))
	copy(p, q)
	return err
}

// textMax bounds the data of PDUs that carry no medium data, in bytes: sense
// data, rejected headers, the payload of pings.
const textMax = 16 << 10

// receiver receives whenever no caller does, until the connection breaks.
func (c *conn) receiver() {
	for {
		c.listen()
		select {
		case <-c.gone:
			return
		case <-c.listens:
		}
	}
}

// listen receives until somebody else may, or the connection breaks. Its caller has
// been given that by conn.listening.
func (c *conn) listen() {
	for {
		stay, err := c.receive()
		if err != nil {
			c.tellEnded()
			c.d.mu.Lock()
			c.fail(err)
			c.lost()
			c.d.mu.Unlock()
			return
		}
		if !stay {
			return
		}
	}
}

// leadMax is up to how many bytes a write's caller may be the one who receives: it sends
// before it does, which nobody receives meanwhile.
const leadMax = 64 << 10

// lead tells whether r's caller shall receive its answer itself: when it is alone, which
// spares two processors to wake each other. Under Disk.mu, before r is sent.
func (c *conn) lead(r *request) bool {
	if c.listening || c.broken || c.n.Outstanding() != 1 || len(r.out) > leadMax {
		return false
	}
	c.listening, c.leader = true, r
	return true
}

// hearken has the receiver listen, if nobody does. Under Disk.mu.
func (c *conn) hearken() {
	if !c.listening {
		c.listening = true
		c.listens <- struct{}{} // never full: it is sent by who changes listening
	}
}

// quiet tells whether nothing is awaited of the target: the next command's caller may
// listen. What comes unasked for waits until then, or for the keeper's next tick.
// Under Disk.mu.
func (c *conn) quiet() bool {
	return c.n.Phase == nexus.Up && c.n.Outstanding() == 0 && len(c.queue) == 0 && !c.pinging && !c.logout && !c.broken && c.managed == nil
}

// violation is an error of the target's: it does not keep to the protocol, so
// nothing more of this connection can be believed.
func violation(format string, args ...any) error {
	return fault.New(fault.Unreachable, "the target breaks the protocol: "+format, args...)
}

// receive receives one PDU and does what it says. It returns whether to go on.
func (c *conn) receive() (stay bool, err error) {
	b, err := c.in.take(iscsi.HeaderSize)
	if err != nil {
		return false, err
	}
	h := iscsi.Header(b)
	if h.AHSLength() != 0 {
		// No PDU of a target has any: RFC 7143, 11.2.2 has them for commands.
		return false, violation("%v with %d bytes of additional header", h.Opcode(), h.AHSLength())
	}
	if c.params.HeaderDigest {
		want := iscsi.Digest(h[:])
		d, err := c.in.take(iscsi.DigestSize)
		if err != nil {
			return false, err
		}
		if binary.LittleEndian.Uint32(d) != want {
			return false, violation("a header's digest is wrong")
		}
	}
	if h.Opcode() == iscsi.OpDataIn {
		return c.dataIn(&h)
	}
	n := h.DataLength()
	if n > textMax {
		return false, violation("%v of %d bytes", h.Opcode(), n)
	}
	data, err := c.in.take(n + iscsi.Padding(n))
	if err != nil {
		return false, err
	}
	if n > 0 && c.params.DataDigest {
		// The digest may move the buffer: look at the data first.
		want := iscsi.Digest(data)
		keep := append([]byte(nil), data[:n]...)
		if err := c.digest(want); err != nil {
			return false, err
		}
		data = keep
	}
	data = data[:n]

	c.d.mu.Lock()
	err = c.numbers(&h)
	if err == nil {
		err = c.dispatch(&h, data)
	}
	return c.leave(err), err
}

// tellEnded tells callers of their commands' ends: all of what came by one read at
// once, before the next read, and without mu. So their next commands leave together,
// and nobody wakes up only to wait for mu. By who receives.
func (c *conn) tellEnded() {
	for i, r := range c.ended {
		c.ended[i] = nil
		r.done <- r.err
	}
	c.ended = c.ended[:0]
}

// leave ends what the receiver does under Disk.mu: it sends what may go now. It returns
// whether to go on receiving.
func (c *conn) leave(err error) (stay bool) {
	stay = true
	if err == nil {
		c.d.pump()
		c.d.nudge()
		if r := c.leader; r != nil && (r.conn != c || r.answered) || r == nil && c.quiet() {
			// Until here nothing but what was received could change that.
			stay, c.leader, c.listening = false, nil, false
		}
	}
	var few [4]*request
	over := few[:0]
	if !stay {
		// Without mu somebody else may receive, whose c.ended it is.
		over = append(over, c.ended...)
		clear(c.ended)
		c.ended = c.ended[:0]
		if !c.quiet() {
			c.hearken()
		}
	}
	c.d.mu.Unlock()
	for _, r := range over {
		r.done <- r.err
	}
	return stay
}

func (c *conn) digest(want uint32) error {
	d, err := c.in.take(iscsi.DigestSize)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(d) != want {
		return violation("a data digest is wrong")
	}
	return nil
}

// numbered tells whether a PDU's StatSN counts: that of a Data-In without
// status, of an R2T and of a ping does not. RFC 7143, 11.7.2, 11.8.4, 11.19.3.
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

// numbers checks and takes the sequence numbers of a PDU. At error recovery
// level 0 a status that is missing, or comes twice, ends the connection:
// RFC 7143, 7.1.4.1. Under Disk.mu.
func (c *conn) numbers(h *iscsi.Header) error {
	if numbered(h) {
		if h.StatSN() != c.statSN {
			return violation("%v with StatSN %d, not %d", h.Opcode(), h.StatSN(), c.statSN)
		}
		c.statSN++
	}
	c.n.Window(h.ExpCmdSN(), h.MaxCmdSN())
	return nil
}

// dataIn takes data that was read, straight to where it belongs.
// RFC 7143, 11.7.
func (c *conn) dataIn(h *iscsi.Header) (stay bool, err error) {
	n := h.DataLength()
	c.d.mu.Lock()
	err = c.numbers(h)
	r := c.lookup(h.InitiatorTag())
	if r != nil && r.answered {
		r = nil // the sender may settle it at any moment, and the memory is its caller's again
	}
	c.d.mu.Unlock()
	switch {
	case err != nil:
		return false, err
	case n > c.params.MaxRecvLength:
		return false, violation("Data-In of %d bytes, of at most %d", n, c.params.MaxRecvLength)
	case r == nil:
		return false, violation("Data-In for task %#x, which there is not", h.InitiatorTag())
	case int64(h.BufferOffset()) != int64(r.got) || n > len(r.in)-r.got:
		// DataPDUInOrder and DataSequenceInOrder are both agreed on.
		return false, violation("Data-In of %d bytes at %d, after %d of %d", n, h.BufferOffset(), r.got, len(r.in))
	case h.DataSN() != r.dataSN:
		return false, violation("Data-In with DataSN %d, not %d", h.DataSN(), r.dataSN)
	}
	// The request is ours until its answer: nobody else touches it.
	p := r.in[r.got : r.got+n]
	if err := c.in.full(p); err != nil {
		return false, err
	}
	if pad := iscsi.Padding(n); pad > 0 || n > 0 && c.params.DataDigest {
		d := uint32(0)
		if c.params.DataDigest {
			d = iscsi.Digest(p)
		}
		padding, err := c.in.take(pad)
		if err != nil {
			return false, err
		}
		if c.params.DataDigest {
			if err := c.digest(iscsi.UpdateDigest(d, padding)); err != nil {
				return false, err
			}
		}
	}
	r.got += n
	r.dataSN++
	if h.Flags()&iscsi.FlagStatus == 0 {
		return true, nil
	}
	c.d.mu.Lock()
	err = c.answer(r, h, nil)
	return c.leave(err), err
}

// owedMax bounds the answers to pings that wait to be sent: a target that asks
// and does not read would fill our memory.
const owedMax = 256

// dispatch does what a PDU says. Under Disk.mu.
func (c *conn) dispatch(h *iscsi.Header, data []byte) error {
	switch h.Opcode() {
	case iscsi.OpSCSIResponse:
		r := c.lookup(h.InitiatorTag())
		if r == nil || r.answered {
			return violation("an answer to task %#x, which there is not", h.InitiatorTag())
		}
		return c.answer(r, h, data)
	case iscsi.OpR2T:
		return c.wanted(h)
	case iscsi.OpNopIn:
		if tag := h.InitiatorTag(); tag != iscsi.NoTag {
			if tag != tagPing || !c.pinging {
				return violation("an answer to ping %#x, which there was not", tag)
			}
			c.pinging = false
			return nil
		}
		if h.TargetTag() != iscsi.NoTag {
			if c.owed++; c.owed > owedMax {
				return violation("%d pings, and it takes no answer", c.owed)
			}
			reply := c.immediate(iscsi.OpNopOut, iscsi.NoTag)
			reply.SetTargetTag(h.TargetTag())
			reply.SetLUN(h.LUN())
		}
		return nil
	case iscsi.OpAsync:
		return c.async(h)
	case iscsi.OpReject:
		return c.rejected(h, data)
	case iscsi.OpTaskResponse:
		if h.InitiatorTag() != tagManage || c.managed == nil {
			return violation("an answer to task management %#x, which there was not", h.InitiatorTag())
		}
		c.managed <- h.Response()
		c.managed = nil
		return nil
	case iscsi.OpLogoutResp:
		if !c.logout || h.InitiatorTag() != tagLogout {
			return violation("an answer to a logout that there was not")
		}
		return errBroken
	default:
		return violation("%v", h.Opcode())
	}
}

// answer takes a command's status. Under Disk.mu.
func (c *conn) answer(r *request, h *iscsi.Header, data []byte) error {
	r.status, r.check = scsi.Status(h.SCSIStatus()), scsi.Check{}
	if h.Opcode() == iscsi.OpSCSIResponse && h.Response() != iscsi.ResponseComplete {
		// Target failure: what became of the command is not said. RFC 7143,
		// 11.4.3: it is over.
		r.status = scsi.TaskAborted
	}
	if r.status == scsi.CheckCondition {
		if len(data) < 2 {
			return violation("CHECK CONDITION without sense data")
		}
		// The sense data has its length before it. RFC 7143, 11.4.7.
		n := int(binary.BigEndian.Uint16(data))
		check, ok := scsi.DecodeSense(data[2:min(len(data), 2+n)])
		if !ok {
			return violation("sense data that is none: %.32x", data)
		}
		r.check = check
	}
	if r.status == scsi.Good && !r.short {
		// GOOD means that all of it was transferred; who says so and
		// transferred less, or counts otherwise, is not to be believed.
		under := h.Flags()&(iscsi.FlagUnderflow|iscsi.FlagOverflow) != 0 && h.Residual() != 0
		if r.got != len(r.in) || r.sent != len(r.out) || under {
			return violation("GOOD after %d of %d bytes, residual %d", r.got+r.sent, len(r.in)+len(r.out), h.Residual())
		}
	}
	r.answered = true
	if r.holds == 0 {
		if end, err := c.d.settle(r); end {
			r.err = err
			c.ended = append(c.ended, r)
		}
	}
	return nil
}

// wanted takes an R2T. RFC 7143, 11.8. Under Disk.mu.
func (c *conn) wanted(h *iscsi.Header) error {
	r := c.lookup(h.InitiatorTag())
	off, n := int64(h.BufferOffset()), int64(h.DesiredLength())
	switch {
	case r == nil || r.answered:
		return violation("R2T for task %#x, which there is not", h.InitiatorTag())
	case h.TargetTag() == iscsi.NoTag:
		return violation("R2T without a tag")
	case r.asked >= c.params.MaxOutstandingR2T:
		// What is being sent does not count: it may be there already.
		return violation("%d R2Ts at a time, where %d are agreed on", r.asked+1, c.params.MaxOutstandingR2T)
	case h.DataSN() != r.r2tSN:
		return violation("R2T with R2TSN %d, not %d", h.DataSN(), r.r2tSN)
	case off != int64(r.sent) || n <= 0 || n > int64(c.params.MaxBurstLength) || off+n > int64(len(r.out)):
		// DataSequenceInOrder is agreed on.
		return violation("R2T for %d bytes at %d, after %d of %d", n, off, r.sent, len(r.out))
	}
	r.r2tSN++
	r.sent = int(off + n)
	c.dataOut(r, h.TargetTag(), int(off), int(n))
	return nil
}

// waitMax bounds what a target may ask us to wait before we come back.
const waitMax = 30 * time.Second

// async takes an asynchronous message. RFC 7143, 11.9. Under Disk.mu.
func (c *conn) async(h *iscsi.Header) error {
	switch h.AsyncEvent() {
	case iscsi.AsyncSCSI:
		c.tell()
	case iscsi.AsyncLogout, iscsi.AsyncNegotiate:
		// Nothing new is sent; the keeper logs out when what is under way is
		// answered. We negotiate nothing in the full feature phase: a new
		// login does.
		if c.n.Phase == nexus.Up || c.n.Phase == nexus.Probing {
			c.n.Phase = nexus.Draining
		}
		c.d.counters.LogoutRequests++
		c.tell()
	case iscsi.AsyncDropConnection, iscsi.AsyncDropSession:
		wait := min(time.Duration(h.AsyncParameter(2))*time.Second, waitMax)
		c.wait = c.d.now() + nexus.Instant(wait)
		return fault.New(fault.Unreachable, "the target ends the session")
	}
	return nil
}

// tell says that the unit has news. Under Disk.mu.
func (c *conn) tell() {
	select {
	case c.news <- struct{}{}:
	default:
	}
}

// rejectsMax is how often a target may reject one request before its caller
// hears of it.
const rejectsMax = 3

// rejected takes a Reject: the connection ends, as level 0 has it, and what
// was rejected is asked again a few times, as a digest may be wrong by chance.
// RFC 7143, 7.1.4.1 and 11.17. Under Disk.mu.
func (c *conn) rejected(h *iscsi.Header, data []byte) error {
	reason := h.Response()
	if len(data) >= iscsi.HeaderSize {
		was := iscsi.Header(data[:iscsi.HeaderSize])
		if r := c.lookup(was.InitiatorTag()); r != nil && (was.Opcode() == iscsi.OpSCSICommand || was.Opcode() == iscsi.OpDataOut) {
			r.rejects++
		}
	}
	return violation("it rejects what we sent, reason %#02x", reason)
}
