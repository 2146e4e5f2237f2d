// Bench measures a node of this tree against tgt: same machine, same
// generator, same memory, in turn, in one run. Absolute figures drift from
// hour to hour; the ratio is what is quoted.
//
// Two modes: "cached" (write-cache on against tgt's page cache) and "durable"
// (write-cache off against tgt with sync:direct). Two working sets: one that
// fits both caches and one four times as large as all the memory a server has.
// Volumes are first written whole, with data that does not compress. Each
// figure is the median of the rounds; the order of the two swaps every round.
//
//	BENCH_SECONDS  seconds per measurement (5)
//	BENCH_ROUNDS   rounds (3)
//	BENCH_ROWS     a regular expression of rows to run (all)
//	BENCH_DIR      folder to measure in (the system's temporary one)
//
// A row reads: bench NAME ours=V peer=V(PEER) ratio=R goal=G ok|short (info where nothing was
// promised). The exit
// status tells whether measuring worked, not who won.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"steadfast/test/testbed"
)

// Memory of a server, page cache included, and the volumes it serves. The
// large set is four times the memory, so that no cache can hold it.
const (
	memoryBytes = 512 << 20
	cacheBytes  = 256 << 20
	fitsBytes   = 128 << 20
	largeBytes  = 4 * memoryBytes
)

// The initiator name that the generator uses.
const generatorName = "iqn.2026-11.io.steadfast.test:generator"

// A load is one kind of I/O, and what we promised for it.
type load struct {
	name   string
	write  bool
	bs, qd int
	random bool
	goal   float64 // at least this many times the peer
	p99    bool    // and no higher p99
}

func loads() []load {
	return []load{
		{"randread-4k-qd32", false, 4 << 10, 32, true, 1.3, true},
		{"randwrite-4k-qd32", true, 4 << 10, 32, true, 1.3, true},
		{"randread-4k-qd1", false, 4 << 10, 1, true, 1, false},
		{"randwrite-4k-qd1", true, 4 << 10, 1, true, 1, false},
		{"read-128k-qd8", false, 128 << 10, 8, false, 1, false},
		{"write-128k-qd8", true, 128 << 10, 8, false, 1, false},
	}
}

// A set is a working set.
type set struct {
	name string
	lun  int
	size int64
}

func sets() []set {
	return []set{{"fits", 1, fitsBytes}, {"large", 2, largeBytes}}
}

// A mode is what an answered write means.
type mode struct {
	name, peer string
	writeCache bool
}

func modes() []mode {
	return []mode{{"cached", "tgt", true}, {"durable", "tgt-durable", false}}
}

// bench is one run.
type bench struct {
	ctx             context.Context
	dir, tool, ours string
	seconds         float64
	rounds          int
	rows            *regexp.Regexp
	ok, short       int
}

