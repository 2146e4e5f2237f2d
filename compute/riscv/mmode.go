package riscv

import "steadfast/compute/device"

// Machine mode: what is above S mode on a bare hart, and on no other. RISC-V privileged
// manual, "Machine-Level ISA".
//
// All of it is here, and these are the doors that lead here; each asks whether the
// hart is bare, and none lies on the path of an instruction that is not about privilege:
//
//   - counters, environment and visible: what M mode lets the modes below have. On other
//     harts it is all that there is.
//   - dueM and entersM: the interrupts and traps that are not delegated.
//   - csrReadM and csrWriteM: its registers, which have numbers that the modes below
//     cannot reach (csrAllowed).
//   - mret, which is illegal below M mode; ecall of S mode (trap.go), which is SBI else.
//   - Reset, saveM, restoreM and judge: where a hart begins, and what it may be.
//
// What the platform may leave out is left out: memory protection (PMP) has registers and
// no effect, triggers and counters of events read as zero, counters cannot be
// inhibited, there is no interrupt of M mode's own timer.

// Numbers of M mode's registers.
const (
	csrMstatus       = 0x300
	csrMisa          = 0x301
	csrMedeleg       = 0x302
	csrMideleg       = 0x303
	csrMie           = 0x304
	csrMtvec         = 0x305
	csrMcounteren    = 0x306
	csrMenvcfg       = 0x30a
	csrMcountinh     = 0x320
	csrMhpmevent3    = 0x323
	csrMhpmevent31   = 0x33f
	csrMscratch      = 0x340
	csrMepc          = 0x341
	csrMcause        = 0x342
	csrMtval         = 0x343
	csrPmpcfg0       = 0x3a0
	csrPmpcfg2       = 0x3a2
	csrPmpcfg14      = 0x3ae
	csrPmpaddr0      = 0x3b0
	csrPmpaddr15     = 0x3bf
	csrPmpaddr63     = 0x3ef
	csrTselect       = 0x7a0
	csrTinfo         = 0x7a4
	csrMcycle        = 0xb00
	csrMinstret      = 0xb02
	csrMhpmcounter3  = 0xb03
	csrMhpmcounter31 = 0xb1f
	csrMvendorid     = 0xf11
	csrMarchid       = 0xf12
	csrMimpid        = 0xf13
	csrMhartid       = 0xf14
	csrMconfigptr    = 0xf15
)

const (
	mstatusMask = sstatusMask | statusMIE | statusMPIE | statusMPP | statusMPRV | statusTVM | statusTW | statusTSR
	// sxl64 is SXL of 64 bits.
	sxl64 = 2 << 34

	// medelegMask: what S mode can be given; an ecall from M mode cannot.
	medelegMask = 0xb3ff

	// misaValue: RV64, and a bit for each letter of ACDFIMSU.
	misaValue = 2<<62 | 1<<0 | 1<<2 | 1<<3 | 1<<5 | 1<<8 | 1<<12 | 1<<18 | 1<<20

	// pmpEntries is how many entries PMP has; the registers of the others read as zero.
	pmpEntries = 16
	// pmpAddrMask: an address of 56 bits, without the lowest two.
	pmpAddrMask = 1<<54 - 1
	// pmpCfgMask: two bits of each entry's byte are reserved.
	pmpCfgMask = 0x9f9f9f9f9f9f9f9f
)

// pmp are the registers of physical memory protection, which protects nothing.
type pmp struct {
	cfg  [pmpEntries / 8]uint64
	addr [pmpEntries]uint64
}

// counters are the counters that the modes below may read, by their bits of mcounteren.
func (h *Hart) counters() uint64 {
	if h.bare {
		return h.mcounteren
	}
	return countersMask
}

// environment is what the modes below have, by the bits of menvcfg.
func (h *Hart) environment() uint64 {
	if h.bare {
		return h.menvcfg
	}
	return envFIOM | envCBZE | envSTCE
}

// visible are the interrupts that S mode sees, and takes.
func (h *Hart) visible() uint64 {
	if h.bare {
		return h.mideleg
	}
	return irqS
}

// dueM are the interrupts of those pending that M mode takes.
func (h *Hart) dueM(pending uint64) uint64 {
	if h.bare && (h.mode < modeM || h.mstatus&statusMIE != 0) {
		return pending &^ h.mideleg
	}
	return 0
}

// entersM tells whether M mode takes a trap.
func (h *Hart) entersM(cause uint64) bool {
	switch {
	case !h.bare:
		return false
	case h.mode == modeM:
		return true
	case cause&causeInterrupt != 0:
		return h.mideleg>>(cause&63)&1 == 0
	}
	return h.medeleg>>cause&1 == 0
}

// enterM goes to M mode's handler.
func (h *Hart) enterM(e exception) {
	h.mcause, h.mtval, h.mepc = e.cause, e.tval, h.pc
	s := h.mstatus &^ (statusMPIE | statusMPP | statusMIE)
	if h.mstatus&statusMIE != 0 {
		s |= statusMPIE
	}
	h.mstatus = s | uint64(h.mode)<<statusMPPShift
	h.mode = modeM
	h.pc = vector(h.mtvec, e.cause)
}

