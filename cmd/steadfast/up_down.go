package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"steadfast/fault"
)

// Times of an end.
const (
	// downTime is how long a "steadfast up" may take to end in order: its machine shuts down,
	// and each of its processes has its own patience.
	downTime = 2 * time.Minute
	// downForce is how long what was killed may take to be gone.
	downForce = 30 * time.Second
	// downTell is how often it is said what is waited for.
	downTell = 10 * time.Second
)

// downCommand is "steadfast down".
func (a *app) downCommand() *cobra.Command {
	var dir string
	var keep, yes bool
	c := &cobra.Command{
		Use: "down", Short: "End the \"steadfast up\" that runs, and remove its data", Args: exactly(0),
		Long: `End the "steadfast up" that runs on the data directory, as Ctrl-C in its terminal does: the
machine shuts down, and then hosts, nodes and witness end. When all its processes are gone
the data directory is removed, with the volumes and the machine in it: it asks before, unless
--yes is given. With --keep-data it stays, and the next "steadfast up" goes on with it.

What "steadfast up" did not put into the directory is left there. The cache of built images
stays. Where nothing runs and nothing is left that is said, and is no error.`,
		Example: `  steadfast down
  steadfast down --keep-data
  steadfast down --data ./steadfast-data --yes`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := a.signals(cmd.Context())
			defer stop()
			return a.down(ctx, filepath.Clean(dir), keep, yes)
		},
	}
	c.Flags().StringVar(&dir, "data", "steadfast-data", "the data directory")
	c.Flags().BoolVar(&keep, "keep-data", false, "leave the data directory for the next \"steadfast up\"")
	c.Flags().BoolVar(&yes, "yes", false, "remove the data without a question")
	return c
}

func (a *app) down(ctx context.Context, dir string, keep, yes bool) error {
	s := site{a, dir}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		a.say("no \"steadfast up\" runs on %s, and there is no data: nothing to do\n", dir)
		return nil
	}
	if _, err := os.Stat(s.path(lockFile)); errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Invalid, "%s is no data directory of a \"steadfast up\" of two nodes, and is left alone; name the right one with --data (one of \"up --single\" is removed by hand)", dir)
	}
	if !keep {
		err := a.confirm(yes, "This ends what runs on %s, and REMOVES it with its volumes and its machine; --keep-data keeps them.", dir)
		if err != nil {
			return err
		}
	}
	lock, err := s.endUp(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if keep {
		a.say("the data stays in %s; \"steadfast up --data %s\" goes on with it\n", dir, dir)
		return nil
	}
	left, err := s.remove()
	if err != nil {
		return fault.Wrap(fault.Denied, err, "not all of "+dir+" could be removed; remove it by hand")
	}
	if len(left) > 0 {
		a.say("removed the data in %s; what is not of \"steadfast up\" stays there: %s\n", dir, strings.Join(left, ", "))
	} else {
		a.say("removed %s\n", dir)
	}
	return nil
}

