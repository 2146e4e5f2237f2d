package main

import (
	"encoding/binary"
	"math/rand/v2"

	"steadfast/compute/riscv/asm"
)

// Where things are. The code runs in M and U mode at its physical address and in S mode
// at an alias of it, since S mode executes no page of U mode: so every program moves
// between two virtual addresses of the same decoded code.
const (
	ramBase = 0x80000000
	ramSize = 32 << 20
	alias   = 0x40000000 // of ramBase, in S mode

	startAt   = 0x0000 // offsets in RAM
	handlersM = 0x1000
	handlersS = 0x2000
	tableAt   = 0x4000 // the registers' first values
	saveM     = 0x8000
	saveS     = 0x8400
	rootAt    = 0x10000
	middleAt  = 0x11000 // of ramBase
	middleS   = 0x12000 // of the alias
	leavesAt  = 0x13000
	leavesS   = 0x14000
	bodyAt    = 0x20000
	dataAt    = 0x40000
	dataPages = 8
	oddAt     = 0x50000 // pages that are mapped strangely
	jumpAt    = 0x60000 // the same flags again, on pages full of returns by x1
	poolAt    = 0x70000 // numbers that nothing is stored over: a page of doubles, one of singles
	finisher  = 0x100000
	holeAt    = 0x08000000 // no memory, no device
	patchable = 1 << 21    // all that the leaves map
)

// Page table entry bits.
const (
	pteV = 1 << iota
	pteR
	pteW
	pteX
	pteU
	pteG
	pteA
	pteD
)

// image is the memory of a program.
type image struct {
	bytes []byte
	// begin is the address of the first instruction whose state is compared.
	begin uint64
}

func (m *image) put32(off uint64, words ...uint32) {
	for i, w := range words {
		binary.LittleEndian.PutUint32(m.bytes[off+uint64(4*i):], w)
	}
}

func (m *image) put64(off, v uint64) { binary.LittleEndian.PutUint64(m.bytes[off:], v) }

// odd are the leaves at oddAt, one page each: flags, and what else is strange.
var odd = []uint64{
	0,
	pteV | pteR | pteU | pteA,
	pteV | pteX | pteU | pteA,
	pteV | pteR | pteW | pteU,
	pteV | pteR | pteW | pteX | pteU,
	pteV | pteW | pteU | pteA | pteD,
	pteV | pteR | pteW | pteU | pteA | pteD | 1<<60,
	pteV | pteR | pteW | pteX | pteA | pteD,
	pteV | pteR | pteW | pteU | pteA | pteD | 1<<63,
	pteV | pteR | pteW | pteU | pteA,
	pteV,
	pteV | pteR | pteX | pteU,
	pteV | pteR | pteW | pteG | pteU | pteD | 3<<8,
	pteV | pteR | pteW | pteX | pteU | pteA | pteD | 1<<61,
	pteR | pteW | pteX | pteU | pteA | pteD,
	pteV | pteR | pteW | pteX | pteU | pteA | pteD, // of the hole
}

