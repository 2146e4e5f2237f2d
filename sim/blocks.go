package sim

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/store/storetest"
)

// action is something a history can do. It does nothing when the pool has
// nothing to do it to.
type action struct {
	name string
	run  func(*history) error
}

// actions are all there are; their order is part of what a seed means.
var actions = []action{
	{"write", (*history).write},
	{"fill", (*history).fill},
	{"zero", (*history).zero},
	{"trim", (*history).trim},
	{"compare-and-write", (*history).compareAndWrite},
	{"copy", (*history).copyRange},
	{"flush", (*history).flush},
	{"read", (*history).readSome},
	{"refused", (*history).refused},
	{"create", (*history).createVolume},
	{"change", (*history).changeVolume},
	{"delete", (*history).deleteVolume},
	{"snapshot", (*history).createSnapshot},
	{"delete snapshot", (*history).deleteSnapshot},
	{"rollback", (*history).rollback},
	{"clone", (*history).clone},
	{"attribute", (*history).setAttribute},
	{"thresholds", (*history).setThresholds},
	{"changed", (*history).changed},
	{"maintain", func(h *history) error { return h.maintain(1 + h.rand.IntN(20)) }},
	{"drain", func(h *history) error { _, err := h.drain(); return err }},
	{"check", (*history).account},
	{"reopen", (*history).reopen},
	{"die", (*history).die},
	{"scrub", (*history).scrub},
	{"add drive", (*history).addDrive},
	{"evacuate", (*history).evacuateOrRemove},
	{"space", (*history).fullDisk},
	{"since", (*history).since},
}

// target is a volume that an operation is about.
type target struct {
	*storetest.Volume
	dev storetest.Device
}

// durable tells whether an answered write with these flags is stable.
func (t target) durable(flags block.Flags) bool { return !t.WriteCache || flags&block.FUA != 0 }

// anyVolume draws a volume; ok is false when there is none.
func (h *history) anyVolume() (t target, ok bool, err error) {
	names := h.model.Now().Names()
	if len(names) == 0 {
		return t, false, nil
	}
	name := names[h.rand.IntN(len(names))]
	t.Volume = h.model.Now().Volumes[name]
	t.dev, err = h.device(name)
	return t, err == nil, h.pass(err)
}

// writable draws a volume that can be written to.
func (h *history) writable() (t target, ok bool, err error) {
	for range 4 {
		if t, ok, err = h.anyVolume(); !ok || err != nil || !t.ReadOnly {
			return t, ok, err
		}
	}
	return t, false, nil
}

// place draws a range of a volume, in bytes: mostly whole blocks, mostly near
// where others are.
func (h *history) place(size int64) (off, n int64) {
	unit := int64(block.BlockSize)
	if h.rand.IntN(10) < 3 {
		unit = block.SectorSize
	}
	n = int64(1+h.rand.IntN(12)) * unit
	if h.rand.IntN(12) == 0 {
		n = int64(1+h.rand.IntN(300)) * block.BlockSize
	}
	n = min(n, size)
	room := size - n
	switch h.rand.IntN(4) {
	case 0:
		room = min(room, 64<<10)
	case 1, 2:
		room = min(room, 1<<20)
	}
	if size > 64<<20 && h.rand.IntN(8) == 0 {
		return size - n, n // the far end of a huge volume
	}
	return h.rand.Int64N(room/unit+1) * unit, n
}

// stamps makes new content for n bytes, with runs of zeros now and then.
func (h *history) stamps(n int64) []storetest.Stamp {
	out := make([]storetest.Stamp, n/block.SectorSize)
	for i := range out {
		h.stamp++
		out[i] = h.stamp
	}
	switch h.rand.IntN(15) {
	case 0:
		clear(out)
	case 1, 2:
		from := h.rand.IntN(len(out))
		clear(out[from : from+1+h.rand.IntN(len(out)-from)])
	}
	return out
}

func (h *history) flags() block.Flags {
	if h.rand.IntN(6) == 0 {
		return block.FUA
	}
	return 0
}

func (h *history) write() error {
	t, ok, err := h.writable()
	if !ok {
		return err
	}
	off, n := h.place(t.Size)
	return h.writeAt(t, off, h.stamps(n))
}

