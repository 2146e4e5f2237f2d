package machineio

import (
	"bytes"
	"encoding/binary"
	"testing"

	"steadfast/block"
	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/virtio"
	"steadfast/fault"
)

// TestBuffers: one that was given back is taken again if it is large enough, whatever the size
// that it had last.
func TestBuffers(t *testing.T) {
	var b buffers
	p := b.take(4096)
	if len(p) != 4096 || cap(p) < bufferLeast {
		t.Fatalf("%d bytes of %d", len(p), cap(p))
	}
	p[0] = 7
	b.give(p)
	// A pool may lose what it was given, but never gives what is too small.
	if q := b.take(bufferLeast); len(q) != bufferLeast {
		t.Errorf("%d bytes", len(q))
	}
	b.give(make([]byte, bufferLeast))
	if q := b.take(1 << 20); len(q) != 1<<20 {
		t.Errorf("%d bytes", len(q))
	}
	small := b.take(100)
	small[99] = 7
	if q := b.keep(small); len(q) != 100 || cap(q) > 200 || q[99] != 7 {
		t.Errorf("%d bytes of %d are kept for 100", len(q), cap(q))
	}
	large := b.take(bufferLeast)
	if q := b.keep(large); &q[0] != &large[0] {
		t.Error("what is full was copied")
	}
	b.give(make([]byte, 10))
	if q := b.take(100); len(q) != 100 {
		t.Errorf("%d bytes", len(q))
	}
}

// slow is a disk that answers a read when it is let go.
type slow struct {
	block.Device
	began, gone chan struct{}
}

func (d slow) ReadAt([]byte, int64) error {
	close(d.began)
	<-d.gone
	return fault.New(fault.Canceled, "it was let go")
}

// TestLetGo: a life that is ended does not wait for a disk that can be let go.
func TestLetGo(t *testing.T) {
	d := slow{began: make(chan struct{}), gone: make(chan struct{})}
	l, err := New(newObey(t), Options{Disks: []block.Device{d}, Wires: []Wire{nil}, LetGo: func() { close(d.gone) }})
	must(t, err)
	stop, ended := lives(t, l)
	defer stop()
	l.Type([]byte{machinetest.ObeyDisk})
	within(t, d.began)
	l.Call(func(*machine.Machine) {}) // it goes on
	stop()
	if end := within(t, ended); end != machine.Running {
		t.Errorf("ended: %v", end)
	}
}

// TestResize: another size of a disk is an input, as what a replay needs is.
func TestResize(t *testing.T) {
	var log bytes.Buffer
	w, err := machine.NewLog(&log)
	must(t, err)
	m := newObey(t)
	l, err := New(m, Options{Disks: []block.Device{noDisk{}}, Wires: []Wire{nil}, Log: w})
	must(t, err)
	l.Resize(0, 4<<20)
	stop, ended := lives(t, l)
	defer stop()
	l.Call(func(*machine.Machine) {})
	stop()
	within(t, ended)
	r, err := machine.ReadLog(&log)
	must(t, err)
	e, err := r.Next()
	if err != nil || e.Input == nil || e.Input.Port != m.DiskPort(0) || e.Input.Kind != virtio.BlockResized || binary.LittleEndian.Uint64(e.Input.Data) != 4<<20 {
		t.Errorf("the log begins with %+v, %v", e, err)
	}
}
