package target

import (
	"crypto/rand"
	"errors"
	"io"
	"time"

	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/scsi"
)

// loginSegmentMax is the longest data segment of a login request in bytes:
// the default MaxRecvDataSegmentLength, which holds until the login is over.
const loginSegmentMax = 8192

// loginPolicy answers the login's questions for one connection.
type loginPolicy struct {
	srv     *Server
	s       *session
	entered bool
}

// Random implements iscsi.LoginPolicy.
func (p *loginPolicy) Random(b []byte) {
	rand.Read(b) // never fails: it ends the process rather
}

// Admit implements iscsi.LoginPolicy: default deny.
func (p *loginPolicy) Admit(id iscsi.Identity) (iscsi.Auth, iscsi.LoginStatus) {
	srv := p.srv
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if id.Discovery {
		return srv.discovery, iscsi.LoginSuccess
	}
	t := srv.targets[id.TargetName]
	if t == nil || !t.reachable(p.s.portal.Portal) {
		return iscsi.Auth{}, iscsi.LoginNotFound
	}
	auth, ok := t.admits(id.InitiatorName)
	if !ok {
		return iscsi.Auth{}, iscsi.LoginForbidden
	}
	return auth, iscsi.LoginSuccess
}

// Enter implements iscsi.LoginPolicy: it ends the session that this one
// replaces, and takes its place.
func (p *loginPolicy) Enter(id iscsi.Identity, params iscsi.Params) (uint16, iscsi.LoginStatus) {
	s := p.s
	s.id, s.params = id, params
	if status := p.srv.register(s); status != iscsi.LoginSuccess {
		return 0, status
	}
	if !id.Discovery {
		nexus := scsi.Nexus{
			InitiatorName: id.InitiatorName,
			InitiatorPort: iscsi.PortName(id.InitiatorName, id.ISID),
			TargetName:    id.TargetName,
			TargetPort:    s.portal.Group,
		}
		port, err := p.srv.opener.OpenPort(nexus, s)
		if err != nil {
			p.srv.unregister(s)
			p.srv.logs.warn("session refused", fault.KindOf(err).String(), s.remote, "initiator", id.InitiatorName, "target", id.TargetName, "err", err)
			switch fault.KindOf(err) {
			case fault.Denied:
				return 0, iscsi.LoginForbidden
			case fault.NotFound:
				return 0, iscsi.LoginNotFound
			case fault.Limit, fault.Full:
				return 0, iscsi.LoginOutOfResources
			default:
				return 0, iscsi.LoginUnavailable
			}
		}
		s.port = port
	}
	p.entered = true
	p.srv.notify(s.event(true))
	return s.tsih, iscsi.LoginSuccess
}

// login takes a connection through its login phase. It reports whether the
// session is ready to run; else the connection is to be closed.
func (srv *Server) login(s *session) bool {
	policy := &loginPolicy{srv: srv, s: s}
	l := iscsi.NewLogin(policy, srv.limits.own(), s.portal.Group)
	// One deadline for the whole login, however slowly it trickles in.
	s.deadline = time.Now().Add(srv.times.Login)
	err := s.setDeadline(s.deadline)
	if err == nil {
		err = s.converse(l)
	}
	if err == nil {
		err = s.setDeadline(time.Time{})
	}
	if err == nil && l.Done {
		srv.logs.info("session begins", "", s.remote, "initiator", s.id.InitiatorName, "target", s.id.TargetName,
			"discovery", s.id.Discovery, "tsih", s.tsih)
		return true
	}
	switch {
	case s.isDying():
		srv.logs.info("login cut off", *s.reason.Load(), s.remote, "initiator", l.Identity.InitiatorName)
	case l.Why != nil:
		srv.failedLogins.Add(1)
		srv.logs.warn("login refused", l.Status.String(), s.remote,
			"initiator", l.Identity.InitiatorName, "target", l.Identity.TargetName, "err", l.Why)
	case err != nil && !errors.Is(err, io.EOF):
		// Who connects and leaves without a word asks whether anybody listens.
		srv.logs.warn("login broken off", causeOf(err), s.remote, "initiator", l.Identity.InitiatorName)
	}
	if policy.entered {
		// It was registered, and its last answer did not get through.
		if s.port != nil {
			s.port.Close()
		}
		srv.unregister(s)
		srv.notify(s.event(false))
	}
	return false
}

// setDeadline sets the connection's deadline, unless the connection is to end:
// close sets one in the past, which ours may have undone.
func (s *session) setDeadline(t time.Time) error {
	if err := s.conn.SetDeadline(t); err != nil {
		return err
	}
	if s.isDying() {
		_ = s.conn.SetDeadline(time.Unix(1, 0))
		return errDone
	}
	return nil
}

// isDying reports whether the connection is to end.
func (s *session) isDying() bool {
	select {
	case <-s.dying:
		return true
	default:
		return false
	}
}

// errNoLogin ends a connection that begins with something else.
var errNoLogin = errors.New("no login request, or one out of bounds")

// converse exchanges login requests and responses until the login is over.
func (s *session) converse(l *iscsi.Login) error {
	var h iscsi.Header
	first := true
	for !l.Done && !l.Failed {
		if _, err := io.ReadFull(s.conn, h[:]); err != nil {
			return err
		}
		n := h.DataLength()
		if h.Opcode() != iscsi.OpLoginReq || h.AHSLength() != 0 || n > loginSegmentMax {
			return errNoLogin
		}
		data := make([]byte, n+iscsi.Padding(n))
		if _, err := io.ReadFull(s.conn, data); err != nil {
			return err
		}
		if first {
			// A login request is immediate: its CmdSN is the first command's.
			s.expCmdSN, s.statSN, first = h.CmdSN(), 1, false
			s.maxCmdSN = s.expCmdSN - 1
			l.Alias = s.srv.alias(h, data[:n])
		}
		if err := s.awaitAdmission(); err != nil {
			return err
		}
		resp, text := l.Step(&h, data[:n])
		if s.isDying() {
			return errDone // not even a refusal
		}
		s.mu.Lock()
		resp.SetStatSN(s.statSN)
		resp.SetExpCmdSN(s.expCmdSN)
		resp.SetMaxCmdSN(s.window())
		s.statSN++
		s.mu.Unlock()
		out := append(resp[:], text...)
		out = append(out, zeroHeader[:iscsi.Padding(len(text))]...)
		s.toSend = [][]byte{out}
		if err := s.write(false); err != nil {
			return err
		}
		s.bytesIn.Add(uint64(len(h) + len(data)))
	}
	s.in.digest = s.params.DataDigest
	return nil
}
