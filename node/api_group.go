package node

import (
	"context"
	"net/netip"
	"slices"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/node/ha"
)

// followTime bounds how long an answer waits for the nodes to follow a change of
// the inventory, and moveTime for a planned move.
const (
	followTime = 10 * time.Second
	moveTime   = 30 * time.Second
)

// groupService implements the API's GroupService.
type groupService struct{ n *Node }

// findSpec returns what a resource group is to be, with the cluster.
func (n *Node) findSpec(name string) (*cluster, *ha.Spec, error) {
	c, err := n.inCluster()
	if err != nil {
		return nil, nil, err
	}
	specs, err := ha.Specs(c.member.State().Inventory.Entries)
	if err != nil {
		return nil, nil, err
	}
	var names []string
	for _, s := range specs {
		if names = append(names, s.Name); s.Name == name {
			return c, s, nil
		}
	}
	return nil, nil, unknown("group", name, "group list", names)
}

// CreateGroup implements the API's call.
func (s groupService) CreateGroup(ctx context.Context, req *steadfastv1.CreateGroupRequest) (*steadfastv1.CreateGroupResponse, error) {
	n := s.n
	c, err := n.inCluster()
	if err != nil {
		return nil, err
	}
	var members []quorum.Member
	for _, name := range req.Nodes {
		members = append(members, quorum.Member(name))
	}
	soon, cancel := context.WithTimeout(ctx, hearTime)
	c.hearOf(soon, members...)
	cancel()
	spec, err := n.newSpec(c, req)
	if err != nil {
		return nil, err
	}
	ctx, cancel = context.WithTimeout(ctx, followTime)
	defer cancel()
	if err := ha.Create(ctx, c.member, spec); err != nil {
		return nil, undecided(err)
	}
	n.publish("group-created", "", "", "group %q was created on %v", spec.Name, spec.Members())
	err = n.waitFor(ctx, func() bool {
		record := c.member.State().Group[spec.Name]
		return record != nil
	})
	if err != nil {
		return nil, fault.Wrap(fault.Unreachable, err, "the group was entered, and node "+string(spec.Preferred)+" has not taken it up yet; see \"steadfast group show "+spec.Name+"\"")
	}
	return &steadfastv1.CreateGroupResponse{Group: n.describeGroup(c, spec)}, nil
}

// newSpec checks a request for a group and makes its spec.
func (n *Node) newSpec(c *cluster, req *steadfastv1.CreateGroupRequest) (*ha.Spec, error) {
	if err := checkName("group", req.Name); err != nil {
		return nil, err
	}
	if len(ha.StateVolume(req.Name)) > 63 {
		return nil, fault.New(fault.Invalid, "group name %q is longer than %d", req.Name, 63-len(ha.StateVolume("")))
	}
	state := c.member.State()
	spec := &ha.Spec{Name: req.Name, Target: "iqn.2026-11.io.steadfast:" + c.id.Cluster()[:16] + ":" + req.Name, Multipath: req.Multipath, Confirm: req.ConfirmReads}
	if req.Target != "" {
		var err error
		if spec.Target, err = iscsi.NormalizeName(req.Target); err != nil {
			return nil, err
		}
	}
	if len(req.Nodes) != 2 || req.Nodes[0] == req.Nodes[1] {
		return nil, fault.New(fault.Invalid, "a group is on two nodes; name both, as in --nodes a,b")
	}
	if len(req.Pools) != 1 && len(req.Pools) != 2 {
		return nil, fault.New(fault.Invalid, "name the pool that the group is in on both nodes, or one for each")
	}
	for i, name := range req.Nodes {
		r := state.Roll.Members[quorum.Member(name)]
		if r == nil {
			return nil, unknownMember(state, name)
		}
		if r.Role != quorum.RoleNode {
			return nil, fault.New(fault.Invalid, "%s is a %s, which holds no data; name two storage nodes", name, r.Role)
		}
		spec.Nodes = append(spec.Nodes, ha.Node{Name: r.Name, Pool: req.Pools[min(i, len(req.Pools)-1)]})
	}
	spec.Preferred = quorum.Member(req.Nodes[0])
	if req.Preferred != "" {
		spec.Preferred = quorum.Member(req.Preferred)
	}
	if err := setFailback(spec, req.Failback, req.FailbackDelaySeconds); err != nil {
		return nil, err
	}
	if _, has := spec.Node(spec.Preferred); !has {
		return nil, fault.New(fault.Invalid, "preferred node %s is not one of the group's", spec.Preferred)
	}
	if spec.Multipath {
		if err := ha.CheckPaths(state.Inventory.Entries, spec); err != nil {
			return nil, err
		}
	}
	return spec, n.addAliases(c, spec, req.Aliases)
}

