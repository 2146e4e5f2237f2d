package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/compute/vmhome/lockread"
	"steadfast/compute/vmlock"
)

// protectPatience bounds how long a machine that has fault tolerance may take until it is
// protected.
const protectPatience = 2 * time.Minute

// watch is what watches a machine that lives on two hosts: the wire it speaks on, and its
// lock block.
type watch struct {
	*capture
	locks *lockread.Reader
	// boot is the one life of the guest that there is to be, from turning it on.
	boot boot
}

// Close ends it; of nil it does nothing.
func (w *watch) Close() error {
	if w == nil {
		return nil
	}
	return w.capture.Close()
}

// onTwo has the machine be protected, on two of the hosts, and the client have a connection
// whose every segment is seen.
func (t *trial) onTwo(ctx context.Context) error {
	if t.watch == nil {
		if err := t.spare(ctx, true); err != nil {
			return err
		}
		ports := map[string]box{clientPort: boxes}
		for i := range t.hosts {
			ports[box(i).port(lan)] = box(i)
		}
		w := &watch{}
		var err error
		if w.locks, err = t.newLockReader(ctx); err != nil {
			return err
		}
		if w.capture, err = newCapture(t.world.net, ports); err != nil {
			return err
		}
		t.watch = w
		w.boot, _ = t.beats.present()
		if err := t.redis.again(ctx); err != nil {
			return err
		}
	}
	m, err := t.machine(ctx)
	if err == nil && m.Protection == nil {
		_, err = t.nodes[boxA].CLI(ctx, "ft", "on", machineName)
	}
	if err == nil {
		_, err = t.pair(ctx)
	}
	return err
}

// unwatched ends what watches a machine on two hosts, as what it has seen is of no use any more.
func (t *trial) unwatched() error {
	err := t.watch.Close()
	t.watch = nil
	return err
}

// onOne takes that back: the machine runs on a host of a box with a storage node.
func (t *trial) onOne(ctx context.Context) error {
	if t.watch == nil {
		return nil
	}
	if _, err := t.nodes[boxA].CLI(ctx, "ft", "off", machineName); err != nil {
		return err
	}
	if err := t.unwatched(); err != nil {
		return err
	}
	at, _, err := t.runsOn(ctx)
	if err != nil {
		return err
	}
	if err := t.spare(ctx, false); err != nil || at < withNode {
		return err
	}
	old, _ := t.beats.present() // it leaves, which is a shutdown and another boot
	if err := t.settled(ctx, old); err != nil {
		return err
	}
	_, err = t.awaitMachine(ctx, guestPatience, "on a box with a storage node", func(m *steadfastv1.Machine) bool {
		b, ok := t.boxOf(m.Host)
		return running(m) && ok && b < withNode
	})
	return err
}

// pair is a machine that is protected, as it is at one time.
type pair struct {
	p, s    box // its hosts
	machine *steadfastv1.Machine
	lock    vmlock.Block
}

func protected(m *steadfastv1.Machine) bool { return running(m) && m.Protection.GetProtected() }

// pair waits until the machine is protected, and tells where; the lock block says the same.
func (t *trial) pair(ctx context.Context) (*pair, error) {
	m, err := t.awaitMachine(ctx, protectPatience, "protected", protected)
	if err != nil {
		return nil, err
	}
	n := &pair{machine: m}
	var here, there bool
	n.p, here = t.boxOf(m.Host)
	n.s, there = t.boxOf(m.Protection.SecondaryHost)
	if !here || !there || n.p == n.s {
		return nil, fmt.Errorf("the machine is on %q and its secondary on %q, which are not two hosts of ours", m.Host, m.Protection.SecondaryHost)
	}
	if n.lock, err = t.watch.locks.Read(ctx); err != nil {
		return nil, err
	}
	if !n.lock.Held || !n.lock.Paired() {
		return nil, fmt.Errorf("the machine is said to be protected, and its lock block says %+v", n.lock)
	}
	for _, b := range []box{n.p, n.s} {
		if list := machinesOf(t.hosts[b].PID()); len(list) != 1 {
			return nil, fmt.Errorf("the machine is said to be on %s, which has %d processes for it", t.hosts[b].Name, len(list))
		}
	}
	return n, nil
}

