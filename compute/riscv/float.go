package riscv

import (
	sf "steadfast/compute/riscv/softfloat"
)

// The F and D extensions over package softfloat. Single precision lives NaN-boxed in
// the 64-bit registers: what is not boxed is the canonical NaN to whoever reads it, and
// moves and stores take the bits as they stand. RISC-V unprivileged manual, "NaN Boxing
// of Narrower Values".

const (
	boxed      = 0xffffffff00000000
	signS      = 1 << 31
	signD      = 1 << 63
	canonicalS = 0x7fc00000
)

// single reads a register as a single.
func (h *Hart) single(r uint8) uint32 {
	v := h.f[r&31]
	if v < boxed && !h.flaw.boxing {
		return canonicalS
	}
	return uint32(v)
}

// putF writes a register, and so makes FS dirty.
func (h *Hart) putF(r uint8, v uint64) {
	h.f[r&31] = v
	h.mstatus |= statusFS
}

// raise accumulates exception flags, which are state of F like the registers.
func (h *Hart) raise(f sf.Flags) {
	if f != 0 {
		h.fflags |= uint64(f)
		h.mstatus |= statusFS
	}
}

// floatAccess is the loads and stores of F and D.
func (h *Hart) floatAccess(o *op, i int) outcome {
	va := h.x[o.rs1] + uint64(o.imm)
	size := uint64(8)
	if o.code == opFlw || o.code == opFsw {
		size = 4
	}
	if o.code >= opFsw {
		return h.store(va, size, h.f[o.rs2&31], i)
	}
	var v uint64
	how := done
	if e := &h.reads.entries[va>>12%tlbSize]; e.tag == va&^(pageMask-(size-1)) {
		v = little(e.page[va&pageMask:], size)
	} else if v, how = h.load(va, size, i); how == faulted {
		return how
	}
	if size == 4 {
		v |= boxed
	}
	h.putF(o.rd, v)
	return how
}

// rounding finds the rounding mode of an instruction; false if there is none such.
func (h *Hart) rounding(o *op) (sf.Rounding, bool) {
	rm := uint64(o.imm) >> 12 & 7
	if rm == 7 {
		rm = h.frm
	}
	return sf.Rounding(rm), rm <= 4
}

// float runs an instruction of F or D that accesses no memory; false if it is illegal.
func (h *Hart) float(o *op) bool {
	if h.mstatus&statusFS == 0 {
		return false
	}
	c := o.code
	double := c >= opFaddD
	if double && c <= opFmvDX {
		c -= opFaddD - opFaddS
	}
	switch {
	case c >= opFsgnjS && c <= opFmaxS || c == opFmvWX:
		if double {
			h.plainD(c, o)
		} else {
			h.plainS(c, o)
		}
		return true
	case c >= opFeqS && c <= opFclassS || c == opFmvXW:
		if double {
			h.lookD(c, o)
		} else {
			h.lookS(c, o)
		}
		return true
	}
	rm, ok := h.rounding(o)
	if !ok {
		return false
	}
	switch {
	case c == opFcvtSD:
		v, f := sf.F64ToF32(h.f[o.rs1&31], rm)
		h.raise(f)
		h.putF(o.rd, uint64(v)|boxed)
	case c == opFcvtDS:
		v, f := sf.F32ToF64(h.single(o.rs1))
		h.raise(f)
		h.putF(o.rd, v)
	case c >= opFcvtWS && c <= opFcvtLuS:
		h.toInteger(c, o, double, rm)
	case double:
		h.roundD(c, o, rm)
	default:
		h.roundS(c, o, rm)
	}
	return true
}

// roundS is what gives a rounded single.
func (h *Hart) roundS(c code, o *op, rm sf.Rounding) {
	var v uint32
	var f sf.Flags
	a, b := h.single(o.rs1), h.single(o.rs2)
	third := h.single(uint8(uint32(o.imm) >> 27))
	from := h.x[o.rs1]
	switch c {
	case opFaddS:
		v, f = sf.Add32(a, b, rm)
	case opFsubS:
		v, f = sf.Sub32(a, b, rm)
	case opFmulS:
		v, f = sf.Mul32(a, b, rm)
	case opFdivS:
		v, f = sf.Div32(a, b, rm)
	case opFsqrtS:
		v, f = sf.Sqrt32(a, rm)
	case opFmaddS:
		v, f = sf.FMA32(a, b, third, rm)
	case opFmsubS:
		v, f = sf.FMA32(a, b, third^signS, rm)
	case opFnmsubS:
		v, f = sf.FMA32(a^signS, b, third, rm)
	case opFnmaddS:
		v, f = sf.FMA32(a^signS, b, third^signS, rm)
	case opFcvtSW:
		v, f = sf.I32ToF32(int32(from), rm)
	case opFcvtSWu:
		v, f = sf.U32ToF32(uint32(from), rm)
	case opFcvtSL:
		v, f = sf.I64ToF32(int64(from), rm)
	default: // opFcvtSLu
		v, f = sf.U64ToF32(from, rm)
	}
	h.raise(f)
	h.putF(o.rd, uint64(v)|boxed)
}