func setFailback(spec *ha.Spec, failback string, delay int64) error {
	switch {
	case delay < 0:
		return fault.New(fault.Invalid, "a delay of %d seconds", delay)
	case failback == "" || failback == "manual":
		spec.Failback, spec.Delay = false, 0
	case failback == "automatic":
		spec.Failback, spec.Delay = true, delay
	default:
		return fault.New(fault.Invalid, "%q is no way to fall back; it is manual or automatic", failback)
	}
	return nil
}

// addAliases adds alias addresses, which no group has yet.
func (n *Node) addAliases(c *cluster, spec *ha.Spec, list []*steadfastv1.GroupAlias) error {
	specs, err := ha.Specs(c.member.State().Inventory.Entries)
	if err != nil {
		return err
	}
	for _, a := range list {
		p, err := netip.ParsePrefix(a.Address)
		if err != nil || p.Addr().IsUnspecified() || p.Addr().IsMulticast() {
			return fault.New(fault.Invalid, "%q is no alias address with the length of its network, like 192.0.2.50/24 or 2001:db8::50/64", a.Address)
		}
		for _, other := range append(specs, spec) {
			for _, has := range other.Aliases {
				if has.Address.Addr() == p.Addr() {
					return fault.New(fault.Exists, "group %q has alias %s already", other.Name, p.Addr())
				}
			}
		}
		spec.Aliases = append(spec.Aliases, ha.Alias{Address: p, Interface: a.Interface})
	}
	if len(spec.Aliases) == 0 {
		return fault.New(fault.Invalid, "a group needs an alias address that its clients reach it at, like --alias 192.0.2.50/24")
	}
	return nil
}

// ListGroups implements the API's call.
func (s groupService) ListGroups(context.Context, *steadfastv1.ListGroupsRequest) (*steadfastv1.ListGroupsResponse, error) {
	c, err := s.n.inCluster()
	if err != nil {
		return nil, err
	}
	specs, err := ha.Specs(c.member.State().Inventory.Entries)
	if err != nil {
		return nil, err
	}
	out := &steadfastv1.ListGroupsResponse{}
	for _, spec := range specs {
		out.Groups = append(out.Groups, s.n.describeGroup(c, spec))
	}
	return out, nil
}

// GetGroup implements the API's call. The owner knows most.
func (s groupService) GetGroup(ctx context.Context, req *steadfastv1.GetGroupRequest) (*steadfastv1.GetGroupResponse, error) {
	c, spec, err := s.n.findSpec(req.Name)
	if err != nil {
		return nil, err
	}
	out := &steadfastv1.GetGroupResponse{Group: s.n.describeGroup(c, spec)}
	if owner := quorum.Member(out.Group.Owner); owner != "" && owner != c.member.Self().Member {
		if r, ok := ctx.Value(routeKey{}).(*route); ok {
			r.to = owner // and if that does not answer, this does
		}
	}
	return out, nil
}

