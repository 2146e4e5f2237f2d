package mirrorio

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/san/mirror"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	volumeBlocks = 256
	volumeBytes  = volumeBlocks * BlockSize
)

// memory is a store in memory that outlives the group's lives.
type memory struct {
	mu       sync.Mutex
	data     [volumeBytes]byte
	changed  [volumeBlocks]mirror.Position
	position mirror.Position
	saved    mirror.Position
	broken   bool
	full     bool
	bad      map[int64]bool  // blocks that cannot be read
	absent   bool            // the volume is not there yet
	changes  chan struct{}   // closed when it is
	actions  map[string]bool // done
	refuses  fault.Kind      // actions, when not 0
	kept     int             // times that a resync was announced
	ended    []bool
	healed   []error
	cold     bool // nothing is read without waiting
	stood    []group.Standing

	hangs   sync.RWMutex // held by who has changes hang
	applies atomic.Int32 // changes begun
}

var errBad = fault.New(fault.Corrupt, "the checksum is wrong")

// set changes a store under its lock.
func (s *memory) set(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

func (s *memory) act(action []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuses != 0 {
		return fault.New(s.refuses, "the action %s is refused", action)
	}
	if s.actions == nil {
		s.actions = map[string]bool{}
	}
	s.actions[string(action)] = true
	return nil
}

func (s *memory) undo(action []byte) error {
	s.set(func() { delete(s.actions, string(action)) })
	return nil
}

func (s *memory) Apply(_ uint32, c *Change, _ bool) error {
	s.applies.Add(1)
	s.hangs.RLock()
	defer s.hangs.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return fault.New(fault.Failed, "the drive is broken")
	}
	if s.full && s.changed[c.Off/BlockSize] == 0 {
		return fault.New(fault.Full, "no room")
	}
	if end := c.Off + c.Length; s.bad[c.Off/BlockSize] && c.Off%BlockSize != 0 || s.bad[end/BlockSize] && end%BlockSize != 0 {
		return errBad
	}
	s.position++
	if c.Kind == Data {
		copy(s.data[c.Off:], c.Data)
	} else {
		clear(s.data[c.Off : c.Off+c.Length])
	}
	for b := c.Off / BlockSize; b*BlockSize < c.Off+c.Length; b++ {
		delete(s.bad, b)
		s.changed[b] = s.position
	}
	return nil
}

func (s *memory) Read(_ uint32, p []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return fault.New(fault.Failed, "the drive is broken")
	}
	for b := off / BlockSize; b*BlockSize < off+int64(len(p)); b++ {
		if s.bad[b] {
			return errBad
		}
	}
	copy(p, s.data[off:])
	return nil
}

func (s *memory) TryRead(volume uint32, p []byte, off int64) bool {
	return !s.cold && s.Read(volume, p, off) == nil
}

func (s *memory) Ready(uint32, int64) (Readiness, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.absent {
		return Ready, nil
	}
	if s.changes == nil {
		s.changes = make(chan struct{})
	}
	return NotYet, s.changes
}

func (s *memory) Flush() error { return nil }

func (s *memory) Position() mirror.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.position
}

func (s *memory) Changed(since mirror.Position, _ []uint32) (out []mirror.Range, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for b, p := range s.changed {
		if p > since {
			out = append(out, mirror.Range{Block: uint64(b), Count: 1})
		}
	}
	return out, nil
}

func (s *memory) SavePosition(p mirror.Position) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = p
	return nil
}

func (s *memory) begin() (Store, mirror.Position) { return s, s.saved }

func (s *memory) end(bool) {}

func (s *memory) content() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.data[:])
}

// disk is where a node's store lies, from life to life.
type disk interface {
	begin() (Store, mirror.Position)
	end(power bool)
	content() []byte
}

// quorumNow is a quorum that decides at once.
type quorumNow struct {
	mu    sync.Mutex
	state *quorum.State
	tell  map[quorum.Member]*Group
}

func (q *quorumNow) propose(c quorum.Command) {
	q.mu.Lock()
	defer q.mu.Unlock()
	next := q.state.Clone()
	_ = next.Apply(next.Index+1, c) // what is refused changes nothing
	q.state = next
	for _, g := range q.tell {
		go g.Decided(next)
	}
}

