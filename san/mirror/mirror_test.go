package mirror

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"steadfast/cluster/group"
)

// TestRanges holds the set of ranges against a map of blocks.
func TestRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s ranges
		model := map[[2]uint64]bool{}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			if len(s) > 0 && rapid.Bool().Draw(t, "take") {
				n := rapid.Uint64Range(1, 8).Draw(t, "n")
				r := s.pop(n)
				if r.Count == 0 || r.Count > n {
					t.Fatalf("took %d of %d blocks", r.Count, n)
				}
				for b := r.Block; b < r.Block+r.Count; b++ {
					k := [2]uint64{uint64(r.Volume), b}
					if !model[k] {
						t.Fatalf("took block %v, which is not there", k)
					}
					delete(model, k)
				}
				continue
			}
			r := Range{uint32(rapid.IntRange(0, 2).Draw(t, "volume")), rapid.Uint64Range(0, 30).Draw(t, "block"), rapid.Uint64Range(0, 6).Draw(t, "count")}
			s.add(r)
			for b := r.Block; b < r.Block+r.Count; b++ {
				model[[2]uint64{uint64(r.Volume), b}] = true
			}
		}
		if s.blocks() != uint64(len(model)) {
			t.Fatalf("%d blocks, want %d", s.blocks(), len(model))
		}
		for i := 1; i < len(s); i++ {
			if a, b := s[i-1], s[i]; a.Volume > b.Volume || a.Volume == b.Volume && a.Block+a.Count >= b.Block {
				t.Fatalf("%v and %v are not apart", a, b)
			}
		}
	})
}

// TestLocks holds that what overlaps goes in the order it came, unless both are
// shared, and that the rest waits for nothing.
func TestLocks(t *testing.T) {
	type claim struct {
		hold
		granted bool
	}
	rapid.Check(t, func(t *rapid.T) {
		var l locks
		var alive []claim
		for id := range uint64(rapid.IntRange(1, 40).Draw(t, "steps")) {
			if len(alive) > 0 && rapid.Bool().Draw(t, "drop") {
				i := rapid.IntRange(0, len(alive)-1).Draw(t, "which")
				l.drop(alive[i].id)
				alive = slices.Delete(alive, i, i+1)
			} else {
				h := claim{hold: hold{id: id, span: span{uint32(rapid.IntRange(0, 1).Draw(t, "volume")), rapid.Uint64Range(0, 10).Draw(t, "block"), rapid.Uint64Range(0, 4).Draw(t, "count")}, shared: rapid.Bool().Draw(t, "shared")}}
				l.claim(h.id, h.span, h.shared)
				alive = append(alive, h)
			}
			for _, g := range l.grant() {
				i := slices.IndexFunc(alive, func(h claim) bool { return h.id == g })
				if i >= 0 && alive[i].granted {
					t.Fatalf("%d was granted twice", g)
				}
				if i >= 0 {
					alive[i].granted = true
				}
			}
			for i, h := range alive {
				first := !slices.ContainsFunc(alive[:i], func(o claim) bool { return o.span.overlaps(h.span) && !(o.shared && h.shared) })
				if first != h.granted {
					t.Fatalf("claim %d of %v: granted %t, is first %t", h.id, h.span, h.granted, first)
				}
			}
		}
	})
}

// TestLedger holds that a candidate never covers a change that is not complete.
func TestLedger(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLedger(0)
		type change struct {
			id       uint64
			position Position
		}
		var begun []uint64
		var entered []change
		at := Position(0)
		for i := range uint64(rapid.IntRange(1, 80).Draw(t, "steps")) {
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				l.begin(i)
				begun = append(begun, i)
			case 1: // the store takes any of those that have begun next
				if len(begun) > 0 {
					k := rapid.IntRange(0, len(begun)-1).Draw(t, "enter")
					at++
					entered = append(entered, change{begun[k], at})
					begun = slices.Delete(begun, k, k+1)
					l.entered(at)
				}
			case 2:
				if len(entered) > 0 {
					k := rapid.IntRange(0, len(entered)-1).Draw(t, "complete")
					l.complete(entered[k].id)
					entered = slices.Delete(entered, k, k+1)
				}
			case 3:
				l.look(group.Instant(i)*group.Instant(time.Second), time.Millisecond)
			}
			for _, c := range entered {
				if c.position <= l.candidate {
					t.Fatalf("position %d is said to be on both, and change %d at %d is not", l.candidate, c.id, c.position)
				}
			}
		}
	})
}
