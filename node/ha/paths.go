package ha

import (
	"context"
	"encoding/json"
	"slices"

	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/fault"
	"steadfast/san/lun"
	"steadfast/san/mirrorio"
	"steadfast/san/statevol"
	"steadfast/scsi"
)

// A group that was made with multipath is also reached through its nodes' own
// portals: those of the owner are active/optimized, the other's standby. Each
// node tells the tags of its portals in the inventory, for both tell initiators
// of all ports. SPC-4, 5.15.

// portalPrefix begins the inventory's keys of nodes' portals.
const portalPrefix = "portals/"

// TellPortals enters the tags of a node's own portals in the inventory.
func TellPortals(ctx context.Context, m quorumio.Editor, node quorum.Member, tags []uint16) error {
	return quorumio.Update(ctx, m, func(inv quorum.Inventory) ([]quorum.Edit, error) {
		if slices.Equal(portalTags(inv.Entries, node), tags) {
			return nil, nil
		}
		b, err := json.Marshal(tags)
		return []quorum.Edit{{Key: portalPrefix + string(node), Value: b}}, fault.Wrap(fault.Internal, err, "portals")
	})
}

// portalTags returns the tags of a node's own portals; none when it has not told
// them.
func portalTags(inv map[string][]byte, node quorum.Member) (tags []uint16) {
	if err := json.Unmarshal(inv[portalPrefix+string(node)], &tags); err != nil {
		return nil
	}
	return tags
}

// CheckPaths tells why a group cannot be reached by several paths: the portals of
// its nodes need tags of their own.
func CheckPaths(inv map[string][]byte, s *Spec) error {
	seen := map[uint16]quorum.Member{}
	for _, n := range s.Nodes {
		tags := portalTags(inv, n.Name)
		if len(tags) == 0 {
			return fault.New(fault.Invalid, "node %s has no portals of its own, which --multipath shows; give it one in its configuration", n.Name)
		}
		for _, t := range tags {
			if other, taken := seen[t]; taken {
				return fault.New(fault.Invalid, "portals of %s and of %s have the same group tag %d: for --multipath set group = N in the [[portal]] tables of one of them, as 1 on one node and 2 on the other", other, n.Name, t)
			}
			seen[t] = n.Name
		}
	}
	return nil
}

// ports returns the target port groups of the group's units, for an owner.
func (g *Group) ports(spec *Spec, owner quorum.Member) []scsi.PortGroup {
	list := []scsi.PortGroup{{ID: spec.Tag(), State: scsi.ActiveOptimized, Ports: []uint16{spec.Tag()}}}
	if !spec.Multipath {
		return list
	}
	g.mu.Lock()
	inv := g.state.Inventory.Entries
	g.mu.Unlock()
	for _, n := range spec.Nodes {
		tags := portalTags(inv, n.Name)
		if len(tags) == 0 {
			continue
		}
		state := scsi.Standby
		if n.Name == owner {
			state = scsi.ActiveOptimized
		}
		list = append(list, scsi.PortGroup{ID: slices.Min(tags), State: state, Ports: tags})
	}
	return list
}

// standBy shows the units of a multipath group through this node's own portals
// while the other node serves them.
func (g *Group) standBy(spec *Spec) error {
	g.mu.Lock()
	ps, owner := g.store, g.standing.Owner.Member
	g.mu.Unlock()
	if !spec.Multipath || ps == nil || g.serving != nil {
		return nil
	}
	for _, v := range spec.Volumes {
		id, err := parseID(v.ID)
		if err != nil {
			return err
		}
		meta := lun.Metadata{ID: id, Name: v.Name, Size: v.Size, WriteCache: v.WriteCache, ReadOnly: v.ReadOnly}
		g.cfg.Units.SetUnitPorts(id, g.ports(spec, owner))
		if have := g.standbys[v.Number]; have != nil {
			have.Update(meta)
			continue
		}
		s := g.newStandby(meta, peeker(ps, v.Place))
		if err := g.cfg.Units.AddVolume(s); err != nil && !fault.Is(err, fault.Exists) {
			return fault.Wrap(fault.KindOf(err), err, "volume "+v.Name)
		}
		g.standbys[v.Number] = s
	}
	return g.dropStandbys(func(number uint32) bool {
		return slices.ContainsFunc(spec.Volumes, func(v Volume) bool { return v.Number == number })
	})
}

// peeker reads a unit's state from this node's copy of the state volume.
func peeker(ps *mirrorio.PoolStore, place uint32) func() ([]byte, error) {
	return func() ([]byte, error) {
		v, ok := ps.Volume(0)
		if !ok {
			return nil, fault.New(fault.Fenced, "the group is closing")
		}
		return statevol.Peek(v, place)
	}
}

// dropStandbys takes away standby units that are not to be kept.
func (g *Group) dropStandbys(keep func(number uint32) bool) error {
	for number, s := range g.standbys {
		if keep(number) {
			continue
		}
		delete(g.standbys, number)
		if err := g.cfg.Units.RemoveVolume(s.ID()); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}

// takeUnit makes u the group's unit: a new one, or in the place of the standby.
func (g *Group) takeUnit(u *unit, spec *Spec) error {
	me := g.cfg.Member.Self().Member
	if g.standbys[u.now().Number] == nil {
		g.cfg.Units.SetUnitPorts(u.id, g.ports(spec, me))
		return g.cfg.Units.AddVolume(u)
	}
	if err := g.cfg.Units.ReplaceVolume(u); err != nil {
		return err
	}
	delete(g.standbys, u.now().Number)
	g.cfg.Units.SetUnitPorts(u.id, g.ports(spec, me))
	return nil
}

// giveUnit ends serving u: it goes, or becomes a standby again.
func (g *Group) giveUnit(u *unit, spec *Spec) error {
	v := u.now()
	if _, listed := spec.Volume(v.Name); !spec.Multipath || !listed || g.ctx.Err() != nil {
		return g.cfg.Units.RemoveVolume(u.id)
	}
	g.mu.Lock()
	ps, owner := g.store, g.standing.Owner.Member
	g.mu.Unlock()
	if owner == g.cfg.Member.Self().Member {
		owner = spec.Other(owner)
	}
	g.cfg.Units.SetUnitPorts(u.id, g.ports(spec, owner))
	s := g.newStandby(lun.Metadata{ID: u.id, Name: v.Name, Size: v.Size, WriteCache: v.WriteCache, ReadOnly: v.ReadOnly}, peeker(ps, v.Place))
	if err := g.cfg.Units.ReplaceVolume(s); err != nil {
		return err
	}
	g.standbys[v.Number] = s
	return nil
}
