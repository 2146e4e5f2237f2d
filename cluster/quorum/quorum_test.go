package quorum

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"steadfast/fault"
)

// incarnation reads "a2": member a in its second life.
func incarnation(s string) Incarnation {
	b, err := strconv.ParseUint(s[1:], 10, 64)
	if err != nil {
		panic(err)
	}
	return Incarnation{Member(s[:1]), Boot(b)}
}

// members reads "a,b".
func members(list string) (out []Member) {
	for m := range strings.SplitSeq(list, ",") {
		out = append(out, Member(m))
	}
	return out
}

func (i Incarnation) text() string { return fmt.Sprintf("%s%d", i.Member, i.Boot) }

// TestScenarios plays commands, one a line: "succeed 3 by b1", "remove 2 by a1 b1",
// "assign 2 by a1 on=a,b"; those of the membership as in members.txt, those of
// the inventory as in inventory.txt.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s, index := NewState(), uint64(0)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			for line := range strings.Lines(d.Input) {
				f := strings.Fields(line)
				if f[0] == "found" || f[0] == "recover" || Kind(f[0]).OfRoll() {
					index++
					s = playRoll(&out, s, index, f)
					continue
				}
				if f[0] == string(KindEdit) {
					index++
					playEdit(&out, s, index, f)
					continue
				}
				c := Command{Kind: Kind(f[0]), Group: "g"}
				if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
					c.Revision = Revision(n)
					f = f[1:]
				}
				c.By = incarnation(f[2])
				for _, arg := range f[3:] {
					if list, ok := strings.CutPrefix(arg, "on="); ok {
						c.Members = members(list)
					} else {
						c.Who = incarnation(arg)
					}
				}
				index++
				if err := s.Apply(index, c); err != nil {
					fmt.Fprintf(&out, "%v: %v\n", fault.KindOf(err), err)
					continue
				}
				g := s.Group["g"]
				if g == nil {
					out.WriteString("ok\n")
					continue
				}
				fmt.Fprintf(&out, "revision %d epoch %d: %s of", g.Revision, g.Epoch, g.Owner.text())
				for _, e := range g.Set {
					out.WriteString(" " + e.text())
				}
				if len(g.Members) > 0 {
					fmt.Fprintf(&out, " on %s", g.Members)
				}
				out.WriteString("\n")
			}
			return out.String()
		})
	})
}

// TestRules plays random commands and holds what must be so after each.
func TestRules(t *testing.T) {
	kinds := []Kind{
		KindInvite, KindWithdraw, KindJoin, KindVote, KindLeave, KindMove,
		KindAssign, KindAssign, KindEdit, KindEdit,
		KindBoot, KindCreate, KindRemove, KindAdmit, KindSucceed, KindHand, KindYield, KindSettle, KindRevive, KindPromote, KindDelete, "unheard-of",
	}
	rapid.Check(t, func(t *rapid.T) {
		s := NewState()
		if rapid.Bool().Draw(t, "members") {
			s = founded(t)
		}
		who := func(name string) Incarnation {
			return Incarnation{rapid.SampledFrom([]Member{"a", "b"}).Draw(t, name), Boot(rapid.IntRange(1, 3).Draw(t, name+" boot"))}
		}
		for index := range uint64(rapid.IntRange(1, 60).Draw(t, "commands")) {
			c := Command{Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Group: "g", By: who("by"), Who: who("who")}
			if g := s.Group["g"]; g != nil {
				c.Revision = g.Revision - Revision(rapid.IntRange(0, 1).Draw(t, "late"))
			}
			if c.Kind.OfRoll() {
				c.Change = drawChange(t, s)
				c.Revision = s.Roll.Revision - Revision(rapid.IntRange(0, 8).Draw(t, "late")/8)
			}
			if c.Kind == KindCreate && rapid.Bool().Draw(t, "anywhere") || c.Kind == KindAssign {
				c.Members = rapid.SliceOfNDistinct(rapid.SampledFrom([]Member{"a", "b", "c", "z", "Bad name"}), 0, 3, rapid.ID[Member]).Draw(t, "members")
				if rapid.Bool().Draw(t, "in order") {
					slices.Sort(c.Members)
				}
			}
			if c.Kind == KindEdit {
				c.Edits = drawEdits(t)
				c.Revision = s.Inventory.Revision - Revision(rapid.IntRange(0, 3).Draw(t, "late")/3)
			}
			before, image := s.Clone(), encoded(t, s)
			err := s.Apply(index+1, c)
			if !bytes.Equal(encoded(t, before), image) {
				t.Fatalf("%s changed a state that others read", c.Kind)
			}
			check(t, before, s, c, err)
		}
		back, err := DecodeState(encoded(t, s))
		if err != nil || cmp.Diff(s, back) != "" {
			t.Fatalf("%v\n%s", err, cmp.Diff(s, back))
		}
	})
}

