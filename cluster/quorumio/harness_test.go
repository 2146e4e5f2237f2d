package quorumio

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/internal/freeport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a condition may take on a machine that others use too.
const patience = time.Minute

// site is a member's place: its directory and address outlive its lives.
type site struct {
	t       *testing.T
	name    quorum.Member
	dir     string
	address string
	reached string // where its peers reach it, when that is elsewhere
	compact uint64
	serve   map[string]func(*tls.Conn, identity.Peer)
	*Member // nil while it is down
}

// freeAddress returns an address that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	a, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newSite(t *testing.T, name quorum.Member) *site {
	t.Helper()
	s := &site{t: t, name: name, dir: t.TempDir(), address: freeAddress(t)}
	t.Cleanup(s.down)
	return s
}

// found makes a cluster of one.
func found(t *testing.T, name quorum.Member, compact uint64) *site {
	t.Helper()
	s := newSite(t, name)
	s.compact = compact
	if _, err := Found(s.dir, name, s.address); err != nil {
		t.Fatal(err)
	}
	s.up()
	return s
}

func (s *site) options() Options {
	return Options{
		Dir: s.dir, Listen: s.address, Address: s.reached, CompactEvery: s.compact, Serve: s.serve,
		Log: slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

func (s *site) up() {
	s.t.Helper()
	m, err := Open(s.options())
	if err != nil {
		s.t.Fatal(err)
	}
	s.Member = m
}

// down kills the member: Close says no goodbye.
func (s *site) down() {
	s.t.Helper()
	if s.Member == nil {
		return
	}
	if err := s.Close(); err != nil {
		s.t.Error(err)
	}
	s.Member = nil
}

// invite makes a token at s.
func (s *site) invite(role quorum.Role) identity.Token {
	s.t.Helper()
	tok, err := s.Invite(within(s.t), role, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	return tok
}

// admit has a new member join by way of s, and waits until it votes.
func (s *site) admit(name quorum.Member, role quorum.Role) *site {
	s.t.Helper()
	j := newSite(s.t, name)
	j.compact = s.compact
	if _, err := Join(within(s.t), j.dir, s.invite(role), name, j.address, ""); err != nil {
		s.t.Fatal(err)
	}
	j.up()
	s.voting(name)
	return j
}

func (s *site) voting(name quorum.Member) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%s votes", name), func() bool {
		r := s.State().Roll.Members[name]
		return r != nil && r.Voter
	})
}

// three makes the cluster that the product is: nodes a and b, witness w.
func three(t *testing.T, compact uint64) []*site {
	t.Helper()
	a := found(t, "a", compact)
	sites := []*site{a, a.admit("b", quorum.RoleNode), a.admit("w", quorum.RoleWitness)}
	led(t, "w", sites...)
	return sites
}

// led waits until all agree that a member leads.
func led(t *testing.T, name quorum.Member, sites ...*site) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s leads", name), func() bool {
		for _, s := range sites {
			if s.Leader() != name {
				return false
			}
		}
		return true
	})
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in %v it did not come about that %s", patience, what)
		}
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// create makes a group by way of s: something that can be looked for later.
func (s *site) create(group string) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	return s.Propose(ctx, quorum.Command{Kind: quorum.KindCreate, Group: group})
}

// touch makes a group by way of s; a witness makes none, and it is enough that
// it is told so.
func (s *site) touch(group string) error {
	err := s.create(group)
	if s.name == "w" && fault.Is(err, fault.Denied) {
		return nil
	}
	return err
}

// same waits until all have the same state, and returns it.
func same(t *testing.T, sites ...*site) *quorum.State {
	t.Helper()
	eventually(t, "all have one state", func() bool {
		for _, s := range sites {
			if s.State().Index != sites[0].State().Index {
				return false
			}
		}
		return true
	})
	return sites[0].State()
}

// traffic proposes one group after another by way of a site until it is stopped,
// and remembers what was decided.
type traffic struct {
	stop context.CancelFunc
	done sync.WaitGroup

	mu    sync.Mutex
	acked []string
	took  time.Duration // the longest
}

func startTraffic(t *testing.T, prefix string, via *site) *traffic {
	ctx, cancel := context.WithCancel(t.Context())
	tr := &traffic{stop: cancel}
	m := via.Member
	tr.done.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			name, began := fmt.Sprintf("%s%d", prefix, n), time.Now()
			err := m.Propose(ctx, quorum.Command{Kind: quorum.KindCreate, Group: name})
			tr.mu.Lock()
			if err == nil {
				tr.acked = append(tr.acked, name)
				tr.took = max(tr.took, time.Since(began))
			} else if ctx.Err() == nil && !fault.Is(err, fault.Unreachable) { // that may happen to who is behind
				t.Errorf("%s: %v", name, err)
				cancel()
			}
			tr.mu.Unlock()
		}
	})
	return tr
}

func (tr *traffic) count() int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return len(tr.acked)
}

// goesOn waits for some decisions more.
func (tr *traffic) goesOn(t *testing.T) {
	t.Helper()
	n := tr.count() + 5
	eventually(t, "proposals go on", func() bool { return tr.count() >= n })
}

func (tr *traffic) end() []string {
	tr.stop()
	tr.done.Wait()
	return tr.acked
}
