package mirrorio

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// TestBarrier does an action on both nodes, or on none.
func TestBarrier(t *testing.T) {
	p := newPair(t)
	g := p.groups["a"]
	if err := g.Barrier([]byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := g.Barrier(nil); err != nil {
		t.Errorf("an action of nothing: %v", err)
	}
	for _, who := range []quorum.Member{"a", "b"} {
		s := p.disks[who].(*memory)
		s.set(func() { s.refuses = fault.Busy })
		if err := g.Barrier([]byte("two")); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "is refused") {
			t.Errorf("%s refuses: %v", who, err)
		}
		s.set(func() { s.refuses = 0 })
	}
	for _, who := range []quorum.Member{"a", "b"} {
		s := p.disks[who].(*memory)
		s.set(func() {
			if !s.actions["one"] || s.actions["two"] || !s.actions[""] {
				t.Errorf("%s did %v", who, s.actions)
			}
		})
	}
	if g := p.state().Group["g"]; len(g.Set) != 2 {
		t.Errorf("%d entries: a refusal is no failure", len(g.Set))
	}
	if err := p.groups["b"].Barrier([]byte("three")); !fault.Is(err, fault.Fenced) {
		t.Errorf("a node that is not the owner: %v", err)
	}
	b := p.disks["b"].(*memory)
	b.set(func() { b.refuses = fault.Failed })
	if err := g.Barrier([]byte("four")); err != nil {
		t.Errorf("the peer fails: %v", err)
	}
	if g := p.state().Group["g"]; len(g.Set) != 1 {
		t.Errorf("%d entries: who failed is none", len(g.Set))
	}
}

// TestBarrierOrder holds that an action sees all that was answered before it, on
// both nodes, and nothing that was asked for after it was.
func TestBarrierOrder(t *testing.T) {
	p := newPair(t)
	v := p.volume("a")
	var wait sync.WaitGroup
	for b := range int64(32) {
		wait.Go(func() {
			if err := v.WriteAt(bytes.Repeat([]byte{byte(b)}, BlockSize), b*BlockSize, 0); err != nil {
				t.Error(err)
			}
		})
		if b%8 == 0 {
			wait.Go(func() {
				if err := p.groups["a"].Barrier([]byte{byte(b)}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wait.Wait()
	p.equal()
}

// TestResyncKeeps holds that a node keeps its state before a resync, and is told
// of its end.
func TestResyncKeeps(t *testing.T) {
	p := newPair(t)
	b := p.disks["b"].(*memory)
	b.set(func() { b.kept, b.ended = 0, nil })
	p.stop("b", false)
	if err := p.volume("a").WriteAt(make([]byte, 8*BlockSize), 0, 0); err != nil {
		t.Fatal(err)
	}
	p.start("b")
	p.connect()
	p.inSync()
	b.set(func() {
		if b.kept != 1 || len(b.ended) == 0 || !b.ended[len(b.ended)-1] {
			t.Errorf("kept %d times, ended %v", b.kept, b.ended)
		}
	})
}

// TestStood holds that changes of the standing are told, and that the owner serves
// until its promise ends.
func TestStood(t *testing.T) {
	p := newPair(t)
	a, b := p.groups["a"], p.groups["b"]
	p.await("a has b's promise", func() bool { _, unlimited, ok := a.ServesUntil(); return ok && !unlimited })
	if until, _, _ := a.ServesUntil(); until > a.opt.Now().Add(500*time.Millisecond) {
		t.Errorf("a may serve until %v, and now is %v", until, a.opt.Now())
	}
	if _, _, ok := b.ServesUntil(); ok {
		t.Error("b may serve")
	}
	if s := b.Status(); s.Standing.Role != group.Entry || s.Peer == nil || s.Peer.Member != "a" {
		t.Errorf("%+v", s)
	}
	p.stop("b", false)
	p.await("a is alone", func() bool { _, unlimited, ok := a.ServesUntil(); return ok && unlimited })
	if err := p.volume("a").WriteAt(make([]byte, 3*BlockSize), 0, 0); err != nil {
		t.Fatal(err)
	}
	s := p.disks["a"].(*memory)
	s.set(func() {
		last := s.stood[len(s.stood)-1]
		if len(s.stood) < 3 || last.Role != group.Owner || !last.Serving || len(last.Others) != 0 {
			t.Errorf("told %+v", s.stood)
		}
	})
	if s := a.Status(); s.OutOfSyncBytes < 3*BlockSize || s.Takeovers != 1 {
		t.Errorf("%+v", s)
	}
}

// TestAwaitVolume holds that what the peer has not yet is waited for, and that the
// rest goes on meanwhile.
func TestAwaitVolume(t *testing.T) {
	p := newPair(t)
	b := p.disks["b"].(*memory)
	b.set(func() { b.absent = true })
	done := make(chan error)
	go func() { done <- p.volume("a").WriteAt(make([]byte, BlockSize), 0, 0) }()
	time.Sleep(50 * time.Millisecond)
	select {
	case err := <-done:
		t.Fatalf("written to a volume that is not there: %v", err)
	default:
	}
	if err := p.volume("a").ReadAt(make([]byte, BlockSize), BlockSize); err != nil {
		t.Error(err)
	}
	b.set(func() {
		b.absent = false
		close(b.changes)
	})
	if err := <-done; err != nil {
		t.Error(err)
	}
}
