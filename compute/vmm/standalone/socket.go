package standalone

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/machine"
	"steadfast/compute/vmm"
	"steadfast/fault"
)

// Bounds of a machine's socket.
const (
	lineMax    = 16 << 10
	clientsMax = 32
	// askPatience is how long a client may take to ask, and a machine to answer.
	askPatience = 5 * time.Second
	// pathMax is what fits a unix socket's address.
	pathMax = 107
)

// Verbs of a request.
const (
	verbStatus  = "status"
	verbStop    = "stop"
	verbConsole = "console"
)

// request is what a client asks for.
type request struct {
	Verb  string `json:"verb"`
	Force bool   `json:"force,omitempty"`
}

// answer is what it gets.
type answer struct {
	Error *vmm.Failure `json:"error,omitempty"`
	Info  *Info        `json:"info,omitempty"`
	// End and Failed are how the machine ended.
	End    machine.End  `json:"end,omitempty"`
	Failed *vmm.Failure `json:"failed,omitempty"`
}

// server is a machine's socket.
type server struct {
	m     *Machine
	l     net.Listener
	tasks sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]struct{}
}

// socketPath is where a machine's socket is.
func socketPath(dir, name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if len(path) > pathMax {
		return "", fault.New(fault.Invalid, "%s is too long for a socket's name", path)
	}
	return path, nil
}

// serve makes the machine's socket. Fails with fault.Exists if a machine of the name runs.
func serve(m *Machine) (*server, error) {
	path, err := socketPath(m.o.Sockets, m.o.Name)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(m.o.Sockets, 0o700); err != nil {
		return nil, fault.Wrap(fault.Denied, err, "the folder of machines' sockets")
	}
	// One at a time: what is there is somebody's who lives, or nobody's.
	dir, err := os.Open(m.o.Sockets)
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "the folder of machines' sockets")
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return nil, fault.Wrap(fault.Failed, err, "the folder of machines' sockets")
	}
	c, err := net.DialTimeout("unix", path, askPatience)
	switch {
	case err == nil:
		return nil, errors.Join(fault.New(fault.Exists, "a machine %q runs already", m.o.Name), c.Close())
	case errors.Is(err, syscall.ECONNREFUSED):
		if err := os.Remove(path); err != nil {
			return nil, fault.Wrap(fault.Denied, err, "the socket of a machine that has died")
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "a machine's socket")
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fault.Wrap(fault.Denied, err, "a machine's socket"), l.Close())
	}
	s := &server{m: m, l: l, conns: map[net.Conn]struct{}{}}
	s.tasks.Go(s.accept)
	return s, nil
}

// close ends the socket; who waits for the machine's end is answered first.
func (s *server) close() error {
	err := s.l.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		if e := c.SetDeadline(time.Now().Add(askPatience)); !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	s.mu.Unlock()
	s.tasks.Wait()
	return err
}

func (s *server) accept() {
	for {
		c, err := s.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond) // out of descriptors, for now
			continue
		}
		s.mu.Lock()
		ok := !s.closed && len(s.conns) < clientsMax
		if ok {
			s.conns[c] = struct{}{}
			s.tasks.Add(1)
		}
		s.mu.Unlock()
		if !ok {
			_ = c.Close() // it sees that
			continue
		}
		go s.client(c)
	}
}

// client serves one client.
func (s *server) client(c net.Conn) {
	defer s.tasks.Done()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		_ = c.Close() // all was said
	}()
	_ = c.SetDeadline(time.Now().Add(askPatience)) // it fails when c is closed, and then so does what follows
	r := bufio.NewReaderSize(c, lineMax)
	var req request
	line, err := r.ReadSlice('\n')
	if err == nil {
		err = json.Unmarshal(line, &req)
	}
	if err != nil {
		s.tell(c, answer{Error: vmm.FailureOf(fault.Wrap(fault.Invalid, err, "a request"))})
		return
	}
	// Only the status needs the machine's process: one that answers nothing can be ended.
	info, _ := s.m.about()
	switch req.Verb {
	case verbStatus:
		ctx, cancel := context.WithTimeout(context.Background(), askPatience)
		defer cancel()
		if info, err = s.m.Info(ctx); err != nil {
			s.tell(c, answer{Error: vmm.FailureOf(err)})
			return
		}
		s.tell(c, answer{Info: &info})
	case verbConsole:
		s.attach(c, r, answer{Info: &info})
	case verbStop:
		s.stop(c, req.Force, answer{Info: &info})
	default:
		s.tell(c, answer{Error: vmm.FailureOf(fault.New(fault.Invalid, "%q is nothing that a machine does", req.Verb))})
	}
}

// tell sends an answer, whatever of the connection's time was spent on finding it. A client
// that has gone does not hear it.
func (s *server) tell(c net.Conn, a answer) bool {
	b, err := json.Marshal(a)
	if err == nil {
		err = c.SetWriteDeadline(time.Now().Add(askPatience))
	}
	if err == nil {
		_, err = c.Write(append(b, '\n'))
	}
	return err == nil
}

// lasting takes the deadline off a connection, unless all ends.
func (s *server) lasting(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.closed && c.SetDeadline(time.Time{}) == nil
}

