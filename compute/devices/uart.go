package devices

import (
	"steadfast/compute/device"
	"steadfast/fault"
)

// UARTData is, both ways, bytes on the serial line.
const UARTData uint8 = 1

// Registers of a 16550A, by offset; the first two are the divisor latch when DLAB is set.
// TI TL16C550C (SLLS177), 8.5; PC16550D (SNLS378), 8.
const (
	uartData    = 0 // RBR, THR, DLL
	uartIER     = 1 // and DLM
	uartIIR     = 2 // and FCR
	uartLCR     = 3
	uartMCR     = 4
	uartLSR     = 5
	uartMSR     = 6
	uartScratch = 7
)

// Bits of the registers.
const (
	ierReceived = 1
	ierEmpty    = 2
	ierModem    = 8
	ierMask     = 0x0f

	iirModem    = 0x00
	iirNone     = 0x01
	iirEmpty    = 0x02
	iirReceived = 0x04
	iirTimeout  = 0x0c
	iirFIFO     = 0xc0

	fcrEnable       = 0x01
	fcrClearReceive = 0x02
	fcrTrigger      = 0xc0
	fcrMask         = fcrEnable | fcrTrigger

	lcrDLAB = 0x80

	mcrLoop = 0x10
	mcrMask = 0x1f

	lsrReady   = 0x01
	lsrEmpty   = 0x20
	lsrIdle    = 0x40
	msrDeltas  = 0x0f
	msrOnline  = 0xb0 // carrier, data set ready, clear to send: the line is always there
	divisorRst = 12   // 9600 baud of a clock of 1.8432 MHz
)

// uartFIFO is how many bytes the receiver's FIFO has.
const uartFIFO = 16

// UARTHeldMax is how many received bytes wait for the driver, in the FIFO and behind it.
const UARTHeldMax = 64 << 10

// UART is a 16550A on a line without speed: what is written has left at once, and
// what has come waits until the driver takes it, beyond the FIFO, too. So nothing is
// lost to a guest that is slow, and there is no overrun.
//
// The FIFO's timeout interrupt, which on a line with speed comes four characters after
// the last one, comes at once when what is there does not reach the trigger level.
type UART struct {
	board device.Board

	ier, fcr, lcr, mcr, scratch uint8
	deltas                      uint8 // what of the modem's lines has changed
	divisor                     uint16
	empty                       bool // the interrupt for an empty transmitter is due

	held    []byte // received, and not read; the first of them are in the FIFO
	dropped uint64
}

// NewUART makes up a serial port.
func NewUART(board device.Board) *UART { return &UART{board: board, divisor: divisorRst} }

// Room is how many bytes may still come before some are dropped: who has more to bring
// waits until there is some.
func (u *UART) Room() int { return UARTHeldMax - len(u.held) }

// Dropped is how many bytes came that there was no room for.
func (u *UART) Dropped() uint64 { return u.dropped }

// Deliver takes bytes from the line. In loopback the receiver does not hear it.
func (u *UART) Deliver(in *device.Input) {
	if in.Kind != UARTData || u.mcr&mcrLoop != 0 {
		return
	}
	u.arrive(in.Data)
	u.update()
}

func (u *UART) arrive(p []byte) {
	n := min(len(p), u.Room())
	u.dropped += uint64(len(p) - n)
	u.held = append(u.held, p[:n]...)
}

// fifo is how many bytes the receiver can hold now.
func (u *UART) fifo() int {
	if u.fcr&fcrEnable != 0 {
		return uartFIFO
	}
	return 1
}

// trigger is how many bytes make a received-data interrupt.
func (u *UART) trigger() int {
	if u.fcr&fcrEnable == 0 {
		return 1
	}
	return [...]int{1, 4, 8, 14}[u.fcr>>6]
}

// pending is the interrupt of the highest priority that is due and enabled.
func (u *UART) pending() uint8 {
	switch n := min(len(u.held), u.fifo()); {
	case u.ier&ierReceived != 0 && n >= u.trigger():
		return iirReceived
	case u.ier&ierReceived != 0 && n > 0:
		return iirTimeout
	case u.ier&ierEmpty != 0 && u.empty:
		return iirEmpty
	case u.ier&ierModem != 0 && u.deltas != 0:
		return iirModem
	default:
		return iirNone
	}
}

func (u *UART) update() { u.board.Interrupt(u.pending() != iirNone) }

// Load reads a register: each is one byte, whatever the size.
func (u *UART) Load(offset uint64, _ int) uint64 {
	if offset > uartScratch {
		return 0
	}
	v := u.load(offset)
	u.update()
	return uint64(v)
}

func (u *UART) load(offset uint64) uint8 {
	latch := u.lcr&lcrDLAB != 0
	switch offset {
	case uartData:
		if latch {
			return uint8(u.divisor)
		}
		return u.receive()
	case uartIER:
		if latch {
			return uint8(u.divisor >> 8)
		}
		return u.ier
	case uartIIR:
		return u.identify()
	case uartLCR:
		return u.lcr
	case uartMCR:
		return u.mcr
	case uartLSR:
		return u.line()
	case uartMSR:
		v := u.lines() | u.deltas
		u.deltas = 0
		return v
	default:
		return u.scratch
	}
}

