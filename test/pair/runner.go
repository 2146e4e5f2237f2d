package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"steadfast/test/verify"
)

// initiatorName is who all clients say they are.
const initiatorName = "iqn.2026-11.io.steadfast.test:verify"

// settings are what the flags say.
type settings struct {
	product string
	bin     string
	build   Build
	clients []string
	span    int64 // bytes of each volume that are loaded
	rateMax int   // requests a second of each lane; 0: no bound
	nop     time.Duration
	calm    time.Duration
	env     []string // of the clients' processes
	iscsid  []string // lines that the Linux client's iscsid.conf ends with
	trace   bool     // of the Linux client: iscsid says all, packets are kept
	// guestCache is the folder that keeps the Linux client's kernel.
	guestCache string
	results    string
	parent     string // of the folder with all files
	logsKept   string // where logs go after a failure
}

// runner is a pair under load.
type runner struct {
	settings
	world  *world
	pair   Pair
	loads  []*load
	bridge string
	whole  time.Time // when it was whole last
	times  times
}

// The lanes, in the order of a window.
const (
	laneQD1 = iota
	laneQD32
)

// times are how long a round waits for what.
type times struct {
	heard          time.Duration // from the fault until each client has noticed what it will
	gap            time.Duration // from whole to the next round, at least
	quiet, spread  time.Duration // the calm before the fault, and what chance adds
	whole, settled time.Duration // patience until the pair is whole, and until all is answered
}

// usualTimes have a gap because libiscsi comes back at most once in three
// seconds, in whole seconds of the wall clock: what comes sooner would measure
// that.
func usualTimes() times {
	return times{
		heard: hold, gap: 5 * time.Second, quiet: 2 * time.Second, spread: 2 * time.Second,
		whole: 3 * time.Minute, settled: 2 * time.Minute,
	}
}

// calmPatience is how long a round waits for a calm machine before it begins
// anyway; the results tell.
const calmPatience = 2 * time.Minute

// newRunner makes the world and the pair, and starts the load. drives: pools
// lie where they can be made to fail.
func newRunner(ctx context.Context, s settings, drives bool) (r *runner, err error) {
	r = &runner{settings: s, times: usualTimes()}
	if r.world, err = newWorld(s.parent); err != nil {
		return r, err
	}
	if drives {
		for _, m := range []Member{NodeA, NodeB} {
			if err := r.world.addDrive(ctx, m); err != nil {
				return r, err
			}
		}
	}
	if slices.Contains(s.clients, "libiscsi") {
		if r.bridge, err = verify.BuildBridge(ctx, ".", r.world.folder.Path); err != nil {
			return r, err
		}
	}
	if s.product == "pair" {
		r.pair = newProduct(r.world, s.bin, len(s.clients), s.span, slices.Contains(s.clients, multipathClient))
	} else {
		r.pair = newStandin(r.world, s.bin, s.product, len(s.clients), s.span)
	}
	if err := r.pair.Up(ctx); err != nil {
		return r, fmt.Errorf("start %s: %w", s.product, err)
	}
	return r, r.startLoads(ctx)
}

// round runs the n-th round of a kind, from 0, and returns what each client saw. An error means that
// no further round makes sense.
func (r *runner) round(ctx context.Context, k kind, n int) ([]Row, error) {
	isWhole := func(s Status) bool { return s.Whole }
	status, err := awaitStatus(ctx, r.pair, r.times.whole, isWhole)
	if err != nil {
		return nil, fmt.Errorf("not whole before the round: %w", err)
	}
	processors := watchProcessors()
	defer processors.end()
	pause(ctx, r.times.gap-time.Since(r.whole))
	rows := make([]Row, len(r.loads))
	found := make([]verify.Counts, len(r.loads))
	calm, err := r.calmly(ctx)
	if err != nil {
		return nil, err
	}
	for i, w := range calm {
		rows[i].BeforeQD1, rows[i].BeforeQD32 = ms(w[laneQD1].Longest), ms(w[laneQD32].Longest)
		rows[i].Busy = busy()
		found[i] = r.loads[i].Counts()
	}
	processors.take()
	rd := &round{pair: r.pair, world: r.world, owner: status.Owner, epoch: status.Epoch, n: n}
	failure := k.do(ctx, rd)
	if failure == nil {
		status, failure = awaitStatus(ctx, r.pair, r.times.whole, isWhole)
	}
	r.whole = time.Now()
	measured := r.measure(ctx, rd, &failure)
	stood := processors.take()
	for i, w := range measured {
		l, row := r.loads[i], &rows[i]
		c := l.Counts().Sub(found[i])
		row.Build, row.Time, row.Kind, row.Client, row.Detail = r.build, rd.began, k.name, l.client, rd.detail
		row.StallQD1, row.StallQD32 = ms(w[laneQD1].Longest), ms(w[laneQD32].Longest)
		row.IOs = w[laneQD1].IOs + w[laneQD32].IOs
		row.Lost, row.Stale, row.Torn = c.Of(verify.Lost), c.Of(verify.Stale), c.Of(verify.Torn)
		row.Corrupt, row.Errors = c.Of(verify.Corrupt), c.Of(verify.Failed)
		row.StoodMS = ms(stood)
		row.OwnerMS, row.WholeMS = ms(rd.ownerIn), ms(r.whole.Sub(rd.began))
		if failure == nil {
			row.Epochs = status.Epoch - rd.epoch
		}
		switch {
		case failure != nil:
			row.Failed = failure.Error()
		case !c.Clean():
			row.Failed = fmt.Sprintf("wrong answers, for one %v", slices.MinFunc(l.Findings(), func(a, b verify.Finding) int { return int(a.Kind) - int(b.Kind) }))
		}
	}
	return rows, errors.Join(failure, ctx.Err())
}

