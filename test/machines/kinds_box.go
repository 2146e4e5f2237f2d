package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/test/testbed"
)

// Times of a box that is lost.
const (
	// awayFor is how long it is away, and cutFor how long one that is cut off lives still.
	awayFor = 10 * time.Second
	cutFor  = 5 * time.Second
	// darkFor is how long the power is off.
	darkFor = time.Second
)

// boxKinds are what is done to a site of two boxes and a witness: the box that dies is half of all
// there is, and the machine has no host left to be protected by until it is back.
func boxKinds() []kind {
	return []kind{
		{name: "box-killed", does: "all processes of the box with the owner, the primary and the leader are killed at once", limit: limitBoth, ft: true, form: twoBoxes, do: boxLost(fall{strike: killBox})},
		{name: "box-cut", does: "all links of that box go down; it is killed later", limit: limitBoth, ft: true, form: twoBoxes, do: boxLost(fall{strike: cutBox, dies: cutFor})},
		{name: "box-apart", does: "all links of that box go down, and up again later; nothing is killed", limit: limitBoth, ft: true, form: twoBoxes, do: boxLost(fall{strike: cutBox, lives: true})},
		{name: "box-power", does: "all processes of all boxes are killed at once under load, and started again", ft: true, form: twoBoxes, do: boxPower},
		{name: "box-stale", does: "one box is killed, then, when the other goes on, that and the witness; the first comes back before it, and waits for it", ft: true, form: twoBoxes, do: boxStale},
	}
}

// A fall is how a box is lost.
type fall struct {
	strike func(t *trial, at box) error
	// dies is when its processes are killed if they are not at once; lives: they never are.
	dies  time.Duration
	lives bool
}

func killBox(t *trial, at box) error { return t.powerOff(at) }

func cutBox(t *trial, at box) error { return t.world.unplug(at) }

// boxLost is a round in which a box is lost that has the group's owner, the machine's primary and
// the quorum's leader, and comes back. Nobody does anything about it but to start what was killed.
func boxLost(f fall) func(context.Context, *trial, kind) (string, error) {
	return func(ctx context.Context, t *trial, k kind) (said string, err error) {
		if err := t.hostsUp(ctx); err != nil {
			return "", err
		}
		was, err := t.pair(ctx)
		if err != nil {
			return "", err
		}
		g, err := t.ownedBy(ctx, was.p)
		if err != nil {
			return "", err
		}
		l := loaded{t: t}
		if err := l.begin(ctx); err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, l.end(ctx)) }()
		defer func() { err = errors.Join(err, t.witness.Resume()) }()
		if err := t.lead(ctx, was.p); err != nil {
			return "", err
		}
		before, _ := t.redis.waited()
		t.watch.mark()
		t.redis.mark()
		if err := t.allOn(ctx, was.p); err != nil {
			return "", err
		}
		x, now, err := t.lost(ctx, was, f)
		if err != nil {
			return "", err
		}
		if err := t.redis.flowing(ctx, answersAfter, guestPatience); err != nil {
			return "", err
		}
		n, read, err := (blow{takeover: true}).judge(ctx, t, was, now, &l)
		if err != nil {
			return "", err
		}
		after, err := t.whole(ctx)
		if err != nil {
			return "", err
		}
		if after.Epoch <= g.Epoch {
			return "", fmt.Errorf("this does not count, the group was not taken over: epoch %d, and was %d", after.Epoch, g.Epoch)
		}
		x.load = loadNow()
		t.run.measured(k, x)
		said = fmt.Sprintf("%s (limit %.1f s), before %.2f s; %d answers, all read back, on one connection; %d segments, %d bytes again and the same, %d twice; epoch %d to %d, turn %d.%d to %d.%d",
			x, k.limit.Seconds(), before.Seconds(), read, n.segments, n.again, n.twice, g.Epoch, after.Epoch, was.lock.Generation, was.lock.Turn, now.lock.Generation, now.lock.Turn)
		if max(x.live, x.stall, x.told) > k.limit || x.protected > limitProtected {
			t.told(k, x.struck)
			if t.run.goals {
				return "", &tooLong{said}
			}
		}
		return said, nil
	}
}

