package host

import (
	"context"
	"errors"
	"testing"
	"time"

	"steadfast/block"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
	"steadfast/iscsi"
)

// editor opens the machine's volumes as the cluster itself, for a generation that is reserved.
func (w *world) editor(x *way) EditOptions {
	w.t.Helper()
	var generation uint64
	w.change(w.t, func(v *inventory.View) (edits []quorum.Edit, err error) {
		generation, edits, err = v.ReserveGeneration(vm)
		return edits, err
	})
	o := EditOptions{
		ID: vmID, Generation: generation, Owner: vmlock.Owner{Host: inventory.EditorNumber, Boot: inventory.EditorBoot},
		Check: times.Check, Drain: times.Drain,
	}
	for i, at := range []At{homeAt, diskAt} {
		v, err := x.open(w.t.Context(), at, iscsi.ISID{0x80, byte(generation), byte(i)})
		must(w.t, err)
		o.Volumes = append(o.Volumes, v)
	}
	w.t.Cleanup(func() {
		x.thaw()
		x.flying.Wait()
		for i, v := range o.Volumes {
			if err := v.ReadAt(make([]byte, block.SectorSize), 0); !fault.Is(err, fault.Canceled) {
				w.t.Errorf("volume %d is not closed: %v", i, err)
			}
		}
	})
	return o
}

func sectorOf(text string) []byte {
	return append([]byte(text), make([]byte, block.SectorSize-len(text))...)
}

// TestEdit: what is written into a machine that has stopped is what it runs with; the lock
// is given back; and again, after it has run.
func TestEdit(t *testing.T) {
	w := newWorld(t, false, machinetest.Obey())
	for _, text := range []string{"SECTOR0 edited", "SECTOR0 again"} {
		o := w.editor(w.s.way("editor"))
		must(t, Edit(t.Context(), o, func(home *vmhome.Home, disks []block.Device) error {
			if b := w.lockBlock(); !b.Held || b.Owner != o.Owner || b.Generation != o.Generation {
				t.Errorf("while it is written the lock is %+v", b)
			}
			d, ok := home.Definition()
			if !ok || len(disks) != 1 || disks[0].Size() != diskBytes {
				t.Errorf("it is given %+v and %d disks", d, len(disks))
			}
			d.Name = "edited"
			return errors.Join(home.Save(d, nil, nil), disks[0].WriteAt(sectorOf(text), 0, 0))
		}))
		if b := w.lockBlock(); b.Held || b.Generation != o.Generation {
			t.Errorf("after it the lock is %+v", b)
		}
		if s := w.s.sector(diskAt, 0); s != text {
			t.Errorf("the disk has %q", s)
		}
		x := w.hosts["h1"]
		if x == nil {
			x = w.host("h1")
		}
		w.start()
		w.place("h1", o.Generation+1)
		c := x.attach()
		x.types("d")
		x.says(c, "SECTOR0 ok\n")
		x.types("q")
		if p := w.ends(); p.Ended != inventory.EndedShutdown {
			t.Errorf("ended as %+v", p)
		}
	}
}

// TestEditFenced: a machine that is started while it is written into fences the editor: the
// write that is on its way does not land, nor the next one, and Edit says so.
func TestEditFenced(t *testing.T) {
	w := newWorld(t, false, machinetest.Obey())
	x := w.host("h1")
	way := w.s.way("editor")
	o := w.editor(way)
	err := Edit(t.Context(), o, func(home *vmhome.Home, disks []block.Device) error {
		must(t, disks[0].WriteAt(sectorOf("before"), 2*block.SectorSize, 0))
		way.freeze(func(u *unit, change bool, off int64) bool { return change && off == 3*block.SectorSize })
		flown := make(chan error, 1)
		go func() { flown <- disks[0].WriteAt(sectorOf("on its way"), 3*block.SectorSize, 0) }()
		until(t, "a write is on its way", func() bool { return way.sent.Load() > 0 })
		w.start()
		w.place("h1", o.Generation+1)
		until(t, "the machine runs", func() bool { return x.heard(EventStarted) > 0 })
		way.thaw()
		if err := <-flown; err == nil {
			t.Error("a write of before the machine's start was answered Good after it")
		}
		err := disks[0].WriteAt(sectorOf("after"), 4*block.SectorSize, 0)
		if err == nil {
			t.Error("a write after the machine's start was answered Good")
		}
		d, _ := home.Definition()
		if home.Save(d, nil, nil) == nil {
			t.Error("the home was written after the machine's start")
		}
		return err
	})
	if !fault.Is(err, fault.Fenced) {
		t.Errorf("it ends with %v", err)
	}
	for i, want := range map[int]string{2: "before", 3: "", 4: ""} {
		if s := w.s.sector(diskAt, i); s != want {
			t.Errorf("sector %d has %q; want %q", i, s, want)
		}
	}
	if b := w.lockBlock(); !b.Held || b.Owner.Host != 1 {
		t.Errorf("the lock is %+v", b)
	}
}

