package target

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/scsi"
)

// Server is the iSCSI side of a storage node: portals, targets and sessions.
// Its methods may be called from any goroutine.
type Server struct {
	opener  scsi.PortOpener
	limits  Limits
	times   Times
	log     *slog.Logger
	closing func(net.Conn)     // Config.Closing, or does nothing
	notify  func(SessionEvent) // Config.Sessions, or does nothing
	// connected is Config.Connections, or nil.
	connected func(ConnectionEvent)
	logs      logs
	budget    budget
	workers   workers
	lingers   places    // readers that wait in poll(2)
	commands  sync.Pool // *command

	failedLogins, refused atomic.Uint64
	tasks                 sync.WaitGroup // accept loops, connections, the ticker
	quit                  chan struct{}

	mu        sync.Mutex
	discovery iscsi.Auth
	targets   map[string]*target
	portals   map[string]*portal // by configured address
	sessions  map[uint16]*session
	nexuses   map[nexusKey]*session
	lastTSIH  uint16
	logins    map[*session]struct{} // connections in login, held or not
	halfOpen  int                   // of them: not held
	held      int                   // of them: held
	half      map[string]int        // all of them, by address
	holds     map[uint16]*hold      // by portal group
	closed    bool                  // Close was called
}

// nexusKey is what makes two sessions the same. RFC 7143, 4.4.3 and 6.3.5.
type nexusKey struct {
	initiator string
	isid      iscsi.ISID
	target    string // empty: discovery
	group     uint16
}

// New returns a server that listens nowhere yet. Fails with fault.Invalid when
// the discovery credentials cannot be used.
func New(cfg Config, opener scsi.PortOpener) (*Server, error) {
	if err := cfg.Discovery.Check(); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "discovery")
	}
	cfg.Limits.setDefaults()
	cfg.Times.setDefaults()
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	srv := &Server{
		opener: opener, limits: cfg.Limits, times: cfg.Times, log: cfg.Log, discovery: cfg.Discovery,
		logs: logs{log: cfg.Log}, quit: make(chan struct{}),
		targets: make(map[string]*target), portals: make(map[string]*portal),
		sessions: make(map[uint16]*session), nexuses: make(map[nexusKey]*session),
		half: make(map[string]int), logins: make(map[*session]struct{}), holds: make(map[uint16]*hold),
		closing: cfg.Closing, notify: cfg.Sessions, connected: cfg.Connections,
	}
	if srv.closing == nil {
		srv.closing = func(net.Conn) {}
	}
	if srv.notify == nil {
		srv.notify = func(SessionEvent) {}
	}
	srv.budget.limit = cfg.Limits.Memory
	// A thread that waits in a system call keeps its processor from the other
	// goroutines until the runtime takes note: half of them must stay free.
	srv.lingers.limit = int32(runtime.GOMAXPROCS(0) / 2)
	if !cfg.stopped {
		srv.tasks.Add(1)
		go srv.tickLoop()
	}
	return srv, nil
}

// serve takes a connection through login and its session's life.
func (srv *Server) serve(s *session) {
	defer srv.tasks.Done()
	if s.portal.Alias && srv.connected != nil {
		e := ConnectionEvent{Group: s.portal.Group, Local: s.local, Remote: s.peer}
		defer func() {
			// An address that is taken away aborts its connections here, and tells nobody.
			e.Heard = !s.mute.Load() && !errors.Is(s.in.err, unix.ECONNABORTED)
			srv.connected(e)
		}()
		begun := e
		begun.Begun = true
		srv.connected(begun)
	}
	ok := srv.login(s)
	srv.mu.Lock()
	srv.leaveLogin(s)
	srv.mu.Unlock()
	if !ok {
		s.hangUp()
		s.closeConn()
		close(s.gone)
		return
	}
	if tcp, ok := s.conn.(*net.TCPConn); ok {
		srv.tune(tcp)
	}
	s.run()
}

// leaveLogin takes a connection off the books of logins. Under srv.mu.
func (srv *Server) leaveLogin(s *session) {
	srv.halfOpen--
	if srv.half[s.remote]--; srv.half[s.remote] == 0 {
		delete(srv.half, s.remote)
	}
	delete(srv.logins, s)
}

// tune sets what a session's connection needs: no Nagle delay, probes, so
// that a host that died is noticed within half a minute, and an end to data
// that stays unacknowledged. None of it is worth refusing a session for.
func (srv *Server) tune(c *net.TCPConn) {
	err := errors.Join(c.SetNoDelay(true),
		c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}))
	raw, rawErr := c.SyscallConn()
	if rawErr == nil {
		rawErr = raw.Control(func(fd uintptr) {
			ms := int(srv.times.WriteStall / time.Millisecond)
			err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, ms))
		})
	}
	if err = errors.Join(err, rawErr); err != nil {
		srv.logs.warn("connection not tuned", err.Error(), hostOf(c.RemoteAddr()))
	}
}

