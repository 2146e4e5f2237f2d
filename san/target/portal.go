package target

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/fault"
	"steadfast/iscsi"
)

// An alias portal beside a portal on every address of the same port has no
// socket of its own: its connections come in by that one, and are told apart by
// the address they came to. The kernel would let two sockets listen there with
// SO_REUSEPORT only, and then any program of the same user could join them
// unseen. So a port has one owner, as it always had, and "in use by another"
// stays an error.

// portal is where connections come in.
type portal struct {
	listening
	at netip.AddrPort // bound, without a zone
	// listener is nil when a portal on every address has the socket. Under
	// Server.mu, but for the accept loop's own copy.
	listener net.Listener
}

// listening is where a portal listens.
type listening struct {
	Portal
	bound net.Addr
}

// shut closes the portal's socket, if it has one of its own.
func (p *portal) shut() {
	if p.listener != nil {
		_ = p.listener.Close() // returns when the port is free
		p.listener = nil
	}
}

// covers reports whether connections to an address come in by p's socket.
func (p *portal) covers(at netip.AddrPort) bool {
	// [::] takes IPv4 as well: that is how package net opens it.
	return p.at.Addr().IsUnspecified() && p.at.Port() == at.Port() && (p.at.Addr().Is6() || at.Addr().Is4())
}

// parse checks a portal and returns its address; an empty host is [::].
func (p Portal) parse() (netip.AddrPort, error) {
	var at netip.AddrPort
	if p.Group == 0 {
		return at, fault.New(fault.Invalid, "portal %s: group tag 0 is reserved", p.Address)
	}
	host, port, err := net.SplitHostPort(p.Address)
	if err != nil {
		return at, fault.Wrap(fault.Invalid, err, "portal")
	}
	address := netip.IPv6Unspecified()
	if host != "" {
		if address, err = netip.ParseAddr(host); err != nil {
			return at, fault.New(fault.Invalid, "portal %s: %q is not an IP address", p.Address, host)
		}
	}
	if p.Alias && (address.IsUnspecified() || address.Zone() != "") {
		return at, fault.New(fault.Invalid, "alias portal %s: an alias is one address that can move", p.Address)
	}
	if address.IsUnspecified() {
		address = netip.IPv6Unspecified() // 0.0.0.0 is opened as [::], too
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return at, fault.New(fault.Invalid, "portal %s: %q is not a port number", p.Address, port)
	}
	return netip.AddrPortFrom(address.Unmap(), uint16(number)), nil
}

