// Package wirebuf is a TCP connection with buffers, for what lies above it and reads
// and writes in small pieces. TLS does: each record is two reads and a write of its
// own, which are system calls.
package wirebuf

import (
	"bufio"
	"net"
	"sync"
	"syscall"
)

// readBytes is what one read of the socket takes at most.
const readBytes = 64 << 10

// Conn is a TCP connection. One goroutine reads at a time; others may write.
type Conn struct {
	net.Conn // the socket; ReadFrom and WriteTo would go past the buffers
	tcp      *net.TCPConn
	in       *bufio.Reader

	mu     sync.Mutex
	corked bool
	out    []byte
}

// New puts buffers on a connection.
func New(tcp *net.TCPConn) *Conn {
	return &Conn{Conn: tcp, tcp: tcp, in: bufio.NewReaderSize(tcp, readBytes)}
}

// SyscallConn implements syscall.Conn.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.tcp.SyscallConn() }

// SetNoDelay is net.TCPConn's.
func (c *Conn) SetNoDelay(on bool) error { return c.tcp.SetNoDelay(on) }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) { return c.in.Read(p) }

// Write implements net.Conn. While the connection is corked it keeps what it is given.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.corked {
		return c.tcp.Write(p)
	}
	c.out = append(c.out, p...)
	if len(c.out) < corkBytes {
		return len(p), nil
	}
	return len(p), c.flush()
}

// corkBytes is how much a corked connection keeps: with more, the wire should not
// wait any longer.
const corkBytes = 32 << 10

// Cork has the connection keep what is written, up to some size, until Uncork.
func (c *Conn) Cork() {
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
}

// Uncork writes at once what was kept.
func (c *Conn) Uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	return c.flush()
}

// flush writes what was kept. c.mu is held.
func (c *Conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.tcp.Write(c.out)
	c.out = c.out[:0]
	return err
}
