package virtio

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"steadfast/compute/device"
)

// header puts a request's first part into memory.
func (g *guest) header(kind uint32, sector uint64) uint64 {
	p := binary.LittleEndian.AppendUint32(nil, kind)
	p = binary.LittleEndian.AppendUint32(p, 0)
	at := g.alloc(16)
	g.put(at, binary.LittleEndian.AppendUint64(p, sector))
	return at
}

// statusAt makes room for a status that no device would write.
func (g *guest) statusAt() uint64 {
	at := g.alloc(1)
	g.put(at, []byte{0xee})
	return at
}

// read asks for n bytes, and returns where they and the status behind them will be.
func (q *vq) read(t testing.TB, sector uint64, n int) uint64 {
	t.Helper()
	at := q.g.alloc(n + 1)
	q.g.put(at+uint64(n), []byte{0xee})
	q.add(piece{q.g.header(typeIn, sector), 16, false}, piece{at, uint32(n), true}, piece{at + uint64(n), 1, true})
	q.kick()
	return at
}

// write asks to write p, and returns where p and the status behind it are.
func (q *vq) write(t testing.TB, sector uint64, p []byte) uint64 {
	t.Helper()
	at := q.g.alloc(len(p) + 1)
	q.g.put(at, append(slices.Clone(p), 0xee))
	q.add(piece{q.g.header(typeOut, sector), 16, false}, piece{at, uint32(len(p)), false}, piece{at + uint64(len(p)), 1, true})
	q.kick()
	return at
}

// request asks for anything with p behind the header, and returns where the status is.
func (q *vq) request(kind uint32, p []byte) uint64 {
	at, status := q.g.alloc(len(p)+1), q.g.statusAt()
	q.g.put(at, p)
	pieces := []piece{{q.g.header(kind, 0), 16, false}}
	if len(p) > 0 {
		pieces = append(pieces, piece{at, uint32(len(p)), false})
	}
	q.add(append(pieces, piece{status, 1, true})...)
	q.kick()
	return status
}

// media is the world behind a disk.
type media []byte

func (m media) do(t testing.TB, out device.Output) device.Input {
	t.Helper()
	in := device.Input{Kind: BlockDone, ID: out.ID}
	p := m[out.Offset:][:out.Length]
	switch out.Kind &^ (BlockStable | BlockUnmap) {
	case BlockRead:
		in.Data = slices.Clone(p)
	case BlockWrite:
		if len(out.Data) != len(p) {
			t.Fatalf("a write of %d bytes says %d", len(out.Data), len(p))
		}
		copy(p, out.Data)
	case BlockDiscard, BlockZero:
		clear(p)
	case BlockFlush:
	default:
		t.Fatalf("an output of kind %d", out.Kind)
	}
	return in
}

func answerAll(t testing.TB, dev device.Device, outs []device.Output) {
	t.Helper()
	for _, out := range outs {
		in := device.Input{Kind: BlockDone, ID: out.ID}
		if out.Kind == BlockRead {
			in.Data = make([]byte, out.Length)
		}
		dev.Deliver(&in)
	}
}

func TestBlockConfig(t *testing.T) {
	g, dev := newBlockGuest(t, wantAll, BlockOptions{Size: 5 << 30})
	for _, c := range []struct {
		at   uint64
		size int
		want uint64
	}{
		{0, 8, 5 << 30 / 512},
		{0, 4, 5 << 30 / 512},
		{4, 4, 0},
		{8, 4, 65536},
		{12, 4, 254},
		{20, 4, 512},
		{24, 1, 3},
		{26, 2, 8},
		{32, 1, 1},
		{36, 4, 1 << 22},
		{40, 4, 1},
		{44, 4, 8},
		{48, 4, 1 << 22},
		{52, 4, 1},
		{56, 1, 1},
		{60, 4, 0},
		{0xfff_ffff, 8, 0},
	} {
		if got := g.dev.Load(regConfig+c.at, c.size); got != c.want {
			t.Errorf("byte %d: %d, not %d", c.at, got, c.want)
		}
	}
	g.start(16)
	generation := g.r(regConfigGeneration)
	dev.Deliver(&device.Input{Kind: BlockResized, Data: binary.LittleEndian.AppendUint64(nil, 6<<30)})
	if got := g.dev.Load(regConfig, 8); got != 6<<30/512 || g.irq() != interruptConfig || g.r(regConfigGeneration) == generation {
		t.Errorf("resized it has %d sectors", got)
	}
	for _, bad := range [][]byte{nil, {1, 2, 3}, binary.LittleEndian.AppendUint64(nil, 513), binary.LittleEndian.AppendUint64(nil, 1<<63)} {
		dev.Deliver(&device.Input{Kind: BlockResized, Data: bad})
	}
	if got := g.dev.Load(regConfig, 8); got != 6<<30/512 || g.irq() != 0 {
		t.Errorf("nonsense made it %d sectors", got)
	}
}

