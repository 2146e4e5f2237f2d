package ha

import (
	"context"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// TestInventoryReadsGroups: cluster/inventory reads a group's record, and so the sizes
// of volumes that machines have, in the form in which it is written here.
func TestInventoryReadsGroups(t *testing.T) {
	s := &Spec{Name: "g1"}
	for name, bytes := range map[string]int64{"vm1": 64 << 20, "home-vm1": 32 << 20} {
		if _, err := s.AddVolume(Volume{Name: name, Size: bytes, WriteCache: true}); err != nil {
			t.Fatal(err)
		}
	}
	empty := &Spec{Name: "g2"}
	inv := map[string][]byte{}
	for _, spec := range []*Spec{s, empty} {
		e, err := spec.edit()
		if err != nil {
			t.Fatal(err)
		}
		inv[e.Key] = e.Value
	}
	v, err := inventory.Read(inv)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]inventory.Group{
		"g1": {Volumes: map[string]int64{"vm1": 64 << 20, "home-vm1": 32 << 20}},
		"g2": {Volumes: map[string]int64{}},
	}
	if d := cmp.Diff(want, v.Groups); d != "" {
		t.Error(d)
	}
}

// editor is an inventory that somebody else changes before the first edit.
type editor struct {
	state *quorum.State
	first func()
}

// State implements quorumio.Editor.
func (e *editor) State() *quorum.State { return e.state }

// Edit implements quorumio.Editor.
func (e *editor) Edit(_ context.Context, base quorum.Revision, edits ...quorum.Edit) error {
	if first := e.first; first != nil {
		e.first = nil // it edits, too
		first()
	}
	if e.state.Inventory.Revision != base {
		return fault.New(fault.Stale, "another revision")
	}
	next := e.state.Clone()
	next.Inventory = quorum.Inventory{Revision: base + 1, Entries: maps.Clone(next.Inventory.Entries)}
	for _, d := range edits {
		if next.Inventory.Entries[d.Key] = d.Value; len(d.Value) == 0 {
			delete(next.Inventory.Entries, d.Key)
		}
	}
	e.state = next
	return nil
}

// TestGuards: a guard is asked of the revision that a change is made at: what came to
// stand on the group in between is seen.
func TestGuards(t *testing.T) {
	in := func(e *editor) error {
		return e.Edit(t.Context(), e.state.Inventory.Revision, quorum.Edit{Key: "stands", Value: []byte("1")})
	}
	guard := func(inv map[string][]byte, s *Spec) error {
		if inv["stands"] != nil {
			return fault.New(fault.Busy, "something stands on %s", s.Name)
		}
		return nil
	}
	for name, call := range map[string]func(*editor) error{
		"change": func(e *editor) error {
			return Change(t.Context(), e, "g", func(s *Spec) error { s.Delay++; return nil }, guard)
		},
		"delete": func(e *editor) error { return Delete(t.Context(), e, "g", guard) },
	} {
		record, err := (&Spec{Name: "g"}).edit()
		if err != nil {
			t.Fatal(err)
		}
		e := &editor{state: quorum.NewState()}
		if err := e.Edit(t.Context(), 0, record); err != nil {
			t.Fatal(err)
		}
		free := &editor{state: e.state}
		if err := call(free); err != nil || free.state == e.state {
			t.Errorf("%s with nothing in the way: %v", name, err)
		}
		e.first = func() {
			if err := in(e); err != nil {
				t.Error(err)
			}
		}
		if err := call(e); !fault.Is(err, fault.Busy) {
			t.Errorf("%s overtaken by what stands on the group: %v", name, err)
		}
	}
}
