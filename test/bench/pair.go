package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"steadfast/test/testbed"
)

// The mirrored rows: two nodes, a witness and a client in network namespaces.
// The link between the nodes is shaped to 1 Gbit/s each way (tbf), each node's
// drive is bounded to 100 MB/s (a control group; the drive that both share does
// many times that), the clients' network is not bounded. What is held against
// what:
//
//	pair-latency-*     what a write of one in flight takes longer (p50) on a
//	                   mirrored volume than on one of the owner alone, in the
//	                   same pool: at most a round trip of the same size on the
//	                   link by plain TCP, and a tenth
//	pair-throughput-*  at least 90 % of the slower of link and drives, which fio
//	                   and a TCP stream measure in the same run
//	pair-reads-*       at least 95 % of the local volume's
//	pair-active-*      two groups, one on each node, do together at least what
//	                   one does
//	pair-cpu-per-write CPU time of both nodes' processes for a write, beside
//	                   twice what a local one takes; it is only told
//	pair-resync-idle   at least 80 % of the slower of link and drives
//	pair-resync-p99    clients' p99 while a node is resynced: at most twice that
//	                   of a pair in sync
//
// Figures are medians of the rounds, in which the two sides take turns. Nothing
// can be stopped meanwhile: a node that is stopped is replaced by the other.

// pairBench is the mirrored part of a run.
type pairBench struct {
	*bench
	world *pairWorld
	// compared are results that several rows have need of: local, mirrored.
	compared map[string][2][]result
}

// A pairRow measures and prints what its name says.
type pairRow struct {
	name    string
	measure func(p *pairBench, name string) error
}

// Loads of the mirrored rows.
var (
	pairWrite4K    = load{name: "write-4k-qd32", write: true, bs: 4 << 10, qd: 32, random: true}
	pairWrite128K  = load{name: "write-128k-qd8", write: true, bs: 128 << 10, qd: 8}
	pairWrite4KQ1  = load{name: "write-4k-qd1", write: true, bs: 4 << 10, qd: 1, random: true}
	pairWrite64KQ1 = load{name: "write-64k-qd1", write: true, bs: 64 << 10, qd: 1, random: true}
	pairMixed      = load{name: "mixed-4k-qd4", mixed: true, bs: 4 << 10, qd: 4, random: true}
	// Reads that the cache holds: the drives would hide what the mirror costs.
	pairRead4K   = load{name: "randread-4k-qd32", bs: 4 << 10, qd: 32, random: true, span: 64 << 20}
	pairRead4KQ1 = load{name: "randread-4k-qd1", bs: 4 << 10, qd: 1, random: true, span: 64 << 20}
)

func pairRows() []pairRow {
	latency := func(l load, local, mirrored pairVolume) func(*pairBench, string) error {
		return func(p *pairBench, name string) error { return p.latency(name, l, local, mirrored) }
	}
	throughput := func(l load) func(*pairBench, string) error {
		return func(p *pairBench, name string) error { return p.throughput(name, l) }
	}
	reads := func(l load) func(*pairBench, string) error {
		return func(p *pairBench, name string) error { return p.reads(name, l) }
	}
	return []pairRow{
		{"pair-latency-write-4k-qd1", latency(pairWrite4KQ1, localDurable, mirrorDurable)},
		{"pair-latency-write-64k-qd1", latency(pairWrite64KQ1, localDurable, mirrorDurable)},
		{"pair-latency-cached-write-4k-qd1", latency(pairWrite4KQ1, localCached, mirrorCached)},
		{"pair-latency-cached-write-64k-qd1", latency(pairWrite64KQ1, localCached, mirrorCached)},
		{"pair-throughput-write-128k-qd8", throughput(pairWrite128K)},
		{"pair-throughput-write-4k-qd32", throughput(pairWrite4K)},
		{"pair-cpu-per-write", (*pairBench).cpu},
		{"pair-reads-4k-qd32", reads(pairRead4K)},
		{"pair-reads-4k-qd1", reads(pairRead4KQ1)},
		{"pair-active-active", (*pairBench).active},
		{"pair-resync-idle", (*pairBench).resyncIdle},
		{"pair-resync-p99", (*pairBench).resyncP99},
	}
}