// What is refused, and what is answered without the world.
func TestBlockRequests(t *testing.T) {
	segment := func(sector uint64, n, flags uint32) []byte {
		p := binary.LittleEndian.AppendUint64(nil, sector)
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(p, n), flags)
	}
	const pending = 0xee
	for _, c := range []struct {
		name     string
		readOnly bool
		kind     uint32
		payload  []byte
		status   byte
		out      device.Output
	}{
		{name: "flush", kind: typeFlush, status: pending, out: device.Output{Kind: BlockFlush}},
		{name: "discard", kind: typeDiscard, payload: segment(8, 16, 0), status: pending, out: device.Output{Kind: BlockDiscard, Offset: 4096, Length: 8192}},
		{name: "zeroes", kind: typeWriteZeroes, payload: segment(1, 1, 0), status: pending, out: device.Output{Kind: BlockZero, Offset: 512, Length: 512}},
		{name: "zeroes unmap", kind: typeWriteZeroes, payload: segment(1, 1, 1), status: pending, out: device.Output{Kind: BlockZero | BlockUnmap, Offset: 512, Length: 512}},
		{name: "all", kind: typeDiscard, payload: segment(0, 2048, 0), status: pending, out: device.Output{Kind: BlockDiscard, Length: 1 << 20}},
		{name: "beyond", kind: typeDiscard, payload: segment(2047, 2, 0), status: BlockError},
		{name: "wrapping", kind: typeDiscard, payload: segment(^uint64(0), 2, 0), status: BlockError},
		{name: "none", kind: typeDiscard, payload: segment(0, 0, 0), status: BlockError},
		{name: "discard flags", kind: typeDiscard, payload: segment(0, 1, 1), status: BlockUnsupported},
		{name: "zeroes flags", kind: typeWriteZeroes, payload: segment(0, 1, 2), status: BlockUnsupported},
		{name: "two ranges", kind: typeDiscard, payload: append(segment(0, 1, 0), segment(8, 1, 0)...), status: BlockUnsupported},
		{name: "half a range", kind: typeDiscard, payload: segment(0, 1, 0)[:8], status: BlockError},
		{name: "no range", kind: typeDiscard, status: BlockError},
		{name: "write", kind: typeOut, payload: []byte(string(make([]byte, 512))), status: pending, out: device.Output{Kind: BlockWrite, Length: 512, Data: make([]byte, 512)}},
		{name: "write of no sectors", kind: typeOut, payload: make([]byte, 511), status: BlockError},
		{name: "empty write", kind: typeOut, status: BlockError},
		{name: "unknown", kind: 99, status: BlockUnsupported},
		{name: "secure erase", kind: 14, payload: segment(0, 1, 0), status: BlockUnsupported},
		{name: "write to read only", readOnly: true, kind: typeOut, payload: make([]byte, 512), status: BlockError},
		{name: "discard of read only", readOnly: true, kind: typeDiscard, payload: segment(0, 1, 0), status: BlockError},
		{name: "flush of read only", readOnly: true, kind: typeFlush, status: pending, out: device.Output{Kind: BlockFlush}},
	} {
		g, _ := newBlockGuest(t, wantAll, BlockOptions{Size: 1 << 20, ReadOnly: c.readOnly})
		q := g.start(16).vqs[0]
		status := g.bytes(q.request(c.kind, c.payload), 1)[0]
		outs := g.board.drain()
		if status != c.status {
			t.Errorf("%s: status %#x, not %#x", c.name, status, c.status)
		}
		var want []device.Output
		if c.status == pending {
			c.out.ID = 1
			want = []device.Output{c.out}
		}
		if diff := cmp.Diff(want, outs); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
		if back := q.collect(); (len(back) == 1) != (c.status != pending) || g.irq() != uint32(len(back)) {
			t.Errorf("%s: gave back %v", c.name, back)
		}
	}
}

