package lockstepio

import (
	"errors"
	"io"
	"sync"
	"time"

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

func (l *link) flush() {
	l.mu.Lock()
	if len(l.out) > 0 {
		l.due = true
		l.changed.Signal()
	}
	l.mu.Unlock()
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

// listen hands over what comes, until it is over, and returns why. want is the head that the
// other one's stream is to have. Fails as a lockstep.Reader does, with fault.Unreachable where the
// stream ends, and with fault.Invalid for one of another pair.
func (l *link) listen(want lockstep.Head, take func(lockstep.Message)) error {
	r, err := lockstep.NewReader(l.conn)
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
