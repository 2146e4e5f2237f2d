package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Build is what was tried. Rounds of the same build are counted together.
type Build struct {
	Commit string `json:"commit"`
	// Dirty: the tree had changes; then only the binary tells builds apart.
	Dirty   bool   `json:"dirty"`
	Binary  string `json:"binary"` // the first 12 digits of its SHA-256
	Product string `json:"product"`
}

// Row is one round as one client saw it: a line of the results file.
type Row struct {
	Build
	Time   time.Time `json:"time"`
	Kind   string    `json:"kind"`
	Detail string    `json:"detail,omitempty"` // how the kind was done this time
	Client string    `json:"client"`
	// The longest that a request of each lane took, in milliseconds: from the
	// fault until the pair was whole and, but for the Linux client, all was read
	// back; and in the seconds before the fault.
	StallQD1   float64 `json:"stall_qd1_ms"`
	StallQD32  float64 `json:"stall_qd32_ms"`
	BeforeQD1  float64 `json:"before_qd1_ms"`
	BeforeQD32 float64 `json:"before_qd32_ms"`
	// Busy is the machine's load average before the fault: above the number of
	// its cores, the times say more of the machine than of the pair.
	Busy float64 `json:"busy"`
	// StoodMS is the longest that a processor did not get to a thread that
	// wanted it for a moment only, during the round: so long nobody on it
	// could do a thing.
	StoodMS float64 `json:"stood_ms"`
	IOs     int64   `json:"ios"`
	Lost    int     `json:"lost"`
	Stale   int     `json:"stale"`
	Torn    int     `json:"torn"`
	Corrupt int     `json:"corrupt"`
	Errors  int     `json:"errors"`
	// OwnerMS is from the fault to a new owner, 0 where none was due; WholeMS
	// from the fault until both nodes were in sync.
	OwnerMS float64 `json:"owner_ms"`
	WholeMS float64 `json:"whole_ms"`
	// Epochs is how often the owner changed.
	Epochs uint64 `json:"epochs"`
	// Failed says why the round failed, or is empty.
	Failed string `json:"failed,omitempty"`
}

// stall is the longer of the two lanes'.
func (r Row) stall() float64 { return max(r.StallQD1, r.StallQD32) }

// buildOf tells what is tried.
func buildOf(bin, product string) (Build, error) {
	b := Build{Product: product, Commit: "unknown"}
	f, err := os.Open(bin)
	if err != nil {
		return b, fmt.Errorf("nothing to try (make build): %w", err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return b, err
	}
	b.Binary = fmt.Sprintf("%x", sum.Sum(nil))[:12]
	if out, err := exec.Command("git", "rev-parse", "HEAD").Output(); err == nil {
		b.Commit = strings.TrimSpace(string(out))[:12]
	}
	if out, err := exec.Command("git", "status", "--porcelain").Output(); err != nil || len(out) > 0 {
		b.Dirty = true
	}
	return b, nil
}

// same tells whether rows of both count together.
func (b Build) same(o Build) bool {
	return b == o || !b.Dirty && !o.Dirty && b.Commit == o.Commit && b.Product == o.Product && b.Commit != "unknown"
}

// buildsIn returns the builds that rows tell of, in the order of their first.
func buildsIn(rows []Row) []Build {
	var out []Build
	for _, r := range rows {
		if !slices.ContainsFunc(out, r.same) {
			out = append(out, r.Build)
		}
	}
	return out
}

// String names a build for the heading of a table.
func (b Build) String() string {
	dirty := ""
	if b.Dirty {
		dirty = " with changes, binary " + b.Binary
	}
	return fmt.Sprintf("%s, commit %s%s", b.Product, b.Commit, dirty)
}

// readRows reads a results file; there may be none. A line cut short by the end
// of a run is not counted.
func readRows(path string) ([]Row, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var rows []Row
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		var r Row
		if json.Unmarshal(scan.Bytes(), &r) == nil {
			rows = append(rows, r)
		}
	}
	return rows, scan.Err()
}

// appendRow adds a line, in one write, and a line's end before it when a dying run
// left none.
func appendRow(path string, r Row) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	end := []byte{'\n'}
	if size, err := f.Seek(0, io.SeekEnd); err == nil && size > 0 {
		_, _ = f.ReadAt(end, size-1) // what cannot be read is taken for a whole line
	}
	if end[0] != '\n' {
		line = append([]byte{'\n'}, line...)
	}
	if _, err := f.Write(line); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// count returns how many rounds of a kind are done, for the client that has the
// fewest. A failed round is a round.
func count(rows []Row, build Build, kind string, clients []string) int {
	least := math.MaxInt
	for _, c := range clients {
		n := 0
		for _, r := range rows {
			if r.same(build) && r.Kind == kind && r.Client == c {
				n++
			}
		}
		least = min(least, n)
	}
	return least
}

// percentile returns the value that a share p of values, which are sorted, do
// not exceed: the nearest rank. With fewer than a hundred, p99 is the greatest.
func percentile(values []float64, p float64) float64 {
	rank := int(math.Ceil(p * float64(len(values))))
	return values[max(rank, 1)-1]
}

// tally is a summary's line.
type tally struct {
	kind, client   string
	n, failed      int
	wrong          int // lost, stale, torn, corrupt and errors
	p50, p99, most float64
	calm           float64 // p99 of the seconds before the fault: the machine's own
	goalMS         float64 // 0: none
}

// met tells whether the goal is; without a goal it is.
func (t tally) met() bool { return t.goalMS == 0 || t.p99 <= t.goalMS }

// tallies sums rows up by kind and client, in the order of kinds.
func tallies(rows []Row, build Build) []tally {
	var out []tally
	for _, k := range kinds() {
		for _, client := range clientNames {
			var stalls, calm []float64
			t := tally{kind: k.name, client: client, goalMS: float64(k.goalOf(client).Milliseconds())}
			for _, r := range rows {
				if !r.same(build) || r.Kind != k.name || r.Client != client {
					continue
				}
				stalls = append(stalls, r.stall())
				calm = append(calm, max(r.BeforeQD1, r.BeforeQD32))
				t.n++
				t.wrong += r.Lost + r.Stale + r.Torn + r.Corrupt + r.Errors
				if r.Failed != "" {
					t.failed++
				}
			}
			if t.n == 0 {
				continue
			}
			slices.Sort(stalls)
			slices.Sort(calm)
			t.calm = percentile(calm, 0.99)
			t.p50, t.p99, t.most = percentile(stalls, 0.50), percentile(stalls, 0.99), stalls[t.n-1]
			out = append(out, t)
		}
	}
	return out
}

// printTallies prints the table.
func printTallies(w io.Writer, list []tally) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(tab, "kind\tclient\trounds\tfailed\twrong\tcalm p99\tp50 ms\tp99 ms\tmax ms\tgoal (p99)\t\t")
	for _, t := range list {
		goal, verdict := "-", "-"
		if t.goalMS > 0 {
			goal, verdict = fmt.Sprintf("%.0f", t.goalMS), "ok"
			if !t.met() {
				verdict = "short"
			}
		}
		_, _ = fmt.Fprintf(tab, "%s\t%s\t%d\t%d\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%s\t%s\t\n",
			t.kind, t.client, t.n, t.failed, t.wrong, t.calm, t.p50, t.p99, t.most, goal, verdict)
	}
	return tab.Flush()
}
