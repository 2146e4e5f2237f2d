package node

import (
	"context"
	"errors"
	"fmt"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/node/control"
	"steadfast/scsi"
)

// lunMax is the largest logical unit number. Some initiators stop earlier;
// ESXi at 1023.
const lunMax = scsi.LUNMax

// MapVolume implements the API's call.
func (s volumeService) MapVolume(_ context.Context, req *steadfastv1.MapVolumeRequest) (*steadfastv1.MapVolumeResponse, error) {
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	m, err := s.n.mapVolume(req)
	if err != nil {
		return nil, err
	}
	return &steadfastv1.MapVolumeResponse{Mapping: describeMapping(m)}, nil
}

// mapVolume is MapVolume under admin.
func (n *Node) mapVolume(req *steadfastv1.MapVolumeRequest) (m control.Mapping, err error) {
	if v, ok := n.findMirrored(req.Volume); ok {
		return n.mapMirrored(v, req)
	}
	p, st, v, err := n.findVolume(req.Volume)
	if err != nil {
		return m, err
	}
	who, err := n.findInitiatorOrGroup(req.Initiator)
	if err != nil {
		return m, err
	}
	t, err := n.targetFor(req.Target)
	if err != nil {
		return m, err
	}
	m = control.Mapping{
		Target: t, Initiator: who, Pool: p.id, Volume: hexID(v.ID), VolumeName: v.Name, ReadOnly: req.ReadOnly,
	}
	if err := n.chooseLUN(&m, req.Lun); err != nil {
		return m, err
	}
	// The unit is opened first: what cannot be opened is not mapped.
	if err := n.show(p, st, m.Volume, v.Name); err != nil {
		return m, err
	}
	if err := n.state.PutMappings(m); err != nil {
		return m, errors.Join(err, n.hideUnmapped(m.Volume))
	}
	if err := n.syncTarget(m.Target); err != nil {
		return m, err
	}
	n.publish("volume-mapped", p.name, v.Name, "volume %q is LUN %d of %s for %s", v.Name, m.LUN, m.Target, m.Initiator)
	return m, nil
}

// chooseLUN gives m the number asked for, or one that is free.
func (n *Node) chooseLUN(m *control.Mapping, asked *int32) error {
	switch {
	case asked == nil:
		if err := n.pickLUN(m); err != nil {
			return err
		}
	case *asked < 0 || *asked > lunMax:
		return fault.New(fault.Invalid, "LUN %d is not between 0 and %d", *asked, lunMax)
	default:
		m.LUN = uint16(*asked)
	}
	return n.conflicts(*m)
}

// pickLUN gives m the lowest number that is free for all it maps to.
func (n *Node) pickLUN(m *control.Mapping) error {
	taken := map[uint16]bool{}
	view := n.state.View(m.Target)
	for _, name := range n.state.Resolve(m.Initiator) {
		for _, o := range view[name] {
			taken[o.LUN] = true
		}
	}
	// A group's own mappings count, too, whoever its members are.
	for _, o := range n.state.Mappings(func(o control.Mapping) bool { return o.Target == m.Target && o.Initiator == m.Initiator }) {
		taken[o.LUN] = true
	}
	for l := uint16(0); l <= lunMax; l++ {
		if !taken[l] {
			m.LUN = l
			return nil
		}
	}
	return fault.New(fault.Limit, "%s has %d volumes mapped on %s already, and there are no more numbers", m.Initiator, lunMax+1, m.Target)
}

// conflicts checks a new mapping against what its initiators see already.
func (n *Node) conflicts(m control.Mapping) error {
	view := n.state.View(m.Target)
	for _, name := range n.state.Resolve(m.Initiator) {
		if err := control.Conflict(name, append(view[name], m)); err != nil {
			return err
		}
	}
	return nil
}

// UnmapVolume implements the API's call.
func (s volumeService) UnmapVolume(_ context.Context, req *steadfastv1.UnmapVolumeRequest) (*steadfastv1.UnmapVolumeResponse, error) {
	n := s.n
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	// By the mapping's own note of the name, so that it works for a volume
	// whose pool is absent.
	list := n.state.Mappings(func(m control.Mapping) bool {
		return m.VolumeName == req.Volume && m.Initiator == normal(req.Initiator) && (req.Target == "" || m.Target == normal(req.Target))
	})
	if len(list) == 0 {
		return nil, n.notMapped(req)
	}
	if !req.Force {
		for _, m := range list {
			if open := n.sessionsThrough(m); len(open) > 0 {
				return nil, fault.New(fault.Busy, "volume %q may be in use by %s (session %d); stop its use and log out first, or say --force",
					req.Volume, open[0].Initiator, open[0].TSIH)
			}
		}
	}
	if err := n.state.DeleteMappings(list...); err != nil {
		return nil, err
	}
	for _, m := range list {
		if err := errors.Join(n.syncTarget(m.Target), n.hideUnmapped(m.Volume)); err != nil {
			return nil, err
		}
		n.publish("volume-unmapped", "", req.Volume, "volume %q is no longer LUN %d of %s for %s", req.Volume, m.LUN, m.Target, m.Initiator)
	}
	return &steadfastv1.UnmapVolumeResponse{}, nil
}

// notMapped says why there is nothing to unmap.
func (n *Node) notMapped(req *steadfastv1.UnmapVolumeRequest) error {
	if err := n.notOfMembers(req.Initiator); err != nil {
		return err
	}
	mapped := n.state.Mappings(func(m control.Mapping) bool { return m.VolumeName == req.Volume })
	if len(mapped) == 0 {
		if _, _, _, err := n.findVolume(req.Volume); err != nil {
			return err
		}
		return fault.New(fault.NotFound, "volume %q is mapped to nobody", req.Volume)
	}
	where := ""
	if req.Target != "" {
		where = " on " + req.Target
	}
	return fault.New(fault.NotFound, "volume %q is not mapped to %q%s, but to %s; see \"steadfast volume show %s\"",
		req.Volume, req.Initiator, where, mapped[0].Initiator, req.Volume)
}

// hideUnmapped closes a volume that is mapped to nobody. Under admin.
func (n *Node) hideUnmapped(id string) error {
	if len(n.state.Mappings(func(m control.Mapping) bool { return m.Volume == id })) > 0 {
		return nil
	}
	return n.hide(id)
}

// normal returns an iSCSI name as it is stored; other names as they are.
func normal(name string) string {
	if s, err := iscsi.NormalizeName(name); err == nil {
		return s
	}
	return name
}

// AdmitAnyone maps a volume to every initiator that can reach the portals,
// without asking for a secret. It is for a trial on a loopback portal, and
// deliberately not in the API.
func (n *Node) AdmitAnyone(volume string) (*steadfastv1.Mapping, error) {
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, ok := n.state.Initiator(control.Anyone); !ok {
		err := n.state.PutInitiator(control.Initiator{Name: control.Anyone, Comment: "anyone"}, control.SecretChange{}, control.SecretChange{})
		if err != nil {
			return nil, err
		}
	}
	for _, m := range n.state.Mappings(func(m control.Mapping) bool { return m.Initiator == control.Anyone && m.VolumeName == volume }) {
		return describeMapping(m), nil
	}
	m, err := n.mapVolume(&steadfastv1.MapVolumeRequest{Volume: volume, Initiator: control.Anyone})
	if err != nil {
		return nil, fmt.Errorf("admit anyone: %w", err)
	}
	return describeMapping(m), nil
}
