package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/initiator"
	"steadfast/compute/initiator/initiatortest"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// running is a world with one host, whose machine runs.
func running(t *testing.T, with ...func(*Options)) (*world, *hostOf, *terminal) {
	t.Helper()
	w := newWorld(t, false, machinetest.Obey())
	x := w.host("h1", with...)
	w.start()
	w.place("h1", 1)
	return w, x, x.attach()
}

// wrote waits until the guest's disk has what it was told to write there.
func (x *hostOf) wrote(c *terminal) {
	x.w.t.Helper()
	x.types("d")
	x.says(c, "SECTOR0 ok\n")
	if s := x.w.s.sector(diskAt, 1); s != "SECTOR0 and more" {
		x.w.t.Errorf("the disk has %q", s)
	}
}

// TestRuns: a machine runs from its volumes, people see how it does, and when its guest powers
// off that is said, what was wanted of it ends, and its lock is given back.
func TestRuns(t *testing.T) {
	w, x, c := running(t)
	x.wrote(c)
	if b := w.lockBlock(); !b.Held || b.Generation != 1 || b.Owner != (vmlock.Owner{Host: 1, Boot: 1}) {
		t.Errorf("the lock is %+v", b)
	}
	m, err := x.Machine(t.Context(), vm)
	must(t, err)
	if m.Phase != Running || m.PID == 0 || m.Status.Count == 0 || m.Silent != nil || len(m.Disks) != 2 || m.Disks[1].Name != "root" || len(m.Disks[1].State.Paths) != 1 {
		t.Errorf("it does %+v", m)
	}
	if x.Report() != nil || len(x.Machines(t.Context())) != 1 {
		t.Error("what runs is reported as ended, or is not listed")
	}
	x.types("q")
	p := w.ends()
	if p.Ended != inventory.EndedShutdown || w.view(t).Machines[vm].Desired != inventory.Stopped {
		t.Errorf("ended as %+v", p)
	}
	if b := w.lockBlock(); b.Held || b.Generation != 1 {
		t.Errorf("the lock is %+v", b)
	}
	until(t, "the machine is forgotten", func() bool { return len(x.Machines(t.Context())) == 0 })
	until(t, "the console's end", c.isClosed)
	if _, err := x.Machine(t.Context(), vm); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	log, err := os.ReadFile(filepath.Join(x.dir, vm+".log"))
	if err != nil || string(log) != "up\nSECTOR0 ok\n" {
		t.Errorf("the log has %q, %v", log, err)
	}

	// And again: another run, on the same volumes and under another key.
	w.start()
	w.place("h1", 2)
	x.wrote(x.attach())
	if b := w.lockBlock(); !b.Held || b.Generation != 2 {
		t.Errorf("the lock is %+v", b)
	}
}

// TestStops: a machine that is to stop has its power button pressed; two readers have
// the console.
func TestStops(t *testing.T) {
	w, x, c := running(t)
	second := x.attach()
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop(vm) })
	if p := w.ends(); p.Ended != inventory.EndedStopped || p.Detail != "its guest powered off" {
		t.Errorf("ended as %+v", p)
	}
	for _, c := range []*terminal{c, second} {
		x.says(c, machinetest.ObeyBye)
	}
	if w.lockBlock().Held {
		t.Error("the lock is held")
	}
}

// TestForce: a guest that does not power off is ended when its grace is over.
func TestForce(t *testing.T) {
	w, x, c := running(t, func(o *Options) { o.Times.Grace = 50 * time.Millisecond })
	x.types("f")
	x.says(c, "##########")
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop(vm) })
	if p := w.ends(); p.Ended != inventory.EndedStopped || !strings.Contains(p.Detail, "by force") {
		t.Errorf("ended as %+v", p)
	}
}

