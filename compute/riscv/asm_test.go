package riscv

// A small assembler for the tests. RISC-V unprivileged manual, "Instruction Set Listings".

func asmR(op, f3, f7, rd, rs1, rs2 uint32) uint32 {
	return f7<<25 | rs2<<20 | rs1<<15 | f3<<12 | rd<<7 | op
}

func asmI(op, f3, rd, rs1 uint32, imm int32) uint32 {
	return uint32(imm)<<20 | rs1<<15 | f3<<12 | rd<<7 | op
}

func asmS(op, f3, rs1, rs2 uint32, imm int32) uint32 {
	u := uint32(imm)
	return u>>5&127<<25 | rs2<<20 | rs1<<15 | f3<<12 | u&31<<7 | op
}

func asmB(f3, rs1, rs2 uint32, imm int32) uint32 {
	u := uint32(imm)
	return u>>12&1<<31 | u>>5&63<<25 | rs2<<20 | rs1<<15 | f3<<12 | u>>1&15<<8 | u>>11&1<<7 | 0x63
}

func asmJ(rd uint32, imm int32) uint32 {
	u := uint32(imm)
	return u>>20&1<<31 | u>>1&1023<<21 | u>>11&1<<20 | u>>12&255<<12 | rd<<7 | 0x6f
}

func addi(rd, rs1 uint32, imm int32) uint32 { return asmI(0x13, 0, rd, rs1, imm) }
func lui(rd, hi uint32) uint32              { return hi<<12 | rd<<7 | 0x37 }
func ld(rd, rs1 uint32, imm int32) uint32   { return asmI(0x03, 3, rd, rs1, imm) }
func sd(rs2, rs1 uint32, imm int32) uint32  { return asmS(0x23, 3, rs1, rs2, imm) }
func sw(rs2, rs1 uint32, imm int32) uint32  { return asmS(0x23, 2, rs1, rs2, imm) }
func jalr(rd, rs1 uint32, imm int32) uint32 { return asmI(0x67, 0, rd, rs1, imm) }
func csrrw(rd, csr, rs1 uint32) uint32      { return csr<<20 | rs1<<15 | 1<<12 | rd<<7 | 0x73 }

func csrrs(rd, csr, rs1 uint32) uint32 { return csr<<20 | rs1<<15 | 2<<12 | rd<<7 | 0x73 }

func lr(size, rd, rs1 uint32) uint32                { return asmR(0x2f, size, 2<<2, rd, rs1, 0) }
func sc(size, rd, rs1, rs2 uint32) uint32           { return asmR(0x2f, size, 3<<2, rd, rs1, rs2) }
func amo(f5, size, rd, rs1, rs2 uint32) uint32      { return asmR(0x2f, size, f5<<2, rd, rs1, rs2) }
func float(f5, fmt, rm, rd, rs1, rs2 uint32) uint32 { return asmR(0x53, rm, f5<<2|fmt, rd, rs1, rs2) }

const (
	ecall     = 0x00000073
	ebreak    = 0x00100073
	sretWord  = 0x10200073
	mretWord  = 0x30200073
	wfiWord   = 0x10500073
	fenceI    = 0x0000100f
	sfenceVMA = 0x12000073
	nop       = 0x00000013
)
