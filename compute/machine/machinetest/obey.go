package machinetest

// ObeyMemory is the memory that Obey needs, in bytes.
const ObeyMemory = 64 << 20

// What Obey does for a byte that is typed; any other it echoes.
const (
	ObeyPowerOff = 'q'
	ObeyRestart  = 'r'
	ObeyWedge    = 'w'
	// ObeyFlood has it write on the serial port for ever, and nothing else.
	ObeyFlood = 'f'
	// ObeyDisk has it read the disk's first sector, print its first eight bytes and write
	// the sector to the second one.
	ObeyDisk = 'd'
	// ObeyIgnore has it print ObeyIgnores, wait for a press of the power button, and do
	// nothing about that.
	ObeyIgnore = 'i'
	// ObeySend has it send the frame that ObeyFrame returns.
	ObeySend = 'n'
)

// ObeyUp is what Obey prints when it has begun, ObeyBye when the power button was
// pressed, before it powers itself off, and ObeyIgnores when it will not at the next press.
const (
	ObeyUp      = "up\n"
	ObeyBye     = "bye\n"
	ObeyIgnores = "ignores\n"
)

// ObeyFrame is the frame that Obey sends. Of one that it receives it prints the four
// bytes after the header.
func ObeyFrame() []byte {
	f := make([]byte, 60)
	copy(f, "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5ping")
	return f
}

// Where Obey's queues are, and the slots of its devices: it is made for one disk and one
// network card.
const (
	diskSlot, netSlot, buttonSlot = 0, 1, 3

	diskQueue    = ramBase + 8<<20
	receiveQueue = diskQueue + 0x2000
	sendQueue    = diskQueue + 0x4000
	pressQueue   = diskQueue + 0x6000

	// In a queue's memory: rings, and buffers.
	queueAvail  = 0x100
	queueUsed   = 0x200
	queueBuffer = 0x400
	queueData   = 0x600
	queueStatus = 0x500
	queueSize   = 4

	descNext, descWrite = 1, 2
)

// obey assembles Obey.
type obey struct{ *code }

// poke stores 32 bits at a physical address.
func (c obey) poke(addr, v uint32) {
	c.li(t0, addr)
	c.li(t1, v)
	c.store(0, t1, t0, 2)
}

func slot(i uint32) uint32 { return virtioBase + i*0x1000 }

// device begins a virtio device: VIRTIO 1.2, 3.1.1.
func (c obey) device(i uint32, queues ...uint32) {
	for _, status := range []uint32{0, 1, 3} {
		c.poke(slot(i)+0x70, status)
	}
	c.poke(slot(i)+0x24, 1) // the upper half of the features:
	c.poke(slot(i)+0x20, 1) // VERSION_1
	c.poke(slot(i)+0x70, 11)
	for n, at := range queues {
		c.poke(slot(i)+0x30, uint32(n))
		c.poke(slot(i)+0x38, queueSize)
		c.poke(slot(i)+0x80, at)
		c.poke(slot(i)+0x90, at+queueAvail)
		c.poke(slot(i)+0xa0, at+queueUsed)
		c.poke(slot(i)+0x44, 1)
	}
	c.poke(slot(i)+0x70, 15)
}

// describe writes a descriptor.
func (c obey) describe(queue, i, addr, n, flags, next uint32) {
	at := queue + 16*i
	c.poke(at, addr)
	c.poke(at+8, n)
	c.poke(at+12, flags|next<<16)
}

// offer makes a queue's first descriptor available once more, counting in a register: to
// 65535, as the rings do.
func (c obey) offer(queue, counter, device, number uint32) {
	c.addi(counter, counter, 1)
	c.li(t0, 0xffff)
	c.and(counter, counter, t0)
	c.li(t0, queue+queueAvail)
	c.store(2, counter, t0, 1)
	c.poke(device+0x50, number)
}

// await waits until a queue has used as many as a register counts.
func (c obey) await(queue, counter uint32, name string) {
	c.li(t0, queue+queueUsed)
	c.label(name)
	c.lhu(t1, 2, t0)
	c.branch(unequal, t1, counter, name)
}

// print prints n bytes from a physical address.
func (c obey) print(addr, n uint32) {
	c.li(a0, addr)
	c.li(a1, n)
	c.call(ra, "print")
}

