package node

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/node/control"
	"steadfast/node/ha"
)

// reachWorld is what members' access is derived from.
type reachWorld struct {
	specs []*ha.Spec
	view  *inventory.View
	roll  quorum.Roll
}

// newReachWorld has a datastore with two machines of two clusters with a host each, two
// storage nodes and a witness, and a group that is no datastore.
func newReachWorld() *reachWorld {
	machine := func(name, cluster string, volumes ...string) *inventory.Machine {
		m := &inventory.Machine{Name: name, Cluster: cluster, Datastore: "ds", Home: volumes[0]}
		for _, v := range volumes[1:] {
			m.Disks = append(m.Disks, inventory.Disk{Name: v, Volume: v})
		}
		return m
	}
	w := &reachWorld{
		specs: []*ha.Spec{
			{Name: "g", Target: "iqn.t:g", Volumes: []ha.Volume{
				{Number: 3, ID: "id3", Name: "m2.home"},
				{Number: 1, ID: "id1", Name: "m1.home"},
				{Number: 2, ID: "id2", Name: "m1.root"},
				{Number: 7, ID: "id7", Name: "free"},
				{Number: lunMax + 1, ID: "far", Name: "m1.far"},
			}},
			{Name: "plain", Target: "iqn.t:plain", Volumes: []ha.Volume{{Number: 1, ID: "p1", Name: "m1.home"}}},
		},
		view: &inventory.View{
			Hosts:      map[string]*inventory.Host{"h1": {Name: "h1", Cluster: "c1"}, "h2": {Name: "h2", Cluster: "c2"}},
			Datastores: map[string]*inventory.Datastore{"ds": {Name: "ds", Group: "g"}},
			Machines:   map[string]*inventory.Machine{"m1": machine("m1", "c1", "m1.home", "m1.root", "m1.far"), "m2": machine("m2", "c2", "m2.home")},
		},
		roll: quorum.Roll{Members: map[quorum.Member]*quorum.Record{}},
	}
	for i, r := range []quorum.Record{
		{Name: "a", Role: quorum.RoleNode},
		{Name: "b", Role: quorum.RoleNode},
		{Name: "w", Role: quorum.RoleWitness},
		{Name: "h1", Role: quorum.RoleHost},
		{Name: "h2", Role: quorum.RoleHost},
		{Name: "h3", Role: quorum.RoleHost},
	} {
		r.ID = uint64(i + 1)
		w.roll.Members[r.Name] = &r
	}
	return w
}

func (w *reachWorld) derive(before *reach) *reach {
	return deriveReach("m:", w.specs, w.view, w.roll, before)
}

// seen returns the LUNs of what members see through a target.
func seen(r *reach, target string) map[string][]uint16 {
	out := map[string][]uint16{}
	for initiator, list := range r.view(target) {
		for _, m := range list {
			out[initiator] = append(out[initiator], m.LUN)
		}
	}
	return out
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %v; want %v", what, got, want)
	}
}

// TestReach: a storage node sees all of the groups that are datastores, a host what the
// machines of its cluster have, a witness and a member that is no host (yet) nothing. A
// volume whose number is no LUN is nobody's.
func TestReach(t *testing.T) {
	w := newReachWorld()
	r := w.derive(nil)
	expect(t, "the datastore", seen(r, "iqn.t:g"), map[string][]uint16{"m:a": {1, 2, 3, 7}, "m:b": {1, 2, 3, 7}, "m:h1": {1, 2}, "m:h2": {3}})
	expect(t, "the other group", seen(r, "iqn.t:plain"), map[string][]uint16{})
	want := control.Mapping{Target: "iqn.t:g", Initiator: "m:h1", LUN: 2, Volume: "id2", VolumeName: "m1.root", Group: "g"}
	if list := r.view("iqn.t:g")["m:h1"]; !slices.Contains(list, want) {
		t.Errorf("h1 sees %+v", list)
	}
}

