package initiator

import (
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"steadfast/compute/initiator/nexus"
	"steadfast/iscsi"
	"steadfast/scsi"
)

// conn is a connection in its full feature phase: the one session of a nexus.
//
// One goroutine receives at a time: the receiver, or the caller of the only command
// there is, until that is answered. Whoever queues PDUs while nobody sends is the sender
// for a few rounds, and leaves what comes after to a goroutine that only
// sends; the receiver never sends itself, for a target that waits for us to
// read would then wait for ever.
//
// The last act of who receives is to say that the connection is lost, after the
// last sender has left: from then on nobody touches the memory of the requests
// that were under way, and they may go to another connection.
type conn struct {
	d      *Disk
	n      *nexus.Nexus
	portal string
	sock   net.Conn
	params iscsi.Params
	log    []any // attributes

	in    reader
	heard atomic.Int64  // when the last byte came, as a nexus.Instant
	gone  chan struct{} // closed when the connection is lost, and everything told
	wake  chan struct{} // for the sending goroutine
	news  chan struct{} // the unit has news: paths, capacity
	// listens has the receiver listen.
	listens chan struct{}

	// All below under Disk.mu.
	queue, spare []pdu
	sending      bool
	broken       bool  // the socket is closed; nothing is queued any more
	why          error // what broke it
	idle         sync.Cond
	statSN       uint32 // the next we expect
	slots        []*request
	free         []uint16
	generation   uint16
	pinging      bool
	wait         nexus.Instant // what the target asked to wait before a reconnect
	managed      chan uint8    // where the answer to a task management request goes
	logout       bool          // a logout was sent
	owed         int           // answers to pings in queue
	listening    bool          // somebody receives, or is about to
	leader       *request      // whose caller it is, or nil

	ended []*request // whose callers are to be told; of who receives

	iov  [][]byte // the sender's
	bufs net.Buffers
}

// pdu is one PDU to send. wire has room for the header's digest behind it.
type pdu struct {
	wire  [iscsi.HeaderSize + iscsi.DigestSize]byte
	tail  [8]byte // padding and the data's digest
	data  []byte
	owner *request
	last  bool // of what one R2T asked for
}

func (p *pdu) header() *iscsi.Header { return (*iscsi.Header)(p.wire[:iscsi.HeaderSize]) }

// Tags of what is no command; those of commands have the number of a slot in
// their lower half, below depthMax.
const (
	tagPing   = 0xf001
	tagLogout = 0xf002
	tagManage = 0xf003
)

func newConn(d *Disk, portal string, sock net.Conn, login *iscsi.Initiate) *conn {
	c := &conn{
		d: d, portal: portal, sock: sock, params: login.Params,
		gone: make(chan struct{}), wake: make(chan struct{}, 1), news: make(chan struct{}, 1),
		listens: make(chan struct{}, 1), listening: true, // by the receiver, to begin with
		statSN: login.StatSN + 1,
		slots:  make([]*request, d.cfg.QueueDepth),
	}
	c.idle.L = &d.mu
	for i := len(c.slots) - 1; i >= 0; i-- {
		c.free = append(c.free, uint16(i))
	}
	c.in = reader{c: c, buf: make([]byte, readBuffer)}
	c.heard.Store(int64(d.now()))
	return c
}

// add queues a PDU with the numbers that every PDU has. Under Disk.mu.
func (c *conn) add(op iscsi.Opcode, owner *request, data []byte) *iscsi.Header {
	if len(c.queue) < cap(c.queue) {
		c.queue = c.queue[:len(c.queue)+1]
	} else {
		c.queue = append(c.queue, pdu{})
	}
	p := &c.queue[len(c.queue)-1]
	p.data, p.owner, p.last = data, owner, false
	if owner != nil {
		owner.holds++
	}
	h := p.header()
	*h = iscsi.Header{}
	h.SetOpcode(op)
	h.SetFlags(iscsi.FlagFinal)
	h.SetDataLength(len(data))
	h.SetExpStatSN(c.statSN)
	return h
}

