package quorum

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"steadfast/fault"
)

// playEdit plays "edit 3 by a1 key=value gone=".
func playEdit(out *strings.Builder, s *State, index uint64, f []string) {
	n, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		panic(err)
	}
	c := Command{Kind: KindEdit, Revision: Revision(n), By: incarnation(f[3])}
	for _, pair := range f[4:] {
		key, value, _ := strings.Cut(pair, "=")
		c.Edits = append(c.Edits, Edit{Key: key, Value: []byte(value)})
	}
	if err := s.Apply(index, c); err != nil {
		fmt.Fprintf(out, "%v: %v\n", fault.KindOf(err), err)
		return
	}
	fmt.Fprintf(out, "inventory %d:", s.Inventory.Revision)
	for _, k := range slices.Sorted(maps.Keys(s.Inventory.Entries)) {
		fmt.Fprintf(out, " %s=%s", k, s.Inventory.Entries[k])
	}
	out.WriteString("\n")
}

// drawEdits draws edits of few keys, so that they meet.
func drawEdits(t *rapid.T) []Edit {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Edit {
		return Edit{
			Key:   rapid.SampledFrom([]string{"a", "b", "c", "d/e", "", "not a key", "é"}).Draw(t, "key"),
			Value: rapid.SliceOfN(rapid.Byte(), 0, 3).Draw(t, "value"),
		}
	}), 0, 4).Draw(t, "edits")
}

// checkInventory holds what must be so of the inventory after each command that
// was not refused.
func checkInventory(t *rapid.T, before, after *State, c Command) {
	b, a := before.Inventory, after.Inventory
	if c.Kind != KindEdit {
		if diff := cmp.Diff(b, a); diff != "" {
			t.Fatalf("%s changed the inventory:\n%s", c.Kind, diff)
		}
		return
	}
	if a.Revision != b.Revision+1 || c.Revision != b.Revision {
		t.Fatalf("an edit for revision %d made %d of %d", c.Revision, a.Revision, b.Revision)
	}
	want := maps.Clone(b.Entries)
	for _, e := range c.Edits {
		want[e.Key] = e.Value
	}
	maps.DeleteFunc(want, func(_ string, v []byte) bool { return len(v) == 0 })
	if diff := cmp.Diff(want, a.Entries); diff != "" {
		t.Fatalf("after an edit:\n%s", diff)
	}
	if err := a.check(); err != nil {
		t.Fatal(err)
	}
}

