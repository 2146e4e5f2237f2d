package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"steadfast/compute/machine"
)

// Of a part of a life that is lived again with the race detector, which is ten times slower
// and more: how many counts it has at most, and how many stops.
const (
	racingCounts = 200_000_000
	racingStops  = 20
)

// names of the files in the folder of a recording.
const (
	startName  = "start"
	middleName = "middle"
	logName    = "log"
)

// replayRacing has this program, built with the race detector, live again what follows
// the middle, and compares its digests with the first replay's. It returns how many it
// compared, and how many differ. It is another process, since a program has the detector or
// has it not; counts go in and digests come out as lines of text. A race that the detector finds
// is an exit status of that process, and so an error here.
func (c *check) replayRacing(ctx context.Context, r *recorded, counts []uint64, first map[uint64]machine.Hash) (stops, differ int, err error) {
	if _, err := exec.LookPath("gcc"); err != nil {
		fmt.Println("SKIP  with the race detector: it needs a C compiler, and there is no gcc")
		return 0, 0, nil
	}
	began := time.Now()
	program := c.file("racing")
	if out, err := exec.CommandContext(ctx, "go", "build", "-race", "-o", program, "./test/machine").CombinedOutput(); err != nil {
		return 0, 0, fmt.Errorf("building it: %w\n%s", err, out)
	}
	var orders bytes.Buffer
	for _, at := range after(counts, r.middleAt) {
		fmt.Fprintln(&orders, at)
	}
	cmd := exec.CommandContext(ctx, program, "-relive", c.dir)
	cmd.Stdin, cmd.Stderr = &orders, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, 0, err
	}
	got := map[uint64]machine.Hash{}
	for line := range bytes.Lines(out) {
		var at uint64
		var digits string
		if _, err := fmt.Sscan(string(line), &at, &digits); err != nil {
			return 0, 0, fmt.Errorf("%q: %w", line, err)
		}
		b, err := hex.DecodeString(digits)
		if err != nil || len(b) != len(machine.Hash{}) {
			return 0, 0, fmt.Errorf("%q is no digest", digits)
		}
		got[at] = machine.Hash(b)
	}
	if len(got) == 0 {
		return 0, 0, errors.New("it has printed no digest")
	}
	fmt.Printf("note  from the middle, with the race detector: %d stops, %v\n", len(got), time.Since(began).Round(time.Millisecond))
	return len(got), differences(first, got), nil
}

// after are the first few counts that come after another and not too late, or if there
// is none, one.
func after(counts []uint64, from uint64) []uint64 {
	i, _ := slices.BinarySearch(counts, from)
	list := counts[i:]
	n := 1
	for n < min(len(list), racingStops) && list[n] < from+racingCounts {
		n++
	}
	return list[:min(n, len(list))]
}

// reliveIn lives again what is in a folder.
func (c *check) reliveIn(ctx context.Context) (err error) {
	p, err := openReplay(filepath.Join(c.relive, middleName), filepath.Join(c.relive, logName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Machine().Release()) }()
	in := bufio.NewReader(os.Stdin)
	for ctx.Err() == nil {
		var at uint64
		if _, err := fmt.Fscanln(in, &at); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := reach(p, at); err != nil {
			return err
		}
		fmt.Printf("%d %x\n", at, p.Machine().Hash())
	}
	return ctx.Err()
}
