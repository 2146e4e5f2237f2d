package handed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steadfast/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// echo is a handler that serves groups, or not, and answers every line of a
// connection with its name.
type echo struct {
	name   string
	serves atomic.Bool // Serves says so
	takes  atomic.Bool // Take does so
	took   atomic.Int64
}

func (e *echo) Serves(group string) error {
	if !e.serves.Load() || group != "g1" {
		return fault.New(fault.Fenced, "%s does not serve %q", e.name, group)
	}
	return nil
}

func (e *echo) Take(conn net.Conn, _ string) error {
	if !e.takes.Load() {
		return fault.New(fault.Fenced, "not any more")
	}
	e.took.Add(1)
	go func() {
		defer conn.Close()
		for s := bufio.NewScanner(conn); s.Scan(); {
			fmt.Fprintf(conn, "%s: %s at %v\n", e.name, s.Text(), conn.LocalAddr())
		}
	}()
	return nil
}

func (e *echo) Admit(volume string) (string, int32, error) {
	if volume != "vol1" {
		return "", 0, fault.New(fault.NotFound, "no volume %q", volume)
	}
	return "iqn.2026-11.test:t", 3, nil
}

// rig is a keeper with two nodes.
type rig struct {
	*testing.T
	keeper  *Keeper
	nodes   [2]*echo
	sockets [2]string
	at      netip.AddrPort
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newRig(t *testing.T, patience time.Duration) *rig {
	dir, err := os.MkdirTemp("", "sf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &rig{T: t}
	for i, name := range []string{"a", "b"} {
		r.nodes[i] = &echo{name: name}
		r.sockets[i] = filepath.Join(dir, name)
	}
	r.keeper = NewKeeper(Options{Nodes: r.sockets[:], Patience: patience, Log: quiet()})
	t.Cleanup(r.keeper.Close)
	if r.at, err = r.keeper.Hold(netip.MustParseAddrPort("127.0.0.1:0"), "g1"); err != nil {
		t.Fatal(err)
	}
	return r
}

// start starts a node's receiver.
func (r *rig) start(i int) *Receiver {
	r.Helper()
	rec, err := Receive(r.sockets[i], r.nodes[i], quiet())
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = rec.Close() })
	return rec
}

func (r *rig) serve(i int, yes bool) {
	r.nodes[i].serves.Store(yes)
	r.nodes[i].takes.Store(yes)
}

func (r *rig) dial() net.Conn {
	r.Helper()
	c, err := net.Dial("tcp", r.at.String())
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// say sends a line, and expects a node's answer.
func (r *rig) say(c net.Conn, text, want string) {
	r.Helper()
	if _, err := fmt.Fprintln(c, text); err != nil {
		r.Fatal(err)
	}
	got, err := bufio.NewReader(c).ReadString('\n')
	if want = fmt.Sprintf("%s: %s at %v\n", want, text, r.at); err != nil || got != want {
		r.Fatalf("%q, %v; want %q", got, err, want)
	}
}

// TestFollows: a connection goes to the node that serves the group, also one that
// came before there was any; what was taken stays when the keeper ends.
func TestFollows(t *testing.T) {
	r := newRig(t, patience)
	early := r.dial()
	if _, err := fmt.Fprintln(early, "early"); err != nil {
		t.Fatal(err)
	}
	r.start(0)
	time.Sleep(20 * time.Millisecond)
	r.serve(0, true)
	if got, err := bufio.NewReader(early).ReadString('\n'); err != nil || !strings.HasPrefix(got, "a: early") {
		t.Fatalf("%q, %v", got, err)
	}
	r.start(1)
	r.serve(0, false)
	r.serve(1, true)
	c := r.dial()
	r.say(c, "moved", "b")
	r.keeper.Close()
	r.say(c, "still", "b")
	r.say(early, "too", "a")
	if _, err := net.Dial("tcp", r.at.String()); err == nil {
		t.Error("the alias is still held")
	}
	if _, err := r.keeper.Hold(r.at, "g1"); !fault.Is(err, fault.Canceled) {
		t.Errorf("held after the end: %v", err)
	}
}

// TestGivesUp: what no node takes is closed after the time for it.
func TestGivesUp(t *testing.T) {
	r := newRig(t, 50*time.Millisecond)
	r.start(0)
	if _, err := r.dial().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v; want EOF", err)
	}
}

