package target

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"steadfast/iscsi"
	"steadfast/scsi"
)

// session is one I_T nexus and its only connection, from the end of its login
// to its end.
type session struct {
	srv    *Server
	conn   net.Conn
	raw    syscall.RawConn
	remote string // address without port, for the log
	id     iscsi.Identity
	params iscsi.Params
	tsih   uint16
	portal listening
	local  netip.AddrPort
	peer   netip.AddrPort
	since  time.Time
	port   scsi.Port // nil in a discovery session

	in     *input
	inline inline
	memory share

	bytesIn, bytesOut, commands atomic.Uint64

	// heard is set by every read and cleared by the ticker.
	heard  atomic.Bool
	dying  chan struct{} // closed when the connection is to end
	gone   chan struct{} // closed when nothing of the session is left
	once   sync.Once
	reason atomic.Pointer[string]
	mute   atomic.Bool // nothing is sent any more; set under wire
	moved  atomic.Bool // ends because the portal group moves: see hearOut
	wire   sync.Mutex  // held over a write to the socket that does not block

	// Only the login.
	deadline time.Time     // of the login
	holdLeft time.Duration // how long it may still be held

	// Only the reader.
	closed    bool   // the nexus is: no task begins any more
	arrived   uint64 // commands and functions seen, in order
	reorder   map[uint32]*early
	earlySize int
	textIn    []byte // text request so far (C bit)
	textOut   []byte // text answer not yet sent
	textTag   uint32
	refusing  bool // memory was overdrawn for longer than easeMax
	unchecked int  // PDUs since the batch's size was looked at

	mu          sync.Mutex
	left        sync.Cond // a task left, or the sender stopped; signalled while waiters > 0
	waiters     int
	tasks       command             // list head: begun or held, and not answered
	collect     map[uint32]*command // by initiator task tag: Data-Out may come
	managing    int                 // task management functions running
	draining    bool                // commands that come are not begun
	shelved     int                 // of them, in the window
	outstanding int                 // commands in the window, not answered
	immediates  int                 // immediate commands, not answered
	expCmdSN    uint32
	maxCmdSN    uint32
	statSN      uint32
	lastTag     uint32 // target transfer tag given last

	out, spare *batch // out is collected; spare is empty or being sent
	at         int    // where the header being written begins in out.arena
	sending    bool
	broken     bool // a write failed: nothing is sent any more
	running    bool // the login's last answer is out: others may send
	toSend     [][]byte
	writeErr   error
	writeTry   bool
	writeReady func(fd uintptr) bool // made once

	pinging bool // our NOP-In is unanswered
	silent  time.Duration
	stalled time.Duration
	lastIn  uint64 // bytesIn and bytesOut at the last tick
	lastOut uint64
	quit    time.Duration // what the initiator is given to log out; 0: it was not asked
}

