package node

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/node/control"
	"steadfast/san/store"
	"steadfast/san/target"
)

// stamp returns t for the API; nil for the zero time.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// describePool returns a pool as the API shows it, open or absent.
func (n *Node) describePool(p *pool) *steadfastv1.Pool {
	s := p.opened()
	if s == nil {
		n.mu.RLock()
		out := &steadfastv1.Pool{Id: p.id, Name: p.name, State: "absent", Problem: p.problem}
		n.mu.RUnlock()
		rec, _ := n.state.Pool(p.id)
		for _, path := range rec.Paths {
			out.Drives = append(out.Drives, &steadfastv1.Drive{Path: path, Pool: p.name, State: "absent"})
		}
		return out
	}
	st := s.Status()
	out := &steadfastv1.Pool{
		Id: p.id, Name: st.Name, State: st.State,
		CapacityBytes: st.Capacity, UsedBytes: st.Used, DataBytes: st.Data, MetadataBytes: st.Metadata,
		ProvisionedBytes: st.Provisioned, SharedBytes: st.Shared, ReclaimableBytes: st.Reclaimable,
		Volumes: int32(st.Volumes), Snapshots: int32(st.Snapshots), CorruptBlocks: st.CorruptBlocks,
		WrittenByUsersBytes: st.WrittenByUsers, WrittenToDrivesBytes: st.WrittenToDrives,
		CacheHits: st.CacheHits, CacheMisses: st.CacheMisses, CommitSequence: uint64(st.CommitSequence),
	}
	for _, t := range st.Thresholds {
		out.ThresholdsPercent = append(out.ThresholdsPercent, int32(t))
	}
	for _, d := range st.Drives {
		out.Drives = append(out.Drives, describeDrive(st.Name, d))
	}
	return out
}

func describeDrive(pool string, d store.DriveStatus) *steadfastv1.Drive {
	return &steadfastv1.Drive{
		Id: hexID(d.ID), Path: d.Name, Pool: pool, State: d.State, SizeBytes: d.Size, UsedBytes: d.Used, LastError: d.LastError,
	}
}

func describeScrub(pool string, s store.ScrubStatus) *steadfastv1.Scrub {
	out := &steadfastv1.Scrub{
		Pool: pool, Running: s.Running, DoneBytes: s.Done, TotalBytes: s.Total, Started: stamp(s.Started), Finished: stamp(s.Finished),
	}
	for _, c := range s.Corrupt {
		out.Corrupt = append(out.Corrupt, &steadfastv1.CorruptBlock{
			Volume: c.Volume, OffsetBytes: c.Offset, Drive: c.Drive, DriveOffsetBytes: c.DriveOffset,
		})
	}
	return out
}

// describeVolume returns a volume as the API shows it. mappings are all of
// the node's, or nil to look them up.
func (n *Node) describeVolume(p *pool, v store.VolumeStatus) *steadfastv1.Volume {
	id := hexID(v.ID)
	return describeVolume(p.name, v, n.state.Mappings(func(m control.Mapping) bool { return m.Volume == id }))
}

func describeVolume(pool string, v store.VolumeStatus, mapped []control.Mapping) *steadfastv1.Volume {
	return &steadfastv1.Volume{
		Id: hexID(v.ID), Name: v.Name, Pool: pool, SizeBytes: v.Size, ReferencedBytes: v.Referenced, ExclusiveBytes: v.Exclusive,
		WriteCache: v.WriteCache, ReadOnly: v.ReadOnly, Origin: v.Origin, Snapshots: int32(v.Snapshots),
		CorruptBlocks: v.CorruptBlocks, Created: stamp(v.Created), Mappings: describeMappings(mapped),
	}
}

func describeMappings(all []control.Mapping) []*steadfastv1.Mapping {
	var out []*steadfastv1.Mapping
	for _, m := range all {
		out = append(out, describeMapping(m))
	}
	return out
}

func describeMapping(m control.Mapping) *steadfastv1.Mapping {
	return &steadfastv1.Mapping{Volume: m.VolumeName, Target: m.Target, Initiator: m.Initiator, Lun: int32(m.LUN), ReadOnly: m.ReadOnly}
}

func describeSnapshot(s store.SnapshotStatus) *steadfastv1.Snapshot {
	return &steadfastv1.Snapshot{
		Volume: s.Volume, Name: s.Name, Sequence: uint64(s.LSN), SizeBytes: s.Size,
		ReferencedBytes: s.Referenced, ExclusiveBytes: s.Exclusive, Clones: s.Clones, Created: stamp(s.Created),
	}
}

func describeSession(s target.Session) *steadfastv1.Session {
	return &steadfastv1.Session{
		Id: int32(s.TSIH), Isid: fmt.Sprintf("%x", s.ISID[:]), Initiator: s.Initiator, InitiatorAlias: s.InitiatorAlias, Target: s.Target,
		Portal: s.Portal, Group: int32(s.Group), Address: s.Address, Since: stamp(s.Since),
		ReceivedBytes: s.BytesIn, SentBytes: s.BytesOut, Commands: s.Commands, OutstandingCommands: int32(s.Outstanding),
		MemoryBytes: s.Memory, HeaderDigest: s.HeaderDigest, DataDigest: s.DataDigest,
	}
}