// TestInventoryBounds goes to each bound, and one beyond.
func TestInventoryBounds(t *testing.T) {
	s := founded(t)
	edit := func(edits ...Edit) error {
		return s.Apply(5, Command{Kind: KindEdit, Revision: s.Inventory.Revision, By: Incarnation{"a", 1}, Edits: edits})
	}
	value := []byte("v")
	for name, tc := range map[string]struct {
		e    Edit
		want fault.Kind
	}{
		"no key":         {Edit{"", value}, fault.Invalid},
		"a long key":     {Edit{strings.Repeat("k", InventoryKeyBytesMax+1), value}, fault.Invalid},
		"a space":        {Edit{"a b", value}, fault.Invalid},
		"a newline":      {Edit{"a\n", value}, fault.Invalid},
		"not ASCII":      {Edit{"ä", value}, fault.Invalid},
		"DEL":            {Edit{"a\x7f", value}, fault.Invalid},
		"a large value":  {Edit{"k", make([]byte, InventoryValueBytesMax+1)}, fault.Limit},
		"delete no key":  {Edit{Key: ""}, fault.Invalid},
		"delete bad key": {Edit{Key: " "}, fault.Invalid},
	} {
		if err := edit(Edit{"good", value}, tc.e); !fault.Is(err, tc.want) || s.Inventory.Revision != 0 || len(s.Inventory.Entries) != 0 {
			t.Errorf("%s: %v, %+v", name, err, s.Inventory)
		}
	}
	if err := edit(Edit{"k", value}, Edit{Key: "k"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("one key twice: %v", err)
	}
	if err := edit(); !fault.Is(err, fault.Invalid) {
		t.Errorf("nothing: %v", err)
	}
	if err := edit(Edit{strings.Repeat("~", InventoryKeyBytesMax), make([]byte, InventoryValueBytesMax)}, Edit{Key: "not-there"}); err != nil {
		t.Errorf("the largest: %v", err)
	}
	var many []Edit
	for i := range InventoryEntriesMax - 1 {
		many = append(many, Edit{fmt.Sprint("e", i), value})
	}
	if err := edit(many...); err != nil {
		t.Fatal(err)
	}
	if err := edit(Edit{"more", value}); !fault.Is(err, fault.Limit) {
		t.Errorf("an entry more: %v", err)
	}
	if err := edit(Edit{"more", value}, Edit{Key: "e0"}); err != nil {
		t.Errorf("one for another: %v", err)
	}
}

// TestInventoryBytes fills the inventory to its last byte.
func TestInventoryBytes(t *testing.T) {
	s := founded(t)
	edit := func(key string, n int) error {
		return s.Apply(5, Command{Kind: KindEdit, Revision: s.Inventory.Revision, By: Incarnation{"a", 1}, Edits: []Edit{{key, make([]byte, n)}}})
	}
	const each = 8
	for i := range InventoryBytesMax / InventoryValueBytesMax {
		if err := edit(fmt.Sprintf("k%0*d", each-1, i), InventoryValueBytesMax-each); err != nil {
			t.Fatal(err)
		}
	}
	if err := edit("k", 1); !fault.Is(err, fault.Limit) {
		t.Errorf("two bytes more: %v", err)
	}
	p := encoded(t, s)
	back, err := DecodeState(p)
	if err != nil || !bytes.Equal(encoded(t, back), p) {
		t.Fatalf("it does not come back: %v", err)
	}
	t.Logf("a full inventory is a snapshot of %d bytes", len(p))
}

// TestDecodeInventory refuses snapshots whose inventory or places cannot be.
func TestDecodeInventory(t *testing.T) {
	for name, spoil := range map[string]func(*State){
		"no entries":  func(s *State) { s.Inventory.Entries = nil },
		"a bad key":   func(s *State) { s.Inventory.Entries["a b"] = []byte("v") },
		"no value":    func(s *State) { s.Inventory.Entries["a"] = nil },
		"a large one": func(s *State) { s.Inventory.Entries["a"] = make([]byte, InventoryValueBytesMax+1) },
		"too many": func(s *State) {
			for i := range InventoryEntriesMax + 1 {
				s.Inventory.Entries[fmt.Sprint(i)] = []byte("v")
			}
		},
		"another's place": func(s *State) { s.Group["g"].Members = []Member{"b"} },
		"no order":        func(s *State) { s.Group["g"].Members = []Member{"b", "a"} },
	} {
		s := crowded(t)
		spoil(s)
		if _, err := DecodeState(encoded(t, s)); !fault.Is(err, fault.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// One of before there was an inventory is one that has none.
	s := crowded(t)
	p := bytes.Replace(encoded(t, s), []byte(`,"inventory":{"rev":0,"entries":{}}`), nil, 1)
	if back, err := DecodeState(p); err != nil || cmp.Diff(s, back) != "" {
		t.Errorf("%v: %s", err, cmp.Diff(s, back))
	}
}

// TestAssignBounds bounds the members that a group lists.
func TestAssignBounds(t *testing.T) {
	s := NewState()
	s.Boots["a"] = 1
	list := []Member{"a"}
	for i := range GroupMembersMax - 1 {
		list = append(list, Member(fmt.Sprint("b", i)))
	}
	create := func(list []Member) error {
		return s.Apply(1, Command{Kind: KindCreate, Group: "g", By: Incarnation{"a", 1}, Members: list})
	}
	if err := create(append(list, "c")); !fault.Is(err, fault.Limit) {
		t.Errorf("one more: %v", err)
	}
	if err := create(list); err != nil {
		t.Error(err)
	}
	list[0] = "z" // what the caller does with its list afterwards is nobody's
	if !s.Group["g"].Allows("a") {
		t.Error("the group has its proposer's list")
	}
}

// BenchmarkClone is the cost of each entry of the log, with a full inventory.
func BenchmarkClone(b *testing.B) {
	s := NewState()
	for i := range InventoryEntriesMax {
		s.Inventory.Entries[fmt.Sprint(i)] = []byte("v")
	}
	for i := range 100 {
		name := fmt.Sprint(i)
		s.Group[name] = &Group{Name: name, Set: make([]Incarnation, 2)}
	}
	for b.Loop() {
		s.Clone()
	}
}
