package host

import (
	"strings"
	"testing"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
)

// TestNamesake: a machine is deleted, and another of its name placed here with the same generation,
// while this host hears of nothing. It is another one: it begins, and what became of the first
// is not said of it. So it is when the host was lost meanwhile, and comes back under another life.
func TestNamesake(t *testing.T) {
	// The second one has no home: its end says that it was begun.
	const another = "fedcba9876543210fedcba9876543210"
	namesake := func(w *world) {
		m := *w.view(t).Machines[vm]
		m.ID = another
		w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.DeleteMachine(vm) })
		w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateMachine(m) })
		w.start()
	}
	began := func(w *world) {
		t.Helper()
		until(t, "it is placed", func() bool { return w.view(t).Placements[vm] != nil })
		p := w.ends()
		if p.ID != another || p.Generation != 1 || p.Ended != inventory.EndedFailed || !strings.Contains(p.Detail, "is that of the machine "+vmID) {
			t.Errorf("ended as %+v", p)
		}
	}
	t.Run("same life", func(t *testing.T) {
		w, x, _ := running(t)
		x.member.cut()
		x.types("q")
		until(t, "its end", func() bool { return len(x.Report()) == 1 })
		w.change(t, func(v *inventory.View) ([]quorum.Edit, error) {
			return v.End(vm, 1, inventory.EndedShutdown, "a node heard so", 2)
		})
		namesake(w)
		w.place("h1", 1)
		x.member.mend()
		began(w)
	})
	t.Run("another life", func(t *testing.T) {
		w, x, _ := running(t)
		x.member.cut()
		w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.HostLost("h1", 1, 2) })
		w.change(t, func(v *inventory.View) ([]quorum.Edit, error) {
			return v.End(vm, 1, inventory.EndedHostLost, "a node decided so", 2)
		})
		namesake(w)
		// It is placed as soon as the host is up again, before that has looked at what there is.
		placed := false
		x.member.mu.Lock()
		x.member.asked = func() {
			if placed {
				return
			}
			placed = true
			x.Host.mu.Lock()
			life := inventory.HostLife{Host: "h1", ID: x.life, Memory: 1 << 30}
			x.Host.mu.Unlock()
			w.change(t, func(v *inventory.View) ([]quorum.Edit, error) {
				_, edits, err := v.HostUp(life, 3)
				return edits, err
			})
			w.place("h1", 1)
		}
		x.member.mu.Unlock()
		x.member.mend()
		began(w)
	})
}
