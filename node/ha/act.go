package ha

import (
	"encoding/json"
	"slices"
	"time"

	"steadfast/cluster/group"
	"steadfast/fault"
	"steadfast/san/mirror"
	"steadfast/san/mirrorio"
	"steadfast/san/store"
)

// action is what both nodes do at one moment between writes: see
// mirrorio.Group.Barrier. It travels as JSON.
type action struct {
	Do   string `json:"do"`
	Name string `json:"name"` // the snapshot's
	// Moment is when a snapshot is taken, by the owner's clock and in nanoseconds
	// since the Unix epoch: the same on both nodes, and no other snapshot's.
	Moment int64 `json:"moment,omitempty"`
	// Of is, of a deletion, the moment of the snapshots that are meant; 0: those that
	// have the name.
	Of      int64    `json:"of,omitempty"`
	Volumes []uint32 `json:"volumes"` // by number
}

// What an action does.
const (
	doSnapshot       = "snapshot"
	doDeleteSnapshot = "delete-snapshot"
)

// decode reads an action, and finds its volumes' names.
func (g *Group) decode(b []byte) (a action, names []string, err error) {
	if err := json.Unmarshal(b, &a); err != nil {
		return a, nil, fault.Wrap(fault.Stale, err, "an action of a newer program")
	}
	for _, v := range g.Spec().Volumes {
		if slices.Contains(a.Volumes, v.Number) {
			names = append(names, v.Name)
		}
	}
	return a, names, nil
}

// act does an action on this node's copy. It changes all of the volumes or none.
func (g *Group) act(pool *store.Pool, b []byte) error {
	a, names, err := g.decode(b)
	if err != nil {
		return err
	}
	switch a.Do {
	case doSnapshot:
		return takeSnapshots(pool, names, a.Name, a.Moment)
	case doDeleteSnapshot:
		return g.dropSoon(pool, names, a.Name, a.Of)
	}
	return fault.New(fault.Stale, "an action %q of a newer program", a.Do)
}

// notCopied refuses to delete what a resync of the other node copies from: that may
// take its time, and whoever asks should know.
func (g *Group) notCopied(names []string, snapshot string) error {
	g.mu.Lock()
	ps := g.store
	g.mu.Unlock()
	for _, name := range names {
		if ps != nil && ps.Copying(name, snapshot) {
			return fault.New(fault.Busy, "snapshot %q of volume %q is being copied to the other node, which lacked it; delete it when that is done", snapshot, name)
		}
	}
	return nil
}

// takeSnapshots takes a snapshot of each volume, in one step of the pool: of all or
// of none, whatever becomes of this node meanwhile. One that is there already, of the
// same moment, was taken by this same action; moment 0 is any.
func takeSnapshots(pool *store.Pool, names []string, snapshot string, moment int64) error {
	var list []store.NewSnapshot
	for _, name := range names {
		if !taken(pool, name, snapshot, moment) {
			list = append(list, store.NewSnapshot{Volume: name, SnapshotSpec: store.SnapshotSpec{Name: snapshot, Created: store.Instant(moment)}})
		}
	}
	return pool.CreateSnapshots(list...)
}

// taken tells whether a volume has a snapshot of a moment; 0 is any.
func taken(pool *store.Pool, volume, snapshot string, moment int64) bool {
	all, err := pool.Snapshots(volume)
	return err == nil && slices.ContainsFunc(all, func(s store.SnapshotStatus) bool {
		return s.Name == snapshot && (moment == 0 || s.Created.UnixNano() == moment)
	})
}

// dropTries bounds how often a deletion is begun again when something of it has just
// been deleted by another way: with its volume, or by a resync.
const dropTries = 5