// TestPressedAgain: a guest that takes no notice of its power button powers off when it is
// pressed again.
func TestPressedAgain(t *testing.T) {
	w, x, c := running(t, func(o *Options) { o.Times.Press = 20 * time.Millisecond })
	x.types(string(machinetest.ObeyIgnore))
	x.says(c, machinetest.ObeyIgnores)
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop(vm) })
	if p := w.ends(); p.Ended != inventory.EndedStopped || p.Detail != "its guest powered off" {
		t.Errorf("ended as %+v", p)
	}
	x.says(c, machinetest.ObeyBye)
}

// TestOff: a machine that is to be off at once is ended without its guest: one that runs, one
// whose guest does not power off, and one whose storage does not answer. Its lock is given
// back where that can be.
func TestOff(t *testing.T) {
	off := func(v *inventory.View) ([]quorum.Edit, error) { return v.PowerOff(vm) }
	ended := func(t *testing.T, w *world) {
		t.Helper()
		if p := w.ends(); p.Ended != inventory.EndedStopped || !strings.Contains(p.Detail, "by force, as was asked") {
			t.Errorf("ended as %+v", p)
		}
		if d := w.view(t).Machines[vm].Desired; d != inventory.Stopped {
			t.Errorf("it is wanted to be %q", d)
		}
	}
	t.Run("running", func(t *testing.T) {
		w, x, c := running(t)
		w.change(t, off)
		ended(t, w)
		until(t, "the console's end", c.isClosed)
		if w.lockBlock().Held || c.has(machinetest.ObeyBye) > 0 {
			t.Error("the lock is held, or its guest was asked")
		}
		w.start()
		w.place("h1", 2)
		x.wrote(x.attach())
	})
	t.Run("stopping", func(t *testing.T) {
		w, x, c := running(t)
		x.types("f")
		x.says(c, "##########")
		w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop(vm) })
		until(t, "its button was pressed", func() bool {
			m, err := x.Machine(t.Context(), vm)
			return err == nil && m.Phase == Stopping
		})
		w.change(t, off)
		ended(t, w)
	})
	t.Run("storage away", func(t *testing.T) {
		w, x, _ := running(t, func(o *Options) { o.Times.Drain = 50 * time.Millisecond })
		x.way.freeze(changes)
		x.types("d")
		until(t, "a write is on its way", func() bool { return x.way.sent.Load() > 0 })
		w.change(t, off)
		ended(t, w)
	})
}

// TestLeaves: a machine that is to leave its host is shut down there, and waits for another.
func TestLeaves(t *testing.T) {
	w, _, _ := running(t)
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.AskLeave(vm, 1) })
	if p := w.ends(); p.Ended != inventory.EndedMoved || w.view(t).Machines[vm].Desired != inventory.Running {
		t.Errorf("ended as %+v", p)
	}
}

// TestBegins: a guest that restarts, and one that is reset, begins anew under the same lock.
func TestBegins(t *testing.T) {
	w, x, c := running(t)
	x.types("r")
	until(t, "the second life", func() bool { return c.has(machinetest.ObeyUp) == 2 })
	x.types("f")
	x.says(c, "##########")
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Reset(vm) })
	until(t, "the third life", func() bool { return c.has(machinetest.ObeyUp) == 3 })
	x.wrote(c)
	m, err := x.Machine(t.Context(), vm)
	must(t, err)
	if m.Restarts != 1 || m.Resets != 1 || m.Phase != Running {
		t.Errorf("it does %+v", m)
	}
	if b := w.lockBlock(); b.Attempt != 1 || x.way.opened != 2 || x.heard(EventAgain) != 2 {
		t.Errorf("the lock is %+v, %d volumes were opened, %d events", b, x.way.opened, x.heard(EventAgain))
	}
}

// TestPanics: a guest that can do nothing any more has ended; nobody starts it again.
func TestPanics(t *testing.T) {
	w, x, _ := running(t)
	x.types("w")
	if p := w.ends(); p.Ended != inventory.EndedPanic || w.view(t).Machines[vm].Desired != inventory.Stopped {
		t.Errorf("ended as %+v", p)
	}
}

