package softfloat

import (
	"fmt"
	"math/big"
	"testing"
)

// modes are all rounding modes, by their names in the manual.
var modes = map[Rounding]string{RNE: "RNE", RTZ: "RTZ", RDN: "RDN", RUP: "RUP", RMM: "RMM"}

// operation is one of the package's for the tests: what it is, and what it should be.
// Operands and results are encodings or integers in the low bits of a uint64.
type operation struct {
	name   string // the exported function's
	width  uint   // of the operands
	arity  int
	ints   bool // the operand is an integer
	modal  bool // it takes a rounding mode
	run    func(v [3]uint64, rm Rounding) (uint64, Flags)
	plain  func(v [3]uint64, rm Rounding) (uint64, Flags) // without the short way, if it has one
	oracle func(v [3]uint64, rm Rounding) (uint64, Flags)
}

// check compares one result with what it should be.
func (o *operation) check(t testing.TB, v [3]uint64, rm Rounding, want uint64, wantFlags Flags) {
	t.Helper()
	if got, flags := o.run(v, rm); got != want || flags != wantFlags {
		t.Fatalf("%s(%#x) %s = %#x, flags %#x; want %#x, flags %#x", o.name, v[:o.arity], modes[rm], got, flags, want, wantFlags)
	}
}

func (o *operation) checkOracle(t testing.TB, v [3]uint64, rm Rounding) {
	t.Helper()
	want, flags := o.oracle(v, rm)
	o.check(t, v, rm, want, flags)
}

// modesOf are the modes that o is to be tried in.
func (o *operation) modesOf() []Rounding {
	if o.modal {
		return []Rounding{RNE, RTZ, RDN, RUP, RMM}
	}
	return []Rounding{RNE}
}

// operations is every exported operation.
func operations() []operation {
	ops := append(arithmetic64(), arithmetic32()...)
	ops = append(ops, quiet64()...)
	ops = append(ops, quiet32()...)
	ops = append(ops, toIntegers()...)
	return append(ops, fromIntegers()...)
}

// named returns the operation of that name.
func named(t testing.TB, name string) *operation {
	t.Helper()
	for _, o := range operations() {
		if o.name == name {
			return &o
		}
	}
	t.Fatalf("no operation %q", name)
	return nil
}

type (
	general = func(v [3]uint64, rm Rounding) (uint64, Flags)
	binary2 = func(a, b uint64, rm Rounding) (uint64, Flags)
)

func two(f binary2) general {
	return func(v [3]uint64, rm Rounding) (uint64, Flags) { return f(v[0], v[1], rm) }
}

func two32(f func(a, b uint32, rm Rounding) (uint32, Flags)) general {
	return func(v [3]uint64, rm Rounding) (uint64, Flags) {
		out, flags := f(uint32(v[0]), uint32(v[1]), rm)
		return uint64(out), flags
	}
}

func one(f func(a uint64, rm Rounding) (uint64, Flags)) general {
	return func(v [3]uint64, rm Rounding) (uint64, Flags) { return f(v[0], rm) }
}

func one32(f func(a uint32, rm Rounding) (uint32, Flags)) general {
	return func(v [3]uint64, rm Rounding) (uint64, Flags) {
		out, flags := f(uint32(v[0]), rm)
		return uint64(out), flags
	}
}

func three(f func(a, b, c uint64, rm Rounding) (uint64, Flags)) general {
	return func(v [3]uint64, rm Rounding) (uint64, Flags) { return f(v[0], v[1], v[2], rm) }
}

func three32(f func(a, b, c uint32, rm Rounding) (uint32, Flags)) general {
	return func(v [3]uint64, rm Rounding) (uint64, Flags) {
		out, flags := f(uint32(v[0]), uint32(v[1]), uint32(v[2]), rm)
		return uint64(out), flags
	}
}

// minus is subtraction by an addition.
func minus(add binary2, sign uint64) general {
	return func(v [3]uint64, rm Rounding) (uint64, Flags) { return add(v[0], v[1]^sign, rm) }
}

