package quorumio

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

const protoEcho = "test-echo/1"

// echo sends back what comes, after the name of who it takes the peer for. With
// hold it reads nothing until that is closed.
type echo struct {
	running atomic.Int64
	hold    chan struct{}
	last    atomic.Pointer[tls.Conn]
}

func (e *echo) serve(conn *tls.Conn, from identity.Peer) {
	e.running.Add(1)
	defer e.running.Add(-1)
	e.last.Store(conn)
	if e.hold != nil {
		<-e.hold
	}
	if _, err := io.WriteString(conn, string(from.Name)+" "); err == nil {
		_, _ = io.Copy(conn, conn)
	}
}

// served restarts a site with an echo.
func served(t *testing.T, s *site) *echo {
	t.Helper()
	e := new(echo)
	s.serve = map[string]func(*tls.Conn, identity.Peer){protoEcho: e.serve}
	s.down()
	s.up()
	return e
}

func dialled(t *testing.T, from *site, to quorum.Member) *tls.Conn {
	t.Helper()
	var conn *tls.Conn
	eventually(t, fmt.Sprintf("%s takes a connection of %s", to, from.name), func() (ok bool) {
		var err error
		if conn, err = from.Dial(within(t), to, protoEcho); err != nil {
			t.Log(err)
		}
		return err == nil
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

func says(t *testing.T, conn *tls.Conn, want string) {
	t.Helper()
	p := make([]byte, len(want))
	if _, err := io.ReadFull(conn, p); err != nil || string(p) != want {
		t.Fatalf("%v: it says %q, not %q", err, p, want)
	}
}

// TestServe has members talk a protocol of their own over the cluster's listener.
func TestServe(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	a, b, w := sites[0], sites[1], sites[2]
	e := served(t, b)
	for _, s := range []*site{a, w} {
		conn := dialled(t, s, "b")
		says(t, conn, string(s.name)+" ")
		time.Sleep(10 * time.Millisecond)
		if _, err := io.WriteString(conn, "hello"); err != nil {
			t.Fatal(err)
		}
		says(t, conn, "hello")
		for _, c := range []net.Conn{conn.NetConn(), e.last.Load().NetConn()} {
			if ms, delay := sockopts(t, c); ms != 2000 || delay {
				t.Errorf("%T: it is given up after %d ms, and delays: %t", c, ms, delay)
			}
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "the handlers have returned", func() bool { return e.running.Load() == 0 })
	for name, tc := range map[string]struct {
		to    quorum.Member
		proto string
		want  fault.Kind
	}{
		"nobody":           {"z", protoEcho, fault.NotFound},
		"itself":           {"a", protoEcho, fault.Invalid},
		"not served there": {"w", protoEcho, fault.Unreachable},
		"another protocol": {"b", "other/1", fault.Unreachable},
	} {
		if _, err := a.Dial(within(t), tc.to, tc.proto); !fault.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.down()
	if _, err := a.Dial(within(t), "b", protoEcho); !fault.Is(err, fault.Unreachable) {
		t.Errorf("down: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Dial(ended, "b", protoEcho); !fault.Is(err, fault.Unreachable) {
		t.Errorf("a caller who has gone: %v", err)
	}
	member := a.Member
	a.down()
	if _, err := member.Dial(within(t), "b", protoEcho); !fault.Is(err, fault.Canceled) {
		t.Errorf("closed: %v", err)
	}
}

// sockopts reads TCP_USER_TIMEOUT and whether Nagle's algorithm is on.
func sockopts(t *testing.T, c net.Conn) (ms int, delay bool) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var no int
	cerr := raw.Control(func(fd uintptr) {
		var e1, e2 error
		ms, e1 = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		no, e2 = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY)
		err = errors.Join(e1, e2)
	})
	if err := errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
	return ms, no == 0
}

// TestServedEnd ends connections with the member at either end, and Close waits
// for the handler.
func TestServedEnd(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	a, b := sites[0], sites[1]
	e := served(t, b)
	ends := func(conn *tls.Conn) chan error {
		c := make(chan error, 1)
		go func() { _, err := conn.Read(make([]byte, 1)); c <- err }()
		return c
	}
	out := dialled(t, a, "b")
	says(t, out, "a ")
	end := ends(out)
	a.down() // it closes what it dialled, although its caller holds it
	if err := <-end; err == nil {
		t.Error("it goes on")
	}
	eventually(t, "the handler has returned", func() bool { return e.running.Load() == 0 })
	a.up()
	out = dialled(t, a, "b")
	says(t, out, "a ")
	end = ends(out)
	b.down()
	if n := e.running.Load(); n != 0 {
		t.Errorf("%d handlers run after Close", n)
	}
	if err := <-end; err == nil {
		t.Error("it goes on")
	}
}

// TestServedEndInStall closes a member whose disk does not flush: its connections
// end at once, although Close waits for the disk.
func TestServedEndInStall(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	b := a.admit("b", quorum.RoleNode)
	served(t, b)
	conn := dialled(t, a, "b")
	says(t, conn, "a ")
	end := stall(t, b)
	go func() { _ = a.create("g") }() // something to write
	eventually(t, "the write waits", func() bool { return waits(b) })
	b.cancel()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it goes on: %v", err)
	}
	end()
}

// TestServedCutOff takes a member out that holds connections both ways.
func TestServedCutOff(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	a, b, w := sites[0], sites[1], sites[2]
	at, back := served(t, b), served(t, a)
	led(t, "w", a, b, w)
	in, out := dialled(t, a, "b"), dialled(t, b, "a")
	says(t, in, "a ")
	says(t, out, "b ")
	// It shall learn nothing of it, so that it is a that cuts it off.
	learn := make(chan struct{})
	defer close(learn)
	b.deliver(meddle(func(*loop) { <-learn }))
	if err := w.RemoveMember(within(t), "b"); err != nil {
		t.Fatal(err)
	}
	for name, conn := range map[string]*tls.Conn{"dialled by the one that stays": in, "dialled by the one that left": out} {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	eventually(t, "the handlers have returned", func() bool { return at.running.Load() == 0 && back.running.Load() == 0 })
	eventually(t, "a knows", func() bool { return a.State().Roll.Members["b"] == nil })
	if _, err := a.Dial(within(t), "b", protoEcho); !fault.Is(err, fault.NotFound) {
		t.Errorf("who has left: %v", err)
	}
	if conn, err := b.transport.dialStream(within(t), a.address, 1, protoEcho); err == nil {
		conn.Close()
		t.Error("who has left is let in")
	}
}

// TestServeStrangers lets nobody through but members by the state.
func TestServeStrangers(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	a.admit("b", quorum.RoleNode)
	e := served(t, a)
	eventually(t, "it hears a leader", func() bool { return a.Leader() != "" })
	other := found(t, "a", 0)
	for name, id := range map[string]*identity.Identity{
		"another cluster":                 other.id,
		"the right name, another key":     rogue(t, a, "b", 2),
		"a number that was not given out": rogue(t, a, "z", 9),
		"the number of who asks":          rogue(t, a, "a", 1),
	} {
		ctx, cancel := context.WithCancel(t.Context())
		tr := newTransport(ctx, id, 1, a.options().Log, nil)
		conn, err := tr.dialStream(ctx, a.address, 1, protoEcho)
		if err == nil {
			conn.Close()
			t.Errorf("%s is let in", name)
		}
		cancel()
	}
	if n := e.running.Load(); n != 0 {
		t.Errorf("%d handlers were called", n)
	}
	for name, serve := range map[string]map[string]func(*tls.Conn, identity.Peer){
		"the members' own": {identity.ProtoPeer: e.serve},
		"the joiners'":     {identity.ProtoJoin: e.serve},
		"no handler":       {"x/1": nil},
		"no name":          {"": e.serve},
	} {
		o := a.options()
		o.Dir, o.Serve = t.TempDir(), serve
		if _, err := Open(o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestServedBound refuses connections beyond the bound, and takes them again.
func TestServedBound(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	b := a.admit("b", quorum.RoleNode)
	e := served(t, a)
	var conns []*tls.Conn
	for range servedMax {
		conns = append(conns, dialled(t, b, "a"))
	}
	if _, err := b.Dial(within(t), "a", protoEcho); !fault.Is(err, fault.Unreachable) {
		t.Errorf("one more: %v", err)
	}
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "the handlers have returned", func() bool { return e.running.Load() == 0 })
	says(t, dialled(t, b, "a"), "b ")
}

// TestSlowReader ends a connection whose peer runs and reads nothing.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	b := a.admit("b", quorum.RoleNode)
	e := served(t, a)
	block := make(chan struct{})
	defer close(block)
	e.hold = block
	a.down()
	a.up()
	conn := dialled(t, b, "a")
	began := time.Now()
	for p := make([]byte, 64<<10); ; {
		if _, err := conn.Write(p); err != nil {
			break
		}
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("it was noticed after %v", d)
	}
}

// TestListenDefault comes back at the address that the state has, and one that
// has joined begins there, without being told.
func TestListenDefault(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	j := newSite(t, "j")
	if _, err := Join(within(t), j.dir, a.invite(quorum.RoleNode), "j", j.address, ""); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*site{j, a} {
		address := s.address
		s.down()
		s.address = ""
		s.up()
		if s.Address() != address {
			t.Errorf("%s is at %s, was at %s", s.name, s.Address(), address)
		}
		if s == j {
			a.voting("j")
		}
	}
	if err := j.create("g"); err != nil {
		t.Error(err)
	}
}

// TestReachable tells who is heard.
func TestReachable(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	a, b := sites[0], sites[1]
	served(t, a)
	hears := func(s *site, names ...quorum.Member) func() bool {
		return func() bool {
			r := s.Reachable()
			for _, n := range names {
				if w, ok := r[n]; !ok || w.Age > 2*time.Second {
					return false
				}
			}
			_, self := r[s.name]
			return len(r) == 2 && !self
		}
	}
	eventually(t, "all hear the others", func() bool { return hears(a, "b", "w")() && hears(b, "a", "w")() && hears(sites[2], "a", "b")() })
	time.Sleep(1500 * time.Millisecond) // followers have nothing to say to one another
	if !hears(a, "b", "w")() {
		t.Errorf("a hears %v", a.Reachable())
	}
	b.down()
	eventually(t, "b is not heard", func() bool { return a.Reachable()["b"].Age > 2*time.Second })
	// Somebody with its certificate speaks in its place: that is not the member.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	id, err := identity.Load(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := newTransport(ctx, id, 1, a.options().Log, nil).dialStream(ctx, a.address, 1, protoEcho)
	if err != nil {
		t.Fatal(err)
	}
	says(t, conn, "b ")
	conn.Close()
	if d := a.Reachable()["b"]; d.Age < 2*time.Second {
		t.Errorf("b is down, and was heard %v ago", d)
	}
	if !hears(a, "w")() {
		t.Errorf("a hears %v", a.Reachable())
	}
	if err := a.RemoveMember(within(t), "b"); err != nil {
		t.Fatal(err)
	}
	if _, there := a.Reachable()["b"]; there {
		t.Error("who has left is told of")
	}
}

// TestEdit changes the inventory by way of each member at once: of those that
// looked at the same revision one wins, and who was told so sees it.
func TestEdit(t *testing.T) {
	t.Parallel()
	sites := three(t, 8)
	const each = 15
	var all sync.WaitGroup
	for _, s := range sites {
		all.Go(func() {
			for n := 0; n < each; {
				key := fmt.Sprintf("%s/%d", s.name, n)
				base := s.State().Inventory.Revision
				err := s.Edit(within(t), base, quorum.Edit{Key: key, Value: []byte(key)})
				now := s.State().Inventory
				switch {
				case err == nil:
					if now.Revision <= base || string(now.Entries[key]) != key {
						t.Errorf("%s was set, and %s does not see it", key, s.name)
					}
					n++
				case fault.Is(err, fault.Stale):
					if now.Revision <= base {
						t.Errorf("%s was told that there is a newer one, and does not see it", s.name)
					}
				default:
					t.Error(err)
					n = each
				}
			}
		})
	}
	all.Wait()
	if i := same(t, sites...).Inventory; len(i.Entries) != 3*each || i.Revision != 3*each {
		t.Errorf("%d entries at revision %d", len(i.Entries), i.Revision)
	}
}

// TestEditLarge fills the inventory to its bound, and has a member take it as a
// snapshot.
func TestEditLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("short: it is much to write, and takes a minute with the race detector")
	}
	t.Parallel()
	sites := three(t, 16)
	a, b := sites[0], sites[1]
	b.down()
	value := make([]byte, quorum.InventoryValueBytesMax-16)
	for n := range quorum.InventoryBytesMax / quorum.InventoryValueBytesMax {
		if err := a.Edit(within(t), quorum.Revision(n), quorum.Edit{Key: fmt.Sprintf("k%07d", n), Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Edit(within(t), a.State().Inventory.Revision, quorum.Edit{Key: "more", Value: value}); !fault.Is(err, fault.Limit) {
		t.Errorf("more: %v", err)
	}
	edits := make([]quorum.Edit, 4)
	for i := range edits {
		edits[i] = quorum.Edit{Key: fmt.Sprint(i), Value: value}
	}
	if err := a.Edit(within(t), 0, edits...); !fault.Is(err, fault.Limit) {
		t.Errorf("a command too large: %v", err)
	}
	b.up()
	eventually(t, "it has caught up", func() bool { return b.State().Inventory.Revision == a.State().Inventory.Revision })
	if err := b.Edit(within(t), b.State().Inventory.Revision, quorum.Edit{Key: "k0000000"}, quorum.Edit{Key: "new", Value: []byte("x")}); err != nil {
		t.Error(err)
	}
	for _, s := range sites {
		s.down()
	}
	for _, s := range sites {
		s.up()
	}
	for _, s := range sites { // each begins with what its last snapshot has
		eventually(t, "its life has begun", func() bool { return s.State().Boots[s.name] == s.Self().Boot })
	}
	if i := same(t, sites...).Inventory; i.Entries["k0000000"] != nil || string(i.Entries["new"]) != "x" {
		t.Errorf("%d entries at revision %d", len(i.Entries), i.Revision)
	}
}

// TestListenAt: a member answers at another address as well, for as long as it is to.
func TestListenAt(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	a, b := sites[0], sites[1]
	served(t, a)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := a.Listen(address); !fault.Is(err, fault.Busy) {
		t.Errorf("listened where another does: %v", err)
	}
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Listen(address); err != nil {
		t.Fatal(err)
	}
	dialledAt := func(name quorum.Member) (conn *tls.Conn, err error) {
		eventually(t, "the members know one another", func() bool {
			conn, err = b.DialAt(within(t), name, address, protoEcho)
			return err == nil || name != "a"
		})
		return conn, err
	}
	conn, err := dialledAt("a")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	says(t, conn, "b ")
	if _, err := dialledAt("w"); !fault.Is(err, fault.Unreachable) {
		t.Errorf("a was taken for w: %v", err)
	}
	a.Unlisten(address)
	if _, err := b.DialAt(within(t), "a", address, protoEcho); !fault.Is(err, fault.Unreachable) {
		t.Errorf("dialled where nobody listens any more: %v", err)
	}
	if _, err := io.WriteString(conn, "still"); err != nil {
		t.Fatal(err)
	}
	says(t, conn, "still")
}
