package support

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"runtime/pprof"
	"strconv"
	"time"
)

const (
	// journalLinesMax and journalBytesMax bound what is taken of the journal: its newest part.
	journalLinesMax = 20000
	journalBytesMax = 4 << 20
	// journalTime bounds how long the journal is waited for.
	journalTime = 15 * time.Second
)

// Journal reads what systemd's journal has of a unit, of earlier lives as well: what a process said
// as it crashed is nowhere else.
func Journal(ctx context.Context, unit string) (File, error) {
	ctx, cancel := context.WithTimeout(ctx, journalTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "journalctl", "--unit="+unit, "--lines="+strconv.Itoa(journalLinesMax), "--output=short-iso-precise", "--no-pager", "--quiet")
	out, err := cmd.Output()
	switch {
	case err != nil:
		return File{}, fmt.Errorf("the journal of %s cannot be read: %w", unit, err)
	case len(bytes.TrimSpace(out)) == 0:
		return File{}, fmt.Errorf("the journal has nothing of %s", unit)
	}
	if len(out) > journalBytesMax {
		out = out[len(out)-journalBytesMax:]
		_, out, _ = bytes.Cut(out, []byte("\n"))
	}
	return File{"journal.txt", WithoutArguments(out)}, nil
}

// call matches a line of a crash's trace: a function with its arguments, which are bytes of this
// process's memory.
var call = regexp.MustCompile(`(?m)((?:^|\s)[\w./*()·\[\]{}-]+\.[\w.*()·\[\]-]+)\((?:0x[0-9a-f]+|\{|\.\.\.|_)[^\n]*\)$`)

// WithoutArguments takes the arguments out of traces.
func WithoutArguments(log []byte) []byte { return call.ReplaceAll(log, []byte("$1(...)")) }

// Goroutines tells what the process is doing: functions and lines, without their arguments.
func Goroutines() (File, error) {
	var b bytes.Buffer
	err := pprof.Lookup("goroutine").WriteTo(&b, 1)
	return File{"goroutines.txt", b.Bytes()}, err
}
