package softfloat

import (
	"math"
	"math/rand/v2"
)

// patterns makes operands where arithmetic goes wrong: at the edges of formats, at
// halves, at cancellations, at results near the least normal number and near overflow.
type patterns struct {
	*rand.Rand
	specials map[uint][]uint64 // by width
}

func newPatterns(seed uint64) patterns {
	return patterns{rand.New(rand.NewPCG(seed, 0x5eed)), map[uint][]uint64{32: specials(single), 64: specials(double)}}
}

// roughly multiplies by what is tested: to make operands it need not be right, but quick.
func roughly(l layout, a, b uint64, rm Rounding) (uint64, Flags) {
	if l.width == 32 {
		return binary32.mul(a, b, rm)
	}
	return binary64.mul(a, b, rm)
}

// operands returns operands for o.
func (p patterns) operands(o *operation) [3]uint64 {
	if o.ints {
		return [3]uint64{p.integer(o.width)}
	}
	l := double
	if o.width == 32 {
		l = single
	}
	v := [3]uint64{p.encoding(l), p.encoding(l), p.encoding(l)}
	switch o.arity {
	case 1:
		v[0] = p.alone(l, v[0])
	case 2:
		v[1] = p.partner(l, v[0], v[1])
	default:
		v = p.triple(l, v)
	}
	return v
}

// specials are the encodings with a name, and their neighbors.
func specials(l layout) []uint64 {
	least := uint64(1) << l.frac
	oneEnc := uint64(l.bias) << l.frac
	magnitudes := []uint64{
		0, 1, 2, 3, least - 2, least - 1, least, least + 1, 2*least - 1, 2 * least, 2*least + 1,
		oneEnc - 2, oneEnc - 1, oneEnc, oneEnc + 1, oneEnc + 2, oneEnc + least/2, oneEnc + least, oneEnc - least,
		l.top - least - 1, l.top - least, l.top - 2, l.top - 1, l.top,
		l.top + 1, l.nan - 1, l.nan, l.nan + 1, l.with(true, 0) - 1,
	}
	// Numbers at the ends of the integers, and with halves.
	for _, exp := range []int{-2, -1, 1, 22, 23, 24, 30, 31, 32, 33, 51, 52, 53, 62, 63, 64, 65} {
		power := uint64(l.bias+exp) << l.frac
		magnitudes = append(magnitudes, power-1, power, power+1, power+least/2, power+least*3/4)
	}
	out := make([]uint64, 0, 2*len(magnitudes))
	for _, m := range magnitudes {
		out = append(out, m, l.with(true, m))
	}
	return out
}

// significand makes a trailing significand: random, or with few bits, or with long runs.
func (p patterns) significand(l layout) uint64 {
	mask := uint64(1)<<l.frac - 1
	v := p.Uint64() & mask
	switch p.IntN(6) {
	case 0:
		return v
	case 1: // few bits at its upper end: exact results
		return v &^ (mask >> p.UintN(l.frac+1))
	case 2: // a run of ones and some more
		return (mask << p.UintN(l.frac) & mask) ^ 1<<p.UintN(l.frac)&mask
	case 3:
		return mask >> p.UintN(l.frac+1)
	case 4:
		return 1 << p.UintN(l.frac)
	default:
		return (v >> p.UintN(l.frac)) & mask
	}
}

// withField makes a number with about that exponent field, kept within the format's.
func (p patterns) withField(l layout, field int) uint64 {
	field = min(max(field, 0), int(l.top>>l.frac))
	return l.with(p.IntN(2) == 0, uint64(field)<<l.frac|p.significand(l))
}

func (p patterns) encoding(l layout) uint64 {
	switch p.IntN(8) {
	case 0:
		s := p.specials[l.width]
		return s[p.IntN(len(s))]
	case 1:
		return p.Uint64() >> (64 - l.width)
	case 2: // at the lower end
		return p.withField(l, p.IntN(4))
	case 3: // at the upper end
		return p.withField(l, int(l.top>>l.frac)-p.IntN(4))
	case 4, 5: // about one, where integers are
		return p.withField(l, l.bias+p.IntN(140)-70)
	default:
		return p.withField(l, p.IntN(int(l.top>>l.frac)+1))
	}
}

