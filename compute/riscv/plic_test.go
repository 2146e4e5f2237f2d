package riscv

import (
	"testing"

	"steadfast/compute/device"
)

// newTestPLIC makes one with all sources enabled for S mode, of priority 1.
func newTestPLIC() (*PLIC, *bool) {
	up := new(bool)
	p := NewPLIC(func(level bool) { *up = level })
	for n := range uint64(plicSources) {
		p.Store(4*n, 4, 1)
	}
	p.Store(plicEnable+plicStride, 4, 0xffffffff)
	p.Store(plicEnable+plicStride+4, 4, 0xffffffff)
	return p, up
}

const testClaim = plicContext + plicPerCtx + plicClaim

// TestPLICLevel: one interrupt goes through until it is completed; a line that is still up
// comes again, one that falls before the claim is withdrawn.
func TestPLICLevel(t *testing.T) {
	p, up := newTestPLIC()
	p.Raise(10, true)
	if !*up || p.Load(plicPending, 4) != 1<<10 {
		t.Errorf("raised: %v, pending %x", *up, p.Load(plicPending, 4))
	}
	if n := p.Load(testClaim, 4); n != 10 || *up {
		t.Errorf("claimed %d, line %v", n, *up)
	}
	if n := p.Load(testClaim, 4); n != 0 {
		t.Errorf("claimed %d a second time", n)
	}
	p.Raise(10, true)
	if *up {
		t.Error("it came again before it was completed")
	}
	p.Store(testClaim, 4, 11)
	if *up {
		t.Error("another's completion completed it")
	}
	p.Store(testClaim, 4, 10)
	if !*up {
		t.Error("the line is still up, and nothing came")
	}
	p.Raise(10, false)
	if *up || p.Load(testClaim, 4) != 0 {
		t.Error("a line that fell still interrupts")
	}
}

// TestPLICOrder: priority, then number; 0 is never; the threshold masks the line only.
func TestPLICOrder(t *testing.T) {
	p, up := newTestPLIC()
	for _, n := range []int{0, 3, 40, 63, 64, -1} {
		p.Raise(n, true)
	}
	p.Store(4*40, 4, 5)
	p.Store(plicContext+plicPerCtx, 4, 5)
	if *up {
		t.Error("the threshold is not above")
	}
	p.Store(plicContext+plicPerCtx, 4, 4)
	if !*up {
		t.Error("masked below its priority")
	}
	p.Store(plicContext+plicPerCtx, 4, 9)
	if got := p.Load(plicContext+plicPerCtx, 4); got != plicLevels || *up {
		t.Errorf("threshold %d", got)
	}
	for _, want := range []uint64{40, 3, 63, 0} {
		if n := p.Load(testClaim, 4); n != want {
			t.Errorf("claimed %d, want %d", n, want)
		}
	}
	p.Store(4*7, 4, 0)
	p.Raise(7, true)
	if p.Load(testClaim, 4) != 0 {
		t.Error("a source of priority 0 was claimed")
	}
}

// TestPLICRegisters: source 0 is none, other sizes and places read zero.
func TestPLICRegisters(t *testing.T) {
	p, _ := newTestPLIC()
	for off, want := range map[uint64]uint64{
		0: 0, 4: 1, 4 * 63: 1, 4 * 64: 0,
		plicEnable + plicStride: 0xfffffffe, plicEnable + plicStride + 4: 0xffffffff, plicEnable + plicStride + 8: 0,
		plicEnable: 0, plicEnable + 2*plicStride: 0, plicContext + 2*plicPerCtx: 0, plicContext + plicPerCtx + 8: 0, PLICSize - 4: 0,
	} {
		if got := p.Load(off, 4); got != want {
			t.Errorf("%x reads %x, want %x", off, got, want)
		}
	}
	if p.Load(4, 8) != 0 || p.Load(4, 1) != 0 {
		t.Error("another size than 4 was read")
	}
}

func TestPLICSave(t *testing.T) {
	p, _ := newTestPLIC()
	p.Raise(5, true)
	p.Raise(6, true)
	p.Load(testClaim, 4)
	var e device.Encoder
	p.Save(&e)
	q := NewPLIC(func(bool) {})
	if err := q.Restore(device.NewDecoder(e.Bytes())); err != nil {
		t.Fatal(err)
	}
	var again device.Encoder
	q.Save(&again)
	if string(e.Bytes()) != string(again.Bytes()) || q.up != p.up {
		t.Error("it saves other than it was restored")
	}
	for _, bad := range [][]byte{nil, e.Bytes()[:20], append([]byte{1}, e.Bytes()[1:]...), append([]byte{0, 8}, e.Bytes()[2:]...)} {
		if q.Restore(device.NewDecoder(bad)) == nil {
			t.Error("nonsense was restored")
		}
	}
}
