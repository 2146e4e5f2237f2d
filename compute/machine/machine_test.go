package machine

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"testing/iotest"

	"steadfast/compute/device"
	"steadfast/compute/devices"
	"steadfast/fault"
)

func guestConfig() Config {
	return Config{
		Memory: guestMemory, Disks: []Disk{{Size: 1 << 20}}, Nets: []Net{{MAC: [6]byte{2}}},
		CommandLine: "quiet", Seed: bytes.Repeat([]byte{3}, 32), Wall: 1_800_000_000_000_000_000,
	}
}

// newGuest makes up a machine with the tests' guest.
func newGuest(t testing.TB) *Machine {
	t.Helper()
	m, err := New(guestConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, m.Release()) })
	must(t, m.Load(guestKernel(), nil))
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// life is what was recorded.
type life struct {
	log    bytes.Buffer
	states map[uint64][]byte // saved, by count
	out    []device.Output
	hashes map[uint64]Hash
	end    uint64
}

// record lets a guest live with inputs by chance, and logs that.
func record(t testing.TB, seed uint64, turns int) *life {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	m := newGuest(t)
	l := &life{states: map[uint64][]byte{}, hashes: map[uint64]Hash{}}
	w, err := NewLog(&l.log)
	must(t, err)
	last := uint64(0)
	for range turns {
		if r.IntN(2) == 0 {
			m.Run(m.Count() + r.Uint64N(50_000))
		} else if m.RunBusy(m.Count()+r.Uint64N(50_000)) == StopIdle {
			m.Run(min(m.Count()+r.Uint64N(50_000), m.WakeAt()))
		}
		l.out = append(l.out, m.Outputs()...)
		if m.Count() > last && r.IntN(4) == 0 {
			var b bytes.Buffer
			must(t, m.Save(&b))
			l.states[m.Count()] = b.Bytes()
		}
		for range r.IntN(3) {
			in := device.Input{At: m.Count(), Port: PortSerial, Kind: devices.UARTData, Data: []byte{byte(r.Uint32()), byte(r.Uint32())}}
			if r.IntN(3) == 0 {
				in = device.Input{At: m.Count(), Kind: ClockRate, ID: RateMin*50 + r.Uint64N(RateOne*20)}
			}
			must(t, w.Input(&in))
			must(t, m.Deliver(&in))
			last = m.Count()
		}
		if r.IntN(3) == 0 {
			l.hashes[m.Count()] = m.Hash()
			must(t, w.Hash(m.Count(), m.Hash()))
		}
	}
	l.out = append(l.out, m.Outputs()...)
	l.end = m.Count()
	must(t, w.End(l.end))
	return l
}

// TestReplay: a machine that lives by a log is the one that was recorded at each digest,
// and says the same, whether it begins at the beginning or at any state that was saved,
// and however the way there is cut.
func TestReplay(t *testing.T) {
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		l := record(t, seed, 60)
		if len(l.hashes) < 10 || len(l.states) < 3 || len(l.out) < 10 {
			t.Fatalf("%d digests, %d states, %d outputs", len(l.hashes), len(l.states), len(l.out))
		}
		starts := map[uint64]*Machine{0: newGuest(t)}
		for at, b := range l.states {
			m, err := Restore(bytes.NewReader(b))
			must(t, err)
			t.Cleanup(func() { must(t, m.Release()) })
			if m.Count() != at {
				t.Fatalf("saved at %d, restored at %d", at, m.Count())
			}
			starts[at] = m
		}
		r := rand.New(rand.NewPCG(seed, 2))
		for from, m := range starts {
			log, err := ReadLog(bytes.NewReader(l.log.Bytes()))
			must(t, err)
			p, err := NewReplay(m, log)
			must(t, err)
			var out []device.Output
			p.Out = func(o device.Output) { out = append(out, o) }
			for !p.Done() {
				must(t, p.Run(m.Count()+r.Uint64N(80_000)))
			}
			later := slices.DeleteFunc(slices.Clone(l.out), func(o device.Output) bool { return o.At < from })
			if m.Count() != l.end || !sameOutputs(out, later) {
				t.Errorf("from %d: ended at %d of %d, with %d outputs of %d", from, m.Count(), l.end, len(out), len(later))
			}
			if from == 0 && p.Compared < uint64(len(l.hashes)) {
				t.Errorf("%d digests were compared", p.Compared)
			}
			if m.Hash() != m.HashAnew() {
				t.Error("the digest that was kept is not that of the memory")
			}
		}
	}
}

func sameOutputs(a, b []device.Output) bool {
	return slices.EqualFunc(a, b, func(x, y device.Output) bool {
		return x.At == y.At && x.Port == y.Port && x.Kind == y.Kind && x.ID == y.ID && bytes.Equal(x.Data, y.Data)
	})
}

