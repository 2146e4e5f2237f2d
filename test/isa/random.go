package main

import "steadfast/compute/riscv/asm"

// What the body is made of.

// random adds one slot.
func (m *maker) random() {
	switch n := m.r.IntN(100); {
	case n < 22:
		m.patches = append(m.patches, len(m.slots))
		m.add(m.plain())
	case n < 34:
		m.add(m.compressed())
	case n < 35:
		// ctzw of a word that is not zero: QEMU 7.2 counts on in the upper word.
		rd := m.to()
		for rd == 0 {
			rd = m.to()
		}
		m.add(asm.I(0x13, 6, rd, m.from(), int32(1+m.r.IntN(2047))), asm.I(0x1b, 1, m.to(), rd, 0x601))
	case n < 48:
		m.memory()
	case n < 54:
		m.atomic()
	case n < 74:
		m.float()
	case n < 86:
		m.branch()
	case n < 90:
		m.control()
	case n < 92:
		m.wild()
	case n < 93:
		m.trap()
	case n < 94:
		m.badJump()
	case n < 97:
		m.patch()
	case n < 99:
		m.remap()
	default:
		m.add(asm.Ecall)
	}
}

// plain is an instruction of integers only, of four bytes.
func (m *maker) plain() uint32 {
	rd, a, b := m.to(), m.from(), m.from()
	imm := one(m, 0, 1, -1, 2047, -2048, int32(m.r.IntN(4096)-2048), int32(m.r.IntN(4096)-2048))
	shift, word := int32(m.r.IntN(64)), int32(m.r.IntN(32))
	switch m.r.IntN(15) {
	case 0:
		return uint32(m.r.IntN(1<<20))<<12 | rd<<7 | one[uint32](m, 0x37, 0x17)
	case 1, 2:
		return asm.I(0x13, one[uint32](m, 0, 2, 3, 4, 6, 7), rd, a, imm)
	case 3:
		return asm.I(0x13, one[uint32](m, 1, 5), rd, a, shift)
	case 4:
		return one(m, asm.I(0x13, 5, rd, a, shift|0x400), asm.I(0x1b, 0, rd, a, imm), asm.I(0x1b, 1, rd, a, word), asm.I(0x1b, 5, rd, a, word), asm.I(0x1b, 5, rd, a, word|0x400))
	case 5:
		return asm.R(0x33, uint32(m.r.IntN(8)), 0, rd, a, b)
	case 6:
		return one(m, asm.R(0x33, one[uint32](m, 0, 5), 0x20, rd, a, b), asm.R(0x3b, one[uint32](m, 0, 1, 5), 0, rd, a, b), asm.R(0x3b, one[uint32](m, 0, 5), 0x20, rd, a, b))
	case 7:
		return asm.R(0x33, uint32(m.r.IntN(8)), 1, rd, a, b)
	case 8:
		return asm.R(0x3b, one[uint32](m, 0, 4, 5, 6, 7), 1, rd, a, b)
	case 9:
		return one(m, asm.I(0x13, 1, rd, a, one[int32](m, 0x600, 0x601, 0x602, 0x604, 0x605)), asm.I(0x1b, 1, rd, a, one[int32](m, 0x600, 0x602)),
			asm.I(0x13, 5, rd, a, one[int32](m, 0x287, 0x6b8)), asm.R(0x3b, 4, 4, rd, a, 0), asm.I(0x1b, 5, rd, a, 0x600|word), asm.I(0x1b, 1, rd, a, 0x080|shift))
	case 10:
		return asm.I(0x13, one[uint32](m, 1, 5), rd, a, one[int32](m, 0x480, 0x680)|shift)
	}
	pick := one(m, [3]uint32{0x33, 2, 0x10}, [3]uint32{0x33, 4, 0x10}, [3]uint32{0x33, 6, 0x10}, [3]uint32{0x33, 7, 0x20}, [3]uint32{0x33, 6, 0x20}, [3]uint32{0x33, 4, 0x20},
		[3]uint32{0x33, 4, 5}, [3]uint32{0x33, 5, 5}, [3]uint32{0x33, 6, 5}, [3]uint32{0x33, 7, 5}, [3]uint32{0x33, 1, 0x30}, [3]uint32{0x33, 5, 0x30},
		[3]uint32{0x33, 1, 0x24}, [3]uint32{0x33, 5, 0x24}, [3]uint32{0x33, 1, 0x34}, [3]uint32{0x33, 1, 0x14},
		[3]uint32{0x3b, 0, 4}, [3]uint32{0x3b, 2, 0x10}, [3]uint32{0x3b, 4, 0x10}, [3]uint32{0x3b, 6, 0x10}, [3]uint32{0x3b, 1, 0x30}, [3]uint32{0x3b, 5, 0x30})
	return asm.R(pick[0], pick[1], pick[2], rd, a, b)
}

