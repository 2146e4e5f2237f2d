// Command machine proves that a machine is a function of its log: it records a Debian
// guest that boots, and works on its disk, its network and its console, and lives that
// life again from the log, with no disk and no network, several times and in several
// ways. All must have the same digests at the same counts.
//
//	machine [-guest DIR] [-stops N] [-instructions N] [-inputs N] [-seed N] [-leak NAME]
//
// It ends with a line "machine-check: N stops, N differ". Its exit status is 0 if none
// differ, 1 if some do, or it could not be tried. With -leak a replay is spoilt, and some must
// differ: 1 is as it should be then, and 2 that the leak was not noticed.
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
	"steadfast/test/testbed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		if errors.Is(err, errUnnoticed) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// check is one run.
type check struct {
	debian       testbed.Debian
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
	relive       string // a folder with a recording, of which a part is lived again
}

// How a check ends that does not pass.
var (
	errDiffer    = errors.New("the machine is not what was recorded")
	errUnnoticed = errors.New("the leak was not noticed")
)

func run(ctx context.Context) (err error) {
	c := &check{}
	guest := flag.String("guest", "", "folder with kernel, initrd and disk.raw or root.ext4; built and kept in .cache/machine when empty")
	flag.IntVar(&c.stops, "stops", 1000, "counts at which digests are compared")
	flag.IntVar(&c.anew, "anew", 20, "stops at which the digest is also computed from all of the memory")
	flag.Uint64Var(&c.instructions, "instructions", 1_000_000_000, "at least so many are recorded")
	flag.Uint64Var(&c.inputs, "inputs", 10_000, "and so many inputs, the changes of the clock's rate not counted")
	flag.Uint64Var(&c.seed, "seed", uint64(time.Now().UnixNano()), "of the counts")
	flag.StringVar(&c.leak, "leak", "", "what a replay lets in that is in no log, to see it caught: clock or map")
	flag.BoolVar(&c.verbose, "v", false, "print the guest's console")
	flag.StringVar(&c.relive, "relive", "", "only live again what is in this folder, to the counts on the standard input, and print the digests: the check does it with the race detector")
	flag.Parse()
	if c.relive != "" {
		return c.reliveIn(ctx)
	}
	if err := c.setLeak(); err != nil {
		return err
	}
	c.rand = rand.New(rand.NewPCG(c.seed, 0))
	if c.dir, err = os.MkdirTemp("", "steadfast-machine-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.dir)) }()
	if c.debian, err = testbed.NewDebian(ctx, *guest); err != nil {
		return err
	}
	r, err := c.record(ctx)
	if err != nil {
		return fmt.Errorf("recording: %w", err)
	}
	return c.compare(ctx, r)
}

// setLeak has replays read what is in no log: it gets to the guest's wall clock. It is how
// the check itself is checked, for one that never fails looks like a machine that never differs.
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
				return n << 32 // seconds: a kernel looks at no less
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

// compare replays in all ways and compares the digests: with those of the recording, which
// the log has, and those of the counts by chance with each other. Neither would do alone: the
// recording has digests only where its loop stopped anyway, and the replays might all be wrong
// in the same way.
func (c *check) compare(ctx context.Context, r *recorded) error {
	counts := c.chooseCounts(r.end)
	ways := []way{
		{"from the start, two threads", r.start, 2, false},
		{"from the start, one thread", r.start, 1, false},
		{"from the start, garbage collected all the time", r.start, 2, true},
		{"from the middle", r.middle, 2, false},
	}
	if c.leak != "" {
		ways = ways[:1]
	}
	var first map[uint64]machine.Hash
	stops, differ := 0, 0
	for _, w := range ways {
		got, wrong, err := c.replay(ctx, r, w, counts)
		if err != nil {
			fmt.Printf("FAIL  %s: %v\n", w.name, err)
			differ++
		}
		if first == nil {
			first = got
		}
		bad := wrong + differences(first, got)
		stops, differ = stops+len(got), differ+bad
		if bad > 0 {
			fmt.Printf("FAIL  %s: %d of %d stops differ\n", w.name, bad, len(got))
		}
	}
	if c.leak == "" {
		n, bad, err := c.replayRacing(ctx, r, counts, first)
		if err != nil {
			fmt.Printf("FAIL  with the race detector: %v\n", err)
			differ++
		}
		stops, differ = stops+n, differ+bad
		if differ == 0 && stops < 3*len(counts) {
			differ++
			fmt.Printf("FAIL  only %d stops\n", stops)
		}
	}
	fmt.Printf("machine-check: %d stops, %d differ\n", stops, differ)
	return c.verdict(differ)
}

// differences counts the digests that are not the same.
func differences(first, got map[uint64]machine.Hash) (n int) {
	for at, h := range got {
		if first[at] != h {
			n++
		}
	}
	return n
}

func (c *check) verdict(differ int) error {
	switch {
	case c.leak != "" && differ == 0:
		return fmt.Errorf("%w: %s", errUnnoticed, c.leak)
	case c.leak != "":
		return fmt.Errorf("%w: so the leak %q was caught, as it had to be", errDiffer, c.leak)
	case differ > 0:
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
	p, err := openReplay(w.from, r.log)
	if err != nil {
		return got, 0, err
	}
	m := p.Machine()
	defer func() { err = errors.Join(err, m.Release()) }()
	m.Leak = c.leaks
	began, from, anew := time.Now(), m.Count(), 0
	for i, at := range counts {
		if at < m.Count() || ctx.Err() != nil {
			continue
		}
		if err := reach(p, at); err != nil {
			return got, wrong, err
		}
		if w.gc {
			runtime.GC()
		}
		h := m.Hash()
		got[at] = h
		if every := max(1, len(counts)/max(1, c.anew)); i%every == 0 {
			anew++
			if m.HashAnew() != h {
				wrong++
			}
		}
	}
	err = errors.Join(ctx.Err(), p.Run(1<<64-1))
	took := time.Since(began)
	fmt.Printf("note  %s: %d stops, %d digests of all the memory, %d digests of the recording, %d inputs; %.0f million instructions a second, waiting ones included, %v\n",
		w.name, len(got), anew, p.Compared, p.Inputs, float64(m.Count()-from)/1e6/took.Seconds(), took.Round(time.Millisecond))
	return got, wrong, err
}

// openReplay begins a replay from a saved state. Its machine is to be released.
func openReplay(state, log string) (*machine.Replay, error) {
	f, err := os.Open(state)
	if err != nil {
		return nil, err
	}
	m, err := machine.Restore(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(log)
	if err != nil {
		return nil, errors.Join(err, m.Release())
	}
	l, err := machine.ReadLog(bytes.NewReader(b))
	if err != nil {
		return nil, errors.Join(err, m.Release())
	}
	p, err := machine.NewReplay(m, l)
	if err != nil {
		return nil, errors.Join(err, m.Release())
	}
	return p, nil
}

// reach takes a replay to a count.
func reach(p *machine.Replay, at uint64) error {
	if err := p.Run(at); err != nil {
		return err
	}
	if n := p.Machine().Count(); n != at {
		return fmt.Errorf("at %d of %d the life is over", n, at)
	}
	return nil
}

// file is a name in the run's folder.
func (c *check) file(name string) string { return filepath.Join(c.dir, name) }
