package host

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"steadfast/cluster/inventory"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/vmlock"
	"steadfast/fault"
	"steadfast/iscsi"
)

// TestResetLock: a lock block that is damaged is made anew, above all generations that the
// volumes have seen, over the reservation of a host that has crashed; what that host still
// sends is refused, and a host takes the lock again. One that is whole stays.
func TestResetLock(t *testing.T) {
	w, x, c := running(t)
	x.wrote(c)
	me := vmlock.Owner{Host: inventory.EditorNumber, Boot: inventory.EditorBoot}
	id, err := vmlock.ParseID(vmID)
	must(t, err)
	editor := w.s.way("editor")
	n := byte(0)
	open := func() (list []Volume) {
		for _, at := range []At{homeAt, diskAt} {
			n++
			v, err := editor.open(t.Context(), at, iscsi.ISID{0x80, 9, n})
			must(t, err)
			list = append(list, v)
		}
		return list
	}
	whole := w.lockBlock()
	if _, err := ResetLock(t.Context(), id, me, open()); !fault.Is(err, fault.Exists) || w.lockBlock() != whole {
		t.Errorf("one that is whole: %v", err)
	}
	x.member.cut()
	x.way.freeze(all) // its host is stopped, with a write on its way
	x.types("d")
	until(t, "it has sent something", func() bool { return x.way.sent.Load() > 0 })
	w.s.change(homeAt, func(u *unit) { clear(u.data[:vmlock.BlockSize]) })

	for i, want := range []uint64{1 + unknownGenerations, 2 + unknownGenerations} {
		generation, err := ResetLock(t.Context(), id, me, open())
		must(t, err)
		if b := w.lockBlock(); generation != want || b != (vmlock.Block{VM: id, Generation: want}) {
			t.Errorf("the %d. time it is %+v, generation %d, want %d", i+1, b, generation, want)
		}
		if i == 0 { // and again, as if that had not come to its end
			w.s.change(homeAt, func(u *unit) { copy(u.data, lockOf(t, vmlock.ID{9})) })
		}
	}
	x.way.thaw()
	x.awaits(EventFenced)
	x.member.mend()

	// The machine is placed anew, above what was found, and its disk can be written.
	until(t, "it is placed anew", func() bool {
		p := w.view(t).Placements[vm]
		return p.Active() && p.Generation == 3+unknownGenerations
	})
	x.wrote(x.attach())
}

// TestResetLockRefused: what is no damage is left alone: a volume that cannot be read, and
// what a newer program wrote.
func TestResetLockRefused(t *testing.T) {
	w := newWorld(t, false, machinetest.Obey())
	id, err := vmlock.ParseID(vmID)
	must(t, err)
	v, err := w.s.way("editor").open(t.Context(), homeAt, iscsi.ISID{0x80, 7})
	must(t, err)
	must(t, v.Close())
	if _, err := ResetLock(t.Context(), id, vmlock.Owner{Host: 1, Boot: 1}, []Volume{v}); !fault.Is(err, fault.Canceled) {
		t.Errorf("a volume that is closed: %v", err)
	}
	newer := vmlock.Block{VM: id}.Encode()
	binary.LittleEndian.PutUint32(newer[8:], 9)
	binary.LittleEndian.PutUint32(newer[508:], crc32.Checksum(newer[:508], crc32.MakeTable(crc32.Castagnoli)))
	w.s.change(homeAt, func(u *unit) { copy(u.data, newer[:]) })
	v, err = w.s.way("editor").open(t.Context(), homeAt, iscsi.ISID{0x80, 6})
	must(t, err)
	if _, err := ResetLock(t.Context(), id, vmlock.Owner{Host: 1, Boot: 1}, []Volume{v}); !fault.Is(err, fault.Stale) {
		t.Errorf("a block of a newer program: %v", err)
	}
	w.s.change(homeAt, func(u *unit) {
		if len(u.regs) != 0 || u.holder != nil || !bytes.Equal(u.data[:vmlock.BlockSize], newer[:]) {
			t.Error("something was changed")
		}
	})
}
