package quorumio

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/internal/wirebuf"
)

// Bounds of the transport.
const (
	handshakeTime = 5 * time.Second
	// halfOpenMax bounds connections that have not proven who they are; more are
	// closed at once.
	halfOpenMax = 64
	// joinersMax bounds joiners that are being answered.
	joinersMax = 8
	// queueFrames and queueBytes bound what waits for a peer. Raft repeats what is
	// dropped.
	queueFrames = 512
	queueBytes  = 64 << 20
)

// transport moves raft's messages. Its methods may be called from any goroutine.
type transport struct {
	ctx     context.Context // ends everything
	id      *identity.Identity
	boot    quorum.Boot
	log     *slog.Logger
	began   time.Time
	deliver func(input) bool // to the loop; false when it has ended
	leads   func() bool      // whether this member does
	heard   atomic.Int64     // when a leader was heard, by the monotonic clock
	join    func(*tls.Conn)  // answers a joiner
	half    chan struct{}    // places of halfOpenMax
	joiners chan struct{}    // places of joinersMax
	refused *refusals
	// handlers answer what members connect for besides raft; they do not change
	// once the transport listens.
	handlers map[string]handler
	tasks    sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	roll      quorum.Roll
	address   string            // where this member is reached
	said      map[uint64]string // addresses that peers gave themselves
	seeds     map[uint64]string
	peers     map[uint64]*peer    // outgoing
	incoming  map[uint64]net.Conn // the newest of each peer
	lastHeard map[uint64]heardAt
	keep      bool                    // connections to all members, not only to those that there is something to say to
	listeners map[string]net.Listener // by the address that was asked for
	conns     map[net.Conn]struct{}   // all of the transport's own that are open, to be closed
	streams   map[*stream]struct{}    // those that callers have, by Dial
	served    map[net.Conn]uint64     // those of conns that handlers have, and who is at the other end
}

// heardAt is when a member was heard last, and the life that it began its connection in.
type heardAt struct {
	at   time.Time
	boot quorum.Boot
}

func newTransport(ctx context.Context, id *identity.Identity, boot quorum.Boot, log *slog.Logger, seeds []quorum.Record) *transport {
	t := &transport{
		ctx: ctx, id: id, boot: boot, log: log, began: time.Now(), leads: func() bool { return false }, half: make(chan struct{}, halfOpenMax),
		joiners: make(chan struct{}, joinersMax), refused: &refusals{log: log},
		said: map[uint64]string{}, seeds: map[uint64]string{}, peers: map[uint64]*peer{},
		listeners: map[string]net.Listener{}, incoming: map[uint64]net.Conn{}, lastHeard: map[uint64]heardAt{},
		conns: map[net.Conn]struct{}{}, streams: map[*stream]struct{}{}, served: map[net.Conn]uint64{},
	}
	t.heard.Store(-int64(time.Hour)) // never
	context.AfterFunc(ctx, t.shut)
	for _, r := range seeds {
		t.seeds[r.ID] = r.Address
	}
	return t
}

// begin listens where the options say, and connects to the members. It returns
// where this one is reached.
func (t *transport) begin(o Options) (address string, err error) {
	listen, address := o.Listen, o.Address
	if listen == "" {
		known := t.addresses(t.id.Self().ID)
		if len(known) == 0 {
			return "", fault.New(fault.Invalid, "nobody knows the address of this member: say where to listen")
		}
		listen = known[0]
		if address == "" {
			address = listen
		}
	}
	bound, err := t.listen(listen)
	if err != nil {
		return "", err
	}
	if address == "" {
		address = t.reached(bound)
	}
	t.setAddress(address)
	t.connect()
	return address, nil
}

// listen opens a listener more, unless there is one at that address. Fails with
// fault.Busy.
func (t *transport) listen(address string) (net.Addr, error) {
	t.mu.Lock()
	there := t.listeners[address]
	t.mu.Unlock()
	if there != nil {
		return there.Addr(), nil
	}
	lc := net.ListenConfig{Control: tune} // what is accepted inherits it
	l, err := lc.Listen(t.ctx, "tcp", address)
	if err != nil {
		return nil, fault.Wrap(fault.Busy, err, "listen for the cluster's members")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errors.Join(errEnded, l.Close())
	}
	t.listeners[address] = l
	t.tasks.Add(1)
	go t.acceptLoop(l)
	return l.Addr(), nil
}

