package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/test/testbed"
)

// A blow is what is done to a machine on two hosts.
type blow struct {
	// takeover: the secondary goes on. either: it may as well be the primary.
	takeover, either bool
	// same: the pair stays as it is, and is protected all the time.
	same bool
	// steer is where the machine is to live before.
	steer box
	// do strikes; undo undoes what is left of it, when the machine is protected again, or at
	// once when it cannot be before.
	do, undo func(ctx context.Context, t *trial, was *pair) error
}

const anywhere box = -1

// Limits of what a machine on two hosts may be silent for, and of getting another secondary.
const (
	limitKilled    = time.Second
	limitSilent    = 1600 * time.Millisecond
	limitBoth      = 3 * time.Second
	limitPlanned   = 200 * time.Millisecond
	limitProtected = 10 * time.Second
)

// ftKinds are what is done to a machine on two hosts, with a third one at hand.
func ftKinds() []kind {
	return onThree([]kind{
		ft("ft-killed", "kill -9 of the host that the machine lives on, and all that it started", limitKilled, blow{
			takeover: true, steer: anywhere, do: killPrimary, undo: startAll,
		}),
		ft("ft-vmm-killed", "kill -9 of the machine's own process", limitKilled, blow{
			takeover: true, steer: anywhere, do: killMachine, undo: nothing,
		}),
		ft("ft-cut", "the machine's host is cut off from storage, members and its secondary, later killed", limitSilent, blow{
			takeover: true, steer: boxC, do: cutPrimary, undo: killCut,
		}),
		ft("ft-frozen", "the machine's host is stopped (SIGSTOP) for 10 s, with the machine", limitSilent, blow{
			takeover: true, steer: anywhere, do: freezePrimary, undo: wakePrimary,
		}),
		ft("ft-log-cut", "the logging link is cut, with both alive", limitSilent, blow{
			either: true, steer: anywhere, do: cutLog, undo: mendAll,
		}),
		ft("ft-secondary-killed", "kill -9 of the secondary's host", limitKilled, blow{
			steer: anywhere, do: killSecondary, undo: startAll,
		}),
		ft("ft-owner-killed", "kill -9 of the storage node that owns the group", time.Second+overhead, blow{
			same: true, steer: anywhere, do: killOwner, undo: startAll,
		}),
		ft("ft-owner-and-host", "the owner and the machine's host are killed in the same second", limitBoth, blow{
			takeover: true, steer: anywhere, do: killOwnerAndPrimary, undo: startAll,
		}),
		ft("ft-failover", "a test failover", limitPlanned, blow{
			takeover: true, steer: anywhere, do: testFailover, undo: nothing,
		}),
		{name: "ft-full", once: true, does: "the pools get full under a machine on two hosts, and a drive is added", ft: true, do: ftFull},
		{name: "ft-panic", once: true, does: "the kernel of a machine on two hosts panics: that is no failover", ft: true, do: ftEnds(panics)},
		{name: "ft-shutdown", once: true, does: "a machine on two hosts powers off: that is no failover", ft: true, do: ftEnds(shutdown)},
		{name: coldName, once: true, does: "everything is killed, and started again: all that was ever acknowledged is read back", ft: true, do: ftCold},
	})
}

// coldName is the last kind, which is tried after any other of a machine on two hosts.
const coldName = "ft-cold"

// inCI are those that CI has the time for.
var inCI = []string{"ft-killed", "ft-owner-and-host"}

func ft(name, does string, limit time.Duration, b blow) kind {
	return kind{name: name, does: does, limit: limit, ci: slices.Contains(inCI, name), ft: true, do: b.strike}
}

// metWithin is how long after a blow without a takeover the requests are sent that meet with it:
// what they need from the other host is missing at once, and one is under way at a time. With
// a takeover it is until the other host speaks.
const metWithin = 200 * time.Millisecond

// goLivePatience bounds how long nobody may speak as the machine.
const goLivePatience = 30 * time.Second

// strike is one round.
func (b blow) strike(ctx context.Context, t *trial, k kind) (said string, err error) {
	if err := t.hostsUp(ctx); err != nil {
		return "", err
	}
	was, err := t.pair(ctx)
	if b.steer != anywhere && err == nil {
		was, err = t.steer(ctx, b.steer)
	}
	if err != nil {
		return "", err
	}
	l := loaded{t: t}
	if err := l.begin(ctx); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, l.end(ctx)) }()
	before, _ := t.redis.waited()
	t.watch.mark()
	t.redis.mark()
	struck := time.Now()
	if err := b.do(ctx, t, was); err != nil {
		return "", err
	}
	x, now, err := b.measure(ctx, t, was, struck)
	if err != nil {
		return "", err
	}
	if err := b.undo(ctx, t, was); err != nil {
		return "", err
	}
	if _, err := t.whole(ctx); err != nil {
		return "", err
	}
	if err := t.redis.flowing(ctx, answersAfter, guestPatience); err != nil {
		return "", err
	}
	n, read, err := b.judge(ctx, t, was, now, &l)
	if err != nil {
		return "", err
	}
	x.load = loadNow()
	t.run.measured(k, x)
	said = fmt.Sprintf("%s (limit %.1f s), before %.2f s; %d answers, all read back, on one connection; %d segments, %d bytes again and the same, %d twice; turn %d.%d to %d.%d",
		x, k.limit.Seconds(), before.Seconds(), read, n.segments, n.again, n.twice, was.lock.Generation, was.lock.Turn, now.lock.Generation, now.lock.Turn)
	if slow := x.stall > k.limit || x.live > k.limit || x.protected > limitProtected; slow {
		t.told(k, struck)
		if t.run.goals {
			return "", &tooLong{said}
		}
	}
	return said, nil
}