// tables writes the page tables.
func (m *image) tables(r *rand.Rand) {
	link := func(at, to uint64) { m.put64(at, (ramBase+to)>>2|pteV) }
	link(rootAt+2*8, middleAt)
	link(rootAt+1*8, middleS)
	link(middleAt, leavesAt)
	link(middleS, leavesS)
	m.put64(rootAt+3*8, (ramBase+0x1000)>>2|pteV|pteR|pteW|pteX|pteU|pteA|pteD) // a misaligned superpage
	m.put64(rootAt+4*8, ramBase>>2|pteV|pteR|pteW|pteX|pteU)                    // 1 GiB
	m.put64(rootAt+6*8, (ramBase+middleAt)>>2|pteV|pteA)                        // no leaf, with A
	m.put64(rootAt+7*8, (ramBase+middleAt)>>2|pteV|pteU)
	m.put64(rootAt+511*8, ramBase>>2|pteV|pteR|pteW|pteX|pteU|pteA|pteD)
	link(rootAt+5*8, middleAt)
	m.put64(middleAt+8, (ramBase+0x200000)>>2|pteV|pteR|pteW|pteU)       // 2 MiB
	m.put64(middleAt+16, (ramBase+0x201000)>>2|pteV|pteR|pteW|pteU|pteA) // misaligned
	for page := uint64(0); page < 512; page++ {
		pa := (ramBase + page<<12) >> 2
		used := uint64(r.IntN(4)) << 6 // A and D
		if page == saveS>>12 || page>>4 == leavesAt>>16 {
			used |= pteA | pteD
		}
		flags := uint64(pteV | pteR | pteW | pteX | pteU)
		if page>>4 == rootAt>>16 {
			flags &^= pteU // a mode that cannot fence must not change a translation
		}
		m.put64(leavesAt+page*8, pa|flags|used)
		m.put64(leavesS+page*8, pa|pteV|pteR|pteW|pteX|used)
	}
	for i, flags := range odd {
		page := uint64(oddAt>>12 + i)
		pa := uint64(ramBase+page<<12) >> 2
		if i == len(odd)-1 {
			pa = holeAt >> 2
		}
		m.put64(leavesAt+page*8, pa|flags)
		m.put64(leavesS+page*8, pa|flags)
		jump := uint64(jumpAt>>12 + i)
		if i != len(odd)-1 {
			pa = (ramBase + jump<<12) >> 2
		}
		m.put64(leavesAt+jump*8, pa|flags)
		for at := jump << 12; at < (jump+1)<<12; at += 8 {
			m.put64(at, 0x8082808280828082)
		}
	}
}

// handler writes a trap handler: it goes on behind the instruction that trapped, or at x1
// if that could not be fetched. An ecall changes the mode, and ends the program
// when x4 is 0.
func handler(base uint64, machine bool) []uint32 {
	t := asm.NewText(base)
	scratch, epc, cause, ip, from := uint32(0x340), uint32(0x341), uint32(0x342), uint32(0x344), int32(31)
	if !machine {
		scratch, epc, cause, ip, from = 0x140, 0x141, 0x142, 0x144, 30
	}
	t.Emit(asm.Csrrw(31, scratch, 31), asm.Sd(30, 31, 0), asm.Sd(29, 31, 8), asm.Csrrs(30, cause, 0))
	t.Branch(asm.Less, 30, 0, "interrupt")
	t.Emit(asm.Addi(30, 30, -1))
	t.Branch(asm.Equal, 30, 0, "fetch")
	t.Emit(asm.Addi(30, 30, -11))
	t.Branch(asm.Equal, 30, 0, "fetch")
	t.Emit(asm.Addi(30, 30, 4))
	t.Branch(asm.Equal, 30, 0, "ecall")
	t.Emit(asm.Addi(30, 30, -1))
	t.Branch(asm.Equal, 30, 0, "ecall")
	t.Emit(asm.Addi(30, 30, -2))
	t.Branch(asm.Equal, 30, 0, "ecall")
	// The length of what is at epc, read where the handler can.
	t.Emit(asm.Csrrs(30, epc, 0), asm.Slli(30, 30, 34), asm.Srli(30, 30, 34), asm.Addi(29, 0, 1), asm.Slli(29, 29, from), asm.Or(30, 30, 29))
	t.Emit(asm.Lhu(30, 30, 0), asm.Andi(30, 30, 3), asm.Addi(30, 30, -3), asm.Sltiu(30, 30, 1), asm.Slli(30, 30, 1), asm.Addi(30, 30, 2))
	t.Emit(asm.Csrrs(29, epc, 0), asm.Add(30, 30, 29), asm.Csrrw(0, epc, 30))
	t.Label("out")
	t.Emit(asm.Ld(29, 31, 8), asm.Ld(30, 31, 0), asm.Csrrw(31, scratch, 31))
	if machine {
		t.Emit(asm.Mret)
	} else {
		t.Emit(asm.Sret)
	}
	t.Label("interrupt")
	t.Emit(asm.Addi(30, 0, 0x222), asm.Csrrc(0, ip, 30))
	t.J("out")
	t.Label("fetch")
	t.Emit(asm.Csrrw(0, epc, 1))
	t.J("out")
	t.Label("ecall")
	t.Branch(asm.Equal, 4, 0, "finish")
	t.Emit(asm.Ld(30, 31, 16), asm.Addi(30, 30, 1), asm.Sd(30, 31, 16))
	if machine {
		turnM(t)
	} else {
		turnS(t)
	}
	// epc: 4 behind the ecall, in the space of the new mode, whose bit is in x29.
	t.Emit(asm.Csrrs(30, epc, 0), asm.Addi(30, 30, 4), asm.Slli(30, 30, 34), asm.Srli(30, 30, 34), asm.Or(30, 30, 29), asm.Csrrw(0, epc, 30))
	t.J("out")
	t.Label("finish")
	if machine {
		finish(t)
	} else {
		t.Emit(asm.Ecall)
	}
	return t.Done()
}