// start queues a command that the core chose this connection for, with what
// data may go without being asked for. Under Disk.mu.
func (c *conn) start(r *request) {
	slot := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	c.slots[slot] = r
	c.generation++
	r.tag = uint32(c.generation)<<16 | uint32(slot)
	r.conn, r.got, r.dataSN, r.r2tSN, r.answered = c, 0, 0, 0, false
	r.asked = 0
	r.sentAt = c.d.now()

	now := 0
	if c.params.ImmediateData {
		now = min(len(r.out), c.params.FirstBurstLength, c.params.MaxSendLength)
	}
	first := now
	if !c.params.InitialR2T {
		first = min(len(r.out), c.params.FirstBurstLength)
	}
	h := c.add(iscsi.OpSCSICommand, r, r.out[:now])
	flags := byte(scsi.Simple)
	length := len(r.out)
	switch {
	case len(r.in) > 0:
		flags, length = flags|iscsi.FlagRead, len(r.in)
	case len(r.out) > 0:
		flags |= iscsi.FlagWrite
	}
	if first == now {
		flags |= iscsi.FlagFinal // no unsolicited data follows
	}
	h.SetFlags(flags)
	h.SetLUN(uint64(c.d.lun))
	h.SetInitiatorTag(r.tag)
	h.SetExpectedLength(uint32(length))
	h.SetCmdSN(r.CmdSN)
	copy(h.CDB(), r.cdb[:])
	if first > now {
		c.dataOut(r, iscsi.NoTag, now, first-now)
	}
	r.sent = first
}

// dataOut queues a sequence of Data-Out PDUs. Under Disk.mu. RFC 7143, 11.7.
func (c *conn) dataOut(r *request, target uint32, off, n int) {
	for sn := uint32(0); n > 0; sn++ {
		part := min(n, c.params.MaxSendLength)
		h := c.add(iscsi.OpDataOut, r, r.out[off:off+part])
		if part < n {
			h.SetFlags(0)
		} else if target != iscsi.NoTag {
			c.queue[len(c.queue)-1].last = true
			r.asked++
		}
		h.SetLUN(uint64(c.d.lun))
		h.SetInitiatorTag(r.tag)
		h.SetTargetTag(target)
		h.SetDataSN(sn)
		h.SetBufferOffset(uint32(off))
		off, n = off+part, n-part
	}
}

// immediate queues a request outside of the command order. Under Disk.mu.
func (c *conn) immediate(op iscsi.Opcode, tag uint32) *iscsi.Header {
	h := c.add(op, nil, nil)
	h.SetImmediate()
	h.SetInitiatorTag(tag)
	h.SetTargetTag(iscsi.NoTag)
	h.SetCmdSN(c.n.NextCmdSN())
	return h
}

// senderRounds is how many batches a caller sends for others beside its own.
const senderRounds = 2

// send sends what is queued, unless somebody does. Under Disk.mu, which is
// released meanwhile. What is left after the rounds is the sending goroutine's.
func (c *conn) send(rounds int) {
	if c.sending || c.broken {
		return
	}
	c.sending = true
	for ; rounds > 0 && len(c.queue) > 0 && !c.broken; rounds-- {
		batch := c.queue
		c.queue, c.owed = c.spare[:0], 0
		for i := range batch {
			if batch[i].last {
				batch[i].owner.asked--
			}
		}
		c.d.mu.Unlock()
		err := c.write(batch)
		c.d.mu.Lock()
		c.release(batch)
		c.spare = batch[:0]
		if err != nil {
			c.fail(err)
		}
		c.d.pump()
	}
	c.sending = false
	if c.broken {
		c.idle.Broadcast()
	}
	c.d.nudge()
}

