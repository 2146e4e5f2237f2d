// Pair hurts a pair of storage nodes while clients load it, and judges what the
// clients see: no acknowledged write lost, nothing stale, nothing torn, no
// error; and how long the slowest request took.
//
//	-kind    what is done to the pair: one kind, several with commas, or "all"
//	-rounds  run until this many rounds of each kind are in the results file
//	         for this build; what is there already is not run again
//	-client  who loads: qemu (its block layer), libiscsi, both of these, linux
//	         (the kernel of an emulated guest: minutes to start), all of these, or
//	         multipath (that guest with dm-multipath over both nodes' own portals)
//	-prove   try the harness itself: a right node must pass, a wrong one not
//	-list    only print the kinds, or the results so far (-summary)
//
// Each round waits until the pair is whole, waits a random while, does harm,
// undoes it, waits until the pair is whole again, reads everything back through
// a fresh connection (a guest: past its page cache), and appends a line for each
// client to the results file (see Row). Load never pauses. The world is network namespaces and a folder;
// both go with the process, whatever way that ends.
//
// It ends with a table and "e2e: N passed, N failed, N skipped": rounds, and
// goals of kinds that ran.
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
	"slices"
	"strings"
	"syscall"
	"time"

	"steadfast/test/testbed"
)

// run is one run of the program.
type run struct {
	settings
	rounds                  int
	goals                   bool
	logsAlways              bool
	passed, failed, skipped int
}

