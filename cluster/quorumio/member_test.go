package quorumio

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// TestLives kills and reopens each of three in turn while the others go on.
// Nothing that was decided is lost, and the witness leads whenever it can.
func TestLives(t *testing.T) {
	t.Parallel()
	sites := three(t, 16) // small: snapshots happen all the time
	for _, s := range sites {
		if err := s.touch("by-" + string(s.name)); err != nil {
			t.Fatalf("by way of %s: %v", s.name, err)
		}
	}
	var acked []string
	for i, victim := range sites {
		tr := startTraffic(t, fmt.Sprintf("t%d-", i), sites[(i+1)%2])
		tr.goesOn(t)
		boot := victim.Self().Boot
		victim.down()
		tr.goesOn(t)
		victim.up()
		if victim.Self().Boot != boot+1 {
			t.Errorf("%s is in life %d after %d", victim.name, victim.Self().Boot, boot)
		}
		eventually(t, "it has begun its life", func() bool { return sites[(i+1)%2].State().Boots[victim.name] == boot+1 })
		tr.goesOn(t)
		acked = append(acked, tr.end()...)
		led(t, "w", sites...)
	}
	// All die at once.
	for _, s := range sites {
		s.down()
	}
	for _, s := range sites {
		s.up()
	}
	led(t, "w", sites...)
	// What is decided anew comes after all that was before: until then they may have one
	// state that lacks the last of it.
	if err := sites[0].touch("after"); err != nil {
		t.Fatal(err)
	}
	state := same(t, sites...)
	for _, name := range append(acked, "by-a", "by-b") {
		if state.Group[name] == nil {
			t.Errorf("%s was decided and is lost", name)
		}
	}
	for _, s := range sites[1:] {
		if diff := cmp.Diff(state, s.State()); diff != "" && s.State().Index == state.Index {
			t.Errorf("%s has another state:\n%s", s.name, diff)
		}
	}
}

// TestLeaderKilled measures how long proposals wait when the leader dies.
func TestLeaderKilled(t *testing.T) {
	sites := three(t, 0)
	tr := startTraffic(t, "g", sites[0])
	tr.goesOn(t)
	sites[2].down()
	tr.goesOn(t)
	sites[2].up()
	led(t, "w", sites...)
	tr.goesOn(t)
	tr.end()
	t.Logf("%d decisions, the longest took %v", tr.count(), tr.took)
	if tr.took > 2*time.Second {
		t.Errorf("a proposal took %v", tr.took)
	}
}

// TestManyAtOnce has every member propose a lot at once: each outcome finds its
// proposer, and each is applied once.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	const each = 60
	var all sync.WaitGroup
	for _, s := range sites[:2] {
		for i := range each {
			all.Go(func() {
				// Both want the same groups: one of them is told that it exists.
				if err := s.create(fmt.Sprint("g", i)); err != nil && !fault.Is(err, fault.Exists) {
					t.Errorf("%s: %v", s.name, err)
				}
			})
		}
	}
	all.Wait()
	state := same(t, sites...)
	if len(state.Group) != each {
		t.Errorf("%d groups", len(state.Group))
	}
	for name, g := range state.Group {
		if g.Revision != 1 {
			t.Errorf("%s: %+v", name, g)
		}
	}
}

// TestPropose goes through what a proposer can be told.
func TestPropose(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	b := a.admit("b", quorum.RoleNode)
	if err := a.create("g"); err != nil {
		t.Fatal(err)
	}
	by := func(s *site) quorum.Incarnation { return s.Self() }
	for name, tc := range map[string]struct {
		c    quorum.Command
		want fault.Kind
	}{
		"again":         {quorum.Command{Kind: quorum.KindCreate, Group: "g"}, fault.Exists},
		"late":          {quorum.Command{Kind: quorum.KindSettle, Group: "g", Revision: 9}, fault.Stale},
		"not entitled":  {quorum.Command{Kind: quorum.KindSucceed, Group: "g", Revision: 1}, fault.Denied},
		"for another":   {quorum.Command{Kind: quorum.KindSettle, Group: "g", By: by(b)}, fault.Invalid},
		"membership":    {quorum.Command{Kind: quorum.KindLeave, Revision: 1, Change: &quorum.Change{Name: "b"}}, fault.Invalid},
		"too large":     {quorum.Command{Kind: quorum.KindCreate, Group: string(make([]byte, proposalBytesMax))}, fault.Limit},
		"begun already": {quorum.Command{Kind: quorum.KindBoot}, fault.Stale},
	} {
		if err := a.Propose(within(t), tc.c); !fault.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Without a majority nothing is decided, and the caller is told when it tires.
	b.down()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := a.Propose(ctx, quorum.Command{Kind: quorum.KindCreate, Group: "h"}); !fault.Is(err, fault.Unreachable) {
		t.Errorf("alone: %v", err)
	}
	result := make(chan error, 1)
	member := a.Member
	go func() {
		result <- member.Propose(context.Background(), quorum.Command{Kind: quorum.KindCreate, Group: "i"})
	}()
	a.down()
	if err := <-result; !fault.Is(err, fault.Canceled) {
		t.Errorf("closed: %v", err)
	}
}

// TestWatch sees states in order, the newest in the end, and ends.
func TestWatch(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	var mu sync.Mutex
	var seen []uint64
	stop := a.Watch(func(s *quorum.State) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, s.Index)
	})
	for i := range 10 {
		if err := a.create(fmt.Sprint("g", i)); err != nil {
			t.Fatal(err)
		}
	}
	before := a.State()
	eventually(t, "the watcher has seen the newest", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(seen) > 0 && seen[len(seen)-1] == a.State().Index
	})
	mu.Lock()
	for i := range seen[1:] {
		if seen[i+1] <= seen[i] {
			t.Errorf("it saw %v", seen)
		}
	}
	mu.Unlock()
	stop()
	groups := len(before.Group)
	if err := a.create("later"); err != nil || len(before.Group) != groups || before.Group["later"] != nil {
		t.Errorf("a state has changed: %v", err)
	}
}

