package softfloat

import "math"

// The short way: round to nearest even by the host's own arithmetic. Each function
// tells by its last result whether it answers; it does only when its result is a normal
// number and it can prove whether that is exact. So no flag but NX can be raised here.
//
// The proofs for binary64 compare integers. With ulp(r) the last place of the rounded
// result r, the exact result differs from r by at most half of it; both are multiples of
// a common unit. In that unit their difference is far below 2^64, so that it is zero
// exactly if it is zero modulo 2^64, which is how uint64 counts.
//
// The proofs for binary32 are of binary64: products and squares of 24 bits are exact
// there, and a result of +, -, *, / or a root that is rounded to 53 bits first and to 24
// then is what it would be rounded to at once (S. Figueroa, "When is double rounding
// innocuous?", SIGNUM Newsletter 30(3), 1995: 53 >= 2*24 + 2).

const (
	fracMask64 = 1<<52 - 1
	implicit64 = 1 << 52
	// scale64 is what the exponent's field counts from when the significand is taken
	// for an integer: an encoding is (significand) * 2^(field - scale64).
	scale64 = 1023 + 52
)

func field64(enc uint64) uint64 { return enc >> 52 & 0x7ff }
func field32(enc uint32) uint32 { return enc >> 23 & 0xff }

// integer64 is the significand of a normal number as an integer.
func integer64(enc uint64) uint64 { return enc&fracMask64 | implicit64 }

// normal64 and normal32 tell whether enc is normal: neither zero, nor subnormal,
// infinite or NaN.
func normal64(enc uint64) bool { return field64(enc)-1 < 0x7fe }
func normal32(enc uint32) bool { return field32(enc)-1 < 0xfe }

// safe64 and safe32 tell whether a rounded result is neither an overflow nor near to
// being tiny: it is normal, and its exponent not the least.
func safe64(enc uint64) bool { return field64(enc)-2 < 0x7fd }
func safe32(enc uint32) bool { return field32(enc)-2 < 0xfd }

func inexactIf(inexact bool) Flags {
	if inexact {
		return NX
	}
	return 0
}

// fastAdd64: TwoSum (D. Knuth, TAOCP 2, 4.2.2, theorem B) finds the error of a sum
// exactly. The bounds on the operands keep its intermediate results from overflow, and
// the error, a multiple of the last place of an operand, normal.
func fastAdd64(a, b uint64) (uint64, Flags, bool) {
	if field64(a)-64 >= 0x7fd-64 || field64(b)-64 >= 0x7fd-64 {
		return 0, 0, false
	}
	x, y := math.Float64frombits(a), math.Float64frombits(b)
	sum := float64(x + y)
	return math.Float64bits(sum), inexactIf(sumError64(x, y, sum) != 0), true
}

// sumError64 is x + y - sum, sum being x + y rounded.
func sumError64(x, y, sum float64) float64 {
	part := float64(sum - x)
	return float64(float64(x-float64(sum-part)) + float64(y-part))
}

func fastMul64(a, b uint64) (uint64, Flags, bool) {
	p := math.Float64bits(float64(math.Float64frombits(a) * math.Float64frombits(b)))
	if !normal64(a) || !normal64(b) || !safe64(p) {
		return 0, 0, false
	}
	shift := field64(p) + scale64 - field64(a) - field64(b) // 52 or 53
	return p, inexactIf(integer64(a)*integer64(b) != integer64(p)<<(shift&63)), true
}

func fastDiv64(a, b uint64) (uint64, Flags, bool) {
	q := math.Float64bits(float64(math.Float64frombits(a) / math.Float64frombits(b)))
	if !normal64(a) || !normal64(b) || !safe64(q) {
		return 0, 0, false
	}
	shift := field64(a) + scale64 - field64(q) - field64(b) // 52 or 53
	return q, inexactIf(integer64(q)*integer64(b) != integer64(a)<<(shift&63)), true
}