// steer has the machine live on a host.
func (t *trial) steer(ctx context.Context, to box) (*pair, error) {
	n, err := t.pair(ctx)
	if err != nil || n.p == to {
		return n, err
	}
	if n.s != to {
		if _, err := t.nodes[boxA].CLI(ctx, "ft", "migrate-secondary", machineName, t.hosts[to].Name); err != nil {
			return nil, err
		}
		if _, err := t.awaitMachine(ctx, protectPatience, "protected on the host that was asked for", func(m *steadfastv1.Machine) bool {
			return protected(m) && m.Protection.SecondaryHost == t.hosts[to].Name
		}); err != nil {
			return nil, err
		}
	}
	if _, err := t.nodes[boxA].CLI(ctx, "ft", "test-failover", machineName); err != nil {
		return nil, err
	}
	if _, err := t.awaitMachine(ctx, protectPatience, "protected on the host that was asked for", func(m *steadfastv1.Machine) bool {
		return protected(m) && m.Host == t.hosts[to].Name
	}); err != nil {
		return nil, err
	}
	return t.pair(ctx)
}

// hostsUp waits until all hosts can take machines.
func (t *trial) hostsUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		r, err := steadfastv1connect.NewDatacenterServiceClient(t.nodes[boxA].API(), "http://node").ListHosts(ctx, &steadfastv1.ListHostsRequest{})
		up := 0
		for _, h := range r.GetHosts() {
			if h.State == "up" && !h.Maintenance {
				up++
			}
		}
		if up == len(t.hosts) {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("%d of %d hosts are up after %v: %v", up, len(t.hosts), startPatience, r.GetHosts()), err)
		}
		pause(ctx, pollEvery)
	}
}

// watched waits until what the outside sees says that a box goes on as the machine, and returns
// since when.
func (t *trial) watched(ctx context.Context, goesOn box, patience time.Duration) (time.Time, error) {
	for end := time.Now().Add(patience); ; pause(ctx, pollEvery/10) {
		turns, _, _ := t.watch.since() // what is wrong is told at the end
		if last := turns[len(turns)-1]; last.from == goesOn {
			return last.first, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return time.Time{}, fmt.Errorf("nothing was heard of the machine from the host %s within %v", t.hosts[goesOn].Name, patience)
		}
	}
}

// oneLived judges what was seen since mark: first one host alone spoke as the machine, then,
// if it took over, the other alone, as one machine that was never interrupted.
func (t *trial) oneLived(was *pair, now box) (tally, error) {
	turns, n, err := t.watch.since()
	want := []box{was.p}
	if now != was.p {
		want = append(want, now)
	}
	same := len(turns) == len(want)
	for i := range turns {
		same = same && turns[i].from == want[i]
	}
	if !same {
		err = errors.Join(err, fmt.Errorf("the hosts that spoke as the machine were not %v: %s", want, turnsText(turns)))
	}
	if missed, e := t.watch.missed(); e != nil || missed > 0 {
		err = errors.Join(err, e, fmt.Errorf("the capture has missed %d frames, and proves nothing", missed))
	}
	if b, _ := t.beats.present(); b.id != t.watch.boot.id {
		err = errors.Join(err, errors.New("the guest has booted anew"))
	}
	return n, err
}

func turnsText(turns []turn) string {
	text := ""
	for _, u := range turns {
		text += fmt.Sprintf(" %s %d frames in %v;", u.from, u.frames, u.last.Sub(u.first).Round(time.Millisecond))
	}
	return text
}

// oneLives waits until no host has a process of the machine but those of the pair, with one each.
func (t *trial) oneLives(ctx context.Context, n *pair) error {
	for end := time.Now().Add(gonePatience); ; pause(ctx, pollEvery) {
		wrong := ""
		for i, d := range t.hosts {
			want := 0
			if b := box(i); b == n.p || b == n.s {
				want = 1
			}
			if got := len(machinesOf(d.PID())); got != want {
				wrong += fmt.Sprintf(" %d on %s where %d belong;", got, d.Name, want)
			}
		}
		if wrong == "" {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("processes of the machine:%s", wrong)
		}
	}
}
