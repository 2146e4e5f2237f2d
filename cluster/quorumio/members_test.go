package quorumio

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// TestReplace has a fourth member join by a token and take the place of one that
// has died, by snapshot, while proposals go on; then the witness is replaced.
func TestReplace(t *testing.T) {
	t.Parallel()
	sites := three(t, 8)
	a, b, w := sites[0], sites[1], sites[2]
	tr := startTraffic(t, "g", a)
	tr.goesOn(t)
	if _, err := w.Invite(within(t), quorum.RoleNode, time.Hour); !fault.Is(err, fault.Denied) {
		t.Errorf("a witness invites: %v", err)
	}
	b.down()
	d := a.admit("d", quorum.RoleNode)
	if err := a.RemoveMember(within(t), "b"); err != nil {
		t.Fatal(err)
	}
	tr.goesOn(t)
	// Who left is not let in, and does not disturb.
	b.up()
	refused(t, b, a, w, d)
	tr.goesOn(t)
	b.down()
	x := a.admit("x", quorum.RoleWitness)
	if err := d.RemoveMember(within(t), "w"); err != nil {
		t.Fatal(err)
	}
	led(t, "x", a, d, x)
	tr.goesOn(t)
	// The two that were there from the beginning are gone: the new ones are enough.
	acked := tr.end()
	if err := d.create("by-d"); err != nil {
		t.Fatal(err)
	}
	a.down()
	if err := d.create("without-a"); err != nil {
		t.Fatal(err)
	}
	state := same(t, d, x)
	for _, name := range append(acked, "by-d", "without-a") {
		if state.Group[name] == nil {
			t.Errorf("%s was decided and is lost", name)
		}
	}
	if len(state.Roll.Members) != 3 || state.Roll.LastID != 5 {
		t.Errorf("members: %+v", state.Roll)
	}
}

// refused holds that none of the sites takes a handshake from s to the end.
func refused(t *testing.T, s *site, by ...*site) {
	t.Helper()
	for _, o := range by {
		conn, err := knock(t, s.id, o.address, o.id.Self().ID)
		if err == nil {
			conn.Close()
			t.Errorf("%s is let in at %s", s.name, o.name)
		}
	}
}

// knock connects as the bearer of an identity, whatever the state says, and
// exchanges hellos.
func knock(t *testing.T, id *identity.Identity, address string, to uint64) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	tr := newTransport(ctx, id, 1, (&site{t: t}).options().Log, nil)
	conn, raw, err := tr.dial(t.Context(), address, to)
	if err != nil {
		return nil, err
	}
	if err := tr.greet(raw, conn, to); err != nil {
		raw.Close()
		return nil, err
	}
	return raw, nil
}

