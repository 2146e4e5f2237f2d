package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"steadfast/test/testbed"
)

// rawRow is one limit of the drive under the folder we measure in: what fio
// reaches through a file on the same filesystem, past the page cache.
type rawRow struct {
	load
	dsync bool // every write stable before its answer
}

func (r rawRow) name() string {
	if r.dsync {
		return r.load.name + "-dsync"
	}
	return r.load.name
}

// measured tells whether the limit is held against a row of this mode and
// set. Stable random writes are: against durable ones on the large set.
func (r rawRow) measured(m mode, s set) bool {
	return !r.dsync || r.write && r.random && !m.writeCache && s.size == largeBytes
}

// rawFile is what the limits are measured on.
func (b *bench) rawFile() string { return filepath.Join(b.dir, "raw.img") }

// prepareRaw writes the file whole.
func (b *bench) prepareRaw() error {
	if _, err := exec.LookPath("fio"); err != nil {
		return errors.New("fio is not installed: there is nothing to measure the drive itself with")
	}
	fmt.Println("fill  raw.img")
	_, err := b.fio("--name=fill", "--filename="+b.rawFile(), fmt.Sprintf("--size=%d", largeBytes), "--rw=write", "--bs=1M", "--iodepth=8", "--end_fsync=1")
	return err
}

// rawRows are the limits that a row is held against and nobody measured yet.
func (b *bench) rawRows(m mode, s set, l load) []rawRow {
	var todo []rawRow
	for _, r := range []rawRow{{load: l}, {load: l, dsync: true}} {
		if _, known := b.limits[r.name()]; !known && r.measured(m, s) {
			todo = append(todo, r)
		}
	}
	return todo
}

// rawTurn measures a limit once, in I/Os a second, while the servers are
// stopped.
func (b *bench) rawTurn(r rawRow, servers [2]testbed.Server) (float64, error) {
	resume, err := b.quiet(servers[:]...)
	if err != nil {
		return 0, err
	}
	v, err := b.fio(r.arguments(b.rawFile(), b.seconds)...)
	if err != nil {
		err = fmt.Errorf("raw %s: %w", r.name(), err)
	}
	return v, errors.Join(err, resume())
}

// arguments says a row in fio's words.
func (r rawRow) arguments(file string, seconds float64) []string {
	rw := map[[2]bool]string{
		{false, false}: "read", {false, true}: "write", {true, false}: "randread", {true, true}: "randwrite",
	}[[2]bool{r.random, r.write}]
	args := []string{
		"--name=raw", "--filename=" + file, fmt.Sprintf("--size=%d", largeBytes), "--rw=" + rw,
		fmt.Sprintf("--bs=%d", r.bs), fmt.Sprintf("--iodepth=%d", r.qd),
		"--time_based", fmt.Sprintf("--runtime=%dms", int(1000*seconds)), "--ramp_time=300ms", "--norandommap",
	}
	if r.dsync {
		args = append(args, "--sync=dsync")
	}
	return args
}

// fio runs one job and returns its I/Os a second.
func (b *bench) fio(args ...string) (float64, error) {
	return b.fioBy(func(argv ...string) []string { return argv }, args...)
}

// fioBy is fio by a command that begins it. io_uring is asked for first; where
// the kernel refuses it, libaio does the same work.
func (b *bench) fioBy(by func(argv ...string) []string, args ...string) (float64, error) {
	var failed error
	for _, engine := range []string{"io_uring", "libaio"} {
		ctx, cancel := context.WithTimeout(b.ctx, 5*time.Minute)
		argv := by(append([]string{"fio", "--ioengine=" + engine, "--direct=1", "--refill_buffers", "--output-format=json"}, args...)...)
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.Output()
		cancel()
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("fio with %s: %w", engine, err))
			continue
		}
		var report struct {
			Jobs []struct {
				Read, Write struct{ IOPS float64 }
			}
		}
		if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 {
			return 0, fmt.Errorf("fio printed no report: %w", errors.Join(err, failed))
		}
		return report.Jobs[0].Read.IOPS + report.Jobs[0].Write.IOPS, nil
	}
	return 0, failed
}
