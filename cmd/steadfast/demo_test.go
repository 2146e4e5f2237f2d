package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// stands is a site with its owner, its leader, and where the machine and its secondary are.
func stands(owner, leader, host, secondary string, pair uint64) *standing {
	return &standing{
		group: &steadfastv1.Group{Owner: owner, Epoch: 7}, leader: leader,
		machine: &steadfastv1.Machine{Host: host, Generation: 3, Protection: &steadfastv1.Protection{Protected: true, SecondaryHost: secondary, Pair: pair}},
		lock:    vmlock.Block{Generation: 3, Turn: uint32(pair)},
	}
}

// TestKillNames: what can be killed, by name.
func TestKillNames(t *testing.T) {
	if got, err := killNames("owner, box-leader"); err != nil || !slices.Equal(got, []string{"owner", "box-leader"}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := killNames("switch"); !fault.Is(err, fault.Invalid) {
		t.Errorf("the switch: %v", err)
	}
	for _, name := range allKills() {
		if k, ok := kinds()[name]; !ok || k.target == nil {
			t.Errorf("%s is no kind", name)
		}
	}
}

// TestTargets: what is killed is what is at work.
func TestTargets(t *testing.T) {
	s := stands("b", "w", "h2", "h3", 1)
	for name, want := range map[string]string{"primary": "h2", "secondary": "h3", "owner": "b", "witness": "w", "box": "b h2", "box-leader": "b h2"} {
		members, what := kinds()[name].target(s)
		if strings.Join(members, " ") != want || what == "" {
			t.Errorf("%s: %v, %q", name, members, what)
		}
	}
	if _, what := kinds()["witness"].target(s); what != "witness w and raft leader" {
		t.Errorf("%q", what)
	}
	s.leader = "b"
	if _, what := kinds()["box-leader"].target(s); what != "box-b: node b, the owner and raft leader, and host h2, where the machine lives" {
		t.Errorf("%q", what)
	}
}

// TestBoxFor: the box with the least to be moved, whose node does not lead.
func TestBoxFor(t *testing.T) {
	for _, c := range []struct {
		s        *standing
		want     int
		arranged bool
	}{
		{stands("a", "w", "h1", "h3", 1), 0, true},
		{stands("b", "w", "h1", "h3", 1), 0, false},
		{stands("b", "w", "h3", "h2", 1), 1, false},
		{stands("b", "w", "h3", "h1", 1), 0, false},
		{stands("a", "a", "h1", "h3", 1), 1, false},
	} {
		if got := boxFor(c.s); got != c.want || isArranged(c.s) != c.arranged {
			t.Errorf("owner %s, leader %s, machine on %s and %s: box %d, arranged %v", c.s.group.Owner, c.s.leader, c.s.machine.Host, c.s.machine.Protection.SecondaryHost, got, isArranged(c.s))
		}
	}
}

// TestCounts: a kill counts if somebody took over from the target, by the lock for the machine,
// and the machine lived on.
func TestCounts(t *testing.T) {
	was := stands("a", "w", "h1", "h2", 1)
	after := func(change func(*standing)) *standing {
		now := stands("a", "w", "h2", "h3", 2)
		now.machine.Protection.Failovers = 1
		change(now)
		return now
	}
	box, primary, witness := []string{"a", "h1"}, []string{"h1"}, []string{"w"}
	for _, c := range []struct {
		name    string
		members []string
		now     *standing
		over    bool
		want    fault.Kind // 0 with good: it counts
		good    bool
	}{
		{"went on", primary, after(func(*standing) {}), true, 0, true},
		{"as it was", primary, stands("a", "w", "h1", "h2", 1), false, fault.Failed, false},
		{"the lock did not rise", primary, after(func(s *standing) { s.lock.Turn = 1 }), true, fault.Failed, false},
		{"restarted", primary, after(func(s *standing) { s.machine.Generation, s.lock.Generation = 4, 4 }), true, fault.Failed, false},
		{"the same host, another secondary", primary, after(func(s *standing) { s.machine.Host, s.machine.Protection.Failovers = "h1", 0 }), true, fault.Failed, false},
		{"the storage did not move", box, after(func(*standing) {}), false, 0, true},
		{"both moved", box, after(func(s *standing) { s.group.Owner, s.group.Epoch = "b", 8 }), true, 0, true},
		{"nothing to take over", witness, stands("a", "a", "h1", "h2", 1), true, 0, true},
	} {
		if got := tookOver(was, c.now, c.members); got != c.over {
			t.Errorf("%s: taken over %v", c.name, got)
		}
		if err := counts(was, c.now, c.members); c.good && err != nil || !c.good && !fault.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestDemoTable: a time that was none shows as such.
func TestDemoTable(t *testing.T) {
	text := demoTable([]demoRow{{name: "owner", what: "node a, which owns the group", stall: 1500 * time.Millisecond, requests: 42, synced: 4 * time.Second}})
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 2 || !slices.Equal(strings.Fields(lines[1]), strings.Fields("owner node a, which owns the group - 1.50 0.00 42 0 0 0 0 4.0 -")) {
		t.Errorf("%s", text)
	}
}

// TestChildren: what a process has started is found, and is dead when it was killed with it.
func TestChildren(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	found := childrenOf(os.Getpid())
	i := slices.IndexFunc(found, func(s started) bool { return s.process.Pid == cmd.Process.Pid })
	if i < 0 || found[i].guard {
		t.Fatalf("%v has not %d", found, cmd.Process.Pid)
	}
	if err := found[i].process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it ended by itself")
	}
}