// newSession returns a session whose login is to begin.
func (srv *Server) newSession(conn net.Conn, portal listening) (*session, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("connection %T has no descriptor", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &session{
		srv: srv, conn: conn, raw: raw, portal: portal, remote: hostOf(conn.RemoteAddr()), since: time.Now(),
		local: addrPortOf(conn.LocalAddr()), peer: addrPortOf(conn.RemoteAddr()), holdLeft: srv.times.LoginHold,
		dying: make(chan struct{}), gone: make(chan struct{}),
		collect: make(map[uint32]*command), reorder: make(map[uint32]*early),
		out: new(batch), spare: new(batch),
	}
	s.memory.limit = srv.limits.SessionMemory
	s.left.L = &s.mu
	s.tasks.prev, s.tasks.next = &s.tasks, &s.tasks
	s.writeReady = s.writeReadyFunc
	s.in = newInput(raw, s.ready, func(n int) {
		s.bytesIn.Add(uint64(n))
		if !s.heard.Load() {
			s.heard.Store(true)
		}
	})
	s.in.lingers = &srv.lingers
	return s, nil
}

// UnitAttention implements scsi.Events. The sense data goes with the next
// command; an asynchronous message would have to carry it, and the event does
// not. RFC 7143, 11.9.1.
func (s *session) UnitAttention(scsi.LUN) {}

// close ends the connection for a reason that goes to the log; the reader
// cleans up. It may be called from anywhere, more than once; the first reason
// stands.
func (s *session) close(reason string) {
	s.once.Do(func() {
		s.reason.Store(&reason)
		close(s.dying)
		// The reader, or a sender that waits for the socket, wakes with an error.
		_ = s.conn.SetDeadline(time.Unix(1, 0))
	})
}

// drop ends the session as close does, and tells the initiator, if its socket
// takes that at once. RFC 7143, 11.9.1, event 3.
func (s *session) drop(reason string) {
	s.mu.Lock()
	if s.running && !s.broken {
		h := s.async(iscsi.AsyncDropSession)
		h.SetAsyncParameter(2, uint16(s.params.DefaultTime2Wait))
		h.SetAsyncParameter(3, uint16(s.params.DefaultTime2Retain))
		s.endHeader()
	}
	s.sendNow()
	s.close(reason)
}

// errDone ends the reader without a complaint.
var errDone = errors.New("session over")

// ready is called before the reader may block: what it collected is sent, and
// if the peer does not take it, nothing more is read.
func (s *session) ready() {
	s.mu.Lock()
	s.sendNow()
	s.mu.Lock()
	for s.sending && s.out.bytes > backlogMax {
		s.waiters++
		s.left.Wait()
		s.waiters--
	}
	s.lingerNext()
	s.mu.Unlock()
}

// easeMax is how long data may stay in the socket for want of memory. It is
// short, since what would free memory may wait behind it.
const easeMax = 500 * time.Millisecond

// ease waits until the server's memory is not overdrawn any further: data
// stays in the socket meanwhile. It returns false when nothing came free; until
// something does, it does not wait again.
func (s *session) ease() bool {
	const step = 10 * time.Millisecond
	for waited := time.Duration(0); s.srv.budget.overdrawn(); waited += step {
		if waited >= easeMax || s.refusing {
			s.refusing = true
			return false
		}
		s.ready()
		select {
		case <-s.dying:
			return false
		case <-time.After(step):
		}
	}
	s.refusing = false
	return true
}

// run serves the connection until it ends. When it returns, the nexus is
// closed, every task has landed, and the session is forgotten.
func (s *session) run() {
	s.mu.Lock()
	s.running = true
	if s.quit > 0 {
		s.appendQuit()
	}
	if s.waiters > 0 {
		s.left.Broadcast() // drain may wait for that
	}
	s.mu.Unlock()
	s.read()
	<-s.gone
}

// read is what the connection's reader does. It returns when the session is
// over, or when another goroutine has become the reader.
func (s *session) read() {
	var err error
	for err == nil {
		if err = s.readPDU(); err == nil && !s.executeInline() {
			return
		}
		if err == nil && s.isDying() {
			err = errDone // what the buffer still holds must not begin
		}
	}
	s.end(err)
}

// end cleans up behind the reader, which err stopped.
func (s *session) end(err error) {
	reason := "logged out"
	if !errors.Is(err, errDone) {
		reason = causeOf(err)
		s.mu.Lock()
		s.sendNow() // a Reject may say what was wrong
	}
	s.close(reason) // unless it was closed: then that reason stands
	// The initiator learns at once, however long the tasks take to land.
	s.hangUp()
	s.giveEarly(s.earlySize)
	s.shut()
	if s.moved.Load() {
		s.hearOut()
	}
	s.closeConn()
	s.in.release()
	s.srv.forget(s)
	s.srv.notify(s.event(false))
	close(s.gone)
}

// hangUp ends the outgoing side of the connection, behind what was sent.
// Closing it would make the system discard that, if there is input left that
// nobody will read.
func (s *session) hangUp() {
	s.mu.Lock()
	s.broken = true
	if s.waiters > 0 {
		s.left.Broadcast()
	}
	s.waitSent()
	s.mu.Unlock()
	if s.mute.Load() {
		return
	}
	s.srv.closing(s.conn)
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // fails only when the peer is gone
	}
}

// waitSent waits until nobody sends. Under s.mu.
func (s *session) waitSent() {
	for s.sending {
		s.waiters++
		s.left.Wait()
		s.waiters--
	}
}

