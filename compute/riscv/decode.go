package riscv

// Decoding of 32-bit instructions. RISC-V unprivileged manual, chapter "RV32/64G
// Instruction Set Listings"; a reserved encoding is an illegal instruction, a HINT
// runs as what its encoding says, which changes nothing.

// field returns n bits of an instruction, from bit lo on.
func field(raw uint32, lo, n uint) uint32 { return raw >> lo & (1<<n - 1) }

// signed extends the low n bits.
func signed(v uint32, n uint) int64 { return int64(int32(v<<(32-n)) >> (32 - n)) }

func immI(raw uint32) int64 { return int64(int32(raw) >> 20) }

func immS(raw uint32) int64 { return signed(field(raw, 25, 7)<<5|field(raw, 7, 5), 12) }

func immB(raw uint32) int64 {
	return signed(field(raw, 31, 1)<<12|field(raw, 7, 1)<<11|field(raw, 25, 6)<<5|field(raw, 8, 4)<<1, 13)
}

func immJ(raw uint32) int64 {
	return signed(field(raw, 31, 1)<<20|field(raw, 12, 8)<<12|field(raw, 20, 1)<<11|field(raw, 21, 10)<<1, 21)
}

// dest is an integer destination.
func dest(rd uint8) uint8 {
	if rd == 0 {
		return discard
	}
	return rd
}

// Tables by funct3. An entry that is opNop (zero) is reserved.
var (
	branches = [8]code{opBeq, opBne, 0, 0, opBlt, opBge, opBltu, opBgeu}
	loads    = [8]code{opLb, opLh, opLw, opLd, opLbu, opLhu, opLwu, 0}
	stores   = [8]code{opSb, opSh, opSw, opSd}
	immOps   = [8]code{opAddi, 0, opSlti, opSltiu, opXori, 0, opOri, opAndi}
	csrOps   = [8]code{0, opCsrrw, opCsrrs, opCsrrc, 0, opCsrrwi, opCsrrsi, opCsrrci}
)

// key is two fields of an opcode.
type key [2]uint32

// regOps and regOpsW are by funct7 and funct3.
var (
	regOps = map[key]code{
		{0x00, 0}: opAdd, {0x00, 1}: opSll, {0x00, 2}: opSlt, {0x00, 3}: opSltu,
		{0x00, 4}: opXor, {0x00, 5}: opSrl, {0x00, 6}: opOr, {0x00, 7}: opAnd,
		{0x20, 0}: opSub, {0x20, 5}: opSra,
		{0x01, 0}: opMul, {0x01, 1}: opMulh, {0x01, 2}: opMulhsu, {0x01, 3}: opMulhu,
		{0x01, 4}: opDiv, {0x01, 5}: opDivu, {0x01, 6}: opRem, {0x01, 7}: opRemu,
		{0x10, 2}: opSh1add, {0x10, 4}: opSh2add, {0x10, 6}: opSh3add,
		{0x20, 7}: opAndn, {0x20, 6}: opOrn, {0x20, 4}: opXnor,
		{0x05, 4}: opMin, {0x05, 5}: opMinu, {0x05, 6}: opMax, {0x05, 7}: opMaxu,
		{0x30, 1}: opRol, {0x30, 5}: opRor,
		{0x24, 1}: opBclr, {0x24, 5}: opBext, {0x34, 1}: opBinv, {0x14, 1}: opBset,
	}
	regOpsW = map[key]code{
		{0x00, 0}: opAddw, {0x00, 1}: opSllw, {0x00, 5}: opSrlw,
		{0x20, 0}: opSubw, {0x20, 5}: opSraw,
		{0x01, 0}: opMulw, {0x01, 4}: opDivw, {0x01, 5}: opDivuw, {0x01, 6}: opRemw, {0x01, 7}: opRemuw,
		{0x04, 0}: opAddUw, {0x10, 2}: opSh1addUw, {0x10, 4}: opSh2addUw, {0x10, 6}: opSh3addUw,
		{0x30, 1}: opRolw, {0x30, 5}: opRorw,
	}
	// atomics is by funct5, the codes of .w; those of .d follow at the distance opLrD-opLrW.
	atomics = map[uint32]code{
		0x02: opLrW, 0x03: opScW, 0x01: opAmoswapW, 0x00: opAmoaddW, 0x04: opAmoxorW, 0x0c: opAmoandW,
		0x08: opAmoorW, 0x10: opAmominW, 0x14: opAmomaxW, 0x18: opAmominuW, 0x1c: opAmomaxuW,
	}
)

// decode32 decodes an instruction of four bytes that is off bytes into its block.
func decode32(raw uint32, off uint16) op {
	o := op{
		off: off, len: 4,
		rd: dest(uint8(field(raw, 7, 5))), rs1: uint8(field(raw, 15, 5)), rs2: uint8(field(raw, 20, 5)),
	}
	f3 := field(raw, 12, 3)
	switch field(raw, 2, 5) {
	case 0x0d:
		o.code, o.imm = opLui, int64(int32(raw&^0xfff))
	case 0x05:
		o.code, o.imm = opAuipc, int64(int32(raw&^0xfff))+int64(off)
	case 0x1b:
		o.code, o.imm = opJal, immJ(raw)+int64(off)
	case 0x19:
		if f3 == 0 {
			o.code, o.imm = opJalr, immI(raw)
		}
	case 0x18:
		o.code, o.imm = branches[f3], immB(raw)+int64(off)
	case 0x00:
		o.code, o.imm = loads[f3], immI(raw)
	case 0x08:
		o.code, o.imm = stores[f3], immS(raw)
	case 0x04:
		decodeImm(&o, raw)
	case 0x06:
		decodeImmW(&o, raw)
	case 0x0c:
		o.code = regOps[key{raw >> 25, f3}]
	case 0x0e:
		o.code = regOpsW[key{raw >> 25, f3}]
		if raw>>25 == 0x04 && f3 == 4 && o.rs2 == 0 {
			o.code = opZextH
		}
	case 0x03:
		decodeFence(&o, raw)
	case 0x0b:
		decodeAtomic(&o, raw)
	case 0x1c:
		decodeSystem(&o, raw)
	default:
		decodeFloat(&o, raw)
	}
	return finish(o, raw)
}

