package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// archPackage holds the layer rules; it runs before all other tests.
const archPackage = "steadfast/internal/archtest"

// output runs a command and returns what it printed to standard output; what
// it printed to standard error is in the error.
func (s *suite) output(ctx context.Context, argv ...string) (string, error) {
	cmd := s.command(ctx, argv...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, errs.String())
	}
	return out.String(), nil
}

// packages lists the tree's packages.
func (s *suite) packages(ctx context.Context) ([]string, error) {
	out, err := s.output(ctx, "go", "list", "./...")
	return strings.Fields(out), err
}

func vet(ctx context.Context, s *suite) (tally, error) {
	if _, err := s.output(ctx, "go", "vet", "./..."); err != nil {
		return tally{}, err
	}
	return tally{passed: 1}, nil
}

// gofmt judges every Go file of the tree but generated ones.
func gofmt(ctx context.Context, s *suite) (tally, error) {
	files, err := s.output(ctx, "git", "ls-files", "-co", "--exclude-standard", "*.go")
	if err != nil {
		return tally{}, err
	}
	argv := []string{"gofmt", "-l"}
	for _, f := range strings.Fields(files) {
		if _, err := os.Stat(f); err == nil && !strings.HasSuffix(f, ".pb.go") && !strings.HasSuffix(f, ".connect.go") {
			argv = append(argv, f)
		}
	}
	out, err := s.output(ctx, argv...)
	if err == nil && strings.TrimSpace(out) != "" {
		err = fmt.Errorf("not formatted (make format): %s", strings.Join(strings.Fields(out), " "))
	}
	if err != nil {
		return tally{}, err
	}
	return tally{passed: 1}, nil
}

func archtest(ctx context.Context, s *suite) (tally, error) {
	return s.goTest(ctx, archPackage)
}

// unit runs all packages' tests but the simulation's, which have a stage.
func unit(ctx context.Context, s *suite) (tally, error) {
	all, err := s.packages(ctx)
	if err != nil {
		return tally{}, err
	}
	all = slices.DeleteFunc(all, func(p string) bool { return p == archPackage || isSim(p) })
	return s.goTest(ctx, append([]string{"-timeout", "5m"}, all...)...)
}

// race runs the same tests with the race detector, in their short form: it
// slows a test five to ten times. A simulation runs on one thread, where there
// is nothing for it to see.
func race(ctx context.Context, s *suite) (tally, error) {
	if _, err := exec.LookPath("gcc"); err != nil {
		fmt.Println("SKIP race: the race detector needs a C compiler, and there is no gcc")
		return tally{skipped: 1}, nil
	}
	all, err := s.packages(ctx)
	if err != nil {
		return tally{}, err
	}
	all = slices.DeleteFunc(all, func(p string) bool {
		return p == archPackage || isSim(p) || strings.HasPrefix(p, "steadfast/test/")
	})
	return s.goTest(ctx, append([]string{"-race", "-short", "-timeout", "12m"}, all...)...)
}

func isSim(p string) bool { return p == "steadfast/sim" || strings.HasPrefix(p, "steadfast/sim/") }

// simulate runs the simulated worlds; the number of seeds goes by SIM_SEEDS.
// Each ends with a count of its seeds; their sum is the closing line.
func simulate(ctx context.Context, s *suite) (tally, error) {
	t, said, err := s.goTestSaying(ctx, "sim: ", "-count", "1", "-timeout", "60m", "./sim/...")
	seeds, failed := sumSeeds(said)
	if err == nil && seeds == 0 {
		err = errors.New("the simulation ended without counting its seeds")
	}
	s.closing = fmt.Sprintf("sim: %d seeds, %d failed", seeds, failed)
	return t, err
}

