package vmm

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// frameMax is the longest frame, in bytes.
	frameMax = 64<<10 + 64
	// wireBytesMax is how many bytes of frames wait for a wire's socket before more are
	// dropped: more than a stream of TCP has under way, since one that loses
	// packets is slow.
	wireBytesMax = 8 << 20
)

// wire is a network card's, as a socket. It implements machineio.Wire.
type wire struct {
	f       *os.File
	dropped *atomic.Uint64

	mu      sync.Mutex
	changed sync.Cond
	held    [][]byte
	bytes   int // held, or being sent by carry
}

func newWire(f *os.File, dropped *atomic.Uint64) *wire {
	w := &wire{f: f, dropped: dropped}
	w.changed.L = &w.mu
	return w
}

// Send implements machineio.Wire: the frame is sent at once if nothing waits and the socket
// has room, and else by carry.
func (w *wire) Send(frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bytes == 0 {
		err := w.write(frame, false)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EAGAIN) {
			w.dropped.Add(1)
			return
		}
	}
	if w.bytes+len(frame) > wireBytesMax {
		w.dropped.Add(1)
		return
	}
	w.held, w.bytes = append(w.held, frame), w.bytes+len(frame)
	w.changed.Signal()
}

// carry sends what waits. It is a goroutine for as long as the process lives.
func (w *wire) carry() {
	for {
		w.mu.Lock()
		for len(w.held) == 0 {
			w.changed.Wait()
		}
		frames := w.held
		w.held = nil
		w.mu.Unlock()
		for _, frame := range frames {
			if w.write(frame, true) != nil {
				w.dropped.Add(1)
			}
			w.mu.Lock()
			w.bytes -= len(frame)
			w.mu.Unlock()
		}
	}
}

// write sends a frame. Without waiting it fails with EAGAIN when there is no room.
func (w *wire) write(frame []byte, wait bool) error {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		_, sent = unix.Write(int(fd), frame)
		return !wait || !errors.Is(sent, unix.EAGAIN)
	})
	return errors.Join(err, sent)
}

// frames brings frames from a wire to its card, no faster than the guest takes them: who
// sends them has to wait, or to drop them.
func (c *child) frames(card int, f *os.File) {
	b := make([]byte, frameMax)
	for {
		n, err := f.Read(b)
		if err != nil {
			return // the parent's end is closed
		}
		if !c.live.FrameWait(card, append([]byte(nil), b[:n]...)) {
			return // the life has ended
		}
	}
}