// TestDies: a machine whose process dies has failed, and is started again where there is HA.
func TestDies(t *testing.T) {
	w := newWorld(t, true, machinetest.Obey())
	x, y := w.host("h1"), w.host("h2")
	w.start()
	w.place("h1", 1)
	x.attach()
	m, err := x.Machine(t.Context(), vm)
	must(t, err)
	p, err := os.FindProcess(m.PID)
	must(t, err)
	must(t, p.Kill())
	c := y.attach()
	y.wrote(c)
	if p := w.view(t).Placements[vm]; p.Host != "h2" || p.Generation != 2 || p.Restarts != 1 {
		t.Errorf("placed as %+v", p)
	}
}

// TestCannot: what a host cannot run is said, with what to do.
func TestCannot(t *testing.T) {
	for name, c := range map[string]struct {
		kernel []byte
		with   func(*Options)
		change func(*world)
		says   string
	}{
		"no kernel":    {says: "--kernel"},
		"bad kernel":   {kernel: make([]byte, 4096), says: "kernel"},
		"no volume":    {kernel: machinetest.Obey(), change: func(w *world) { delete(w.s.volumes, diskAt) }, says: "opening the volume disk"},
		"small volume": {kernel: machinetest.Obey(), change: func(w *world) { w.s.volumes[diskAt].data = make([]byte, 512) }, says: "has 512 bytes"},
		"no network":   {kernel: machinetest.Obey(), with: func(o *Options) { o.Attach = nil }, says: "no network"},
		"no lock":      {kernel: machinetest.Obey(), change: func(w *world) { clear(w.s.volumes[homeAt].data[:512]) }, says: "register"},
		"another's home": {kernel: machinetest.Obey(), change: func(w *world) {
			b := vmlock.Block{VM: vmlock.ID{9}}.Encode()
			copy(w.s.volumes[homeAt].data, b[:])
		}, says: "09000000"},
		"no folder": {kernel: machinetest.Obey(), with: func(o *Options) { o.Temp = "/nowhere" }, says: "boots from"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, false, c.kernel)
			var with []func(*Options)
			if c.with != nil {
				with = append(with, c.with)
			}
			w.host("h1", with...)
			if c.change != nil {
				c.change(w)
			}
			w.start()
			w.place("h1", 1)
			if p := w.ends(); p.Ended != inventory.EndedFailed || !strings.Contains(p.Detail, c.says) {
				t.Errorf("ended as %+v", p)
			}
		})
	}
}

// TestUnreachable: a machine waits for volumes that cannot be reached; it can be stopped
// meanwhile, and begins when they can.
func TestUnreachable(t *testing.T) {
	w := newWorld(t, false, machinetest.Obey())
	x := w.host("h1")
	x.way.fail(fault.New(fault.Unreachable, "no portal answers"))
	w.start()
	w.place("h1", 1)
	x.awaits(EventWaits)
	m, err := x.Machine(t.Context(), vm)
	must(t, err)
	if m.Phase != Starting || !strings.Contains(m.Step, "no portal answers") {
		t.Errorf("it does %+v", m)
	}
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop(vm) })
	if p := w.ends(); p.Ended != inventory.EndedStopped || w.lockBlock().Generation != 0 {
		t.Errorf("ended as %+v", p)
	}
	waited := x.heard(EventWaits) // once a volume, unless it was stopped before
	w.start()
	w.place("h1", 2)
	until(t, "another attempt", func() bool { return x.heard(EventWaits) > waited })
	x.way.mu.Lock()
	tried := x.way.opened
	x.way.mu.Unlock()
	until(t, "more tries", func() bool {
		x.way.mu.Lock()
		defer x.way.mu.Unlock()
		return x.way.opened > tried+4
	})
	x.Host.mu.Lock()
	names := x.opened
	x.Host.mu.Unlock()
	if names > 4 { // of two volumes, in two runs
		t.Errorf("%d names of nexuses were given while no volume could be reached", names)
	}
	x.way.fail(nil)
	x.attach()
}

