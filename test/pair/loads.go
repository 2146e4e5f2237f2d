package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"steadfast/test/verify"
)

// The clients that load a pair.
var clientNames = []string{"qemu", "libiscsi", ownClient, "linux", multipathClient}

// clientsBy returns the clients that a flag's value means. Both are those of others
// that are processes here; the fourth is a guest, and takes its minutes. The fifth is
// such a guest, too, and wants a group that is reached by several paths.
func clientsBy(value string) (list []string, err error) {
	switch value {
	case "both":
		return clientNames[:2], nil
	case "all":
		return clientNames[:4], nil
	}
	for name := range strings.SplitSeq(value, ",") {
		if !slices.Contains(clientNames, name) || slices.Contains(list, name) {
			return nil, fmt.Errorf("no client %q, or twice: %s, several with commas, both (the first two) or all (the first four)", name, strings.Join(clientNames, ", "))
		}
		list = append(list, name)
	}
	return list, nil
}

// load is one client's volume under load.
type load struct {
	client string
	volume Volume
	loader
	// delays: its read-back goes through the load's own connection and takes its
	// turns, so that what is slow meanwhile is of our own making.
	delays bool
}

// loader is where and how a volume is loaded. One caller.
type loader interface {
	// Cut ends the window of every lane and begins the next.
	Cut(ctx context.Context) ([]verify.Window, error)
	// Settle waits until what is under way is answered.
	Settle(ctx context.Context) error
	// Counts and Findings are what was wrong so far.
	Counts() verify.Counts
	Findings() []verify.Finding
	// ReadBack reads everything, while the load goes on; fresh: through a
	// connection that knows nothing of what was, where the client has such.
	ReadBack(ctx context.Context, fresh bool) error
	// Stop ends the load after what is under way.
	Stop(ctx context.Context) error
	// Close ends all of it; what is under way fails.
	Close() error
}

// local is a loader in this process, its disks those of client processes.
type local struct {
	judge *verify.Judge
	disks []verify.Disk // by lane
	load  *verify.Load
	open  func(ctx context.Context) (verify.Disk, error)
}

// startLocal opens a client's connections, fills its volume and starts.
func startLocal(ctx context.Context, judge *verify.Judge, rateMax int, open func(ctx context.Context) (verify.Disk, error)) (l *local, err error) {
	l = &local{judge: judge, open: open}
	for range []int{laneQD1, laneQD32} {
		d, err := open(ctx)
		if err != nil {
			return l, err
		}
		l.disks = append(l.disks, d)
	}
	if err := verify.Fill(ctx, judge, l.disks[laneQD32]); err != nil {
		return l, err
	}
	l.load, err = verify.StartLoad(judge,
		verify.Lane{Disk: l.disks[laneQD1], Depth: 1, RateMax: rateMax},
		verify.Lane{Disk: l.disks[laneQD32], Depth: 32, RateMax: rateMax})
	return l, err
}

func (l *local) Cut(context.Context) ([]verify.Window, error) { return l.load.Cut(), nil }
func (l *local) Settle(ctx context.Context) error             { return l.load.Settle(ctx) }
func (l *local) Counts() verify.Counts                        { return l.judge.Counts() }
func (l *local) Findings() []verify.Finding                   { return l.judge.Findings() }

func (l *local) Stop(context.Context) error {
	l.load.Stop()
	return nil
}

func (l *local) ReadBack(ctx context.Context, fresh bool) error {
	if !fresh {
		return verify.ReadBack(ctx, l.judge, l.disks[laneQD1])
	}
	d, err := l.open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(verify.ReadBack(ctx, l.judge, d), d.Close())
}

func (l *local) Close() error {
	var err error
	for _, d := range l.disks {
		// First: it answers what is under way, so that the load can end.
		err = errors.Join(err, d.Close())
	}
	if l.load != nil {
		l.load.Stop()
	}
	return err
}

// startLoads starts every client.
func (r *runner) startLoads(ctx context.Context) error {
	for i, v := range r.pair.Volumes() {
		l := &load{client: r.clients[i], volume: v}
		r.loads = append(r.loads, l)
		var err error
		if isGuest(l.client) {
			var g *guest
			if g, err = r.startGuest(ctx, l.client, uint32(i+1), v); err == nil {
				l.loader, l.delays = g, true
			}
		} else {
			l.loader, err = startLocal(ctx, verify.NewJudge(uint32(i+1), v.Size), r.rateMax,
				func(ctx context.Context) (verify.Disk, error) { return r.connect(ctx, l.client, v) })
		}
		if err != nil {
			return fmt.Errorf("%s: %w", l.client, err)
		}
		if c := l.Counts(); !c.Clean() {
			return fmt.Errorf("%s: the first fill failed: %v", l.client, l.Findings())
		}
	}
	return nil
}

// connect opens a client's volume once more.
func (r *runner) connect(ctx context.Context, client string, volume Volume) (verify.Disk, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	log, err := r.world.log("client-" + client)
	if err != nil {
		return nil, err
	}
	c := verify.Client{
		Dir: r.world.folder.Path, Initiator: initiatorName, Log: log, Start: r.world.client.StartIn, NOP: r.nop, Env: r.env,
	}
	switch client {
	case "qemu":
		return verify.OpenQEMU(ctx, c, volume.URL)
	case ownClient:
		return openOwn(ctx, r.world.client, volume, log)
	}
	return verify.OpenLibiscsi(ctx, c, r.bridge, volume.URL)
}
