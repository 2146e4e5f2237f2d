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

// family is a kind of histories.
type family struct {
	name  string
	of    int
	run   func(seed uint64, mutants ...string) Outcome
	least int // seeds
	each  int // or so many for each one of SIM_SEEDS, which counts histories of the store
	cover int // seeds that must come across everything
}

var (
	toys  = family{"pair", ofToys, Run, 1000, 50, 1000}
	units = family{"units", ofUnits, RunUnits, 300, 5, 300}
)

// TestPair runs the regression seeds and as many others as asked for.
func TestPair(t *testing.T) { toys.test(t) }

// TestUnits does so with device servers on real pools.
func TestUnits(t *testing.T) { units.test(t) }

func (f family) test(t *testing.T) {
	seeds, err := f.seeds()
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
		out := f.run(seed, mutants...)
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
		if c.of&f.of == 0 {
			continue
		}
		if *c.n == 0 && len(seeds) >= f.cover {
			t.Errorf("no history had: %s", c.name)
		}
		parts = append(parts, fmt.Sprintf("%s %d", c.name, *c.n))
	}
	fmt.Printf("sim: %s: %s\n", f.name, strings.Join(parts, ", "))
	fmt.Printf("sim: %s: %d requests, %d histories of a block not judged in time, %d hopeless, %.1f simulated hours, %.1f seeds/s\n",
		f.name, sum.operations, sum.undecided, sum.hopeless, sum.simulated.Hours(), float64(len(seeds))/took.Seconds())
	fmt.Printf("sim: %d seeds, %d failed\n", len(seeds), failed)
}

// seeds returns the one seed asked for, or the regression seeds and a run of
// others.
func (f family) seeds() (seeds []uint64, err error) {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}, nil
	}
	text, err := os.ReadFile("testdata/seeds.txt")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		name, number, found := strings.Cut(strings.TrimSpace(line), " ")
		if !found {
			name, number = toys.name, name
		}
		if number == "" || name != f.name {
			continue
		}
		seed, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("testdata/seeds.txt: %q is no seed", line)
		}
		seeds = append(seeds, seed)
	}
	n := uint64(f.least)
	if text := os.Getenv("SIM_SEEDS"); text != "" {
		v, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("SIM_SEEDS=%q: %w", text, err)
		}
		n = max(n, uint64(f.each)*v)
	}
	for seed := *firstFlag; seed < *firstFlag+n; seed++ {
		seeds = append(seeds, seed)
	}
	return seeds, nil
}

// TestSame runs some seeds twice: the same seed is the same history, to the letter.
func TestSame(t *testing.T) {
	for _, f := range []family{toys, units} {
		for seed := range uint64(10) {
			a, b := f.run(seed+1), f.run(seed+1)
			if len(a.Trace) != len(b.Trace) {
				t.Errorf("%s, seed %d: %d lines and %d", f.name, seed+1, len(a.Trace), len(b.Trace))
			}
			for i := range min(len(a.Trace), len(b.Trace)) {
				if a.Trace[i] != b.Trace[i] {
					t.Errorf("%s, seed %d, line %d:\n%s\n%s", f.name, seed+1, i, a.Trace[i], b.Trace[i])
					break
				}
			}
		}
	}
}
