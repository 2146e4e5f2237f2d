package ha

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/group"
	"steadfast/san/mirrorio"
)

// Describe adds to out what this node knows of the group.
func (g *Group) Describe(out *steadfastv1.Group) {
	g.mu.Lock()
	problem, st, m, since, current := g.problem, g.standing, g.mirror, g.since, g.current
	g.mu.Unlock()
	if problem != "" {
		out.Problem = problem
	}
	if st.Role == group.Owner {
		out.OwnerSince = timestamppb.New(since)
		if out.State = "serving"; current == nil {
			out.State = "starting"
		}
	}
	if m != nil {
		out.Sync = describeSync(m.Status())
	}
}

// describeSync tells how the other node's copy is, or this one's.
func describeSync(s mirrorio.Status) *steadfastv1.Sync {
	out := &steadfastv1.Sync{Linked: s.Peer != nil, BytesLeft: s.OutOfSyncBytes, BytesPerSecond: s.Rate, SecondsLeft: int64(s.Left.Seconds())}
	switch {
	case s.Broken:
		out.State = "failed"
	case s.Receiving:
		out.State = "resyncing"
	case s.Standing.Role == group.Entry, len(s.Standing.Others) > 0:
		out.State = "in sync"
	case s.Peer == nil:
		out.State = "away"
	default:
		out.State = "resyncing"
		out.BytesLeft = s.LeftBytes
	}
	return out
}
