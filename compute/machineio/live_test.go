package machineio

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"steadfast/block"
	"steadfast/compute/device"
	"steadfast/compute/devices"
	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
)

// patience bounds what a test waits for that should take moments.
const patience = 60 * time.Second

// newObey makes up a machine with machinetest.Obey.
func newObey(t *testing.T) *machine.Machine { return newGuest(t, machinetest.Obey()) }

func newGuest(t *testing.T, kernel []byte) *machine.Machine {
	t.Helper()
	m, err := machine.New(machine.Config{
		Memory: machinetest.ObeyMemory, Disks: []machine.Disk{{Size: 1 << 20}}, Nets: []machine.Net{{MAC: [6]byte{2}}},
		Seed: bytes.Repeat([]byte{1}, 32), Wall: 1_800_000_000_000_000_000,
	})
	must(t, err)
	t.Cleanup(func() { must(t, m.Release()) })
	must(t, m.Load(kernel, nil))
	return m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// noDisk fails whatever it is asked for.
type noDisk struct{ block.Device }

func (noDisk) ReadAt([]byte, int64) error               { return errors.New("no disk") }
func (noDisk) WriteAt([]byte, int64, block.Flags) error { return errors.New("no disk") }

// lives runs a machine, and returns what ends it and how it ended.
func lives(t *testing.T, l *Live) (stop func(), ended chan machine.End) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended = make(chan machine.End, 1)
	go func() {
		end, err := l.Run(ctx)
		if err != nil {
			t.Error(err)
		}
		ended <- end
	}()
	return cancel, ended
}

func within[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatal("it takes too long")
	}
	return v
}

// stuck is a writer that takes nothing until it is let.
type stuck struct {
	began chan struct{}
	once  sync.Once
	let   chan struct{}
	bytes int
}

func (s *stuck) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.began) })
	<-s.let
	s.bytes += len(p)
	return len(p), nil
}

// TestSerialWaits: a guest that writes more than is read has to wait, and is asked and
// ended meanwhile. When it is read, it goes on.
func TestSerialWaits(t *testing.T) {
	m := newObey(t)
	w := &stuck{began: make(chan struct{}), let: make(chan struct{})}
	l, err := New(m, Options{Disks: []block.Device{noDisk{}}, Wires: []Wire{nil}, Serial: w})
	must(t, err)
	stop, ended := lives(t, l)
	defer stop()
	l.Type([]byte{machinetest.ObeyFlood})
	within(t, w.began)
	count := func() (n uint64) {
		if !l.Call(func(m *machine.Machine) { n = m.Count() }) {
			t.Fatal("it has ended")
		}
		return n
	}
	for !l.serial.full() {
		count()
	}
	// Each call is an instruction: more would be the guest's own.
	const calls = 100
	at := count()
	for range calls {
		count()
	}
	if n := count() - at; n > calls+1 {
		t.Errorf("it has executed %d instructions although nobody reads", n)
	}
	l.serial.mu.Lock()
	held := len(l.serial.held) + l.serial.writing
	l.serial.mu.Unlock()
	if held < serialMax || held > 4*serialMax {
		t.Errorf("%d bytes wait", held)
	}
	close(w.let)
	at = count()
	for count() < at+1_000_000 {
	}
	stop()
	if end := within(t, ended); end != machine.Running {
		t.Errorf("ended: %v", end)
	}
	if w.bytes < held {
		t.Errorf("%d bytes were read", w.bytes)
	}
}

// TestSerialNeverRead: the end does not wait for who does not read.
func TestSerialNeverRead(t *testing.T) {
	m := newObey(t)
	w := &stuck{began: make(chan struct{}), let: make(chan struct{})}
	defer close(w.let)
	l, err := New(m, Options{Disks: []block.Device{noDisk{}}, Wires: []Wire{nil}, Serial: w})
	must(t, err)
	stop, ended := lives(t, l)
	l.Type([]byte{machinetest.ObeyPowerOff})
	within(t, w.began)
	for l.Call(func(*machine.Machine) {}) {
	}
	stop()
	if end := within(t, ended); end != machine.PoweredOff {
		t.Errorf("ended: %v", end)
	}
}

// TestNothingAfterTheEnd: when the instruction that a call costs ends the machine, what
// waits for it is neither delivered nor logged: a replay would not know what to do with it.
func TestNothingAfterTheEnd(t *testing.T) {
	m := newObey(t)
	m.Run(1_000_000)
	must(t, m.Deliver(&device.Input{At: m.Count(), Port: machine.PortSerial, Kind: devices.UARTData, Data: []byte{machinetest.ObeyPowerOff}}))
	var before bytes.Buffer
	for {
		// The machine as it was before the instruction that ends it.
		before.Reset()
		if err := m.Save(&before); err != nil {
			t.Fatal(err)
		}
		if m.Run(m.Count()+1) == machine.StopEnded {
			break
		}
	}
	m, err := machine.Restore(&before)
	must(t, err)
	defer func() { must(t, m.Release()) }()
	var log bytes.Buffer
	w, err := machine.NewLog(&log)
	must(t, err)
	l, err := New(m, Options{Disks: []block.Device{noDisk{}}, Wires: []Wire{nil}, Log: w})
	must(t, err)
	called := false
	// The call takes so long that the clock's rate is due to be changed, by an input, too.
	l.calls = append(l.calls, func() { called = true; time.Sleep(machine.SyncEvery * 3 / 2 * time.Nanosecond) })
	l.Type([]byte("x"))
	end, err := l.Run(t.Context())
	if err != nil || !called || end != machine.PoweredOff {
		t.Fatal(err, called, end)
	}
	r, err := machine.ReadLog(&log)
	must(t, err)
	if e, err := r.Next(); err != nil || e.Input != nil || e.At != m.Count() {
		t.Errorf("logged after the end: %+v, %v", e, err)
	}
}

// TestWakes: what comes wakes a machine that waits and has no timer, at once: it is not
// left to wait for the next look at it, which is a second later.
func TestWakes(t *testing.T) {
	m := newGuest(t, machinetest.Patient())
	w := &screen{wrote: make(chan struct{}, 1)}
	l, err := New(m, Options{Disks: []block.Device{noDisk{}}, Wires: []Wire{nil}, Serial: w})
	must(t, err)
	stop, ended := lives(t, l)
	for idle := false; !idle; {
		l.Call(func(m *machine.Machine) { idle = m.Hart().Waiting() })
	}
	began := time.Now()
	const keys = 20
	for range keys {
		time.Sleep(5 * time.Millisecond) // for it to wait, and for nothing else
		l.Type([]byte{'.'})
		within(t, w.wrote)
	}
	if took := time.Since(began); took > keys*waitNS/4 {
		t.Errorf("%d keys took %v", keys, took)
	}
	stop()
	within(t, ended)
}

// screen tells of each write.
type screen struct{ wrote chan struct{} }

func (s *screen) Write(p []byte) (int, error) {
	select {
	case s.wrote <- struct{}{}:
	default:
	}
	return len(p), nil
}
