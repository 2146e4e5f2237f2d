package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// rawRow is one limit of the drive under the folder we measure in.
type rawRow struct {
	load
	dsync bool // every write stable before its answer
}

// raw measures with fio what the drive itself can do, through a file on the
// same filesystem, written whole before, past the page cache. The result is
// I/Os a second by load; "-dsync" follows the name where writes were O_DSYNC.
func (b *bench) raw() (map[string]float64, error) {
	limits := map[string]float64{}
	if _, err := exec.LookPath("fio"); err != nil {
		fmt.Println("SKIP raw: fio is not installed: no shares of the raw limit")
		return limits, nil
	}
	var rows []rawRow
	for _, l := range loads() {
		rows = append(rows, rawRow{load: l})
		if l.write && l.random {
			rows = append(rows, rawRow{load: l, dsync: true})
		}
	}
	file := filepath.Join(b.dir, "raw.img")
	defer func() { _ = os.Remove(file) }()
	if _, err := b.fio("--name=fill", "--filename="+file, fmt.Sprintf("--size=%d", largeBytes), "--rw=write", "--bs=1M", "--iodepth=8", "--end_fsync=1"); err != nil {
		return nil, err
	}
	for _, r := range rows {
		name, wanted := r.name, false
		if r.dsync {
			name += "-dsync"
		}
		for _, m := range modes() {
			wanted = wanted || b.rows.MatchString(rowName(m, sets()[1], r.load))
		}
		if !wanted {
			continue
		}
		var values []float64
		for range b.rounds {
			v, err := b.fio(r.arguments(file, b.seconds)...)
			if err != nil {
				return nil, fmt.Errorf("raw %s: %w", name, err)
			}
			values = append(values, v)
		}
		limits[name] = medianOf(values)
		fmt.Printf("raw   %s iops=%.0f MB/s=%.1f\n", name, limits[name], limits[name]*float64(r.bs)/1e6)
	}
	return limits, nil
}

// arguments says a row in fio's words.
func (r rawRow) arguments(file string, seconds float64) []string {
	rw := map[[2]bool]string{
		{false, false}: "read", {false, true}: "write", {true, false}: "randread", {true, true}: "randwrite",
	}[[2]bool{r.random, r.write}]
	args := []string{
		"--name=raw", "--filename=" + file, fmt.Sprintf("--size=%d", largeBytes), "--rw=" + rw,
		fmt.Sprintf("--bs=%d", r.bs), fmt.Sprintf("--iodepth=%d", r.qd),
		"--time_based", fmt.Sprintf("--runtime=%d", max(1, int(seconds))), "--ramp_time=0.5", "--norandommap",
	}
	if r.dsync {
		args = append(args, "--sync=dsync")
	}
	return args
}

// fio runs one job and returns its I/Os a second. io_uring is asked for first;
// where the kernel refuses it, libaio does the same work.
func (b *bench) fio(args ...string) (float64, error) {
	var failed error
	for _, engine := range []string{"io_uring", "libaio"} {
		ctx, cancel := context.WithTimeout(b.ctx, 5*time.Minute)
		cmd := exec.CommandContext(ctx, "fio", append(args, "--ioengine="+engine, "--direct=1", "--refill_buffers", "--output-format=json")...)
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
