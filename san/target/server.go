package target

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
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
	opener   scsi.PortOpener
	limits   Limits
	times    Times
	log      *slog.Logger
	logs     logs
	budget   budget
	workers  workers
	lingers  places    // readers that wait in poll(2)
	commands sync.Pool // *command

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
	halfOpen  int
	half      map[string]int // by address
	halfConns map[net.Conn]struct{}
	closing   bool
}

// nexusKey is what makes two sessions the same. RFC 7143, 4.4.3 and 6.3.5.
type nexusKey struct {
	initiator string
	isid      iscsi.ISID
	target    string // empty: discovery
	group     uint16
}

// portal is a listener.
type portal struct {
	listening
	listener net.Listener
}

// listening is where a portal listens.
type listening struct {
	Portal
	bound net.Addr
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
		half: make(map[string]int), halfConns: make(map[net.Conn]struct{}),
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

// Listen opens a portal and returns the address it is bound to. Fails with
// fault.Invalid, fault.Exists, fault.Canceled after Close, and with
// fault.Busy when the address cannot be had.
func (srv *Server) Listen(p Portal) (net.Addr, error) {
	if p.Group == 0 {
		return nil, fault.New(fault.Invalid, "portal %s: group tag 0 is reserved", p.Address)
	}
	host, port, err := net.SplitHostPort(p.Address)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "portal")
	}
	if host != "" {
		if _, err := netip.ParseAddr(host); err != nil {
			return nil, fault.New(fault.Invalid, "portal %s: %q is not an IP address", p.Address, host)
		}
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, fault.New(fault.Invalid, "portal %s: %q is not a port number", p.Address, port)
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.closing {
		return nil, fault.New(fault.Canceled, "the iSCSI server is closed")
	}
	if srv.portals[p.Address] != nil {
		return nil, fault.New(fault.Exists, "portal %s is open already", p.Address)
	}
	l, err := net.Listen("tcp", p.Address)
	if err != nil {
		return nil, fault.Wrap(fault.Busy, err, "portal "+p.Address)
	}
	open := &portal{listening{p, l.Addr()}, l}
	srv.portals[p.Address] = open
	srv.tasks.Add(1)
	go srv.accept(open)
	return l.Addr(), nil
}

// Unlisten closes a portal by its configured address; its sessions stay.
// Fails with fault.NotFound.
func (srv *Server) Unlisten(address string) error {
	srv.mu.Lock()
	p := srv.portals[address]
	delete(srv.portals, address)
	srv.mu.Unlock()
	if p == nil {
		return fault.New(fault.NotFound, "no portal %s is open", address)
	}
	_ = p.listener.Close()
	return nil
}

// accept takes connections until the portal is closed.
func (srv *Server) accept(p *portal) {
	defer srv.tasks.Done()
	wait := 5 * time.Millisecond
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			srv.mu.Lock()
			open := srv.portals[p.Address] == p
			srv.mu.Unlock()
			if !open {
				return
			}
			// Out of descriptors, most likely: others may give some back.
			srv.logs.warn("cannot accept", err.Error(), p.Address)
			select {
			case <-srv.quit:
				return
			case <-time.After(wait):
			}
			wait = min(2*wait, time.Second)
			continue
		}
		wait = 5 * time.Millisecond
		address := hostOf(conn.RemoteAddr())
		if !srv.admitHalfOpen(conn, address) {
			srv.refused.Add(1)
			_ = conn.Close()
			srv.logs.warn("connection refused", "too many logins under way", address)
			continue
		}
		go srv.serve(conn, p.listening, address)
	}
}

// admitHalfOpen counts a connection in login, unless there are too many.
func (srv *Server) admitHalfOpen(conn net.Conn, address string) bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.closing || srv.halfOpen >= srv.limits.HalfOpen || srv.half[address] >= srv.limits.HalfOpenPerAddress {
		return false
	}
	srv.halfOpen++
	srv.half[address]++
	srv.halfConns[conn] = struct{}{}
	srv.tasks.Add(1)
	return true
}

