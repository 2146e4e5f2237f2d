package node

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
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

// TestRaisePriority: a session of the node's own is preferred to others; one that it shares with
// others is left as it is.
func TestRaisePriority(t *testing.T) {
	const role = "STEADFAST_TEST_RAISE_PRIORITY"
	weight := func() string {
		b, err := os.ReadFile(autogroupFile) // "/autogroup-N nice N"
		if err != nil {
			t.Skip("SKIP: this kernel weighs no sessions: ", err)
		}
		_, nice, _ := strings.Cut(strings.TrimSpace(string(b)), " nice ")
		return nice
	}
	if os.Getenv(role) == "" {
		for _, own := range []bool{true, false} {
			cmd := exec.Command(os.Args[0], "-test.run=^TestRaisePriority$", "-test.v")
			cmd.Env = append(os.Environ(), role+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: own}
			out, err := cmd.CombinedOutput()
			if strings.Contains(string(out), "--- SKIP") {
				t.Skip("SKIP: this user may not be preferred: ", string(out))
			}
			if err != nil {
				t.Errorf("a session of its own: %t: %v\n%s", own, err, out)
			}
		}
		return
	}
	before := weight()
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -1); err != nil {
		t.Skip("SKIP: no priority to be had: ", err)
	}
	RaisePriority()
	want := before
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() {
		want = "-10"
	}
	if after := weight(); after != want {
		t.Errorf("its session has the niceness %s, and had %s; want %s", after, before, want)
	}
}