// compressed is a random instruction of two bytes that neither jumps nor writes one of the
// pointers. Reserved ones trap.
func (m *maker) compressed() uint32 {
	for {
		raw := uint32(m.r.IntN(1 << 16))
		quadrant, f3 := raw&3, raw>>13
		rd, near := raw>>7&31, raw>>7&7+8
		switch {
		case quadrant == 3, quadrant == 1 && f3 >= 5:
		case quadrant == 0 && raw != 0:
			// Loads and stores: their base is a pointer, their destination none.
			to := raw>>2&7 + 8
			if f3 == 4 && m.r.IntN(8) != 0 {
				continue // reserved
			}
			if f3 == 0 || f3 == 4 {
				near = regNear
			}
			if (near == regNear || near == regEdge) && (to > regEdge || f3 > 4 || f3 == 1) {
				return raw
			}
		case quadrant == 1 && f3 == 4 && near > regEdge,
			quadrant == 1 && f3 != 4 && free(rd),
			quadrant == 2 && (f3 == 1 || f3 > 4),
			quadrant == 2 && (f3 == 0 || f3 == 2 || f3 == 3) && free(rd),
			quadrant == 2 && f3 == 4 && raw>>2&31 != 0 && free(rd),
			raw == 0:
			return raw
		}
	}
}

// free tells whether a register may be written, rd of what writes nothing included.
func free(n uint32) bool {
	return n != regData && n != regOdd && n != regCount && n != regNear && n != regEdge && n < 29
}

// memory is a load or a store of data, aligned or not, at times over the edge of a page.
func (m *maker) memory() {
	base := one[uint32](m, regData, regData, regNear, regEdge)
	imm := int32(m.r.IntN(4096) - 2048)
	if base == regEdge {
		imm = int32(m.r.IntN(128) - 32)
	}
	f3 := uint32(m.r.IntN(7))
	if m.r.IntN(4) != 0 {
		imm &^= 7
	}
	switch m.r.IntN(8) {
	case 0, 1, 2:
		m.add(asm.I(0x03, f3, m.to(), base, imm))
	case 3, 4:
		m.add(asm.S(0x23, f3&3, base, m.from(), imm))
	case 5, 6:
		m.add(asm.I(0x07, 2+f3&1, m.from(), base, imm))
	default:
		m.add(asm.S(0x27, 2+f3&1, base, m.from(), imm))
	}
}

// atomic is an AMO, or LR and SC with at most what the manual allows in between. A
// store to the reserved bytes between them changes them, see the table of differences.
func (m *maker) atomic() {
	at := m.to()
	for at == 0 {
		at = m.to()
	}
	size := uint32(2 + m.r.IntN(2))
	imm := int32(m.r.IntN(512)-256) * 8
	base := one[uint32](m, regData, regNear)
	words := []uint32{asm.Addi(at, base, imm)}
	switch n := m.r.IntN(10); {
	case n < 6:
		if m.r.IntN(12) == 0 {
			words[0] = asm.Addi(at, base, imm+1+int32(m.r.IntN(7)))
		}
		words = append(words, asm.Amo(one[uint32](m, 0, 1, 4, 8, 0xc, 0x10, 0x14, 0x18, 0x1c), size, m.to(), at, m.from()))
	case n < 9:
		rd := m.other(at)
		words = append(words, asm.Amo(2, size, rd, at, 0))
		if m.r.IntN(4) == 0 {
			words = append(words, asm.Addi(rd, rd, 1))
		}
		if m.r.IntN(6) == 0 && rd != 0 {
			// One that surely changes the word makes the SC fail.
			words = append(words, asm.Addi(rd, 0, 1), asm.Amo(0, size, 0, at, rd))
		}
		words = append(words, asm.Amo(3, size, m.other(at), at, m.from()))
	default:
		words = append(words, asm.Amo(3, size, m.to(), at, m.from()))
	}
	m.add(words...)
}

// other is a register to write that is not n.
func (m *maker) other(n uint32) uint32 {
	for {
		if rd := m.to(); rd != n {
			return rd
		}
	}
}

