package node

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"steadfast/cluster/inventory"
	"steadfast/compute/host"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/node/control"
	"steadfast/node/ha"
	"steadfast/node/size"
)

// Times of what is done to machines' volumes.
const (
	// openTime bounds how long a volume is waited for that the inventory has: its group's
	// owner follows, or is another since.
	openTime = 20 * time.Second
	// undoTime bounds how long is tried to take away what was made for nothing.
	undoTime = 10 * time.Second
)

// homeVolume and diskVolume are the names of the volumes that a machine is made with.
func homeVolume(machine string) string       { return machine + ".home" }
func diskVolume(machine, disk string) string { return machine + "." + disk }

// newISID returns a session name for one use of a volume by this node itself. RFC 7143,
// 11.12.5, type "random" (T = 10b).
func newISID() (isid iscsi.ISID) {
	_, _ = rand.Read(isid[1:]) // it never fails
	isid[0] = 0x80
	return isid
}

// openSoon opens a volume on a nexus of its own, as soon as the storage lets this member in.
func openSoon(ctx context.Context, c *cluster, at host.At) (host.Volume, error) {
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	for {
		v, err := c.openVolume(ctx, at, newISID())
		if err == nil || !fault.Is(err, fault.Busy) && !fault.Is(err, fault.Unreachable) {
			return v, err
		}
		select {
		case <-ctx.Done():
			return nil, fault.Wrap(fault.KindOf(err), err, "volume "+at.Volume+" cannot be reached; see \"steadfast group show "+at.Group+"\"")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// withVolume has a function use a volume without any lock: to read it, or to write what
// nobody knows of yet. What waits for storage ends when ctx does.
func withVolume(ctx context.Context, c *cluster, at host.At, use func(host.Volume) error) error {
	v, err := openSoon(ctx, c, at)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = v.Close() }) // it is closed below
	err = use(v)
	if !stop() && err != nil {
		err = fault.Wrap(fault.Canceled, errors.Join(context.Cause(ctx), err), "volume "+at.Volume)
	}
	return errors.Join(err, v.Close())
}

// unusedNames refuses names of new volumes that some group's volume has.
func unusedNames(volumes []ha.Volume) ha.Guard {
	return func(inv map[string][]byte, _ *ha.Spec) error {
		specs, err := ha.Specs(inv)
		if err != nil {
			return err
		}
		for _, s := range specs {
			for _, v := range volumes {
				if _, there := s.Volume(v.Name); there {
					return leftOver(inv, s.Name, v.Name)
				}
			}
		}
		return nil
	}
}

// leftOver says what to do about a volume that has the name of one that is to be made.
func leftOver(inv map[string][]byte, group, volume string) error {
	view, _ := inventory.Read(inv)
	machine, used, err := view.UsedBy(group, volume)
	if err != nil {
		return err
	}
	if used {
		return fault.New(fault.Exists, "volume %q exists already in group %q: the machine %q has it; choose another name", volume, group, machine)
	}
	return fault.New(fault.Exists, "volume %q exists already in group %q, and no machine has it: one was deleted and its volumes kept, or was not made to its end; register it (\"steadfast vm register\"), or delete the volume: \"steadfast volume delete %s\"", volume, group, volume)
}

// makeVolumes makes volumes of a machine in a group, all or none; each has a name and a
// size.
func (n *Node) makeVolumes(ctx context.Context, c *cluster, group string, volumes []ha.Volume) (made []ha.Volume, err error) {
	for _, v := range volumes {
		if err := checkName("volume", v.Name); err != nil {
			return nil, err
		}
		if err := checkVolumeSize(v.Size); err != nil {
			return nil, err
		}
		if reserved(v.Name) {
			return nil, n.volumeNameFree(v.Name)
		}
		if p, _, _, err := n.findVolume(v.Name); err == nil && n.groupsVolumes()[volumeIn(p, v.Name)] == "" {
			return nil, fault.New(fault.Exists, "volume %q exists already in pool %q; choose another name", v.Name, p.name)
		}
	}
	err = n.editGroup(ctx, c, group, func(s *ha.Spec) error {
		made = nil
		for _, v := range volumes {
			v, err := s.AddVolume(v)
			if err != nil {
				return err
			}
			if v.Number > lunMax {
				return fault.New(fault.Limit, "group %q has had %d volumes, and hosts reach no more; make the machine in a datastore of another group", s.Name, v.Number)
			}
			made = append(made, v)
		}
		return nil
	}, unusedNames(volumes))
	if err != nil {
		return nil, err
	}
	for _, v := range made {
		n.publish("volume-created", "", v.Name, "volume %q of %s was created in group %q", v.Name, size.Format(v.Size), group)
	}
	return made, nil
}

// volumeIn returns the identifier of a pool's volume; empty: it has none.
func volumeIn(p *pool, name string) string {
	st := p.opened()
	if st == nil {
		return ""
	}
	v, err := st.Volume(name)
	if err != nil {
		return ""
	}
	return hexID(v.ID)
}

// dropVolumes deletes volumes of a group that no machine has, by their numbers; those that
// are gone already are no error.
func (n *Node) dropVolumes(ctx context.Context, c *cluster, group string, volumes []ha.Volume) error {
	if len(volumes) == 0 {
		return nil
	}
	var guards []ha.Guard
	gone := map[uint32]bool{}
	for _, v := range volumes {
		guards = append(guards, unusedVolume(v.Number))
		gone[v.Number] = true
	}
	err := n.editGroup(ctx, c, group, func(s *ha.Spec) error {
		s.Volumes = slices.DeleteFunc(s.Volumes, func(v ha.Volume) bool { return gone[v.Number] })
		return nil
	}, guards...)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		n.publish("volume-deleted", "", v.Name, "volume %q was deleted from group %q", v.Name, group)
	}
	return nil
}

