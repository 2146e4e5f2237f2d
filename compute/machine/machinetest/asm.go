// Package machinetest has guests of a few instructions for tests, written with package
// asm. It imports no machine: the machine's own tests use it.
package machinetest

import (
	"encoding/binary"

	"steadfast/compute/riscv/asm"
)

// Registers as the guests name them.
const (
	zero, ra       = asm.Zero, asm.RA
	t0, t1, t2     = asm.T0, asm.T1, asm.T2
	s0, s1         = asm.S0, asm.S1
	a0, a1         = asm.A0, asm.A1
	a6, a7         = asm.A6, asm.A7
	s2, s3, s4, s5 = asm.S2, asm.S3, asm.S4, asm.S5
	t3, t4, t5, t6 = asm.T3, asm.T4, asm.T5, asm.T6
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

// code is a guest in the making: asm.Text, with a method for each instruction that the
// guests are made of.
type code struct{ *asm.Text }

func newCode() *code { return &code{asm.NewText(0)} }

func (c *code) op(w uint32)                          { c.Emit(w) }
func (c *code) label(name string)                    { c.Label(name) }
func (c *code) store(imm int32, rs2, rs1, f3 uint32) { c.Emit(asm.S(0x23, f3, rs1, rs2, imm)) }
func (c *code) addi(rd, rs1 uint32, imm int32)       { c.Emit(asm.Addi(rd, rs1, imm)) }
func (c *code) andi(rd, rs1 uint32, imm int32)       { c.Emit(asm.Andi(rd, rs1, imm)) }
func (c *code) slli(rd, rs1 uint32, n int32)         { c.Emit(asm.Slli(rd, rs1, n)) }
func (c *code) add(rd, rs1, rs2 uint32)              { c.Emit(asm.Add(rd, rs1, rs2)) }
func (c *code) xor(rd, rs1, rs2 uint32)              { c.Emit(asm.Xor(rd, rs1, rs2)) }
func (c *code) and(rd, rs1, rs2 uint32)              { c.Emit(asm.And(rd, rs1, rs2)) }
func (c *code) lbu(rd uint32, imm int32, rs uint32)  { c.Emit(asm.Lbu(rd, rs, imm)) }
func (c *code) lhu(rd uint32, imm int32, rs uint32)  { c.Emit(asm.Lhu(rd, rs, imm)) }
func (c *code) lw(rd uint32, imm int32, rs uint32)   { c.Emit(asm.Lw(rd, rs, imm)) }
func (c *code) csrw(csr, rs1 uint32)                 { c.Emit(asm.Csrrw(zero, csr, rs1)) }
func (c *code) csrr(rd, csr uint32)                  { c.Emit(asm.Csrrs(rd, csr, zero)) }
func (c *code) ecall()                               { c.Emit(asm.Ecall) }
func (c *code) wfi()                                 { c.Emit(asm.Wfi) }
func (c *code) sret()                                { c.Emit(asm.Sret) }

// li loads a constant of 32 bits, without its sign.
func (c *code) li(rd, v uint32) { c.Emit(asm.Li32(rd, v)...) }

// Conditions of a branch.
const (
	equal, unequal = asm.Equal, asm.Unequal
)

func (c *code) branch(condition, rs1, rs2 uint32, to string) { c.Branch(condition, rs1, rs2, to) }
func (c *code) jump(to string)                               { c.J(to) }

// call jumps, and leaves in link where to go back to.
func (c *code) call(link uint32, to string) { c.Jal(link, to) }

// back returns from a call.
func (c *code) back(link uint32) { c.Emit(asm.Jalr(zero, link, 0)) }

// address loads where a label is.
func (c *code) address(rd uint32, to string) { c.La(rd, to) }

// kernel returns what was assembled as an image that a machine boots.
func (c *code) kernel() []byte {
	text := c.Bytes()
	image := make([]byte, headerBytes, headerBytes+len(text))
	le := binary.LittleEndian
	le.PutUint32(image, asm.Jal(zero, headerBytes))
	le.PutUint64(image[8:], kernelOffset)
	le.PutUint64(image[16:], uint64(headerBytes+len(text)))
	le.PutUint32(image[32:], 2) // version 0.2
	le.PutUint64(image[48:], 0x5643534952)
	le.PutUint32(image[56:], 0x05435352)
	return append(image, text...)
}
