package lockstep

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"steadfast/compute/lockstep"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "run this seed only, and print its whole trace when it fails")
	firstFlag  = flag.Uint64("first", 1, "the first of the seeds")
	mutantFlag = flag.String("mutant", "", "break this rule")
)

const (
	least = 200  // seeds
	each  = 10   // or so many for each one of SIM_SEEDS, which counts histories of the store
	cover = 1000 // seeds that must come across everything
)

// TestLockstep runs the regression seeds and as many others as asked for.
func TestLockstep(t *testing.T) {
	list, err := seeds()
	if err != nil {
		t.Fatal(err)
	}
	m, ok := mutants()[*mutantFlag]
	if *mutantFlag != "" && !ok {
		t.Fatalf("there is no mutant %q", *mutantFlag)
	}
	began, failed := time.Now(), 0
	var sum counts
	for _, seed := range list {
		out := Run(seed, m, *seedFlag != 0)
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
	var parts []string
	for _, c := range sum.coverage() {
		if c.n == 0 && len(list) >= cover {
			t.Errorf("no history had: %s", c.name)
		}
		parts = append(parts, fmt.Sprintf("%s %d", c.name, c.n))
	}
	fmt.Printf("sim: lockstep: %s\n", strings.Join(parts, ", "))
	fmt.Printf("sim: lockstep: %.1f seeds/s\n", float64(len(list))/time.Since(began).Seconds())
	fmt.Printf("sim: %d seeds, %d failed\n", len(list), failed)
}

// add sums up.
func (c *counts) add(o counts) {
	for i, n := range o.list() {
		*c.list()[i] += *n
	}
}

// covered is something that histories are to come across.
type covered struct {
	name string
	n    int
}

func (c *counts) coverage() (all []covered) {
	names := []string{
		"lives", "pairs", "protections", "takeovers", "restarts", "divergences", "excused lives", "requests issued again", "streams sent again", "conflicts", "damaged messages",
		"connections severed", "changes of pace", "waits for the lock", "promises", "shutdowns",
	}
	for i, name := range names {
		all = append(all, covered{name, *c.list()[i]})
	}
	for _, w := range []lockstep.Why{
		lockstep.WhyAsked, lockstep.WhySilent, lockstep.WhyStalled, lockstep.WhyGone, lockstep.WhyDiverged, lockstep.WhyFailed, lockstep.WhyLock,
		lockstep.WhyHandedOver, lockstep.WhyTooFast, lockstep.WhyBroken, lockstep.WhySlow,
	} {
		all = append(all, covered{"pairs ended by: " + w.String(), c.why[w]})
	}
	return all
}

// seeds returns the one seed asked for, or the regression seeds and a run of others.
func seeds() (list []uint64, err error) {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}, nil
	}
	text, err := os.ReadFile("testdata/seeds.txt")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		number, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if number == "" || number == "#" {
			continue
		}
		seed, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("testdata/seeds.txt: %q is no seed", line)
		}
		list = append(list, seed)
	}
	n := uint64(least)
	if text := os.Getenv("SIM_SEEDS"); text != "" {
		v, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("SIM_SEEDS=%q: %w", text, err)
		}
		n = max(n, each*v)
	}
	for seed := *firstFlag; seed < *firstFlag+n; seed++ {
		list = append(list, seed)
	}
	return list, nil
}

// TestSame runs some seeds twice: the same seed is the same history, to the letter.
func TestSame(t *testing.T) {
	for seed := range uint64(10) {
		a, b := Run(seed+1, mutant{}, true), Run(seed+1, mutant{}, true)
		if len(a.Trace) != len(b.Trace) {
			t.Errorf("seed %d: %d lines and %d", seed+1, len(a.Trace), len(b.Trace))
		}
		for i := range min(len(a.Trace), len(b.Trace)) {
			if a.Trace[i] != b.Trace[i] {
				t.Errorf("seed %d, line %d:\n%s\n%s", seed+1, i, a.Trace[i], b.Trace[i])
				break
			}
		}
	}
}

// TestHowLong holds how long a takeover takes when nothing else is wrong: after the loss of a host,
// of a process whose guard tells, and of a planned one. It is the time that a guest stands still.
func TestHowLong(t *testing.T) {
	for name, c := range map[string]struct {
		hurt func(w *world, p *proc)
		most time.Duration
	}{
		"a host":    {func(w *world, p *proc) { w.crash(p.host, time.Hour) }, 700 * time.Millisecond},
		"a process": {func(_ *world, p *proc) { p.kill(true) }, 100 * time.Millisecond},
		"on demand": {func(_ *world, p *proc) { p.step(p.session, lockstep.HandOver{}) }, 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(20) {
				w := newWorld(seed+1, mutant{}, true)
				w.profile.loss, w.profile.late = 0, 0
				step := lockstep.Instant(10 * time.Millisecond)
				p := func() *proc { return w.quorum.primary }
				for w.now < lockstep.Instant(30*time.Second) && (p() == nil || p().prim == nil || !p().prim.Protected()) {
					w.run(w.now + step)
				}
				was, s := p(), w.quorum.secondary
				if s == nil {
					t.Fatalf("seed %d: never protected", seed+1)
				}
				w.run(w.now + lockstep.Instant(w.delay(0, 300*time.Millisecond)))
				c.hurt(w, was)
				began := w.now
				for s.prim == nil && w.now < began+lockstep.Instant(5*time.Second) && w.judge.wrong == "" {
					w.run(w.now + lockstep.Instant(time.Millisecond))
				}
				took := w.now.Sub(began)
				if s.prim == nil || took > c.most || w.judge.wrong != "" {
					t.Fatalf("seed %d: live %t after %v: %s", seed+1, s.prim != nil, took, w.judge.wrong)
				}
			}
		})
	}
}