func arithmetic64() []operation {
	f, l := &binary64, double
	return []operation{
		{"Add64", 64, 2, false, true, two(Add64), two(f.add), two(l.add)},
		{"Sub64", 64, 2, false, true, two(Sub64), minus(f.add, 1<<63), minus(l.add, 1<<63)},
		{"Mul64", 64, 2, false, true, two(Mul64), two(f.mul), two(l.mul)},
		{"Div64", 64, 2, false, true, two(Div64), two(f.div), two(l.div)},
		{"Sqrt64", 64, 1, false, true, one(Sqrt64), one(f.sqrt), one(l.sqrt)},
		{"FMA64", 64, 3, false, true, three(FMA64), three(f.fma), three(l.fma)},
		{
			"F64ToF32", 64, 1, false, true,
			func(v [3]uint64, rm Rounding) (uint64, Flags) {
				out, flags := F64ToF32(v[0], rm)
				return uint64(out), flags
			},
			func(v [3]uint64, rm Rounding) (uint64, Flags) { return f.toFormat(&binary32, v[0], rm) },
			func(v [3]uint64, rm Rounding) (uint64, Flags) { return single.convert(double, v[0], rm) },
		},
	}
}

func arithmetic32() []operation {
	f, l := &binary32, single
	return []operation{
		{"Add32", 32, 2, false, true, two32(Add32), two(f.add), two(l.add)},
		{"Sub32", 32, 2, false, true, two32(Sub32), minus(f.add, 1<<31), minus(l.add, 1<<31)},
		{"Mul32", 32, 2, false, true, two32(Mul32), two(f.mul), two(l.mul)},
		{"Div32", 32, 2, false, true, two32(Div32), two(f.div), two(l.div)},
		{"Sqrt32", 32, 1, false, true, one32(Sqrt32), one(f.sqrt), one(l.sqrt)},
		{"FMA32", 32, 3, false, true, three32(FMA32), three(f.fma), three(l.fma)},
		{
			"F32ToF64", 32, 1, false, false,
			func(v [3]uint64, _ Rounding) (uint64, Flags) { return F32ToF64(uint32(v[0])) },
			func(v [3]uint64, rm Rounding) (uint64, Flags) { return f.toFormat(&binary64, v[0], rm) },
			func(v [3]uint64, rm Rounding) (uint64, Flags) { return double.convert(single, v[0], rm) },
		},
	}
}

// The three relations, as the oracle asks for them.
func equals(order int) bool   { return order == 0 }
func isLess(order int) bool   { return order < 0 }
func isAtMost(order int) bool { return order <= 0 }
func asBit(holds bool) uint64 { return map[bool]uint64{true: 1}[holds] }

func relations(l layout, suffix string, eq, lt, le func(a, b uint64) (bool, Flags)) []operation {
	make2 := func(name string, got func(a, b uint64) (bool, Flags), quietly bool, holds func(int) bool) operation {
		return operation{
			name: name + suffix, width: l.width, arity: 2,
			run: func(v [3]uint64, _ Rounding) (uint64, Flags) {
				is, flags := got(v[0], v[1])
				return asBit(is), flags
			},
			oracle: func(v [3]uint64, _ Rounding) (uint64, Flags) { return l.relation(v[0], v[1], quietly, holds) },
		}
	}
	return []operation{make2("Eq", eq, true, equals), make2("Lt", lt, false, isLess), make2("Le", le, false, isAtMost)}
}

// choices are minimum, maximum and class.
func choices(l layout, suffix string, minimum, maximum func(a, b uint64) (uint64, Flags), class func(uint64) uint64) []operation {
	return []operation{
		{
			name: "Min" + suffix, width: l.width, arity: 2,
			run:    func(v [3]uint64, _ Rounding) (uint64, Flags) { return minimum(v[0], v[1]) },
			oracle: func(v [3]uint64, _ Rounding) (uint64, Flags) { return l.choose(v[0], v[1], -1) },
		},
		{
			name: "Max" + suffix, width: l.width, arity: 2,
			run:    func(v [3]uint64, _ Rounding) (uint64, Flags) { return maximum(v[0], v[1]) },
			oracle: func(v [3]uint64, _ Rounding) (uint64, Flags) { return l.choose(v[0], v[1], 1) },
		},
		{
			name: "Class" + suffix, width: l.width, arity: 1,
			run:    func(v [3]uint64, _ Rounding) (uint64, Flags) { return class(v[0]), 0 },
			oracle: func(v [3]uint64, _ Rounding) (uint64, Flags) { return l.classify(v[0]), 0 },
		},
	}
}