func main() {
	r := &run{}
	var kind, client string
	var prove, list, summary bool
	var spanMiB int64
	flag.StringVar(&kind, "kind", "all", "kinds of rounds, with commas; -list tells them")
	flag.IntVar(&r.rounds, "rounds", 1, "rounds of each kind that shall be in the results")
	flag.StringVar(&client, "client", "both", "qemu, libiscsi, steadfast, linux, multipath, several with commas, both (qemu and libiscsi) or all")
	flag.StringVar(&r.product, "product", "pair", "pair; or a stand-in: node, plain, standby, standby-silent, rollback")
	flag.StringVar(&r.results, "results", "bin/pair-results.jsonl", "file that rounds are appended to")
	flag.StringVar(&r.parent, "dir", "/var/tmp", "folder on a disk to make files in")
	flag.StringVar(&r.logsKept, "logs", "bin/pair-failed", "folder that logs go to after a failure")
	flag.Int64Var(&spanMiB, "span", 128, "size of each volume in MiB")
	flag.BoolVar(&r.goals, "goals", true, "count goals that are missed as failures; they are printed anyway")
	flag.DurationVar(&stallsFor, "stalls", stallsFor, "how long a round of stalls takes")
	flag.IntVar(&r.rateMax, "rate", 0, "bound of each lane's requests a second; 0: none")
	flag.DurationVar(&r.nop, "nop", time.Second, "silence after which the libiscsi client asks; 0: never")
	flag.DurationVar(&r.calm, "calm", 0, "begin a round only when no request takes longer than this; 0: at once")
	flag.Func("client-env", "K=V of a client's environment, may be repeated", func(kv string) error {
		r.env = append(r.env, kv)
		return nil
	})
	flag.Func("iscsid", "line that the Linux client's iscsid.conf ends with, may be repeated", func(line string) error {
		r.iscsid = append(r.iscsid, line)
		return nil
	})
	flag.BoolVar(&r.trace, "trace", false, "have the Linux client's iscsid say all, and keep its packets (client-*.pcap)")
	flag.StringVar(&r.guestCache, "cache", ".cache/guest", "folder for the Linux client's kernel")
	flag.BoolVar(&r.logsAlways, "keep-logs", false, "keep logs also of rounds that were good")
	flag.BoolVar(&prove, "prove", false, "try the harness itself")
	flag.BoolVar(&list, "list", false, "only print the kinds")
	flag.BoolVar(&summary, "summary", false, "only print the results so far, by build")
	flag.Parse()
	r.span = spanMiB << 20
	r.bin = "bin/steadfast"
	if other := os.Getenv("STEADFAST_BIN"); other != "" {
		r.bin = other
	}
	var err error
	if r.clients, err = clientsBy(client); err != nil {
		fmt.Fprintln(os.Stderr, "pair:", err)
		os.Exit(2)
	}
	switch {
	case list:
		for _, k := range kinds() {
			fmt.Printf("%-14s %s\n", k.name, k.does)
		}
		return
	case summary:
		if err := r.summaries(); err != nil {
			fmt.Fprintln(os.Stderr, "pair:", err)
			os.Exit(1)
		}
		return
	case os.Geteuid() == 0 && !testbed.Supervised():
		os.Exit(testbed.Supervise(r.parent, folderPrefix))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = r.main(ctx, kind, prove)
	stop()
	if err != nil {
		fmt.Println("FAIL pair:", err)
		r.failed++
	}
	fmt.Printf("e2e: %d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	if r.failed > 0 {
		os.Exit(1)
	}
}

// main does what the flags say.
func (r *run) main(ctx context.Context, kind string, prove bool) (err error) {
	if why := r.missing(); why != "" {
		r.skip("pair", why)
		return nil
	}
	remove, err := r.pin()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if prove {
		return r.prove(ctx)
	}
	chosen, err := choose(kind)
	if err != nil {
		return err
	}
	err = r.all(ctx, chosen)
	return errors.Join(err, r.summary(chosen))
}

// pin makes a copy of what is tried: somebody may build anew while rounds run.
func (r *run) pin() (remove func() error, err error) {
	if r.build, err = buildOf(r.bin, r.product); err != nil {
		return nil, err
	}
	folder, err := testbed.NewFolder(r.parent, folderPrefix)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(r.bin)
	if err == nil {
		r.bin = filepath.Join(folder.Path, "steadfast")
		err = os.WriteFile(r.bin, text, 0o755)
	}
	if err != nil {
		return nil, errors.Join(err, folder.Close())
	}
	return folder.Close, nil
}

// missing tells what this machine lacks.
func (r *run) missing() string {
	if os.Geteuid() != 0 {
		return "network namespaces need root"
	}
	names, group := []string{"qemu-nbd", "gcc", "mkfs.ext4"}, "pair"
	if slices.ContainsFunc(r.clients, isGuest) {
		names = append(names, "qemu-system-x86_64", "busybox", "cpio", "depmod", "iscsid")
		group += " guest"
	}
	if slices.Contains(r.clients, multipathClient) {
		names = append(names, "multipathd", "dmsetup", "udevadm")
		group += " multipath"
	}
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if _, err := os.Stat("/usr/sbin/" + name); err != nil {
				return name + " is not installed (test/need " + group + ")"
			}
		}
	}
	return ""
}

// choose finds kinds by name.
func choose(names string) ([]kind, error) {
	if names == "all" {
		return slices.DeleteFunc(kinds(), func(k kind) bool { return k.control }), nil
	}
	var out []kind
	for name := range strings.SplitSeq(names, ",") {
		at := slices.IndexFunc(kinds(), func(k kind) bool { return k.name == name })
		if at < 0 {
			return nil, fmt.Errorf("no kind %q; -list tells them", name)
		}
		out = append(out, kinds()[at])
	}
	return out, nil
}

// all runs what is missing of the chosen kinds: first those that need plain
// files, then, in a world of its own, those that need drives that fail.
func (r *run) all(ctx context.Context, chosen []kind) error {
	for _, drives := range []bool{false, true} {
		var todo []kind
		for _, k := range chosen {
			if k.drives == drives {
				todo = append(todo, k)
			}
		}
		if err := r.world(ctx, todo, drives); err != nil {
			return err
		}
	}
	return nil
}

