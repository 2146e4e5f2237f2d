package ha

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// inc makes an incarnation, like a1.
func inc(text string) quorum.Incarnation {
	return quorum.Incarnation{Member: quorum.Member(text[:1]), Boot: quorum.Boot(text[1] - '0')}
}

func set(list ...string) (out []quorum.Incarnation) {
	for _, s := range list {
		out = append(out, inc(s))
	}
	return out
}

// stateOf returns a state with one record.
func stateOf(g quorum.Group, boots string) *quorum.State {
	s := quorum.NewState()
	for _, b := range strings.Fields(boots) {
		s.Boots[inc(b).Member] = inc(b).Boot
	}
	g.Name = "g"
	s.Group["g"] = &g
	return s
}

// TestReasons: why the owner is another one, as each side tells it.
func TestReasons(t *testing.T) {
	both := quorum.Group{Revision: 5, Epoch: 2, Owner: inc("a1"), Set: set("a1", "b1")}
	alone := quorum.Group{Revision: 5, Epoch: 2, Owner: inc("a1"), Set: set("a1")}
	after := func(rev quorum.Revision, owner string, s ...string) quorum.Group {
		return quorum.Group{Revision: rev, Epoch: 3, Owner: inc(owner), Set: set(s...)}
	}
	revived, promoted := after(6, "a2", "a2"), after(6, "b1", "b1")
	revived.Revived, promoted.Promoted = 1, 1
	for _, c := range []struct {
		name     string
		me       string
		old, new quorum.Group
		boots    string
		proposed quorum.Kind
		dead     string
		want     Reason
	}{
		{"handed over, new owner", "b1", both, after(6, "b1", "a1", "b1"), "a1 b1", "", "", Moved},
		{"handed over, old owner", "a1", both, after(6, "b1", "a1", "b1"), "a1 b1", quorum.KindHand, "", Moved},
		{"handed over, and the old owner removed before anyone looked", "b1", both, after(7, "b1", "b1"), "a1 b1", "", "", Moved},
		{"yielded, new owner", "b1", both, after(6, "b1", "b1"), "a1 b1", "", "", Yielded},
		{"yielded, old owner", "a1", both, after(6, "b1", "b1"), "a1 b1", quorum.KindYield, "", Yielded},
		{"silent", "b1", both, after(6, "b1", "b1"), "a1 b1", quorum.KindSucceed, "", Silent},
		{"silent, who was", "a1", both, after(6, "b1", "b1"), "a1 b1", "", "", Silent},
		{"dead by its guard's word", "b1", both, after(6, "b1", "b1"), "a1 b1", quorum.KindSucceed, "a1", Died},
		{"dead, for it lives again", "b1", both, after(6, "b1", "b1"), "a2 b1", quorum.KindSucceed, "", Died},
		{"another life's death says nothing", "b1", both, after(6, "b1", "b1"), "a1 b1", quorum.KindSucceed, "a0", Silent},
		{"revived", "a2", alone, revived, "a2 b1", quorum.KindRevive, "", Revived},
		{"promoted", "b1", alone, promoted, "a1 b1", quorum.KindPromote, "", Promoted},
	} {
		h := newHistory(inc(c.me), "g", stateOf(c.old, c.boots))
		if c.proposed != "" {
			h.proposing(quorum.Command{Kind: c.proposed, Revision: c.old.Revision})
		}
		if c.dead != "" {
			h.died(inc(c.dead))
		}
		h.decided(stateOf(c.new, c.boots), time.Now())
		last := h.newest()
		if last.reason != c.want || last.from != c.old.Owner || last.to != c.new.Owner {
			t.Errorf("%s: %v from %v to %v, not %v", c.name, last.reason, last.from, last.to, c.want)
		}
		if why := last.why(); why == (turn{reason: Unknown}).why() {
			t.Errorf("%s: why is not said", c.name)
		}
	}
}

// TestFirstOwner: a group that is new, and one that was there when this life of
// the node began.
func TestFirstOwner(t *testing.T) {
	h := newHistory(inc("a1"), "g", quorum.NewState())
	if h.newest().epoch != 0 {
		t.Error("a turn before there is a record")
	}
	h.decided(stateOf(quorum.Group{Revision: 1, Epoch: 1, Owner: inc("a1"), Set: set("a1")}, "a1"), time.Now())
	if r := h.newest().reason; r != Created {
		t.Errorf("a new group: %v", r)
	}
	h = newHistory(inc("a2"), "g", stateOf(quorum.Group{Revision: 9, Epoch: 4, Owner: inc("b1"), Set: set("b1")}, "a2 b1"))
	if r := h.newest().reason; r != Unknown {
		t.Errorf("a group that was there: %v", r)
	}
}