// Listen answers members at one more address, until Unlisten; nobody is told of it. Fails with
// fault.Busy when this machine cannot listen there.
func (m *Member) Listen(address string) error {
	_, err := m.transport.listen(address)
	return err
}

// Unlisten ends what Listen began. Connections that stand stay.
func (m *Member) Unlisten(address string) {
	t := m.transport
	t.mu.Lock()
	l := t.listeners[address]
	delete(t.listeners, address)
	t.mu.Unlock()
	if l != nil {
		_ = l.Close() // nothing waits in it that anyone was promised
	}
}

// reached returns where peers reach what is bound to an address.
func (t *transport) reached(bound net.Addr) string {
	if a, ok := bound.(*net.TCPAddr); ok && a.IP.IsUnspecified() {
		if known := t.addresses(t.id.Self().ID); len(known) > 0 {
			return known[0]
		}
	}
	return bound.String()
}

// setAddress says where this member is reached, for hellos from now on.
func (t *transport) setAddress(a string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.address = a
}

// connect makes connections to all members, and keeps them: they tell who is
// reachable.
func (t *transport) connect() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keep = true
	t.connectAll()
}

// connectAll begins a connection to each member that has none. t.mu is held.
func (t *transport) connectAll() {
	if !t.keep || t.closed {
		return
	}
	for _, m := range t.roll.Members {
		if m.ID != t.id.Self().ID {
			t.peer(m.ID)
		}
	}
}

// peer returns the connection to a member, and begins it if there is none. t.mu
// is held, and t not closed.
func (t *transport) peer(id uint64) *peer {
	p := t.peers[id]
	if p == nil {
		p = newPeer(t, id)
		t.peers[id] = p
		t.tasks.Add(1)
		go p.run()
	}
	return p
}

// shut ends every connection, as soon as t.ctx ends: who is at the other end need
// not wait for what the member does before it is gone.
func (t *transport) shut() {
	t.mu.Lock()
	t.closed = true
	for _, l := range t.listeners {
		_ = l.Close() // nothing waits in it that anyone was promised
	}
	for c := range t.conns {
		_ = c.Close() // what is under way is lost, as in a crash
	}
	streams := slices.Collect(maps.Keys(t.streams))
	t.mu.Unlock()
	for _, s := range streams {
		_ = s.Close()
	}
}

// close shuts, and waits for what used the connections. t.ctx has ended.
func (t *transport) close() {
	t.shut()
	t.tasks.Wait()
}

// enrol takes in what a new state says of the members: who left is cut off.
func (t *transport) enrol(r quorum.Roll) {
	for _, s := range t.enter(r) {
		_ = s.Close() // its user finds out
	}
}

// enter is enrol, and returns the streams that are to be closed when t.mu is
// free.
func (t *transport) enter(r quorum.Roll) (cut []*stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.Revision == t.roll.Revision {
		return nil
	}
	t.roll = r
	for id, p := range t.peers {
		if gone(r, id) {
			p.stop()
			delete(t.peers, id)
			delete(t.said, id)
		}
	}
	for id, c := range t.incoming {
		if gone(r, id) {
			_ = c.Close() // its reader ends
		}
	}
	for c, id := range t.served {
		if gone(r, id) {
			_ = c.Close() // its handler ends
		}
	}
	for s := range t.streams {
		if gone(r, s.peer) {
			cut = append(cut, s)
		}
	}
	for id := range t.lastHeard {
		if gone(r, id) {
			delete(t.lastHeard, id)
		}
	}
	t.connectAll()
	return cut
}

// gone tells whether a number was a member's that has left.
func gone(r quorum.Roll, id uint64) bool { return id <= r.LastID && r.ByID(id) == nil }

// check holds the certificate of who comes to the state; see the package doc.
func (t *transport) check(p identity.Peer) error {
	behind := t.behind()
	t.mu.Lock()
	defer t.mu.Unlock()
	return standing(t.roll, p, behind)
}

