package main

import (
	"fmt"
	"slices"
)

// crowded is the share of the processors above which other people's work is
// said to have disturbed a row. The kernel's own threads take a few percent.
const crowded = 0.2

// report prints the lines of one row.
func (b *bench) report(m mode, s set, l load, results [2][]result) {
	name, who := rowName(m, s, l), m.peer
	both := func(pick func(result) float64) (ours, peer float64) {
		return median(results[0], pick), median(results[1], pick)
	}
	unit, scale := "iops", 1.0
	if l.bs > 64<<10 {
		unit, scale = "MBps", float64(l.bs)/1e6
	}
	ours, peer := both(func(r result) float64 { return r.IOPS * scale })
	if l.goal > 0 {
		b.atLeast(name+"/"+unit, ours, peer, who, l.goal)
	} else {
		tell(name+"/"+unit, ours, peer, who)
	}
	p99, peerP99 := both(func(r result) float64 { return r.P99 })
	if l.p99 {
		b.atMost(name+"/p99-us", p99, peerP99, who, 1)
	}
	// The share of the drive's own rate says how much there is left to gain.
	direct := rawRow{load: l}
	if limit := b.limits[direct.name()] * scale; limit > 0 {
		tell(name+"/share-"+unit, ours, limit, "raw-direct")
	}
	dsync := rawRow{load: l, dsync: true}
	if limit := b.limits[dsync.name()] * scale; limit > 0 && dsync.measured(m, s) {
		// Group commit makes it possible to pass the drive's own rate.
		if l.qd > 1 {
			b.atLeast(name+"/dsync-"+unit, ours, limit, "raw-O_DSYNC", 1)
		} else {
			tell(name+"/dsync-"+unit, ours, limit, "raw-O_DSYNC")
		}
	}
	cpu, peerCPU := both(func(r result) float64 { return r.CPU })
	tell(name+"/cpu-us-per-io", cpu, peerCPU, who)
	p50, peerP50 := both(func(r result) float64 { return r.P50 })
	tell(name+"/p50-us", p50, peerP50, who)
	if !l.p99 {
		tell(name+"/p99-us", p99, peerP99, who)
	}
	worst, peerWorst := both(func(r result) float64 { return r.Max })
	tell(name+"/worst-us", worst, peerWorst, who)
	others, peerOthers := both(func(r result) float64 { return r.Others })
	b.noteCrowd(name, max(others, peerOthers))
}

// noteCrowd says when other people's work, a share of the processors, has disturbed a row.
func (b *bench) noteCrowd(name string, share float64) {
	if share > crowded {
		fmt.Printf("note  %s: other processes had %.0f %% of the processors meanwhile: not a measurement to quote\n", name, 100*share)
	}
}

func median(rs []result, pick func(result) float64) float64 {
	values := make([]float64, len(rs))
	for i, r := range rs {
		values[i] = pick(r)
	}
	return medianOf(values)
}

func medianOf(values []float64) float64 {
	slices.Sort(values)
	mid := len(values) / 2
	if len(values)%2 == 1 {
		return values[mid]
	}
	return (values[mid-1] + values[mid]) / 2
}

func (b *bench) atLeast(name string, ours, peer float64, who string, goal float64) {
	b.judge(name, ours, peer, who, fmt.Sprintf(">=%.2f", goal), ours >= goal*peer)
}

func (b *bench) atMost(name string, ours, peer float64, who string, goal float64) {
	b.judge(name, ours, peer, who, fmt.Sprintf("<=%.2f", goal), ours <= goal*peer)
}

func (b *bench) judge(name string, ours, peer float64, who, goal string, ok bool) {
	b.count(ok)
	fmt.Printf("bench %s ours=%.1f peer=%.1f(%s) ratio=%.2f goal=%s %s\n", name, ours, peer, who, ours/peer, goal, word(ok))
}

// count counts a goal that was reached or missed.
func (b *bench) count(ok bool) {
	if ok {
		b.ok++
	} else {
		b.short++
	}
}

// word is how the report calls that.
func word(ok bool) string {
	if ok {
		return "ok"
	}
	return "short"
}

// tell prints a figure nobody promised.
func tell(name string, ours, peer float64, who string) {
	fmt.Printf("info  %s ours=%.1f peer=%.1f(%s) ratio=%.2f\n", name, ours, peer, who, ours/max(peer, 1e-9))
}