// lost has a box fall, come back, and be of use again, and measures what becomes of the machine.
func (t *trial) lost(ctx context.Context, was *pair, f fall) (x sample, now *pair, err error) {
	struck := time.Now()
	x.struck = struck
	// The witness leads again if it can.
	if err := errors.Join(f.strike(t, was.p), t.witness.Resume()); err != nil {
		return x, nil, err
	}
	said := t.follow(ctx, t.nodes[was.s])
	defer said.end()
	live, err := t.watched(ctx, was.s, goLivePatience)
	if err != nil {
		return x, nil, err
	}
	x.live = max(1, live.Sub(struck))
	if err := t.redis.flowing(ctx, answersAfter, guestPatience); err != nil {
		return x, nil, err
	}
	if f.dies > 0 {
		pause(ctx, f.dies-time.Since(struck))
		if err := t.powerOff(was.p); err != nil {
			return x, nil, err
		}
	}
	pause(ctx, awayFor-time.Since(struck))
	said.end()
	if x.told, err = said.needed(struck); err != nil {
		return x, nil, err
	}
	began := time.Now()
	if err := t.world.mend(was.p); err != nil {
		return x, nil, err
	}
	if err := t.back(ctx, &x, t.on(was.p)...); err != nil {
		return x, nil, err
	}
	again, err := t.protectedAgain(ctx, was)
	if err != nil {
		return x, nil, err
	}
	x.protected = max(0, again.Sub(began.Add(x.whole)))
	x.stall, x.copy = t.redis.waitedFrom(time.Time{}, began), t.redis.waitedFrom(began, again)
	now, err = t.pair(ctx)
	return x, now, err
}

// back starts daemons that do not run, and measures until both nodes have all data.
func (t *trial) back(ctx context.Context, x *sample, daemons ...*testbed.Daemon) error {
	began := time.Now()
	started := make(chan error, 1)
	go func() { started <- t.start(ctx, daemons...) }()
	_, err := t.whole(ctx)
	x.whole = time.Since(began)
	return errors.Join(<-started, err)
}

// protectedAgain waits until the machine is protected by another pair than it was, and returns since when.
func (t *trial) protectedAgain(ctx context.Context, was *pair) (time.Time, error) {
	m, err := t.awaitMachine(ctx, protectPatience, "protected again", func(m *steadfastv1.Machine) bool {
		return protected(m) && (m.Protection.Pair != was.machine.Protection.Pair || m.Generation != was.machine.Generation)
	})
	if err != nil {
		return time.Time{}, err
	}
	return m.Protection.Since.AsTime(), nil
}

// leaderOf asks a node which member leads the quorum; empty: it knows none, or does not say.
func leaderOf(ctx context.Context, d *testbed.Daemon) string {
	ctx, cancel := context.WithTimeout(ctx, machineAskPatience)
	defer cancel()
	r, err := steadfastv1connect.NewClusterServiceClient(d.API(), "http://node").GetCluster(ctx, &steadfastv1.GetClusterRequest{})
	if err != nil {
		return ""
	}
	return r.Cluster.Leader
}

const (
	// leadTries is how often a leader may be elected that was not wanted.
	leadTries = 20
	// leadPatience bounds how long an election may take.
	leadPatience = 30 * time.Second
)

// lead has the storage node of a box lead the quorum, until the witness is woken. The witness leads
// while it is well, as nothing else is on its box; so it stands still from here on, and the wrong
// node that was elected gives it its place back for another try.
func (t *trial) lead(ctx context.Context, at box) error {
	for range leadTries {
		if err := t.led(ctx, t.witness); err != nil {
			return err
		}
		if err := t.witness.Pause(); err != nil {
			return err
		}
		if err := t.led(ctx, t.nodes[:]...); err != nil {
			return err
		}
		if leaderOf(ctx, t.nodes[at]) == t.nodes[at].Name {
			return nil
		}
		if err := t.witness.Resume(); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s was not elected in %d tries", t.nodes[at].Name, leadTries)
}

// led waits until both nodes know that one of some members leads.
func (t *trial) led(ctx context.Context, members ...*testbed.Daemon) error {
	for end := time.Now().Add(leadPatience); ; pause(ctx, pollEvery) {
		a, b := leaderOf(ctx, t.nodes[boxA]), leaderOf(ctx, t.nodes[boxB])
		if a == b && slices.ContainsFunc(members, func(d *testbed.Daemon) bool { return d.Name == a }) {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("the quorum is led by %q, says a, and by %q, says b, and that did not change in %v", a, b, leadPatience)
		}
	}
}

// allOn fails unless owner, leader and primary are all on a box, and the machine is protected: a round counts only then.
func (t *trial) allOn(ctx context.Context, at box) error {
	g, err := testbed.AskGroup(ctx, groupName, t.nodes[:]...)
	if err != nil {
		return err
	}
	m, err := t.machine(ctx)
	if err != nil {
		return err
	}
	leaders := []string{leaderOf(ctx, t.nodes[boxA]), leaderOf(ctx, t.nodes[boxB])}
	name := t.nodes[at].Name
	if g.Owner != name || g.InSync != len(t.nodes) || !protected(m) || m.Host != t.hosts[at].Name || leaders[0] != name || leaders[1] != name {
		return fmt.Errorf("this does not count, not all is on %s: the owner is %q with %d in sync, the leader %v, the machine on %q, protected %t",
			at, g.Owner, g.InSync, leaders, m.Host, protected(m))
	}
	return nil
}

// on are the processes that are started on boxes.
func (t *trial) on(list ...box) []*testbed.Daemon {
	var daemons []*testbed.Daemon
	for _, b := range list {
		if b < withNode {
			daemons = append(daemons, t.nodes[b])
		}
		if t.world.hasHost(b) {
			daemons = append(daemons, t.hosts[b])
		}
		if b == boxW {
			daemons = append(daemons, t.witness)
		}
	}
	return daemons
}

// powerOff ends all processes on boxes at once: none of them runs any more when the first ends, and
// could tell of it.
func (t *trial) powerOff(list ...box) error {
	for end := time.Now().Add(gonePatience); ; {
		all, err := t.processesOn(list...)
		if err != nil {
			return err
		}
		if len(all) == 0 {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes of %v live %v after SIGKILL: %v", list, gonePatience, all)
		}
		for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} {
			for _, pid := range all {
				if e := unix.Kill(pid, sig); e != nil && !errors.Is(e, unix.ESRCH) {
					return fmt.Errorf("end process %d: %w", pid, e)
				}
			}
		}
	}
	var err error
	for _, d := range t.on(list...) {
		err = errors.Join(err, d.Kill()) // it is noted as ended
	}
	return err
}

