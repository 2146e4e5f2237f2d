package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"steadfast/compute/vmhome/lockread"
	"steadfast/fault"
	"steadfast/internal/journal"
	"steadfast/node"
)

// The load of a demonstration.
const (
	// demoClients are so many connections, one request at a time on each.
	demoClients = 8
	// demoKeep is how long Redis keeps what a demonstration that was killed has written.
	demoKeep = time.Hour
	// demoAnswers are how many answers each client is to have before a kill, and after it.
	demoAnswers = 5
)

// demoOptions are the flags of "steadfast demo".
type demoOptions struct {
	dir    string
	own    bool
	cache  string
	rounds int
	kills  []string
}

// demoCommand is "steadfast demo".
func (a *app) demoCommand() *cobra.Command {
	o := demoOptions{rounds: 1}
	var only string
	c := &cobra.Command{
		Use: "demo", Short: "Kill hosts, nodes, the witness and whole boxes under a checked load, on loopback", Args: noSuchCommand,
		Long: `Use the Redis of the machine that "steadfast up" runs, and kill with SIGKILL, one after another,
what it stands on: the host that it lives on, that of its secondary, the storage node that
owns its disk, the witness, and whole boxes, a storage node with a host at once. A box is
killed when it is the one that owns the storage and runs the machine: once where another
member leads the quorum, and once where it does. As the witness leads while it is well, it
stands still until a node does, and is woken when that box is killed.

Clients append to lists in Redis, which answers when its file is flushed. Each request has a
number of its own and is never sent twice; every answer is checked, and all is read back after
each kill and at the end. A kill counts only if its target was at work, and if another has
taken over: for the machine its lock says so. What was killed is started again by
"steadfast up", and the next kill follows when the machine is protected and both nodes have
all data.

It ends with a table: what was killed; go-live, from the kill to the moment in which the other
host went on; stall, the longest that a request took which met with the kill; later, the
longest that another one took until the machine was protected again; in sync and protected,
when both nodes had all data again, and the machine a secondary, from the kill, where the
kill has ended that; all in seconds.

Killed or interrupted itself, it leaves what it runs on as it is: dead processes are started
again. Without "steadfast up" on the data directory, and without --data, one is started in a
temporary directory, and removed.

The exit status is 0 only if nothing was lost, duplicated or wrong, and no client had to
connect again.`,
		Example: `  steadfast demo
  steadfast demo --data ./steadfast-data --rounds 3
  steadfast demo --kill primary,box-leader
  steadfast demo --own`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.rounds < 1 {
				return fault.New(fault.Invalid, "--rounds %d is less than 1", o.rounds)
			}
			var err error
			if o.kills, err = killNames(only); err != nil {
				return err
			}
			ctx, stop := a.signals(cmd.Context())
			defer stop()
			if !o.own && !cmd.Flags().Changed("data") {
				_, err := (site{a, o.dir}).running()
				o.own = fault.Is(err, fault.Unreachable)
			}
			o.dir = filepath.Clean(o.dir)
			if o.own {
				return a.demoRunOwn(ctx, o)
			}
			return a.demoRun(ctx, o)
		},
	}
	c.Flags().StringVar(&o.dir, "data", "steadfast-data", "the data directory of the \"steadfast up\" that runs")
	c.Flags().BoolVar(&o.own, "own", false, "start one in a temporary directory, and remove it after")
	c.Flags().StringVar(&o.cache, "image-cache", "", "with --own: folder of built images (default steadfast/images in the user's cache)")
	c.Flags().IntVar(&o.rounds, "rounds", 1, "how often each is killed")
	c.Flags().StringVar(&only, "kill", strings.Join(allKills(), ","), "what is killed, in this order, with commas")
	c.MarkFlagsMutuallyExclusive("own", "data")
	c.AddCommand(a.demoKillOwner())
	return c
}

// killNames reads the names of kinds.
func killNames(list string) ([]string, error) {
	names := strings.Split(list, ",")
	for i, n := range names {
		names[i] = strings.TrimSpace(n)
		if !slices.Contains(allKills(), names[i]) {
			return nil, fault.New(fault.Invalid, "--kill %q is none of %s", n, strings.Join(allKills(), ", "))
		}
	}
	return names, nil
}