// since reads the clock of heard.
func (t *transport) since() int64 { return int64(time.Since(t.began)) }

// behind tells whether the state may be an old one: no leader was heard for as
// long as an election takes to begin.
func (t *transport) behind() bool {
	return !t.leads() && t.since()-t.heard.Load() > int64(electionTicks*tickTime)
}

// standing tells whether p is a member by r, or, when r may be an old state, by a
// later one.
func standing(r quorum.Roll, p identity.Peer, behind bool) error {
	m := r.ByID(p.ID)
	switch {
	case m == nil && p.ID > r.LastID && behind:
		return nil
	case m == nil && p.ID > r.LastID:
		return fault.New(fault.Denied, "%s, number %d, is not a member yet", p.Name, p.ID)
	case m == nil:
		return fault.New(fault.Denied, "%s, number %d, is not a member any more", p.Name, p.ID)
	case m.Name != p.Name || m.Key != p.Key:
		return fault.New(fault.Denied, "%s shows the number %d of member %s, with another name or key", p.Name, p.ID, m.Name)
	}
	return nil
}

// addresses returns where a peer may be reached: where it said itself that it
// is, and where the state has it, or the seeds.
func (t *transport) addresses(id uint64) (list []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a := t.said[id]; a != "" {
		list = append(list, a)
	}
	a := t.seeds[id]
	if m := t.roll.ByID(id); m != nil {
		a = m.Address
	}
	if a != "" && (len(list) == 0 || list[0] != a) {
		list = append(list, a)
	}
	return list
}

// name returns a peer's name for a log.
func (t *transport) name(id uint64) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.roll.ByID(id); m != nil {
		return string(m.Name)
	}
	return ""
}

// send queues a message, or drops it: then it returns false. It never blocks.
func (t *transport) send(m *raftpb.Message) bool {
	payload, err := proto.Marshal(m)
	if err != nil || len(payload) > frameBytesMax {
		t.log.Error("a message cannot be sent", "to", m.GetTo(), "bytes", len(payload), "err", err)
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || gone(t.roll, m.GetTo()) {
		return false
	}
	p := t.peer(m.GetTo())
	if p.queued.Load()+int64(len(payload)) > queueBytes {
		return false
	}
	select {
	case p.queue <- outgoing{payload, m.GetType() == raftpb.MsgSnap}:
		p.queued.Add(int64(len(payload)))
		return true
	default:
		return false
	}
}

// open takes note of a connection, or closes it when the transport has ended.
func (t *transport) open(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = c.Close() // nothing came of it
		return false
	}
	t.conns[c] = struct{}{}
	return true
}

// drop closes a connection that open took.
func (t *transport) drop(c net.Conn) {
	_ = c.Close() // it is given up: what was not read is lost, as in a crash
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
}

func (t *transport) acceptLoop(l net.Listener) {
	defer t.tasks.Done()
	cfg := t.id.Server(t.check, t.protocols()...)
	for {
		tcp, err := l.Accept()
		switch {
		case err == nil:
		case t.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default: // out of descriptors, or the like: it passes
			t.log.Warn("cannot accept a connection", "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-t.ctx.Done():
			}
			continue
		}
		raw := wrap(tcp)
		select {
		case t.half <- struct{}{}:
		default:
			_ = raw.Close() // too many strangers; a member comes again
			continue
		}
		if !t.open(raw) {
			return
		}
		t.tasks.Add(1)
		go func() {
			defer t.tasks.Done()
			defer t.drop(raw)
			t.serve(raw, tls.Server(raw, cfg))
		}()
	}
}

// wrap puts buffers on a connection of TCP, as a listener's are.
func wrap(c net.Conn) net.Conn {
	if tcp, ok := c.(*net.TCPConn); ok {
		return wirebuf.New(tcp)
	}
	return c
}

