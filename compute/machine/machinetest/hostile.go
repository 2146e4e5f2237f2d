package machinetest

import "steadfast/compute/riscv/asm"

// What a hostile guest does: each is a byte of its script, and what it needs follows. A
// value that is not there is zero, so that every string of bytes is a script.
const (
	HostileLoad   = iota // size, address: read it
	HostileStore         // size, address, value: write it
	HostileSBI           // extension, function, four arguments: call the machine
	HostileCSR           // which (u16), how, value: a control and status register
	HostileEntry         // table and index (u16), value: an entry of a page table
	HostilePaged         // root (u8), address, size: a load and a store by that table
	HostileAtomic        // which (u8), address, value
	HostileJump          // an address
	HostileWait          // a time to come, or past (u8): wfi
	HostilePatch         // what (u32), fence (u8): write an instruction, and run it
	HostileBoot          // device (u8), size (u8), features (u8): a virtio driver's beginning
	HostileDesc          // device, queue, index (u8), address, length (u32), flags, next (u8)
	HostileOffer         // device, queue (u8), head, how many (u8): make chains available, and notify
	HostileLoop          // how often, as a power of 2, and how many (u8): the next ones, again and again
	HostileFill          // offset (u16), four bytes: into the buffers
	HostileUser          // what (u32): run an instruction in U mode
	HostileRaw           // what (u32): an instruction
	hostileKinds
)

// Extensions of SBI as HostileSBI numbers them; others are a value.
const (
	HostileSBIPutchar = iota
	HostileSBITimer
	HostileSBIIPI
	HostileSBIRfence
	HostileSBIHSM
	HostileSBIReset
	HostileSBIConsole
	HostileSBIBase
	hostileSBIValue
)

// Kinds of addresses and values of a script: a byte, and what follows it.
const (
	HostileDevice = iota // which (u8), offset (u16): a register
	HostilePLIC          // u32
	HostileRAM           // u32: an offset, within the memory
	HostileEnd           // u8: so much before the end of the memory
	HostileEdge          // which (u8), u8: so much before a device's end
	HostileQueues        // u16: where the queues are
	HostileBuffer        // u16: where the buffers are
	HostileSmall         // u8
	HostileWord          // u32
	HostileWide          // two u32
	HostileBit           // u8: one bit
	HostileOnes
	hostileValues
)

const (
	rtcBase = 0x00101000
	// hostileMemory is what the guest takes its memory to be.
	hostileMemory = 64 << 20
	// Where its queues are, 16 KiB each and four for a device; its buffers, page tables, and
	// the instructions that it writes.
	hostileQueues  = ramBase + 32<<20
	hostileBuffers = ramBase + 33<<20
	hostileTables  = ramBase + 34<<20
	hostilePatches = ramBase + 35<<20

	hostileActions = 48

	satp, sepc, sip = 0x180, 0x141, 0x144

	// s6 counts a loop; s8 and s9 are the trap handler's, s10 is where it goes on, s11 how
	// many interrupts it has seen.
	s6, s8, s9, s10, s11 = 22, 24, 25, 26, 27
)

// script takes a script apart.
type script struct{ b []byte }

func (s *script) u8() uint32 {
	if len(s.b) == 0 {
		return 0
	}
	v := s.b[0]
	s.b = s.b[1:]
	return uint32(v)
}
func (s *script) u16() uint32 { return s.u8() | s.u8()<<8 }
func (s *script) u32() uint32 { return s.u16() | s.u16()<<16 }

// value takes an address or a value.
func (s *script) value() uint64 {
	bases := [...]uint64{rtcBase, uartBase, plicBase, virtioBase, virtioBase + 0x1000, virtioBase + 0x2000, virtioBase + 0x3000, virtioBase + 0x4000}
	switch s.u8() % hostileValues {
	case HostileDevice:
		return bases[s.u8()%uint32(len(bases))] + uint64(s.u16()&0xfff)
	case HostilePLIC:
		return plicBase + uint64(s.u32()%(64<<20+16))
	case HostileRAM:
		return ramBase + uint64(s.u32()%hostileMemory)
	case HostileEnd:
		return ramBase + hostileMemory - uint64(s.u8())
	case HostileEdge:
		return bases[s.u8()%uint32(len(bases))] + 0x1000 - uint64(s.u8()%16)
	case HostileQueues:
		return hostileQueues + uint64(s.u16())
	case HostileBuffer:
		return hostileBuffers + uint64(s.u16())
	case HostileSmall:
		return uint64(s.u8())
	case HostileWord:
		return uint64(s.u32())
	case HostileWide:
		return uint64(s.u32()) | uint64(s.u32())<<32
	case HostileBit:
		return 1 << (s.u8() % 64)
	}
	return ^uint64(0)
}

// hostile assembles.
type hostile struct {
	obey
	*script
	n int // of labels
}