// shut ends every task: those that wait for data or memory at once, the
// others by closing the nexus, which returns when they have landed or never
// can. It may be called twice.
func (s *session) shut() {
	s.dropWaiting(func(*command) bool { return true })
	if s.port != nil && !s.closed {
		s.closed = true
		s.port.Close()
	}
	s.mu.Lock()
	for s.tasks.next != &s.tasks || s.managing > 0 {
		s.waiters++
		s.left.Wait()
		s.waiters--
		// A function that ends lets held commands go on: to their drop.
		if s.tasks.next != &s.tasks {
			s.mu.Unlock()
			s.dropWaiting(func(*command) bool { return true })
			s.mu.Lock()
		}
	}
	s.mu.Unlock()
	s.flush()
	s.mu.Lock()
	s.waitSent()
	s.mu.Unlock()
}

// readPDU reads one PDU and deals with it.
func (s *session) readPDU() error {
	size := iscsi.HeaderSize
	if err := s.in.need(size); err != nil {
		return err
	}
	ahsLen := int(s.in.buf[s.in.r+4]) * 4
	size += ahsLen
	total := size
	if s.params.HeaderDigest {
		total += iscsi.DigestSize
	}
	if err := s.in.need(total); err != nil {
		return err
	}
	raw := s.in.next(total)
	if s.params.HeaderDigest && iscsi.Digest(raw[:size]) != binary.LittleEndian.Uint32(raw[size:]) {
		// The length in a broken header cannot be trusted: there is no way
		// to find the next PDU. RFC 7143, 7.7.
		return errors.New("header digest error")
	}
	h := iscsi.Header(raw)
	if n := h.DataLength(); n > s.params.MaxRecvLength {
		return errors.New("data segment longer than declared")
	}
	ahs := raw[iscsi.HeaderSize:size]
	if ahsLen > 0 {
		// Reading the data segment may move the buffer.
		ahs = append([]byte(nil), ahs...)
	}
	if err := s.dispatchPDU(&h, ahs); err != nil {
		return err
	}
	if s.unchecked++; s.unchecked < 16 {
		return nil
	}
	s.unchecked = 0
	s.mu.Lock()
	full := s.out.bytes > batchMax
	s.mu.Unlock()
	if full {
		s.ready()
	}
	return nil
}

// dispatchPDU checks a PDU's place in the command order and handles it.
func (s *session) dispatchPDU(h *iscsi.Header, ahs []byte) error {
	n := h.DataLength()
	switch op := h.Opcode(); op {
	case iscsi.OpDataOut:
		return s.dataOut(h, n)
	case iscsi.OpSNACK:
		// Level 0 keeps nothing to send again. RFC 7143, 11.16.
		return s.refusePDU(h, n, iscsi.RejectSNACK, "SNACK")
	case iscsi.OpSCSICommand, iscsi.OpTaskRequest, iscsi.OpTextReq, iscsi.OpLogoutReq, iscsi.OpNopOut:
	case iscsi.OpLoginReq:
		return s.refusePDU(h, n, iscsi.RejectProtocolError, "login request in the full feature phase")
	default:
		return s.refusePDU(h, n, iscsi.RejectNotSupported, "unknown opcode")
	}
	if !h.Immediate() {
		if sn := h.CmdSN(); sn != s.expCmdSN {
			return s.outOfOrder(h, ahs, n)
		}
		s.mu.Lock()
		s.expCmdSN++
		s.mu.Unlock()
	} else if h.Opcode() == iscsi.OpSCSICommand || h.Opcode() == iscsi.OpTaskRequest {
		s.mu.Lock()
		many := s.immediates >= s.srv.limits.Immediate
		s.mu.Unlock()
		if many {
			return s.refusePDU(h, n, iscsi.RejectImmediate, "too many immediate commands")
		}
	}
	if err := s.handle(h, ahs, n); err != nil {
		return err
	}
	if len(s.reorder) > 0 {
		return s.replay()
	}
	return nil
}

