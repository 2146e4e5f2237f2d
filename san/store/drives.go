package store

import (
	"steadfast/fault"
	"steadfast/san/store/format"
)

// AddDrive formats d and adds it to the pool. name is what people know it by.
func (p *Pool) AddDrive(nd NamedDrive) error {
	p.work.Lock()
	defer p.work.Unlock()
	if err := p.admitting(); err != nil {
		return err
	}
	index := len(p.space.devs)
	for i, d := range p.space.devs {
		if d == nil && i < index {
			index = i
		}
		if d != nil && d.name == nd.Name {
			return fault.New(fault.Exists, "drive %s is in the pool already", nd.Name)
		}
	}
	if index >= format.DrivesMax {
		return fault.New(fault.Limit, "the pool has %d drives; more are not supported", format.DrivesMax)
	}
	d, err := p.formatDrive(index, nd)
	if err != nil {
		return err
	}
	d.fresh = true
	p.putDev(index, d)
	if err := p.checkpoint(); err != nil {
		p.putDev(index, nil)
		return err
	}
	p.recapacity()
	return nil
}

// putDev changes the list of drives. It is replaced, never changed in place:
// the write path reads it under logMu.
func (p *Pool) putDev(index int, d *dev) {
	p.logMu.Lock()
	defer p.logMu.Unlock()
	p.space.mu.Lock()
	defer p.space.mu.Unlock()
	list := append([]*dev(nil), p.space.devs...)
	if index == len(list) {
		list = append(list, d)
	} else {
		list[index] = d
	}
	p.space.devs = list
}

// findDev returns a drive of the pool by name.
func (p *Pool) findDev(name string) (*dev, error) {
	for _, d := range p.space.devs {
		if d != nil && d.name == name {
			return d, nil
		}
	}
	return nil, fault.New(fault.NotFound, "drive %s is not in the pool", name)
}

// EvacuateDrive begins to move everything off a drive; Maintain does the work
// and EventDriveGone tells the end. fault.Full when the rest has no room.
func (p *Pool) EvacuateDrive(name string) error {
	p.work.Lock()
	defer p.work.Unlock()
	if err := p.admitting(); err != nil {
		return err
	}
	d, err := p.findDev(name)
	if err != nil {
		return err
	}
	if d.leaving {
		return nil
	}
	p.space.mu.Lock()
	was := d.state
	if was == devOnline {
		d.state = devEvacuating
	}
	d.leaving, d.told = true, false
	p.space.mu.Unlock()
	p.recapacity()
	undo := func(err error) error {
		p.space.mu.Lock()
		d.state, d.leaving = was, false
		p.space.mu.Unlock()
		p.recapacity()
		return err
	}
	for r := p.room(); r.free <= r.floor+2 && p.space.prepare(); r = p.room() {
		// What the drive had ready, the others need ready now.
		continue
	}
	p.recapacity()
	if r := p.room(); r.total == 0 || p.used.Load() > p.capacity.Load() || r.free+r.spare+r.dead <= r.floor+2 {
		return undo(fault.New(fault.Full, "the pool's other drives have no room for what drive %s holds; add a drive first", name))
	}
	for _, pl := range []*place{&p.bg.nodes, &p.bg.moves} {
		if pl.d == d {
			p.space.fill(*pl)
			pl.d = nil
		}
	}
	// The checkpoint moves the log's tail too, when there is room for it; else a
	// later one does, after some cleaning.
	if err := p.checkpoint(); err != nil && !fault.Is(err, fault.Full) {
		return undo(err)
	}
	p.wanted.Store(true)
	return nil
}

// RemoveDrive takes an empty (evacuated) or failed and unreferenced drive out
// of the pool. fault.Busy while it holds live blocks.
func (p *Pool) RemoveDrive(name string) error {
	p.work.Lock()
	defer p.work.Unlock()
	if err := p.admitting(); err != nil {
		return err
	}
	d, err := p.findDev(name)
	if err != nil {
		return err
	}
	if d.state == devOnline {
		return fault.New(fault.Busy, "drive %s is in use; evacuate it first", name)
	}
	// The checkpoint on disk may still need what is dead by now, and writes
	// the catalog and table elsewhere.
	if err := p.checkpoint(); err != nil {
		return err
	}
	p.space.mu.Lock()
	live := d.live
	p.space.mu.Unlock()
	if live > 0 {
		return fault.New(fault.Busy, "drive %s still holds %d bytes", name, blockBytes(live))
	}
	if err := p.logElsewhere(d); err != nil {
		return err
	}
	// Now nothing refers to it; the next superblock does not name it.
	p.putDev(d.index, nil)
	if err := p.checkpoint(); err != nil {
		p.putDev(d.index, d)
		return err
	}
	if d.drive != nil && d.state != devFailed {
		p.eraseSuperblocks(d)
	}
	p.recapacity()
	return nil
}

// logElsewhere refuses while the log's tail is on the drive: a checkpoint has
// just moved it, so that cannot be.
func (p *Pool) logElsewhere(d *dev) error {
	p.logMu.Lock()
	defer p.logMu.Unlock()
	for _, pl := range p.tail.places() {
		if pl.d == d {
			return fault.New(fault.Busy, "the log is on drive %s", d.name)
		}
	}
	return nil
}

// eraseSuperblocks makes a removed drive nobody's. Best effort: a drive that
// keeps them is known by the other drives' newer ones not to belong.
func (p *Pool) eraseSuperblocks(d *dev) {
	zero := split(make([]byte, format.SuperblockSize))
	for slot := range format.SuperblockSlots {
		_ = d.drive.WriteDurable(zero, int64(format.SuperblockBlock(slot))*format.BlockSize)
	}
}
