package vmm

import (
	"encoding/binary"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWireHolds: frames that the socket has no room for are sent when it has, in order, as
// many bytes of them as may wait; more are dropped, and counted.
func TestWireHolds(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	var dropped atomic.Uint64
	w := newWire(ours, &dropped)
	const size = 32 << 10
	sent := uint32(0)
	send := func() {
		w.Send(binary.BigEndian.AppendUint32(make([]byte, 0, size), sent)[:size])
		sent++
	}
	for dropped.Load() == 0 {
		send()
	}
	if w.bytes > wireBytesMax || w.bytes <= wireBytesMax-size {
		t.Errorf("%d bytes wait", w.bytes)
	}
	go w.carry()
	b := make([]byte, size+1)
	if err := theirs.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	const more = 100
	for want := uint32(0); want < sent-1; want++ {
		n, err := theirs.Read(b)
		if err != nil || n != size || binary.BigEndian.Uint32(b) != want {
			t.Fatalf("instead of frame %d: %d bytes, frame %d, %v", want, n, binary.BigEndian.Uint32(b), err)
		}
	}
	first := sent
	for range more {
		send()
		if n, err := theirs.Read(b); err != nil || n != size {
			t.Fatal(n, err)
		}
	}
	if binary.BigEndian.Uint32(b) != first+more-1 || dropped.Load() != 1 {
		t.Errorf("the last frame is %d, and %d were dropped", binary.BigEndian.Uint32(b), dropped.Load())
	}
}
