package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/test/testbed"
)

// trial is a site with its machine, the client that uses it, and who listens to it.
type trial struct {
	*site
	run   *run
	guest *guest
	redis *redisClient
	beats *listener
	// watch is there while the machine lives on two hosts; frozen is when one of those was
	// stopped last.
	watch  *watch
	frozen time.Time
}

func newTrial(ctx context.Context, r *run, w *world) (t *trial, err error) {
	t = &trial{run: r, redis: newRedisClient(w.client)}
	if t.site, err = newSite(w, r.bin); err != nil {
		return nil, err
	}
	log, err := w.log("console")
	if err != nil {
		return nil, err
	}
	if t.beats, err = newListener(w.client); err != nil {
		return nil, err
	}
	t.guest = attach(ctx, t.site, log)
	return t, nil
}

// begin makes the site and the machine, and starts it.
func (t *trial) begin(ctx context.Context, store string) error {
	began := time.Now()
	if err := t.Up(ctx); err != nil {
		return err
	}
	fmt.Printf("note the site is up after %.1f s\n", time.Since(began).Seconds())
	began = time.Now()
	if err := t.createMachine(ctx, store, t.run.image()); err != nil {
		return err
	}
	fmt.Printf("note the machine is made, and its image on the SAN, after %.1f s\n", time.Since(began).Seconds())
	began = time.Now()
	if err := t.startMachine(ctx); err != nil {
		return err
	}
	if err := t.guest.login(ctx); err != nil {
		return err
	}
	fmt.Printf("note the guest was logged in to after %.1f s\n", time.Since(began).Seconds())
	if err := t.guest.provision(ctx); err != nil {
		return err
	}
	if _, err := t.beats.after(ctx, boot{}, guestPatience); err != nil {
		return err
	}
	return t.redis.connect(ctx, guestPatience)
}

// startPatience bounds how long a host may take to start the machine.
const startPatience = 2 * time.Minute

// startMachine starts the machine and waits until a host runs it.
func (t *trial) startMachine(ctx context.Context) error {
	if _, err := t.nodes[boxA].CLI(ctx, "vm", "start", machineName); err != nil {
		return err
	}
	_, err := t.awaitMachine(ctx, startPatience, "running", running)
	return err
}

func running(m *steadfastv1.Machine) bool { return m.State == "running" && m.Host != "" }

// runsOn is the box whose host runs the machine.
func (t *trial) runsOn(ctx context.Context) (box, *steadfastv1.Machine, error) {
	m, err := t.awaitMachine(ctx, startPatience, "running", running)
	if err != nil {
		return 0, nil, err
	}
	b, ok := t.boxOf(m.Host)
	if !ok {
		return 0, nil, fmt.Errorf("the machine runs on %q, which is no host of ours", m.Host)
	}
	return b, m, nil
}

// ownedBy has the group be owned by a box, and both copies whole.
func (t *trial) ownedBy(ctx context.Context, want box) (testbed.GroupState, error) {
	g, err := t.whole(ctx)
	if err != nil || g.Owner == t.nodes[want].Name {
		return g, err
	}
	if _, err := t.nodes[want].CLI(ctx, "group", "move", groupName); err != nil {
		return g, err
	}
	return t.group(ctx, "did not move", func(g testbed.GroupState) bool {
		return g.Owner == t.nodes[want].Name && g.InSync == len(t.nodes)
	})
}

// again has a machine that does not run, or that was restarted, begin a life that counts as its
// first: a machine is started again once, and then not for a while.
func (t *trial) again(ctx context.Context) error {
	m, err := t.machine(ctx)
	if err != nil {
		return err
	}
	if running(m) && m.Restarts == 0 {
		return nil
	}
	old, _ := t.beats.present()
	if running(m) {
		if _, err := t.nodes[boxA].CLI(ctx, "vm", "stop", machineName); err != nil {
			return err
		}
		if _, err := t.awaitMachine(ctx, guestPatience, "stopped", func(m *steadfastv1.Machine) bool { return m.State == "stopped" }); err != nil {
			return err
		}
	}
	if err := t.startMachine(ctx); err != nil {
		return err
	}
	return t.settled(ctx, old)
}

// settled waits until a new life of the guest serves, and logs in to it.
func (t *trial) settled(ctx context.Context, old boot) error {
	if _, err := t.beats.after(ctx, old, guestPatience); err != nil {
		return err
	}
	if err := t.guest.login(ctx); err != nil {
		return err
	}
	return t.redis.connect(ctx, guestPatience)
}

// try puts the site right and does what a kind says.
func (t *trial) try(ctx context.Context, k kind) (said string, err error) {
	if err := t.start(ctx, t.all()...); err != nil {
		return "", fmt.Errorf("before: %w", err)
	}
	if _, err := t.whole(ctx); err != nil {
		return "", fmt.Errorf("before: %w", err)
	}
	if k.ft {
		err = t.onTwo(ctx)
	} else {
		err = errors.Join(t.onOne(ctx), t.again(ctx))
	}
	if err != nil {
		return "", fmt.Errorf("before: %w", err)
	}
	return k.do(ctx, t, k)
}

// repair puts right what a kind that failed has left: all cuts mended, all processes started,
// and the machine as after a boot.
func (t *trial) repair(ctx context.Context) error {
	err := t.unwatched()
	for i := range t.hosts {
		err = errors.Join(err, t.world.mend(box(i)))
	}
	for _, d := range t.all() {
		if d.Runs() {
			err = errors.Join(err, d.Kill())
		}
	}
	if err != nil {
		return err
	}
	old, _ := t.beats.present()
	if t.redis.done != nil {
		t.redis.abandon()
	}
	if err := t.start(ctx, t.all()...); err != nil {
		return err
	}
	if _, err := t.whole(ctx); err != nil {
		return err
	}
	// What is written in doubt is the failed kind's matter; the next begins with none.
	t.redis = newRedisClient(t.world.client)
	m, err := t.machine(ctx)
	if err != nil {
		return err
	}
	if m.Desired != "running" || m.State != "running" && m.State != "waiting" {
		if _, err := t.nodes[boxA].CLI(ctx, "vm", "start", machineName); err != nil {
			return err
		}
	}
	return t.settled(ctx, old)
}

// tailBytes is how much of a console's end tells why something failed.
const tailBytes = 1500

// tail prints the console's end.
func (t *trial) tail() {
	fmt.Println("     the end of the console:")
	for line := range strings.Lines(t.guest.Tail(tailBytes)) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Println("     " + line)
		}
	}
}

// Close ends it all.
func (t *trial) Close() error {
	t.guest.Close()
	return errors.Join(t.unwatched(), t.beats.Close(), t.site.Close())
}
