package host

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"

	"steadfast/fault"
)

// card is a network card's wire, between the network and the machine's process.
type card struct {
	net.Conn

	mu    sync.Mutex
	state cardState
	held  [][]byte
	bytes int
}

type cardState uint8

const (
	cardLive cardState = iota
	// cardQuiet: the machine follows another host's. What was sent to it would be old news when
	// it goes on here.
	cardQuiet
	// cardHolds: the machine is about to go on elsewhere, and what comes for it goes there.
	cardHolds
)

// heldMax is how much a card holds, in bytes; the rest is lost, as on any network.
const heldMax = 1 << 20

// Write implements net.Conn.
func (c *card) Write(frame []byte) (int, error) {
	c.mu.Lock()
	switch {
	case c.state == cardLive:
		c.mu.Unlock()
		return c.Conn.Write(frame)
	case c.state == cardHolds && c.bytes+len(frame) <= heldMax:
		c.held, c.bytes = append(c.held, append([]byte(nil), frame...)), c.bytes+len(frame)
	}
	c.mu.Unlock()
	return len(frame), nil
}

// become changes what the card does, and returns what it has held.
func (c *card) become(s cardState) (held [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	held = c.held
	c.state, c.held, c.bytes = s, nil, 0
	return held
}

// join carries a card's frames until its process, whose end exited tells, or the network ends.
func (r *run) join(number int, a Attachment, c *card, exited <-chan struct{}) {
	err := a.Wire.Join(c)
	if err == nil {
		return
	}
	select {
	case <-exited: // it has had frames that it did not take
	case <-time.After(exitPatience):
		r.event(EventNetwork, true, "network card %d has lost its network: %v", number, err)
	}
}

// exitPatience is how long the end of a socket may come before that of its process.
const exitPatience = time.Second

// frameMax is how large a frame may be that another host hands over, in bytes.
const frameMax = 1 << 17

// sendFrames hands frames over: of each its card in a byte, its length in 4, big-endian, and it.
func sendFrames(w io.Writer, frames [][][]byte) error {
	var b []byte
	for card, list := range frames {
		for _, f := range list {
			b = append(b, byte(card))
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
		}
	}
	_, err := w.Write(b)
	return fault.Wrap(fault.Unreachable, err, "frames for a machine that goes on elsewhere")
}

// readFrame reads one; io.EOF: there are no more.
func readFrame(r io.Reader) (card int, frame []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > frameMax {
		return 0, nil, fault.New(fault.Invalid, "a frame of %d bytes from another host", n)
	}
	frame = make([]byte, n)
	_, err = io.ReadFull(r, frame)
	return int(head[0]), frame, err
}
