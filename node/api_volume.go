package node

import (
	"context"
	"fmt"
	"slices"
	"strings"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/control"
	"steadfast/node/ha"
	"steadfast/node/size"
	"steadfast/san/store"
)

// volumeService implements the API's VolumeService.
type volumeService struct{ n *Node }

// findVolume returns a volume of any open pool by its name.
func (n *Node) findVolume(name string) (*pool, *store.Pool, store.VolumeStatus, error) {
	var absent []string
	for _, p := range n.allPools() {
		s := p.opened()
		if s == nil {
			absent = append(absent, p.name)
			continue
		}
		if v, err := s.Volume(name); err == nil {
			return p, s, v, nil
		} else if !fault.Is(err, fault.NotFound) {
			return nil, nil, v, err
		}
	}
	err := unknown("volume", name, "volume list", n.volumeNames())
	if len(absent) > 0 {
		err = fault.Wrap(fault.NotFound, err, fmt.Sprintf("pool %q is not open", absent[0]))
	}
	return nil, nil, store.VolumeStatus{}, err
}

// volumeNames lists the names of all volumes of open pools.
func (n *Node) volumeNames() []string {
	var names []string
	for _, p := range n.allPools() {
		if s := p.opened(); s != nil {
			for _, v := range s.Volumes() {
				names = append(names, v.Name)
			}
		}
	}
	return names
}

// volumeNameFree returns fault.Exists when a volume of any pool has the name.
func (n *Node) volumeNameFree(name string) error {
	if m, ok := n.findMirrored(name); ok {
		return fault.New(fault.Exists, "volume %q exists already in group %q; choose another name", name, m.spec.Name)
	}
	if reserved(name) {
		return fault.New(fault.Invalid, "names that begin with %q are the resource groups' own; choose another name", ha.StateVolume(""))
	}
	if p, _, _, err := n.findVolume(name); err == nil {
		return fault.New(fault.Exists, "volume %q exists already in pool %q; choose another name", name, p.name)
	}
	return nil
}

// newVolumeName returns why a volume may not get the name.
func (n *Node) newVolumeName(name string) error {
	if err := checkName("volume", name); err != nil {
		return err
	}
	return n.volumeNameFree(name)
}

// checkVolumeSize returns fault.Invalid for a size no volume can have.
func checkVolumeSize(bytes int64) error {
	switch {
	case bytes < store.VolumeSizeMin || bytes > store.VolumeSizeMax:
		return fault.New(fault.Invalid, "a volume of %s cannot be; its size must be between %s and %s",
			size.Format(bytes), size.Format(store.VolumeSizeMin), size.Format(store.VolumeSizeMax))
	case bytes%4096 != 0:
		return fault.New(fault.Invalid, "%d bytes are not a multiple of 4096; the next one up is %d", bytes, (bytes+4095)/4096*4096)
	}
	return nil
}

// CreateVolume implements the API's call.
func (s volumeService) CreateVolume(ctx context.Context, req *steadfastv1.CreateVolumeRequest) (*steadfastv1.CreateVolumeResponse, error) {
	if req.Group != "" {
		return s.n.createMirrored(ctx, req)
	}
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.n.newVolumeName(req.Name); err != nil {
		return nil, err
	}
	if err := checkVolumeSize(req.SizeBytes); err != nil {
		return nil, err
	}
	p, st, err := s.n.openNamed(req.Pool)
	if err != nil {
		return nil, err
	}
	v, err := st.CreateVolume(store.VolumeSpec{Name: req.Name, Size: req.SizeBytes, WriteCache: req.WriteCache, ReadOnly: req.ReadOnly})
	if err != nil {
		return nil, err
	}
	s.n.publish("volume-created", p.name, v.Name, "volume %q of %s was created", v.Name, size.Format(v.Size))
	return &steadfastv1.CreateVolumeResponse{Volume: s.n.describeVolume(p, v)}, nil
}

