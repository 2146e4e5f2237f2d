package sim

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"steadfast/san/store/storetest"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "run this seed only, and print its whole trace when it fails")
	seedsFlag  = flag.Int("seeds", 0, "how many seeds to run; else SIM_SEEDS, else 20")
	firstFlag  = flag.Uint64("first", 1, "the first of the seeds")
	opsFlag    = flag.Int("ops", 0, "end each history after so many operations")
	traceFlag  = flag.Bool("trace", false, "print what happens as it happens; for a history that hangs")
	familyFlag = flag.String("family", "", "run seeds as histories of this family")
)

// seedLimit is how long one history may take: they take a second. One that
// waits for ever must not take the others' reports with it.
const seedLimit = 3 * time.Minute

// TestStore runs the regression seeds and as many others as asked for.
func TestStore(t *testing.T) {
	runs, err := chooseRuns()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var sum counts
	failed := 0
	t.Run("seed", func(t *testing.T) {
		for _, r := range runs {
			t.Run(fmt.Sprintf("%s/%d", r.family, r.seed), func(t *testing.T) {
				t.Parallel()
				out := within(seedLimit, r.do)
				mu.Lock()
				defer mu.Unlock()
				sum.add(out.counts)
				if out.failure != "" {
					failed++
					t.Error(out.failure)
				}
			})
		}
	})
	fmt.Printf("sim: %d operations, %d crashes, %d write boundaries, %d times full, %d times damage was met, %d times told what changed\n",
		sum.operations, sum.crashes, sum.boundaries, sum.full, sum.found, sum.asked)
	fmt.Printf("sim: %d seeds, %d failed\n", len(runs), failed)
}

// chooseRuns returns the one seed asked for, or the regression seeds and a run
// of others.
func chooseRuns() (runs []run, err error) {
	n := *seedsFlag
	if n == 0 {
		n = 20
		if env := os.Getenv("SIM_SEEDS"); env != "" {
			if n, err = strconv.Atoi(env); err != nil {
				return nil, fmt.Errorf("SIM_SEEDS: %w", err)
			}
		}
	}
	first := *firstFlag
	switch {
	case *seedFlag != 0:
		first, n = *seedFlag, 1
	case testing.Short():
		n = min(n, 5)
	}
	if *seedFlag == 0 {
		if runs, err = regressions(); err != nil {
			return nil, err
		}
	}
	for i := range uint64(n) {
		runs = append(runs, run{seed: first + i, family: cmp.Or(*familyFlag, familyOf(first+i))})
	}
	for i := range runs {
		runs[i].system, runs[i].ops, runs[i].whole = storetest.Real(), *opsFlag, *seedFlag != 0
		if *traceFlag {
			runs[i].live = func(line string) { fmt.Println(line) }
		}
	}
	return runs, nil
}

// regressions reads testdata/seeds.txt: a family and a seed in each line, and
// what they found.
func regressions() (runs []run, err error) {
	text, err := os.ReadFile("testdata/seeds.txt")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' {
			continue
		}
		if len(words) < 3 {
			return nil, fmt.Errorf("testdata/seeds.txt: %q says less than family, seed and reason", line)
		}
		seed, err := strconv.ParseUint(words[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("testdata/seeds.txt: %w", err)
		}
		runs = append(runs, run{seed: seed, family: words[0]})
	}
	return runs, nil
}

// within runs a history, and gives up on one that hangs: where it hangs is in
// the stacks of all goroutines.
func within(limit time.Duration, run func() outcome) outcome {
	done := make(chan outcome, 1)
	go func() { done <- run() }()
	select {
	case out := <-done:
		return out
	case <-time.After(limit):
		stacks := make([]byte, 1<<20)
		return outcome{failure: fmt.Sprintf("no end after %v:\n%s", limit, stacks[:runtime.Stack(stacks, true)])}
	}
}