// demoRunOwn does it to a "steadfast up" that is there for that alone.
func (a *app) demoRunOwn(ctx context.Context, o demoOptions) (err error) {
	dir, err := os.MkdirTemp("", "steadfast-demo-")
	if err != nil {
		return fault.Wrap(fault.Denied, err, "cannot make a temporary directory; set TMPDIR")
	}
	defer func() {
		gone := os.RemoveAll(dir)
		if gone == nil {
			a.say("removed %s\n", dir)
		}
		if err == nil {
			err = fault.Wrap(fault.Failed, gone, "the temporary directory stays")
		}
	}()
	a.say("starting \"steadfast up\" in %s\n", dir)
	p, err := a.openPair(upOptions{dir: dir, poolSize: 4 << 30, volumeSize: 64 << 20, machine: true, cache: o.cache, restart: restartAfter})
	if err != nil {
		return err
	}
	ended := false
	end := func() {
		if !ended {
			p.end()
		}
		ended = true
	}
	defer end()
	if err := p.bringUp(ctx); err != nil {
		return err
	}
	if p.vm == nil || !p.vm.ready {
		return fault.New(fault.Failed, "there is no machine to demonstrate on; what kept it from being there was said above")
	}
	a.say("\n\"steadfast up\" is there after %.0f s\n", time.Since(p.began).Seconds())
	o.dir = dir
	d, err := a.openDemo(ctx, o)
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.all(ctx); err != nil {
		return err
	}
	end()
	return d.conclude()
}

// demoRun does it to the "steadfast up" of a directory.
func (a *app) demoRun(ctx context.Context, o demoOptions) error {
	d, err := a.openDemo(ctx, o)
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.all(ctx); err != nil {
		return err
	}
	return d.conclude()
}

// siteDemo is a demonstration on a whole site.
type siteDemo struct {
	site
	o       demoOptions
	held    *os.File // demoFile
	lock    *lockread.Reader
	clients []*journal.Client
	began   time.Time
	rows    []demoRow
	total   journal.Stats
	stall   time.Duration // the longest of all
}

// openDemo finds what there is, and starts the clients.
func (a *app) openDemo(ctx context.Context, o demoOptions) (d *siteDemo, err error) {
	d = &siteDemo{site: site{a, o.dir}, o: o, began: time.Now()}
	up, err := d.running()
	if err != nil {
		return nil, err
	}
	if up.Redis == "" {
		return nil, fault.New(fault.Busy, "the \"steadfast up\" on %s has no machine with a Redis that answers, or not yet; wait until it says that Steadfast is up, and see what it says of the machine", d.dir)
	}
	if d.held, err = lockFileIn(d.dir, demoFile); err != nil {
		return nil, fault.Wrap(fault.KindOf(err), err, "another \"steadfast demo\" runs on "+d.dir)
	}
	begun := d // what is returned with an error is none
	defer func() {
		if err != nil {
			begun.close()
		}
	}()
	st, err := d.steady(ctx, nil)
	if err != nil {
		return nil, err
	}
	auth, err := node.AccessOf(d.path(nodes[0]))
	if err != nil {
		return nil, err
	}
	if d.lock, err = lockread.Open(ctx, lockread.Options{VM: st.machine.Id, Target: up.Target, Portal: up.Portal, Auth: auth, Tag: 'd'}); err != nil {
		return nil, err
	}
	for i := range demoClients {
		c, err := journal.Start(ctx, journal.Options{
			Key: fmt.Sprintf("steadfast-demo:%d:%d", d.began.UnixNano(), i), KeepFor: demoKeep,
			Dial: func(ctx context.Context) (net.Conn, error) {
				return (&net.Dialer{Timeout: probePatience}).DialContext(ctx, "tcp", up.Redis)
			},
		})
		if err != nil {
			if ctx.Err() != nil {
				return nil, fault.Wrap(fault.Canceled, context.Cause(ctx), "the demonstration; nothing was killed yet")
			}
			return nil, fault.Wrap(fault.Unreachable, err, "the machine's Redis at "+up.Redis)
		}
		d.clients = append(d.clients, c)
	}
	d.a.say("\n%d clients use the Redis at %s, which answers when its file is flushed. Killed with SIGKILL: %s\n", demoClients, up.Redis, strings.Join(o.kills, ", "))
	return d, nil
}

// close ends the clients, and removes what they have written.
func (d *siteDemo) close() {
	ctx, cancel := context.WithTimeout(context.Background(), takeoverTime/2)
	defer cancel()
	_ = d.each(func(c *journal.Client) error {
		c.Stop(ctx)
		err := c.Remove(ctx) // else Redis does, after demoKeep
		c.Close()
		return err
	})
	d.clients = nil
	_ = d.held.Close() // which gives the lock back
}

