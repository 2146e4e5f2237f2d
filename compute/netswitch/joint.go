package netswitch

import (
	"errors"
	"io"
	"net"
	"sync"

	"steadfast/fault"
)

// joint is the end at which a machine's wire is joined: a socket whose reads and writes are
// one frame each, as vmm.Process.Wires has them. There is one wire at a time.
type joint struct {
	mu    sync.Mutex
	wire  net.Conn // or nil
	shut  bool
	tasks sync.WaitGroup // joins
}

// join hands the wire's frames to send, each good until that returns, until the wire ends, and
// closes it: nil if the machine's end was closed, this joint, or another wire has taken its place.
func (j *joint) join(wire net.Conn, send func(frame []byte)) error {
	defer wire.Close()
	j.mu.Lock()
	if j.shut {
		j.mu.Unlock()
		return nil
	}
	old := j.wire
	j.wire = wire
	j.tasks.Add(1)
	j.mu.Unlock()
	defer j.tasks.Done()
	if old != nil {
		_ = old.Close() // its join ends
	}
	err := carry(wire, send)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.wire == wire {
		j.wire = nil
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fault.Wrap(fault.Failed, err, "a machine's network socket")
}

// carry hands on frames until there are no more.
func carry(wire net.Conn, send func(frame []byte)) error {
	b := make([]byte, messageMax+1)
	for {
		n, err := wire.Read(b)
		if errors.Is(err, io.EOF) || err == nil && n == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		send(b[:n])
	}
}

// down gives the machine a frame, and waits until it takes it; false if there is none.
func (j *joint) down(frame []byte) bool {
	j.mu.Lock()
	wire := j.wire
	j.mu.Unlock()
	if wire == nil {
		return false
	}
	_, err := wire.Write(frame)
	return err == nil // a machine that has ended is noticed by join
}

// close ends what is joined; nothing is from here on.
func (j *joint) close() {
	j.mu.Lock()
	j.shut = true
	if j.wire != nil {
		_ = j.wire.Close() // join returns
	}
	j.mu.Unlock()
}