// TestEditFencedUnnoticed: an editor that writes nothing more when the machine is started does not
// say that all is well.
func TestEditFencedUnnoticed(t *testing.T) {
	w := newWorld(t, false, machinetest.Obey())
	x := w.host("h1")
	o := w.editor(w.s.way("editor"))
	o.Check = time.Hour // it does not look
	err := Edit(t.Context(), o, func(*vmhome.Home, []block.Device) error {
		w.start()
		w.place("h1", o.Generation+1)
		until(t, "the machine runs", func() bool { return x.heard(EventStarted) > 0 })
		return nil
	})
	if !fault.Is(err, fault.Fenced) {
		t.Errorf("it ends with %v", err)
	}
}

// TestEditRefused: who comes with an older generation, or to another machine's volumes, writes
// nothing; an error of who writes is told, and the lock given back; and whoever gives up leaves at
// once, though storage does not answer.
func TestEditRefused(t *testing.T) {
	w := newWorld(t, false, machinetest.Obey())
	never := func(*vmhome.Home, []block.Device) error {
		t.Error("it is let at the volumes")
		return nil
	}
	older, newer := w.editor(w.s.way("older")), w.editor(w.s.way("newer"))
	broken := fault.New(fault.Invalid, "a broken file")
	err := Edit(t.Context(), newer, func(*vmhome.Home, []block.Device) error { return broken })
	if !errors.Is(err, broken) || w.lockBlock().Held {
		t.Errorf("it ends with %v, and the lock is %+v", err, w.lockBlock())
	}
	if err := Edit(t.Context(), older, never); !fault.Is(err, fault.Fenced) {
		t.Errorf("an older generation: %v", err)
	}
	other := w.editor(w.s.way("other"))
	other.ID = "00000000000000000000000000000001"
	if err := Edit(t.Context(), other, never); !fault.Is(err, fault.Invalid) {
		t.Errorf("another machine: %v", err)
	}
	nonsense := w.editor(w.s.way("nonsense"))
	nonsense.ID = "m1"
	if err := Edit(t.Context(), nonsense, never); !fault.Is(err, fault.Invalid) {
		t.Errorf("no identifier: %v", err)
	}

	way := w.s.way("gives up")
	o := w.editor(way)
	way.freeze(all)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Edit(ctx, o, never) }()
	until(t, "it waits for storage", func() bool { return way.sent.Load() > 0 })
	cancel()
	if err := <-done; !fault.Is(err, fault.Canceled) {
		t.Errorf("it gives up with %v", err)
	}

	way = w.s.way("gives up later")
	o = w.editor(way)
	ctx, cancel = context.WithCancel(t.Context())
	err = Edit(ctx, o, func(_ *vmhome.Home, disks []block.Device) error {
		way.freeze(changes)
		written := make(chan error, 1)
		go func() { written <- disks[0].WriteAt(sectorOf("never"), 0, 0) }()
		until(t, "a write waits for storage", func() bool { return way.sent.Load() > 0 })
		cancel()
		return <-written
	})
	if !fault.Is(err, fault.Canceled) {
		t.Errorf("it gives up with %v", err)
	}
	if !w.lockBlock().Held {
		t.Error("the lock is given back with a write on its way")
	}
}
