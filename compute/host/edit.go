package host

import (
	"context"
	"log/slog"
	"time"

	"steadfast/block"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// EditOptions say which machine is written into, and as whom.
type EditOptions struct {
	// ID is the machine's identifier, in hex.
	ID string
	// Volumes are the machine's, the home first, each on a nexus that has carried nothing; Edit
	// closes them, however it ends.
	Volumes []Volume
	// Generation is one that nobody else has or had, and Owner who has it:
	// inventory.View.ReserveGeneration and EditorNumber. A placement of the machine that is decided
	// later has a greater one.
	Generation uint64
	Owner      vmlock.Owner
	// Check is how often the lock is looked at, default 1 s; Drain how long giving it back may
	// take, default 10 s.
	Check, Drain time.Duration
	Log          *slog.Logger // nil: nothing
}

func (o *EditOptions) setDefaults() {
	if o.Check <= 0 {
		o.Check = time.Second
	}
	if o.Drain <= 0 {
		o.Drain = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Edit has change write into the volumes of a machine that does not run, under the machine's
// lock: into its home and its disks, in the order of Volumes. What it was told is written is so when
// Edit returns nil. change ends before Edit does, and uses nothing of it later; when ctx ends, or
// the lock is lost, what it asks of the volumes fails.
//
// Fails with fault.Fenced when the machine was started meanwhile, or another edits it: from
// then on nothing of change lands. Else as change does, with fault.Invalid for volumes that are
// not this machine's, fault.Canceled when ctx ended, and as the volumes do. What was written before
// stays written: a home has the definition of before or after, and disks any part.
func Edit(ctx context.Context, o EditOptions, change func(home *vmhome.Home, disks []block.Device) error) error {
	o.setDefaults()
	id, err := vmlock.ParseID(o.ID)
	var k *keeper
	if err == nil {
		cfg := vmlock.Config{VM: id, Me: o.Owner, Generation: o.Generation, Attempt: 1}
		k, err = newKeeper(cfg, o.Volumes, o.Check, func(err error) {
			o.Log.Warn("a look at a machine's lock failed", "id", o.ID, "error", err)
		})
	}
	if err != nil {
		closeVolumes(o.Volumes)
		return err
	}
	defer k.close()
	// What waits for storage ends with its volumes.
	unless := context.AfterFunc(ctx, func() { closeVolumes(o.Volumes) })
	defer unless()
	select {
	case <-k.held:
	case <-k.over:
		return editFenced(k)
	case <-ctx.Done():
		return fault.Wrap(fault.Canceled, context.Cause(ctx), "taking the machine's lock")
	}
	err = k.edit(id, change)
	if fault.Is(err, fault.Fenced) {
		k.awaitOver(ctx, o.Drain) // a gate was shut, which the core hears of a little later
	}
	switch {
	case isOver(k):
		return editFenced(k)
	case ctx.Err() != nil:
		// The lock stays as it is: the next holder fences what is on its way.
		return fault.Wrap(fault.Canceled, context.Cause(ctx), "writing into the machine's volumes")
	}
	if lost := k.release(o.Drain); lost != nil {
		if isOver(k) && err == nil {
			// It was another's before it was given back; what was flushed was before that.
			return editFenced(k)
		}
		o.Log.Warn("a machine's lock was not given back; its next holder fences it", "id", o.ID, "error", lost)
	}
	return err
}

// edit runs change on volumes whose lock is held.
func (k *keeper) edit(id vmlock.ID, change func(*vmhome.Home, []block.Device) error) error {
	home, err := vmhome.Open(k.gates[vmlock.Home])
	if err != nil {
		return err
	}
	if home.ID() != id {
		return fault.New(fault.Invalid, "the home volume is that of the machine %s, not of %s", home.ID(), id)
	}
	var disks []block.Device
	for _, g := range k.gates[1:] {
		disks = append(disks, g)
	}
	if err := change(home, disks); err != nil {
		return err
	}
	for _, g := range k.gates {
		if err := g.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// awaitOver waits until the lock is told to be lost.
func (k *keeper) awaitOver(ctx context.Context, patience time.Duration) {
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-k.over:
	case <-ctx.Done():
	case <-late.C:
	}
}

// editFenced is the error of an edit whose lock is not held, any more or at all.
func editFenced(k *keeper) error {
	kind := fault.KindOf(k.err)
	if k.found > 0 || fault.Is(k.err, fault.Stale) || fault.Is(k.err, fault.Fenced) {
		kind = fault.Fenced
	}
	if kind != fault.Fenced {
		return fault.Wrap(kind, k.err, "taking the machine's lock")
	}
	return fault.Wrap(kind, k.err, "the machine was started meanwhile, or is written into by another; stop it, and try again")
}
