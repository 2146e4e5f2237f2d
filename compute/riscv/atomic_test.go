package riscv

import (
	"testing"

	"steadfast/compute/riscv/asm"
)

// TestReservation is the policy of LR and SC, row by row.
func TestReservation(t *testing.T) {
	const at = testBase + 0x2000
	begin, end := asm.Lr(3, 3, 1), asm.Sc(3, 4, 1, 2)
	for _, c := range []struct {
		name    string
		between []uint32
		before  func(h *Hart) // run between LR and the rest
		end     uint32
		held    bool
	}{
		{"nothing between", nil, nil, end, true},
		{"loads and arithmetic", []uint32{asm.Ld(6, 1, 0), asm.Addi(6, 6, 1)}, nil, end, true},
		{"a store to the same bytes", []uint32{asm.Sd(3, 1, 0)}, nil, end, false},
		{"a store to the same 64 bytes", []uint32{asm.Sd(3, 1, 56)}, nil, end, false},
		{"a store just behind", []uint32{asm.Sd(3, 1, 64)}, nil, end, true},
		{"a store just before", []uint32{asm.Sd(3, 1, -8)}, nil, end, true},
		{"a misaligned store that reaches in", []uint32{asm.Sd(3, 1, -4)}, nil, end, false},
		{"an AMO there", []uint32{asm.Amo(0, 3, 0, 1, 0)}, nil, end, false},
		{"a floating-point store", []uint32{asm.S(0x27, 3, 1, 0, 0)}, nil, end, false},
		{"another SC", []uint32{asm.Sc(3, 6, 5, 2)}, nil, end, false},
		{"another LR", []uint32{asm.Lr(3, 6, 5)}, nil, end, false},
		{"another size", nil, nil, asm.Sc(2, 4, 1, 2), false},
		{"another address", nil, nil, asm.Sc(3, 4, 5, 2), false},
		{"a device stores there", nil, func(h *Hart) { h.ram.Write([]byte{1}, at+63) }, end, false},
		{"a device stores behind", nil, func(h *Hart) { h.ram.Write([]byte{1}, at+64) }, end, true},
		{"a device stores before", nil, func(h *Hart) { h.ram.Write([]byte{1}, at-1) }, end, true},
		{"a trap", []uint32{asm.Ebreak}, nil, end, false},
		{"an interrupt", nil, func(h *Hart) {
			h.mie, h.soft, h.mstatus = irqSSI, irqSSI, h.mstatus|statusSIE
			h.interrupt()
			h.soft = 0
		}, end, false},
	} {
		h, _ := newTest(t, 1<<20, Options{})
		put(h, testBase, append(append([]uint32{asm.Sd(0, 1, 64), begin}, c.between...), c.end)...)
		put(h, testBase+0x100, asm.Csrrs(7, csrSepc, 0), asm.Addi(7, 7, 4), asm.Csrrw(0, csrSepc, 7), asm.Sret)
		h.Reset(testBase, 0, 0)
		h.stvec, h.mstatus = testBase+0x100, statusFS|statusSPP
		h.x[1], h.x[2], h.x[5] = at, 99, at+0x40
		h.Run(2)
		if c.before != nil {
			c.before(h)
			for h.pc >= testBase+0x100 {
				h.Step()
			}
			h.pc = testBase + 8
		}
		for stop := testBase + uint64(4*(3+len(c.between))); h.pc != stop; {
			h.Step()
		}
		if (h.x[4] == 0) != c.held {
			t.Errorf("%s: SC gave %d", c.name, h.x[4])
		}
		if stored := get64(h, at) == 99; stored != c.held {
			t.Errorf("%s: the memory holds %x", c.name, get64(h, at))
		}
	}
}

// TestStoreOfReserved: stores that go directly to a page are seen as well.
func TestStoreOfReserved(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.Sd(0, 1, 0), asm.Sd(0, 1, 0), asm.Lr(3, 3, 1), asm.Sd(2, 1, 8), asm.Sc(3, 4, 1, 2))
	h.Reset(testBase, 0, 0)
	h.x[1] = testBase + 0x2000
	h.Run(5)
	if h.x[4] != 1 {
		t.Error("a store into the reserved bytes went by unseen")
	}
}

