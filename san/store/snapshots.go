package store

import (
	"steadfast/fault"
	"steadfast/san/store/format"
)

// CreateSnapshot freezes the content of a volume, in a time that does not
// depend on its size. It contains every write answered before the call.
func (p *Pool) CreateSnapshot(volume, name string) (SnapshotStatus, error) {
	return p.CreateSnapshotAs(volume, SnapshotSpec{Name: name})
}

// CreateSnapshotAs is CreateSnapshot for one that another pool has, or is to have,
// too.
func (p *Pool) CreateSnapshotAs(volume string, spec SnapshotSpec) (SnapshotStatus, error) {
	if err := p.CreateSnapshots(NewSnapshot{volume, spec}); err != nil {
		return SnapshotStatus{}, err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, err := p.cat.findVolume(volume)
	if err != nil {
		return SnapshotStatus{}, err
	}
	s, err := v.findSnapshot(spec.Name)
	if err != nil {
		return SnapshotStatus{}, err
	}
	return p.describeSnapshot(s), nil
}

// CreateSnapshots is CreateSnapshotAs of several volumes at one moment: all of the
// snapshots are there when it returns nil, and none when it does not; a crash in it
// leaves all or none. Their LSNs differ, and nothing that was written is between
// them. Fails as each of them would, and with fault.Limit when they do not fit into
// one step (some hundreds do).
func (p *Pool) CreateSnapshots(list ...NewSnapshot) error {
	now := p.now()
	var all []*format.Op
	for _, n := range list {
		if err := checkName("snapshot", n.Name); err != nil {
			return err
		}
		id, err := p.volumeID(n.Volume)
		if err != nil {
			return err
		}
		o := &format.Op{Kind: format.OpCreateSnapshot, Volume: id, Name: n.Name, Size: uint64(n.Size), Time: uint64(n.Created)}
		if n.Created == 0 {
			o.Time = now
		}
		all = append(all, o)
	}
	if len(all) == 0 {
		return nil
	}
	return p.changeAll(all...)
}

// DeleteSnapshot deletes a snapshot no clone stands on and nobody has open (else
// fault.Busy).
func (p *Pool) DeleteSnapshot(volume, name string) error {
	return p.DeleteSnapshots(SnapshotName{volume, name})
}

// DeleteSnapshots deletes several, of any volumes: all of them or, as after a crash
// in it, none. Fails as DeleteSnapshot of each of them would, and with fault.Limit
// when they do not fit into one step.
func (p *Pool) DeleteSnapshots(list ...SnapshotName) error {
	var all []*format.Op
	for _, n := range list {
		id, err := p.volumeID(n.Volume)
		if err != nil {
			return err
		}
		all = append(all, &format.Op{Kind: format.OpDeleteSnapshot, Volume: id, Name: n.Name})
	}
	if len(all) == 0 {
		return nil
	}
	return p.changeAll(all...)
}

// leave checks changes of the catalog, and keeps what they delete from being opened
// until stay is called: what is logged must mean the same in recovery, where nothing
// is open.
func (p *Pool) leave(list []*format.Op) (stay func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.cat.checkAll(list); err != nil {
		return nil, err
	}
	var marks []*int
	for _, o := range list {
		v := p.cat.volumes[o.Volume]
		switch {
		case o.Kind == format.OpDeleteVolume:
			marks = append(marks, &v.leaving)
		case o.Kind == format.OpDeleteSnapshot:
			s, _ := v.findSnapshot(o.Name) // which checkAll has found
			marks = append(marks, &s.leaving)
		}
	}
	for _, n := range marks {
		*n++
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, n := range marks {
			*n--
		}
	}, nil
}

// openable refuses to open what is about to be deleted.
func openable(leaving int, what, name string) error {
	if leaving > 0 {
		return fault.New(fault.Busy, "%s %q is being deleted", what, name)
	}
	return nil
}