// finish makes what no table knew an illegal instruction, and of what keeps nothing
// and cannot trap nothing at all.
func finish(o op, raw uint32) op {
	switch {
	case o.code == opNop:
		o = op{code: opIllegal, off: o.off, len: o.len, rd: discard, imm: int64(raw)}
	case o.rd == discard && writesOnly(o.code):
		o.code = opNop
	}
	return o
}

// writesOnly tells whether all that an instruction does is to write its integer destination.
func writesOnly(c code) bool {
	return c == opLui || c == opAuipc || c >= opAddi && c <= opBseti
}

// shiftImms is by funct6 and right, opNop where reserved.
var shiftImms = map[key]code{
	{0x00, 0}: opSlli, {0x00, 1}: opSrli, {0x10, 1}: opSrai, {0x18, 1}: opRori,
	{0x12, 0}: opBclri, {0x12, 1}: opBexti, {0x1a, 0}: opBinvi, {0x0a, 0}: opBseti,
}

// unary are the instructions of one operand, by their top 12 bits and right.
var unary = map[key]code{
	{0x600, 0}: opClz, {0x601, 0}: opCtz, {0x602, 0}: opCpop, {0x604, 0}: opSextB, {0x605, 0}: opSextH,
	{0x287, 1}: opOrcB, {0x6b8, 1}: opRev8,
}

func decodeImm(o *op, raw uint32) {
	f3 := field(raw, 12, 3)
	o.code, o.imm = immOps[f3], immI(raw)
	if f3 != 1 && f3 != 5 {
		return
	}
	right := f3 >> 2
	if c, ok := unary[key{raw >> 20, right}]; ok {
		o.code = c
		return
	}
	o.code, o.imm = shiftImms[key{raw >> 26, right}], int64(field(raw, 20, 6))
}

func decodeImmW(o *op, raw uint32) {
	shamt := int64(field(raw, 20, 5))
	switch f3, f7 := field(raw, 12, 3), raw>>25; {
	case f3 == 0:
		o.code, o.imm = opAddiw, immI(raw)
	case f3 == 1 && f7 == 0:
		o.code, o.imm = opSlliw, shamt
	case f3 == 5 && f7 == 0:
		o.code, o.imm = opSrliw, shamt
	case f3 == 5 && f7 == 0x20:
		o.code, o.imm = opSraiw, shamt
	case f3 == 1 && raw>>26 == 0x02:
		o.code, o.imm = opSlliUw, int64(field(raw, 20, 6))
	case f3 == 5 && f7 == 0x30:
		o.code, o.imm = opRoriw, shamt
	case f3 == 1 && raw>>20 == 0x600:
		o.code = opClzw
	case f3 == 1 && raw>>20 == 0x601:
		o.code = opCtzw
	case f3 == 1 && raw>>20 == 0x602:
		o.code = opCpopw
	}
}

// decodeFence: one hart that runs in order has nothing to wait for, so fence and
// pause (a fence of its own kind) do nothing. fence.i ends the block, that is all.
// cbo.zero is of Zicboz; the other cache block operations are not there.
func decodeFence(o *op, raw uint32) {
	switch f3 := field(raw, 12, 3); {
	case f3 == 0:
		*o = op{code: opFence, off: o.off, len: 4, rd: discard}
	case f3 == 1:
		o.code, o.rd = opFenceI, discard
	case f3 == 2 && raw>>20 == 4 && field(raw, 7, 5) == 0:
		o.code = opCboZero
	}
}

func decodeAtomic(o *op, raw uint32) {
	f5, f3 := raw>>27, field(raw, 12, 3)
	c, ok := atomics[f5]
	if !ok || f3 != 2 && f3 != 3 || c == opLrW && o.rs2 != 0 {
		return
	}
	if f3 == 3 {
		c += opLrD - opLrW
	}
	o.code = c
}

// decodeSystem: imm is the instruction, for whoever has to tell its bits.
func decodeSystem(o *op, raw uint32) {
	o.imm = int64(raw)
	if f3 := field(raw, 12, 3); f3 != 0 {
		o.code = csrOps[f3]
		return
	}
	if field(raw, 7, 5) != 0 {
		return
	}
	o.rd = discard
	switch {
	case raw>>25 == 0x09:
		o.code = opSfenceVma
	case o.rs1 != 0:
	case raw>>20 == 0x000:
		o.code = opEcall
	case raw>>20 == 0x001:
		o.code = opEbreak
	case raw>>20 == 0x102:
		o.code = opSret
	case raw>>20 == 0x302:
		o.code = opMret
	case raw>>20 == 0x105:
		o.code = opWfi
	}
}

// Mnemonic is the manuals' name of an instruction, of what a compressed one stands for;
// "illegal" if it is none. The upper half of a compressed one does not matter.
func Mnemonic(raw uint32) string {
	if raw&3 != 3 {
		return decode16(raw&0xffff, 0).code.String()
	}
	return decode32(raw, 0).code.String()
}