// TestStopsBeforeLock: storage that answers nothing does not keep a machine from being
// stopped before it has begun; what was on its way to the lock lands, and harms nobody.
func TestStopsBeforeLock(t *testing.T) {
	w := newWorld(t, false, machinetest.Obey())
	x := w.host("h1")
	x.way.freeze(all)
	w.start()
	w.place("h1", 1)
	until(t, "the attempt at the lock", func() bool {
		m, err := x.Machine(t.Context(), vm)
		return err == nil && m.Step == "takes the lock"
	})
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop(vm) })
	if p := w.ends(); p.Ended != inventory.EndedStopped {
		t.Errorf("ended as %+v", p)
	}
	x.way.thaw()
	w.start()
	w.place("h1", 2)
	x.wrote(x.attach())
}

// TestTakenOver: a host that is frozen with a write on its way is taken over from. When it
// wakes nothing of it lands, it ends its machine, and tells; nothing else is harmed.
func TestTakenOver(t *testing.T) {
	for name, c := range map[string]struct {
		check time.Duration
		holds func(*unit, bool, int64) bool
		// sent is how many writes of the first host arrive when it wakes.
		sent int
	}{
		"frozen":           {times.Check, all, 0}, // the guest's read is on its way, and the look at the lock
		"writes":           {times.Check, changes, 1},
		"writes, no looks": {time.Hour, changes, 1},
	} {
		t.Run(name, func(t *testing.T) { takeOver(t, c.check, c.holds, c.sent) })
	}
}

func takeOver(t *testing.T, check time.Duration, holds func(*unit, bool, int64) bool, sent int) {
	w, x, c := running(t, func(o *Options) { o.Times.Check = check })
	y := w.host("h2")
	x.wrote(c)
	x.member.cut()
	x.way.freeze(holds)
	x.types("d")
	if sent > 0 {
		until(t, "the guest's write is on its way", func() bool { return c.has("SECTOR0 ") == 2 && x.way.sent.Load() > 0 })
	}
	w.place("h2", 2)
	d := y.attach()
	w.s.setSector(diskAt, 0, "the second host's")
	y.types("d")
	y.says(d, "the secook\n")
	w.s.change(diskAt, func(u *unit) {
		if u.conflicts != 0 {
			t.Errorf("%d writes were refused", u.conflicts)
		}
	})
	if check < time.Hour && sent > 0 {
		x.awaits(EventFenced) // its looks pass
	}
	x.way.thaw()
	x.awaits(EventFenced)
	until(t, "the first host's process has ended", func() bool {
		m, err := x.Machine(t.Context(), vm)
		return err == nil && m.Phase == Ended && m.PID == 0
	})
	until(t, "all has arrived", func() (so bool) {
		w.s.change(diskAt, func(u *unit) { so = u.conflicts >= sent })
		return so
	})
	if s := w.s.sector(diskAt, 1); s != "the second host's" {
		t.Errorf("the disk has %q", s)
	}
	if n := c.has("ok\n"); n != 1 {
		t.Errorf("the first host's guest was answered %d times", n)
	}
	x.member.mend()
	until(t, "it is forgotten", func() bool { return len(x.Machines(t.Context())) == 0 })
	y.types("d")
	until(t, "the second host's machine runs on", func() bool { return d.has("the secook\n") == 2 })
	if p := w.view(t).Placements[vm]; p.Host != "h2" || !p.Active() || p.Generation != 2 {
		t.Errorf("placed as %+v", p)
	}
}