// TestFailedWrite ends a member whose log cannot be written: it can prove
// nothing any more. The others go on.
func TestFailedWrite(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	a, b := sites[0], sites[1]
	acked := func() uint64 { return on(sites[2], func(l *loop) uint64 { return l.raft.Status().Progress[2].Match }) }
	eventually(t, "it has acknowledged something to this leader", func() bool { return acked() > 0 })
	// The file is closed under it: whatever is written from now on fails.
	spoil(t, b)
	go func() { _ = a.Propose(context.Background(), quorum.Command{Kind: quorum.KindCreate, Group: "g"}) }()
	select {
	case err := <-b.Failed():
		if !fault.Is(err, fault.Failed) {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it goes on without a log")
	}
	if err := b.create("h"); !fault.Is(err, fault.Failed) {
		t.Errorf("a proposal there: %v", err)
	}
	if err := a.create("i"); err != nil {
		t.Errorf("the others: %v", err)
	}
	// It has acknowledged nothing that it does not have.
	b.down()
	has := lastIndex(t, b)
	led(t, "w", a, sites[2])
	if n := acked(); n > has || n == 0 {
		t.Errorf("it has up to %d, and has acknowledged %d", has, n)
	}
}

// TestOpenRefused goes through directories that hold no member that could live.
func TestOpenRefused(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	if err := a.create("g"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(a.options()); !fault.Is(err, fault.Busy) {
		t.Errorf("while it runs: %v", err)
	}
	if _, err := Found(a.dir, "a", a.address); !fault.Is(err, fault.Exists) {
		t.Errorf("found again: %v", err)
	}
	if _, err := Found(t.TempDir(), "a", "nowhere"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a bad address: %v", err)
	}
	a.down()
	empty := a.options()
	empty.Dir = t.TempDir()
	if _, err := Open(empty); !fault.Is(err, fault.NotFound) {
		t.Errorf("an empty directory: %v", err)
	}
	mute := a.options()
	mute.Log = nil
	if _, err := Open(mute); !fault.Is(err, fault.Invalid) {
		t.Errorf("no logger: %v", err)
	}
	other := found(t, "x", 0)
	taken := a.options()
	taken.Listen = other.address
	if _, err := Open(taken); !fault.Is(err, fault.Busy) {
		t.Errorf("an address that is taken: %v", err)
	}
	every := a.options()
	_, port, _ := net.SplitHostPort(a.address)
	every.Listen = net.JoinHostPort("", port)
	m, err := Open(every) // it has not suffered
	if err != nil {
		t.Fatal(err)
	}
	if m.Address() != a.address {
		t.Errorf("listening everywhere, it is reached at %s", m.Address())
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	path := filepath.Join(a.dir, storeFile)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(a.options()); !fault.Is(err, fault.Corrupt) {
		t.Errorf("without its log: %v", err)
	}
}

// TestOldCopy ends a member that runs on a copy of its directory from before a
// later life: it has forgotten what it promised.
func TestOldCopy(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	b := a.admit("b", quorum.RoleNode)
	c := a.admit("c", quorum.RoleNode)
	led(t, "a", a, b, c)
	c.down()
	copied := t.TempDir()
	if err := os.CopyFS(filepath.Join(copied, "c"), os.DirFS(c.dir)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c.up()
		eventually(t, "its life has begun", func() bool { return a.State().Boots["c"] == c.Self().Boot })
		c.down()
	}
	c.dir = filepath.Join(copied, "c")
	c.up()
	select {
	case err := <-c.Failed():
		// By its number, or because it lacks what the leader knows it to have had.
		if !fault.Is(err, fault.Stale) && !fault.Is(err, fault.Corrupt) {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the copy lives")
	}
}
