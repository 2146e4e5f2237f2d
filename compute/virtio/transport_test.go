package virtio

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"steadfast/compute/device"
	"steadfast/fault"
)

func newBlockGuest(t testing.TB, want uint64, o BlockOptions) (*guest, *Block) {
	t.Helper()
	ram, b := newRAM(t), &board{}
	dev, err := NewBlock(b, ram, o)
	if err != nil {
		t.Fatal(err)
	}
	return newGuest(t, dev, b, ram, want), dev
}

func disk(t testing.TB) (*guest, *Block) {
	return newBlockGuest(t, wantAll, BlockOptions{Size: 1 << 20, Serial: "disk-1"})
}

// What virtio_mmio_probe reads, and that a register is read whole or not at all.
func TestIdentity(t *testing.T) {
	for _, c := range []struct {
		kind   uint32
		queues []uint32
		make   func(b *board) device.Device
	}{
		{2, []uint32{256, 0}, func(b *board) device.Device {
			d, _ := NewBlock(b, newRAM(t), BlockOptions{})
			return d
		}},
		{1, []uint32{256, 256, 0}, func(b *board) device.Device {
			d, _ := NewNet(b, newRAM(t), NetOptions{})
			return d
		}},
		{3, []uint32{64, 64, 0}, func(b *board) device.Device { return NewConsole(b, newRAM(t), ConsoleOptions{}) }},
		{4, []uint32{8, 0}, func(b *board) device.Device { return NewEntropy(b, newRAM(t)) }},
		{18, []uint32{64, 64, 0}, func(b *board) device.Device { return NewButton(b, newRAM(t)) }},
	} {
		g := newGuest(t, c.make(&board{}), &board{}, nil, wantAll)
		got := []uint32{g.r(0), g.r(4), g.r(8), g.r(0xb0), g.r(0xb4)}
		if diff := cmp.Diff([]uint32{0x74726976, 2, c.kind, ^uint32(0), ^uint32(0)}, got); diff != "" {
			t.Errorf("kind %d: %s", c.kind, diff)
		}
		for i, most := range c.queues {
			g.w(regQueueSel, uint32(i))
			if v := g.r(regQueueNumMax); v != most {
				t.Errorf("kind %d: queue %d takes %d descriptors, not %d", c.kind, i, v, most)
			}
		}
		if v := g.dev.Load(regMagic, 1) | g.dev.Load(regMagic, 2) | g.dev.Load(regMagic, 8); v != 0 {
			t.Errorf("kind %d: a part of a register reads as %#x", c.kind, v)
		}
	}
}

// FEATURES_OK stays only when what was asked for can be: 3.1.1, 6.1.
func TestFeaturesOK(t *testing.T) {
	for _, c := range []struct {
		name     string
		features uint64
		ok       bool
	}{
		{"version 1", 1 << featureVersion1, true},
		{"and flush", 1<<featureVersion1 | 1<<blockFlush, true},
		{"not version 1", 1 << blockFlush, false},
		{"not offered", 1<<featureVersion1 | 1<<40, false},
	} {
		g, _ := disk(t)
		g.w(regStatus, statusAcknowledge|statusDriver)
		g.w(regDriverFeatures, uint32(c.features))
		g.w(regDriverFeaturesSel, 1)
		g.w(regDriverFeatures, uint32(c.features>>32))
		g.w(regStatus, statusAcknowledge|statusDriver|statusFeaturesOK|statusDriverOK)
		if ok := g.r(regStatus)&statusFeaturesOK != 0; ok != c.ok {
			t.Errorf("%s: FEATURES_OK is %v", c.name, ok)
		}
		if ok := g.r(regStatus)&statusDriverOK != 0; ok != c.ok {
			t.Errorf("%s: DRIVER_OK is %v", c.name, ok)
		}
	}
}

// After FEATURES_OK the features are what they are.
func TestFeaturesAreFrozen(t *testing.T) {
	g, dev := disk(t)
	g.start(16)
	was := dev.driver
	g.w(regDriverFeatures, 0)
	if dev.driver != was {
		t.Errorf("the features became %#x", dev.driver)
	}
	g.w(regStatus, statusAcknowledge) // a driver must not clear bits; the device knows better
	if v := g.r(regStatus); v != statusAcknowledge|statusDriver|statusFeaturesOK|statusDriverOK {
		t.Errorf("the status became %#x", v)
	}
}

