package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"steadfast/fault"
	"steadfast/test/testbed"
)

// The machine's rows: "steadfast machine run" beside qemu-system-riscv64 (TCG, one
// processor, the same memory, kernel, disk and console), each figure of the two by turns
// in one run:
//
//	machine-mips-*      million instructions a second of programs under Sv39 (mix/), and of
//	                    all of them together; QEMU executes the same bytes, and is taken to
//	                    execute as many instructions as ours counts
//	machine-mips-kernel of the boot of Debian's kernel up to its first process, by CPU time
//	                    of the process that executes
//	machine-boot        seconds from the start to the login prompt of the Debian guest
//	machine-idle-cpu    CPU time of that guest's processes in percent of one processor, when
//	                    it has settled and has nothing to do
//	machine-memory      resident set of the process that executes, when the guest has
//	                    touched some memory
//	machine-redis-*     redis-benchmark on this host against the guest's Redis, through a
//	                    forward of the user-mode network: answers a second
//	machine-blk-*       I/O of the guest past its page cache, one at a time, on a file of
//	                    this host in its page cache (guestload/)
//	vm-blk-*            see machineblk.go
//	machine-net-*       a stream of TCP between host and guest, by the same forward
//
// The goals are ours alone; what there is to QEMU is the ratio.

// machineRounds is the usual number of rounds of these rows.
const machineRounds = 3

// qemuName is the peer of the machine's rows.
const qemuName = "qemu-tcg"

// machineBench is the machine's part of a run.
type machineBench struct {
	*bench
	bin    string // our binary
	parts  testbed.Debian
	load   string // guestload, for the guest
	guests [2]*guest
	// san and volumes are those of machineblk.go, while it measures.
	san     string
	volumes [2]string
}

// machineStage is a group of rows that are measured together.
type machineStage struct {
	rows    []string
	measure func(m *machineBench) error
}

func machineStages() []machineStage {
	return []machineStage{
		{append(mixRows(), "machine-mips-all"), (*machineBench).mix},
		{[]string{"machine-mips-kernel"}, (*machineBench).kernel},
		{[]string{"machine-boot"}, (*machineBench).boot},
		{[]string{"machine-idle-cpu"}, (*machineBench).idle},
		{[]string{"machine-memory"}, (*machineBench).memory},
		{redisRows(), (*machineBench).redis},
		{diskRows(), (*machineBench).disks},
		{[]string{"machine-net-rx", "machine-net-tx"}, (*machineBench).streams},
		{sanRows(), (*machineBench).sanDisks},
	}
}

// machineTools are commands that the rows need, with Debian's packages.
var machineTools = [][2]string{
	{"qemu-system-riscv64", "qemu-system-misc"},
	{"riscv64-linux-gnu-gcc", "gcc-riscv64-linux-gnu"},
	{"redis-benchmark", "redis-tools"},
	{"debugfs", "e2fsprogs"},
}

// machines measures the machine's rows that were asked for, on files in b.dir.
func (b *bench) machines() (err error) {
	stages := slices.DeleteFunc(machineStages(), func(s machineStage) bool { return !b.wants(s.rows...) })
	if len(stages) == 0 || b.ours == "peer" {
		return nil
	}
	// Where only root's PATH leads, and this may not be root.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return err
	}
	for _, tool := range machineTools {
		if _, err := exec.LookPath(tool[0]); err != nil {
			fmt.Printf("SKIP machine-* and vm-blk-*: no %s (apt-get install %s)\n", tool[0], tool[1])
			return nil
		}
	}
	rounds, err := setting("BENCH_ROUNDS", machineRounds)
	if err != nil {
		return err
	}
	b.rounds = max(1, int(rounds))
	m := &machineBench{bench: b}
	if m.bin, err = testbed.Binary(); err != nil {
		return err
	}
	m.parts, err = testbed.NewDebian(b.ctx, os.Getenv("BENCH_GUEST"))
	switch {
	case fault.Is(err, fault.Unreachable):
		fmt.Printf("SKIP machine-* and vm-blk-*: there is no guest yet, and none can be built: %v\n", err)
		return nil
	case err != nil:
		return fmt.Errorf("the guest: %w", err)
	}
	if err := m.prepare(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.stop()) }()
	for _, s := range stages {
		if err := s.measure(m); err != nil {
			return fmt.Errorf("%s: %w", s.rows[0], err)
		}
	}
	return nil
}

// wants tells whether BENCH_ROWS asks for one of the rows.
func (b *bench) wants(rows ...string) bool { return slices.ContainsFunc(rows, b.rows.MatchString) }

// dataBytes is the size of the disk that guests do I/O on.
const dataBytes = 256 << 20

