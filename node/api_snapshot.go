package node

import (
	"context"

	"connectrpc.com/connect"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/ha"
	"steadfast/san/store"
)

// rangesPerMessage bounds one message of a list of changes.
const rangesPerMessage = 1024

// snapshotService implements the API's SnapshotService.
type snapshotService struct{ n *Node }

// findSnapshot returns a volume's snapshot.
func (n *Node) findSnapshot(volume, name string) (*pool, *store.Pool, store.SnapshotStatus, error) {
	p, st, _, err := n.findVolume(volume)
	if err != nil {
		return nil, nil, store.SnapshotStatus{}, err
	}
	all, err := st.Snapshots(volume)
	if err != nil {
		return nil, nil, store.SnapshotStatus{}, err
	}
	names := make([]string, len(all))
	for i, s := range all {
		if names[i] = s.Name; s.Name == name {
			return p, st, s, nil
		}
	}
	return nil, nil, store.SnapshotStatus{}, fault.Wrap(fault.NotFound, unknown("snapshot", name, "snapshot list "+volume, names), "volume "+volume)
}

// CreateSnapshot implements the API's call.
func (s snapshotService) CreateSnapshot(ctx context.Context, req *steadfastv1.CreateSnapshotRequest) (*steadfastv1.CreateSnapshotResponse, error) {
	if err := checkName("snapshot", req.Name); err != nil {
		return nil, err
	}
	if m, ok := s.n.findMirrored(req.Volume); ok {
		if err := s.n.unprotected(m.spec.Name, m.Volume); err != nil {
			return nil, err
		}
		all, err := s.n.snapshotMirrored(ctx, m.c, m.spec, req.Name, []ha.Volume{m.Volume})
		if err != nil {
			return nil, err
		}
		return &steadfastv1.CreateSnapshotResponse{Snapshot: all[0]}, nil
	}
	if req.Group != "" {
		c, spec, err := s.n.findSpec(req.Group)
		if err != nil {
			return nil, err
		}
		if err := s.n.unprotected(spec.Name, spec.Volumes...); err != nil {
			return nil, err
		}
		all, err := s.n.snapshotMirrored(ctx, c, spec, req.Name, spec.Volumes)
		return &steadfastv1.CreateSnapshotResponse{Snapshots: all}, err
	}
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, st, v, err := s.n.findVolume(req.Volume)
	if err != nil {
		return nil, err
	}
	made, err := st.CreateSnapshot(v.Name, req.Name)
	if err != nil {
		return nil, err
	}
	s.n.publish("snapshot-created", p.name, v.Name, "snapshot %s@%s was created", v.Name, req.Name)
	return &steadfastv1.CreateSnapshotResponse{Snapshot: describeSnapshot(made)}, nil
}

// ListSnapshots implements the API's call.
func (s snapshotService) ListSnapshots(_ context.Context, req *steadfastv1.ListSnapshotsRequest) (*steadfastv1.ListSnapshotsResponse, error) {
	volumes := []string{req.Volume}
	if req.Volume == "" {
		volumes = s.n.volumeNames()
	}
	out := &steadfastv1.ListSnapshotsResponse{}
	for _, name := range volumes {
		_, st, v, err := s.n.findVolume(name)
		if err != nil {
			if req.Volume == "" && fault.Is(err, fault.NotFound) {
				continue // deleted since the names were listed
			}
			return nil, err
		}
		all, err := st.Snapshots(v.Name)
		if err != nil {
			return nil, err
		}
		for _, snap := range all {
			if snap.Name != ha.ResyncSnapshot { // it comes and goes by itself
				out.Snapshots = append(out.Snapshots, describeSnapshot(snap))
			}
		}
	}
	return out, nil
}

// GetSnapshot implements the API's call.
func (s snapshotService) GetSnapshot(_ context.Context, req *steadfastv1.GetSnapshotRequest) (*steadfastv1.GetSnapshotResponse, error) {
	_, _, snap, err := s.n.findSnapshot(req.Volume, req.Name)
	if err != nil {
		return nil, err
	}
	return &steadfastv1.GetSnapshotResponse{Snapshot: describeSnapshot(snap)}, nil
}

// DeleteSnapshot implements the API's call.
func (s snapshotService) DeleteSnapshot(ctx context.Context, req *steadfastv1.DeleteSnapshotRequest) (*steadfastv1.DeleteSnapshotResponse, error) {
	if m, ok := s.n.findMirrored(req.Volume); ok {
		g, err := m.owner(ctx)
		if err != nil {
			return nil, err
		}
		if _, _, _, err := s.n.findSnapshot(req.Volume, req.Name); err != nil {
			return nil, err
		}
		if err := g.DeleteSnapshot(req.Name, []uint32{m.Number}); err != nil {
			return nil, err
		}
		s.n.publish("snapshot-deleted", "", m.Name, "snapshot %s@%s was deleted", m.Name, req.Name)
		return &steadfastv1.DeleteSnapshotResponse{}, nil
	}
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, st, snap, err := s.n.findSnapshot(req.Volume, req.Name)
	if err != nil {
		return nil, err
	}
	if err := st.DeleteSnapshot(snap.Volume, snap.Name); err != nil {
		return nil, err
	}
	s.n.publish("snapshot-deleted", p.name, snap.Volume, "snapshot %s@%s was deleted", snap.Volume, snap.Name)
	return &steadfastv1.DeleteSnapshotResponse{}, nil
}

// ListChanges implements the API's call.
func (s snapshotService) ListChanges(_ context.Context, req *steadfastv1.ListChangesRequest, out *connect.ServerStream[steadfastv1.ListChangesResponse]) error {
	_, st, v, err := s.n.findVolume(req.Volume)
	if err != nil {
		return err
	}
	for _, name := range []string{req.From, req.To} {
		if name == "" {
			continue
		}
		if _, _, _, err := s.n.findSnapshot(v.Name, name); err != nil {
			return err
		}
	}
	batch := &steadfastv1.ListChangesResponse{}
	var sendErr error
	flush := func() bool {
		if len(batch.Ranges) > 0 && sendErr == nil {
			sendErr = out.Send(batch)
			batch = &steadfastv1.ListChangesResponse{}
		}
		return sendErr == nil
	}
	err = st.Changed(v.Name, req.From, req.To, func(r store.Range) bool {
		batch.Ranges = append(batch.Ranges, &steadfastv1.Range{OffsetBytes: r.Offset, LengthBytes: r.Length})
		return len(batch.Ranges) < rangesPerMessage || flush()
	})
	if err != nil {
		return err
	}
	flush()
	return sendErr
}