// A queue that is not where 2.7 wants it fails the device, which says so by a
// configuration interrupt once the driver is there.
func TestQueuePlaces(t *testing.T) {
	const good = ramBase + 0x10000
	for _, c := range []struct {
		name              string
		n                 uint32
		desc, avail, used uint64
		ok                bool
	}{
		{"good", 256, good, good + 0x1000, good + 0x2000, true},
		{"up to the end", 256, ramBase + ramSize - 4096, good, good + 0x1000, true},
		{"no size", 0, good, good + 0x1000, good + 0x2000, false},
		{"no power of two", 100, good, good + 0x1000, good + 0x2000, false},
		{"too great", 512, good, good + 0x1000, good + 0x2000, false},
		{"too great for 16 bits", 0x10010, good, good + 0x1000, good + 0x2000, false},
		{"descriptors not aligned", 16, good + 8, good + 0x1000, good + 0x2000, false},
		{"available not aligned", 16, good, good + 0x1001, good + 0x2000, false},
		{"used not aligned", 16, good, good + 0x1000, good + 0x2002, false},
		{"descriptors beyond", 256, ramBase + ramSize - 4080, good, good + 0x1000, false},
		{"below", 16, ramBase - 16, good, good + 0x1000, false},
		{"available beyond", 16, good, ramBase + ramSize - 36, good + 0x1000, false},
		{"used beyond", 16, good, good + 0x1000, ramBase + ramSize - 132, false},
		{"wrapping", 16, good, good + 0x1000, ^uint64(0) - 3, false},
	} {
		g, _ := disk(t)
		g.start()
		g.w(regQueueNum, c.n)
		for reg, v := range map[uint64]uint64{regQueueDescLow: c.desc, regQueueDriverLow: c.avail, regQueueDeviceLow: c.used} {
			g.w(reg, uint32(v))
			g.w(reg+4, uint32(v>>32))
		}
		g.w(regQueueReady, 1)
		if ok := g.r(regQueueReady) == 1; ok != c.ok || g.failed() == c.ok {
			t.Errorf("%s: ready is %v, failed %v", c.name, ok, g.failed())
		}
		if v := g.irq(); !c.ok && v != interruptConfig {
			t.Errorf("%s: interrupts for %#x", c.name, v)
		}
	}
}

// A ready queue cannot be moved; made not ready it is new.
func TestQueueReady(t *testing.T) {
	g, dev := disk(t)
	q := g.start(16).vqs[0]
	g.w(regQueueDescLow, 0)
	g.w(regQueueNum, 8)
	if dev.queues[0].desc != q.desc || dev.queues[0].size != 16 {
		t.Error("a queue moved while it was ready")
	}
	g.w(regQueueReady, 0)
	if g.r(regQueueReady) != 0 {
		t.Error("a queue is still ready")
	}
	q = g.queue(0, 8)
	if at := q.read(t, 0, 512); at == 0 || len(g.board.drain()) != 1 {
		t.Error("the new queue does nothing")
	}
}

