package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"

	"connectrpc.com/connect"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/node/apierror"
	"steadfast/node/ha"
	"steadfast/san/store"
)

// Of a comparison of two copies.
const (
	hashPiece   = 1 << 20  // bytes under one hash
	hashCallMax = 16 << 20 // bytes of one call
	hashMax     = 64 << 20
)

// The owner compares: it reads its own copy, and asks the other node for hashes. Both
// are of snapshots, so it costs clients nothing but reads, and a difference is one:
// blocks that are written meanwhile cannot look like one.

// VerifyGroup implements the API's call. Both nodes take a snapshot at one moment
// of the writes' order, and these are compared, with the older ones that both
// have: so clients go on meanwhile.
func (s groupService) VerifyGroup(ctx context.Context, req *steadfastv1.VerifyGroupRequest, out *connect.ServerStream[steadfastv1.VerifyGroupResponse]) error {
	n := s.n
	c, spec, err := n.findSpec(req.Name)
	if err != nil {
		return err
	}
	record := c.member.State().Group[spec.Name]
	if record == nil {
		return fault.New(fault.Busy, "group %q has no owner yet", spec.Name)
	}
	me := c.member.Self().Member
	if record.Owner.Member != me {
		return n.relayVerify(ctx, c, record.Owner.Member, req, out)
	}
	other := spec.Other(me)
	if e, in := record.Entry(other); !in || c.member.State().Dead(e) {
		return fault.New(fault.Busy, "node %s is not in sync: there is only one copy to look at; see \"steadfast group show %s\"", other, spec.Name)
	}
	g, err := c.groups.Group(spec.Name)
	if err != nil {
		return err
	}
	v := &verification{n: n, c: c, spec: spec, other: other, send: out.Send, pool: n.poolOf(spec, me)}
	if v.pool == nil {
		return fault.New(fault.Failed, "the group's pool is not open on this node")
	}
	return v.run(ctx, g)
}

// relayVerify has the owner verify, and passes on what it tells.
func (n *Node) relayVerify(ctx context.Context, c *cluster, owner quorum.Member, req *steadfastv1.VerifyGroupRequest, out *connect.ServerStream[steadfastv1.VerifyGroupResponse]) error {
	in, err := n.groupsOf(c, owner).VerifyGroup(ctx, req)
	if err != nil {
		return apierror.FromConnect(err)
	}
	for in.Receive() {
		if err := out.Send(in.Msg()); err != nil {
			return errors.Join(err, in.Close())
		}
	}
	err = in.Err()
	if err != nil {
		err = apierror.FromConnect(err)
	}
	return errors.Join(err, in.Close())
}

// poolOf returns a node's pool of a group, when it is this node's and open.
func (n *Node) poolOf(spec *ha.Spec, node quorum.Member) *store.Pool {
	mine, ok := spec.Node(node)
	if !ok {
		return nil
	}
	return n.poolNamed(mine.Pool)
}

// verification compares the copies of a group.
type verification struct {
	n     *Node
	c     *cluster
	spec  *ha.Spec
	other quorum.Member
	pool  *store.Pool
	send  func(*steadfastv1.VerifyGroupResponse) error
	told  steadfastv1.VerifyGroupResponse
}

// compared is one content that both nodes have.
type compared struct {
	volume, snapshot string
	shown            string // the snapshot as it is told; empty: the volume as it is
	size             int64
}

func (v *verification) run(ctx context.Context, g *ha.Group) (err error) {
	var numbers []uint32
	for _, vol := range v.spec.Volumes {
		numbers = append(numbers, vol.Number)
	}
	if len(numbers) == 0 {
		return v.send(&steadfastv1.VerifyGroupResponse{Done: true})
	}
	if err := g.DropVerifications(); err != nil {
		return err
	}
	name, end, err := g.Freeze(numbers)
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, "both copies cannot be frozen at one moment")
	}
	defer func() { err = errors.Join(err, end()) }()
	list, err := v.list(name)
	if err != nil {
		return err
	}
	for _, item := range list {
		v.told.TotalBytes += item.size
	}
	for _, item := range list {
		if err := v.compare(ctx, item); err != nil {
			return err
		}
	}
	v.told.Done = true
	return v.tell()
}

