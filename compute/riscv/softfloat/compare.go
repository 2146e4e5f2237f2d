package softfloat

// isNaN and isSignaling tell what an encoding is.
func (f *format) isNaN(enc uint64) bool { return enc&^f.zero(1) > f.infinity(0) }

func (f *format) isSignaling(enc uint64) bool {
	return f.isNaN(enc) && enc>>((f.frac-1)&63)&1 == 0
}

// unordered tells whether a NaN is among a and b, and whether a signaling one is.
func (f *format) unordered(a, b uint64) (nan, signaling bool) {
	if !f.isNaN(a) && !f.isNaN(b) {
		return false, false
	}
	return true, f.isSignaling(a) || f.isSignaling(b)
}

// rank orders encodings that are no NaN as their numbers, -0 right below +0.
func (f *format) rank(enc uint64) int64 {
	v := int64(enc << (63 - f.sign))
	return v ^ int64(uint64(v>>63)>>1)
}

// bothZero tells whether a and b are zeros, which are equal whatever their signs.
func (f *format) bothZero(a, b uint64) bool { return (a|b)&^f.zero(1) == 0 }

// equal is compareQuietEqual (IEEE 754-2008, 5.11): RISC-V's FEQ.
func (f *format) equal(a, b uint64) (bool, Flags) {
	if nan, sig := f.unordered(a, b); nan {
		return false, invalidIf(sig)
	}
	return a == b || f.bothZero(a, b), 0
}

// less and lessEqual are compareSignalingLess and compareSignalingLessEqual
// (IEEE 754-2008, 5.11): RISC-V's FLT and FLE.
func (f *format) less(a, b uint64) (bool, Flags) {
	if f.isNaN(a) || f.isNaN(b) {
		return false, NV
	}
	return f.rank(a) < f.rank(b) && !f.bothZero(a, b), 0
}

func (f *format) lessEqual(a, b uint64) (bool, Flags) {
	if f.isNaN(a) || f.isNaN(b) {
		return false, NV
	}
	return f.rank(a) <= f.rank(b) || f.bothZero(a, b), 0
}

// minimum and maximum are minimumNumber and maximumNumber (IEEE 754-2019, 9.6), with
// -0 below +0: RISC-V's FMIN and FMAX.
func (f *format) minimum(a, b uint64) (uint64, Flags) {
	if nan, sig := f.unordered(a, b); nan {
		return f.number(a, b), invalidIf(sig)
	}
	if f.rank(b) < f.rank(a) {
		return b, 0
	}
	return a, 0
}

func (f *format) maximum(a, b uint64) (uint64, Flags) {
	if nan, sig := f.unordered(a, b); nan {
		return f.number(a, b), invalidIf(sig)
	}
	if f.rank(b) > f.rank(a) {
		return b, 0
	}
	return a, 0
}

// number returns the one of a and b that is no NaN, and the canonical NaN if both are.
func (f *format) number(a, b uint64) uint64 {
	switch {
	case !f.isNaN(a):
		return a
	case !f.isNaN(b):
		return b
	default:
		return f.nan
	}
}

func invalidIf(sig bool) Flags {
	if sig {
		return NV
	}
	return 0
}

// class returns RISC-V's FCLASS mask: one bit, its number as the manual's table has it
// ("Single-Precision Floating-Point Classify Instruction").
func (f *format) class(enc uint64) uint64 {
	magnitude := enc &^ f.zero(1)
	bit := uint(4) // +0; the positive classes go up from it, the negative ones down from 3
	switch {
	case magnitude > f.infinity(0):
		if f.isSignaling(enc) {
			return 1 << 8
		}
		return 1 << 9
	case magnitude == f.infinity(0):
		bit = 7
	case magnitude >= 1<<(f.frac&63):
		bit = 6
	case magnitude != 0:
		bit = 5
	}
	if enc&f.zero(1) != 0 {
		bit = 7 - bit
	}
	return 1 << bit
}
