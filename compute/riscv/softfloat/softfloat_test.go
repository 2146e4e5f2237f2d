package softfloat

import (
	"flag"
	"math"
	"math/rand/v2"
	"testing"
)

// scale multiplies how much the random tests do; -race and short runs do with 1.
var scale = flag.Int("scale", 1, "how often the random tests of softfloat do their cases")

// Every operation, in every mode, with all flags, against the oracle: over
// operands made for it.
func TestOracle(t *testing.T) {
	for _, o := range operations() {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			p := newPatterns(uint64(len(o.name)))
			for range *scale * 2000 / o.arity {
				v := p.operands(&o)
				for _, rm := range o.modesOf() {
					o.checkOracle(t, v, rm)
				}
			}
		})
	}
}

// The special operands with each other.
func TestOracleSpecials(t *testing.T) {
	for _, o := range operations() {
		if o.ints {
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			l := double
			if o.width == 32 {
				l = single
			}
			all := specials(l)
			r := rand.New(rand.NewPCG(7, 7))
			for i, a := range all {
				if o.arity == 1 {
					all = all[:1]
				}
				for j, b := range all {
					if o.modal && *scale == 1 && (i+j)%5 != 0 { // all of them take a minute
						continue
					}
					modes := o.modesOf()
					rm := modes[r.IntN(len(modes))]
					o.checkOracle(t, [3]uint64{a, b, all[r.IntN(len(all))]}, rm)
				}
			}
		})
	}
}

// The short way and the plain one agree.
func TestShortWay(t *testing.T) {
	for _, o := range operations() {
		if o.plain == nil {
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			p := newPatterns(uint64(*scale))
			for i := range *scale * 100_000 {
				v := p.quick(&o)
				if i%2 == 0 {
					v = p.operands(&o)
				}
				want, flags := o.plain(v, RNE)
				o.check(t, v, RNE, want, flags)
			}
		})
	}
}

// quick makes operands without asking the oracle: encodings whose exponents are near to
// each other, and some at the edges, with significands of all kinds.
func (p patterns) quick(o *operation) [3]uint64 {
	l := double
	if o.width == 32 {
		l = single
	}
	center := l.bias
	if p.IntN(4) == 0 {
		center = p.IntN(2 * l.bias)
	}
	spread := 4 << p.UintN(6)
	var v [3]uint64
	for i := range v {
		v[i] = p.withField(l, center+p.IntN(spread)-spread/2)
	}
	return v
}

// The short way does answer the usual operands: else TestShortWay would compare nothing.
func TestShortWayAnswers(t *testing.T) {
	one, two, three := math.Float64bits(1), math.Float64bits(2), math.Float64bits(3)
	one32, two32, three32 := math.Float32bits(1), math.Float32bits(2), math.Float32bits(3)
	second := func(_ any, _ Flags, ok bool) bool { return ok }
	for name, ok := range map[string]bool{
		"Add64":    second(box(fastAdd64(one, three))),
		"Mul64":    second(box(fastMul64(one, three))),
		"Div64":    second(box(fastDiv64(one, three))),
		"Sqrt64":   second(box(fastSqrt64(three))),
		"FMA64":    second(box(fastFMA64(one, two, three))),
		"Add32":    second(box(fastAdd32(one32, three32))),
		"Mul32":    second(box(fastMul32(one32, three32))),
		"Div32":    second(box(fastDiv32(one32, three32))),
		"Sqrt32":   second(box(fastSqrt32(three32))),
		"FMA32":    second(box(fastFMA32(one32, two32, three32))),
		"F64ToF32": second(box(fast64To32(three))),
	} {
		if !ok {
			t.Errorf("the short way of %s declines 1, 2 and 3", name)
		}
	}
}

func box[T any](v T, flags Flags, ok bool) (any, Flags, bool) { return v, flags, ok }

