package guard

import (
	"bytes"
	"io"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// TestReceive: an obituary is one JSON object, and nothing else.
func TestReceive(t *testing.T) {
	if o, err := Receive(strings.NewReader(`{"boot":7}`)); err != nil || o.Boot != 7 {
		t.Errorf("%v, %v", o, err)
	}
	for _, text := range []string{"", "no", `{"boot":"x"}`, strings.Repeat(" ", obituaryMax) + `{"boot":1}`} {
		if _, err := Receive(strings.NewReader(text)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

// TestRunWaits: a guard whose node was gone before it could watch says nothing,
// and one that was told nothing has nothing to say when the node ends.
func TestRunWaits(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Skip("no sleep here: ", err)
	}
	defer func() { _ = sleep.Process.Kill() }()
	if err := Run(strings.NewReader(""), sleep.Process.Pid, log); err != nil { // not our parent
		t.Error(err)
	}
}

// TestWaitFor: a pidfd tells the end of a process, not before.
func TestWaitFor(t *testing.T) {
	cat := exec.Command("cat")
	in, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cat.Stdout = &out
	if err := cat.Start(); err != nil {
		t.Skip("no cat here: ", err)
	}
	fd := pidfd(t, cat.Process.Pid)
	ended := make(chan error, 1)
	go func() { ended <- waitFor(fd) }()
	select {
	case err := <-ended:
		t.Fatalf("told of the end of a process that lives: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := io.WriteString(in, "x"); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the end of a process was not told")
	}
	if err := cat.Wait(); err != nil || out.String() != "x" {
		t.Errorf("%v, %q", err, out.String())
	}
}

func pidfd(t *testing.T, pid int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Skip("no pidfd here: ", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}