// list returns what there is to compare: each volume as of name, and its older
// snapshots.
func (v *verification) list(name string) (out []compared, err error) {
	for _, vol := range v.spec.Volumes {
		all, err := v.pool.Snapshots(vol.Name)
		if err != nil {
			return nil, err
		}
		for _, s := range all {
			item := compared{volume: vol.Name, snapshot: s.Name, shown: s.Name, size: s.Size}
			if s.Name == name {
				item.shown = ""
			}
			if s.Name == name || !ha.OwnSnapshot(s.Name) {
				out = append(out, item)
			}
		}
	}
	return out, nil
}

func (v *verification) compare(ctx context.Context, item compared) error {
	for off := int64(0); off < item.size; off += hashCallMax {
		length := min(hashCallMax, item.size-off)
		theirs, err := v.n.groupsOf(v.c, v.other).HashSnapshot(ctx, &steadfastv1.HashSnapshotRequest{
			Volume: item.volume, Snapshot: item.snapshot, OffsetBytes: off, LengthBytes: length,
		})
		if err != nil {
			return fault.Wrap(fault.KindOf(err), err, "node "+string(v.other)+"'s copy of "+item.volume)
		}
		ours, err := hashSnapshot(ctx, v.pool, item.volume, item.snapshot, off, length)
		if err != nil {
			return err
		}
		for i := range ours {
			if i >= len(theirs.Hashes) || !bytes.Equal(ours[i], theirs.Hashes[i]) {
				v.told.DifferentMebibytes++
				v.told.Volume, v.told.Snapshot, v.told.OffsetBytes = item.volume, item.shown, off+int64(i)*hashPiece
				v.n.events.publish(&steadfastv1.Event{
					Severity: severityError, Kind: "copies-differ", Group: v.spec.Name, Volume: item.volume, OffsetBytes: v.told.OffsetBytes,
					Text: "the two nodes' copies differ in the MiB at this offset",
				})
			}
		}
		v.told.ComparedBytes += length
		if err := v.tell(); err != nil {
			return err
		}
	}
	return nil
}

func (v *verification) tell() error {
	t := &v.told
	return v.send(&steadfastv1.VerifyGroupResponse{
		ComparedBytes: t.ComparedBytes, TotalBytes: t.TotalBytes, DifferentMebibytes: t.DifferentMebibytes,
		Volume: t.Volume, Snapshot: t.Snapshot, OffsetBytes: t.OffsetBytes, Done: t.Done,
	})
}

// HashSnapshot implements the API's call.
func (s groupService) HashSnapshot(ctx context.Context, req *steadfastv1.HashSnapshotRequest) (*steadfastv1.HashSnapshotResponse, error) {
	if req.OffsetBytes < 0 || req.LengthBytes < 0 || req.LengthBytes > hashMax {
		return nil, fault.New(fault.Invalid, "hashes of %d bytes at %d", req.LengthBytes, req.OffsetBytes)
	}
	m, ok := s.n.findMirrored(req.Volume)
	if !ok {
		return nil, fault.New(fault.NotFound, "volume %q is in no group", req.Volume)
	}
	pool := s.n.poolOf(m.spec, m.c.member.Self().Member)
	if pool == nil {
		return nil, fault.New(fault.Failed, "this node has no open copy of volume %q", req.Volume)
	}
	hashes, err := hashSnapshot(ctx, pool, req.Volume, req.Snapshot, req.OffsetBytes, req.LengthBytes)
	return &steadfastv1.HashSnapshotResponse{Hashes: hashes}, err
}

// hashSnapshot returns the hash of each piece of a range of a snapshot.
func hashSnapshot(ctx context.Context, pool *store.Pool, volume, snapshot string, off, length int64) (out [][]byte, err error) {
	v, err := pool.OpenSnapshot(volume, snapshot)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	buf := make([]byte, hashPiece)
	for end := off + length; off < end; off += hashPiece {
		if ctx.Err() != nil {
			return nil, fault.Wrap(fault.Canceled, ctx.Err(), "comparing")
		}
		p := buf[:min(hashPiece, end-off)]
		if err := v.ReadAt(p, off); err != nil {
			return nil, err
		}
		h := sha256.Sum256(p)
		out = append(out, h[:])
	}
	return out, nil
}
