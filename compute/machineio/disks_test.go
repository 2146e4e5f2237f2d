package machineio

import "testing"

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
	b.give(make([]byte, 10))
	if q := b.take(100); len(q) != 100 {
		t.Errorf("%d bytes", len(q))
	}
}