// pair is two nodes.
type pair struct {
	t      testing.TB
	quorum *quorumNow
	disks  map[quorum.Member]disk
	boots  map[quorum.Member]quorum.Boot
	groups map[quorum.Member]*Group
	links  sync.WaitGroup
	secure *tls.Config // of the link, when not nil

	mu sync.Mutex // guards groups: a load looks while lives come and go
}

func newPair(t testing.TB) *pair { return newPairOn(t, &memory{}, &memory{}) }

func newPairOn(t testing.TB, a, b disk) *pair { return newPairBy(t, a, b, nil) }

func newPairBy(t testing.TB, a, b disk, secure *tls.Config) *pair {
	p := &pair{
		t: t, secure: secure, quorum: &quorumNow{state: quorum.NewState(), tell: map[quorum.Member]*Group{}},
		disks: map[quorum.Member]disk{"a": a, "b": b}, boots: map[quorum.Member]quorum.Boot{}, groups: map[quorum.Member]*Group{},
	}
	p.start("a")
	p.start("b")
	p.await("a lives", func() bool { return p.state().Boots["a"] == 1 })
	p.quorum.propose(quorum.Command{Kind: quorum.KindCreate, Group: "g", By: p.me("a")})
	p.connect()
	p.inSync()
	t.Cleanup(func() {
		p.stop("a", false)
		p.stop("b", false)
		p.links.Wait()
	})
	return p
}

func (p *pair) me(m quorum.Member) quorum.Incarnation {
	return quorum.Incarnation{Member: m, Boot: p.boots[m]}
}

func (p *pair) state() *quorum.State {
	p.quorum.mu.Lock()
	defer p.quorum.mu.Unlock()
	return p.quorum.state
}

// start begins a life.
func (p *pair) start(m quorum.Member) {
	p.boots[m]++
	began := time.Now()
	store, kept := p.disks[m].begin()
	o := Options{
		Mirror: mirror.Config{
			Agent: group.Config{
				Me: p.me(m), Group: "g", Lease: 500 * time.Millisecond, Renew: 50 * time.Millisecond, Silence: 250 * time.Millisecond,
				Drift: 1000, Revive: time.Second, Retry: 50 * time.Millisecond,
			},
			Position: kept, Copies: 4, CopyBlocks: 16, Settle: 20 * time.Millisecond, Pause: 50 * time.Millisecond, Slowdown: 200, AheadBlocks: 1 << 10,
		},
		Store: store, Now: func() group.Instant { return group.Instant(time.Since(began)) }, Propose: func(c quorum.Command) { go p.quorum.propose(c) },
		Log: slog.New(slog.DiscardHandler), Tick: 5 * time.Millisecond,
	}
	if s, ok := p.disks[m].(*memory); ok {
		o.Act, o.Undo = s.act, s.undo
		o.Stood = func(st group.Standing) { s.set(func() { s.stood = append(s.stood, st) }) }
		o.Healed = func(_ uint32, _, _ int64, err error) { s.set(func() { s.healed = append(s.healed, err) }) }
		o.ResyncBegins = func() error { s.set(func() { s.kept++ }); return nil }
		o.ResyncEnded = func(ok bool) { s.set(func() { s.ended = append(s.ended, ok) }) }
	}
	if d, ok := p.disks[m].(interface{ hooks(*Options) }); ok {
		d.hooks(&o)
	}
	g := Start(o)
	p.mu.Lock()
	p.groups[m] = g
	p.mu.Unlock()
	p.quorum.mu.Lock()
	p.quorum.tell[m] = g
	p.quorum.mu.Unlock()
	g.Decided(p.state())
}

// stop ends a life, by a loss of power if power is set.
func (p *pair) stop(m quorum.Member, power bool) {
	p.quorum.mu.Lock()
	delete(p.quorum.tell, m)
	p.quorum.mu.Unlock()
	p.group(m).Close()
	p.disks[m].end(power)
}

// connect joins the two by TCP.
func (p *pair) connect() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		p.t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		p.t.Fatal(err)
	}
	ga, gb, ia, ib := p.groups["a"], p.groups["b"], p.me("a"), p.me("b")
	if p.secure != nil {
		a, b = tls.Client(a, p.secure), tls.Server(b, p.secure)
	}
	p.links.Go(func() { _ = ga.Attach(a, ib) })
	p.links.Go(func() { _ = gb.Attach(b, ia) })
}

