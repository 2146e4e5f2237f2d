package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// tally counts tests.
type tally struct{ passed, failed, skipped int }

func (t *tally) add(o tally) {
	t.passed += o.passed
	t.failed += o.failed
	t.skipped += o.skipped
}

// event is a line of `go test -json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build-output
	Test        string
	Output      string
	FailedBuild string
	Elapsed     float64 // seconds
}

// goTest runs go test and counts tests and subtests.
func (s *suite) goTest(ctx context.Context, args ...string) (tally, error) {
	t, _, err := s.goTestSaying(ctx, "", args...)
	return t, err
}

// goTestSaying is goTest, and shows the lines that tests print with a prefix
// (unless that is empty). It returns them.
func (s *suite) goTestSaying(ctx context.Context, prefix string, args ...string) (t tally, said []string, err error) {
	cmd := s.command(ctx, append([]string{"go", "test", "-json"}, args...)...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return t, nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return t, nil, err
	}
	t, err = countEvents(s.out, pipe, func(line string) {
		if prefix != "" && strings.HasPrefix(line, prefix) {
			said = append(said, line)
			_, _ = fmt.Fprintln(s.out, "    "+line)
		}
	})
	waitErr := cmd.Wait()
	if err != nil {
		return t, said, err
	}
	var exit *exec.ExitError
	if waitErr != nil && (t.failed == 0 || !errors.As(waitErr, &exit)) {
		return t, said, fmt.Errorf("go test: %w", waitErr)
	}
	return t, said, nil
}

// countEvents reads go test's events, prints what failed and the reason of
// every skip, and counts. A package that fails without a failing test (it did
// not build, panicked outside of a test or ran out of time) counts as one. see
// is called with each piece of output, which is a line or less.
func countEvents(w io.Writer, r io.Reader, see func(text string)) (tally, error) {
	var sum tally
	text := map[string]*strings.Builder{} // output by package and test
	failedTests := map[string]int{}       // by package
	took := map[string]float64{}          // by package, in seconds
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 16<<20)
	for scan.Scan() {
		var e event
		if err := json.Unmarshal(scan.Bytes(), &e); err != nil {
			return sum, fmt.Errorf("go test -json printed %q: %w", scan.Text(), err)
		}
		if e.Action == "build-output" {
			e.Action, e.Package = "output", e.ImportPath
		}
		key := e.Package + " " + e.Test
		if e.Test == "" && e.Elapsed > 0 {
			took[e.Package] = e.Elapsed
		}
		switch e.Action {
		case "output":
			if text[key] == nil {
				text[key] = &strings.Builder{}
			}
			text[key].WriteString(e.Output)
			see(strings.TrimSuffix(e.Output, "\n"))
			continue
		case "pass":
			if e.Test != "" {
				sum.passed++
			}
		case "skip":
			if e.Test != "" {
				sum.skipped++
				_, _ = fmt.Fprintf(w, "SKIP %s: %s\n", key, reason(text[key]))
			}
		case "fail":
			if e.Test == "" && failedTests[e.Package] > 0 {
				continue
			}
			failedTests[e.Package]++
			sum.failed++
			fail("%s", strings.TrimSpace(key))
			show(w, text[key])
			if e.Test == "" { // what ended it was printed in the name of the test that ran
				for _, k := range slices.Sorted(maps.Keys(text)) {
					if strings.HasPrefix(k, key) && k != key {
						_, _ = fmt.Fprintf(w, "     in %s\n", k)
						show(w, text[k])
					}
				}
			}
			if e.FailedBuild != "" {
				show(w, text[e.FailedBuild+" "])
			}
		default:
			continue
		}
		delete(text, key)
	}
	slowest(w, took)
	return sum, scan.Err()
}

// slowest prints which packages took longest.
func slowest(w io.Writer, took map[string]float64) {
	names := slices.SortedFunc(maps.Keys(took), func(a, b string) int { return cmp.Compare(took[b], took[a]) })
	var parts []string
	for _, n := range names[:min(len(names), 6)] {
		if took[n] >= 10 {
			parts = append(parts, fmt.Sprintf("%s %.0f s", strings.TrimPrefix(n, "steadfast/"), took[n]))
		}
	}
	if len(parts) > 0 {
		_, _ = fmt.Fprintln(w, "note slowest: "+strings.Join(parts, ", "))
	}
}

// show prints an output, indented: its end, and of a trace, which says first what runs
// and why it ended, the beginning too.
func show(w io.Writer, b *strings.Builder) {
	if b == nil {
		return
	}
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	if i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "panic: ") }); i >= 0 {
		lines = lines[i:min(len(lines), i+300)]
	}
	const most = 60
	if len(lines) > most && !strings.HasPrefix(lines[0], "panic: ") {
		_, _ = fmt.Fprintf(w, "     ... %d lines before\n", len(lines)-most)
		lines = lines[len(lines)-most:]
	}
	for _, l := range lines {
		_, _ = fmt.Fprintln(w, "     "+l)
	}
}

// reason returns what a test said when it skipped itself.
func reason(b *strings.Builder) string {
	if b == nil {
		return "no reason given"
	}
	for line := range strings.Lines(b.String()) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			return line
		}
	}
	return "no reason given"
}
