// Bench measures a node of this tree against tgt: same machine, same
// generator, same memory, in turn, in one run. Absolute figures drift from
// hour to hour; the ratio is what is quoted.
//
// Two modes: "cached" (write-cache on against tgt's page cache) and "durable"
// (write-cache off against tgt with sync:direct). Two working sets: one that
// fits both caches and one four times as large as all the memory a server has.
// Volumes are first written whole, with data that does not compress. Each
// figure is the median of the rounds; the order of the two swaps every round,
// and the one that is not measured is stopped meanwhile, so that whatever a
// server does in the background falls into its own turns.
//
//	BENCH_SECONDS  seconds per measurement (2)
//	BENCH_ROUNDS   rounds (5; 3 of mirrored rows)
//	BENCH_ROWS     a regular expression of rows to run (all)
//	BENCH_GUEST    folder with a guest for the machine's rows (that of make machine-check)
//	BENCH_DIR      folder to measure in (/var/tmp: it lies on a drive)
//
// What was promised is a row
//
//	bench NAME ours=V peer=V(PEER) ratio=R goal=G ok|short
//
// and what is only told (CPU time per I/O, the worst latency, the share of the
// drive's own limit) is the same line with "info" for its first word and
// nothing after the ratio. The exit status tells whether measuring worked, not
// who won.
//
// Then come the rows of our initiator, beside libiscsi: see initiator.go; the
// mirrored rows, which are held against a volume of one node and against the
// link's and the drives' own limits: see pair.go; those of the machine, beside
// QEMU: see machine.go and machineblk.go; and those of a machine in two processes, beside
// itself in one: see ft.go.
package main

import (
	"context"
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
	"syscall"
	"time"

	"steadfast/compute/vmm"
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
	goal   float64 // at least this many times the peer; 0: it is only told
	p99    bool    // and no higher p99
	// Of mirrored rows only.
	mixed bool  // half of them reads
	span  int64 // bytes of the volume that are used; 0: all
}

// loads are in the order in which a volume meets them: reads while it is as it
// was written, then small overwrites, which a log scatters, and what they make
// of large reads.
func loads() []load {
	return []load{
		{name: "randread-4k-qd32", bs: 4 << 10, qd: 32, random: true, goal: 1.3, p99: true},
		{name: "randread-4k-qd1", bs: 4 << 10, qd: 1, random: true, goal: 1},
		{name: "read-128k-qd8", bs: 128 << 10, qd: 8, goal: 1},
		{name: "randwrite-4k-qd32", write: true, bs: 4 << 10, qd: 32, random: true, goal: 1.3, p99: true},
		{name: "randwrite-4k-qd1", write: true, bs: 4 << 10, qd: 1, random: true, goal: 1},
		{name: "overwritten-read-128k-qd8", bs: 128 << 10, qd: 8},
		{name: "write-128k-qd8", write: true, bs: 128 << 10, qd: 8, goal: 1},
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
	limits          map[string]float64 // the drive's own rates, by rawRow.name
	ok, short       int
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == vmm.Command { // a machine's process, of ft.go
		if err := vmm.Run(os.Stderr); err != nil {
			os.Exit(1) // vmm.Run has said why
		}
		return
	}
	ours := flag.String("ours", "steadfast", "server to measure; peer tries the harness: its ratios must be near 1")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	b := &bench{ctx: ctx, ours: *ours, limits: map[string]float64{}}
	started := time.Now()
	err := b.run()
	stop()
	fmt.Printf("bench: %d ok, %d short, in %v\n", b.ok, b.short, time.Since(started).Round(time.Second))
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
	if b.seconds, err = setting("BENCH_SECONDS", 2); err != nil {
		return err
	}
	rounds, err := setting("BENCH_ROUNDS", 5)
	if err != nil {
		return err
	}
	b.rounds = max(1, int(rounds))
	if b.rows, err = regexp.Compile(os.Getenv("BENCH_ROWS")); err != nil {
		return fmt.Errorf("BENCH_ROWS: %w", err)
	}
	folder := os.Getenv("BENCH_DIR")
	if folder == "" {
		folder = "/var/tmp"
	}
	if b.dir, err = os.MkdirTemp(folder, "steadfast-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := b.storage(folder); err != nil {
		return err
	}
	if err := b.machines(); err != nil {
		return err
	}
	return b.faultTolerance()
}

// storage measures the rows of volumes.
func (b *bench) storage(folder string) error {
	if os.Geteuid() != 0 {
		fmt.Println("SKIP all but machine-*: tgt's control socket and equal memory limits need root")
		return nil
	}
	asked := slices.ContainsFunc(modes(), b.asked) || slices.ContainsFunc(pairRows(), func(r pairRow) bool { return b.wants(r.name) }) ||
		slices.ContainsFunc(initiatorServers(), func(s string) bool { return len(b.initiatorChosen(s)) > 0 })
	if !asked {
		return nil
	}
	b.tool = filepath.Join(b.dir, "generator")
	out, err := exec.CommandContext(b.ctx, "gcc", "-O2", "-o", b.tool, "test/bench/generator/generator.c", "-liscsi").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the generator (Debian: gcc libiscsi-dev): %w: %s", err, out)
	}
	if err := b.alone(); err != nil {
		return err
	}
	if err := b.initiators(); err != nil {
		return err
	}
	return b.mirrored(folder)
}

