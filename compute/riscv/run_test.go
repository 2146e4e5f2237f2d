package riscv

import (
	"testing"

	"steadfast/compute/riscv/asm"
)

// TestLimit: a run ends exactly at its limit, wherever in a block that is, and however it is
// cut nothing else changes.
func TestLimit(t *testing.T) {
	code := []uint32{asm.Addi(1, 1, 1), asm.Addi(2, 2, 2), asm.Sd(1, 5, 0), asm.Ld(3, 5, 0), asm.B(1, 1, 4, -16), asm.Addi(6, 6, 1), asm.Jal(0, -24)}
	whole, _ := newTest(t, 1<<20, Options{})
	for _, step := range []uint64{1, 2, 3, 5, 7, 1000} {
		h, _ := newTest(t, 1<<20, Options{})
		for _, h := range []*Hart{h, whole} {
			put(h, testBase, code...)
			h.Reset(testBase, 0, 0)
			h.x[4], h.x[5] = 50, testBase+0x2000
		}
		if stop := whole.Run(1000); stop != StopLimit || whole.count != 1000 {
			t.Fatalf("stop %d at %d", stop, whole.count)
		}
		for h.count < 1000 {
			to := min(h.count+step, 1000)
			if stop := h.Run(to); stop != StopLimit || h.count != to {
				t.Fatalf("stop %d at %d, not %d", stop, h.count, to)
			}
		}
		if h.x != whole.x || h.pc != whole.pc {
			t.Errorf("by %d: pc %x and %x", step, h.pc, whole.pc)
		}
	}
}

// TestCounters: cycle, instret and time are those before the instruction that reads; a trap
// retires nothing; a device is told the same.
func TestCounters(t *testing.T) {
	h, w := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.Nop, asm.Nop, asm.Csrrs(3, csrCycle, 0), asm.Nop, asm.Csrrs(4, csrInstret, 0), asm.Ebreak)
	put(h, testBase+0x100, asm.Csrrs(5, csrInstret, 0), asm.Nop, asm.Ld(6, 1, 0), asm.Sd(6, 1, 8), asm.Csrrs(7, csrTime, 0))
	h.Reset(testBase, 0, 0)
	h.stvec, h.x[1] = testBase+0x100, testDevice
	h.Run(10)
	if h.x[3] != 2 || h.x[4] != 4 || h.x[5] != 5 || h.x[7] != 0 || h.count != 10 {
		t.Errorf("cycle %d, instret %d, in the handler %d, time %d, count %d", h.x[3], h.x[4], h.x[5], h.x[7], h.count)
	}
	if len(w.counts) != 2 || w.counts[0] != 7 || w.counts[1] != 8 || w.stores[0] != 0x1122334455667788 {
		t.Errorf("the device was told %v, got %x", w.counts, w.stores)
	}
}

// TestBusFaults: an access that no device takes, and one that is not aligned.
func TestBusFaults(t *testing.T) {
	for _, c := range []struct {
		word  uint32
		at    uint64
		cause uint64
	}{
		{asm.Ld(3, 1, 0), testDevice + 0x1000, causeLoadAccess},
		{asm.Sd(3, 1, 0), testDevice + 0x1000, causeStoreAccess},
		{asm.Ld(3, 1, 0), testDevice + 4, causeLoadAccess},
		{asm.Sd(3, 1, 0), testDevice + 4, causeStoreAccess},
		{asm.Ld(3, 1, 0), testBase - 4, causeLoadAccess},
		{asm.Sd(3, 1, 0), testBase + 1<<20 - 4, causeStoreAccess},
		{asm.Jalr(0, 1, 0), testDevice, causeFetchAccess},
	} {
		h, _ := newTest(t, 1<<20, Options{})
		put(h, testBase, asm.Nop, c.word)
		h.Reset(testBase, 0, 0)
		h.stvec, h.x[1] = testBase+0x100, c.at
		h.Step()
		h.Step()
		if c.cause == causeFetchAccess {
			h.Step()
		}
		if h.scause != c.cause {
			t.Errorf("%s at %x: cause %d, address %x", Mnemonic(c.word), c.at, h.scause, h.stval)
		}
	}
}

