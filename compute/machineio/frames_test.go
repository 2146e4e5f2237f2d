package machineio

import (
	"fmt"
	"strings"
	"testing"

	"steadfast/block"
	"steadfast/compute/machine/machinetest"
)

// frameOf is a frame that Obey prints four digits of.
func frameOf(i int) []byte {
	f := machinetest.ObeyFrame()
	copy(f[14:], fmt.Sprintf("%04d", i))
	return f
}

// TestFramesWait: frames wait until the guest has room, and none is lost or overtaken. Obey
// has room for one.
func TestFramesWait(t *testing.T) {
	m := newObey(t)
	said := &heardOf{want: make(chan string, 1024)}
	l, err := New(m, Options{Disks: []block.Device{noDisk{}}, Wires: []Wire{nil}, Serial: said})
	must(t, err)
	stop, ended := lives(t, l)
	var text strings.Builder
	for !strings.Contains(text.String(), machinetest.ObeyUp) {
		text.WriteString(within(t, said.want))
	}
	var want strings.Builder
	want.WriteString(text.String())
	const frames = 300
	for i := range frames {
		fmt.Fprintf(&want, "%04d", i)
		if !l.Frame(0, frameOf(i)) {
			t.Fatalf("frame %d is dropped", i)
		}
	}
	for text.Len() < want.Len() {
		text.WriteString(within(t, said.want))
	}
	if text.String() != want.String() {
		t.Errorf("it has received %q", text.String())
	}
	stop()
	within(t, ended)
}

// TestFramesBounded: no more than so many frames, and bytes of frames, wait; who waits for
// room goes on when there is some, and when the life ends.
func TestFramesBounded(t *testing.T) {
	for _, c := range []struct{ size, most int }{{60, framesMax}, {64 << 10, frameBytesMax / (64 << 10)}} {
		l, err := New(newObey(t), Options{Disks: []block.Device{noDisk{}}, Wires: []Wire{nil}})
		must(t, err)
		n := 0
		for l.Frame(0, make([]byte, c.size)) {
			n++
		}
		if n != c.most {
			t.Errorf("%d frames of %d bytes wait, not %d", n, c.size, c.most)
		}
		went := make(chan bool)
		for range 2 {
			go func() { went <- l.FrameWait(0, make([]byte, c.size)) }()
		}
		// There is no driver yet: a frame is not worth keeping.
		if frame, ok := l.nextFrame(0); !ok || len(frame) != c.size {
			t.Error("there was a frame")
		}
		if !within(t, went) {
			t.Error("there was room")
		}
		l.finish()
		if within(t, went) {
			t.Error("the life has ended")
		}
		if l.Frame(0, nil) || len(l.frames[0].waiting) != 0 {
			t.Error("frames wait for a machine that has ended")
		}
	}
}