// float is an instruction of F or D, at times with a look at the flags.
func (m *maker) float() {
	rd, a, b, c := uint32(m.r.IntN(32)), uint32(m.r.IntN(32)), uint32(m.r.IntN(32)), uint32(m.r.IntN(32))
	fmt := uint32(m.r.IntN(2))
	rm := one[uint32](m, 0, 1, 2, 3, 4, 7, 7, 7)
	if m.r.IntN(64) == 0 {
		rm = one[uint32](m, 5, 6)
	}
	var w uint32
	op := func(f5, f3, rd, rs2 uint32) uint32 { return asm.R(0x53, f3, f5<<2|fmt, rd, a, rs2) }
	switch m.r.IntN(13) {
	case 0, 1, 2:
		w = op(one[uint32](m, 0, 1, 2, 3), rm, rd, b)
	case 3:
		w = op(0xb, rm, rd, 0)
	case 4, 5:
		w = asm.Fma(one[uint32](m, 0x43, 0x47, 0x4b, 0x4f), fmt, rd, a, b, c, rm)
	case 6:
		w = op(4, uint32(m.r.IntN(3)), rd, b)
	case 7:
		w = op(5, uint32(m.r.IntN(2)), rd, b)
	case 8:
		w = op(0x14, uint32(m.r.IntN(3)), m.to(), b)
	case 9:
		w = op(0x18, rm, m.to(), uint32(m.r.IntN(4)))
	case 10:
		w = asm.R(0x53, rm, 0x1a<<2|fmt, rd, m.from(), uint32(m.r.IntN(4)))
	case 11:
		w = op(8, rm, rd, 1-fmt)
	default:
		w = one(m, op(0x1c, uint32(m.r.IntN(2)), m.to(), 0), asm.R(0x53, 0, 0x1e<<2|fmt, rd, m.from(), 0))
	}
	var words []uint32
	if m.r.IntN(3) == 0 {
		// Fresh operands: without them all registers are NaNs before long.
		at := m.other(0)
		words = append(asm.Li(at, ramBase+poolAt+uint64(1-fmt)<<12+uint64(m.r.IntN(500))*8), asm.Fld(a, at, 0), asm.Fld(b, at, 8), asm.Fld(c, at, 16))
	}
	words = append(words, w)
	if m.r.IntN(3) == 0 {
		words = append(words, asm.Csrrs(m.to(), 3, 0))
	}
	m.add(words...)
}

// branch jumps forward, over a few slots.
func (m *maker) branch() {
	from, over := len(m.slots), 1+m.r.IntN(6)
	a, b, rd := m.from(), m.from(), m.to()
	f3 := one[uint32](m, 0, 1, 4, 5, 6, 7)
	target := func(slots []slot) int32 { return int32(slots[min(from+over, len(slots)-3)].at) }
	switch m.r.IntN(8) {
	case 0:
		m.linked(1, func(at uint32, slots []slot) []uint32 { return []uint32{asm.Jal(rd, target(slots)-int32(at))} })
	case 1:
		for rd == 0 {
			rd = m.to()
		}
		m.linked(2, func(at uint32, slots []slot) []uint32 {
			return []uint32{rd<<7 | 0x17, asm.Jalr(one(m, rd, 0, 1), rd, target(slots)-int32(at))}
		})
	case 2, 3: // c.beqz, c.bnez or c.j, then something to fill the word
		near, kind := m.from()&7, m.r.IntN(3)
		m.linked(1, func(at uint32, slots []slot) []uint32 {
			off := target(slots) - int32(at)
			if off >= 256 {
				off = 4
			}
			return []uint32{compressedJump(kind, near, uint32(off)), 1}
		})
	default:
		m.linked(1, func(at uint32, slots []slot) []uint32 { return []uint32{asm.B(f3, a, b, target(slots)-int32(at))} })
	}
}

// compressedJump is c.beqz, c.bnez or c.j.
func compressedJump(kind int, near, u uint32) uint32 {
	if kind == 2 {
		return 5<<13 | u>>11&1<<12 | u>>4&1<<11 | u>>8&3<<9 | u>>10&1<<8 | u>>6&1<<7 | u>>7&1<<6 | u>>1&7<<3 | u>>5&1<<2 | 1
	}
	return uint32(6+kind)<<13 | u>>8&1<<12 | u>>3&3<<10 | near<<7 | u>>6&3<<5 | u>>1&3<<3 | u>>5&1<<2 | 1
}