// The host's own arithmetic has the same values, NaNs aside.
func TestHost(t *testing.T) {
	f64, f32 := math.Float64frombits, math.Float32frombits
	host := map[string]func(v [3]uint64) float64{
		"Add64":  func(v [3]uint64) float64 { return f64(v[0]) + f64(v[1]) },
		"Sub64":  func(v [3]uint64) float64 { return f64(v[0]) - f64(v[1]) },
		"Mul64":  func(v [3]uint64) float64 { return f64(v[0]) * f64(v[1]) },
		"Div64":  func(v [3]uint64) float64 { return f64(v[0]) / f64(v[1]) },
		"Sqrt64": func(v [3]uint64) float64 { return math.Sqrt(f64(v[0])) },
		"FMA64":  func(v [3]uint64) float64 { return math.FMA(f64(v[0]), f64(v[1]), f64(v[2])) },
	}
	host32 := map[string]func(a, b float32) float32{
		"Add32":  func(a, b float32) float32 { return a + b },
		"Sub32":  func(a, b float32) float32 { return a - b },
		"Mul32":  func(a, b float32) float32 { return a * b },
		"Div32":  func(a, b float32) float32 { return a / b },
		"Sqrt32": func(a, _ float32) float32 { return float32(math.Sqrt(float64(a))) },
	}
	for name, f := range host {
		o, p := named(t, name), newPatterns(3)
		for range *scale * 20_000 {
			v := p.operands(o)
			want := f(v)
			if got, _ := o.plain(v, RNE); got != math.Float64bits(want) && want == want {
				t.Fatalf("%s(%#x) = %#x, the host has %#x", name, v, got, math.Float64bits(want))
			}
		}
	}
	for name, f := range host32 {
		o, p := named(t, name), newPatterns(4)
		for range *scale * 20_000 {
			v := p.operands(o)
			want := f(f32(uint32(v[0])), f32(uint32(v[1])))
			if got, _ := o.plain(v, RNE); uint32(got) != math.Float32bits(want) && want == want {
				t.Fatalf("%s(%#x) = %#x, the host has %#x", name, v, got, math.Float32bits(want))
			}
		}
	}
}

