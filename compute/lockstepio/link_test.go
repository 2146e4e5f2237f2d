package lockstepio

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/lockstep"
)

// socketPair makes a connection of sockets that wait without a thread, as a machine's process has.
func socketPair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	must(t, unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 4096))
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
}

// TestLinkOrder: what is sent comes whole and in order, also when the socket takes a part of it, and
// the last of it when the link ends.
func TestLinkOrder(t *testing.T) {
	a, b := socketPair(t)
	defer b.Close()
	h := lockstep.Head{Session: lockstep.Session{1}}
	l := newLink(a, h)
	if l.sock == nil {
		t.Fatal("it is a socket, and nothing is written at once")
	}
	const messages = 3000
	data := func(n int) []byte { return bytes.Repeat([]byte{byte(n)}, 1+n*n%70_000) }
	went := make(chan error, 1)
	go func() {
		for n := range messages {
			if err := l.send(lockstep.Part{Data: data(n)}); err != nil {
				went <- err
				return
			}
			l.flush()
			for l.queued() > 1<<20 {
				time.Sleep(10 * time.Microsecond)
			}
		}
		l.end()
		went <- nil
	}()
	r, err := lockstep.NewReader(b)
	must(t, err)
	for n := range messages {
		m, err := r.Next()
		must(t, err)
		if p, ok := m.(lockstep.Part); !ok || !bytes.Equal(p.Data, data(n)) {
			t.Fatalf("message %d is another", n)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	must(t, <-went)
}

// TestLinkWaits: a socket that nobody reads makes no flush wait.
func TestLinkWaits(t *testing.T) {
	a, b := socketPair(t)
	defer b.Close()
	l := newLink(a, lockstep.Head{})
	for l.queued() > 0 {
		time.Sleep(time.Millisecond) // the head, which its goroutine writes
	}
	head := l.bytes()
	for range 100 {
		must(t, l.send(lockstep.Part{Data: make([]byte, 64<<10)}))
		l.flush()
	}
	if l.queued() == 0 || l.bytes() == head {
		t.Errorf("%d bytes wait, %d were sent", l.queued(), l.bytes())
	}
	l.cut()
	<-l.ended
}

// TestLinkBlocking: a descriptor whose writes wait is written to by the link's goroutine only.
func TestLinkBlocking(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	must(t, unix.SetNonblock(int(w.Fd()), false))
	l := newLink(w, lockstep.Head{})
	if l.sock != nil {
		t.Error("a write may wait there")
	}
	l.cut()
	<-l.ended
}
