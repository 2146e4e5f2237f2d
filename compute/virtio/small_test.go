package virtio

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"steadfast/compute/device"
)

func newConsoleGuest(t testing.TB) (*guest, *Console) {
	t.Helper()
	ram, b := newRAM(t), &board{}
	dev := NewConsole(b, ram, ConsoleOptions{Columns: 80, Rows: 25})
	return newGuest(t, dev, b, ram, wantAll), dev
}

func (g *guest) typed(p string) { g.dev.Deliver(&device.Input{Kind: ConsoleData, Data: []byte(p)}) }

func TestConsoleWrite(t *testing.T) {
	g, _ := newConsoleGuest(t)
	tx := g.start(16, 16).vqs[1]
	at := g.alloc(16)
	g.put(at, []byte("hello, world"))
	tx.add(piece{at, 7, false}, piece{at + 7, 5, false})
	tx.kick()
	if diff := cmp.Diff([]device.Output{{Kind: ConsoleData, Data: []byte("hello, world")}}, g.board.drain()); diff != "" {
		t.Error(diff)
	}
	if len(tx.collect()) != 1 || g.irq() != interruptUsed {
		t.Error("the buffer does not come back")
	}
	tx.add(piece{ramBase, consoleChainMax + 1, false})
	tx.kick()
	if len(g.board.drain()) != 0 || !g.failed() {
		t.Error("a write without a bound")
	}
}

// What is typed waits for a driver and for buffers, moves with the machine, and has a
// bound.
func TestConsoleTyped(t *testing.T) {
	g, _ := newConsoleGuest(t)
	g.typed("early ")
	g.start(16, 16)
	g.typed("bird")
	rx := g.vqs[0]
	to := NewConsole(g.board, g.ram, ConsoleOptions{Columns: 80, Rows: 25})
	g.moved(to)
	a, b := rx.buffer(4), rx.buffer(16)
	if got := string(g.bytes(a, 4)) + string(bytes.TrimRight(g.bytes(b, 16), "\x00")); got != "early bird" {
		t.Errorf("%q was typed", got)
	}
	if diff := cmp.Diff([]done{{0, 4}, {1, 6}}, rx.collect(), cmp.AllowUnexported(done{})); diff != "" {
		t.Error(diff)
	}
	if g.irq() != interruptUsed {
		t.Error("no interrupt")
	}
	g.typed(strings.Repeat("x", ConsoleHeldMax+5))
	if to.Room() != 0 || to.Dropped() != 5 {
		t.Errorf("room for %d, dropped %d", to.Room(), to.Dropped())
	}
}

func TestConsoleSize(t *testing.T) {
	g, dev := newConsoleGuest(t)
	g.start(16, 16)
	dev.Deliver(&device.Input{Kind: ConsoleSize, Data: []byte{132, 0, 43, 0}})
	dev.Deliver(&device.Input{Kind: ConsoleSize, Data: []byte{1}})
	if c, r := g.dev.Load(regConfig, 2), g.dev.Load(regConfig+2, 2); c != 132 || r != 43 || g.irq() != interruptConfig {
		t.Errorf("%d columns, %d rows", c, r)
	}
}

func TestEntropy(t *testing.T) {
	ram, b := newRAM(t), &board{}
	dev := NewEntropy(b, ram)
	g := newGuest(t, dev, b, ram, wantAll)
	q := g.start(8).vqs[0]
	small, great := q.buffer(64), q.buffer(4096)
	outs := b.drain()
	if diff := cmp.Diff([]device.Output{{Kind: EntropyAsk, ID: 1, Length: 64}, {Kind: EntropyAsk, ID: 2, Length: EntropyMax}}, outs); diff != "" {
		t.Fatal(diff)
	}
	to := NewEntropy(b, ram)
	g.moved(to)
	if diff := cmp.Diff(outs, to.Pending()); diff != "" {
		t.Fatal(diff)
	}
	to.Deliver(&device.Input{Kind: EntropyAnswer, ID: 2, Data: bytes.Repeat([]byte{7}, 300)})
	to.Deliver(&device.Input{Kind: EntropyAnswer, ID: 2, Data: bytes.Repeat([]byte{8}, 300)})
	to.Deliver(&device.Input{Kind: EntropyAnswer, ID: 9})
	to.Deliver(&device.Input{Kind: EntropyAnswer, ID: 1, Data: bytes.Repeat([]byte{9}, 10)})
	if diff := cmp.Diff([]done{{1, EntropyMax}, {0, 10}}, q.collect(), cmp.AllowUnexported(done{})); diff != "" {
		t.Error(diff)
	}
	if !bytes.Equal(g.bytes(great, 257), append(bytes.Repeat([]byte{7}, 256), 0)) || !bytes.Equal(g.bytes(small, 11), append(bytes.Repeat([]byte{9}, 10), 0)) {
		t.Error("something else is in the buffers")
	}
	q.buffer(64)
	g.start(8)
	before := append([]byte(nil), ram.Bytes()...)
	to.Deliver(&device.Input{Kind: EntropyAnswer, ID: 3, Data: []byte{1}})
	if !bytes.Equal(before, ram.Bytes()) || len(to.Pending()) != 0 {
		t.Error("a request from before a reset is answered")
	}
	q = g.vqs[0]
	q.add(piece{g.alloc(8), 8, false})
	if q.kick(); !g.failed() {
		t.Error("a buffer that cannot be written is taken")
	}
}

