package logline

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// gate is a log that hangs while it is held.
type gate struct {
	held sync.Mutex
	out  bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	g.held.Lock()
	defer g.held.Unlock()
	return g.out.Write(p)
}

// TestOrder holds that all lines come, whole and in each writer's order.
func TestOrder(t *testing.T) {
	var g gate
	w := New(&g)
	var all sync.WaitGroup
	for who := range 4 {
		all.Go(func() {
			for i := range 1000 {
				fmt.Fprintf(w, "%d %d\n", who, i)
			}
		})
	}
	all.Wait()
	if !w.Close(time.Minute) {
		t.Fatal("not all was written")
	}
	var next [4]int
	for line := range strings.Lines(g.out.String()) {
		var who, i int
		if _, err := fmt.Sscanf(line, "%d %d\n", &who, &i); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if i != next[who] {
			t.Fatalf("writer %d: line %d, want %d", who, i, next[who])
		}
		next[who]++
	}
	if next != [4]int{1000, 1000, 1000, 1000} {
		t.Errorf("lines: %v", next)
	}
}

// TestHangingLog holds that nobody waits for a log that hangs, that what waits is
// bounded, and that the gap is told of.
func TestHangingLog(t *testing.T) {
	var g gate
	g.held.Lock()
	w := New(&g)
	line := append(bytes.Repeat([]byte{'x'}, 1023), '\n')
	written := 4 * queueMax / len(line)
	for range written {
		if n, err := w.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	if w.Close(time.Millisecond) {
		t.Error("closed while the log hangs")
	}
	g.held.Unlock()
	<-w.done
	var missing, got int
	for l := range strings.Lines(g.out.String()) {
		if strings.HasPrefix(l, "x") {
			got++
		} else if _, err := fmt.Sscanf(l, "the log could not be written for a time: %d lines", &missing); err != nil {
			t.Errorf("%q: %v", l, err)
		}
	}
	if got+missing != written || missing == 0 || got*len(line) > 2*queueMax {
		t.Errorf("%d lines and %d missing, of %d", got, missing, written)
	}
}

// TestRecent holds that the newest lines are kept, whole, within the bound, those too that hang.
func TestRecent(t *testing.T) {
	var g gate
	g.held.Lock() // nothing can be written
	w := New(&g)
	if got := w.Recent(); len(got) != 0 {
		t.Errorf("of nothing: %q", got)
	}
	line := strings.Repeat("x", 1000)
	const lines = 3 * recentMax / 1000
	for i := range lines {
		if _, err := fmt.Fprintf(w, "%06d %s\n", i, line); err != nil {
			t.Fatal(err)
		}
	}
	got := w.Recent()
	if len(got) > recentMax || len(got) < recentMax/2 {
		t.Errorf("%d bytes of at most %d", len(got), recentMax)
	}
	all := strings.Split(strings.TrimSuffix(string(got), "\n"), "\n")
	for i, l := range all {
		if want := fmt.Sprintf("%06d %s", lines-len(all)+i, line); l != want {
			t.Fatalf("line %d of %d is %.40q; want %.40q", i, len(all), l, want)
		}
	}
	g.held.Unlock()
	w.Close(time.Minute)
}
