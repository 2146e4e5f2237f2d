package softfloat

import "math/big"

// The oracle is the same arithmetic, written so that it is dumb: it knows the exact
// result as a thing that can be compared with numbers, and finds the numbers next to it
// by bisection over all encodings of a format, whose order is that of their numbers.
// It shares with the package the names of flags and modes, and nothing else.

// layout is a format for the oracle. Magnitudes have 64 bits here in both: those from
// top on, which is where infinity is, go on as numbers, up to 2^3071 at least, which is
// more than any operation has for a result.
type layout struct {
	width, frac uint
	bias        int
	top         uint64
	nan         uint64
}

var (
	single = layout{32, 23, 127, 0x7f80_0000, 0x7fc0_0000}
	double = layout{64, 52, 1023, 0x7ff0_0000_0000_0000, 0x7ff8_0000_0000_0000}
)

// deep is the layout with an exponent that goes so low that nothing that comes out of
// an operation is subnormal, and as high as results that do not overflow.
func (l layout) deep() layout {
	l.bias += 2048
	return l
}

func (l layout) sign(enc uint64) bool        { return enc>>(l.width-1) != 0 }
func (l layout) magnitude(enc uint64) uint64 { return enc &^ (1 << (l.width - 1)) }
func (l layout) nanIn(enc uint64) bool       { return l.magnitude(enc) > l.top }
func (l layout) infIn(enc uint64) bool       { return l.magnitude(enc) == l.top }
func (l layout) zeroIn(enc uint64) bool      { return l.magnitude(enc) == 0 }
func (l layout) quietBit(enc uint64) bool    { return enc&(l.nan&^l.top) != 0 }
func (l layout) signalingIn(enc uint64) bool { return l.nanIn(enc) && !l.quietBit(enc) }

func (l layout) with(negative bool, magnitude uint64) uint64 {
	if negative {
		return magnitude | 1<<(l.width-1)
	}
	return magnitude
}

// dyadic is m * 2^e, m not negative.
type dyadic struct {
	m *big.Int
	e int
}

// value is the number of a magnitude, by IEEE 754-2008, 3.4.
func (l layout) value(magnitude uint64) dyadic {
	field := int(magnitude >> l.frac)
	trailing := magnitude & (1<<l.frac - 1)
	if field == 0 {
		return dyadic{new(big.Int).SetUint64(trailing), 1 - l.bias - int(l.frac)}
	}
	return dyadic{new(big.Int).SetUint64(trailing | 1<<l.frac), field - l.bias - int(l.frac)}
}

func (d dyadic) times(x dyadic) dyadic { return dyadic{new(big.Int).Mul(d.m, x.m), d.e + x.e} }

// at returns d's significand under the exponent e, which is not above d's.
func (d dyadic) at(e int) *big.Int { return new(big.Int).Lsh(d.m, uint(d.e-e)) }

func (d dyadic) cmp(x dyadic) int {
	if d.m.Sign() == 0 || x.m.Sign() == 0 {
		return d.m.Cmp(x.m)
	}
	if a, b := d.m.BitLen()+d.e, x.m.BitLen()+x.e; a != b { // only to be quick
		if a < b {
			return -1
		}
		return 1
	}
	e := min(d.e, x.e)
	return d.at(e).Cmp(x.at(e))
}

// sum adds two numbers with signs, and tells the sign of what comes out.
func sum(negX bool, x dyadic, negY bool, y dyadic) (negative bool, s dyadic) {
	e := min(x.e, y.e)
	a, b := x.at(e), y.at(e)
	if negX {
		a.Neg(a)
	}
	if negY {
		b.Neg(b)
	}
	a.Add(a, b)
	return a.Sign() < 0, dyadic{new(big.Int).Abs(a), e}
}

// exact is a positive real number: it compares itself with a dyadic one.
type exact func(dyadic) int

func (d dyadic) exact() exact { return d.cmp }

func quotient(n, d dyadic) exact { return func(x dyadic) int { return n.cmp(x.times(d)) } }
func root(n dyadic) exact        { return func(x dyadic) int { return n.cmp(x.times(x)) } }

// below finds the greatest magnitude that is not above the number.
func (l layout) below(v exact) uint64 {
	low, high := uint64(0), ^uint64(0)-1
	for low < high {
		middle := low + (high-low)/2 + 1
		if v(l.value(middle)) >= 0 {
			low = middle
		} else {
			high = middle - 1
		}
	}
	return low
}

// nearest rounds to the layout with no end of its exponents upwards.
func (l layout) nearest(negative bool, v exact, rm Rounding) (magnitude uint64, inexact bool) {
	low := l.below(v)
	if v(l.value(low)) == 0 {
		return low, false
	}
	// Twice the middle between the neighbors is their sum.
	_, twice := sum(false, l.value(low), false, l.value(low+1))
	half := v(dyadic{twice.m, twice.e - 1})
	up := false
	switch rm {
	case RNE:
		up = half > 0 || half == 0 && low%2 == 1
	case RMM:
		up = half >= 0
	case RUP:
		up = !negative
	case RDN:
		up = negative
	case RTZ:
	}
	if up {
		low++
	}
	return low, true
}

