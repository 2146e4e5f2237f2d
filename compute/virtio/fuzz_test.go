package virtio

import (
	"bytes"
	"encoding/binary"
	"testing"

	"steadfast/compute/device"
	"steadfast/compute/memory"
)

// workMax is how many bytes one access may make a device hand out or write: what the
// bounds of the devices come to. A guest can ask for no more.
const workMax = 40 << 20

// FuzzDevices has bytes drive every kind of device: accesses, the contents of the
// memory with the queues, inputs, and moves. Nothing panics, no access makes more work
// than its bound, a state that was saved restores to the same, and the interrupt line
// is what the status says.
func FuzzDevices(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		for kind := range kinds {
			fuzzOne(t, kind, script)
		}
	})
}

var kinds = []func(b device.Board, ram *memory.RAM) (device.Device, error){
	func(b device.Board, ram *memory.RAM) (device.Device, error) {
		return NewBlock(b, ram, BlockOptions{Size: 1 << 40, Serial: "fuzz"})
	},
	func(b device.Board, ram *memory.RAM) (device.Device, error) {
		return NewNet(b, ram, NetOptions{MTU: NetMTUMax})
	},
	func(b device.Board, ram *memory.RAM) (device.Device, error) {
		return NewConsole(b, ram, ConsoleOptions{}), nil
	},
	func(b device.Board, ram *memory.RAM) (device.Device, error) { return NewEntropy(b, ram), nil },
	func(b device.Board, ram *memory.RAM) (device.Device, error) { return NewButton(b, ram), nil },
}

// Opcodes of a fuzz script.
const (
	opStore = iota // register (u8, in units of 4), value (u32)
	opBoot         // the steps of a driver up to DRIVER_OK, with queue size 1 << u8%9
	opFill         // offset (u16), length (u8), bytes
	opQueue        // queue (u8): notify
	opOffer        // queue (u8), head (u16), count (u8): available ring
	opDesc         // queue, index (u8 each), offset (u16), length (u32), flags, next (u8 each)
	opInput        // kind, status, ID, length (u8 each)
	opMove
	opConfig // offset, size, value (u8 each)
	opCount
)

// reader takes a script apart; at its end there are zeros.
type reader struct{ b []byte }