// measure ends the windows of a round whose harm is undone, with all read back.
func (r *runner) measure(ctx context.Context, rd *round, failure *error) [][]verify.Window {
	if slices.ContainsFunc(r.loads, func(l *load) bool { return l.delays }) {
		// A client may hear of a change after the nodes are through with it.
		pause(ctx, r.times.heard-time.Since(rd.began))
	}
	windows := r.settledCut(failure)
	if *failure == nil {
		*failure = r.readBacks(ctx, true)
	}
	for i, later := range r.settledCut(failure) {
		for lane := range later {
			w := &windows[i][lane]
			w.IOs += later[lane].IOs
			if !r.loads[i].delays {
				w.Longest = max(w.Longest, later[lane].Longest)
			}
		}
	}
	return windows
}

// calmly measures the seconds before a fault. When they shall be calm and are
// not, it measures others, for a while.
func (r *runner) calmly(ctx context.Context) ([][]verify.Window, error) {
	for end := time.Now().Add(calmPatience); ; {
		if _, err := r.cut(); err != nil {
			return nil, err
		}
		pause(ctx, r.times.quiet+rand.N(r.times.spread))
		windows, err := r.cut()
		if err != nil {
			return nil, err
		}
		worst := time.Duration(0)
		for _, w := range windows {
			worst = max(worst, w[laneQD1].Longest, w[laneQD32].Longest)
		}
		if r.calm == 0 || worst <= r.calm || time.Now().After(end) || ctx.Err() != nil {
			return windows, nil
		}
	}
}

// busy is the machine's load average of the last minute.
func busy() float64 {
	var load float64
	text, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, _ = fmt.Sscan(string(text), &load)
	}
	return load
}

// cut ends every load's window. A load that cannot say has an empty one.
func (r *runner) cut() (out [][]verify.Window, err error) {
	for _, l := range r.loads {
		// Also after an interrupt: what was measured until then.
		windows, cutErr := l.Cut(context.Background())
		if cutErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", l.client, cutErr))
		}
		if len(windows) <= laneQD32 {
			windows = make([]verify.Window, laneQD32+1)
		}
		out = append(out, windows)
	}
	return out, err
}

// settledCut first waits until what was held up is answered. What fails goes to
// failure, unless there is one already.
func (r *runner) settledCut(failure *error) [][]verify.Window {
	for _, l := range r.loads {
		if *failure != nil {
			break // it need not settle any more
		}
		ctx, cancel := context.WithTimeout(context.Background(), r.times.settled)
		if err := l.Settle(ctx); err != nil {
			*failure = fmt.Errorf("%s: %w", l.client, err)
		}
		cancel()
	}
	out, err := r.cut()
	if *failure == nil {
		*failure = err
	}
	return out
}

// readBacks reads every volume, while the load goes on if it does.
func (r *runner) readBacks(ctx context.Context, fresh bool) error {
	for _, l := range r.loads {
		if err := l.ReadBack(ctx, fresh); err != nil {
			return fmt.Errorf("%s: %w", l.client, err)
		}
	}
	return nil
}

// final stops the load and reads everything back, through an old connection
// and through a new one. It returns what is wrong that was not before.
func (r *runner) final(ctx context.Context) error {
	before := r.counts()
	var all error
	for _, l := range r.loads {
		all = errors.Join(all, l.Stop(ctx))
	}
	for _, fresh := range []bool{false, true} {
		all = errors.Join(all, r.readBacks(ctx, fresh))
		now := r.counts()
		for i, l := range r.loads {
			if c := now[i].Sub(before[i]); !c.Clean() {
				all = errors.Join(all, fmt.Errorf("%s: the last read-back (fresh connection: %v) found %v", l.client, fresh, c))
			}
		}
		before = now
	}
	return all
}

// counts are what every load found so far.
func (r *runner) counts() []verify.Counts {
	var out []verify.Counts
	for _, l := range r.loads {
		out = append(out, l.Counts())
	}
	return out
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Close ends the load, the pair and the world.
func (r *runner) Close() error {
	var err error
	for _, l := range r.loads {
		if l.loader != nil {
			err = errors.Join(err, l.loader.Close())
		}
	}
	if r.pair != nil {
		err = errors.Join(err, r.pair.Close())
	}
	if r.world != nil {
		err = errors.Join(err, r.world.Close())
	}
	return err
}

// keepLogs copies every log to where a person finds it.
func (r *runner) keepLogs() (string, error) {
	logs, err := filepath.Glob(r.world.path("*.log"))
	if err != nil {
		return "", err
	}
	packets, err := filepath.Glob(r.world.path("*.pcap"))
	if err != nil {
		return "", err
	}
	logs = append(logs, packets...)
	dir := filepath.Join(r.logsKept, time.Now().Format("20060102-150405"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, l := range r.loads {
		var text []byte
		if l.loader == nil {
			continue // it did not start
		}
		for _, f := range l.Findings() {
			text = fmt.Appendln(text, f)
		}
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, "findings-"+l.client+".log"), text, 0o644))
	}
	for _, log := range logs {
		text, readErr := os.ReadFile(log)
		err = errors.Join(err, readErr, os.WriteFile(filepath.Join(dir, filepath.Base(log)), text, 0o644))
	}
	return dir, err
}