// pairRounds is the usual number of rounds of mirrored rows.
const pairRounds = 3

// mirrored measures the mirrored rows that were asked for, on files in folder.
func (b *bench) mirrored(folder string) (err error) {
	rows := slices.DeleteFunc(pairRows(), func(r pairRow) bool { return !b.rows.MatchString(r.name) })
	if len(rows) == 0 || b.ours == "peer" {
		return nil
	}
	rounds, err := setting("BENCH_ROUNDS", pairRounds)
	if err != nil {
		return err
	}
	b.rounds = max(1, int(rounds))
	bin, err := testbed.Binary()
	if err != nil {
		return err
	}
	p := &pairBench{bench: b, compared: map[string][2][]result{}}
	if p.world, err = newPairWorld(folder, bin); errors.Is(err, errNoWorld) {
		fmt.Printf("SKIP pair-*: %v\n", err)
		return nil
	}
	defer func() { err = errors.Join(err, p.world.Close()) }()
	if err := p.prepare(); err != nil {
		return fmt.Errorf("pair: %w", err)
	}
	for _, r := range rows {
		if err := r.measure(p, r.name); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

// prepare measures the limits, which need no node, starts the pair and writes
// the volumes whole.
func (p *pairBench) prepare() error {
	if err := p.limits(); err != nil {
		return err
	}
	if err := p.world.up(p.ctx); err != nil {
		return err
	}
	return p.world.hurried(func() error {
		for _, v := range []pairVolume{localDurable, localCached, mirrorDurable, mirrorCached, otherDurable} {
			fmt.Printf("fill  pair/%s\n", v.name)
			if _, err := p.on(v, load{name: fillName, write: true, bs: 256 << 10, qd: 8}); err != nil {
				return err
			}
		}
		return nil
	})
}

// limits measures the link and, both at once, the drives, and says what they
// were to be and what they are.
func (p *pairBench) limits() error {
	addresses := [2]netip.Addr{memberAddress(nodeA, backNet), memberAddress(nodeB, backNet)}
	link, err := linkLimit([2]*testbed.Space(p.world.spaces[:2]), addresses, p.seconds)
	if err != nil {
		return err
	}
	var drives [2]float64
	var errs [2]error
	var both sync.WaitGroup
	for node := range drives {
		both.Go(func() { drives[node], errs[node] = p.driveLimit(node) })
	}
	both.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	fmt.Printf("note  pair: link shaped to %.0f Mbit/s each way (tbf, burst %d bytes): %.1f MB/s by TCP; clients' network not shaped\n",
		linkBytesPerSecond*8/1e6, linkBurstBytes, link/1e6)
	fmt.Printf("note  pair: drive of each node bounded to %.0f MB/s each way (control group): a %.1f, b %.1f MB/s by fio, both at once\n",
		driveBytesPerSecond/1e6, drives[nodeA]/1e6, drives[nodeB]/1e6)
	if slowest := min(link, drives[nodeA], drives[nodeB]); slowest < reached*slowerLimit {
		fmt.Printf("note  pair: the machine itself reaches %.1f of %.1f MB/s: not a measurement to quote\n", slowest/1e6, slowerLimit/1e6)
	}
	return nil
}

// slowerLimit is the slower of link and drives, in bytes a second: the drives, as
// a link of 125 MB/s carries 119 of TCP's payload. Rows are held against what the
// limits are set to, which limits() proves to be there, and not against what a
// busy machine makes of them.
const slowerLimit = driveBytesPerSecond

// reached is the part of the limits that must be seen without anything else.
const reached = 0.95

// driveLimit measures a node's drive, in its control group, with the load that
// the throughput is measured with: bytes a second.
func (p *pairBench) driveLimit(node int) (float64, error) {
	file := filepath.Join(p.world.dir(node), "raw")
	raw := rawRow{load: pairWrite128K}
	args := append(raw.arguments(file, p.seconds), fmt.Sprintf("--size=%d", pairVolumeBytes))
	iops, err := p.fioBy(p.world.drives[node].Command, args...)
	return iops * float64(raw.bs), errors.Join(err, os.Remove(file))
}

// on runs a load on a volume once, and once more when a group has changed its
// owner meanwhile, which on a machine that is too busy can happen to any of them.
// CPU is of both nodes.
func (p *pairBench) on(v pairVolume, l load) (result, error) {
	r, err := p.once(v, l)
	if err == nil || p.ctx.Err() != nil || p.world.procs[nodeB] == nil {
		return r, err
	}
	fmt.Printf("note  pair: once more: %v\n", err)
	if err := p.recover(); err != nil {
		return r, err
	}
	return p.once(v, l)
}

func (p *pairBench) once(v pairVolume, l load) (result, error) {
	used, err := p.meter()
	if err != nil {
		return result{}, err
	}
	r, spent, err := p.drive(p.world.urls[v.name], l, p.world.client.StartIn)
	if err != nil {
		return r, fmt.Errorf("%s: %w", v.name, err)
	}
	own, others, err := used(spent)
	r.CPU, r.Others = float64(own.Microseconds())/float64(r.Total), others
	return r, err
}

// meter is what the function of that name is, for both nodes together. What the
// kernel does for the networks apart from any process is nobody's share.
func (p *pairBench) meter() (used func(generators time.Duration) (own time.Duration, others float64, err error), err error) {
	look := func() (own, busy time.Duration, err error) {
		for _, node := range []int{nodeA, nodeB} {
			if p.world.procs[node] == nil {
				continue // it is away for a row
			}
			t, err := cpuTime(p.world.procs[node].PID())
			if err != nil {
				return 0, 0, err
			}
			own += t
		}
		busy, err1 := busyTime()
		soft, err2 := softTime()
		return own, busy - soft, errors.Join(err1, err2)
	}
	started := time.Now()
	own0, busy0, err := look()
	return func(generators time.Duration) (time.Duration, float64, error) {
		own, busy, err := look()
		own, busy = own-own0, busy-busy0
		machine := time.Since(started) * time.Duration(runtime.NumCPU())
		return own, float64(busy-own-generators) / float64(machine), err
	}, err
}

// compare runs a load on a local and a mirrored volume in turn. between, if any,
// is called once a round.
func (p *pairBench) compare(l load, local, mirrored pairVolume, between func() error) (rs [2][]result, err error) {
	volumes := [2]pairVolume{local, mirrored}
	for round := range p.rounds {
		for turn := range volumes {
			i := (turn + round) % 2
			r, err := p.on(volumes[i], l)
			if err != nil {
				return rs, err
			}
			rs[i] = append(rs[i], r)
		}
		if between != nil {
			if err := between(); err != nil {
				return rs, err
			}
		}
	}
	return rs, nil
}

// durable compares a load of durable writes, once for all rows.
func (p *pairBench) durable(l load) ([2][]result, error) {
	if rs, known := p.compared[l.name]; known {
		return rs, nil
	}
	rs, err := p.compare(l, localDurable, mirrorDurable, nil)
	if err == nil {
		p.compared[l.name] = rs
	}
	return rs, err
}

// latency holds what the mirror adds against a round trip.
func (p *pairBench) latency(name string, l load, local, mirrored pairVolume) error {
	var trips []float64
	rs, err := p.compare(l, local, mirrored, func() error {
		w, err := newWire(p.world.spaces[nodeA], p.world.spaces[nodeB], memberAddress(nodeB, backNet))
		if err != nil {
			return err
		}
		defer w.close()
		trip, err := w.roundTrip(l.bs, linkRest, min(p.seconds, 0.5))
		trips = append(trips, trip)
		return err
	})
	if err != nil {
		return err
	}
	trip := medianOf(trips)
	added := func(pick func(result) float64) float64 {
		var list []float64 // of each round, whose two sides are near in time
		for round := range rs[0] {
			list = append(list, pick(rs[1][round])-pick(rs[0][round]))
		}
		return medianOf(list)
	}
	p50 := func(r result) float64 { return r.P50 }
	mean := func(r result) float64 { return 1e6 / r.IOPS }
	p.atMost(name+"/added-p50-us", added(p50), trip, "round-trip", 1.1)
	tell(name+"/added-mean-us", added(mean), trip, "round-trip")
	tell(name+"/p50-us", median(rs[1], p50), median(rs[0], p50), "local")
	p.tellRest(name, rs)
	return nil
}

// tellRest prints what no row promises, and whether others disturbed it.
func (p *pairBench) tellRest(name string, rs [2][]result) {
	p99 := func(r result) float64 { return r.P99 }
	worst := func(r result) float64 { return r.Max }
	tell(name+"/p99-us", median(rs[1], p99), median(rs[0], p99), "local")
	tell(name+"/worst-us", median(rs[1], worst), median(rs[0], worst), "local")
	note(name, rs[:]...)
}

// note says when other people's work has disturbed a row.
func note(name string, rs ...[]result) {
	for _, list := range rs {
		if others := median(list, func(r result) float64 { return r.Others }); others > crowded {
			fmt.Printf("note  %s: other processes had %.0f %% of the processors meanwhile: not a measurement to quote\n", name, 100*others)
			return
		}
	}
}

// throughput holds mirrored writes against the slower of link and drives.
func (p *pairBench) throughput(name string, l load) error {
	rs, err := p.durable(l)
	if err != nil {
		return err
	}
	speed := func(r result) float64 { return r.IOPS * float64(l.bs) / 1e6 }
	mirrored, local := median(rs[1], speed), median(rs[0], speed)
	p.atLeast(name+"/MBps", mirrored, slowerLimit/1e6, "slower-of-link-and-drive", 0.9)
	tell(name+"/local-MBps", mirrored, local, "local")
	p.tellRest(name, rs)
	return nil
}

// cpu tells what a mirrored write costs both nodes.
func (p *pairBench) cpu(name string) error {
	rs, err := p.durable(pairWrite4K)
	if err != nil {
		return err
	}
	cost := func(r result) float64 { return r.CPU }
	tell(name+"/cpu-us-per-io", median(rs[1], cost), 2*median(rs[0], cost), "twice-local")
	note(name, rs[:]...)
	return nil
}

// reads compares reads of what the cache holds.
func (p *pairBench) reads(name string, l load) error {
	for _, v := range []pairVolume{localDurable, mirrorDurable} { // into the cache
		if _, err := p.on(v, pairRead4K); err != nil {
			return err
		}
	}
	rs, err := p.compare(l, localDurable, mirrorDurable, nil)
	if err != nil {
		return err
	}
	speed := func(r result) float64 { return r.IOPS }
	p.atLeast(name+"/iops", median(rs[1], speed), median(rs[0], speed), "local", 0.95)
	p.tellRest(name, rs)
	return nil
}

// active compares two groups, each owned by another node and with a client of
// its own, against one.
func (p *pairBench) active(name string) error {
	var one, two []result
	for round := range p.rounds {
		for turn := range 2 {
			if (turn+round)%2 == 0 {
				r, err := p.on(mirrorDurable, pairWrite4K)
				if err != nil {
					return err
				}
				one = append(one, r)
				continue
			}
			r, err := p.together(pairWrite4K, mirrorDurable, otherDurable)
			if err != nil {
				return err
			}
			two = append(two, r)
		}
	}
	speed := func(r result) float64 { return r.IOPS }
	p.atLeast(name+"/iops", median(two, speed), median(one, speed), "one-group", 1)
	note(name, one, two)
	return nil
}

// together runs a load on volumes at once: I/Os are summed.
func (p *pairBench) together(l load, volumes ...pairVolume) (sum result, err error) {
	used, err := p.meter()
	if err != nil {
		return sum, err
	}
	rs, spent, errs := make([]result, len(volumes)), make([]time.Duration, len(volumes)), make([]error, len(volumes))
	var all sync.WaitGroup
	for i, v := range volumes {
		all.Go(func() {
			rs[i], spent[i], errs[i] = p.drive(p.world.urls[v.name], l, p.world.client.StartIn)
		})
	}
	all.Wait()
	var generators time.Duration
	for i, r := range rs {
		sum.IOPS, sum.Total, sum.Max = sum.IOPS+r.IOPS, sum.Total+r.Total, max(sum.Max, r.Max)
		generators += spent[i]
	}
	own, others, err := used(generators)
	sum.CPU, sum.Others = float64(own.Microseconds())/float64(max(sum.Total, 1)), others
	return sum, errors.Join(append(errs, err)...)
}
