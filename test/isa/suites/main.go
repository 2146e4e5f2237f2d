// Suites builds the public RISC-V test suites from checkouts of their repositories, and
// runs them on the processor of package riscv as "steadfast machine isa-test" does:
//
//	go run ./test/isa/suites -riscv-tests DIR -arch-test DIR
//
// Of riscv-tests (with its submodule env) it runs the groups of the extensions that there
// are, in the environments p and v; they judge themselves. Of riscv-arch-test it compares
// each test's signature with the one that QEMU comes to. What is expected to fail stands in
// one table (expected.go) with its reason, and a test that passes against it is a
// difference as well.
//
// It ends with "isa-suites: N pass, N fail as expected, N differ".
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"sync"
)

// test is one program of a suite.
type test struct {
	name string
	// build makes the program in a folder, and returns its file.
	build func(dir string) (file string, err error)
	// compared tells that the signature is to be QEMU's.
	compared bool
}

// counts are how tests ended.
type counts struct {
	pass, expected, differ int
}

// tally counts tests that run at the same time. Its lock covers the printing as well, so that
// the lines of two tests do not mix.
type tally struct {
	sync.Mutex
	counts
	// seen are the expected failures that were met, by name.
	seen map[string]bool
}

func main() {
	tests := flag.String("riscv-tests", "", "checkout of riscv-tests, with its submodule env")
	arch := flag.String("arch-test", "", "checkout of riscv-arch-test")
	only := flag.String("run", "", "run only the tests whose names match this expression")
	most := flag.Int64("size", 1<<20, "leave out tests of riscv-arch-test whose source has more bytes than this; 0: none")
	jobs := flag.Int("j", runtime.NumCPU(), "tests at a time")
	verbose := flag.Bool("v", false, "print every test")
	flag.Parse()
	if *tests == "" && *arch == "" {
		fmt.Fprintln(os.Stderr, "suites: say where the suites are: -riscv-tests DIR, -arch-test DIR; docs/ISA-TESTS.md says how to get them")
		os.Exit(2)
	}
	differ, err := run(*tests, *arch, *only, *most, *jobs, *verbose)
	if err != nil {
		fmt.Fprintln(os.Stderr, "suites:", err)
		os.Exit(2)
	}
	if differ != 0 {
		os.Exit(1)
	}
}

// run runs the suites that there are, and returns how many tests differ from what is expected.
func run(riscvTests, archTest, only string, most int64, jobs int, verbose bool) (differ int, err error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return 0, err
	}
	for _, tool := range []string{compiler, "qemu-system-riscv64"} {
		if _, err := exec.LookPath(tool); err != nil {
			fmt.Printf("SKIP isa-suites: no %s (apt-get install gcc-riscv64-linux-gnu libc6-dev-riscv64-cross qemu-system-misc)\n", tool)
			return 0, nil
		}
	}
	var all []test
	for _, list := range []struct {
		root string
		find func(root string, most int64) ([]test, error)
	}{{riscvTests, riscvTestsIn}, {archTest, archTestsIn}} {
		if list.root == "" {
			continue
		}
		found, err := list.find(list.root, most)
		if err != nil {
			return 0, err
		}
		all = append(all, found...)
	}
	c := &tally{seen: map[string]bool{}}
	if err := each(all, match, jobs, func(t test) error { return c.judge(t, verbose) }); err != nil {
		return 0, err
	}
	for _, e := range expected {
		if c.seen[e.name] {
			fmt.Printf("as expected: %s: %s\n", e.name, e.reason)
		}
	}
	fmt.Printf("isa-suites: %d pass, %d fail as expected, %d differ\n", c.pass, c.expected, c.differ)
	return c.differ, nil
}

// each does something for all tests that match, jobs at a time. That none matches is an
// error: an expression with a slip in it would pass else. A test that errs does not keep the
// others from being done, for a build that fails is told together with all others that do.
func each(all []test, match *regexp.Regexp, jobs int, do func(test) error) error {
	all = slices.DeleteFunc(slices.Clone(all), func(t test) bool { return !match.MatchString(t.name) })
	if len(all) == 0 {
		return fmt.Errorf("no test has a name that matches %q; a run without -run and with -v prints them", match)
	}
	jobs = max(jobs, 1)
	queue := make(chan test)
	failed := make(chan error, jobs)
	var wait sync.WaitGroup
	for range jobs {
		wait.Go(func() {
			var errs error
			for t := range queue {
				errs = errors.Join(errs, do(t))
			}
			failed <- errs
		})
	}
	for _, t := range all {
		queue <- t
	}
	close(queue)
	wait.Wait()
	close(failed)
	var errs error
	for err := range failed {
		errs = errors.Join(errs, err)
	}
	return errs
}

// judge runs a test and counts how it ended. It errs when that cannot be told: a test that
// does not build is none of the processor's failures, and must not count as one that is expected.
func (c *tally) judge(t test, verbose bool) error {
	dir, err := os.MkdirTemp("", "isa-suites")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file, err := t.build(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	failure := runOne(file, t.compared)
	c.Lock()
	defer c.Unlock()
	why, known := reason(t.name)
	switch {
	case failure == nil && !known:
		c.pass++
		if verbose {
			fmt.Println("PASS", t.name)
		}
	case failure == nil:
		c.differ++
		fmt.Printf("DIFFERS %s: it passes, and was expected to fail: %s\n", t.name, why)
	case known:
		c.expected++
		c.seen[t.name] = true
		if verbose {
			fmt.Printf("expected %s: %v\n", t.name, failure)
		}
	default:
		c.differ++
		fmt.Printf("DIFFERS %s: %v\n", t.name, failure)
	}
	return nil
}
