package softfloat

import "math/bits"

// add returns a + b (IEEE 754-2008, 5.4.1).
func (f *format) add(a, b uint64, rm Rounding) (uint64, Flags) {
	x, y := f.unpack(a), f.unpack(b)
	if x.kind == finite && y.kind == finite {
		return f.addFinite(x, y, rm)
	}
	switch {
	case x.isNaN() || y.isNaN():
		return f.propagate(x.kind == signaling || y.kind == signaling)
	case x.kind == infinite && y.kind == infinite && x.sign != y.sign:
		return f.invalid()
	case x.kind == infinite || y.kind == zero && x.kind != zero:
		return a, 0
	case y.kind == infinite || x.kind == zero && y.kind != zero:
		return b, 0
	case x.sign == y.sign:
		return a, 0
	default:
		return f.exactZero(rm)
	}
}

// addFinite adds two finite numbers. Significands are at most 53 bits wide, so that
// there are 11 zero bits below them: what a shift jams into bit 0 stays below the bits
// that decide the rounding, also after a shift back by the one bit that a difference of
// numbers that far apart can lose.
func (f *format) addFinite(x, y number, rm Rounding) (uint64, Flags) {
	if x.exp < y.exp || x.exp == y.exp && x.sig < y.sig {
		x, y = y, x
	}
	aligned := shiftRightJam(y.sig, uint(x.exp-y.exp))
	if x.sign == y.sign {
		sum, carry := bits.Add64(x.sig, aligned, 0)
		if carry != 0 {
			return f.round(x.sign, x.exp+1, sum>>1|sum&1|1<<63, rm)
		}
		return f.round(x.sign, x.exp, sum, rm)
	}
	difference := x.sig - aligned
	if difference == 0 {
		return f.exactZero(rm)
	}
	lead := bits.LeadingZeros64(difference)
	return f.round(x.sign, x.exp-lead, difference<<(uint(lead)&63), rm)
}

// mul returns a * b (IEEE 754-2008, 5.4.1).
func (f *format) mul(a, b uint64, rm Rounding) (uint64, Flags) {
	x, y := f.unpack(a), f.unpack(b)
	sign := x.sign ^ y.sign
	if x.kind == finite && y.kind == finite {
		exp, hi, lo := product(x, y)
		return f.round(sign, exp, hi|nonzero(lo), rm)
	}
	switch {
	case x.isNaN() || y.isNaN():
		return f.propagate(x.kind == signaling || y.kind == signaling)
	case x.kind == infinite && y.kind == zero || x.kind == zero && y.kind == infinite:
		return f.invalid()
	case x.kind == infinite || y.kind == infinite:
		return f.infinity(sign), 0
	default:
		return f.zero(sign), 0
	}
}

// product multiplies the magnitudes of finite numbers exactly: it is
// (hi*2^64+lo)/2^127 * 2^exp, bit 63 of hi set.
func product(x, y number) (exp int, hi, lo uint64) {
	hi, lo = bits.Mul64(x.sig, y.sig)
	exp = x.exp + y.exp + 1
	if hi>>63 == 0 {
		hi, lo = hi<<1|lo>>63, lo<<1
		exp--
	}
	return exp, hi, lo
}

// div returns a / b (IEEE 754-2008, 5.4.1).
func (f *format) div(a, b uint64, rm Rounding) (uint64, Flags) {
	x, y := f.unpack(a), f.unpack(b)
	sign := x.sign ^ y.sign
	if x.kind == finite && y.kind == finite {
		// The dividend is scaled so that the quotient has exactly 64 bits.
		hi, lo, exp := x.sig, uint64(0), x.exp-y.exp-1
		if hi >= y.sig {
			hi, lo, exp = hi>>1, hi<<63, exp+1
		}
		quotient, remainder := bits.Div64(hi, lo, y.sig)
		return f.round(sign, exp, quotient|nonzero(remainder), rm)
	}
	switch {
	case x.isNaN() || y.isNaN():
		return f.propagate(x.kind == signaling || y.kind == signaling)
	case x.kind == y.kind: // both infinite or both zero
		return f.invalid()
	case x.kind == infinite:
		return f.infinity(sign), 0
	case y.kind == zero:
		return f.infinity(sign), DZ // IEEE 754-2008, 7.3
	default:
		return f.zero(sign), 0
	}
}

// sqrt returns the square root of a (IEEE 754-2008, 5.4.1).
func (f *format) sqrt(a uint64, rm Rounding) (uint64, Flags) {
	x := f.unpack(a)
	switch {
	case x.isNaN():
		return f.propagate(x.kind == signaling)
	case x.kind == zero: // The root of -0 is -0: IEEE 754-2008, 6.3.
		return a, 0
	case x.sign != 0:
		return f.invalid()
	case x.kind == infinite:
		return a, 0
	}
	// sig * 2^64 under an odd exponent and sig * 2^63 under an even one: then the root
	// has exactly 64 bits and half the exponent.
	hi, lo := x.sig, uint64(0)
	if x.exp&1 == 0 {
		hi, lo = hi>>1, hi<<63
	}
	root, exact := root128(hi, lo)
	if !exact {
		root |= 1
	}
	return f.round(0, x.exp>>1, root, rm)
}

