package remote

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"steadfast/test/verify"
)

// memory is a disk that can be held up, and forgets or fails when it is told.
type memory struct {
	mu    sync.Mutex
	data  []byte
	held  atomic.Pointer[chan struct{}]
	fails atomic.Bool
}

func (m *memory) do(f func()) error {
	if held := m.held.Load(); held != nil {
		<-*held
	}
	if m.fails.Load() {
		return errors.New("input/output error")
	}
	time.Sleep(50 * time.Microsecond)
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	return nil
}

func (m *memory) Size() int64  { return int64(len(m.data)) }
func (m *memory) Flush() error { return m.do(func() {}) }
func (m *memory) Close() error { return nil }

func (m *memory) ReadAt(p []byte, off int64) error {
	return m.do(func() { copy(p, m.data[off:]) })
}

func (m *memory) WriteAt(p []byte, off int64, _ bool) error {
	return m.do(func() { copy(m.data[off:], p) })
}

// start has a load on a disk in memory, with both sides of a line here.
func start(t *testing.T) (*memory, *Load) {
	t.Helper()
	m := &memory{data: make([]byte, 8<<20)}
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(theirs, m, io.Discard) }()
	l, err := Connect(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	if l.Size() != m.Size() {
		t.Errorf("size %d", l.Size())
	}
	if err := l.Fill(t.Context(), 3, m.Size()/2); err != nil {
		t.Fatal(err)
	}
	if err := l.Start(t.Context(), Lane{Depth: 1}, Lane{Depth: 4, RateMax: 500}); err != nil {
		t.Fatal(err)
	}
	return m, l
}

func TestLoadInGuest(t *testing.T) {
	m, l := start(t)
	time.Sleep(100 * time.Millisecond)
	held := make(chan struct{})
	m.held.Store(&held)
	time.Sleep(300 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	if err := l.Settle(ctx); err == nil {
		t.Error("settled while held up")
	}
	cancel()
	m.held.Store(nil)
	close(held)
	if err := l.Settle(t.Context()); err != nil {
		t.Error(err)
	}
	windows, err := l.Cut(t.Context())
	if err != nil || len(windows) != 2 {
		t.Fatalf("%v, %v", windows, err)
	}
	for i, w := range windows {
		if w.IOs == 0 || w.Longest < 300*time.Millisecond || w.Longest > 5*time.Second {
			t.Errorf("lane %d: %+v", i, w)
		}
	}
	if err := l.ReadBack(t.Context()); err != nil {
		t.Error(err)
	}
	if err := l.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if !l.Counts().Clean() {
		t.Error(l.Findings())
	}
}

// TestFindingsComeOver: each once, with what it says.
func TestFindingsComeOver(t *testing.T) {
	m, l := start(t)
	if err := l.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	clear(m.data[:4*verify.Block])
	m.mu.Unlock()
	for range 2 { // a lost write is found once
		if err := l.ReadBack(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c := l.Counts()
	if n := c.Of(verify.Lost) + c.Of(verify.Stale); n != 4 || len(l.Findings()) != 4 {
		t.Errorf("found %v: %v", c, l.Findings())
	}
	if f := l.Findings()[0]; f.Disk != 3 || f.Text == "" {
		t.Errorf("%+v", f)
	}
	m.fails.Store(true)
	if err := l.ReadBack(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l.Counts().Of(verify.Failed) == 0 {
		t.Error("no error was found")
	}
}

// TestWrongOrder is answered with why, and what comes after works.
func TestWrongOrder(t *testing.T) {
	ours, theirs := net.Pipe()
	go func() { _ = Serve(theirs, &memory{data: make([]byte, 4<<20)}, io.Discard) }()
	l, err := Connect(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := l.Start(t.Context(), Lane{Depth: 1}); err == nil || !strings.Contains(err.Error(), "before fill") {
		t.Error(err)
	}
	if err := l.Fill(t.Context(), 1, 8<<20); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Error(err)
	}
	if err := l.Fill(t.Context(), 1, 4<<20); err != nil {
		t.Error(err)
	}
	if _, err := l.Cut(t.Context()); err == nil || !strings.Contains(err.Error(), "before start") {
		t.Error(err)
	}
}

// TestGuestGone: nobody waits for a guest that says nothing any more, and an
// exchange that was broken off is the last.
func TestGuestGone(t *testing.T) {
	ours, theirs := net.Pipe()
	go func() {
		_, _ = io.WriteString(theirs, "{\"size\":1}\n")
		_, _ = bufio.NewReader(theirs).ReadString('\n') // and no answer
	}()
	l, err := Connect(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := l.ReadBack(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := l.Stop(t.Context()); err == nil {
		t.Error("no error later")
	}
	if err := errors.Join(l.Close(), theirs.Close()); err != nil {
		t.Error(err)
	}
}

// TestSlowClock: a guest whose clock stands still is found out.
func TestSlowClock(t *testing.T) {
	ours, theirs := net.Pipe()
	go func() {
		_, _ = io.WriteString(theirs, "{\"size\":1}\n")
		in := bufio.NewReader(theirs)
		for _, clock := range []string{"1000000000", "1100000000", "9100000000"} {
			_, _ = in.ReadString('\n')
			_, _ = io.WriteString(theirs, "{\"clock\":"+clock+"}\n")
		}
	}()
	l, err := Connect(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(l.Close(), theirs.Close()) }()
	for range 2 {
		if _, err := l.Cut(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if _, err := l.Cut(t.Context()); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("8 s in no time: %v", err)
	}
}