func quiet64() []operation {
	return append(relations(double, "64", Eq64, Lt64, Le64), choices(double, "64", Min64, Max64, Class64)...)
}

func quiet32() []operation {
	wideBool := func(f func(a, b uint32) (bool, Flags)) func(a, b uint64) (bool, Flags) {
		return func(a, b uint64) (bool, Flags) { return f(uint32(a), uint32(b)) }
	}
	wideOut := func(f func(a, b uint32) (uint32, Flags)) func(a, b uint64) (uint64, Flags) {
		return func(a, b uint64) (uint64, Flags) {
			out, flags := f(uint32(a), uint32(b))
			return uint64(out), flags
		}
	}
	class := func(a uint64) uint64 { return Class32(uint32(a)) }
	return append(relations(single, "32", wideBool(Eq32), wideBool(Lt32), wideBool(Le32)),
		choices(single, "32", wideOut(Min32), wideOut(Max32), class)...)
}

func toIntegers() []operation {
	narrow := func(f func(uint32, Rounding) (uint64, Flags)) func(uint64, Rounding) (uint64, Flags) {
		return func(a uint64, rm Rounding) (uint64, Flags) { return f(uint32(a), rm) }
	}
	var ops []operation
	for _, row := range []struct {
		l      layout
		signed bool
		width  uint
		run    func(uint64, Rounding) (uint64, Flags)
	}{
		{double, true, 32, F64ToI32},
		{double, false, 32, F64ToU32},
		{double, true, 64, F64ToI64},
		{double, false, 64, F64ToU64},
		{single, true, 32, narrow(F32ToI32)},
		{single, false, 32, narrow(F32ToU32)},
		{single, true, 64, narrow(F32ToI64)},
		{single, false, 64, narrow(F32ToU64)},
	} {
		letter := map[bool]string{true: "I", false: "U"}[row.signed]
		ops = append(ops, operation{
			name: fmt.Sprintf("F%dTo%s%d", row.l.width, letter, row.width), width: row.l.width, arity: 1, modal: true,
			run: one(row.run),
			oracle: func(v [3]uint64, rm Rounding) (uint64, Flags) {
				return row.l.toInt(v[0], row.signed, row.width, rm)
			},
		})
	}
	return ops
}

func fromIntegers() []operation {
	out32 := func(v uint32, flags Flags) (uint64, Flags) { return uint64(v), flags }
	signed := func(v uint64) *big.Int { return big.NewInt(int64(v)) }
	unsigned := func(v uint64) *big.Int { return new(big.Int).SetUint64(v) }
	signed32 := func(v uint64) *big.Int { return big.NewInt(int64(int32(v))) }
	var ops []operation
	for _, row := range []struct {
		name  string
		l     layout
		width uint
		value func(uint64) *big.Int
		run   func(uint64, Rounding) (uint64, Flags)
	}{
		{"I32ToF64", double, 32, signed32, func(v uint64, rm Rounding) (uint64, Flags) { return I32ToF64(int32(v), rm) }},
		{"U32ToF64", double, 32, unsigned, func(v uint64, rm Rounding) (uint64, Flags) { return U32ToF64(uint32(v), rm) }},
		{"I64ToF64", double, 64, signed, func(v uint64, rm Rounding) (uint64, Flags) { return I64ToF64(int64(v), rm) }},
		{"U64ToF64", double, 64, unsigned, U64ToF64},
		{"I32ToF32", single, 32, signed32, func(v uint64, rm Rounding) (uint64, Flags) { return out32(I32ToF32(int32(v), rm)) }},
		{"U32ToF32", single, 32, unsigned, func(v uint64, rm Rounding) (uint64, Flags) { return out32(U32ToF32(uint32(v), rm)) }},
		{"I64ToF32", single, 64, signed, func(v uint64, rm Rounding) (uint64, Flags) { return out32(I64ToF32(int64(v), rm)) }},
		{"U64ToF32", single, 64, unsigned, func(v uint64, rm Rounding) (uint64, Flags) { return out32(U64ToF32(v, rm)) }},
	} {
		ops = append(ops, operation{
			name: row.name, width: row.width, arity: 1, ints: true, modal: true,
			run: one(row.run),
			oracle: func(v [3]uint64, rm Rounding) (uint64, Flags) {
				return row.l.fromInt(row.value(v[0]), rm)
			},
		})
	}
	return ops
}