// What the RISC-V manual says in words.
func TestManual(t *testing.T) {
	const (
		inf64, inf32   = 0x7ff0_0000_0000_0000, 0x7f80_0000
		qNaN64, qNaN32 = 0x7ff8_0000_0000_0000, 0x7fc0_0000
		sNaN64, sNaN32 = 0x7ff0_0000_0000_0001, 0x7f80_0001
		neg64, neg32   = 1 << 63, 1 << 31
		least64        = 0x0010_0000_0000_0000
		one64, one32   = 0x3ff0_0000_0000_0000, 0x3f80_0000
		all            = ^uint64(0)
		far1, far2     = 0x3ffa_858d_deed_3170, 0x3ff3_4e11_2a14_a961
	)
	for _, row := range []struct {
		op    string
		v     [3]uint64
		rm    Rounding
		want  uint64
		flags Flags
	}{
		// The canonical NaN comes out, whatever payload and sign went in.
		{"Add64", [3]uint64{all, one64}, RNE, qNaN64, 0},
		{"Add32", [3]uint64{0xffff_ffff, one32}, RNE, qNaN32, 0},
		{"Mul64", [3]uint64{sNaN64 | neg64, one64}, RNE, qNaN64, NV},
		{"F32ToF64", [3]uint64{sNaN32}, RNE, qNaN64, NV},
		{"F32ToF64", [3]uint64{0xffff_ffff}, RNE, qNaN64, 0},
		{"F64ToF32", [3]uint64{all}, RNE, qNaN32, 0},
		// FMIN and FMAX.
		{"Min64", [3]uint64{0, neg64}, RNE, neg64, 0},
		{"Max64", [3]uint64{neg64, 0}, RNE, 0, 0},
		{"Min64", [3]uint64{qNaN64, one64}, RNE, one64, 0},
		{"Min64", [3]uint64{one64, sNaN64}, RNE, one64, NV},
		{"Max32", [3]uint64{0xffff_ffff, 0xffff_ffff}, RNE, qNaN32, 0},
		{"Max32", [3]uint64{sNaN32, qNaN32}, RNE, qNaN32, NV},
		// FEQ is quiet, FLT and FLE are not.
		{"Eq64", [3]uint64{qNaN64, qNaN64}, RNE, 0, 0},
		{"Eq64", [3]uint64{sNaN64, one64}, RNE, 0, NV},
		{"Eq64", [3]uint64{0, neg64}, RNE, 1, 0},
		{"Eq32", [3]uint64{neg32, 0}, RNE, 1, 0},
		{"Lt64", [3]uint64{qNaN64, one64}, RNE, 0, NV},
		{"Le32", [3]uint64{one32, qNaN32}, RNE, 0, NV},
		{"Le64", [3]uint64{0, neg64}, RNE, 1, 0},
		{"Lt64", [3]uint64{neg64, 0}, RNE, 0, 0},
		// FMADD: infinity times zero is invalid beside a quiet NaN, too.
		{"FMA64", [3]uint64{inf64, 0, qNaN64}, RNE, qNaN64, NV},
		{"FMA32", [3]uint64{neg32, inf32, qNaN32}, RNE, qNaN32, NV},
		// A product of 2 + 2^-74 or so tips a half: of its 106 bits the one that counts is 74
		// places below the first.
		{"FMA64", [3]uint64{far1, far2, 0x4350_0000_0000_0000}, RNE, 0x4350_0000_0000_0001, NX},
		{"FMA64", [3]uint64{far1, far2, 0xc350_0000_0000_0002}, RNE, 0xc350_0000_0000_0001, NX},
		// FCVT: the table of the limits, and sign extension.
		{"F64ToI32", [3]uint64{qNaN64}, RTZ, 1<<31 - 1, NV},
		{"F64ToU32", [3]uint64{qNaN64 | neg64}, RTZ, all, NV},
		{"F64ToI32", [3]uint64{inf64 | neg64}, RTZ, 0xffff_ffff_8000_0000, NV},
		{"F64ToU64", [3]uint64{one64 | neg64}, RTZ, 0, NV},
		{"F64ToI64", [3]uint64{inf64}, RTZ, 1<<63 - 1, NV},
		{"F32ToU32", [3]uint64{0x4f00_0000}, RTZ, 0xffff_ffff_8000_0000, 0}, // 2^31
		{"F64ToU32", [3]uint64{0xbfe0_0000_0000_0000}, RTZ, 0, NX},          // -0.5
		{"F64ToU32", [3]uint64{0xbfe8_0000_0000_0000}, RNE, 0, NV},          // -0.75
		// Tininess after rounding. Half a last place below the least normal number there are
		// 53 bits for it, if not for the exponent: tiny, and rounded to a normal number.
		{"Mul64", [3]uint64{one64 + least64 - 1, least64 / 2}, RNE, least64, NX | UF},
		// Nearer still 53 bits round to the least normal number itself: not tiny.
		{"Mul64", [3]uint64{least64 - 1, one64 + 1}, RNE, least64, NX},
		{"Mul64", [3]uint64{least64 - 1, one64 + 1}, RTZ, least64 - 1, NX | UF},
		// Division.
		{"Div64", [3]uint64{one64 | neg64, 0}, RNE, inf64 | neg64, DZ},
		{"Div64", [3]uint64{0, 0}, RNE, qNaN64, NV},
		{"Sqrt64", [3]uint64{neg64}, RNE, neg64, 0},
		{"Sqrt64", [3]uint64{one64 | neg64}, RNE, qNaN64, NV},
		// Zeros with signs.
		{"Sub64", [3]uint64{one64, one64}, RDN, neg64, 0},
		{"Sub64", [3]uint64{one64, one64}, RUP, 0, 0},
		{"Class64", [3]uint64{inf64 | neg64}, RNE, 1 << 0, 0},
		{"Class64", [3]uint64{neg64}, RNE, 1 << 3, 0},
		{"Class64", [3]uint64{1}, RNE, 1 << 5, 0},
		{"Class32", [3]uint64{sNaN32 | neg32}, RNE, 1 << 8, 0},
		{"Class32", [3]uint64{qNaN32}, RNE, 1 << 9, 0},
	} {
		o := named(t, row.op)
		if got, flags := o.run(row.v, row.rm); got != row.want || flags != row.flags {
			t.Errorf("%s(%#x) %s = %#x, flags %#x; want %#x, flags %#x",
				row.op, row.v[:o.arity], modes[row.rm], got, flags, row.want, row.flags)
		}
	}
}

// Any bits in any mode: no panic, and what the oracle says.
func FuzzOracle(f *testing.F) {
	ops := operations()
	for i := range ops {
		f.Add(uint8(i), uint8(i), uint64(1)<<52, uint64(1), uint64(math.MaxUint64))
	}
	f.Fuzz(func(t *testing.T, which, mode uint8, a, b, c uint64) {
		o := &ops[int(which)%len(ops)]
		mask := ^uint64(0) >> (64 - o.width)
		modes := o.modesOf()
		o.checkOracle(t, [3]uint64{a & mask, b & mask, c & mask}, modes[int(mode)%len(modes)])
	})
}

// The short way against the plain one.
func FuzzShortWay(f *testing.F) {
	var ops []operation
	for _, o := range operations() {
		if o.plain != nil {
			ops = append(ops, o)
		}
	}
	for i := range ops {
		f.Add(uint8(i), math.Float64bits(1), math.Float64bits(3), math.Float64bits(0.1))
	}
	f.Fuzz(func(t *testing.T, which uint8, a, b, c uint64) {
		o := &ops[int(which)%len(ops)]
		mask := ^uint64(0) >> (64 - o.width)
		v := [3]uint64{a & mask, b & mask, c & mask}
		want, flags := o.plain(v, RNE)
		o.check(t, v, RNE, want, flags)
	})
}
