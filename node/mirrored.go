package node

import (
	"context"
	"slices"
	"strings"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/control"
	"steadfast/node/ha"
	"steadfast/node/size"
	"steadfast/san/store"
)

// Calls about volumes of resource groups. They change what the group is to be, in the
// cluster's inventory; both nodes follow that by themselves (node/ha), so a call that
// has changed it is done, even when a node is away, and what it waits for (untilServed)
// is only that initiators see it.

// mirrored is a volume of a resource group, as the inventory has it.
type mirrored struct {
	c    *cluster
	spec *ha.Spec
	ha.Volume
}

// findMirrored returns the volume of that name, if it is one of a resource
// group.
func (n *Node) findMirrored(name string) (mirrored, bool) {
	for _, m := range n.allMirrored() {
		if m.Name == name {
			return m, true
		}
	}
	return mirrored{}, false
}

// allMirrored lists the volumes of all resource groups.
func (n *Node) allMirrored() (list []mirrored) {
	c, err := n.inCluster()
	if err != nil {
		return nil
	}
	// What cannot be read is told by the groups' own commands.
	specs, _ := ha.Specs(c.member.State().Inventory.Entries)
	for _, spec := range specs {
		for _, v := range spec.Volumes {
			list = append(list, mirrored{c, spec, v})
		}
	}
	return list
}

// groupsVolumes returns which volumes of this node's pools are a group's, by
// identifier: they are listed as such, and the state volumes not at all.
func (n *Node) groupsVolumes() map[string]string {
	out := map[string]string{}
	c, err := n.inCluster()
	if err != nil {
		return out
	}
	specs, _ := ha.Specs(c.member.State().Inventory.Entries)
	for _, spec := range specs {
		out[spec.StateID] = ""
		for _, v := range spec.Volumes {
			out[v.ID] = spec.Name
		}
	}
	return out
}

// groupOn returns a resource group that has its copy in a pool of this node;
// empty: there is none.
func (n *Node) groupOn(pool string) string {
	c, err := n.inCluster()
	if err != nil {
		return ""
	}
	specs, _ := ha.Specs(c.member.State().Inventory.Entries)
	for _, spec := range specs {
		if mine, has := spec.Node(c.member.Self().Member); has && mine.Pool == pool {
			return spec.Name
		}
	}
	return ""
}

// owner returns the group on this node, if it owns it; else the call goes to
// who does. The error is the handler's.
func (m mirrored) owner(ctx context.Context) (*ha.Group, error) {
	return ownGroup(ctx, m.c, m.spec)
}

func ownGroup(ctx context.Context, c *cluster, spec *ha.Spec) (*ha.Group, error) {
	record := c.member.State().Group[spec.Name]
	switch {
	case record == nil:
		return nil, fault.New(fault.Busy, "group %q has no owner yet; see \"steadfast group show %s\"", spec.Name, spec.Name)
	case record.Owner.Member != c.member.Self().Member:
		return nil, elsewhere(ctx, record.Owner.Member)
	}
	return c.groups.Group(spec.Name)
}

// createMirrored makes a volume in a resource group.
func (n *Node) createMirrored(ctx context.Context, req *steadfastv1.CreateVolumeRequest) (*steadfastv1.CreateVolumeResponse, error) {
	c, spec, err := n.findSpec(req.Group)
	if err != nil {
		return nil, err
	}
	if req.Pool != "" {
		return nil, fault.New(fault.Invalid, "a volume of a group goes to the group's pools; leave --pool out")
	}
	if err := n.newVolumeName(req.Name); err != nil {
		return nil, err
	}
	if err := checkVolumeSize(req.SizeBytes); err != nil {
		return nil, err
	}
	g, err := ownGroup(ctx, c, spec)
	if err != nil {
		return nil, err
	}
	v := ha.Volume{Name: req.Name, Size: req.SizeBytes, WriteCache: req.WriteCache, ReadOnly: req.ReadOnly}
	err = n.editGroup(ctx, c, spec.Name, func(s *ha.Spec) (err error) {
		v, err = s.AddVolume(v)
		return err
	})
	if err != nil {
		return nil, err
	}
	n.publish("volume-created", "", v.Name, "volume %q of %s was created in group %q", v.Name, size.Format(v.Size), spec.Name)
	return &steadfastv1.CreateVolumeResponse{Volume: n.describeMirrored(mirrored{c, spec, v})}, n.untilServed(ctx, g, v)
}

// editGroup changes a group's spec.
func (n *Node) editGroup(ctx context.Context, c *cluster, name string, change func(*ha.Spec) error, guards ...ha.Guard) error {
	ctx, cancel := context.WithTimeout(ctx, followTime)
	defer cancel()
	return undecided(ha.Change(ctx, c.member, name, change, guards...))
}

