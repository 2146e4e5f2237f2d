// Package asm assembles RISC-V code for tests: an instruction is the word that a function
// of its name returns, and Text is code in the making, with labels.
//
// Operands are in the order of the assembler's manual, registers are their numbers, and
// offsets are in bytes, from the instruction that has them. Nothing is checked but
// labels: a test may well want an instruction that is wrong. Encodings are those of the
// RISC-V unprivileged manual, "RV32/64G Instruction Set Listings".
//
// It trusts its caller, holds no locks and imports nothing of the processor, so that the
// processor's own tests can use it.
package asm

// Names of registers, RISC-V ELF psABI, "Integer Register Convention".
const (
	Zero = 0
	RA   = 1
	SP   = 2
	GP   = 3
	TP   = 4
	T0   = 5
	T1   = 6
	T2   = 7
	S0   = 8
	S1   = 9
	A0   = 10
	A1   = 11
	A2   = 12
	A3   = 13
	A4   = 14
	A5   = 15
	A6   = 16
	A7   = 17
	S2   = 18
	S3   = 19
	S4   = 20
	S5   = 21
	T3   = 28
	T4   = 29
	T5   = 30
	T6   = 31
)

// Instructions without operands.
const (
	Nop       = 0x00000013
	Ecall     = 0x00000073
	Ebreak    = 0x00100073
	Sret      = 0x10200073
	Mret      = 0x30200073
	Wfi       = 0x10500073
	FenceI    = 0x0000100f
	SfenceVMA = 0x12000073
)

// Conditions of Branch: the funct3 of beq and its like.
const (
	Equal                = 0
	Unequal              = 1
	Less                 = 4
	GreaterEqual         = 5
	LessUnsigned         = 6
	GreaterEqualUnsigned = 7
)

// R encodes an instruction of two source registers: opcode, funct3, funct7.
func R(op, f3, f7, rd, rs1, rs2 uint32) uint32 {
	return f7<<25 | rs2<<20 | rs1<<15 | f3<<12 | rd<<7 | op
}

// I encodes an instruction of a register and an immediate of 12 bits.
func I(op, f3, rd, rs1 uint32, imm int32) uint32 {
	return uint32(imm)<<20 | rs1<<15 | f3<<12 | rd<<7 | op
}

// S encodes a store of rs2 at imm(rs1).
func S(op, f3, rs1, rs2 uint32, imm int32) uint32 {
	u := uint32(imm)
	return u>>5&127<<25 | rs2<<20 | rs1<<15 | f3<<12 | u&31<<7 | op
}

// B encodes a conditional branch.
func B(f3, rs1, rs2 uint32, off int32) uint32 {
	u := uint32(off)
	return u>>12&1<<31 | u>>5&63<<25 | rs2<<20 | rs1<<15 | f3<<12 | u>>1&15<<8 | u>>11&1<<7 | 0x63
}

// Jal is jal rd, off.
func Jal(rd uint32, off int32) uint32 {
	u := uint32(off)
	return u>>20&1<<31 | u>>1&1023<<21 | u>>11&1<<20 | u>>12&255<<12 | rd<<7 | 0x6f
}

// Jalr is jalr rd, imm(rs1).
func Jalr(rd, rs1 uint32, imm int32) uint32 { return I(0x67, 0, rd, rs1, imm) }

// Lui is lui rd, hi: the upper 20 of 32 bits.
func Lui(rd uint32, hi int32) uint32 { return uint32(hi)<<12 | rd<<7 | 0x37 }

// Auipc is auipc rd, hi.
func Auipc(rd uint32, hi int32) uint32 { return uint32(hi)<<12 | rd<<7 | 0x17 }

// Addi is addi rd, rs1, imm.
func Addi(rd, rs1 uint32, imm int32) uint32 { return I(0x13, 0, rd, rs1, imm) }

// Addiw is addiw rd, rs1, imm.
func Addiw(rd, rs1 uint32, imm int32) uint32 { return I(0x1b, 0, rd, rs1, imm) }

// Andi is andi rd, rs1, imm.
func Andi(rd, rs1 uint32, imm int32) uint32 { return I(0x13, 7, rd, rs1, imm) }

// Sltiu is sltiu rd, rs1, imm.
func Sltiu(rd, rs1 uint32, imm int32) uint32 { return I(0x13, 3, rd, rs1, imm) }

// Slli is slli rd, rs1, n.
func Slli(rd, rs1 uint32, n int32) uint32 { return I(0x13, 1, rd, rs1, n) }

// Srli is srli rd, rs1, n.
func Srli(rd, rs1 uint32, n int32) uint32 { return I(0x13, 5, rd, rs1, n) }

// Add is add rd, rs1, rs2.
func Add(rd, rs1, rs2 uint32) uint32 { return R(0x33, 0, 0, rd, rs1, rs2) }

