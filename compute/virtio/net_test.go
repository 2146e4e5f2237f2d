package virtio

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"steadfast/compute/device"
	"steadfast/fault"
)

func newNetGuest(t testing.TB, want uint64, o NetOptions) (*guest, *Net) {
	t.Helper()
	ram, b := newRAM(t), &board{}
	dev, err := NewNet(b, ram, o)
	if err != nil {
		t.Fatal(err)
	}
	return newGuest(t, dev, b, ram, want), dev
}

var mac = [6]byte{0x52, 0x54, 0, 1, 2, 3}

// frame is one of n bytes that are not all the same.
func frame(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + n)
	}
	return p
}

// transmit sends a frame behind a header of zeros but for the flags and the GSO type.
func (q *vq) transmit(p []byte, flags, gso byte) {
	h, at := q.g.alloc(netHeader), q.g.alloc(len(p)+1)
	q.g.put(h, append([]byte{flags, gso}, make([]byte, netHeader-2)...))
	q.g.put(at, p)
	q.add(piece{h, netHeader, false}, piece{at, uint32(len(p)), false})
	q.kick()
}

// buffer gives the device n bytes to receive into.
func (q *vq) buffer(n int) uint64 {
	at := q.g.alloc(n)
	q.add(piece{at, uint32(n), true})
	q.kick()
	return at
}

func TestNetConfig(t *testing.T) {
	g, dev := newNetGuest(t, wantAll, NetOptions{MAC: mac, MTU: 9000})
	var got [6]byte
	for i := range got {
		got[i] = byte(g.dev.Load(regConfig+uint64(i), 1))
	}
	if got != mac || g.dev.Load(regConfig+6, 2) != 1 || g.dev.Load(regConfig+10, 2) != 9000 {
		t.Errorf("%x, status %d, MTU %d", got, g.dev.Load(regConfig+6, 2), g.dev.Load(regConfig+10, 2))
	}
	g.start(16, 16)
	dev.Deliver(&device.Input{Kind: NetLink, Status: 0})
	if g.irq() != interruptConfig || g.dev.Load(regConfig+6, 2) != 0 {
		t.Error("the link is not down")
	}
	dev.Deliver(&device.Input{Kind: NetLink, Status: 0})
	if g.irq() != 0 {
		t.Error("an interrupt for nothing new")
	}
	dev.Deliver(&device.Input{Kind: NetLink, Status: 1})
	if g.irq() != interruptConfig || g.dev.Load(regConfig+6, 2) != 1 {
		t.Error("the link is not up")
	}
	for _, o := range []NetOptions{{MAC: mac, MTU: 67}, {MAC: mac, MTU: 65521}, {MAC: [6]byte{1}}} {
		if _, err := NewNet(&board{}, g.ram, o); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%v: %v", o, err)
		}
	}
}

// A frame leaves at the notification, whose buffers are the driver's again at once.
func TestNetTransmit(t *testing.T) {
	for _, c := range []struct {
		name       string
		p          []byte
		flags, gso byte
		down, ok   bool
	}{
		{name: "least", p: frame(14), ok: true},
		{name: "greatest", p: frame(1518), ok: true},
		{name: "too short", p: frame(13)},
		{name: "too long", p: frame(1519)},
		{name: "wants cutting and no checksum", p: frame(60), gso: 1},
		{name: "wants another cutting", p: frame(60), flags: 1, gso: 4},
		{name: "no link", p: frame(60), down: true},
	} {
		g, dev := newNetGuest(t, wantAll, NetOptions{MAC: mac})
		tx := g.start(16, 16).vqs[1]
		if c.down {
			dev.Deliver(&device.Input{Kind: NetLink})
			g.irq()
		}
		tx.transmit(c.p, c.flags, c.gso)
		var want []device.Output
		if c.ok {
			want = []device.Output{{Kind: NetFrame, Data: c.p}}
		}
		if diff := cmp.Diff(want, g.board.drain()); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
		if (dev.Counters().TransmitDropped == 0) != c.ok {
			t.Errorf("%s: %+v", c.name, dev.Counters())
		}
		if back := tx.collect(); len(back) != 1 || g.irq() != interruptUsed {
			t.Errorf("%s: gave back %v", c.name, back)
		}
	}
	g, _ := newNetGuest(t, wantAll, NetOptions{MAC: mac})
	tx := g.start(16, 16).vqs[1]
	tx.add(piece{g.alloc(11), 11, false})
	if tx.kick(); !g.failed() {
		t.Error("a header cut short")
	}
}

