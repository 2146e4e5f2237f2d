package riscv

import (
	"testing"

	"steadfast/compute/riscv/asm"
)

const (
	oneS = boxed | 0x3f800000
	twoS = boxed | 0x40000000
	oneD = 0x3ff0000000000000
	nanS = boxed | canonicalS
	nanD = 0x7ff8000000000000
)

// runFloat runs one instruction with f1 and f2 set, and returns the hart.
func runFloat(h *Hart, word uint32, a, b uint64) {
	put(h, testBase, word)
	h.Reset(testBase, 0, 0)
	h.dropAllCode()
	h.stvec, h.mstatus = testBase+0x100, 1<<13
	h.f[1], h.f[2] = a, b
	h.Step()
}

// TestBoxing: a single that is not boxed is a NaN to arithmetic, and itself to moves.
func TestBoxing(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	for _, c := range []struct {
		word uint32
		a, b uint64
		want uint64
	}{
		{asm.Float(0, 0, 0, 3, 1, 2), oneS, oneS, twoS},
		{asm.Float(0, 0, 0, 3, 1, 2), oneS & 0xffffffff, oneS, nanS},
		{asm.Float(0, 0, 0, 3, 1, 2), oneS &^ (1 << 32), oneS, nanS},
		{asm.Float(4, 0, 0, 3, 1, 2), oneS, 0x80000000, oneS},            // fsgnj.s: the sign of a NaN
		{asm.Float(4, 0, 0, 3, 1, 2), oneS, boxed | 1<<31, oneS | 1<<31}, // of -0
		{asm.Float(4, 1, 0, 3, 1, 2), 5, 6, 5},                           // fsgnj.d
		{asm.Float(8, 0, 0, 3, 1, 1), oneD, 0, oneS},                     // fcvt.s.d
		{asm.Float(8, 1, 0, 3, 1, 0), oneS, 0, oneD},                     // fcvt.d.s
		{asm.Float(8, 1, 0, 3, 1, 0), oneD, 0, nanD},                     // of what is not boxed
	} {
		runFloat(h, c.word, c.a, c.b)
		if h.f[3] != c.want || h.count != 1 {
			t.Errorf("%s of %x and %x: %x, want %x", Mnemonic(c.word), c.a, c.b, h.f[3], c.want)
		}
		if h.mstatus&statusFS != statusFS {
			t.Errorf("%s did not make FS dirty", Mnemonic(c.word))
		}
	}
	runFloat(h, asm.Float(0x1c, 0, 0, 3, 1, 0), 0x1234567887654321, 0) // fmv.x.w
	if h.x[3] != 0xffffffff87654321 || h.mstatus&statusFS != 1<<13 {
		t.Errorf("fmv.x.w: %x, status %x", h.x[3], h.mstatus)
	}
	runFloat(h, asm.Float(0x14, 0, 2, 3, 1, 2), boxed|0x7f800001, oneS) // feq.s with a signaling NaN
	if h.x[3] != 0 || h.fflags != 16 || h.mstatus&statusFS != statusFS {
		t.Errorf("feq.s: %x, flags %x, status %x", h.x[3], h.fflags, h.mstatus)
	}
}

// TestFloatMemory: fsw and flw move bits; flw boxes.
func TestFloatMemory(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.S(0x27, 2, 1, 1, 0), asm.I(0x07, 2, 3, 1, 0), asm.I(0x07, 3, 4, 1, 0), asm.I(0x07, 3, 5, 1, 1))
	h.Reset(testBase, 0, 0)
	h.mstatus, h.f[1], h.x[1] = 1<<13, 0x1122334455667788, testBase+0x2000
	put64(h, testBase+0x2000, 0xaaaaaaaabbbbbbbb)
	h.Run(4)
	if h.f[3] != boxed|0x55667788 || h.f[4] != 0xaaaaaaaa55667788 || h.f[5] != 0x00aaaaaaaa556677 {
		t.Errorf("f3 %x, f4 %x, f5 %x", h.f[3], h.f[4], h.f[5])
	}
}

// TestRoundingModes: the static one, frm's, and those that are none.
func TestRoundingModes(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	for _, c := range []struct {
		rm, frm uint32
		want    uint64 // fcvt.w.d of 2.5
		legal   bool
	}{
		{0, 0, 2, true},
		{1, 0, 2, true},
		{2, 0, 2, true},
		{3, 0, 3, true},
		{4, 0, 3, true},
		{5, 0, 0, false},
		{6, 0, 0, false},
		{7, 3, 3, true},
		{7, 1, 2, true},
		{7, 5, 0, false},
		{7, 6, 0, false},
		{7, 7, 0, false},
	} {
		word := asm.Float(0x18, 1, c.rm, 3, 1, 0)
		put(h, testBase, word)
		h.Reset(testBase, 0, 0)
		h.dropAllCode()
		h.stvec, h.mstatus, h.frm, h.f[1] = testBase+0x100, statusFS, uint64(c.frm), 0x4004000000000000
		h.Step()
		if (h.scause == 0) != c.legal || h.x[3] != c.want || c.legal && h.fflags != 1 {
			t.Errorf("rm %d, frm %d: cause %d, %d, flags %x", c.rm, c.frm, h.scause, h.x[3], h.fflags)
		}
	}
}

// TestFloatOff: with FS off everything of F is illegal, with its bits, and touches nothing.
func TestFloatOff(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	for _, word := range []uint32{
		asm.Float(0, 0, 0, 3, 1, 2), asm.I(0x07, 2, 3, 1, 0), asm.S(0x27, 3, 1, 1, 0), asm.Float(0x1c, 1, 0, 3, 1, 0), asm.R(0x43, 0, 0, 3, 1, 2), 0x2188, 0xa188,
	} {
		runFloat(h, word, 0, 0)
		h.Reset(testBase, 0, 0)
		h.stvec = testBase + 0x100
		h.Step()
		if h.scause != causeIllegal || h.stval != uint64(word) {
			t.Errorf("%s: cause %d, tval %x", Mnemonic(word), h.scause, h.stval)
		}
	}
}
