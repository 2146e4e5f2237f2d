package vmm

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"steadfast/compute/lockstep"
	"steadfast/compute/lockstepio"
	"steadfast/compute/machine"
	"steadfast/compute/netswitch/bridge"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// This file is a machine's process as one of a pair.

// askedLock is the machine's lock, which the parent has: lockstepio.Lock.
type askedLock struct{ c *child }

// Change implements lockstepio.Lock.
func (l askedLock) Change(ctx context.Context, partner vmlock.Owner) ([vmlock.BlockSize]byte, error) {
	return l.ask(ctx, lockAsk{Partner: partner})
}

// Take implements lockstepio.Lock.
func (l askedLock) Take(ctx context.Context, from [vmlock.BlockSize]byte) ([vmlock.BlockSize]byte, error) {
	return l.ask(ctx, lockAsk{From: from[:]})
}

func (l askedLock) ask(ctx context.Context, ask lockAsk) (block [vmlock.BlockSize]byte, err error) {
	select {
	case <-l.c.locks: // of a question that nobody waits for any more
	default:
	}
	if err := l.c.send(reply{Pair: &word{Lock: &ask}}); err != nil {
		return block, err
	}
	select {
	case a := <-l.c.locks:
		if err := a.Error.Err(); err != nil {
			return block, err
		}
		if len(a.Block) != vmlock.BlockSize {
			return block, fault.New(fault.Invalid, "a lock block of %d bytes", len(a.Block))
		}
		return [vmlock.BlockSize]byte(a.Block), nil
	case <-ctx.Done():
		return block, fault.Wrap(fault.Canceled, ctx.Err(), "asking for the lock")
	}
}

// pairOptions are those of both sides.
func (c *child) pairOptions() lockstepio.Options {
	return lockstepio.Options{
		Lock: askedLock{c}, Logger: c.log,
		Keep: func(m *machine.Machine) {
			if f := c.keeps(0); f != nil {
				c.kept(save(m, f))
			}
		},
		KeepLog: func(log []byte) {
			if f := c.keeps(1); f != nil {
				_, err := f.Write(log)
				c.kept(errors.Join(err, f.Close()))
			}
		},
		Event: func(e lockstep.Event) {
			if err := c.send(reply{Pair: &word{Event: &pairEvent{Kind: e.Kind, Why: e.Why, Error: FailureOf(e.Err)}}}); err != nil {
				c.log.Error("the parent was not told of a pair", slog.Any("error", err))
			}
		},
	}
}

// toKeep takes the files for a machine that differs: of the pair that begins. None may come.
func (c *child) toKeep(files []*os.File) {
	c.keeping.Lock()
	old := c.files
	c.files = files
	c.keeping.Unlock()
	closeAll(old)
}

// keeps returns one of them, once; nil: there is none.
func (c *child) keeps(n int) (f *os.File) {
	c.keeping.Lock()
	defer c.keeping.Unlock()
	if n < len(c.files) {
		f, c.files[n] = c.files[n], nil
	}
	return f
}

func (c *child) kept(err error) {
	if err != nil {
		c.log.Error("what the machine has become is not kept", slog.Any("error", err))
	}
}

// links are two descriptors as links.
func links(files []*os.File) (l lockstepio.Links, err error) {
	if len(files) != len(l) {
		closeAll(files)
		return l, fault.New(fault.Invalid, "a pair has %d links, and %d came", len(l), len(files))
	}
	for i, f := range files {
		l[i] = f
	}
	return l, nil
}

// session checks the name of a pair.
func (p *pairing) session() (lockstep.Session, error) {
	if p == nil || len(p.Session) != len(lockstep.Session{}) {
		return lockstep.Session{}, fault.New(fault.Invalid, "a pair without a session")
	}
	return lockstep.Session(p.Session), nil
}

// turnOn gives the machine a secondary.
func (c *child) turnOn(req *request, files []*os.File) error {
	var l lockstepio.Links
	session, err := req.Pair.session()
	if err != nil {
		closeAll(files)
		return err
	}
	n := min(len(l), len(files))
	l, err = links(files[:n])
	if err != nil {
		closeAll(files[n:])
		return err
	}
	c.toKeep(files[n:])
	if c.primary == nil {
		if c.primary, err = lockstepio.Attach(c.live, c.pairOptions()); err != nil {
			closeAll(files)
			return err
		}
	}
	return c.primary.TurnOn(l, session, req.Pair.Host)
}