// TestLivesApart: another life of the guest does not begin before all has landed that the one
// before had written.
func TestLivesApart(t *testing.T) {
	w, x, c := running(t)
	x.way.freeze(changes)
	x.types("d")
	x.says(c, "SECTOR0 ")
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Reset(vm) })
	until(t, "it waits", func() bool {
		m, err := x.Machine(t.Context(), vm)
		return err == nil && strings.Contains(m.Step, "the life before")
	})
	if n := c.has(machinetest.ObeyUp); n != 1 {
		t.Errorf("%d lives have begun", n)
	}
	x.way.thaw()
	until(t, "the second life", func() bool { return c.has(machinetest.ObeyUp) == 2 })
	if s := w.s.sector(diskAt, 1); s != "SECTOR0 and more" {
		t.Errorf("the disk has %q", s)
	}

	// One that is to stop meanwhile does.
	x.way.freeze(changes)
	x.types("d")
	until(t, "the guest writes", func() bool { return c.has("SECTOR0 ") == 2 })
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Reset(vm) })
	until(t, "it waits", func() bool {
		m, err := x.Machine(t.Context(), vm)
		return err == nil && strings.Contains(m.Step, "the life before")
	})
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop(vm) })
	x.way.thaw()
	if p := w.ends(); p.Ended != inventory.EndedStopped {
		t.Errorf("ended as %+v", p)
	}
}

// TestHomeAway: a machine whose home volume answers nothing while it is read is stopped, and one
// that is taken over meanwhile ends.
func TestHomeAway(t *testing.T) {
	home := func(w *world) func(*unit, bool, int64) bool {
		return func(u *unit, change bool, off int64) bool { return !change && off > 0 && u == w.s.volumes[homeAt] }
	}
	reads := func(t *testing.T) (*world, *hostOf) {
		w := newWorld(t, false, machinetest.Obey())
		x := w.host("h1")
		x.way.freeze(home(w))
		w.start()
		w.place("h1", 1)
		until(t, "it reads its home", func() bool {
			m, err := x.Machine(t.Context(), vm)
			return err == nil && m.Step == "reads its home volume"
		})
		return w, x
	}
	t.Run("stopped", func(t *testing.T) {
		w, _ := reads(t)
		w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop(vm) })
		if p := w.ends(); p.Ended != inventory.EndedStopped {
			t.Errorf("ended as %+v", p)
		}
	})
	t.Run("taken over", func(t *testing.T) {
		w, x := reads(t)
		y := w.host("h2")
		x.member.cut()
		w.place("h2", 2)
		y.attach()
		x.awaits(EventFenced)
		x.member.mend()
	})
}

// TestNoPath: people are told of a disk that has had no path for a while, once, and of its end.
func TestNoPath(t *testing.T) {
	_, x, _ := running(t)
	away := func(d time.Duration) {
		x.way.mu.Lock()
		defer x.way.mu.Unlock()
		x.way.away = d
	}
	away(waitingAfter)
	x.awaits(EventWaits)
	away(0)
	x.awaits(EventRoom)
	if n := x.heard(EventWaits); n != 1 {
		t.Errorf("told %d times", n)
	}
}

// TestConflict: a write that meets a conflict ends the machine before any look at the lock
// does; its guest does not see the error.
func TestConflict(t *testing.T) {
	w, x, c := running(t, func(o *Options) { o.Times.Check = time.Hour })
	y := w.host("h2")
	x.wrote(c)
	x.member.cut()
	w.place("h2", 2)
	y.attach()
	if x.heard(EventFenced) != 0 {
		t.Fatal("somebody has told the first host")
	}
	w.s.setSector(diskAt, 0, "from the second one")
	x.types("d")
	x.awaits(EventFenced)
	until(t, "its end", func() bool {
		m, err := x.Machine(t.Context(), vm)
		return err == nil && m.Phase == Ended
	})
	if n := c.has("ok\n"); n != 1 {
		t.Errorf("its guest was answered %d times", n)
	}
	w.s.change(diskAt, func(u *unit) {
		if u.conflicts != 1 {
			t.Errorf("%d writes were refused", u.conflicts)
		}
	})
	if s := w.s.sector(diskAt, 1); s != "SECTOR0 and more" {
		t.Errorf("the disk has %q", s)
	}
	x.member.mend()
}

// TestReaderNotices: a host whose guest writes nothing finds out by its look at the lock.
func TestReaderNotices(t *testing.T) {
	w, x, c := running(t)
	y := w.host("h2")
	x.member.cut()
	w.place("h2", 2)
	y.attach()
	x.awaits(EventFenced)
	until(t, "the console's end", c.isClosed)
	x.member.mend()
	until(t, "it is forgotten", func() bool { return len(x.Machines(t.Context())) == 0 })
}