// register gives s its place and its TSIH. A session of the same nexus is
// ended first, and waited for: its writes must have landed or never can
// before a command of s is taken. RFC 7143, 6.3.5.
func (srv *Server) register(s *session) iscsi.LoginStatus {
	key := s.key()
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for {
		if srv.closed || s.isDying() {
			return iscsi.LoginUnavailable
		}
		if srv.isHeld(s.portal.Group) {
			// Held since its last request: no session begins behind the back of
			// HoldLogins. When the wait is in vain, nothing is answered.
			srv.mu.Unlock()
			if err := s.awaitAdmission(); err != nil {
				s.close(causeOf(err))
			}
			srv.mu.Lock()
			continue
		}
		if tsih := s.id.TSIH; tsih != 0 {
			// To join or reinstate a connection of an existing session: there
			// is one connection per session, and level 0 gives up a session
			// with its connection.
			old := srv.sessions[tsih]
			switch {
			case old == nil || old.key() != key:
				return iscsi.LoginNoSession
			case old.id.CID == s.id.CID:
				return iscsi.LoginCannotInclude
			}
			return iscsi.LoginTooManyConnections
		}
		if t := srv.targets[s.id.TargetName]; !s.id.Discovery {
			// Access may have been taken away while the login went on.
			if t == nil {
				return iscsi.LoginTargetRemoved
			}
			if _, ok := t.admits(s.id.InitiatorName); !ok {
				return iscsi.LoginForbidden
			}
		}
		old := srv.nexuses[key]
		if old == nil {
			break
		}
		srv.mu.Unlock()
		old.close("replaced by a new login")
		ended := old.ended(srv.times.Login)
		srv.mu.Lock()
		if !ended {
			return iscsi.LoginUnavailable // the initiator tries again
		}
	}
	if !srv.room(s) {
		return iscsi.LoginOutOfResources
	}
	for {
		srv.lastTSIH++
		if srv.lastTSIH != 0 && srv.sessions[srv.lastTSIH] == nil {
			break
		}
	}
	s.tsih = srv.lastTSIH
	srv.sessions[s.tsih], srv.nexuses[key] = s, s
	delete(srv.logins, s) // Close asks it to log out, rather than cut it off
	return iscsi.LoginSuccess
}

// room reports whether one more session fits the limits: in all, of one
// address, and for discovery, which anybody may ask for. Under srv.mu.
func (srv *Server) room(s *session) bool {
	discovery, address := 0, 0
	for _, o := range srv.sessions {
		if o.id.Discovery {
			discovery++
		}
		if o.remote == s.remote {
			address++
		}
	}
	l := &srv.limits
	return len(srv.sessions) < l.Sessions && address < l.SessionsPerAddress && (!s.id.Discovery || discovery < l.DiscoverySessions)
}

// ended waits for the session's end, and reports whether it came in time:
// tasks on a drive that hangs may take forever to land.
func (s *session) ended(within time.Duration) bool {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-s.gone:
		return true
	case <-t.C:
		return false
	}
}

func (s *session) key() nexusKey {
	return nexusKey{s.id.InitiatorName, s.id.ISID, s.id.TargetName, s.portal.Group}
}

// unregister undoes register for a session that did not come to run: it is a
// connection in login again, with a refusal to send perhaps.
func (srv *Server) unregister(s *session) {
	srv.mu.Lock()
	delete(srv.sessions, s.tsih)
	delete(srv.nexuses, s.key())
	srv.logins[s] = struct{}{}
	srv.mu.Unlock()
}

// forget takes a session that ended off the books.
func (srv *Server) forget(s *session) {
	srv.mu.Lock()
	delete(srv.sessions, s.tsih)
	delete(srv.nexuses, s.key())
	srv.mu.Unlock()
	srv.logs.info("session ends", *s.reason.Load(), s.remote, "initiator", s.id.InitiatorName, "target", s.id.TargetName, "tsih", s.tsih)
}

// alias returns the alias of the target that a first login request names.
func (srv *Server) alias(h iscsi.Header, data []byte) string {
	if h.Continue() {
		return ""
	}
	pairs, err := iscsi.ParseText(data)
	if err != nil {
		return ""
	}
	for _, p := range pairs {
		if p.Key != "TargetName" {
			continue
		}
		if name, err := iscsi.NormalizeName(p.Value); err == nil {
			srv.mu.Lock()
			defer srv.mu.Unlock()
			if t := srv.targets[name]; t != nil {
				return t.Alias
			}
		}
	}
	return ""
}

// Close ends the server: no connection is accepted any more, initiators are
// asked to log out, and when all did so or ctx ends, the rest is dropped.
// When Close returns, every task has landed and no goroutine is left.
func (srv *Server) Close(ctx context.Context) {
	srv.mu.Lock()
	if srv.closed {
		srv.mu.Unlock()
		srv.tasks.Wait()
		return
	}
	srv.closed = true
	portals := srv.portals
	srv.portals = make(map[string]*portal)
	for s := range srv.logins {
		s.close("server shuts down")
	}
	all := srv.all(nil)
	srv.mu.Unlock()
	for _, p := range portals {
		p.shut()
	}
	srv.askOut(ctx, all, "server shuts down")
	close(srv.quit)
	srv.tasks.Wait()
	srv.workers.close()
}

// all returns the sessions that match (nil: every one). Under srv.mu.
func (srv *Server) all(match func(*session) bool) []*session {
	var list []*session
	for _, s := range srv.sessions {
		if match == nil || match(s) {
			list = append(list, s)
		}
	}
	return list
}

// askOut asks sessions to log out, gives them until ctx ends or the logout
// time is over, drops the rest, and returns when all are gone.
func (srv *Server) askOut(ctx context.Context, list []*session, reason string) {
	if len(list) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, srv.times.Logout)
	defer cancel()
	for _, s := range list {
		s.askOut(srv.times.Logout)
	}
	for _, s := range list {
		select {
		case <-s.gone:
		case <-ctx.Done():
			s.drop(reason)
		}
	}
	for _, s := range list {
		<-s.gone
	}
}
