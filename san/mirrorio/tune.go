package mirrorio

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tune has a connection over TCP send at once, and end when what was sent is not
// acknowledged for stallMax: a peer that lost its power says nothing. It returns
// the TCP connection below, or nil.
func tune(conn net.Conn) syscall.RawConn {
	if c, ok := conn.(interface{ NetConn() net.Conn }); ok { // as *tls.Conn is
		conn = c.NetConn()
	}
	tcp, ok := conn.(interface {
		syscall.Conn
		SetNoDelay(on bool) error
	})
	if !ok {
		return nil
	}
	// What cannot be set is not there; the mirror's own silence ends the peer's part.
	_ = tcp.SetNoDelay(true)
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(stallMax.Milliseconds()))
	})
	return raw
}

// drained tells whether the peer's TCP has all that was sent. Then the socket's
// buffer, at least 40 KiB with Linux, has room for inlineMax, and a write does not wait.
func (l *link) drained() bool {
	if l.tcp == nil {
		return false
	}
	left := -1
	err := l.tcp.Control(func(fd uintptr) {
		if n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil {
			left = n
		}
	})
	return err == nil && left == 0
}