func (u *UART) receive() uint8 {
	if len(u.held) == 0 {
		return 0
	}
	v := u.held[0]
	if u.held = u.held[1:]; len(u.held) == 0 {
		u.held = nil
	}
	return v
}

// identify reads IIR. To have been told of an empty transmitter ends that interrupt.
func (u *UART) identify() uint8 {
	v := u.pending()
	if v == iirEmpty {
		u.empty = false
	}
	if u.fcr&fcrEnable != 0 {
		v |= iirFIFO
	}
	return v
}

func (u *UART) line() uint8 {
	v := uint8(lsrEmpty | lsrIdle)
	if len(u.held) > 0 {
		v |= lsrReady
	}
	return v
}

// lines is the upper half of MSR; in loopback the modem's lines are MCR's outputs.
func (u *UART) lines() uint8 {
	if u.mcr&mcrLoop == 0 {
		return msrOnline
	}
	dtr, rts, outs := u.mcr&1, u.mcr>>1&1, u.mcr>>2&3
	return rts<<4 | dtr<<5 | outs<<6 // CTS, DSR, RI and DCD
}

// Store writes the low byte of value.
func (u *UART) Store(offset uint64, _ int, value uint64) {
	if offset > uartScratch {
		return
	}
	u.store(offset, uint8(value))
	u.update()
}

func (u *UART) store(offset uint64, v uint8) {
	latch := u.lcr&lcrDLAB != 0
	switch offset {
	case uartData:
		if latch {
			u.divisor = u.divisor&0xff00 | uint16(v)
			return
		}
		u.transmit(v)
	case uartIER:
		if latch {
			u.divisor = u.divisor&0x00ff | uint16(v)<<8
			return
		}
		u.enable(v & ierMask)
	case uartIIR:
		u.control(v)
	case uartLCR:
		u.lcr = v
	case uartMCR:
		was := u.lines()
		u.mcr = v & mcrMask
		u.modem(was)
	case uartScratch:
		u.scratch = v
	}
}

// transmit has sent the byte before the next instruction.
func (u *UART) transmit(v uint8) {
	u.empty = true
	if u.mcr&mcrLoop != 0 {
		u.arrive([]byte{v})
		return
	}
	u.board.Emit(device.Output{Kind: UARTData, Data: []byte{v}})
}

// enable takes IER. Enabling the transmitter's interrupt makes it due, for it is always
// empty: Linux's 8250 driver tests for that, and begins to send by it.
func (u *UART) enable(v uint8) {
	if (v^u.ier)&ierEmpty != 0 {
		u.empty = v&ierEmpty != 0
	}
	u.ier = v
}

// control takes FCR. To turn the FIFOs on or off empties them; what waits behind
// them comes after.
func (u *UART) control(v uint8) {
	if (v^u.fcr)&fcrEnable != 0 || v&(fcrEnable|fcrClearReceive) == fcrEnable|fcrClearReceive {
		u.held = u.held[min(len(u.held), u.fifo()):]
	}
	u.fcr = 0 // the other bits are only taken with this one
	if v&fcrEnable != 0 {
		u.fcr = v & fcrMask
	}
}

// modem notes what of the modem's lines has changed. RI counts only when it ends.
func (u *UART) modem(was uint8) {
	now := u.lines()
	changed := (was ^ now) >> 4
	if now&0x40 != 0 {
		changed &^= 4
	}
	u.deltas |= changed & msrDeltas
}

const uartVersion = 1

// Save appends the device's state. docs/formats/machine.md
func (u *UART) Save(e *device.Encoder) {
	e.U8(uartVersion)
	for _, v := range []uint8{u.ier, u.fcr, u.lcr, u.mcr, u.scratch, u.deltas} {
		e.U8(v)
	}
	e.U16(u.divisor)
	e.Bool(u.empty)
	e.Data(u.held)
	e.U64(u.dropped)
}

// Restore takes what Save has made. It does not call Board.Interrupt.
func (u *UART) Restore(d *device.Decoder) error {
	if v := d.U8(); d.Err() == nil && v != uartVersion {
		return fault.New(fault.Invalid, "a saved serial port of version %d: this program knows %d", v, uartVersion)
	}
	for _, v := range []*uint8{&u.ier, &u.fcr, &u.lcr, &u.mcr, &u.scratch, &u.deltas} {
		*v = d.U8()
	}
	u.divisor = d.U16()
	u.empty = d.Bool()
	u.held = append([]byte(nil), d.Data(UARTHeldMax)...)
	u.dropped = d.U64()
	if u.ier&^ierMask != 0 || u.fcr&^fcrMask != 0 || u.mcr&^mcrMask != 0 || u.deltas&^msrDeltas != 0 {
		d.Fail("a serial port's registers that cannot be")
	}
	return d.Err()
}
