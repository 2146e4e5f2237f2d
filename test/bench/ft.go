package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"steadfast/compute/image"
	"steadfast/compute/machineio"
	"steadfast/fault"
	"steadfast/test/testbed"
)

// The rows of fault tolerance: a Debian guest in one process, and the same guest a moment
// later in two, of which one follows the other over TCP of this host. Each round does
// a load once off and once on; which is first changes. Disks are files, the network is
// usernet, and both are the same off and on:
//
//	ft-mips-*      million instructions of the guest a second of the primary's CPU time
//	ft-redis-cpu   CPU time of the primary for a request of redis-benchmark
//	ft-*-beside    the same against a machine that is off while a second one, a stranger, does the
//	               same: what fault tolerance costs, without what a busy neighbour does
//	ft-redis-*     redis-benchmark while the primary has only a share of a processor, so that
//	               this host is not busy with two machines: requests a second, p50
//	ft-durable-p50 a SET of a Redis that syncs each to its disk, one at a time
//	ft-log-*       bandwidth of the log, beside Scales et al. (2010), table 1: theirs are
//	               other loads on other machines
//	ft-speed-*     what a load takes, where there are processors for both
//
// "us" is the primary's process; what networks and clients take is in neither.

// ftRounds is the usual number of rounds.
const ftRounds = 3

// ftPeer is the peer of these rows, and ftBeside of those with a second machine.
const (
	ftPeer   = "ft-off"
	ftBeside = "ft-off-beside-another"
)

// beside is a side: off, while a second machine does the same.
const beside = 2

// Goals of these rows, to the same without FT but for the idle log.
const (
	ftMIPSGoal    = 0.97
	ftCPUGoal     = 1.15
	ftRateGoal    = 0.90
	ftAddedMsGoal = 0.5
	ftIdleGoal    = 0.1 // Mbit/s
)

// ftShare is the capped primary's share of a processor, and ftBusy how much of all
// processors may be busy then.
const (
	ftShare = 0.4
	ftBusy  = 0.7
)

// ftProcessors is how many an uncapped pair and its load need.
const ftProcessors = 4

// ftLoad is something that the guest does.
type ftLoad struct {
	name string
	// rows are those that it is needed for.
	rows []string
	do   func(f *ftBench) (ftResult, error)
	// scales is the log's bandwidth of Scales' nearest load, in Mbit/s, and its name.
	scales float64
	near   string
	onOnly bool
}

// ftLoads are in the order in which they are done.
func ftLoads() []ftLoad {
	return []ftLoad{
		{"idle", []string{"ft-log-idle"}, (*ftBench).rest, 1, "idle-0.5-1.5", true},
		{"compute", []string{"ft-mips-compute", "ft-mips-compute-beside", "ft-log-compute", "ft-speed-compute"}, (*ftBench).compute, 1.5, "SPECjbb", false},
		{"compile", []string{"ft-mips-compile", "ft-log-compile", "ft-speed-compile"}, (*ftBench).compile, 3, "kernel-compile", false},
		{"pgbench", []string{"ft-mips-pgbench", "ft-log-pgbench", "ft-speed-pgbench"}, (*ftBench).pgbench, 12, "Swingbench", false},
		{"redis", []string{"ft-redis-cpu", "ft-redis-cpu-beside", "ft-log-redis", "ft-speed-redis"}, (*ftBench).redis, 18, "DVD-Store", false},
		{"capped", []string{"ft-redis-capped-rate", "ft-redis-capped-p50"}, (*ftBench).capped, 0, "", false},
		{"durable", []string{"ft-durable-p50"}, (*ftBench).durable, 0, "", false},
		{"receive", []string{"ft-log-receive", "ft-speed-receive"}, (*ftBench).receive, 940, "netperf-link", false},
	}
}

// ftResult is what one load told.
type ftResult struct {
	// work is how much was done, in the load's own unit, and p50 how long a request
	// took, in ms.
	work, p50 float64
	// Of the time that it took.
	executed, log            float64 // instructions, bytes of log
	wall, primary, secondary time.Duration
	busy, others             float64 // share of the processors, and of other people's work
	lagNS                    float64 // that the secondary was behind, at most seen
}

// ftBench is this part of a run.
type ftBench struct {
	*bench
	*ftGuest
	neighbour *ftBench // a stranger, for the rows that have one
}

func ftRows() (rows []string) {
	for _, l := range ftLoads() {
		rows = append(rows, l.rows...)
	}
	return rows
}

