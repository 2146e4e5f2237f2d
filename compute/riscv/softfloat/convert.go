package softfloat

import "math/bits"

// toInteger converts to a signed or unsigned integer of width bits, 32 or 64
// (IEEE 754-2008, 5.4.1, convertToIntegerExact). What does not fit saturates and raises
// NV alone. The result is sign-extended from width to 64 bits, also the unsigned one, as
// RISC-V's FCVT leaves it in a register.
func (f *format) toInteger(enc uint64, signed bool, width uint, rm Rounding) (uint64, Flags) {
	x := f.unpack(enc)
	switch x.kind {
	case zero:
		return 0, 0
	case quiet, signaling:
		return saturated(0, signed, width), NV
	case infinite:
		return saturated(x.sign, signed, width), NV
	case finite:
	}
	if x.exp > 63 {
		return saturated(x.sign, signed, width), NV
	}
	// The integer part, and the fraction as a share of 2^64.
	var whole, fraction uint64
	if x.exp >= 0 {
		whole, fraction = x.sig>>(63-uint(x.exp)), x.sig<<(uint(x.exp)+1)
	} else {
		fraction = shiftRightJam(x.sig, uint(-1-x.exp))
	}
	// No overflow: numbers of 2^53 and more have no fraction.
	whole += roundUp(x.sign, whole, fraction, rm)
	if whole > greatest(x.sign, signed, width) {
		return saturated(x.sign, signed, width), NV
	}
	var flags Flags
	if fraction != 0 {
		flags = NX
	}
	if x.sign != 0 {
		whole = -whole
	}
	return extended(whole, width), flags
}

// roundUp returns what to add to the magnitude of a number's integer part.
func roundUp(sign, whole, fraction uint64, rm Rounding) uint64 {
	const half = 1 << 63
	up := false
	switch rm {
	case RNE:
		up = fraction > half || fraction == half && whole&1 != 0
	case RTZ:
	case RDN:
		up = sign != 0 && fraction != 0
	case RUP:
		up = sign == 0 && fraction != 0
	case RMM:
		up = fraction >= half
	}
	if up {
		return 1
	}
	return 0
}

// greatest is the greatest magnitude that an integer with that sign can have.
func greatest(sign uint64, signed bool, width uint) uint64 {
	switch {
	case signed:
		return 1<<((width-1)&63) - 1 + sign
	case sign != 0:
		return 0
	default:
		return ^uint64(0) >> ((64 - width) & 63)
	}
}

// saturated is the integer with that sign and the greatest magnitude.
func saturated(sign uint64, signed bool, width uint) uint64 {
	v := greatest(sign, signed, width)
	if sign != 0 {
		v = -v
	}
	return extended(v, width)
}

// extended sign-extends v from width bits.
func extended(v uint64, width uint) uint64 {
	if width == 32 {
		return uint64(int64(int32(v)))
	}
	return v
}

// fromUnsigned and fromSigned convert from integers (IEEE 754-2008, 5.4.1,
// convertFromInt).
func (f *format) fromUnsigned(v uint64, rm Rounding) (uint64, Flags) {
	return f.fromMagnitude(0, v, rm)
}

func (f *format) fromSigned(v int64, rm Rounding) (uint64, Flags) {
	if v < 0 {
		return f.fromMagnitude(1, -uint64(v), rm)
	}
	return f.fromMagnitude(0, uint64(v), rm)
}

func (f *format) fromMagnitude(sign, magnitude uint64, rm Rounding) (uint64, Flags) {
	if magnitude == 0 {
		return 0, 0
	}
	lead := bits.LeadingZeros64(magnitude)
	return f.round(sign, 63-lead, magnitude<<(uint(lead)&63), rm)
}

// toFormat converts between formats (IEEE 754-2008, 5.4.2).
func (f *format) toFormat(to *format, enc uint64, rm Rounding) (uint64, Flags) {
	x := f.unpack(enc)
	switch x.kind {
	case zero:
		return to.zero(x.sign), 0
	case infinite:
		return to.infinity(x.sign), 0
	case quiet, signaling:
		return to.propagate(x.kind == signaling)
	default:
		return to.round(x.sign, x.exp, x.sig, rm)
	}
}