func (r *reader) u8() byte {
	if len(r.b) == 0 {
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}
func (r *reader) u16() uint16 { return uint16(r.u8()) | uint16(r.u8())<<8 }
func (r *reader) u32() uint32 { return uint32(r.u16()) | uint32(r.u16())<<16 }

const (
	fuzzRAM    = 1 << 20
	fuzzQueues = ramBase + 0x8000 // where opBoot puts queue i: 0x4000 each
)

func fuzzOne(t *testing.T, kind int, script []byte) {
	ram, err := memory.New(ramBase, fuzzRAM)
	if err != nil {
		t.Fatal(err)
	}
	defer ram.Release() //nolint:errcheck // the test is over
	b := &board{}
	dev, err := kinds[kind](b, ram)
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{script}
	for steps := 0; len(r.b) > 0 && steps < 200; steps++ {
		switch op := r.u8() % opCount; op {
		case opMove:
			to, err := kinds[kind](b, ram)
			if err != nil {
				t.Fatal(err)
			}
			was := saved(dev)
			if err := to.Restore(device.NewDecoder(was)); err != nil {
				t.Fatalf("kind %d: %v", kind, err)
			}
			if !bytes.Equal(was, saved(to)) {
				t.Fatalf("kind %d: a state restores to another", kind)
			}
			dev = to
		default:
			fuzzStep(op, r, dev, ram)
		}
		work := 0
		for _, out := range b.drain() {
			work += len(out.Data)
		}
		if work > workMax {
			t.Fatalf("kind %d: %d bytes at once", kind, work)
		}
		if up := dev.Load(regInterruptStatus, 4) != 0; up != b.level {
			t.Fatalf("kind %d: the line is %v", kind, b.level)
		}
	}
}

func fuzzStep(op byte, r *reader, dev device.Device, ram *memory.RAM) {
	queue := func(i byte) uint64 { return fuzzQueues + uint64(i%4)*0x4000 }
	le := binary.LittleEndian
	switch op {
	case opStore:
		dev.Store(uint64(r.u8())*4, 4, uint64(r.u32()))
	case opBoot:
		fuzzBoot(dev, uint32(1)<<(r.u8()%9))
	case opFill:
		at := ramBase + uint64(r.u16())
		for range r.u8() {
			ram.Write([]byte{r.u8()}, at)
			at++
		}
	case opQueue:
		dev.Store(regQueueNotify, 4, uint64(r.u8()%4))
	case opOffer:
		avail := queue(r.u8()) + 0x2000
		head, n := r.u16(), r.u8()
		var p [2]byte
		ram.Read(p[:], avail+2)
		idx := le.Uint16(p[:])
		for range n {
			ram.Write(le.AppendUint16(nil, head), avail+4+2*uint64(idx%256))
			idx++
		}
		ram.Write(le.AppendUint16(nil, idx), avail+2)
	case opDesc:
		q, i := queue(r.u8()), uint64(r.u8())
		ram.Write(encode(ramBase+uint64(r.u16())*8, r.u32(), uint16(r.u8()), uint16(r.u8())), q+16*i)
	case opInput:
		in := device.Input{Kind: r.u8() % 4, Status: r.u8(), ID: uint64(r.u8())}
		in.Data = make([]byte, int(r.u8())*8)
		dev.Deliver(&in)
	case opConfig:
		at, size := uint64(r.u8()), 1<<(r.u8()%4)
		dev.Store(regConfig+at, size, uint64(r.u8()))
		dev.Load(regConfig+at, size)
	}
}

// fuzzBoot is a driver with both queues at their places, and all features.
func fuzzBoot(dev device.Device, size uint32) {
	w := func(reg uint64, v uint32) { dev.Store(reg, 4, uint64(v)) }
	w(regStatus, 0)
	w(regStatus, statusAcknowledge|statusDriver)
	for sel := range uint32(2) {
		w(regDeviceFeaturesSel, sel)
		w(regDriverFeaturesSel, sel)
		w(regDriverFeatures, uint32(dev.Load(regDeviceFeatures, 4)))
	}
	w(regStatus, statusAcknowledge|statusDriver|statusFeaturesOK)
	for i := range uint32(2) {
		base := uint32(fuzzQueues + i*0x4000)
		w(regQueueSel, i)
		w(regQueueNum, min(size, uint32(dev.Load(regQueueNumMax, 4))))
		w(regQueueDescLow, base)
		w(regQueueDriverLow, base+0x2000)
		w(regQueueDeviceLow, base+0x3000)
		if dev.Load(regQueueNumMax, 4) != 0 {
			w(regQueueReady, 1)
		}
	}
	w(regStatus, statusAcknowledge|statusDriver|statusFeaturesOK|statusDriverOK)
}

// seeds are scripts that reach the insides of each kind.
func seeds() [][]byte {
	boot := []byte{opBoot, 4}
	desc := func(q, i byte, at uint16, n uint32, flags, next byte) []byte {
		s := binary.LittleEndian.AppendUint16([]byte{opDesc, q, i}, at)
		return append(binary.LittleEndian.AppendUint32(s, n), flags, next)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	var all [][]byte
	for _, request := range []byte{typeIn, typeOut, typeFlush, typeGetID, typeDiscard, typeWriteZeroes} {
		write := byte(0)
		if request == typeIn || request == typeGetID {
			write = descWrite
		}
		all = append(all, join(boot, []byte{opFill, 0, 0x10, 1, request},
			desc(0, 0, 0x200, 16, descNext, 1), desc(0, 1, 0x300, 512, descNext|write, 2), desc(0, 2, 0x400, 1, descWrite, 0),
			[]byte{opOffer, 0, 0, 0, 2, opQueue, 0, opMove, opInput, 1, 0, 1, 64, opInput, 1, 1, 2, 0, opBoot, 3, opQueue, 0}))
	}
	all = append(all,
		join(boot, desc(0, 0, 0x200, 2000, descWrite, 0), desc(1, 0, 0x300, 80, 0, 0),
			[]byte{opOffer, 0, 0, 0, 8, opOffer, 1, 0, 0, 8, opQueue, 1, opInput, 1, 1, 1, 16, opMove, opInput, 2, 0, 0, 1, opQueue, 0, opQueue, 1}),
		join(boot, desc(0, 0, 0x200, 64, descIndirect, 0), []byte{opFill, 0, 0x10, 16, 0, 0x20, 0, 0x80, 0, 0, 0, 0, 16, 0, 0, 0, 2, 0, 0, 0},
			[]byte{opOffer, 0, 0, 0, 1, opQueue, 0, opInput, 1, 1, 1, 30, opMove}),
		join(boot, []byte{opConfig, 0, 0, 0x11, opConfig, 1, 0, 1, opInput, 1, 0, 0, 0, opStore, 0x19, 3, 0, 0, 0}))
	return all
}

// FuzzRestore has bytes be a saved state: it is refused, or works without a panic.
func FuzzRestore(f *testing.F) {
	g, dev := disk(f)
	q := g.start(16).vqs[0]
	q.write(f, 0, make([]byte, 512))
	q.read(f, 8, 512)
	f.Add(uint8(0), saved(dev))
	f.Fuzz(func(t *testing.T, kind uint8, state []byte) {
		ram, err := memory.New(ramBase, fuzzRAM)
		if err != nil {
			t.Fatal(err)
		}
		defer ram.Release() //nolint:errcheck // the test is over
		b := &board{}
		i := int(kind) % len(kinds)
		dev, err := kinds[i](b, ram)
		if err != nil {
			t.Fatal(err)
		}
		// Past the head, which is what it is for this kind.
		if head := saved(dev)[:13]; len(state) >= len(head) {
			copy(state, head)
		}
		if dev.Restore(device.NewDecoder(state)) != nil {
			return
		}
		for id := range uint64(8) {
			dev.Deliver(&device.Input{Kind: 1, ID: id, Data: make([]byte, 512)})
		}
		for q := range uint64(2) {
			dev.Store(regQueueNotify, 4, q)
		}
		dev.Store(regStatus, 4, 0)
	})
}
