package main

import (
	"encoding/binary"
	"math/rand/v2"

	"steadfast/compute/riscv/asm"
)

// Registers that the body leaves alone: x2, x8 and x9 point into data, x3 to the
// strange pages, x4 counts the rounds that are left. x29 to x31 are the handlers', who
// put them back.
const (
	regData  = 2
	regOdd   = 3
	regCount = 4
	regNear  = 8
	regEdge  = 9
)

// slot is a piece of the body that runs from its first instruction to its last. Jumps go
// to the beginnings of slots, and only forward: so every round ends, whatever is in it.
type slot struct {
	code []byte
	at   uint32
	// link makes the slot's code, once all places are known; its length is that of code.
	link func(at uint32, slots []slot) []uint32
}

// maker makes a program from a seed.
type maker struct {
	r     *rand.Rand
	slots []slot
	// patches are slots of one plain instruction, which stores may replace.
	patches []int
}

// makeProgram returns the memory of the program of a seed: size slots, run rounds times.
func makeProgram(seed uint64, size, rounds int) *image {
	m := &maker{r: rand.New(rand.NewPCG(seed, 0x697361))}
	img := &image{bytes: make([]byte, patchable)}
	img.tables(m.r)
	img.start(m.r)
	img.put32(handlersM, handler(ramBase+handlersM, true)...)
	img.put32(handlersS, handler(alias+handlersS, false)...)
	for at := uint64(dataAt); at < oddAt+uint64(len(odd))<<12; at += 8 {
		img.put64(at, m.value())
	}
	for at := uint64(0); at < 0x1000; at += 8 {
		img.put64(poolAt+at, m.double())
		img.put64(poolAt+0x1000+at, 0xffffffff<<32|uint64(m.single()))
	}
	for n := range uint64(32) {
		img.put64(tableAt+8*n, m.value())
		img.put64(tableAt+256+8*n, m.value())
	}
	img.put64(tableAt+8*regData, ramBase+dataAt+0x1000)
	img.put64(tableAt+8*regNear, ramBase+dataAt+0x3000)
	img.put64(tableAt+8*regEdge, ramBase+oddAt-0x40) // up to 0x40 bytes before the first strange page
	img.put64(tableAt+8*regOdd, ramBase+oddAt)
	img.put64(tableAt+8*regCount, uint64(rounds))
	m.body(size)
	m.layout(img)
	return img
}

// body makes the slots: the random ones, then the end of a round. Later rounds run the same
// code with other registers, on pages whose A and D bits are set, and from warm caches.
func (m *maker) body(size int) {
	for range size {
		m.random()
	}
	m.add(asm.Addi(regCount, regCount, -1))
	m.linked(2, func(at uint32, slots []slot) []uint32 {
		return []uint32{asm.B(0, regCount, 0, 8), asm.Jal(0, -int32(at+4-bodyAt))}
	})
	m.add(asm.Ecall, asm.Jal(0, -4))
}

// layout places the slots and writes them. It goes over them twice, since a jump forward
// needs the place of what comes after it.
func (m *maker) layout(img *image) {
	at := uint32(bodyAt)
	for i := range m.slots {
		m.slots[i].at = at
		at += uint32(len(m.slots[i].code))
	}
	for _, s := range m.slots {
		code := s.code
		if s.link != nil {
			code = encode(s.link(s.at, m.slots)...)
		}
		copy(img.bytes[s.at:], code)
	}
}

// encode is words as bytes; those of compressed instructions are two.
func encode(words ...uint32) []byte {
	var b []byte
	for _, w := range words {
		if w&3 == 3 {
			b = binary.LittleEndian.AppendUint32(b, w)
		} else {
			b = binary.LittleEndian.AppendUint16(b, uint16(w))
		}
	}
	return b
}

func (m *maker) add(words ...uint32) { m.slots = append(m.slots, slot{code: encode(words...)}) }

func (m *maker) linked(words int, link func(at uint32, slots []slot) []uint32) {
	m.slots = append(m.slots, slot{code: make([]byte, 4*words), link: link})
}

// value is a number of the kinds that find mistakes: small, all ones, powers of two and
// their neighbours, floating-point numbers of all classes, boxed and not, and random.
func (m *maker) value() uint64 {
	r := m.r
	switch r.IntN(12) {
	case 0:
		return uint64(r.IntN(5)) - 2
	case 1:
		return 1<<r.IntN(64) + uint64(r.IntN(3)) - 1
	case 2:
		return -(1 << r.IntN(64)) + uint64(r.IntN(3)) - 1
	case 3:
		return uint64(r.Uint32())
	case 4, 5, 6:
		return 0xffffffff<<32 | uint64(m.single())
	case 7, 8, 9:
		return m.double()
	case 10:
		return uint64(m.single())<<32 | uint64(m.single())
	}
	return r.Uint64()
}

// single and double choose exponents near each other, so that sums cancel and round.
func (m *maker) single() uint32 {
	r := m.r
	if r.IntN(2) == 0 {
		return uint32(r.IntN(2))<<31 | uint32(126+r.IntN(3))<<23 | r.Uint32()>>9
	}
	exp := []uint32{0, 1, 126, 127, 128, 129, 150, 254, 255, uint32(r.IntN(256)), uint32(120 + r.IntN(16)), 158, 190}[r.IntN(13)]
	frac := []uint32{0, 1, 1 << 22, 1<<23 - 1, r.Uint32(), r.Uint32(), 1 << r.IntN(23), -(1 << r.IntN(23))}[r.IntN(8)]
	return uint32(r.IntN(2))<<31 | exp<<23 | frac&(1<<23-1)
}

func (m *maker) double() uint64 {
	r := m.r
	if r.IntN(2) == 0 {
		return uint64(r.IntN(2))<<63 | uint64(1022+r.IntN(3))<<52 | r.Uint64()>>12
	}
	exp := []uint64{0, 1, 1022, 1023, 1024, 1025, 1075, 2046, 2047, uint64(r.IntN(2048)), uint64(1010 + r.IntN(30)), 897, 896, 1086}[r.IntN(14)]
	frac := []uint64{0, 1, 1 << 51, 1<<52 - 1, r.Uint64(), r.Uint64(), 1 << r.IntN(52), -(1 << r.IntN(52)), 1 << 28, 3 << 28}[r.IntN(10)]
	return uint64(r.IntN(2))<<63 | exp<<52 | frac&(1<<52-1)
}

// from is a register to read, to one to write.
func (m *maker) from() uint32 { return uint32(m.r.IntN(32)) }

func (m *maker) to() uint32 {
	for {
		switch n := uint32(m.r.IntN(29)); n {
		case regData, regOdd, regCount, regNear, regEdge:
		default:
			return n
		}
	}
}

// one picks one of some.
func one[T any](m *maker, of ...T) T { return of[m.r.IntN(len(of))] }
