package verify

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// memory is a disk that the test can hold up, and bend.
type memory struct {
	mu    sync.RWMutex
	data  []byte
	held  atomic.Pointer[chan struct{}]
	fails atomic.Bool
}

func (m *memory) wait() error {
	if held := m.held.Load(); held != nil {
		<-*held
	}
	if m.fails.Load() {
		return errors.New("the disk is broken")
	}
	return nil
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadAt(p []byte, off int64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	copy(p, m.data[off:])
	return m.wait()
}

func (m *memory) WriteAt(p []byte, off int64, _ bool) error {
	err := m.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:], p)
	return err
}

func (m *memory) Flush() error { return m.wait() }
func (m *memory) Close() error { return nil }

// startMemory loads a disk in memory.
func startMemory(t *testing.T) (*memory, *Judge, *Load) {
	t.Helper()
	m := &memory{data: make([]byte, 48<<20)}
	judge := NewJudge(1, m.Size())
	if err := Fill(t.Context(), judge, m); err != nil {
		t.Fatal(err)
	}
	load, err := StartLoad(judge, Lane{Disk: m, Depth: 1}, Lane{Disk: m, Depth: 32})
	if err != nil {
		t.Fatal(err)
	}
	return m, judge, load
}

func TestLoadOnRightDisk(t *testing.T) {
	m, judge, load := startMemory(t)
	time.Sleep(300 * time.Millisecond)
	resume := load.Pause()
	if err := ReadBack(t.Context(), judge, m); err != nil {
		t.Fatal(err)
	}
	resume()
	time.Sleep(50 * time.Millisecond)
	for i, w := range load.Cut() {
		if w.IOs == 0 || w.Longest == 0 {
			t.Errorf("lane %d: %+v", i, w)
		}
	}
	load.Stop()
	if !judge.Counts().Clean() {
		t.Error(judge.Findings())
	}
}

// TestLoadSeesStalls: what is held up counts while it is, and after.
func TestLoadSeesStalls(t *testing.T) {
	m, judge, load := startMemory(t)
	defer load.Stop()
	time.Sleep(50 * time.Millisecond)
	held := make(chan struct{})
	m.held.Store(&held)
	time.Sleep(20 * time.Millisecond) // every lane has run into it
	load.Cut()
	time.Sleep(300 * time.Millisecond)
	for i, w := range load.Cut() {
		if w.Longest < 300*time.Millisecond {
			t.Errorf("lane %d, held up: %v", i, w.Longest)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	if err := load.Settle(ctx); err == nil {
		t.Error("settled while held up")
	}
	cancel()
	m.held.Store(nil)
	close(held)
	if err := load.Settle(t.Context()); err != nil {
		t.Error(err)
	}
	for i, w := range load.Cut() {
		if w.Longest < 350*time.Millisecond || w.Longest > 5*time.Second {
			t.Errorf("lane %d, after: %v", i, w.Longest)
		}
	}
	time.Sleep(50 * time.Millisecond)
	for i, w := range load.Cut() {
		if w.Longest > 250*time.Millisecond {
			t.Errorf("lane %d, later: %v", i, w.Longest)
		}
	}
	if !judge.Counts().Clean() {
		t.Error(judge.Findings())
	}
}

func TestLoadFindsRollback(t *testing.T) {
	m, judge, load := startMemory(t)
	defer load.Stop()
	m.mu.Lock()
	old := append([]byte(nil), m.data...)
	m.mu.Unlock()
	time.Sleep(100 * time.Millisecond)
	resume := load.Pause()
	copy(m.data, old)
	if err := ReadBack(t.Context(), judge, m); err != nil {
		t.Fatal(err)
	}
	resume()
	c := judge.Counts()
	if c.Of(Lost) == 0 || c.Of(Stale) == 0 {
		t.Errorf("found %v", c)
	}
}

func TestLoadFindsErrors(t *testing.T) {
	m, judge, load := startMemory(t)
	defer load.Stop()
	m.fails.Store(true)
	time.Sleep(50 * time.Millisecond)
	m.fails.Store(false)
	if c := judge.Counts(); c.Of(Failed) == 0 {
		t.Errorf("found %v", c)
	}
}

// TestRate: a bound holds.
func TestRate(t *testing.T) {
	m := &memory{data: make([]byte, 16<<20)}
	judge := NewJudge(1, m.Size())
	load, err := StartLoad(judge, Lane{Disk: m, Depth: 8, RateMax: 200})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	load.Stop()
	if n := load.Cut()[0].IOs; n < 30 || n > 115 {
		t.Errorf("%d requests in half a second of 200 a second", n)
	}
}

// TestNBDLost: when the client is gone, what is under way fails, and so does
// what comes after: nobody waits for ever.
func TestNBDLost(t *testing.T) {
	ours, theirs := net.Pipe()
	n := newNBD(ours, newReader(ours), 1<<20)
	done := make(chan error, 1)
	go func() { done <- n.ReadAt(make([]byte, Block), 0) }()
	var h [28]byte
	if _, err := theirs.Read(h[:]); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	if err := <-done; err == nil {
		t.Error("no error")
	}
	if err := n.Flush(); err == nil {
		t.Error("no error later")
	}
}
