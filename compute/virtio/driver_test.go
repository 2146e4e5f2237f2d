package virtio

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"steadfast/compute/device"
	"steadfast/compute/memory"
)

// ramBase is where a riscv machine has its RAM; ramSize is enough for every test.
const (
	ramBase = 0x8000_0000
	ramSize = 8 << 20
)

// board is a machine for one device: it keeps what goes out.
type board struct {
	outs  []device.Output
	level bool
}

func (b *board) Emit(out device.Output) { b.outs = append(b.outs, out) }
func (b *board) Interrupt(up bool)      { b.level = up }
func (b *board) Now() uint64            { return 0 }
func (b *board) Wall() uint64           { return 0 }

// drain returns what has gone out since the last drain.
func (b *board) drain() []device.Output {
	outs := b.outs
	b.outs = nil
	return outs
}

func newRAM(t testing.TB) *memory.RAM {
	t.Helper()
	ram, err := memory.New(ramBase, ramSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ram.Release(); err != nil {
			t.Error(err)
		}
	})
	return ram
}

// guest is the driver's side of a device: it sees registers, RAM and the interrupt
// line, as a kernel does, and nothing else.
type guest struct {
	t     testing.TB
	dev   device.Device
	board *board
	ram   *memory.RAM
	heap  uint64 // the next free address
	vqs   []*vq
	want  uint64 // features it takes if they are offered
	got   uint64 // features negotiated
}

// vq is a virtqueue as its driver has it.
type vq struct {
	g                 *guest
	index             int
	size              uint16
	desc, avail, used uint64
	free              []uint16          // descriptors
	chains            map[uint16]string // heads in flight, and of which descriptors
	idx, seen         uint16            // available, and used as far as it was looked at
	notified          uint16            // idx at the last notification
	indirect          bool
}

const wantAll = ^uint64(0)

func newGuest(t testing.TB, dev device.Device, b *board, ram *memory.RAM, want uint64) *guest {
	return &guest{t: t, dev: dev, board: b, ram: ram, heap: ramBase + 0x1000, want: want}
}

func (g *guest) r(reg uint64) uint32    { return uint32(g.dev.Load(reg, 4)) }
func (g *guest) w(reg uint64, v uint32) { g.dev.Store(reg, 4, uint64(v)) }

// start is what virtio_mmio.c and virtio.c do: reset, acknowledge, negotiate, set up
// the queues, go.
func (g *guest) start(queues ...uint16) *guest {
	g.t.Helper()
	if m, v := g.r(regMagic), g.r(regVersion); m != 0x74726976 || v != 2 {
		g.t.Fatalf("magic %#x, version %d", m, v)
	}
	g.w(regStatus, 0)
	g.w(regStatus, statusAcknowledge)
	g.w(regStatus, g.r(regStatus)|statusDriver)
	g.w(regDeviceFeaturesSel, 1)
	offered := uint64(g.r(regDeviceFeatures)) << 32
	g.w(regDeviceFeaturesSel, 0)
	offered |= uint64(g.r(regDeviceFeatures))
	g.got = offered & (g.want | 1<<featureVersion1)
	g.w(regDriverFeaturesSel, 1)
	g.w(regDriverFeatures, uint32(g.got>>32))
	g.w(regDriverFeaturesSel, 0)
	g.w(regDriverFeatures, uint32(g.got))
	g.w(regStatus, g.r(regStatus)|statusFeaturesOK)
	if g.r(regStatus)&statusFeaturesOK == 0 {
		g.t.Fatal("the device refuses the features it has offered")
	}
	g.vqs = nil
	for i, n := range queues {
		g.queue(i, n)
	}
	g.w(regStatus, g.r(regStatus)|statusDriverOK)
	return g
}

func (g *guest) has(bit int) bool { return g.got>>bit&1 != 0 }

// alloc gives n bytes of RAM, aligned to 16.
func (g *guest) alloc(n int) uint64 {
	a := g.heap
	g.heap += (uint64(n) + 15) &^ 15
	if !g.ram.Contains(a, uint64(n)) {
		g.t.Fatal("the guest is out of memory")
	}
	return a
}

func (g *guest) bytes(addr uint64, n int) []byte {
	p := make([]byte, n)
	if !g.ram.Read(p, addr) {
		g.t.Fatalf("no memory at %#x", addr)
	}
	return p
}

func (g *guest) put(addr uint64, p []byte) {
	if !g.ram.Write(p, addr) {
		g.t.Fatalf("no memory at %#x", addr)
	}
}

func (g *guest) u16(addr uint64) uint16 { return binary.LittleEndian.Uint16(g.bytes(addr, 2)) }
func (g *guest) put16(addr uint64, v uint16) {
	g.put(addr, binary.LittleEndian.AppendUint16(nil, v))
}

func (g *guest) queue(i int, n uint16) *vq {
	g.t.Helper()
	g.w(regQueueSel, uint32(i))
	if g.r(regQueueReady) != 0 {
		g.t.Fatal("a queue is ready before it was made so")
	}
	if most := g.r(regQueueNumMax); uint32(n) > most {
		g.t.Fatalf("queue %d takes %d descriptors", i, most)
	}
	q := &vq{g: g, index: i, size: n, chains: map[uint16]string{}, indirect: g.has(featureIndirect)}
	q.desc, q.avail, q.used = g.alloc(16*int(n)), g.alloc(6+2*int(n)), g.alloc(6+8*int(n))
	for _, a := range []struct{ at, n uint64 }{{q.desc, 16 * uint64(n)}, {q.avail, 6 + 2*uint64(n)}, {q.used, 6 + 8*uint64(n)}} {
		g.put(a.at, make([]byte, a.n))
	}
	for d := range n {
		q.free = append(q.free, d)
	}
	g.w(regQueueNum, uint32(n))
	for _, a := range []struct {
		low uint64
		v   uint64
	}{{regQueueDescLow, q.desc}, {regQueueDriverLow, q.avail}, {regQueueDeviceLow, q.used}} {
		g.w(a.low, uint32(a.v))
		g.w(a.low+4, uint32(a.v>>32))
	}
	g.w(regQueueReady, 1)
	if g.r(regQueueReady) != 1 {
		g.t.Fatal("a queue does not become ready")
	}
	g.vqs = append(g.vqs, q)
	return q
}