// setUp begins all devices.
func (c obey) setUp() {
	c.device(diskSlot, diskQueue)
	c.describe(diskQueue, 0, diskQueue+queueBuffer, 16, descNext, 1)
	c.describe(diskQueue, 2, diskQueue+queueStatus, 1, descWrite, 0)
	c.device(netSlot, receiveQueue, sendQueue)
	c.describe(receiveQueue, 0, receiveQueue+queueBuffer, 2048, descWrite, 0)
	c.describe(sendQueue, 0, sendQueue+queueBuffer, 12+60, 0, 0)
	f := ObeyFrame()
	for i := 0; i < len(f); i += 4 {
		c.poke(sendQueue+queueBuffer+12+uint32(i), uint32(f[i])|uint32(f[i+1])<<8|uint32(f[i+2])<<16|uint32(f[i+3])<<24)
	}
	c.offer(receiveQueue, s2, slot(netSlot), 0)
	c.device(buttonSlot, pressQueue)
	for i := range uint32(queueSize) {
		c.describe(pressQueue, i, pressQueue+queueBuffer+8*i, 8, descWrite, 0)
	}
	c.poke(pressQueue+queueAvail, queueSize<<16)
	c.poke(pressQueue+queueAvail+4, 0|1<<16)
	c.poke(pressQueue+queueAvail+8, 2|3<<16)
	c.poke(slot(buttonSlot)+0x50, 0)
}

// text prints what is known beforehand.
func (c obey) text(s string) {
	for _, b := range []byte(s) {
		c.addi(t1, zero, int32(b))
		c.store(0, t1, s4, 0)
	}
}

// on is what to do for a byte that is typed; then the loop goes on.
func (c obey) on(key byte, do func()) {
	other := "not " + string(key)
	c.addi(t1, zero, int32(key))
	c.branch(equal, a0, t1, "is "+string(key))
	c.jump(other)
	c.label("is " + string(key))
	do()
	c.jump("loop")
	c.label(other)
}

// reset ends the machine: SBI 2.0, 10.1.
func (c obey) reset(kind uint32) {
	c.li(a7, 0x53525354)
	c.li(a6, 0)
	c.li(a0, kind)
	c.li(a1, 0)
	c.ecall()
}

// disk is what ObeyDisk has it do.
func (c obey) disk() {
	request := func(kind, sector, flags uint32, name string) {
		c.poke(diskQueue+queueBuffer, kind)
		c.poke(diskQueue+queueBuffer+8, sector)
		c.describe(diskQueue, 1, diskQueue+queueData, 512, descNext|flags, 2)
		c.offer(diskQueue, s0, slot(diskSlot), 0)
		c.await(diskQueue, s0, name)
	}
	request(0, 0, descWrite, "read")
	c.print(diskQueue+queueData, 8)
	request(1, 1, 0, "written")
	c.text("ok\n")
}

// Obey is a guest that does what is typed on its serial port. It is made for
// a machine of one disk and one network card.
func Obey() []byte {
	c := obey{newCode()}
	c.li(s4, uartBase)
	c.setUp()
	c.text(ObeyUp)
	c.label("loop")
	c.li(t0, pressQueue+queueUsed)
	c.lhu(t1, 2, t0)
	c.branch(equal, t1, s5, "no press")
	c.text(ObeyBye)
	c.reset(0)
	c.label("no press")
	c.li(t0, receiveQueue+queueUsed)
	c.lhu(t1, 2, t0)
	c.branch(unequal, t1, s2, "no frame")
	c.print(receiveQueue+queueBuffer+12+14, 4)
	c.offer(receiveQueue, s2, slot(netSlot), 0)
	c.label("no frame")
	c.lbu(t1, 5, s4)
	c.andi(t1, t1, 1)
	c.branch(unequal, t1, zero, "typed")
	c.jump("loop")
	c.label("typed")
	c.lbu(a0, 0, s4)
	c.on(ObeyPowerOff, func() { c.reset(0) })
	c.on(ObeyRestart, func() { c.reset(1) })
	c.on(ObeyWedge, func() {
		c.csrw(stvec, zero) // where nothing is
		c.op(0)
	})
	c.on(ObeyFlood, func() {
		c.label("flood")
		c.addi(t1, zero, '#')
		c.store(0, t1, s4, 0)
		c.jump("flood")
	})
	c.on(ObeyDisk, c.disk)
	c.on(ObeyIgnore, func() {
		c.text(ObeyIgnores)
		c.addi(s5, s5, queueSize) // a press is as many events as the queue has buffers
		c.await(pressQueue, s5, "ignored")
		c.li(t0, pressQueue+queueAvail)
		c.addi(t1, s5, queueSize)
		c.store(2, t1, t0, 1)
		c.poke(slot(buttonSlot)+0x50, 0)
	})
	c.on(ObeySend, func() { c.offer(sendQueue, s1, slot(netSlot), 1) })
	c.store(0, a0, s4, 0)
	c.jump("loop")
	c.label("print")
	c.lbu(t1, 0, a0)
	c.store(0, t1, s4, 0)
	c.addi(a0, a0, 1)
	c.addi(a1, a1, -1)
	c.branch(unequal, a1, zero, "print")
	c.back(ra)
	return c.kernel()
}
