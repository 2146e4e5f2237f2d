package quorumio

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"sync/atomic"
	"time"

	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// Timing of raft: an election begins when the leader was silent for 10 to 20
// ticks.
const (
	tickTime       = 50 * time.Millisecond
	electionTicks  = 10
	heartbeatTicks = 2
)

// errEnded is what is asked of a member that was closed.
var errEnded = &fault.Error{Kind: fault.Canceled, Text: "the member is closed"}

// Options are what Open needs.
type Options struct {
	// Dir is the member's directory, made by Found or Join.
	Dir string
	// Identity is the member's; nil to load it from Dir.
	Identity *identity.Identity
	// Listen is where peers and joiners are answered, host:port. When empty it is
	// the address that the state has for this member.
	Listen string
	// Address is where peers reach that. When empty it is the listener's own, or
	// what the state has, when Listen is empty or of every address.
	Address string
	// Serve answers other protocols on the same listener, by ALPN. Only members
	// get through, by Dial; the first may before Open returns. The connection is the handler's, without a deadline,
	// until it returns; then it is closed. It is closed under the handler when the
	// peer is taken out of the cluster, when it takes nothing for two seconds, and
	// when the member ends, whose Close waits for the handler.
	Serve map[string]func(conn *tls.Conn, from identity.Peer)
	// CompactEvery is after how many entries the log becomes a snapshot; as many
	// are kept in memory for peers that are a little behind. Default 4096.
	CompactEvery uint64
	// Log is told what an administrator may want to know. Required.
	Log *slog.Logger
}

func (o *Options) check() error {
	switch {
	case o.Log == nil:
		return fault.New(fault.Invalid, "a member needs a logger")
	case o.Dir == "":
		return fault.New(fault.Invalid, "a member needs a directory")
	}
	if err := checkServe(o.Serve); err != nil {
		return err
	}
	if o.CompactEvery == 0 {
		o.CompactEvery = 4096
	}
	return nil
}

// Member is this process's part in the quorum. Its methods may be called from
// any goroutine.
type Member struct {
	self      quorum.Incarnation
	id        *identity.Identity
	log       *slog.Logger
	transport *transport
	watchers  watchers

	inbox  chan input
	cancel context.CancelFunc // ends loop and transport
	ended  chan struct{}      // closed when the loop has ended
	why    error              // of the end; set before ended is closed
	gone   chan struct{}      // closed when everything has ended
	closed error              // of the store; set before gone is closed
	failed chan error

	state   atomic.Pointer[quorum.State]
	leader  atomic.Uint64
	address atomic.Pointer[string]
}

// inboxInputs bounds what waits for the loop; who has more waits.
const inboxInputs = 256

// Open begins a life of the member in a directory. Fails with fault.NotFound
// when there is none, fault.Busy when another process runs it or the address is
// taken, and fault.Corrupt when what the directory holds is damaged: such a
// member is replaced, for it has forgotten what it promised.
func Open(o Options) (_ *Member, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	id, s, err := load(o)
	if err != nil {
		return nil, err
	}
	if err := s.begin(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &Member{
		self: quorum.Incarnation{Member: id.Self().Name, Boot: s.boot}, id: id, log: o.Log.With("member", string(id.Self().Name)),
		inbox: make(chan input, inboxInputs), cancel: cancel, ended: make(chan struct{}), gone: make(chan struct{}), failed: make(chan error, 1),
	}
	m.watchers.init(ctx)
	t := newTransport(ctx, id, s.boot, m.log, s.seeds)
	t.deliver, t.join, t.handlers = m.deliver, m.serveJoin, maps.Clone(o.Serve)
	t.leads = func() bool { return m.leader.Load() == id.Self().ID }
	m.transport = t
	l, err := newLoop(m, s, o.CompactEvery)
	var address string
	if err == nil {
		address, err = t.begin(o)
	}
	if err != nil {
		cancel()
		t.close()
		return nil, errors.Join(err, s.close())
	}
	m.address.Store(&address)
	m.log.Info("a member begins a life", "boot", uint64(s.boot), "address", address, "index", m.State().Index)
	go m.run(ctx, l)
	return m, nil
}

// load reads what a directory holds.
func load(o Options) (id *identity.Identity, s *store, err error) {
	if id = o.Identity; id == nil {
		if id, err = identity.Load(o.Dir); err != nil {
			return nil, nil, err
		}
	}
	s, err = openStore(o.Dir)
	if errors.Is(err, errNoStore) {
		return nil, nil, fault.New(fault.Corrupt, "the directory has a member's identity, but not its log: if a cluster was being founded, "+
			"empty the directory and begin again; else have the member replaced")
	}
	return id, s, err
}

// run is the loop's goroutine, and clears up behind it.
func (m *Member) run(ctx context.Context, l *loop) {
	err := l.run(ctx)
	m.leader.Store(0)
	m.why = errEnded
	if err != nil {
		m.why = err
		m.failed <- err // it has room for one
		m.log.Error("the member has ended", "err", err)
	}
	m.cancel()
	m.closed = l.store.close()
	close(m.ended) // who waits for a decision goes; a joiner's connection is one of them
	m.transport.close()
	m.watchers.wait()
	close(m.gone)
}

// Close ends the life, as a crash would: no goodbyes. It returns when every
// goroutine has ended.
func (m *Member) Close() error {
	m.cancel()
	<-m.gone
	return m.closed
}

// Failed gives the reason when the member has ended by itself: a write failed,
// its log contradicts the cluster's, or it has left. Close it then.
func (m *Member) Failed() <-chan error { return m.failed }

// Self returns the member in its present life.
func (m *Member) Self() quorum.Incarnation { return m.self }

// Address returns where peers reach the member.
func (m *Member) Address() string { return *m.address.Load() }

// State returns what is decided, as far as this member knows. It never changes
// afterwards.
func (m *Member) State() *quorum.State { return m.state.Load() }

// Leader returns the member that leads the quorum, as far as this one knows:
// empty when it knows of none.
func (m *Member) Leader() quorum.Member {
	id := m.leader.Load()
	if r := m.State().Roll.ByID(id); r != nil {
		return r.Name
	}
	return ""
}

// Watch calls f with the present state and then with each later one. Calls come
// one after another, in order; when f is slow, states between are left out.
// After stop no call begins; one may still run. f must not wait for Close.
func (m *Member) Watch(f func(*quorum.State)) (stop func()) {
	return m.watchers.add(m.State, f)
}

// deliver gives the loop an input, waiting for room. It returns false when the
// loop has ended.
func (m *Member) deliver(in input) bool {
	select {
	case m.inbox <- in:
		return true
	case <-m.ended:
		return false
	case <-m.transport.ctx.Done():
		return false
	}
}