// release lets go what a batch held. An answer that came before its command's
// data was out of our hands takes effect now. Under Disk.mu.
func (c *conn) release(batch []pdu) {
	for i := range batch {
		r := batch[i].owner
		batch[i].owner, batch[i].data = nil, nil
		if r == nil {
			continue
		}
		if r.holds--; r.holds == 0 && r.answered {
			if end, err := c.d.settle(r); end {
				c.d.finish(r, err)
			}
		}
	}
}

// nudge has the sending goroutine send what is queued, and sees to it that somebody
// receives what is awaited. Under Disk.mu.
func (c *conn) nudge() {
	if !c.quiet() {
		c.hearken()
	}
	if len(c.queue) == 0 || c.sending || c.broken {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// sender is the sending goroutine.
func (c *conn) sender() {
	for {
		select {
		case <-c.gone:
			return
		case <-c.wake:
		}
		c.d.mu.Lock()
		for len(c.queue) > 0 && !c.sending && !c.broken {
			c.send(1 << 30)
		}
		c.d.mu.Unlock()
	}
}

// zeros pad data segments.
var zeros [4]byte

// write sends a batch by one system call where the system has one for that.
func (c *conn) write(batch []pdu) error {
	iov := c.iov[:0]
	for i := range batch {
		p := &batch[i]
		n := iscsi.HeaderSize
		if c.params.HeaderDigest {
			binary.LittleEndian.PutUint32(p.wire[n:], iscsi.Digest(p.wire[:n]))
			n += iscsi.DigestSize
		}
		iov = append(iov, p.wire[:n])
		if len(p.data) == 0 {
			continue
		}
		iov = append(iov, p.data)
		tail := iscsi.Padding(len(p.data))
		copy(p.tail[:], zeros[:])
		if c.params.DataDigest {
			binary.LittleEndian.PutUint32(p.tail[tail:], iscsi.DataDigest(p.data))
			tail += iscsi.DigestSize
		}
		if tail > 0 {
			iov = append(iov, p.tail[:tail])
		}
	}
	c.iov = iov
	if len(iov) == 1 {
		_, err := c.sock.Write(iov[0])
		return err
	}
	c.bufs = iov // WriteTo eats it
	_, err := c.bufs.WriteTo(c.sock)
	return err
}

// errBroken is what a connection ends by that we ended ourselves.
var errBroken = errors.New("the connection was closed")

// fail breaks the connection; the receiver notices, and tells everyone. Under
// Disk.mu.
func (c *conn) fail(why error) {
	if c.broken {
		return
	}
	c.broken, c.why = true, why
	if c.n.Phase != nexus.Down {
		c.n.Phase = nexus.Draining // nothing new for it
	}
	_ = c.sock.Close() // else who receives would not notice
	c.hearken()
}

// lost is the last act of who receives. Under Disk.mu.
func (c *conn) lost() {
	c.leader = nil
	for c.sending {
		c.idle.Wait()
	}
	c.release(c.queue) // never sent
	c.queue = c.queue[:0]
	for i, r := range c.slots {
		if r != nil {
			r.conn = nil
			c.slots[i] = nil
		}
	}
	if c.managed != nil {
		close(c.managed)
		c.managed = nil
	}
	d := c.d
	d.conns = slices.DeleteFunc(d.conns, func(o *conn) bool { return o == c })
	d.counters.Losses++
	for _, k := range d.core.Lost(c.n, d.now(), nil) {
		d.finish(k.Owner.(*request), errLost)
	}
	d.unclaim(c.n.Tag)
	d.pump()
	d.nudge()
	close(c.gone)
}

// lookup returns the request of a tag, or nil. Under Disk.mu.
func (c *conn) lookup(tag uint32) *request {
	slot := tag & 0xffff
	if slot >= uint32(len(c.slots)) {
		return nil
	}
	r := c.slots[slot]
	if r == nil || r.tag != tag {
		return nil
	}
	return r
}

// forget frees a request's slot. Under Disk.mu.
func (c *conn) forget(r *request) {
	slot := uint16(r.tag)
	c.slots[slot] = nil
	c.free = append(c.free, slot)
	r.conn = nil
}
