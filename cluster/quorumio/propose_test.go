package quorumio

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"steadfast/cluster/quorum"
)

// TestOvertaken loses a proposal that a later one overtakes: under its number it
// is void for ever, so it must get another. A third is offered three times, and
// applied once.
func TestOvertaken(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 0)
	if err := a.create("g"); err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 3)
	proposal := func(c quorum.Command) *ask {
		c.By = a.Self()
		return &ask{ctx: context.Background(), command: c, done: func(err error) { results <- err }}
	}
	a.deliver(meddle(func(l *loop) {
		lost := proposal(quorum.Command{Kind: quorum.KindCreate, Group: "lost"})
		lost.encoded, _ = lost.command.Encode()
		l.seq++
		l.asked[l.seq] = lost
		lost.again = ^uint64(0) // it is on its way, for all that is known
		l.put(proposal(quorum.Command{Kind: quorum.KindCreate, Group: "later"}))
		third := proposal(quorum.Command{Kind: quorum.KindSettle, Group: "g", Revision: 1})
		l.put(third)
		l.offer(l.seq, third)
		l.offer(l.seq, third)
	}))
	for range 3 {
		select {
		case err := <-results:
			if err != nil {
				t.Error(err)
			}
		case <-within(t).Done():
			t.Fatal("a proposal was never decided")
		}
	}
	if s := a.State(); s.Group["lost"] == nil || s.Group["later"] == nil || s.Group["g"].Revision != 2 {
		t.Errorf("%+v", s.Group)
	}
}

// TestJoinAtOnce has three join at the same moment: raft takes one change at a
// time, and the numbers are given one by one.
func TestJoinAtOnce(t *testing.T) {
	t.Parallel()
	a := found(t, "a", 4)
	var all sync.WaitGroup
	sites := []*site{a}
	for i := range 3 {
		j := newSite(t, quorum.Member(fmt.Sprint("j", i)))
		sites = append(sites, j)
		tok := a.invite(quorum.RoleNode)
		all.Go(func() {
			if _, err := Join(within(t), j.dir, tok, j.name, j.address, ""); err != nil {
				t.Error(err)
				return
			}
			j.up()
		})
	}
	all.Wait()
	for _, s := range sites[1:] {
		a.voting(s.name)
	}
	state := same(t, sites...)
	if len(state.Roll.Members) != 4 || state.Roll.LastID != 4 {
		t.Errorf("%+v", state.Roll)
	}
	if err := sites[3].create("g"); err != nil {
		t.Error(err)
	}
}