// TestTimer: the interrupt comes at the first count at which the time is stimecmp's.
func TestTimer(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.Jal(0, 0))
	put(h, testBase+0x100, asm.Nop)
	h.Reset(testBase, 0, 0)
	h.stvec, h.mie, h.mstatus = testBase+0x100, irqSTI, statusSIE
	h.csrWrite(csrStimecmp, 7)
	if h.Run(70) != StopLimit || h.pc != testBase || h.scause != 0 {
		t.Fatalf("at 70: pc %x", h.pc)
	}
	h.Run(71)
	if h.scause != causeInterrupt|5 || h.sepc != testBase || h.pc != testBase+0x104 {
		t.Errorf("at 71: cause %x, pc %x", h.scause, h.pc)
	}
	// In one go, the same.
	h.Reset(testBase, 0, 0)
	h.stvec, h.mie, h.mstatus = testBase+0x100, irqSTI, statusSIE
	h.csrWrite(csrStimecmp, 7)
	put(h, testBase+0x100, asm.Csrrs(3, csrInstret, 0), asm.Jal(0, 0))
	h.dropAllCode()
	h.Run(1000)
	if h.x[3] != 70 {
		t.Errorf("the handler began at %d, want 70", h.x[3])
	}
	if v, _ := h.csrRead(csrSip); v != irqSTI {
		t.Errorf("sip is %x", v)
	}
	h.csrWrite(csrStimecmp, never)
	if v, _ := h.csrRead(csrSip); v != 0 {
		t.Errorf("sip is %x with the timer far away", v)
	}
}

// TestExternal: a line that a store to a device raises is seen before the next instruction.
func TestExternal(t *testing.T) {
	h, w := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.Nop, asm.Sd(2, 1, 0), asm.Addi(3, 3, 1), asm.Addi(3, 3, 1))
	h.Reset(testBase, 0, 0)
	h.stvec, h.mie, h.mstatus, h.x[1] = testBase+0x101, irqSEI|irqSSI, statusSIE, testDevice
	h.soft = 0
	w.onStore = func(uint64, uint64) { h.SetExternal(true) }
	h.Run(2)
	h.Step()
	if h.scause != causeInterrupt|9 || h.sepc != testBase+8 || h.x[3] != 0 {
		t.Errorf("cause %x, pc %x, x3 %d", h.scause, h.sepc, h.x[3])
	}
	if h.pc != testBase+0x100+4*9 && h.lastPC != testBase+0x100+4*9 {
		t.Errorf("the vector is %x", h.pc)
	}
	// sip shows it and cannot clear it.
	h.csrWrite(csrSip, 0)
	if v, _ := h.csrRead(csrSip); v != irqSEI {
		t.Errorf("sip is %x", v)
	}
	h.SetExternal(false)
	if v, _ := h.csrRead(csrSip); v != 0 {
		t.Errorf("sip is %x", v)
	}
}

// TestPriority: external before software before timer.
func TestPriority(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	h.Reset(testBase, 0, 0)
	h.mie, h.mstatus, h.soft, h.external = irqS, statusSIE, irqSSI, true
	h.csrWrite(csrStimecmp, 0)
	for _, want := range []uint64{9, 1, 5} {
		h.mstatus |= statusSIE
		if !h.interrupt() || h.scause != causeInterrupt|want {
			t.Errorf("cause %x, want %d", h.scause, want)
		}
		switch want {
		case 9:
			h.external = false
		case 1:
			h.soft = 0
		}
	}
	h.csrWrite(csrStimecmp, never)
	h.mstatus |= statusSIE
	if h.interrupt() {
		t.Error("nothing pends, and something was taken")
	}
}

// TestEnable: an interrupt is taken in U whatever SIE says, in S by it, right after the
// instruction that allows it.
func TestEnable(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.Addi(3, 3, 1), asm.Csrrs(0, csrSstatus, 1), asm.Addi(3, 3, 1))
	h.Reset(testBase, 0, 0)
	h.stvec, h.mie, h.soft, h.x[1] = testBase+0x100, irqSSI, irqSSI, statusSIE
	h.Run(2)
	h.Step()
	if h.x[3] != 1 || h.sepc != testBase+8 || h.scause != causeInterrupt|1 {
		t.Errorf("x3 %d, sepc %x, cause %x", h.x[3], h.sepc, h.scause)
	}
	if h.mstatus&(statusSIE|statusSPIE|statusSPP) != statusSPIE|statusSPP {
		t.Errorf("status %x", h.mstatus)
	}
	h.mode, h.mstatus = modeU, 0
	if !h.interrupt() || h.mstatus&statusSPP != 0 {
		t.Error("not taken in U mode")
	}
}