// untilServed waits until initiators could see a volume as it is to be.
func (n *Node) untilServed(ctx context.Context, g *ha.Group, v ha.Volume) error {
	ctx, cancel := context.WithTimeout(ctx, followTime)
	defer cancel()
	if err := n.waitFor(ctx, func() bool { return g.Has(v) }); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "the group has the volume as asked, and its owner has not followed yet; see \"steadfast group show "+g.Name()+"\"")
	}
	return nil
}

// setMirrored changes a volume of a resource group.
func (n *Node) setMirrored(ctx context.Context, m mirrored, req *steadfastv1.SetVolumeRequest) (*steadfastv1.SetVolumeResponse, error) {
	if req.NewName != nil && *req.NewName != m.Name {
		if err := n.newVolumeName(*req.NewName); err != nil {
			return nil, err
		}
	}
	if req.SizeBytes != nil {
		if err := checkVolumeSize(*req.SizeBytes); err != nil {
			return nil, err
		}
	}
	g, err := m.owner(ctx)
	if err != nil {
		return nil, err
	}
	var guards []ha.Guard
	if req.NewName != nil && *req.NewName != m.Name || req.ReadOnly != nil && *req.ReadOnly {
		guards = append(guards, unusedVolume(m.Number))
	}
	var v ha.Volume
	err = n.editGroup(ctx, m.c, m.spec.Name, func(s *ha.Spec) error {
		for i := range s.Volumes {
			if s.Volumes[i].Number != m.Number {
				continue
			}
			if req.SizeBytes != nil && *req.SizeBytes < s.Volumes[i].Size {
				return fault.New(fault.Invalid, "volume %q has %s and only grows; to shrink, copy what is on it to a new volume", m.Name, size.Format(s.Volumes[i].Size))
			}
			change(&s.Volumes[i], req)
			v = s.Volumes[i]
			return nil
		}
		return fault.New(fault.NotFound, "volume %q was deleted meanwhile", m.Name)
	}, guards...)
	if err != nil {
		return nil, err
	}
	n.publish("volume-changed", "", v.Name, "volume %q was changed: %s", m.Name, changes(req))
	if err := n.renameShared(v); err != nil {
		return nil, err
	}
	return &steadfastv1.SetVolumeResponse{Volume: n.describeMirrored(mirrored{m.c, m.spec, v})}, n.untilServed(ctx, g, v)
}

// change makes the changes of a request.
func change(v *ha.Volume, req *steadfastv1.SetVolumeRequest) {
	if req.NewName != nil {
		v.Name = *req.NewName
	}
	if req.SizeBytes != nil {
		v.Size = *req.SizeBytes
	}
	if req.WriteCache != nil {
		v.WriteCache = *req.WriteCache
	}
	if req.ReadOnly != nil {
		v.ReadOnly = *req.ReadOnly
	}
}

// renameShared keeps the names that mappings show in step.
func (n *Node) renameShared(v ha.Volume) error {
	unlock, err := n.change()
	if err != nil {
		return err
	}
	defer unlock()
	id, err := parseID(v.ID)
	if err != nil {
		return err
	}
	return n.renameMappings(store.VolumeStatus{ID: id, Name: v.Name})
}

// deleteMirrored deletes a volume of a resource group on both nodes.
func (n *Node) deleteMirrored(ctx context.Context, m mirrored, req *steadfastv1.DeleteVolumeRequest) (*steadfastv1.DeleteVolumeResponse, error) {
	if _, err := m.owner(ctx); err != nil {
		return nil, err
	}
	if mapped := n.state.Mappings(func(o control.Mapping) bool { return o.Volume == m.ID }); len(mapped) > 0 {
		return nil, fault.New(fault.Busy, "volume %q is mapped to %s; take that away first with \"steadfast volume unmap %s --initiator %s\"",
			m.Name, mapped[0].Initiator, m.Name, mapped[0].Initiator)
	}
	_, _, have, err := n.findVolume(m.Name)
	if err != nil {
		return nil, err
	}
	if have.Snapshots > 0 && !req.WithSnapshots {
		return nil, fault.New(fault.Busy, "volume %q has %d snapshots; delete them first, or say --with-snapshots", m.Name, have.Snapshots)
	}
	err = n.editGroup(ctx, m.c, m.spec.Name, func(s *ha.Spec) error {
		for i := range s.Volumes {
			if s.Volumes[i].Number == m.Number {
				s.Volumes = append(s.Volumes[:i], s.Volumes[i+1:]...)
				return nil
			}
		}
		return fault.New(fault.NotFound, "volume %q was deleted meanwhile", m.Name)
	}, unusedVolume(m.Number))
	if err != nil {
		return nil, err
	}
	n.publish("volume-deleted", "", m.Name, "volume %q was deleted from group %q", m.Name, m.spec.Name)
	return &steadfastv1.DeleteVolumeResponse{}, nil
}

