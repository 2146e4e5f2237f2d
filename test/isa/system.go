package main

import "steadfast/compute/riscv/asm"

// The parts of the body that are about modes, traps and translation.

// control reads and writes control and status registers. In a mode that may not it
// traps, which is as good.
func (m *maker) control() {
	f3 := one[uint32](m, 1, 2, 3, 5, 6, 7)
	rd, a := m.to(), m.from()
	switch m.r.IntN(20) {
	case 0, 1, 2:
		m.add(asm.Csr(f3, rd, one[uint32](m, 1, 2, 3), a))
	case 3:
		m.add(asm.Csr(f3, rd, one[uint32](m, 0x142, 0x143), a))
	case 4:
		m.add(asm.Csr(f3, rd, one[uint32](m, 0x342, 0x343), a))
	case 5, 11:
		// Fields of sstatus, and SUM again.
		bit := one[uint32](m, 0x2, 0x20, 0x100, 1<<18, 1<<19)
		words := append(asm.Li(a|1, uint64(bit)), asm.Csr(one[uint32](m, 2, 3), rd, 0x100, a|1), asm.Addi(a|1, 0, 1), asm.Slli(a|1, a|1, 18), asm.Csrrs(0, 0x100, a|1))
		if free(a|1) && free(rd) {
			m.add(words...)
		}
	case 6:
		m.floatOff()
	case 7:
		// Pending and enabled interrupts.
		m.add(asm.Csr(one[uint32](m, 6, 7), 0, one[uint32](m, 0x344, 0x304, 0x144, 0x104), 2))
	case 8:
		m.add(asm.Csrrs(rd, one[uint32](m, 0x100, 0x104, 0x105, 0x106, 0x140, 0x141, 0x142, 0x143, 0x144, 0x180, 0x300, 0x302, 0x303, 0x304, 0x305, 0x306, 0x340, 0xf14, 0x7ff, 0x9ff, 0x5ff), 0))
	case 9, 10:
		m.statusM(rd)
	default:
		// The flags are looked at as often as all else together.
		m.add(asm.Csr(f3, rd, one[uint32](m, 1, 1, 2, 3), a))
	}
}

// floatOff runs something of F with FS off, initial or clean.
func (m *maker) floatOff() {
	at := m.to()
	for at == 0 {
		at = m.to()
	}
	words := append(asm.Li(at, 3<<13), asm.Csrrc(0, 0x100, at))
	if state := int32(m.r.IntN(3)); state != 0 {
		words = append(words, asm.Addi(at, 0, state), asm.Slli(at, at, 13), asm.Csrrs(0, 0x100, at))
	}
	words = append(words, one(m, asm.R(0x53, 0, 0, 3, 4, 5), asm.Fld(6, regData, 16), asm.Csrrs(m.to(), 3, 0), asm.R(0x53, 0, 0x71, m.to(), 7, 0), asm.Csr(5, 0, 1, 3)))
	words = append(words, asm.Csrrs(m.to(), 0x100, 0))
	m.add(append(append(words, asm.Li(at, 3<<13)...), asm.Csrrs(0, 0x100, at))...)
}

// statusM changes fields of mstatus that have a say in M mode: MPRV with MPP, MIE, SIE; and satp.
func (m *maker) statusM(rd uint32) {
	at := m.to()
	for at == 0 {
		at = m.to()
	}
	switch m.r.IntN(4) {
	case 0:
		words := append(asm.Li(at, 0x1800), asm.Csrrc(0, 0x300, at))
		words = append(append(words, asm.Li(at, uint64(one(m, 0, 0x800, 0x1800))|1<<17)...), asm.Csrrs(0, 0x300, at))
		words = append(words, asm.I(0x03, 3, rd, one[uint32](m, regData, regOdd, regEdge), 64), asm.S(0x23, 3, regData, 5, 128))
		m.add(append(append(words, asm.Li(at, 1<<17)...), asm.Csrrc(0, 0x300, at))...)
	case 1:
		// A mode of satp that is not there changes nothing.
		m.add(append(asm.Li(at, 3<<60|m.r.Uint64()>>8), asm.Csr(1, rd, 0x180, at))...)
	case 2:
		// Not an odd one: QEMU 7.2 keeps bit 0 of epc, which the manual has as zero.
		m.add(append(asm.Li(at, m.value()&^1), asm.Csr(one[uint32](m, 1, 2), rd, one[uint32](m, 0x141, 0x341), at))...)
	default:
		m.add(asm.Csr(one[uint32](m, 6, 7), rd, 0x300, one[uint32](m, 2, 8)))
	}
}

// trap is what always traps, or is reserved.
func (m *maker) trap() {
	m.add(one[uint32](m, asm.Ebreak, 0x9002, 0, 0x0000, 0xffffffff, 0x8000, 0x6001, 0x00007057, 0x0000707b, 0x30200073|1<<7,
		asm.R(0x33, 3, 0x20, m.to(), 1, 2), asm.R(0x2f, 2, 5<<2, m.to(), regData, 2), asm.R(0x53, 0, 2, 1, 2, 3), asm.I(0x1b, 2, 5, 6, 7),
		asm.I(0x67, 3, 5, 6, 0), asm.S(0x23, 5, regData, 5, 0), asm.B(2, 0, 0, 8), asm.Csr(4, 5, 0x100, 0)))
}

