package machineio

import (
	"context"
	"io"
	"sync"
	"time"
)

// serialMax is how many bytes of the serial port may wait for who reads them before the
// guest has to, and serialGrace how long they are waited for when the life is cut short.
const (
	serialMax   = 256 << 10
	serialGrace = time.Second
)

// serial carries what the guest writes on its serial port to a writer that may wait, so
// that the loop does not: it looks whether there is room, and lets the guest wait for it
// while it goes on to answer.
type serial struct {
	w    io.Writer
	room func() // is called when there is room again
	done chan struct{}

	mu      sync.Mutex
	changed sync.Cond
	held    []byte
	writing int // of a Write that goes on
	lost    error
	closed  bool
}

func newSerial(w io.Writer, room func()) *serial {
	s := &serial{w: w, room: room, done: make(chan struct{})}
	s.changed.L = &s.mu
	go s.carry()
	return s
}

// carry is the goroutine that waits. When its writer fails, all else is dropped: the
// machine goes on without who reads it.
func (s *serial) carry() {
	defer close(s.done)
	for {
		s.mu.Lock()
		for len(s.held) == 0 && !s.closed {
			s.changed.Wait()
		}
		p := s.held
		s.held, s.writing = nil, len(p)
		lost := s.lost
		s.mu.Unlock()
		if len(p) == 0 {
			return
		}
		if lost == nil {
			_, lost = s.w.Write(p)
		}
		s.mu.Lock()
		s.writing, s.lost = 0, lost
		s.mu.Unlock()
		s.room()
	}
}

// put takes what the guest has written, whether there is room or not: what it writes in
// one turn is bounded by the turn.
func (s *serial) put(p []byte) {
	s.mu.Lock()
	s.held = append(s.held, p...)
	s.mu.Unlock()
	s.changed.Signal()
}

// full tells whether the guest has to wait.
func (s *serial) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)+s.writing >= serialMax
}

// end returns when all was written, or soon after ctx ended, and returns how the writer
// failed, if it did.
func (s *serial) end(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.changed.Signal()
	select {
	case <-s.done:
	case <-ctx.Done():
		t := time.NewTimer(serialGrace)
		defer t.Stop()
		select {
		case <-s.done:
		case <-t.C:
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}
