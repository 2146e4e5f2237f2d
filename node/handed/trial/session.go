package trial

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"steadfast/fault"
	"steadfast/iscsi"
)

// Times of a session.
const (
	loginTime = 10 * time.Second // a keeper, or a portal that is held, may make it wait
	sendTime  = 5 * time.Second
	// After pingAfter without a word the target is asked whether it is there, and
	// after quietMax it is not: a node that is stopped closes nothing.
	pingAfter = 2 * time.Second
	quietMax  = 5 * time.Second
)

// segmentMax bounds what is received in a PDU, in bytes, as the login declares it.
const segmentMax = 256 << 10

// errEnded ends a session that the target asked to end.
var errEnded = errors.New("the target asked for the session's end")

// session is a connection in its full feature phase. Requests are sent under
// Disk.mu; one goroutine receives.
type session struct {
	conn    net.Conn
	in      *bufio.Reader
	cmdSN   uint32        // of the next command
	statSN  atomic.Uint32 // newest that was received
	heard   atomic.Int64  // when, in ns since base
	pinging atomic.Bool
}

// base is what heard counts from: time.Since reads the monotonic clock.
var base = time.Now()

// logIn connects and logs in. Refusals are of kind fault.Denied when another
// attempt is as good as pointless, and of fault.Unreachable else.
func logIn(ctx context.Context, o Options) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, loginTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", o.Portal)
	if err != nil {
		return nil, fault.Wrap(fault.Unreachable, err, "connect")
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	s := &session{conn: conn, in: bufio.NewReaderSize(conn, 64<<10), cmdSN: 1}
	if err = s.enter(o); !stop() && err == nil {
		err = fault.Wrap(fault.Unreachable, ctx.Err(), "log in")
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

// enter sends the login request, straight for the full feature phase, and takes
// the answer.
func (s *session) enter(o Options) error {
	var h iscsi.Header
	h.SetOpcode(iscsi.OpLoginReq)
	h.SetImmediate()
	h.SetStages(true, false, iscsi.StageOperational, iscsi.StageFullFeature)
	h.SetISID(o.isid)
	h.SetCmdSN(s.cmdSN)
	var text []byte
	for _, p := range [][2]string{
		{"InitiatorName", o.Initiator},
		{"SessionType", "Normal"},
		{"TargetName", o.Target},
		{"HeaderDigest", "None"},
		{"DataDigest", "None"},
		{"InitialR2T", "No"},
		{"ImmediateData", "Yes"},
		{"MaxRecvDataSegmentLength", fmt.Sprint(segmentMax)},
	} {
		text = iscsi.AppendPair(text, p[0], p[1])
	}
	if err := s.send(&h, text); err != nil {
		return fault.Wrap(fault.Unreachable, err, "log in")
	}
	answer, data, err := s.receive()
	switch {
	case err != nil:
		return fault.Wrap(fault.Unreachable, err, "log in")
	case answer.Opcode() != iscsi.OpLoginResp:
		return fault.New(fault.Unreachable, "log in: %v for an answer", answer.Opcode())
	case answer.LoginStatus()>>8 == 2: // class 2: initiator error
		return fault.New(fault.Denied, "log in: %v", answer.LoginStatus())
	case answer.LoginStatus() != iscsi.LoginSuccess || !answer.Transit():
		return fault.New(fault.Unreachable, "log in: %v", answer.LoginStatus())
	case !strings.Contains(string(data), "ImmediateData=Yes"):
		return fault.New(fault.Denied, "log in: the target does not take data with the command")
	}
	return nil
}

// send sends a PDU.
func (s *session) send(h *iscsi.Header, data []byte) error {
	h.SetDataLength(len(data))
	wire := make([]byte, 0, len(h)+len(data)+3)
	wire = append(append(wire, h[:]...), data...)
	wire = append(wire, make([]byte, iscsi.Padding(len(data)))...)
	if err := s.conn.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		return err
	}
	_, err := s.conn.Write(wire)
	return err
}

// receive receives a PDU.
func (s *session) receive() (h iscsi.Header, data []byte, err error) {
	if _, err = io.ReadFull(s.in, h[:]); err != nil {
		return h, nil, err
	}
	n := h.DataLength()
	if h.AHSLength() != 0 || n > segmentMax {
		return h, nil, fmt.Errorf("%v of %d bytes is out of bounds", h.Opcode(), n)
	}
	data = make([]byte, n+iscsi.Padding(n))
	if _, err = io.ReadFull(s.in, data); err != nil {
		return h, nil, err
	}
	s.heard.Store(int64(time.Since(base)))
	s.pinging.Store(false)
	if carriesStatSN(&h) {
		s.statSN.Store(h.StatSN())
	}
	return h, data[:n], nil
}

// carriesStatSN tells whether a PDU's StatSN counts: that of a Data-In without
// status, of an R2T and of a ping does not. RFC 7143, 11.7.2, 11.8.4 and 11.19.3.
func carriesStatSN(h *iscsi.Header) bool {
	switch h.Opcode() {
	case iscsi.OpDataIn:
		return h.Flags()&iscsi.FlagStatus != 0
	case iscsi.OpNopIn:
		return h.InitiatorTag() != iscsi.NoTag
	default:
		return h.Opcode() != iscsi.OpR2T
	}
}

// command sends a request as the next command. Under Disk.mu.
func (s *session) command(r *request, lun uint64) error {
	var h iscsi.Header
	h.SetOpcode(iscsi.OpSCSICommand)
	flags := byte(iscsi.FlagFinal | 1) // a simple task
	length := 0
	switch {
	case r.in != nil:
		flags, length = flags|iscsi.FlagRead, len(r.in)
	case r.out != nil:
		flags, length = flags|iscsi.FlagWrite, len(r.out)
	}
	h.SetFlags(flags)
	h.SetLUN(lun)
	h.SetInitiatorTag(r.tag)
	h.SetExpectedLength(uint32(length))
	h.SetCmdSN(s.cmdSN)
	h.SetExpStatSN(s.statSN.Load() + 1)
	copy(h.CDB(), r.cdb[:])
	s.cmdSN++
	return s.send(&h, r.out)
}

// nop sends a ping (tag is a task's, transfer NoTag) or the answer to one (tag is
// NoTag, transfer the target's). Under Disk.mu.
func (s *session) nop(tag, transfer uint32, lun uint64) error {
	var h iscsi.Header
	h.SetOpcode(iscsi.OpNopOut)
	h.SetImmediate()
	h.SetFlags(iscsi.FlagFinal)
	h.SetLUN(lun)
	h.SetInitiatorTag(tag)
	h.SetTargetTag(transfer)
	h.SetCmdSN(s.cmdSN)
	h.SetExpStatSN(s.statSN.Load() + 1)
	return s.send(&h, nil)
}

// logOut asks for the session's end. Under Disk.mu.
func (s *session) logOut(tag uint32) error {
	var h iscsi.Header
	h.SetOpcode(iscsi.OpLogoutReq)
	h.SetImmediate()
	h.SetLogoutReason(iscsi.LogoutCloseSession)
	h.SetInitiatorTag(tag)
	h.SetCmdSN(s.cmdSN)
	h.SetExpStatSN(s.statSN.Load() + 1)
	return s.send(&h, nil)
}

// silence returns for how long nothing was heard.
func (s *session) silence() time.Duration {
	return time.Since(base) - time.Duration(s.heard.Load())
}