// world runs kinds, one after another, in one world, if there is anything to do.
func (r *run) world(ctx context.Context, todo []kind, drives bool) (err error) {
	rows, err := readRows(r.results)
	if err != nil {
		return err
	}
	todo = slices.DeleteFunc(todo, func(k kind) bool { return count(rows, r.build, k.name, r.clients) >= r.rounds })
	if len(todo) == 0 {
		return nil
	}
	p, err := newRunner(ctx, r.settings, drives)
	defer func() { err = errors.Join(err, p.Close()) }()
	if err != nil {
		if p.world != nil && p.world.folder != nil {
			r.logs(p)
		}
		return err
	}
	for _, k := range todo {
		if why := p.pair.Cannot(k.name); why != "" {
			r.skip(k.name, why)
			continue
		}
		for n := count(rows, r.build, k.name, r.clients); n < r.rounds; n++ {
			if err := r.one(ctx, p, k, n); err != nil {
				return err
			}
		}
	}
	if err := p.final(ctx); err != nil {
		r.logs(p)
		return err
	}
	return nil
}

// one runs a round, and writes down and says how it was.
func (r *run) one(ctx context.Context, p *runner, k kind, n int) error {
	rows, err := p.round(ctx, k, n)
	if ctx.Err() != nil {
		return ctx.Err() // a round that was broken off says nothing
	}
	bad := err != nil
	for _, row := range rows {
		if writeErr := appendRow(r.results, row); writeErr != nil {
			return writeErr
		}
		goal := k.goalOf(row.Client)
		late := goal > 0 && row.stall() > ms(goal)
		bad = bad || late || row.Failed != ""
		r.say(row)
	}
	if bad || r.logsAlways {
		r.logs(p)
	}
	return err
}

// say counts and prints a row.
func (r *run) say(row Row) {
	verdict := "ok  "
	if row.Failed != "" {
		verdict = "FAIL"
		r.failed++
	} else {
		r.passed++
	}
	fmt.Printf("%s %s %s: stall %.0f ms (QD1) %.0f ms (QD32), before %.0f and %.0f; owner after %.0f ms, whole after %.0f ms, %d new owners; %d I/Os, %d lost, %d stale, %d torn, %d corrupt, %d errors",
		verdict, row.Kind, row.Client, row.StallQD1, row.StallQD32, row.BeforeQD1, row.BeforeQD32, row.OwnerMS, row.WholeMS, row.Epochs,
		row.IOs, row.Lost, row.Stale, row.Torn, row.Corrupt, row.Errors)
	if row.Detail != "" {
		fmt.Printf(" (%s)", row.Detail)
	}
	if row.StoodMS > stoodLong {
		fmt.Printf("; a processor stood still for %.0f ms", row.StoodMS)
	}
	fmt.Println()
	if row.Failed != "" {
		fmt.Println("     " + row.Failed)
	}
}

// skip counts what cannot be run here, and says why.
func (r *run) skip(name, why string) {
	r.skipped++
	fmt.Printf("SKIP %s: %s\n", name, why)
}

// logs keeps what tells why.
func (r *run) logs(p *runner) {
	dir, err := p.keepLogs()
	if err != nil {
		fmt.Println("     logs:", err)
		return
	}
	fmt.Println("     logs are in " + dir)
}

// summary prints the table of this build, and counts the goals of the kinds that
// were asked for.
func (r *run) summary(chosen []kind) error {
	rows, err := readRows(r.results)
	if err != nil {
		return err
	}
	list := tallies(rows, r.build)
	for _, t := range list {
		asked := slices.ContainsFunc(chosen, func(k kind) bool { return k.name == t.kind })
		if !asked || t.goalMS == 0 || !r.goals {
			continue
		}
		if t.met() {
			r.passed++
		} else {
			r.failed++
			fmt.Printf("FAIL %s %s: p99 %.0f ms of %d rounds, and the goal is %.0f ms\n", t.kind, t.client, t.p99, t.n, t.goalMS)
		}
	}
	return printTallies(os.Stdout, list)
}

// summaries prints the tables of all builds in the results.
func (r *run) summaries() error {
	rows, err := readRows(r.results)
	for _, b := range buildsIn(rows) {
		fmt.Println(b)
		err = errors.Join(err, printTallies(os.Stdout, tallies(rows, b)))
	}
	return err
}
