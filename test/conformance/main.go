// Conformance runs every suite of libiscsi's iscsi-test-cu against a server
// and counts honestly.
//
// Nine ways. One process per suite and all in one process ("shot"), each
// through one portal and through two; and the read-only suite on a
// write-protected volume. The others judge a pair of nodes that show a group of
// mirrored volumes as ALUA paths: through alias and owner's portal, where all of
// it must be as on one node; and through the other node's, which is on standby,
// alone and beside the owner's: what a unit tells of itself, and reservations, must
// be there as well. A program of ours does what the tool cannot: sessions of one
// host through both nodes, and the owner's death.
//
// The tool counts a test that skipped itself as passed. Here a skip is a skip, and
// one that skips.txt does not name for that way is a failure: an unimplemented
// command must not look green.
//
// Each way has a server of its own. MultipathIO.CompareAndWrite of libiscsi 1.19
// zeroes 256 blocks and compares 257, so that it passes on a unit where it has not
// run before, and fails wherever it has (corrected in libiscsi after 1.19).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"steadfast/test/testbed"
)

// A way is one manner of running the suites.
type way struct {
	name    string
	portals int
	shot    bool // all suites in one process
	lun     int
	only    string // run only suites of these globs, or all
	pair    bool   // of two nodes; with
	paths   []int  // its portals
	// run judges by itself, instead of the tool.
	run func(ctx context.Context, o options, w way, dir string, s server) (tally, error)
}

// The two units of the server under test.
const (
	lunPlain    = 1
	lunReadOnly = 2
)

func ways() []way {
	return []way{
		{name: "suite1", portals: 1, lun: lunPlain},
		{name: "suite2", portals: 2, lun: lunPlain},
		{name: "shot1", portals: 1, shot: true, lun: lunPlain},
		{name: "shot2", portals: 2, shot: true, lun: lunPlain},
		{name: "readonly", portals: 1, lun: lunReadOnly, only: "ReadOnly"},
		{name: "group", pair: true, shot: true, paths: []int{pathAlias, pathOwner}, lun: lunPlain},
		{name: "standby1", pair: true, paths: []int{pathStandby}, lun: lunPlain, only: "Pr[io]*,Inquiry,ReadCapacity*,ReportSupportedOpcodes"},
		{name: "paths", pair: true, paths: []int{pathOwner, pathStandby}, lun: lunPlain, run: runPaths},
		{name: "standby2", pair: true, paths: []int{pathOwner, pathStandby}, lun: lunPlain, only: "Pr[io]*"},
	}
}

// A server is what is judged.
type server interface {
	// PID is a process that serves, or 0 when one is gone.
	PID() int
	// URL names a volume for libiscsi, through one of its portals.
	URL(portal, lun int) string
	Close() error
}

// options are what the command line says.
type options struct {
	peer, suites, ways, skips, logs string
	writeCache                      bool
	suiteTimeout, shotTimeout       time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.peer, "peer", "steadfast", "server to judge: steadfast, tgt or tgt-durable")
	flag.StringVar(&o.suites, "suites", "", "comma-separated suites; all when empty")
	flag.StringVar(&o.ways, "ways", "", "comma-separated ways: suite1,suite2,shot1,shot2,readonly,group,standby1,standby2,paths; all when empty")
	flag.StringVar(&o.skips, "skips", "test/conformance/skips.txt", "list of skips that are no failures")
	flag.StringVar(&o.logs, "logs", ".cache/conformance", "folder for the tool's whole output")
	flag.BoolVar(&o.writeCache, "write-cache", false, "judge a volume with its write cache on")
	flag.DurationVar(&o.suiteTimeout, "suite-timeout", 3*time.Minute, "a suite that takes longer hangs")
	flag.DurationVar(&o.shotTimeout, "shot-timeout", 12*time.Minute, "an all-in-one run that takes longer hangs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	total, err := judge(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		total.failed++
	}
	fmt.Printf("conformance: %d passed, %d failed, %d skipped\n", total.passed, total.failed, total.skipped)
	if total.failed > 0 {
		os.Exit(1)
	}
}

// judge runs all ways and returns the sums.
func judge(ctx context.Context, o options) (tally, error) {
	var sum tally
	all, err := list(ctx)
	if err != nil {
		return sum, err
	}
	skips, err := readSkips(o.skips)
	if err != nil {
		return sum, err
	}
	if err := os.MkdirAll(o.logs, 0o755); err != nil {
		return sum, err
	}
	started := time.Now()
	for _, w := range ways() {
		if o.ways != "" && !contains(o.ways, w.name) || w.pair && o.peer != "steadfast" || w.run != nil && o.suites != "" {
			continue
		}
		if what := w.lacks(); what != "" {
			fmt.Printf("SKIP %s: %s\n", w.name, what)
			sum.skipped++
			continue
		}
		t, err := runWay(ctx, o, w, all, skips)
		sum.add(t)
		fmt.Printf("%-9s %4d passed %4d failed %4d skipped  %v\n", w.name, t.passed, t.failed, t.skipped, time.Since(started).Round(time.Second))
		if err != nil {
			return sum, fmt.Errorf("%s: %w", w.name, err)
		}
	}
	if o.ways == "" && o.suites == "" {
		for _, s := range skips.unused() {
			fmt.Printf("note: %s lists %s, which no run skipped: take it off\n", o.skips, s)
		}
	}
	return sum, nil
}

