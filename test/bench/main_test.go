package main

import (
	"os"
	"regexp"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 4}, 4}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := medianOf(tc.in); got != tc.want {
			t.Errorf("median of %v = %v, want %v", tc.in, got, tc.want)
		}
	}
}

// TestJudge counts a goal that is missed, in both directions of better.
func TestJudge(t *testing.T) {
	b := &bench{}
	b.atLeast("iops", 130, 100, "tgt", 1.3)
	b.atLeast("iops", 129, 100, "tgt", 1.3)
	b.atMost("p99", 100, 100, "tgt", 1)
	b.atMost("p99", 101, 100, "tgt", 1)
	if b.ok != 2 || b.short != 2 {
		t.Errorf("%d ok, %d short; want 2 and 2", b.ok, b.short)
	}
}

// TestChosen picks rows by their printed name.
func TestChosen(t *testing.T) {
	b := &bench{rows: regexp.MustCompile(`durable/large/randwrite.*qd32`)}
	var got []string
	for _, m := range modes() {
		for _, s := range sets() {
			for _, l := range b.chosen(m, s) {
				got = append(got, rowName(m, s, l))
			}
		}
	}
	if len(got) != 1 || got[0] != "durable/large/randwrite-4k-qd32" {
		t.Errorf("chose %v", got)
	}
}

// TestCPUTime reads a process that has surely worked: this one.
func TestCPUTime(t *testing.T) {
	until := time.Now().Add(50 * time.Millisecond)
	for time.Now().Before(until) {
		continue
	}
	used, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if used <= 0 || used > time.Hour {
		t.Errorf("this process has used %v", used)
	}
	busy, err := busyTime()
	if err != nil {
		t.Fatal(err)
	}
	if busy < used {
		t.Errorf("all processes together have used %v, this one alone %v", busy, used)
	}
}