// SetGroup implements the API's call.
func (s groupService) SetGroup(ctx context.Context, req *steadfastv1.SetGroupRequest) (*steadfastv1.SetGroupResponse, error) {
	n := s.n
	c, _, err := n.findSpec(req.Name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, followTime)
	defer cancel()
	err = ha.Change(ctx, c.member, req.Name, func(spec *ha.Spec) error { return n.changeSpec(c, spec, req) })
	if err != nil {
		return nil, undecided(err)
	}
	n.publish("group-changed", "", "", "group %q was changed", req.Name)
	_, spec, err := n.findSpec(req.Name)
	if err != nil {
		return nil, err
	}
	return &steadfastv1.SetGroupResponse{Group: n.describeGroup(c, spec)}, nil
}

// changeSpec makes the changes that a request asks for.
func (n *Node) changeSpec(c *cluster, spec *ha.Spec, req *steadfastv1.SetGroupRequest) error {
	if req.Preferred != nil {
		spec.Preferred = quorum.Member(*req.Preferred)
	}
	if req.Failback != nil || req.FailbackDelaySeconds != nil {
		failback, delay := "manual", spec.Delay
		if spec.Failback {
			failback = "automatic"
		}
		if req.Failback != nil {
			failback = *req.Failback
		}
		if req.FailbackDelaySeconds != nil {
			delay = *req.FailbackDelaySeconds
		}
		if err := setFailback(spec, failback, delay); err != nil {
			return err
		}
	}
	for _, text := range req.RemoveAliases {
		before := len(spec.Aliases)
		spec.Aliases = slices.DeleteFunc(spec.Aliases, func(a ha.Alias) bool { return a.Address.Addr().String() == text || a.Address.String() == text })
		if len(spec.Aliases) == before {
			return fault.New(fault.NotFound, "group %q has no alias %q", spec.Name, text)
		}
	}
	if len(req.AddAliases) > 0 || len(req.RemoveAliases) > 0 {
		if err := n.addAliases(c, spec, req.AddAliases); err != nil {
			return err
		}
	}
	if req.ReplaceNode != "" || req.WithNode != "" {
		if err := replaceNode(c, spec, req); err != nil {
			return err
		}
	}
	if _, has := spec.Node(spec.Preferred); !has {
		return fault.New(fault.Invalid, "preferred node %s is not one of the group's", spec.Preferred)
	}
	return nil
}

// replaceNode gives a group another node in the place of one that was lost, or
// the same with another pool.
func replaceNode(c *cluster, spec *ha.Spec, req *steadfastv1.SetGroupRequest) error {
	old, with := quorum.Member(req.ReplaceNode), quorum.Member(req.WithNode)
	i := slices.IndexFunc(spec.Nodes, func(n ha.Node) bool { return n.Name == old })
	switch r := c.member.State().Roll.Members[with]; {
	case i < 0:
		return fault.New(fault.NotFound, "group %q is not on node %q, but on %v", spec.Name, old, spec.Members())
	case r == nil || r.Role != quorum.RoleNode:
		return fault.New(fault.NotFound, "%q is no storage node of the cluster; see \"steadfast cluster show\"", with)
	case with != old && slices.Contains(spec.Members(), with):
		return fault.New(fault.Invalid, "group %q is on node %s already", spec.Name, with)
	}
	if record := c.member.State().Group[spec.Name]; record != nil {
		if _, in := record.Entry(old); in {
			return fault.New(fault.Busy, "node %s is still in sync and part of the group; end it, or drain it and stop it, before it is replaced", old)
		}
	}
	pool := req.WithPool
	if pool == "" {
		pool = spec.Nodes[i].Pool
	}
	spec.Nodes[i] = ha.Node{Name: with, Pool: pool}
	if spec.Preferred == old {
		spec.Preferred = with
	}
	return nil
}