// TestReachFollows: each kind of change shuts out or lets in whom it is about, and names the
// target that is to follow; what is of no consequence names none.
func TestReachFollows(t *testing.T) {
	both := []string{"m:a", "m:b"}
	for name, c := range map[string]struct {
		change   func(*reachWorld)
		targets  []string
		replaced []string
		h1, h2   []uint16
	}{
		"nothing":                    {change: func(*reachWorld) {}, h1: []uint16{1, 2}, h2: []uint16{3}},
		"a machine is wanted to run": {change: func(w *reachWorld) { w.view.Machines["m1"].Run++ }, h1: []uint16{1, 2}, h2: []uint16{3}},
		"a host is removed":          {change: func(w *reachWorld) { delete(w.view.Hosts, "h1") }, targets: []string{"iqn.t:g"}, h2: []uint16{3}},
		"a member is removed":        {change: func(w *reachWorld) { delete(w.roll.Members, "h1") }, targets: []string{"iqn.t:g"}, h2: []uint16{3}},
		"a machine is deleted":       {change: func(w *reachWorld) { delete(w.view.Machines, "m1") }, targets: []string{"iqn.t:g"}, h2: []uint16{3}},
		"a disk is taken away":       {change: func(w *reachWorld) { w.view.Machines["m1"].Disks = nil }, targets: []string{"iqn.t:g"}, h1: []uint16{1}, h2: []uint16{3}},
		"a machine changes clusters": {change: func(w *reachWorld) { w.view.Machines["m1"].Cluster = "c2" }, targets: []string{"iqn.t:g"}, h2: []uint16{1, 2, 3}},
		"the datastore is another": {
			change:  func(w *reachWorld) { w.view.Datastores["ds"].Group = "plain" },
			targets: []string{"iqn.t:g", "iqn.t:plain"},
		},
		"a host left and joined again under its name": {
			change:  func(w *reachWorld) { w.roll.Members["h1"] = &quorum.Record{Name: "h1", Role: quorum.RoleHost, ID: 99} },
			targets: []string{"iqn.t:g"}, replaced: []string{"m:h1"}, h1: []uint16{1, 2}, h2: []uint16{3},
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := newReachWorld().derive(nil)
			w := newReachWorld()
			c.change(w)
			now := w.derive(before)
			targets, replaced := now.changed(before)
			expect(t, "to follow", targets, c.targets)
			expect(t, "replaced", replaced, c.replaced)
			got := seen(now, "iqn.t:g")
			for _, m := range both {
				delete(got, m)
			}
			want := map[string][]uint16{}
			if c.h1 != nil {
				want["m:h1"] = c.h1
			}
			if c.h2 != nil {
				want["m:h2"] = c.h2
			}
			expect(t, "hosts see", got, want)
		})
	}
}

// TestReachOfNewer: while a document cannot be read that a newer program wrote, what members
// saw stays; not so for a host that has gone, nor for one that has never been seen.
func TestReachOfNewer(t *testing.T) {
	before := newReachWorld().derive(nil)
	w := newReachWorld()
	delete(w.view.Machines, "m1")
	w.view.Unread = []string{"machine/m1"}
	expect(t, "a machine is unread", seen(w.derive(before), "iqn.t:g")["m:h1"], []uint16{1, 2})
	expect(t, "and was before this process", seen(w.derive(nil), "iqn.t:g")["m:h1"], []uint16(nil))
	twice := w.derive(w.derive(before))
	expect(t, "for long", seen(twice, "iqn.t:g")["m:h1"], []uint16{1, 2})

	w.specs[0].Volumes = slices.DeleteFunc(w.specs[0].Volumes, func(v ha.Volume) bool { return v.Number == 2 })
	expect(t, "a volume has gone", seen(w.derive(before), "iqn.t:g")["m:h1"], []uint16{1})
	delete(w.view.Hosts, "h1")
	expect(t, "its host has gone", seen(w.derive(before), "iqn.t:g")["m:h1"], []uint16(nil))

	w = newReachWorld()
	delete(w.view.Hosts, "h1")
	w.view.Unread = []string{"host/h1"}
	expect(t, "a host is unread", seen(w.derive(before), "iqn.t:g")["m:h1"], []uint16{1, 2})
	w.roll.Members["h1"].ID = 99
	expect(t, "and is another", seen(w.derive(before), "iqn.t:g")["m:h1"], []uint16(nil))
}

