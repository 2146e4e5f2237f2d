package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/test/testbed"
)

// elsewherePatience bounds how long it may take until the machine is placed elsewhere and its
// process runs there.
const elsewherePatience = time.Minute

// loss is a host that is lost under its machine.
type loss struct {
	t       *trial
	at      box
	was     *steadfastv1.Machine
	old     boot
	runners []process // that ran the machine
	began   time.Time
	running time.Duration // until a process ran it again
	serving time.Duration // until the client was answered
	now     boot
}

// lose notes how all is, with the client at work, before a host is lost. The group's owner is
// on the box that is said, or stays where it is.
func lose(ctx context.Context, t *trial, sameBox bool) (*loss, error) {
	at, m, err := t.runsOn(ctx)
	if err != nil {
		return nil, err
	}
	owner := at.other()
	if sameBox {
		owner = at
	}
	if _, err := t.ownedBy(ctx, owner); err != nil {
		return nil, err
	}
	l := &loss{t: t, at: at, was: m, runners: machinesOf(t.hosts[at].PID())}
	if len(l.runners) == 0 {
		return nil, fmt.Errorf("the host %s has no process that runs the machine", t.hosts[at].Name)
	}
	var ok bool
	if l.old, ok = t.beats.present(); !ok {
		return nil, errors.New("the guest was never heard")
	}
	t.redis.begin()
	return l, t.redis.flowing(ctx, answersBefore, guestPatience)
}

// elsewhere waits until a process on the other box runs the machine, and fails if one of those
// before it still can.
func (l *loss) elsewhere(ctx context.Context) error {
	to := l.t.hosts[l.at.other()]
	for end := time.Now().Add(elsewherePatience); len(machinesOf(to.PID())) == 0; pause(ctx, pollEvery) {
		if time.Now().After(end) || ctx.Err() != nil {
			m, err := l.t.machine(ctx)
			return errors.Join(fmt.Errorf("no process of %s ran the machine within %v: %s", to.Name, elsewherePatience, m), err)
		}
	}
	l.running = time.Since(l.began)
	var err error
	for _, p := range l.runners {
		if now, ok := processes()[p.pid]; ok && now.state != 'Z' && now.state != 'T' {
			err = errors.Join(err, fmt.Errorf("two processes run the machine at once: %d on the host that was lost is in state %c", p.pid, now.state))
		}
	}
	return err
}

// served waits until the new life serves, reads back what was acknowledged, and fails unless
// the machine was restarted once, on the other box.
func (l *loss) served(ctx context.Context) (keys int, err error) {
	t := l.t
	if l.now, err = t.beats.after(ctx, l.old, guestPatience); err != nil {
		return 0, err
	}
	t.guest.reattach()
	if err := t.redis.connect(ctx, guestPatience); err != nil {
		return 0, err
	}
	l.serving = time.Since(l.began)
	if keys, err = t.redis.readBack(); err != nil {
		return 0, err
	}
	if err := t.guest.login(ctx); err != nil {
		return 0, err
	}
	return keys, errors.Join(t.guest.healthy(ctx), l.once(ctx))
}

// once fails unless the machine was restarted once.
func (l *loss) once(ctx context.Context) error {
	m, err := l.t.awaitMachine(ctx, startPatience, "running", running)
	if err != nil {
		return err
	}
	if m.Restarts != l.was.Restarts+1 || m.Generation <= l.was.Generation {
		return fmt.Errorf("the machine was restarted %d times, in generation %d after %d; %s", m.Restarts-l.was.Restarts, m.Generation, l.was.Generation, m.Reason)
	}
	return nil
}

// back starts what was killed, and waits until it is of use again; the machine must not heed it.
func (l *loss) back(ctx context.Context, daemons ...*testbed.Daemon) error {
	if err := l.t.start(ctx, daemons...); err != nil {
		return err
	}
	if _, err := l.t.whole(ctx); err != nil {
		return err
	}
	pause(ctx, hold)
	if n := machinesOf(l.t.hosts[l.at].PID()); len(n) > 0 {
		return fmt.Errorf("the host that is back runs the machine, too: %v", n)
	}
	return errors.Join(l.once(ctx), l.t.beats.alone(l.old, l.now))
}