// rounded is the result and the flags of an operation whose exact result is v.
func (l layout) rounded(negative bool, v exact, rm Rounding) (uint64, Flags) {
	magnitude, inexact := l.nearest(negative, v, rm)
	var flags Flags
	if inexact {
		flags = NX
	}
	if magnitude >= l.top {
		towards := rm == RTZ || rm == RUP && negative || rm == RDN && !negative
		if towards {
			return l.with(negative, l.top-1), OF | NX
		}
		return l.with(negative, l.top), OF | NX
	}
	// IEEE 754-2008, 7.5 a: tiny is what, rounded as if the exponent had no lower end,
	// lies strictly between zero and the least normal number.
	unbounded, _ := l.deep().nearest(negative, v, rm)
	if inexact && l.deep().value(unbounded).cmp(l.value(1<<l.frac)) < 0 {
		flags |= UF
	}
	return l.with(negative, magnitude), flags
}

// nans answers for operands of which one is a NaN.
func (l layout) nans(encs ...uint64) (uint64, Flags, bool) {
	isNaN, flags := false, Flags(0)
	for _, enc := range encs {
		isNaN = isNaN || l.nanIn(enc)
		if l.signalingIn(enc) {
			flags = NV
		}
	}
	return l.nan, flags, isNaN
}

func (l layout) add(a, b uint64, rm Rounding) (uint64, Flags) {
	one := l.with(false, uint64(l.bias)<<l.frac)
	return l.fma(a, one, b, rm)
}

func (l layout) mul(a, b uint64, rm Rounding) (uint64, Flags) {
	if v, flags, is := l.nans(a, b); is {
		return v, flags
	}
	negative := l.sign(a) != l.sign(b)
	switch {
	case l.infIn(a) && l.zeroIn(b) || l.zeroIn(a) && l.infIn(b):
		return l.nan, NV
	case l.infIn(a) || l.infIn(b):
		return l.with(negative, l.top), 0
	}
	return l.rounded(negative, l.value(l.magnitude(a)).times(l.value(l.magnitude(b))).exact(), rm)
}

func (l layout) div(a, b uint64, rm Rounding) (uint64, Flags) {
	if v, flags, is := l.nans(a, b); is {
		return v, flags
	}
	negative := l.sign(a) != l.sign(b)
	switch {
	case l.infIn(a) && l.infIn(b) || l.zeroIn(a) && l.zeroIn(b):
		return l.nan, NV
	case l.infIn(a):
		return l.with(negative, l.top), 0
	case l.zeroIn(b):
		return l.with(negative, l.top), DZ
	case l.infIn(b):
		return l.with(negative, 0), 0
	}
	return l.rounded(negative, quotient(l.value(l.magnitude(a)), l.value(l.magnitude(b))), rm)
}

func (l layout) sqrt(a uint64, rm Rounding) (uint64, Flags) {
	if v, flags, is := l.nans(a); is {
		return v, flags
	}
	switch {
	case l.zeroIn(a) || l.infIn(a) && !l.sign(a):
		return a, 0
	case l.sign(a):
		return l.nan, NV
	}
	return l.rounded(false, root(l.value(l.magnitude(a))), rm)
}

func (l layout) fma(a, b, c uint64, rm Rounding) (uint64, Flags) {
	if l.infIn(a) && l.zeroIn(b) || l.zeroIn(a) && l.infIn(b) {
		return l.nan, NV
	}
	if v, flags, is := l.nans(a, b, c); is {
		return v, flags
	}
	negative := l.sign(a) != l.sign(b)
	switch infinite := l.infIn(a) || l.infIn(b); {
	case infinite && l.infIn(c) && l.sign(c) != negative:
		return l.nan, NV
	case infinite:
		return l.with(negative, l.top), 0
	case l.infIn(c):
		return c, 0
	}
	product := l.value(l.magnitude(a)).times(l.value(l.magnitude(b)))
	negSum, s := sum(negative, product, l.sign(c), l.value(l.magnitude(c)))
	if s.m.Sign() == 0 {
		bothNegative := negative && l.sign(c)
		return l.with(bothNegative || negative != l.sign(c) && rm == RDN, 0), 0
	}
	return l.rounded(negSum, s.exact(), rm)
}

// convert is the conversion from another layout.
func (l layout) convert(from layout, a uint64, rm Rounding) (uint64, Flags) {
	if _, flags, is := from.nans(a); is {
		return l.nan, flags
	}
	if from.infIn(a) {
		return l.with(from.sign(a), l.top), 0
	}
	return l.rounded(from.sign(a), from.value(from.magnitude(a)).exact(), rm)
}