// dropSnapshots deletes a snapshot of a moment of each volume that has it, in one
// step: moment 0 is any, others by its name stay.
func dropSnapshots(pool *store.Pool, names []string, snapshot string, moment int64) (err error) {
	for range dropTries {
		var list []store.SnapshotName
		for _, name := range names {
			if taken(pool, name, snapshot, moment) {
				list = append(list, store.SnapshotName{Volume: name, Name: snapshot})
			}
		}
		if err = pool.DeleteSnapshots(list...); !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return err
}

// undo takes back an action that the other node refused.
func (g *Group) undo(pool *store.Pool, b []byte) error {
	a, names, err := g.decode(b)
	if err != nil || a.Do != doSnapshot {
		return err // a deletion is refused by nobody
	}
	return g.dropSoon(pool, names, a.Name, a.Moment)
}

// healed tells of what a checksum had found.
func (g *Group) healed(volume uint32, off, n int64, err error) {
	name := ""
	for _, v := range g.Spec().Volumes {
		if v.Number == volume {
			name = v.Name
		}
	}
	if err != nil {
		g.publish(Error, "heal-failed", name, "%d damaged bytes at %d could not be had from the other node: %v", n, off, err)
		return
	}
	g.publish(Warning, "healed", name, "%d damaged bytes at %d were replaced by the other node's", n, off)
}

// ResyncSnapshot is what the snapshots are called that keep the state from before
// a resync of this node. Nobody else may have the name.
const ResyncSnapshot = mirrorio.KeptState

// keepState keeps the last state of this node's volumes that was a consistent
// one, before a resync mixes it with a newer one. What an earlier resync kept,
// which did not end, is that state.
func (g *Group) keepState(pool *store.Pool) error {
	g.resyncs.Lock()
	defer g.resyncs.Unlock()
	g.mu.Lock()
	ps := g.store
	g.mu.Unlock()
	if ps == nil {
		return fault.New(fault.Canceled, "the group is closing")
	}
	var names []string
	for _, name := range ps.Volumes() {
		names = append(names, name)
	}
	g.publish(Info, "resync-began", "", "node %s gets what it lacks", g.cfg.Member.Self().Member)
	return takeSnapshots(pool, names, ResyncSnapshot, 0)
}

// dropState gives back what keepState kept, when the resync has ended well.
func (g *Group) dropState(pool *store.Pool, ok bool) {
	if !ok {
		return
	}
	g.publish(Info, "resync-ended", "", "node %s has everything", g.cfg.Member.Self().Member)
	g.gs.tasks.Go(func() {
		g.resyncs.Lock()
		defer g.resyncs.Unlock()
		g.mu.Lock()
		ps := g.store
		g.mu.Unlock()
		if ps == nil {
			return
		}
		for _, name := range ps.Volumes() {
			if err := dropSnapshots(pool, []string{name}, ResyncSnapshot, 0); err != nil {
				g.cfg.Log.Warn("the state from before the resync cannot be given back", "volume", name, "error", err)
			}
		}
	})
}

// Snapshot takes a snapshot of volumes of the group at one moment, on both
// nodes. Fails with fault.Fenced when this node does not serve the group, and as
// either node's pool does.
func (g *Group) Snapshot(name string, volumes []uint32) error {
	if isVerification(name) {
		return fault.New(fault.Invalid, "snapshots named like %q are made by \"steadfast group verify\" for itself; choose another name", name)
	}
	return g.snapshot(name, volumes)
}

func (g *Group) snapshot(name string, volumes []uint32) error {
	g.actions.Lock()
	defer g.actions.Unlock()
	moment, err := g.snapshotFree(name, volumes)
	if err != nil {
		return err
	}
	return g.barrier(action{Do: doSnapshot, Name: name, Moment: moment, Volumes: volumes})
}

// snapshotFree refuses a name that one of the volumes has a snapshot of already, and
// returns a moment for a new one: now, and after all others of the group.
func (g *Group) snapshotFree(name string, volumes []uint32) (moment int64, err error) {
	g.mu.Lock()
	pool, spec := g.pool, g.spec
	g.mu.Unlock()
	if pool == nil {
		return 0, fault.New(fault.Fenced, "group %q is not open on this node", g.name)
	}
	if name == ResyncSnapshot {
		return 0, fault.New(fault.Invalid, "snapshots named %q are the resync's own; choose another name", name)
	}
	moment = time.Now().UnixNano()
	for _, v := range spec.Volumes {
		all, err := pool.Snapshots(v.Name)
		if err != nil {
			return 0, err
		}
		for _, s := range all {
			if s.Name == name && slices.Contains(volumes, v.Number) {
				return 0, fault.New(fault.Exists, "volume %q has a snapshot %q already", v.Name, name)
			}
			moment = max(moment, s.Created.UnixNano()+1)
		}
	}
	return moment, nil
}

// DeleteSnapshot deletes a snapshot of volumes of the group on both nodes; a
// volume that does not have it is none the worse. A node where somebody reads it does
// so as soon as that ends.
func (g *Group) DeleteSnapshot(name string, volumes []uint32) error {
	g.actions.Lock()
	defer g.actions.Unlock()
	var names []string
	for _, v := range g.Spec().Volumes {
		if slices.Contains(volumes, v.Number) {
			names = append(names, v.Name)
		}
	}
	if err := g.notCopied(names, name); err != nil {
		return err
	}
	return g.barrier(action{Do: doDeleteSnapshot, Name: name, Volumes: volumes})
}

func (g *Group) barrier(a action) error {
	b, err := json.Marshal(a)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "an action")
	}
	m := g.mirrored()
	if m == nil || m.Standing().Role != group.Owner {
		return fault.New(fault.Fenced, "this node does not own group %q", g.name)
	}
	return m.Snapshot(mirror.Moment(a.Moment), b)
}

// Has tells whether the owner's unit of a volume is there and as large as it is
// to be.
func (g *Group) Has(v Volume) bool {
	g.mu.Lock()
	s := g.current
	g.mu.Unlock()
	if s == nil {
		return false
	}
	s.mu.Lock()
	u := s.units[v.Number]
	s.mu.Unlock()
	if u == nil {
		return false
	}
	now := u.now()
	return u.size() == v.Size && now.Name == v.Name && now.WriteCache == v.WriteCache && now.ReadOnly == v.ReadOnly
}
