package machine

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"steadfast/block"
	"steadfast/compute/device"
	"steadfast/compute/devices"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/virtio"
	"steadfast/fault"
)

// What a hostile guest must not go beyond.
const (
	// accessMax is what one access can have a device move, in bytes: a queue of frames.
	accessMax = 40 << 20
	// askedMax is what a disk can have the world owe it, in bytes: what is in flight, and a
	// request more.
	askedMax = 36 << 20
	// owedMax is how many requests that may be.
	owedMax = 512
	// sliceTime is what a slice may take, which it needs a hundredth of.
	sliceTime = 10 * time.Second
)

const hostileSlices = 12

func hostileConfig() Config {
	return Config{
		Memory: MemoryMin, Disks: []Disk{{Size: 8 << 20}}, Nets: []Net{{MAC: [6]byte{2}}},
		Seed: bytes.Repeat([]byte{5}, 32), Wall: 1_800_000_000_000_000_000,
	}
}

// world is the other side of a hostile guest: it plays the rest of the script, and logs
// what comes of it.
type world struct {
	t      testing.TB
	m      *Machine
	script []byte
	log    bytes.Buffer
	w      *LogWriter
	owed   []device.Output // disks' requests without an answer
	said   xxh3.Hasher     // all that went out
	late   xxh3.Hasher     // and since the machine was saved
	fed    bool            // something came in at the present count
	state  []byte          // the machine half way
	// largest is the most bytes that went out in one slice.
	largest int
}

func (w *world) u8() byte {
	if len(w.script) == 0 {
		return 0
	}
	v := w.script[0]
	w.script = w.script[1:]
	return v
}
func (w *world) u16() uint64 { return uint64(w.u8()) | uint64(w.u8())<<8 }

// run is a slice of the guest's life.
func (w *world) run(cut byte, counts uint64) (ended bool) {
	began, at := time.Now(), w.m.Count()
	var stop Stop
	if cut&1 == 0 {
		stop = w.m.Run(at + counts)
	} else if stop = w.m.RunBusy(at + counts); stop == StopIdle {
		stop = w.m.Run(min(at+counts, w.m.WakeAt()))
	}
	if took := time.Since(began); took > sliceTime {
		w.t.Errorf("%d instructions take %v", w.m.Count()-at, took)
	}
	w.fed = w.fed && w.m.Count() == at
	w.take()
	return stop == StopEnded
}

// take takes what has gone out, and judges how much that is.
func (w *world) take() {
	bytes := 0
	for _, o := range w.m.Outputs() {
		bytes += outputCost + len(o.Data)
		note(&w.said, o)
		note(&w.late, o)
		if o.Port == w.m.DiskPort(0) {
			w.owed = append(w.owed, o)
		}
	}
	w.largest = max(w.largest, bytes)
	owed := int64(0)
	for _, o := range w.owed {
		if kind := o.Kind &^ virtio.BlockStable; kind == virtio.BlockRead || kind == virtio.BlockWrite {
			owed += o.Length
		}
	}
	if bytes > spentMax+accessMax || owed > askedMax || len(w.owed) > owedMax {
		w.t.Fatalf("%d bytes went out at once, and the disk is owed %d requests of %d bytes", bytes, len(w.owed), owed)
	}
}

func note(h *xxh3.Hasher, o device.Output) {
	var b []byte
	for _, v := range []uint64{o.At, uint64(o.Port), uint64(o.Kind), o.ID, uint64(o.Offset), uint64(o.Length), uint64(len(o.Data))} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	_, _ = h.Write(b)      // never fails
	_, _ = h.Write(o.Data) // nor does this
}

// deliver logs an input, and delivers it.
func (w *world) deliver(in device.Input) {
	in.At = w.m.Count()
	must(w.t, w.w.Input(&in))
	must(w.t, w.m.Deliver(&in))
	w.fed = true
	w.take()
}

// answer answers one of the requests that are owed, rightly or not.
func (w *world) answer(which, status byte, short uint64) {
	if len(w.owed) == 0 {
		return
	}
	i := int(which) % len(w.owed)
	o := w.owed[i]
	w.owed = slices.Delete(w.owed, i, i+1)
	in := device.Input{Port: o.Port, Kind: virtio.BlockDone, ID: o.ID, Status: status}
	if o.Kind == virtio.BlockRead {
		in.Data = make([]byte, max(o.Length-int64(short), 0))
		for i := range in.Data {
			in.Data[i] = byte(i) ^ which
		}
	}
	w.deliver(in)
}

