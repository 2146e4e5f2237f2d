package riscv

import (
	"math"

	"steadfast/compute/memory"
)

// Bus is all of the physical address space that is not RAM. Addresses are aligned to
// size (1, 2, 4 or 8 bytes); false is an access fault. Hart.Count tells the
// instructions before the one that asks; Hart.SetExternal and Hart.Stop may be
// called, and RAM written by its Write or Touch.
type Bus interface {
	Load(addr uint64, size int) (v uint64, ok bool)
	Store(addr uint64, size int, v uint64) (ok bool)
}

// Clock is the guest's time as a function of the instruction count.
type Clock interface {
	// Time is in ticks of the timebase (10 MHz) and never falls as count grows.
	Time(count uint64) uint64
	// CountAt is the first count at which Time is at least time, the largest uint64
	// if it never is.
	CountAt(time uint64) uint64
}

// Stop is why Run returned.
type Stop uint8

// Reasons to return from Run.
const (
	// StopLimit: Count is the limit.
	StopLimit Stop = iota
	// StopIdle: the hart waits for an interrupt, and none is pending: see IdleUntil and Idle.
	StopIdle
	// StopAsked: Hart.Stop was called, by a device or by what answered SBI.
	StopAsked
	// StopWedged: the first instruction of the trap handler traps in the very way that
	// led to it. Nothing the hart does changes anything any more: only time and devices may.
	StopWedged
)

// Options choose what a Hart is.
type Options struct {
	// Bare makes a hart with M mode and without SBI, for the test suites of the
	// instruction set. No guest is run on it.
	Bare bool
	// Flaw breaks the processor on purpose, for tests that must notice: "add=sub" runs
	// the first instruction as the second, "c.add=sub" only where it is compressed, and the
	// names in flaw.go break what is no single instruction.
	Flaw string
}

// mode is a privilege mode.
type mode uint8

const (
	modeU mode = 0
	modeS mode = 1
	modeM mode = 3
)

// never is a count that is not reached.
const never = math.MaxUint64

// Hart is one processor. It is one goroutine's property, with its RAM and its Bus.
type Hart struct {
	// x are the integer registers; x[0] is never written, x[discard] never read. There
	// are as many as an op's fields can name, so that no index has to be checked.
	x [256]uint64
	f [32]uint64

	pc    uint64
	count uint64
	mode  mode
	csrs

	// reserved is the physical address of the reservation of LR, reservedSize its size
	// in bytes, 0 when there is none; reservedPage is the page's bytes then, else nil.
	reserved     uint64
	reservedSize uint8
	reservedPage *[memory.PageSize]byte

	// waiting: a WFI was retired, and no interrupt has been pending since.
	waiting  bool
	external bool

	// What follows is no part of the state: it follows from the state, or from nothing.

	ram   *memory.RAM
	bytes []byte
	base  uint64
	bus   Bus
	clock Clock
	calls Calls
	bare  bool
	flaw  flaw

	// attention asks run to return at the next boundary of two instructions: an
	// interrupt may have become due, or somebody called Stop.
	attention bool
	asked     bool
	stepping  bool
	// timerAt is the count at which the timer's interrupt pends.
	timerAt uint64

	// fault is the exception in hand, from where it is seen to where it is taken.
	fault exception
	// last is the exception taken last, and lastAt when: see StopWedged.
	last   exception
	lastPC uint64
	lastAt uint64
	wedged bool

	mmu
	blocks

	// pmp is of a bare hart only, and a part of its state.
	pmp pmp
}

// exception is a synchronous cause and what goes with it.
type exception struct {
	cause uint64
	tval  uint64
}

// New makes a hart on ram. It takes RAM's hooks. Reset, or Restore, is to follow.
func New(ram *memory.RAM, bus Bus, clock Clock, calls Calls, o Options) *Hart {
	h := &Hart{ram: ram, bytes: ram.Bytes(), base: ram.Base(), bus: bus, clock: clock, calls: calls, bare: o.Bare}
	h.flaw = parseFlaw(o.Flaw)
	h.mmu.init()
	h.blocks.init(ram)
	ram.Stored = h.stored
	ram.Guarded = h.guarded
	ram.Wrote = h.wrote
	h.Reset(ram.Base(), 0, 0)
	return h
}

