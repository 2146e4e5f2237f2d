package host

import (
	"context"
	"testing"
	"time"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// TestLeave: a host that ends in order says so of itself and of what was placed on it: that
// waits for another host, as no failure. Another process of the host begins another life.
func TestLeave(t *testing.T) {
	w, x, c := running(t)
	must(t, x.Leave(t.Context()))
	until(t, "the console's end", c.isClosed)
	if len(children()) > 0 {
		t.Error("the machine runs")
	}
	v := w.view(t)
	if p := v.Placements[vm]; p.Ended != inventory.EndedMoved || v.Machines[vm].Desired != inventory.Running {
		t.Errorf("ended as %+v", p)
	}
	if l := v.Lives["h1"]; l.State != inventory.Left || v.Standing("h1", 1) {
		t.Errorf("its life is %+v", l)
	}
	before := w.now().Inventory.Revision
	must(t, x.Leave(t.Context())) // twice
	must(t, x.Close())
	if now := w.now().Inventory.Revision; now != before {
		t.Error("it says so twice")
	}
	_, _, err := v.HostUp(inventory.HostLife{Host: "h1", ID: v.Lives["h1"].ID}, 1)
	if !fault.Is(err, fault.Fenced) {
		t.Errorf("the life is entered again: %v", err)
	}
	if boot, _, err := v.HostUp(inventory.HostLife{Host: "h1", ID: "1.2"}, 1); err != nil || boot != 2 {
		t.Errorf("the next one is %d, %v", boot, err)
	}
	if _, err := v.HostLost("h1", 1, 1); !fault.Is(err, fault.Stale) {
		t.Errorf("what has left is lost: %v", err)
	}
}

// TestLeaveStopping: what was to stop has stopped, and what had ended by itself is told as that.
func TestLeaveStopping(t *testing.T) {
	w, x, c := running(t)
	x.types("f") // its guest does not look at the button
	x.says(c, "##########")
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop(vm) })
	until(t, "the button is pressed", func() bool {
		m, err := x.Machine(t.Context(), vm)
		return err == nil && m.Phase == Stopping
	})
	must(t, x.Leave(t.Context()))
	if p := w.view(t).Placements[vm]; p.Ended != inventory.EndedStopped {
		t.Errorf("ended as %+v", p)
	}

	w, x, _ = running(t)
	x.member.cut()
	x.types("q")
	x.awaits(EventEnded)
	x.member.mend()
	must(t, x.Leave(t.Context()))
	if p := w.view(t).Placements[vm]; p.Ended != inventory.EndedShutdown || w.view(t).Machines[vm].Desired != inventory.Stopped {
		t.Errorf("ended as %+v", p)
	}
}

// TestLeaveUnheard: without a quorum it ends all the same, and says that it was not heard.
func TestLeaveUnheard(t *testing.T) {
	w, x, c := running(t)
	x.member.cut()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := x.Leave(ctx); !fault.Is(err, fault.Unreachable) {
		t.Error(err)
	}
	until(t, "the console's end", c.isClosed)
	if len(children()) > 0 || !w.view(t).Placements[vm].Active() {
		t.Error("the machine runs, or somebody knows that it does not")
	}
}