// fill writes large pieces, so that pools get full.
func (h *history) fill() error {
	t, ok, err := h.writable()
	if !ok {
		return err
	}
	n := min(int64(64+h.rand.IntN(400))*block.BlockSize, t.Size)
	off := h.rand.Int64N((t.Size-n)/block.BlockSize+1) * block.BlockSize
	return h.writeAt(t, off, h.stamps(n))
}

func (h *history) writeAt(t target, off int64, stamps []storetest.Stamp) error {
	flags := h.flags()
	err := t.dev.WriteAt(storetest.Bytes(stamps), off, flags)
	return h.settle(storetest.Write{Volume: t.Name, Offset: off, Stamps: stamps, Verb: "write"}, t.durable(flags), err)
}

func (h *history) zero() error {
	t, ok, err := h.writable()
	if !ok {
		return err
	}
	flags := h.flags()
	if h.rand.IntN(6) == 0 { // all of it, or all but a little
		off := h.rand.Int64N(min(t.Size, 1<<20)/block.BlockSize) * block.BlockSize
		err := t.dev.Zero(off, t.Size-off, flags)
		return h.settle(storetest.Clear{Volume: t.Name, Offset: off, Length: t.Size - off, Verb: "zero"}, t.durable(flags), err)
	}
	off, n := h.place(t.Size)
	err = t.dev.Zero(off, n, flags)
	return h.settle(storetest.Clear{Volume: t.Name, Offset: off, Length: n, Verb: "zero"}, t.durable(flags), err)
}

func (h *history) trim() error {
	t, ok, err := h.writable()
	if !ok {
		return err
	}
	off, n := h.place(t.Size)
	if h.rand.IntN(10) == 0 {
		off, n = 0, t.Size
	}
	err = t.dev.Trim(off, n)
	return h.settle(storetest.Clear{Volume: t.Name, Offset: off, Length: n, Verb: "trim"}, t.durable(0), err)
}

func (h *history) compareAndWrite() error {
	t, ok, err := h.writable()
	if !ok {
		return err
	}
	off, n := h.place(t.Size)
	n = min(n, 64<<10)
	is := t.Read(off, n)
	old := slices.Clone(is)
	if h.rand.IntN(3) == 0 {
		old[h.rand.IntN(len(old))] += storetest.Stamp(1 + h.rand.IntN(3))
	}
	stamps, flags := h.stamps(n), h.flags()
	want := firstDifference(storetest.Bytes(old), storetest.Bytes(is))
	at, err := t.dev.CompareAndWrite(off, storetest.Bytes(old), storetest.Bytes(stamps), flags)
	if want >= 0 {
		h.note("compare %s +%d %d, differing at %d: %d, %v", t.Name, off, n, want, at, short(err))
		if err == nil && at != want {
			return fmt.Errorf("said the first difference is at %d, want %d", at, want)
		}
		return h.pass(err)
	}
	if err == nil && at != -1 {
		return fmt.Errorf("said there is a difference at %d of %s +%d, and there is none", at, t.Name, off)
	}
	return h.settle(storetest.Write{Volume: t.Name, Offset: off, Stamps: stamps, Verb: "compare and write"}, t.durable(flags), err)
}

// firstDifference returns the index of the first byte that differs, or -1.
func firstDifference(a, b []byte) int64 {
	for i := range a {
		if a[i] != b[i] {
			return int64(i)
		}
	}
	return -1
}

// copyRange copies from any volume or snapshot to any volume.
func (h *history) copyRange() error {
	to, ok, err := h.writable()
	if !ok {
		return err
	}
	from, ok, err := h.anyVolume()
	if !ok {
		return err
	}
	op := storetest.Copy{Volume: to.Name, From: from.Name}
	size, dev := from.Size, from.dev
	if len(from.Snapshots) > 0 && h.rand.IntN(2) == 0 {
		snap := from.Snapshots[h.rand.IntN(len(from.Snapshots))]
		op.FromSnapshot, size = snap.Name, snap.Size
		if dev, err = h.pool.OpenSnapshot(from.Name, snap.Name); err != nil {
			return h.pass(err)
		}
		defer dev.Close()
	}
	op.FromOffset, op.Length = h.place(size)
	op.Length = min(op.Length, to.Size)
	op.Offset = h.rand.Int64N((to.Size-op.Length)/block.BlockSize+1) * block.BlockSize
	if op.Length%block.BlockSize != 0 && op.Offset+op.Length+block.SectorSize <= to.Size {
		op.Offset += block.SectorSize * h.rand.Int64N(2)
	}
	if op.Volume == op.From && op.FromSnapshot == "" && h.rand.IntN(2) == 0 { // let the two overlap
		op.Offset = max(0, min(op.FromOffset+int64(h.rand.IntN(5)-2)*block.BlockSize, to.Size-op.Length))
	}
	flags := h.flags()
	err = to.dev.CopyFrom(op.Offset, dev, op.FromOffset, op.Length, flags)
	return h.settle(op, to.durable(flags), err)
}

