// Suite is what `make test` and CI run: one stage after the other, each
// counted, none hidden, and nothing left behind.
//
// Every process of a run carries the run's own temporary folder in its
// environment. At the end whoever still carries it is named, ended and counted
// as a failure, and the folder goes.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A stage is one part of the suite.
type stage struct {
	name string
	run  func(context.Context, *suite) (tally, error)
	// beside names an earlier stage with which this one begins, for it uses a processor only: what
	// it prints is shown in its turn.
	beside string
}

// stages are in the order of a run: cheapest first.
func stages() []stage {
	return []stage{
		{name: "vet", run: vet},
		{name: "gofmt", run: gofmt},
		{name: "archtest", run: archtest},
		{name: "unit", run: unit},
		{name: "race", run: race},
		{name: "fuzz", run: fuzz},
		{name: "conformance", run: conformance}, // it waits for most of its time
		{name: "sim", run: simulate, beside: "conformance"},
		{name: "guests", run: guests, beside: "conformance"},
		{name: "e2e", run: endToEnd},
		{name: "initiator", run: ownInitiator},
		{name: "pair", run: pair},
		{name: "machines", run: machines},
	}
}

// suite is one run.
type suite struct {
	tmp      string // folder of this run; all its processes carry it as TMPDIR
	fuzztime time.Duration
	seeds    int
	closing  string // last line of a stage that has one of its own
	out      io.Writer
}

// failures are all that fail printed: what a stage that runs a tool counts, that tool has shown.
var (
	failing  sync.Mutex
	failures []string
)

// fail prints what has failed.
func fail(format string, args ...any) {
	failing.Lock()
	defer failing.Unlock()
	f := fmt.Sprintf(format, args...)
	fmt.Println("FAIL " + f)
	failures = append(failures, f)
}

func main() {
	only := flag.String("only", "", "comma-separated stages; all when empty")
	s := &suite{out: os.Stdout}
	flag.DurationVar(&s.fuzztime, "fuzztime", time.Second, "time for each fuzz target")
	flag.IntVar(&s.seeds, "seeds", 24, "seeds of the simulation")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	sum, err := s.all(ctx, *only)
	stop()
	if err != nil {
		fail("test: %v", err)
		sum.failed++
	}
	for _, f := range failures { // once more, where it is seen
		fmt.Println("FAILED " + f)
	}
	fmt.Printf("test: %d passed, %d failed, %d skipped\n", sum.passed, sum.failed, sum.skipped)
	if *only == "sim" && s.closing != "" {
		fmt.Println(s.closing)
	}
	if sum.failed > 0 {
		os.Exit(1)
	}
}

// all runs the chosen stages. A stage that fails does not keep the next from
// running: one run shows all there is to mend.
func (s *suite) all(ctx context.Context, only string) (sum tally, err error) {
	if err := check(only); err != nil {
		return sum, err
	}
	if s.tmp, err = os.MkdirTemp("", "steadfast-test-"); err != nil {
		return sum, err
	}
	defer func() {
		sum.failed += s.sweep()
		err = errors.Join(err, os.RemoveAll(s.tmp))
	}()
	var chosen []stage
	for _, st := range stages() {
		if only == "" || listed(only, st.name) {
			chosen = append(chosen, st)
		}
	}
	begun := map[string]chan outcome{} // what runs beside another stage
	for i, st := range chosen {
		used := processor()
		for _, other := range chosen[i+1:] {
			if other.beside != st.name {
				continue
			}
			done := make(chan outcome, 1)
			begun[other.name] = done
			go func() {
				var text bytes.Buffer
				own := *s
				own.out = &text
				o := other.outcome(ctx, &own)
				o.text = text.String()
				done <- o
			}()
		}
		var o outcome
		if done := begun[st.name]; done != nil {
			o = <-done
		} else {
			o = st.outcome(ctx, s)
		}
		if ctx.Err() != nil {
			return sum, fmt.Errorf("%s: interrupted", st.name)
		}
		fmt.Print(o.text)
		if o.err != nil {
			o.failed++
			fail("%s: %v", st.name, o.err)
		}
		beside := ""
		if begun[st.name] != nil {
			beside = ", beside " + st.beside
		}
		fmt.Printf("%-12s %5d passed %4d failed %4d skipped  %5.1fs%s, %.1fs of processor\n", st.name, o.passed, o.failed, o.skipped, o.took.Seconds(), beside, (processor() - used).Seconds())
		sum.add(o.tally)
	}
	return sum, nil
}

// outcome is what a stage came to.
type outcome struct {
	tally
	err  error
	took time.Duration
	text string // what it would have printed
}

func (st stage) outcome(ctx context.Context, s *suite) outcome {
	began := time.Now()
	t, err := st.run(ctx, s)
	return outcome{tally: t, err: err, took: time.Since(began)}
}

// processor is the processor time that children have used which have ended, and theirs.
func processor() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u) // it never fails
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// check refuses the name of a stage that is not there: a run of nothing would
// pass.
func check(only string) error {
	if only == "" {
		return nil
	}
	var names []string
	for _, st := range stages() {
		names = append(names, st.name)
	}
	for one := range strings.SplitSeq(only, ",") {
		if !listed(strings.Join(names, ","), one) {
			return fmt.Errorf("no stage %q; there are %s", one, strings.Join(names, ", "))
		}
	}
	return nil
}

func listed(list, word string) bool {
	for one := range strings.SplitSeq(list, ",") {
		if one == word {
			return true
		}
	}
	return false
}

// command prepares a child of this run. It ends with the run, and so does what
// it started, since they share its process group.
func (s *suite) command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+s.tmp, fmt.Sprintf("SIM_SEEDS=%d", s.seeds))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// sweep ends what the run left behind and returns how many processes it was.
func (s *suite) sweep() (left int) {
	// A node's guard outlives it, for as long as its word can be of use: 3 s.
	for end := time.Now().Add(sweepPatience); len(s.carriers()) > 0 && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
	}
	for pid, cmdline := range s.carriers() {
		fail("left behind: process %d %q", pid, cmdline)
		_ = syscall.Kill(pid, syscall.SIGKILL)
		left++
	}
	return left
}

// sweepPatience is how long processes that are about to end are waited for.
const sweepPatience = 5 * time.Second

// carriers returns the command lines of the processes of this run, by pid.
func (s *suite) carriers() map[int]string {
	found := map[int]string{}
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range environs {
		env, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(env), "TMPDIR="+s.tmp) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(name, "/proc/%d/environ", &pid); err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "cmdline"))
		found[pid] = strings.ReplaceAll(string(cmdline), "\x00", " ")
	}
	return found
}
