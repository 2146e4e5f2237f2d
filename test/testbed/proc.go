package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Proc is a process of a namespace, with all that it started: signals go to the
// group.
type Proc struct{ *process }

// StartProc starts argv in a namespace, its output appended to log. It dies with
// the harness.
func StartProc(space *Space, log *os.File, argv ...string) (*Proc, error) {
	var p *process
	err := space.Do(func() (err error) {
		p, err = start(log, nil, argv...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Proc{p}, nil
}

// StartIn starts a command that somebody else prepared.
func (s *Space) StartIn(cmd *exec.Cmd) error { return s.Do(cmd.Start) }

// PID is the process that leads the group.
func (p *Proc) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the group; one that is gone heeds none.
func (p *Proc) Signal(sig syscall.Signal) error {
	if gone, _ := p.exited(); gone {
		return nil
	}
	if err := syscall.Kill(-p.PID(), sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// Kill ends the group, stopped or not, and waits until its leader is gone. On
// nil it does nothing.
func (p *Proc) Kill() error {
	if p == nil {
		return nil
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	select {
	case exit := <-p.done:
		p.done <- exit // for Exited
		return nil
	case <-time.After(killPatience):
		return fmt.Errorf("process %d did not end within %v of SIGKILL", p.PID(), killPatience)
	}
}

// killPatience is how long the kernel may take to end a process that was killed:
// one that waits for a drive takes its time.
const killPatience = 30 * time.Second

// Exited tells whether the process is gone, and how it went.
func (p *Proc) Exited() (bool, error) { return p.exited() }

// Await calls ready until it succeeds, the process ends, or ctx is done.
func (p *Proc) Await(ctx context.Context, ready func() error) error { return p.await(ctx, ready) }