// alone makes operands of roots and conversions: squares and what is next to them.
func (p patterns) alone(l layout, a uint64) uint64 {
	switch p.IntN(4) {
	case 0: // a square, exact or rounded
		root := p.significand(l) &^ (1<<(l.frac/2+1) - 1)
		square, _ := roughly(l, uint64(l.bias+p.IntN(60)-30)<<l.frac|root, uint64(l.bias+p.IntN(60)-30)<<l.frac|root, RNE)
		return square + uint64(p.IntN(3)) - 1
	case 1: // just where the narrower format ends
		if l.width == 64 {
			return p.withField(l, 1023-127+[]int{0, 255, -23, -24, 1, 254}[p.IntN(6)]+p.IntN(3)-1)&^(1<<28-1) + uint64(p.IntN(3)) - 1
		}
	}
	return a
}

// field is the exponent's field of an encoding.
func (l layout) field(enc uint64) int { return int(l.magnitude(enc) >> l.frac) }

// partner makes a second operand that has to do with the first.
func (p patterns) partner(l layout, a, b uint64) uint64 {
	field := l.field(a)
	switch p.IntN(8) {
	case 0: // a sum that cancels, or nearly
		return a ^ 1<<(l.width-1) ^ uint64(p.IntN(4))
	case 1: // exponents as far apart as significands are long
		return p.withField(l, field+p.IntN(2*int(l.frac)+8)-int(l.frac)-4)
	case 2: // a product or a quotient at the lower end
		return p.withField(l, l.bias-field+p.IntN(int(l.frac)+6))
	case 3:
		return p.withField(l, l.bias+field-p.IntN(int(l.frac)+6))
	case 4: // at the upper end
		return p.withField(l, 3*l.bias-field+p.IntN(5)-2)
	case 5:
		return p.withField(l, field-l.bias+p.IntN(5)-2)
	case 6: // a quotient that is exact, or nearly
		q, _ := roughly(l, b, p.withField(l, l.bias), RTZ)
		return q + uint64(p.IntN(2))&(1<<(l.width-1)-1)
	}
	return b
}

// triple makes operands of a fused multiply-add: c against the product.
func (p patterns) triple(l layout, v [3]uint64) [3]uint64 {
	v[1] = p.partner(l, v[0], v[1])
	about, _ := roughly(l, v[0], v[1], RNE)
	field := l.field(about)
	switch p.IntN(5) {
	case 0: // cancels, or nearly: the product's lower half decides
		v[2] = about ^ 1<<(l.width-1) ^ uint64(p.IntN(4))
	case 1: // as far apart as two significands are long
		v[2] = p.withField(l, field+p.IntN(4*int(l.frac)+16)-2*int(l.frac)-8)
	case 2: // the product tips a half
		v[2] = p.withField(l, field+p.IntN(2*int(l.frac)))&^(1<<p.UintN(l.frac)-1) | uint64(p.IntN(2))
	}
	return v
}

// integer makes one: random, of any length, at the ends, at halves of significands.
func (p patterns) integer(width uint) uint64 {
	v := p.Uint64() >> p.UintN(64)
	switch p.IntN(5) {
	case 0:
		v = 1<<p.UintN(64) + uint64(p.IntN(3)) - 1
	case 1:
		v = []uint64{0, 1, math.MaxInt32, 1 << 31, math.MaxUint32, math.MaxInt64, 1 << 63, math.MaxUint64}[p.IntN(8)]
	case 2: // few bits, far apart
		v = 1
		for range 3 {
			v |= 1 << p.UintN(64)
		}
		v <<= p.UintN(64)
	case 3:
		v = -v
	}
	return v << (64 - width) >> (64 - width)
}
