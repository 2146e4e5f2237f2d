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
