// Package testbed starts what the harnesses under test/ measure: a steadfast
// node of this tree, or tgt, the peer it is held against. Both serve the same
// volumes under the same LUN numbers, so that one harness judges either.
//
// Everything a server makes lies in its Dir; every process it starts is in a
// group of its own, dies with the harness (PDEATHSIG) and is reaped by Stop or
// Kill. No process stays behind a harness that was itself killed; its folder
// and its control groups do.
package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Volume is a volume that a server serves.
type Volume struct {
	Name       string
	Size       int64 // bytes
	LUN        int
	WriteCache bool // answer writes before they are stable
	ReadOnly   bool
}

// Initiator is who may log in, and how.
type Initiator struct {
	Name string // IQN
	// User and Secret are asked of the initiator; empty: no CHAP.
	User, Secret string
	// MutualUser and MutualSecret are what the target answers with; empty:
	// one-way CHAP.
	MutualUser, MutualSecret string
}

// Config is what a server is made with.
type Config struct {
	Dir        string   // absolute; made if it is not there
	Portals    []string // host:port, at least one
	Volumes    []Volume
	Initiators []Initiator
	// CacheBytes bounds the server's own cache, where it has one; 0: its default.
	CacheBytes int64
	// MemoryBytes bounds all memory of the server's processes, the page cache
	// they fill included, by a cgroup; 0: no bound. Needs root.
	MemoryBytes int64
	// Log receives what the server prints; nil: Dir/server.log.
	Log *os.File
}

// Target is the target name that both servers use.
const Target = "iqn.2026-11.io.steadfast:testbed"

// Server is a running storage server.
type Server interface {
	// Name is "steadfast" or "tgt".
	Name() string
	// Start starts the server again after Stop or Kill; New leaves it running.
	Start(ctx context.Context) error
	// Stop ends it as an admin would (SIGTERM) and waits.
	Stop() error
	// Kill ends it as a crash would (SIGKILL) and waits.
	Kill() error
	// PID is the process that serves, or 0.
	PID() int
	// URL names a volume for libiscsi, through the given portal.
	URL(portal, lun int) string
	// Close stops it and gives back what it holds (its cgroup); Dir stays.
	Close() error
}

// New makes and starts a server by its name, with its volumes ready to use.
func New(ctx context.Context, name string, cfg Config) (Server, error) {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	switch name {
	case "steadfast":
		return newSteadfast(ctx, cfg)
	case "tgt":
		return newTgt(ctx, cfg, "")
	case "tgt-durable":
		return newTgt(ctx, cfg, "sync:direct")
	}
	return nil, fmt.Errorf("no server %q: steadfast, tgt or tgt-durable", name)
}

// FreePort returns a TCP port that was free on every given host just now.
func FreePort(hosts ...string) (int, error) {
	for range 50 {
		l, err := net.Listen("tcp", net.JoinHostPort(hosts[0], "0"))
		if err != nil {
			return 0, err
		}
		port := l.Addr().(*net.TCPAddr).Port
		free := true
		for _, host := range hosts[1:] {
			other, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
			if err != nil {
				free = false
				break
			}
			_ = other.Close()
		}
		_ = l.Close()
		if free {
			return port, nil
		}
	}
	return 0, errors.New("no port is free on all hosts")
}

// process is one child that serves.
type process struct {
	cmd  *exec.Cmd
	done chan error // receives the exit once
}

// start runs argv with its output appended to log. With a cgroup, a shell
// enters it and becomes the server, so that no page is charged elsewhere.
func start(log *os.File, cgroup *Cgroup, argv ...string) (*process, error) {
	if cgroup != nil {
		argv = append([]string{"/bin/sh", "-c", `echo $$ >"$0" && exec "$@"`, cgroup.Procs()}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan error, 1)}
	go func() { p.done <- cmd.Wait() }()
	return p, nil
}

// end signals the process, waits for its exit and says if that took too long.
func (p *process) end(sig syscall.Signal, patience time.Duration) error {
	if p == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-p.done:
		if sig == syscall.SIGKILL {
			return nil
		}
		return err
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		exit := <-p.done
		return fmt.Errorf("%s did not end within %v of signal %v: %w", filepath.Base(p.cmd.Path), patience, sig, exit)
	}
}

// exited returns the exit if the process is gone, without waiting.
func (p *process) exited() (gone bool, exit error) {
	select {
	case exit = <-p.done:
		p.done <- exit
		return true, exit
	default:
		return false, nil
	}
}

// await calls ready until it succeeds, the process ends, or ctx is done.
func (p *process) await(ctx context.Context, ready func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		if gone, exit := p.exited(); gone {
			return fmt.Errorf("%s ended while starting: %w", filepath.Base(p.cmd.Path), exit)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		case <-tick.C:
		}
	}
}

// dial tells whether something accepts on address.
func dial(address string) error {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}

// openLog returns cfg's log, making one in Dir if there is none.
func openLog(cfg *Config) (*os.File, error) {
	if cfg.Log != nil {
		return cfg.Log, nil
	}
	return os.OpenFile(filepath.Join(cfg.Dir, "server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
}

// run executes a command to its end and returns its output, which the error
// also carries.
func run(ctx context.Context, argv ...string) (string, error) {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// url builds the libiscsi URL of a LUN.
func url(portal string, lun int) string {
	return fmt.Sprintf("iscsi://%s/%s/%d", portal, Target, lun)
}
