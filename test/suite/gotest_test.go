package main

import (
	"io"
	"strings"
	"testing"
)

// TestCountEvents counts each kind of end that go test has.
func TestCountEvents(t *testing.T) {
	const events = `{"Action":"start","Package":"a"}
{"Action":"run","Package":"a","Test":"TestX"}
{"Action":"pass","Package":"a","Test":"TestX"}
{"Action":"pass","Package":"a","Test":"TestX/sub"}
{"Action":"output","Package":"a","Test":"TestY","Output":"    y_test.go:3: needs root\n"}
{"Action":"skip","Package":"a","Test":"TestY"}
{"Action":"pass","Package":"a"}
{"Action":"fail","Package":"b","Test":"TestZ"}
{"Action":"fail","Package":"b"}
{"Action":"build-output","ImportPath":"c [c.test]","Output":"c.go:1: no\n"}
{"Action":"fail","Package":"c","FailedBuild":"c [c.test]"}
{"Action":"skip","Package":"d"}
`
	seen := ""
	got, err := countEvents(io.Discard, strings.NewReader(events), func(text string) { seen += text })
	if err != nil {
		t.Fatal(err)
	}
	if want := (tally{passed: 2, failed: 2, skipped: 1}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	if want := "    y_test.go:3: needs rootc.go:1: no"; seen != want {
		t.Errorf("saw %q, want %q", seen, want)
	}
	if _, err := countEvents(io.Discard, strings.NewReader("panic: no json\n"), func(string) {}); err == nil {
		t.Error("output that is no event was taken")
	}
}

// TestEcho reads the counts of a harness's last line.
func TestEcho(t *testing.T) {
	got, counted, err := echo(io.Discard, strings.NewReader("suite1 3 passed\nconformance: 3 passed, 1 failed, 2 skipped\n"))
	if err != nil || !counted {
		t.Fatalf("counted=%v err=%v", counted, err)
	}
	if want := (tally{passed: 3, failed: 1, skipped: 2}); got != want {
		t.Errorf("read %+v, want %+v", got, want)
	}
	if _, counted, _ := echo(io.Discard, strings.NewReader("crashed\n")); counted {
		t.Error("counts out of nothing")
	}
}

// TestCheck refuses a stage that is not there.
func TestCheck(t *testing.T) {
	if check("vet,unit") != nil || check("vet,unti") == nil {
		t.Error("stages are not checked by name")
	}
}

// TestSumSeeds adds up what several simulations count.
func TestSumSeeds(t *testing.T) {
	seeds, failed := sumSeeds([]string{"sim: 12 takeovers", "sim: 20 seeds, 1 failed", "sim: 1000 seeds, 2 failed"})
	if seeds != 1020 || failed != 3 {
		t.Errorf("%d seeds, %d failed", seeds, failed)
	}
}
