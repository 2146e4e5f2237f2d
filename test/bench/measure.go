package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/test/testbed"
)

// result is what the generator and the kernel told of one measurement.
type result struct {
	Ops, Total, Errors uint64
	IOPS               float64 `json:"iops"`
	P50                float64 `json:"p50_us"`
	P99                float64 `json:"p99_us"`
	Max                float64 `json:"max_us"`
	// CPU is what the server spent on one I/O, user and system: microseconds.
	// What the kernel writes back later on its own threads is not in it.
	CPU float64 `json:"-"`
	// Others is the share of the machine's processors that neither the server
	// nor the generator had: other people's work, and the kernel's threads.
	Others float64 `json:"-"`
}

// row measures one load on both servers, in turn, and prints its lines. The
// drive's own rate is measured in the same rounds where it is not known yet.
func (b *bench) row(m mode, s set, l load, servers [2]testbed.Server) error {
	var results [2][]result
	limits := map[string][]float64{}
	for round := range b.rounds {
		for turn := range 2 {
			i := (turn + round) % 2
			r, err := b.turn(servers[i], servers[1-i], s, l)
			if err != nil {
				return err
			}
			results[i] = append(results[i], r)
		}
		for _, raw := range b.rawRows(m, s, l) {
			v, err := b.rawTurn(raw, servers)
			if err != nil {
				return err
			}
			limits[raw.name()] = append(limits[raw.name()], v)
		}
	}
	for name, values := range limits {
		b.limits[name] = medianOf(values)
	}
	b.report(m, s, l, results)
	return nil
}

// turn measures one server while the other is stopped.
func (b *bench) turn(server, other testbed.Server, s set, l load) (result, error) {
	resume, err := b.quiet(other)
	if err != nil {
		return result{}, err
	}
	r, err := b.generate(server, s, l)
	return r, errors.Join(err, resume())
}

// quiet stops the given servers and has the kernel write out what they left
// to it. No initiator is logged in to them, so that nobody misses an answer.
func (b *bench) quiet(servers ...testbed.Server) (resume func() error, err error) {
	signal := func(sig syscall.Signal) error {
		var errs []error
		for _, server := range servers {
			errs = append(errs, syscall.Kill(server.PID(), sig))
		}
		return errors.Join(errs...)
	}
	if err := signal(syscall.SIGSTOP); err != nil {
		return nil, err
	}
	resume = func() error { return signal(syscall.SIGCONT) }
	dir, err := os.Open(b.dir)
	if err != nil {
		return nil, errors.Join(err, resume())
	}
	defer func() { _ = dir.Close() }()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return nil, errors.Join(err, resume())
	}
	return resume, nil
}

// generate runs the generator once against a server.
func (b *bench) generate(server testbed.Server, s set, l load) (result, error) {
	used, err := meter(server.PID())
	if err != nil {
		return result{}, err
	}
	r, spent, err := b.drive(server.URL(0, s.lun), l, (*exec.Cmd).Start)
	if err != nil {
		return result{}, fmt.Errorf("%s: %w", server.Name(), err)
	}
	own, others, err := used(spent)
	if err != nil {
		return result{}, err
	}
	r.CPU, r.Others = float64(own.Microseconds())/float64(r.Total), others
	return r, nil
}

// drive runs the generator once against a volume, begun by start, and tells what
// it saw and the CPU time that it used itself.
func (b *bench) drive(url string, l load, start func(*exec.Cmd) error) (r result, spent time.Duration, err error) {
	ctx, cancel := context.WithTimeout(b.ctx, time.Duration(b.seconds*float64(time.Second))+2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.tool, append([]string{url}, b.generatorArguments(l)...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = start(cmd); err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return r, 0, fmt.Errorf("generator against %s: %w: %s", url, errors.Join(err, ctx.Err()), strings.TrimSpace(errs.String()))
	}
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
		return r, 0, fmt.Errorf("generator printed %q: %w", out.String(), err)
	}
	if r.Ops == 0 || r.Errors > 0 {
		return r, 0, fmt.Errorf("%s: %d I/Os and %d errors", url, r.Ops, r.Errors)
	}
	return r, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// fillName is the load that writes a volume whole, once.
const fillName = "fill"

// generatorArguments says a load in the generator's words.
func (b *bench) generatorArguments(l load) []string {
	kind, order := "read", "sequential"
	switch {
	case l.name == fillName:
		kind = "fill"
	case l.mixed:
		kind = "mixed"
	case l.write:
		kind = "write"
	}
	if l.random {
		order = "random"
	}
	args := []string{
		"mode=" + kind, "order=" + order, fmt.Sprintf("bs=%d", l.bs), fmt.Sprintf("qd=%d", l.qd),
		fmt.Sprintf("seconds=%g", b.seconds), "warmup=0.3", fmt.Sprintf("seed=%d", time.Now().UnixNano()), "initiator=" + generatorName,
	}
	if l.span > 0 {
		args = append(args, fmt.Sprintf("span=%d", l.span))
	}
	return args
}

// meter begins to measure a server's CPU time. What it returns is called at
// the end with the generator's, and tells the server's and the share of the
// processors that went to others.
func meter(pid int) (used func(generator time.Duration) (own time.Duration, others float64, err error), err error) {
	started := time.Now()
	own0, err1 := cpuTime(pid)
	busy0, err2 := busyTime()
	return func(generator time.Duration) (time.Duration, float64, error) {
		own, err1 := cpuTime(pid)
		busy, err2 := busyTime()
		own, busy = own-own0, busy-busy0
		machine := time.Since(started) * time.Duration(runtime.NumCPU())
		return own, float64(busy-own-generator) / float64(machine), errors.Join(err1, err2)
	}, errors.Join(err1, err2)
}

// cpuTime returns what a process and its threads have used so far.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold spaces; fields 14 and 15 are the times.
	_, rest, _ := strings.Cut(string(text), ") ")
	field := strings.Fields(rest)
	if len(field) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(field))
	}
	return ticks(field[11], field[12])
}

// busyTime returns what all processors together have spent so far, on any
// process, and what the host withheld from them.
func busyTime() (time.Duration, error) {
	field, err := machineTimes()
	if err != nil {
		return 0, err
	}
	return ticks(field[1], field[2], field[3], field[6], field[7], field[8])
}

// softTime returns the part of busyTime that the kernel spent in soft interrupts:
// most of what networks cost.
func softTime() (time.Duration, error) {
	field, err := machineTimes()
	if err != nil {
		return 0, err
	}
	return ticks(field[7])
}

// machineTimes are the times of all processors together: cpu, user, nice, system,
// idle, iowait, irq, softirq, steal.
func machineTimes() ([]string, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	field := strings.Fields(line)
	if len(field) < 9 {
		return nil, fmt.Errorf("/proc/stat: %q", line)
	}
	return field, nil
}

// ticks adds up times in the kernel's unit, a hundredth of a second.
func ticks(texts ...string) (time.Duration, error) {
	var sum time.Duration
	for _, text := range texts {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum, nil
}