func fastSqrt64(a uint64) (uint64, Flags, bool) {
	if a-implicit64 >= 0x7fe<<52 { // negative numbers are great ones here
		return 0, 0, false
	}
	r := math.Float64bits(math.Sqrt(math.Float64frombits(a)))
	shift := field64(a) + scale64 - 2*field64(r) // 52 or 53
	return r, inexactIf(integer64(r)*integer64(r) != integer64(a)<<(shift&63)), true
}

// fastFMA64 answers where neither the product nor c is so small beside the result that
// the difference could be 2^64 units and more.
func fastFMA64(a, b, c uint64) (uint64, Flags, bool) {
	r := math.Float64bits(math.FMA(math.Float64frombits(a), math.Float64frombits(b), math.Float64frombits(c)))
	if !normal64(a) || !normal64(b) || !normal64(c) || !safe64(r) {
		return 0, 0, false
	}
	// Exponents of the last places, and the least of them, whose power of two is the unit.
	ofProduct := int64(field64(a)+field64(b)) - scale64
	ofC, ofR := int64(field64(c)), int64(field64(r))
	unit := min(ofProduct, ofC, ofR)
	if ofR-unit > 64 {
		return 0, 0, false
	}
	exact := signed64(a^b, integer64(a)*integer64(b)<<uint64(ofProduct-unit)) +
		signed64(c, integer64(c)<<uint64(ofC-unit))
	return r, inexactIf(exact != signed64(r, integer64(r)<<uint64(ofR-unit))), true
}

// signed64 is v with the sign of the encoding, modulo 2^64.
func signed64(enc, v uint64) uint64 {
	negative := uint64(int64(enc) >> 63)
	return (v ^ negative) - negative
}

// fastAdd32 is fastAdd64 in the narrower format.
func fastAdd32(a, b uint32) (uint32, Flags, bool) {
	if field32(a)-32 >= 0xfd-32 || field32(b)-32 >= 0xfd-32 {
		return 0, 0, false
	}
	x, y := math.Float32frombits(a), math.Float32frombits(b)
	sum := float32(x + y)
	part := float32(sum - x)
	err := float32(float32(x-float32(sum-part)) + float32(y-part))
	return math.Float32bits(sum), inexactIf(err != 0), true
}

func fastMul32(a, b uint32) (uint32, Flags, bool) {
	p := float64(float64(math.Float32frombits(a)) * float64(math.Float32frombits(b)))
	r := float32(p)
	enc := math.Float32bits(r)
	return enc, inexactIf(float64(r) != p), safe32(enc)
}

func fastDiv32(a, b uint32) (uint32, Flags, bool) {
	x, y := float64(math.Float32frombits(a)), float64(math.Float32frombits(b))
	r := float32(float64(x / y))
	enc := math.Float32bits(r)
	return enc, inexactIf(float64(float64(r)*y) != x), safe32(enc)
}

func fastSqrt32(a uint32) (uint32, Flags, bool) {
	x := float64(math.Float32frombits(a))
	r := float32(math.Sqrt(x))
	enc := math.Float32bits(r)
	return enc, inexactIf(float64(float64(r)*float64(r)) != x), safe32(enc)
}

// fast64To32 converts to the narrower format.
func fast64To32(a uint64) (uint32, Flags, bool) {
	x := math.Float64frombits(a)
	r := float32(x)
	enc := math.Float32bits(r)
	return enc, inexactIf(float64(r) != x), safe32(enc)
}

// fastFMA32: the product is exact, and the error of the sum that is rounded to 53 bits
// known. Rounding that sum again is wrong only if it lies in the middle between two
// numbers of 24 bits and the exact sum does not: then this declines.
func fastFMA32(a, b, c uint32) (uint32, Flags, bool) {
	p := float64(float64(math.Float32frombits(a)) * float64(math.Float32frombits(b)))
	z := float64(math.Float32frombits(c))
	sum := float64(p + z)
	rounded := sumError64(p, z, sum) != 0
	r := float32(sum)
	enc := math.Float32bits(r)
	const below, half = 1<<29 - 1, 1 << 28 // of the 53 bits, what the 24 leave out
	middle := math.Float64bits(sum)&below == half
	return enc, inexactIf(rounded || float64(r) != sum), safe32(enc) && (!rounded || !middle)
}
