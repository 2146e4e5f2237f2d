package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/handed/trial"
)

// Times of a demo.
const (
	calmTime     = time.Second // of load before and after each kill
	takeoverTime = time.Minute // to wait for a takeover on a slow machine
)

func (a *app) demoKillOwner() *cobra.Command {
	var dir string
	var kills int
	c := &cobra.Command{
		Use: "kill-owner", Short: "Kill the node that serves, under verified I/O, and tell what a client sees", Args: exactly(0),
		Long: `Write and read back blocks over iSCSI, kill the process of the node that owns the
group with SIGKILL, and tell what the client saw: how long its longest request
took, and whether anything was lost, wrong or answered with an error. The dead
node is started again, and when both are in sync the next kill follows.

It is done to the "steadfast up" that runs on the data directory. Without one,
and without --data, a pair is started in a temporary directory, and removed.

The exit status is 0 only when nothing was lost, wrong or answered with an error.`,
		Example: `  steadfast demo kill-owner
  steadfast demo kill-owner --data ./steadfast-data --kills 10`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kills < 1 {
				return fault.New(fault.Invalid, "--kills %d is less than 1", kills)
			}
			ctx, stop := a.signals(cmd.Context())
			defer stop()
			if !cmd.Flags().Changed("data") {
				if _, err := (site{a, dir}).running(); fault.Is(err, fault.Unreachable) {
					return a.demoOwn(ctx, kills)
				}
			}
			return a.demoOn(ctx, filepath.Clean(dir), kills)
		},
	}
	c.Flags().StringVar(&dir, "data", "steadfast-data", "the data directory of the \"steadfast up\" that runs")
	c.Flags().IntVar(&kills, "kills", 3, "how often the owner is killed")
	return c
}

// demoOwn does it to a pair that is there for that alone.
func (a *app) demoOwn(ctx context.Context, kills int) (err error) {
	dir, err := os.MkdirTemp("", "steadfast-demo-")
	if err != nil {
		return fault.Wrap(fault.Denied, err, "cannot make a temporary directory; set TMPDIR")
	}
	defer func() {
		if gone := os.RemoveAll(dir); err == nil {
			err = fault.Wrap(fault.Failed, gone, "the temporary directory stays")
		}
	}()
	a.say("no \"steadfast up\" runs: starting two nodes and a witness in %s\n", dir)
	quiet := *a
	quiet.out = io.Discard
	p, err := quiet.openPair(upOptions{dir: dir, poolSize: 256 << 20, volumeSize: 16 << 20, restart: time.Second})
	if err != nil {
		return err
	}
	defer p.end()
	if err := p.bringUp(ctx); err != nil {
		return err
	}
	return a.demoOn(ctx, dir, kills)
}

// demo is a demonstration on a pair that runs.
type demo struct {
	site
	load  *trial.Load
	stall time.Duration // the longest of all
}

// demoOn does it to the pair of a directory.
func (a *app) demoOn(ctx context.Context, dir string, kills int) error {
	d := &demo{site: site{a, dir}}
	up, err := d.running()
	if err != nil {
		return err
	}
	lock, err := lockFileIn(dir, demoFile)
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, "another \"steadfast demo\" runs on "+dir)
	}
	defer lock.Close()
	disk, err := d.openDisk(ctx, "demo", up.Portal, up.Target, up.LUN)
	if err != nil {
		return err
	}
	defer disk.Close()
	if d.load, err = trial.Start(ctx, disk, demoRegion); err != nil {
		return err
	}
	err = d.run(ctx, kills)
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeoverTime)
	defer cancel()
	if !d.load.Stop(patience) {
		return fault.New(fault.Unreachable, "requests have no answer after %v; see \"steadfast --socket %s group show %s\"", takeoverTime, d.socket(nodes[0]), upGroup)
	}
	if err != nil {
		return err
	}
	return d.conclude(ctx, kills)
}

// run kills the owner so many times.
func (d *demo) run(ctx context.Context, kills int) error {
	for n := 1; n <= kills; n++ {
		if err := d.kill(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// kill kills the owner once, and waits until all is as before.
func (d *demo) kill(ctx context.Context, n int) error {
	before, err := d.awaitGroup(ctx, "in sync", syncTime, inSync)
	if err != nil {
		return err
	}
	d.load.ResetLongest()
	if err := d.progress(ctx, calmTime); err != nil {
		return err
	}
	pid, err := d.murder(before.Owner)
	if err != nil {
		return err
	}
	killed := time.Now()
	after, err := d.awaitGroup(ctx, "taken over", takeoverTime, func(g *steadfastv1.Group) bool {
		return g.Epoch > before.Epoch && g.State == "serving"
	})
	if err == nil {
		err = d.progress(ctx, calmTime)
	}
	if err != nil {
		return err
	}
	s := d.load.Stats()
	d.stall = max(d.stall, s.Longest)
	d.a.say("kill %d: node %s (process %d) was killed; node %s owns group %s now, epoch %d. The client: longest stall %.2f s, %d requests so far, %d lost, %d wrong, %d errors.\n",
		n, before.Owner, pid, after.Owner, upGroup, after.Epoch, s.Longest.Seconds(), s.Requests, s.Lost, s.Wrong, s.Failed)
	if _, err := d.awaitGroup(ctx, "in sync", syncTime, inSync); err != nil {
		return err
	}
	d.a.say("        node %s was started again; both in sync %.1f s after the kill.\n", before.Owner, time.Since(killed).Seconds())
	d.stall = max(d.stall, d.load.Stats().Longest)
	return nil
}

// murder kills the process that serves a node's API.
func (d *demo) murder(node string) (pid int, err error) {
	if pid, err = d.processOf(node); err != nil {
		return 0, err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return 0, fault.Wrap(fault.NotFound, err, "the process of node "+node)
	}
	// The number may be another process's by now; what p refers to is not.
	if again, err := d.processOf(node); err != nil || again != pid {
		return 0, fault.New(fault.Busy, "node %s has just ended by itself; try again", node)
	}
	return pid, fault.Wrap(fault.Denied, p.Kill(), "node "+node+" cannot be killed")
}

// progress lets the load go on for a time, and until it has got answers.
func (d *demo) progress(ctx context.Context, calm time.Duration) error {
	late := time.NewTimer(takeoverTime)
	defer late.Stop()
	began, had := time.Now(), d.load.Stats().Requests
	for time.Since(began) < calm || d.load.Stats().Requests < had+2*trial.Workers {
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, context.Cause(ctx), "under load")
		case <-late.C:
			return fault.New(fault.Unreachable, "the client has got no answers for %v", takeoverTime)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// conclude reads everything back and tells what came of it.
func (d *demo) conclude(ctx context.Context, kills int) error {
	if err := d.load.ReadBack(ctx); err != nil {
		return err
	}
	s := d.load.Stats()
	for _, f := range s.Findings {
		d.a.say("WRONG: %s\n", strings.TrimSpace(f))
	}
	d.a.say("read back: every block of %d MiB; %d reads verified in all, %d I/O errors\n", demoRegion.Size>>20, s.Verified, s.Failed)
	if _, err := fmt.Fprintf(d.a.out, "demo: %d kills, %d requests, %d lost, %d wrong, stall max %.2f s\n", kills, s.Requests, s.Lost, s.Wrong, d.stall.Seconds()); err != nil {
		return err
	}
	if !s.Clean() {
		return exitStatus(fault.Corrupt.Of().Exit)
	}
	return nil
}
