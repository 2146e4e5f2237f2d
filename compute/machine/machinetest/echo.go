package machinetest

// EchoMask are the bits of an offset into memory that Echo stores to, from 16 MiB on.
const EchoMask = 0xfffff8

// Echo is a guest that computes, stores all over its memory, waits for interrupts, and
// answers what comes on the serial port by its own state's bytes. It never ends.
func Echo() []byte { return echo(1<<5 | 1<<9) }

// Patient is Echo without a timer: only what is typed ends its waiting.
func Patient() []byte { return echo(1 << 9) }

// echo is the guest with some interrupts.
func echo(interrupts uint32) []byte {
	c := newCode()
	c.address(t0, "trap")
	c.csrw(stvec, t0)
	c.li(t1, interrupts)
	c.csrw(sie, t1)
	c.li(t0, plicBase+4*uartLine)
	c.addi(t1, zero, 1)
	c.store(0, t1, t0, 2)
	c.li(t0, plicBase+0x2080)
	c.li(t1, 1<<uartLine)
	c.store(0, t1, t0, 2)
	c.li(s4, uartBase)
	c.addi(t1, zero, 1)
	c.store(1, t1, s4, 0) // IER: received data
	c.li(s5, plicBase+0x201004)
	c.li(s2, ramBase+16<<20)
	c.li(s3, EchoMask)
	c.csrr(t2, timeCSR)
	c.addi(t2, t2, 100)
	c.csrw(stimecmp, t2)
	c.addi(t1, zero, 2)
	c.csrw(sstatus, t1)
	c.label("round")
	c.addi(t4, zero, 1000)
	c.label("loop")
	c.addi(s0, s0, 1)
	c.slli(t0, s1, 5)
	c.add(s1, t0, s1)
	c.add(s1, s1, s0)
	c.and(t0, s1, s3)
	c.add(t0, t0, s2)
	c.store(0, s1, t0, 3)
	c.addi(t4, t4, -1)
	c.branch(unequal, t4, zero, "loop")
	c.wfi()
	c.jump("round")
	c.label("trap")
	c.csrr(t3, scause)
	c.addi(t5, zero, 9)
	c.slli(t3, t3, 1) // without the bit that says interrupt
	c.slli(t5, t5, 1)
	c.branch(equal, t3, t5, "external")
	c.csrr(t2, timeCSR)
	c.xor(s1, s1, t2)
	c.addi(t2, t2, 2000)
	c.csrw(stimecmp, t2)
	c.sret()
	c.label("external")
	c.lw(t6, 0, s5)       // claim
	c.lbu(a0, 0, s4)      // what was typed
	c.add(s1, s1, a0)     // into the state,
	c.store(0, s1, s4, 0) // a byte of which is the answer
	c.lbu(a1, 5, s4)      // line status: more?
	c.andi(a1, a1, 1)
	c.store(0, t6, s5, 2) // complete
	c.branch(unequal, a1, zero, "external")
	c.sret()
	return c.kernel()
}
