package host

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"steadfast/block"
	"steadfast/compute/initiator"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// keeper joins one attempt at a machine's lock to its volumes: it owns the core, does its
// commands, and opens and shuts the gates. The volumes are the keeper's, and end with it.
type keeper struct {
	lock    *vmlock.Lock
	vm      vmlock.ID
	volumes []Volume // the home first
	gates   []*gate
	refused func(error) // a look at the lock came to nothing

	ctx     context.Context
	cancel  context.CancelFunc
	inputs  chan vmlock.Input
	answers chan vmlock.Answer
	tasks   sync.WaitGroup

	reading uint64 // the command that reads the block, the last such. Of run alone

	held  chan struct{}          // closed when the lock is held
	block [vmlock.BlockSize]byte // as it was then
	// changed has what became of the last change.
	changed chan lockChange
	paired  atomic.Bool // the block may name a partner
	// over is closed when it is not, any more or for good: err and found say why, nil that
	// it was given back.
	over  chan struct{}
	err   error
	found uint64
}

// newKeeper begins an attempt. close is to follow, which closes the volumes, too. Fails
// as vmlock.NewLock does; then the volumes stay the caller's.
func newKeeper(cfg vmlock.Config, volumes []Volume, check time.Duration, refused func(error)) (*keeper, error) {
	_, _ = rand.Read(cfg.Nonce[:]) // it never fails
	cfg.Nexuses = nil
	for range volumes {
		// An initiator is one nexus, or several that a registration covers alike.
		cfg.Nexuses = append(cfg.Nexuses, 1)
	}
	lock, err := vmlock.NewLock(cfg)
	if err != nil {
		return nil, err
	}
	k := &keeper{
		lock: lock, vm: cfg.VM, volumes: volumes, refused: refused,
		inputs: make(chan vmlock.Input), answers: make(chan vmlock.Answer),
		held: make(chan struct{}), over: make(chan struct{}), changed: make(chan lockChange, 1),
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	for _, v := range volumes {
		k.gates = append(k.gates, newGate(v, k.conflicted))
	}
	k.tasks.Go(func() { k.run(check) })
	return k, nil
}

// run is the goroutine that owns the core.
func (k *keeper) run(check time.Duration) {
	t := time.NewTicker(check)
	defer t.Stop()
	commands := k.step(vmlock.Begin{})
	for {
		select {
		case <-k.ctx.Done():
			return
		case a := <-k.answers:
			commands--
			commands += k.step(a)
		case in := <-k.inputs:
			commands += k.step(in)
		case <-t.C:
			// One that waits for storage is enough.
			if commands == 0 && k.lock.State() == vmlock.Holding {
				commands += k.step(vmlock.Check{})
			}
		}
	}
}

// step gives the core an input, does what it wants, and returns how many commands that
// began.
func (k *keeper) step(in vmlock.Input) (commands int) {
	for _, e := range k.lock.Step(in) {
		switch e := e.(type) {
		case vmlock.Do:
			commands++
			if _, reads := e.Op.(vmlock.ReadBlock); reads {
				k.reading = e.Seq
			}
			k.tasks.Go(func() {
				select {
				case k.answers <- k.perform(e):
				case <-k.ctx.Done():
				}
			})
		case vmlock.Held:
			for _, g := range k.gates {
				g.open()
			}
			k.block = k.lock.Block()
			close(k.held)
		case vmlock.Changed:
			k.tellChange(lockChange{block: e.Block})
		case vmlock.Stop:
			k.end(k.damage(in, e.Err), 0)
			// What waits there is for nobody any more, and is not to be sent when a path is
			// back.
			k.tasks.Go(func() { closeVolumes(k.volumes) })
		case vmlock.Done:
			k.end(e.Err, e.Found)
		case vmlock.Refused:
			if e.Change {
				k.tellChange(lockChange{err: e.Err})
			}
			k.refused(e.Err)
		}
	}
	return commands
}

// damage is why the lock was lost: as the core has it, that another host has taken it, unless
// what it has just read is no lock block of this machine. Nobody takes a lock by writing that.
func (k *keeper) damage(in vmlock.Input, why error) error {
	a, ok := in.(vmlock.Answer)
	if !ok || a.Seq != k.reading || a.Status != vmlock.Good {
		return why
	}
	b, err := vmlock.Decode(a.Block)
	switch {
	case fault.Is(err, fault.Corrupt):
	case err == nil && b.VM != k.vm:
		err = fault.New(fault.Corrupt, "it is that of the machine %s", b.VM)
	default:
		return why
	}
	return fault.Wrap(fault.Corrupt, err, "the lock block on the machine's home volume was overwritten while the machine ran; find out who writes there, then delete the machine with its volumes kept, and register it again: \"steadfast vm register\"")
}

// end ends the attempt: the gates first.
func (k *keeper) end(err error, found uint64) {
	k.shut()
	k.err, k.found = err, found
	close(k.over)
}

func (k *keeper) shut() {
	for _, g := range k.gates {
		g.shut()
	}
}

// give hands the core an input, unless all ends.
func (k *keeper) give(in vmlock.Input) {
	select {
	case k.inputs <- in:
	case <-k.ctx.Done():
	}
}

// conflicted tells the core of a RESERVATION CONFLICT of data.
func (k *keeper) conflicted() { go k.give(vmlock.Conflicted{}) }

// perform does a command.
func (k *keeper) perform(do vmlock.Do) vmlock.Answer {
	home := k.volumes[vmlock.Home]
	a := vmlock.Answer{Seq: do.Seq}
	var err error
	switch op := do.Op.(type) {
	case vmlock.ReadBlock:
		err = home.ReadAt(a.Block[:], 0)
	case vmlock.CompareAndWrite:
		var at int64
		if at, err = home.CompareAndWrite(0, op.Old[:], op.New[:], block.FUA); err == nil && at >= 0 {
			a.Status = vmlock.Miscompare
		}
	case vmlock.Register:
		err = k.volumes[op.Volume].Register(k.ctx, op.Key)
	case vmlock.ReadKeys:
		v := k.volumes[op.Volume]
		if a.Keys, err = v.ReadKeys(k.ctx); err == nil {
			var r initiator.Reservation
			r, err = v.ReadReservation(k.ctx)
			a.Holder, a.Type = r.Key, r.Kind
		}
	case vmlock.Reserve:
		err = k.volumes[op.Volume].Reserve(k.ctx, vmlock.ReservationType)
	case vmlock.Preempt:
		err = k.volumes[op.Volume].PreemptAbort(k.ctx, vmlock.ReservationType, op.Other)
	}
	switch {
	case err == nil:
	case errors.Is(err, initiator.ErrUnknown):
		a.Status = vmlock.Unknown
	case fault.Is(err, fault.Fenced):
		a.Status = vmlock.Conflict
	default:
		a.Status, a.Err = vmlock.Failed, err
	}
	return a
}

// release gives the lock back, when nothing is under way on the volumes any more; it
// returns when that is done, or has not been for so long.
func (k *keeper) release(patience time.Duration) error {
	k.shut()
	k.give(vmlock.Release{})
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-k.over:
		return k.err
	case <-late.C:
		return fault.New(fault.Unreachable, "the home volume has not answered for %v", patience)
	}
}

// close ends everything: what waits on the volumes fails, and nothing more is sent.
func (k *keeper) close() {
	k.shut()
	k.cancel()
	closeVolumes(k.volumes)
	k.tasks.Wait()
}

// closeVolumes closes volumes, all at once: each may take as long as a farewell does.
func closeVolumes(volumes []Volume) {
	var all sync.WaitGroup
	for _, v := range volumes {
		all.Go(func() { _ = v.Close() }) // who closes it has no use for why not
	}
	all.Wait()
}
