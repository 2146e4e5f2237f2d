package target

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/iscsi"
)

// How a portal group leaves this node.
//
// Without a plan (another node took over, or the right to act ran out) nothing
// may be said any more: an answer of ours could be about data that is not ours,
// and an end that an initiator hears of before the new owner is there makes it
// come back to nobody. So it is silence, and the new owner's tickle.
//
// With a plan, initiators are told, because of what they do when a connection
// just ends:
//
//   - open-iscsi (usr/initiator.c, iscsi_recv_async_msg and
//     __session_conn_reopen): after every loss of a connection it waits
//     for DefaultTime2Wait as negotiated, 2 s by its defaults, before it
//     connects. Events 2 and 3 replace that time by their Parameter2, and do
//     nothing else: what makes it come back is the connection's end. Time2Wait 0
//     thus means at once. The kernel hands events to iscsid and goes on
//     (libiscsi.c, ISCSI_OP_ASYNC_EVENT); on the end it requeues what is outstanding.
//     Event 1 makes it log out and come back, but the answer's Time2Wait counts
//     only when the answer is a failure. Event 4 is like a lost connection.
//   - libiscsi (lib/pdu.c, iscsi_process_pdu; lib/connect.c, iscsi_reconnect):
//     comes back at once when a connection ends, but not within 3 s of its last
//     coming. Events 2 and 3 set that time to now plus Parameter2; again
//     the connection's end sets it off. Events 1 and 4 make it log out and come
//     back after the answer, whose times it does not read, so that the 3 s hold.
//     What is outstanding is sent again, in order.
//
// Hence event 3 with Time2Wait 0, and then the end, when there is somebody to come
// back to: an attempt that fails costs libiscsi a second and more, and a SYN that
// is lost costs anybody a second. The new owner's tickle is that end.

// SessionEvent says that a session has begun or has ended.
type SessionEvent struct {
	Begun     bool // or else ended
	TSIH      uint16
	Group     uint16 // portal group tag
	Initiator string
	Target    string // empty: a discovery session
	// Local and Remote are the connection's endpoints: the portal's, as the
	// initiator sees it, and the initiator's.
	Local, Remote netip.AddrPort
}

func (s *session) event(begun bool) SessionEvent {
	return SessionEvent{
		Begun: begun, TSIH: s.tsih, Group: s.portal.Group, Initiator: s.id.InitiatorName, Target: s.id.TargetName,
		Local: s.local, Remote: s.peer,
	}
}

// ConnectionEvent says that a connection to an alias portal has come in, before
// anything was answered to it, or has ended.
type ConnectionEvent struct {
	Begun bool   // or else ended
	Group uint16 // portal group tag
	// Heard: of one that has ended the initiator knows it, for it ended it, or
	// was told. Else it may still wait for answers.
	Heard         bool
	Local, Remote netip.AddrPort
}

// Endpoints are those of a connection.
type Endpoints struct {
	Local, Remote netip.AddrPort
}

// Connections lists the connections of a portal group: of sessions, and in login
// or held. With the address's gate shut it is complete: who came in just before
// waits for an answer that never comes, until it is tickled.
func (srv *Server) Connections(group uint16) []Endpoints {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	var list []Endpoints
	for _, s := range srv.ofGroup(group) {
		list = append(list, Endpoints{s.local, s.peer})
	}
	return list
}

// ofGroup returns a group's sessions and connections in login. Under srv.mu.
func (srv *Server) ofGroup(group uint16) []*session {
	list := srv.all(func(s *session) bool { return s.portal.Group == group })
	for s := range srv.logins {
		if s.portal.Group == group {
			list = append(list, s)
		}
	}
	return list
}

// Mute sees to it that nothing more is given to the sockets of a portal group,
// whatever becomes of the tasks, and holds its logins. The sockets stay open: their
// ends would be answered with resets, which bring initiators back before there is
// somebody to come back to. When it returns the caller shuts the address's gate, and
// then calls DropPortalGroup.
func (srv *Server) Mute(group uint16) {
	srv.mu.Lock()
	srv.hold(group)
	list := srv.ofGroup(group)
	srv.mu.Unlock()
	for _, s := range list {
		s.hush()
	}
}

// Silence ends the sessions of a portal group and its connections in login:
// when it returns, nothing more is given to their sockets, whatever becomes of
// their tasks. It waits for none of them, nor for a peer. Logins are
// held from now on. What sockets hold already is TCP's to send, and their end
// may be seen: the caller has shut the address's gate before.
func (srv *Server) Silence(group uint16) { srv.silence(group) }

// DropPortalGroup is Silence, and returns when every task has landed. Sessions
// that Silence, PrepareMove or AnnounceMove left are waited for as well.
func (srv *Server) DropPortalGroup(group uint16) {
	for _, s := range srv.silence(group) {
		<-s.gone
	}
}

func (srv *Server) silence(group uint16) []*session {
	srv.mu.Lock()
	srv.hold(group)
	list := srv.ofGroup(group)
	srv.mu.Unlock()
	for _, s := range list {
		s.silence("the portal group is not here any more")
	}
	return list
}

// hush sees to it that nothing more is given to the session's socket.
func (s *session) hush() {
	s.wire.Lock()
	s.mute.Store(true)
	s.wire.Unlock()
	s.mu.Lock()
	s.broken = true
	if s.waiters > 0 {
		s.left.Broadcast()
	}
	s.mu.Unlock()
}

// silence ends the session without another byte to its socket.
func (s *session) silence(reason string) {
	s.hush()
	s.close(reason)
	_ = s.conn.SetDeadline(time.Unix(1, 0)) // also when it was about to end already
}

