package mirrorio

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"

	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/mirror"
)

// link is a connection to an incarnation of the peer. One goroutine reads, one
// writes what is queued. The queue is bounded by what the mirror has under way.
type link struct {
	group *Group
	peer  quorum.Incarnation
	conn  net.Conn

	mu     sync.Mutex
	wake   sync.Cond
	queue  net.Buffers
	closed bool
}

// Inputs of the loop that are about links.
type (
	attached struct{ link *link }
	lost     struct{ link *link }
	arrived  struct {
		mirror.Received
		link *link
	}
)

// Attach makes conn the connection to the peer's incarnation, in place of any
// other, and returns when it has ended. The caller has made sure of who that is.
func (g *Group) Attach(conn net.Conn, peer quorum.Incarnation) error {
	l := &link{group: g, peer: peer, conn: conn}
	l.wake.L = &l.mu
	if !g.put(attached{l}) {
		return conn.Close()
	}
	var others sync.WaitGroup
	over := make(chan struct{})
	others.Go(l.write)
	others.Go(func() {
		select {
		case <-g.ended: // the loop may have ended before it knew of the link
			l.end()
		case <-over:
		}
	})
	err := l.read()
	close(over)
	l.end()
	others.Wait()
	g.put(lost{l})
	return err
}

// attach makes a link the present one. Of the loop.
func (g *Group) attach(l *link) {
	if g.link != nil {
		g.link.end()
	}
	g.link = l
	g.do(g.core.Step(g.opt.Now(), mirror.Linked{To: l.peer}))
}

// end closes the connection: reader and writer come back.
func (l *link) end() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.wake.Broadcast()
	_ = l.conn.Close() // whatever it says, nothing comes of it any more
}

// send queues a packet. Its data is copied: the operation may end, and its
// caller use the memory again, while a connection that hangs has it queued still.
func (l *link) send(p mirror.Packet) {
	c, _ := p.Op.Payload.(*Change)
	var b []byte
	if c == nil {
		b = p.AppendHeader(nil, 0)
	} else {
		b = bufpool.Get(mirror.HeaderSize + changeHeader + len(c.Data))[:0]
		b = append(c.appendHeader(p.AppendHeader(b, changeHeader+len(c.Data))), c.Data...)
	}
	l.mu.Lock()
	l.queue = append(l.queue, b)
	l.mu.Unlock()
	l.wake.Signal()
}

// write sends what is queued, many packets by one system call.
func (l *link) write() {
	for {
		l.mu.Lock()
		for len(l.queue) == 0 && !l.closed {
			l.wake.Wait()
		}
		queue := l.queue
		l.queue = nil
		closed := l.closed
		l.mu.Unlock()
		if closed {
			return
		}
		sent := slices.Clone(queue) // WriteTo consumes the other
		if _, err := queue.WriteTo(l.conn); err != nil {
			l.end()
			return
		}
		for _, b := range sent {
			bufpool.Put(b)
		}
	}
}

// read takes packets until the connection ends.
func (l *link) read() error {
	r := bufio.NewReaderSize(l.conn, 256<<10)
	for {
		p, err := readPacket(r)
		if err != nil {
			l.group.opt.Log.Warn("the mirror link ends", slog.String("peer", string(l.peer.Member)), slog.Any("error", err))
			return err
		}
		if !l.group.put(arrived{mirror.Received{From: l.peer, Packet: p}, l}) {
			return nil
		}
	}
}

// readPacket reads one packet. What makes no sense is an error, which ends the
// connection: it must not get as far as the store, whose failure would take this
// node out of the group.
func readPacket(r io.Reader) (p mirror.Packet, err error) {
	var header [mirror.HeaderSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return p, fault.Wrap(fault.Unreachable, err, "the mirror link")
	}
	p, ranges, size, err := mirror.DecodeHeader(header[:])
	if err == nil && ranges > 0 {
		p.Ranges, err = readRanges(r, ranges)
	}
	if err != nil || size == 0 {
		return p, err
	}
	c, err := readChange(r, size)
	if err != nil {
		return p, err
	}
	if first, end := c.blocks(); first != p.Op.Block || end != p.Op.Block+p.Op.Count {
		c.release()
		return p, fault.New(fault.Invalid, "a change of %d bytes at %d in an operation on %d blocks at %d", c.Length, c.Off, p.Op.Count, p.Op.Block)
	}
	p.Op.Payload = c
	return p, nil
}

func readRanges(r io.Reader, size int) ([]mirror.Range, error) {
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fault.Wrap(fault.Unreachable, err, "reading ranges")
	}
	return mirror.DecodeRanges(b)
}

// readChange reads a change of size bytes, its data into aligned memory.
func readChange(r io.Reader, size int) (*Change, error) {
	if size < changeHeader {
		return nil, fault.New(fault.Invalid, "a change of %d bytes", size)
	}
	var h [changeHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, fault.Wrap(fault.Unreachable, err, "reading a change")
	}
	c, err := decodeChange(h[:], size-changeHeader)
	if err != nil || c.Kind != Data {
		return c, err
	}
	c.Data, c.pooled = bufpool.Get(size-changeHeader), true
	if _, err := io.ReadFull(r, c.Data); err != nil {
		c.release()
		return nil, fault.Wrap(fault.Unreachable, err, "reading a change")
	}
	return c, nil
}
