package main

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/test/testbed"
)

// TestSummary: of each kind the middle and the worst are told, and what is beyond its limit shows.
func TestSummary(t *testing.T) {
	k := kind{name: "box-x", does: "this and that", limit: 3 * time.Second, form: twoBoxes}
	other := kind{name: "ft-x", does: "something", limit: 1600 * time.Millisecond, form: threeHosts}
	r := &run{samples: map[string][]sample{}}
	for _, seconds := range []int{3, 1, 4} {
		d := time.Duration(seconds) * time.Second
		r.measured(k, sample{live: d / 2, stall: d, whole: 2 * d, protected: time.Millisecond, load: float64(seconds) / 2})
		r.measured(other, sample{stall: d / 4, protected: 3 * d, copy: d})
	}
	var b strings.Builder
	r.summary(&b, []kind{other, {name: "moved", form: threeHosts}, k})
	const want = `sum  ft-x  3 rounds; stall p50 0.750 max 1.000 s; protected p50 9.000 max 12.000 s; meanwhile p50 3.000 max 4.000 s; load 0.0 to 0.0
sum  box-x  3 rounds; live p50 1.500 max 2.000 s; stall p50 3.000 max 4.000 s; in sync p50 6.000 max 8.000 s; protected p50 0.001 max 0.001 s; load 0.5 to 2.0

| kind | limit of live and stall | live | stall | protected | meanwhile | rounds | load |
| --- | --- | --- | --- | --- | --- | --- | --- |
| ` + "`ft-x`" + `: something | 1.6 s |  | 0.75, 1.00 s | **9.00, 12.00 s (short)** | 3.00, 4.00 s | 3 | 0 to 0 |


| kind | limit of live and stall | live | stall | told | in sync | answers | protected | meanwhile | rounds | load |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| ` + "`box-x`" + `: this and that | 3 s | 1.50, 2.00 s | **3.00, 4.00 s (short)** |  | 6.00, 8.00 s |  | 0.00, 0.00 s |  | 3 | 0 to 2 |

`
	if b.String() != want {
		t.Errorf("said\n%s", b.String())
	}
}

// TestFollower: a machine whose other box is away is said to need a secondary, with a reason, and
// nothing else until that is back.
func TestFollower(t *testing.T) {
	from := time.Now()
	machine := func(why, because string) *steadfastv1.Machine {
		return &steadfastv1.Machine{State: "running", Host: "hb", Protection: &steadfastv1.Protection{
			Protected: why == "", Why: why, Because: because, Since: timestamppb.New(from),
		}}
	}
	for what, said := range map[string][]*steadfastv1.Machine{
		"":                        {machine("", ""), machine("Starting", "lost connection"), machine(needsSecondary, "lost connection"), machine(needsSecondary, "lost connection")},
		"is not said to be":       {machine("", ""), machine("Starting", "lost connection")},
		"with a reason":           {machine(needsSecondary, "")},
		"and then, with":          {machine(needsSecondary, "lost connection"), machine("", "")},
		"\"Starting\" because of": {machine(needsSecondary, "lost connection"), machine("Starting", "lost connection"), machine(needsSecondary, "lost connection")},
	} {
		var f follower
		for i, m := range said {
			f.hears(m, from.Add(time.Duration(i)*time.Second))
		}
		took, err := f.needed(from)
		switch {
		case what == "" && (err != nil || took != 2*time.Second):
			t.Errorf("what is right is not: %v, %v", took, err)
		case what != "" && (err == nil || !strings.Contains(err.Error(), what)):
			t.Errorf("%q is not noticed: %v", what, err)
		}
	}
}

// TestPowerOff: all processes of a box end, also those that nobody of ours has started, and none of
// another box.
func TestPowerOff(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip("SKIP: " + why)
	}
	w, err := newWorld(t.TempDir(), twoBoxes)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSite(w, "none")
	if err != nil {
		t.Fatal(err)
	}
	log, err := w.log("sleep")
	if err != nil {
		t.Fatal(err)
	}
	var procs [2]*testbed.Proc
	for b := range procs {
		if procs[b], err = testbed.StartProc(w.spaces[b], log, "sh", "-c", "setsid sleep 600 & wait"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, p := range procs {
			_ = signalTree(p.PID(), unix.SIGKILL)
			_ = p.Kill()
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	tr := &trial{site: s}
	count := func(b box) int {
		list, err := tr.processesOn(b)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	for end := time.Now().Add(time.Minute); count(boxA) != 2 || count(boxB) != 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d and %d processes are on the boxes, where 2 and 2 are", count(boxA), count(boxB))
		}
	}
	if err := tr.powerOff(boxA); err != nil {
		t.Fatal(err)
	}
	if a, b := count(boxA), count(boxB); a != 0 || b != 2 {
		t.Errorf("%d and %d processes are left, where 0 and 2 are to be", a, b)
	}
}