// told keeps with the logs what was said on the wire around a blow.
func (t *trial) told(k kind, struck time.Time) {
	log, err := t.world.log(fmt.Sprintf("wire-%s-%d", k.name, len(t.run.samples[k.name])))
	if err != nil {
		fmt.Println("     what was on the wire cannot be kept:", err)
		return
	}
	t.watch.tell(log, struck)
}

// measure waits for what is to come of a blow, and returns the pair that there is then.
func (b blow) measure(ctx context.Context, t *trial, was *pair, struck time.Time) (x sample, now *pair, err error) {
	met := struck.Add(metWithin)
	if b.takeover {
		if met, err = t.watched(ctx, was.s, goLivePatience); err != nil {
			return x, nil, err
		}
		x.live = max(1, met.Sub(struck))
	}
	if err := t.redis.flowing(ctx, answersAfter, guestPatience); err != nil {
		return x, nil, err
	}
	x.stall = t.redis.waitedFrom(time.Time{}, met)
	if b.same {
		now, err = t.pair(ctx)
		return x, now, err
	}
	m, err := t.awaitMachine(ctx, protectPatience, "protected again", func(m *steadfastv1.Machine) bool {
		return protected(m) && m.Protection.Pair != was.machine.Protection.Pair
	})
	if err != nil {
		return x, nil, err
	}
	again := m.Protection.Since.AsTime()
	x.protected, x.copy = again.Sub(struck), t.redis.waitedFrom(met, again)
	now, err = t.pair(ctx)
	return x, now, err
}

// judge says whether all was well. It returns what was seen, and how many requests were read
// back.
func (b blow) judge(ctx context.Context, t *trial, was, now *pair, l *loaded) (n tally, read int, err error) {
	switch {
	case b.takeover && now.p != was.s:
		return n, 0, fmt.Errorf("the machine lives on %s, and its secondary was on %s", now.p, was.s)
	case b.takeover && now.lock.Owner != was.lock.Partner:
		return n, 0, fmt.Errorf("the lock was not the secondary's to take: %+v, and then %+v", was.lock, now.lock)
	case !b.takeover && !b.either && (now.p != was.p || now.lock.Owner != was.lock.Owner):
		return n, 0, fmt.Errorf("the machine lives on %s, and did on %s: %+v, and then %+v", now.p, was.p, was.lock, now.lock)
	case !b.same && !now.lock.After(was.lock):
		return n, 0, fmt.Errorf("this does not count, the lock block has not risen: %+v, and then %+v", was.lock, now.lock)
	case b.same && (now.lock != was.lock || now.s != was.s):
		return n, 0, fmt.Errorf("the pair is another one: %+v, and then %+v", was.lock, now.lock)
	case now.machine.Restarts != was.machine.Restarts || now.machine.Generation != was.machine.Generation:
		return n, 0, fmt.Errorf("the machine was restarted: generation %d is %d; %s", was.machine.Generation, now.machine.Generation, now.machine.Reason)
	}
	l.on = false
	if err := t.redis.end(); err != nil {
		return n, 0, err
	}
	if read, err = t.redis.readNew(); err != nil {
		return n, read, err
	}
	n, err = t.oneLived(was, now.p)
	return n, read, errors.Join(err, t.oneLives(ctx, now))
}

func nothing(context.Context, *trial, *pair) error { return nil }

// startAll starts whatever was killed.
func startAll(ctx context.Context, t *trial, _ *pair) error { return t.start(ctx, t.all()...) }

// mendAll mends all links.
func mendAll(_ context.Context, t *trial, _ *pair) error {
	var err error
	for i := range t.hosts {
		err = errors.Join(err, t.world.mend(box(i)))
	}
	return err
}

func killPrimary(_ context.Context, t *trial, was *pair) error { return t.hosts[was.p].Kill() }

func killSecondary(_ context.Context, t *trial, was *pair) error { return t.hosts[was.s].Kill() }

func killMachine(_ context.Context, t *trial, was *pair) error {
	for _, p := range machinesOf(t.hosts[was.p].PID()) {
		if err := unix.Kill(p.pid, unix.SIGKILL); err != nil {
			return err
		}
	}
	return nil
}

func cutPrimary(_ context.Context, t *trial, was *pair) error { return t.world.cutOff(was.p) }

