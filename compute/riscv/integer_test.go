package riscv

import (
	"fmt"
	"math"
	"testing"

	"steadfast/compute/riscv/asm"
)

// run1 runs one instruction at the base of RAM with x1 and x2 set, and returns x3.
func run1(h *Hart, word uint32, a, b uint64) uint64 {
	put(h, testBase, word)
	h.Reset(testBase, 0, 0)
	h.dropAllCode() // put stores past everything
	h.x[1], h.x[2] = a, b
	h.Run(1)
	return h.x[3]
}

const (
	minI64 = 1 << 63
	all    = math.MaxUint64
)

// TestIntegers: results from the manuals' text, above all where a rule is needed.
func TestIntegers(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	r := func(f3, f7 uint32) uint32 { return asm.R(0x33, f3, f7, 3, 1, 2) }
	w := func(f3, f7 uint32) uint32 { return asm.R(0x3b, f3, f7, 3, 1, 2) }
	i := func(f3 uint32, imm int32) uint32 { return asm.I(0x13, f3, 3, 1, imm) }
	iw := func(f3 uint32, imm int32) uint32 { return asm.I(0x1b, f3, 3, 1, imm) }
	for _, c := range []struct {
		word       uint32
		a, b, want uint64
	}{
		{r(0, 0), all, 2, 1},
		{r(0, 0x20), 1, 2, all},
		{r(1, 0), 1, 64 + 3, 8},
		{r(5, 0), minI64, 63, 1},
		{r(5, 0x20), minI64, 63, all},
		{r(2, 0), all, 0, 1},
		{r(3, 0), all, 0, 0},
		{r(4, 0), 0xff, 0x0f, 0xf0},
		{r(6, 0), 0xf0, 0x0f, 0xff},
		{r(7, 0), 0xf3, 0x3f, 0x33},
		{w(0, 0), 0x7fffffff, 1, 0xffffffff80000000},
		{w(0, 0x20), 0x80000000, 1, 0x7fffffff},
		{w(1, 0), 1, 32 + 31, 0xffffffff80000000},
		{w(5, 0), 0xffffffff80000000, 31, 1},
		{w(5, 0x20), 0x80000000, 31, all},
		{i(0, -1), 0, 0, all},
		{i(2, -1), 0, 0, 0},
		{i(3, -1), 0, 0, 1}, // the immediate is extended by its sign, then unsigned
		{i(4, -1), 5, 0, ^uint64(5)},
		{i(1, 63), 1, 0, minI64},
		{i(5, 63), minI64, 0, 1},
		{i(5, 0x400|63), minI64, 0, all},
		{iw(0, -1), 0x80000000, 0, 0x7fffffff},
		{iw(1, 31), 1, 0, 0xffffffff80000000},
		{iw(5, 0x400|4), 0xf0000000, 0, 0xffffffffff000000},
		{asm.Lui(3, 0x80000), 0, 0, 0xffffffff80000000},
		{0x80000<<12 | 3<<7 | 0x17, 0, 0, 0x0000000000000000}, // auipc at 0x80000000

		// M: divisions by zero, and the one overflow.
		{r(0, 1), minI64, 2, 0},
		{r(1, 1), all, all, 0},
		{r(1, 1), minI64, minI64, 1 << 62},
		{r(2, 1), all, all, all},
		{r(2, 1), 3, all, 2},
		{r(3, 1), all, all, all - 1},
		{r(4, 1), 7, 0, all},
		{r(4, 1), minI64, all, minI64},
		{r(4, 1), uint64(math.MaxUint64 - 6), 2, uint64(math.MaxUint64 - 2)}, // -7/2 = -3
		{r(5, 1), 7, 0, all},
		{r(6, 1), 7, 0, 7},
		{r(6, 1), minI64, all, 0},
		{r(6, 1), uint64(math.MaxUint64 - 6), 2, all}, // -7%2 = -1
		{r(7, 1), 7, 0, 7},
		{w(0, 1), 0x80000000, 0x80000000, 0},
		{w(4, 1), 0x80000000, all, 0xffffffff80000000},
		{w(4, 1), 0x80000000, 1 << 32, all},
		{w(5, 1), 0x80000000, 1, 0xffffffff80000000},
		{w(6, 1), 0x80000000, all, 0},
		{w(6, 1), 0x80000000, 0, 0xffffffff80000000},
		{w(7, 1), 0x80000001, 0, 0xffffffff80000001},

		// Zba, Zbb, Zbs.
		{r(2, 0x10), 3, 100, 106},
		{r(4, 0x10), 3, 100, 112},
		{r(6, 0x10), 3, 100, 124},
		{w(0, 4), all, 1, 1 << 32},
		{w(2, 0x10), all, 0, 0x1fffffffe},
		{w(4, 0x10), all, 0, 0x3fffffffc},
		{w(6, 0x10), all, 1, 0x7fffffff9},
		{asm.I(0x1b, 1, 3, 1, 0x080|4), all, 0, 0xffffffff0},
		{r(7, 0x20), 0xff, 0x0f, 0xf0},
		{r(6, 0x20), 0xf0, all - 1, 0xf1},
		{r(4, 0x20), 5, 5, all},
		{i(1, 0x600), 0, 0, 64},
		{i(1, 0x600), 1, 0, 63},
		{i(1, 0x601), 0, 0, 64},
		{i(1, 0x601), 8, 0, 3},
		{i(1, 0x602), all, 0, 64},
		{iw(1, 0x600), 1 << 32, 0, 32},
		{iw(1, 0x601), 1 << 53, 0, 32},
		{iw(1, 0x602), all, 0, 32},
		{r(4, 5), all, 1, all},
		{r(5, 5), all, 1, 1},
		{r(6, 5), all, 1, 1},
		{r(7, 5), all, 1, all},
		{i(1, 0x604), 0x80, 0, 0xffffffffffffff80},
		{i(1, 0x605), 0x8000, 0, 0xffffffffffff8000},
		{w(4, 4) &^ (31 << 20), 0x18000, 0, 0x8000},
		{r(1, 0x30), minI64, 65, 1},
		{r(5, 0x30), 1, 65, minI64},
		{i(5, 0x600|1), 1, 0, minI64},
		{w(1, 0x30), 0x80000000, 33, 1},
		{w(5, 0x30), 1, 33, 0xffffffff80000000},
		{iw(5, 0x600|1), 1, 0, 0xffffffff80000000},
		{i(5, 0x287), 0x0100800000007f00, 0, 0xff00ff000000ff00},
		{i(5, 0x6b8), 0x0102030405060708, 0, 0x0807060504030201},
		{r(1, 0x24), 0xff, 64, 0xfe},
		{r(5, 0x24), 0x8, 3, 1},
		{r(1, 0x34), 0, 63, minI64},
		{r(1, 0x14), 0, 63, minI64},
		{i(1, 0x480|3), 0xff, 0, 0xf7},
		{i(5, 0x480|3), 0x8, 0, 1},
		{i(1, 0x680|3), 8, 0, 0},
		{i(1, 0x280|3), 0, 0, 8},
	} {
		if got := run1(h, c.word, c.a, c.b); got != c.want {
			t.Errorf("%s (%08x) of %x and %x: %x, want %x", Mnemonic(c.word), c.word, c.a, c.b, got, c.want)
		}
	}
}

