package target

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A portal group whose address is here before the right to serve it is certain
// holds its logins: who connects is let wait instead of refused, since an
// initiator that is refused backs off for a second or more, and one that waits
// goes on in the same moment as we do.

// hold is what a portal group's logins were told.
type hold struct {
	lifted chan struct{} // closed when they are admitted; nil: they are
}

// HoldLogins makes logins through a portal group's portals wait: connections
// are accepted and login requests read, but none is answered before
// AdmitLogins. When it returns, no session of the group begins any more.
// Sessions that are there stay. A login that was held for Times.LoginHold, or
// beyond Limits.HeldLogins, is closed without an answer. Discovery is held as
// well. What a group was told holds while it has no portal.
func (srv *Server) HoldLogins(group uint16) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.hold(group)
}

// AdmitLogins ends HoldLogins: logins that wait go on at once.
func (srv *Server) AdmitLogins(group uint16) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	h := srv.holds[group]
	if h == nil {
		h = new(hold)
		srv.holds[group] = h
	}
	if h.lifted != nil {
		close(h.lifted)
		h.lifted = nil
	}
}

// hold is HoldLogins under srv.mu.
func (srv *Server) hold(group uint16) {
	h := srv.holds[group]
	if h == nil {
		h = new(hold)
		srv.holds[group] = h
	}
	if h.lifted == nil {
		h.lifted = make(chan struct{})
	}
}

// isHeld reports whether a group's logins are held. Under srv.mu.
func (srv *Server) isHeld(group uint16) bool {
	h := srv.holds[group]
	return h != nil && h.lifted != nil
}

// Why a held login ends.
var (
	errHeldLong = errors.New("held for too long")
	errHeldMany = errors.New("too many held logins")
	errLeft     = errors.New("the initiator left")
)

// awaitAdmission returns when the portal group admits logins, or with the
// reason why this one is over. Called by the login, with a request unanswered.
func (s *session) awaitAdmission() error {
	srv := s.srv
	for {
		srv.mu.Lock()
		if !srv.isHeld(s.portal.Group) {
			srv.mu.Unlock()
			return nil
		}
		if srv.held >= srv.limits.HeldLogins {
			srv.mu.Unlock()
			return errHeldMany
		}
		lifted := srv.holds[s.portal.Group].lifted
		srv.held++
		srv.halfOpen--
		srv.mu.Unlock()
		began := time.Now()
		err := s.wait(lifted)
		waited := time.Since(began)
		srv.mu.Lock()
		srv.held--
		srv.halfOpen++
		srv.mu.Unlock()
		s.holdLeft -= waited
		s.deadline = s.deadline.Add(waited) // the wait was not the initiator's
		if err == nil {
			err = s.setDeadline(s.deadline)
		}
		if err != nil {
			return err
		}
	}
}

// wait waits for admission, the end of the time there is for it, or the
// connection's.
func (s *session) wait(lifted <-chan struct{}) error {
	if err := s.setDeadline(time.Time{}); err != nil {
		return err
	}
	timer := time.NewTimer(s.holdLeft)
	defer timer.Stop()
	left := make(chan error, 1)
	go func() { left <- s.watchPeer() }()
	var err error
	select {
	case <-lifted:
	case <-s.dying:
		err = errDone
	case <-timer.C:
		err = errHeldLong
	case err = <-left:
		return err
	}
	_ = s.conn.SetReadDeadline(time.Unix(1, 0))
	if gone := <-left; err == nil && !errors.Is(gone, os.ErrDeadlineExceeded) {
		err = gone // in the same moment
	}
	return err
}

// watchPeer returns when the initiator has gone. It looks at what comes and
// takes nothing: an initiator that sends before it is answered breaks the
// protocol, and is let go as well.
func (s *session) watchPeer() error {
	var peeked [1]byte
	var n int
	var failed error
	err := s.raw.Read(func(fd uintptr) bool {
		for {
			n, _, failed = unix.Recvfrom(int(fd), peeked[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if !errors.Is(failed, unix.EINTR) {
				return !errors.Is(failed, unix.EAGAIN)
			}
		}
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err // woken by wait, or to die
	case err != nil, failed != nil:
		return errLeft
	case n == 0:
		return io.EOF
	}
	return errNoLogin
}
