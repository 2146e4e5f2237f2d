package overview

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	steadfastv1 "steadfast/api/steadfast/v1"
)

// site is a site of two boxes and a witness in which all is redundant.
func site() *steadfastv1.Site {
	member := func(name, role, computer string) *steadfastv1.SiteMember {
		return &steadfastv1.SiteMember{
			Name: name, Role: role, Heard: true, Address: "192.0.2.1:7400", Status: &steadfastv1.Status{State: "serving", Computer: computer, Hostname: "host-" + computer},
		}
	}
	s := &steadfastv1.Site{
		Cluster: &steadfastv1.Cluster{Leader: "a"},
		Members: []*steadfastv1.SiteMember{member("a", "node", "1"), member("b", "node", "2"), member("w", "witness", "3"), member("h1", "host", "1"), member("h2", "host", "2")},
		Groups: []*steadfastv1.Group{{
			Name: "g1", State: "serving", Nodes: []string{"a", "b"}, InSync: []string{"a", "b"}, Owner: "a", Sync: &steadfastv1.Sync{State: "in sync"},
		}},
		HostClusters: []*steadfastv1.HostCluster{{Name: "prod", Ha: true}},
		Hosts: []*steadfastv1.Host{
			{Name: "h1", Cluster: "prod", State: "up", Memory: 8 << 30, MemoryGiven: 2 << 30}, {Name: "h2", Cluster: "prod", State: "up", Memory: 8 << 30, MemoryGiven: 1 << 30},
		},
		Machines: []*steadfastv1.Machine{
			{Name: "db1", Cluster: "prod", State: "running", Host: "h1", Memory: 1 << 30, Protection: &steadfastv1.Protection{Protected: true, SecondaryHost: "h2"}},
			{Name: "web", Cluster: "prod", State: "running", Host: "h1", Memory: 1 << 30},
			{Name: "old", Cluster: "prod", State: "stopped"},
		},
	}
	for _, m := range s.Members {
		s.Cluster.Members = append(s.Cluster.Members, &steadfastv1.Member{Name: m.Name, Role: m.Role, Voter: m.Role != "host", Reachable: true})
		if m.Role == "node" {
			m.Status.Pools = []*steadfastv1.Pool{{
				Name: "tank", State: "online", CapacityBytes: 100, UsedBytes: 50, Drives: []*steadfastv1.Drive{{Path: "/dev/x", State: "online"}},
			}}
		}
	}
	return s
}

// dies takes members away as they are seen when they are dead.
func dies(s *steadfastv1.Site, names ...string) {
	for _, name := range names {
		for _, m := range s.Members {
			if m.Name == name {
				m.Heard, m.Status, m.Silent = false, nil, "it is not heard of"
			}
		}
		for _, m := range s.Cluster.Members {
			if m.Name == name {
				m.Reachable = false
			}
		}
	}
}