// TestZero: x0 stays zero whatever is written to it, a load included.
func TestZero(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	for _, word := range []uint32{asm.Addi(0, 1, 5), asm.R(0x33, 0, 0, 0, 1, 1), asm.Ld(0, 1, 0), asm.Jal(0, 8), asm.Csrrs(0, csrSscratch, 0), asm.Amo(0, 3, 0, 1, 1), asm.Float(0x1c, 1, 0, 0, 1, 0)} {
		put(h, testBase, word, asm.R(0x33, 0, 0, 3, 0, 0), asm.R(0x33, 0, 0, 3, 0, 0))
		h.Reset(testBase, 0, 0)
		h.dropAllCode()
		h.mstatus |= statusFS
		h.x[1], h.x[3], h.f[1] = testBase+0x800, 1, 7
		h.Run(2)
		if h.X(0) != 0 || h.x[3] != 0 {
			t.Errorf("%s: x0 is %x", Mnemonic(word), h.x[3])
		}
	}
}

// TestBranches: each condition both ways, and the link of jumps.
func TestBranches(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	for _, c := range []struct {
		f3    uint32
		a, b  uint64
		taken bool
	}{
		{0, 1, 1, true},
		{0, 1, 2, false},
		{1, 1, 2, true},
		{1, 1, 1, false},
		{4, all, 0, true},
		{4, 0, all, false},
		{5, 0, all, true},
		{5, all, 0, false},
		{5, 1, 1, true},
		{6, 0, all, true},
		{6, all, 0, false},
		{7, all, 0, true},
		{7, 0, all, false},
		{7, 1, 1, true},
	} {
		for _, off := range []int32{-8, 8, 0x7fe, -0x800} {
			at := uint64(testBase + 0x1000)
			put(h, at, asm.B(c.f3, 1, 2, off))
			h.Reset(at, 0, 0)
			h.dropAllCode()
			h.x[1], h.x[2] = c.a, c.b
			h.Run(1)
			want := at + 4
			if c.taken {
				want = at + uint64(int64(off))
			}
			if h.PC() != want {
				t.Errorf("branch %d of %x and %x: pc %x, want %x", c.f3, c.a, c.b, h.PC(), want)
			}
		}
	}
	put(h, testBase, asm.Jal(1, 0x100))
	put(h, testBase+0x100, asm.Jalr(1, 1, 0x201))
	h.Reset(testBase, 0, 0)
	h.dropAllCode()
	h.Run(2)
	if h.PC() != testBase+0x204 || h.x[1] != testBase+0x104 {
		t.Errorf("jal and jalr: pc %x, x1 %x", h.PC(), h.x[1])
	}
}

