package node

import (
	"strings"
	"testing"

	"steadfast/cluster/inventory"
	"steadfast/fault"
	"steadfast/node/ha"
)

// TestGuards: volumes of machines, groups that are datastores and members that are
// hosts stay; others may go; and what cannot be read counts as standing on them.
func TestGuards(t *testing.T) {
	s := newSite(t, "a")
	s.built("h1")
	s.machine("m", "home1", 64<<20)
	_, inv := s.view()
	spec := &ha.Spec{Name: "g", Volumes: []ha.Volume{{Number: 1, Name: "home1"}, {Number: 2, Name: "home2"}}}
	elsewhere := &ha.Spec{Name: "g9", Volumes: spec.Volumes}
	check := func(what string, err error, kind fault.Kind, text string) {
		t.Helper()
		switch {
		case text == "" && err != nil:
			t.Errorf("%s: %v", what, err)
		case text != "" && (!fault.Is(err, kind) || !strings.Contains(err.Error(), text)):
			t.Errorf("%s: %v; want %q", what, err, text)
		}
	}
	check("a machine's volume", unusedVolume(1)(inv.Entries, spec), fault.Busy, `the machine "m"`)
	check("another volume", unusedVolume(2)(inv.Entries, spec), 0, "")
	check("a volume of that name in another group", unusedVolume(1)(inv.Entries, elsewhere), 0, "")
	check("a datastore's group", noDatastore(inv.Entries, spec), fault.Busy, `"steadfast datastore remove ds"`)
	check("another group", noDatastore(inv.Entries, elsewhere), 0, "")
	check("a host", noHost(inv.Entries, "h1"), fault.Busy, `"steadfast host remove h1"`)
	check("another member", noHost(inv.Entries, "b"), 0, "")

	inv.Entries["machine/n"] = []byte(`{"version":99,"revision":1,"name":"n"}`)
	inv.Entries["datastore/n"] = []byte(`{"version":99,"revision":1,"name":"n"}`)
	check("a volume that an unread machine may have", unusedVolume(2)(inv.Entries, spec), fault.Stale, "cannot be read")
	check("a group that an unread datastore may be", noDatastore(inv.Entries, elsewhere), fault.Stale, "cannot be read")
}

// TestSiteMetrics: hosts and machines are counted by what is decided of them.
func TestSiteMetrics(t *testing.T) {
	got := map[string]float64{}
	labels := map[string]int{}
	for _, f := range siteFamilies() {
		labels[f.name] = len(f.labels)
	}
	put := func(name string, v float64, l ...string) {
		if n, ok := labels[name]; !ok || n != len(l) {
			t.Errorf("%s%q has no family with as many labels", name, l)
		}
		got[strings.Join(append([]string{name}, l...), " ")] = v
	}
	life := func(state inventory.State) *inventory.HostLife { return &inventory.HostLife{Boot: 1, State: state} }
	machine := func(name string, d inventory.Desired) *inventory.Machine {
		return &inventory.Machine{Name: name, Cluster: "k", Desired: d, Run: 1}
	}
	placed := func(host string, ended inventory.Ending) *inventory.Placement {
		return &inventory.Placement{Host: host, Boot: 1, Run: 1, Ended: ended}
	}
	v := &inventory.View{
		Clusters: map[string]*inventory.Cluster{"k": {Name: "k"}},
		Hosts: map[string]*inventory.Host{
			"h1": {Name: "h1", Cluster: "k"}, "h2": {Name: "h2", Cluster: "k"}, "h3": {Name: "h3", Cluster: "k"}, "h4": {Name: "h4", Cluster: "k", Maintenance: true},
			"h5": {Name: "h5", Cluster: "k"},
		},
		Lives: map[string]*inventory.HostLife{"h1": life(inventory.Up), "h2": life(inventory.Lost), "h4": life(inventory.Lost), "h5": life(inventory.Left)},
		Machines: map[string]*inventory.Machine{
			"new": machine("new", inventory.Stopped), "on": machine("on", inventory.Running), "off": machine("off", inventory.Stopped),
			"ending": machine("ending", inventory.Stopped), "between": machine("between", inventory.Running), "next": machine("next", inventory.Running),
			"lost": machine("lost", inventory.Stopped), "panic": machine("panic", inventory.Stopped), "again": machine("again", inventory.Stopped),
		},
		Placements: map[string]*inventory.Placement{
			"on": placed("h1", ""), "off": placed("h1", inventory.EndedShutdown), "ending": placed("h1", ""), "between": placed("h2", ""),
			"lost": placed("h2", inventory.EndedHostLost), "panic": placed("h1", inventory.EndedPanic), "again": placed("h1", inventory.EndedFailed),
		},
	}
	v.Machines["again"].Run = 2 // what failed was the start before
	collectSite(put, v, map[string]uint64{"place": 3})
	want := map[string]float64{
		"hosts k up": 1, "hosts k left": 1, "hosts k lost": 1, "hosts k unknown": 1, "hosts k maintenance": 1,
		"host_lost k h1": 0, "host_lost k h2": 1, "host_lost k h3": 0, "host_lost k h4": 0, "host_lost k h5": 0,
		"machines k running": 1, "machines k stopping": 1, "machines k waiting": 2, "machines k stopped": 3, "machines k panicked": 1, "machines k failed": 1,
		"placement_decisions_total place": 3,
	}
	for name, n := range want {
		if is, there := got[name]; !there || is != n {
			t.Errorf("%s is %v, not %v", name, is, n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d metrics, not %d: %v", len(got), len(want), got)
	}
	none := func(name string, _ float64, _ ...string) { t.Errorf("%s without a cluster of hosts", name) }
	collectSite(none, &inventory.View{}, map[string]uint64{"place": 0})
}