// act is one thing that the world does.
func (w *world) act() {
	m := w.m
	switch w.u8() % 16 {
	case 0, 1, 2, 3:
		w.answer(w.u8(), virtio.BlockOK, 0)
	case 4:
		w.answer(w.u8(), w.u8(), w.u16())
	case 5:
		w.deliver(device.Input{Port: m.DiskPort(0), Kind: virtio.BlockDone, ID: uint64(w.u8()), Data: make([]byte, block.SectorSize)})
	case 6, 7:
		w.deliver(device.Input{Port: m.NetPort(0), Kind: virtio.NetFrame, Data: bytes.Repeat([]byte{w.u8()}, int(w.u16()%2000))})
	case 8:
		w.deliver(device.Input{Port: PortSerial, Kind: devices.UARTData, Data: bytes.Repeat([]byte{w.u8()}, int(w.u8()))})
	case 9:
		w.deliver(device.Input{Kind: ClockRate, ID: w.u16() << (w.u8() % 40)})
	case 10:
		w.deliver(device.Input{Kind: WallSet, ID: w.u16() << (w.u8() % 64)})
	case 11:
		w.deliver(device.Input{Port: m.ButtonPort(), Kind: virtio.ButtonPress})
	case 12:
		w.deliver(device.Input{Port: m.DiskPort(0), Kind: virtio.BlockResized, Data: binary.LittleEndian.AppendUint64(nil, w.u16()*block.SectorSize)})
	case 13:
		w.deliver(device.Input{Port: m.NetPort(0), Kind: virtio.NetLink, Status: w.u8() & 1})
	case 14:
		w.deliver(device.Input{Port: m.EntropyPort(), Kind: virtio.EntropyAnswer, ID: uint64(w.u8()), Data: bytes.Repeat([]byte{w.u8()}, 64)})
	case 15:
		w.deliver(device.Input{Port: device.Port(w.u8()), Kind: w.u8(), Status: w.u8(), ID: uint64(w.u8()), Data: make([]byte, w.u8())})
	}
}

// keep saves the machine, once, where it may be saved.
func (w *world) keep() {
	if w.state != nil || w.fed {
		return
	}
	var b bytes.Buffer
	must(w.t, w.m.Save(&b))
	w.state = b.Bytes()
	w.late.Reset()
}

// live records a hostile guest's life.
func live(t testing.TB, kernel, script []byte) *world {
	w := &world{t: t, m: hostileMachine(t, kernel), script: script}
	defer func() { must(t, w.m.Release()) }()
	log, err := NewLog(&w.log)
	must(t, err)
	w.w = log
	for n := range hostileSlices {
		if w.run(w.u8(), w.u16()+1) {
			if m := w.m; m.End() != Restarts || w.u8()&3 == 3 {
				break
			}
			w.deliver(device.Input{Kind: Restart, Data: bytes.Repeat([]byte{byte(n)}, 32)})
		}
		// To save it, and to look at all its memory, takes longer than all else.
		if n >= hostileSlices/2 && len(script)%4 == 0 {
			w.keep()
		}
		for range w.u8() % 4 {
			w.act()
		}
		if n%4 == 0 {
			must(t, w.w.Hash(w.m.Count(), w.m.Hash()))
		}
	}
	if len(script)%16 == 0 && w.m.Hash() != w.m.HashAnew() {
		t.Error("the digest that was kept is not that of the memory")
	}
	must(t, w.w.Hash(w.m.Count(), w.m.Hash()))
	must(t, w.w.End(w.m.Count()))
	return w
}

func hostileMachine(t testing.TB, kernel []byte) *Machine {
	m, err := New(hostileConfig())
	must(t, err)
	m.Reload = func() ([]byte, []byte, error) { return kernel, nil, nil }
	if err := m.Load(kernel, nil); err != nil {
		must(t, m.Release())
		t.Fatal(err)
	}
	return m
}

// again lives it again, from a state or the beginning, in pieces of other sizes.
func (w *world) again(m *Machine, piece uint64) (said []byte) {
	defer func() { must(w.t, m.Release()) }()
	log, err := ReadLog(bytes.NewReader(w.log.Bytes()))
	must(w.t, err)
	r, err := NewReplay(m, log)
	must(w.t, err)
	var h xxh3.Hasher
	count := uint64(0)
	r.Out = func(o device.Output) { note(&h, o) }
	for !r.Done() {
		if err := r.Run(m.Count() + piece); err != nil {
			w.t.Fatalf("from %d: %v", count, err)
		}
	}
	if m.Count() != w.m.Count() || m.End() != w.m.End() {
		w.t.Fatalf("it has come to %d (%s), and was at %d (%s)", m.Count(), m.End(), w.m.Count(), w.m.End())
	}
	if r.Compared == 0 {
		w.t.Error("no digest was compared")
	}
	return h.Sum(nil)
}

