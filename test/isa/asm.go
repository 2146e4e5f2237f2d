package main

// A small assembler: what the generator needs, by hand. RISC-V unprivileged manual,
// "RV32/64G Instruction Set Listings".

func rtype(op, f3, f7 uint32, rd, rs1, rs2 uint32) uint32 {
	return f7<<25 | rs2<<20 | rs1<<15 | f3<<12 | rd<<7 | op
}

func itype(op, f3, rd, rs1 uint32, imm int32) uint32 {
	return uint32(imm)<<20 | rs1<<15 | f3<<12 | rd<<7 | op
}

func stype(op, f3, rs1, rs2 uint32, imm int32) uint32 {
	u := uint32(imm)
	return u>>5&127<<25 | rs2<<20 | rs1<<15 | f3<<12 | u&31<<7 | op
}

func btype(f3, rs1, rs2 uint32, imm int32) uint32 {
	u := uint32(imm)
	return u>>12&1<<31 | u>>5&63<<25 | rs2<<20 | rs1<<15 | f3<<12 | u>>1&15<<8 | u>>11&1<<7 | 0x63
}

func jtype(rd uint32, imm int32) uint32 {
	u := uint32(imm)
	return u>>20&1<<31 | u>>1&1023<<21 | u>>11&1<<20 | u>>12&255<<12 | rd<<7 | 0x6f
}

func lui(rd uint32, hi int32) uint32         { return uint32(hi)<<12 | rd<<7 | 0x37 }
func addi(rd, rs1 uint32, imm int32) uint32  { return itype(0x13, 0, rd, rs1, imm) }
func andi(rd, rs1 uint32, imm int32) uint32  { return itype(0x13, 7, rd, rs1, imm) }
func sltiu(rd, rs1 uint32, imm int32) uint32 { return itype(0x13, 3, rd, rs1, imm) }
func slli(rd, rs1 uint32, n int32) uint32    { return itype(0x13, 1, rd, rs1, n) }
func srli(rd, rs1 uint32, n int32) uint32    { return itype(0x13, 5, rd, rs1, n) }
func add(rd, rs1, rs2 uint32) uint32         { return rtype(0x33, 0, 0, rd, rs1, rs2) }
func or(rd, rs1, rs2 uint32) uint32          { return rtype(0x33, 6, 0, rd, rs1, rs2) }
func ld(rd, rs1 uint32, imm int32) uint32    { return itype(0x03, 3, rd, rs1, imm) }
func lhu(rd, rs1 uint32, imm int32) uint32   { return itype(0x03, 5, rd, rs1, imm) }
func sw(rs2, rs1 uint32, imm int32) uint32   { return stype(0x23, 2, rs1, rs2, imm) }
func sd(rs2, rs1 uint32, imm int32) uint32   { return stype(0x23, 3, rs1, rs2, imm) }
func fld(rd, rs1 uint32, imm int32) uint32   { return itype(0x07, 3, rd, rs1, imm) }
func jalr(rd, rs1 uint32, imm int32) uint32  { return itype(0x67, 0, rd, rs1, imm) }
func csrrw(rd, csr, rs1 uint32) uint32       { return csr<<20 | rs1<<15 | 1<<12 | rd<<7 | 0x73 }

func csrrs(rd, csr, rs1 uint32) uint32 { return csr<<20 | rs1<<15 | 2<<12 | rd<<7 | 0x73 }

func csrrc(rd, csr, rs1 uint32) uint32 { return csr<<20 | rs1<<15 | 3<<12 | rd<<7 | 0x73 }

func csrop(f3, rd, csr, rs1 uint32) uint32 { return csr<<20 | rs1<<15 | f3<<12 | rd<<7 | 0x73 }

func amo(f5, size, rd, rs1, rs2 uint32) uint32 { return rtype(0x2f, size, f5<<2, rd, rs1, rs2) }

func fma(op, fmt, rd, rs1, rs2, rs3, rm uint32) uint32 {
	return rs3<<27 | fmt<<25 | rs2<<20 | rs1<<15 | rm<<12 | rd<<7 | op
}

const (
	ecall     = 0x00000073
	ebreak    = 0x00100073
	mret      = 0x30200073
	sret      = 0x10200073
	fencei    = 0x0000100f
	sfencevma = 0x12000073
)

// li loads a constant, in at most eight instructions.
func li(rd uint32, v uint64) []uint32 {
	if s := int64(v); s >= -2048 && s < 2048 {
		return []uint32{addi(rd, 0, int32(s))}
	}
	low := int32(int64(v<<52) >> 52)
	rest := v - uint64(int64(low))
	if s := int64(v); s >= -1<<31 && s < 1<<31-2048 {
		words := []uint32{lui(rd, int32(int64(rest)>>12))}
		if low != 0 {
			words = append(words, itype(0x1b, 0, rd, rd, low)) // addiw
		}
		return words
	}
	words := append(li(rd, uint64(int64(rest)>>12)), slli(rd, rd, 12))
	if low != 0 {
		words = append(words, addi(rd, rd, low))
	}
	return words
}

// text is code in the making, with labels that branches may name before they are set.
type text struct {
	base  uint64
	words []uint32
	marks map[string]int
	holes []hole
}

type hole struct {
	at    int
	label string
	make  func(off int32) uint32
}

func newText(base uint64) *text { return &text{base: base, marks: map[string]int{}} }

func (t *text) emit(words ...uint32) { t.words = append(t.words, words...) }
func (t *text) label(name string)    { t.marks[name] = len(t.words) }
func (t *text) here() uint64         { return t.base + uint64(4*len(t.words)) }

// jump emits what make makes of the distance to a label.
func (t *text) jump(label string, make func(off int32) uint32) {
	t.holes = append(t.holes, hole{len(t.words), label, make})
	t.emit(0)
}

func (t *text) j(label string) {
	t.jump(label, func(off int32) uint32 { return jtype(0, off) })
}

func (t *text) beqz(rs1 uint32, label string) {
	t.jump(label, func(off int32) uint32 { return btype(0, rs1, 0, off) })
}

func (t *text) bltz(rs1 uint32, label string) {
	t.jump(label, func(off int32) uint32 { return btype(4, rs1, 0, off) })
}

// done fills the holes.
func (t *text) done() []uint32 {
	for _, h := range t.holes {
		t.words[h.at] = h.make(int32(4 * (t.marks[h.label] - h.at)))
	}
	return t.words
}
