package virtio

import (
	"encoding/binary"

	"steadfast/compute/device"
	"steadfast/compute/memory"
)

// What a console says and takes by Kind.
const (
	// ConsoleData is, both ways, what is written and what is typed.
	ConsoleData uint8 = 1
	// ConsoleSize is an Input, the terminal's size: Data is columns and rows, two bytes
	// each, little-endian.
	ConsoleSize uint8 = 2
)

const (
	consoleSizeFeature = 0 // 5.3.3

	consoleReceive  = 0 // queues. 5.3.2
	consoleTransmit = 1

	consoleQueueMost  = 64
	consoleConfigSize = 12
	// consoleChainMax is the most that is written at once, in bytes: Linux cuts at half.
	consoleChainMax = 64 << 10
	// ConsoleHeldMax is how much of what was typed waits for the driver, in bytes.
	ConsoleHeldMax = 64 << 10
)

// ConsoleOptions say what a console is made as.
type ConsoleOptions struct{ Columns, Rows uint16 }

// Console is a terminal with one port. 5.3.
type Console struct {
	transport
	o       ConsoleOptions
	held    []byte // typed, and not taken yet
	dropped uint64
}

// NewConsole makes up a console.
func NewConsole(board device.Board, ram *memory.RAM, o ConsoleOptions) *Console {
	c := &Console{o: o}
	c.begin(c, board, ram, 3, 1<<consoleSizeFeature, consoleQueueMost, consoleQueueMost)
	return c
}

// Room is how many bytes may still be typed before some are dropped: who has more to
// bring waits until there is some.
func (c *Console) Room() int { return ConsoleHeldMax - len(c.held) }

// Dropped is how many bytes were typed that nobody had room for.
func (c *Console) Dropped() uint64 { return c.dropped }

// config is 5.3.4.
func (c *Console) config() []byte {
	p := make([]byte, consoleConfigSize)
	binary.LittleEndian.PutUint16(p[0:], c.o.Columns)
	binary.LittleEndian.PutUint16(p[2:], c.o.Rows)
	binary.LittleEndian.PutUint32(p[4:], 1) // ports
	return p
}

func (c *Console) configure(int, []byte) {}

func (c *Console) work(i int) {
	if i == consoleReceive {
		c.pass()
		return
	}
	q := &c.queues[i]
	for left := c.available(q); left > 0; left-- {
		ch, ok := c.take(q)
		if !ok {
			return
		}
		n := ch.from.length()
		if n > consoleChainMax {
			c.fail()
			return
		}
		if n > 0 {
			p := make([]byte, n)
			c.gather(p, ch.from, 0)
			c.board.Emit(device.Output{Kind: ConsoleData, Data: p})
		}
		c.put(q, ch.head, 0)
	}
	c.settle(q)
}

// pass puts what was typed into the driver's buffers, as far as there are some.
func (c *Console) pass() {
	q := &c.queues[consoleReceive]
	if !c.running() || !q.ready {
		return
	}
	for left := c.available(q); left > 0 && len(c.held) > 0; left-- {
		ch, ok := c.take(q)
		if !ok {
			return
		}
		n := min(ch.into.length(), uint64(len(c.held)))
		if n == 0 {
			c.fail()
			return
		}
		c.scatter(ch.into, 0, c.held[:n])
		c.put(q, ch.head, uint32(n))
		c.held = c.held[n:]
	}
	c.settle(q)
}

// Deliver takes what was typed, or the terminal's size.
func (c *Console) Deliver(in *device.Input) {
	switch in.Kind {
	case ConsoleData:
		n := min(len(in.Data), c.Room())
		c.dropped += uint64(len(in.Data) - n)
		c.held = append(c.held, in.Data[:n]...)
		c.pass()
	case ConsoleSize:
		if len(in.Data) != 4 {
			return
		}
		c.o.Columns = binary.LittleEndian.Uint16(in.Data[0:])
		c.o.Rows = binary.LittleEndian.Uint16(in.Data[2:])
		c.changed()
	}
}

// forget: nothing is in flight; what was typed waits for the next driver.
func (c *Console) forget(int) {}

func (c *Console) renew() {}

func (c *Console) save(e *device.Encoder) {
	e.U16(c.o.Columns)
	e.U16(c.o.Rows)
	e.Data(c.held)
	e.U64(c.dropped)
}

func (c *Console) restore(d *device.Decoder) {
	c.o.Columns = d.U16()
	c.o.Rows = d.U16()
	c.held = append([]byte(nil), d.Data(ConsoleHeldMax)...)
	c.dropped = d.U64()
}
