package mirrorio

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/mirror"
)

// link is a connection to an incarnation of the peer. One goroutine reads; one
// writes what is queued, unless that is so little that the core's driver does it.
// The queue is bounded by what the mirror has under way.
type link struct {
	group *Group
	peer  quorum.Incarnation
	conn  net.Conn
	plain bool            // conn is TCP without TLS
	tcp   syscall.RawConn // of conn, or nil
	cork  cork            // of conn, or nil

	mu      sync.Mutex
	wake    sync.Cond
	queue   net.Buffers
	bytes   int  // in the queue
	writing bool // somebody is at the connection
	closed  bool
}

// cork is what lies under TLS: it gathers records to one system call.
type cork interface {
	Cork()
	Uncork() error
}

// Inputs that are about links.
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
	_, l.plain = conn.(*net.TCPConn)
	if c, ok := conn.(interface{ NetConn() net.Conn }); ok {
		l.cork, _ = c.NetConn().(cork)
	}
	l.tcp = tune(conn)
	if !g.put(attached{l}) {
		return conn.Close()
	}
	var others sync.WaitGroup
	over := make(chan struct{})
	others.Go(l.write)
	others.Go(func() {
		select {
		case <-g.ended: // the group may have ended before it knew of the link
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

// attach makes a link the present one. Of the driver.
func (g *Group) attach(l *link) {
	if g.link != nil {
		g.link.end()
	}
	g.link = l
	g.give(mirror.Linked{To: l.peer})
}

// end closes the connection: reader and writer come back.
func (l *link) end() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.wake.Broadcast()
	// TLS would say goodbye, and wait for a peer that takes nothing.
	if c, ok := l.conn.(interface{ NetConn() net.Conn }); ok {
		_ = c.NetConn().Close()
	}
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
	l.bytes += len(b)
	l.mu.Unlock()
}

// inlineMax is how much a driver writes itself, in bytes: about what a record of
// TLS holds. More is the writer's, on another processor.
const inlineMax = 16 << 10

// flush has what was queued sent. When it is lone and little, and the connection has
// room for it, the caller writes it: nobody has to be woken for it.
func (l *link) flush(lone bool) {
	l.mu.Lock()
	queue := l.queue
	if len(queue) == 0 || l.closed || l.writing {
		l.mu.Unlock()
		return
	}
	if !lone || l.bytes > inlineMax || !l.drained() {
		l.mu.Unlock()
		l.wake.Signal()
		return
	}
	l.queue, l.bytes, l.writing = nil, 0, true
	l.mu.Unlock()
	_, err := l.writeSome(queue)
	if err != nil {
		l.end()
	}
	l.mu.Lock()
	l.writing = false
	more := len(l.queue) > 0
	l.mu.Unlock()
	if more {
		l.wake.Signal()
	}
}

// What one write takes from the queue, at least one packet of it: in bytes.
const (
	writeMax = 1 << 20
	// On a connection that is not plain TCP each write is at least a record and a
	// system call, so packets of up to smallMax are joined to ones of joinMax.
	joinMax  = 64 << 10
	smallMax = 16 << 10
)

// stallMax is how long a write may take: a peer that takes nothing for so long is
// as good as gone.
const stallMax = 5 * time.Second

// write sends what is queued and no driver sends, many packets by one system call.
func (l *link) write() {
	l.mu.Lock()
	for {
		for (len(l.queue) == 0 || l.writing) && !l.closed {
			l.wake.Wait()
		}
		queue := l.queue
		l.queue, l.bytes, l.writing = nil, 0, true
		closed := l.closed
		l.mu.Unlock()
		if closed {
			return
		}
		for len(queue) > 0 {
			var err error
			if queue, err = l.writeSome(queue); err != nil {
				l.end()
				return
			}
		}
		l.mu.Lock()
		l.writing = false
	}
}

// writeSome sends the first packets of a queue, and returns the rest.
func (l *link) writeSome(queue net.Buffers) (rest net.Buffers, err error) {
	n, size := 0, 0
	most := writeMax
	if !l.plain {
		most = joinMax
	}
	for n < len(queue) && (n == 0 || size+len(queue[n]) <= most) {
		size += len(queue[n])
		n++
	}
	some := queue[:n:n]
	if !l.plain {
		some = join(some)
	}
	_ = l.conn.SetWriteDeadline(time.Now().Add(stallMax)) // one that is closed says so when it is written to
	out := append(net.Buffers(nil), some...)              // WriteTo consumes it
	if l.cork != nil {
		l.cork.Cork()
	}
	_, err = out.WriteTo(l.conn)
	if l.cork != nil && err == nil {
		err = l.cork.Uncork()
	}
	if err != nil {
		return nil, err
	}
	for _, b := range some {
		bufpool.Put(b)
	}
	return queue[n:], nil
}

// join puts small packets that follow each other into one buffer.
func join(list net.Buffers) (out net.Buffers) {
	for i := 0; i < len(list); {
		end, size := i, 0
		for end < len(list) && len(list[end]) <= smallMax {
			size += len(list[end])
			end++
		}
		if end-i < 2 {
			out = append(out, list[i])
			i++
			continue
		}
		b := bufpool.Get(size)[:0]
		for _, p := range list[i:end] {
			b = append(b, p...)
			bufpool.Put(p)
		}
		out, i = append(out, b), end
	}
	return out
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
	lists := p.Kind == mirror.Differ || p.Kind == mirror.Forward && p.Op.Lists()
	if (c.Kind == Act) != (p.Op.Kind == mirror.Barrier || p.Kind == mirror.Ack && p.Op.Lists()) || (c.Kind == List) != lists {
		c.release()
		return p, fault.New(fault.Invalid, "a change of kind %d in an operation of kind %d", c.Kind, p.Op.Kind)
	}
	if lists {
		if c.snapshots, err = decodeList(c.Data); err != nil {
			return p, err
		}
	}
	if first, end := c.blocks(); c.Kind != Act && !lists && (first != p.Op.Block || end != p.Op.Block+p.Op.Count) {
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
	if err != nil || c.Kind == Trim || c.Kind == Zero {
		return c, err
	}
	c.Data, c.pooled = bufpool.Get(size-changeHeader), c.Kind == Data
	if _, err := io.ReadFull(r, c.Data); err != nil {
		c.release()
		return nil, fault.Wrap(fault.Unreachable, err, "reading a change")
	}
	return c, nil
}