// Xor is xor rd, rs1, rs2.
func Xor(rd, rs1, rs2 uint32) uint32 { return R(0x33, 4, 0, rd, rs1, rs2) }

// Or is or rd, rs1, rs2.
func Or(rd, rs1, rs2 uint32) uint32 { return R(0x33, 6, 0, rd, rs1, rs2) }

// And is and rd, rs1, rs2.
func And(rd, rs1, rs2 uint32) uint32 { return R(0x33, 7, 0, rd, rs1, rs2) }

// Srl is srl rd, rs1, rs2.
func Srl(rd, rs1, rs2 uint32) uint32 { return R(0x33, 5, 0, rd, rs1, rs2) }

// Lbu is lbu rd, imm(rs1).
func Lbu(rd, rs1 uint32, imm int32) uint32 { return I(0x03, 4, rd, rs1, imm) }

// Lhu is lhu rd, imm(rs1).
func Lhu(rd, rs1 uint32, imm int32) uint32 { return I(0x03, 5, rd, rs1, imm) }

// Lw is lw rd, imm(rs1).
func Lw(rd, rs1 uint32, imm int32) uint32 { return I(0x03, 2, rd, rs1, imm) }

// Ld is ld rd, imm(rs1).
func Ld(rd, rs1 uint32, imm int32) uint32 { return I(0x03, 3, rd, rs1, imm) }

// Sw is sw rs2, imm(rs1).
func Sw(rs2, rs1 uint32, imm int32) uint32 { return S(0x23, 2, rs1, rs2, imm) }

// Sd is sd rs2, imm(rs1).
func Sd(rs2, rs1 uint32, imm int32) uint32 { return S(0x23, 3, rs1, rs2, imm) }

// Fld is fld rd, imm(rs1).
func Fld(rd, rs1 uint32, imm int32) uint32 { return I(0x07, 3, rd, rs1, imm) }

// Csr encodes an instruction of Zicsr by its funct3; rs1 is the register, or the immediate.
func Csr(f3, rd, csr, rs1 uint32) uint32 { return csr<<20 | rs1<<15 | f3<<12 | rd<<7 | 0x73 }

// Csrrw is csrrw rd, csr, rs1.
func Csrrw(rd, csr, rs1 uint32) uint32 { return Csr(1, rd, csr, rs1) }

// Csrrs is csrrs rd, csr, rs1.
func Csrrs(rd, csr, rs1 uint32) uint32 { return Csr(2, rd, csr, rs1) }

// Csrrc is csrrc rd, csr, rs1.
func Csrrc(rd, csr, rs1 uint32) uint32 { return Csr(3, rd, csr, rs1) }

// Amo encodes an instruction of the A extension: its funct5, and 2 for words or 3 for
// doublewords.
func Amo(f5, size, rd, rs1, rs2 uint32) uint32 { return R(0x2f, size, f5<<2, rd, rs1, rs2) }

// Lr is lr.w or lr.d by size, as of Amo.
func Lr(size, rd, rs1 uint32) uint32 { return Amo(2, size, rd, rs1, 0) }

// Sc is sc.w or sc.d by size, as of Amo.
func Sc(size, rd, rs1, rs2 uint32) uint32 { return Amo(3, size, rd, rs1, rs2) }

// Float encodes an instruction of F or D: its funct5, its format (0 is S, 1 is D), and rm.
func Float(f5, fmt, rm, rd, rs1, rs2 uint32) uint32 { return R(0x53, rm, f5<<2|fmt, rd, rs1, rs2) }

// Fma encodes a fused multiply-add by its opcode.
func Fma(op, fmt, rd, rs1, rs2, rs3, rm uint32) uint32 {
	return rs3<<27 | fmt<<25 | rs2<<20 | rs1<<15 | rm<<12 | rd<<7 | op
}

// Li loads a constant, in at most eight instructions.
func Li(rd uint32, v uint64) []uint32 {
	if s := int64(v); s >= -2048 && s < 2048 {
		return []uint32{Addi(rd, 0, int32(s))}
	}
	low := int32(int64(v<<52) >> 52)
	rest := v - uint64(int64(low))
	if s := int64(v); s >= -1<<31 && s < 1<<31-2048 {
		words := []uint32{Lui(rd, int32(int64(rest)>>12))}
		if low != 0 {
			words = append(words, Addiw(rd, rd, low))
		}
		return words
	}
	words := append(Li(rd, uint64(int64(rest)>>12)), Slli(rd, rd, 12))
	if low != 0 {
		words = append(words, Addi(rd, rd, low))
	}
	return words
}

// Li32 loads a constant of 32 bits without its sign, in four instructions whatever it is.
func Li32(rd, v uint32) []uint32 {
	return []uint32{
		(v+0x800)&0xfffff000 | rd<<7 | 0x37, // lui
		Addi(rd, rd, int32(v<<20)>>20),
		Slli(rd, rd, 32),
		Srli(rd, rd, 32),
	}
}