// hostileLife has a script's guest live, and live again in other ways: it is the same life.
func hostileLife(t testing.TB, script []byte) *world {
	kernel, rest := machinetest.Hostile(script)
	w := live(t, kernel, rest)
	piece := uint64(len(script))*37%5000 + 200
	if said := w.again(hostileMachine(t, kernel), piece); !bytes.Equal(said, w.said.Sum(nil)) {
		t.Error("it says something else when it lives again")
	}
	if w.state != nil {
		m, err := Restore(bytes.NewReader(w.state))
		must(t, err)
		m.Reload = w.m.Reload
		if said := w.again(m, piece*3); !bytes.Equal(said, w.late.Sum(nil)) {
			t.Error("it says something else when it lives on from a state")
		}
	}
	return w
}

// FuzzHostile: a guest that does what it likes to its devices, SBI, page tables, registers
// and code, in a world that answers late, wrongly or not at all, ends at most itself: no
// panic, no more memory and time than the bounds above. It lives again from its log, from
// the beginning and from the middle, with the same digests and outputs.
func FuzzHostile(f *testing.F) {
	for i, s := range hostileSeeds() {
		if !testing.Short() || i%4 == 0 {
			f.Add(s)
		}
	}
	f.Fuzz(func(t *testing.T, script []byte) { hostileLife(t, script) })
}

// TestHostileSeeds: the seeds reach what they are for.
func TestHostileSeeds(t *testing.T) {
	if testing.Short() {
		t.Skip("FuzzHostile has some of them")
	}
	var out, largest int
	ends := map[End]bool{}
	for _, s := range hostileSeeds() {
		w := hostileLife(t, s)
		out += len(w.owed)
		largest = max(largest, w.largest)
		ends[w.m.End()] = true
	}
	if out == 0 || largest < spentMax || !ends[PoweredOff] || !ends[Restarts] || !ends[Wedged] {
		t.Errorf("%d requests without an answer, %d bytes at once at most, ends %v", out, largest, ends)
	}
}

// TestRefusedState: a state whose length is a lie is refused without making room for it.
func TestRefusedState(t *testing.T) {
	cfg := hostileConfig()
	cfg.Disks = slices.Repeat(cfg.Disks, DisksMax)
	b, err := cfg.Encode()
	must(t, err)
	state := append([]byte(stateMagic), StateVersion)
	state = append(binary.LittleEndian.AppendUint32(state, uint32(len(b))), b...)
	state = binary.LittleEndian.AppendUint32(state, partsMax+DisksMax*diskPartMax)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Restore(bytes.NewReader(state)); !fault.Is(err, fault.Corrupt) {
		t.Error(err)
	}
	if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 16<<20 {
		t.Errorf("%d bytes were made room for", after.TotalAlloc-before.TotalAlloc)
	}
}

// TestLoadedState: a guest with much in flight on each of its disks is saved and restored.
func TestLoadedState(t *testing.T) {
	cfg := hostileConfig()
	cfg.Disks = slices.Repeat(cfg.Disks, 5)
	m, err := New(cfg)
	must(t, err)
	defer func() { must(t, m.Release()) }()
	const queue, header, data = ramBase + 1<<20, ramBase + 2<<20, ramBase + 3<<20
	m.RAM().Write([]byte{1}, header) // VIRTIO_BLK_T_OUT
	for i, d := range []struct {
		addr        uint64
		n           uint32
		flags, next uint16
	}{{header, 16, 1, 1}, {data, 4 << 20, 1, 2}, {header + 16, 1, 2, 0}} {
		b := binary.LittleEndian.AppendUint64(nil, d.addr)
		b = binary.LittleEndian.AppendUint32(b, d.n)
		b = binary.LittleEndian.AppendUint16(b, d.flags)
		m.RAM().Write(binary.LittleEndian.AppendUint16(b, d.next), queue+16*uint64(i))
	}
	m.RAM().Write([]byte{0, 0, 100}, queue+0x2000) // a hundred times the chain of descriptor 0
	for i := range cfg.Disks {
		at := uint64(virtioBase + i*deviceSize)
		for _, w := range [][2]uint64{
			{0x70, 0},
			{0x70, 3},
			{0x24, 1},
			{0x20, 1},
			{0x70, 11},
			{0x38, 128},
			{0x80, queue},
			{0x90, queue + 0x2000},
			{0xa0, queue + 0x3000},
			{0x44, 1},
			{0x70, 15},
			{0x50, 0},
		} {
			m.store(at+w[0], 4, w[1])
		}
	}
	if n := len(m.Pending()); n != 4*len(cfg.Disks) {
		t.Fatalf("%d requests are in flight", n)
	}
	var b bytes.Buffer
	must(t, m.Save(&b))
	to, err := Restore(&b)
	must(t, err)
	if to.Hash() != m.Hash() {
		t.Error("it is another machine")
	}
	must(t, to.Release())
}