// TestTold: a host that hears that its machine is placed elsewhere ends it, and says nothing.
func TestTold(t *testing.T) {
	w, x, c := running(t, func(o *Options) { o.Times.Check = time.Hour })
	y := w.host("h2")
	w.place("h2", 2)
	until(t, "the console's end", c.isClosed)
	until(t, "it is forgotten", func() bool { return len(x.Machines(t.Context())) == 0 })
	y.wrote(y.attach())
	if p := w.view(t).Placements[vm]; !p.Active() || x.heard(EventEnded) != 0 {
		t.Errorf("placed as %+v, %d ends told", p, x.heard(EventEnded))
	}
}

// TestSuperseded: a lock block that has seen more than the inventory has the machine placed
// above it.
func TestSuperseded(t *testing.T) {
	w := newWorld(t, false, machinetest.Obey())
	x := w.host("h1")
	b := w.lockBlock()
	b.Generation, b.Owner, b.Attempt, b.Nonce = 7, vmlock.Owner{Host: 99, Boot: 3}, 1, [16]byte{1}
	p := b.Encode()
	w.s.change(homeAt, func(u *unit) { copy(u.data, p[:]) })
	w.start()
	w.place("h1", 1)
	x.wrote(x.attach())
	if b := w.lockBlock(); b.Generation != 8 || w.view(t).Placements[vm].Generation != 8 {
		t.Errorf("the lock is %+v", b)
	}
}

// TestLost: a host that was declared lost ends its machines, comes back in a new life, and runs
// what is placed on that.
func TestLost(t *testing.T) {
	w, x, c := running(t)
	m, err := x.Machine(t.Context(), vm)
	must(t, err)
	x.member.mu.Lock()
	x.member.asked = func() {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", m.PID)); err == nil {
			t.Error("another life is entered while a process of the one before lives")
		}
	}
	x.member.mu.Unlock()
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.HostLost("h1", 1, 2) })
	until(t, "the console's end", c.isClosed)
	until(t, "another life", func() bool { return x.State().Boot == 2 })
	if p := w.view(t).Placements[vm]; !p.Active() || x.heard(EventHostOver) != 1 || x.heard(EventEnded) != 0 {
		t.Errorf("placed as %+v, %d", p, x.heard(EventEnded))
	}
	w.place("h1", 2)
	x.wrote(x.attach())
	if b := w.lockBlock(); b.Owner.Boot != 2 {
		t.Errorf("the lock is %+v", b)
	}
}

// TestLostWhileFrozen: so does one whose storage answers nothing.
func TestLostWhileFrozen(t *testing.T) {
	w, x, c := running(t)
	x.way.freeze(all)
	x.types("d")
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.HostLost("h1", 1, 2) })
	until(t, "the console's end", c.isClosed)
	until(t, "another life", func() bool { return x.State().Boot == 2 })
}

// TestUnsaid: how a machine ended while there was no quorum is said when there is one, though
// the host was declared lost by then.
func TestUnsaid(t *testing.T) {
	w, x, _ := running(t)
	x.member.cut()
	x.types("q")
	until(t, "its end", func() bool { return len(x.Report()) == 1 })
	if p := w.view(t).Placements[vm]; !p.Active() {
		t.Errorf("placed as %+v", p)
	}
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.HostLost("h1", 1, 2) })
	x.member.mend()
	if p := w.ends(); p.Ended != inventory.EndedShutdown {
		t.Errorf("ended as %+v", p)
	}
	until(t, "it is forgotten", func() bool { return len(x.Machines(t.Context())) == 0 })
}

