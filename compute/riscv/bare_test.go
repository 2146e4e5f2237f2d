package riscv

import (
	"testing"

	"steadfast/compute/riscv/asm"
)

// TestBare: what M mode allows and forbids the modes below, and what mret makes of it.
func TestBare(t *testing.T) {
	for _, c := range []struct {
		name  string
		mode  mode
		word  uint32
		set   func(h *Hart)
		cause uint64
	}{
		{"satp with TVM", modeS, asm.Csrrs(3, csrSatp, 0), func(h *Hart) { h.mstatus |= statusTVM }, causeIllegal},
		{"sfence.vma with TVM", modeS, asm.SfenceVMA, func(h *Hart) { h.mstatus |= statusTVM }, causeIllegal},
		{"sfence.vma", modeS, asm.SfenceVMA, nil, 0},
		{"sfence.vma from U", modeU, asm.SfenceVMA, nil, causeIllegal},
		{"wfi with TW", modeS, asm.Wfi, func(h *Hart) { h.mstatus |= statusTW }, causeIllegal},
		{"sret with TSR", modeS, asm.Sret, func(h *Hart) { h.mstatus |= statusTSR }, causeIllegal},
		{"sret with TSR in M", modeM, asm.Sret, func(h *Hart) { h.mstatus |= statusTSR }, 0},
		{"mret from S", modeS, asm.Mret, nil, causeIllegal},
		{"mret", modeM, asm.Mret, nil, 0},
		{"time from S without mcounteren", modeS, asm.Csrrs(3, csrTime, 0), nil, causeIllegal},
		{"time from S", modeS, asm.Csrrs(3, csrTime, 0), func(h *Hart) { h.mcounteren = 2 }, 0},
		{"time from U without scounteren", modeU, asm.Csrrs(3, csrTime, 0), func(h *Hart) { h.mcounteren = 2 }, causeIllegal},
		{"stimecmp without STCE", modeS, asm.Csrrs(3, csrStimecmp, 0), func(h *Hart) { h.mcounteren = 2 }, causeIllegal},
		{"stimecmp", modeS, asm.Csrrs(3, csrStimecmp, 0), func(h *Hart) { h.mcounteren, h.menvcfg = 2, envSTCE }, 0},
		{"cbo.zero without menvcfg", modeS, opcodeCboZero | 1<<15, nil, causeIllegal},
		{"cbo.zero", modeS, opcodeCboZero | 1<<15, func(h *Hart) { h.menvcfg = envCBZE }, 0},
		{"ecall from U", modeU, asm.Ecall, nil, causeEcallU},
		{"ecall from S is no SBI", modeS, asm.Ecall, nil, causeEcallS},
		{"ecall from M", modeM, asm.Ecall, nil, causeEcallM},
		{"pmpaddr0", modeM, asm.Csrrw(3, 0x3b0, 1), nil, 0},
		{"misa", modeM, asm.Csrrs(3, csrMisa, 0), nil, 0},
	} {
		h, _ := newTest(t, 1<<20, Options{Bare: true})
		put(h, testBase, c.word)
		h.Reset(testBase, 0, 0)
		h.mode, h.mtvec, h.x[1] = c.mode, testBase+0x100, testBase+0x2000
		if c.set != nil {
			c.set(h)
		}
		h.setContext()
		h.Step()
		if h.mcause != c.cause || c.cause != 0 && (h.mode != modeM || h.mepc != testBase) {
			t.Errorf("%s: cause %d, mode %d", c.name, h.mcause, h.mode)
		}
	}
}

// TestMret: the mode of MPP, MIE of MPIE, and MPRV ends with M mode.
func TestMret(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{Bare: true})
	put(h, testBase, asm.Mret)
	for _, c := range []struct {
		status, want uint64
		mode         mode
	}{
		{statusMPIE | statusMPP | statusMPRV, statusMIE | statusMPIE | statusMPRV, modeM},
		{1<<statusMPPShift | statusMPRV | statusMIE, statusMPIE, modeS},
		{statusMPRV, statusMPIE, modeU},
	} {
		h.Reset(testBase, 0, 0)
		h.mstatus, h.mepc = c.status, testBase+0x40
		h.Step()
		if h.mstatus != c.want || h.mode != c.mode || h.pc != testBase+0x40 {
			t.Errorf("of %x: status %x, mode %d, pc %x", c.status, h.mstatus, h.mode, h.pc)
		}
	}
}

