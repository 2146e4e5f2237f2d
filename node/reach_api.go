package node

import (
	"context"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// GetAccess implements the API's call: a host is told its own secret, by whom it has proven
// to be to this node itself. A storage node makes its own, and nobody else has one.
func (s machineService) GetAccess(ctx context.Context, _ *steadfastv1.GetAccessRequest) (*steadfastv1.GetAccessResponse, error) {
	c, err := s.n.inCluster()
	if err != nil {
		return nil, err
	}
	from, ok := callerOf(ctx)
	if !ok {
		return nil, fault.New(fault.Denied, "only a host asks this, of a storage node, over the connection between members")
	}
	m := c.member.State().Roll.Members[from.Name]
	if m == nil || m.ID != from.ID || m.Role != quorum.RoleHost {
		return nil, fault.New(fault.Denied, "%s is no host of this cluster, by what this node knows", from.Name)
	}
	secret, err := c.secretOf(m)
	if err != nil {
		return nil, err
	}
	return &steadfastv1.GetAccessResponse{Initiator: memberPrefix(c.id.Cluster()) + string(m.Name), ChapSecret: secret}, nil
}