func (h *history) flush() error {
	t, ok, err := h.anyVolume()
	if !ok {
		return err
	}
	err = t.dev.Flush()
	h.note("flush %s: %v", t.Name, short(err))
	if err == nil {
		h.model.Durable()
	}
	return h.pass(err)
}

// readSome reads a range of a volume or snapshot and compares.
func (h *history) readSome() error {
	t, ok, err := h.anyVolume()
	if !ok {
		return err
	}
	dev, size, content := t.dev, t.Size, t.History
	if len(t.Snapshots) > 0 && h.rand.IntN(2) == 0 {
		snap := t.Snapshots[h.rand.IntN(len(t.Snapshots))]
		if dev, err = h.pool.OpenSnapshot(t.Name, snap.Name); err != nil {
			return h.pass(err)
		}
		defer dev.Close()
		size, content = snap.Size, snap.History
	}
	off, n := h.place(size)
	p := make([]byte, n)
	if err := dev.ReadAt(p, off); err != nil {
		if h.lenient && fault.Is(err, fault.Corrupt) {
			return nil
		}
		return h.pass(err)
	}
	if want := storetest.Bytes(content.Read(off, n)); !bytes.Equal(p, want) {
		return fmt.Errorf("%s +%d %d: byte %d differs", t.Name, off, n, firstDifference(p, want))
	}
	return nil
}

// refused asks for what must be refused and must touch nothing.
func (h *history) refused() error {
	t, ok, err := h.anyVolume()
	if !ok {
		return err
	}
	p := make([]byte, 2*block.BlockSize)
	kind := fault.Invalid
	requests := map[string]func() error{
		"write across the end":  func() error { return t.dev.WriteAt(p, t.Size-block.BlockSize, 0) },
		"write before zero":     func() error { return t.dev.WriteAt(p, -block.SectorSize, 0) },
		"unaligned write":       func() error { return t.dev.WriteAt(p, 7, 0) },
		"read across the end":   func() error { return t.dev.ReadAt(p, t.Size-block.BlockSize) },
		"trim across the end":   func() error { return t.dev.Trim(t.Size-block.BlockSize, 2*block.BlockSize) },
		"zero across the end":   func() error { return t.dev.Zero(t.Size-block.BlockSize, 2*block.BlockSize, 0) },
		"copy across the end":   func() error { return t.dev.CopyFrom(t.Size-block.BlockSize, t.dev, 0, 2*block.BlockSize, 0) },
		"copy from beyond":      func() error { return t.dev.CopyFrom(0, t.dev, t.Size-block.BlockSize, 2*block.BlockSize, 0) },
		"compare across an end": func() error { _, err := t.dev.CompareAndWrite(t.Size-block.BlockSize, p, p, 0); return err },
	}
	if t.ReadOnly {
		kind = fault.ReadOnly
		requests = map[string]func() error{
			"write": func() error { return t.dev.WriteAt(p, 0, 0) },
			"trim":  func() error { return t.dev.Trim(0, block.BlockSize) },
			"zero":  func() error { return t.dev.Zero(0, block.BlockSize, 0) },
			"copy":  func() error { return t.dev.CopyFrom(0, t.dev, block.BlockSize, block.BlockSize, 0) },
		}
	}
	names := slices.Sorted(maps.Keys(requests))
	name := names[h.rand.IntN(len(names))]
	h.note("%s of %s", name, t.Name)
	return h.mustBe(kind, requests[name]())
}