// TestDelegation: medeleg and mideleg give to S what comes from S and U, never from M.
func TestDelegation(t *testing.T) {
	for _, c := range []struct {
		from    mode
		medeleg uint64
		to      mode
	}{
		{modeU, 1 << causeBreakpoint, modeS}, {modeS, 1 << causeBreakpoint, modeS}, {modeM, 1 << causeBreakpoint, modeM}, {modeU, 0, modeM},
	} {
		h, _ := newTest(t, 1<<20, Options{Bare: true})
		put(h, testBase, asm.Ebreak)
		h.Reset(testBase, 0, 0)
		h.mode, h.medeleg, h.mtvec, h.stvec = c.from, c.medeleg, testBase+0x100, testBase+0x200
		h.setContext()
		h.Step()
		if h.mode != c.to {
			t.Errorf("from %d with %x: to %d", c.from, c.medeleg, h.mode)
		}
		if c.to == modeM && mode(h.mstatus>>statusMPPShift&3) != c.from {
			t.Errorf("from %d: MPP is %d", c.from, h.mstatus>>statusMPPShift&3)
		}
	}
	// One for M is taken before one for S, and in S whatever SIE says.
	h, _ := newTest(t, 1<<20, Options{Bare: true})
	h.Reset(testBase, 0, 0)
	h.mode, h.mideleg, h.mie, h.soft, h.mstatus = modeS, irqSSI, irqS, irqSSI|irqSTI, statusSIE
	if !h.interrupt() || h.mode != modeM || h.mcause != causeInterrupt|5 {
		t.Errorf("mode %d, cause %x", h.mode, h.mcause)
	}
	if h.interrupt() {
		t.Error("taken in M with MIE off")
	}
}

// TestOrdinary: a hart that is not bare has nothing of M mode: each of its registers, and
// mret, is an illegal instruction in S mode.
func TestOrdinary(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	for _, m := range []mode{modeU, modeS} {
		try := func(word uint32) {
			put(h, testBase, word)
			h.Reset(testBase, 0, 0)
			h.mode, h.stvec, h.x[1] = m, testBase+0x100, all
			h.setContext()
			h.dropAllCode()
			h.Step()
			if h.scause != causeIllegal || h.stval != uint64(word) || h.mode != modeS || h.csrs.mtvec|h.pmp.addr[0]|h.mstatus&statusMPP != 0 {
				t.Errorf("%08x in mode %d: cause %d, now mode %d", word, m, h.scause, h.mode)
			}
		}
		try(asm.Mret)
		for n := uint32(0); n < 4096; n++ {
			if n>>8&3 == 3 {
				try(asm.Csrrs(3, n, 0))
				try(asm.Csrrw(3, n, 1))
			}
		}
	}
}

// TestRegistersM: what M mode's registers keep of what is written to them.
func TestRegistersM(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{Bare: true})
	h.Reset(testBase, 0, 0)
	for _, c := range []struct {
		csr         uint32
		write, want uint64
	}{
		{csrMstatus, all, statusSD | uxl64 | sxl64 | mstatusMask},
		{csrMstatus, 2 << statusMPPShift, uxl64 | sxl64 | statusMPP}, // MPP of no mode is not kept
		{csrMisa, 0, misaValue},
		{csrMedeleg, all, medelegMask},
		{csrMideleg, all, irqS},
		{csrMie, all, irqS | irqM},
		{csrMip, all, irqS},
		{csrMtvec, testBase | 1, testBase | 1},
		{csrMtvec, testBase + 0x102, testBase | 1},
		{csrMepc, all, all - 1},
		{csrMcause, all, all},
		{csrMtval, all, all},
		{csrMscratch, all, all},
		{csrMcounteren, all, 7},
		{csrMenvcfg, all, envFIOM | envCBZE | envSTCE},
		{csrMcountinh, all, 0},
		{csrMhpmevent3, all, 0},
		{csrMhpmcounter31, all, 0},
		{csrTselect, all, 0},
		{csrMvendorid, 0, 0},
		{csrMhartid, 0, 0},
		{csrPmpcfg0, all, pmpCfgMask},
		{csrPmpcfg2, 0x1f, 0x1f},
		{csrPmpcfg2 + 2, all, 0},
		{csrPmpaddr0, all, pmpAddrMask},
		{csrPmpaddr15, 5, 5},
		{csrPmpaddr15 + 1, all, 0},
	} {
		h.csrWrite(c.csr, c.write)
		if got, ok := h.csrRead(c.csr); got != c.want || !ok {
			t.Errorf("%x written with %x reads %x, want %x", c.csr, c.write, got, c.want)
		}
	}
	for _, n := range []uint32{csrPmpcfg0 + 1, csrPmpcfg14 + 1, csrMcycle + 1, 0x310, 0x747, 0x7a8, 0xf16} {
		if v, ok := h.csrRead(n); ok {
			t.Errorf("there is a register %x: %x", n, v)
		}
	}
}
