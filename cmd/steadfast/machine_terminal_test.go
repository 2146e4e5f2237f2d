package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/machine/machinetest"
)

// openTerminal makes a pseudo-terminal: pts(4).
func openTerminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here: ", err)
	}
	t.Cleanup(func() { ours.Close() })
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

// TestTerminal: a terminal is the console until it is left, and is then as it was; keys
// that end other programs are the guest's.
func TestTerminal(t *testing.T) {
	ours, theirs := openTerminal(t)
	before, err := unix.IoctlGetTermios(int(theirs.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kernel, disk := filepath.Join(dir, "kernel"), filepath.Join(dir, "disk")
	for name, b := range map[string][]byte{kernel: machinetest.Obey(), disk: make([]byte, 1<<20)} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/proc/self/exe", "machine", "run", "--kernel", kernel, "--disk", disk, "--net", "user", "--memory", "64M", "--console")
	cmd.Args[0] = "steadfast"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	seen := ""
	expect := func(want string) {
		t.Helper()
		for b, end := make([]byte, 4096), time.Now().Add(patience); !strings.Contains(seen, want); {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(ours.Fd()), Events: unix.POLLIN}}, 100)
			if err != nil && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
				t.Fatalf("no %q in %q, %v", want, seen, err)
			}
			if n > 0 {
				if n, err = ours.Read(b); err != nil {
					t.Fatal(seen, err)
				}
				seen += string(b[:n])
			}
		}
		_, seen, _ = strings.Cut(seen, want)
	}
	typed := func(text string) {
		if _, err := ours.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	expect("up\n")
	typed("a\x03b\x01\x01c")
	expect("a\x03b\x01c")
	typed("\x01?")
	expect("Ctrl-A d")
	typed("\x01d")
	expect("the machine runs on")
	after, err := unix.IoctlGetTermios(int(theirs.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal was left as %+v, %v; it was %+v", after, err, before)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	expect("the power button is pressed")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