// TestWFI: waits when nothing pends, wakes when something does, enabled by SIE or not.
func TestWFI(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.Nop, asm.Wfi, asm.Addi(3, 3, 1))
	h.Reset(testBase, 0, 0)
	h.mie = irqSTI
	h.csrWrite(csrStimecmp, 100)
	if stop := h.Run(500); stop != StopIdle || h.count != 2 || h.pc != testBase+8 || !h.Waiting() {
		t.Fatalf("stop %d at %d, pc %x", stop, h.count, h.pc)
	}
	if h.IdleUntil() != 1000 {
		t.Errorf("until %d, want 1000", h.IdleUntil())
	}
	h.Idle(999)
	if stop := h.Run(5000); stop != StopIdle || h.count != 999 {
		t.Errorf("stop %d at %d", stop, h.count)
	}
	h.Idle(1000)
	if stop := h.Run(1001); stop != StopLimit || h.x[3] != 1 || h.Waiting() {
		t.Errorf("stop %d at %d, x3 %d", stop, h.count, h.x[3])
	}
	h.Idle(2000)
	if h.count != 1001 {
		t.Error("a hart that does not wait idled")
	}
	// Pending at once: no wait at all.
	h.Reset(testBase, 0, 0)
	h.mie, h.external = irqSEI, true
	if stop := h.Run(3); stop != StopLimit || h.x[3] != 1 {
		t.Errorf("stop %d, x3 %d", stop, h.x[3])
	}
	// Not from U mode, and with the timer disabled for ever.
	h.Reset(testBase, 0, 0)
	if h.IdleUntil() != never {
		t.Error("the timer is not enabled, and would wake")
	}
	h.mode, h.stvec = modeU, testBase+0x100
	h.Step()
	h.Step()
	if h.scause != causeIllegal || h.stval != asm.Wfi {
		t.Errorf("wfi in U: cause %d", h.scause)
	}
}

// TestStop: from a device, before the next instruction.
func TestStop(t *testing.T) {
	h, w := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.Sd(2, 1, 0), asm.Addi(3, 3, 1), asm.Jal(0, -4))
	h.Reset(testBase, 0, 0)
	h.x[1] = testDevice
	w.onStore = func(uint64, uint64) { h.Stop() }
	if stop := h.Run(100); stop != StopAsked || h.count != 1 {
		t.Errorf("stop %d at %d", stop, h.count)
	}
	if stop := h.Run(100); stop != StopLimit || h.count != 100 {
		t.Errorf("stop %d at %d", stop, h.count)
	}
}

// TestWedged: a handler whose first instruction traps into itself does not hold the
// machine for ever, and goes on when what is wrong is repaired.
func TestWedged(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.Nop, asm.Ebreak)
	h.Reset(testBase, 0, 0)
	h.stvec = testDevice
	for range 3 {
		if stop := h.Run(1000); stop != StopWedged || h.count != 1 || h.pc != testDevice {
			t.Fatalf("stop %d at %d, pc %x", stop, h.count, h.pc)
		}
	}
	put(h, testBase+0x100, 0)
	h.pc, h.stvec = testBase, testBase+0x100
	if stop := h.Run(1000); stop != StopWedged || h.scause != causeIllegal {
		t.Fatalf("stop %d, cause %d", stop, h.scause)
	}
	h.ram.Write([]byte{0x01, 0x00, 0x01, 0x00}, testBase+0x100) // c.nop
	h.ram.Write([]byte{0x6f, 0, 0, 0}, testBase+0x104)
	if stop := h.Run(1000); stop != StopLimit || h.count != 1000 {
		t.Errorf("stop %d at %d after the repair", stop, h.count)
	}
}

// TestTraps: what sret and traps make of mode and status, and that ecall from U comes to S.
func TestTraps(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.Sret)
	put(h, testBase+0x40, asm.Ecall)
	h.Reset(testBase, 0, 0)
	h.stvec, h.sepc, h.mstatus = testBase+0x100, testBase+0x40, statusSPIE|statusSPP
	h.Step()
	if h.mode != modeS || h.mstatus != statusSIE|statusSPIE || h.pc != testBase+0x40 {
		t.Errorf("sret: mode %d, status %x, pc %x", h.mode, h.mstatus, h.pc)
	}
	h.mode = modeU
	h.setContext()
	h.Step()
	if h.mode != modeS || h.scause != causeEcallU || h.sepc != testBase+0x40 || h.stval != 0 || h.mstatus != statusSPIE {
		t.Errorf("ecall: mode %d, cause %d, status %x", h.mode, h.scause, h.mstatus)
	}
	h.mode, h.pc = modeU, testBase
	h.Step()
	if h.scause != causeIllegal {
		t.Errorf("sret in U: cause %d", h.scause)
	}
}

