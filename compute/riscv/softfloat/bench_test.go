package softfloat

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The benchmarks run each operation over the same 1,024 numbers between 1/64 and 64, so
// that no branch is learned by heart. RNE has the short way, RUP the plain one.

const benchCount = 1024

func benchOperands64() []uint64 {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]uint64, benchCount)
	for i := range out {
		out[i] = math.Float64bits((r.Float64() + 0.5) * math.Exp2(float64(r.IntN(12)-6)))
	}
	return out
}

func benchOperands32() []uint32 {
	out := make([]uint32, benchCount)
	for i, v := range benchOperands64() {
		out[i] = math.Float32bits(float32(math.Float64frombits(v)))
	}
	return out
}

func bench64(b *testing.B, op func(a, b, c uint64, rm Rounding) (uint64, Flags)) {
	v := benchOperands64()
	for name, rm := range map[string]Rounding{"RNE": RNE, "RUP": RUP} {
		b.Run(name, func(b *testing.B) {
			var sink uint64
			for i := 0; b.Loop(); i++ {
				r, f := op(v[i%benchCount], v[(i+7)%benchCount], v[(i+13)%benchCount], rm)
				sink += r + uint64(f)
			}
			if sink == 1 {
				b.Log(sink)
			}
		})
	}
}

func bench32(b *testing.B, op func(a, b, c uint32, rm Rounding) (uint32, Flags)) {
	v := benchOperands32()
	for name, rm := range map[string]Rounding{"RNE": RNE, "RUP": RUP} {
		b.Run(name, func(b *testing.B) {
			var sink uint32
			for i := 0; b.Loop(); i++ {
				r, f := op(v[i%benchCount], v[(i+7)%benchCount], v[(i+13)%benchCount], rm)
				sink += r + uint32(f)
			}
			if sink == 1 {
				b.Log(sink)
			}
		})
	}
}

func BenchmarkNothing64(b *testing.B) {
	bench64(b, func(a, _, _ uint64, _ Rounding) (uint64, Flags) { return a, 0 })
}

func BenchmarkAdd64(b *testing.B) {
	bench64(b, func(x, y, _ uint64, rm Rounding) (uint64, Flags) { return Add64(x, y, rm) })
}

func BenchmarkSub64(b *testing.B) {
	bench64(b, func(x, y, _ uint64, rm Rounding) (uint64, Flags) { return Sub64(x, y, rm) })
}

func BenchmarkMul64(b *testing.B) {
	bench64(b, func(x, y, _ uint64, rm Rounding) (uint64, Flags) { return Mul64(x, y, rm) })
}

func BenchmarkDiv64(b *testing.B) {
	bench64(b, func(x, y, _ uint64, rm Rounding) (uint64, Flags) { return Div64(x, y, rm) })
}

func BenchmarkSqrt64(b *testing.B) {
	bench64(b, func(x, _, _ uint64, rm Rounding) (uint64, Flags) { return Sqrt64(x, rm) })
}

func BenchmarkFMA64(b *testing.B) { bench64(b, FMA64) }

func BenchmarkMax64(b *testing.B) {
	bench64(b, func(x, y, _ uint64, _ Rounding) (uint64, Flags) { return Max64(x, y) })
}

func BenchmarkLt64(b *testing.B) {
	bench64(b, func(x, y, _ uint64, _ Rounding) (uint64, Flags) {
		less, flags := Lt64(x, y)
		if less {
			return x, flags
		}
		return y, flags
	})
}

func BenchmarkF64ToI64(b *testing.B) {
	bench64(b, func(x, _, _ uint64, rm Rounding) (uint64, Flags) { return F64ToI64(x, rm) })
}

func BenchmarkI64ToF64(b *testing.B) {
	bench64(b, func(x, _, _ uint64, rm Rounding) (uint64, Flags) { return I64ToF64(int64(x), rm) })
}

func BenchmarkF64ToF32(b *testing.B) {
	bench64(b, func(x, _, _ uint64, rm Rounding) (uint64, Flags) {
		r, f := F64ToF32(x, rm)
		return uint64(r), f
	})
}

func BenchmarkF32ToF64(b *testing.B) {
	bench32(b, func(x, _, _ uint32, _ Rounding) (uint32, Flags) {
		r, f := F32ToF64(x)
		return uint32(r), f
	})
}

func BenchmarkAdd32(b *testing.B) {
	bench32(b, func(x, y, _ uint32, rm Rounding) (uint32, Flags) { return Add32(x, y, rm) })
}

func BenchmarkMul32(b *testing.B) {
	bench32(b, func(x, y, _ uint32, rm Rounding) (uint32, Flags) { return Mul32(x, y, rm) })
}

func BenchmarkDiv32(b *testing.B) {
	bench32(b, func(x, y, _ uint32, rm Rounding) (uint32, Flags) { return Div32(x, y, rm) })
}

func BenchmarkSqrt32(b *testing.B) {
	bench32(b, func(x, _, _ uint32, rm Rounding) (uint32, Flags) { return Sqrt32(x, rm) })
}

func BenchmarkFMA32(b *testing.B) { bench32(b, FMA32) }
