package softfloat

// The operations on binary64. What each is called in the RISC-V manual, and in
// IEEE 754-2008, is said where it is computed.

// Add64 returns a + b.
func Add64(a, b uint64, rm Rounding) (uint64, Flags) {
	if rm == RNE {
		if v, flags, ok := fastAdd64(a, b); ok {
			return v, flags
		}
	}
	return binary64.add(a, b, rm)
}

// Sub64 returns a - b.
func Sub64(a, b uint64, rm Rounding) (uint64, Flags) {
	if rm == RNE {
		if v, flags, ok := fastAdd64(a, b^1<<63); ok {
			return v, flags
		}
	}
	return binary64.add(a, b^1<<63, rm)
}

// Mul64 returns a * b.
func Mul64(a, b uint64, rm Rounding) (uint64, Flags) {
	if rm == RNE {
		if v, flags, ok := fastMul64(a, b); ok {
			return v, flags
		}
	}
	return binary64.mul(a, b, rm)
}

// Div64 returns a / b.
func Div64(a, b uint64, rm Rounding) (uint64, Flags) {
	if rm == RNE {
		if v, flags, ok := fastDiv64(a, b); ok {
			return v, flags
		}
	}
	return binary64.div(a, b, rm)
}

// Sqrt64 returns the square root of a.
func Sqrt64(a uint64, rm Rounding) (uint64, Flags) {
	if rm == RNE {
		if v, flags, ok := fastSqrt64(a); ok {
			return v, flags
		}
	}
	return binary64.sqrt(a, rm)
}

// FMA64 returns a * b + c, rounded once.
func FMA64(a, b, c uint64, rm Rounding) (uint64, Flags) {
	if rm == RNE {
		if v, flags, ok := fastFMA64(a, b, c); ok {
			return v, flags
		}
	}
	return binary64.fma(a, b, c, rm)
}

// Min64 returns the lesser of a and b: the number if the other is a NaN; -0 is below +0.
func Min64(a, b uint64) (uint64, Flags) {
	return binary64.minimum(a, b)
}

// Max64 returns the greater of a and b: the number if the other is a NaN; -0 is below +0.
func Max64(a, b uint64) (uint64, Flags) {
	return binary64.maximum(a, b)
}

// Eq64 tells whether a == b; only a signaling NaN raises NV.
func Eq64(a, b uint64) (bool, Flags) { return binary64.equal(a, b) }

// Lt64 tells whether a < b; any NaN raises NV.
func Lt64(a, b uint64) (bool, Flags) { return binary64.less(a, b) }

// Le64 tells whether a <= b; any NaN raises NV.
func Le64(a, b uint64) (bool, Flags) { return binary64.lessEqual(a, b) }

// Class64 returns the mask of FCLASS: from bit 0 on -infinity, negative normal,
// negative subnormal, -0, +0, positive subnormal, positive normal, +infinity, signaling
// NaN, quiet NaN.
func Class64(a uint64) uint64 { return binary64.class(a) }

// F64ToI32 converts to a signed integer of 32 bits, sign-extended to 64; see toInteger.
func F64ToI32(a uint64, rm Rounding) (uint64, Flags) {
	return binary64.toInteger(a, true, 32, rm)
}

// F64ToU32 converts to an unsigned integer of 32 bits, sign-extended to 64; see toInteger.
func F64ToU32(a uint64, rm Rounding) (uint64, Flags) {
	return binary64.toInteger(a, false, 32, rm)
}

// F64ToI64 converts to a signed integer of 64 bits; see toInteger.
func F64ToI64(a uint64, rm Rounding) (uint64, Flags) {
	return binary64.toInteger(a, true, 64, rm)
}

// F64ToU64 converts to an unsigned integer of 64 bits; see toInteger.
func F64ToU64(a uint64, rm Rounding) (uint64, Flags) {
	return binary64.toInteger(a, false, 64, rm)
}

// I32ToF64 converts from a signed integer of 32 bits, which is exact.
func I32ToF64(v int32, rm Rounding) (uint64, Flags) {
	return binary64.fromSigned(int64(v), rm)
}

// U32ToF64 converts from an unsigned integer of 32 bits, which is exact.
func U32ToF64(v uint32, rm Rounding) (uint64, Flags) {
	return binary64.fromUnsigned(uint64(v), rm)
}

// I64ToF64 converts from a signed integer of 64 bits.
func I64ToF64(v int64, rm Rounding) (uint64, Flags) {
	return binary64.fromSigned(v, rm)
}

// U64ToF64 converts from an unsigned integer of 64 bits.
func U64ToF64(v uint64, rm Rounding) (uint64, Flags) {
	return binary64.fromUnsigned(v, rm)
}

// F32ToF64 converts to the wider format, which is exact; a signaling NaN raises NV.
func F32ToF64(a uint32) (uint64, Flags) {
	if normal32(a) {
		const bias = 1023 - 127 // between those of the formats
		return uint64(a>>31)<<63 | (uint64(a&^(1<<31))<<(52-23) + bias<<52), 0
	}
	return binary32.toFormat(&binary64, uint64(a), RNE)
}
