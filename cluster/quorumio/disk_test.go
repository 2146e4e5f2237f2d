package quorumio

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/raft/v3"

	"steadfast/cluster/quorum"
)

// on runs f on a member's loop and returns what it says.
func on[T any](s *site, f func(*loop) T) T {
	c := make(chan T, 1)
	s.deliver(meddle(func(l *loop) { c <- f(l) }))
	return <-c
}

// stall holds up a member's disk until the end: bbolt has one writer at a time.
func stall(t *testing.T, s *site) (end func()) {
	t.Helper()
	tx, err := on(s, func(l *loop) *bolt.DB { return l.store.db }).Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return end
}

// term returns the term that a member is in.
func term(s *site) uint64 {
	return on(s, func(l *loop) uint64 { return l.raft.BasicStatus().HardState.GetTerm() })
}

// steady proposes by way of a site, one after another, until stop. It fails when
// any is not decided, and counts those that are.
func steady(stop context.Context, t *testing.T, s *site, prefix string, decided *atomic.Int64) {
	for n := 0; stop.Err() == nil; n++ {
		if err := s.touch(fmt.Sprint(prefix, n)); err != nil {
			t.Errorf("by way of %s: %v", s.name, err)
			return
		}
		decided.Add(1)
	}
}

// TestDiskStalls has the disk of each member in turn take two seconds to flush,
// while all propose: nobody is made leader, everything is decided, and only who
// proposes by way of that member waits for it.
func TestDiskStalls(t *testing.T) {
	t.Parallel()
	// With a log that is seldom compacted: who falls so far behind that it needs a
	// snapshot learns the state, and not what became of its own proposals.
	trio := three(t, 0)
	a := found(t, "a", 0)
	equals := []*site{a, a.admit("b", quorum.RoleNode), a.admit("c", quorum.RoleNode)}
	led(t, "a", equals...)
	for _, tc := range []struct {
		name   string
		sites  []*site
		victim int
	}{
		{"the witness, which leads", trio, 2},
		{"a node", trio, 0},
		{"the other node", trio, 1},
		{"a node that leads", equals, 0},
		{"a node that follows a node", equals, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sites, victim := tc.sites, tc.sites[tc.victim]
			leader, before := sites[0].Leader(), term(sites[0])
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var all sync.WaitGroup
			decided := make([]atomic.Int64, len(sites))
			for i, s := range sites {
				all.Go(func() { steady(ctx, t, s, fmt.Sprintf("%s-%s-", tc.name, s.name), &decided[i]) })
			}
			progress := func(i int) { // a few more
				n := decided[i].Load() + 5
				eventually(t, fmt.Sprintf("proposals by way of %s go on", sites[i].name), func() bool { return decided[i].Load() >= n })
			}
			progress(tc.victim)
			began, end := time.Now(), stall(t, victim)
			for i := range sites {
				if i != tc.victim {
					progress(i)
				}
			}
			during := time.Since(began)
			time.Sleep(2*time.Second - during)
			end()
			progress(tc.victim)
			cancel()
			all.Wait()
			for _, s := range sites {
				if got := term(s); got != before || s.Leader() != leader {
					t.Errorf("%s follows %s in term %d; it was %s in %d", s.name, s.Leader(), got, leader, before)
				}
			}
			t.Logf("the others went on after %v of two seconds", during)
		})
	}
	for _, sites := range [][]*site{trio, equals} {
		same(t, sites...)
	}
}

// powerLoss ends a member whose disk is stalled by end, and has its directory be
// what the disk has at that moment.
func powerLoss(t *testing.T, s *site, end func()) {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	// The loop ends while the write is under way, which it never hears of.
	ended := on(s, func(l *loop) *Member { l.m.cancel(); return l.m })
	eventually(t, "the loop has ended", func() bool {
		select {
		case ended.inbox <- meddle(func(*loop) {}):
			return false
		default:
			return true // nobody takes anything any more
		}
	})
	end()
	s.down()
	s.dir = copied
}

