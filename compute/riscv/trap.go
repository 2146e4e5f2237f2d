package riscv

// Traps: RISC-V privileged manual, "Machine-Level CSRs" and "Supervisor CSRs".

// Causes of exceptions.
const (
	causeFetchAccess     = 1
	causeIllegal         = 2
	causeBreakpoint      = 3
	causeLoadMisaligned  = 4
	causeLoadAccess      = 5
	causeStoreMisaligned = 6
	causeStoreAccess     = 7
	causeEcallU          = 8
	causeEcallS          = 9
	causeEcallM          = 11
	causeFetchPage       = 12
	causeLoadPage        = 13
	causeStorePage       = 15

	causeInterrupt = 1 << 63
)

// Interrupts, as bits of mip and mie.
const (
	irqSSI = 1 << 1
	irqMSI = 1 << 3
	irqSTI = 1 << 5
	irqMTI = 1 << 7
	irqSEI = 1 << 9
	irqMEI = 1 << 11

	irqS = irqSSI | irqSTI | irqSEI
	irqM = irqMSI | irqMTI | irqMEI
)

// Fields of mstatus; sstatus shows some of them.
const (
	statusSIE  = 1 << 1
	statusMIE  = 1 << 3
	statusSPIE = 1 << 5
	statusMPIE = 1 << 7
	statusSPP  = 1 << 8
	statusMPP  = 3 << statusMPPShift
	statusFS   = 3 << 13
	statusMPRV = 1 << 17
	statusSUM  = 1 << 18
	statusMXR  = 1 << 19
	statusTVM  = 1 << 20
	statusTW   = 1 << 21
	statusTSR  = 1 << 22
	statusUXL  = 3 << 32
	statusSD   = 1 << 63

	statusMPPShift = 11
)

// order is the priority of interrupts, the highest first.
var order = [...]uint64{11, 3, 7, 9, 1, 5}

// mip is what is pending: what software has set, the lines, and the timer.
func (h *Hart) mip() uint64 {
	v := h.soft
	if h.external {
		v |= irqSEI
	}
	if h.timerOn() {
		v &^= irqSTI
		if h.count >= h.timerAt {
			v |= irqSTI
		}
	}
	return v
}

// timerOn tells whether stimecmp drives the timer's interrupt (Sstc). Only M mode of a
// bare hart can have it off.
func (h *Hart) timerOn() bool { return h.environment()&envSTCE != 0 }

// interrupt takes the interrupt that is due, if one is, and ends the waiting of WFI if one
// is pending at all.
func (h *Hart) interrupt() bool {
	pending := h.mip() & h.mie
	if pending == 0 {
		return false
	}
	h.waiting = false
	due := h.due(pending)
	if due == 0 {
		return false
	}
	for _, n := range order {
		if due>>n&1 != 0 {
			h.enter(exception{cause: causeInterrupt | n})
			return true
		}
	}
	return false
}

// due are the interrupts of those pending that the mode takes.
func (h *Hart) due(pending uint64) uint64 {
	if m := h.dueM(pending); m != 0 {
		return m
	}
	if s := pending & h.visible(); h.mode < modeS || h.mode == modeS && h.mstatus&statusSIE != 0 {
		return s
	}
	return 0
}

// trap takes the exception in h.fault, of the instruction at h.pc.
func (h *Hart) trap() {
	if h.lastAt == h.count && h.lastPC == h.pc && h.last == h.fault {
		h.wedged, h.attention = true, true
	}
	h.last, h.lastPC, h.lastAt = h.fault, h.pc, h.count
	h.attention = h.attention || h.stepping
	h.enter(h.fault)
}

// enter goes to the handler.
func (h *Hart) enter(e exception) {
	h.unreserve()
	if h.entersM(e.cause) {
		h.enterM(e)
	} else {
		h.scause, h.stval, h.sepc = e.cause, e.tval, h.pc
		s := h.mstatus &^ (statusSPIE | statusSPP | statusSIE)
		if h.mstatus&statusSIE != 0 {
			s |= statusSPIE
		}
		if h.mode != modeU {
			s |= statusSPP
		}
		h.mstatus, h.mode = s, modeS
		h.pc = vector(h.stvec, e.cause)
	}
	h.setContext()
}

// vector is the handler's address. Mode 1 of tvec gives each interrupt its own.
func vector(tvec, cause uint64) uint64 {
	if tvec&1 != 0 && cause&causeInterrupt != 0 {
		return tvec&^3 + 4*(cause&63)
	}
	return tvec &^ 3
}

// sret returns from a trap to S mode; false if the mode may not.
func (h *Hart) sret() bool {
	if h.mode < modeS || h.mode == modeS && h.mstatus&statusTSR != 0 {
		return false
	}
	s := h.mstatus
	to := modeU
	if s&statusSPP != 0 {
		to = modeS
	}
	s &^= statusSIE | statusSPP | statusMPRV
	if s&statusSPIE != 0 {
		s |= statusSIE
	}
	h.mstatus, h.mode, h.pc = s|statusSPIE, to, h.sepc
	h.attention = true
	h.setContext()
	return true
}

// wfi waits if no interrupt is pending; false if the mode may not.
func (h *Hart) wfi() bool {
	if h.mode == modeU || h.mode == modeS && h.mstatus&statusTW != 0 {
		return false
	}
	h.waiting, h.attention = true, true
	return true
}

// system runs what ends a block and looks at the whole hart. h.pc and h.count are
// exact: the instruction's. It retires it and tells so, or leaves h.fault.
func (h *Hart) system(o *op) bool {
	next := h.pc + uint64(o.len)
	ok := true
	switch o.code {
	case opFenceI:
		// Decoded code is never stale.
	case opSfenceVma:
		// Nor are translations.
		ok = h.mode == modeM || h.mode == modeS && h.mstatus&statusTVM == 0
	case opSret:
		ok = h.sret()
		next = h.pc
	case opMret:
		ok = h.mret()
		next = h.pc
	case opWfi:
		ok = h.wfi()
	case opEbreak:
		h.fault = exception{cause: causeBreakpoint}
		return false
	case opEcall:
		if !h.ecall() {
			return false
		}
	default:
		ok = h.csr(o)
	}
	if !ok {
		h.fault = exception{causeIllegal, uint64(uint32(o.imm))}
		return false
	}
	h.pc = next
	h.count++
	return true
}

// ecall serves SBI, or makes the exception.
func (h *Hart) ecall() bool {
	if h.mode == modeS && !h.bare {
		h.sbi()
		return true
	}
	h.fault = exception{cause: causeEcallU + uint64(h.mode)}
	if h.flaw.cause {
		h.fault.cause = causeBreakpoint
	}
	return false
}