// ListVolumes implements the API's call.
func (s volumeService) ListVolumes(_ context.Context, req *steadfastv1.ListVolumesRequest) (*steadfastv1.ListVolumesResponse, error) {
	if req.Pool != "" {
		if _, err := s.n.findPool(req.Pool); err != nil {
			return nil, err
		}
	}
	mapped := map[string][]control.Mapping{}
	for _, m := range s.n.state.Mappings(nil) {
		mapped[m.Volume] = append(mapped[m.Volume], m)
	}
	out := &steadfastv1.ListVolumesResponse{}
	groups := s.n.groupsVolumes()
	for _, p := range s.n.allPools() {
		st := p.opened()
		if st == nil || req.Pool != "" && p.name != req.Pool {
			continue
		}
		for _, v := range st.Volumes() {
			if _, grouped := groups[hexID(v.ID)]; !grouped {
				out.Volumes = append(out.Volumes, describeVolume(p.name, v, mapped[hexID(v.ID)]))
			}
		}
	}
	for _, m := range s.n.allMirrored() {
		if v := s.n.describeMirrored(m); req.Pool == "" || v.Pool == req.Pool {
			out.Volumes = append(out.Volumes, v)
		}
	}
	slices.SortStableFunc(out.Volumes, func(a, b *steadfastv1.Volume) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// GetVolume implements the API's call.
func (s volumeService) GetVolume(_ context.Context, req *steadfastv1.GetVolumeRequest) (*steadfastv1.GetVolumeResponse, error) {
	if m, ok := s.n.findMirrored(req.Name); ok {
		return &steadfastv1.GetVolumeResponse{Volume: s.n.describeMirrored(m)}, nil
	}
	p, _, v, err := s.n.findVolume(req.Name)
	if err != nil {
		return nil, err
	}
	return &steadfastv1.GetVolumeResponse{Volume: s.n.describeVolume(p, v)}, nil
}

// SetVolume implements the API's call.
func (s volumeService) SetVolume(ctx context.Context, req *steadfastv1.SetVolumeRequest) (*steadfastv1.SetVolumeResponse, error) {
	n := s.n
	if m, ok := n.findMirrored(req.Name); ok {
		return n.setMirrored(ctx, m, req)
	}
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, st, v, err := n.findVolume(req.Name)
	if err != nil {
		return nil, err
	}
	if req.NewName != nil && *req.NewName != v.Name {
		if err := n.newVolumeName(*req.NewName); err != nil {
			return nil, err
		}
	}
	if req.SizeBytes != nil {
		if err := checkVolumeSize(*req.SizeBytes); err != nil {
			return nil, err
		}
		if *req.SizeBytes < v.Size {
			return nil, fault.New(fault.Invalid, "volume %q has %s and only grows; to shrink, copy what is on it to a new volume", v.Name, size.Format(v.Size))
		}
	}
	old := v.Name
	v, err = st.ChangeVolume(old, store.VolumeChange{Name: req.NewName, Size: req.SizeBytes, WriteCache: req.WriteCache, ReadOnly: req.ReadOnly})
	if err != nil {
		return nil, err
	}
	n.publish("volume-changed", p.name, v.Name, "volume %q was changed: %s", old, changes(req))
	if err := n.renameMappings(v); err != nil {
		return nil, err
	}
	return &steadfastv1.SetVolumeResponse{Volume: n.describeVolume(p, v)}, nil
}

// changes says in words what a request asks for.
func changes(req *steadfastv1.SetVolumeRequest) string {
	var list []string
	if req.NewName != nil {
		list = append(list, fmt.Sprintf("name %q", *req.NewName))
	}
	if req.SizeBytes != nil {
		list = append(list, "size "+size.Format(*req.SizeBytes))
	}
	if req.WriteCache != nil {
		list = append(list, fmt.Sprintf("write cache %t", *req.WriteCache))
	}
	if req.ReadOnly != nil {
		list = append(list, fmt.Sprintf("read only %t", *req.ReadOnly))
	}
	return strings.Join(list, ", ")
}

// renameMappings keeps the names that mappings show in step. Under admin.
func (n *Node) renameMappings(v store.VolumeStatus) error {
	id := hexID(v.ID)
	stale := n.state.Mappings(func(m control.Mapping) bool { return m.Volume == id && m.VolumeName != v.Name })
	if len(stale) == 0 {
		return nil
	}
	for i := range stale {
		stale[i].VolumeName = v.Name
	}
	return n.state.PutMappings(stale...)
}

// DeleteVolume implements the API's call.
func (s volumeService) DeleteVolume(ctx context.Context, req *steadfastv1.DeleteVolumeRequest) (*steadfastv1.DeleteVolumeResponse, error) {
	if m, ok := s.n.findMirrored(req.Name); ok {
		return s.n.deleteMirrored(ctx, m, req)
	}
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, st, v, err := s.n.findVolume(req.Name)
	if err != nil {
		return nil, err
	}
	id := hexID(v.ID)
	if mapped := s.n.state.Mappings(func(m control.Mapping) bool { return m.Volume == id }); len(mapped) > 0 {
		return nil, fault.New(fault.Busy, "volume %q is mapped to %s; take that away first with \"steadfast volume unmap %s --initiator %s\"",
			v.Name, mapped[0].Initiator, v.Name, mapped[0].Initiator)
	}
	if v.Snapshots > 0 && !req.WithSnapshots {
		return nil, fault.New(fault.Busy, "volume %q has %d snapshots; delete them first, or say --with-snapshots", v.Name, v.Snapshots)
	}
	if err := st.DeleteVolume(v.Name, req.WithSnapshots); err != nil {
		return nil, err
	}
	s.n.publish("volume-deleted", p.name, v.Name, "volume %q was deleted", v.Name)
	return &steadfastv1.DeleteVolumeResponse{}, nil
}

// CloneVolume implements the API's call.
func (s volumeService) CloneVolume(_ context.Context, req *steadfastv1.CloneVolumeRequest) (*steadfastv1.CloneVolumeResponse, error) {
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if m, ok := s.n.findMirrored(req.Volume); ok {
		return nil, fault.New(fault.Invalid, "volume %q is mirrored in group %q, and a clone would be on one node only; make a volume in the group and copy to it", req.Volume, m.spec.Name)
	}
	p, st, _, err := s.n.findSnapshot(req.Volume, req.Snapshot)
	if err != nil {
		return nil, err
	}
	if err := s.n.newVolumeName(req.Name); err != nil {
		return nil, err
	}
	v, err := st.Clone(req.Volume, req.Snapshot, req.Name)
	if err != nil {
		return nil, err
	}
	s.n.publish("volume-created", p.name, v.Name, "volume %q was cloned from %s@%s", v.Name, req.Volume, req.Snapshot)
	return &steadfastv1.CloneVolumeResponse{Volume: s.n.describeVolume(p, v)}, nil
}

// RollbackVolume implements the API's call.
func (s volumeService) RollbackVolume(_ context.Context, req *steadfastv1.RollbackVolumeRequest) (*steadfastv1.RollbackVolumeResponse, error) {
	n := s.n
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if m, ok := n.findMirrored(req.Volume); ok {
		return nil, fault.New(fault.Invalid, "volume %q is mirrored in group %q and cannot be rolled back; copy what you need from a volume made for it", req.Volume, m.spec.Name)
	}
	p, st, _, err := n.findSnapshot(req.Volume, req.Snapshot)
	if err != nil {
		return nil, err
	}
	v, err := st.Volume(req.Volume)
	if err != nil {
		return nil, err
	}
	// Under a mounted filesystem a rollback is damage: what the host has in
	// its memory goes on top of what it was long ago.
	if !req.Force {
		for _, m := range n.state.Mappings(func(m control.Mapping) bool { return m.Volume == hexID(v.ID) }) {
			if open := n.sessionsThrough(m); len(open) > 0 {
				return nil, fault.New(fault.Busy, "volume %q may be in use by %s (session %d); log it out first, or say --force when nothing on that host uses the volume",
					v.Name, open[0].Initiator, open[0].TSIH)
			}
		}
	}
	if err := st.Rollback(req.Volume, req.Snapshot); err != nil {
		return nil, err
	}
	n.publish("volume-rolled-back", p.name, v.Name, "volume %q was rolled back to snapshot %q", v.Name, req.Snapshot)
	if v, err = st.Volume(req.Volume); err != nil {
		return nil, err
	}
	return &steadfastv1.RollbackVolumeResponse{Volume: n.describeVolume(p, v)}, nil
}

// ClearReservations implements the API's call.
func (s volumeService) ClearReservations(ctx context.Context, req *steadfastv1.ClearReservationsRequest) (*steadfastv1.ClearReservationsResponse, error) {
	if m, ok := s.n.findMirrored(req.Volume); ok {
		if _, err := m.owner(ctx); err != nil {
			return nil, err
		}
		id, err := parseID(m.ID)
		if err == nil {
			err = s.n.units.ClearReservations(id)
		}
		if err == nil {
			s.n.publish("reservations-cleared", "", m.Name, "all reservations on volume %q were cleared by an administrator", m.Name)
		}
		return &steadfastv1.ClearReservationsResponse{}, err
	}
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, _, v, err := s.n.findVolume(req.Volume)
	if err != nil {
		return nil, err
	}
	if s.n.volumeOpen(hexID(v.ID)) == nil {
		return nil, fault.New(fault.Busy, "volume %q is mapped to nobody, so nobody can hold a reservation that hinders; map it first to clear what is stored", v.Name)
	}
	if err := s.n.units.ClearReservations(v.ID); err != nil {
		return nil, err
	}
	s.n.publish("reservations-cleared", p.name, v.Name, "all reservations on volume %q were cleared by an administrator", v.Name)
	return &steadfastv1.ClearReservationsResponse{}, nil
}
