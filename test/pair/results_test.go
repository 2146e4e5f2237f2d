package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, tc := range []struct {
		values []float64
		p      float64
		want   float64
	}{
		{[]float64{7}, 0.99, 7},
		{[]float64{7}, 0, 7},
		{[]float64{1, 2, 3}, 0.5, 2},
		{[]float64{1, 2, 3, 4}, 0.99, 4},
		{hundred, 0.99, 99},
		{hundred, 0.5, 50},
		{hundred, 1, 100},
	} {
		if got := percentile(tc.values, tc.p); got != tc.want {
			t.Errorf("percentile %v of %d values: %v, want %v", tc.p, len(tc.values), got, tc.want)
		}
	}
}

// TestResume: what is in the results is not run again, for this build only, and
// a line that a dying run cut short counts for nothing.
func TestResume(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.jsonl")
	build := Build{Commit: "abc", Binary: "1", Product: "pair"}
	if rows, err := readRows(path); err != nil || len(rows) > 0 {
		t.Fatalf("no file: %v, %v", rows, err)
	}
	dirty := build
	dirty.Dirty = true
	other := build
	other.Commit = "def"
	rebuilt := build
	rebuilt.Binary = "2"
	for _, r := range []Row{
		{Build: build, Kind: "kill-owner", Client: "qemu"},
		{Build: build, Kind: "kill-owner", Client: "libiscsi"},
		{Build: build, Kind: "kill-owner", Client: "qemu", Failed: "no"},
		{Build: rebuilt, Kind: "kill-owner", Client: "libiscsi"}, // the same clean commit
		{Build: build, Kind: "kill-other", Client: "qemu"},
		{Build: dirty, Kind: "kill-owner", Client: "qemu"},
		{Build: other, Kind: "kill-owner", Client: "qemu"},
	} {
		if err := appendRow(path, r); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"commit":"abc","product":"pair","kind":"kill-owner","cli`); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	rows, err := readRows(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		build   Build
		kind    string
		clients []string
		want    int
	}{
		{build, "kill-owner", []string{"qemu"}, 2},
		{build, "kill-owner", []string{"qemu", "libiscsi"}, 2},
		{build, "kill-other", []string{"qemu", "libiscsi"}, 0},
		{dirty, "kill-owner", []string{"qemu"}, 1},
		{Build{Commit: "abc", Dirty: true, Binary: "3", Product: "pair"}, "kill-owner", []string{"qemu"}, 0},
		{other, "kill-owner", []string{"qemu"}, 1},
		{Build{Commit: "abc", Binary: "1", Product: "node"}, "kill-owner", []string{"qemu"}, 0},
	} {
		if got := count(rows, tc.build, tc.kind, tc.clients); got != tc.want {
			t.Errorf("%+v %s %v: %d, want %d", tc.build, tc.kind, tc.clients, got, tc.want)
		}
	}
	if got := len(buildsIn(rows)); got != 3 {
		t.Errorf("%d builds, want 3: %v", got, buildsIn(rows))
	}
}

// TestResumeAfterCutLine: the next row begins a line of its own.
func TestResumeAfterCutLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.jsonl")
	if err := os.WriteFile(path, []byte(`{"commit":"abc"`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := appendRow(path, Row{Kind: "kill-owner"}); err != nil {
		t.Fatal(err)
	}
	rows, err := readRows(path)
	if err != nil || len(rows) != 1 || rows[0].Kind != "kill-owner" {
		t.Errorf("%v, %v", rows, err)
	}
}

func TestTallies(t *testing.T) {
	build := Build{Commit: "abc", Product: "pair"}
	var rows []Row
	for i := range 100 { // 1 to 100 ms, and one of 1.5 s
		rows = append(rows, Row{Build: build, Kind: "kill-owner", Client: "qemu", StallQD1: 1, StallQD32: float64(i + 1)})
	}
	rows = append(rows, Row{Build: build, Kind: "kill-owner", Client: "libiscsi", StallQD1: 1500, Lost: 2, Errors: 1, Failed: "lost"})
	list := tallies(rows, build)
	if len(list) != 2 {
		t.Fatalf("%+v", list)
	}
	if q := list[0]; q.n != 100 || q.p99 != 99 || q.most != 100 || !q.met() || q.wrong != 0 {
		t.Errorf("%+v", q)
	}
	if l := list[1]; l.n != 1 || l.met() || l.wrong != 3 || l.failed != 1 {
		t.Errorf("%+v", l)
	}
	var text strings.Builder
	if err := printTallies(&text, list); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kill-owner", "short", "ok", "1500"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
}

// TestKinds: the goals are those that were promised.
func TestKinds(t *testing.T) {
	want := "kill-owner 1s, cut-owner 2s, stop-owner 2s, cut-mirror 2s, kill-other 2s, kill-witness 50ms, kill-both 0s, disk-errors 2s, planned-move 300ms"
	linux := "kill-owner 3.5s, cut-owner 3.5s, stop-owner 3.5s, cut-mirror 3.5s, kill-other 3.5s, kill-witness 0s, kill-both 0s, disk-errors 3.5s, planned-move 1s"
	all, err := choose("all")
	if err != nil {
		t.Fatal(err)
	}
	for client, want := range map[string]string{"qemu": want, "libiscsi": want, "linux": linux, "multipath": linux} {
		var got []string
		for _, k := range all {
			got = append(got, fmt.Sprintf("%s %v", k.name, k.goalOf(client)))
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s: %s", client, strings.Join(got, ", "))
		}
	}
	if _, err := choose("kill-owner,kill-everybody"); err == nil {
		t.Error("no error for a kind that is none")
	}
}