// endUp ends the "steadfast up" of the directory, if one runs, and whatever one that was killed
// has left running. It returns with the lock that it had.
func (s site) endUp(ctx context.Context) (*os.File, error) {
	lock, err := lockFileIn(s.dir, lockFile)
	switch {
	case err == nil:
		s.a.say("no \"steadfast up\" runs on %s\n", s.dir)
	case fault.Is(err, fault.Busy):
		if lock, err = s.endHolder(ctx); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	if err := s.endMembers(ctx); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// endHolder ends who holds the lock, and returns with it.
func (s site) endHolder(ctx context.Context) (*os.File, error) {
	up, err := s.holder()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	s.a.say("ending \"steadfast up\" on %s, process %d\n", s.dir, up.Pid)
	if err := up.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return nil, fault.Wrap(fault.Denied, err, fmt.Sprintf("process %d cannot be ended; who started it can, or root", up.Pid))
	}
	for told, killed := began, false; ; {
		lock, err := lockFileIn(s.dir, lockFile)
		if err == nil {
			s.a.say("it has ended, after %.1f s\n", time.Since(began).Seconds())
			return lock, nil
		}
		if !fault.Is(err, fault.Busy) {
			return nil, err
		}
		switch waited := time.Since(began); {
		case waited > downTime+downForce:
			return nil, fault.New(fault.Unreachable, "process %d does not end, not even killed; see \"ps -p %d\"", up.Pid, up.Pid)
		case waited > downTime && !killed:
			killed = true
			s.a.say("it has not ended in %v, and is killed\n", downTime)
			_ = up.Kill() // it has just ended, then
		case time.Since(told) > downTell:
			told = time.Now()
			s.a.say("waiting for it, %.0f s: the machine shuts down, then hosts and nodes end\n", waited.Seconds())
		}
		select {
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Canceled, context.Cause(ctx), "not waited for; \"steadfast up\" goes on ending, and the data is there")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// holder finds the process that holds the lock.
func (s site) holder() (*os.Process, error) {
	const tries = 20 // it may have taken it just now
	for try := range tries {
		if try > 0 {
			time.Sleep(50 * time.Millisecond)
		}
		b, err := os.ReadFile(s.path(lockFile))
		if err != nil {
			return nil, fault.Wrap(fault.Denied, err, "cannot tell who runs")
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil || pid <= 1 {
			continue
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "who runs")
		}
		// The number may be another process's by now; what p refers to is not.
		again, err := os.ReadFile(s.path(lockFile))
		if err == nil && bytes.Equal(again, b) && holds(pid, s.path(lockFile)) {
			return p, nil
		}
	}
	return nil, fault.New(fault.Busy, "somebody holds %s, and it does not say who; end it by Ctrl-C where it runs, or see \"fuser %s\"", s.path(lockFile), s.path(lockFile))
}

// holds tells whether a process has a file open. proc_pid_fd(5).
func holds(pid int, path string) bool {
	want, err := os.Stat(path)
	if err != nil {
		return false
	}
	open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // the pattern is right
	return slices.ContainsFunc(open, func(fd string) bool {
		got, err := os.Stat(fd)
		return err == nil && os.SameFile(want, got)
	})
}

// endMembers waits until no process holds the directory of a member, or the switch's lock. Each
// ends by itself when "steadfast up" is gone; one that does not is killed.
func (s site) endMembers(ctx context.Context) error {
	began, killed := time.Now(), map[int]bool{}
	for {
		left := s.membersLeft()
		if len(left) == 0 {
			return nil
		}
		waited := time.Since(began)
		if waited > endPatience+downForce {
			return fault.New(fault.Unreachable, "these processes use %s and do not end: %v; end them by hand", s.dir, left)
		}
		for _, pid := range left {
			p, err := os.FindProcess(pid)
			if waited < endPatience || killed[pid] || err != nil || !slices.Contains(s.membersLeft(), pid) {
				continue
			}
			killed[pid] = true
			s.a.say("process %d has not ended in %v, and is killed\n", pid, endPatience)
			_ = p.Kill() // it has just ended, then
		}
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, context.Cause(ctx), "not waited for; the members end by themselves, and the data is there")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// membersLeft are the processes of members, and of the switch, that run: each holds a lock in
// the directory.
func (s site) membersLeft() (left []int) {
	for _, lock := range s.locksLeft() {
		pids, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
		for _, p := range pids {
			if pid, err := strconv.Atoi(filepath.Base(p)); err == nil && pid != os.Getpid() && holds(pid, s.path(lock)) {
				left = append(left, pid)
			}
		}
	}
	return left
}

// locksLeft are the locks of members, and of the switch, that somebody holds.
func (s site) locksLeft() (held []string) {
	locks := []string{"switch.sock.lock"}
	for _, m := range allMembers() {
		locks = append(locks, filepath.Join(m, "lock"))
	}
	for _, name := range locks {
		if _, err := os.Stat(s.path(name)); err != nil {
			continue
		}
		if f, err := lockFileIn(s.dir, name); err == nil {
			_ = f.Close() // nobody holds it
		} else if fault.Is(err, fault.Busy) {
			held = append(held, name)
		}
	}
	return held
}

// allMembers are the names that members of a "steadfast up" have.
func allMembers() []string {
	return append(append(nodes[:len(nodes):len(nodes)], upWitness), upHosts[:]...)
}

// remove removes what "steadfast up" has put into the directory, and the directory if nothing
// else is in it. It returns what else there is.
func (s site) remove() (left []string, err error) {
	ours := []string{
		membersFile, membersFile + ".new", runningFile, runningFile + ".new", madeFile, madeFile + ".new", demoFile, "images", "redis-server.default",
		"switch.sock", "switch.sock.control", "switch.sock.lock",
	}
	for _, m := range append(allMembers(), upSwitch) {
		ours = append(ours, m, m+".toml", m+".log", m+".log.old")
	}
	// The lock is last: until then nobody begins anew in what is going.
	for _, name := range append(ours, lockFile) {
		err = errors.Join(err, os.RemoveAll(s.path(name)))
	}
	if err != nil {
		return nil, err
	}
	rest, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	if len(rest) == 0 {
		return nil, os.Remove(s.dir)
	}
	for _, f := range rest {
		left = append(left, f.Name())
	}
	return left, nil
}
