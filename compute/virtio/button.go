package virtio

import (
	"encoding/binary"

	"steadfast/compute/device"
	"steadfast/compute/memory"
)

// ButtonPress is an Input: it presses the power button and lets it go.
const ButtonPress uint8 = 1

// Events and keys, as Linux numbers them (input-event-codes.h).
const (
	evSyn    = 0
	evKey    = 1
	keyPower = 116
)

// Selectors of the configuration space. 5.8.4.
const (
	selectName   = 0x01
	selectSerial = 0x02
	selectIDs    = 0x03
	selectEvents = 0x11
)

const (
	buttonEvents = 0 // queues. 5.8.2
	buttonStatus = 1

	buttonQueueMost  = 64
	buttonConfigSize = 8 + 128
	buttonConfigHead = 8
	buttonEventSize  = 8
	// buttonHeldMax is how many events wait for the driver. Each press is four.
	buttonHeldMax = 64

	busVirtual = 6
	buttonName = "Steadfast power button"
)

// press is what happens at a press of the button: type, code and value.
var press = [...][3]uint16{{evKey, keyPower, 1}, {evSyn, 0, 0}, {evKey, keyPower, 0}, {evSyn, 0, 0}}

// Button is an input device that has one key, KEY_POWER. 5.8.
type Button struct {
	transport
	sel, subsel uint8
	held        uint32 // events that wait for buffers; the last of them ends a press
}

// NewButton makes up a power button.
func NewButton(board device.Board, ram *memory.RAM) *Button {
	b := &Button{}
	b.begin(b, board, ram, 18, 0, buttonQueueMost, buttonQueueMost)
	return b
}

// config is 5.8.4: what select and subsel ask for.
func (b *Button) config() []byte {
	c := make([]byte, buttonConfigSize)
	c[0], c[1] = b.sel, b.subsel
	c[2] = uint8(copy(c[buttonConfigHead:], b.information()))
	return c
}

func (b *Button) information() []byte {
	switch {
	case b.sel == selectName && b.subsel == 0:
		return []byte(buttonName)
	case b.sel == selectSerial && b.subsel == 0:
		return []byte("0")
	case b.sel == selectIDs && b.subsel == 0:
		ids := make([]byte, 8) // bus, vendor, product, version
		binary.LittleEndian.PutUint16(ids, busVirtual)
		return ids
	case b.sel == selectEvents && b.subsel == evKey:
		keys := make([]byte, keyPower/8+1)
		keys[keyPower/8] |= 1 << (keyPower % 8)
		return keys
	}
	return nil
}

func (b *Button) configure(offset int, p []byte) {
	for i, v := range p {
		switch offset + i {
		case 0:
			b.sel = v
		case 1:
			b.subsel = v
		}
	}
}

func (b *Button) work(i int) {
	if i == buttonEvents {
		b.pass()
		return
	}
	q := &b.queues[i] // what a driver says of lights: the button has none
	for left := b.available(q); left > 0; left-- {
		c, ok := b.take(q)
		if !ok {
			return
		}
		b.put(q, c.head, 0)
	}
	b.settle(q)
}

// pass gives events to the driver, as far as there are buffers.
func (b *Button) pass() {
	q := &b.queues[buttonEvents]
	if !b.running() || !q.ready {
		return
	}
	for left := b.available(q); left > 0 && b.held > 0; left-- {
		c, ok := b.take(q)
		if !ok {
			return
		}
		if c.into.length() < buttonEventSize {
			b.fail()
			return
		}
		var p [buttonEventSize]byte
		for i, v := range press[(len(press)-int(b.held)%len(press))%len(press)] {
			binary.LittleEndian.PutUint16(p[2*i:], v) // the value is four bytes, of which the upper ones are zero
		}
		b.held--
		b.scatter(c.into, 0, p[:])
		b.put(q, c.head, buttonEventSize)
	}
	b.settle(q)
}

// Deliver presses the button. What a driver has not looked at for many presses is
// none the wiser for one more.
func (b *Button) Deliver(in *device.Input) {
	if in.Kind == ButtonPress && b.held+uint32(len(press)) <= buttonHeldMax {
		b.held += uint32(len(press))
		b.pass()
	}
}

func (b *Button) forget(int) {}

// renew: what was pressed before waits for the next driver, from a press's beginning.
func (b *Button) renew() {
	b.sel, b.subsel = 0, 0
	b.held -= b.held % uint32(len(press))
}

func (b *Button) save(e *device.Encoder) {
	e.U8(b.sel)
	e.U8(b.subsel)
	e.U32(b.held)
}

func (b *Button) restore(d *device.Decoder) {
	b.sel = d.U8()
	b.subsel = d.U8()
	if b.held = d.U32(); b.held > buttonHeldMax {
		d.Fail("more presses of a button than there can be")
	}
}