// serve finds out who has come, and what for.
func (t *transport) serve(raw net.Conn, conn *tls.Conn) {
	release := sync.OnceFunc(func() { <-t.half })
	defer release()
	_ = raw.SetDeadline(time.Now().Add(handshakeTime)) // fails only on a closed connection
	if err := conn.HandshakeContext(t.ctx); err != nil {
		t.refused.tell(time.Now(), "a stranger", raw.RemoteAddr(), err)
		return
	}
	proto := conn.ConnectionState().NegotiatedProtocol
	if proto == identity.ProtoJoin {
		// Whoever knows the address comes this far: it keeps no member out.
		release()
		select {
		case t.joiners <- struct{}{}:
			t.join(conn)
			<-t.joiners
		default:
			t.refused.tell(time.Now(), "a joiner, while others are being answered", raw.RemoteAddr(), nil)
		}
		return
	}
	from, err := t.welcome(conn)
	if err != nil {
		t.refused.tell(time.Now(), "a member", raw.RemoteAddr(), err)
		return
	}
	_ = raw.SetDeadline(time.Time{})
	release()
	if proto != identity.ProtoPeer {
		defer t.untrack(raw)
		t.handle(conn, from)
		return
	}
	defer t.forget(from.ID, conn)
	if err := t.receive(conn, from); err != nil && t.ctx.Err() == nil {
		t.log.Debug("a member's connection has ended", "member", from.Name, "err", err)
	}
}

// welcome exchanges hellos.
func (t *transport) welcome(conn *tls.Conn) (identity.Peer, error) {
	from, err := t.id.PeerOf(conn.ConnectionState())
	if err != nil {
		return from, err
	}
	h, err := readHello(conn, frameHello)
	if err != nil {
		return from, err
	}
	me, behind := t.id.Self(), t.behind()
	t.mu.Lock()
	answer := hello{To: from.ID, Boot: t.boot, Address: t.address}
	// The state may have changed since the handshake asked it.
	err = standing(t.roll, from, behind)
	if err == nil && (h.To != me.ID || from.ID == me.ID) {
		err = fault.New(fault.Denied, "%s, number %d, looks for number %d, and this is %d", from.Name, from.ID, h.To, me.ID)
	}
	if err == nil {
		err = t.take(conn, from.ID, h)
	}
	if err != nil {
		answer.Refused = err.Error()
	}
	t.mu.Unlock()
	if werr := writeHello(conn, frameWelcome, answer); werr != nil && err == nil {
		t.forget(from.ID, conn)
		t.untrack(conn.NetConn())
		err = werr
	}
	return from, err
}

// take notes a connection that is welcome, and what its member says of itself.
// t.mu is held.
func (t *transport) take(conn *tls.Conn, id uint64, h hello) error {
	raw := conn.NetConn()
	if conn.ConnectionState().NegotiatedProtocol != identity.ProtoPeer {
		if !t.track(raw, id) {
			return fault.New(fault.Busy, "%d connections stand already", servedMax)
		}
	} else {
		if old := t.incoming[id]; old != nil {
			_ = old.Close() // the peer has begun another
		}
		t.incoming[id] = raw
		t.lastHeard[id] = heardAt{time.Now(), h.Boot} // any other connection does not show that the member runs
	}
	if h.Address != "" { // a visitor is reached nowhere
		t.said[id] = h.Address
	}
	return nil
}

func (t *transport) forget(id uint64, conn *tls.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.incoming[id] == conn.NetConn() {
		delete(t.incoming, id)
	}
}

// receive takes a peer's messages until the connection ends. When the loop is
// behind, the peer waits: TCP is the queue then, and bounded.
func (t *transport) receive(conn *tls.Conn, from identity.Peer) error {
	r := bufio.NewReaderSize(conn, 64<<10)
	for {
		kind, p, err := readAny(r, frameBytesMax)
		if err != nil {
			return err
		}
		t.hear(from.ID)
		if kind == frameAlive {
			continue
		}
		m, err := decodeMessage(p, from.ID, t.id.Self().ID)
		if err != nil {
			t.log.Warn("a member sends what it should not", "member", from.Name, "err", err)
			return err
		}
		switch m.GetType() {
		case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap:
			t.heard.Store(t.since())
		default:
		}
		if !t.deliver(received{m}) {
			return nil
		}
	}
}