// Reset puts the hart at pc with a0 and a1 as a boot loader leaves them: everything
// else is zero, and the count starts anew. The mode is S, or M of a bare hart. As
// firmware leaves it, U mode may read the counters until S mode says otherwise: Linux
// relies on it for the clock of its vDSO.
func (h *Hart) Reset(pc, a0, a1 uint64) {
	h.x, h.f, h.csrs, h.pmp = [256]uint64{}, [32]uint64{}, csrs{}, pmp{}
	h.x[10], h.x[11] = a0, a1
	h.pc, h.count = pc, 0
	h.mode, h.scounteren = modeS, countersMask
	if h.bare {
		h.mode, h.scounteren = modeM, 0
	}
	h.stimecmp = never
	h.waiting, h.external, h.asked = false, false, false
	h.unreserve()
	h.refresh()
}

// refresh makes everything anew that follows from the state.
func (h *Hart) refresh() {
	h.lastAt, h.wedged = never, false
	h.dropAllCode()
	h.flushTranslations()
	h.setContext()
	h.timerAt = h.clock.CountAt(h.stimecmp)
	h.attention = true
}

// Count is how many instructions were retired since Reset, those of Idle included.
// Between two runs it is exact; for the Bus it is those before the one that asks.
func (h *Hart) Count() uint64 { return h.count }

// PC is the address of the next instruction.
func (h *Hart) PC() uint64 { return h.pc }

// X returns an integer register, 0 to 31.
func (h *Hart) X(i int) uint64 { return h.x[i&31] }

// F returns the bits of a floating-point register, 0 to 31.
func (h *Hart) F(i int) uint64 { return h.f[i&31] }

// CSR returns a control and status register as M mode of a bare hart, or S mode, reads
// it; false if there is none.
func (h *Hart) CSR(n int) (uint64, bool) { return h.csrRead(uint32(n)) }

// Mode returns the privilege mode as the manuals number it: 0 is U, 1 is S, 3 is M.
func (h *Hart) Mode() int { return int(h.mode) }

// Stop makes Run return StopAsked before the next instruction. It is for the Bus, for
// Calls, and for the hart's own goroutine.
func (h *Hart) Stop() { h.asked, h.attention = true, true }

// SetExternal sets the level of the supervisor's external interrupt line.
func (h *Hart) SetExternal(up bool) { h.external, h.attention = up, true }

// Run executes instructions until Count is limit, or until what else Stop names. An
// interrupt that is pending at the limit is not taken before the next Run.
func (h *Hart) Run(limit uint64) Stop {
	h.timerAt = h.clock.CountAt(h.stimecmp)
	for {
		if h.asked {
			h.asked = false
			return StopAsked
		}
		if h.count >= limit {
			return StopLimit
		}
		if h.wedged {
			h.wedged, h.lastAt = false, never
			return StopWedged
		}
		h.attention = false
		if h.interrupt() {
			continue
		}
		if h.waiting {
			return StopIdle
		}
		bound := limit
		if h.timerAt > h.count && h.timerAt < bound {
			bound = h.timerAt
		}
		h.execute(bound)
	}
}

// Step takes the interrupt that is due. If none is it runs one instruction, or takes the
// trap of one that does not complete, and then the interrupt that is due after it: for
// whoever looks at a hart instruction by instruction. Run comes through the same states.
func (h *Hart) Step() {
	if h.interrupt() {
		return
	}
	h.stepping = true
	if !h.waiting {
		h.attention = false
		h.execute(h.count + 1)
	}
	h.stepping = false
	h.interrupt()
	h.attention = true
}

// IdleUntil is the count at which the timer will end the waiting that StopIdle told
// of, the largest uint64 if it will not: no interrupt but a device's can then.
func (h *Hart) IdleUntil() uint64 {
	if h.mie&irqSTI == 0 {
		return never
	}
	return h.clock.CountAt(h.stimecmp)
}

// Idle lets the time of a waiting hart pass: its count becomes to, as if it had run
// that many instructions that do nothing. It does nothing to a hart that does not
// wait, and goes not back. To go past IdleUntil is to be late.
func (h *Hart) Idle(to uint64) {
	if h.waiting && to > h.count {
		h.count = to
	}
}

// Waiting tells whether the hart waits for an interrupt.
func (h *Hart) Waiting() bool { return h.waiting }

// unreserve gives up the reservation of LR.
func (h *Hart) unreserve() { h.reserved, h.reservedSize, h.reservedPage = 0, 0, nil }
