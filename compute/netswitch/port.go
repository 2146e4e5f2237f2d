package netswitch

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/netswitch/bridge"
)

const (
	// queueBytesMax is how many bytes of frames wait for a port before more are dropped:
	// about what a stream of TCP has under way, since one that loses packets is slow.
	queueBytesMax = 4 << 20
	// queuedBytes is what a frame that waits is counted as besides its length.
	queuedBytes = 64
	// carryBytes is about how many of them are sent at a time.
	carryBytes = 64 << 10
)

// port is one at which somebody is attached, or the gateway.
type port struct {
	hello Hello
	from  string // how it is attached, for people
	since time.Time
	id    bridge.Port // Switch.mu guards it until the port is in use
	mtu   int

	// link is nil for the gateway, whose frames deliver takes.
	link    link
	deliver func(frame []byte)

	sent, sentBytes, lost atomic.Uint64

	mu      sync.Mutex
	changed sync.Cond
	open    bool // the other side has its welcome: frames may follow
	closed  bool
	held    [][]byte
	bytes   int // held, or being sent by carry
}

func newPort(h Hello, from string, mtu int) *port {
	p := &port{hello: h, from: from, mtu: mtu, since: time.Now()}
	p.changed.L = &p.mu
	return p
}

// send sends a frame out of the port, in pieces if it is larger than what the port takes. It
// does not wait, and does not keep the frame.
func (p *port) send(frame []byte) {
	switch {
	case p.hello.Large || !bridge.Large(frame, p.mtu):
		p.sendOne(frame)
	case !bridge.Cut(frame, p.mtu, p.sendOne):
		p.lost.Add(1)
	}
}

func (p *port) sendOne(frame []byte) {
	if p.deliver != nil {
		p.count(frame)
		p.deliver(frame)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		p.lost.Add(1)
		return
	}
	if p.open && p.bytes == 0 {
		err := p.link.try(frame)
		if err == nil {
			p.count(frame)
			return
		}
		if !errors.Is(err, unix.EAGAIN) {
			p.lost.Add(1) // it has gone, and who reads from it notices
			return
		}
	}
	if p.bytes+len(frame)+queuedBytes > queueBytesMax {
		p.lost.Add(1)
		return
	}
	p.held, p.bytes = append(p.held, append([]byte(nil), frame...)), p.bytes+len(frame)+queuedBytes
	p.changed.Signal()
}

func (p *port) count(frame []byte) {
	p.sent.Add(1)
	p.sentBytes.Add(uint64(len(frame)))
}

// begin lets frames out, now that the other side has its welcome.
func (p *port) begin() {
	p.mu.Lock()
	p.open = true
	p.mu.Unlock()
}

// carry sends what waits, until the port is closed.
func (p *port) carry() {
	for {
		p.mu.Lock()
		for len(p.held) == 0 && !p.closed {
			p.changed.Wait()
		}
		if p.closed {
			p.lost.Add(uint64(len(p.held)))
			p.held = nil
			p.mu.Unlock()
			return
		}
		// A part at a time: what was sent makes room at once, and not when all of a full
		// queue was.
		n, size := 0, 0
		for n < len(p.held) && size < carryBytes {
			size += len(p.held[n]) + queuedBytes
			n++
		}
		frames := p.held[:n:n]
		if p.held = p.held[n:]; len(p.held) == 0 {
			p.held = nil
		}
		p.mu.Unlock()
		if err := p.link.write(frames...); err != nil {
			p.lost.Add(uint64(n)) // some of them may have come
		} else {
			p.sent.Add(uint64(n))
			p.sentBytes.Add(uint64(size - n*queuedBytes))
		}
		clear(frames)
		p.mu.Lock()
		p.bytes -= size
		p.mu.Unlock()
	}
}

// close ends the port, whoever waits for it.
func (p *port) close() {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.changed.Broadcast()
	p.mu.Unlock()
	if !closed && p.link != nil {
		_ = p.link.Close() // nothing is left to be said
	}
}
