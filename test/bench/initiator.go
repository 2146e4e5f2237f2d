package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"steadfast/test/testbed"
)

// The initiator's rows: compute/initiator (initiatorload/) beside libiscsi
// (generator/) on the same volume of the same server, in turn: a node of this
// tree, and tgt. Both have one session and one connection, no digests, and the
// limits that they ask for by themselves. The volume is in the server's memory, or
// the page cache, so that the initiator is what there is to measure.
//
//	initiator-SERVER/LOAD/iops, MBps, p50-us, p99-us, cpu-us-per-io (the initiator's own)

// initiatorServers are what the initiator is measured against.
func initiatorServers() []string { return []string{"steadfast", "tgt"} }

// initiatorLoads are the loads. With one I/O at a time its latency is what was
// promised, else the rate.
func initiatorLoads() []load {
	return []load{
		{name: "randread-4k-qd1", bs: 4 << 10, qd: 1, random: true, goal: 1},
		{name: "randwrite-4k-qd1", write: true, bs: 4 << 10, qd: 1, random: true, goal: 1},
		{name: "randread-4k-qd32", bs: 4 << 10, qd: 32, random: true, goal: 1},
		{name: "randwrite-4k-qd32", write: true, bs: 4 << 10, qd: 32, random: true, goal: 1},
		{name: "read-128k-qd8", bs: 128 << 10, qd: 8, goal: 1},
		{name: "write-128k-qd8", write: true, bs: 128 << 10, qd: 8, goal: 1},
	}
}

func initiatorRow(server string, l load) string { return "initiator-" + server + "/" + l.name }

// initiatorChosen are the loads that BENCH_ROWS asks for.
func (b *bench) initiatorChosen(server string) []load {
	return slices.DeleteFunc(initiatorLoads(), func(l load) bool { return !b.wants(initiatorRow(server, l)) })
}

// initiators measures the initiator's rows.
func (b *bench) initiators() error {
	for _, server := range initiatorServers() {
		if todo := b.initiatorChosen(server); len(todo) > 0 {
			if err := b.initiatorOn(server, todo); err != nil {
				return fmt.Errorf("initiator-%s: %w", server, err)
			}
		}
	}
	return nil
}

// initiatorOn measures them on one server.
func (b *bench) initiatorOn(name string, todo []load) (err error) {
	tools := [2]string{filepath.Join(b.dir, "initiatorload"), b.tool}
	build := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-o", tools[ours], "./test/bench/initiatorload")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build initiatorload: %w: %s", err, out)
	}
	if b.ours == "peer" {
		tools[ours] = tools[theirs] // tries the harness
	}
	dir := filepath.Join(b.dir, "initiator-"+name)
	server, err := b.serve(name, dir, mode{name: "initiator", writeCache: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close(), os.RemoveAll(dir)) }()
	s := sets()[0]
	fill := load{name: fillName, write: true, bs: 256 << 10, qd: 8}
	if _, err := b.initiatorTurn(tools[theirs], server, s, fill); err != nil {
		return err
	}
	for _, l := range todo {
		var results [2][]result
		for round := range b.rounds {
			for turn := range 2 {
				i := (turn + round) % 2
				r, err := b.initiatorTurn(tools[i], server, s, l)
				if err != nil {
					return err
				}
				results[i] = append(results[i], r)
			}
		}
		b.initiatorReport(initiatorRow(name, l), l, results)
	}
	return nil
}

// initiatorTurn runs one initiator once. The CPU time of its result is its own.
func (b *bench) initiatorTurn(tool string, server testbed.Server, s set, l load) (result, error) {
	with := *b
	with.tool = tool
	used, err := meter(server.PID())
	if err != nil {
		return result{}, err
	}
	r, spent, err := with.drive(server.URL(0, s.lun), l, (*exec.Cmd).Start)
	if err != nil {
		return result{}, err
	}
	_, r.Others, err = used(spent)
	r.CPU = float64(spent) / float64(time.Microsecond) / float64(r.Total)
	return r, err
}

// initiatorReport prints the lines of one row.
func (b *bench) initiatorReport(name string, l load, results [2][]result) {
	const who = "libiscsi"
	both := func(pick func(result) float64) (float64, float64) {
		return median(results[ours], pick), median(results[theirs], pick)
	}
	unit, scale := "iops", 1.0
	if l.bs > 64<<10 {
		unit, scale = "MBps", float64(l.bs)/1e6
	}
	rate, peerRate := both(func(r result) float64 { return r.IOPS * scale })
	p50, peerP50 := both(func(r result) float64 { return r.P50 })
	if l.qd == 1 {
		b.atMost(name+"/p50-us", p50, peerP50, who, l.goal)
		tell(name+"/"+unit, rate, peerRate, who)
	} else {
		b.atLeast(name+"/"+unit, rate, peerRate, who, l.goal)
		tell(name+"/p50-us", p50, peerP50, who)
	}
	p99, peerP99 := both(func(r result) float64 { return r.P99 })
	tell(name+"/p99-us", p99, peerP99, who)
	cpu, peerCPU := both(func(r result) float64 { return r.CPU })
	tell(name+"/cpu-us-per-io", cpu, peerCPU, who)
	others, peerOthers := both(func(r result) float64 { return r.Others })
	b.noteCrowd(name, max(others, peerOthers))
}