// MoveGroup implements the API's call.
func (s groupService) MoveGroup(ctx context.Context, req *steadfastv1.MoveGroupRequest) (*steadfastv1.MoveGroupResponse, error) {
	n := s.n
	c, spec, err := n.findSpec(req.Name)
	if err != nil {
		return nil, err
	}
	record := c.member.State().Group[spec.Name]
	if record == nil {
		return nil, fault.New(fault.Busy, "group %q has no owner yet", spec.Name)
	}
	to := quorum.Member(req.To)
	if to == "" {
		to = spec.Other(record.Owner.Member)
	}
	entry, in := record.Entry(to)
	_, has := spec.Node(to)
	switch {
	case to == record.Owner.Member:
		return nil, fault.New(fault.Exists, "group %q is on node %s already", spec.Name, to)
	case !has:
		return nil, fault.New(fault.NotFound, "group %q is not on node %q, but on %v", spec.Name, to, spec.Members())
	case !in || c.member.State().Dead(entry):
		return nil, fault.New(fault.Busy, "node %s is not in sync and cannot take group %q; see \"steadfast group show %s\"", to, spec.Name, spec.Name)
	case ha.Drained(c.member.State().Inventory.Entries, to):
		return nil, fault.New(fault.Busy, "node %s is drained and takes no groups; see \"steadfast node drain --resume\"", to)
	case record.Owner.Member != c.member.Self().Member:
		return nil, elsewhere(ctx, record.Owner.Member)
	}
	g, err := c.groups.Group(spec.Name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, moveTime)
	defer cancel()
	if err := g.Move(); err != nil {
		return nil, err
	}
	err = n.waitFor(ctx, func() bool {
		r := c.member.State().Group[spec.Name]
		return r != nil && r.Owner.Member == to
	})
	if err != nil {
		return nil, err
	}
	n.publish("group-moved", "", "", "group %q was moved to node %s", spec.Name, to)
	return &steadfastv1.MoveGroupResponse{Group: n.describeGroup(c, spec)}, nil
}

// DeleteGroup implements the API's call.
func (s groupService) DeleteGroup(ctx context.Context, req *steadfastv1.DeleteGroupRequest) (*steadfastv1.DeleteGroupResponse, error) {
	c, spec, err := s.n.findSpec(req.Name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, followTime)
	defer cancel()
	if err := ha.Delete(ctx, c.member, spec.Name, noDatastore); err != nil {
		return nil, undecided(err)
	}
	s.n.publish("group-deleted", "", "", "group %q was deleted", spec.Name)
	if err := s.n.waitFor(ctx, func() bool { return c.member.State().Group[spec.Name] == nil }); err != nil {
		return nil, fault.Wrap(fault.Unreachable, err, "the group was deleted, and its owner has not followed yet")
	}
	return &steadfastv1.DeleteGroupResponse{}, nil
}

// PromoteGroup implements the API's call.
func (s groupService) PromoteGroup(ctx context.Context, req *steadfastv1.PromoteGroupRequest) (*steadfastv1.PromoteGroupResponse, error) {
	n := s.n
	c, spec, err := n.findSpec(req.Name)
	if err != nil {
		return nil, err
	}
	me := c.member.Self()
	record := c.member.State().Group[spec.Name]
	switch _, mine := spec.Node(me.Member); {
	case !mine:
		return nil, fault.New(fault.Invalid, "group %q has no copy on this node; run this on one of %v", spec.Name, spec.Members())
	case record == nil:
		return nil, fault.New(fault.Busy, "group %q has no owner yet, and none is needed", spec.Name)
	case record.Has(me):
		return nil, fault.New(fault.Exists, "node %s is in sync: it takes the group over by itself when that is right", me.Member)
	}
	var holders []string
	for _, i := range record.Set {
		holders = append(holders, string(i.Member))
	}
	what := "what-only-" + holders[0] + "-has"
	if req.AcceptDataLoss != what {
		return nil, fault.New(fault.Invalid, "only %v has every write of group %q that was acknowledged. To go on without it loses what it alone has; if it is lost for good, say --accept-data-loss %s",
			holders, spec.Name, what)
	}
	ctx, cancel := context.WithTimeout(ctx, decideTime)
	defer cancel()
	if err := c.member.Propose(ctx, quorum.Command{Kind: quorum.KindPromote, Group: spec.Name, Revision: record.Revision}); err != nil {
		return nil, undecided(err)
	}
	n.publish("group-promoted", "", "", "node %s was made the owner of group %q by an administrator, without %v: writes that only that had are lost", me.Member, spec.Name, holders)
	return &steadfastv1.PromoteGroupResponse{Group: n.describeGroup(c, spec)}, nil
}