// wild accesses addresses where little is right.
func (m *maker) wild() {
	at := m.to()
	for at == 0 {
		at = m.to()
	}
	size := uint64(m.r.IntN(4))
	off := uint64(m.r.IntN(4096)) >> size << size
	page := one[uint64](m, ramBase+oddAt, ramBase+oddAt, ramBase+oddAt, ramBase+oddAt, 3<<30+dataAt, 4<<30+dataAt, 5<<30+1<<21, 5<<30+2<<21, 6<<30, 7<<30,
		ramBase+dataAt, holeAt, 1<<39, 1<<38, ^uint64(1<<38-1), ^uint64(1<<30-1)+dataAt, ramBase+ramSize)
	if page == ramBase+oddAt {
		page += uint64(m.r.IntN(len(odd))) << 12
	}
	words := asm.Li(at, page+off)
	rd := uint32(m.r.IntN(32))
	switch m.r.IntN(6) {
	case 0, 1:
		words = append(words, asm.I(0x03, uint32(size), m.to(), at, 0))
	case 2, 3:
		words = append(words, asm.S(0x23, uint32(size), at, m.from(), 0))
	case 4:
		// In RAM whatever the mode: QEMU 7.2 takes an AMO elsewhere apart in two.
		page = ramBase + oddAt + uint64(m.r.IntN(len(odd)-1))<<12
		words = append(asm.Li(at, (page+off)&^3), asm.Amo(one[uint32](m, 0, 1), 2, m.to(), at, m.from()))
	default:
		words = append(asm.Li(at, (page+off)&^7), one(m, asm.I(0x07, 3, rd, at, 0), asm.S(0x27, 2, at, rd, 0)))
	}
	m.add(words...)
}

// badJump goes where nothing can be executed. The handlers come back by x1.
func (m *maker) badJump() {
	at := m.to()
	for at <= 1 {
		at = m.to()
	}
	to := one[uint64](m, holeAt, 1<<39, 1<<38, ramBase+ramSize, 6<<30, 0x10)
	if m.r.IntN(2) == 0 {
		to = ramBase + jumpAt + uint64(m.r.IntN(len(odd)))<<12 + uint64(m.r.IntN(2048)*2)
	}
	m.add(append(asm.Li(at, to), asm.Jalr(1, at, int32(m.r.IntN(2))))...)
}

// patch stores another instruction over one that is still to come, or was there before.
func (m *maker) patch() {
	if len(m.patches) == 0 {
		return
	}
	victim := m.patches[m.r.IntN(len(m.patches))]
	word := m.plain()
	at, with := m.to(), m.to()
	for at == 0 || with == 0 || at == with {
		at, with = m.to(), m.to()
	}
	m.linkedWords(append(asm.Li(with, uint64(int64(int32(word)))), 0, 0, asm.Sw(with, at, 0)), func(_ uint32, slots []slot, words []uint32) {
		// The body's code is written to by its address in U and M mode; in S mode, with SUM.
		place := ramBase + uint64(slots[victim].at)
		n := len(words)
		words[n-3] = asm.Lui(at, int32((place+0x800)>>12))
		words[n-2] = asm.Addi(at, at, int32(int64(place<<52)>>52))
	}, at)
}

// linkedWords is linked for words of which some depend on places. The address built by
// lui is extended by its sign, and is made right by two shifts.
func (m *maker) linkedWords(words []uint32, fill func(at uint32, slots []slot, words []uint32), reg uint32) {
	last := words[len(words)-1]
	m.linked(len(words)+2, func(at uint32, slots []slot) []uint32 {
		w := append([]uint32(nil), words...)
		fill(at, slots, w)
		return append(w[:len(w)-1], asm.Slli(reg, reg, 32), asm.Srli(reg, reg, 32), last)
	})
}

// remap writes a leaf of a strange page, and fences; the page is accessed before, and after.
func (m *maker) remap() {
	at, with, page := m.to(), m.to(), m.to()
	for at == 0 || with == 0 || page == 0 || at == with || at == page || with == page {
		at, with, page = m.to(), m.to(), m.to()
	}
	n := uint64(m.r.IntN(len(odd) - 1))
	pte := (ramBase+(uint64(oddAt>>12)+uint64(m.r.IntN(4)))<<12)>>2 | uint64(m.r.IntN(256))
	if m.r.IntN(2) == 0 {
		pte |= pteV | pteR | pteW | pteA
	}
	touch := one(m, asm.I(0x03, 3, 0, page, 8), asm.S(0x23, 3, page, with, 16))
	words := append(asm.Li(page, ramBase+oddAt+n<<12), asm.Li(with, pte)...)
	words = append(append(words, asm.Li(at, ramBase+leavesAt+oddAt>>9+8*n)...), touch)
	words = append(words, one(m, asm.Sd(with, at, 0), asm.Amo(1, 3, 0, at, with)), asm.SfenceVMA)
	m.add(append(words, touch, asm.Ld(m.to(), page, 24))...)
}
