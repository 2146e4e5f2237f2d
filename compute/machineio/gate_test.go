package machineio

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"steadfast/block"
	"steadfast/compute/device"
	"steadfast/compute/machine"
)

// turnstile is a gate that lets nothing leave by itself.
type turnstile struct {
	mu     sync.Mutex
	stand  uint64
	halted error
	outs   []device.Output
	inputs int
	read   int // inputs of disks, with what was read
	wasted int // how many times that one of them keeps, at most
	count  uint64
	ended  []bool
}

func (g *turnstile) Turn(*machine.Machine) (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stand, g.halted
}

func (g *turnstile) Delivered(in *device.Input) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inputs++
	if len(in.Data) >= block.SectorSize { // of a disk
		g.read++
		g.wasted = max(g.wasted, cap(in.Data)/len(in.Data))
	}
}

func (g *turnstile) Ran(count, _ uint64, out []device.Output) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count = count
	g.outs = append(g.outs, out...)
}

func (g *turnstile) Ended(guest bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = append(g.ended, guest)
	return nil
}

func (g *turnstile) set(stand uint64, halted error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stand, g.halted = stand, halted
}

// page keeps what is written.
type page struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (p *page) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.Write(b)
}

func (p *page) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.String()
}

// eventually waits for what should take moments.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it takes too long until " + what)
		}
	}
}

// TestGate: from Attach on nothing leaves by itself, everything is told, and a machine
// that is to stand still does, and answers meanwhile.
func TestGate(t *testing.T) {
	w, g := &page{}, &turnstile{}
	l, err := New(newObey(t), Options{Disks: []block.Device{noDisk{}}, Wires: []Wire{nil}, Serial: w})
	must(t, err)
	stop, ended := lives(t, l)
	defer stop()
	eventually(t, "it is up", func() bool { return w.text() == "up\n" })
	if !l.Attach(g, func(*machine.Machine) {}) {
		t.Fatal("it has ended")
	}
	l.Type([]byte("x"))
	held := func() (n int) {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.outs)
	}
	eventually(t, "it answers", func() bool { return held() > 0 })
	if s := w.text(); s != "up\n" {
		t.Errorf("%q left", s)
	}
	g.mu.Lock()
	outs := g.outs
	g.mu.Unlock()
	l.Leave(outs)
	eventually(t, "it leaves", func() bool { return w.text() == "up\nx" })

	g.set(1_000_000_000, nil)
	l.Wake()
	at := func() (n uint64) {
		if !l.Call(func(m *machine.Machine) { n = m.Count() }) {
			t.Fatal("it has ended")
		}
		return n
	}
	at() // it stands by now, or after this
	at()
	first := at()
	l.Type([]byte("y"))
	for range 5 {
		if n := at(); n != first {
			t.Fatalf("it stands still, and came from %d to %d", first, n)
		}
	}
	g.set(0, nil)
	l.Wake()
	eventually(t, "it goes on", func() bool { return held() > 1 })
	l.Type([]byte("q"))
	if end := within(t, ended); end != machine.PoweredOff {
		t.Errorf("ended: %v", end)
	}
	if len(g.ended) != 1 || !g.ended[0] || g.inputs < 3 {
		t.Errorf("ended %v, %d inputs", g.ended, g.inputs)
	}
	if l.Attach(g, func(*machine.Machine) {}) {
		t.Error("a life that has ended has another gate")
	}
}

// blank is a disk of zeros.
type blank struct{ noDisk }

func (blank) ReadAt(p []byte, _ int64) error {
	clear(p)
	return nil
}

// TestGateKeeps: what a gate is given of a disk to keep has no more memory behind it than twice that.
func TestGateKeeps(t *testing.T) {
	g := &turnstile{}
	l, err := New(newObey(t), Options{Disks: []block.Device{blank{}}, Wires: []Wire{nil}, Serial: &page{}})
	must(t, err)
	stop, _ := lives(t, l)
	defer stop()
	if !l.Attach(g, func(*machine.Machine) {}) {
		t.Fatal("it has ended")
	}
	eventually(t, "it reads its disk", func() bool {
		l.Type([]byte("d"))
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, o := range g.outs {
			l.Leave([]device.Output{o})
		}
		g.outs = nil
		return g.read > 0
	})
	if g.mu.Lock(); g.wasted > 2 {
		t.Errorf("it keeps %d times what was read", g.wasted)
	}
	g.mu.Unlock()
}

// TestGateHalts: a gate's error ends the life, whatever is under way.
func TestGateHalts(t *testing.T) {
	d := slow{began: make(chan struct{}), gone: make(chan struct{})}
	g := &turnstile{}
	l, err := New(newObey(t), Options{Disks: []block.Device{d}, Wires: []Wire{nil}, Gate: g, LetGo: func() { close(d.gone) }})
	must(t, err)
	failed := make(chan error, 1)
	go func() {
		_, err := l.Run(t.Context())
		failed <- err
	}()
	l.Type([]byte("d"))
	read := func() (out []device.Output) {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, o := range g.outs {
			if o.Port == l.m.DiskPort(0) {
				out = append(out, o)
			}
		}
		return out
	}
	eventually(t, "it reads", func() bool { return len(read()) > 0 })
	l.Leave(read())
	within(t, d.began)
	halted := errors.New("another has it")
	g.set(0, halted)
	l.Wake()
	if err := within(t, failed); !errors.Is(err, halted) {
		t.Errorf("ended: %v", err)
	}
	if len(g.ended) != 1 || g.ended[0] {
		t.Errorf("ended %v", g.ended)
	}
}

// TestResumed: a life that goes on has what it is to send first, and the time that has passed
// is made up for as a stall's.
func TestResumed(t *testing.T) {
	w := &page{}
	m := newObey(t)
	const behind = 300 * time.Millisecond
	l, err := New(m, Options{
		Disks: []block.Device{noDisk{}}, Wires: []Wire{nil}, Serial: w,
		Resumed: &Resumed{Host: bootTime() - uint64(behind), Guest: m.Now(), Outputs: []device.Output{{Port: machine.PortSerial, Data: []byte("before ")}}},
	})
	must(t, err)
	stop, ended := lives(t, l)
	eventually(t, "it is up", func() bool { return w.text() == "before up\n" })
	eventually(t, "the lag is known", func() bool { return l.Counters().Lag >= behind*9/10 })
	stop()
	within(t, ended)
}
