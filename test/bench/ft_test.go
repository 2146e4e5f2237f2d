package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

// TestFTMedianOf reads what redis-benchmark prints.
func TestFTMedianOf(t *testing.T) {
	text := `"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"SET","1402.03","2.805","1.104","2.703","3.511","5.103","9.223"
`
	if v, err := ftMedianOf(text); err != nil || v != 2.703 {
		t.Errorf("%v, %v", v, err)
	}
	for _, bad := range []string{"", "\"SET\",\"1402.03\"\n", strings.Replace(text, "p50", "p51", 1)} {
		if _, err := ftMedianOf(bad); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

// TestFTResult: what is told of a load is of the time that it took.
func TestFTResult(t *testing.T) {
	r := ftResult{work: 1000, executed: 300e6, log: 250e3, wall: 2 * time.Second, primary: 500 * time.Millisecond}
	for name, v := range map[string][2]float64{
		"mips": {r.mips(), 600}, "us": {r.usEach(), 500}, "rate": {r.rate(), 500}, "Mbps": {r.logMbps(), 1},
	} {
		if math.Abs(v[0]-v[1]) > 1e-9 {
			t.Errorf("%s is %v, not %v", name, v[0], v[1])
		}
	}
	if v := ftMedian(nil, ftResult.mips); v != 0 {
		t.Errorf("the median of nothing is %v", v)
	}
}

// TestFTRows: each row is one load's, so that BENCH_ROWS chooses it.
func TestFTRows(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range ftRows() {
		if seen[r] || !strings.HasPrefix(r, "ft-") {
			t.Errorf("row %s", r)
		}
		seen[r] = true
	}
}