// killCut is what comes of a host that was cut off: it is killed, and started again.
func killCut(ctx context.Context, t *trial, was *pair) error {
	if err := errors.Join(t.hosts[was.p].Kill(), t.world.mend(was.p)); err != nil {
		return err
	}
	return startAll(ctx, t, was)
}

// freezePrimary stops the host with the machine. It is woken frozes later, which is when the
// machine is protected again on the others, as a rule.
func freezePrimary(_ context.Context, t *trial, was *pair) error {
	t.frozen = time.Now()
	return signalTree(t.hosts[was.p].PID(), syscall.SIGSTOP)
}

func wakePrimary(ctx context.Context, t *trial, was *pair) error {
	pause(ctx, frozes-time.Since(t.frozen))
	if err := signalTree(t.hosts[was.p].PID(), syscall.SIGCONT); err != nil {
		return err
	}
	// It is to say nothing as the machine now.
	pause(ctx, hold)
	return nil
}

func cutLog(_ context.Context, t *trial, was *pair) error {
	return t.world.net.CutBetween(was.p.port(logs), was.s.port(logs))
}

// owner is the storage node that owns the group.
func (t *trial) owner(ctx context.Context) (*testbed.Daemon, error) {
	g, err := t.whole(ctx)
	if err != nil {
		return nil, err
	}
	b, ok := t.boxOf(g.Owner)
	if !ok || b >= withNode {
		return nil, fmt.Errorf("the group's owner is %q, which is no node of ours", g.Owner)
	}
	return t.nodes[b], nil
}

func killOwner(ctx context.Context, t *trial, _ *pair) error {
	d, err := t.owner(ctx)
	if err != nil {
		return err
	}
	return d.Kill()
}

func killOwnerAndPrimary(ctx context.Context, t *trial, was *pair) error {
	return errors.Join(killOwner(ctx, t, was), killPrimary(ctx, t, was))
}

func testFailover(ctx context.Context, t *trial, _ *pair) error {
	_, err := steadfastv1connect.NewFaultToleranceServiceClient(t.nodes[boxA].API(), "http://node").
		TestFailover(ctx, &steadfastv1.TestFailoverRequest{Machine: machineName})
	return err
}

// ftFull: a machine on two hosts waits for space as any other, and is protected all the time.
func ftFull(ctx context.Context, t *trial, k kind) (string, error) {
	was, err := t.pair(ctx)
	if err != nil {
		return "", err
	}
	t.watch.mark()
	if err := t.guest.resume(ctx); err != nil {
		return "", err
	}
	said, err := full(ctx, t, k)
	if err != nil {
		return "", err
	}
	now, err := t.pair(ctx)
	if err != nil {
		return "", err
	}
	if now.lock != was.lock {
		return "", fmt.Errorf("the pair is another one: %+v, and then %+v", was.lock, now.lock)
	}
	_, err = t.oneLived(was, now.p)
	return said + ", protected all the time", err
}

// ftEnds: a guest that ends by itself ends on both hosts, and nobody takes over. One that begins
// anew is protected again.
func ftEnds(ends func(context.Context, *trial, kind) (string, error)) func(context.Context, *trial, kind) (string, error) {
	return func(ctx context.Context, t *trial, k kind) (string, error) {
		was, err := t.pair(ctx)
		if err != nil {
			return "", err
		}
		if err := t.guest.resume(ctx); err != nil {
			return "", err
		}
		t.watch.mark()
		old, _ := t.beats.present()
		if err := t.redis.conn.Close(); err != nil { // of the boot that ends
			return "", err
		}
		said, err := ends(ctx, t, k)
		if err != nil {
			return "", err
		}
		turns, _, err := t.watch.since()
		if err != nil || len(turns) != 1 {
			return "", errors.Join(fmt.Errorf("the hosts that spoke as the machine were not %v alone: %s", was.p, turnsText(turns)), err)
		}
		if m, err := t.machine(ctx); err == nil && !running(m) {
			if err := t.startMachine(ctx); err != nil {
				return "", err
			}
			if err := t.settled(ctx, old); err != nil {
				return "", err
			}
		}
		t.watch.boot, _ = t.beats.present()
		began := time.Now()
		if _, err := t.pair(ctx); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s; no failover; protected again %.1f s after it ran", said, time.Since(began).Seconds()), nil
	}
}

// ftCold: after all that was done to it the guest has seen no trouble; and when everything was
// dead at once, what it boots from has all that was ever acknowledged.
func ftCold(ctx context.Context, t *trial, k kind) (string, error) {
	if err := t.guest.resume(ctx); err != nil {
		return "", err
	}
	if err := t.guest.healthy(ctx); err != nil {
		return "", err
	}
	t.watch.mark()
	said, err := power(ctx, t, k)
	if err != nil {
		return "", err
	}
	t.watch.boot, _ = t.beats.present()
	began := time.Now()
	if _, err := t.pair(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, protected again %.1f s later", said, time.Since(began).Seconds()), nil
}
