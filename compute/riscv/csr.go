package riscv

// Control and status registers. RISC-V privileged manual, "CSR Listing".

// csrs are the registers as they are kept: sstatus, sie and sip are views of mstatus,
// mie and mip. Those of M mode stay zero where there is none.
type csrs struct {
	mstatus, mie, soft                   uint64
	stvec, sepc, scause, stval, sscratch uint64
	scounteren, senvcfg, satp, stimecmp  uint64
	fflags, frm                          uint64
	medeleg, mideleg                     uint64
	mtvec, mepc, mcause, mtval, mscratch uint64
	mcounteren, menvcfg                  uint64
	cycleOffset, instretOffset           uint64
}

// Numbers of registers.
const (
	csrFflags     = 0x001
	csrFrm        = 0x002
	csrFcsr       = 0x003
	csrSstatus    = 0x100
	csrSie        = 0x104
	csrStvec      = 0x105
	csrScounteren = 0x106
	csrSenvcfg    = 0x10a
	csrSscratch   = 0x140
	csrSepc       = 0x141
	csrScause     = 0x142
	csrStval      = 0x143
	csrSip        = 0x144
	csrStimecmp   = 0x14d
	csrSatp       = 0x180
	csrMip        = 0x344
	csrCycle      = 0xc00
	csrTime       = 0xc01
	csrInstret    = 0xc02
)

const (
	// sstatusMask is what S mode sees of mstatus besides UXL and SD, and may write.
	sstatusMask = statusSIE | statusSPIE | statusSPP | statusFS | statusSUM | statusMXR
	// uxl64 is UXL of 64 bits.
	uxl64 = 2 << 32

	countersMask = 7
	// envCBZE enables cbo.zero in the mode below, envFIOM is a bit without effect here.
	envFIOM = 1 << 0
	envCBZE = 1 << 7
	envSTCE = 1 << 63
)

// csr runs the six instructions of Zicsr; false is an illegal instruction.
func (h *Hart) csr(o *op) bool {
	n := uint32(o.imm) >> 20
	operand := h.x[o.rs1]
	if o.code >= opCsrrwi {
		operand = uint64(o.rs1)
	}
	replace := o.code == opCsrrw || o.code == opCsrrwi
	writes := replace || o.rs1 != 0
	if !h.csrAllowed(n, writes) {
		return false
	}
	old, ok := h.csrRead(n)
	if !ok {
		return false
	}
	if writes {
		v := operand
		switch o.code {
		case opCsrrs, opCsrrsi:
			v = old | operand
		case opCsrrc, opCsrrci:
			v = old &^ operand
		default:
		}
		if n == csrMip || n == csrSip {
			v = h.softMip(o.code, operand)
		}
		h.csrWrite(n, v)
	}
	h.x[o.rd] = old
	return true
}

// softMip is the operand of a write of mip or sip that sets or clears bits: the
// external line is no part of what is read then. Manual, "Machine Interrupt Registers".
func (h *Hart) softMip(c code, operand uint64) uint64 {
	switch c {
	case opCsrrs, opCsrrsi:
		return h.soft | operand
	case opCsrrc, opCsrrci:
		return h.soft &^ operand
	default:
		return operand
	}
}

// csrAllowed tells whether the mode may reach a register at all: by its number, and by
// what the modes above allow.
func (h *Hart) csrAllowed(n uint32, writes bool) bool {
	if writes && n>>10 == 3 || uint32(h.mode) < n>>8&3 {
		return false
	}
	switch {
	case n >= csrFflags && n <= csrFcsr:
		return h.mstatus&statusFS != 0
	case n == csrSatp:
		return h.mode != modeS || h.mstatus&statusTVM == 0
	case n == csrStimecmp:
		return h.mode == modeM || h.timerOn() && h.counters()>>1&1 != 0
	case n >= csrCycle && n <= csrInstret:
		bit := uint64(1) << (n - csrCycle)
		return h.mode == modeM || h.counters()&bit != 0 && (h.mode == modeS || h.scounteren&bit != 0)
	}
	return true
}

// csrRead returns a register's value as of this instruction; false if there is none.
func (h *Hart) csrRead(n uint32) (uint64, bool) {
	switch n {
	case csrFflags:
		return h.fflags, true
	case csrFrm:
		return h.frm, true
	case csrFcsr:
		return h.frm<<5 | h.fflags, true
	case csrSstatus:
		return h.status()&(sstatusMask|statusSD) | uxl64, true
	case csrSie:
		return h.mie & h.visible(), true
	case csrStvec:
		return h.stvec, true
	case csrScounteren:
		return h.scounteren, true
	case csrSenvcfg:
		return h.senvcfg, true
	case csrSscratch:
		return h.sscratch, true
	case csrSepc:
		return h.sepc, true
	case csrScause:
		return h.scause, true
	case csrStval:
		return h.stval, true
	case csrSip:
		return h.mip() & h.visible(), true
	case csrStimecmp:
		return h.stimecmp, true
	case csrSatp:
		return h.satp, true
	case csrCycle:
		return h.count + h.cycleOffset, true
	case csrInstret:
		return h.count + h.instretOffset, true
	case csrTime:
		return h.clock.Time(h.count), true
	}
	return h.csrReadM(n)
}

// status is mstatus with SD.
func (h *Hart) status() uint64 {
	s := h.mstatus
	if s&statusFS == statusFS {
		s |= statusSD
	}
	return s
}

// csrWrite writes a register that was read before. What cannot be is left out, as the
// register's WARL fields say.
func (h *Hart) csrWrite(n uint32, v uint64) {
	switch n {
	case csrFflags:
		h.fflags = v & 31
		h.mstatus |= statusFS
	case csrFrm:
		h.frm = v & 7
		h.mstatus |= statusFS
	case csrFcsr:
		h.fflags, h.frm = v&31, v>>5&7
		h.mstatus |= statusFS
	case csrSstatus:
		h.setStatus(v, sstatusMask)
	case csrSie:
		h.attention = true
		h.mie = h.mie&^h.visible() | v&h.visible()
	case csrStvec:
		if v&3 < 2 {
			h.stvec = v
		}
	case csrScounteren:
		h.scounteren = v & countersMask
	case csrSenvcfg:
		h.senvcfg = v & (envFIOM | envCBZE)
	case csrSscratch:
		h.sscratch = v
	case csrSepc:
		h.sepc = v &^ 1
	case csrScause:
		h.scause = v
	case csrStval:
		h.stval = v
	case csrSip:
		h.attention = true
		h.soft = h.soft&^(irqSSI&h.visible()) | v&irqSSI&h.visible()
	case csrStimecmp:
		h.setTimer(v)
	case csrSatp:
		h.setSatp(v)
	default:
		h.csrWriteM(n, v)
	}
}

// setStatus writes fields of mstatus.
func (h *Hart) setStatus(v, mask uint64) {
	h.attention = true
	old := h.mstatus
	h.mstatus = old&^mask | v&mask
	if (old^h.mstatus)&statusMXR != 0 {
		h.flushTranslations()
	}
	h.setContext()
}

// setTimer writes stimecmp.
func (h *Hart) setTimer(v uint64) {
	h.stimecmp = v
	h.timerAt = h.clock.CountAt(v)
	h.attention = true
}

// setSatp writes satp, unless the mode is one that is not there. Manual, "Supervisor
// Address Translation and Protection (satp) Register".
func (h *Hart) setSatp(v uint64) {
	if m := v >> 60; m != 0 && m != 8 || v == h.satp {
		return
	}
	h.satp = v
	h.flushTranslations()
	h.setContext()
}
