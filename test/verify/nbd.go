package verify

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
)

// Numbers of the NBD protocol.
const (
	nbdMagic         = 0x4e42444d41474943 // "NBDMAGIC"
	nbdOptMagic      = 0x49484156454f5054 // "IHAVEOPT"
	nbdReplyMagic    = 0x3e889045565a9
	nbdFixedNewstyle = 1
	nbdNoZeroes      = 2
	nbdOptGo         = 7
	nbdRepAck        = 1
	nbdRepInfo       = 3
	nbdRepError      = 1 << 31
	nbdInfoExport    = 0

	nbdRequestMagic = 0x25609513
	nbdSimpleMagic  = 0x67446698
	nbdRead         = 0
	nbdWrite        = 1
	nbdDisconnect   = 2
	nbdFlush        = 3
	nbdFUA          = 1 // a command flag
)

// nbdOptionMax bounds an option reply, in bytes: ours are a few.
const nbdOptionMax = 1 << 16

// nbd is the client side of one NBD connection. Any number of requests may be
// under way.
type nbd struct {
	conn net.Conn
	size int64

	send sync.Mutex // one request at a time onto the wire

	mu      sync.Mutex
	pending map[uint64]*nbdCall
	cookie  uint64
	dead    error // set once: why there will be no more answers
}

// nbdCall is a request under way.
type nbdCall struct {
	into []byte // of a read
	done chan error
}

// newNBD takes a connection in its transmission phase.
func newNBD(conn net.Conn, in *bufio.Reader, size int64) *nbd {
	n := &nbd{conn: conn, size: size, pending: map[uint64]*nbdCall{}}
	go n.receive(in)
	return n
}

// negotiate does the fixed newstyle handshake for the default export.
func negotiate(conn net.Conn) (*nbd, error) {
	in := newReader(conn)
	var hello struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(in, binary.BigEndian, &hello); err != nil {
		return nil, err
	}
	if hello.Magic != nbdMagic || hello.Option != nbdOptMagic || hello.Flags&nbdFixedNewstyle == 0 {
		return nil, fmt.Errorf("nbd: not a newstyle server: %+v", hello)
	}
	// No name and no list of what we want to know: size and flags come anyway.
	ask := binary.BigEndian.AppendUint32(nil, nbdFixedNewstyle|uint32(hello.Flags&nbdNoZeroes))
	ask = binary.BigEndian.AppendUint64(ask, nbdOptMagic)
	ask = binary.BigEndian.AppendUint32(ask, nbdOptGo)
	ask = binary.BigEndian.AppendUint32(ask, 6)
	ask = append(ask, make([]byte, 6)...)
	if _, err := conn.Write(ask); err != nil {
		return nil, err
	}
	var size int64
	for {
		kind, data, err := optionReply(in)
		switch {
		case err != nil:
			return nil, err
		case kind == nbdRepAck:
			return newNBD(conn, in, size), nil
		case kind&nbdRepError != 0:
			return nil, fmt.Errorf("nbd: the export was refused (%#x): %q", kind, data)
		case kind == nbdRepInfo && len(data) >= 10 && binary.BigEndian.Uint16(data) == nbdInfoExport:
			size = int64(binary.BigEndian.Uint64(data[2:]))
		}
	}
}

// optionReply reads one reply of the handshake.
func optionReply(in io.Reader) (kind uint32, data []byte, err error) {
	var h struct {
		Magic             uint64
		Option, Kind, Len uint32
	}
	if err := binary.Read(in, binary.BigEndian, &h); err != nil {
		return 0, nil, err
	}
	if h.Magic != nbdReplyMagic || h.Len > nbdOptionMax {
		return 0, nil, fmt.Errorf("nbd: not an option reply: %+v", h)
	}
	data = make([]byte, h.Len)
	_, err = io.ReadFull(in, data)
	return h.Kind, data, err
}

// Size returns the export's size in bytes.
func (n *nbd) Size() int64 { return n.size }

// ReadAt fills p from off.
func (n *nbd) ReadAt(p []byte, off int64) error { return n.do(nbdRead, 0, p, nil, off) }

// WriteAt writes p at off; with fua it is stable when it is answered.
func (n *nbd) WriteAt(p []byte, off int64, fua bool) error {
	flags := uint16(0)
	if fua {
		flags = nbdFUA
	}
	return n.do(nbdWrite, flags, nil, p, off)
}

// Flush makes what was answered stable.
func (n *nbd) Flush() error { return n.do(nbdFlush, 0, nil, nil, 0) }

// Close ends the connection; what is under way fails.
func (n *nbd) Close() error {
	n.send.Lock()
	_, _ = n.conn.Write(nbdRequest(nbdDisconnect, 0, 0, 0, 0))
	n.send.Unlock()
	n.fail(net.ErrClosed)
	return n.conn.Close()
}

func nbdRequest(command, flags uint16, cookie uint64, off int64, length int) []byte {
	h := make([]byte, 0, 28)
	h = binary.BigEndian.AppendUint32(h, nbdRequestMagic)
	h = binary.BigEndian.AppendUint16(h, flags)
	h = binary.BigEndian.AppendUint16(h, command)
	h = binary.BigEndian.AppendUint64(h, cookie)
	h = binary.BigEndian.AppendUint64(h, uint64(off))
	return binary.BigEndian.AppendUint32(h, uint32(length))
}

// do sends one request and waits for its answer.
func (n *nbd) do(command, flags uint16, into, from []byte, off int64) error {
	call := &nbdCall{into: into, done: make(chan error, 1)}
	n.mu.Lock()
	if n.dead != nil {
		defer n.mu.Unlock()
		return n.dead
	}
	n.cookie++
	cookie := n.cookie
	n.pending[cookie] = call
	n.mu.Unlock()

	n.send.Lock()
	wire := net.Buffers{nbdRequest(command, flags, cookie, off, len(into)+len(from)), from}
	_, err := wire.WriteTo(n.conn)
	n.send.Unlock()
	if err != nil {
		n.fail(err) // answers this call, too
	}
	return <-call.done
}

// receive hands out answers until the connection ends.
func (n *nbd) receive(in *bufio.Reader) {
	var h [16]byte
	for {
		if _, err := io.ReadFull(in, h[:]); err != nil {
			n.fail(fmt.Errorf("nbd: the client is gone: %w", err))
			return
		}
		errno := syscall.Errno(binary.BigEndian.Uint32(h[4:]))
		cookie := binary.BigEndian.Uint64(h[8:])
		n.mu.Lock()
		call := n.pending[cookie]
		delete(n.pending, cookie)
		n.mu.Unlock()
		if binary.BigEndian.Uint32(h[:]) != nbdSimpleMagic || call == nil {
			n.fail(errors.New("nbd: an answer to nothing"))
			return
		}
		if errno != 0 {
			call.done <- errno
			continue
		}
		if _, err := io.ReadFull(in, call.into); err != nil {
			call.done <- err
			n.fail(err)
			return
		}
		call.done <- nil
	}
}

// fail answers everything that waits, now and later, with err.
func (n *nbd) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead == nil {
		n.dead = err
	}
	for cookie, call := range n.pending {
		delete(n.pending, cookie)
		call.done <- n.dead
	}
}

// newReader returns a reader with room for what arrives at once.
func newReader(conn net.Conn) *bufio.Reader { return bufio.NewReaderSize(conn, 256<<10) }
