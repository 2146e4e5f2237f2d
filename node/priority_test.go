package node

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDropPriority: a process that was preferred for its parent's sake is not any more, in
// all its threads. It runs in a process of its own, and needs to be one that may be preferred.
func TestDropPriority(t *testing.T) {
	const role = "STEADFAST_TEST_DROP_PRIORITY"
	if os.Getenv(role) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestDropPriority$", "-test.v")
		cmd.Env = append(os.Environ(), role+"=1")
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), "--- SKIP") {
			t.Skip("this user may not be preferred: ", string(out))
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -5); err != nil {
		t.Skip("no priority to give up: ", err)
	}
	RaisePriority()
	preferred := os.WriteFile("/proc/self/oom_score_adj", []byte("-100"), 0)
	if preferred != nil {
		t.Log("no preference in memory to give up: ", preferred)
	}
	DropPriority()
	now, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil || now != 20 {
		t.Errorf("it has the priority %d, %v", 20-now, err)
	}
	if b, err := os.ReadFile("/proc/self/oom_score_adj"); preferred == nil && (err != nil || strings.TrimSpace(string(b)) != "0") {
		t.Errorf("it has the score %q, %v", b, err)
	}
}