// TestCompressed: what each stands for. Encodings from the assembler of binutils 2.40.
func TestCompressed(t *testing.T) {
	for _, c := range []struct {
		raw  uint32
		want op
	}{
		{0x0048, op{code: opAddi, rd: 10, rs1: 2, imm: 4}},
		{0x1ffc, op{code: opAddi, rd: 15, rs1: 2, imm: 1020}},
		{0x4184, op{code: opLw, rd: 9, rs1: 11, imm: 0}},
		{0x5ffc, op{code: opLw, rd: 15, rs1: 15, imm: 124}},
		{0x7ffc, op{code: opLd, rd: 15, rs1: 15, imm: 248}},
		{0x3ffc, op{code: opFld, rd: 15, rs1: 15, imm: 248}},
		{0xdffc, op{code: opSw, rd: discard, rs1: 15, rs2: 15, imm: 124}},
		{0xfffc, op{code: opSd, rd: discard, rs1: 15, rs2: 15, imm: 248}},
		{0xbffc, op{code: opFsd, rd: discard, rs1: 15, rs2: 15, imm: 248}},
		{0x0001, op{code: opNop, rd: discard}},
		{0x157d, op{code: opAddi, rd: 10, rs1: 10, imm: -1}},
		{0x357d, op{code: opAddiw, rd: 10, rs1: 10, imm: -1}},
		{0x557d, op{code: opAddi, rd: 10, imm: -1}},
		{0x7139, op{code: opAddi, rd: 2, rs1: 2, imm: -64}},
		{0x617d, op{code: opAddi, rd: 2, rs1: 2, imm: 496}},
		{0x757d, op{code: opLui, rd: 10, imm: -4096}},
		{0x917d, op{code: opSrli, rd: 10, rs1: 10, imm: 63}},
		{0x957d, op{code: opSrai, rd: 10, rs1: 10, imm: 63}},
		{0x997d, op{code: opAndi, rd: 10, rs1: 10, imm: -1}},
		{0x8d0d, op{code: opSub, rd: 10, rs1: 10, rs2: 11}},
		{0x8d2d, op{code: opXor, rd: 10, rs1: 10, rs2: 11}},
		{0x8d4d, op{code: opOr, rd: 10, rs1: 10, rs2: 11}},
		{0x8d6d, op{code: opAnd, rd: 10, rs1: 10, rs2: 11}},
		{0x9d0d, op{code: opSubw, rd: 10, rs1: 10, rs2: 11}},
		{0x9d2d, op{code: opAddw, rd: 10, rs1: 10, rs2: 11}},
		{0xbffd, op{code: opJal, rd: discard, imm: -2}},
		{0xdd7d, op{code: opBeq, rd: discard, rs1: 10, imm: -2}},
		{0xfd7d, op{code: opBne, rd: discard, rs1: 10, imm: -2}},
		{0x157e, op{code: opSlli, rd: 10, rs1: 10, imm: 63}},
		{0x557e, op{code: opLw, rd: 10, rs1: 2, imm: 252}},
		{0x757e, op{code: opLd, rd: 10, rs1: 2, imm: 504}},
		{0x357e, op{code: opFld, rd: 10, rs1: 2, imm: 504}},
		{0x8082, op{code: opJalr, rd: discard, rs1: 1}},
		{0x852e, op{code: opAdd, rd: 10, rs2: 11}},
		{0x9502, op{code: opJalr, rd: 1, rs1: 10}},
		{0x952e, op{code: opAdd, rd: 10, rs1: 10, rs2: 11}},
		{0x9002, op{code: opEbreak, rd: discard}},
		{0xdfaa, op{code: opSw, rd: discard, rs1: 2, rs2: 10, imm: 252}},
		{0xffaa, op{code: opSd, rd: discard, rs1: 2, rs2: 10, imm: 504}},
		{0xbfaa, op{code: opFsd, rd: discard, rs1: 2, rs2: 10, imm: 504}},
		// Reserved.
		{0x0000, op{code: opIllegal, rd: discard, imm: 0}},
		{0x8000, op{code: opIllegal, rd: discard, imm: 0x8000}},
		{0x2001, op{code: opIllegal, rd: discard, imm: 0x2001}},
		{0x6101, op{code: opIllegal, rd: discard, imm: 0x6101}},
		{0x9c41, op{code: opIllegal, rd: discard, imm: 0x9c41}},
		{0x4002, op{code: opIllegal, rd: discard, imm: 0x4002}},
		{0x8002, op{code: opIllegal, rd: discard, imm: 0x8002}},
	} {
		c.want.len = 2
		if got := decode16(c.raw, 0); got != c.want {
			t.Errorf("%04x: %+v, want %+v", c.raw, got, c.want)
		}
	}
}