// TestMindChanged: a node that has said yes and then does not serve the group ends
// the connection, so that its client comes back; and nothing of it stays.
func TestMindChanged(t *testing.T) {
	r := newRig(t, patience)
	r.start(0)
	r.nodes[0].serves.Store(true)
	// The reset may be there before the client knows that it was connected.
	if c, err := net.Dial("tcp", r.at.String()); err == nil {
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("it goes on: %v", err)
		}
		_ = c.Close()
	}
	r.serve(0, true)
	r.say(r.dial(), "again", "a")
}

// TestStopped: a node that does not answer is passed by. It was asked, and given
// nothing that it could take when it goes on.
func TestStopped(t *testing.T) {
	r := newRig(t, patience)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: r.sockets[0], Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r.start(1)
	r.serve(1, true)
	r.say(r.dial(), "hello", "b")
	if took := r.nodes[1].took.Load(); took != 1 {
		t.Errorf("taken %d times", took)
	}
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	var q request
	if fds, err := receive(c, &q); err != nil || q.Do != doAsk || len(fds) != 0 {
		t.Errorf("%+v with %d descriptors, %v", q, len(fds), err)
	}
	if fds, err := receive(c, &q); err == nil || len(fds) != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("then %+v with %d descriptors, %v", q, len(fds), err)
	}
}

// TestRefused: addresses off loopback, and one for two groups.
func TestRefused(t *testing.T) {
	r := newRig(t, patience)
	if _, err := r.keeper.Hold(netip.MustParseAddrPort("192.0.2.1:0"), "g1"); !fault.Is(err, fault.Invalid) {
		t.Errorf("off loopback: %v", err)
	}
	if _, err := r.keeper.Hold(r.at, "g2"); !fault.Is(err, fault.Exists) {
		t.Errorf("for another group: %v", err)
	}
	if _, err := r.keeper.Hold(r.at, "g1"); err != nil {
		t.Errorf("again: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := r.keeper.Hold(l.Addr().(*net.TCPAddr).AddrPort(), "g1"); !fault.Is(err, fault.Busy) {
		t.Errorf("in use: %v", err)
	}
	second, err := r.keeper.Hold(netip.MustParseAddrPort("127.0.0.2:0"), "g2")
	if err != nil {
		t.Fatal(err)
	}
	if held := r.keeper.Held(); held[second] != "g2" || held[r.at] != "g1" || len(held) != 2 {
		t.Errorf("held %v", held)
	}
	r.keeper.Release(second)
	if held := r.keeper.Held(); len(held) != 1 {
		t.Errorf("held %v", held)
	}
}

// TestAdmit: a volume is admitted by the node that runs, and its errors are told.
func TestAdmit(t *testing.T) {
	r := newRig(t, patience)
	if _, _, err := Admit(context.Background(), r.sockets[0], "vol1"); !fault.Is(err, fault.Unreachable) {
		t.Errorf("without a node: %v", err)
	}
	rec := r.start(0)
	if info, err := os.Stat(r.sockets[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	target, lun, err := Admit(context.Background(), r.sockets[0], "vol1")
	if err != nil || target != "iqn.2026-11.test:t" || lun != 3 {
		t.Errorf("%q, %d, %v", target, lun, err)
	}
	if _, _, err := Admit(context.Background(), r.sockets[0], "other"); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), `no volume "other"`) {
		t.Errorf("of another: %v", err)
	}
	if err := rec.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(r.sockets[0]); err == nil {
		t.Error("the socket is still there")
	}
}

// TestStrangers: a receiver takes no connection unasked, none off loopback, and
// nothing that is no connection.
func TestStrangers(t *testing.T) {
	r := newRig(t, patience)
	r.start(0)
	r.serve(0, true)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, messages := range map[string][]request{
		"unasked":       {{Do: doTake, Group: "g1"}},
		"a file":        {{Do: doAsk, Group: "g1"}, {Do: doTake, Group: "g1"}},
		"another group": {{Do: doAsk, Group: "g1"}, {Do: doTake, Group: "g2"}},
		"no question":   {{Do: "nonsense"}},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		c, err := dial(ctx, r.sockets[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			_ = send(c, m, int(file.Fd()))
			if m.Do == doAsk {
				var a answer
				if _, err := receive(c, &a); err != nil || a.err() != nil {
					t.Errorf("%s: %v, %v", name, err, a.err())
				}
			}
		}
		var a answer
		if _, err := receive(c, &a); err == nil && a.err() == nil {
			t.Errorf("%s: taken", name)
		}
		_ = c.Close()
		cancel()
	}
	if took := r.nodes[0].took.Load(); took != 0 {
		t.Errorf("taken %d times", took)
	}
}
