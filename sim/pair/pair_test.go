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

// Seeds: at least seedsMin, and else seedsEach for each one of SIM_SEEDS, which
// counts histories of the store: they take fifty times as long.
const (
	seedsMin  = 1000
	seedsEach = 50
)

// coverageSeeds is how many seeds must come across everything.
const coverageSeeds = 1000

// TestPair runs the regression seeds and as many others as asked for.
func TestPair(t *testing.T) {
	seeds, err := chooseSeeds()
	if err != nil {
		t.Fatal(err)
	}
	var mutants []string
	if *mutantFlag != "" {
		mutants = []string{*mutantFlag}
	}
	began, failed := time.Now(), 0
	var sum counts
	for _, seed := range seeds {
		out := Run(seed, mutants...)
		sum.add(out.counts)
		if out.Failure == "" {
			continue
		}
		if failed++; failed <= 5 {
			t.Errorf("seed %d: %s", seed, out.Failure)
		}
		if *seedFlag != 0 {
			t.Log("\n" + strings.Join(out.Trace, "\n"))
		}
	}
	took := time.Since(began)
	var parts []string
	for _, c := range sum.coverage() {
		if *c.n == 0 && len(seeds) >= coverageSeeds {
			t.Errorf("no history had: %s", c.name)
		}
		parts = append(parts, fmt.Sprintf("%s %d", c.name, *c.n))
	}
	fmt.Printf("sim: pair: %s\n", strings.Join(parts, ", "))
	fmt.Printf("sim: pair: %d requests, %d histories of a block not judged in time, %.1f simulated hours, %.0f seeds/s\n",
		sum.operations, sum.undecided, sum.simulated.Hours(), float64(len(seeds))/took.Seconds())
	fmt.Printf("sim: %d seeds, %d failed\n", len(seeds), failed)
}

// chooseSeeds returns the one seed asked for, or the regression seeds and a run
// of others.
func chooseSeeds() (seeds []uint64, err error) {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}, nil
	}
	text, err := os.ReadFile("testdata/seeds.txt")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		seed, err := strconv.ParseUint(line, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("testdata/seeds.txt: %q is no seed", line)
		}
		seeds = append(seeds, seed)
	}
	n := uint64(seedsMin)
	if text := os.Getenv("SIM_SEEDS"); text != "" {
		v, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("SIM_SEEDS=%q: %w", text, err)
		}
		n = max(n, seedsEach*v)
	}
	for seed := *firstFlag; seed < *firstFlag+n; seed++ {
		seeds = append(seeds, seed)
	}
	return seeds, nil
}
