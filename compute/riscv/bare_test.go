package riscv

import "testing"

// TestBare: what M mode allows and forbids the modes below, and what mret makes of it.
func TestBare(t *testing.T) {
	for _, c := range []struct {
		name  string
		mode  mode
		word  uint32
		set   func(h *Hart)
		cause uint64
	}{
		{"satp with TVM", modeS, csrrs(3, csrSatp, 0), func(h *Hart) { h.mstatus |= statusTVM }, causeIllegal},
		{"sfence.vma with TVM", modeS, sfenceVMA, func(h *Hart) { h.mstatus |= statusTVM }, causeIllegal},
		{"sfence.vma", modeS, sfenceVMA, nil, 0},
		{"sfence.vma from U", modeU, sfenceVMA, nil, causeIllegal},
		{"wfi with TW", modeS, wfiWord, func(h *Hart) { h.mstatus |= statusTW }, causeIllegal},
		{"sret with TSR", modeS, sretWord, func(h *Hart) { h.mstatus |= statusTSR }, causeIllegal},
		{"sret with TSR in M", modeM, sretWord, func(h *Hart) { h.mstatus |= statusTSR }, 0},
		{"mret from S", modeS, mretWord, nil, causeIllegal},
		{"mret", modeM, mretWord, nil, 0},
		{"time from S without mcounteren", modeS, csrrs(3, csrTime, 0), nil, causeIllegal},
		{"time from S", modeS, csrrs(3, csrTime, 0), func(h *Hart) { h.mcounteren = 2 }, 0},
		{"time from U without scounteren", modeU, csrrs(3, csrTime, 0), func(h *Hart) { h.mcounteren = 2 }, causeIllegal},
		{"stimecmp without STCE", modeS, csrrs(3, csrStimecmp, 0), func(h *Hart) { h.mcounteren = 2 }, causeIllegal},
		{"stimecmp", modeS, csrrs(3, csrStimecmp, 0), func(h *Hart) { h.mcounteren, h.menvcfg = 2, envSTCE }, 0},
		{"cbo.zero without menvcfg", modeS, opcodeCboZero | 1<<15, nil, causeIllegal},
		{"cbo.zero", modeS, opcodeCboZero | 1<<15, func(h *Hart) { h.menvcfg = envCBZE }, 0},
		{"ecall from U", modeU, ecall, nil, causeEcallU},
		{"ecall from S is no SBI", modeS, ecall, nil, causeEcallS},
		{"ecall from M", modeM, ecall, nil, causeEcallM},
		{"pmpaddr0", modeM, csrrw(3, 0x3b0, 1), nil, 0},
		{"misa", modeM, csrrs(3, csrMisa, 0), nil, 0},
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
	put(h, testBase, mretWord)
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
		put(h, testBase, ebreak)
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
