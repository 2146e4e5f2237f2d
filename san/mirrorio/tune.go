package mirrorio

import (
	"net"

	"golang.org/x/sys/unix"
)

// tune has a connection over TCP send at once, and end when what was sent is not
// acknowledged for stallMax: a peer that lost its power says nothing.
func tune(conn net.Conn) {
	if c, ok := conn.(interface{ NetConn() net.Conn }); ok { // as *tls.Conn is
		conn = c.NetConn()
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	// What cannot be set is not there; the mirror's own silence ends the peer's part.
	_ = tcp.SetNoDelay(true)
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(stallMax.Milliseconds()))
	})
}
