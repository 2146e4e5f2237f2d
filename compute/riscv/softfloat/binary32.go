package softfloat

// The operations on binary32. What each is called in the RISC-V manual, and in
// IEEE 754-2008, is said where it is computed.

// Add32 returns a + b.
func Add32(a, b uint32, rm Rounding) (uint32, Flags) {
	if rm == RNE {
		if v, flags, ok := fastAdd32(a, b); ok {
			return v, flags
		}
	}
	v, flags := binary32.add(uint64(a), uint64(b), rm)
	return uint32(v), flags
}

// Sub32 returns a - b.
func Sub32(a, b uint32, rm Rounding) (uint32, Flags) {
	if rm == RNE {
		if v, flags, ok := fastAdd32(a, b^1<<31); ok {
			return v, flags
		}
	}
	v, flags := binary32.add(uint64(a), uint64(b^1<<31), rm)
	return uint32(v), flags
}

// Mul32 returns a * b.
func Mul32(a, b uint32, rm Rounding) (uint32, Flags) {
	if rm == RNE {
		if v, flags, ok := fastMul32(a, b); ok {
			return v, flags
		}
	}
	v, flags := binary32.mul(uint64(a), uint64(b), rm)
	return uint32(v), flags
}

// Div32 returns a / b.
func Div32(a, b uint32, rm Rounding) (uint32, Flags) {
	if rm == RNE {
		if v, flags, ok := fastDiv32(a, b); ok {
			return v, flags
		}
	}
	v, flags := binary32.div(uint64(a), uint64(b), rm)
	return uint32(v), flags
}

// Sqrt32 returns the square root of a.
func Sqrt32(a uint32, rm Rounding) (uint32, Flags) {
	if rm == RNE {
		if v, flags, ok := fastSqrt32(a); ok {
			return v, flags
		}
	}
	v, flags := binary32.sqrt(uint64(a), rm)
	return uint32(v), flags
}

// FMA32 returns a * b + c, rounded once.
func FMA32(a, b, c uint32, rm Rounding) (uint32, Flags) {
	if rm == RNE {
		if v, flags, ok := fastFMA32(a, b, c); ok {
			return v, flags
		}
	}
	v, flags := binary32.fma(uint64(a), uint64(b), uint64(c), rm)
	return uint32(v), flags
}

// Min32 returns the lesser of a and b: the number if the other is a NaN; -0 is below +0.
func Min32(a, b uint32) (uint32, Flags) {
	v, flags := binary32.minimum(uint64(a), uint64(b))
	return uint32(v), flags
}

// Max32 returns the greater of a and b: the number if the other is a NaN; -0 is below +0.
func Max32(a, b uint32) (uint32, Flags) {
	v, flags := binary32.maximum(uint64(a), uint64(b))
	return uint32(v), flags
}

// Eq32 tells whether a == b; only a signaling NaN raises NV.
func Eq32(a, b uint32) (bool, Flags) { return binary32.equal(uint64(a), uint64(b)) }

// Lt32 tells whether a < b; any NaN raises NV.
func Lt32(a, b uint32) (bool, Flags) { return binary32.less(uint64(a), uint64(b)) }

// Le32 tells whether a <= b; any NaN raises NV.
func Le32(a, b uint32) (bool, Flags) { return binary32.lessEqual(uint64(a), uint64(b)) }

// Class32 returns the mask of FCLASS: from bit 0 on -infinity, negative normal,
// negative subnormal, -0, +0, positive subnormal, positive normal, +infinity, signaling
// NaN, quiet NaN.
func Class32(a uint32) uint64 { return binary32.class(uint64(a)) }

// F32ToI32 converts to a signed integer of 32 bits, sign-extended to 64; see toInteger.
func F32ToI32(a uint32, rm Rounding) (uint64, Flags) {
	return binary32.toInteger(uint64(a), true, 32, rm)
}

// F32ToU32 converts to an unsigned integer of 32 bits, sign-extended to 64; see toInteger.
func F32ToU32(a uint32, rm Rounding) (uint64, Flags) {
	return binary32.toInteger(uint64(a), false, 32, rm)
}

// F32ToI64 converts to a signed integer of 64 bits; see toInteger.
func F32ToI64(a uint32, rm Rounding) (uint64, Flags) {
	return binary32.toInteger(uint64(a), true, 64, rm)
}

// F32ToU64 converts to an unsigned integer of 64 bits; see toInteger.
func F32ToU64(a uint32, rm Rounding) (uint64, Flags) {
	return binary32.toInteger(uint64(a), false, 64, rm)
}

// I32ToF32 converts from a signed integer of 32 bits.
func I32ToF32(v int32, rm Rounding) (uint32, Flags) {
	out, flags := binary32.fromSigned(int64(v), rm)
	return uint32(out), flags
}

// U32ToF32 converts from an unsigned integer of 32 bits.
func U32ToF32(v uint32, rm Rounding) (uint32, Flags) {
	out, flags := binary32.fromUnsigned(uint64(v), rm)
	return uint32(out), flags
}

// I64ToF32 converts from a signed integer of 64 bits.
func I64ToF32(v int64, rm Rounding) (uint32, Flags) {
	out, flags := binary32.fromSigned(v, rm)
	return uint32(out), flags
}

// U64ToF32 converts from an unsigned integer of 64 bits.
func U64ToF32(v uint64, rm Rounding) (uint32, Flags) {
	out, flags := binary32.fromUnsigned(v, rm)
	return uint32(out), flags
}

// F64ToF32 converts to the narrower format.
func F64ToF32(a uint64, rm Rounding) (uint32, Flags) {
	if rm == RNE {
		if v, flags, ok := fast64To32(a); ok {
			return v, flags
		}
	}
	v, flags := binary64.toFormat(&binary32, a, rm)
	return uint32(v), flags
}
