package node

import (
	"context"
	"errors"
	"slices"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/control"
	"steadfast/san/drive"
	"steadfast/san/store"
)

// poolService implements the API's PoolService.
type poolService struct{ n *Node }

// CreatePool implements the API's call.
func (s poolService) CreatePool(_ context.Context, req *steadfastv1.CreatePoolRequest) (*steadfastv1.CreatePoolResponse, error) {
	n := s.n
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := checkName("pool", req.Name); err != nil {
		return nil, err
	}
	if len(req.Drives) == 0 {
		return nil, fault.New(fault.Invalid, "a pool needs a drive; name the path of a block device, or of a file to make with --size")
	}
	if err := n.poolNameFree(req.Name); err != nil {
		return nil, err
	}
	p := &pool{name: req.Name, drives: map[string]*drive.File{}, wake: make(chan struct{}, 1)}
	var named []store.NamedDrive
	var undo []func() error
	fail := func(err error) error {
		for _, u := range undo {
			err = errors.Join(err, u())
		}
		return err
	}
	for _, want := range req.Drives {
		if err := n.driveFree(want.Path); err != nil {
			return nil, fail(err)
		}
		d, u, err := newDrive(want.Path, want.CreateSizeBytes, req.Force)
		if err != nil {
			return nil, fail(err)
		}
		undo = append(undo, u)
		p.drives[want.Path] = d
		named = append(named, store.NamedDrive{Name: want.Path, Drive: d})
	}
	st, err := store.Create(req.Name, n.storeOptions(func() string { return req.Name }, p.wake), named)
	if err != nil {
		return nil, fail(err)
	}
	if err := n.enter(p, st); err != nil {
		return nil, err
	}
	n.publish("pool-created", p.name, "", "pool %q was created; drives: %d", p.name, len(named))
	return &steadfastv1.CreatePoolResponse{Pool: n.describePool(p)}, nil
}

// poolNameFree returns fault.Exists when a pool has the name.
func (n *Node) poolNameFree(name string) error {
	for _, p := range n.allPools() {
		if p.name == name {
			return fault.New(fault.Exists, "pool %q exists already; choose another name", name)
		}
	}
	return nil
}

// enter makes a pool that is open part of the node: first in the control
// state, so that a crash right after does not lose it. Under admin.
func (n *Node) enter(p *pool, s *store.Pool) error {
	st := s.Status()
	p.id, p.name = hexID(st.ID), st.Name
	if err := n.keepPaths(control.Pool{}, s); err != nil {
		return errors.Join(err, s.Close(), closeDrives(p.drives))
	}
	return n.adopt(p, s)
}

// ImportPool implements the API's call.
func (s poolService) ImportPool(_ context.Context, req *steadfastv1.ImportPoolRequest) (*steadfastv1.ImportPoolResponse, error) {
	n := s.n
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	p := &pool{drives: map[string]*drive.File{}, wake: make(chan struct{}, 1)}
	var named []store.NamedDrive
	for _, path := range req.Paths {
		d, err := drive.OpenFile(path)
		if err != nil {
			return nil, errors.Join(err, closeDrives(p.drives))
		}
		p.drives[path] = d
		named = append(named, store.NamedDrive{Name: path, Drive: d})
	}
	if len(named) == 0 {
		return nil, fault.New(fault.Invalid, "name the paths of the pool's drives")
	}
	// The name is known once it is open; events before that carry the path.
	st, err := store.Open(n.storeOptions(func() string {
		if p.opened() != nil {
			return p.name
		}
		return req.Paths[0]
	}, p.wake), named)
	if err != nil {
		return nil, errors.Join(err, closeDrives(p.drives))
	}
	if err := n.poolNameFree(st.Status().Name); err != nil {
		return nil, errors.Join(err, st.Close(), closeDrives(p.drives))
	}
	if err := n.volumeNamesFree(st); err != nil {
		return nil, errors.Join(err, st.Close(), closeDrives(p.drives))
	}
	if err := n.enter(p, st); err != nil {
		return nil, err
	}
	n.publish("pool-imported", p.name, "", "pool %q was imported; drives: %d", p.name, len(named))
	return &steadfastv1.ImportPoolResponse{Pool: n.describePool(p)}, nil
}

// volumeNamesFree returns fault.Exists when a pool to import has a volume of a
// name that the node has already: names are the node's handles of volumes.
func (n *Node) volumeNamesFree(s *store.Pool) error {
	groups := n.groupsVolumes()
	for _, v := range s.Volumes() {
		if _, grouped := groups[hexID(v.ID)]; grouped || reserved(v.Name) {
			continue // it is this node's copy, or of a group that is no more
		}
		if err := n.volumeNameFree(v.Name); err != nil {
			return fault.Wrap(fault.Exists, err, "the pool cannot be imported; rename the node's own volume first")
		}
	}
	return nil
}