// Hostile is a guest that does what a script says, and what is left of the script: the
// world's part. Its devices are taken to be a disk, a network card, the source of
// randomness and the power button. It never ends unless it is told to; a trap is
// the end of one of its deeds.
func Hostile(of []byte) (kernel, rest []byte) {
	c := &hostile{obey: obey{newCode()}, script: &script{of}}
	c.begin()
	for n := c.u8()%hostileActions + 1; n > 0; n-- {
		c.deed(c.u8())
	}
	c.label("end")
	c.wfi()
	c.jump("end")
	return c.kernel(), c.b
}

// wide loads 64 bits, and spoils a7.
func (c *hostile) wide(rd uint32, v uint64) {
	c.li(rd, uint32(v>>32))
	c.slli(rd, rd, 32)
	c.li(a7, uint32(v))
	c.add(rd, rd, a7)
}

func (c *hostile) name(s string) string {
	c.n++
	return s + string(rune(0x100+c.n))
}

// begin sets up the trap handler and lets all interrupts in.
func (c *hostile) begin() {
	c.jump("go")
	c.label("trap")
	c.csrw(satp, zero)
	c.csrr(s8, scause)
	c.branch(asm.Less, s8, zero, "interrupt")
	c.csrw(sepc, s10)
	c.li(s8, 1<<8)
	c.op(asm.Csrrs(zero, sstatus, s8)) // SPP
	c.sret()
	c.label("interrupt")
	c.addi(s11, s11, 1)
	c.addi(s8, zero, -1)
	c.csrw(stimecmp, s8)
	c.addi(s8, zero, 2)
	c.op(asm.Csrrc(zero, sip, s8))
	for i := range uint32(4) {
		c.li(s8, slot(i)+0x64)
		c.addi(s9, zero, 3)
		c.store(0, s9, s8, 2)
	}
	c.li(s8, plicBase+0x201004)
	c.lw(s9, 0, s8)
	c.store(0, s9, s8, 2)
	c.addi(s8, zero, 40)
	c.branch(asm.Less, s11, s8, "back")
	c.csrw(sie, zero)
	c.label("back")
	c.sret()
	c.label("go")
	c.address(t0, "trap")
	c.csrw(stvec, t0)
	c.address(s10, "end")
	c.li(t0, 1<<13)
	c.op(asm.Csrrs(zero, sstatus, t0)) // FS
	for line := range uint32(32) {
		c.poke(plicBase+4*line, 1)
	}
	c.poke(plicBase+0x2080, 0xfffffffe)
	c.li(t0, 1<<1|1<<5|1<<9)
	c.csrw(sie, t0)
	c.addi(t0, zero, 2)
	c.op(asm.Csrrs(zero, sstatus, t0))
	// An identity of 4 GiB in each root.
	for table := range uint32(4) {
		for i := range uint32(4) {
			c.poke(hostileTables+table<<12+8*i, i<<28|0xcf)
		}
	}
}

// deed is one thing that the guest does.
func (c *hostile) deed(kind uint32) {
	next := c.name("next")
	c.address(s10, next)
	switch kind %= hostileKinds; kind {
	case HostileBoot, HostileDesc, HostileOffer, HostileFill:
		c.drive(kind)
	case HostileLoop:
		c.loop(next)
	default:
		c.harm(kind)
	}
	c.label(next)
}

// loop does the next things many times.
func (c *hostile) loop(over string) {
	n, deeds := uint32(1)<<(c.u8()%24), 1+c.u8()%4
	again := c.name("again")
	c.li(s6, n)
	c.label(again)
	for range deeds {
		if kind := c.u8() % hostileKinds; kind == HostileLoop || kind == HostileWait {
			c.harm(HostileSBI) // it would take too long to see anything
		} else {
			c.deed(kind)
		}
	}
	c.address(s10, over)
	c.addi(s6, s6, -1)
	c.branch(equal, s6, zero, over)
	c.jump(again)
}

// harm is what concerns the processor and the bus.
func (c *hostile) harm(kind uint32) {
	switch kind {
	case HostileLoad:
		size := c.u8() % 7
		c.wide(t0, c.value())
		c.op(asm.I(0x03, size, t1, t0, 0))
	case HostileStore:
		size := c.u8() % 4
		c.wide(t0, c.value())
		c.wide(t1, c.value())
		c.store(0, t1, t0, size)
	case HostileSBI:
		c.call4()
	case HostileCSR:
		number, how := c.u16()&0xfff, 1+c.u8()%7
		c.wide(t0, c.value())
		c.op(asm.Csr(how, t1, number, t0))
	case HostileEntry:
		at := hostileTables + c.u16()<<3&0x3ff8
		c.li(t0, at)
		c.wide(t1, c.value())
		c.store(0, t1, t0, 3)
	case HostilePaged:
		c.wide(t1, 8<<60|(hostileTables>>12+uint64(c.u8()%5)))
		c.wide(t0, c.value())
		size := c.u8() % 4
		c.csrw(satp, t1)
		c.op(asm.I(0x03, size, t2, t0, 0))
		c.store(0, t2, t0, size)
		c.csrw(satp, zero)
	case HostileAtomic:
		which := c.u8()
		c.wide(t0, c.value())
		c.wide(t1, c.value())
		c.op(asm.R(0x2f, 2+which&1, which>>1, t2, t0, t1))
	case HostileJump:
		c.wide(t0, c.value())
		c.op(asm.Jalr(ra, t0, 0))
	case HostileWait:
		c.wait(c.u8())
	case HostilePatch, HostileUser:
		c.patch(kind == HostileUser)
	case HostileRaw:
		c.op(c.u32() | 3)
	}
}