// attach makes a connection the console.
func (s *server) attach(c net.Conn, r io.Reader, a answer) {
	if !s.tell(c, a) || !s.lasting(c) {
		return
	}
	k := s.m.console.attach(c)
	b := make([]byte, 4096)
	for {
		n, err := r.Read(b)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = c.Close() // nothing more gets there
			}
			break // else it has typed all that it wants to, and reads the rest
		}
		s.m.Type(b[:n])
	}
	k.leave()
}

// stop has the machine stopped, and tells how it ended.
func (s *server) stop(c net.Conn, force bool, a answer) {
	grace := Forever
	if force {
		grace = 0
	}
	s.m.Stop(grace)
	if !s.tell(c, a) || !s.lasting(c) {
		return
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, c) // its end is what is waited for
	}()
	select {
	case <-gone:
		return
	case <-s.m.done:
	}
	s.m.mu.Lock()
	a = answer{End: s.m.end, Failed: vmm.FailureOf(s.m.err)}
	s.m.mu.Unlock()
	s.tell(c, a)
	_ = c.Close()
	<-gone
}

// dial asks a machine for something, and returns its answer and the connection.
func dial(ctx context.Context, dir, name string, req request) (net.Conn, *bufio.Reader, Info, error) {
	path, err := socketPath(dir, name)
	if err != nil {
		return nil, nil, Info{}, err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, nil, Info{}, fault.New(fault.NotFound, "no machine %q runs", name)
	case err != nil:
		return nil, nil, Info{}, fault.Wrap(fault.Denied, err, "the machine's socket")
	}
	b, err := json.Marshal(req)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(2 * askPatience))
	}
	if err == nil {
		// Who has closed it before that, or after, says nothing either way.
		_, err = c.Write(append(b, '\n'))
		err = fault.Wrap(fault.Unreachable, err, fmt.Sprintf("the machine %q does not answer", name))
	}
	r := bufio.NewReaderSize(c, lineMax)
	var a answer
	if err == nil {
		a, err = heard(r)
	}
	if err == nil {
		err = a.Error.Err()
	}
	if err == nil && a.Info == nil {
		err = fault.New(fault.Internal, "the machine %q answers nothing", name)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, nil, Info{}, errors.Join(err, c.Close())
	}
	return c, r, *a.Info, nil
}

// heard reads an answer.
func heard(r *bufio.Reader) (a answer, err error) {
	line, err := r.ReadSlice('\n')
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	return a, fault.Wrap(fault.Unreachable, err, "a machine's answer")
}

// Find returns a machine that runs. Fails with fault.NotFound.
func Find(ctx context.Context, dir, name string) (Info, error) {
	c, _, info, err := dial(ctx, dir, name, request{Verb: verbStatus})
	if err != nil {
		return info, err
	}
	return info, c.Close()
}

// List returns the machines that run, by name: those that answer, with an error if some
// do not.
func List(ctx context.Context, dir string) ([]Info, error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "the folder of machines' sockets")
	}
	// All at once: one that does not answer holds up none.
	infos, errs := make([]Info, len(all)), make([]error, len(all))
	var asked sync.WaitGroup
	for i, e := range all {
		asked.Go(func() { infos[i], errs[i] = Find(ctx, dir, e.Name()) })
	}
	asked.Wait()
	var list []Info
	var silent error
	for i, e := range all {
		switch err := errs[i]; {
		case err == nil:
			list = append(list, infos[i])
		case fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid): // it has died, or is no machine
		default:
			silent = errors.Join(silent, fault.Wrap(fault.KindOf(err), err, "the machine "+strconv.Quote(e.Name())))
		}
	}
	return list, silent
}

// Attachment is the console of a machine that runs elsewhere.
type Attachment struct {
	net.Conn
	r *bufio.Reader
}

// Read implements io.Reader. Its end is the machine's, or that this reader was too slow.
func (a Attachment) Read(p []byte) (int, error) { return a.r.Read(p) }

// Leave says that nothing more is typed: Read has what the guest has written until now, and
// then an end.
func (a Attachment) Leave() error { return a.Conn.(*net.UnixConn).CloseWrite() }

// Attach connects to a machine's console. Close is to follow.
func Attach(ctx context.Context, dir, name string) (*Attachment, error) {
	c, r, _, err := dial(ctx, dir, name, request{Verb: verbConsole})
	if err != nil {
		return nil, err
	}
	return &Attachment{c, r}, nil
}

// StopOther presses a machine's power button, or ends it by force; it returns when
// it has ended, how, and what Machine.Run has returned.
func StopOther(ctx context.Context, dir, name string, force bool) (machine.End, error) {
	c, r, _, err := dial(ctx, dir, name, request{Verb: verbStop, Force: force})
	if err != nil {
		return machine.Running, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	a, err := heard(r)
	if ctx.Err() != nil {
		return machine.Running, fault.Wrap(fault.Canceled, ctx.Err(), "waiting for the machine's end")
	}
	if err != nil {
		return machine.Running, fault.Wrap(fault.Unreachable, err, "the machine's process has ended without a word")
	}
	return a.End, a.Failed.Err()
}