// prepare makes what the guests are given: the program, and disks of each side's own.
func (m *machineBench) prepare() error {
	m.load = filepath.Join(m.dir, "guestload")
	build := exec.CommandContext(m.ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", m.load, "./test/bench/guestload")
	build.Env = append(os.Environ(), "GOOS=linux", "GOARCH=riscv64", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build guestload: %w: %s", err, out)
	}
	for side := range m.guests {
		if err := m.makeDisks(side); err != nil {
			return fmt.Errorf("disks: %w", err)
		}
	}
	return nil
}

func (m *machineBench) disk(side int) string {
	return filepath.Join(m.dir, fmt.Sprintf("root-%d.raw", side))
}

func (m *machineBench) data(side int) string {
	return filepath.Join(m.dir, fmt.Sprintf("data-%d.raw", side))
}

// makeDisks copies the guest's disk, with guestload on it, and writes another one whole.
func (m *machineBench) makeDisks(side int) error {
	for _, args := range [][]string{
		{"cp", "--sparse=always", m.parts.Disk, m.disk(side)},
		{"debugfs", "-w", "-R", "write " + m.load + " /usr/bin/guestload", m.disk(side)},
		{"debugfs", "-w", "-R", "sif /usr/bin/guestload mode 0100755", m.disk(side)},
		{"dd", "if=/dev/urandom", "of=" + m.data(side), "bs=1M", fmt.Sprintf("count=%d", dataBytes>>20), "status=none"},
	} {
		if out, err := exec.CommandContext(m.ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	return nil
}

// both measures each side in turn, as often as there are rounds, and returns what was
// measured, ours first. The side that begins changes.
func (m *machineBench) both(one func(side int) (float64, error)) (values [2][]float64, err error) {
	for round := range m.rounds {
		for turn := range 2 {
			side := (turn + round) % 2
			v, err := one(side)
			if err != nil {
				return values, fmt.Errorf("%s: %w", sideNames[side], err)
			}
			values[side] = append(values[side], v)
		}
	}
	return values, nil
}

// kernelGoal is the rate of the kernel's boot that was promised.
const kernelGoal = 80

// kernel measures the boot of the kernel up to its first process.
func (m *machineBench) kernel() error {
	var rates [2][]float64
	for range m.rounds {
		var executed, seconds [2]float64
		for side := range m.guests {
			g, err := m.start(side, "console=ttyS0")
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(m.ctx, bootPatience)
			_, _, err = g.screen.await(ctx, "Run /init as init process")
			cancel()
			if err == nil {
				executed[side], seconds[side], err = g.spent(m.ctx)
			}
			if err := errors.Join(err, g.kill()); err != nil {
				return fmt.Errorf("%s: %w", sideNames[side], err)
			}
		}
		for side := range rates {
			rates[side] = append(rates[side], executed[ours]/1e6/seconds[side])
		}
	}
	mips, peer := medianOf(rates[ours]), medianOf(rates[theirs])
	m.judge("machine-mips-kernel", mips, peer, qemuName, fmt.Sprintf(">=%d", kernelGoal), mips >= kernelGoal)
	return nil
}

// boot measures boots to the login prompt. The last guests stay for other rows.
func (m *machineBench) boot() error {
	values, err := m.both(func(side int) (float64, error) {
		if err := m.halt(side); err != nil {
			return 0, err
		}
		began := time.Now()
		g, err := m.start(side, "console=ttyS0 quiet")
		if err != nil {
			return 0, err
		}
		m.guests[side] = g
		at, err := g.prompt(m.ctx)
		return at.Sub(began).Seconds(), err
	})
	if err != nil {
		return err
	}
	tell("machine-boot/s", medianOf(values[ours]), medianOf(values[theirs]), qemuName)
	return nil
}

// running sees to it that both guests run, logged in, and that no Redis does.
func (m *machineBench) running() error {
	for side := range m.guests {
		if m.guests[side] == nil {
			g, err := m.start(side, "console=ttyS0 quiet")
			if err != nil {
				return err
			}
			m.guests[side] = g
			if _, err := g.prompt(m.ctx); err != nil {
				return err
			}
		}
		if err := m.guests[side].login(m.ctx); err != nil {
			return fmt.Errorf("%s: %w", sideNames[side], err)
		}
	}
	return nil
}

// halt ends a side's guest, if there is one.
func (m *machineBench) halt(side int) error {
	g := m.guests[side]
	m.guests[side] = nil
	if g == nil {
		return nil
	}
	return g.kill()
}

func (m *machineBench) stop() error { return errors.Join(m.halt(ours), m.halt(theirs)) }
