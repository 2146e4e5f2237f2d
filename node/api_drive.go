package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/san/store"
)

// driveService implements the API's DriveService.
type driveService struct{ n *Node }

// findDrive returns an open pool's drive by its path.
func (n *Node) findDrive(path string) (*pool, *store.Pool, store.DriveStatus, error) {
	var paths []string
	for _, p := range n.allPools() {
		s := p.opened()
		if s == nil {
			continue
		}
		for _, d := range s.Status().Drives {
			if d.Name == path {
				return p, s, d, nil
			}
			paths = append(paths, d.Name)
		}
	}
	return nil, nil, store.DriveStatus{}, unknown("drive", path, "drive list", paths)
}

// driveFree returns fault.Exists for a drive of one of the node's own pools.
func (n *Node) driveFree(path string) error {
	for _, rec := range n.state.Pools() {
		if slices.Contains(rec.Paths, path) {
			return fault.New(fault.Exists, "%s is a drive of pool %q already", path, rec.Name)
		}
	}
	return nil
}

// AddDrive implements the API's call.
func (s driveService) AddDrive(_ context.Context, req *steadfastv1.AddDriveRequest) (*steadfastv1.AddDriveResponse, error) {
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, st, err := s.n.openNamed(req.Pool)
	if err != nil {
		return nil, err
	}
	if err := s.n.addDrive(p, st, req.Path, req.CreateSizeBytes, req.Force); err != nil {
		return nil, err
	}
	_, _, d, err := s.n.findDrive(req.Path)
	return &steadfastv1.AddDriveResponse{Drive: describeDrive(p.name, d)}, err
}

// addDrive formats a drive and adds it. Under admin.
func (n *Node) addDrive(p *pool, st *store.Pool, path string, createSize int64, force bool) error {
	if err := n.driveFree(path); err != nil {
		return err
	}
	d, undo, err := newDrive(path, createSize, force)
	if err != nil {
		return err
	}
	if err := st.AddDrive(store.NamedDrive{Name: path, Drive: d}); err != nil {
		return errors.Join(err, undo())
	}
	p.drives[path] = d
	rec, _ := n.state.Pool(p.id)
	if err := n.keepPaths(rec, st); err != nil {
		// The pool needs the drive from now on; without the record the next
		// start would not look for it.
		return fault.Wrap(fault.Failed, err, "the drive is in the pool, but not in the control state; repair that, then restart the node")
	}
	n.publish("drive-added", p.name, "", "drive %s was added to pool %q", path, p.name)
	return nil
}

// ListDrives implements the API's call.
func (s driveService) ListDrives(_ context.Context, req *steadfastv1.ListDrivesRequest) (*steadfastv1.ListDrivesResponse, error) {
	all := s.n.allPools()
	if req.Pool != "" {
		p, err := s.n.findPool(req.Pool)
		if err != nil {
			return nil, err
		}
		all = []*pool{p}
	}
	out := &steadfastv1.ListDrivesResponse{}
	for _, p := range all {
		out.Drives = append(out.Drives, s.n.describePool(p).Drives...)
	}
	return out, nil
}

// GetDrive implements the API's call.
func (s driveService) GetDrive(_ context.Context, req *steadfastv1.GetDriveRequest) (*steadfastv1.GetDriveResponse, error) {
	p, _, d, err := s.n.findDrive(req.Path)
	if err != nil {
		return nil, err
	}
	return &steadfastv1.GetDriveResponse{Drive: describeDrive(p.name, d)}, nil
}

// EvacuateDrive implements the API's call.
func (s driveService) EvacuateDrive(_ context.Context, req *steadfastv1.EvacuateDriveRequest) (*steadfastv1.EvacuateDriveResponse, error) {
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, st, _, err := s.n.findDrive(req.Path)
	if err != nil {
		return nil, err
	}
	if err := st.EvacuateDrive(req.Path); err != nil {
		return nil, err
	}
	s.n.publish("drive-evacuating", p.name, "", "drive %s of pool %q is being emptied", req.Path, p.name)
	_, _, d, err := s.n.findDrive(req.Path)
	return &steadfastv1.EvacuateDriveResponse{Drive: describeDrive(p.name, d)}, err
}

// RemoveDrive implements the API's call.
func (s driveService) RemoveDrive(_ context.Context, req *steadfastv1.RemoveDriveRequest) (*steadfastv1.RemoveDriveResponse, error) {
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, st, _, err := s.n.findDrive(req.Path)
	if err != nil {
		return nil, err
	}
	if err := s.n.removeDrive(p, st, req.Path); err != nil {
		if fault.Is(err, fault.Busy) {
			return nil, fault.Wrap(fault.Busy, err, fmt.Sprintf("drive %s holds data; empty it with \"steadfast drive evacuate %s\" and wait for the event drive-empty", req.Path, req.Path))
		}
		return nil, err
	}
	return &steadfastv1.RemoveDriveResponse{}, nil
}

// ReplaceDrive implements the API's call.
func (s driveService) ReplaceDrive(_ context.Context, req *steadfastv1.ReplaceDriveRequest) (*steadfastv1.ReplaceDriveResponse, error) {
	n := s.n
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, st, _, err := n.findDrive(req.Path)
	if err != nil {
		return nil, err
	}
	if err := n.addDrive(p, st, req.NewPath, req.CreateSizeBytes, req.Force); err != nil {
		return nil, err
	}
	if err := st.EvacuateDrive(req.Path); err != nil {
		return nil, fault.Wrap(fault.KindOf(err), err, fmt.Sprintf("%s is part of pool %q now, but %s cannot be emptied; add more space and say \"steadfast drive evacuate %s\"",
			req.NewPath, p.name, req.Path, req.Path))
	}
	rec, _ := n.state.Pool(p.id)
	if !slices.Contains(rec.Leaving, req.Path) {
		rec.Leaving = append(slices.Clone(rec.Leaving), req.Path)
		if err := n.state.PutPool(rec); err != nil {
			return nil, err
		}
	}
	n.publish("drive-replacing", p.name, "", "drive %s of pool %q is being emptied onto the others and leaves when it is empty", req.Path, p.name)
	_, _, now, err := n.findDrive(req.NewPath)
	if err != nil {
		return nil, err
	}
	out := &steadfastv1.ReplaceDriveResponse{Drive: describeDrive(p.name, now)}
	if _, _, old, err := n.findDrive(req.Path); err == nil {
		out.Old = describeDrive(p.name, old)
	}
	return out, nil
}