// processesOn are all processes on boxes that live: those in their namespaces, and what the daemons have started.
func (t *trial) processesOn(list ...box) (pids []int, err error) {
	spaces := map[uint64]bool{}
	for _, b := range list {
		var s unix.Stat_t
		if err := unix.Fstat(t.world.spaces[b].Fd(), &s); err != nil {
			return nil, fmt.Errorf("the namespace of %s: %w", b, err)
		}
		spaces[s.Ino] = true
	}
	roots := map[int]bool{}
	for _, d := range t.on(list...) {
		roots[d.PID()] = d.Runs()
	}
	all := processes()
	for pid, p := range all {
		here := false
		for at := pid; at > 1 && !here; at = all[at].parent {
			here = roots[at]
		}
		var s unix.Stat_t
		if !here && unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &s) == nil {
			here = spaces[s.Ino]
		}
		if here && p.state != 'Z' && pid != os.Getpid() { // a thread of ours is in each namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// A follower asks a node all the time how the machine is protected.
type follower struct {
	stop  context.CancelFunc
	ended sync.WaitGroup

	since time.Time // the machine is said to need a secondary
	last  string    // what was said
	wrong string    // what was said after since, and is not true
}

// needsSecondary is the word for a machine that has no secondary, and no host to have one on.
const needsSecondary = "Need Secondary VM"

func (t *trial) follow(ctx context.Context, node *testbed.Daemon) *follower {
	f := &follower{last: "nobody answered"}
	ctx, f.stop = context.WithCancel(ctx)
	f.ended.Go(func() {
		for ; ctx.Err() == nil; pause(ctx, pollEvery) {
			if m, err := machineBy(ctx, node); err == nil {
				f.hears(m, time.Now())
			}
		}
	})
	return f
}

// hears takes an answer in.
func (f *follower) hears(m *steadfastv1.Machine, now time.Time) {
	p := m.GetProtection()
	f.last = fmt.Sprintf("%s on %q, protected %t, %q because of %q, %s", m.State, m.Host, p.GetProtected(), p.GetWhy(), p.GetBecause(), p.GetWaits())
	needs := running(m) && !p.GetProtected() && p.GetWhy() == needsSecondary && p.GetBecause() != ""
	switch {
	case needs && f.since.IsZero():
		f.since = now
	case !needs && !f.since.IsZero() && f.wrong == "":
		f.wrong = f.last
	}
}

// end ends it; it may be called again.
func (f *follower) end() {
	f.stop()
	f.ended.Wait()
}

// needed tells how long after a time it was said that the machine needs a secondary. Fails unless
// that was said, and nothing else afterwards.
func (f *follower) needed(from time.Time) (time.Duration, error) {
	switch {
	case f.since.IsZero():
		return 0, fmt.Errorf("the machine is not said to be Not Protected (%s), with a reason: %s", needsSecondary, f.last)
	case f.wrong != "":
		return 0, fmt.Errorf("the machine was said to be Not Protected (%s), and then, with the other box still away: %s", needsSecondary, f.wrong)
	}
	return f.since.Sub(from), nil
}

// boxPower is a round in which all power is lost under load: everything comes back by itself, with
// all that was ever acknowledged.
func boxPower(ctx context.Context, t *trial, k kind) (string, error) {
	was, err := t.atWork(ctx)
	if err != nil {
		return "", err
	}
	old, _ := t.beats.present()
	t.watch.mark()
	if err := t.powerOff(t.world.all()...); err != nil {
		return "", err
	}
	pause(ctx, darkFor)
	return t.revived(ctx, k, was, old, was.p)
}

// boxStale is a round in which a box is lost, the other one goes on and is lost, too, with the
// witness; the first comes back before it. What it has is old: it must wait for the other.
func boxStale(ctx context.Context, t *trial, k kind) (string, error) {
	was, err := t.atWork(ctx)
	if err != nil {
		return "", err
	}
	if _, err := t.ownedBy(ctx, was.p); err != nil {
		return "", err
	}
	old, _ := t.beats.present()
	t.watch.mark()
	if err := t.powerOff(was.p); err != nil {
		return "", err
	}
	if _, err := t.watched(ctx, was.s, goLivePatience); err != nil {
		return "", err
	}
	if err := t.redis.flowing(ctx, answersBefore, guestPatience); err != nil {
		return "", err
	}
	if err := t.powerOff(was.s, boxW); err != nil {
		return "", err
	}
	pause(ctx, darkFor)
	if err := t.start(ctx, t.on(was.p, boxW)...); err != nil {
		return "", err
	}
	for began := time.Now(); time.Since(began) < awayFor; pause(ctx, pollEvery) {
		g, err := testbed.AskGroup(ctx, groupName, t.nodes[was.p])
		if err != nil {
			return "", err
		}
		now, _ := t.beats.present()
		if list := machinesOf(t.hosts[was.p].PID()); g.Owner != "" || len(list) > 0 || now.id != old.id {
			return "", fmt.Errorf("STALE: %s serves or runs what it has of old: owner %q, %v; %s", was.p, g.Owner, list, g.Detail)
		}
	}
	return t.revived(ctx, k, was, old, was.p, was.s)
}

// atWork has a machine on two hosts be whole and its client be at work.
func (t *trial) atWork(ctx context.Context) (*pair, error) {
	if err := t.hostsUp(ctx); err != nil {
		return nil, err
	}
	was, err := t.pair(ctx)
	if err != nil {
		return nil, err
	}
	if err := t.guest.resume(ctx); err != nil {
		return nil, err
	}
	if err := t.guest.healthy(ctx); err != nil {
		return nil, err
	}
	t.redis.begin()
	return was, t.redis.flowing(ctx, answersBefore, guestPatience)
}

// revived starts all that does not run, and judges what comes back; spoke are the boxes that spoke as the
// machine since mark, one after the other.
func (t *trial) revived(ctx context.Context, k kind, was *pair, old boot, spoke ...box) (string, error) {
	t.redis.abandon()
	began := time.Now()
	var x sample
	if err := t.back(ctx, &x, t.all()...); err != nil {
		return "", err
	}
	booted, err := t.beats.after(ctx, old, guestPatience)
	if err != nil {
		return "", err
	}
	if err := t.redis.connect(ctx, guestPatience); err != nil {
		return "", err
	}
	x.answers = time.Since(began)
	read, err := t.redis.readBack()
	if err != nil {
		return "", err
	}
	again, err := t.protectedAgain(ctx, was)
	if err != nil {
		return "", err
	}
	x.protected = max(0, again.Sub(began.Add(x.whole)))
	t.watch.boot = booted
	now, err := t.pair(ctx)
	if err != nil {
		return "", err
	}
	if err := t.guest.login(ctx); err != nil {
		return "", err
	}
	if err := errors.Join(t.guest.healthy(ctx), t.beats.alone(old, booted), t.oneBooted(append(spoke, now.p), was, now), t.oneLives(ctx, now)); err != nil {
		return "", err
	}
	x.load = loadNow()
	t.run.measured(k, x)
	return fmt.Sprintf("%s; %d requests read back, one life on %s after the one on %v, turn %d.%d to %d.%d",
		x, read, now.p, spoke, was.lock.Generation, was.lock.Turn, now.lock.Generation, now.lock.Turn), nil
}

// oneBooted judges what was seen since mark: one box after the other spoke as the machine.
func (t *trial) oneBooted(spoke []box, was, now *pair) error {
	turns, _, err := t.watch.since()
	spoke = slices.Compact(spoke)
	if !slices.EqualFunc(turns, spoke, func(u turn, b box) bool { return u.from == b }) {
		err = errors.Join(err, fmt.Errorf("the hosts that spoke as the machine were not %v: %s", spoke, turnsText(turns)))
	}
	if !now.lock.After(was.lock) {
		err = errors.Join(err, fmt.Errorf("the lock block has not risen: %+v, and then %+v", was.lock, now.lock))
	}
	if missed, e := t.watch.missed(); e != nil || missed > 0 {
		err = errors.Join(err, e, fmt.Errorf("the capture has missed %d frames, and proves nothing", missed))
	}
	return err
}
