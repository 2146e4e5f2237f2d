package testbed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
)

// childMark is the environment variable that tells the child of Supervise.
const childMark = "STEADFAST_HARNESS_CHILD"

// Supervised tells whether this process is the child of Supervise, which does the work.
func Supervised() bool { return os.Getenv(childMark) != "" }

// Supervise runs this program again as a child with mounts of its own, passes signals on, and
// sweeps the folders that it leaves in parent under a prefix: also after a panic, which nobody
// inside can clean up after. It returns the exit status. It needs root.
func Supervise(parent, prefix string) int {
	code, err := supervise()
	if err = errors.Join(err, Sweep(parent, prefix)); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
	}
	return code
}

func supervise() (code int, err error) {
	runtime.LockOSThread() // the child dies with this thread
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), childMark+"=1")
	// Mounts of its own end with it, and nobody else's namespace copies them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true, Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // or it has just ended
		}
	}()
	_ = cmd.Wait() // the exit status says it
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code, nil
	}
	return 1, nil
}
