// Package machinetest has guests of a few instructions for tests, and the assembler that
// they are written with. It imports no machine: the machine's own tests use it.
package machinetest

import "encoding/binary"

// Registers as the assembler's manual names them.
const (
	zero, ra       = 0, 1
	t0, t1, t2     = 5, 6, 7
	s0, s1         = 8, 9
	a0, a1         = 10, 11
	a6, a7         = 16, 17
	s2, s3, s4, s5 = 18, 19, 20, 21
	t3, t4, t5, t6 = 28, 29, 30, 31
)

// Control and status registers.
const (
	sstatus, sie      = 0x100, 0x104
	stvec, scause     = 0x105, 0x142
	stimecmp, timeCSR = 0x14d, 0xc01
)

// The memory map that the guests know, and where a kernel's header has them loaded.
const (
	plicBase   = 0x0c000000
	uartBase   = 0x10000000
	virtioBase = 0x10001000
	ramBase    = 0x80000000
	uartLine   = 10

	headerBytes  = 64
	kernelOffset = 2 << 20
)

// code assembles.
type code struct {
	words  []uint32
	labels map[string]int
	fixes  []func()
}

func newCode() *code { return &code{labels: map[string]int{}} }

func (c *code) op(w uint32)       { c.words = append(c.words, w) }
func (c *code) label(name string) { c.labels[name] = len(c.words) }
func (c *code) r(f7, rs2, rs1, f3, rd, op uint32) {
	c.op(f7<<25 | rs2<<20 | rs1<<15 | f3<<12 | rd<<7 | op)
}

func (c *code) i(imm int32, rs1, f3, rd, op uint32) {
	c.op(uint32(imm)<<20 | rs1<<15 | f3<<12 | rd<<7 | op)
}

func (c *code) store(imm int32, rs2, rs1, f3 uint32) {
	c.op(uint32(imm)>>5<<25 | rs2<<20 | rs1<<15 | f3<<12 | uint32(imm)&31<<7 | 0x23)
}
func (c *code) addi(rd, rs1 uint32, imm int32)      { c.i(imm, rs1, 0, rd, 0x13) }
func (c *code) andi(rd, rs1 uint32, imm int32)      { c.i(imm, rs1, 7, rd, 0x13) }
func (c *code) slli(rd, rs1 uint32, n int32)        { c.i(n, rs1, 1, rd, 0x13) }
func (c *code) add(rd, rs1, rs2 uint32)             { c.r(0, rs2, rs1, 0, rd, 0x33) }
func (c *code) xor(rd, rs1, rs2 uint32)             { c.r(0, rs2, rs1, 4, rd, 0x33) }
func (c *code) and(rd, rs1, rs2 uint32)             { c.r(0, rs2, rs1, 7, rd, 0x33) }
func (c *code) lbu(rd uint32, imm int32, rs uint32) { c.i(imm, rs, 4, rd, 0x03) }
func (c *code) lhu(rd uint32, imm int32, rs uint32) { c.i(imm, rs, 5, rd, 0x03) }
func (c *code) lw(rd uint32, imm int32, rs uint32)  { c.i(imm, rs, 2, rd, 0x03) }
func (c *code) csrw(csr int32, rs1 uint32)          { c.i(csr, rs1, 1, zero, 0x73) }
func (c *code) csrr(rd uint32, csr int32)           { c.i(csr, zero, 2, rd, 0x73) }
func (c *code) ecall()                              { c.op(0x00000073) }
func (c *code) wfi()                                { c.op(0x10500073) }
func (c *code) sret()                               { c.op(0x10200073) }

// li loads a constant of 32 bits, without its sign.
func (c *code) li(rd, v uint32) {
	c.op((v+0x800)&0xfffff000 | rd<<7 | 0x37)
	c.addi(rd, rd, int32(v<<20)>>20)
	c.slli(rd, rd, 32)
	c.i(32, rd, 5, rd, 0x13) // srli
}

// Conditions of a branch: funct3.
const (
	equal, unequal = 0, 1
)

func (c *code) branch(f3, rs1, rs2 uint32, to string) {
	at := len(c.words)
	c.op(0)
	c.fixes = append(c.fixes, func() {
		d := uint32(c.labels[to]-at) * 4
		c.words[at] = d>>12&1<<31 | d>>5&63<<25 | rs2<<20 | rs1<<15 | f3<<12 | d>>1&15<<8 | d>>11&1<<7 | 0x63
	})
}

func (c *code) jump(to string) { c.call(zero, to) }

// call jumps, and leaves in link where to go back to.
func (c *code) call(link uint32, to string) {
	at := len(c.words)
	c.op(0)
	c.fixes = append(c.fixes, func() {
		d := uint32(c.labels[to]-at) * 4
		c.words[at] = jumpTo(d) | link<<7
	})
}

// back returns from a call.
func (c *code) back(link uint32) { c.i(0, link, 0, zero, 0x67) }

// address loads where a label is.
func (c *code) address(rd uint32, to string) {
	at := len(c.words)
	c.op(0x17 | rd<<7) // auipc
	c.op(0)
	c.fixes = append(c.fixes, func() {
		d := uint32(c.labels[to]-at) * 4
		c.words[at] |= (d + 0x800) & 0xfffff000
		c.words[at+1] = d<<20 | rd<<15 | rd<<7 | 0x13
	})
}

// kernel returns what was assembled as an image that a machine boots.
func (c *code) kernel() []byte {
	for _, fix := range c.fixes {
		fix()
	}
	image := make([]byte, headerBytes, headerBytes+4*len(c.words))
	le := binary.LittleEndian
	le.PutUint32(image, jumpTo(headerBytes))
	le.PutUint64(image[8:], kernelOffset)
	le.PutUint64(image[16:], uint64(headerBytes+4*len(c.words)))
	le.PutUint32(image[32:], 2) // version 0.2
	le.PutUint64(image[48:], 0x5643534952)
	le.PutUint32(image[56:], 0x05435352)
	for _, w := range c.words {
		image = le.AppendUint32(image, w)
	}
	return image
}

func jumpTo(d uint32) uint32 {
	return d>>20&1<<31 | d>>1&0x3ff<<21 | d>>11&1<<20 | d>>12&0xff<<12 | 0x6f
}