// TestRisks: each thing that does not work or would not survive the next failure is told of, and
// nothing else is.
func TestRisks(t *testing.T) {
	for name, c := range map[string]struct {
		hurt func(*steadfastv1.Site)
		want []string // level, subject, and a part of why
	}{
		"nothing": {hurt: func(*steadfastv1.Site) {}},
		"the witness is away": {
			func(s *steadfastv1.Site) { dies(s, "w") }, []string{"exposed quorum: w does not answer"},
		},
		"no majority": {
			func(s *steadfastv1.Site) {
				dies(s, "b", "w")
				s.Cluster.Leader, s.Groups[0].State, s.Groups[0].Problem = "", "unknown", "no majority"
			},
			[]string{"down quorum: this node hears 1 of 3 votes", "exposed group g1: no majority"},
		},
		"no witness": {
			func(s *steadfastv1.Site) {
				s.Cluster.Members, s.Members = s.Cluster.Members[:2], s.Members[:2]
				s.Hosts, s.Machines = nil, nil
			},
			[]string{"exposed quorum: it has 2 of the 3 votes"},
		},
		"the witness is on a node's box": {
			func(s *steadfastv1.Site) { s.Members[2].Status.Computer = "1" }, []string{"exposed quorum: a and w are in the box host-1"},
		},
		"both nodes in a box": {
			func(s *steadfastv1.Site) { s.Members[1].Status.Computer = "1" },
			[]string{"exposed quorum: a and b are in the box", "exposed group g1: a and b are in one box"},
		},
		"the cluster is out of reach": {
			func(s *steadfastv1.Site) { s.Cluster.Problem = "its address is taken" }, []string{"down quorum: this node cannot take part"},
		},
		"a box dies": {
			func(s *steadfastv1.Site) {
				dies(s, "b", "h2")
				s.Groups[0].InSync, s.Groups[0].Sync = []string{"a"}, &steadfastv1.Sync{State: "away"}
				s.Groups[0].Problem = "not redundant: node b is not in sync"
				s.Hosts[1].State = "lost"
				s.Machines[0].Protection = &steadfastv1.Protection{Why: "Need Secondary VM", Because: "lost connection", Waits: "the host h2 is not up"}
			},
			[]string{
				"exposed quorum: b does not answer", "exposed group g1: a alone has all of it: b is not in sync", "exposed host h2: it counts as lost",
				"exposed machine db1: Not Protected: Need Secondary VM (lost connection): the host h2 is not up", "exposed machine web: no other host has the 1 GiB",
			},
		},
		"a resync": {
			func(s *steadfastv1.Site) {
				s.Groups[0].InSync, s.Groups[0].Sync = []string{"a"}, &steadfastv1.Sync{State: "resyncing", BytesLeft: 1 << 30, SecondsLeft: 90}
			},
			[]string{"exposed group g1: a alone has all of it: b is resynced, 1 GiB left, 1m30s"},
		},
		"a group that nobody serves": {
			func(s *steadfastv1.Site) {
				s.Groups[0].State, s.Groups[0].Problem = "waiting", "its owner has ended"
			},
			[]string{"down group g1: its owner has ended"},
		},
		"pools": {
			func(s *steadfastv1.Site) {
				s.Members[0].Status.Pools[0].UsedBytes = 86
				s.Members[1].Status.Pools[0].State, s.Members[1].Status.Pools[0].Problem = "absent", "no drive"
			},
			[]string{"down pool tank of b: it is absent: no drive", "exposed pool tank of a: it is 86 % full"},
		},
		"a full pool, and a drive": {
			func(s *steadfastv1.Site) {
				s.Members[0].Status.Pools[0].UsedBytes = 100
				s.Members[1].Status.Pools[0].Drives[0].State = "failed"
			},
			[]string{"down pool tank of a: it is full", "down pool tank of b: its drive /dev/x is failed"},
		},
		"volumes of one node": {
			func(s *steadfastv1.Site) { s.Members[0].Status.Alone = []string{"v1", "v2", "v3", "v4"} },
			[]string{"exposed volume v1, v2, v3 and 1 more: a alone has them"},
		},
		"a member that does not say": {
			func(s *steadfastv1.Site) { s.Members[1].Status, s.Members[1].Silent = nil, "time is up" },
			[]string{"exposed node b: it is heard of, and does not say how it is: time is up"},
		},
		"a node that waits": {
			func(s *steadfastv1.Site) {
				s.Members[0].Status.State, s.Members[0].Status.Problem = "waiting", "pool tank"
			},
			[]string{"down node a: its portals are shut: pool tank"},
		},
		"machines": {
			func(s *steadfastv1.Site) {
				s.Machines[0].State, s.Machines[0].Detail = "waiting", "no memory"
				s.Machines[1].State, s.Machines[2].State = "panicked", "failed"
			},
			[]string{"down machine db1: it shall run, and no host runs it: no memory", "down machine web: its guest has panicked", "down machine old: it is not started again"},
		},
		"a machine that waits for storage": {
			func(s *steadfastv1.Site) {
				s.Machines[0].Status = &steadfastv1.MachineStatus{Volumes: []*steadfastv1.MachineVolumeStatus{{Volume: "db1.root", AwaySince: timestamppb.Now()}}}
			},
			[]string{"down machine db1: it waits for its volume db1.root, which h1 does not reach"},
		},
		"a machine that waits for space": {
			func(s *steadfastv1.Site) {
				s.Machines[0].Status = &steadfastv1.MachineStatus{Full: map[string]string{"root": "no space", "data": "no space"}}
			},
			[]string{"down machine db1: it waits for space for its disk data: no space", "down machine db1: it waits for space for its disk root"},
		},
		"protection is disabled, and starts": {
			func(s *steadfastv1.Site) {
				s.Machines[0].Protection = &steadfastv1.Protection{Disabled: true, Why: "Disabled"}
				s.Machines[1].Protection = &steadfastv1.Protection{Why: "Starting", Because: "initializing"}
			},
			[]string{"exposed machine db1: Not Protected: its fault tolerance is disabled", "exposed machine web: Not Protected: Starting"},
		},
		"no HA": {
			func(s *steadfastv1.Site) { s.HostClusters[0].Ha = false }, []string{"exposed machine web: the cluster prod has no HA"},
		},
		"maintenance": {
			func(s *steadfastv1.Site) { s.Hosts[1].Maintenance = true },
			[]string{"exposed host h2: it is in maintenance", "exposed machine web: no other host"},
		},
		"left on purpose": {
			func(s *steadfastv1.Site) {
				s.Machines[1].Policy = "leave"
				s.Hosts[1].MemoryGiven = 8 << 30
			}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := site()
			c.hurt(s)
			Boxes(s)
			got := Risks(s)
			for i, r := range got {
				line := r.Level + " " + r.Subject + ": " + r.Why
				if i >= len(c.want) || !strings.HasPrefix(line, c.want[i]) {
					t.Errorf("not wanted: %s", line)
				}
				if r.Remedy == "" {
					t.Errorf("%s: nothing to do", line)
				}
			}
			if len(got) < len(c.want) {
				t.Errorf("%d risks; want %v", len(got), c.want)
			}
		})
	}
}

