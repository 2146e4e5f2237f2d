package handed

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"steadfast/fault"
)

// askersMax bounds the questions under way.
const askersMax = 256

// Handler is the node, as a Receiver needs it. Its methods are called from several
// goroutines.
type Handler interface {
	// Serves returns nil when the node serves a group, and why not: fault.Fenced.
	Serves(group string) error
	// Take takes a client's connection to a group in. After an error it is still
	// the caller's.
	Take(conn net.Conn, group string) error
	// Admit admits any initiator to a volume, and returns by which target and
	// logical unit number it is reached.
	Admit(volume string) (target string, lun int32, err error)
}

// Receiver takes connections in on a node's side.
type Receiver struct {
	handler  Handler
	log      *slog.Logger
	listener *net.UnixListener
	places   chan struct{}
	tasks    sync.WaitGroup

	mu     sync.Mutex
	open   map[*net.UnixConn]bool
	closed bool
}

// Receive takes in what is handed over at a socket. The caller holds the lock of
// the data directory that the socket is in: one that is there is what a crash left.
func Receive(socket string, h Handler, log *slog.Logger) (*Receiver, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.Denied, err, "cannot replace the old socket")
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "cannot make the socket for connections that are handed over; a shorter data_dir may help")
	}
	// Nothing is accepted before, and the data directory is closed to others.
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(fault.Wrap(fault.Denied, err, "cannot protect the socket"), l.Close())
	}
	r := &Receiver{handler: h, log: log, listener: l, places: make(chan struct{}, askersMax), open: map[*net.UnixConn]bool{}}
	r.tasks.Go(r.accept)
	return r, nil
}

// Close ends the receiver, and removes the socket. When it returns no goroutine is
// left, and nothing is given to the handler any more.
func (r *Receiver) Close() error {
	err := r.listener.Close()
	r.mu.Lock()
	r.closed = true
	for c := range r.open {
		_ = c.SetDeadline(time.Unix(1, 0)) // wakes who reads; it is closed there
	}
	r.mu.Unlock()
	r.tasks.Wait()
	return err
}

// accept takes questions until the socket is closed.
func (r *Receiver) accept() {
	for {
		c, err := r.listener.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			r.log.Warn("cannot accept what is handed over", "error", err)
			time.Sleep(pauseMax) // out of descriptors, most likely
			continue
		}
		if !r.enter(c) {
			_ = c.Close()
			continue
		}
		r.places <- struct{}{}
		r.tasks.Go(func() {
			defer func() { <-r.places }()
			defer r.leave(c)
			r.serve(c)
		})
	}
}

func (r *Receiver) enter(c *net.UnixConn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.open[c] = true
	_ = c.SetDeadline(time.Now().Add(takeTime))
	return true
}

func (r *Receiver) leave(c *net.UnixConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, c)
	_ = c.Close() // its questions are answered
}

// serve answers a question, and takes the connection that may follow.
func (r *Receiver) serve(c *net.UnixConn) {
	var q request
	fds, err := receive(c, &q)
	closeAll(fds) // nothing is taken unasked
	if err != nil {
		return // the asker does not wait any more
	}
	switch q.Do {
	case doAdmit:
		target, lun, err := r.handler.Admit(q.Volume)
		out := failed(err)
		out.Target, out.LUN = target, lun
		_ = c.SetDeadline(time.Now().Add(takeTime)) // the quorum may have taken its time
		r.reply(c, out)
	case doAsk:
		err := r.handler.Serves(q.Group)
		if r.reply(c, failed(err)) && err == nil {
			r.take(c, q.Group)
		}
	default:
		r.reply(c, failed(fault.New(fault.Invalid, "%q is no question", q.Do)))
	}
}

// reply reports whether the answer was sent: who asked may not wait any more.
func (r *Receiver) reply(c *net.UnixConn, a answer) bool {
	err := send(c, a)
	if err != nil {
		r.log.Debug("a question was not answered", "error", err)
	}
	return err == nil
}

// take takes in the connection that comes next. One that was queued while this
// process was stopped is beyond the deadline, and ends with c.
func (r *Receiver) take(c *net.UnixConn, group string) {
	var q request
	fds, err := receive(c, &q)
	if err != nil {
		return
	}
	if q.Do != doTake || q.Group != group || len(fds) != 1 {
		closeAll(fds)
		return
	}
	conn, err := connOf(fds[0])
	if err == nil {
		if err = r.handler.Take(conn, group); err == nil {
			return
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // its client is to come back, not to wait
		}
		_ = conn.Close()
	}
	r.log.Info("a connection that was handed over was not taken", "group", group, "error", err)
}

// connOf makes a connection of a descriptor, which it takes. Only what is on
// loopback, at both ends, is a connection of ours.
func connOf(fd int) (net.Conn, error) {
	file := os.NewFile(uintptr(fd), "handed")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "no connection")
	}
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	remote, okToo := conn.RemoteAddr().(*net.TCPAddr)
	if !ok || !okToo || !local.IP.IsLoopback() || !remote.IP.IsLoopback() {
		return nil, errors.Join(fault.New(fault.Denied, "%v from %v is not a connection on loopback", conn.LocalAddr(), conn.RemoteAddr()), conn.Close())
	}
	return conn, nil
}
