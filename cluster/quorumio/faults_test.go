package quorumio

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// gate passes on what goes to a member, or holds it: a cut that nobody is told
// of.
type gate struct {
	l     net.Listener
	to    string
	tasks sync.WaitGroup

	mu    sync.Mutex
	open  sync.Cond
	shut  bool
	ended bool
	conns []net.Conn
}

func newGate(t *testing.T, to string) *gate {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{l: l, to: to}
	g.open.L = &g.mu
	g.tasks.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			g.pass(from)
		}
	})
	t.Cleanup(g.end)
	return g
}

func (g *gate) pass(from net.Conn) {
	to, err := net.Dial("tcp", g.to)
	if err != nil {
		from.Close()
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns = append(g.conns, from, to)
	if g.ended {
		from.Close()
		to.Close()
	}
	for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
		g.tasks.Go(func() {
			_, _ = io.Copy(held{way[1], g}, way[0])
			from.Close()
			to.Close()
		})
	}
}

// held is a writer that waits while its gate is shut.
type held struct {
	net.Conn
	gate *gate
}

func (h held) Write(p []byte) (int, error) {
	h.gate.mu.Lock()
	for h.gate.shut && !h.gate.ended {
		h.gate.open.Wait()
	}
	h.gate.mu.Unlock()
	return h.Conn.Write(p)
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	g.open.Broadcast()
}

func (g *gate) end() {
	g.mu.Lock()
	g.ended = true
	g.open.Broadcast()
	for _, c := range g.conns {
		c.Close()
	}
	g.mu.Unlock()
	g.l.Close()
	g.tasks.Wait()
}

// TestOneWay cuts what goes to the leader, and not what comes from it: it must
// find out by itself, and the others go on. What was asked of it meanwhile ends
// with its caller's patience. Then all is as before.
func TestOneWay(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	b := a.admit("b", quorum.RoleNode)
	w := newSite(t, "w")
	g := newGate(t, w.address)
	w.reached = g.l.Addr().String()
	if _, err := Join(within(t), w.dir, a.invite(quorum.RoleWitness), "w", w.reached, ""); err != nil {
		t.Fatal(err)
	}
	w.up()
	a.voting("w")
	led(t, "w", a, b, w)
	tr := startTraffic(t, "g", a)
	tr.goesOn(t)
	g.set(true)
	eventually(t, "another leads", func() bool { return a.Leader() == b.Leader() && (a.Leader() == "a" || a.Leader() == "b") })
	tr.goesOn(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := w.Propose(ctx, quorum.Command{Kind: quorum.KindSettle, Group: "g", Revision: 1}); !fault.Is(err, fault.Unreachable) {
		t.Errorf("a proposal of who hears nothing: %v", err)
	}
	g.set(false)
	led(t, "w", a, b, w)
	tr.goesOn(t)
	state := a.State()
	for _, name := range tr.end() {
		if a.State().Group[name] == nil {
			t.Errorf("%s is lost", name)
		}
	}
	if state.Boots["w"] != 1 {
		t.Errorf("w is in life %d", state.Boots["w"])
	}
	t.Logf("the longest took %v", tr.took)
}

// TestStall holds up the leader's loop as a disk does that takes two seconds to
// flush: the others go on without it, and it comes back.
func TestStall(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	tr := startTraffic(t, "g", sites[0])
	tr.goesOn(t)
	over := make(chan struct{})
	sites[2].deliver(meddle(func(*loop) {
		time.Sleep(2 * time.Second)
		close(over)
	}))
	eventually(t, "another leads", func() bool { return sites[0].Leader() != "w" && sites[0].Leader() != "" })
	tr.goesOn(t)
	<-over
	led(t, "w", sites...)
	tr.goesOn(t)
	tr.end()
	t.Logf("the longest took %v", tr.took)
}

// waits tells whether a member has something that does not become stable.
func waits(s *site) bool {
	for range 10 {
		if on(s, func(l *loop) int { return l.disk.bytes }) == 0 {
			return false // it was a moment's
		}
		time.Sleep(2 * time.Millisecond)
	}
	return true
}

// TestStableFirst holds up a follower's write, and holds that it acknowledges
// nothing meanwhile: what is not stable yet may be gone with the next moment.
func TestStableFirst(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	a, b, w := sites[0], sites[1], sites[2]
	same(t, sites...)
	acked := func() uint64 { return on(w, func(l *loop) uint64 { return l.raft.Status().Progress[2].Match }) }
	eventually(t, "the leader knows what it has", func() bool { return acked() == w.State().Index })
	end := stall(t, b)
	before := acked()
	if err := a.create("g"); err != nil {
		t.Error(err)
	}
	eventually(t, "the write waits", func() bool { return waits(b) })
	if n := acked(); n != before {
		t.Errorf("it has acknowledged %d, and nothing after %d is stable", n, before)
	}
	end()
	eventually(t, "it goes on", func() bool { return acked() > before && b.State().Group["g"] != nil })
}