// call4 calls SBI.
func (c *hostile) call4() {
	extension := c.u8() % (hostileSBIValue + 1)
	known := [...]uint64{1, 0x54494d45, 0x735049, 0x52464e43, 0x48534d, 0x53525354, 0x4442434e, 0x10}
	id := c.value
	if extension < hostileSBIValue {
		id = func() uint64 { return known[extension] }
	}
	number := id()
	function := c.u8() % 12
	for i := range uint32(4) {
		c.wide(a0+i, c.value())
	}
	c.wide(a6, number)
	c.add(t0, a6, zero)
	c.li(a6, function)
	c.add(a7, t0, zero)
	c.ecall()
}

// wait waits for the timer, at most a little; some want to wait for ever.
func (c *hostile) wait(when uint32) {
	c.csrr(t0, timeCSR)
	switch {
	case when < 192:
		c.addi(t0, t0, int32(when))
	case when < 224:
		c.addi(t0, t0, -int32(when))
	default:
		c.addi(t0, zero, -1)
	}
	c.csrw(stimecmp, t0)
	c.wfi()
}

// patch writes an instruction and what returns after it, and runs both.
func (c *hostile) patch(user bool) {
	what := c.u32() | 3
	c.li(t0, hostilePatches+what&0xffc)
	c.li(t1, what)
	c.store(0, t1, t0, 2)
	c.li(t1, 0x00008067) // ret
	if user {
		c.li(t1, 0x00000073) // ecall
	}
	c.store(4, t1, t0, 2)
	if c.u8()&1 != 0 {
		c.op(0x0000100f) // fence.i
	}
	if user {
		c.csrw(sepc, t0)
		c.li(t1, 1<<8)
		c.op(asm.Csrrc(zero, sstatus, t1))
		c.sret()
		return
	}
	c.op(asm.Jalr(ra, t0, 0))
}

// drive is what concerns virtio.
func (c *hostile) drive(kind uint32) {
	queue := func(dev, q uint32) uint32 { return hostileQueues + (dev%4*4+q%4)<<14 }
	switch kind {
	case HostileBoot:
		c.boot(c.u8()%4, 1<<(c.u8()%10), c.u8(), queue)
	case HostileDesc:
		at := queue(c.u8(), c.u8()) + 16*c.u8()
		c.li(t0, at)
		c.wide(t1, c.value())
		c.store(0, t1, t0, 3)
		c.poke(at+8, c.u32())
		c.poke(at+12, c.u8()|c.u8()<<16)
	case HostileOffer:
		dev, q, head, n := c.u8()%4, c.u8()%4, c.u8(), c.u8()
		ring := queue(dev, q) + 0x2000
		if head != 0 {
			for i := range min(n, 16) {
				c.poke(ring+4+4*i, head|head<<16)
			}
		}
		c.li(t0, ring)
		c.lhu(t1, 2, t0)
		c.addi(t1, t1, int32(n))
		c.store(2, t1, t0, 1)
		c.poke(slot(dev)+0x50, q)
	case HostileFill:
		c.poke(hostileBuffers+c.u16()&^3, c.u32())
	}
}

// boot is a driver up to DRIVER_OK, with two queues at their places.
func (c *hostile) boot(dev, size, features uint32, queue func(dev, q uint32) uint32) {
	at := slot(dev)
	for _, status := range []uint32{0, 1, 3} {
		c.poke(at+0x70, status)
	}
	for sel := range uint32(2) {
		c.poke(at+0x14, sel)
		c.poke(at+0x24, sel)
		c.li(t0, at+0x10)
		c.lw(t1, 0, t0)
		if sel == 0 && features&1 != 0 {
			c.li(t1, features<<24) // few, or some that are not offered
		}
		c.store(0x10, t1, t0, 2)
	}
	c.poke(at+0x70, 11)
	for q := range uint32(2) {
		c.poke(at+0x30, q)
		c.poke(at+0x38, size)
		c.poke(at+0x80, queue(dev, q))
		c.poke(at+0x90, queue(dev, q)+0x2000)
		c.poke(at+0xa0, queue(dev, q)+0x3000)
		c.poke(at+0x44, 1)
	}
	c.poke(at+0x70, 15)
}