// What virtio_input.c asks at its probe, and what evdev would see of a press.
func TestButton(t *testing.T) {
	ram, b := newRAM(t), &board{}
	dev := NewButton(b, ram)
	g := newGuest(t, dev, b, ram, wantAll)
	ask := func(sel, subsel byte) []byte {
		g.dev.Store(regConfig, 1, uint64(sel))
		g.dev.Store(regConfig+1, 1, uint64(subsel))
		p := make([]byte, g.dev.Load(regConfig+2, 1))
		for i := range p {
			p[i] = byte(g.dev.Load(regConfig+8+uint64(i), 1))
		}
		return p
	}
	keys := make([]byte, 15)
	keys[14] = 0x10
	for _, c := range []struct {
		sel, subsel byte
		want        []byte
	}{
		{selectName, 0, []byte("Steadfast power button")},
		{selectIDs, 0, []byte{6, 0, 0, 0, 0, 0, 0, 0}},
		{selectEvents, evKey, keys},
		{selectEvents, 2, []byte{}}, // EV_REL
		{0x10, 0, []byte{}},         // properties
		{selectEvents, 0x14, []byte{}},
		{0, 0, []byte{}},
	} {
		if diff := cmp.Diff(c.want, ask(c.sel, c.subsel)); diff != "" {
			t.Errorf("%#x, %#x: %s", c.sel, c.subsel, diff)
		}
	}
	dev.Deliver(&device.Input{Kind: ButtonPress}) // before there is a driver
	g.start(64, 64)
	q := g.vqs[0]
	var at []uint64
	for range 3 {
		at = append(at, q.buffer(8))
	}
	to := NewButton(b, ram)
	g.moved(to)
	at = append(at, q.buffer(8))
	var events [][3]uint32
	for i := range q.collect() {
		p := g.bytes(at[i], 8)
		events = append(events, [3]uint32{uint32(binary.LittleEndian.Uint16(p)), uint32(binary.LittleEndian.Uint16(p[2:])), binary.LittleEndian.Uint32(p[4:])})
	}
	if diff := cmp.Diff([][3]uint32{{1, 116, 1}, {0, 0, 0}, {1, 116, 0}, {0, 0, 0}}, events); diff != "" {
		t.Error(diff)
	}
	if g.irq() != interruptUsed {
		t.Error("no interrupt")
	}
	for range 100 {
		to.Deliver(&device.Input{Kind: ButtonPress})
	}
	if to.held != buttonHeldMax {
		t.Errorf("%d events wait", to.held)
	}
	light := g.vqs[1]
	light.add(piece{g.alloc(8), 8, false})
	if light.kick(); len(light.collect()) != 1 {
		t.Error("what is said of lights does not come back")
	}
	q.buffer(8)
	q.collect()
	q = g.start(64, 64).vqs[0] // in the middle of a press
	first := q.buffer(8)
	if p := g.bytes(first, 8); !bytes.Equal(p, []byte{evKey, 0, keyPower, 0, 1, 0, 0, 0}) {
		t.Errorf("the next driver begins with % x", p)
	}
	q.add(piece{g.alloc(7), 7, true})
	if q.kick(); !g.failed() {
		t.Error("a buffer too small for an event is taken")
	}
}