// fromInt is the conversion from an integer.
func (l layout) fromInt(v *big.Int, rm Rounding) (uint64, Flags) {
	return l.rounded(v.Sign() < 0, dyadic{new(big.Int).Abs(v), 0}.exact(), rm)
}

// toInt is the conversion to an integer, by the table of the RISC-V manual.
func (l layout) toInt(a uint64, signed bool, width uint, rm Rounding) (uint64, Flags) {
	least, greatest := new(big.Int), new(big.Int).Lsh(big.NewInt(1), width)
	if signed {
		greatest.Rsh(greatest, 1)
		least.Neg(greatest)
	}
	greatest.Sub(greatest, big.NewInt(1))
	register := func(v *big.Int) uint64 {
		low := new(big.Int).And(v, new(big.Int).SetUint64(^uint64(0))).Uint64()
		if width == 32 {
			return uint64(int64(int32(low)))
		}
		return low
	}
	if l.nanIn(a) || l.infIn(a) && !l.sign(a) {
		return register(greatest), NV
	}
	if l.infIn(a) {
		return register(least), NV
	}
	v, flags := l.integer(a, rm)
	if v.Cmp(least) < 0 {
		return register(least), NV
	}
	if v.Cmp(greatest) > 0 {
		return register(greatest), NV
	}
	return register(v), flags
}

// integer rounds a number to an integral one.
func (l layout) integer(a uint64, rm Rounding) (*big.Int, Flags) {
	d := l.value(l.magnitude(a))
	v := new(big.Rat).SetInt(d.m)
	scale := new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), uint(max(d.e, -d.e))))
	if d.e < 0 {
		v.Quo(v, scale)
	} else {
		v.Mul(v, scale)
	}
	if l.sign(a) {
		v.Neg(v)
	}
	floor := new(big.Int).Div(v.Num(), v.Denom()) // Euclidean: towards -infinity, as denominators are positive
	rest := new(big.Rat).Sub(v, new(big.Rat).SetInt(floor))
	if rest.Sign() == 0 {
		return floor, 0
	}
	half := rest.Cmp(big.NewRat(1, 2))
	up := false
	switch rm {
	case RNE:
		up = half > 0 || half == 0 && floor.Bit(0) == 1
	case RMM:
		up = half > 0 || half == 0 && !l.sign(a)
	case RUP:
		up = true
	case RTZ:
		up = l.sign(a)
	case RDN:
	}
	if up {
		floor.Add(floor, big.NewInt(1))
	}
	return floor, NX
}

// compare orders two numbers that are no NaN.
func (l layout) compare(a, b uint64) int {
	x, y := new(big.Float), new(big.Float)
	for _, p := range []struct {
		to  *big.Float
		enc uint64
	}{{x, a}, {y, b}} {
		if l.infIn(p.enc) {
			p.to.SetInf(l.sign(p.enc))
			continue
		}
		d := l.value(l.magnitude(p.enc))
		p.to.SetMantExp(new(big.Float).SetInt(d.m), d.e)
		if l.sign(p.enc) {
			p.to.Neg(p.to)
		}
	}
	return x.Cmp(y)
}

// choose is minimumNumber for want = -1 and maximumNumber for want = 1.
func (l layout) choose(a, b uint64, want int) (uint64, Flags) {
	_, flags, is := l.nans(a, b)
	switch {
	case l.nanIn(a) && l.nanIn(b):
		return l.nan, flags
	case is && l.nanIn(a):
		return b, flags
	case is:
		return a, flags
	case l.zeroIn(a) && l.zeroIn(b):
		return l.with(want < 0 && (l.sign(a) || l.sign(b)) || l.sign(a) && l.sign(b), 0), 0
	case l.compare(a, b) == want:
		return a, 0
	}
	return b, 0
}

// relation is one of the three comparisons.
func (l layout) relation(a, b uint64, quietly bool, holds func(int) bool) (uint64, Flags) {
	if _, flags, is := l.nans(a, b); is {
		if quietly {
			return 0, flags
		}
		return 0, NV
	}
	if holds(l.compare(a, b)) {
		return 1, 0
	}
	return 0, 0
}

// classify is FCLASS by the table of the RISC-V manual.
func (l layout) classify(a uint64) uint64 {
	normal := l.magnitude(a) >= 1<<l.frac
	rows := []bool{
		l.infIn(a) && l.sign(a),
		normal && !l.infIn(a) && !l.nanIn(a) && l.sign(a),
		!normal && !l.zeroIn(a) && l.sign(a),
		l.zeroIn(a) && l.sign(a),
		l.zeroIn(a) && !l.sign(a),
		!normal && !l.zeroIn(a) && !l.sign(a),
		normal && !l.infIn(a) && !l.nanIn(a) && !l.sign(a),
		l.infIn(a) && !l.sign(a),
		l.signalingIn(a),
		l.nanIn(a) && !l.signalingIn(a),
	}
	var mask uint64
	for bit, is := range rows {
		if is {
			mask |= 1 << bit
		}
	}
	return mask
}