// A frame goes behind its header into one buffer, or over several if that was
// negotiated; if they do not hold it, it is dropped and they stay.
func TestNetReceive(t *testing.T) {
	for _, c := range []struct {
		name    string
		merge   bool
		buffers []int
		p       []byte
		used    []uint32 // nil: dropped
	}{
		{"fits", false, []int{1530, 1530}, frame(1518), []uint32{1530}},
		{"no buffer", false, nil, frame(60), nil},
		{"too small a buffer", false, []int{71, 1530}, frame(60), nil},
		{"too long", false, []int{4000}, frame(1519), nil},
		{"too short", false, []int{4000}, frame(13), nil},
		{"merge: fits", true, []int{1530, 1530}, frame(1518), []uint32{1530}},
		{"merge: three", true, []int{500, 500, 2000}, frame(1200), []uint32{500, 500, 212}},
		{"merge: exactly two", true, []int{606, 606}, frame(1200), []uint32{606, 606}},
		{"merge: too few", true, []int{500, 500}, frame(1200), nil},
	} {
		want := uint64(1 << featureIndirect)
		if c.merge {
			want |= 1 << netMrgRxbuf
		}
		g, dev := newNetGuest(t, want, NetOptions{MAC: mac})
		rx := g.start(16, 16).vqs[0]
		var at []uint64
		for _, n := range c.buffers {
			at = append(at, rx.buffer(n))
		}
		dev.Deliver(&device.Input{Kind: NetFrame, Data: c.p})
		var used []uint32
		var got []byte
		for i, d := range rx.collect() {
			used = append(used, d.n)
			got = append(got, g.bytes(at[i], int(d.n))...)
		}
		if diff := cmp.Diff(c.used, used); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
		if (dev.Counters().ReceiveDropped == 1) != (c.used == nil) {
			t.Errorf("%s: %+v", c.name, dev.Counters())
		}
		if c.used == nil {
			if dev.queues[0].taken() != 0 {
				t.Errorf("%s: a buffer is gone", c.name)
			}
			continue
		}
		header := append(make([]byte, 10), byte(len(c.used)), 0)
		if !bytes.Equal(got, append(header, c.p...)) || g.irq() != interruptUsed {
			t.Errorf("%s: something else is there", c.name)
		}
	}
}

// Frames before there is a driver, and with nonsense for buffers.
func TestNetReceiveNotReady(t *testing.T) {
	g, dev := newNetGuest(t, wantAll, NetOptions{MAC: mac})
	dev.Deliver(&device.Input{Kind: NetFrame, Data: frame(60)})
	rx := g.start(16, 16).vqs[0]
	rx.add(piece{g.alloc(8), 8, true})
	dev.Deliver(&device.Input{Kind: NetFrame, Data: frame(60)})
	if dev.Counters().ReceiveDropped != 2 || !g.failed() {
		t.Errorf("%+v, failed %v", dev.Counters(), g.failed())
	}
}

// Frames both ways, in order, over queues that wrap, with moves in between.
func TestNetMany(t *testing.T) {
	g, dev := newNetGuest(t, wantAll, NetOptions{MAC: mac})
	g.start(8, 8)
	rx, tx := g.vqs[0], g.vqs[1]
	var at []uint64
	for range 8 {
		at = append(at, rx.buffer(1530))
	}
	heap := g.heap
	for i := range 1000 {
		g.heap = heap
		if i%37 == 0 {
			to, err := NewNet(g.board, g.ram, NetOptions{MAC: mac})
			if err != nil {
				t.Fatal(err)
			}
			g.moved(to)
			dev = to
		}
		p := frame(60 + i)
		tx.transmit(p, 0, 0)
		if outs := g.board.drain(); len(outs) != 1 || !bytes.Equal(outs[0].Data, p) {
			t.Fatalf("frame %d does not leave", i)
		}
		tx.collect()
		dev.Deliver(&device.Input{Kind: NetFrame, Data: p})
		back := rx.collect()
		if len(back) != 1 || !bytes.Equal(g.bytes(at[i%8]+netHeader, len(p)), p) {
			t.Fatalf("frame %d does not come", i)
		}
		rx.add(piece{at[i%8], 1530, true})
		rx.kick()
	}
	if dev.Counters() != (NetCounters{}) {
		t.Errorf("%+v", dev.Counters())
	}
}
