package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"steadfast/fault"
	"steadfast/node/guard"
)

// endPatience is how long a member is given to end before it is killed.
const endPatience = 20 * time.Second

// logBytesMax is what a member's log file grows to before it is begun anew, at a
// start of the member; one older file is kept.
const logBytesMax = 16 << 20

// child is a member that runs as a process of its own, and is started again when it
// ends. It is in a process group of its own: Ctrl-C is ours to pass on, in order.
type child struct {
	name    string
	member  string   // what its files are called by
	args    []string // of this program
	log     string   // path of what it prints
	restart time.Duration
	say     func(format string, args ...any)

	stopping chan struct{}
	done     chan struct{}
	once     sync.Once

	mu      sync.Mutex
	process *os.Process // nil: it does not run
	starts  int
	failed  error // why it cannot be started
}

// startChild starts a child.
func startChild(c *child) *child {
	c.stopping, c.done = make(chan struct{}), make(chan struct{})
	go c.run()
	return c
}

// run starts the child, and starts it again, until it is to stop. If this process
// is killed, the child is told to end by the kernel; that is tied to the thread
// that started it, so this goroutine keeps its thread.
func (c *child) run() {
	defer close(c.done)
	runtime.LockOSThread()
	for {
		err := c.runOnce()
		select {
		case <-c.stopping:
			return
		default:
		}
		if err != nil {
			c.mu.Lock()
			c.failed = err
			c.mu.Unlock()
			c.say("%s cannot be started: %v", c.name, err)
		}
		select {
		case <-c.stopping:
			return
		case <-time.After(c.restart):
		}
	}
}

// runOnce runs the child once. The error is that it cannot be started.
func (c *child) runOnce() error {
	self, err := os.Executable()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "this program's path")
	}
	if info, err := os.Stat(c.log); err == nil && info.Size() > logBytesMax {
		_ = os.Rename(c.log, c.log+".old") // else it grows on
	}
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fault.Wrap(fault.Denied, err, "its log")
	}
	cmd := exec.Command(self, c.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	err = cmd.Start()
	_ = log.Close() // the child has it
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.process = cmd.Process
	c.starts++
	again := c.starts > 1
	c.mu.Unlock()
	if again {
		c.say("%s was started again, as process %d", c.name, cmd.Process.Pid)
	}
	err = cmd.Wait()
	c.mu.Lock()
	c.process = nil
	c.mu.Unlock()
	select {
	case <-c.stopping:
	default:
		c.say("%s (process %d) has ended: %s; it is started again in %v, as a service manager would", c.name, cmd.Process.Pid, ending(err), c.restart)
	}
	return nil
}

// ending says how a process ended.
func ending(err error) string {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "by itself"
	case errors.As(err, &exit):
		return exit.String()
	}
	return err.Error()
}

// running returns the process's identifier, or 0, and how often it was started.
func (c *child) running() (pid, starts int, failed error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process != nil {
		pid = c.process.Pid
	}
	return pid, c.starts, c.failed
}

// end ends the child for good, and returns when it has. It reports whether the
// child did so by itself.
func (c *child) end() bool {
	c.once.Do(func() { close(c.stopping) })
	clean := true
	t := time.NewTimer(endPatience)
	defer t.Stop()
	c.signal(syscall.SIGTERM)
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		select {
		case <-c.done:
			return clean
		case <-again.C:
			if clean {
				continue
			}
			c.signal(syscall.SIGKILL)
		case <-t.C:
			clean = false
			c.signal(syscall.SIGKILL)
		}
	}
}

// signal sends a signal to the process, if it runs.
func (c *child) signal(s syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process != nil {
		_ = c.process.Signal(s) // it has just ended, then
	}
}

// lastWords returns the end of what the child printed.
func (c *child) lastWords() string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-2):], "\n")
}

// guards finds the guards that a node has beside it: they end by themselves once
// they have told the others, and need not when there are none.
func guards(node int) (list []*os.Process) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is right
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		words := strings.Split(string(bytes.TrimRight(b, "\x00")), "\x00")
		if len(words) != 3 || words[1] != guard.Command || words[2] != strconv.Itoa(node) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || parentOf(pid) != node {
			continue
		}
		if p, err := os.FindProcess(pid); err == nil {
			list = append(list, p)
		}
	}
	return list
}

// parentOf returns a process's parent, or 0. proc_pid_stat(5).
func parentOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(fields[1]) // 0 if it is none
	return parent
}
