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

// The clients that load a pair.
var clientNames = []string{"qemu", "libiscsi"}

// settings are what the flags say.
type settings struct {
	product  string
	bin      string
	build    Build
	clients  []string
	span     int64 // bytes of each volume that are loaded
	rateMax  int   // requests a second of each lane; 0: no bound
	nop      time.Duration
	calm     time.Duration
	env      []string // of the clients' processes
	results  string
	parent   string // of the folder with all files
	logsKept string // where logs go after a failure
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
	// open makes a connection of its own.
	open func(ctx context.Context, l *load) (verify.Disk, error)
}

// load is one client's volume.
type load struct {
	client string
	volume Volume
	judge  *verify.Judge
	disks  []verify.Disk
	*verify.Load
}

// The lanes, in the order of a window.
const (
	laneQD1 = iota
	laneQD32
)

// times are how long a round waits for what.
type times struct {
	gap            time.Duration // from whole to the next round, at least
	quiet, spread  time.Duration // the calm before the fault, and what chance adds
	whole, settled time.Duration // patience until the pair is whole, and until all is answered
}

// usualTimes have a gap because libiscsi comes back at most once in three
// seconds, in whole seconds of the wall clock: what comes sooner would measure
// that.
func usualTimes() times {
	return times{
		gap: 5 * time.Second, quiet: 2 * time.Second, spread: 2 * time.Second,
		whole: 3 * time.Minute, settled: time.Minute,
	}
}

// calmPatience is how long a round waits for a calm machine before it begins
// anyway; the results tell.
const calmPatience = 2 * time.Minute

// newRunner makes the world and the pair, and starts the load. drives: pools
// lie where they can be made to fail.
func newRunner(ctx context.Context, s settings, drives bool) (r *runner, err error) {
	r = &runner{settings: s, times: usualTimes()}
	r.open = r.connect
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
		r.pair = newProduct(r.world, s.bin, len(s.clients), s.span)
	} else {
		r.pair = newStandin(r.world, s.bin, s.product, len(s.clients), s.span)
	}
	if err := r.pair.Up(ctx); err != nil {
		return r, fmt.Errorf("start %s: %w", s.product, err)
	}
	return r, r.startLoads(ctx)
}

// startLoads opens every client's connections and fills its volume.
func (r *runner) startLoads(ctx context.Context) error {
	for i, v := range r.pair.Volumes() {
		l := &load{client: r.clients[i], volume: v, judge: verify.NewJudge(uint32(i+1), v.Size)}
		r.loads = append(r.loads, l)
		for range []int{laneQD1, laneQD32} {
			d, err := r.open(ctx, l)
			if err != nil {
				return err
			}
			l.disks = append(l.disks, d)
		}
		if err := verify.Fill(ctx, l.judge, l.disks[laneQD32]); err != nil {
			return err
		}
		if c := l.judge.Counts(); !c.Clean() {
			return fmt.Errorf("the first fill failed: %v", l.judge.Findings())
		}
		var err error
		l.Load, err = verify.StartLoad(l.judge,
			verify.Lane{Disk: l.disks[laneQD1], Depth: 1, RateMax: r.rateMax},
			verify.Lane{Disk: l.disks[laneQD32], Depth: 32, RateMax: r.rateMax})
		if err != nil {
			return err
		}
	}
	return nil
}

// connect opens a client's volume once more.
func (r *runner) connect(ctx context.Context, l *load) (verify.Disk, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	log, err := r.world.log("client-" + l.client)
	if err != nil {
		return nil, err
	}
	c := verify.Client{
		Dir: r.world.folder.Path, Initiator: initiatorName, Log: log, Start: r.world.client.StartIn, NOP: r.nop, Env: r.env,
	}
	if l.client == "qemu" {
		return verify.OpenQEMU(ctx, c, l.volume.URL)
	}
	return verify.OpenLibiscsi(ctx, c, r.bridge, l.volume.URL)
}