func TestBlockReadBounds(t *testing.T) {
	g, dev := disk(t)
	q := g.start(16).vqs[0]
	for _, c := range []struct {
		sector uint64
		n      int
		ok     bool
	}{{2047, 512, true}, {2047, 1024, false}, {2048, 512, false}, {1 << 55, 512, false}, {^uint64(0), 512, false}, {0, 500, false}} {
		at := q.read(t, c.sector, c.n)
		outs := g.board.drain()
		if (len(outs) == 1) != c.ok {
			t.Errorf("sector %d, %d bytes: %v", c.sector, c.n, outs)
		}
		answerAll(t, dev, outs)
		if status := g.bytes(at+uint64(c.n), 1)[0]; (status == BlockOK) != c.ok {
			t.Errorf("sector %d, %d bytes: status %d", c.sector, c.n, status)
		}
	}
	if g.failed() {
		t.Error("a bad request failed the device")
	}
}

// A read whose pieces are all of RAM, many times, asks for more than is kept.
func TestBlockRequestMax(t *testing.T) {
	for _, write := range []bool{false, true} {
		g, _ := newBlockGuest(t, 0, BlockOptions{Size: 1 << 40})
		q := g.start(256).vqs[0]
		kind, status := uint32(typeIn), piece{g.statusAt(), 1, true}
		if write {
			kind = typeOut
		}
		pieces := []piece{{g.header(kind, 0), 16, false}}
		for range 254 {
			pieces = append(pieces, piece{ramBase, ramSize, !write})
		}
		q.add(append(pieces, status)...)
		q.kick()
		if outs := g.board.drain(); len(outs) != 0 || g.failed() {
			t.Errorf("write %v: %d outputs, failed %v", write, len(outs), g.failed())
		}
		if back := q.collect(); len(back) != 1 {
			t.Errorf("write %v: gave back %v", write, back)
		}
	}
}

func TestBlockIdentify(t *testing.T) {
	g, _ := disk(t)
	q := g.start(16).vqs[0]
	at, status := g.alloc(20), g.statusAt()
	q.add(piece{g.header(typeGetID, 0), 16, false}, piece{at, 20, true}, piece{status, 1, true})
	q.kick()
	if got := string(bytes.TrimRight(g.bytes(at, 20), "\x00")); got != "disk-1" || g.bytes(status, 1)[0] != BlockOK {
		t.Errorf("the serial is %q", got)
	}
	if back := q.collect(); len(back) != 1 || back[0].n != 21 {
		t.Errorf("gave back %v", back)
	}
}

// A device is write-through when the driver cannot flush, or has turned the cache off.
func TestBlockWriteCache(t *testing.T) {
	for _, c := range []struct {
		name  string
		want  uint64
		off   bool
		kinds []uint8
	}{
		{"a driver that flushes", wantAll, false, []uint8{BlockWrite, BlockZero}},
		{"cache off", wantAll, true, []uint8{BlockWrite | BlockStable, BlockZero | BlockStable}},
		{"cannot flush", wantAll &^ (1 << blockFlush), false, []uint8{BlockWrite | BlockStable, BlockZero | BlockStable}},
		{"may not turn it off", wantAll &^ (1 << blockConfigWCE), true, []uint8{BlockWrite, BlockZero}},
	} {
		g, _ := newBlockGuest(t, c.want, BlockOptions{Size: 1 << 20})
		q := g.start(16).vqs[0]
		if c.off {
			g.dev.Store(regConfig+configWriteback, 1, 0)
		}
		q.write(t, 0, make([]byte, 512))
		q.request(typeWriteZeroes, []byte{0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0})
		var kinds []uint8
		for _, out := range g.board.drain() {
			kinds = append(kinds, out.Kind)
		}
		if diff := cmp.Diff(c.kinds, kinds); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
		g.start(16)
		if g.dev.Load(regConfig+configWriteback, 1) != 1 {
			t.Errorf("%s: the cache is off for the next driver", c.name)
		}
	}
}

// Nothing in guest memory changes between the notification and the answer, and what
// goes out is what was there at the notification.
func TestBlockBounce(t *testing.T) {
	g, dev := disk(t)
	q := g.start(16).vqs[0]
	data := bytes.Repeat([]byte{7}, 512)
	w := q.write(t, 4, data)
	r := q.read(t, 8, 512)
	g.put(w, make([]byte, 512)) // the driver may not, but it cannot matter
	before := slices.Clone(g.ram.Bytes())
	outs := g.board.drain()
	if !bytes.Equal(outs[0].Data, data) {
		t.Error("the write is not what was there at the notification")
	}
	if !bytes.Equal(dev.Pending()[0].Data, data) {
		t.Error("what is pending is not what went out")
	}
	if !bytes.Equal(before, g.ram.Bytes()) {
		t.Error("memory changed without an input")
	}
	dev.Deliver(&device.Input{Kind: BlockDone, ID: outs[1].ID, Data: bytes.Repeat([]byte{9}, 512)})
	if !bytes.Equal(g.bytes(r, 513), append(bytes.Repeat([]byte{9}, 512), 0)) {
		t.Error("what was read is not there")
	}
}

