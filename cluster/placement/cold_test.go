package placement

import (
	"testing"
	"time"

	"steadfast/cluster/inventory"
)

// TestEverythingDown: the loss of a host counts against a machine that was restarted already
// when a node has heard of its life, and not when the nodes were down as well.
func TestEverythingDown(t *testing.T) {
	const now = int64(time.Hour)
	placed := now - int64(30*time.Second)
	v := &inventory.View{
		Clusters: map[string]*inventory.Cluster{"k": {Name: "k", HA: true}},
		Hosts:    map[string]*inventory.Host{"h1": {Name: "h1", Cluster: "k"}},
		Lives:    map[string]*inventory.HostLife{"h1": {Host: "h1", Boot: 2, State: inventory.Up, Since: now - int64(settle), Memory: 1 << 30}},
		Machines: map[string]*inventory.Machine{"m": {Name: "m", Cluster: "k", Policy: inventory.Restart, Desired: inventory.Running, Run: 1, Hardware: inventory.Hardware{Memory: 1 << 20}}},
		Placements: map[string]*inventory.Placement{
			"m": {Machine: "m", Host: "h1", Boot: 1, Generation: 4, Run: 1, Restarts: 1, Since: placed},
		},
	}
	for name, c := range map[string]struct {
		first [2]uint32 // life that each node heard of first; 0: none
		again bool
	}{
		"all nodes have come up since": {[2]uint32{2, 2}, true},
		"one heard of nobody yet":      {[2]uint32{0, 2}, true},
		"one has heard of it":          {[2]uint32{2, 1}, false},
		"both have":                    {[2]uint32{1, 1}, false},
	} {
		var heard []Heard
		for _, boot := range c.first {
			n := Heard{Node: "n", Listening: time.Minute, Hosts: []Report{{Host: "h1", Boot: 2}}}
			if boot > 0 {
				n.First = map[string]uint32{"h1": boot}
			}
			heard = append(heard, n)
		}
		all := Decide(v, heard, now)
		if len(all) != 1 {
			t.Fatalf("%s: decided %v", name, all)
		}
		switch d := all[0].(type) {
		case Place:
			if !c.again || d.Restarts != 1 || d.Generation != 5 {
				t.Errorf("%s: decided %+v", name, d)
			}
		case End:
			if c.again || d.Why != inventory.EndedHostLost {
				t.Errorf("%s: decided %+v", name, d)
			}
		default:
			t.Errorf("%s: decided %+v", name, d)
		}
	}

	// A host that is lost just now may be the first of all: that is not the end yet.
	v.Lives["h1"].Since = now - int64(settle) + 1
	all := Decide(v, []Heard{{Node: "n", Listening: time.Minute, First: map[string]uint32{"h1": 1}, Hosts: []Report{{Host: "h1", Boot: 2}}}}, now)
	if _, waits := all[0].(Wait); len(all) != 1 || !waits {
		t.Errorf("just now: decided %+v", all)
	}
}
