package node

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/node/config"
)

// TestSecondaries: a machine with fault tolerance gets a secondary by itself, people end and move
// it, and what cannot be is refused with a reason; what happens is told once.
func TestSecondaries(t *testing.T) {
	type edits = []quorum.Edit
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, "a")
		a := s.nodes["a"]
		s.built("h1", "h2", "h3")
		defer s.run()()
		hosts := []quorum.Member{"h1", "h2", "h3"}
		s.pass(5*time.Second, hosts...)
		now := func() int64 { return time.Now().UnixNano() }
		do := func(rule func(*inventory.View, *inventory.Machine) (edits, error)) {
			t.Helper()
			s.amend(func(v *inventory.View) (edits, error) { return rule(v, v.Machines["m"]) })
			s.pass(time.Second, hosts...)
		}
		second := func() *inventory.Second {
			v, _ := s.view()
			return v.Placements["m"].Second
		}
		refused := func(text string, rule func(*inventory.View, *inventory.Machine) (edits, error)) {
			t.Helper()
			v, _ := s.view()
			if _, err := rule(v, v.Machines["m"]); err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%v; want %q", err, text)
			}
		}
		end := func(v *inventory.View, m *inventory.Machine) (edits, error) { return endSecondary(v, m, now()) }
		move := func(host string) func(*inventory.View, *inventory.Machine) (edits, error) {
			return func(v *inventory.View, m *inventory.Machine) (edits, error) { return moveSecondary(v, m, host, now()) }
		}
		s.machine("m", "home1", 512<<20)
		s.pass(time.Second, hosts...)
		refused("fault tolerance of the machine \"m\" is off", end)
		refused("fault tolerance of the machine \"m\" is off", move("h2"))
		do(func(v *inventory.View, m *inventory.Machine) (edits, error) {
			return v.SetFT("m", inventory.FTOn, now())
		})
		first, at := second(), s.host("m")
		if first == nil || first.Host == at {
			t.Fatalf("the machine is on %s, its secondary %+v", at, first)
		}
		third := map[string]string{"h1h2": "h3", "h1h3": "h2", "h2h1": "h3", "h2h3": "h1", "h3h1": "h2", "h3h2": "h1"}[at+first.Host]
		if told := a.told("machine-secondary"); len(told) != 1 || !strings.Contains(told[0], first.Host) {
			t.Errorf("told %q", told)
		}

		refused("does not exist", move("h9"))
		refused("runs the machine \"m\" itself", move(at))
		do(move(first.Host))
		if got := second(); *got != *first {
			t.Errorf("it moved from %+v to %+v", first, got)
		}
		do(move(third))
		if got := second(); got.Host != third || got.Pair != 2 {
			t.Errorf("it is on %+v, not on %s", got, third)
		}
		do(end)
		if got := second(); got == nil || got.Pair != 3 {
			t.Errorf("after a test it is %+v", got)
		}
		do(func(v *inventory.View, m *inventory.Machine) (edits, error) {
			return v.SetFT("m", inventory.FTDisabled, now())
		})
		refused("has no secondary (Disabled)", end)
		refused("is disabled", move(third))

		// The others go into maintenance: none is left, which is told once, and shown.
		for _, h := range []string{first.Host, third} {
			s.amend(func(v *inventory.View) (edits, error) { return v.SetMaintenance(h, true) })
		}
		do(func(v *inventory.View, m *inventory.Machine) (edits, error) {
			return v.SetFT("m", inventory.FTOn, now())
		})
		s.pass(5*time.Second, hosts...)
		if told := a.told("machine-waits"); len(told) != 1 || !strings.Contains(told[0], "for a secondary: the host ") || second() != nil {
			t.Errorf("told %q, secondary %+v", told, second())
		}
		if why := a.placer.whyWaits("m"); !strings.HasPrefix(why, "for a secondary: ") {
			t.Errorf("it is shown to wait for %q", why)
		}
		refused("cannot be there: the host "+third+" is in maintenance", move(third))

		// One comes back, and leaves again: the secondary ends by that.
		s.amend(func(v *inventory.View) (edits, error) { return v.SetMaintenance(third, false) })
		s.pass(time.Second, hosts...)
		if second() == nil {
			t.Error("it has no secondary")
		}
		s.amend(func(v *inventory.View) (edits, error) { return v.SetMaintenance(third, true) })
		s.pass(time.Second, hosts...)
		if told := a.told("machine-unprotected"); len(told) != 1 || !strings.Contains(told[0], "(user action)") || second() != nil {
			t.Errorf("told %q, secondary %+v", told, second())
		}
	})
}