// turnM makes MPP the next of U, S, M, S by the count in x30, and x29 its space.
func turnM(t *asm.Text) {
	t.Emit(asm.Andi(30, 30, 3), asm.Addi(29, 30, -2), asm.Sltiu(29, 29, 1), asm.Add(30, 30, 29)) // 0 1 3 3
	t.Emit(asm.Addi(29, 0, 3), asm.Slli(29, 29, 11), asm.Csrrc(0, 0x300, 29), asm.Slli(29, 30, 11), asm.Csrrs(0, 0x300, 29))
	t.Emit(asm.Addi(29, 30, -1), asm.Sltiu(29, 29, 1))                    // 1 in S
	t.Emit(asm.Addi(30, 0, 1), asm.Slli(30, 30, 31), asm.Srl(29, 30, 29)) // 1<<30 or 1<<31
}

// turnS makes SPP the lowest bit of x30, and x29 its space.
func turnS(t *asm.Text) {
	t.Emit(asm.Andi(30, 30, 1), asm.Addi(29, 0, 0x100), asm.Csrrc(0, 0x100, 29), asm.Slli(29, 30, 8), asm.Csrrs(0, 0x100, 29))
	t.Emit(asm.Addi(29, 0, 1), asm.Slli(29, 29, 31), asm.Srl(29, 29, 30))
}

// finish reads the page tables, for what A and D have become, and ends the machine.
func finish(t *asm.Text) {
	t.Emit(asm.Li(29, ramBase+leavesAt)...)
	for off := int32(oddAt >> 9); off < oddAt>>9+8*32; off += 8 {
		t.Emit(asm.Ld(30, 29, off))
	}
	for off := int32(dataAt >> 9); off < dataAt>>9+8*dataPages; off += 8 {
		t.Emit(asm.Ld(30, 29, off))
	}
	t.Emit(asm.Li(29, finisher)...)
	t.Emit(asm.Li(30, 0x5555)...)
	t.Emit(asm.Sw(30, 29, 0), asm.Jal(0, 0))
}

// start writes what runs first: control registers, then all others from the table.
func (m *image) start(r *rand.Rand) {
	t := asm.NewText(ramBase + startAt)
	set := func(csr uint32, v uint64) {
		t.Emit(asm.Li(5, v)...)
		t.Emit(asm.Csrrw(0, csr, 5))
	}
	set(0x3b0, 1<<54-1) // pmpaddr0: everything
	set(0x3a0, 0x1f)
	set(0x305, ramBase+handlersM)
	set(0x105, alias+handlersS)
	set(0x340, ramBase+saveM)
	set(0x140, alias+saveS)
	set(0x302, uint64(r.IntN(1<<16))&0xb1ff)
	set(0x303, uint64(r.IntN(2))*2)
	set(0x304, uint64(r.IntN(1<<10))&0x222)
	set(0x180, 8<<60|(ramBase+rootAt)>>12)
	set(0x306, 7)
	set(0x106, 7)
	user := uint64(r.IntN(2))
	set(0x300, 3<<13|1<<18|(1-user)<<11|uint64(r.IntN(2))<<7)
	set(0x341, alias<<user+bodyAt)
	t.Emit(asm.Li(31, ramBase+tableAt)...)
	for n := uint32(0); n < 32; n++ {
		t.Emit(asm.Fld(n, 31, int32(256+8*n)))
	}
	for n := uint32(1); n < 32; n++ {
		t.Emit(asm.Ld(n, 31, int32(8*n)))
	}
	m.begin = t.Here()
	t.Emit(asm.Mret)
	m.put32(startAt, t.Done()...)
}
