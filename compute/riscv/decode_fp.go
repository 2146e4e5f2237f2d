package riscv

// Decoding of F and D. Registers are numbers of floating-point registers or of integer
// ones, as the instruction has it; imm is the instruction itself, which has rm and rs3.

// floatOps is by funct7>>2 (funct5) for what depends on nothing else.
var floatOps = map[uint32]code{0x00: opFaddS, 0x01: opFsubS, 0x02: opFmulS, 0x03: opFdivS}

// floatByRM is by funct5 and rm: where rm is a part of the opcode.
var floatByRM = map[key]code{
	{0x04, 0}: opFsgnjS, {0x04, 1}: opFsgnjnS, {0x04, 2}: opFsgnjxS,
	{0x05, 0}: opFminS, {0x05, 1}: opFmaxS,
	{0x14, 2}: opFeqS, {0x14, 1}: opFltS, {0x14, 0}: opFleS,
}

// floatByRS2 is by funct5 and rs2: where rs2 is a part of the opcode.
var floatByRS2 = map[key]code{
	{0x0b, 0}: opFsqrtS,
	{0x18, 0}: opFcvtWS, {0x18, 1}: opFcvtWuS, {0x18, 2}: opFcvtLS, {0x18, 3}: opFcvtLuS,
	{0x1a, 0}: opFcvtSW, {0x1a, 1}: opFcvtSWu, {0x1a, 2}: opFcvtSL, {0x1a, 3}: opFcvtSLu,
}

// intDest are the codes of F that write an integer register.
func intDest(c code) bool {
	return c >= opFeqS && c <= opFcvtLuS || c == opFmvXW
}

func decodeFloat(o *op, raw uint32) {
	f3 := field(raw, 12, 3)
	rd := uint8(field(raw, 7, 5))
	switch field(raw, 2, 5) {
	case 0x01: // LOAD-FP
		o.rd, o.imm = rd, immI(raw)
		o.code = [8]code{2: opFlw, 3: opFld}[f3]
	case 0x09: // STORE-FP
		o.rd, o.imm = discard, immS(raw)
		o.code = [8]code{2: opFsw, 3: opFsd}[f3]
	case 0x10, 0x11, 0x12, 0x13: // MADD, MSUB, NMSUB, NMADD
		if fmt := field(raw, 25, 2); fmt < 2 {
			o.rd, o.imm = rd, int64(raw)
			o.code = opFmaddS + code(field(raw, 2, 2)) + code(fmt)*(opFaddD-opFaddS)
		}
	case 0x14: // OP-FP
		o.imm = int64(raw)
		decodeFloatOp(o, raw, rd)
	}
}

func decodeFloatOp(o *op, raw uint32, rd uint8) {
	f5, fmt, f3 := raw>>27, field(raw, 25, 2), field(raw, 12, 3)
	if fmt > 1 {
		return
	}
	c, ok := floatOps[f5]
	if !ok {
		c, ok = floatByRM[key{f5, f3}]
	}
	if !ok {
		c, ok = floatByRS2[key{f5, uint32(o.rs2)}]
	}
	switch {
	case ok:
	case f5 == 0x08 && fmt == 0 && o.rs2 == 1:
		o.code, o.rd = opFcvtSD, rd
		return
	case f5 == 0x08 && fmt == 1 && o.rs2 == 0:
		o.code, o.rd = opFcvtDS, rd
		return
	case f5 == 0x1c && o.rs2 == 0 && f3 == 1:
		c = opFclassS
	case f5 == 0x1c && o.rs2 == 0 && f3 == 0:
		c = opFmvXW
	case f5 == 0x1e && o.rs2 == 0 && f3 == 0:
		c = opFmvWX
	default:
		return
	}
	if !intDest(c) {
		o.rd = rd
	}
	o.code = c + code(fmt)*(opFaddD-opFaddS)
}