// roundD is what gives a rounded double. c is the code of its twin for singles.
func (h *Hart) roundD(c code, o *op, rm sf.Rounding) {
	var v uint64
	var f sf.Flags
	a, b, third := h.f[o.rs1&31], h.f[o.rs2&31], h.f[uint32(o.imm)>>27]
	from := h.x[o.rs1]
	switch c {
	case opFaddS:
		v, f = sf.Add64(a, b, rm)
	case opFsubS:
		v, f = sf.Sub64(a, b, rm)
	case opFmulS:
		v, f = sf.Mul64(a, b, rm)
	case opFdivS:
		v, f = sf.Div64(a, b, rm)
	case opFsqrtS:
		v, f = sf.Sqrt64(a, rm)
	case opFmaddS:
		v, f = sf.FMA64(a, b, third, rm)
	case opFmsubS:
		v, f = sf.FMA64(a, b, third^signD, rm)
	case opFnmsubS:
		v, f = sf.FMA64(a^signD, b, third, rm)
	case opFnmaddS:
		v, f = sf.FMA64(a^signD, b, third^signD, rm)
	case opFcvtSW:
		v, f = sf.I32ToF64(int32(from), rm)
	case opFcvtSWu:
		v, f = sf.U32ToF64(uint32(from), rm)
	case opFcvtSL:
		v, f = sf.I64ToF64(int64(from), rm)
	default: // opFcvtSLu
		v, f = sf.U64ToF64(from, rm)
	}
	h.raise(f)
	h.putF(o.rd, v)
}

// toInteger is the conversions to integers.
func (h *Hart) toInteger(c code, o *op, double bool, rm sf.Rounding) {
	var v uint64
	var f sf.Flags
	d := h.f[o.rs1&31]
	s := h.single(o.rs1)
	switch {
	case c == opFcvtWS && double:
		v, f = sf.F64ToI32(d, rm)
	case c == opFcvtWuS && double:
		v, f = sf.F64ToU32(d, rm)
	case c == opFcvtLS && double:
		v, f = sf.F64ToI64(d, rm)
	case c == opFcvtLuS && double:
		v, f = sf.F64ToU64(d, rm)
	case c == opFcvtWS:
		v, f = sf.F32ToI32(s, rm)
	case c == opFcvtWuS:
		v, f = sf.F32ToU32(s, rm)
	case c == opFcvtLS:
		v, f = sf.F32ToI64(s, rm)
	default: // opFcvtLuS
		v, f = sf.F32ToU64(s, rm)
	}
	h.raise(f)
	h.x[o.rd] = v
}

// plainS is what gives a single and never rounds.
func (h *Hart) plainS(c code, o *op) {
	var v uint32
	var f sf.Flags
	a, b := h.single(o.rs1), h.single(o.rs2)
	switch c {
	case opFsgnjS:
		v = a&^signS | b&signS
	case opFsgnjnS:
		v = a&^signS | ^b&signS
	case opFsgnjxS:
		v = a ^ b&signS
	case opFminS:
		v, f = sf.Min32(a, b)
	case opFmaxS:
		v, f = sf.Max32(a, b)
	default: // opFmvWX
		v = uint32(h.x[o.rs1])
	}
	h.raise(f)
	h.putF(o.rd, uint64(v)|boxed)
}

// plainD is what gives a double and never rounds.
func (h *Hart) plainD(c code, o *op) {
	var v uint64
	var f sf.Flags
	a, b := h.f[o.rs1&31], h.f[o.rs2&31]
	switch c {
	case opFsgnjS:
		v = a&^signD | b&signD
	case opFsgnjnS:
		v = a&^signD | ^b&signD
	case opFsgnjxS:
		v = a ^ b&signD
	case opFminS:
		v, f = sf.Min64(a, b)
	case opFmaxS:
		v, f = sf.Max64(a, b)
	default: // opFmvDX
		v = h.x[o.rs1]
	}
	h.raise(f)
	h.putF(o.rd, v)
}

// lookS is what tells of a single in an integer register.
func (h *Hart) lookS(c code, o *op) {
	var is bool
	var f sf.Flags
	a, b := h.single(o.rs1), h.single(o.rs2)
	switch c {
	case opFeqS:
		is, f = sf.Eq32(a, b)
	case opFltS:
		is, f = sf.Lt32(a, b)
	case opFleS:
		is, f = sf.Le32(a, b)
	case opFclassS:
		h.x[o.rd] = sf.Class32(a)
		return
	default: // opFmvXW
		h.x[o.rd] = sext32(h.f[o.rs1&31])
		return
	}
	h.raise(f)
	h.x[o.rd] = truth(is)
}

// lookD is what tells of a double in an integer register.
func (h *Hart) lookD(c code, o *op) {
	var is bool
	var f sf.Flags
	a, b := h.f[o.rs1&31], h.f[o.rs2&31]
	switch c {
	case opFeqS:
		is, f = sf.Eq64(a, b)
	case opFltS:
		is, f = sf.Lt64(a, b)
	case opFleS:
		is, f = sf.Le64(a, b)
	case opFclassS:
		h.x[o.rd] = sf.Class64(a)
		return
	default: // opFmvXW's twin
		h.x[o.rd] = a
		return
	}
	h.raise(f)
	h.x[o.rd] = truth(is)
}