// rogue gets a certificate of the cluster's authority without the quorum's word.
func rogue(t *testing.T, signer *site, name quorum.Member, number uint64) *identity.Identity {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			return
		}
		conn := tls.Server(raw, signer.id.Server(nil))
		defer conn.Close()
		_ = signer.id.Serve(conn, func(a identity.Applicant) (identity.Admission, error) {
			return identity.Admission{Record: quorum.Record{Name: name, ID: number, Role: quorum.RoleWitness, Key: a.Key}}, nil
		})
	}()
	tok, err := signer.id.NewToken(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	j, err := identity.Join(within(t), t.TempDir(), tok, name, "h:1", "")
	if err != nil {
		t.Fatal(err)
	}
	<-done
	id, err := j.Keep()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestStrangers holds members to the state: a certificate of the authority is
// not enough.
func TestStrangers(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	b := a.admit("b", quorum.RoleNode)
	other := found(t, "a", 0)
	if conn, err := knock(t, b.id, a.address, 1); err != nil {
		t.Fatalf("a member: %v", err)
	} else {
		conn.Close()
	}
	for name, id := range map[string]*identity.Identity{
		"another cluster":                 other.id,
		"the right name, another key":     rogue(t, a, "b", 2),
		"the right number, a wrong name":  rogue(t, a, "c", 2),
		"the number of who asks":          rogue(t, a, "a", 1),
		"a number that was not given out": rogue(t, a, "z", 9),
		"a member's name, a later number": rogue(t, a, "b", 9),
	} {
		if conn, err := knock(t, id, a.address, 1); err == nil {
			conn.Close()
			t.Errorf("%s is let in", name)
		}
	}
	if _, err := knock(t, b.id, a.address, 7); err == nil {
		t.Error("it answers for another number")
	}
	// Who is let in cannot speak for others, nor what is not raft's.
	for name, msg := range map[string]*raftpb.Message{
		"for another": {Type: raftpb.MsgApp.Enum(), From: new(uint64(1)), To: new(uint64(1))},
		"local":       {Type: raftpb.MsgHup.Enum(), From: new(uint64(2)), To: new(uint64(1))},
	} {
		if _, err := decodeMessage(marshal(t, msg), 2, 1); err == nil {
			t.Errorf("a message %s is taken", name)
		}
	}
	if err := a.create("g"); err != nil {
		t.Error(err)
	}
}

// TestTokens goes through tokens that are good for nothing.
func TestTokens(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	other := found(t, "o", 0)
	join := func(tok identity.Token, name quorum.Member) error {
		_, err := Join(within(t), t.TempDir(), tok, name, freeAddress(t), "")
		return err
	}
	never, err := a.id.NewToken(a.address)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.id.NewToken(a.address)
	if err != nil {
		t.Fatal(err)
	}
	withdrawn := a.invite(quorum.RoleNode)
	if err := a.Withdraw(within(t), withdrawn.Hash()); err != nil {
		t.Fatal(err)
	}
	expired, err := a.Invite(within(t), quorum.RoleNode, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token has expired", func() bool {
		return time.Now().Unix() >= a.State().Roll.Tokens[expired.Hash()].Expires
	})
	good := a.invite(quorum.RoleNode)
	for name, tc := range map[string]struct {
		tok  identity.Token
		name quorum.Member
		want fault.Kind
	}{
		"never made":        {never, "b", fault.Denied},
		"another authority": {foreign, "b", fault.Denied},
		"withdrawn":         {withdrawn, "b", fault.Denied},
		"expired":           {expired, "b", fault.Denied},
		"a name that is":    {good, "a", fault.Exists},
		"a bad name":        {good, "B", fault.Invalid},
	} {
		if err := join(tc.tok, tc.name); !fault.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// It was refused, not spent.
	if err := join(good, "b"); err != nil {
		t.Error(err)
	}
}

// TestAskedAgain has a joiner that missed the answer ask again, as long as it has
// not run; who comes later with its token does not get in.
func TestAskedAgain(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	good := a.invite(quorum.RoleNode)
	join := func(tok identity.Token, name quorum.Member) error {
		_, err := Join(within(t), t.TempDir(), tok, name, freeAddress(t), "")
		return err
	}
	dir, address := t.TempDir(), freeAddress(t)
	if _, err := identity.Join(within(t), dir, good, "b", address, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Join(within(t), dir, good, "b", address, ""); err != nil {
		t.Errorf("asked again: %v", err)
	}
	j := &site{t: t, name: "b", dir: dir, address: address}
	t.Cleanup(j.down)
	j.up()
	a.voting("b")
	if err := os.Remove(filepath.Join(dir, "member.crt")); err != nil {
		t.Fatal(err)
	}
	if _, err := Join(within(t), dir, good, "b", address, ""); !fault.Is(err, fault.Exists) {
		t.Errorf("asked again after a life: %v", err)
	}
	if err := join(good, "c"); !fault.Is(err, fault.Denied) {
		t.Errorf("used: %v", err)
	}
	if err := join(good, "b"); !fault.Is(err, fault.Exists) && !fault.Is(err, fault.Denied) {
		t.Errorf("used, by the same name: %v", err)
	}
	if n := len(a.State().Roll.Members); n != 2 {
		t.Errorf("%d members", n)
	}
}

// TestJoinedAndGone has a joiner that never runs: it has no vote, and the cluster
// of one goes on.
func TestJoinedAndGone(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	if _, err := Join(within(t), t.TempDir(), a.invite(quorum.RoleNode), "b", freeAddress(t), ""); err != nil {
		t.Fatal(err)
	}
	if err := a.create("g"); err != nil {
		t.Error(err)
	}
	if err := a.RemoveMember(within(t), "b"); err != nil {
		t.Error(err)
	}
}

// TestMoves changes addresses: of one that runs, and of one that comes back at
// another place.
func TestMoves(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	a, b := sites[0], sites[1]
	tr := startTraffic(t, "g", a)
	tr.goesOn(t)
	// While it runs: it answers at both.
	next := freeAddress(t)
	if err := b.ChangeAddress(within(t), "b", next); err != nil {
		t.Fatal(err)
	}
	if got := b.Address(); got != next || a.State().Roll.Members["b"].Address != next {
		eventually(t, "all know the address", func() bool { return a.State().Roll.Members["b"].Address == next })
	}
	// The others are new lives and know the new address only.
	b.down()
	b.address = next
	b.up()
	eventually(t, "it takes part", func() bool { return a.State().Boots["b"] == b.Self().Boot })
	// It comes back elsewhere before anyone was told: it says so itself.
	b.down()
	b.address = freeAddress(t)
	b.up()
	eventually(t, "it takes part again", func() bool { return a.State().Boots["b"] == b.Self().Boot })
	if err := b.ChangeAddress(within(t), "b", b.address); err != nil {
		t.Fatal(err)
	}
	tr.goesOn(t)
	tr.end()
	if err := a.ChangeAddress(within(t), "b", a.address); !fault.Is(err, fault.Exists) {
		t.Errorf("another's address: %v", err)
	}
	if err := a.ChangeAddress(within(t), "z", "z:1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("nobody's: %v", err)
	}
	if err := a.ChangeAddress(within(t), "a", "nowhere"); !fault.Is(err, fault.Invalid) {
		t.Errorf("no address: %v", err)
	}
	if err := a.ChangeAddress(within(t), "a", sites[2].address); !fault.Is(err, fault.Busy) {
		t.Errorf("where another listens: %v", err)
	}
}

// TestMovedAgain has a move that was not decided in time asked for again: that the
// member listens there already is no obstacle.
func TestMovedAgain(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	b := a.admit("b", quorum.RoleNode)
	next := freeAddress(t)
	b.down()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := a.ChangeAddress(ctx, "a", next); !fault.Is(err, fault.Unreachable) {
		t.Fatalf("alone: %v", err)
	}
	b.up()
	if err := a.ChangeAddress(within(t), "a", next); err != nil && a.State().Roll.Members["a"].Address != next {
		t.Errorf("again: %v", err)
	}
	if a.Address() != next {
		t.Errorf("it is at %s", a.Address())
	}
}

// TestRemoveRefused keeps members that hold data, and the one that asks.
func TestRemoveRefused(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	b := a.admit("b", quorum.RoleNode)
	if err := b.create("g"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all have it", func() bool { return a.State().Group["g"] != nil })
	for name, want := range map[quorum.Member]fault.Kind{"b": fault.Busy, "a": fault.Invalid, "z": fault.NotFound} {
		if err := a.RemoveMember(within(t), name); !fault.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.Propose(within(t), quorum.Command{Kind: quorum.KindDelete, Group: "g", Revision: 1}); err != nil {
		t.Fatal(err)
	}
	if err := a.RemoveMember(within(t), "b"); err != nil {
		t.Fatal(err)
	}
	if err := a.create("h"); err != nil {
		t.Errorf("the one that is left: %v", err)
	}
}

// TestLeaderRemoved takes out the member that leads: it learns that it has left.
func TestLeaderRemoved(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	if err := sites[0].RemoveMember(within(t), "w"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-sites[2].Failed():
		if !fault.Is(err, fault.Denied) {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
	if err := sites[1].create("g"); err != nil {
		t.Error(err)
	}
}

// TestLeaderLeaves: of two members the one that leads is taken out. The other one
// needs its word that this was decided, and then goes on alone.
func TestLeaderLeaves(t *testing.T) {
	t.Parallel()
	for range 5 {
		a := found(t, "a", 0)
		b := a.admit("b", quorum.RoleNode)
		eventually(t, "b leads", func() bool {
			a.deliver(meddle(func(l *loop) { l.raft.TransferLeader(b.id.Self().ID) }))
			return b.Leader() == "b" && a.Leader() == "b"
		})
		if err := a.RemoveMember(within(t), "b"); err != nil {
			t.Fatal(err)
		}
		if err := a.create("alone"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-b.Failed():
			if !fault.Is(err, fault.Denied) {
				t.Errorf("b ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("b goes on although it has left")
		}
		a.down()
		b.down()
	}
}

// TestHost: a host follows what is decided and may have something decided, and the
// three decide without it as well as with it: it has no vote.
func TestHost(t *testing.T) {
	t.Parallel()
	sites := three(t, 16)
	a, b := sites[0], sites[1]
	hosts := make([]*site, 4) // more than there are voters
	for i := range hosts {
		h := newSite(t, quorum.Member(fmt.Sprintf("h%d", i)))
		if _, err := Join(within(t), h.dir, a.invite(quorum.RoleHost), h.name, h.address, quorum.RoleHost); err != nil {
			t.Fatal(err)
		}
		h.up()
		hosts[i] = h
	}
	h := hosts[0]
	if err := a.create("before"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a host has it", func() bool { return h.State().Group["before"] != nil })
	edit := quorum.Edit{Key: "by-a-host", Value: []byte("x")}
	if err := h.Edit(within(t), h.State().Inventory.Revision, edit); err != nil {
		t.Fatal(err)
	}
	eventually(t, "others hear of a host", func() bool { _, ok := b.Reachable()[h.name]; return ok })
	eventually(t, "a host hears of others", func() bool { return len(h.Reachable()) >= 3 })
	if err := h.create("by-a-host"); !fault.Is(err, fault.Denied) {
		t.Errorf("a group of a host: %v", err)
	}
	for _, h := range hosts {
		h.down()
	}
	if err := a.create("without-hosts"); err != nil {
		t.Errorf("without hosts: %v", err)
	}
	h.up()
	eventually(t, "a host that was away has what was missed", func() bool { return h.State().Group["without-hosts"] != nil })
	// One of three and all hosts are no quorum.
	for _, h := range hosts[1:] {
		h.up()
	}
	b.down()
	sites[2].down()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := a.Propose(ctx, quorum.Command{Kind: quorum.KindCreate, Group: "alone"}); err == nil {
		t.Error("one of three decided with hosts")
	}
	b.up()
	if err := a.create("again"); err != nil {
		t.Error(err)
	}
	for _, h := range hosts {
		if r := a.State().Roll.Members[h.name]; r == nil || r.Voter {
			t.Errorf("host %s: %+v", h.name, r)
		}
	}
	if err := a.RemoveMember(within(t), h.name); err != nil {
		t.Error(err)
	}
}