// round runs the n-th round of a kind, from 0, and returns what each client saw. An error means that
// no further round makes sense.
func (r *runner) round(ctx context.Context, k kind, n int) ([]Row, error) {
	isWhole := func(s Status) bool { return s.Whole }
	status, err := awaitStatus(ctx, r.pair, r.times.whole, isWhole)
	if err != nil {
		return nil, fmt.Errorf("not whole before the round: %w", err)
	}
	pause(ctx, r.times.gap-time.Since(r.whole))
	rows := make([]Row, len(r.loads))
	found := make([]verify.Counts, len(r.loads))
	for i, w := range r.calmly(ctx) {
		rows[i].BeforeQD1, rows[i].BeforeQD32 = ms(w[laneQD1].Longest), ms(w[laneQD32].Longest)
		rows[i].Busy = busy()
		found[i] = r.loads[i].judge.Counts()
	}
	rd := &round{pair: r.pair, world: r.world, owner: status.Owner, epoch: status.Epoch, n: n}
	failure := k.do(ctx, rd)
	if failure == nil {
		status, failure = awaitStatus(ctx, r.pair, r.times.whole, isWhole)
	}
	r.whole = time.Now()
	if failure == nil {
		failure = r.readBacks(ctx)
	}
	for i, w := range r.cut(&failure) {
		l, row := r.loads[i], &rows[i]
		c := l.judge.Counts().Sub(found[i])
		row.Build, row.Time, row.Kind, row.Client, row.Detail = r.build, rd.began, k.name, l.client, rd.detail
		row.StallQD1, row.StallQD32 = ms(w[laneQD1].Longest), ms(w[laneQD32].Longest)
		row.IOs = w[laneQD1].IOs + w[laneQD32].IOs
		row.Lost, row.Stale, row.Torn = c.Of(verify.Lost), c.Of(verify.Stale), c.Of(verify.Torn)
		row.Corrupt, row.Errors = c.Of(verify.Corrupt), c.Of(verify.Failed)
		row.OwnerMS, row.WholeMS = ms(rd.ownerIn), ms(r.whole.Sub(rd.began))
		if failure == nil {
			row.Epochs = status.Epoch - rd.epoch
		}
		switch {
		case failure != nil:
			row.Failed = failure.Error()
		case !c.Clean():
			row.Failed = fmt.Sprintf("wrong answers, for one %v", slices.MinFunc(l.judge.Findings(), func(a, b verify.Finding) int { return int(a.Kind) - int(b.Kind) }))
		}
	}
	return rows, errors.Join(failure, ctx.Err())
}

// calmly measures the seconds before a fault. When they shall be calm and are
// not, it measures others, for a while.
func (r *runner) calmly(ctx context.Context) [][]verify.Window {
	for end := time.Now().Add(calmPatience); ; {
		r.cut(nil)
		pause(ctx, r.times.quiet+rand.N(r.times.spread))
		windows := r.cut(nil)
		worst := time.Duration(0)
		for _, w := range windows {
			worst = max(worst, w[laneQD1].Longest, w[laneQD32].Longest)
		}
		if r.calm == 0 || worst <= r.calm || time.Now().After(end) || ctx.Err() != nil {
			return windows
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

// cut ends every load's window. With a failure to report to, it first waits
// until what was held up is answered.
func (r *runner) cut(failure *error) [][]verify.Window {
	var out [][]verify.Window
	for _, l := range r.loads {
		if failure != nil {
			ctx, cancel := context.WithTimeout(context.Background(), r.times.settled)
			if *failure != nil {
				cancel() // it need not settle any more
			}
			if err := l.Settle(ctx); err != nil && *failure == nil {
				*failure = fmt.Errorf("%s: %w", l.client, err)
			}
			cancel()
		}
		out = append(out, l.Cut())
	}
	return out
}

// readBacks reads every volume through a connection that knows nothing of what
// was, while the load goes on.
func (r *runner) readBacks(ctx context.Context) error {
	for _, l := range r.loads {
		d, err := r.open(ctx, l)
		if err != nil {
			return err
		}
		err = verify.ReadBack(ctx, l.judge, d)
		if err := errors.Join(err, d.Close()); err != nil {
			return err
		}
	}
	return nil
}

// final stops the load and reads everything back, through an old connection
// and through a new one. It returns what is wrong that was not before.
func (r *runner) final(ctx context.Context) error {
	var all error
	for _, l := range r.loads {
		before := l.judge.Counts()
		l.Stop()
		err := verify.ReadBack(ctx, l.judge, l.disks[laneQD1])
		all = errors.Join(all, err)
		if c := l.judge.Counts().Sub(before); !c.Clean() {
			all = errors.Join(all, fmt.Errorf("%s: the last read-back found %v", l.client, c))
		}
	}
	before := make([]verify.Counts, len(r.loads))
	for i, l := range r.loads {
		before[i] = l.judge.Counts()
	}
	all = errors.Join(all, r.readBacks(ctx))
	for i, l := range r.loads {
		if c := l.judge.Counts().Sub(before[i]); !c.Clean() {
			all = errors.Join(all, fmt.Errorf("%s: the last read-back through a fresh connection found %v", l.client, c))
		}
	}
	return all
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Close ends the load, the pair and the world.
func (r *runner) Close() error {
	var err error
	for _, l := range r.loads {
		for _, d := range l.disks {
			// First: it answers what is under way, so that the load can end.
			err = errors.Join(err, d.Close())
		}
		if l.Load != nil {
			l.Stop()
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
	dir := filepath.Join(r.logsKept, time.Now().Format("20060102-150405"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, l := range r.loads {
		var text []byte
		for _, f := range l.judge.Findings() {
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