// TestFull: a machine whose write finds no space waits, people are told, and it goes on.
func TestFull(t *testing.T) {
	w, x, c := running(t)
	w.s.change(diskAt, func(u *unit) { u.full = true })
	x.types("d")
	x.awaits(EventFull)
	m, err := x.Machine(t.Context(), vm)
	must(t, err)
	if m.Full["root"] == "" || m.Phase != Running {
		t.Errorf("it does %+v", m)
	}
	w.s.change(diskAt, func(u *unit) { u.full = false })
	x.says(c, "ok\n")
	x.awaits(EventRoom)

	// One that waits for space is stopped, and nothing is held.
	w.s.change(diskAt, func(u *unit) { u.full = true })
	x.types("d")
	until(t, "the machine waits", func() bool { return x.heard(EventFull) == 2 })
	must(t, x.Close())
	if kids := children(); len(kids) > 0 {
		t.Errorf("there are processes: %v", kids)
	}
}

// TestDrains: what a machine has asked of a disk that answers nothing does not keep its end
// from being said; the lock is left as it is then.
func TestDrains(t *testing.T) {
	w, x, c := running(t, func(o *Options) { o.Times.Drain, o.Times.Grace = 50*time.Millisecond, 50*time.Millisecond })
	x.wrote(c)
	x.way.freeze(all)
	x.types("d")
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop(vm) })
	if p := w.ends(); p.Ended != inventory.EndedStopped {
		t.Errorf("ended as %+v", p)
	}
	if !w.lockBlock().Held {
		t.Error("the lock was given back while a command was under way")
	}
	x.way.thaw()
	w.start()
	w.place("h1", 2)
	x.wrote(x.attach())
}

// TestDefines: the inventory has the machine's definition; its home gets it, when the machine
// begins, and not before its lock is held.
func TestDefines(t *testing.T) {
	w := newWorld(t, false, machinetest.Obey())
	x := w.host("h1")
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) {
		return v.ChangeMachine(vm, func(m *inventory.Machine) error {
			m.Memory, m.CommandLine = 2*machinetest.ObeyMemory, "quiet"
			return nil
		})
	})
	w.start()
	w.place("h1", 1)
	x.attach()
	v, err := w.s.way("admin").open(t.Context(), homeAt, [6]byte{2})
	must(t, err)
	h, err := vmhome.Open(v)
	must(t, err)
	d, ok := h.Definition()
	if !ok || d.Memory != 2*machinetest.ObeyMemory || d.CommandLine != "quiet" || d.Revision == 0 || d.Kernel == nil || d.Policy != inventory.Restart {
		t.Errorf("the home has %+v", d)
	}
}

// TestGate: nothing that changes a volume passes before its lock is held, nor after.
func TestGate(t *testing.T) {
	s := newSAN()
	u := s.add(diskAt, 4096)
	v, err := s.way("h").open(t.Context(), diskAt, [6]byte{1})
	must(t, err)
	g := newGate(v, func() { t.Error("a conflict") })
	p := make([]byte, 512)
	change := func() (errs []error) {
		_, caw := g.CompareAndWrite(0, p, p, 0)
		return []error{g.WriteAt(p, 0, 0), g.Zero(0, 512, 0), g.Trim(0, 512), g.Flush(), caw}
	}
	refused := func(when string) {
		t.Helper()
		for i, err := range change() {
			if !fault.Is(err, fault.Fenced) {
				t.Errorf("%s change %d: %v", when, i, err)
			}
		}
		if u.writes != 0 {
			t.Errorf("%s %d writes passed", when, u.writes)
		}
	}
	refused("before")
	must(t, g.ReadAt(p, 0))
	g.open()
	for i, err := range change() {
		if err != nil {
			t.Errorf("change %d: %v", i, err)
		}
	}
	if u.writes != 4 {
		t.Errorf("%d writes passed", u.writes)
	}
	g.shut()
	g.open()
	u.writes = 0
	refused("after")
	if err := g.ReadAt(p, 0); !fault.Is(err, fault.Fenced) {
		t.Error(err)
	}
}

