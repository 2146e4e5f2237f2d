package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"steadfast/test/testbed"
)

// kind is one way to hurt a pair.
type kind struct {
	name string
	// goal is what 99 of 100 rounds must not exceed: the longest wait of any
	// request. 0: nothing was promised.
	goal time.Duration
	// linux is the goal for the kernel's initiator, which waits 2 s after it lost a
	// connection, unless it was told not to, and with several paths 1 s before it
	// takes another. Its guest is emulated: below what that costs nothing is promised.
	linux time.Duration
	// drives: the nodes' pools must be on drives that can fail.
	drives bool
	// control: no harm is done; only run when it is asked for by name.
	control bool
	does    string
	do      func(ctx context.Context, r *round) error
}

// kinds are all, in the order of the summary.
func kinds() []kind {
	return []kind{
		{name: "kill-owner", goal: time.Second, linux: linuxGoal, does: "kill -9 of the owner", do: killOwner},
		{name: "cut-owner", goal: 2 * time.Second, linux: linuxGoal, does: "all links of the owner cut, later killed", do: cutOwner},
		{name: "stop-owner", goal: 2 * time.Second, linux: linuxGoal, does: "the owner stopped for 10 s (SIGSTOP)", do: stopOwner},
		{name: "cut-mirror", goal: 2 * time.Second, linux: linuxGoal, does: "the cluster's link of one node, or between the two, cut", do: cutMirror},
		{name: "kill-other", goal: 2 * time.Second, linux: linuxGoal, does: "kill -9 of the node that is not the owner", do: killOther},
		{name: "kill-witness", goal: 50 * time.Millisecond, does: "kill -9 of the witness", do: killWitness},
		{name: "kill-both", does: "both nodes killed and started again", do: killBoth},
		{name: "disk-errors", goal: 2 * time.Second, linux: linuxGoal, drives: true, does: "a node's drive fails every request", do: diskErrors},
		{name: "stalls", control: true, does: "full load, and the drive of one member after the other hangs for 2 s: nobody may take over", do: stalls},
		{name: "nothing", control: true, does: "no harm at all: what the machine does to the figures", do: nothing},
		{name: "planned-move", goal: 300 * time.Millisecond, linux: time.Second, does: "the group is moved to the other node", do: plannedMove},
	}
}

// linuxGoal is that of a takeover without a plan.
const linuxGoal = 3500 * time.Millisecond

// goalOf is a client's goal; 0: none.
func (k kind) goalOf(client string) time.Duration {
	if isGuest(client) {
		return k.linux
	}
	return k.goal
}

// How long a fault is left alone before it is undone.
const (
	hold     = 3 * time.Second
	stopHold = 10 * time.Second
	// ownerPatience is how long a new owner may take before the round has failed.
	ownerPatience = 60 * time.Second
)

// round is one round under way.
type round struct {
	pair  Pair
	world *world
	owner Member // before the fault
	epoch uint64 // before the fault
	n     int    // counts the rounds of the kind: they take turns at its ways

	began   time.Time // of the fault
	ownerIn time.Duration
	detail  string
}

// fault notes the moment.
func (r *round) fault() { r.began = time.Now() }

// cuts are the ways to cut a link.
func cuts() []testbed.Cut { return []testbed.Cut{testbed.Unplug, testbed.Drop} }

// how takes the next way to cut, and says so in the results.
func (r *round) how() testbed.Cut {
	how := cuts()[r.n%2]
	r.detail = how.String()
	return how
}

// newOwner waits until somebody has taken over.
func (r *round) newOwner(ctx context.Context) error {
	_, err := awaitStatus(ctx, r.pair, ownerPatience, func(s Status) bool { return s.Owner != "" && s.Epoch > r.epoch })
	if err != nil {
		return fmt.Errorf("no new owner: %w", err)
	}
	r.ownerIn = time.Since(r.began)
	return nil
}

// pause waits, or not, when ctx is done.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// pollEvery is how often a status is asked for.
const pollEvery = 20 * time.Millisecond

// awaitStatus asks until the answer is good.
func awaitStatus(ctx context.Context, p Pair, patience time.Duration, good func(Status) bool) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last Status // that was not broken off
	for {
		s, err := p.Status(ctx)
		switch {
		case err == nil && good(s):
			return s, nil
		case ctx.Err() != nil:
			return s, fmt.Errorf("%w after %v: %s", ctx.Err(), patience, last.Detail)
		case err != nil:
			return s, err
		}
		last = s
		pause(ctx, pollEvery)
	}
}

func killOwner(ctx context.Context, r *round) error {
	r.fault()
	if err := r.pair.Kill(r.owner); err != nil {
		return err
	}
	if err := r.newOwner(ctx); err != nil {
		return err
	}
	pause(ctx, hold)
	return r.pair.Start(ctx, r.owner)
}

func cutOwner(ctx context.Context, r *round) error {
	how := r.how()
	r.fault()
	if err := r.world.cutOff(how, r.owner); err != nil {
		return err
	}
	err := r.newOwner(ctx)
	pause(ctx, hold)
	if err := errors.Join(err, r.pair.Kill(r.owner), r.world.mend(r.owner)); err != nil {
		return err
	}
	return r.pair.Start(ctx, r.owner)
}