// TestCSRAccess: who may reach what.
func TestCSRAccess(t *testing.T) {
	for _, c := range []struct {
		name string
		mode mode
		word uint32
		set  func(h *Hart)
		ok   bool
	}{
		{"sstatus from U", modeU, asm.Csrrs(3, csrSstatus, 0), nil, false},
		{"sstatus from S", modeS, asm.Csrrs(3, csrSstatus, 0), nil, true},
		{"mstatus from S", modeS, asm.Csrrs(3, csrMstatus, 0), nil, false},
		{"mhartid from S", modeS, asm.Csrrs(3, csrMhartid, 0), nil, false},
		{"time from U at first", modeU, asm.Csrrs(3, csrTime, 0), nil, true},
		{"time from U", modeU, asm.Csrrs(3, csrTime, 0), func(h *Hart) { h.scounteren = 0 }, false},
		{"time from U, allowed", modeU, asm.Csrrs(3, csrTime, 0), func(h *Hart) { h.scounteren = 2 }, true},
		{"cycle from U, time allowed", modeU, asm.Csrrs(3, csrCycle, 0), func(h *Hart) { h.scounteren = 2 }, false},
		{"cycle from S", modeS, asm.Csrrs(3, csrCycle, 0), nil, true},
		{"a write of cycle", modeS, asm.Csrrw(0, csrCycle, 1), nil, false},
		{"a set of nothing in cycle", modeS, asm.Csrrs(3, csrCycle, 0), nil, true},
		{"stimecmp from S", modeS, asm.Csrrw(3, csrStimecmp, 1), nil, true},
		{"stimecmp from U", modeU, asm.Csrrw(3, csrStimecmp, 1), nil, false},
		{"fcsr with F off", modeS, asm.Csrrs(3, csrFcsr, 0), nil, false},
		{"fcsr", modeU, asm.Csrrs(3, csrFcsr, 0), func(h *Hart) { h.mstatus |= statusFS }, true},
		{"satp from S", modeS, asm.Csrrw(3, csrSatp, 0), nil, true},
		{"hpmcounter3", modeS, asm.Csrrs(3, 0xc03, 0), nil, false},
		{"none", modeS, asm.Csrrs(3, 0x555, 0), nil, false},
	} {
		h, _ := newTest(t, 1<<20, Options{})
		put(h, testBase, c.word)
		h.Reset(testBase, 0, 0)
		h.mode, h.stvec = c.mode, testBase+0x100
		if c.set != nil {
			c.set(h)
		}
		h.setContext()
		h.Step()
		if ok := h.scause == 0; ok != c.ok {
			t.Errorf("%s: cause %d", c.name, h.scause)
		}
	}
}

// TestCSRValues: what registers keep of what is written to them.
func TestCSRValues(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	h.Reset(testBase, 0, 0)
	for _, c := range []struct {
		csr         uint32
		write, want uint64
	}{
		{csrSstatus, all, statusSD | uxl64 | sstatusMask},
		{csrSstatus, 0, uxl64},
		{csrSstatus, 1 << 13, uxl64 | 1<<13},
		{csrSie, all, irqS},
		{csrSip, all, irqSSI},
		{csrSip, 0, 0},
		{csrStvec, testBase | 1, testBase | 1},
		{csrStvec, testBase + 0x102, testBase | 1},
		{csrSepc, all, all - 1},
		{csrScause, all, all},
		{csrStval, all, all},
		{csrSscratch, all, all},
		{csrScounteren, all, 7},
		{csrSenvcfg, all, envFIOM | envCBZE},
		{csrFcsr, all, 0xff},
		{csrFflags, 0x3f, 0x1f},
		{csrFrm, 0xf, 7},
		{csrSatp, 8<<60 | 0xffff<<44 | 5, 8<<60 | 0xffff<<44 | 5},
		{csrSatp, 9 << 60, 8<<60 | 0xffff<<44 | 5},
		{csrStimecmp, 5, 5},
	} {
		h.csrWrite(c.csr, c.write)
		if got, ok := h.csrRead(c.csr); got != c.want || !ok {
			t.Errorf("%x written with %x reads %x, want %x", c.csr, c.write, got, c.want)
		}
	}
}

// TestSetAndClear: the six instructions of Zicsr.
func TestSetAndClear(t *testing.T) {
	for _, c := range []struct {
		f3, rs1 uint32
		want    uint64
	}{
		{1, 1, 0x0f}, {2, 1, 0xff}, {3, 1, 0xf0}, {1, 0, 0}, {2, 0, 0xf0}, {5, 0x1f, 0x1f}, {6, 0x0f, 0xff}, {7, 0x1f, 0xe0}, {5, 0, 0}, {7, 0, 0xf0},
	} {
		h, _ := newTest(t, 1<<20, Options{})
		put(h, testBase, csrSscratch<<20|c.rs1<<15|c.f3<<12|3<<7|0x73)
		h.Reset(testBase, 0, 0)
		h.sscratch, h.x[1] = 0xf0, 0x0f
		h.Run(1)
		if h.sscratch != c.want || h.x[3] != 0xf0 {
			t.Errorf("funct3 %d, %d: sscratch %x, rd %x", c.f3, c.rs1, h.sscratch, h.x[3])
		}
	}
}