// root128 returns the square root of hi*2^64+lo, hi at least 2^62, rounded down to an
// integer, and whether it is exact. Source: P. Zimmermann, "Karatsuba Square Root",
// INRIA RR-3805: half of the root's digits, then the others by one division.
func root128(hi, lo uint64) (root uint64, exact bool) {
	high := root64(hi)
	remainder := hi - high*high // at most 2*high, which has 33 bits
	low, _ := bits.Div64(remainder>>32, remainder<<32|lo>>32, 2*high)
	// low is too large by one at most, and then it can be 2^32.
	root, carry := bits.Add64(high<<32, low, 0)
	if carry != 0 {
		root = ^uint64(0)
	}
	squareHi, squareLo := bits.Mul64(root, root)
	for squareHi > hi || squareHi == hi && squareLo > lo {
		root--
		squareHi, squareLo = bits.Mul64(root, root)
	}
	return root, squareHi == hi && squareLo == lo
}

// root64 returns the square root of v, rounded down, digit by digit.
func root64(v uint64) uint64 {
	var root uint64
	for bit := uint64(1) << 62; bit != 0; bit >>= 2 {
		if v >= root+bit {
			v -= root + bit
			root = root>>1 + bit
		} else {
			root >>= 1
		}
	}
	return root
}

// fma returns a * b + c, rounded once (IEEE 754-2008, 5.4.1).
func (f *format) fma(a, b, c uint64, rm Rounding) (uint64, Flags) {
	x, y, z := f.unpack(a), f.unpack(b), f.unpack(c)
	sign := x.sign ^ y.sign
	if x.kind == finite && y.kind == finite && z.kind == finite {
		exp, hi, lo := product(x, y)
		return f.addWide(wide{sign, hi, lo, exp}, wide{z.sign, z.sig, 0, z.exp}, rm)
	}
	switch {
	// RISC-V: invalid also when c is a quiet NaN, which IEEE 754-2008, 7.2 c leaves open.
	case x.kind == infinite && y.kind == zero || x.kind == zero && y.kind == infinite:
		return f.invalid()
	case x.isNaN() || y.isNaN() || z.isNaN():
		return f.propagate(x.kind == signaling || y.kind == signaling || z.kind == signaling)
	case x.kind == infinite || y.kind == infinite:
		if z.kind == infinite && z.sign != sign {
			return f.invalid()
		}
		return f.infinity(sign), 0
	case z.kind == infinite:
		return c, 0
	case z.kind == zero && x.kind == finite && y.kind == finite:
		exp, hi, lo := product(x, y)
		return f.round(sign, exp, hi|nonzero(lo), rm)
	case z.kind == finite || z.sign == sign: // The product is zero.
		return c, 0
	default:
		return f.exactZero(rm)
	}
}

// wide is a finite number with a significand of 128 bits: (hi*2^64+lo)/2^127 * 2^exp,
// bit 63 of hi set.
type wide struct {
	sign, hi, lo uint64
	exp          int
}

// addWide adds x and y. Their significands are at most 106 bits wide, the least of the
// other 22 are zeros: as in addFinite, jamming into the lowest bit changes nothing.
func (f *format) addWide(x, y wide, rm Rounding) (uint64, Flags) {
	if x.exp < y.exp || x.exp == y.exp && (x.hi < y.hi || x.hi == y.hi && x.lo < y.lo) {
		x, y = y, x
	}
	hi, lo := shiftRightJam128(y.hi, y.lo, uint(x.exp-y.exp))
	if x.sign == y.sign {
		var carry uint64
		lo, carry = bits.Add64(x.lo, lo, 0)
		hi, carry = bits.Add64(x.hi, hi, carry)
		if carry != 0 {
			return f.round(x.sign, x.exp+1, hi>>1|nonzero(hi&1|lo)|1<<63, rm)
		}
		return f.round(x.sign, x.exp, hi|nonzero(lo), rm)
	}
	lo, borrow := bits.Sub64(x.lo, lo, 0)
	hi, _ = bits.Sub64(x.hi, hi, borrow)
	exp := x.exp
	if hi == 0 {
		if lo == 0 {
			return f.exactZero(rm)
		}
		hi, lo, exp = lo, 0, exp-64
	}
	lead := uint(bits.LeadingZeros64(hi))
	hi, lo = hi<<(lead&63)|lo>>(64-lead), lo<<(lead&63)
	return f.round(x.sign, exp-int(lead), hi|nonzero(lo), rm)
}

// shiftRightJam128 shifts hi*2^64+lo by any distance, and sets the lowest bit if a set
// bit was lost.
func shiftRightJam128(hi, lo uint64, distance uint) (uint64, uint64) {
	if distance < 64 {
		return hi >> (distance & 63), hi<<(64-distance) | lo>>(distance&63) | nonzero(lo<<(64-distance))
	}
	return 0, shiftRightJam(hi, distance-64) | nonzero(lo)
}
