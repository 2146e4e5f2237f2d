package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
)

const (
	// leadTries is how often the node may be elected that was not wanted.
	leadTries = 20
	// leadTime bounds how long an election may take on a slow machine.
	leadTime = 30 * time.Second
)

// lead has the group's owner lead the quorum, until wake. The witness leads while it is well, as
// nothing else is in its box; so it stands still from here on, and a node that was elected and is
// not the owner gives it its place back for another try.
func (d *siteDemo) lead(ctx context.Context, s *standing) (wake func(), err error) {
	for range leadTries {
		if err := d.led(ctx, upWitness); err != nil {
			return nil, err
		}
		if wake, err = d.halt(upWitness); err != nil {
			return nil, err
		}
		if err = d.led(ctx, nodes[:]...); err != nil {
			wake()
			return nil, err
		}
		// The group, too, is to stand as before.
		now := &standing{}
		why, err := d.look(ctx, now)
		if d.leaderSeen(ctx, s.group.Owner) == s.group.Owner && err == nil && why == "" && now.group.Epoch == s.group.Epoch && now.machine.Protection.Pair == s.machine.Protection.Pair {
			s.leader = s.group.Owner
			return wake, nil
		}
		wake()
	}
	return nil, fault.New(fault.Busy, "node %s was not elected to lead in %d tries; is this computer very busy? Try again, or leave it out with --kill", s.group.Owner, leadTries)
}

// led waits until both nodes know that one of some members leads.
func (d *siteDemo) led(ctx context.Context, members ...string) error {
	return d.await(ctx, leadTime, func() (bool, string) {
		a, b := d.leaderSeen(ctx, nodes[0]), d.leaderSeen(ctx, nodes[1])
		return a == b && slices.Contains(members, a), fmt.Sprintf("the quorum is led by %q, says node a, and by %q, says node b, and %v were to", a, b, members)
	})
}

// leaderSeen is who leads the quorum, as a member knows it; "": it knows none.
func (d *siteDemo) leaderSeen(ctx context.Context, member string) string {
	ctx, cancel := context.WithTimeout(ctx, groupTime)
	defer cancel()
	r, err := d.at(member).clusters().GetCluster(ctx, &steadfastv1.GetClusterRequest{})
	if err != nil {
		return ""
	}
	return r.Cluster.Leader
}

// halt stops a member where it stands, until wake: if this process ends before, another one that
// waits for that wakes it.
func (d *siteDemo) halt(member string) (wake func(), err error) {
	pid, err := d.processOf(member)
	if err != nil {
		return nil, err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "the process of member "+member)
	}
	// It reads what never comes, to the end of this process.
	waker := exec.Command("/bin/sh", "-c", fmt.Sprintf("cat >/dev/null; kill -CONT %d", pid))
	waker.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is not its end
	in, err := waker.StdinPipe()
	if err == nil {
		err = waker.Start()
	}
	if err != nil {
		return nil, fault.Wrap(fault.Failed, err, "who would wake member "+member)
	}
	wake = sync.OnceFunc(func() {
		_ = p.Signal(syscall.SIGCONT) // it has just ended, then
		_ = in.Close()
		_ = waker.Wait()
	})
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		wake()
		return nil, fault.Wrap(fault.Denied, err, "member "+member+" cannot be stopped")
	}
	return wake, nil
}