func (l *loss) said(keys int) string {
	return fmt.Sprintf("runs on the other box after %.1f s, answers after %.1f s; %d requests read back, restarted once", l.running.Seconds(), l.serving.Seconds(), keys)
}

// lost is a kind in which a host dies, and the storage node on its box with it, or not.
func lost(ctx context.Context, t *trial, box bool) (string, error) {
	l, err := lose(ctx, t, box)
	if err != nil {
		return "", err
	}
	dead := []*testbed.Daemon{t.hosts[l.at]}
	if box {
		dead = append(dead, t.nodes[l.at])
	}
	l.began = time.Now()
	for _, d := range dead {
		if err := d.Kill(); err != nil {
			return "", err
		}
	}
	err = l.elsewhere(ctx)
	t.redis.abandon()
	if err != nil {
		return "", err
	}
	keys, err := l.served(ctx)
	if err != nil {
		return "", err
	}
	return l.said(keys), l.back(ctx, dead...)
}

func hostKilled(ctx context.Context, t *trial, _ kind) (string, error) { return lost(ctx, t, false) }

func ownerAndHost(ctx context.Context, t *trial, _ kind) (string, error) { return lost(ctx, t, true) }

// fioFlood has 32 writes under way all the time, each with bytes of its own.
const fioFlood = "fio --name=f --filename=/dev/vdb --rw=randwrite --bs=4k --ioengine=libaio --iodepth=32 --direct=1 --time_based --runtime=3600 --refill_buffers --randrepeat=0"

// hostFrozen: what a machine had under way when it was stopped, and what it does when it is
// woken, must not land on disks that it has lost.
func hostFrozen(ctx context.Context, t *trial, _ kind) (said string, err error) {
	if _, err := t.guest.Shell(ctx, "(%s >/dev/null 2>&1 &); until [ \"$(awk '{print $2}' /sys/block/vdb/inflight)\" -ge 1 ]; do sleep 0.1; done", fioFlood); err != nil {
		return "", err
	}
	l, err := lose(ctx, t, false)
	if err != nil {
		return "", err
	}
	host := t.hosts[l.at]
	l.began = time.Now()
	if err := l.freeze(ctx); err != nil {
		return "", err
	}
	stopped := true
	defer func() {
		if stopped {
			err = errors.Join(err, signalTree(host.PID(), syscall.SIGCONT))
		}
	}()
	if err := l.elsewhere(ctx); err != nil {
		return "", err
	}
	first := t.redis
	answers := first.answeredYet()
	t.redis = first.follower()
	defer first.abandon()
	keys, err := l.served(ctx)
	if err != nil {
		return "", err
	}
	// Whatever the old life writes shows on zeros.
	if _, err := t.guest.Shell(ctx, "dd if=/dev/zero of=/dev/vdb bs=1M count=64 oflag=direct 2>/dev/null"); err != nil {
		return "", err
	}
	t.redis.begin()
	if err := t.redis.flowing(ctx, answersBefore, guestPatience); err != nil {
		return "", err
	}
	woken := time.Now()
	stopped = false
	if err := signalTree(host.PID(), syscall.SIGCONT); err != nil {
		return "", err
	}
	gone, err := l.gone(ctx, woken)
	if err != nil {
		return "", err
	}
	pause(ctx, hold)
	if _, err := t.guest.Shell(ctx, "echo 3 >/proc/sys/vm/drop_caches; cmp -n %d /dev/vdb /dev/zero", 64<<20); err != nil {
		return "", fmt.Errorf("LANDED: what the old life had under way is on the disk: %w", err)
	}
	if n := first.answeredYet(); n != answers {
		return "", fmt.Errorf("the old life acknowledged %d writes after it was woken", n-answers)
	}
	if err := t.redis.flowing(ctx, answersAfter, guestPatience); err != nil {
		return "", fmt.Errorf("the new life's client: %w", err)
	}
	if err := t.redis.end(); err != nil {
		return "", fmt.Errorf("the new life's client: %w", err)
	}
	if _, err := t.redis.readBack(); err != nil {
		return "", err
	}
	if err := errors.Join(t.guest.healthy(ctx), l.once(ctx)); err != nil {
		return "", err
	}
	heard := t.beats.of(l.old.id)
	late := max(0, heard.last.Sub(woken))
	return fmt.Sprintf("%s; nothing of the old life landed, its process ended %.2f s after it was woken, it was heard for %.2f s", l.said(keys), gone.Seconds(), late.Seconds()), nil
}