// waitFor waits until something has become so.
func (n *Node) waitFor(ctx context.Context, so func() bool) error {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for !so() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return fault.Wrap(fault.Unreachable, context.Cause(ctx), "it has not come about yet")
		case <-n.ctx.Done():
			return fault.New(fault.Canceled, "the node is stopping")
		}
	}
	return nil
}

// describeGroup returns a group as the API shows it, as far as this node knows.
func (n *Node) describeGroup(c *cluster, spec *ha.Spec) *steadfastv1.Group {
	out := &steadfastv1.Group{
		Name: spec.Name, Preferred: string(spec.Preferred), Failback: "manual", FailbackDelaySeconds: spec.Delay,
		Target: spec.Target, PortGroup: int32(spec.Tag()), Multipath: spec.Multipath, ConfirmReads: spec.Confirm, State: "waiting", Sync: &steadfastv1.Sync{State: "none"},
	}
	if spec.Failback {
		out.Failback = "automatic"
	}
	for _, node := range spec.Nodes {
		out.Nodes, out.Pools = append(out.Nodes, string(node.Name)), append(out.Pools, node.Pool)
	}
	for _, a := range spec.Aliases {
		out.Aliases = append(out.Aliases, &steadfastv1.GroupAlias{Address: a.Address.String(), Interface: a.Interface})
	}
	for _, v := range spec.Volumes {
		out.Volumes = append(out.Volumes, v.Name)
	}
	n.describeRecord(c, spec, out)
	if c.groups == nil {
		return out
	}
	if g, err := c.groups.Group(spec.Name); err == nil {
		g.Describe(out)
	}
	for _, s := range n.targets.Sessions() {
		if s.Target == spec.Target {
			out.Sessions++
		}
	}
	return out
}

// describeRecord adds what the quorum has decided of a group.
func (n *Node) describeRecord(c *cluster, spec *ha.Spec, out *steadfastv1.Group) {
	state := c.member.State()
	record := state.Group[spec.Name]
	if record == nil {
		out.Problem = "node " + string(spec.Preferred) + " has not taken it up yet"
		return
	}
	out.Owner, out.Epoch, out.Revived, out.Promoted = string(record.Owner.Member), uint64(record.Epoch), record.Revived, record.Promoted
	me := c.member.Self()
	dead := func(i quorum.Incarnation) bool {
		// This life may be newer than what was heard of it.
		return state.Dead(i) || i.Member == me.Member && i.Boot < me.Boot
	}
	for _, i := range record.Set {
		if !dead(i) {
			out.InSync = append(out.InSync, string(i.Member))
		}
	}
	switch {
	case c.member.Leader() == "":
		out.State, out.Problem = "unknown", "this node hears of no majority of the cluster; what it shows may be old"
	case dead(record.Owner):
		out.Problem = "its owner has ended, and nobody has taken it over yet"
	case !c.hears(record.Owner.Member):
		out.Problem = "its owner, node " + out.Owner + ", is not heard of"
		if len(out.InSync) == 1 {
			out.Problem += ", and it alone has every write: start it again; when it is lost for good, see \"A disaster\" in docs/OPERATING.md"
		}
	case len(out.InSync) < len(spec.Nodes):
		out.State, out.Problem = "serving", "not redundant: node "+string(spec.Other(record.Owner.Member))+" is not in sync"
	default:
		out.State = "serving"
	}
}
