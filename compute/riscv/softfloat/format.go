package softfloat

import "math/bits"

// Flags are the exceptions that an operation raised, as in RISC-V's fflags register.
type Flags uint8

// The exceptions of IEEE 754-2008, clause 7.
const (
	NX Flags = 1 << iota // inexact
	UF                   // underflow: tiny and inexact
	OF                   // overflow
	DZ                   // division by zero
	NV                   // invalid operation
)

// Rounding is a rounding mode, as in the rm field of a RISC-V instruction and in frm. Its
// other values are reserved there: an instruction with one traps, and none comes here.
type Rounding uint8

// The rounding-direction attributes of IEEE 754-2008, 4.3.
const (
	RNE Rounding = iota // to nearest, ties to even
	RTZ                 // towards zero
	RDN                 // down, towards -infinity
	RUP                 // up, towards +infinity
	RMM                 // to nearest, ties to the greater magnitude
)

// format describes a binary interchange format (IEEE 754-2008, 3.4). An encoding is
// the low sign+1 bits of a uint64.
type format struct {
	frac    uint   // bits of the trailing significand; the precision is one more
	sign    uint   // the sign's bit number
	bias    int    // of the exponent
	expMask uint64 // the exponent field's largest value, which infinities and NaNs have
	drop    uint   // how many bits of a 64-bit significand are below the precision
	nan     uint64 // the canonical NaN
}

var (
	binary32 = format{frac: 23, sign: 31, bias: 127, expMask: 0xff, drop: 64 - 24, nan: 0x7fc0_0000}
	binary64 = format{frac: 52, sign: 63, bias: 1023, expMask: 0x7ff, drop: 64 - 53, nan: 0x7ff8_0000_0000_0000}
)

// kind is what a number is apart from its sign.
type kind uint8

const (
	finite kind = iota // and not zero
	zero
	infinite
	quiet     // NaN
	signaling // NaN
)

// number is a decoded operand. A finite one is sig/2^63 * 2^exp with bit 63 of sig set,
// also if its encoding was subnormal: the arithmetic needs to know nothing of them.
type number struct {
	sign uint64 // 0 or 1
	sig  uint64
	exp  int
	kind kind
}

func (n number) isNaN() bool { return n.kind >= quiet }

// unpack decodes an encoding of the format.
func (f *format) unpack(enc uint64) number {
	n := number{sign: enc >> (f.sign & 63) & 1}
	e := enc >> (f.frac & 63) & f.expMask
	m := enc << (f.drop & 63) // the trailing significand right below bit 63, the exponent's lowest bit in it
	switch {
	case e != 0 && e != f.expMask:
		n.sig = m | 1<<63
		n.exp = int(e) - f.bias
	case m<<1 == 0 && e == 0:
		n.kind = zero
	case e == 0:
		lead := bits.LeadingZeros64(m)
		n.sig = m << (uint(lead) & 63)
		n.exp = 1 - f.bias - lead
	case m<<1 == 0:
		n.kind = infinite
	case m>>62&1 != 0: // IEEE 754-2008, 6.2.1: the first bit of the trailing significand
		n.kind = quiet
	default:
		n.kind = signaling
	}
	return n
}

// zero, infinity and largest are the encodings of the sign's zero, infinity and largest
// finite number.
func (f *format) zero(sign uint64) uint64     { return sign << (f.sign & 63) }
func (f *format) infinity(sign uint64) uint64 { return sign<<(f.sign&63) | f.expMask<<(f.frac&63) }
func (f *format) largest(sign uint64) uint64  { return f.infinity(sign) - 1 }

// invalid is the result of an invalid operation (IEEE 754-2008, 7.2).
func (f *format) invalid() (uint64, Flags) { return f.nan, NV }

// propagate is the result of an operation with a NaN among its operands.
func (f *format) propagate(signalingOperand bool) (uint64, Flags) {
	if signalingOperand {
		return f.nan, NV
	}
	return f.nan, 0
}

// exactZero is the sum of two numbers that cancel each other (IEEE 754-2008, 6.3).
func (f *format) exactZero(rm Rounding) (uint64, Flags) {
	if rm == RDN {
		return f.zero(1), 0
	}
	return f.zero(0), 0
}

// roundBits takes the lowest drop bits away from sig and returns what is left, rounded,
// with those bits. drop is between 1 and 63; what is left cannot overflow.
func roundBits(sign, sig uint64, drop uint, rm Rounding) (left, rest uint64) {
	below := uint64(1)<<(drop&63) - 1
	left, rest = sig>>(drop&63), sig&below
	// What, added to the rest, carries exactly if it is to be rounded up.
	var add uint64
	switch rm {
	case RTZ:
	case RDN:
		add = below & -sign
	case RUP:
		add = below & (sign - 1)
	case RMM:
		add = below>>1 + 1
	case RNE:
		add = below>>1 + left&1
	}
	return left + (rest+add)>>(drop&63), rest
}

// round encodes sig/2^63 * 2^exp, bit 63 of sig set, bit 0 sticky: it stands for
// anything that is lost below it. Source: IEEE 754-2008, 4.3, 7.4, 7.5.
func (f *format) round(sign uint64, exp int, sig uint64, rm Rounding) (uint64, Flags) {
	e := exp + f.bias
	tiny := false
	if e < 1 {
		tiny = e < 0 || !f.carries(sign, sig, rm)
		sig = shiftRightJam(sig, uint(1-e))
		e = 1
	}
	left, rest := roundBits(sign, sig, f.drop, rm)
	var flags Flags
	if rest != 0 {
		flags = NX
		if tiny {
			flags |= UF
		}
	}
	// The leading bit adds one to the exponent's field; so does a carry into it. A
	// subnormal number has no leading bit and ends with a field of 0, or of 1 by a carry.
	magnitude := uint64(e-1)<<(f.frac&63) + left
	if magnitude >= f.infinity(0) {
		return f.overflow(sign, rm)
	}
	return f.zero(sign) | magnitude, flags
}

// carries tells whether rounding to the format's precision, with an exponent without
// bounds, makes a power of two of sig: then a number just below the smallest normal one
// is not tiny after rounding.
func (f *format) carries(sign, sig uint64, rm Rounding) bool {
	left, _ := roundBits(sign, sig, f.drop, rm)
	return left == 1<<((f.frac+1)&63)
}

// overflow is the result of one (IEEE 754-2008, 7.4).
func (f *format) overflow(sign uint64, rm Rounding) (uint64, Flags) {
	if rm == RTZ || rm == RDN && sign == 0 || rm == RUP && sign == 1 {
		return f.largest(sign), OF | NX
	}
	return f.infinity(sign), OF | NX
}

// shiftRightJam shifts by any distance, and sets bit 0 if a set bit was lost.
func shiftRightJam(sig uint64, distance uint) uint64 {
	if distance >= 64 {
		return nonzero(sig)
	}
	// A shift by 64 gives 0 in Go, so distance 0 loses nothing.
	return sig>>distance | nonzero(sig<<(64-distance))
}

// nonzero is 1 for all but 0.
func nonzero(v uint64) uint64 {
	if v != 0 {
		return 1
	}
	return 0
}