// TestDivergence: a machine that is another is found out.
func TestDivergence(t *testing.T) {
	l := record(t, 9, 60)
	for name, spoil := range map[string]func(m *Machine){
		"a byte of memory": func(m *Machine) { m.RAM().Write([]byte{0xee}, ramBase+guestMemory-1) },
		"the clock":        func(m *Machine) { m.clock.SetRate(m.Count(), rateStart+1) },
		"the wall clock":   func(m *Machine) { m.wall++ },
	} {
		m := newGuest(t)
		spoil(m)
		log, err := ReadLog(bytes.NewReader(l.log.Bytes()))
		must(t, err)
		p, err := NewReplay(m, log)
		must(t, err)
		if err := p.Run(never); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTornLog: a log whose end is missing is one until there; one that is damaged says so.
func TestTornLog(t *testing.T) {
	l := record(t, 5, 10)
	whole := l.log.Bytes()
	entries := func(b []byte) (n int, err error) {
		log, err := ReadLog(bytes.NewReader(b))
		for err == nil {
			if _, err = log.Next(); err == nil {
				n++
			}
		}
		return n, err
	}
	all, err := entries(whole)
	if !errors.Is(err, io.EOF) || all < 5 {
		t.Fatal(all, err)
	}
	last := 0
	for cut := len(logMagic) + 1; cut < len(whole); cut++ {
		n, err := entries(whole[:cut])
		if !errors.Is(err, io.EOF) || n < last {
			t.Fatalf("cut at %d of %d: %d entries, %v", cut, len(whole), n, err)
		}
		last = n
	}
	bad := 0
	for at := len(logMagic) + 1; at < len(whole)-20; at++ {
		b := slices.Clone(whole)
		b[at] ^= 0x10
		if n, err := entries(b); n == all && errors.Is(err, io.EOF) {
			t.Errorf("a flipped bit at %d is not noticed", at)
		} else if fault.Is(err, fault.Corrupt) {
			bad++
		}
	}
	if bad == 0 {
		t.Error("no damage was called so")
	}
}

// TestRefused: what a machine cannot be.
func TestRefused(t *testing.T) {
	for name, c := range map[string]Config{
		"little memory": {Memory: 1 << 20},
		"odd memory":    {Memory: MemoryMin + 1},
		"odd disk":      {Memory: MemoryMin, Disks: []Disk{{Size: 100}}},
		"short seed":    {Memory: MemoryMin, Seed: []byte{1}},
		"group address": {Memory: MemoryMin, Nets: []Net{{MAC: [6]byte{1}}}},
	} {
		if _, err := New(c); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := newGuest(t)
	if err := m.Deliver(&device.Input{At: 5}); !fault.Is(err, fault.Invalid) {
		t.Errorf("an input of another count: %v", err)
	}
	must(t, m.Deliver(&device.Input{Port: 900}))
	if err := m.Load([]byte("no kernel"), nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("no kernel: %v", err)
	}
}

// FuzzRestore: bytes that are no saved machine are refused, whatever they are.
func FuzzRestore(f *testing.F) {
	m := newGuest(f)
	m.Run(10_000)
	var b bytes.Buffer
	must(f, m.Save(&b))
	f.Add(b.Bytes()[:2000])
	f.Add([]byte(stateMagic + "\x01"))
	f.Fuzz(func(t *testing.T, p []byte) {
		m, err := Restore(bytes.NewReader(p))
		if err == nil {
			must(t, m.Release())
		} else if k := fault.KindOf(err); k != fault.Corrupt && k != fault.Invalid {
			t.Fatal(err)
		}
	})
}

// FuzzLog: likewise for a log.
func FuzzLog(f *testing.F) {
	var b bytes.Buffer
	w, err := NewLog(&b)
	must(f, err)
	must(f, w.Input(&device.Input{At: 3, Port: 1, Kind: 1, ID: 1 << 40, Data: []byte("x")}))
	must(f, w.End(4))
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, p []byte) {
		l, err := ReadLog(bytes.NewReader(p))
		for err == nil {
			_, err = l.Next()
		}
		if k := fault.KindOf(err); !errors.Is(err, io.EOF) && k != fault.Corrupt && k != fault.Invalid {
			t.Fatal(err)
		}
	})
}

// TestLogCannotBeRead: a file that fails is not a log that ends, nor is a length that is none.
func TestLogCannotBeRead(t *testing.T) {
	var b bytes.Buffer
	w, err := NewLog(&b)
	must(t, err)
	must(t, w.Input(&device.Input{At: 3, Port: 1, Kind: 1, Data: make([]byte, 100)}))
	must(t, w.Flush())
	whole := b.Len()
	must(t, w.End(4))
	for cut := len(logMagic) + 1; cut < b.Len(); cut++ {
		l, err := ReadLog(io.MultiReader(bytes.NewReader(b.Bytes()[:cut]), iotest.ErrReader(os.ErrPermission)))
		must(t, err)
		if cut >= whole {
			_, err = l.Next()
			must(t, err)
		}
		if _, err := l.Next(); !errors.Is(err, os.ErrPermission) || !fault.Is(err, fault.Failed) {
			t.Errorf("a file that cannot be read from %d on: %v", cut, err)
		}
	}
	l, err := ReadLog(bytes.NewReader(append(b.Bytes()[:len(logMagic)+1:whole], bytes.Repeat([]byte{0xff}, 20)...)))
	must(t, err)
	if _, err := l.Next(); !fault.Is(err, fault.Corrupt) {
		t.Errorf("a length of more than 64 bits: %v", err)
	}
}