// mret returns from a trap to M mode; false if the mode may not.
func (h *Hart) mret() bool {
	if h.mode != modeM {
		return false
	}
	s := h.mstatus
	to := mode(s >> statusMPPShift & 3)
	s &^= statusMIE | statusMPP
	if s&statusMPIE != 0 {
		s |= statusMIE
	}
	if to != modeM {
		s &^= statusMPRV
	}
	h.mstatus, h.mode, h.pc = s|statusMPIE, to, h.mepc
	h.attention = true
	h.setContext()
	return true
}

// csrReadM reads a register of M mode; false if there is none, as on a hart that is not bare.
func (h *Hart) csrReadM(n uint32) (uint64, bool) {
	if !h.bare {
		return 0, false
	}
	switch n {
	case csrMstatus:
		return h.status() | uxl64 | sxl64, true
	case csrMisa:
		return misaValue, true
	case csrMedeleg:
		return h.medeleg, true
	case csrMideleg:
		return h.mideleg, true
	case csrMie:
		return h.mie, true
	case csrMtvec:
		return h.mtvec, true
	case csrMcounteren:
		return h.mcounteren, true
	case csrMenvcfg:
		return h.menvcfg, true
	case csrMscratch:
		return h.mscratch, true
	case csrMepc:
		return h.mepc, true
	case csrMcause:
		return h.mcause, true
	case csrMtval:
		return h.mtval, true
	case csrMip:
		return h.mip(), true
	case csrMcycle:
		return h.count + h.cycleOffset, true
	case csrMinstret:
		return h.count + h.instretOffset, true
	}
	if p := h.pmp.register(n); p != nil {
		return *p, true
	}
	return 0, readsZero(n)
}

// readsZero tells which registers of M mode are there, read as zero and keep nothing.
func readsZero(n uint32) bool {
	switch {
	case n == csrMcountinh, n >= csrMvendorid && n <= csrMconfigptr,
		n >= csrMhpmevent3 && n <= csrMhpmevent31, n >= csrMhpmcounter3 && n <= csrMhpmcounter31,
		n >= csrTselect && n <= csrTinfo:
		return true
	case n >= csrPmpcfg0 && n <= csrPmpcfg14:
		return n&1 == 0 // RV64 has no odd ones
	}
	return n >= csrPmpaddr0 && n <= csrPmpaddr63
}

// register is a register of an entry that there is, else nil.
func (p *pmp) register(n uint32) *uint64 {
	switch {
	case n == csrPmpcfg0 || n == csrPmpcfg2:
		return &p.cfg[(n-csrPmpcfg0)/2]
	case n >= csrPmpaddr0 && n <= csrPmpaddr15:
		return &p.addr[n-csrPmpaddr0]
	}
	return nil
}

// csrWriteM writes a register of M mode that was read before.
func (h *Hart) csrWriteM(n uint32, v uint64) {
	h.attention = true
	switch n {
	case csrMstatus:
		if v&statusMPP == 2<<statusMPPShift {
			v = v&^statusMPP | h.mstatus&statusMPP
		}
		h.setStatus(v, mstatusMask)
	case csrMedeleg:
		h.medeleg = v & medelegMask
	case csrMideleg:
		h.mideleg = v & irqS
	case csrMie:
		h.mie = v & (irqS | irqM)
	case csrMtvec:
		if v&3 < 2 {
			h.mtvec = v
		}
	case csrMcounteren:
		h.mcounteren = v & countersMask
	case csrMenvcfg:
		h.menvcfg = v & (envFIOM | envCBZE | envSTCE)
	case csrMscratch:
		h.mscratch = v
	case csrMepc:
		h.mepc = v &^ 1
	case csrMcause:
		h.mcause = v
	case csrMtval:
		h.mtval = v
	case csrMip:
		h.soft = v & irqS
	case csrMcycle:
		// The written value is what the next instruction reads.
		h.cycleOffset = v - h.count - 1
	case csrMinstret:
		h.instretOffset = v - h.count - 1
	default:
		h.pmp.write(n, v)
	}
}

// write keeps what a register of PMP can hold.
func (p *pmp) write(n uint32, v uint64) {
	if r := p.register(n); r != nil {
		*r = v & pmpAddrMask
		if n <= csrPmpcfg2 {
			*r = v & pmpCfgMask
		}
	}
}

// registers are those of PMP in the order of their saved form.
func (p *pmp) registers() (all []*uint64) {
	for i := range p.cfg {
		all = append(all, &p.cfg[i])
	}
	for i := range p.addr {
		all = append(all, &p.addr[i])
	}
	return all
}

// saveM appends what only a bare hart has.
func (h *Hart) saveM(e *device.Encoder) {
	if h.bare {
		for _, r := range h.pmp.registers() {
			e.U64(*r)
		}
	}
}

// restoreM takes what saveM has saved.
func (h *Hart) restoreM(d *device.Decoder) {
	if !h.bare {
		return
	}
	for i, r := range h.pmp.registers() {
		*r = d.U64()
		if i < len(h.pmp.cfg) && *r&^pmpCfgMask != 0 || i >= len(h.pmp.cfg) && *r&^pmpAddrMask != 0 {
			d.Fail("a register of memory protection")
		}
	}
}