// each does something with all clients at once.
func (d *siteDemo) each(do func(*journal.Client) error) error {
	errs := make([]error, len(d.clients))
	var all sync.WaitGroup
	for i, c := range d.clients {
		all.Go(func() { errs[i] = do(c) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// stats are all clients'.
func (d *siteDemo) stats() (s journal.Stats) {
	for _, c := range d.clients {
		s.Add(c.Stats())
	}
	return s
}

// waited is the longest that a request of any client took which was under way between two
// moments.
func (d *siteDemo) waited(from, to time.Time) (longest time.Duration) {
	for _, c := range d.clients {
		longest = max(longest, c.Waited(from, to))
	}
	return longest
}

// flowing waits until each client has more answers.
func (d *siteDemo) flowing(ctx context.Context) error {
	var from []int
	for _, c := range d.clients {
		from = append(from, c.Stats().Answers)
	}
	return d.await(ctx, syncTime, func() (bool, string) {
		for i, c := range d.clients {
			if c.Stats().Answers < from[i]+demoAnswers {
				return false, fmt.Sprintf("client %d has got %d answers of %d", i, c.Stats().Answers-from[i], demoAnswers)
			}
		}
		return true, ""
	})
}

// await waits until something holds; what it says otherwise is told when it is late.
func (d *siteDemo) await(ctx context.Context, within time.Duration, holds func() (bool, string)) error {
	late := time.NewTimer(within)
	defer late.Stop()
	for {
		good, why := holds()
		if good {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, context.Cause(ctx), "the demonstration; what was killed is started again by \"steadfast up\", and the machine gets a secondary by itself")
		case <-late.C:
			return fault.New(fault.Unreachable, "after %v: %s; the logs of all are in %s", within, why, d.dir)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// all kills one after another, and reads everything back.
func (d *siteDemo) all(ctx context.Context) error {
	for range d.o.rounds {
		for _, name := range d.o.kills {
			row, err := d.kill(ctx, kinds()[name])
			if err != nil {
				return fault.Wrap(fault.KindOf(err), err, name)
			}
			d.rows = append(d.rows, row)
			d.a.say("kill %d: %s\n", len(d.rows), row.text())
		}
	}
	d.stall = max(d.stall, d.waited(time.Time{}, time.Now()))
	err := d.each(func(c *journal.Client) error {
		c.Stop(ctx)
		return c.ReadAll(ctx)
	})
	d.total = d.stats()
	return fault.Wrap(fault.Unreachable, err, "reading back")
}

// conclude tells what came of it.
func (d *siteDemo) conclude() error {
	for _, f := range d.total.Findings {
		d.a.say("%s\n", f)
	}
	d.a.say("\n%s", demoTable(d.rows))
	s := d.total
	d.a.say("read back: %d entries, of %d requests of which %d were answered; %d wrong; %.0f s in all\n", s.ReadBack, s.Requests, s.Answers, s.Wrong, time.Since(d.began).Seconds())
	if _, err := fmt.Fprintf(d.a.out, "demo: %d kills, %d requests, %d lost, %d duplicated, %d reconnects, stall max %.2f s\n", len(d.rows), s.Requests, s.Lost, s.Duplicated, s.Reconnects, d.stall.Seconds()); err != nil {
		return err
	}
	if !s.Clean() || s.Reconnects > 0 {
		return exitStatus(fault.Corrupt.Of().Exit)
	}
	return nil
}

// demoRow is what came of one kill. A time of 0 is none.
type demoRow struct {
	name, what              string
	live                    time.Duration // until the other host went on
	stall, later            time.Duration
	synced, protected       time.Duration // until it was so again
	requests, reconnects    int
	lost, duplicated, wrong int
}

// text is a row in a line.
func (r demoRow) text() string {
	text := r.what
	if r.live > 0 {
		text += fmt.Sprintf("; the secondary went on after %.2f s", r.live.Seconds())
	}
	text += fmt.Sprintf("; stall %.2f s, later %.2f s; %d requests, %d lost, %d duplicated, %d wrong, %d reconnects",
		r.stall.Seconds(), r.later.Seconds(), r.requests, r.lost, r.duplicated, r.wrong, r.reconnects)
	if r.synced > 0 {
		text += fmt.Sprintf("; in sync after %.1f s", r.synced.Seconds())
	}
	if r.protected > 0 {
		text += fmt.Sprintf("; protected again after %.1f s", r.protected.Seconds())
	}
	return text
}

// demoTable prints the rows.
func demoTable(rows []demoRow) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "KILLED\tWHAT\tGO-LIVE\tSTALL\tLATER\tREQUESTS\tLOST\tDUPLICATED\tWRONG\tRECONNECTS\tIN SYNC\tPROTECTED")
	after := func(d time.Duration, format string) string {
		if d <= 0 {
			return "-"
		}
		return fmt.Sprintf(format, d.Seconds())
	}
	for _, r := range rows {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t%.2f\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", r.name, r.what, after(r.live, "%.2f"), r.stall.Seconds(), r.later.Seconds(),
			r.requests, r.lost, r.duplicated, r.wrong, r.reconnects, after(r.synced, "%.1f"), after(r.protected, "%.1f"))
	}
	_ = w.Flush() // into memory
	return b.String()
}
