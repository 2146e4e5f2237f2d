package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestParse reads what the tool really prints for each kind of end.
func TestParse(t *testing.T) {
	const output = `
     CUnit - A unit testing framework for C - Version 2.1-3

Suite: One
  Test: Good ...passed
  Test: Skips ...    [SKIPPED] COMPAREANDWRITE is not implemented.
    [SKIPPED] COMPAREANDWRITE is not implemented.
passed
  Test: Bad ...    [FAILED] GET_LBA_STATUS successful but should have failed
FAILED
    1. test_get_lba_status_beyond_eol.c:38  - CU_ASSERT_EQUAL(_r,0)
  Test: Late ...passed    [FAILED] PRIN command: failed with sense.

Suite: Two
  Test: Good ...passed
  Test: Cut ...    Send a WRITE16
`
	got, err := parse(strings.NewReader(output))
	if err != nil {
		t.Fatal(err)
	}
	verdicts := map[string]verdict{}
	for name, o := range got {
		verdicts[name] = o.verdict
	}
	want := map[string]verdict{
		"One.Good": passed, "One.Skips": skipped, "One.Bad": failed, "One.Late": passed,
		"Two.Good": passed, "Two.Cut": missing,
	}
	if diff := cmp.Diff(want, verdicts); diff != "" {
		t.Error(diff)
	}
}

// TestCount shows that neither an unlisted skip nor a missing test is green.
func TestCount(t *testing.T) {
	skips := &skipList{rows: []skipRow{{ways: "*1", tests: "S.Allowed", reason: "r"}, {ways: "*", tests: "S.Never", reason: "r"}}}
	suites := []suite{{name: "S", tests: []string{"Good", "Allowed", "Other", "Bad", "Gone"}}}
	outcomes := map[string]outcome{
		"S.Good": {verdict: passed}, "S.Allowed": {verdict: skipped}, "S.Other": {verdict: skipped}, "S.Bad": {verdict: failed},
	}
	one := count(way{name: "suite1"}, suites, outcomes, skips)
	if want := (tally{passed: 1, failed: 3, skipped: 1}); one != want {
		t.Errorf("one portal: %+v, want %+v", one, want)
	}
	two := count(way{name: "suite2"}, suites, outcomes, skips)
	if want := (tally{passed: 1, failed: 4}); two != want {
		t.Errorf("two portals: %+v, want %+v", two, want)
	}
	if diff := cmp.Diff([]string{"* S.Never"}, skips.unused()); diff != "" {
		t.Error(diff)
	}
}

// TestSkipList holds the list of the repository to its form.
func TestSkipList(t *testing.T) {
	l, err := readSkips("skips.txt")
	if err != nil {
		t.Fatal(err)
	}
	if !l.allows("shot2", "Sanitize.Overwrite") || l.allows("suite1", "Read16.Simple") {
		t.Error("the list allows what it should not, or the other way round")
	}
	bad := filepath.Join(t.TempDir(), "skips")
	if err := os.WriteFile(bad, []byte("* Read16.*\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readSkips(bad); err == nil {
		t.Error("a skip without a reason was taken")
	}
}
