package store

import (
	"steadfast/fault"
	"steadfast/san/store/format"
)

// Position returns a place in the pool's history: every change whose call has
// returned is at or below it, and every change whose call begins later is above
// it. It outlives a crash like what was written at it: when a crash takes changes
// back, they stay below the positions that had seen them, and what comes after
// recovery is above: see lsnGap.
func (p *Pool) Position() LSN { return LSN(p.position.Load()) }

// SetBase keeps a position with a volume, from which ChangedSince will be asked,
// and has the volume's trims kept from now on; those that are not after the base
// are forgotten. When the volume had no base and was trimmed between the position
// and this call, that trim is not known: ask from a position after it, or set the
// base before the volume is used. It is as durable as a write to a cache: the next
// flush or durable change makes it stable, and a crash before that leaves an older
// base, which only says more. A position that the pool has not reached is
// fault.Invalid.
func (p *Pool) SetBase(volume string, base LSN) error {
	if now := p.Position(); base > now {
		return fault.New(fault.Invalid, "base %d of volume %q is in the future of a pool at %d", base, volume, now)
	}
	return p.changeBase(volume, &format.Op{Kind: format.OpBase, Size: uint64(base)})
}

// ClearBase forgets a volume's base, and with it what was trimmed.
func (p *Pool) ClearBase(volume string) error {
	return p.changeBase(volume, &format.Op{Kind: format.OpBase, Delete: true})
}

func (p *Pool) changeBase(volume string, o *format.Op) (err error) {
	if o.Volume, err = p.volumeID(volume); err != nil {
		return err
	}
	return p.logChange(false, o)
}

// Base returns a volume's base; ok is false when it has none.
func (p *Pool) Base(volume string) (base LSN, ok bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v := p.cat.byName[volume]
	if v == nil {
		return 0, false
	}
	return LSN(v.trims.base), v.trims.tracked
}

// ChangedSince calls emit, in ascending order, with the ranges of a volume's
// content that were changed after a position (Position's answer, or a base), as
// the volume is at some moment of the call. It may say too much, never too little.
// Its cost grows with what changed. emit returning false ends it.
//
// A block counts as changed when something was done to it, even if it reads as it
// did: two nodes' positions are of different moments, and what one calls unchanged
// must be what it was at every moment since. After a rollback, or of a volume that
// is younger than the position, everything is. A block that the cleaner has moved
// is not.
//
// It refuses with fault.Stale when it would need trims that are forgotten: those
// below the base, or of a time when the volume had none. The answer could not be
// right, short of naming every block, and whoever asks should know that it has to
// copy everything rather than be led to believe that everything changed. If nothing
// was trimmed in the time in question there is nothing to refuse.
func (p *Pool) ChangedSince(volume string, since LSN, emit func(Range) bool) error {
	return p.ChangedUpTo(volume, since, "", emit)
}

// ChangedUpTo is ChangedSince up to a snapshot (to == "": the volume as it is),
// which was taken after the position; if it was not, nothing is. What was trimmed
// later may count.
func (p *Pool) ChangedUpTo(volume string, since LSN, to string, emit func(Range) bool) error {
	if now := p.Position(); since > now {
		return fault.New(fault.Stale, "position %d is in the future of a pool at %d", since, now)
	}
	p.mu.RLock()
	v, err := p.cat.findVolume(volume)
	if err != nil {
		p.mu.RUnlock()
		return err
	}
	last, size := link{v.branch.id, format.GenMax}, v.size.Load()
	if to != "" {
		s, err := v.findSnapshot(to)
		if err != nil {
			p.mu.RUnlock()
			return err
		}
		last, size = link{s.branch.id, s.pin.lsn}, max(size, s.size)
	}
	// The head's own branch is enough. The others are older than the clone or the
	// rollback that made this one, and of a moment before that everything changed.
	c := &changes{p: p, parts: []stretch{{last.branch, uint64(since), last.lsn}}, size: size}
	p.mu.RUnlock()
	c.trims = func(from, to uint64) ([]trimmed, error) { return p.trimsSince(v, uint64(since), from, to) }
	return c.each(emit)
}

// trimsSince lists what was trimmed in [from, to) of a volume after a position.
func (p *Pool) trimsSince(v *volume, since, from, to uint64) ([]trimmed, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	switch t := &v.trims; {
	case v.deleted:
		return nil, fault.New(fault.NotFound, "volume %q was deleted", v.name)
	case since < t.floor:
		return nil, fault.New(fault.Stale, "of volume %q it is known what was trimmed since %d, not since %d", v.name, t.floor, since)
	default:
		return t.since(since, from, to), nil
	}
}
