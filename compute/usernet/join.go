package usernet

import (
	"errors"
	"io"
	"net"

	"steadfast/fault"
)

// Join carries frames between the network and a machine at the other end of conn, whose reads
// and writes are one frame each: a socket of kind SOCK_SEQPACKET or SOCK_DGRAM. It returns
// when either ends, and closes conn: nil if the machine's end was closed, or the network.
func (n *Network) Join(conn net.Conn) error {
	if !n.keep(conn) {
		return nil
	}
	defer n.drop(conn)
	n.joined.Store(&conn)
	written := make(chan error, 1)
	done := make(chan struct{})
	go func() { written <- n.toMachine(conn, done) }()
	err := n.fromMachine(conn)
	n.joined.CompareAndSwap(&conn, nil)
	close(done)
	n.drop(conn)
	err = errors.Join(err, <-written)
	n.mu.Lock()
	closed := n.closed
	n.mu.Unlock()
	if closed || err == nil {
		return nil
	}
	return fault.Wrap(fault.Failed, err, "a machine's network socket")
}

func (n *Network) fromMachine(conn net.Conn) error {
	b := make([]byte, mtuMax+64)
	for {
		got, err := conn.Read(b)
		if errors.Is(err, io.EOF) || err == nil && got == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		n.Send(b[:got])
	}
}

func (n *Network) toMachine(conn net.Conn, done <-chan struct{}) error {
	for {
		select {
		case <-done:
			return nil
		case f, ok := <-n.frames:
			if !ok {
				return nil
			}
			if _, err := conn.Write(f); err != nil {
				select {
				case <-done:
					return nil
				default:
				}
				// The read side ends, too, and says why if it knows better.
				_ = conn.Close()
				return err
			}
		}
	}
}