// Listen opens a portal and returns the address it is bound to. The first
// portal of a group decides whether the group's logins are held: those of an
// alias are, until AdmitLogins, unless the group was told before. Fails with
// fault.Invalid, fault.Exists, fault.Canceled after Close, and with
// fault.Busy when the address cannot be had.
func (srv *Server) Listen(p Portal) (net.Addr, error) {
	at, err := p.parse()
	if err != nil {
		return nil, err
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.closed {
		return nil, fault.New(fault.Canceled, "the iSCSI server is closed")
	}
	for _, o := range srv.portals {
		switch {
		case o.Address == p.Address, p.Alias && o.at == at:
			return nil, fault.New(fault.Exists, "portal %s is open already", p.Address)
		case o.Group == p.Group && o.Alias != p.Alias:
			return nil, fault.New(fault.Invalid, "portal %s: group %d has alias portals or others, not both", p.Address, p.Group)
		}
	}
	n := &portal{listening: listening{Portal: p}, at: at}
	if err := srv.open(n); err != nil {
		return nil, err
	}
	srv.portals[p.Address] = n
	if p.Alias && srv.holds[p.Group] == nil {
		srv.hold(p.Group)
	}
	return n.bound, nil
}

// Unlisten closes a portal by its configured address; its sessions stay.
// Fails with fault.NotFound, and with fault.Busy when an alias portal that
// needs a socket of its own from now on got none: that one is closed as well.
func (srv *Server) Unlisten(address string) error {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	p := srv.portals[address]
	if p == nil {
		return fault.New(fault.NotFound, "no portal %s is open", address)
	}
	delete(srv.portals, address)
	p.shut()
	return srv.settle()
}

// open gives a portal its socket. Under srv.mu.
func (srv *Server) open(p *portal) error {
	if p.Alias && srv.cover(p) {
		return nil
	}
	// Alias portals with sockets of their own stand in the way of one on every
	// address. They go on with its socket, or with theirs if it gets none; in
	// between, who connects is not answered by the alias's gate.
	if p.at.Addr().IsUnspecified() && p.at.Port() != 0 {
		for _, o := range srv.portals {
			if o.Alias && p.covers(o.at) {
				o.shut()
			}
		}
	}
	err := srv.bind(p)
	if p.Alias || err == nil {
		return err
	}
	return errors.Join(err, srv.settle())
}

// cover finds the socket that takes an alias portal's connections, if there is
// one. Under srv.mu.
func (srv *Server) cover(p *portal) bool {
	for _, o := range srv.portals {
		if o.covers(p.at) {
			p.bound = net.TCPAddrFromAddrPort(p.at)
			return true
		}
	}
	return false
}

// settle opens the alias portals that lost the socket they were covered by.
// Under srv.mu.
func (srv *Server) settle() error {
	var errs []error
	for address, p := range srv.portals {
		if p.listener != nil || srv.cover(p) {
			continue
		}
		if err := srv.bind(p); err != nil {
			delete(srv.portals, address)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// bind opens a portal's own socket. Under srv.mu.
func (srv *Server) bind(p *portal) error {
	var config net.ListenConfig
	// Tickles, marks and the diagnosis of sockets are about plain connections.
	config.SetMultipathTCP(false)
	if p.Alias {
		config.Control = freebind
	}
	l, err := config.Listen(context.Background(), "tcp", p.Address)
	if err != nil {
		return fault.Wrap(fault.Busy, err, "portal "+p.Address)
	}
	p.listener, p.bound = l, l.Addr()
	p.at = addrPortOf(p.bound)
	srv.tasks.Add(1)
	go srv.accept(p, l)
	return nil
}

// freebind lets a socket be bound to an address that is not here yet.
func freebind(network, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		if network == "tcp6" {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		} else {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		}
	})
	return errors.Join(err, failed)
}

// accept takes connections until the portal's socket is closed.
func (srv *Server) accept(p *portal, l net.Listener) {
	defer srv.tasks.Done()
	wait := 5 * time.Millisecond
	for {
		conn, err := l.Accept()
		if err == nil {
			wait = 5 * time.Millisecond
			srv.welcome(p, conn)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
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
	}
}

// welcome starts a connection's login, unless there are too many.
func (srv *Server) welcome(p *portal, conn net.Conn) {
	s, err := srv.admitHalfOpen(p, conn)
	if err != nil {
		srv.refused.Add(1)
		srv.logs.warn("connection refused", causeOf(err), hostOf(conn.RemoteAddr()))
		srv.closing(conn)
		_ = conn.Close()
		return
	}
	go srv.serve(s)
}

// admitHalfOpen counts a connection that came in by p's socket as one in login.
// It fails when there are too many.
func (srv *Server) admitHalfOpen(p *portal, conn net.Conn) (*session, error) {
	address := hostOf(conn.RemoteAddr())
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.closed || srv.halfOpen >= srv.limits.HalfOpen || srv.half[address] >= srv.limits.HalfOpenPerAddress {
		return nil, errors.New("too many logins under way")
	}
	s, err := srv.newSession(conn, srv.portalFor(p, conn))
	if err != nil {
		return nil, err
	}
	srv.halfOpen++
	srv.half[address]++
	srv.logins[s] = struct{}{}
	srv.tasks.Add(1)
	return s, nil
}

// portalFor returns the portal that a connection which came in by p's socket
// is for. Under srv.mu.
func (srv *Server) portalFor(p *portal, conn net.Conn) listening {
	if p.at.Addr().IsUnspecified() {
		at := addrPortOf(conn.LocalAddr())
		for _, o := range srv.portals {
			if o.Alias && o.at == at {
				return o.listening
			}
		}
	}
	return p.listening
}

// hostOf returns an address without its port.
func hostOf(a net.Addr) string {
	if ap, err := netip.ParseAddrPort(a.String()); err == nil {
		return ap.Addr().Unmap().String()
	}
	return a.String()
}

// addrPortOf returns a TCP address, without a zone, and IPv4 as such; the zero
// value for others.
func addrPortOf(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// appendTargets appends what SendTargets says to an initiator that asks through
// a portal, at an address: the targets it may log in to (only want, unless
// empty), each with its portals. Those are the node's own; or the alias portal
// that was asked, and no other: what is behind an alias is not where the node's
// own portals are tomorrow, and what the node has by itself does not move.
func (srv *Server) appendTargets(b []byte, initiator, want string, through listening, local net.Addr) []byte {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	names := make([]string, 0, len(srv.targets))
	for name, t := range srv.targets {
		if _, ok := t.admits(initiator); ok && (want == "" || want == name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	portals := []listening{through}
	if !through.Alias {
		portals = srv.ownPortals()
	}
	for _, name := range names {
		t, named := srv.targets[name], false
		for _, p := range portals {
			at := portalAddress(p.bound, local)
			if at == "" || !t.reachable(p.Portal) {
				continue
			}
			if !named {
				// A name without an address would mean this portal.
				b, named = iscsi.AppendPair(b, "TargetName", name), true
			}
			b = iscsi.AppendPair(b, "TargetAddress", at+","+strconv.Itoa(int(p.Group)))
		}
	}
	return b
}

// ownPortals returns the portals that do not move, in order. Under srv.mu.
func (srv *Server) ownPortals() []listening {
	var list []listening
	for _, p := range srv.portals {
		if !p.Alias {
			list = append(list, p.listening)
		}
	}
	slices.SortFunc(list, func(a, b listening) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Address, b.Address))
	})
	return list
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
