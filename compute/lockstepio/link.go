package lockstepio

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/lockstep"
	"steadfast/fault"
)

// Links are the connections to the other host: Logging and Management. They are closed when
// the pair ends.
type Links [lockstep.Links]io.ReadWriteCloser

func (l Links) close() (err error) {
	for _, c := range l {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
	}
	return err
}

// linkGrace is how long the last words of a pair may take to be sent.
const linkGrace = time.Second

// link is one connection to the other host. Messages are sent from any goroutine, in the
// order of the calls of send.
type link struct {
	conn   io.ReadWriteCloser
	sock   syscall.RawConn // of conn, nil if a write there may wait
	number lockstep.Link

	mu      sync.Mutex
	changed sync.Cond
	w       *lockstep.Writer
	out     []byte
	spare   []byte
	writing int
	due     bool // to be written now
	ending  bool
	err     error
	sent    int64
	ended   chan struct{}
}

func newLink(conn io.ReadWriteCloser, h lockstep.Head) *link {
	w, first := lockstep.NewWriter(h)
	l := &link{conn: conn, number: h.Link, w: w, out: first, due: true, ended: make(chan struct{})}
	l.changed.L = &l.mu
	l.sock = socketOf(conn)
	go l.carry()
	return l
}

// send puts a message behind the others; flush has them written. It does not wait.
func (l *link) send(m lockstep.Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil || l.ending {
		return nil // who reads it is told elsewhere
	}
	out, err := l.w.Append(l.out, m)
	if err != nil {
		return err
	}
	l.out = out
	return nil
}

// flush writes what the connection takes at once; the link's goroutine writes the rest. It does not
// wait.
func (l *link) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.out) == 0 || l.err != nil {
		return
	}
	if !l.due && !l.ending && l.writing == 0 && l.sock != nil {
		n := l.try(l.out)
		l.sent += int64(n)
		if l.out = l.out[:copy(l.out, l.out[n:])]; len(l.out) == 0 {
			return
		}
	}
	l.due = true
	l.changed.Signal()
}

// socketOf returns what of a connection can be written to without waiting, or nil.
func socketOf(conn io.ReadWriteCloser) syscall.RawConn {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	sock, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	waits := true
	err = sock.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		waits = err != nil || flags&unix.O_NONBLOCK == 0
	})
	if err != nil || waits {
		return nil
	}
	return sock
}

// try writes what the socket takes at once, and returns how much. What is the matter, if it is
// nothing, who writes the rest finds out. A machine's process has no system calls but write for this.
func (l *link) try(p []byte) (n int) {
	_ = l.sock.Write(func(fd uintptr) bool {
		n, _ = unix.Write(int(fd), p[:min(len(p), pieceMax)])
		return true
	})
	return max(n, 0)
}

// queued is how many bytes wait to be sent.
func (l *link) queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0
	}
	return len(l.out) + l.writing
}

// bytes is how many were sent.
func (l *link) bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent
}

// carry writes what is due, for as long as the link is there.
func (l *link) carry() {
	defer close(l.ended)
	for {
		l.mu.Lock()
		for !l.due && !l.ending && l.err == nil {
			l.changed.Wait()
		}
		p := l.out
		if l.err != nil || l.ending && len(p) == 0 {
			l.mu.Unlock()
			return
		}
		l.out, l.spare, l.due, l.writing = l.spare[:0], nil, false, len(p)
		l.mu.Unlock()
		err := l.write(p)
		l.mu.Lock()
		l.writing, l.err = 0, err
		if cap(p) <= spareMax {
			l.spare = p
		}
		l.mu.Unlock()
	}
}

// pieceMax is how much is written at once, in bytes: a link that takes so much is not stuck.
const pieceMax = 256 << 10

// write writes bytes to the connection, and counts what it has taken.
func (l *link) write(p []byte) error {
	for len(p) > 0 {
		n, err := l.conn.Write(p[:min(len(p), pieceMax)])
		l.mu.Lock()
		l.sent += int64(n)
		l.writing -= n
		l.mu.Unlock()
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// spareMax is how large a buffer is kept, in bytes.
const spareMax = 8 << 20

// end closes the link when all is written, or soon.
func (l *link) end() {
	l.mu.Lock()
	l.ending = true
	l.changed.Signal()
	l.mu.Unlock()
	t := time.NewTimer(linkGrace)
	defer t.Stop()
	select {
	case <-l.ended:
	case <-t.C:
	}
	l.cut()
}

// cut closes the link at once.
func (l *link) cut() {
	l.mu.Lock()
	l.ending, l.out = true, nil
	l.changed.Signal()
	l.mu.Unlock()
	_ = l.conn.Close() // nothing is expected of it any more
}

// listen hands over what comes, until it is over, and returns why; before it waits for more it calls
// heed. want is the head that the other one's stream is to have. Fails as a lockstep.Reader does, with fault.Unreachable where the
// stream ends, and with fault.Invalid for one of another pair.
func (l *link) listen(want lockstep.Head, take func(lockstep.Message), heed func()) error {
	r, err := lockstep.NewReader(heeding{l.conn, heed})
	if err != nil {
		return err
	}
	if h := r.Head(); h.Session != want.Session || h.Secondary != want.Secondary || h.Link != want.Link {
		return fault.New(fault.Invalid, "the other host speaks of another pair")
	}
	for {
		m, err := r.Next()
		if errors.Is(err, io.EOF) {
			return fault.New(fault.Unreachable, "the other host has ended the connection")
		}
		if err != nil {
			return err
		}
		take(m)
	}
}

// heeding is a reader that calls heed before each Read.
type heeding struct {
	io.Reader
	heed func()
}

func (h heeding) Read(p []byte) (int, error) {
	h.heed()
	return h.Reader.Read(p)
}