// TestAtomicFaults: alignment first, then the page, by the access that AMOs and LR make.
func TestAtomicFaults(t *testing.T) {
	for _, c := range []struct {
		word  uint32
		at    uint64
		cause uint64
	}{
		{asm.Amo(0, 2, 3, 1, 2), testPage + 2, causeStoreMisaligned},
		{asm.Amo(0, 3, 3, 1, 2), testPage + 4, causeStoreMisaligned},
		{asm.Lr(3, 3, 1), testPage + 4, causeLoadMisaligned},
		{asm.Sc(3, 3, 1, 2), testPage + 4, causeStoreMisaligned},
		{asm.Amo(0, 2, 3, 1, 2), testPage + 4, causeStorePage},
		{asm.Lr(2, 3, 1), testPage + 4, causeLoadPage},
		{asm.Amo(0, 2, 3, 1, 2), testBase + 1<<20, causeStoreAccess},
		{asm.Lr(2, 3, 1), testBase + 1<<20, causeLoadAccess},
		{asm.Sc(2, 3, 1, 2), testPage + 4, 0}, // nothing is reserved: it fails and touches nothing
	} {
		h, _ := paged(t, modeS, 0, c.word)
		h.x[1], h.x[3] = c.at, 5
		h.Step()
		if h.scause != c.cause || c.cause != 0 && (h.stval != c.at || h.x[3] != 5) || c.cause == 0 && h.x[3] != 1 {
			t.Errorf("%s at %x: cause %d, address %x, x3 %d", Mnemonic(c.word), c.at, h.scause, h.stval, h.x[3])
		}
	}
}

// TestAMO: what each stores and returns; words come back extended by their sign.
func TestAMO(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	const at = testBase + 0x2000
	for _, c := range []struct {
		f5, size            uint32
		memory, with, after uint64
	}{
		{1, 3, 5, 7, 7},
		{0, 3, 5, all, 4},
		{4, 3, 6, 3, 5},
		{12, 3, 6, 3, 2},
		{8, 3, 6, 3, 7},
		{16, 3, all, 1, all},
		{20, 3, all, 1, 1},
		{24, 3, all, 1, 1},
		{28, 3, all, 1, all},
		{0, 2, 0x11111111_ffffffff, 1, 0x11111111_00000000},
		{16, 2, 0x11111111_80000000, 0x7fffffff, 0x11111111_80000000},
		{24, 2, 0x11111111_80000000, 0x7fffffff, 0x11111111_7fffffff},
		{20, 2, 0x11111111_80000000, 0xffffffff_00000001, 0x11111111_00000001},
		{28, 2, 0x11111111_80000000, 0x00000001_7fffffff, 0x11111111_80000000},
	} {
		put64(h, at, c.memory)
		word := asm.Amo(c.f5, c.size, 3, 1, 2)
		got := run1(h, word, at, c.with)
		want := c.memory
		if c.size == 2 {
			want = sext32(want)
		}
		if got != want || get64(h, at) != c.after {
			t.Errorf("%s of %x and %x: returned %x, left %x, want %x", Mnemonic(word), c.memory, c.with, got, get64(h, at), c.after)
		}
	}
}

// TestCboZero: 64 bytes, whatever address inside them; enabled by senvcfg for U.
func TestCboZero(t *testing.T) {
	const word = opcodeCboZero | 1<<15
	h, _ := newTest(t, 1<<20, Options{})
	const at = testBase + 0x2000
	for i := range 256 {
		h.bytes[at-testBase+i] = 1
	}
	run1(h, word, at+64+17, 0)
	for i, want := range map[int]byte{63: 1, 64: 0, 127: 0, 128: 1} {
		if h.bytes[at-testBase+i] != want {
			t.Errorf("byte %d is %d", i, h.bytes[at-testBase+i])
		}
	}
	h, _ = paged(t, modeU, testTarget>>2|leafAll|pteU, word)
	h.Step()
	if h.scause != causeIllegal || h.stval != word {
		t.Errorf("from U: cause %d, tval %x", h.scause, h.stval)
	}
	h.mode, h.pc, h.senvcfg, h.scause = modeU, testBase, envCBZE, 0
	h.setContext()
	put64(h, testTarget, 5)
	h.Step()
	if h.scause != 0 || get64(h, testTarget) != 0 {
		t.Errorf("from U, enabled: cause %d, left %x", h.scause, get64(h, testTarget))
	}
}
