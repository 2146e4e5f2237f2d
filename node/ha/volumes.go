package ha

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/san/statevol"
	"steadfast/san/store"
)

// attributeGroup is the key under which a volume keeps which one it is: the
// identifier of its group's state volume and its own number. Not the group's
// number: a quorum that an administrator brought back from an old state could give
// that again, and the new group would take the old one's volumes for deleted.
const attributeGroup = "steadfast.group"

// haveVolumes makes the volumes on this node what the spec says.
func (g *Group) haveVolumes(spec *Spec, pool *store.Pool) error {
	if err := g.haveVolume(pool, Volume{ID: spec.StateID, Name: spec.stateName(), Size: statevol.Size, WriteCache: true}); err != nil {
		return err
	}
	for _, v := range spec.Volumes {
		if err := g.haveVolume(pool, v); err != nil {
			return err
		}
	}
	return g.dropVolumes(spec, pool)
}

// haveVolume makes one volume what the spec says: it is created, renamed, grown.
func (g *Group) haveVolume(pool *store.Pool, v Volume) error {
	id, err := parseID(v.ID)
	if err != nil {
		return err
	}
	have, ok := volumeByID(pool, id)
	if !ok {
		return g.makeVolume(pool, v, id)
	}
	var c store.VolumeChange
	change := false
	if have.Name != v.Name {
		c.Name, change = &v.Name, true
	}
	if have.Size < v.Size {
		c.Size, change = &v.Size, true
	}
	if have.WriteCache != v.WriteCache {
		c.WriteCache, change = &v.WriteCache, true
	}
	if change {
		if _, err := pool.ChangeVolume(have.Name, c); err != nil {
			return fault.Wrap(fault.KindOf(err), err, "volume "+v.Name)
		}
		g.changed(v)
	}
	return g.enter(pool, v)
}

// makeVolume creates a volume, which is empty until it is written, or a resync
// brings what the other node has.
func (g *Group) makeVolume(pool *store.Pool, v Volume, id store.ID) error {
	_, err := pool.CreateVolume(store.VolumeSpec{Name: v.Name, Size: v.Size, WriteCache: v.WriteCache, ID: id})
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, "volume "+v.Name+" cannot be made on this node")
	}
	if err := mark(pool, v.Name, fmt.Sprintf("%s/%d", g.Spec().StateID, v.Number)); err != nil {
		return err
	}
	return g.enter(pool, v)
}

// mark enters in a volume which one it is.
func mark(pool *store.Pool, name, which string) error {
	v, err := pool.OpenVolume(name)
	if err != nil {
		return err
	}
	return errors.Join(v.SetAttribute(attributeGroup, []byte(which)), v.Close())
}

// marked returns which volume of which group a volume is; ok: it is one.
func marked(pool *store.Pool, name string) (group string, volume uint32, ok bool) {
	v, err := pool.OpenVolume(name)
	if err != nil {
		return "", 0, false
	}
	b, err := v.Attribute(attributeGroup)
	group, number, ok := strings.Cut(string(b), "/")
	n, nerr := strconv.ParseUint(number, 10, 32)
	return group, uint32(n), errors.Join(err, v.Close()) == nil && ok && nerr == nil
}

// dropOrphans deletes volumes that were deleted from groups while this node was
// away, or while somebody had them open: left tells that this is so still. What the
// inventory never knew stays: it may be an old one, brought back by an administrator.
func dropOrphans(pool *store.Pool, spec *Spec, state *quorum.State) (left bool, err error) {
	gone := goneGroups(state.Inventory.Entries)
	for _, v := range pool.Volumes() {
		group, number, ok := marked(pool, v.Name)
		if !ok || hexID(v.ID) == spec.StateID {
			continue
		}
		mine := group == spec.StateID && number <= spec.Last && !slices.ContainsFunc(spec.Volumes, func(o Volume) bool { return o.ID == hexID(v.ID) })
		if !mine && !slices.Contains(gone, group) {
			continue
		}
		busy, err := deleteVolume(pool, v.Name)
		if err != nil {
			return true, err
		}
		left = left || busy
	}
	return left, nil
}

// deleteVolume deletes a volume with its snapshots, if it is there and nobody has them
// open.
func deleteVolume(pool *store.Pool, name string) (busy bool, err error) {
	switch err := pool.DeleteVolume(name, true); {
	case fault.Is(err, fault.Busy):
		return true, nil
	case err != nil && !fault.Is(err, fault.NotFound):
		return false, fault.Wrap(fault.KindOf(err), err, "volume "+name)
	}
	return false, nil
}

// dropLeft deletes volumes that could not be deleted before.
func (g *Group) dropLeft(spec *Spec, pool *store.Pool, state *quorum.State) (err error) {
	if g.left {
		g.left, err = dropOrphans(pool, spec, state)
	}
	return err
}

// enter makes a volume of the pool one of the mirror's, unless it is.
func (g *Group) enter(pool *store.Pool, v Volume) error {
	g.mu.Lock()
	ps := g.store
	g.mu.Unlock()
	if ps == nil {
		return nil // open will
	}
	if _, there := ps.Volume(v.Number); there {
		return nil
	}
	return ps.Add(v.Number, v.Name)
}

// dropVolumes deletes volumes that were deleted from the group. What the spec
// never knew stays: the spec may be an old one, brought back by an
// administrator.
func (g *Group) dropVolumes(spec *Spec, pool *store.Pool) error {
	g.mu.Lock()
	ps := g.store
	g.mu.Unlock()
	if ps == nil {
		return nil
	}
	for number, name := range ps.Volumes() {
		if number == 0 || number > spec.Last || slices.ContainsFunc(spec.Volumes, func(v Volume) bool { return v.Number == number }) {
			continue
		}
		g.withdrawUnit(number)
		g.left = true // the group's store knows of it no longer
		if err := ps.Remove(number); err != nil {
			return err
		}
		if busy, err := deleteVolume(pool, name); busy || err != nil {
			return err // it is tried again when the group is looked at next
		}
		g.publish(Info, "volume-deleted", name, "volume %q was deleted", name)
	}
	return nil
}

func volumeByID(pool *store.Pool, id store.ID) (store.VolumeStatus, bool) {
	for _, v := range pool.Volumes() {
		if v.ID == id {
			return v, true
		}
	}
	return store.VolumeStatus{}, false
}