// TestAlone: of a node in no cluster there is only what it has.
func TestAlone(t *testing.T) {
	s := &steadfastv1.Site{Members: []*steadfastv1.SiteMember{{Role: "node", Self: true, Heard: true, Status: &steadfastv1.Status{State: "serving"}}}}
	Boxes(s)
	if got := Risks(s); len(got) > 0 {
		t.Errorf("an empty node: %v", got)
	}
	s.Members[0].Status.Alone = []string{"v1"}
	if got := Risks(s); len(got) != 1 || got[0].Subject != "volume v1" || got[0].Level != Exposed {
		t.Errorf("a volume on a node alone: %v", got)
	}
}

// TestBoxes: who dies with whom is as people say, then as computers are, then as addresses are.
func TestBoxes(t *testing.T) {
	const id1, id2 = "11111111111111111111111111111111", "22222222222222222222222222222222"
	member := func(name, address string, st *steadfastv1.Status) *steadfastv1.SiteMember {
		return &steadfastv1.SiteMember{Name: name, Address: address, Status: st}
	}
	s := &steadfastv1.Site{
		Members: []*steadfastv1.SiteMember{
			member("a", "192.0.2.1:7400", &steadfastv1.Status{Computer: id1, Hostname: "one"}),
			member("b", "192.0.2.2:7400", nil), // dead, at its host's address
			member("w", "192.0.2.3:7400", &steadfastv1.Status{Computer: "3", Hostname: "three"}),
			member("h1", "192.0.2.1:7401", &steadfastv1.Status{Computer: id1, Hostname: "one", Box: "rack1"}),
			member("h2", "192.0.2.2:7401", &steadfastv1.Status{Computer: id2, Hostname: "two"}),
			member("h3", "192.0.2.4:7401", nil), // dead, and has said where it is
			member("h4", "192.0.2.5:7401", nil), // dead, and nobody knows
			member("t1", "127.0.0.1:1", nil),    // of a trial: all have that address
		},
		Hosts: []*steadfastv1.Host{{Name: "h1", Box: "rack1"}, {Name: "h2", Box: id2}, {Name: "h3", Box: "rack3"}, {Name: "h4", Box: "44444444444444444444444444444444"}},
	}
	Boxes(s)
	got := map[string]string{}
	for _, m := range s.Members {
		got[m.Name] = m.Box
	}
	want := map[string]string{"a": "rack1", "b": "two", "w": "three", "h1": "rack1", "h2": "two", "h3": "rack3", "h4": "", "t1": ""}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}

	// Computers of one name are not one.
	s = &steadfastv1.Site{Members: []*steadfastv1.SiteMember{
		member("a", "192.0.2.1:1", &steadfastv1.Status{Computer: id1, Hostname: "debian"}), member("b", "192.0.2.2:1", &steadfastv1.Status{Computer: id2, Hostname: "debian"}),
	}}
	Boxes(s)
	if s.Members[0].Box != "debian/11111111" || s.Members[1].Box != "debian/22222222" {
		t.Errorf("computers of one name: %v", s.Members)
	}

	// Several boxes of one computer, as in a trial: a node that says none is in none of those.
	s = &steadfastv1.Site{Members: []*steadfastv1.SiteMember{
		member("a", "127.0.0.1:1", &steadfastv1.Status{Computer: id1, Hostname: "one"}),
		member("h1", "127.0.0.1:2", &steadfastv1.Status{Computer: id1, Hostname: "one", Box: "box1"}),
		member("h2", "127.0.0.1:3", &steadfastv1.Status{Computer: id1, Hostname: "one", Box: "box2"}),
	}}
	Boxes(s)
	if s.Members[0].Box != "one" || s.Members[1].Box != "box1" || s.Members[2].Box != "box2" {
		t.Errorf("a trial's boxes: %v", s.Members)
	}
}