func stopOwner(ctx context.Context, r *round) error {
	r.fault()
	if err := r.pair.Pause(r.owner); err != nil {
		return err
	}
	err := r.newOwner(ctx)
	pause(ctx, stopHold-time.Since(r.began))
	return errors.Join(err, r.pair.Resume(r.owner))
}

// cutMirror cuts what the nodes talk over, in one of three ways. The iSCSI
// network stays whole. With its own link gone the owner has no majority.
func cutMirror(ctx context.Context, r *round) error {
	how := cuts()[r.n/3%2]
	ways := []struct {
		name string
		cut  func() error
	}{
		{"between the nodes", func() error { return r.world.net.CutBetween(port(NodeA, back), port(NodeB, back)) }},
		{"of the owner", func() error { return r.world.net.Cut(how, port(r.owner, back)) }},
		{"of the other", func() error { return r.world.net.Cut(how, port(r.owner.other(), back)) }},
	}
	way := r.n % len(ways)
	r.detail = ways[way].name
	if way > 0 {
		r.detail += ", " + how.String()
	}
	r.fault()
	if err := ways[way].cut(); err != nil {
		return err
	}
	pause(ctx, 2*hold)
	return r.world.net.Mend(port(NodeA, back), port(NodeB, back))
}

// downAndUp kills a member whose death needs no new owner.
func (r *round) downAndUp(ctx context.Context, m Member) error {
	r.fault()
	if err := r.pair.Kill(m); err != nil {
		return err
	}
	pause(ctx, hold)
	return r.pair.Start(ctx, m)
}

func killOther(ctx context.Context, r *round) error { return r.downAndUp(ctx, r.owner.other()) }

func killWitness(ctx context.Context, r *round) error { return r.downAndUp(ctx, Witness) }

func killBoth(ctx context.Context, r *round) error {
	first := []Member{NodeA, NodeB}[r.n%2]
	r.detail = string(first) + " first"
	r.fault()
	if err := errors.Join(r.pair.Kill(first), r.pair.Kill(first.other())); err != nil {
		return err
	}
	pause(ctx, time.Second)
	return errors.Join(r.pair.Start(ctx, first), r.pair.Start(ctx, first.other()))
}

func diskErrors(ctx context.Context, r *round) error {
	m := r.owner
	r.detail = "of the owner"
	if r.n%2 == 1 {
		m = r.owner.other()
		r.detail = "of the other"
	}
	r.fault()
	if err := r.world.drives[m].Fail(); err != nil {
		return err
	}
	var err error
	if m == r.owner {
		err = r.newOwner(ctx)
	}
	pause(ctx, hold)
	// The drive was put right, and the node is started again.
	if err := errors.Join(err, r.pair.Kill(m), r.world.drives[m].Repair(ctx)); err != nil {
		return err
	}
	return r.pair.Start(ctx, m)
}

func plannedMove(ctx context.Context, r *round) error {
	r.fault()
	if err := r.pair.Move(ctx); err != nil {
		return err
	}
	return r.newOwner(ctx)
}

// Of stalls: how long a drive hangs, and the time between two.
const (
	stallFor   = 2 * time.Second
	stallPause = 3 * time.Second
)

// stallsFor is how long a round of stalls takes.
var stallsFor = time.Minute

// stalls has the drive of one member after the other hang, the witness's too, while
// the processors are busy. It is an error when somebody takes over, or leaves.
func stalls(ctx context.Context, r *round) error {
	busy, rest := context.WithCancel(ctx)
	defer rest()
	for range runtime.NumCPU() {
		go func() {
			for n := uint64(1); busy.Err() == nil; {
				for range 1 << 20 {
					n = n*6364136223846793005 + 1
				}
			}
		}()
	}
	r.fault()
	n := 0
	for end := time.Now().Add(stallsFor); time.Now().Before(end) && ctx.Err() == nil; n++ {
		m := []Member{NodeA, NodeB, Witness}[n%3]
		if err := r.stall(ctx, m); err != nil {
			return err
		}
		pause(ctx, stallPause)
		s, err := r.pair.Status(ctx)
		if err != nil {
			return err
		}
		if s.Owner != "" && s.Epoch != r.epoch {
			return fmt.Errorf("%s took over, in epoch %d, after a stall of %s", s.Owner, s.Epoch, m)
		}
	}
	r.detail = fmt.Sprintf("%d stalls", n)
	return nil
}

// stall has a member's drive hang once.
func (r *round) stall(ctx context.Context, m Member) (err error) {
	s, err := testbed.NewStall(r.pair.Folder(m), r.pair.PID(m))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.End(), s.Close()) }()
	if err := s.Begin(); err != nil {
		return err
	}
	pause(ctx, stallFor)
	return nil
}

func nothing(ctx context.Context, r *round) error {
	r.fault()
	pause(ctx, hold)
	return nil
}