func encoded(t fataler, s *State) []byte {
	p, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func check(t *rapid.T, before, after *State, c Command, err error) {
	b, a := before.Group["g"], after.Group["g"]
	if err != nil {
		before.Index = after.Index
		if diff := cmp.Diff(before, after); diff != "" {
			t.Fatalf("a refused %s changed something:\n%s", c.Kind, diff)
		}
		return
	}
	checkRoll(t, before, after, c)
	checkInventory(t, before, after, c)
	if c.Kind.OfRoll() || c.Kind == KindEdit {
		if diff := cmp.Diff(before.Group, after.Group); diff != "" {
			t.Fatalf("%s changed a group:\n%s", c.Kind, diff)
		}
		return
	}
	if a != nil {
		checkPlace(t, before, after, c)
	}
	if a == nil || b == nil {
		return
	}
	if c.Kind == KindBoot {
		if after.Boots[c.By.Member] <= before.Boots[c.By.Member] {
			t.Fatalf("%s went back to life %d", c.By.Member, c.By.Boot)
		}
		return
	}
	switch {
	case a.Revision != b.Revision+1 || c.Revision != b.Revision:
		t.Fatalf("%s for revision %d made %d of %d", c.Kind, c.Revision, a.Revision, b.Revision)
	case !a.Has(a.Owner):
		t.Fatalf("after %s the owner is not in the set", c.Kind)
	case a.Owner != b.Owner && a.Epoch != b.Epoch+1, a.Epoch < b.Epoch:
		t.Fatalf("%s: owner %v to %v in epoch %d to %d", c.Kind, b.Owner, a.Owner, b.Epoch, a.Epoch)
	case before.Dead(c.By):
		t.Fatalf("%s by a former life", c.Kind)
	case len(a.Set) > 2:
		t.Fatalf("%d entries of two members", len(a.Set))
	}
	for _, e := range a.Set {
		if !b.Has(e) && before.Boots[e.Member] != e.Boot {
			t.Fatalf("%s brought in %v, which is not its member's life", c.Kind, e)
		}
	}
}

// checkPlace holds the group to the members that it lists.
func checkPlace(t *rapid.T, before, after *State, c Command) {
	a := after.Group["g"]
	if !a.placed() {
		t.Fatalf("after %s a group of %v lives on %v", c.Kind, a.Members, a.Set)
	}
	listed := (c.Kind == KindCreate || c.Kind == KindAssign) && c.Group == "g"
	if b := before.Group["g"]; !listed && b != nil && !slices.Equal(a.Members, b.Members) {
		t.Fatalf("%s changed the list to %v", c.Kind, a.Members)
	}
	if !listed {
		return
	}
	for _, m := range a.Members {
		if r := after.Roll.Members[m]; len(after.Roll.Members) > 0 && (r == nil || r.Role != RoleNode) {
			t.Fatalf("%s lists %s, which is %+v", c.Kind, m, r)
		}
	}
}

// FuzzDecode holds that bytes from a disk or a peer never do more than fail.
func FuzzDecode(f *testing.F) {
	p, _ := Command{Kind: KindAdmit, Group: "g", Revision: 3, By: Incarnation{"a", 1}, Who: Incarnation{"b", 2}}.Encode()
	f.Add(p)
	s := NewState()
	s.Boots["a"] = 1
	_ = s.Apply(1, Command{Kind: KindCreate, Group: "g", By: Incarnation{"a", 1}})
	p, _ = s.Encode()
	f.Add(p)
	for _, s := range []*State{founded(f), crowded(f)} {
		p, _ = s.Encode()
		f.Add(p)
	}
	p, _ = Command{Kind: KindJoin, Revision: 2, By: Incarnation{"a", 1}, Change: &Change{Name: "b", ID: 2, Address: "h:2", Key: mark("b"), Token: mark("t"), Now: 5}}.Encode()
	f.Add(p)
	for _, c := range []Command{
		{Kind: KindEdit, By: Incarnation{"a", 1}, Edits: []Edit{{"k", []byte("v")}, {Key: "x"}}},
		{Kind: KindAssign, Group: "g", Revision: 1, By: Incarnation{"a", 1}, Members: []Member{"a", "b"}},
	} {
		p, _ = c.Encode()
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if c, err := DecodeCommand(p); err == nil {
			_ = NewState().Apply(1, c)
			if again, err := c.Encode(); err != nil {
				t.Fatal(err)
			} else if back, err := DecodeCommand(again); err != nil || !back.Equal(c) {
				t.Fatalf("%v: %+v became %+v", err, c, back)
			}
			for _, s := range []*State{founded(f), crowded(f)} {
				// With the revision and the life right, the rest is tried.
				c.By, c.Revision = Incarnation{"a", s.Boots["a"]}, s.Roll.Revision
				switch {
				case c.Kind == KindEdit:
					c.Revision = s.Inventory.Revision
				case s.Group[c.Group] != nil:
					c.Revision = s.Group[c.Group].Revision
				}
				_ = s.Apply(9, c)
				// Whatever was taken can be read back.
				if p, err := s.Encode(); err != nil {
					t.Fatalf("%v after %v", err, c)
				} else if _, err := DecodeState(p); err != nil {
					t.Fatalf("%v after %v", err, c)
				}
			}
		}
		if s, err := DecodeState(p); err == nil {
			for name := range s.Group {
				_ = s.Apply(s.Index+1, Command{Kind: KindSettle, Group: name})
			}
			for name := range s.Roll.Members {
				_ = s.Recover(name)
			}
		}
	})
}