// handle performs a request whose turn it is; its data segment is next in the
// input.
func (s *session) handle(h *iscsi.Header, ahs []byte, n int) error {
	switch h.Opcode() {
	case iscsi.OpSCSICommand:
		return s.scsiCommand(h, ahs, n)
	case iscsi.OpTaskRequest:
		return s.taskRequest(h, n)
	case iscsi.OpTextReq:
		return s.textRequest(h, n)
	case iscsi.OpLogoutReq:
		return s.logoutRequest(h, n)
	default:
		return s.nopOut(h, n)
	}
}

// small reads a data segment that is not SCSI data. It returns nil without an
// error when the digest was wrong and the PDU was rejected.
func (s *session) small(h *iscsi.Header, n int) ([]byte, bool, error) {
	if n == 0 {
		return nil, true, nil
	}
	b := make([]byte, n)
	ok, err := s.in.segment(b)
	if err == nil && !ok {
		s.reject(h, iscsi.RejectDataDigest)
	}
	return b, ok, err
}

// nopOut answers a ping, or takes the answer to ours. RFC 7143, 11.18.
func (s *session) nopOut(h *iscsi.Header, n int) error {
	data, ok, err := s.small(h, n)
	if err != nil || !ok {
		return err
	}
	if h.TargetTag() != iscsi.NoTag {
		s.mu.Lock()
		s.pinging = false
		s.mu.Unlock()
	}
	if h.InitiatorTag() == iscsi.NoTag {
		return nil
	}
	data = data[:min(len(data), s.params.MaxSendLength)]
	s.mu.Lock()
	r := s.header()
	r.SetOpcode(iscsi.OpNopIn)
	r.SetFlags(iscsi.FlagFinal)
	r.SetInitiatorTag(h.InitiatorTag())
	r.SetTargetTag(iscsi.NoTag)
	s.stat(r)
	r.SetDataLength(len(data))
	s.endHeader()
	s.payload(data)
	s.mu.Unlock()
	return nil
}

// refusePDU rejects a PDU whose data segment of n bytes is next in the input.
func (s *session) refusePDU(h *iscsi.Header, n int, why iscsi.RejectReason, text string) error {
	if err := s.in.discard(n); err != nil {
		return err
	}
	s.srv.logs.warn("PDU rejected", text, s.remote, "initiator", s.id.InitiatorName)
	s.reject(h, why)
	return nil
}

// reject sends a Reject with the header of what was wrong. RFC 7143, 11.17.
func (s *session) reject(bad *iscsi.Header, why iscsi.RejectReason) {
	s.mu.Lock()
	h := s.header()
	h.SetOpcode(iscsi.OpReject)
	h.SetFlags(iscsi.FlagFinal)
	h.SetResponse(uint8(why))
	h.SetInitiatorTag(iscsi.NoTag)
	s.stat(h)
	h.SetDataLength(iscsi.HeaderSize)
	s.endHeader()
	s.payload(bad[:])
	s.mu.Unlock()
}

// logoutRequest ends the session: its tasks first, so that the answer means
// that nothing of it can land any more. RFC 7143, 11.14.
func (s *session) logoutRequest(h *iscsi.Header, n int) error {
	if err := s.in.discard(n); err != nil {
		return err
	}
	result := iscsi.LogoutDone
	switch reason := h.LogoutReason(); {
	case reason == iscsi.LogoutRecovery:
		result = iscsi.LogoutNoRecovery
	case reason == iscsi.LogoutCloseConnection && h.CID() != s.id.CID:
		result = iscsi.LogoutCIDNotFound
	case reason > iscsi.LogoutRecovery:
		return s.refusePDU(h, 0, iscsi.RejectProtocolError, "unknown logout reason")
	}
	if result == iscsi.LogoutDone {
		s.shut()
	}
	s.mu.Lock()
	r := s.header()
	r.SetOpcode(iscsi.OpLogoutResp)
	r.SetFlags(iscsi.FlagFinal)
	r.SetResponse(result)
	r.SetInitiatorTag(h.InitiatorTag())
	s.stat(r)
	r.SetTime2Wait(0)
	r.SetTime2Retain(0)
	s.endHeader()
	s.send()
	if result != iscsi.LogoutDone {
		return nil
	}
	s.mu.Lock()
	s.waitSent()
	s.mu.Unlock()
	return errDone
}
