package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"steadfast/test/testbed"
)

// kind is one thing that is done to the site.
type kind struct {
	name string
	does string
	// limit is what a request of the guest's client may wait: what the pair promises its
	// initiators (docs/SPEC.md) and 200 ms. 0: nothing is promised.
	limit time.Duration
	// ci: CI runs it. fio: it cannot be tried without fio in the guest. ft: the machine is to
	// live on two hosts. once: it is tried in the last round only.
	ci, fio, ft, once bool
	// form is the site that it is tried on.
	form form
	// do returns what is to be said when all was good.
	do func(ctx context.Context, t *trial, k kind) (said string, err error)
}

// overhead is what a machine may add to the stall of the pair.
const overhead = 200 * time.Millisecond

// kinds are all, in their order: first those that leave the machine as it is, then those of a
// machine on two hosts, last those of a site of two boxes.
func kinds() []kind { return slices.Concat(plainKinds(), ftKinds(), boxKinds()) }

// plainKinds are what is done to a machine on one host.
func plainKinds() []kind {
	return onThree([]kind{
		{name: "moved", does: "the group is moved to the other node", limit: 300*time.Millisecond + overhead, ci: true, do: storage(false, moved)},
		{name: "drained", does: "the owner is drained", limit: 300*time.Millisecond + overhead, do: storage(false, drained)},
		{name: "killed", does: "kill -9 of the owner, on the other box than the machine", limit: time.Second + overhead, ci: true, do: storage(false, killed)},
		{name: "killed-here", does: "kill -9 of the owner, on the machine's own box", limit: time.Second + overhead, ci: true, do: storage(true, killed)},
		{name: "moved-here", does: "the group leaves the machine's own box", limit: 300*time.Millisecond + overhead, do: storage(true, moved)},
		{name: "cut", does: "the owner's box is cut off from storage and members, later the owner is killed", limit: 2*time.Second + overhead, do: storage(false, cut)},
		{name: "frozen", does: "the owner is stopped (SIGSTOP) for 10 s, on the other box", limit: 2*time.Second + overhead, do: storage(false, frozen)},
		{name: "frozen-here", does: "the same on the machine's own box", limit: 2*time.Second + overhead, do: storage(true, frozen)},
		{name: "full", once: true, does: "the pools get full under the guest, and a drive is added", do: full},
		{name: "host-killed", does: "kill -9 of the machine's host", ci: true, do: hostKilled},
		{name: "host-frozen", does: "the host and the machine are stopped with 32 writes under way, and woken when the machine runs elsewhere", fio: true, do: hostFrozen},
		{name: "owner-and-host", does: "the owner and the machine's host are killed together, on one box", do: ownerAndHost},
		{name: "power", once: true, does: "all processes of the site are killed, and started again", do: power},
		{name: "panic", once: true, does: "the guest's kernel panics: nobody restarts it, until it is reset", do: panics},
		{name: "shutdown", once: true, does: "the guest powers off: nobody starts it again", do: shutdown},
	})
}

// onThree has kinds be tried on a site with a third host.
func onThree(list []kind) []kind {
	for i := range list {
		list[i].form = threeHosts
	}
	return list
}

// storage is a kind that only hurts storage: the guest sees a pause and nothing else. The owner
// is on the machine's own box, or the other. What harm undoes is its own.
func storage(here bool, harm func(ctx context.Context, t *trial, owner box) error) func(context.Context, *trial, kind) (string, error) {
	return func(ctx context.Context, t *trial, k kind) (said string, err error) {
		at, m, err := t.runsOn(ctx)
		if err != nil {
			return "", err
		}
		owner := at.other()
		if here {
			owner = at
		}
		g, err := t.ownedBy(ctx, owner)
		if err != nil {
			return "", err
		}
		l := loaded{t: t}
		if err := l.begin(ctx); err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, l.end(ctx)) }()
		before, _ := t.redis.waited()
		t.redis.mark()
		if err := harm(ctx, t, owner); err != nil {
			return "", err
		}
		if _, err := t.group(ctx, "has no new owner", func(now testbed.GroupState) bool { return now.Owner != "" && now.Epoch > g.Epoch }); err != nil {
			return "", err
		}
		if _, err := t.whole(ctx); err != nil {
			return "", err
		}
		stall, err := l.good(ctx)
		if err != nil {
			return "", err
		}
		now, err := t.machine(ctx)
		if err != nil {
			return "", err
		}
		if now.Generation != m.Generation || now.Host != m.Host || !running(now) {
			return "", fmt.Errorf("the machine did not stay where it was: generation %d on %s is %d on %q, %s", m.Generation, m.Host, now.Generation, now.Host, now.State)
		}
		said = fmt.Sprintf("stall %.2f s (limit %.1f s), before %.2f s; %s", stall.Seconds(), k.limit.Seconds(), before.Seconds(), l.said)
		if t.run.goals && stall > k.limit {
			return "", &tooLong{said}
		}
		return said, nil
	}
}

