package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/node/overview"
)

// twoBoxes is a usual site: two boxes with a node and a host each, a witness, two groups and so
// many machines.
func twoBoxes(machines int) *steadfastv1.Site {
	s := &steadfastv1.Site{
		Time: timestamppb.Now(), Cluster: &steadfastv1.Cluster{Id: "5a0c9ce1f5e4b1aa0123456789abcdef", Self: "a", Leader: "a"},
		HostClusters: []*steadfastv1.HostCluster{{Name: "prod", Ha: true}},
	}
	for name, role := range map[string]string{"a": "node", "b": "node", "w": "witness", "h1": "host", "h2": "host"} {
		box := map[string]string{"a": "1", "h1": "1", "b": "2", "h2": "2", "w": "3"}[name]
		m := &steadfastv1.SiteMember{
			Name: name, Role: role, Self: name == "a", Heard: true,
			Status: &steadfastv1.Status{State: "serving", Version: "1.0.0", Computer: box, Hostname: "box" + box + ".rack.example.org"},
		}
		if role == "node" {
			m.Status.Pools = []*steadfastv1.Pool{{Name: "tank", State: "online", UsedBytes: 21 << 30, CapacityBytes: 100 << 30, Volumes: 9}}
		}
		s.Members = append(s.Members, m)
		s.Cluster.Members = append(s.Cluster.Members, &steadfastv1.Member{Name: name, Role: role, Voter: role != "host", Reachable: true})
		if role == "host" {
			s.Hosts = append(s.Hosts, &steadfastv1.Host{Name: name, Cluster: "prod", State: "up", Memory: 1 << 40})
		}
	}
	for i, name := range []string{"g1", "g2"} {
		s.Groups = append(s.Groups, &steadfastv1.Group{
			Name: name, State: "serving", Nodes: []string{"a", "b"}, InSync: []string{"a", "b"}, Owner: []string{"a", "b"}[i], Epoch: 12,
			Aliases: []*steadfastv1.GroupAlias{{Address: fmt.Sprintf("192.0.2.%d/24", 50+i)}, {Address: fmt.Sprintf("2001:db8::%d/64", 50+i)}},
		})
	}
	for i := range machines {
		name := fmt.Sprintf("machine-with-a-long-name-%d", i)
		s.Machines = append(s.Machines, &steadfastv1.Machine{
			Name: name, Cluster: "prod", State: "running", Host: "h1", Protection: &steadfastv1.Protection{Protected: true, SecondaryHost: "h2"},
			Status: &steadfastv1.MachineStatus{Pair: &steadfastv1.PairStatus{Protected: true, LagNanoseconds: 12_345_678}},
		})
		for _, h := range s.Hosts {
			if h.Name == "h1" {
				h.Machines = append(h.Machines, name)
			} else {
				h.Secondaries = append(h.Secondaries, name)
			}
		}
	}
	return s
}

// sitePage judges and prints a site.
func sitePage(s *steadfastv1.Site) string {
	overview.Boxes(s)
	s.Risks = overview.Risks(s)
	return siteText(s)
}

// TestStatusPage: a usual site is on one screen, whatever its names are, and says what matters.
func TestStatusPage(t *testing.T) {
	text := sitePage(twoBoxes(6))
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) > 40 {
		t.Errorf("%d lines", len(lines))
	}
	for _, l := range lines {
		if n := len([]rune(l)); n > pageWidth {
			t.Errorf("%d columns: %s", n, l)
		}
	}
	for _, want := range []string{
		"state    serving\n", "quorum   3 of 3 votes heard (", "leader a\n", "192.0.2.50 2001:db8::50", "Protected", "12.3ms", "21%", "\nall is redundant\n", "machine-with-a-long-nam…",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	if t.Failed() {
		t.Log("\n" + text)
	}
}

// TestStatusTrouble: of many machines those in trouble are shown, and what to do of each.
func TestStatusTrouble(t *testing.T) {
	s := twoBoxes(40)
	s.Machines[37].State, s.Machines[37].Detail = "waiting", strings.Repeat("no host has the memory for it ", 5)
	s.Machines[38].Protection = &steadfastv1.Protection{Why: "Need Secondary VM", Because: "lost connection"}
	s.Groups[1].InSync, s.Groups[1].Sync = []string{"b"}, &steadfastv1.Sync{State: "resyncing", BytesLeft: 3 << 30, SecondsLeft: 75}
	text := sitePage(s)
	for _, want := range []string{
		"and 28 more, all fine: steadfast vm list", "waiting", "b, other resyncing (3 GiB left, 1m15s)",
		"does not work:\n  machine machine-with-a-long-name-37: it shall run", "not redundant:\n", "machine-with-a-long-name-38: Not Protected: Need Secondary VM", "steadfast ft status machine-with-a-long-name-38\"",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for l := range strings.Lines(text) {
		if n := len([]rune(strings.TrimSuffix(l, "\n"))); n > pageWidth {
			t.Errorf("%d columns: %s", n, l)
		}
	}
	if got := checked(s.Risks); !errors.Is(got, exitDown) {
		t.Errorf("--check: %v", got)
	}
	if got := checked(s.Risks[1:]); !errors.Is(got, exitExposed) {
		t.Errorf("--check without what is down: %v", got)
	}
	if got := checked(nil); got != nil {
		t.Errorf("--check of what is redundant: %v", got)
	}
}

// TestStatusVersions: members of several versions are told apart.
func TestStatusVersions(t *testing.T) {
	s := twoBoxes(0)
	for _, m := range s.Members {
		if m.Name == "b" {
			m.Status.Version = "1.1.0"
		}
		if m.Name == "w" {
			m.Status = nil
		}
	}
	if got := versions(s.Members); !strings.Contains(got, "1.1.0 on b") || !strings.Contains(got, "1.0.0 on ") || strings.Contains(got, "w") {
		t.Error(got)
	}
}
