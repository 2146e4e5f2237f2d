package netswitch

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"steadfast/compute/netswitch/bridge"
	"steadfast/fault"
)

// messageMax is the longest message, in bytes: a frame.
const messageMax = bridge.FrameMax

// socketBytes is how much is asked for to be under way in a socket: some large frames. The
// kernel gives what it allows.
const socketBytes = 1 << 20

// link carries messages. One goroutine reads, one at a time writes.
type link interface {
	// read returns a message's length; of one longer than p, more than that, or an error.
	// io.EOF is the other side's end.
	read(p []byte) (int, error)
	// try sends a message if that needs no waiting; unix.EAGAIN if it does.
	try(p []byte) error
	// write sends messages, and waits for room.
	write(messages ...[]byte) error
	Close() error
}

// packets are messages over a socket of kind SOCK_SEQPACKET.
type packets struct {
	c   net.Conn
	raw syscall.RawConn

	message []byte // try's, as are those below
	err     error
	attempt func(fd uintptr) bool
}

func newPackets(c *net.UnixConn) (*packets, error) {
	// As much of it as the kernel allows; none is needed.
	_ = c.SetWriteBuffer(socketBytes)
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "a socket for frames")
	}
	p := &packets{c: c, raw: raw}
	p.attempt = func(fd uintptr) bool {
		for {
			if _, p.err = unix.Write(int(fd), p.message); !errors.Is(p.err, unix.EINTR) {
				return true // also when there is no room: it is not waited for
			}
		}
	}
	return p, nil
}

func (p *packets) read(b []byte) (int, error) {
	n, err := p.c.Read(b)
	if err == nil && n == 0 {
		return 0, io.EOF // of this kind of socket, which has no empty packets here
	}
	return n, err
}

func (p *packets) try(message []byte) error {
	p.message = message
	err := p.raw.Write(p.attempt)
	p.message = nil
	if err == nil {
		err = p.err
	}
	return err
}

func (p *packets) write(messages ...[]byte) error {
	for _, m := range messages {
		if _, err := p.c.Write(m); err != nil {
			return err
		}
	}
	return nil
}

func (p *packets) Close() error { return p.c.Close() }

// stream are messages over TCP, each with its length before it.
type stream struct {
	c net.Conn
	r *bufio.Reader
	w *bufio.Writer
}

// lengthBytes are a message's length before it.
const lengthBytes = 4

func newStream(c net.Conn) *stream {
	return &stream{c, bufio.NewReaderSize(c, 64<<10), bufio.NewWriterSize(c, 64<<10)}
}

func (s *stream) read(b []byte) (int, error) {
	head, err := s.r.Peek(lengthBytes)
	if err != nil {
		if errors.Is(err, io.EOF) && len(head) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	n := binary.BigEndian.Uint32(head)
	if uint64(n) > uint64(len(b)) {
		return 0, fault.New(fault.Invalid, "a message of %d bytes, where %d is the most", n, len(b))
	}
	if _, err := s.r.Discard(lengthBytes); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(s.r, b[:n]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	return int(n), nil
}

// try: a part of a message could be sent, and the rest of it would have to be remembered; TCP's
// messages all pass through the queue instead.
func (s *stream) try([]byte) error { return unix.EAGAIN }

func (s *stream) write(messages ...[]byte) error {
	for _, m := range messages {
		// Errors stay with the writer, and Flush returns them.
		_, _ = s.w.Write(binary.BigEndian.AppendUint32(s.w.AvailableBuffer(), uint32(len(m))))
		_, _ = s.w.Write(m)
	}
	return s.w.Flush()
}

func (s *stream) Close() error { return s.c.Close() }
