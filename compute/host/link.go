package host

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/lockstep"
	"steadfast/compute/vmm"
	"steadfast/fault"
)

// ProtoLockstep is the protocol between hosts that Accept answers.
const ProtoLockstep = "steadfast-lockstep/1"

// greeting begins a link of a pair: the primary's host says whose it is.
type greeting struct {
	Machine    string           `json:"machine"`
	ID         string           `json:"id"`
	Generation uint64           `json:"generation"`
	Pair       uint64           `json:"pair"`
	Session    lockstep.Session `json:"session"`
	Link       lockstep.Link    `json:"link"`
	Program    string           `json:"program"`
	Build      string           `json:"build"`
}

// welcome answers it: the link is a pair's from then on, or why it is not. A second one follows
// when the secondary's process runs, or cannot: only then is anything to be expected of it.
type welcome struct {
	Error *vmm.Failure `json:"error,omitempty"`
}

const (
	// linkFrames is no link of a session: it brings frames that came for a machine while it
	// went elsewhere.
	linkFrames lockstep.Link = lockstep.Links
	// greetingMax bounds both, in bytes.
	greetingMax = 4 << 10
	// greetingTime is how long they may take.
	greetingTime = 5 * time.Second
)

// sendWord sends a greeting or its answer: its length in 4 bytes, big-endian, and JSON.
func sendWord(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "a word between hosts")
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return fault.Wrap(fault.Unreachable, err, "a word between hosts")
}

// readWord reads one, and nothing behind it.
func readWord(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fault.Wrap(fault.Unreachable, err, "a word between hosts")
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > greetingMax {
		return fault.New(fault.Invalid, "a word between hosts of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return fault.Wrap(fault.Unreachable, err, "a word between hosts")
	}
	return fault.Wrap(fault.Invalid, json.Unmarshal(b, v), "a word between hosts")
}

// greet begins a link on the primary's side. Fails with fault.Busy when the secondary is not
// ready yet, and as the other host says.
func greet(ctx context.Context, conn net.Conn, g greeting) error {
	if err := conn.SetDeadline(time.Now().Add(greetingTime)); err != nil {
		return fault.Wrap(fault.Unreachable, err, "a word between hosts")
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := sendWord(conn, g); err != nil {
		return err
	}
	return heed(conn)
}

// heed reads a welcome.
func heed(conn net.Conn) error {
	var w welcome
	if err := readWord(conn, &w); err != nil {
		return err
	}
	return w.Error.Err()
}

// awaitReady returns when the secondary's process is behind a link that was greeted, until ctx
// ends.
func awaitReady(ctx context.Context, conn net.Conn) error {
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return fault.Wrap(fault.Unreachable, err, "a word between hosts")
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := heed(conn)
	if !stop() && err == nil { // its deadline may be spoilt
		err = fault.Wrap(fault.Canceled, context.Cause(ctx), "a word between hosts")
	}
	return err
}

// arrival is a link that has come to a secondary.
type arrival struct {
	greeting
	conn net.Conn
	// over is closed when nobody uses conn any more.
	over chan struct{}
}

// Accept answers ProtoLockstep: conn is a link of a pair whose secondary is to be here, and from
// the host that it comes from. It returns, with conn closed, when the link is over.
func (h *Host) Accept(conn net.Conn, from string) {
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(greetingTime)) != nil {
		return // it is broken, and who began it notices
	}
	a := arrival{conn: conn, over: make(chan struct{})}
	var r *run
	err := readWord(conn, &a.greeting)
	if err == nil {
		r, err = h.follower(a.greeting, from)
	}
	if sendWord(conn, welcome{vmm.FailureOf(err)}) != nil || err != nil || conn.SetDeadline(time.Time{}) != nil {
		return
	}
	if a.Link == linkFrames {
		r.mu.Lock()
		f := r.follower
		r.mu.Unlock()
		f.frames(conn)
		return
	}
	select {
	case r.links <- a:
	case <-r.done:
		return
	}
	select {
	case <-a.over:
	case <-r.done:
	}
}

// follower returns the run that a link is for. Fails with fault.Busy when it is not ready, and
// with fault.Invalid when it never will be.
func (h *Host) follower(g greeting, from string) (*run, error) {
	if g.Program != h.o.Program || g.Build != h.o.Build {
		return nil, fault.New(fault.Invalid, "the host %s runs %s %s, and the machine's host %s %s: a machine and its secondary need the same; upgrade one of them", h.o.Name, h.o.Program, h.o.Build, g.Program, g.Build)
	}
	h.mu.Lock()
	r := h.runs[g.Machine]
	h.mu.Unlock()
	switch {
	case r == nil || r.pair == 0 || r.m.ID != g.ID || r.generation != g.Generation || r.pair < g.Pair:
		// It may not have heard yet what was decided.
		return nil, fault.New(fault.Busy, "the host %s knows nothing of secondary %d of the machine %q yet", h.o.Name, g.Pair, g.Machine)
	case r.pair > g.Pair:
		return nil, fault.New(fault.Stale, "secondary %d of the machine %q is over", g.Pair, g.Machine)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.told.pair; p == nil || p.other != from {
		return nil, fault.New(fault.Stale, "the machine %q does not run on the host %s", g.Machine, from)
	}
	switch {
	case g.Link > linkFrames:
		return nil, fault.New(fault.Invalid, "a link %d between hosts, which there is not", g.Link)
	case g.Link == linkFrames && r.follower == nil:
		return nil, fault.New(fault.Busy, "the secondary on the host %s is not ready", h.o.Name)
	case g.Link == linkFrames:
		return r, nil
	}
	switch r.told.phase {
	case Waiting:
		return r, nil
	case Starting:
		return nil, fault.New(fault.Busy, "the secondary on the host %s is not ready: it %s", h.o.Name, r.told.step)
	default:
		return nil, fault.New(fault.Stale, "the secondary on the host %s has its links, or has ended", h.o.Name)
	}
}

// relay carries a link between its connection and the machine's process, until both have
// ended. It closes both. What either has said before its end arrives: a socket that is closed with
// something unread takes with it what it has not sent.
func relay(conn, process net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(process, conn) // who is behind it sees its end
		halfClose(process)
	}()
	_, _ = io.Copy(conn, process)
	if halfClose(conn) {
		_ = conn.SetReadDeadline(time.Now().Add(lastWords))
		select {
		case <-done:
		case <-time.After(lastWords):
		}
	}
	_ = conn.Close()
	_ = process.Close()
	<-done
}

// lastWords is how long an end that has said all waits for the other one's.
const lastWords = time.Second

// halfClose tells who is at the other end that nothing more comes.
func halfClose(c net.Conn) bool {
	w, ok := c.(interface{ CloseWrite() error })
	return ok && w.CloseWrite() == nil
}

// channel makes a pair of stream sockets: ours, and a file for a machine's process.
func channel() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Limit, err, "a pair of sockets")
	}
	f := os.NewFile(uintptr(fds[0]), "ours")
	defer f.Close()
	theirs = os.NewFile(uintptr(fds[1]), "theirs")
	if ours, err = net.FileConn(f); err != nil {
		return nil, nil, errors.Join(fault.Wrap(fault.Limit, err, "a pair of sockets"), theirs.Close())
	}
	return ours, theirs, nil
}
