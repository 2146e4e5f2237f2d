package lun

import (
	"maps"
	"slices"

	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// SetPortGroups says what target port groups there are, and their access
// states, for units that have none of their own; without, all ports are in one
// group (1), active. When a group's state changes all nexuses of those units
// hear of it (implicit ALUA). SPC-4, 5.15.2.
func (s *Server) SetPortGroups(groups []scsi.PortGroup) {
	s.mu.Lock()
	before := s.groups
	s.groups = cloneGroups(groups)
	var told []*itl
	for id, u := range s.units {
		if s.unitPorts[id] == nil {
			told = append(told, s.regroup(u, before, s.groups)...)
		}
	}
	s.mu.Unlock()
	attend(told, accessChanged)
}

// SetUnitPorts says what target port groups the unit of a volume is reached
// through, in place of the server's: REPORT TARGET PORT GROUPS, VPD page 83h,
// what a port serves in its state, and which ports ALL_TG_PT means follow it.
// Ports of other nodes belong in it; relative target port identifiers and group
// identifiers are unique over all nodes. A nexus that comes through none of its
// ports does not see the unit. It may be said before the volume is a unit, and
// is forgotten by RemoveVolume; no groups mean the server's again.
//
// When a group's state changes all nexuses of the unit hear of it (implicit
// ALUA). It returns when tasks that came through ports that are gone have
// landed or never can; as long as the ports stay it waits for nothing.
func (s *Server) SetUnitPorts(id [16]byte, groups []scsi.PortGroup) {
	s.mu.Lock()
	before := s.listFor(id)
	if len(groups) == 0 {
		delete(s.unitPorts, id)
	} else {
		s.unitPorts[id] = cloneGroups(groups)
	}
	u := s.units[id]
	if u == nil {
		s.mu.Unlock()
		return
	}
	told := s.regroup(u, before, s.listFor(id))
	gone, changed := s.remap("")
	s.mu.Unlock()
	attend(told, accessChanged)
	s.settle(gone, changed)
}

// regroup gives the nexuses of a unit the access states that they have now. It
// returns those to tell: all, when the state of any group has changed, though
// it may not be their own. Under mu. SPC-4, 5.15.2.5.
func (s *Server) regroup(u *unit, before, now []scsi.PortGroup) (told []*itl) {
	changed := slices.ContainsFunc(now, func(g scsi.PortGroup) bool {
		return slices.ContainsFunc(before, func(o scsi.PortGroup) bool { return o.ID == g.ID && o.State != g.State })
	})
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range u.nexuses {
		if state := s.groupFor(i.port, u).State; i.access != state {
			i.access = state
			u.allow(i)
			changed = true
		}
		told = append(told, i)
	}
	if !changed {
		return nil
	}
	return told
}

// listFor returns the port groups of a unit. Under mu.
func (s *Server) listFor(id [16]byte) []scsi.PortGroup {
	if own := s.unitPorts[id]; own != nil {
		return own
	}
	return s.groups
}

// reaches reports whether a unit is reached through a port. Under mu.
func (s *Server) reaches(p *port, u *unit) bool {
	own := s.unitPorts[u.id]
	return own == nil || slices.ContainsFunc(own, func(g scsi.PortGroup) bool {
		return slices.Contains(g.Ports, p.nexus.TargetPort)
	})
}

// groupFor returns the group of a port, for a unit. Under mu.
func (s *Server) groupFor(p *port, u *unit) scsi.PortGroup {
	for _, g := range s.listFor(u.id) {
		if slices.Contains(g.Ports, p.nexus.TargetPort) {
			return g
		}
	}
	return scsi.PortGroup{ID: 1, State: scsi.ActiveOptimized}
}

// groupOf returns the identifier of the group that a nexus comes through.
func (s *Server) groupOf(i *itl) uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groupFor(i.port, i.unit).ID
}

// groupsOf returns the groups to report to a nexus: those that were set, or
// one of all the ports that nexuses come through.
func (s *Server) groupsOf(i *itl) []scsi.PortGroup {
	s.mu.Lock()
	defer s.mu.Unlock()
	if list := s.listFor(i.unit.id); len(list) > 0 {
		return slices.Clone(list)
	}
	g := s.groupFor(i.port, i.unit)
	g.Ports = s.tags(i.port.nexus.TargetName)
	return []scsi.PortGroup{g}
}

// tags returns the relative target ports of a target that are known. Under mu.
func (s *Server) tags(target string) []uint16 {
	seen := portsIn(s.groups)
	for p := range s.ports {
		if p.nexus.TargetName == target {
			seen[p.nexus.TargetPort] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// portsOf returns all target ports that a unit is reached through, for
// ALL_TG_PT.
func (s *Server) portsOf(u *unit) []reserve.Port {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []reserve.Port
	for target, view := range s.targets {
		if !shows(view, u.id) {
			continue
		}
		tags := s.tags(target)
		if own := s.unitPorts[u.id]; own != nil {
			tags = slices.Sorted(maps.Keys(portsIn(own)))
		}
		for _, tag := range tags {
			list = append(list, reserve.Port{Target: target, Tag: tag})
		}
	}
	return list
}

// portsIn returns the relative target ports that are in groups.
func portsIn(groups []scsi.PortGroup) map[uint16]bool {
	seen := map[uint16]bool{}
	for _, g := range groups {
		for _, t := range g.Ports {
			seen[t] = true
		}
	}
	return seen
}

// cloneGroups copies groups; nobody changes the copy.
func cloneGroups(groups []scsi.PortGroup) []scsi.PortGroup {
	list := slices.Clone(groups)
	for i := range list {
		list[i].Ports = slices.Clone(list[i].Ports)
	}
	return list
}
