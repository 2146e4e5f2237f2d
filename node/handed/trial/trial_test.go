package trial

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steadfast/fault"
	"steadfast/san/target"
	"steadfast/san/target/targettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

const (
	testTarget    = "iqn.2026-11.test:t"
	testInitiator = "iqn.2026-11.test:i"
)

// rig is a target with a RAM disk.
type rig struct {
	*testing.T
	srv  *target.Server
	disk *targettest.Disk
	addr string
}

func newRig(t *testing.T) *rig {
	r := &rig{T: t, disk: targettest.NewDisk(8 << 20)}
	var err error
	r.srv, err = target.New(target.Config{Log: slog.New(slog.DiscardHandler), Times: target.Times{Logout: time.Millisecond}}, r.disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.srv.Close(context.Background()) })
	if err := r.srv.AddTarget(target.Target{Name: testTarget, Access: []target.Access{{Initiator: testInitiator}}}); err != nil {
		t.Fatal(err)
	}
	at, err := r.srv.Listen(target.Portal{Address: "127.0.0.1:0", Group: 1})
	if err != nil {
		t.Fatal(err)
	}
	r.addr = at.String()
	return r
}

func (r *rig) open() *Disk {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	d, err := Open(ctx, Options{Portal: r.addr, Target: testTarget, Initiator: testInitiator})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(d.Close)
	return d
}

// until waits for a condition.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("in vain: " + what)
		}
	}
}

// TestSessions: requests survive the ends of sessions, whatever ends them.
func TestSessions(t *testing.T) {
	r := newRig(t)
	d := r.open()
	if d.Size() != 8<<20 {
		t.Fatalf("size %d", d.Size())
	}
	l, err := Start(context.Background(), d, Region{From: 1 << 20, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	ends := map[string]func(){
		"a reset":  func() { r.srv.DropPortalGroup(1); r.srv.AdmitLogins(1) },
		"a move":   func() { r.srv.PrepareMove(context.Background(), 1); r.srv.DropPortalGroup(1); r.srv.AdmitLogins(1) },
		"a hangup": func() { r.srv.AnnounceMove(context.Background(), 1); r.srv.AdmitLogins(1) },
	}
	for name, end := range ends {
		n, had := l.Stats().Requests, d.Sessions()
		until(t, "requests before "+name, func() bool { return l.Stats().Requests > n+100 })
		end()
		until(t, "a session after "+name, func() bool { return d.Sessions() > had })
		n = l.Stats().Requests
		until(t, "requests after "+name, func() bool { return l.Stats().Requests > n+100 })
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if !l.Stop(ctx) {
		t.Fatal("it does not end")
	}
	if err := l.ReadBack(ctx); err != nil {
		t.Fatal(err)
	}
	s := l.Stats()
	if !s.Clean() || s.Verified < 100 || s.Longest == 0 {
		t.Errorf("%+v", s)
	}
	d.Close()

	// Another run finds all of it, and notices what was done to it.
	spoil := make([]byte, Sector)
	copy(spoil, "spoilt")
	if err := r.open().WriteAt(spoil, 1<<20+5*Block); err != nil {
		t.Fatal(err)
	}
	l, err = Start(ctx, r.open(), Region{From: 1 << 20, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	l.Stop(ctx)
	if s := l.Stats(); s.Found == 0 || s.Wrong != 1 || s.Lost != 0 {
		t.Errorf("%+v", s)
	}
}

// TestRefused: who is not admitted is told so, at once; who finds nobody waits for
// as long as he was told.
func TestRefused(t *testing.T) {
	r := newRig(t)
	_, err := Open(context.Background(), Options{Portal: r.addr, Target: testTarget, Initiator: "iqn.2026-11.test:other"})
	if !fault.Is(err, fault.Denied) {
		t.Errorf("a stranger: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	_ = l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, Options{Portal: at, Target: testTarget, Initiator: testInitiator}); !fault.Is(err, fault.Unreachable) {
		t.Errorf("nobody: %v", err)
	}
}

// fake is a disk in memory that can be made to lie.
type fake struct {
	mu   sync.Mutex
	data []byte
	read func(p []byte, off int64) error // instead
	drop bool                            // writes are acknowledged, and not done
	fail bool                            // writes are done, and fail
}

func (f *fake) Size() int64 { return int64(len(f.data)) }

func (f *fake) ReadAt(p []byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.read != nil {
		return f.read(p, off)
	}
	copy(p, f.data[off:])
	return nil
}

func (f *fake) WriteAt(p []byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.drop {
		copy(f.data[off:], p)
	}
	if f.fail {
		return errors.New("failed")
	}
	return nil
}

// TestJudge: what a disk can do wrong is found, and told as what it is.
func TestJudge(t *testing.T) {
	for name, test := range map[string]struct {
		lie  func(*fake)
		want func(Stats) bool
	}{
		"honest":        {func(*fake) {}, func(s Stats) bool { return s.Clean() && s.Found == 0 }},
		"lost":          {func(f *fake) { f.drop = true }, func(s Stats) bool { return s.Lost > 0 && s.Wrong == 0 && s.Failed == 0 }},
		"failed writes": {func(f *fake) { f.fail = true }, func(s Stats) bool { return s.Lost == 0 && s.Wrong == 0 && s.Failed > 0 }},
		"failed reads": {func(f *fake) {
			f.read = func([]byte, int64) error { return errors.New("failed") }
		}, func(s Stats) bool { return s.Lost == 0 && s.Wrong == 0 && s.Failed > 0 }},
		"another block": {func(f *fake) {
			f.read = func(p []byte, off int64) error { copy(p, f.data[(off+Block)%int64(len(f.data)):]); return nil }
		}, func(s Stats) bool { return s.Wrong > 0 }}, // lost, too, where that was never written
		"torn": {func(f *fake) {
			f.read = func(p []byte, off int64) error {
				copy(p, f.data[off:])
				clear(p[Block/2:])
				return nil
			}
		}, func(s Stats) bool { return s.Wrong > 0 && s.Lost == 0 }},
	} {
		f := &fake{data: make([]byte, 64*Block)}
		l, err := Start(context.Background(), f, Region{Size: f.Size()})
		if err != nil {
			t.Fatal(err)
		}
		more := func() {
			n := l.Stats().Requests
			until(t, "requests", func() bool { return l.Stats().Requests > n+2000 })
		}
		more()
		f.mu.Lock()
		test.lie(f)
		f.mu.Unlock()
		more()
		if !l.Stop(context.Background()) {
			t.Fatal("it does not end")
		}
		if err := l.ReadBack(context.Background()); err != nil {
			t.Fatal(err)
		}
		if s := l.Stats(); !test.want(s) {
			t.Errorf("%s: %s", name, fmt.Sprintf("%+v", s))
		}
	}
}

// TestRate: a bound on requests is kept, roughly.
func TestRate(t *testing.T) {
	f := &fake{data: make([]byte, 64*Block)}
	l, err := Start(context.Background(), f, Region{Size: f.Size(), RateMax: 400})
	if err != nil {
		t.Fatal(err)
	}
	before := l.Stats().Requests
	time.Sleep(300 * time.Millisecond)
	l.Stop(context.Background())
	if n := l.Stats().Requests - before; n < 1 || n > 400*3/10+2*Workers {
		t.Errorf("%d requests in 300 ms", n)
	}
	if _, err := Start(context.Background(), f, Region{From: Block, Size: f.Size()}); !fault.Is(err, fault.Invalid) {
		t.Errorf("beyond the end: %v", err)
	}
}
