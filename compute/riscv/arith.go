package riscv

import "math/bits"

// Integer arithmetic that Go has no operator for. RISC-V unprivileged manual, "M"
// Extension: a division by zero gives all ones and leaves the dividend as its remainder,
// the overflow of a signed one gives the dividend, remainder 0. Zbb for orcb.

// ones is the quotient of a division by zero.
const ones = ^uint64(0)

func truth(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func sext32(v uint64) uint64 { return uint64(int64(int32(v))) }

func mulhu(a, b uint64) uint64 {
	hi, _ := bits.Mul64(a, b)
	return hi
}

func mulh(a, b uint64) uint64 {
	return mulhu(a, b) - uint64(int64(a)>>63)&b - uint64(int64(b)>>63)&a
}

func mulhsu(a, b uint64) uint64 { return mulhu(a, b) - uint64(int64(a)>>63)&b }

func div(a, b uint64) uint64 {
	if b == 0 {
		return ones
	}
	// Go's own rule for the overflow is the manual's.
	return uint64(int64(a) / int64(b))
}

func divu(a, b uint64) uint64 {
	if b == 0 {
		return ones
	}
	return a / b
}

func rem(a, b uint64) uint64 {
	if b == 0 {
		return a
	}
	return uint64(int64(a) % int64(b))
}

func remu(a, b uint64) uint64 {
	if b == 0 {
		return a
	}
	return a % b
}

func divw(a, b uint64) uint64 {
	if int32(b) == 0 {
		return ones
	}
	return uint64(int64(int32(a) / int32(b)))
}

func divuw(a, b uint64) uint64 {
	if uint32(b) == 0 {
		return ones
	}
	return sext32(uint64(uint32(a) / uint32(b)))
}

func remw(a, b uint64) uint64 {
	if int32(b) == 0 {
		return sext32(a)
	}
	return uint64(int64(int32(a) % int32(b)))
}

func remuw(a, b uint64) uint64 {
	if uint32(b) == 0 {
		return sext32(a)
	}
	return sext32(uint64(uint32(a) % uint32(b)))
}

// orcb makes each byte that is not zero all ones.
func orcb(v uint64) uint64 {
	const low = 0x7f7f7f7f7f7f7f7f
	some := ((v&low + low) | v) &^ low >> 7
	return some * 0xff
}

// ones64 counts ones. It is a call of its own since the compiler would have the switch
// of execute look for the host's instruction each time round.
//
//go:noinline
func ones64(v uint64) uint64 { return uint64(bits.OnesCount64(v)) }