// gather is how long the storage holds still for the guest's writes to gather: no more than what
// makes nobody take over.
const gather = 150 * time.Millisecond

// freeze stops the host and the machine with as many writes under way as fio wants: storage
// holds still before it, or it would answer faster than the guest asks.
func (l *loss) freeze(ctx context.Context) error {
	owner, host := l.t.nodes[l.at.other()], l.t.hosts[l.at]
	if err := owner.Pause(); err != nil {
		return err
	}
	pause(ctx, gather)
	return errors.Join(signalTree(host.PID(), syscall.SIGSTOP), owner.Resume())
}

// gonePatience bounds how long a machine that has lost its disks may live on once woken.
const gonePatience = 30 * time.Second

// gone waits until the old life's processes have ended.
func (l *loss) gone(ctx context.Context, since time.Time) (time.Duration, error) {
	for _, p := range l.runners {
		for lives(p.pid) {
			if time.Since(since) > gonePatience || ctx.Err() != nil {
				return 0, fmt.Errorf("the old life's process %d still lives %v after it was woken", p.pid, gonePatience)
			}
			pause(ctx, pollEvery/5)
		}
	}
	return time.Since(since), nil
}

// power: everything dies at once, as when the power fails, and comes back by itself.
func power(ctx context.Context, t *trial, _ kind) (string, error) {
	l, err := lose(ctx, t, false)
	if err != nil {
		return "", err
	}
	if err := t.site.Close(); err != nil {
		return "", err
	}
	t.redis.abandon()
	l.began = time.Now()
	if err := t.start(ctx, t.all()...); err != nil {
		return "", err
	}
	if _, err := t.whole(ctx); err != nil {
		return "", err
	}
	whole := time.Since(l.began)
	if l.now, err = t.beats.after(ctx, l.old, guestPatience); err != nil {
		return "", err
	}
	if err := t.redis.connect(ctx, guestPatience); err != nil {
		return "", err
	}
	serving := time.Since(l.began)
	keys, err := t.redis.readBack()
	if err != nil {
		return "", err
	}
	if err := t.guest.login(ctx); err != nil {
		return "", err
	}
	if err := errors.Join(t.guest.healthy(ctx), t.beats.alone(l.old, l.now)); err != nil {
		return "", err
	}
	return fmt.Sprintf("the group is whole after %.1f s, the machine answers after %.1f s; %d requests read back", whole.Seconds(), serving.Seconds(), keys), nil
}

// leftAlone is how long nobody is to start a machine that ended of itself.
const leftAlone = 10 * time.Second

// panics: a kernel that panics stays as it is, for somebody to look at; a reset brings it back.
func panics(ctx context.Context, t *trial, _ kind) (string, error) {
	_, m, err := t.runsOn(ctx)
	if err != nil {
		return "", err
	}
	old, _ := t.beats.present()
	if err := t.guest.Type("sync; echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger"); err != nil {
		return "", err
	}
	if _, err := t.guest.Await(ctx, "Kernel panic"); err != nil {
		return "", err
	}
	pause(ctx, leftAlone)
	now, err := t.machine(ctx)
	if err != nil {
		return "", err
	}
	if now.Generation != m.Generation || now.Restarts != m.Restarts || now.Host != m.Host {
		return "", fmt.Errorf("a panic was taken for a failure of the host: generation %d on %s is %d on %q (%s)", m.Generation, m.Host, now.Generation, now.Host, now.Reason)
	}
	if b, _ := t.beats.present(); b.id != old.id {
		return "", errors.New("the guest lives again, and nobody has reset it")
	}
	if _, err := t.nodes[boxA].CLI(ctx, "vm", "reset", machineName, "--yes"); err != nil {
		return "", err
	}
	if err := t.settled(ctx, old); err != nil {
		return "", err
	}
	keys, err := t.redis.readBack()
	return fmt.Sprintf("left alone for %v, back after a reset; %d requests read back", leftAlone, keys), err
}

