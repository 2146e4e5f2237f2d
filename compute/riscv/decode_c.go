package riscv

// Decoding of compressed instructions, into what they stand for. RISC-V unprivileged
// manual, chapter "C" Extension, tables of the three quadrants.

// near is a register of the three-bit fields: x8 to x15.
func near(raw uint32, lo uint) uint8 { return uint8(field(raw, lo, 3)) + 8 }

// imm6 is the immediate of c.addi and its like.
func imm6(raw uint32) int64 { return signed(field(raw, 12, 1)<<5|field(raw, 2, 5), 6) }

// decode16 decodes an instruction of two bytes that is off bytes into its block.
func decode16(raw uint32, off uint16) op {
	o := op{off: off, len: 2, rd: discard}
	switch raw & 3 {
	case 0:
		quadrant0(&o, raw)
	case 1:
		quadrant1(&o, raw)
	case 2:
		quadrant2(&o, raw)
	}
	return finish(o, raw)
}

func quadrant0(o *op, raw uint32) {
	f3 := field(raw, 13, 3)
	if f3 == 0 { // c.addi4spn
		imm := field(raw, 7, 4)<<6 | field(raw, 11, 2)<<4 | field(raw, 5, 1)<<3 | field(raw, 6, 1)<<2
		if imm != 0 {
			o.code, o.rd, o.rs1, o.imm = opAddi, near(raw, 2), 2, int64(imm)
		}
		return
	}
	o.code = [8]code{1: opFld, 2: opLw, 3: opLd, 5: opFsd, 6: opSw, 7: opSd}[f3]
	if o.code == opNop {
		return
	}
	word := int64(field(raw, 5, 1)<<6 | field(raw, 10, 3)<<3 | field(raw, 6, 1)<<2)
	double := int64(field(raw, 5, 2)<<6 | field(raw, 10, 3)<<3)
	o.rs1, o.imm = near(raw, 7), double
	if o.code == opLw || o.code == opSw {
		o.imm = word
	}
	if f3 < 4 {
		o.rd = near(raw, 2)
	} else {
		o.rs2 = near(raw, 2)
	}
}

func quadrant1(o *op, raw uint32) {
	rd := uint8(field(raw, 7, 5))
	switch field(raw, 13, 3) {
	case 0: // c.addi, c.nop
		o.code, o.rd, o.rs1, o.imm = opAddi, dest(rd), rd, imm6(raw)
	case 1: // c.addiw
		if rd != 0 {
			o.code, o.rd, o.rs1, o.imm = opAddiw, rd, rd, imm6(raw)
		}
	case 2: // c.li
		o.code, o.rd, o.imm = opAddi, dest(rd), imm6(raw)
	case 3:
		wide(o, raw, rd)
	case 4:
		arithmetic(o, raw)
	case 5: // c.j
		imm := field(raw, 12, 1)<<11 | field(raw, 8, 1)<<10 | field(raw, 9, 2)<<8 | field(raw, 6, 1)<<7 |
			field(raw, 7, 1)<<6 | field(raw, 2, 1)<<5 | field(raw, 11, 1)<<4 | field(raw, 3, 3)<<1
		o.code, o.imm = opJal, signed(imm, 12)+int64(o.off)
	case 6, 7: // c.beqz, c.bnez
		imm := field(raw, 12, 1)<<8 | field(raw, 5, 2)<<6 | field(raw, 2, 1)<<5 | field(raw, 10, 2)<<3 | field(raw, 3, 2)<<1
		o.code, o.rs1, o.imm = opBeq+code(field(raw, 13, 1)), near(raw, 7), signed(imm, 9)+int64(o.off)
	}
}

// wide is c.addi16sp and c.lui.
func wide(o *op, raw uint32, rd uint8) {
	if imm6(raw) == 0 {
		return
	}
	if rd == 2 {
		imm := field(raw, 12, 1)<<9 | field(raw, 3, 2)<<7 | field(raw, 5, 1)<<6 | field(raw, 2, 1)<<5 | field(raw, 6, 1)<<4
		o.code, o.rd, o.rs1, o.imm = opAddi, 2, 2, signed(imm, 10)
		return
	}
	o.code, o.rd, o.imm = opLui, dest(rd), imm6(raw)<<12
}

func arithmetic(o *op, raw uint32) {
	rd := near(raw, 7)
	o.rd, o.rs1 = rd, rd
	switch field(raw, 10, 2) {
	case 0:
		o.code, o.imm = opSrli, imm6(raw)&63
	case 1:
		o.code, o.imm = opSrai, imm6(raw)&63
	case 2:
		o.code, o.imm = opAndi, imm6(raw)
	case 3:
		o.code = [8]code{opSub, opXor, opOr, opAnd, opSubw, opAddw}[field(raw, 12, 1)<<2|field(raw, 5, 2)]
		o.rs2 = near(raw, 2)
	}
}

func quadrant2(o *op, raw uint32) {
	rd, rs2 := uint8(field(raw, 7, 5)), uint8(field(raw, 2, 5))
	word := int64(field(raw, 2, 2)<<6 | field(raw, 12, 1)<<5 | field(raw, 4, 3)<<2)
	double := int64(field(raw, 2, 3)<<6 | field(raw, 12, 1)<<5 | field(raw, 5, 2)<<3)
	switch field(raw, 13, 3) {
	case 0:
		o.code, o.rd, o.rs1, o.imm = opSlli, dest(rd), rd, imm6(raw)&63
	case 1:
		o.code, o.rd, o.rs1, o.imm = opFld, rd, 2, double
	case 2:
		if rd != 0 {
			o.code, o.rd, o.rs1, o.imm = opLw, rd, 2, word
		}
	case 3:
		if rd != 0 {
			o.code, o.rd, o.rs1, o.imm = opLd, rd, 2, double
		}
	case 4:
		jumpsAndMoves(o, raw, rd, rs2)
	case 5:
		o.code, o.rs1, o.rs2, o.imm = opFsd, 2, rs2, int64(field(raw, 7, 3)<<6|field(raw, 10, 3)<<3)
	case 6:
		o.code, o.rs1, o.rs2, o.imm = opSw, 2, rs2, int64(field(raw, 7, 2)<<6|field(raw, 9, 4)<<2)
	case 7:
		o.code, o.rs1, o.rs2, o.imm = opSd, 2, rs2, int64(field(raw, 7, 3)<<6|field(raw, 10, 3)<<3)
	}
}

// jumpsAndMoves is c.jr, c.jalr, c.mv, c.add and c.ebreak.
func jumpsAndMoves(o *op, raw uint32, rd, rs2 uint8) {
	switch link := field(raw, 12, 1) == 1; {
	case rs2 != 0 && !link:
		o.code, o.rd, o.rs2 = opAdd, dest(rd), rs2
	case rs2 != 0:
		o.code, o.rd, o.rs1, o.rs2 = opAdd, dest(rd), rd, rs2
	case rd != 0 && !link:
		o.code, o.rs1 = opJalr, rd
	case rd != 0:
		o.code, o.rd, o.rs1 = opJalr, 1, rd
	case link:
		o.code = opEbreak
	}
}