func main() {
	ours := flag.String("ours", "steadfast", "server to measure; another one to try the harness")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	b := &bench{ctx: ctx, ours: *ours}
	err := b.run()
	stop()
	fmt.Printf("bench: %d ok, %d short\n", b.ok, b.short)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// setting reads a number from the environment.
func setting(name string, usual float64) (float64, error) {
	text := os.Getenv(name)
	if text == "" {
		return usual, nil
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || v <= 0 {
		return 0, fmt.Errorf("%s=%q: want a number above zero", name, text)
	}
	return v, nil
}

// run prepares the generator and the folder, and measures every mode.
func (b *bench) run() (err error) {
	if b.seconds, err = setting("BENCH_SECONDS", 5); err != nil {
		return err
	}
	rounds, err := setting("BENCH_ROUNDS", 3)
	if err != nil {
		return err
	}
	b.rounds = max(1, int(rounds))
	if b.rows, err = regexp.Compile(os.Getenv("BENCH_ROWS")); err != nil {
		return fmt.Errorf("BENCH_ROWS: %w", err)
	}
	if b.dir, err = os.MkdirTemp(os.Getenv("BENCH_DIR"), "steadfast-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	b.tool = filepath.Join(b.dir, "generator")
	if out, err := exec.Command("gcc", "-O2", "-o", b.tool, "test/bench/generator/generator.c", "-liscsi").CombinedOutput(); err != nil {
		return fmt.Errorf("build the generator (Debian: gcc libiscsi-dev): %w: %s", err, out)
	}
	raw, err := b.raw()
	if err != nil {
		return err
	}
	for _, m := range modes() {
		if err := b.mode(m, raw); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// chosen are the loads of a mode and set that BENCH_ROWS asks for.
func (b *bench) chosen(m mode, s set) []load {
	return slices.DeleteFunc(loads(), func(l load) bool { return !b.rows.MatchString(rowName(m, s, l)) })
}

func rowName(m mode, s set, l load) string { return m.name + "/" + s.name + "/" + l.name }

// mode measures one mode: both servers run at once and are loaded in turn.
func (b *bench) mode(m mode, raw map[string]float64) (err error) {
	var servers [2]testbed.Server // ours, peer
	for i, name := range []string{b.ours, m.peer} {
		limit := int64(memoryBytes)
		if os.Geteuid() != 0 {
			limit = 0
			fmt.Println("bench: no root: memory is not bounded, and the page cache of the peer is the machine's")
		}
		port, err := testbed.FreePort("127.0.0.1")
		if err != nil {
			return err
		}
		cfg := testbed.Config{
			Dir:        filepath.Join(b.dir, fmt.Sprintf("%s-%d", m.name, i)),
			Portals:    []string{fmt.Sprintf("127.0.0.1:%d", port)},
			Initiators: []testbed.Initiator{{Name: generatorName}},
			CacheBytes: cacheBytes, MemoryBytes: limit,
		}
		for _, s := range sets() {
			cfg.Volumes = append(cfg.Volumes, testbed.Volume{Name: s.name, Size: s.size, LUN: s.lun, WriteCache: m.writeCache})
		}
		server, err := testbed.New(b.ctx, name, cfg)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, server.Close(), os.RemoveAll(cfg.Dir)) }()
		servers[i] = server
	}
	for _, s := range sets() {
		todo := b.chosen(m, s)
		if len(todo) == 0 {
			continue
		}
		for _, server := range servers {
			if _, err := b.generate(server, s, load{name: "fill", write: true, bs: 256 << 10, qd: 8}); err != nil {
				return fmt.Errorf("fill %s of %s: %w", s.name, server.Name(), err)
			}
		}
		for _, l := range todo {
			if err := b.row(m, s, l, servers, raw); err != nil {
				return fmt.Errorf("%s: %w", rowName(m, s, l), err)
			}
		}
	}
	return nil
}

// result is what the generator and the kernel told of one measurement.
type result struct {
	Ops, Total, Errors uint64
	IOPS               float64 `json:"iops"`
	P50                float64 `json:"p50_us"`
	P99                float64 `json:"p99_us"`
	Max                float64 `json:"max_us"`
	// CPU is what the server spent on one I/O, user and system: microseconds.
	CPU float64 `json:"-"`
}

// generate runs the generator once against a server.
func (b *bench) generate(server testbed.Server, s set, l load) (result, error) {
	kind, order := "read", "sequential"
	switch {
	case l.name == "fill":
		kind = "fill"
	case l.write:
		kind = "write"
	}
	if l.random {
		order = "random"
	}
	before, err := cpuTime(server.PID())
	if err != nil {
		return result{}, err
	}
	ctx, cancel := context.WithTimeout(b.ctx, time.Duration(b.seconds*float64(time.Second))+3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.tool, server.URL(0, s.lun), "mode="+kind, "order="+order,
		fmt.Sprintf("bs=%d", l.bs), fmt.Sprintf("qd=%d", l.qd), fmt.Sprintf("seconds=%g", b.seconds),
		fmt.Sprintf("seed=%d", time.Now().UnixNano()), "initiator="+generatorName)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return result{}, fmt.Errorf("generator against %s: %w: %s", server.Name(), err, strings.TrimSpace(errs.String()))
	}
	var r result
	if err := json.Unmarshal(out, &r); err != nil {
		return result{}, fmt.Errorf("generator printed %q: %w", out, err)
	}
	after, err := cpuTime(server.PID())
	if err != nil {
		return result{}, err
	}
	if r.Ops == 0 || r.Errors > 0 {
		return result{}, fmt.Errorf("%s: %d I/Os and %d errors", server.Name(), r.Ops, r.Errors)
	}
	r.CPU = float64((after - before).Microseconds()) / float64(r.Total)
	return r, nil
}

// cpuTime returns what a process and its threads have used so far.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold spaces; fields 14 and 15 are the times,
	// in ticks of which Linux tells user space there are 100 a second.
	_, rest, _ := strings.Cut(string(text), ") ")
	field := strings.Fields(rest)
	if len(field) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(field))
	}
	user, err1 := strconv.ParseInt(field[11], 10, 64)
	system, err2 := strconv.ParseInt(field[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// row measures one load on both servers, in turn, and prints its lines.
func (b *bench) row(m mode, s set, l load, servers [2]testbed.Server, raw map[string]float64) error {
	var results [2][]result
	for round := range b.rounds {
		for turn := range 2 {
			i := (turn + round) % 2
			r, err := b.generate(servers[i], s, l)
			if err != nil {
				return err
			}
			results[i] = append(results[i], r)
		}
	}
	name := rowName(m, s, l)
	ours := func(pick func(result) float64) float64 { return median(results[0], pick) }
	peer := func(pick func(result) float64) float64 { return median(results[1], pick) }
	iops := func(r result) float64 { return r.IOPS }
	unit, scale := "iops", 1.0
	if l.bs > 64<<10 {
		unit, scale = "MB/s", float64(l.bs)/1e6
	}
	b.atLeast(name+"/"+unit, ours(iops)*scale, peer(iops)*scale, servers[1].Name(), l.goal)
	p99 := func(r result) float64 { return r.P99 }
	if l.p99 {
		b.atMost(name+"/p99-us", ours(p99), peer(p99), servers[1].Name(), 1)
	} else {
		b.tell(name+"/p99-us", ours(p99), peer(p99), servers[1].Name())
	}
	cpu := func(r result) float64 { return r.CPU }
	b.tell(name+"/cpu-us-per-io", ours(cpu), peer(cpu), servers[1].Name())
	b.tell(name+"/worst-us", ours(func(r result) float64 { return r.Max }), peer(func(r result) float64 { return r.Max }), servers[1].Name())
	// The share of the raw limit says how much there is left to gain.
	if limit := raw[l.name]; limit > 0 && s.name == "large" {
		b.tell(name+"/raw-"+unit, ours(iops)*scale, limit*scale, "raw-direct")
	}
	if limit := raw[l.name+"-dsync"]; limit > 0 && !m.writeCache && s.name == "large" {
		if l.qd == 32 {
			b.atLeast(name+"/raw-dsync-"+unit, ours(iops)*scale, limit*scale, "raw-O_DSYNC", 1)
		} else {
			b.tell(name+"/raw-dsync-"+unit, ours(iops)*scale, limit*scale, "raw-O_DSYNC")
		}
	}
	return nil
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
	word := "short"
	if ok {
		word = "ok"
		b.ok++
	} else {
		b.short++
	}
	fmt.Printf("bench %s ours=%.1f peer=%.1f(%s) ratio=%.2f goal=%s %s\n", name, ours, peer, who, ours/peer, goal, word)
}

// tell prints a figure nobody promised.
func (b *bench) tell(name string, ours, peer float64, who string) {
	fmt.Printf("bench %s ours=%.1f peer=%.1f(%s) ratio=%.2f goal=none info\n", name, ours, peer, who, ours/max(peer, 1e-9))
}
