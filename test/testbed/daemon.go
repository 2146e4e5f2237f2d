package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Daemon is one process of the product in a namespace, with a folder of its own, and the
// command line that tends it. One caller at a time, but for
// CLI and API.
type Daemon struct {
	Name  string
	Space *Space
	// Dir is its folder. Config and Socket lie there; a Unix socket's path holds 108 bytes at
	// most, so it is to be short.
	Dir string
	Bin string
	Log *os.File // takes what it prints, and is its owner's to close
	// Args are what comes after the program's name.
	Args []string

	proc *Proc
	once sync.Once
	api  *http.Client
}

// daemonPatience bounds how long a daemon may take until it answers: the machine may be busy.
const daemonPatience = time.Minute

// Config is the path of its configuration file, if it has one.
func (d *Daemon) Config() string { return filepath.Join(d.Dir, "steadfast.toml") }

// Data is where it keeps what it must not lose.
func (d *Daemon) Data() string { return filepath.Join(d.Dir, "data") }

// Socket is its API's.
func (d *Daemon) Socket() string { return filepath.Join(d.Dir, "api.sock") }

// Start starts it and waits until its API answers. One that runs is left alone.
func (d *Daemon) Start(ctx context.Context) (err error) {
	if d.proc != nil {
		return nil
	}
	if d.proc, err = StartProc(d.Space, d.Log, append([]string{d.Bin}, d.Args...)...); err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, daemonPatience)
	defer cancel()
	err = d.proc.Await(ctx, func() error {
		_, err := d.CLI(ctx, "status")
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", d.Name, err)
	}
	return nil
}

// Kill ends it as a crash does, and waits until it is gone.
func (d *Daemon) Kill() error {
	err := d.proc.Kill()
	d.proc = nil
	return err
}

// Pause stops it where it stands, Resume lets it go on: the process with its group.
func (d *Daemon) Pause() error { return d.signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (d *Daemon) Resume() error { return d.signal(syscall.SIGCONT) }

func (d *Daemon) signal(sig syscall.Signal) error {
	if d.proc == nil {
		return fmt.Errorf("%s does not run", d.Name)
	}
	return d.proc.Signal(sig)
}

// Runs tells whether it was started and not killed.
func (d *Daemon) Runs() bool { return d.proc != nil }

// PID is its process, 0 when it does not run.
func (d *Daemon) PID() int {
	if d.proc == nil {
		return 0
	}
	return d.proc.PID()
}

// CLI runs the program's command line against it and returns what that prints. What it prints
// to stderr is for the error only.
func (d *Daemon) CLI(ctx context.Context, args ...string) (string, error) {
	out, err := d.Command(ctx, args...).Output()
	if err == nil {
		return string(out), nil
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return "", fmt.Errorf("steadfast %s (on %s): %w", strings.Join(args, " "), d.Name, err)
}

// Command prepares a command line against it.
func (d *Daemon) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, d.Bin, append([]string{"--socket", d.Socket()}, args...)...)
}

// API is a client of its API without a process for each question; any host's name will do.
func (d *Daemon) API() *http.Client {
	d.once.Do(func() {
		d.api = &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", d.Socket())
			},
		}}
	})
	return d.api
}