// faultTolerance measures the rows that were asked for.
func (b *bench) faultTolerance() (err error) {
	if !b.wants(ftRows()...) || b.ours == "peer" {
		return nil
	}
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return err
	}
	for _, tool := range [][2]string{{"redis-benchmark", "redis-tools"}, {"debugfs", "e2fsprogs"}} {
		if _, err := exec.LookPath(tool[0]); err != nil {
			fmt.Printf("SKIP ft-*: no %s (apt-get install %s)\n", tool[0], tool[1])
			return nil
		}
	}
	rounds, err := setting("BENCH_ROUNDS", ftRounds)
	if err != nil {
		return err
	}
	b.rounds = max(1, int(rounds))
	f := &ftBench{bench: b}
	parts, err := ftImage(b.ctx)
	switch {
	case fault.Is(err, fault.Unreachable):
		fmt.Printf("SKIP ft-*: there is no guest yet, and none can be built: %v\n", err)
		return nil
	case err != nil:
		return fmt.Errorf("the guest: %w", err)
	}
	if f.ftGuest, err = f.bootFT(parts, "ft"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.ftGuest.close()) }()
	if err := f.prepare(); err != nil {
		return err
	}
	if f.wants("ft-mips-compute-beside", "ft-redis-cpu-beside") {
		f.neighbour = &ftBench{bench: b}
		if f.neighbour.ftGuest, err = b.bootFT(parts, "neighbour"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.neighbour.close()) }()
		if err := f.neighbour.prepare(); err != nil {
			return err
		}
	}
	for _, l := range ftLoads() {
		if !f.wants(l.rows...) {
			continue
		}
		rs, err := f.measure(l)
		switch {
		case errors.Is(err, errNoCap):
			fmt.Printf("SKIP %s: %v\n", l.rows[0], err)
		case err != nil:
			return fmt.Errorf("%s: %w", l.name, err)
		default:
			f.tell(l, rs)
		}
	}
	return nil
}

// ftCache keeps the guest between runs; it is from the root of the repository.
const ftCache = ".cache/machine"

// ftImage returns a guest with Redis, PostgreSQL and a compiler, which is built if it is not
// there. Fails as image.Builder.
func ftImage(ctx context.Context) (testbed.Debian, error) {
	dir := filepath.Join(ftCache, "ft")
	if _, err := os.Stat(dir); err != nil {
		b := &image.Builder{
			Cache: filepath.Join(ftCache, "image"), Runner: machineio.Runner{Memory: guestMemory << 20},
			Say: func(format string, args ...any) { fmt.Printf("note  guest: "+format+"\n", args...) },
		}
		if err := os.MkdirAll(ftCache, 0o755); err != nil {
			return testbed.Debian{}, err
		}
		packages := []string{"gcc", "libc6-dev", "postgresql", "redis-server", "redis-tools"}
		if _, err := b.Build(ctx, image.Spec{Name: "ft", Profile: "minimal", Packages: packages, SizeBytes: 2 << 30}, dir); err != nil {
			return testbed.Debian{}, err
		}
	}
	return testbed.NewDebian(ctx, dir)
}

// measure does a load on (ours), off (theirs) and beside another in turn: what a processor is worth
// changes from minute to minute.
func (f *ftBench) measure(l ftLoad) (rs [3][]ftResult, err error) {
	sides := []int{beside, theirs, ours}
	for range f.rounds {
		for _, side := range sides {
			if l.onOnly && side != ours || side == beside && !f.hasBeside(l) {
				continue
			}
			if err := f.turn(side == ours); err != nil {
				return rs, err
			}
			do := l.do
			if side == beside {
				do = l.besideAnother
			}
			r, err := do(f)
			if err != nil {
				return rs, err
			}
			rs[side] = append(rs[side], r)
		}
		slices.Reverse(sides)
	}
	return rs, nil
}

// hasBeside tells whether a row is asked for that compares a load beside another machine's.
func (f *ftBench) hasBeside(l ftLoad) bool {
	return slices.ContainsFunc(l.rows, func(row string) bool { return isBeside(row) && f.wants(row) })
}

func isBeside(row string) bool { return strings.HasSuffix(row, "-beside") }

// besideAnother does it while the neighbour does.
func (l ftLoad) besideAnother(f *ftBench) (ftResult, error) {
	done := make(chan error, 1)
	go func() {
		_, err := l.do(f.neighbour)
		done <- err
	}()
	r, err := l.do(f)
	return r, errors.Join(err, <-done)
}

// turn has the machine be on one host or two.
func (f *ftBench) turn(on bool) error {
	switch {
	case on && f.second == nil:
		return f.turnOn(f.ctx)
	case !on && f.second != nil:
		return f.turnOff(f.ctx)
	}
	return nil
}

// ftMedian is the median of what is picked, 0 of nothing.
func ftMedian(rs []ftResult, pick func(ftResult) float64) float64 {
	if len(rs) == 0 {
		return 0
	}
	values := make([]float64, len(rs))
	for i, r := range rs {
		values[i] = pick(r)
	}
	return medianOf(values)
}