// Answers that do not fit: unknown, twice, too short, of a status that there is not.
func TestBlockStrangeAnswers(t *testing.T) {
	g, dev := disk(t)
	q := g.start(16).vqs[0]
	r, w := q.read(t, 0, 512), q.write(t, 0, make([]byte, 512))
	was := saved(dev)
	for _, in := range []device.Input{{Kind: BlockDone, ID: 99}, {Kind: BlockDone}, {Kind: 77, ID: 1}} {
		dev.Deliver(&in)
	}
	if !bytes.Equal(was, saved(dev)) {
		t.Error("an answer to nothing changed something")
	}
	dev.Deliver(&device.Input{Kind: BlockDone, ID: 1, Data: make([]byte, 511)})
	dev.Deliver(&device.Input{Kind: BlockDone, ID: 2, Status: 200})
	dev.Deliver(&device.Input{Kind: BlockDone, ID: 2})
	if a, b := g.bytes(r+512, 1)[0], g.bytes(w+512, 1)[0]; a != BlockError || b != BlockError {
		t.Errorf("status %d and %d", a, b)
	}
	if back := q.collect(); len(back) != 2 {
		t.Errorf("gave back %v", back)
	}
}

// A reset forgets what is in flight; what comes after it waits for what began before it.
func TestBlockResetInFlight(t *testing.T) {
	g, dev := disk(t)
	q := g.start(16).vqs[0]
	q.read(t, 0, 512)
	q.write(t, 0, bytes.Repeat([]byte{1}, 512))
	q.request(typeFlush, nil)
	q.write(t, 8, bytes.Repeat([]byte{2}, 512))
	old := g.board.drain()
	q = g.start(16).vqs[0]
	g.heap += 4096
	before := slices.Clone(g.ram.Bytes())
	at := q.write(t, 0, bytes.Repeat([]byte{3}, 512))
	if outs := g.board.drain(); len(outs) != 0 {
		t.Fatalf("%v overtakes what came before the reset", outs)
	}
	if diff := cmp.Diff(old, dev.Pending()); diff != "" {
		t.Fatalf("pending: %s", diff)
	}
	_, to := disk(t)
	to.ram, to.board = g.ram, g.board
	g.moved(to)
	for _, i := range []int{3, 0, 2} {
		to.Deliver(&device.Input{Kind: BlockDone, ID: old[i].ID, Data: make([]byte, old[i].Length)})
		if outs := g.board.drain(); len(outs) != 0 {
			t.Fatalf("%v overtakes what came before the reset", outs)
		}
	}
	to.Deliver(&device.Input{Kind: BlockDone, ID: old[1].ID})
	outs := g.board.drain()
	if len(outs) != 1 || outs[0].Data[0] != 3 || outs[0].ID <= old[3].ID {
		t.Fatalf("after the last of them: %v", outs)
	}
	copy(before[at-ramBase-16:], g.bytes(at-16, 600)) // the request itself
	to.Deliver(&device.Input{Kind: BlockDone, ID: outs[0].ID})
	if g.bytes(at+512, 1)[0] != BlockOK || len(q.collect()) != 1 {
		t.Error("the write after the reset is not answered")
	}
}

// A driver that resets without end has no more in flight than one that does not: reads,
// too, are the world's until they are answered.
func TestBlockResetStorm(t *testing.T) {
	for _, kind := range []uint32{typeIn, typeOut, typeFlush} {
		g, dev := newBlockGuest(t, wantAll, BlockOptions{Size: 1 << 40})
		asked := int64(0)
		for range 20 {
			q := g.start(256).vqs[0]
			g.heap = ramBase + 0x10_000
			pieces := []piece{{g.header(kind, 0), 16, false}}
			for range 64 {
				pieces = append(pieces, piece{ramBase + 1<<20, sizeMax, kind == typeIn})
			}
			for range 50 {
				q.add(append(slices.Clone(pieces), piece{g.statusAt(), 1, true})...)
			}
			q.kick()
			for _, out := range g.board.drain() {
				asked += max(weight(out), sizeMax)
			}
		}
		if asked > inFlightMax+requestMax || asked == 0 {
			t.Errorf("requests of kind %d: the world is asked for %d bytes at once", kind, asked)
		}
		if len(saved(dev)) > 40<<20 {
			t.Errorf("its state has %d bytes", len(saved(dev)))
		}
	}
}