// TestIllegal: reserved encodings of four bytes trap with their bits.
func TestIllegal(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	for _, word := range []uint32{
		0xffffffff, 0x0000707f, asm.R(0x33, 1, 0x20, 3, 1, 2), asm.R(0x3b, 2, 0, 3, 1, 2), asm.I(0x1b, 1, 3, 1, 0x020), asm.I(0x13, 1, 3, 1, 0x7c0),
		asm.I(0x67, 1, 3, 1, 0), asm.B(2, 1, 2, 8), asm.I(0x03, 7, 3, 1, 0), asm.S(0x23, 4, 1, 2, 0), asm.Amo(5, 2, 3, 1, 2), asm.Amo(2, 2, 3, 1, 2), asm.Amo(0, 1, 3, 1, 2),
		asm.Mret, 0x7b200073, asm.Csrrs(3, 0x300, 0), asm.Csrrs(3, 0xc03, 0), asm.Csrrw(0, 0xc00, 1), asm.Csrrs(3, 0x105|0x400, 0), asm.I(0x0f, 2, 0, 1, 0), asm.I(0x0f, 3, 0, 1, 0),
		asm.Float(0, 2, 0, 3, 1, 2), asm.Float(0x1c, 0, 2, 3, 1, 0), asm.Float(0x18, 0, 0, 3, 1, 4), asm.Float(0xb, 0, 0, 3, 1, 1), asm.R(0x43, 0, 2, 3, 1, 2), asm.I(0x07, 1, 3, 1, 0),
	} {
		put(h, testBase, word)
		h.Reset(testBase, 0, 0)
		h.dropAllCode()
		h.stvec, h.mstatus = testBase+0x100, statusFS
		h.Step()
		if h.scause != causeIllegal || h.stval != uint64(word) || h.count != 0 || h.sepc != testBase {
			t.Errorf("%08x (%s): cause %d, tval %x, count %d", word, Mnemonic(word), h.scause, h.stval, h.count)
		}
	}
}

// TestLoadsAndStores: widths, signs and every misalignment, inside a page and over its end.
func TestLoadsAndStores(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	for _, at := range []uint64{testBase + 0x2000, testBase + 0x2ff8} {
		for shift := range uint64(9) {
			for f3 := range uint32(7) {
				t.Run(fmt.Sprintf("%x/%s", at+shift, loads[f3]), func(t *testing.T) {
					oneAccess(t, h, at+shift, f3)
				})
			}
		}
	}
}

func oneAccess(t *testing.T, h *Hart, at uint64, f3 uint32) {
	const pattern = 0x8899aabbccddeeff
	size := uint64(1) << (f3 & 3)
	for i := range uint64(16) {
		h.bytes[at-testBase+i] = 0x55
	}
	put(h, testBase, asm.S(0x23, f3&3, 1, 2, 0), asm.I(0x03, f3, 3, 1, 0))
	h.Reset(testBase, 0, 0)
	h.dropAllCode()
	h.x[1], h.x[2] = at, pattern
	h.Run(2)
	low := uint64(pattern) << (64 - 8*size)
	want := low >> (64 - 8*size)
	if f3 < 4 {
		want = uint64(int64(low) >> (64 - 8*size))
	}
	if h.x[3] != want || h.count != 2 {
		t.Errorf("loaded %x, want %x", h.x[3], want)
	}
	if h.bytes[at-testBase+size] != 0x55 || h.bytes[at-testBase] != 0xff {
		t.Errorf("stored % x", h.bytes[at-testBase:][:9])
	}
}
