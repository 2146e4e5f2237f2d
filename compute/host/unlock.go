package host

import (
	"context"

	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// unknownGenerations is what a lock block that is made anew is above all that its volumes'
// keys tell. A holder's key stays when the lock is given back, so only placements that came
// to no registration are not among them.
const unknownGenerations = 1 << 12

// ResetLock makes the lock block of a machine anew, of which nobody can say what it was. It
// asks nobody: a host that still runs the machine loses it, as to another that takes it over.
// me is who does it, and volumes are the machine's, the home first, each on a nexus that has
// carried nothing and stays the caller's. The block that is written is held by nobody, and its
// generation is above those that the volumes have seen.
//
// Fails with fault.Exists when the block is whole and the machine's own, with fault.Stale
// when a newer program wrote it, and as the volumes do. Nothing is changed then, or it can be done
// again.
func ResetLock(ctx context.Context, id vmlock.ID, me vmlock.Owner, volumes []Volume) (generation uint64, err error) {
	home := volumes[vmlock.Home]
	b, err := vmhome.ReadLock(home)
	switch {
	case err == nil && b.VM == id:
		return 0, fault.New(fault.Exists, "the lock block is whole, and needs not be made anew")
	case err != nil && !fault.Is(err, fault.Corrupt):
		return 0, err
	}
	for _, v := range volumes {
		keys, err := v.ReadKeys(ctx)
		if err != nil {
			return 0, err
		}
		for _, key := range keys {
			owner, seen, _ := vmlock.KeyOf(key)
			if owner == me {
				generation = max(generation, seen+1) // an attempt at this, which did not come to its end
			} else {
				generation = max(generation, seen+unknownGenerations)
			}
		}
	}
	generation = max(generation, unknownGenerations)
	key, err := vmlock.Key(me, generation, 1)
	if err != nil {
		return 0, err
	}
	if err := preempt(ctx, home, key); err != nil {
		return 0, fault.Wrap(fault.KindOf(err), err, "the reservation of the home volume")
	}
	return generation, vmhome.ResetLock(home, id, generation)
}

// preempt takes a volume's reservation, and every other registration away. As after a lock
// that was given back both stay, for the next holder to preempt.
func preempt(ctx context.Context, v Volume, key uint64) error {
	if err := v.Register(ctx, key); err != nil {
		return err
	}
	r, err := v.ReadReservation(ctx)
	if err != nil {
		return err
	}
	switch r.Key {
	case 0:
		err = v.Reserve(ctx, vmlock.ReservationType)
	case key:
	default:
		err = v.PreemptAbort(ctx, vmlock.ReservationType, r.Key) // it is this one's from then on
	}
	if err != nil {
		return err
	}
	keys, err := v.ReadKeys(ctx)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k == key {
			continue
		}
		if err := v.PreemptAbort(ctx, vmlock.ReservationType, k); err != nil {
			return err
		}
	}
	return nil
}