// Chains that make no sense.
func TestBadChains(t *testing.T) {
	const at = ramBase + 0x40_0000
	w := func(q *vq, i uint16, addr uint64, n uint32, flags, next uint16) {
		q.g.put(q.desc+16*uint64(i), encode(addr, n, flags, next))
	}
	table := func(g *guest) { // a read, which by itself makes sense
		g.put(at, encode(g.header(typeIn, 0), 16, descNext, 1))
		g.put(at+16, encode(g.alloc(512), 512, descNext|descWrite, 2))
		g.put(at+32, encode(g.statusAt(), 1, descWrite, 0))
	}
	for _, c := range []struct {
		name string
		do   func(g *guest, q *vq)
	}{
		{"a loop", func(_ *guest, q *vq) {
			w(q, 0, at, 16, descNext, 1)
			w(q, 1, at, 16, descNext, 0)
			q.offer(0)
		}},
		{"a head beyond", func(_ *guest, q *vq) { q.offer(16) }},
		{"a next beyond", func(_ *guest, q *vq) { w(q, 0, at, 16, descNext, 16); q.offer(0) }},
		{"no memory", func(_ *guest, q *vq) { w(q, 0, 0x1000, 16, 0, 0); q.offer(0) }},
		{"an end beyond", func(_ *guest, q *vq) { w(q, 0, ramBase+ramSize-8, 16, 0, 0); q.offer(0) }},
		{"an end that wraps", func(_ *guest, q *vq) { w(q, 0, ^uint64(0)-7, 16, 0, 0); q.offer(0) }},
		{"a length beyond", func(_ *guest, q *vq) { w(q, 0, at, ^uint32(0), 0, 0); q.offer(0) }},
		{"a piece of nothing", func(g *guest, q *vq) {
			q.add(piece{g.header(typeIn, 0), 16, false}, piece{g.alloc(512), 512, true}, piece{g.statusAt(), 1, true})
			w(q, 15, at, 0, descNext, 0)
			q.offer(15)
		}},
		{"a chain more than there are, with those in flight", func(g *guest, q *vq) {
			q.indirect = true
			for range 16 {
				q.add(piece{g.header(typeIn, 0), 16, false}, piece{g.alloc(512), 512, true}, piece{g.statusAt(), 1, true})
			}
			g.w(regQueueNotify, 0)
			q.offer(0)
		}},
		{"read after write", func(_ *guest, q *vq) {
			w(q, 0, at, 16, descNext, 1)
			w(q, 1, at, 16, descNext|descWrite, 2)
			w(q, 2, at, 16, 0, 0)
			q.offer(0)
		}},
		{"more than there are", func(g *guest, q *vq) { g.put16(q.avail+2, 17) }},
		{"backwards", func(g *guest, q *vq) { g.put16(q.avail+2, 0xffff) }},
		{"an indirect table cut off", func(_ *guest, q *vq) { w(q, 0, at, 24, descIndirect, 0); q.offer(0) }},
		{"an indirect table that goes on", func(g *guest, q *vq) {
			table(g)
			w(q, 0, at, 48, descIndirect|descNext, 1)
			q.offer(0)
		}},
		{"an indirect table in one", func(g *guest, q *vq) {
			table(g)
			g.put(at+48, encode(at, 48, descIndirect, 0))
			w(q, 0, at+48, 16, descIndirect, 0)
			q.offer(0)
		}},
		{"a loop in an indirect table", func(g *guest, q *vq) {
			g.put(at, encode(at, 16, descNext, 0))
			w(q, 0, at, 16, descIndirect, 0)
			q.offer(0)
		}},
		{"a next beyond an indirect table", func(g *guest, q *vq) {
			g.put(at, encode(at, 16, descNext, 1))
			w(q, 0, at, 16, descIndirect, 0)
			q.offer(0)
		}},
		{"an indirect table of nothing", func(_ *guest, q *vq) { w(q, 0, at, 0, descIndirect, 0); q.offer(0) }},
		{"an indirect table nowhere", func(_ *guest, q *vq) { w(q, 0, 0, 16, descIndirect, 0); q.offer(0) }},
		{"no room for a status", func(_ *guest, q *vq) { w(q, 0, at, 16, 0, 0); q.offer(0) }},
		{"no header", func(_ *guest, q *vq) { w(q, 0, at, 16, descWrite, 0); q.offer(0) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, _ := disk(t)
			q := g.start(16).vqs[0]
			c.do(g, q)
			g.w(regQueueNotify, 0)
			if !g.failed() {
				t.Fatal("the device took it")
			}
			if v := g.irq(); v != interruptConfig {
				t.Errorf("it interrupts for %#x", v)
			}
			outs, used := g.board.drain(), g.u16(q.used+2)
			answerAll(t, g.dev, outs) // of what was in flight before it
			g.w(regQueueNotify, 0)
			if len(g.board.drain()) != 0 || g.u16(q.used+2) != used || g.irq() != 0 {
				t.Error("it goes on")
			}
			q = g.start(16).vqs[0] // a reset makes it good again
			if at := q.read(t, 0, 512); at == 0 || len(g.board.drain()) != 1 {
				t.Error("it does nothing after a reset")
			}
		})
	}
}

// An indirect table is refused unless it was negotiated, and a chain may be as long
// as the queue, in a table and without one, and may end with one.
func TestChainLengths(t *testing.T) {
	whole := func(g *guest, n int) (ps []piece) {
		ps = append(ps, piece{g.header(typeIn, 0), 16, false})
		for range n - 2 {
			ps = append(ps, piece{g.alloc(512), 512, true})
		}
		return append(ps, piece{g.alloc(1), 1, true})
	}
	for _, indirect := range []bool{false, true} {
		g, _ := newBlockGuest(t, 0, BlockOptions{Size: 1 << 20})
		if indirect {
			g.want = 1 << featureIndirect
		}
		q := g.start(16).vqs[0]
		q.add(whole(g, 16)...)
		q.kick()
		if outs := g.board.drain(); g.failed() || len(outs) != 1 || outs[0].Length != 14*512 {
			t.Errorf("indirect %v: %v", indirect, outs)
		}
	}
	g, _ := newBlockGuest(t, 0, BlockOptions{Size: 1 << 20})
	q := g.start(16).vqs[0]
	q.indirect = true
	q.add(whole(g, 4)...)
	q.kick()
	if !g.failed() {
		t.Error("an indirect table that was not negotiated")
	}
	g, _ = newBlockGuest(t, wantAll, BlockOptions{Size: 1 << 20})
	q = g.start(16).vqs[0]
	table, ps := g.alloc(32), whole(g, 3)
	g.put(q.desc, encode(ps[0].addr, 16, descNext, 1))
	g.put(q.desc+16, encode(table, 32, descIndirect|descWrite, 0)) // the flag is to be ignored. 2.7.5.3.2
	g.put(table, encode(ps[1].addr, 512, descWrite|descNext, 1))
	g.put(table+16, encode(ps[2].addr, 1, descWrite, 0))
	q.offer(0)
	q.kick()
	if outs := g.board.drain(); g.failed() || len(outs) != 1 || outs[0].Length != 512 {
		t.Errorf("a chain that ends with a table: %v", outs)
	}
}