// Figures of a result.
func (r ftResult) mips() float64    { return r.executed / 1e6 / r.primary.Seconds() }
func (r ftResult) usEach() float64  { return float64(r.primary.Microseconds()) / r.work }
func (r ftResult) rate() float64    { return r.work / r.wall.Seconds() }
func (r ftResult) logMbps() float64 { return r.log * 8 / 1e6 / r.wall.Seconds() }

// tell prints the rows of a load.
func (f *ftBench) tell(l ftLoad, rs [3][]ftResult) {
	both := func(pick func(ftResult) float64) (on, off float64) {
		return ftMedian(rs[ours], pick), ftMedian(rs[theirs], pick)
	}
	for _, row := range l.rows {
		switch {
		case !f.wants(row):
		case isBeside(row):
			pick, name := ftResult.mips, row
			if l.name == "redis" {
				pick, name = ftResult.usEach, row+"/us"
			}
			tell(name, ftMedian(rs[ours], pick), ftMedian(rs[beside], pick), ftBeside)
		default:
			f.tellRow(l, row, both)
		}
	}
	if l.name == "capped" {
		on, off := both(func(r ftResult) float64 { return r.busy })
		fmt.Printf("note  ft-redis-capped: %.0f %% of this host's processors were busy, off %.0f; at most %.0f is meant\n", 100*on, 100*off, 100*ftBusy)
	}
	f.noteCrowd("ft-"+l.name, max(both(func(r ftResult) float64 { return r.others })))
	lag, _ := both(func(r ftResult) float64 { return r.lagNS })
	mips, _ := both(func(r ftResult) float64 { return r.executed / 1e6 / max(r.secondary.Seconds(), 1e-3) })
	fmt.Printf("note  ft-%s: a second of the secondary's CPU time %.0f million instructions; it was at most %.0f ms behind\n", l.name, mips, lag/1e6)
}

// tellRow prints one.
func (f *ftBench) tellRow(l ftLoad, row string, both func(func(ftResult) float64) (on, off float64)) {
	switch row {
	case "ft-mips-compute", "ft-mips-compile":
		on, off := both(ftResult.mips)
		f.atLeast(row, on, off, ftPeer, ftMIPSGoal)
	case "ft-mips-pgbench":
		on, off := both(ftResult.mips)
		tell(row, on, off, ftPeer)
	case "ft-redis-cpu":
		on, off := both(ftResult.usEach)
		f.atMost(row+"/us", on, off, ftPeer, ftCPUGoal)
	case "ft-redis-capped-rate":
		on, off := both(ftResult.rate)
		f.atLeast(row, on, off, ftPeer, ftRateGoal)
	case "ft-redis-capped-p50":
		on, off := both(func(r ftResult) float64 { return r.p50 })
		f.judgeOff(row+"/ms", on, off, fmt.Sprintf("<=+%.1f", ftAddedMsGoal), on <= off+ftAddedMsGoal)
	case "ft-durable-p50":
		on, off := both(func(r ftResult) float64 { return r.p50 })
		tellFine(row+"/ms", on, off, ftPeer)
	case "ft-log-idle":
		on, _ := both(ftResult.logMbps)
		f.count(on <= ftIdleGoal)
		fmt.Printf("bench %s/Mbps ours=%.3f peer=%.1f(%s) ratio=%.3f goal=<=%.1f %s\n", row, on, l.scales, l.near, on/l.scales, ftIdleGoal, word(on <= ftIdleGoal))
	default:
		f.tellOther(l, row, both)
	}
}

// tellOther prints a log's bandwidth, or a speed.
func (f *ftBench) tellOther(l ftLoad, row string, both func(func(ftResult) float64) (on, off float64)) {
	if row == "ft-log-"+l.name {
		on, _ := both(ftResult.logMbps)
		tellFine(row+"/Mbps", on, l.scales, l.near)
		return
	}
	if n := runtime.NumCPU(); n < ftProcessors {
		fmt.Printf("SKIP %s: two machines and their load need %d processors, and there are %d\n", row, ftProcessors, n)
		return
	}
	on, off := both(ftResult.rate)
	tell(row, on, off, ftPeer)
}

// judgeOff is judge for figures of milliseconds.
func (f *ftBench) judgeOff(name string, on, off float64, goal string, ok bool) {
	f.count(ok)
	fmt.Printf("bench %s ours=%.2f peer=%.2f(%s) ratio=%.2f goal=%s %s\n", name, on, off, ftPeer, on/max(off, math.SmallestNonzeroFloat32), goal, word(ok))
}

// tellFine is tell for figures that are small.
func tellFine(name string, ours, peer float64, who string) {
	fmt.Printf("info  %s ours=%.2f peer=%.2f(%s) ratio=%.2f\n", name, ours, peer, who, ours/max(peer, 1e-9))
}