// TestMayReachOfNewer: a member asks the storage for what it cannot read of itself, and refuses by
// itself only what it knows.
func TestMayReachOfNewer(t *testing.T) {
	entries := map[string][]byte{}
	state := quorum.NewState()
	state.Roll = newReachWorld().roll
	state.Inventory.Entries = entries
	spec := newReachWorld().specs[0]
	for _, c := range []struct {
		unread string
		denied bool
	}{{"", true}, {"host/h2", true}, {"placement/m1", true}, {"host/h1", false}, {"machine/m9", false}, {"datastore/ds", false}} {
		clear(entries)
		if c.unread != "" {
			entries[c.unread] = []byte("{\"version\":1000000")
		}
		if err := mayReach(state, "m:", "m:h1", spec, spec.Volumes[1]); fault.Is(err, fault.Denied) != c.denied || !c.denied && err != nil {
			t.Errorf("unread: %q: %v", c.unread, err)
		}
	}
}

// TestSecretOnce: volumes that are opened at once have the secret fetched by one of them; a
// failure is the asker's own, and who gives up waits no longer.
func TestSecretOnce(t *testing.T) {
	p := newPaths(nil, 0, nil)
	var asked atomic.Int32
	begun, end := make(chan struct{}), make(chan struct{})
	failing := func(context.Context) (string, error) {
		asked.Add(1)
		close(begun)
		<-end
		return "", fault.New(fault.Unreachable, "nobody is there")
	}
	fetch := func(context.Context) (string, error) {
		asked.Add(1)
		return "secret", nil
	}
	var all sync.WaitGroup
	all.Go(func() {
		if s, err := p.once(t.Context(), failing); !fault.Is(err, fault.Unreachable) {
			t.Errorf("who fails has %q, %v", s, err)
		}
	})
	<-begun
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := p.once(gone, fetch); !fault.Is(err, fault.Unreachable) {
		t.Errorf("who gives up has %q, %v", s, err)
	}
	for range 100 {
		all.Go(func() {
			if s, err := p.once(t.Context(), fetch); s != "secret" || err != nil {
				t.Errorf("%q, %v", s, err)
			}
		})
	}
	close(end)
	all.Wait()
	if n := asked.Load(); n != 2 {
		t.Errorf("it was fetched %d times", n)
	}
}

// TestReachIsCheap: a change of the inventory that is about placements and lives alone is not
// looked at, and names no target; one of a machine is.
func TestReachIsCheap(t *testing.T) {
	state := quorum.NewState()
	state.Inventory.Revision, state.Inventory.Entries = 1, map[string][]byte{"machine/m": []byte("1"), "placement/m": []byte("1"), "life/h": []byte("1")}
	var a membersAccess
	a.follow("m:", state)
	first := a.now
	for key, looks := range map[string]bool{"placement/m": false, "life/h": false, "drained/a": false, "machine/m": true, "host/h": true, "group/g": true, "datastore/d": true} {
		for _, value := range [][]byte{[]byte("2"), nil} {
			next := state.Clone()
			next.Inventory.Revision += 2
			next.Inventory.Entries = map[string][]byte{"machine/m": []byte("1"), "placement/m": []byte("1"), "life/h": []byte("1")}
			if value == nil {
				if next.Inventory.Entries[key] == nil {
					continue
				}
				delete(next.Inventory.Entries, key)
			} else {
				next.Inventory.Entries[key] = value
			}
			b := a
			b.follow("m:", next)
			if (b.now != first) != looks {
				t.Errorf("%s to %q: looked at again: %v", key, value, b.now != first)
			}
		}
	}
	next := state.Clone()
	next.Roll.Revision++
	a.follow("m:", next)
	if a.now == first {
		t.Error("a change of the membership is not looked at")
	}
}