// TestServedOnce: a takeover counts once for its epoch, and takes from the first
// sign of it.
func TestServedOnce(t *testing.T) {
	h := newHistory(inc("b1"), "g", stateOf(quorum.Group{Revision: 5, Epoch: 2, Owner: inc("a1"), Set: set("a1", "b1")}, "a1 b1"))
	h.proposing(quorum.Command{Kind: quorum.KindSucceed, Revision: 5})
	h.died(inc("a1"))
	h.deadAt = h.deadAt.Add(-time.Second)
	h.died(inc("a1")) // told again, which changes nothing
	next := quorum.Group{Revision: 6, Epoch: 3, Owner: inc("b1"), Set: set("b1")}
	h.decided(stateOf(next, "a1 b1"), time.Now())
	next.Revision = 7 // the epoch is what counts
	h.decided(stateOf(next, "a1 b1"), time.Now())
	it, took, first := h.served(3)
	if !first || it.reason != Died || took < time.Second || took > time.Minute {
		t.Errorf("%v %v %v", it.reason, took, first)
	}
	if _, _, first = h.served(3); first || h.counts[Died] != 1 {
		t.Errorf("served again: %v, counted %v", first, h.counts)
	}
	if _, _, first = h.served(4); first {
		t.Error("an epoch that was not heard of counts")
	}
}

// told collects a group's events.
func told(spec *Spec, do func(*Group)) (out []Event) {
	g := &Group{name: "g", spec: spec, cfg: &Config{Publish: func(e Event) { out = append(out, e) }, Log: slog.New(slog.DiscardHandler)}}
	do(g)
	return out
}

// TestTellRevived: only what a write cache may have lost is an error.
func TestTellRevived(t *testing.T) {
	durable := Volume{Name: "v1"}
	for _, c := range []struct {
		volumes  []Volume
		severity string
		text     string
	}{
		{nil, Info, "nothing that was acknowledged is lost"},
		{[]Volume{durable}, Info, "nothing that was acknowledged is lost"},
		{[]Volume{durable, {Name: "v2", WriteCache: true}, {Name: "v3", WriteCache: true}}, Error, "writes to v2, v3 (write cache on) that no flush had followed may be gone"},
	} {
		spec := &Spec{Volumes: c.volumes}
		got := told(spec, func(g *Group) { g.tellRevived(spec) })
		if len(got) != 1 || got[0].Severity != c.severity || got[0].Kind != "group-revived" || got[0].Group != "g" || !strings.Contains(got[0].Text, c.text) {
			t.Errorf("%v: %+v", c.volumes, got)
		}
	}
}

// TestReasonsAreTold: each has a severity and says something of its own.
func TestReasonsAreTold(t *testing.T) {
	want := map[Reason]string{
		Unknown: Info, Created: Info, Moved: Info, Yielded: Warning, Died: Warning, Silent: Warning, Revived: Warning, Promoted: Error,
	}
	var said []string
	for _, r := range Reasons() {
		it := turn{reason: r, from: inc("a1")}
		if it.severity() != want[r] || slices.Contains(said, it.why()) {
			t.Errorf("%s: %s, %q", r, it.severity(), it.why())
		}
		said = append(said, it.why())
	}
}

// TestWhileBusy: an address that the former owner still answers for is asked for
// again, as long as that may be right, and nothing else is.
func TestWhileBusy(t *testing.T) {
	busy, other := fault.New(fault.Busy, "in use"), errors.New("other")
	tries := 0
	three := func() error {
		if tries++; tries < 3 {
			return busy
		}
		return nil
	}
	if err := whileBusy(t.Context(), time.Minute, three); err != nil || tries != 3 {
		t.Errorf("after %d tries: %v", tries, err)
	}
	if err := whileBusy(t.Context(), time.Minute, func() error { return other }); !errors.Is(err, other) {
		t.Errorf("another error: %v", err)
	}
	if err := whileBusy(t.Context(), 30*time.Millisecond, func() error { return busy }); !fault.Is(err, fault.Busy) {
		t.Errorf("busy for good: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := whileBusy(ctx, time.Minute, func() error { return busy }); !fault.Is(err, fault.Busy) {
		t.Errorf("given up: %v", err)
	}
}
