package node

import (
	"context"
	"path/filepath"
	"syscall"
	"testing"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/host"
	"steadfast/compute/machine/machinetest"
	"steadfast/node/config"
)

// TestProtected: a machine with fault tolerance gets a secondary on the other host by itself, over
// that host's logging link; when its process is killed it goes on there, with what it has
// in memory and on the SAN, and when the first host is heard of in another life, it is protected
// again. A handing over brings it back.
func TestProtected(t *testing.T) {
	w := newAccessWorld(t)
	w.newMachine(t, "n")
	nodes, stops, configs := map[string]*Node{}, map[string]func(){}, map[string]config.Config{}
	up := func(name string, boot uint32) {
		t.Helper()
		nodes[name], stops[name] = startHosting(t, configs[name])
		if boot == 1 {
			joinAs(t, nodes[name], w.a, name)
			w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) {
				return v.AddHost(name, "k", inventory.Links{Logging: freeAddress(t)})
			})
		}
		eventually(t, "the host "+name+" is up", func() bool {
			v, err := w.a.site()
			return err == nil && v.Standing(name, boot)
		})
	}
	for _, name := range []string{"h1", "h2"} {
		c := hostConfig(t)
		c.Host.Box = "box of " + name
		c.Networks = []config.Network{{Name: "lan", Switch: filepath.Join(c.DataDir, "none")}}
		configs[name] = c
		up(name, 1)
	}
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Start("n") })
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.SetFT("n", inventory.FTOn, 1) })
	placed := func() *inventory.Placement {
		v, err := w.a.site()
		if err != nil {
			t.Fatal(err)
		}
		if p := v.Placements["n"]; p != nil {
			return p
		}
		return &inventory.Placement{Ended: inventory.EndedStopped}
	}
	protected := func(on string) {
		t.Helper()
		eventually(t, "it is protected on "+on, func() bool {
			p := placed()
			return p.Host == on && p.Second != nil && p.Second.Protected
		})
	}
	eventually(t, "the machine is placed", func() bool { return placed().Active() })
	first := placed().Host
	second := map[string]string{"h1": "h2", "h2": "h1"}[first]
	protected(first)
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	works := func(on string) {
		t.Helper()
		s, _ := watched(ctx, nodes[on], "n")
		eventually(t, "its guest answers on "+on, func() bool {
			if err := nodes[on].hostedType("n", []byte{machinetest.ObeyDisk}); err != nil {
				return false
			}
			return s.has("SECTOR0 ok\n")
		})
	}
	works(first)
	p, err := nodes[first].hostedStatus(within(t), "n")
	if err != nil || p.Pair.GetSide() != "primary" || !p.Pair.Protected || p.Pair.LogBytes == 0 || p.Pair.MemoryBytes == 0 {
		t.Fatalf("the primary does %v, %v", p, err)
	}
	s, err := nodes[second].hostedStatus(within(t), "n")
	if err != nil || s.Pair.GetSide() != "secondary" || s.Phase != string(host.Following) || s.Pid == 0 || s.Pair.MemoryBytes == 0 {
		t.Fatalf("the secondary does %v, %v", s, err)
	}

	if err := syscall.Kill(int(p.Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it goes on", func() bool { return placed().Host == second })
	if q := placed(); q.Generation != 1 || q.Restarts != 0 || q.Failovers != 1 {
		t.Errorf("placed as %+v", q)
	}
	works(second)
	if n := nodes[second].events.count(host.EventTookOver, ""); n != 1 {
		t.Errorf("people were told %d times", n)
	}
	stops[first]()
	up(first, 2)
	protected(second)

	h, err := nodes[second].hosted()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.HandOver(within(t), "n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is back", func() bool { return placed().Host == first })
	works(first)
}