func (p *pair) await(what string, is func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: never; a %+v, b %+v, %+v", what, p.groups["a"].Status(), p.groups["b"].Status(), p.state().Group["g"])
		}
	}
}

// inSync waits for a pair without its link, or with one that ends, to be whole. As a
// node does, it dials again what is not linked: of two connections made at once each
// side may take the other for the newer one, and end the first.
func (p *pair) inSync() {
	p.t.Helper()
	dialed := time.Now()
	p.await("both in sync", func() bool {
		if time.Since(dialed) > 100*time.Millisecond && p.groups["a"].Status().Peer == nil && p.groups["b"].Status().Peer == nil {
			dialed = time.Now()
			p.connect()
		}
		g := p.state().Group["g"]
		return g != nil && g.Has(p.me("a")) && g.Has(p.me("b"))
	})
}

func (p *pair) group(m quorum.Member) *Group {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.groups[m]
}

func (p *pair) volume(m quorum.Member) *Volume {
	return p.group(m).Volume(0, func() int64 { return volumeBytes }, func() bool { return false })
}

// equal holds that the two have the same, when nothing is under way.
func (p *pair) equal() {
	p.t.Helper()
	p.await("equal copies", func() bool {
		return bytes.Equal(p.disks["a"].content(), p.disks["b"].content())
	})
}

// load writes and checks blocks until told to stop, at whichever node serves. It
// returns how many writes were acknowledged.
func (p *pair) load(stop *atomic.Bool, blocks []int64) int {
	acknowledged, at := 0, quorum.Member("a")
	buf, back := make([]byte, BlockSize), make([]byte, BlockSize)
	for n := uint64(1); !stop.Load(); n++ {
		off := blocks[rand.IntN(len(blocks))] * BlockSize
		binary.LittleEndian.PutUint64(buf, n)
		// An operation that was not answered is tried again until one is.
		for !stop.Load() {
			err := p.volume(at).WriteAt(buf, off, 0)
			if err == nil {
				acknowledged++
				err = p.volume(at).ReadAt(back, off)
			}
			if err == nil {
				if !bytes.Equal(buf, back) {
					p.t.Errorf("byte %d: read %d after %d was acknowledged", off, binary.LittleEndian.Uint64(back), n)
				}
				break
			}
			if !errors.Is(err, errMoved) {
				p.t.Errorf("%v", err)
				return acknowledged
			}
			at = map[quorum.Member]quorum.Member{"a": "b", "b": "a"}[at]
			time.Sleep(time.Millisecond)
		}
	}
	return acknowledged
}

// TestMirror writes on the owner and finds it on both.
func TestMirror(t *testing.T) {
	p := newPair(t)
	v := p.volume("a")
	want := bytes.Repeat([]byte("both"), 3*BlockSize/4)
	if err := v.WriteAt(want, 512, 0); err != nil {
		t.Fatal(err)
	}
	if err := v.Trim(512, 512); err != nil {
		t.Fatal(err)
	}
	clear(want[:512])
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := v.ReadAt(got, 512); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read what was not written: %v", err)
	}
	if at, err := v.CompareAndWrite(0, make([]byte, 512), bytes.Repeat([]byte{1}, 512), 0); at != -1 || err != nil {
		t.Errorf("a comparison with what is there: differs at %d, %v", at, err)
	}
	if at, err := v.CompareAndWrite(0, append(bytes.Repeat([]byte{1}, 511), 2), make([]byte, 512), 0); at != 511 || err != nil {
		t.Errorf("a comparison with something else: differs at %d, %v", at, err)
	}
	p.equal()
	if err := p.volume("b").ReadAt(got, 512); !fault.Is(err, fault.Fenced) {
		t.Errorf("the node that does not own the group answered: %v", err)
	}
	if err := v.WriteAt(got, volumeBytes, 0); !fault.Is(err, fault.Invalid) {
		t.Errorf("a write behind the end: %v", err)
	}
}

// TestTakeover kills the owner under load again and again; nothing acknowledged
// is lost, and the copies are equal each time the dead one is back.
func TestTakeover(t *testing.T) {
	takeovers(t, newPair(t))
}

