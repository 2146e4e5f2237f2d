package aliasio

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	mdl "github.com/mdlayher/netlink"

	"steadfast/internal/netnstest"
)

// sessionsOf reads a node's sessions from outside, as its peer would have them
// from the mirrored table.
func sessionsOf(t testing.TB, ns *netnstest.NS, a Alias) []Session {
	t.Helper()
	var all []Session
	err := withDiag(ns.Fd(), func(conn *mdl.Conn) error {
		sockets, err := listSockets(conn, a.Address.Addr(), stateEstablished)
		for _, s := range sockets {
			all = append(all, s.Session)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestTakeover kills or stops the owner of an alias and has the other node take
// it over. The client waits in read(2); it is without service from the owner's
// end until it has an answer from the new one.
func TestTakeover(t *testing.T) {
	const grant = 600 * time.Millisecond
	for _, tc := range []struct {
		name  string
		alias Alias
		end   func(*owner)
		// after is when the new owner may act: at once with a proof of death, after
		// the grant without.
		after time.Duration
	}{
		{"kill -9, IPv4", alias4, (*owner).kill, 0},
		{"kill -9, IPv6", alias6, (*owner).kill, 0},
		{"SIGSTOP, IPv4", alias4, (*owner).stop, grant},
		{"SIGSTOP, IPv6", alias6, (*owner).stop, grant},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			first := startOwner(t, w.a, tc.alias)
			b := openAt(t, w.b, Options{Tickle: []time.Duration{3 * time.Millisecond, 20 * time.Millisecond}})
			serve(t, w.b)
			conn := dial(t, w.client, tc.alias)
			exchange(t, conn)
			sessions := sessionsOf(t, w.a, tc.alias)
			want := Session{Alias: netip.AddrPortFrom(tc.alias.Address.Addr(), port), Client: addrPort(conn.LocalAddr())}
			if len(sessions) != 1 || sessions[0] != want {
				t.Fatalf("the owner's sessions are %v, want %v", sessions, want)
			}
			ended := wait(conn)

			end := time.Now()
			tc.end(first)
			if tc.after > 0 {
				<-time.After(time.Until(end.Add(tc.after + LateMax)))
			}
			hold(t, b, tc.alias)
			held := time.Now()
			still(t, ended)
			if err := b.Tickle(t.Context(), sessions); err != nil {
				t.Error(err)
			}
			gone := reset(t, ended)
			t.Logf("held after %v; the client's read ended %v after that", held.Sub(end), gone.Sub(held))
		})
	}
}

// TestTiredClient tickles a client whose kernel has just answered a wrong ACK,
// and keeps quiet about others for half a second.
func TestTiredClient(t *testing.T) {
	for _, a := range []Alias{alias4, alias6} {
		w := newWorld(t)
		first := startOwner(t, w.a, a)
		b := openAt(t, w.b, Options{Tickle: []time.Duration{0, 20 * time.Millisecond}})
		conn := dial(t, w.client, a)
		exchange(t, conn)
		sessions := sessionsOf(t, w.a, a)
		wrong, err := openTickler(Options{Namespace: w.a.Fd(), MarkClean: b.options.MarkClean})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(wrong.send(sessions[0], 0), wrong.close()); err != nil {
			t.Fatal(err)
		}
		exchange(t, conn) // the owner knows the connection, which goes on
		ended := wait(conn)
		first.kill()
		hold(t, b, a)
		held := time.Now()
		if err := b.Tickle(t.Context(), sessions); err != nil {
			t.Error(err)
		}
		gone := reset(t, ended).Sub(held)
		t.Logf("the client's read ended %v after the alias was held", gone)
		if gone > 400*time.Millisecond {
			t.Errorf("only the limit's end brought an answer, after %v", gone)
		}
	}
}

// TestServiceGap measures what a client misses beyond the grant's end.
func TestServiceGap(t *testing.T) {
	w := newWorld(t)
	first := startOwner(t, w.a, alias4)
	b := openAt(t, w.b, Options{Tickle: []time.Duration{3 * time.Millisecond, 20 * time.Millisecond}})
	serve(t, w.b)
	conn := dial(t, w.client, alias4)
	exchange(t, conn)
	sessions := sessionsOf(t, w.a, alias4)
	ended := wait(conn)

	end := time.Now()
	first.stop()
	may := end.Add(b.options.Grant)
	<-time.After(time.Until(may.Add(LateMax)))
	hold(t, b, alias4)
	ctx, cancel := context.WithCancel(t.Context())
	var tickles sync.WaitGroup
	tickles.Go(func() { _ = b.Tickle(ctx, sessions) })
	defer tickles.Wait()
	defer cancel()
	reset(t, ended)
	exchange(t, dial(t, w.client, alias4))
	beyond := time.Since(may)
	t.Logf("without service for %v: %v beyond the end of the grant", time.Since(end), beyond)
	if beyond > 500*time.Millisecond { // 50 ms on a machine that has nothing else to do
		t.Errorf("%v beyond the end of the grant", beyond)
	}
}

// TestKillUnderLoad kills owners whose clients never stop sending: none of them
// may hear of it, by a FIN or by a reset, before there is a new owner.
func TestKillUnderLoad(t *testing.T) {
	w := newWorld(t)
	b := openAt(t, w.b, Options{Tickle: []time.Duration{3 * time.Millisecond, 20 * time.Millisecond}})
	serve(t, w.b)
	for range 5 {
		first := startOwner(t, w.a, alias4)
		const clients = 8
		var loads []*load
		for range clients {
			loads = append(loads, startLoad(dial(t, w.client, alias4)))
		}
		sessions := sessionsOf(t, w.a, alias4)
		if len(sessions) != clients {
			t.Errorf("%d sessions, want %d", len(sessions), clients)
		}
		first.kill()
		for _, l := range loads {
			still(t, l.ended)
		}
		hold(t, b, alias4)
		held := time.Now()
		if err := b.Tickle(t.Context(), sessions); err != nil {
			t.Error(err)
		}
		var last time.Time
		for _, l := range loads {
			if at := reset(t, l.ended); at.After(last) {
				last = at
			}
			l.close()
		}
		t.Logf("all %d clients were reset %v after the alias was held", clients, last.Sub(held))
		if err := b.Release(alias4.Address.Addr()); err != nil {
			t.Fatal(err)
		}
	}
}

// load is a client that sends and receives all the time.
type load struct {
	conn  *net.TCPConn
	work  sync.WaitGroup
	ended chan ending
}

func startLoad(conn *net.TCPConn) *load {
	l := &load{conn: conn, ended: make(chan ending, 2)}
	for _, copied := range []func() (int64, error){
		func() (int64, error) { return io.Copy(conn, endless{}) },
		func() (int64, error) { return io.Copy(io.Discard, conn) },
	} {
		l.work.Go(func() {
			_, err := copied()
			if err == nil {
				err = io.EOF
			}
			l.ended <- ending{time.Now(), err}
		})
	}
	return l
}

func (l *load) close() {
	_ = l.conn.Close()
	l.work.Wait()
}

// endless is a stream of zeros that a connection's end ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
