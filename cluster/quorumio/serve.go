package quorumio

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/internal/wirebuf"
)

// servedMax bounds the connections for protocols of Options.Serve that stand at
// one time; members that want more are refused.
const servedMax = 256

// handler answers a protocol; see Options.Serve.
type handler = func(conn *tls.Conn, from identity.Peer)

// stream is the socket under a connection that is a caller's. The transport
// closes it when the peer is no member any more, or when the transport ends.
type stream struct {
	*wirebuf.Conn
	t    *transport
	peer uint64
	once sync.Once
	err  error
}

// Close closes the socket, once, and forgets it.
func (s *stream) Close() error {
	s.once.Do(func() {
		s.err = s.Conn.Close()
		s.t.mu.Lock()
		delete(s.t.streams, s)
		s.t.mu.Unlock()
	})
	return s.err
}

// newStream takes raw in, or closes it when the transport has ended.
func (t *transport) newStream(raw *wirebuf.Conn, peer uint64) (*stream, error) {
	s := &stream{Conn: raw, t: t, peer: peer}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, errors.Join(errEnded, raw.Close())
	case gone(t.roll, peer): // it left after its number was looked up
		return nil, errors.Join(fault.New(fault.Denied, "number %d is not a member any more", peer), raw.Close())
	}
	t.streams[s] = struct{}{}
	return s, nil
}

// checkServe refuses protocols that are the transport's own, or have no handler.
func checkServe(serve map[string]handler) error {
	for proto, h := range serve {
		if proto == "" || len(proto) > 255 || proto == identity.ProtoPeer || proto == identity.ProtoJoin || h == nil {
			return fault.New(fault.Invalid, "a member cannot serve the protocol %q", proto)
		}
	}
	return nil
}

// handle has a protocol's handler answer a member that was welcomed, and says
// goodbye for it: what it wrote last is known to be all then.
func (t *transport) handle(conn *tls.Conn, from identity.Peer) {
	h := t.handlers[conn.ConnectionState().NegotiatedProtocol]
	if h == nil {
		return // it cannot have been negotiated
	}
	defer conn.Close()
	h(conn, from)
}

// track notes an incoming connection for a protocol, so that it is cut off with
// its member. It returns false when there are too many. t.mu is held.
func (t *transport) track(raw net.Conn, peer uint64) bool {
	if len(t.served) >= servedMax {
		return false
	}
	t.served[raw] = peer
	return true
}

func (t *transport) untrack(raw net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.served, raw)
}

// number returns a member's number by the state.
func (t *transport) number(name quorum.Member) (uint64, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.roll.Members[name]; r != nil {
		return r.ID, true
	}
	return 0, false
}

// Dial connects to another member for a protocol that it serves (Options.Serve).
// The addresses that are known are tried in turn, the one that it said itself
// first. When Dial returns, both ends have proven who they are, the member's
// handler has the connection, and no deadline is set.
//
// The connection is the caller's to close; what NetConn returns is, or has the
// methods of, a *wirebuf.Conn. It is closed under the caller when
// the peer is taken out of the cluster, and when this member ends. A peer that
// takes nothing for two seconds, be it dead or only not reading, ends it too.
//
// Fails with fault.NotFound when there is no such member, fault.Invalid for this
// one, fault.Canceled after Close, and fault.Unreachable when it does not answer,
// refuses, or does not serve the protocol.
func (m *Member) Dial(ctx context.Context, name quorum.Member, proto string) (*tls.Conn, error) {
	if name == m.self.Member {
		return nil, fault.New(fault.Invalid, "%s dials itself", name)
	}
	id, ok := m.transport.number(name)
	if !ok {
		return nil, fault.New(fault.NotFound, "there is no member %s", name)
	}
	return m.dial(ctx, name, id, m.transport.addresses(id), proto)
}

// DialAt is Dial at one address, where the other member Listens beside its own.
func (m *Member) DialAt(ctx context.Context, name quorum.Member, address, proto string) (*tls.Conn, error) {
	id, ok := m.transport.number(name)
	if !ok || name == m.self.Member {
		return nil, fault.New(fault.NotFound, "there is no other member %s", name)
	}
	return m.dial(ctx, name, id, []string{address}, proto)
}

// dial tries addresses of a member in turn.
func (m *Member) dial(ctx context.Context, name quorum.Member, id uint64, addresses []string, proto string) (*tls.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.transport.ctx, cancel)()
	var failed error
	for _, address := range addresses {
		conn, err := m.transport.dialStream(ctx, address, id, proto)
		if err == nil {
			return conn, nil
		}
		failed = errors.Join(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	if m.transport.ctx.Err() != nil {
		return nil, errEnded
	}
	return nil, fault.Wrap(fault.Unreachable, failed, "member "+string(name)+" for "+proto)
}

// dialStream makes a connection that is a caller's.
func (t *transport) dialStream(ctx context.Context, address string, id uint64, proto string) (*tls.Conn, error) {
	raw, err := dialTCP(ctx, address)
	if err != nil {
		return nil, err
	}
	s, err := t.newStream(raw, id)
	if err != nil {
		return nil, err
	}
	conn, err := t.shake(ctx, s, address, id, proto)
	if err == nil {
		stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
		err = t.greet(s, conn, id)
		if !stop() && err == nil { // its deadline may be spoilt
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return conn, nil
}

// tune sets what every connection of a member has. It gives up a connection whose
// peer acknowledges nothing: a host that lost power says no goodbye, and TCP
// alone would try for a quarter of an hour, ever more rarely (RFC 5482; tcp(7)).
// And what is small is sent at once.
func tune(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(writeTime.Milliseconds())),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	})
	return errors.Join(cerr, err)
}

// Word is the newest word of another member.
type Word struct {
	Age time.Duration // since it was heard
	// Boot is the life that the member said it is in. The quorum may have it begun later: the
	// state that this member has applied need not know of it yet.
	Boot quorum.Boot
}

// Reachable tells for each other member when its connection to this one last
// said anything; it says something each second. Who was not heard in this life is
// left out. So it tells that a member runs and that the way from it is open, not
// that its disk works or that it has caught up.
func (m *Member) Reachable() map[quorum.Member]Word {
	t := m.transport
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[quorum.Member]Word{}
	for id, w := range t.lastHeard {
		if r := t.roll.ByID(id); r != nil {
			out[r.Name] = Word{time.Since(w.at), w.boot}
		}
	}
	return out
}

// hear notes that a member has said something.
func (t *transport) hear(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.lastHeard[id]
	w.at = time.Now()
	t.lastHeard[id] = w
}

// protocols returns what a listener answers to besides peers and joiners.
func (t *transport) protocols() []string {
	var list []string
	for proto := range t.handlers {
		list = append(list, proto)
	}
	slices.Sort(list)
	return list
}