// pairs does what a request asks a side of a pair for; false: it asks for something else.
func (c *child) pairs(req *request) (bool, error) {
	if req.Verb == verbLock {
		if req.Lock == nil {
			return true, fault.New(fault.Invalid, "no answer of the lock")
		}
		select {
		case c.locks <- *req.Lock:
			return true, nil
		default:
			return true, fault.New(fault.Stale, "the lock was not asked for")
		}
	}
	var side interface {
		TurnOff()
		Gone()
	}
	switch req.Verb {
	case verbTurnOff, verbGone, verbHandOver:
	default:
		return false, nil
	}
	switch {
	case c.primary != nil:
		side = c.primary
	case c.secondary != nil && c.live == nil:
		side = c.secondary
	default:
		return true, fault.New(fault.Invalid, "the machine is not on two hosts")
	}
	switch {
	case req.Verb == verbTurnOff:
		side.TurnOff()
	case req.Verb == verbGone:
		side.Gone()
	case c.primary != nil:
		c.primary.HandOver()
	default:
		return true, fault.New(fault.Invalid, "this is the secondary: ask the primary to hand over")
	}
	return true, nil
}

// follows starts a process that follows a machine.
func (c *child) follows(req *request, k kit) error {
	p := req.Start.Secondary
	session, err := p.session()
	if err != nil {
		return err
	}
	l, err := links(k.roles[roleLink])
	if err != nil {
		return err
	}
	o := lockstepio.SecondaryOptions{
		Options: c.pairOptions(), Me: p.Host, Session: session, Links: l,
		Accept: func(cfg machine.Config) error {
			switch {
			case cfg.Memory > p.MemoryMax:
				return fault.New(fault.Full, "the machine has %d bytes of memory, and this host has %d for it", cfg.Memory, p.MemoryMax)
			case len(cfg.Disks) != len(k.disks) || len(cfg.Nets) != len(k.roles[roleWire]):
				return fault.New(fault.Invalid, "the machine has %d disks and %d network cards, and this host has %d and %d for it", len(cfg.Disks), len(cfg.Nets), len(k.disks), len(k.roles[roleWire]))
			}
			return nil
		},
	}
	c.toKeep(k.roles[roleKept])
	if req.Start.Restarts {
		o.Reload = reload(k, func() uint64 { return p.MemoryMax })
	} else {
		closeAll(append(k.roles[roleKernel], k.roles[roleInitrd]...))
	}
	s := lockstepio.NewSecondary(o)
	ctx, stop := context.WithCancel(context.Background())
	c.secondary, c.stop = s, stop
	go func() {
		if err := c.takesOver(ctx, req, k); err != nil {
			defer close(c.ended)
			var over *lockstepio.Over
			if errors.As(err, &over) {
				// The end below has no reason that a program could read.
				o.Event(lockstep.Event{Kind: lockstep.Unprotected, Why: over.Why, Err: over.Err})
				if over.Err == nil {
					err = fault.Wrap(fault.Canceled, over, "a secondary")
				}
			}
			c.tellEnd(Status{Pair: pairStatus(s.Status())}, err)
			return
		}
		c.run(ctx)
	}()
	return nil
}

// takesOver returns when the machine is to go on here, with its life made.
func (c *child) takesOver(ctx context.Context, req *request, k kit) error {
	t, err := c.secondary.Run(ctx)
	if err != nil {
		return err
	}
	c.turn.Lock()
	defer c.turn.Unlock()
	o, err := c.options(t.Machine, k)
	if err != nil {
		return err
	}
	o.Restarts = req.Start.Restarts
	l, p, err := t.Live(o)
	if err != nil {
		return err
	}
	for i, n := range t.Machine.Config().Nets {
		o.Wires[i].Send(bridge.Announcement(n.MAC))
	}
	c.primary = p
	c.begins(l, t.Machine, o, k)
	return nil
}

func pairStatus(s lockstepio.Status) *lockstepio.Status { return &s }