// TestGateHolds: what a guest whose lock is lost has asked for is not answered while it is there.
func TestGateHolds(t *testing.T) {
	s := newSAN()
	s.add(diskAt, 4096)
	w := s.way("h")
	mine, err := w.open(t.Context(), diskAt, [6]byte{1})
	must(t, err)
	other, err := w.open(t.Context(), diskAt, [6]byte{2})
	must(t, err)
	must(t, other.Register(t.Context(), 7))
	must(t, other.Reserve(t.Context(), vmlock.ReservationType))
	told := make(chan struct{})
	g := newGate(mine, func() { close(told) })
	gone := make(chan struct{})
	g.begin(4096, gone)
	g.open()
	answers := make(chan error, 2)
	w.freeze(func(_ *unit, change bool, _ int64) bool { return !change })
	before := w.sent.Load()
	go func() { answers <- g.ReadAt(make([]byte, 512), 0) }() // on its way when the lock is lost
	until(t, "the read is on its way", func() bool { return w.sent.Load() > before })
	go func() { answers <- g.WriteAt(make([]byte, 512), 0, 0) }()
	<-told
	w.thaw()
	w.flying.Wait()
	select {
	case err := <-answers:
		t.Errorf("it is answered: %v", err)
	case <-time.After(20 * time.Millisecond): // it would have been
	}
	close(gone)
	<-answers
	<-answers
}

// TestInitiators: a lock is taken and given back through initiators.
func TestInitiators(t *testing.T) {
	target, err := initiatortest.New(initiatortest.Options{Size: 1 << 20})
	must(t, err)
	defer target.Close()
	id := vmlock.ID{5}
	block := vmlock.Block{VM: id}.Encode()
	target.Poke(0, block[:])
	open := Initiators(func(_ context.Context, at At) (initiator.Config, error) {
		if at != homeAt {
			return initiator.Config{}, fault.New(fault.NotFound, "no volume %v", at)
		}
		return initiator.Config{Initiator: "iqn.2026-11.test:host", Target: initiatortest.Name, Portals: target.Addrs()}, nil
	})
	if v, err := open(t.Context(), diskAt, [6]byte{0x80, 1}); v != nil || !fault.Is(err, fault.NotFound) {
		t.Errorf("%v, %v", v, err)
	}
	v, err := open(t.Context(), homeAt, [6]byte{0x80, 1})
	must(t, err)
	k, err := newKeeper(vmlock.Config{VM: id, Me: vmlock.Owner{Host: 1, Boot: 1}, Generation: 3, Attempt: 1}, []Volume{v}, time.Millisecond, func(err error) { t.Error(err) })
	must(t, err)
	defer k.close()
	select {
	case <-k.held:
	case <-k.over:
		t.Fatal(k.err)
	case <-time.After(patience):
		t.Fatal("the lock is not held")
	}
	must(t, k.gates[0].WriteAt([]byte(strings.Repeat("data", 128)), 4096, 0))
	must(t, k.release(patience))
	b, err := vmlock.Decode([vmlock.BlockSize]byte(target.Peek(0, 512)))
	if err != nil || b.Held || b.Generation != 3 || string(target.Peek(4096, 4)) != "data" {
		t.Errorf("the lock is %+v, %v", b, err)
	}
	if f := target.Faults(); len(f) > 0 {
		t.Error(f)
	}
}

// TestNames: nexuses of one host have names of their own, over its lives.
func TestNames(t *testing.T) {
	h := &Host{boot: 1}
	seen := map[[6]byte]bool{}
	for _, boot := range []uint32{1, 2, inventory.BootMax} {
		h.boot, h.opened = boot, 0
		for i := range 3 {
			id, err := h.isid()
			must(t, err)
			if seen[id] || id[0] != 0x80 {
				t.Errorf("boot %d: %d is %x", boot, i, id)
			}
			seen[id] = true
		}
	}
	h.opened = isidCountMax + 1
	if _, err := h.isid(); !fault.Is(err, fault.Limit) {
		t.Error(err)
	}
}

// TestOptions: a host without what it needs is none.
func TestOptions(t *testing.T) {
	if _, err := Open(Options{Name: "h1"}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}
