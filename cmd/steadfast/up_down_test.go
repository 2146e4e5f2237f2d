package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"steadfast/fault"
)

// TestDown: what is no data directory is left alone, and of one that is, what "up" did not make.
func TestDown(t *testing.T) {
	p, out := newPair(t)
	down := func(dir string, keep bool) error { return p.a.down(context.Background(), dir, keep, true) }
	if err := down(p.path("none"), false); err != nil || !strings.Contains(out.String(), "nothing to do") {
		t.Errorf("no directory: %v, %q", err, out)
	}
	keepsake := p.path("keepsake")
	if err := os.WriteFile(keepsake, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := down(p.dir, false); !fault.Is(err, fault.Invalid) {
		t.Errorf("another directory: %v", err)
	}
	lock, err := lockFileIn(p.dir, lockFile)
	if err != nil {
		t.Fatal(err)
	}
	_ = lock.Close()
	for _, d := range allMembers() {
		if err := os.MkdirAll(filepath.Join(p.path(d), "cluster"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := down(p.dir, true); err != nil || !isThere(p.path("h3")) {
		t.Errorf("kept: %v", err)
	}
	if err := down(p.dir, false); err != nil || !strings.Contains(out.String(), "stays there: keepsake") {
		t.Errorf("removed: %v, %q", err, out)
	}
	if left, err := os.ReadDir(p.dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestHolder: who holds a lock is found by what he wrote into it, if he does hold it.
func TestHolder(t *testing.T) {
	p, _ := newPair(t)
	lock, err := lockFileIn(p.dir, lockFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := signLock(lock); err != nil {
		t.Fatal(err)
	}
	if h, err := p.holder(); err != nil || h.Pid != os.Getpid() {
		t.Errorf("%v, %v", h, err)
	}
	if _, err := p.openPairAgain(); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), `"steadfast down --keep-data --data `) {
		t.Errorf("begun twice: %v", err)
	}
	_ = lock.Close()
	if _, err := p.holder(); !fault.Is(err, fault.Busy) {
		t.Errorf("nobody: %v", err)
	}
}

// openPairAgain tries to begin where somebody is.
func (p *pair) openPairAgain() (*pair, error) { return p.a.openPair(upOptions{dir: p.dir}) }

// TestMembersLeft: a process that holds a member's lock is found.
func TestMembersLeft(t *testing.T) {
	p, _ := newPair(t)
	if err := os.MkdirAll(p.path("h2"), 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := lockFileIn(p.path("h2"), "lock")
	if err != nil {
		t.Fatal(err)
	}
	if left := p.locksLeft(); !slices.Equal(left, []string{filepath.Join("h2", "lock")}) {
		t.Errorf("%v", left)
	}
	_ = lock.Close()
	if left := p.membersLeft(); len(left) != 0 {
		t.Errorf("%v", left)
	}
}