// loaded is a machine at work.
type loaded struct {
	t      *trial
	rounds int // of fio, at the beginning
	fio    bool
	on     bool
	said   string
}

// How many answers there are to be before a fault and after it.
const (
	answersBefore = 40
	answersAfter  = 20
)

// begin starts the client's load, and fio in the guest.
func (l *loaded) begin(ctx context.Context) (err error) {
	t := l.t
	if t.run.fio {
		if err := t.guest.verifyBegin(ctx); err != nil {
			return err
		}
		l.fio = true
	}
	t.redis.begin()
	l.on = true
	if err := t.redis.flowing(ctx, answersBefore, guestPatience); err != nil {
		return err
	}
	if l.fio {
		l.rounds, err = t.guest.verified(ctx)
	}
	return err
}

// good judges what the client and the guest have seen, and returns the longest wait.
func (l *loaded) good(ctx context.Context) (time.Duration, error) {
	t := l.t
	if err := t.redis.flowing(ctx, answersAfter, guestPatience); err != nil {
		return 0, err
	}
	stall, err := t.redis.waited()
	if err != nil {
		return 0, err
	}
	if l.fio {
		if err := t.guest.verifiedAgain(ctx, l.rounds); err != nil {
			return 0, err
		}
	}
	if err := t.guest.healthy(ctx); err != nil {
		return 0, err
	}
	l.on = false
	if err := t.redis.end(); err != nil {
		return 0, err
	}
	answers := t.redis.answeredYet()
	n, err := t.redis.readBack()
	if err != nil {
		return 0, err
	}
	l.said = fmt.Sprintf("%d answers on one connection, %d requests read back", answers, n)
	if l.fio {
		rounds, err := t.guest.verified(ctx)
		if err != nil {
			return 0, err
		}
		l.said += fmt.Sprintf(", %d rounds of fio", rounds)
	}
	return stall, nil
}

// end stops what still runs.
func (l *loaded) end(ctx context.Context) error {
	var err error
	if l.on {
		l.on = false
		err = l.t.redis.end()
	}
	if l.fio {
		l.fio = false
		err = errors.Join(err, l.t.guest.verifyEnd(ctx))
	}
	return err
}

// How long a fault is left alone before it is undone.
const (
	hold   = 3 * time.Second
	frozes = 10 * time.Second
)

func moved(ctx context.Context, t *trial, owner box) error {
	_, err := t.nodes[owner.other()].CLI(ctx, "group", "move", groupName)
	return err
}

func drained(ctx context.Context, t *trial, owner box) error {
	if _, err := t.nodes[owner].CLI(ctx, "node", "drain"); err != nil {
		return err
	}
	pause(ctx, hold)
	_, err := t.nodes[owner].CLI(ctx, "node", "drain", "--resume")
	return err
}

func killed(ctx context.Context, t *trial, owner box) error {
	if err := t.nodes[owner].Kill(); err != nil {
		return err
	}
	pause(ctx, hold)
	return t.nodes[owner].Start(ctx)
}

func cut(ctx context.Context, t *trial, owner box) error {
	if err := t.world.cutOff(owner); err != nil {
		return err
	}
	pause(ctx, 2*hold)
	if err := errors.Join(t.nodes[owner].Kill(), t.world.mend(owner)); err != nil {
		return err
	}
	return t.nodes[owner].Start(ctx)
}

func frozen(ctx context.Context, t *trial, owner box) error {
	if err := t.nodes[owner].Pause(); err != nil {
		return err
	}
	pause(ctx, frozes)
	return t.nodes[owner].Resume()
}
