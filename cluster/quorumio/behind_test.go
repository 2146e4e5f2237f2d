package quorumio

import (
	"errors"
	"testing"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// TestFromTheFuture has a member come back that knows none of those that are
// left but one, which is not the leader.
func TestFromTheFuture(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 4)
	b := a.admit("b", quorum.RoleNode)
	c := a.admit("c", quorum.RoleNode)
	same(t, a, b, c)
	c.down()
	d := a.admit("d", quorum.RoleWitness)
	led(t, "d", a, b, d)
	if err := a.RemoveMember(within(t), "b"); err != nil {
		t.Fatal(err)
	}
	c.up()
	eventually(t, "it has caught up", func() bool { return c.State().Roll.Members["b"] == nil && c.State().Roll.Members["d"] != nil })
	if err := c.create("g"); err != nil {
		t.Error(err)
	}
}

// TestSnapshot has a member that was away catch up by a snapshot.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	sites := three(t, 4)
	a, b := sites[0], sites[1]
	same(t, sites...)
	b.down()
	behind := lastIndex(t, b)
	for i := range 30 {
		if err := a.create(string(rune('a'+i%26)) + string(rune('a'+i/26))); err != nil {
			t.Fatal(err)
		}
	}
	b.up()
	eventually(t, "it has caught up", func() bool { return len(b.State().Group) == 30 })
	b.down()
	s, err := openStore(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := s.mem.FirstIndex()
	if err := errors.Join(err, s.close()); err != nil {
		t.Fatal(err)
	}
	if first <= behind+1 {
		t.Errorf("its log begins at %d and it had ended at %d: there was no snapshot", first, behind)
	}
	b.up()
	if err := b.create("last"); err != nil {
		t.Error(err)
	}
}

func lastIndex(t *testing.T, s *site) uint64 {
	t.Helper()
	st, err := openStore(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	last, _ := st.mem.LastIndex()
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	return last
}

// TestRecover has one go on that lost the others, and refuses while they answer.
func TestRecover(t *testing.T) {
	t.Parallel()
	sites := three(t, 0)
	a, b, w := sites[0], sites[1], sites[2]
	if err := a.create("g"); err != nil {
		t.Fatal(err)
	}
	recover := func(lost ...quorum.Member) error { return Recover(within(t), a.options(), lost) }
	if err := recover("b", "w"); !fault.Is(err, fault.Busy) {
		t.Errorf("while it runs: %v", err)
	}
	a.down()
	if err := recover("w", "b"); !fault.Is(err, fault.Busy) {
		t.Errorf("while the others run: %v", err)
	}
	b.down()
	if err := recover("b", "w"); !fault.Is(err, fault.Busy) {
		t.Errorf("while the witness runs: %v", err)
	}
	w.down()
	if err := recover("b"); !fault.Is(err, fault.Denied) {
		t.Errorf("not all named: %v", err)
	}
	if err := recover("w", "b"); err != nil {
		t.Fatal(err)
	}
	a.up()
	if err := a.create("h"); err != nil {
		t.Fatal(err)
	}
	s := a.State()
	if s.Group["g"] == nil || s.Group["h"] == nil || len(s.Roll.Members) != 1 || s.Roll.Recovered != 1 {
		t.Errorf("it has %+v", s)
	}
	// The lost come back: nobody hears them, and a new pair is made.
	w.up()
	refused(t, w, a)
	w.down()
	d := a.admit("b", quorum.RoleNode) // the name again, the machine another
	x := a.admit("x", quorum.RoleWitness)
	led(t, "x", a, d, x)
	if b := a.State().Boots["b"]; d.Self().Boot != b || b < 3 {
		t.Errorf("the new b is in life %d, the state has %d", d.Self().Boot, b)
	}
	if err := d.create("i"); err != nil {
		t.Error(err)
	}
}
