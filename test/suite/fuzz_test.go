package main

import "testing"

// TestEndedByDeadline tells the end of a fuzz run's time from what a target found.
func TestEndedByDeadline(t *testing.T) {
	const begins = "fuzz: elapsed: 3s, execs: 33419 (0/sec), new interesting: 2 (total: 138)\n"
	for out, want := range map[string]bool{
		begins + "--- FAIL: FuzzDecode (3.04s)\n    context deadline exceeded\nFAIL\nexit status 1\nFAIL\tsteadfast/san/lun/reserve\t3.066s\n":                                               true,
		begins + "--- FAIL: FuzzX (0.73s)\n    --- FAIL: FuzzX (0.00s)\n        x_test.go:3: context deadline exceeded\n    \n    Failing input written to testdata/fuzz/FuzzX/3f3e\nFAIL\n": false,
		begins + "--- FAIL: FuzzX (0.73s)\n    context deadline exceeded\n    Failing input written to testdata/fuzz/FuzzX/3f3e\nFAIL\n":                                                     false,
		"# steadfast/x\nx.go:1:1: syntax error\nFAIL\tsteadfast/x [build failed]\n":                                                                                                          false,
		"": false,
	} {
		if endedByDeadline(out) != want {
			t.Errorf("%q", out)
		}
	}
}