// undoVolumes takes away volumes that were made for nothing, also when the call that made
// them was given up, and returns the reason with what could not be taken away.
func (n *Node) undoVolumes(ctx context.Context, c *cluster, group string, made []ha.Volume, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if err := n.dropVolumes(ctx, c, group, made); err != nil {
		var names []string
		for _, v := range made {
			names = append(names, v.Name)
		}
		return errors.Join(why, fault.Wrap(fault.KindOf(err), err, "its volumes could not be deleted again; do so, when no machine has them: "+deleting(names)))
	}
	return why
}

// deletable fails with fault.Busy for volumes with what a person should know of before they
// are deleted: snapshots; instead says what else the caller can say of those. This node may have no copy of them, or not now; then the group's owner
// is asked.
func (n *Node) deletable(ctx context.Context, c *cluster, spec *ha.Spec, volumes []ha.Volume, withSnapshots bool, instead string) error {
	if _, mine := spec.Node(c.member.Self().Member); !mine {
		if _, err := ownGroup(ctx, c, spec); err != nil {
			return err
		}
	}
	for _, v := range volumes {
		if mapped := n.state.Mappings(func(o control.Mapping) bool { return o.Volume == v.ID }); len(mapped) > 0 {
			return fault.New(fault.Busy, "volume %q is mapped to %s; take that away first: \"steadfast volume unmap %s --initiator %s\"", v.Name, mapped[0].Initiator, v.Name, mapped[0].Initiator)
		}
		_, _, have, err := n.findVolume(v.Name)
		if fault.Is(err, fault.NotFound) {
			if _, err := ownGroup(ctx, c, spec); err != nil {
				return err
			}
			continue // it was just made
		}
		if err != nil {
			return err
		}
		if have.Snapshots > 0 && !withSnapshots {
			return fault.New(fault.Busy, "volume %q has %d snapshots; delete them first (\"steadfast snapshot list %s\")%s", v.Name, have.Snapshots, v.Name, instead)
		}
	}
	return nil
}

// growVolume has a volume of a group be at least so large, and waits until initiators see
// it.
func (n *Node) growVolume(ctx context.Context, c *cluster, group, name string, bytes int64) error {
	if err := checkVolumeSize(bytes); err != nil {
		return err
	}
	grown := false
	err := n.editGroup(ctx, c, group, func(s *ha.Spec) error {
		for i, v := range s.Volumes {
			if v.Name == name {
				grown = v.Size < bytes
				s.Volumes[i].Size = max(v.Size, bytes)
				return nil
			}
		}
		return fault.New(fault.NotFound, "volume %q was deleted meanwhile; see \"steadfast volume list\"", name)
	})
	if err != nil {
		return err
	}
	if grown {
		n.publish("volume-changed", "", name, "volume %q was changed: size %s", name, size.Format(bytes))
	}
	wait, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	for {
		seen := int64(0)
		err := withVolume(wait, c, host.At{Group: group, Volume: name}, func(v host.Volume) error { seen = v.Size(); return nil })
		if err != nil || seen >= bytes {
			return err
		}
		select {
		case <-wait.Done():
			return fault.New(fault.Busy, "volume %q has %s, and its group's owner has not followed yet; see \"steadfast group show %s\", and try again", name, size.Format(bytes), group)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
