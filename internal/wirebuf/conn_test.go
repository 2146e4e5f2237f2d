package wirebuf

import (
	"io"
	"net"
	"strings"
	"testing"
)

// pair connects two sockets.
func pair(t *testing.T) (near *Conn, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	near, far = New(c.(*net.TCPConn)), a.(*net.TCPConn)
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

// TestCork: what is written corked is there at Uncork and not before, in order,
// and a read that asks for little takes what there is.
func TestCork(t *testing.T) {
	near, far := pair(t)
	write := func(w io.Writer, s string) {
		t.Helper()
		if n, err := io.WriteString(w, s); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	read := func(r io.Reader, want string) {
		t.Helper()
		p := make([]byte, len(want))
		if _, err := io.ReadFull(r, p); err != nil || string(p) != want {
			t.Fatalf("%q, %v, want %q", p, err, want)
		}
	}
	write(near, "a")
	read(far, "a")
	near.Cork()
	write(near, "b")
	write(near, "c")
	if len(near.out) != 2 {
		t.Errorf("%d bytes are kept", len(near.out))
	}
	if err := near.Uncork(); err != nil {
		t.Fatal(err)
	}
	read(far, "bc")
	near.Cork()
	long := strings.Repeat("x", corkBytes)
	write(near, long)
	read(far, long)
	if err := near.Uncork(); err != nil {
		t.Fatal(err)
	}
	write(near, "d")
	read(far, "d")
	write(far, "efg")
	read(near, "e")
	if near.in.Buffered() != 2 {
		t.Errorf("%d bytes are read ahead", near.in.Buffered())
	}
	read(near, "fg")
	near.Cork()
	write(near, "h")
	if err := near.Close(); err != nil {
		t.Fatal(err)
	}
	if err := near.Uncork(); err == nil {
		t.Error("what could not be written is no error")
	}
}