// sumSeeds adds up the lines that count seeds.
func sumSeeds(lines []string) (seeds, failed int) {
	for _, line := range lines {
		var n, bad int
		if _, err := fmt.Sscanf(line, "sim: %d seeds, %d failed", &n, &bad); err == nil {
			seeds, failed = seeds+n, failed+bad
		}
	}
	return seeds, failed
}

// fuzz runs every fuzz target of the tree for a while.
func fuzz(ctx context.Context, s *suite) (sum tally, err error) {
	files, err := s.output(ctx, "git", "grep", "--untracked", "-oE", "^func Fuzz[A-Za-z0-9_]*", "--", "*_test.go")
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == 1 { // none found
			fmt.Println("SKIP fuzz: no fuzz targets in the tree")
			return tally{skipped: 1}, nil
		}
		return sum, err
	}
	cache, err := s.output(ctx, "go", "env", "GOCACHE")
	if err != nil {
		return sum, err
	}
	var dirs []string
	targets := map[string][]string{} // by folder
	for line := range strings.Lines(files) {
		file, name, _ := strings.Cut(strings.TrimSpace(line), ":func ")
		dir := path.Dir(file)
		if targets[dir] == nil {
			dirs = append(dirs, dir)
		}
		targets[dir] = append(targets[dir], name)
	}
	// Two packages at a time: what takes time is to build them, by one thread at the end.
	var mu sync.Mutex
	var all sync.WaitGroup
	slots := make(chan struct{}, 2)
	for n, dir := range dirs {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			bin := filepath.Join(s.tmp, fmt.Sprintf("fuzz-%d", n))
			_, built := s.output(ctx, "go", "test", "-c", "-fuzz", ".", "-o", bin, "./"+dir)
			defer func() { _ = os.Remove(bin) }() // some are large, if there is one
			for _, name := range targets[dir] {
				out, err := "", built
				if err == nil {
					out, err = s.fuzzOne(ctx, bin, dir, name, filepath.Join(strings.TrimSpace(cache), "fuzz", "steadfast", dir))
				}
				mu.Lock()
				switch {
				case ctx.Err() != nil:
				case err != nil && !endedByDeadline(out):
					sum.failed++
					fail("fuzz %s in %s: %v", name, dir, err)
					fmt.Print(out)
				default:
					sum.passed++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return sum, ctx.Err()
}

// fuzzOne runs a target of a test binary, as "go test -fuzz" does, which builds it for each anew.
func (s *suite) fuzzOne(ctx context.Context, bin, dir, name, cache string) (string, error) {
	cmd := s.command(ctx, bin, "-test.run", "^$", "-test.fuzz", "^"+name+"$", "-test.fuzztime", s.fuzztime.String(), "-test.parallel", "1",
		// Where goroutines make coverage a matter of chance, every input looks new, and each
		// would be minimized for a minute.
		"-test.fuzzminimizetime", "10x", "-test.fuzzcachedir", cache)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// endedByDeadline tells whether a fuzz run says that it failed for the one reason that its
// time was over: before Go 1.27 its coordinator takes the end of -fuzztime for an error now
// and then (go.dev/issue/75804). What a target finds has a failing input, or a trace.
func endedByDeadline(out string) bool {
	_, after, failed := strings.Cut(out, "\n--- FAIL: ")
	lines := strings.Split(after, "\n")
	return failed && len(lines) > 2 && strings.TrimSpace(lines[1]) == "context deadline exceeded" && lines[2] == "FAIL"
}

func conformance(ctx context.Context, s *suite) (tally, error) {
	return s.harness(ctx, "iscsi-test-cu", "libiscsi-bin", "./test/conformance")
}

func endToEnd(ctx context.Context, s *suite) (tally, error) {
	return s.harness(ctx, "iscsi-ls", "libiscsi-bin", "./test/e2e", "-tools")
}

// ownInitiator drives a node by the initiator of this tree, which needs no tools and no root.
func ownInitiator(ctx context.Context, s *suite) (tally, error) {
	return s.harness(ctx, "go", "golang", "./test/initiator", "-kills", "1")
}

// pairRate bounds each lane's requests a second: the round is about the fault, and
// CI's machines are small.
const pairRate = "300"

// pair hurts a pair of nodes once in each way, under verified load. What may never
// be is judged; how long a stall was is printed, and judged on quiet machines by
// "make e2e ROUNDS=n".
func pair(ctx context.Context, s *suite) (tally, error) {
	if os.Geteuid() != 0 {
		fmt.Println("SKIP pair: network namespaces need root")
		return tally{skipped: 1}, nil
	}
	return s.harness(ctx, "qemu-nbd", "qemu-utils", "./test/pair", "-rounds", "1", "-client", "qemu,libiscsi,steadfast", "-goals=false", "-rate", pairRate, "-results", s.tmp+"/pair.jsonl")
}

// machines has a Debian guest run on a mirrored volume, and hurts the storage and the host
// under it; then on two hosts at once, and hurts those. As with pair, what may never be is
// judged, and stalls are judged by "make e2e".
func machines(ctx context.Context, s *suite) (tally, error) {
	if os.Geteuid() != 0 {
		fmt.Println("SKIP machines: network namespaces, bridges and taps need root")
		return tally{skipped: 1}, nil
	}
	return s.harness(ctx, "apt-get", "apt", "./test/machines", "-kind", "ci", "-fio=false", "-goals=false")
}

// guests boots a Debian guest in the machine, built from the archive that this host's apt
// knows the first time, and has it serve Redis.
func guests(ctx context.Context, s *suite) (tally, error) {
	return s.harness(ctx, "apt-get", "apt", "./test/guestlife", "-short")
}

// building is had by who writes into bin.
var building sync.Mutex

// harness runs a program of test/ that ends with a line of counts, and takes
// the counts over. Without the initiator it drives it is one skip, said.
func (s *suite) harness(ctx context.Context, tool, pkg string, argv ...string) (tally, error) {
	if _, err := exec.LookPath(tool); err != nil {
		_, _ = fmt.Fprintf(s.out, "SKIP %s: %s is not installed (Debian: %s)\n", argv[0], tool, pkg)
		return tally{skipped: 1}, nil
	}
	// The harness is built first: go run reports a killed child as its own 1.
	bin := s.tmp + "/" + argv[0][strings.LastIndexByte(argv[0], '/')+1:]
	building.Lock()
	_, err := s.output(ctx, "go", "build", "-o", bin, argv[0])
	if err == nil {
		_, err = s.output(ctx, "go", "build", "-trimpath", "-o", "bin/", "./cmd/steadfast")
	}
	building.Unlock()
	if err != nil {
		return tally{}, err
	}
	cmd := s.command(ctx, append([]string{bin}, argv[1:]...)...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return tally{}, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return tally{}, err
	}
	t, counted, err := echo(s.out, pipe)
	waitErr := cmd.Wait()
	switch {
	case err != nil:
		return t, err
	case !counted:
		return t, fmt.Errorf("%s ended without counts: %w", argv[0], errors.Join(waitErr, errors.New("no closing line")))
	case waitErr != nil && t.failed == 0:
		return t, fmt.Errorf("%s: %w", argv[0], waitErr)
	}
	return t, nil
}

// echo copies a harness's output and reads the counts of its closing line.
func echo(w io.Writer, r io.Reader) (t tally, counted bool, err error) {
	closing := regexp.MustCompile(`^\w+: (\d+) passed, (\d+) failed, (\d+) skipped$`)
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		line := scan.Text()
		_, _ = fmt.Fprintln(w, "    "+line)
		if m := closing.FindStringSubmatch(line); m != nil {
			counted = true
			t.passed, _ = strconv.Atoi(m[1])
			t.failed, _ = strconv.Atoi(m[2])
			t.skipped, _ = strconv.Atoi(m[3])
		}
	}
	return t, counted, scan.Err()
}
