// Command machine proves that a machine is a function of its log: it records a Debian
// guest that boots, and works on its disk, its network and its console, and lives that
// life again from the log, with no disk and no network, several times and in several
// ways. All must have the same digests at the same counts.
//
//	machine [-guest DIR] [-stops N] [-instructions N] [-inputs N] [-seed N] [-leak NAME]
//
// It ends with a line "machine-check: N stops, N differ", and 1 if any differ.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"steadfast/compute/machine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		os.Exit(1)
	}
}

// check is one run.
type check struct {
	guest        string
	stops        int
	anew         int // of them whose digest is also computed from all of the memory
	instructions uint64
	inputs       uint64
	seed         uint64
	leak         string
	leaks        func() uint64
	dir          string // for the log and the states
	rand         *rand.Rand
	verbose      bool
}

// errDiffer is told by the closing line already.
var errDiffer = errors.New("the machine is not what was recorded")

func run(ctx context.Context) (err error) {
	c := &check{}
	flag.StringVar(&c.guest, "guest", "", "folder with kernel, initrd and disk.raw or root.ext4; built and kept in .cache/machine when empty")
	flag.IntVar(&c.stops, "stops", 1000, "counts at which digests are compared")
	flag.IntVar(&c.anew, "anew", 20, "stops at which the digest is also computed from all of the memory")
	flag.Uint64Var(&c.instructions, "instructions", 1_000_000_000, "at least so many are recorded")
	flag.Uint64Var(&c.inputs, "inputs", 10_000, "and so many inputs")
	flag.Uint64Var(&c.seed, "seed", uint64(time.Now().UnixNano()), "of the counts")
	flag.StringVar(&c.leak, "leak", "", "what a replay lets in that is in no log, to see it caught: clock or map")
	flag.BoolVar(&c.verbose, "v", false, "print the guest's console")
	flag.Parse()
	if err := c.setLeak(); err != nil {
		return err
	}
	c.rand = rand.New(rand.NewPCG(c.seed, 0))
	if c.dir, err = os.MkdirTemp("", "steadfast-machine-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.dir)) }()
	if c.guest == "" {
		if c.guest, err = buildGuest(ctx); err != nil {
			return err
		}
	}
	r, err := c.record(ctx)
	if err != nil {
		return fmt.Errorf("recording: %w", err)
	}
	return c.compare(ctx, r)
}

// setLeak has replays read what is in no log.
func (c *check) setLeak() error {
	switch c.leak {
	case "":
	case "clock":
		c.leaks = func() uint64 { return uint64(time.Now().UnixNano()) }
	case "map":
		m := map[uint64]bool{}
		for n := range uint64(64) {
			m[n] = true
		}
		c.leaks = func() uint64 {
			for n := range m {
				return n
			}
			return 0
		}
	default:
		return fmt.Errorf("there is no leak %q: clock or map", c.leak)
	}
	return nil
}

// A way to live the recorded life again.
type way struct {
	name  string
	from  string // a saved state
	procs int
	gc    bool
}

// compare replays in all ways and compares the digests.
func (c *check) compare(ctx context.Context, r *recorded) error {
	counts := c.chooseCounts(r.end)
	ways := []way{
		{"from the start", r.start, runtime.NumCPU(), false},
		{"from the start, one thread", r.start, 1, false},
		{"from the start, garbage collected all the time", r.start, runtime.NumCPU(), true},
		{"from the middle", r.middle, runtime.NumCPU(), false},
	}
	var first map[uint64]machine.Hash
	stops, differ := 0, 0
	for _, w := range ways {
		began := time.Now()
		got, wrong, err := c.replay(ctx, r, w, counts)
		if err != nil {
			fmt.Printf("FAIL  %s: %v\n", w.name, err)
			differ++
		}
		bad := wrong
		if first == nil {
			first = got
		}
		for at, h := range got {
			if first[at] != h {
				bad++
			}
		}
		stops, differ = stops+len(got), differ+bad
		fmt.Printf("note  %s: %d stops, %d differ, %v\n", w.name, len(got), bad, time.Since(began).Round(time.Millisecond))
	}
	if differ == 0 && stops < 3*len(counts) {
		differ++
		fmt.Printf("FAIL  only %d stops\n", stops)
	}
	fmt.Printf("machine-check: %d stops, %d differ\n", stops, differ)
	if differ > 0 {
		return errDiffer
	}
	return nil
}

// chooseCounts returns counts of the recorded life, ascending, the last one the end.
func (c *check) chooseCounts(end uint64) []uint64 {
	seen := map[uint64]bool{end: true}
	list := []uint64{end}
	for len(list) < c.stops {
		if n := 1 + c.rand.Uint64N(end-1); !seen[n] {
			seen[n] = true
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

// replay lives the life again, and returns the digests at the counts, and how many of
// them were not those of the whole memory.
func (c *check) replay(ctx context.Context, r *recorded, w way, counts []uint64) (got map[uint64]machine.Hash, wrong int, err error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(w.procs))
	if w.gc {
		defer debug.SetGCPercent(debug.SetGCPercent(1))
	}
	got = map[uint64]machine.Hash{}
	f, err := os.Open(w.from)
	if err != nil {
		return got, 0, err
	}
	m, err := machine.Restore(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return got, 0, err
	}
	defer func() { err = errors.Join(err, m.Release()) }()
	m.Leak = c.leaks
	b, err := os.ReadFile(r.log)
	if err != nil {
		return got, 0, err
	}
	log, err := machine.ReadLog(bytes.NewReader(b))
	if err != nil {
		return got, 0, err
	}
	p, err := machine.NewReplay(m, log)
	if err != nil {
		return got, 0, err
	}
	for i, at := range counts {
		if at < m.Count() || ctx.Err() != nil {
			continue
		}
		if err := p.Run(at); err != nil {
			return got, wrong, err
		}
		if m.Count() != at {
			return got, wrong, fmt.Errorf("at %d of %d the life is over", m.Count(), at)
		}
		if w.gc {
			runtime.GC()
		}
		h := m.Hash()
		got[at] = h
		if every := max(1, len(counts)/max(1, c.anew)); i%every == 0 && m.HashAnew() != h {
			wrong++
		}
	}
	return got, wrong, errors.Join(ctx.Err(), p.Run(1<<64-1))
}

// file is a name in the run's folder.
func (c *check) file(name string) string { return filepath.Join(c.dir, name) }
