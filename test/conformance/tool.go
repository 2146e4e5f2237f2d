package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
	"syscall"
	"time"
)

// A suite is one suite of the tool with its tests, in the tool's order.
type suite struct {
	name  string
	tests []string
}

// list asks the tool which suites and tests it has.
func list(ctx context.Context) ([]suite, error) {
	out, err := exec.CommandContext(ctx, "iscsi-test-cu", "-l").Output()
	if err != nil {
		return nil, fmt.Errorf("list the tests (Debian: libiscsi-bin): %w", err)
	}
	var all []suite
	for line := range strings.Lines(string(out)) {
		part := strings.Split(strings.TrimSpace(line), ".")
		if part[0] != "ALL" {
			continue
		}
		switch len(part) {
		case 2:
			all = append(all, suite{name: part[1]})
		case 3:
			last := &all[len(all)-1]
			last.tests = append(last.tests, part[2])
		}
	}
	if len(all) == 0 {
		return nil, errors.New("iscsi-test-cu lists no tests")
	}
	return all, nil
}

// verdict is how one test ended.
type verdict uint8

const (
	missing verdict = iota // the tool ended or was killed before a verdict
	passed
	failed
	skipped
)

// outcome is one test's end and what the tool printed on the way.
type outcome struct {
	verdict verdict
	text    string
}

// runTool runs the named tests and returns their outcomes by "Suite.Test".
// That the tool fails, crashes or hangs is an outcome, not an error.
// preload, if not empty, is a library that the tool is to load first.
func runTool(ctx context.Context, name string, urls []string, preload, log string, patience time.Duration) (map[string]outcome, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	from, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(short, "iscsi-test-cu", append([]string{"-d", "-S", "-v", "-t", name}, urls...)...)
	cmd.Stdout, cmd.Stderr = file, file
	if preload != "" {
		cmd.Env = append(os.Environ(), "LD_PRELOAD="+preload)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runErr := cmd.Run()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := file.Seek(from, io.SeekStart); err != nil {
		return nil, err
	}
	outcomes, err := parse(file)
	if err != nil {
		return nil, err
	}
	switch {
	case short.Err() != nil:
		fmt.Printf("     %s: killed after %v\n", name, patience)
	case runErr != nil:
		fmt.Printf("     %s: the tool ended with %v\n", name, runErr)
	}
	return outcomes, nil
}

// parse reads the tool's verbose output:
//
//	Suite: CompareAndWrite
//	  Test: Simple ...    [SKIPPED] COMPAREANDWRITE is not implemented.
//	passed
//	  Test: BeyondEol ...    [FAILED] ...
//	FAILED
//	    1. test_get_lba_status_beyond_eol.c:38  - CU_ASSERT_EQUAL(_r,0)
//
// The verdict ends the line of the test or begins a later one; what follows a
// verdict on its line comes from the suite's clean-up. A test that said
// [SKIPPED] before its verdict has skipped, though the verdict is "passed".
func parse(r io.Reader) (map[string]outcome, error) {
	outcomes := map[string]outcome{}
	suiteName, test := "", ""
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		line := scan.Text()
		if rest, ok := strings.CutPrefix(line, "Suite: "); ok {
			suiteName, test = strings.TrimSpace(rest), ""
			continue
		}
		if strings.HasPrefix(line, "Run Summary:") {
			test = ""
		}
		if rest, ok := strings.CutPrefix(line, "  Test: "); ok {
			name, after, _ := strings.Cut(rest, " ...")
			test = suiteName + "." + name
			outcomes[test] = outcome{}
			line = after
		}
		if test == "" {
			continue
		}
		o := outcomes[test]
		o.text += line + "\n"
		if o.verdict == missing {
			o.verdict = verdictOf(line, o.text)
		}
		outcomes[test] = o
	}
	return outcomes, scan.Err()
}

// verdictOf returns the verdict that a line brings, if it does.
func verdictOf(line, text string) verdict {
	is := func(word string) bool { return strings.HasPrefix(line, word) || strings.HasSuffix(line, word) }
	switch {
	case is("FAILED"):
		return failed
	case !is("passed"):
		return missing
	case strings.Contains(text, "[SKIPPED]"):
		return skipped
	}
	return passed
}

// tally counts outcomes.
type tally struct{ passed, failed, skipped int }

func (t *tally) add(o tally) {
	t.passed += o.passed
	t.failed += o.failed
	t.skipped += o.skipped
}

// count holds the outcomes against what the suites have and what may skip, and
// prints each failure with what the tool said of it.
func count(w way, suites []suite, outcomes map[string]outcome, skips *skipList) tally {
	var t tally
	for _, s := range suites {
		for _, name := range s.tests {
			full := s.name + "." + name
			o := outcomes[full]
			why := ""
			switch o.verdict {
			case passed:
				t.passed++
				continue
			case skipped:
				if skips.allows(w.name, full) {
					t.skipped++
					continue
				}
				why = "skipped itself, and skips.txt does not allow it"
			case failed:
				if w.standby() && skips.allows(w.name, full) {
					t.skipped++
					continue
				}
				why = "failed"
			case missing:
				why = "no verdict: the tool crashed, hung or never came to it"
			}
			t.failed++
			fmt.Printf("FAIL %s %s: %s\n", w.name, full, why)
			for line := range strings.Lines(o.text) {
				if line = strings.TrimSpace(line); line != "" && line != "FAILED" && line != "passed" {
					fmt.Printf("       %s\n", line)
				}
			}
		}
	}
	return t
}

// skipList is which tests may skip themselves in which ways.
type skipList struct{ rows []skipRow }

type skipRow struct {
	ways, tests, reason string
	used                bool
}

// readSkips reads lines of "WAYS TESTS reason": two globs and a sentence.
// A reason is required: a skip nobody can explain is a failure.
func readSkips(name string) (*skipList, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	l := &skipList{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		field := strings.Fields(line)
		if len(field) < 3 {
			return nil, fmt.Errorf("%s:%d: want WAYS TESTS REASON", name, n)
		}
		row := skipRow{ways: field[0], tests: field[1], reason: strings.Join(field[2:], " ")}
		for _, glob := range field[:2] {
			if _, err := path.Match(glob, ""); err != nil {
				return nil, fmt.Errorf("%s:%d: %q: %w", name, n, glob, err)
			}
		}
		l.rows = append(l.rows, row)
	}
	return l, nil
}

// allows tells whether a test may skip in a way, and remembers that it did.
func (l *skipList) allows(way, test string) bool {
	ok := false
	for i := range l.rows {
		inWay, _ := path.Match(l.rows[i].ways, way)
		isTest, _ := path.Match(l.rows[i].tests, test)
		if inWay && isTest {
			l.rows[i].used = true
			ok = true
		}
	}
	return ok
}

// unused returns the rows that allowed nothing.
func (l *skipList) unused() []string {
	var rows []string
	for _, r := range l.rows {
		if !r.used {
			rows = append(rows, r.ways+" "+r.tests)
		}
	}
	return rows
}