// shutdown: a guest that powers off has ended, and stays so.
func shutdown(ctx context.Context, t *trial, _ kind) (string, error) {
	_, m, err := t.runsOn(ctx)
	if err != nil {
		return "", err
	}
	if err := t.guest.Type("poweroff"); err != nil {
		return "", err
	}
	ended := func(m *steadfastv1.Machine) bool { return m.State == "stopped" }
	if _, err := t.awaitMachine(ctx, guestPatience, "stopped", ended); err != nil {
		return "", err
	}
	pause(ctx, leftAlone)
	now, err := t.machine(ctx)
	if err != nil {
		return "", err
	}
	if !ended(now) || now.Generation != m.Generation {
		return "", fmt.Errorf("a guest that powered off was started again: %s on %q in generation %d after %d", now.State, now.Host, now.Generation, m.Generation)
	}
	for _, h := range t.hosts {
		if n := machinesOf(h.PID()); len(n) > 0 {
			return "", fmt.Errorf("its process lives on: %v", n)
		}
	}
	return fmt.Sprintf("stopped (%s), and left alone for %v", now.Detail, leftAlone), nil
}

// fullPatience bounds how long the guest may take to fill the pools, and to go on.
const fullPatience = 10 * time.Minute

// full: the guest writes more than the pools hold. It is paused and told of, sees no error, and
// goes on when there is room.
func full(ctx context.Context, t *trial, _ kind) (said string, err error) {
	at, m, err := t.runsOn(ctx)
	if err != nil {
		return "", err
	}
	if _, err := t.whole(ctx); err != nil {
		return "", err
	}
	const pieces = poolBytes / (8 << 20) // more than was left, less than there is then
	if _, err := t.guest.Shell(ctx, `rm -f /run/fill.*; head -c 8388608 /dev/urandom >/run/fill.data
		(i=0; while [ $i -lt %d ]; do dd if=/run/fill.data of=/dev/vdc bs=1M seek=$((i*8)) conv=notrunc oflag=direct || { touch /run/fill.bad; break; }; i=$((i+1)); echo $i >/run/fill.n; done; touch /run/fill.ended) >/run/fill.log 2>&1 &`, pieces); err != nil {
		return "", err
	}
	t.redis.begin()
	if err := t.redis.flowing(ctx, answersBefore, guestPatience); err != nil {
		return "", err
	}
	if err := t.paused(ctx, true); err != nil {
		return "", err
	}
	pause(ctx, hold)
	for b := range withNode {
		path := t.world.path(fmt.Sprintf("%s.pool.%d", t.nodes[b].Name, m.Generation))
		if _, err := t.nodes[b].CLI(ctx, "drive", "add", path, "--pool", poolName, "--size", fmt.Sprint(addedBytes)); err != nil {
			return "", err
		}
	}
	began := time.Now()
	if err := t.paused(ctx, false); err != nil {
		return "", err
	}
	resumed := time.Since(began)
	if _, err := t.guest.Shell(ctx, "until [ -e /run/fill.ended ]; do sleep 0.5; done; [ ! -e /run/fill.bad ] || { tail -n 5 /run/fill.log; exit 1; }; blkdiscard /dev/vdc; rm /run/fill.*"); err != nil {
		return "", err
	}
	if err := errors.Join(t.redis.flowing(ctx, answersAfter, guestPatience), t.redis.end(), t.guest.healthy(ctx)); err != nil {
		return "", err
	}
	keys, err := t.redis.readBack()
	if err != nil {
		return "", err
	}
	events, err := t.hosts[at].CLI(ctx, "events")
	if err != nil {
		return "", err
	}
	for _, want := range []string{"paused", "resumed"} {
		if !strings.Contains(events, want) {
			return "", fmt.Errorf("the events of %s do not say that the machine was %s:\n%s", t.hosts[at].Name, want, events)
		}
	}
	return fmt.Sprintf("paused, with an event; went on %.1f s after there was room; no error in the guest, %d requests read back on the same connection", resumed.Seconds(), keys), nil
}

// addedBytes is the size of the drive that each pool gets when it is full.
const addedBytes = 1 << 30

// paused waits until the machine waits for space, or does not.
func (t *trial) paused(ctx context.Context, want bool) error {
	for end := time.Now().Add(fullPatience); ; pause(ctx, time.Second) {
		m, err := t.status(ctx)
		if err == nil && m.Silent == "" && m.Status != nil && (len(m.Status.Full) > 0) == want {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("the machine does not say within %v that it waits for space: %t; %v; %w", fullPatience, want, m.GetStatus(), err)
		}
	}
}
