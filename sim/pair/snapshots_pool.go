package pair

import (
	"fmt"
	"slices"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/mirror"
	"steadfast/san/mirrorio"
)

// What mirrorio.Group does with a resync's snapshots, on the real PoolStore.

// momentOf returns the moment of a snapshot that the administrator takes: the
// number in its name, and 0 of anything else.
func momentOf(name string) (at mirror.Moment) {
	if _, err := fmt.Sscanf(name, "s%d", &at); err != nil {
		return 0
	}
	return at
}

// refuses tells whether an error is about what was asked.
func refuses(err error) bool {
	return fault.Is(err, fault.Full) || fault.Is(err, fault.Limit) || fault.Is(err, fault.Busy) || fault.Is(err, fault.Stale)
}

// changes implements snapshotter.
func (p *pool) changes(n *node, e mirror.List, ranges []mirror.Range) mirror.Changes {
	c := mirror.Changes{Number: e.Number, Ranges: ranges}
	list, err := p.volumes.Snapshots()
	if err == nil && e.Steps {
		has, _ := e.Has.([]mirrorio.Snapshot)
		c.Steps, c.Ranges, err = p.volumes.Steps(e.Since, e.Whole, has)
	}
	c.Snapshots = list
	if p.failed(n, "list its snapshots", err) {
		c.Number = 0 // it is no answer
	}
	return c
}

// pin implements snapshotter.
func (p *pool) pin(at mirror.Moment) []uint32 { return p.volumes.Pin(at) }

// unpin implements snapshotter.
func (p *pool) unpin() { p.volumes.Unpin() }

// listSnapshots makes the list that an operation of a resync carries.
func (p *pool) listSnapshots(n *node, e mirror.Load) mirror.Applied {
	list, err := p.volumes.Snapshots()
	if e.Op.Moment != 0 {
		list = slices.DeleteFunc(list, func(s mirrorio.Snapshot) bool { return s.Moment != e.Op.Moment })
	}
	lost, _ := e.Op.Payload.([]mirror.Moment)
	for i := range list {
		if list[i].Optional = slices.Contains(lost, list[i].Moment); list[i].Optional {
			p.world.spoiled(value(list[i].Moment))
		}
	}
	return mirror.Applied{ID: e.ID, Payload: list, Failed: p.failed(n, "list its snapshots", err)}
}

// followList does what a list of the owner's snapshots asks for, as mirrorio does.
func (p *pool) followList(n *node, e mirror.Apply) mirror.Applied {
	w, list := p.world, e.Op.Payload.([]mirrorio.Snapshot)
	var err error
	switch {
	case !e.Op.Prunes():
		w.count.reproduced++
		err = p.volumes.Take(list)
	default:
		if err = p.volumes.Prune(list); refuses(err) {
			err = p.pruneLate(list)
		}
	}
	if err == nil && e.Op.Ends() {
		if err = p.lacks(list); err == nil {
			err = p.volumes.Flush()
		}
	}
	w.note("%s follows %+v, ends %t: %s", memberOf(p.index), list, e.Op.Ends(), short(err))
	if refuses(err) {
		return mirror.Applied{ID: e.ID, Full: true, Payload: short(err)}
	}
	return mirror.Applied{ID: e.ID, Position: p.volumes.Position(), Failed: p.failed(n, "follow the owner's snapshots", err)}
}

// pruneLate has what is in use be deleted later.
func (p *pool) pruneLate(list []mirrorio.Snapshot) error {
	have, err := p.volumes.Snapshots()
	for i := range have {
		if s := &have[i]; !s.Within(list) && !slices.Contains(p.late, s.Name) {
			p.late = append(p.late, s.Name)
		}
	}
	return err
}

// lacks is an error when one of the snapshots is not there.
func (p *pool) lacks(list []mirrorio.Snapshot) error {
	have, err := p.volumes.Snapshots()
	for _, s := range list {
		if err == nil && !s.Within(have) && !s.Optional {
			p.world.count.lacking++
			return fault.New(fault.Stale, "snapshot %s is lacking", s.Name)
		}
	}
	return err
}

// loadSnapshot reads blocks of the pinned snapshot of a volume.
func (p *pool) loadSnapshot(n *node, e mirror.Load) mirror.Applied {
	op := &e.Op
	c := &mirrorio.Change{Kind: mirrorio.Data, Off: int64(op.Block) * block.BlockSize, Length: int64(op.Count) * block.BlockSize}
	c.Data = make([]byte, c.Length)
	err := p.volumes.ReadPinned(op.Volume, c.Data, c.Off)
	switch {
	case fault.Is(err, fault.Corrupt):
		bad := mirror.Range{Volume: op.Volume, Block: op.Block, Count: op.Count}
		return mirror.Applied{ID: e.ID, Bad: bad}
	case fault.Is(err, fault.NotFound): // the step is over: nobody waits for it
	case p.failed(n, "read a snapshot", err):
		return mirror.Applied{ID: e.ID, Failed: true}
	case blank(c.Data):
		c.Kind, c.Data = mirrorio.Zero, nil
	}
	return mirror.Applied{ID: e.ID, Payload: c}
}

// samePoolSnapshots holds that both nodes have the same snapshots, unless a drive
// lied.
func (w *world) samePoolSnapshots(a, b *pool) {
	for v := uint32(1); v <= dataVolumes && w.count.lies == 0; v++ {
		x, y := a.snapshots(volumeNames[v]), b.snapshots(volumeNames[v])
		for _, name := range slices.Concat(x, y) {
			if slices.Contains(x, name) != slices.Contains(y, name) && !w.unreadable[value(momentOf(name))] {
				w.fail("snapshot %s of %s is on one node only", name, volumeNames[v])
			}
		}
	}
}