// serve takes a connection through login and its session's life.
func (srv *Server) serve(conn net.Conn, at listening, address string) {
	defer srv.tasks.Done()
	s := srv.login(conn, at)
	srv.mu.Lock()
	srv.halfOpen--
	if srv.half[address]--; srv.half[address] == 0 {
		delete(srv.half, address)
	}
	delete(srv.halfConns, conn)
	srv.mu.Unlock()
	if s == nil {
		_ = conn.Close()
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		srv.tune(tcp)
	}
	s.run()
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

// hostOf returns an address without its port.
func hostOf(a net.Addr) string {
	if ap, err := netip.ParseAddrPort(a.String()); err == nil {
		return ap.Addr().Unmap().String()
	}
	return a.String()
}

// register gives s its place and its TSIH. A session of the same nexus is
// ended first, and waited for: its writes must have landed or never can
// before a command of s is taken. RFC 7143, 6.3.5.
func (srv *Server) register(s *session) iscsi.LoginStatus {
	key := s.key()
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for {
		if srv.closing {
			return iscsi.LoginUnavailable
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
	delete(srv.halfConns, s.conn) // Close asks it to log out, rather than cut it off
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

// unregister undoes register for a session that did not come to run.
func (srv *Server) unregister(s *session) {
	srv.mu.Lock()
	delete(srv.sessions, s.tsih)
	delete(srv.nexuses, s.key())
	srv.mu.Unlock()
	close(s.gone)
}

// forget takes a session that ended off the books.
func (srv *Server) forget(s *session) {
	srv.mu.Lock()
	delete(srv.sessions, s.tsih)
	delete(srv.nexuses, s.key())
	srv.mu.Unlock()
	srv.logs.info("session ends", *s.reason.Load(), s.remote, "initiator", s.id.InitiatorName, "target", s.id.TargetName, "tsih", s.tsih)
}

// isClosing reports whether Close was called.
func (srv *Server) isClosing() bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return srv.closing
}

// appendTargets appends what SendTargets says: the targets initiator may log
// in to (only want, unless empty), each with all its portals. local is the
// address the question came in by: it stands for portals on every address.
func (srv *Server) appendTargets(b []byte, initiator, want string, local net.Addr) []byte {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	names := make([]string, 0, len(srv.targets))
	for name, t := range srv.targets {
		if _, ok := t.admits(initiator); ok && (want == "" || want == name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	portals := make([]*portal, 0, len(srv.portals))
	for _, p := range srv.portals {
		portals = append(portals, p)
	}
	slices.SortFunc(portals, func(a, b *portal) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Address, b.Address))
	})
	for _, name := range names {
		b = iscsi.AppendPair(b, "TargetName", name)
		for _, p := range portals {
			if at := portalAddress(p.bound, local); at != "" && srv.targets[name].reachable(p.Group) {
				b = iscsi.AppendPair(b, "TargetAddress", at+","+strconv.Itoa(int(p.Group)))
			}
		}
	}
	return b
}

// portalAddress is a portal's address for an initiator that came in by local,
// or empty when it has none there: a portal on every IPv4 address cannot be
// named to one that came by IPv6. An address's zone means nothing elsewhere.
func portalAddress(bound, local net.Addr) string {
	ap, err := netip.ParseAddrPort(bound.String())
	if err != nil {
		return bound.String()
	}
	at := ap.Addr().Unmap()
	if at.IsUnspecified() {
		l, err := netip.ParseAddrPort(local.String())
		if err != nil || at.Is4() && !l.Addr().Unmap().Is4() {
			return ""
		}
		at = l.Addr().Unmap()
	}
	return netip.AddrPortFrom(at.WithZone(""), ap.Port()).String()
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
	if srv.closing {
		srv.mu.Unlock()
		srv.tasks.Wait()
		return
	}
	srv.closing = true
	portals := srv.portals
	srv.portals = make(map[string]*portal)
	for conn := range srv.halfConns {
		_ = conn.SetDeadline(time.Unix(1, 0))
	}
	all := srv.all(nil)
	srv.mu.Unlock()
	for _, p := range portals {
		_ = p.listener.Close()
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