// piece is a piece of a buffer.
type piece struct {
	addr  uint64
	n     uint32
	write bool
}

func encode(addr uint64, n uint32, flags, next uint16) []byte {
	p := binary.LittleEndian.AppendUint64(nil, addr)
	p = binary.LittleEndian.AppendUint32(p, n)
	p = binary.LittleEndian.AppendUint16(p, flags)
	return binary.LittleEndian.AppendUint16(p, next)
}

// add makes a chain available, through an indirect table if that was negotiated, and
// returns its head. It does not notify.
func (q *vq) add(pieces ...piece) uint16 {
	q.g.t.Helper()
	var head uint16
	if q.indirect && len(pieces) > 1 {
		table := q.g.alloc(16 * len(pieces))
		for i, p := range pieces {
			q.g.put(table+16*uint64(i), encode(p.addr, p.n, flags(p, i+1 < len(pieces)), uint16(i+1)))
		}
		head = q.takeFree()
		q.g.put(q.desc+16*uint64(head), encode(table, uint32(16*len(pieces)), descIndirect, 0))
		q.chains[head] = string([]rune{rune(head)})
	} else {
		var ds []rune
		for range pieces {
			ds = append(ds, rune(q.takeFree()))
		}
		for i, p := range pieces {
			next := uint16(0)
			if i+1 < len(ds) {
				next = uint16(ds[i+1])
			}
			q.g.put(q.desc+16*uint64(ds[i]), encode(p.addr, p.n, flags(p, i+1 < len(ds)), next))
		}
		head = uint16(ds[0])
		q.chains[head] = string(ds)
	}
	q.offer(head)
	return head
}

// offer puts a head into the available ring, whatever it is.
func (q *vq) offer(head uint16) {
	q.g.put16(q.avail+4+2*uint64(q.idx%q.size), head)
	q.idx++
	q.g.put16(q.avail+2, q.idx)
}

func (q *vq) takeFree() uint16 {
	q.g.t.Helper()
	if len(q.free) == 0 {
		q.g.t.Fatal("the driver has no descriptor left")
	}
	d := q.free[0]
	q.free = q.free[1:]
	return d
}

func flags(p piece, next bool) (f uint16) {
	if p.write {
		f |= descWrite
	}
	if next {
		f |= descNext
	}
	return f
}

// kick notifies if the device wants to know. It returns whether it did.
func (q *vq) kick() bool {
	need := true
	if q.g.has(featureEventIdx) {
		event := q.g.u16(q.used + 4 + 8*uint64(q.size))
		need = q.idx-event-1 < q.idx-q.notified
	}
	q.notified = q.idx
	if need {
		q.g.w(regQueueNotify, uint32(q.index))
	}
	return need
}

// done is a chain that came back.
type done struct {
	head uint16
	n    uint32
}

// collect takes what is in the used ring, and says that it wants an interrupt for the
// next one.
func (q *vq) collect() (all []done) {
	q.g.t.Helper()
	for q.seen != q.g.u16(q.used+2) {
		p := q.g.bytes(q.used+4+8*uint64(q.seen%q.size), 8)
		d := done{uint16(binary.LittleEndian.Uint32(p)), binary.LittleEndian.Uint32(p[4:])}
		ds, ok := q.chains[d.head]
		if !ok {
			q.g.t.Fatalf("the device gives back chain %d, which it does not have", d.head)
		}
		delete(q.chains, d.head)
		for _, r := range ds {
			q.free = append(q.free, uint16(r))
		}
		q.seen++
		all = append(all, d)
	}
	if q.g.has(featureEventIdx) {
		q.g.put16(q.avail+4+2*uint64(q.size), q.seen)
	}
	return all
}

// irq is the interrupt handler: it returns what the device interrupts for, and
// acknowledges that.
func (g *guest) irq() uint32 {
	g.t.Helper()
	if !g.board.level {
		return 0
	}
	v := g.r(regInterruptStatus)
	if v == 0 {
		g.t.Fatal("the line is up without a reason")
	}
	g.w(regInterruptACK, v)
	if g.board.level {
		g.t.Fatal("the line is up after all was acknowledged")
	}
	return v
}

// saved is a device's state as bytes.
func saved(dev device.Device) []byte {
	var e device.Encoder
	dev.Save(&e)
	return e.Bytes()
}

// moved restores a device's state into another, checks that nothing was lost, and
// gives the guest that one, as after a machine's move.
func (g *guest) moved(to device.Device) {
	g.t.Helper()
	was := saved(g.dev)
	d := device.NewDecoder(was)
	if err := to.Restore(d); err != nil {
		g.t.Fatal(err)
	}
	if d.Left() != 0 {
		g.t.Fatalf("%d saved bytes are left over", d.Left())
	}
	if again := saved(to); !bytes.Equal(was, again) {
		g.t.Fatalf("saved again it is something else:\n%s", cmp.Diff(was, again))
	}
	g.dev = to
}

// failed tells whether the device asks for a reset.
func (g *guest) failed() bool { return g.r(regStatus)&statusNeedsReset != 0 }