// alone measures one node, in every mode.
func (b *bench) alone() error {
	if !slices.ContainsFunc(modes(), b.asked) {
		return nil
	}
	if err := b.prepareRaw(); err != nil {
		return err
	}
	for _, m := range modes() {
		if err := b.mode(m); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// chosen are the loads of a mode and set that BENCH_ROWS asks for.
func (b *bench) chosen(m mode, s set) []load {
	return slices.DeleteFunc(loads(), func(l load) bool { return !b.rows.MatchString(rowName(m, s, l)) })
}

// asked tells whether BENCH_ROWS asks for any load of a mode.
func (b *bench) asked(m mode) bool {
	return slices.ContainsFunc(sets(), func(s set) bool { return len(b.chosen(m, s)) > 0 })
}

func rowName(m mode, s set, l load) string { return m.name + "/" + s.name + "/" + l.name }

// mode measures one mode: both servers are there at once, loaded in turn.
func (b *bench) mode(m mode) (err error) {
	if !b.asked(m) {
		return nil
	}
	var servers [2]testbed.Server // ours, peer
	ours := b.ours
	if ours == "peer" {
		ours = m.peer
	}
	for i, name := range []string{ours, m.peer} {
		dir := filepath.Join(b.dir, fmt.Sprintf("%s-%d", m.name, i))
		server, err := b.serve(name, dir, m)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, server.Close(), os.RemoveAll(dir)) }()
		servers[i] = server
	}
	for _, s := range sets() {
		todo := b.chosen(m, s)
		if len(todo) == 0 {
			continue
		}
		for i := range servers {
			fmt.Printf("fill  %s/%s of %s\n", m.name, s.name, servers[i].Name())
			fill := load{name: fillName, write: true, bs: 256 << 10, qd: 8}
			if _, err := b.turn(servers[i], servers[1-i], s, fill); err != nil {
				return fmt.Errorf("fill %s of %s: %w", s.name, servers[i].Name(), err)
			}
		}
		for _, l := range todo {
			if err := b.row(m, s, l, servers); err != nil {
				return fmt.Errorf("%s: %w", rowName(m, s, l), err)
			}
		}
	}
	return nil
}

// serve starts a server with the volumes of a mode.
func (b *bench) serve(name, dir string, m mode) (testbed.Server, error) {
	port, err := testbed.FreePort("127.0.0.1")
	if err != nil {
		return nil, err
	}
	cfg := testbed.Config{
		Dir:        dir,
		Portals:    []string{fmt.Sprintf("127.0.0.1:%d", port)},
		Initiators: []testbed.Initiator{{Name: generatorName}},
		CacheBytes: cacheBytes, MemoryBytes: memoryBytes,
	}
	for _, s := range sets() {
		cfg.Volumes = append(cfg.Volumes, testbed.Volume{Name: s.name, Size: s.size, LUN: s.lun, WriteCache: m.writeCache})
	}
	return testbed.New(b.ctx, name, cfg)
}