// runWay makes a server of its own, so that no way stands on what an earlier
// one left behind, and runs one way against it.
func runWay(ctx context.Context, o options, w way, all []suite, skips *skipList) (sum tally, err error) {
	dir, err := os.MkdirTemp("", "steadfast-conformance-")
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	start := serve
	if w.pair {
		start = servePair
	}
	server, err := start(ctx, o, dir)
	if err != nil {
		keepServerLog(dir, filepath.Join(o.logs, w.name+".server.log"))
		return sum, fmt.Errorf("%w (its output: %s/%s.server.log)", err, o.logs, w.name)
	}
	defer func() { err = errors.Join(err, server.Close()) }()

	preload, err := w.preload(ctx, dir)
	if err != nil {
		return sum, err
	}
	var urls []string
	for i := range w.portals {
		urls = append(urls, server.URL(i, w.lun))
	}
	for _, p := range w.paths {
		urls = append(urls, server.URL(p, w.lun))
		if err := reached(ctx, server.URL(p, w.lun), preload); err != nil {
			return sum, err
		}
	}
	if w.run != nil {
		sum, err := w.run(ctx, o, w, dir, server)
		if sum.failed > 0 || err != nil {
			keepServerLog(dir, filepath.Join(o.logs, w.name+".server.log"))
		}
		return sum, err
	}
	var chosen []suite
	for _, s := range all {
		if matches(w.only, s.name) && (o.suites == "" || contains(o.suites, s.name)) {
			chosen = append(chosen, s)
		}
	}
	log := filepath.Join(o.logs, w.name+".log")
	_ = os.Remove(log)
	if w.shot && o.suites == "" {
		outcomes, err := runTool(ctx, "ALL", urls, preload, log, o.shotTimeout)
		if err != nil {
			return sum, err
		}
		sum = count(w, chosen, outcomes, skips)
	} else {
		for _, s := range chosen {
			outcomes, err := runTool(ctx, "ALL."+s.name, urls, preload, log, o.suiteTimeout)
			if err != nil {
				return sum, err
			}
			sum.add(count(w, []suite{s}, outcomes, skips))
		}
	}
	// A server that died has failed, whatever the tests said.
	if pid := server.PID(); pid == 0 || syscall.Kill(pid, 0) != nil {
		sum.failed++
		fmt.Printf("FAIL %s: the server is gone\n", w.name)
	}
	if sum.failed > 0 {
		keepServerLog(dir, filepath.Join(o.logs, w.name+".server.log"))
	}
	return sum, nil
}

// keepServerLog saves what the server said, for whoever reads the failures.
func keepServerLog(dir, to string) {
	if text, err := os.ReadFile(filepath.Join(dir, "server.log")); err == nil {
		_ = os.WriteFile(to, text, 0o644)
	}
}

// serve starts the server under test with two portals and the tool's two
// initiator names admitted.
func serve(ctx context.Context, o options, dir string) (server, error) {
	hosts := []string{"127.0.0.1", "127.0.0.2"}
	port, err := testbed.FreePort(hosts...)
	if err != nil {
		return nil, err
	}
	cfg := testbed.Config{Dir: dir, Volumes: volumes(o)}
	for _, name := range toolNames {
		cfg.Initiators = append(cfg.Initiators, testbed.Initiator{Name: name})
	}
	for _, h := range hosts {
		cfg.Portals = append(cfg.Portals, fmt.Sprintf("%s:%d", h, port))
	}
	return testbed.New(ctx, o.peer, cfg)
}

// toolNames are the names that the tool logs in by.
var toolNames = []string{toolName, toolName + "-2"}

const toolName = "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test"

// volumes are what the server under test has.
func volumes(o options) []testbed.Volume {
	return []testbed.Volume{
		{Name: "plain", Size: 1 << 30, LUN: lunPlain, WriteCache: o.writeCache},
		{Name: "protected", Size: 64 << 20, LUN: lunReadOnly, ReadOnly: true},
	}
}

// matches tells whether a suite is one of a comma-separated list of globs; all are
// of an empty one.
func matches(globs, suite string) bool {
	for glob := range strings.SplitSeq(globs, ",") {
		if ok, err := path.Match(glob, suite); ok && err == nil {
			return true
		}
	}
	return globs == ""
}

// contains tells whether a comma-separated list holds a word.
func contains(list, word string) bool {
	for one := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(one) == word {
			return true
		}
	}
	return false
}