// ListPools implements the API's call.
func (s poolService) ListPools(context.Context, *steadfastv1.ListPoolsRequest) (*steadfastv1.ListPoolsResponse, error) {
	out := &steadfastv1.ListPoolsResponse{}
	for _, p := range s.n.allPools() {
		out.Pools = append(out.Pools, s.n.describePool(p))
	}
	return out, nil
}

// GetPool implements the API's call.
func (s poolService) GetPool(_ context.Context, req *steadfastv1.GetPoolRequest) (*steadfastv1.GetPoolResponse, error) {
	p, err := s.n.findPool(req.Name)
	if err != nil {
		return nil, err
	}
	return &steadfastv1.GetPoolResponse{Pool: s.n.describePool(p)}, nil
}

// SetPool implements the API's call.
func (s poolService) SetPool(_ context.Context, req *steadfastv1.SetPoolRequest) (*steadfastv1.SetPoolResponse, error) {
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, st, err := s.n.openNamed(req.Name)
	if err != nil {
		return nil, err
	}
	if req.Thresholds != nil {
		percent := make([]int, len(req.Thresholds.Percent))
		for i, v := range req.Thresholds.Percent {
			percent[i] = int(v)
		}
		slices.Sort(percent)
		if err := st.SetThresholds(slices.Compact(percent)); err != nil {
			return nil, err
		}
		s.n.publish("pool-changed", p.name, "", "pool %q warns at %v percent", p.name, percent)
	}
	return &steadfastv1.SetPoolResponse{Pool: s.n.describePool(p)}, nil
}

// ForgetPool implements the API's call.
func (s poolService) ForgetPool(_ context.Context, req *steadfastv1.ForgetPoolRequest) (*steadfastv1.ForgetPoolResponse, error) {
	n := s.n
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, err := n.findPool(req.Name)
	if err != nil {
		return nil, err
	}
	if mapped := n.state.Mappings(func(m control.Mapping) bool { return m.Pool == p.id }); len(mapped) > 0 {
		return nil, fault.New(fault.Busy, "volume %q of pool %q is mapped to %s; unmap all its volumes first (\"steadfast volume unmap\")",
			mapped[0].VolumeName, p.name, mapped[0].Initiator)
	}
	if g := n.groupOn(p.name); g != "" {
		return nil, fault.New(fault.Busy, "pool %q holds this node's copy of group %q; delete the group, or give it another node or pool first (\"steadfast group set %s --replace ...\")", p.name, g, g)
	}
	// The record goes first: a crash in between leaves a pool that is not
	// opened, which is what was asked for.
	if err := n.state.DeletePool(p.id); err != nil {
		return nil, err
	}
	err = n.closePool(p)
	n.mu.Lock()
	delete(n.pools, p.id)
	n.mu.Unlock()
	n.publish("pool-forgotten", p.name, "", "pool %q is not opened any more; its drives keep their data", p.name)
	if err == nil && n.getPhase() == "waiting" {
		n.retryLocked()
	}
	return &steadfastv1.ForgetPoolResponse{}, err
}

// StartScrub implements the API's call.
func (s poolService) StartScrub(_ context.Context, req *steadfastv1.StartScrubRequest) (*steadfastv1.StartScrubResponse, error) {
	p, st, err := s.n.openNamed(req.Pool)
	if err != nil {
		return nil, err
	}
	if err := st.StartScrub(); err != nil {
		return nil, err
	}
	s.n.publish("scrub-started", p.name, "", "a scrub of pool %q begins", p.name)
	return &steadfastv1.StartScrubResponse{Scrub: describeScrub(p.name, st.Scrub())}, nil
}

// StopScrub implements the API's call.
func (s poolService) StopScrub(_ context.Context, req *steadfastv1.StopScrubRequest) (*steadfastv1.StopScrubResponse, error) {
	p, st, err := s.n.openNamed(req.Pool)
	if err != nil {
		return nil, err
	}
	st.StopScrub()
	return &steadfastv1.StopScrubResponse{Scrub: describeScrub(p.name, st.Scrub())}, nil
}

// GetScrub implements the API's call.
func (s poolService) GetScrub(_ context.Context, req *steadfastv1.GetScrubRequest) (*steadfastv1.GetScrubResponse, error) {
	p, st, err := s.n.openNamed(req.Pool)
	if err != nil {
		return nil, err
	}
	return &steadfastv1.GetScrubResponse{Scrub: describeScrub(p.name, st.Scrub())}, nil
}
