package pair

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "run this seed only, and print its whole trace when it fails")
	firstFlag  = flag.Uint64("first", 1, "the first of the seeds")
	mutantFlag = flag.String("mutant", "", "break this rule")
)

// TestPair runs as many seeds as asked for: SIM_SEEDS, else 100.
func TestPair(t *testing.T) {
	first, n := *firstFlag, uint64(100)
	if text := os.Getenv("SIM_SEEDS"); text != "" {
		v, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			t.Fatalf("SIM_SEEDS=%q: %v", text, err)
		}
		n = v
	}
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	}
	var mutants []string
	if *mutantFlag != "" {
		mutants = []string{*mutantFlag}
	}
	began, failed := time.Now(), 0
	var sum counts
	for seed := first; seed < first+n; seed++ {
		out := Run(seed, mutants...)
		sum.add(out.counts)
		if out.Failure == "" {
			continue
		}
		failed++
		if failed <= 5 {
			t.Errorf("seed %d: %s", seed, out.Failure)
		}
		if *seedFlag != 0 {
			t.Log("\n" + strings.Join(out.Trace, "\n"))
		}
	}
	fmt.Printf("sim: pair: %+v in %v\n", sum, time.Since(began).Round(time.Millisecond))
	fmt.Printf("sim: %d seeds, %d failed\n", n, failed)
}