// A notification before DRIVER_OK is not lost, and does nothing until then.
func TestNotifiedEarly(t *testing.T) {
	g, _ := disk(t)
	g.start()
	g.w(regStatus, 0)
	g.w(regStatus, statusAcknowledge|statusDriver)
	g.w(regDriverFeaturesSel, 1)
	g.w(regDriverFeatures, 1)
	g.w(regStatus, g.r(regStatus)|statusFeaturesOK)
	g.got = 1 << featureVersion1
	q := g.queue(0, 16)
	q.read(t, 0, 512)
	if outs := g.board.drain(); len(outs) != 0 {
		t.Fatalf("before DRIVER_OK: %v", outs)
	}
	g.w(regStatus, g.r(regStatus)|statusDriverOK)
	if outs := g.board.drain(); len(outs) != 1 {
		t.Errorf("at DRIVER_OK: %v", outs)
	}
}

// An interrupt comes only when the driver wants it: by the ring's flag, and by event
// index.
func TestInterruptSuppression(t *testing.T) {
	for _, features := range []uint64{0, 1 << featureEventIdx} {
		g, dev := newBlockGuest(t, features, BlockOptions{Size: 1 << 20})
		q := g.start(16).vqs[0]
		one := func() bool {
			q.read(t, 0, 512)
			answerAll(t, dev, g.board.drain())
			return g.irq() == interruptUsed
		}
		if !one() {
			t.Errorf("%#x: no interrupt", features)
		}
		q.collect()
		if features == 0 {
			g.put16(q.avail, availNoInterrupt)
		} else {
			g.put16(q.avail+4+2*16, q.seen+2) // after three more
		}
		if first, second := one(), one(); first || second {
			t.Errorf("%#x: an interrupt that nobody wants", features)
		}
		g.put16(q.avail, 0)
		if !one() {
			t.Errorf("%#x: no interrupt when it is wanted again", features)
		}
	}
}

// With event index the device asks to be notified of the next chain.
func TestNotificationEvent(t *testing.T) {
	g, dev := newBlockGuest(t, 1<<featureEventIdx, BlockOptions{Size: 1 << 20})
	q := g.start(16).vqs[0]
	const near = 0xffe0 // to the wrap of the indices, as after so many requests
	q.idx, q.seen, q.notified = near, near, near
	for _, at := range []uint64{q.avail + 2, q.used + 2, q.avail + 4 + 2*16, q.used + 4 + 8*16} {
		g.put16(at, near)
	}
	dev.queues[0].last, dev.queues[0].next, dev.queues[0].told = near, near, near
	for i := range 100 {
		if q.read(t, 0, 512); g.board.outs == nil {
			t.Fatalf("request %d: the driver had no reason to notify", i)
		}
		answerAll(t, dev, g.board.drain())
		if g.irq() != interruptUsed || len(q.collect()) != 1 {
			t.Fatalf("request %d: no interrupt, or no answer", i)
		}
	}
}

// A state of another kind, version or with other features is refused; one that is
// cut short or nonsense is corrupt.
func TestRestoreRefuses(t *testing.T) {
	g, dev := disk(t)
	q := g.start(16).vqs[0]
	q.write(t, 0, make([]byte, 512))
	q.read(t, 8, 512)
	good := saved(dev)
	fresh := func() *Block {
		_, d := disk(t)
		return d
	}
	for n := range good {
		if err := fresh().Restore(device.NewDecoder(good[:n])); fault.KindOf(err) != fault.Corrupt {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
	}
	other := append([]byte(nil), good...)
	other[0]++
	if err := fresh().Restore(device.NewDecoder(other)); fault.KindOf(err) != fault.Invalid {
		t.Errorf("another version: %v", err)
	}
	_, ro := newBlockGuest(t, wantAll, BlockOptions{Size: 1 << 20, ReadOnly: true})
	if err := ro.Restore(device.NewDecoder(good)); fault.KindOf(err) != fault.Invalid {
		t.Errorf("other features: %v", err)
	}
	if err := NewEntropy(&board{}, newRAM(t)).Restore(device.NewDecoder(good)); fault.KindOf(err) != fault.Invalid {
		t.Errorf("another kind: %v", err)
	}
}