// snapshotMirrored takes a snapshot of volumes of a group, at one moment.
func (n *Node) snapshotMirrored(ctx context.Context, c *cluster, spec *ha.Spec, name string, volumes []ha.Volume) ([]*steadfastv1.Snapshot, error) {
	g, err := ownGroup(ctx, c, spec)
	if err != nil {
		return nil, err
	}
	var numbers []uint32
	for _, v := range volumes {
		numbers = append(numbers, v.Number)
	}
	if len(numbers) == 0 {
		return nil, fault.New(fault.NotFound, "group %q has no volumes", spec.Name)
	}
	if err := g.Snapshot(name, numbers); err != nil {
		return nil, err
	}
	var out []*steadfastv1.Snapshot
	for _, v := range volumes {
		_, _, s, err := n.findSnapshot(v.Name, name)
		if err != nil {
			return nil, err
		}
		out = append(out, describeSnapshot(s))
		n.publish("snapshot-created", "", v.Name, "snapshot %s@%s was created", v.Name, name)
	}
	return out, nil
}

// mapMirrored shows a volume of a resource group to initiators, through the
// group's target.
func (n *Node) mapMirrored(m mirrored, req *steadfastv1.MapVolumeRequest) (control.Mapping, error) {
	out := control.Mapping{Target: m.spec.Target, Volume: m.ID, VolumeName: m.Name, ReadOnly: req.ReadOnly, Group: m.spec.Name}
	if req.Target != "" && normal(req.Target) != m.spec.Target {
		return out, fault.New(fault.Invalid, "volume %q is reached through its group's target %s; leave --target out", m.Name, m.spec.Target)
	}
	err := n.unusedMirrored(m)
	if err != nil {
		return out, err
	}
	if out.Initiator, err = n.findInitiatorOrGroup(req.Initiator); err != nil {
		return out, err
	}
	if err := n.chooseLUN(&out, req.Lun); err != nil {
		return out, err
	}
	if err := n.state.PutMappings(out); err != nil {
		return out, err
	}
	if err := n.syncTarget(out.Target); err != nil && !fault.Is(err, fault.NotFound) {
		return out, err
	}
	n.publish("volume-mapped", "", m.Name, "volume %q is LUN %d of %s for %s", m.Name, out.LUN, out.Target, out.Initiator)
	return out, nil
}

// offerGroup makes a group's target known here, with what its initiators see.
func (n *Node) offerGroup(spec *ha.Spec) error {
	for _, name := range n.targets.Targets() {
		if name == spec.Target {
			return nil // syncTarget keeps it up to date
		}
	}
	unlock, err := n.change()
	if err != nil {
		return err
	}
	defer unlock()
	groups := []uint16{spec.Tag()}
	if spec.Multipath {
		groups = append(groups, n.ownTags()...)
	}
	return n.offer(control.Target{Name: spec.Target, Alias: spec.Name, Groups: groups})
}

// ownTags returns the tags of the node's own portals.
func (n *Node) ownTags() (tags []uint16) {
	for _, p := range n.cfg.Portals {
		tags = append(tags, p.Group)
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}

// withdrawGroup takes a group's target away.
func (n *Node) withdrawGroup(spec *ha.Spec) error {
	unlock, err := n.change()
	if err != nil {
		return err
	}
	defer unlock()
	if err := n.withdraw(spec.Target); !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// describeMirrored returns a volume of a group as the API shows it: what the
// inventory says, and what this node's copy takes up when it has one.
func (n *Node) describeMirrored(m mirrored) *steadfastv1.Volume {
	out := &steadfastv1.Volume{}
	me := m.c.member.Self().Member
	if node, mine := m.spec.Node(me); mine {
		if pool := n.poolNamed(node.Pool); pool != nil {
			if v, err := pool.Volume(m.Name); err == nil && hexID(v.ID) == m.ID {
				out = describeVolume(node.Pool, v, nil)
			}
		}
	}
	out.Id, out.Name, out.Group, out.SizeBytes, out.WriteCache, out.ReadOnly = m.ID, m.Name, m.spec.Name, m.Size, m.WriteCache, m.ReadOnly
	out.Mappings = describeMappings(n.state.Mappings(func(o control.Mapping) bool { return o.Volume == m.ID }))
	return out
}

// reserved tells whether a name is one of a group's state volume.
func reserved(name string) bool { return strings.HasPrefix(name, ha.StateVolume("")) }