// closeConn closes the connection. Of one that was silenced nothing shall stay
// in the system that tries to reach the initiator, from an address that may
// come back.
func (s *session) closeConn() {
	if tcp, ok := s.conn.(*net.TCPConn); ok && s.mute.Load() {
		_ = tcp.SetLinger(0)
	}
	_ = s.conn.Close()
}

// PrepareMove readies the sessions of a portal group for a planned move, so
// that their initiators come back at once and have lost nothing: what is running
// is let finish and answered, what comes meanwhile is not begun, and then each
// is told that the target drops it and does not want it to wait. Logins are held
// from now on. It returns when all initiators have that, or soon after ctx has
// ended: commands that still run get no answer then.
//
// The connections stay, mute. The caller shuts the address's gate, calls
// DropPortalGroup, and the new owner's tickle makes the initiators come back,
// when there is somebody to come back to.
func (srv *Server) PrepareMove(ctx context.Context, group uint16) {
	for _, s := range srv.prepare(ctx, group) {
		s.hush()
	}
}

// AnnounceMove is PrepareMove, and ends the connections in a way that the
// initiators hear of, if Config.Closing sees to it that the alias's gate lets
// the end through; those in login as well. It returns when all sessions are gone
// and the initiators have ended their side, or soon after ctx has ended, with what
// is left being ended.
//
// Who hears of the end comes back within the round trip: mostly before the
// caller has shut the gate, and then it waits here, connected and held, until it
// is tickled (Connections has it), or just after, and then it waits a second for its
// next SYN. It is for portals without a gate, or without a tickle; else
// PrepareMove is faster.
func (srv *Server) AnnounceMove(ctx context.Context, group uint16) {
	srv.prepare(ctx, group)
	srv.mu.Lock()
	list := srv.ofGroup(group)
	srv.mu.Unlock()
	for _, s := range list {
		s.moved.Store(true)
		s.close("the portal group moves")
	}
	for _, s := range list {
		select {
		case <-s.gone:
		case <-ctx.Done():
			return
		}
	}
}

// prepare drains the sessions of a group, and tells their initiators.
func (srv *Server) prepare(ctx context.Context, group uint16) []*session {
	srv.mu.Lock()
	srv.hold(group)
	list := srv.all(func(s *session) bool { return s.portal.Group == group })
	srv.mu.Unlock()
	each(list, func(s *session) { s.drain(ctx) })
	// All at the same time: who is told first must not come back while
	// others are still being served here.
	each(list, func(s *session) { s.announce(ctx) })
	return list
}

// each calls do for all sessions at the same time, and returns when all calls have.
func each(list []*session, do func(*session)) {
	var wg sync.WaitGroup
	for _, s := range list {
		wg.Go(func() { do(s) })
	}
	wg.Wait()
}

// drain stops new commands, and returns when those that run are answered, or
// ctx ends.
func (s *session) drain(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	// The login's last answer may be out, and nobody here know it yet.
	s.waitFor(ctx, func() bool { return s.running && s.outstanding+s.immediates == 0 && s.managing == 0 })
}

// announce tells the initiator that the session is dropped and may come back at
// once, and returns when its system has acknowledged that, or ctx ends.
func (s *session) announce(ctx context.Context) {
	s.mu.Lock()
	if s.running && !s.broken {
		h := s.async(iscsi.AsyncDropSession)
		h.SetAsyncParameter(2, 0) // Time2Wait
		h.SetAsyncParameter(3, 0) // Time2Retain
		s.endHeader()
	}
	s.sendNow()
	s.mu.Lock()
	s.waitFor(ctx, func() bool { return !s.sending && s.out.empty() })
	s.mu.Unlock()
	// Behind a shut gate TCP could not send it again.
	for end := time.Now().Add(hearOutMax); ctx.Err() == nil && !s.isDying() && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if s.unacknowledged() == 0 {
			return
		}
	}
}

// unacknowledged returns how many bytes the socket holds that the peer has not
// acknowledged; 0 when the system does not say.
func (s *session) unacknowledged() (n int) {
	_ = s.raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n
}

// waitFor waits until a condition of the session holds, it can send no more, or
// ctx ends. Under s.mu.
func (s *session) waitFor(ctx context.Context, holds func() bool) {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.left.Broadcast()
		s.mu.Unlock()
	})
	defer stop()
	s.waiters++
	for !holds() && !s.broken && ctx.Err() == nil {
		s.left.Wait()
	}
	s.waiters--
}

// shelve leaves a command of a draining session to where the initiator takes it
// next: its data is read and forgotten, since what a running command waits for
// may be behind. Its place in the window stays taken. Called with s.mu held;
// returns with it released.
func (s *session) shelve(c *command, n int) error {
	if !c.immediate {
		s.shelved++
	}
	s.mu.Unlock()
	c.free()
	return s.in.discard(n)
}

// hearOutMax is how long the peer is given to acknowledge an announcement, or
// to end a connection that we have hung up: what is lost is sent again meanwhile,
// while the address is still here.
const hearOutMax = 300 * time.Millisecond

// hearOut waits for the initiator's end of a connection that is hung up, and
// takes what it still sends: closing with that unread would reset the
// connection, and could overtake the announcement.
func (s *session) hearOut() {
	_ = s.conn.SetReadDeadline(time.Now().Add(hearOutMax))
	if s.mute.Load() {
		return
	}
	_, _ = io.Copy(io.Discard, s.conn)
}