// TestRefusals: a refusal is of the kind that its exit status says.
func TestRefusals(t *testing.T) {
	if err := isOn(&inventory.Machine{Name: "m"}); !fault.Is(err, fault.Busy) {
		t.Error(err)
	}
	if err := hasSecondary(&inventory.Machine{Name: "m", FT: inventory.FTOn}, nil); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "VM not Running") {
		t.Error(err)
	}
}

// TestDescribeProtection: how a machine is protected is told in the paper's words.
func TestDescribeProtection(t *testing.T) {
	placed := func(s *inventory.Second, parted *inventory.Parted) *inventory.Placement {
		return &inventory.Placement{Host: "h1", Second: s, Parted: parted, Failovers: 2}
	}
	lost := &inventory.Parted{Host: "h2", Why: inventory.PartLostConnection, Detail: "silence"}
	const because = "lost connection"
	for name, c := range map[string]struct {
		ft      inventory.FT
		desired inventory.Desired
		p       *inventory.Placement
		want    *steadfastv1.Protection
	}{
		"off":       {inventory.FTOff, inventory.Running, placed(nil, nil), nil},
		"stopped":   {inventory.FTOn, inventory.Stopped, nil, &steadfastv1.Protection{Why: "VM not Running"}},
		"waiting":   {inventory.FTOn, inventory.Running, nil, &steadfastv1.Protection{Why: "VM not Running"}},
		"ended":     {inventory.FTOn, inventory.Running, &inventory.Placement{Ended: inventory.EndedMoved, Failovers: 2}, &steadfastv1.Protection{Why: "VM not Running"}},
		"disabled":  {inventory.FTDisabled, inventory.Running, placed(nil, lost), &steadfastv1.Protection{Disabled: true, Why: "Disabled", Failovers: 2}},
		"needs one": {inventory.FTOn, inventory.Running, placed(nil, nil), &steadfastv1.Protection{Why: "Need Secondary VM", Because: "initializing", Waits: "no room", Failovers: 2}},
		"needs another": {
			inventory.FTOn, inventory.Running, placed(nil, lost),
			&steadfastv1.Protection{Why: "Need Secondary VM", Because: because, Detail: "silence", Waits: "no room", Failovers: 2},
		},
		"starting": {
			inventory.FTOn, inventory.Running, placed(&inventory.Second{Host: "h3", Pair: 4}, lost),
			&steadfastv1.Protection{Why: "Starting", Because: because, Detail: "silence", SecondaryHost: "h3", Pair: 4, Failovers: 2},
		},
		"protected": {
			inventory.FTOn, inventory.Running, placed(&inventory.Second{Host: "h3", Pair: 4, Protected: true}, nil),
			&steadfastv1.Protection{Protected: true, SecondaryHost: "h3", Pair: 4, Failovers: 2},
		},
	} {
		got := describeProtection(&inventory.Machine{FT: c.ft, Desired: c.desired}, c.p, "no room")
		if got != nil {
			got.Since = nil
		}
		if !proto.Equal(got, c.want) {
			t.Errorf("%s: %v; want %v", name, got, c.want)
		}
	}
}

// TestHostBox: a box is what the configuration says, or the computer.
func TestHostBox(t *testing.T) {
	if box := hostBox(config.Host{Box: "rack1"}); box != "rack1" {
		t.Errorf("the box is %q", box)
	}
	for text, want := range map[string]string{
		"0123456789abcdef0123456789abcdef\n": "0123456789abcdef0123456789abcdef",
		"uninitialized\n":                    "",
		"":                                   "",
		"00000000000000000000000000000000":   "",
		"0123456789ABCDEF0123456789abcdef":   "",
	} {
		if got := boxIn(text); got != want {
			t.Errorf("the machine-id %q is of the box %q; want %q", text, got, want)
		}
	}
	if list := privateNetworks([]config.Network{{Name: "lan", Bridge: "br0"}, {Name: "out", User: true}}); len(list) != 1 || list[0] != "out" {
		t.Errorf("networks of the process: %v", list)
	}
}
