package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// mixPrograms are the programs of compute/riscv/testdata/bench.c, as mix.c names them.
var mixPrograms = []string{"loop", "crc", "heapsort", "matmul", "list", "dhrystone"}

func mixRows() []string {
	var rows []string
	for _, p := range mixPrograms {
		rows = append(rows, "machine-mips-"+p)
	}
	return rows
}

// mixGoal is the rate of all programs together that was promised.
const mixGoal = 200

// mixTime bounds one run of all programs.
const mixTime = time.Minute

// mixRun is what one run of all programs told: the seconds of each, how many instructions
// its machine says it has executed, and what it has computed.
type mixRun struct {
	seconds, instructions map[string]float64
	results               map[string]string
}

// buildMix makes the "kernel" that runs the programs.
func (m *machineBench) buildMix() (string, error) {
	elf, raw := filepath.Join(m.dir, "mix.elf"), filepath.Join(m.dir, "mix.img")
	for _, args := range [][]string{
		{
			"riscv64-linux-gnu-gcc", "-O2", "-march=rv64gc", "-mabi=lp64d", "-mcmodel=medany", "-ffreestanding", "-nostdlib", "-static", "-fno-pic",
			"-Wl,-T,test/bench/mix/mix.ld", "-Wl,--build-id=none,--no-relax,--no-warn-rwx-segments", "-o", elf,
			"test/bench/mix/start.s", "test/bench/mix/mix.c", "compute/riscv/testdata/bench.c",
		},
		{"riscv64-linux-gnu-objcopy", "-O", "binary", elf, raw},
	} {
		if out, err := exec.CommandContext(m.ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	return raw, nil
}

// mix measures the programs.
func (m *machineBench) mix() error {
	kernel, err := m.buildMix()
	if err != nil {
		return err
	}
	var runs [2][]mixRun
	for round := range m.rounds {
		for turn := range 2 {
			side := (turn + round) % 2
			r, err := m.runMix(side, kernel)
			if err != nil {
				return fmt.Errorf("%s: %w", sideNames[side], err)
			}
			runs[side] = append(runs[side], r)
		}
	}
	counts := runs[ours][0].instructions // the same in each run
	var all [2]float64
	total := 0.0
	for _, p := range mixPrograms {
		if a, b := runs[ours][0].results[p], runs[theirs][0].results[p]; a != b {
			return fmt.Errorf("%s computes %s on ours and %s on QEMU", p, a, b)
		}
		var rate [2]float64
		for side := range rate {
			var seconds []float64
			for _, r := range runs[side] {
				seconds = append(seconds, r.seconds[p])
			}
			s := medianOf(seconds)
			all[side] += s
			rate[side] = counts[p] / 1e6 / s
		}
		total += counts[p]
		tell("machine-mips-"+p, rate[ours], rate[theirs], qemuName)
	}
	mips := total / 1e6 / all[ours]
	m.judge("machine-mips-all", mips, total/1e6/all[theirs], qemuName, fmt.Sprintf(">=%d", mixGoal), mips >= mixGoal)
	return nil
}

// runMix runs all programs once on a side.
func (m *machineBench) runMix(side int, kernel string) (mixRun, error) {
	argv := append(qemuMachine(), "-kernel", kernel)
	if side == ours {
		argv = []string{m.bin, "machine", "run", "--console", "--memory", fmt.Sprintf("%dMiB", guestMemory), "--kernel", kernel}
	}
	ctx, cancel := context.WithTimeout(m.ctx, mixTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+m.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	lines := &stampedLines{}
	cmd.Stdout, cmd.Stderr = lines, lines
	err := cmd.Run()
	r, parsed := lines.mix()
	return r, errors.Join(err, parsed)
}

// stampedLines takes lines with the times at which they came.
type stampedLines struct {
	mu    sync.Mutex
	part  []byte
	lines []stamped
}

type stamped struct {
	at   time.Time
	text string
}

// Write implements io.Writer.
func (l *stampedLines) Write(p []byte) (int, error) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part = append(l.part, p...)
	for {
		line, rest, whole := bytes.Cut(l.part, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		l.lines = append(l.lines, stamped{now, strings.TrimSpace(string(line))})
		l.part = rest
	}
}

// mix reads what mix.c prints.
func (l *stampedLines) mix() (mixRun, error) {
	r := mixRun{map[string]float64{}, map[string]float64{}, map[string]string{}}
	var began time.Time
	var all []string
	for _, line := range l.lines {
		all = append(all, line.text)
		f := strings.Fields(line.text)
		switch {
		case len(f) == 2 && f[0] == "begin":
			began = line.at
		case len(f) == 4 && f[0] == "end":
			n, err := strconv.ParseFloat(f[2], 64)
			if err != nil {
				return r, err
			}
			r.seconds[f[1]], r.instructions[f[1]], r.results[f[1]] = line.at.Sub(began).Seconds(), n, f[3]
		}
	}
	for _, p := range mixPrograms {
		if r.seconds[p] <= 0 {
			return r, fmt.Errorf("%s did not run: %s", p, strings.Join(all, "\n"))
		}
	}
	return r, nil
}