// TestPowerLossInStall takes the power from each member in turn while its disk
// does not flush: what it has said then, it knows when it comes back.
func TestPowerLossInStall(t *testing.T) {
	t.Parallel()
	sites := three(t, 16)
	a, b, w := sites[0], sites[1], sites[2]
	for i, roles := range [][3]*site{{w, a, b}, {a, b, w}, {b, a, w}, {w, b, a}} {
		victim, other, third := roles[0], roles[1], roles[2]
		tr := startTraffic(t, fmt.Sprintf("t%d-", i), other)
		tr.goesOn(t)
		end := stall(t, victim)
		tr.goesOn(t)
		tr.goesOn(t)
		powerLoss(t, victim, end)
		tr.goesOn(t)
		victim.up()
		led(t, "w", sites...)
		tr.goesOn(t)
		acked := tr.end()
		// The other that was there dies as well: what is left must know all of it.
		eventually(t, "it has caught up", func() bool { return victim.State().Index >= other.State().Index })
		third.down()
		state := same(t, victim, other)
		for _, name := range acked {
			if state.Group[name] == nil {
				t.Errorf("%s was decided and is lost", name)
			}
		}
		third.up()
		led(t, "w", sites...)
	}
}

// TestVoteWaits has the leader die while one of the two that are left has a disk
// that does not flush: its vote would be forgotten with the power, so there is no
// leader until it flushes.
func TestVoteWaits(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	a, b, w := sites[0], sites[1], sites[2]
	same(t, sites...)
	end := stall(t, b)
	w.down()
	leads := func(s *site) bool {
		return on(s, func(l *loop) bool { return l.raft.BasicStatus().RaftState == raft.StateLeader })
	}
	for stop := time.Now().Add(2 * time.Second); time.Now().Before(stop); time.Sleep(10 * time.Millisecond) {
		if leads(a) || leads(b) {
			t.Fatal("it was elected by a vote that is not stable")
		}
	}
	end()
	eventually(t, "one leads", func() bool { return leads(a) || leads(b) })
	if err := a.create("g"); err != nil {
		t.Error(err)
	}
}

// TestCandidateWaits has a member asked to lead whose disk does not flush: it asks
// nobody for a vote in a term that it may forget.
func TestCandidateWaits(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	b := a.admit("b", quorum.RoleNode)
	c := a.admit("c", quorum.RoleNode)
	led(t, "a", a, b, c)
	same(t, a, b, c)
	before := term(a)
	end := stall(t, b)
	a.deliver(meddle(func(l *loop) { l.raft.TransferLeader(2) }))
	eventually(t, "it begins a term", func() bool { return term(b) > before })
	for stop := time.Now().Add(time.Second); time.Now().Before(stop); time.Sleep(10 * time.Millisecond) {
		if n := term(c); n != before {
			t.Fatalf("it was asked for a vote in term %d, which nobody has on disk", n)
		}
	}
	// Whoever leads then, it goes on.
	end()
	for _, s := range []*site{a, b, c} {
		if err := s.create("g-" + string(s.name)); err != nil {
			t.Error(err)
		}
	}
}

// TestDiskFull holds up a disk for so long that what waits for it is at its
// bound: the loop takes no more in, and goes on when there is room.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	end := stall(t, a)
	done := make(chan error, 2)
	go func() { done <- a.create("g") }()
	eventually(t, "the write waits", func() bool { return waits(a) })
	on(a, func(l *loop) bool {
		for !l.disk.full() {
			l.disk.put(job{})
		}
		return true
	})
	time.Sleep(50 * time.Millisecond) // what came in the same turn is taken
	go func() { done <- a.create("h") }()
	select {
	case err := <-done:
		t.Errorf("it was decided: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if len(a.inbox) == 0 {
		t.Error("the loop takes proposals in")
	}
	end()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	eventually(t, "nothing is counted that does not wait", func() bool { return on(a, func(l *loop) int { return l.disk.bytes }) == 0 })
}