func takeovers(t *testing.T, p *pair) {
	var stop atomic.Bool
	var workers sync.WaitGroup
	var total atomic.Int64
	for i := range 4 { // each has blocks of its own, so that it knows what they hold
		var blocks []int64
		for b := range int64(20) {
			blocks = append(blocks, int64(i)+4*b)
		}
		workers.Go(func() { total.Add(int64(p.load(&stop, blocks))) })
	}
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	for range rounds {
		time.Sleep(50 * time.Millisecond) // some load
		owner := p.state().Group["g"].Owner.Member
		p.stop(owner, rand.IntN(2) == 0)
		p.await("the other owns it", func() bool { return p.state().Group["g"].Owner.Member != owner })
		p.start(owner)
		p.connect()
		p.inSync()
	}
	epoch := p.state().Group["g"].Epoch
	p.groups[p.state().Group["g"].Owner.Member].Move()
	p.await("handed over", func() bool { return p.state().Group["g"].Epoch > epoch })
	time.Sleep(50 * time.Millisecond)
	stop.Store(true)
	workers.Wait()
	p.equal()
	if total.Load() < 100 {
		t.Errorf("only %d writes were acknowledged", total.Load())
	}
}

// TestBrokenDrive breaks the owner's store: the other goes on.
func TestBrokenDrive(t *testing.T) {
	p := newPair(t)
	s := p.disks["a"].(*memory)
	s.mu.Lock()
	s.broken = true
	s.mu.Unlock()
	if err := p.volume("a").WriteAt(make([]byte, BlockSize), 0, 0); !errors.Is(err, errMoved) {
		t.Errorf("a write to a broken drive: %v", err)
	}
	p.await("b owns it", func() bool { return p.groups["b"].Standing().Serving })
	if err := p.volume("b").WriteAt(make([]byte, BlockSize), 0, 0); err != nil {
		t.Error(err)
	}
}

// TestFull has one node refuse what the other has stored already: nothing of it
// is found, on either.
func TestFull(t *testing.T) {
	for _, who := range []quorum.Member{"a", "b"} {
		t.Run(string(who), func(t *testing.T) {
			p := newPair(t)
			v := p.volume("a")
			one, two, back := bytes.Repeat([]byte{1}, BlockSize), bytes.Repeat([]byte{2}, BlockSize), make([]byte, BlockSize)
			if err := v.WriteAt(one, 0, 0); err != nil {
				t.Fatal(err)
			}
			s := p.disks[who].(*memory)
			s.mu.Lock()
			s.full = true
			s.mu.Unlock()
			if err := v.WriteAt(two, 0, 0); err != nil {
				t.Errorf("an overwrite: %v", err)
			}
			if err := v.WriteAt(two, BlockSize, 0); !fault.Is(err, fault.Full) {
				t.Errorf("a write without room: %v", err)
			}
			if _, err := v.CompareAndWrite(2*BlockSize, make([]byte, 512), two[:512], 0); !fault.Is(err, fault.Full) {
				t.Errorf("a comparison that matches, without room: %v", err)
			}
			if err := v.ReadAt(back, BlockSize); err != nil || !bytes.Equal(back, make([]byte, BlockSize)) {
				t.Errorf("the refused write is there, or not even nothing: %v", err)
			}
			p.equal()
			if g := p.state().Group["g"]; len(g.Set) != 2 {
				t.Errorf("%d entries: a full node stays in the set", len(g.Set))
			}
		})
	}
}

// TestCloseWaits: the end of a group waits for the store, which a client may be at itself:
// who closes the group gives the volumes to others.
func TestCloseWaits(t *testing.T) {
	p := newPair(t)
	here := p.disks["a"].(*memory)
	v := p.volume("a")
	here.hangs.Lock()
	before := here.applies.Load()
	wrote := make(chan error, 1)
	go func() { wrote <- v.WriteAt(bytes.Repeat([]byte("late"), BlockSize/4), 0, 0) }()
	p.await("the write is at the store", func() bool { return here.applies.Load() > before })
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		p.groups["a"].Close()
	}()
	select {
	case <-closed:
		t.Error("the group is closed, and its store is at a write")
	case <-time.After(200 * time.Millisecond):
	}
	here.hangs.Unlock()
	<-closed
	if err := <-wrote; err != nil && !fault.Is(err, fault.Fenced) {
		t.Error(err)
	}
}