// The bytes in flight have a bound; what is over it waits in the ring, and goes on
// without a notification.
func TestBlockBackPressure(t *testing.T) {
	g, dev := newBlockGuest(t, wantAll, BlockOptions{Size: 1 << 40})
	q := g.start(256).vqs[0]
	pieces := []piece{{g.header(typeIn, 0), 16, false}}
	for range 64 {
		pieces = append(pieces, piece{ramBase + 1<<20, sizeMax, true})
	}
	for range 100 {
		q.add(append(slices.Clone(pieces), piece{g.statusAt(), 1, true})...)
	}
	q.kick()
	total := 0
	for outs := g.board.drain(); len(outs) > 0; outs = g.board.drain() {
		if len(outs) > 4 {
			t.Fatalf("%d requests of 4 MiB at once", len(outs))
		}
		for _, out := range outs {
			total++
			dev.Deliver(&device.Input{Kind: BlockDone, ID: out.ID, Status: BlockError})
		}
	}
	if total != 100 || len(q.collect()) != 100 {
		t.Errorf("%d requests began", total)
	}
}

// Random requests of a driver against a plain array: many in flight, answered in
// any order, with resets and moves in between.
func TestBlockModel(t *testing.T) {
	for seed := range uint64(20) {
		blockModel(t, rand.New(rand.NewPCG(seed, 1)))
	}
}

// expected is a request whose answer is checked when it comes.
type expected struct {
	at   uint64 // of its status
	data []byte // what a read gives
	from uint64
}

func blockModel(t *testing.T, r *rand.Rand) {
	const sectors = 2048
	features := wantAll
	if r.IntN(2) == 0 {
		features &^= 1<<featureEventIdx | 1<<featureIndirect
	}
	g, dev := newBlockGuest(t, features, BlockOptions{Size: sectors * 512})
	g.start(64)
	disk, model := make(media, sectors*512), make(media, sectors*512)
	var outs []device.Output
	waiting := map[uint16]expected{}
	free := func() uint64 { // a region of 8 sectors that nothing in flight is about
		busy := map[uint64]bool{}
		for _, e := range waiting {
			busy[e.from] = true
		}
		for {
			if s := uint64(r.IntN(sectors/8)) * 8; !busy[s] {
				return s
			}
		}
	}
	finish := func(n int) {
		for ; n > 0 && len(outs) > 0; n-- {
			i := r.IntN(len(outs))
			in := disk.do(t, outs[i])
			outs = slices.Delete(outs, i, i+1)
			dev.Deliver(&in)
			outs = append(outs, g.board.drain()...)
		}
		for _, d := range g.vqs[0].collect() {
			e := waiting[d.head]
			delete(waiting, d.head)
			if s := g.bytes(e.at, 1)[0]; s != BlockOK {
				t.Fatalf("status %d", s)
			}
			if e.data != nil && !bytes.Equal(g.bytes(e.at-uint64(len(e.data)), len(e.data)), e.data) {
				t.Fatal("a read gives something else than was written")
			}
		}
	}
	for range 400 {
		q := g.vqs[0]
		switch k := r.IntN(20); {
		case k < 14 && len(q.free) >= 3 && len(waiting) < 60:
			sector := free()
			n := 512 * (1 + r.IntN(8))
			off := int(sector) * 512
			head := q.free[0]
			if k < 7 {
				at := q.read(t, sector, n)
				waiting[head] = expected{at + uint64(n), slices.Clone(model[off:][:n]), sector}
			} else {
				p := bytes.Repeat([]byte{byte(r.Uint32())}, n)
				at := q.write(t, sector, p)
				copy(model[off:], p)
				waiting[head] = expected{at + uint64(n), nil, sector}
			}
			outs = append(outs, g.board.drain()...)
		case k < 18:
			finish(r.IntN(10))
			if len(waiting) == 0 {
				g.heap = ramBase + 0x10_0000 // nothing of it is in use
			}
		case k == 18:
			to, err := NewBlock(g.board, g.ram, BlockOptions{Size: sectors * 512})
			if err != nil {
				t.Fatal(err)
			}
			g.moved(to)
			dev, outs = to, to.Pending() // the old one's answers are lost
		default:
			g.heap = ramBase + 0x1000
			g.start(64)
			waiting = map[uint16]expected{}
			copy(model, disk)
			for _, out := range dev.Pending() { // the writes that had begun happen, those in the ring do not
				copy(model[out.Offset:], out.Data)
			}
		}
	}
	for len(outs) > 0 {
		finish(64)
	}
	if len(waiting) != 0 || !bytes.Equal(disk, model) {
		t.Fatalf("%d requests are not answered, or the disk is not what was written", len(waiting))
	}
	if !dev.running() || g.failed() {
		t.Fatal("the device failed")
	}
}
