package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/fault"
	"steadfast/node/ha"
)

// tokenGood is how long a join token is good unless it is said.
const tokenGood = time.Hour

// Times of what the quorum is asked for.
const (
	decideTime = 10 * time.Second
	joinTime   = 30 * time.Second
	drainTime  = 60 * time.Second
)

// clusterService implements the API's ClusterService.
type clusterService struct{ n *Node }

// InitCluster implements the API's call.
func (s clusterService) InitCluster(_ context.Context, req *steadfastv1.InitClusterRequest) (*steadfastv1.InitClusterResponse, error) {
	s.n.membership.Lock()
	defer s.n.membership.Unlock()
	if err := s.n.mayBegin(req.Name, req.Address); err != nil {
		return nil, err
	}
	if role := s.n.role(); role != quorum.RoleNode {
		return nil, fault.New(fault.Invalid, "a %s cannot be a cluster's first member: begin with \"steadfast cluster init\" on a storage node, and have the %s join", role, role)
	}
	dir := s.n.clusterDir()
	before, err := filesIn(dir)
	if err != nil {
		return nil, err
	}
	c, err := s.n.found(dir, quorum.Member(req.Name), req.Address)
	if err != nil {
		return nil, errors.Join(err, removeOthers(dir, before))
	}
	id := c.id
	if err := s.n.takePart(c, true); err != nil {
		return nil, err
	}
	s.n.publish("cluster-created", "", "", "cluster %s was created, with this node as %q", id.Cluster(), req.Name)
	return &steadfastv1.InitClusterResponse{Cluster: s.n.describeCluster()}, nil
}

// found makes a cluster of this node alone, and opens its membership.
func (n *Node) found(dir string, name quorum.Member, address string) (*cluster, error) {
	id, err := quorumio.Found(dir, name, address)
	if err != nil {
		return nil, err
	}
	return n.openMember(id)
}

// filesIn lists what a directory holds; nil: it is not there.
func filesIn(dir string) (map[string]bool, error) {
	list, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fault.Wrap(fault.Denied, err, "the member's directory")
	}
	names := map[string]bool{}
	for _, e := range list {
		names[e.Name()] = true
	}
	return names, nil
}

// removeOthers removes what was made in a directory since it held some files, and the
// directory if it was not there: the half of a cluster would refuse the next try.
func removeOthers(dir string, before map[string]bool) error {
	if before == nil {
		return os.RemoveAll(dir)
	}
	now, err := filesIn(dir)
	for name := range now {
		if !before[name] {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, name)))
		}
	}
	return err
}

// mayBegin tells why the node cannot become a member under a name.
func (n *Node) mayBegin(name, address string) error {
	if _, err := n.inCluster(); err == nil || fault.Is(err, fault.Failed) {
		return fault.New(fault.Exists, "this node is in a cluster already; see \"steadfast cluster show\"")
	}
	if !quorum.Member(name).Valid() {
		return fault.New(fault.Invalid, "%q cannot name a member: 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit", name)
	}
	if err := checkAddress(address); err != nil {
		return err
	}
	return nil
}

// CreateToken implements the API's call.
func (s clusterService) CreateToken(ctx context.Context, req *steadfastv1.CreateTokenRequest) (*steadfastv1.CreateTokenResponse, error) {
	c, err := s.n.inCluster()
	if err != nil {
		return nil, err
	}
	role := quorum.Role(req.Role)
	if role != quorum.RoleNode && role != quorum.RoleWitness && role != quorum.RoleHost {
		return nil, fault.New(fault.Invalid, "%q is no role; a joiner is a %s, a %s or a %s", req.Role, quorum.RoleNode, quorum.RoleWitness, quorum.RoleHost)
	}
	good := time.Duration(req.GoodSeconds) * time.Second
	if good == 0 {
		good = tokenGood
	}
	ctx, cancel := context.WithTimeout(ctx, decideTime)
	defer cancel()
	t, err := c.member.Invite(ctx, role, good)
	if err != nil {
		return nil, undecided(err)
	}
	s.n.publish("token-created", "", "", "a token for one %s was made", role)
	return &steadfastv1.CreateTokenResponse{Token: t.Encode(), Expires: timestamppb.New(time.Now().Add(good))}, nil
}

// DeleteToken implements the API's call.
func (s clusterService) DeleteToken(ctx context.Context, req *steadfastv1.DeleteTokenRequest) (*steadfastv1.DeleteTokenResponse, error) {
	c, err := s.n.inCluster()
	if err != nil {
		return nil, err
	}
	var found []quorum.Fingerprint
	for hash := range c.member.State().Roll.Tokens {
		if req.Id != "" && strings.HasPrefix(string(hash), req.Id) {
			found = append(found, hash)
		}
	}
	if len(found) != 1 {
		return nil, fault.New(fault.NotFound, "%d tokens have an id that begins with %q; see \"steadfast cluster show\"", len(found), req.Id)
	}
	ctx, cancel := context.WithTimeout(ctx, decideTime)
	defer cancel()
	return &steadfastv1.DeleteTokenResponse{}, undecided(c.member.Withdraw(ctx, found[0]))
}

// JoinCluster implements the API's call.
func (s clusterService) JoinCluster(ctx context.Context, req *steadfastv1.JoinClusterRequest) (*steadfastv1.JoinClusterResponse, error) {
	s.n.membership.Lock()
	defer s.n.membership.Unlock()
	if err := s.n.mayBegin(req.Name, req.Address); err != nil {
		return nil, err
	}
	t, err := identity.ParseToken(strings.TrimSpace(req.Token))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	id, err := quorumio.Join(ctx, s.n.clusterDir(), t, quorum.Member(req.Name), req.Address, s.n.role())
	if err != nil {
		return nil, err
	}
	if err := s.n.beMember(id, true); err != nil {
		return nil, err
	}
	if c, err := s.n.inCluster(); err == nil {
		c.hearOf(ctx, c.member.Self().Member)
	}
	s.n.publish("cluster-joined", "", "", "this node joined cluster %s as %q", id.Cluster(), req.Name)
	return &steadfastv1.JoinClusterResponse{Cluster: s.n.describeCluster()}, nil
}

// hearTime is how long a command waits for word of members that are not known here.
const hearTime = 500 * time.Millisecond

// hearOf returns when this member knows of all of these, or ctx ends: one that has joined may be
// named in the next command, and word of it takes a moment.
func (c *cluster) hearOf(ctx context.Context, list ...quorum.Member) {
	heard := make(chan struct{})
	var once sync.Once
	stop := c.member.Watch(func(s *quorum.State) {
		if !slices.ContainsFunc(list, func(m quorum.Member) bool { return s.Roll.Members[m] == nil }) {
			once.Do(func() { close(heard) })
		}
	})
	defer stop()
	select {
	case <-heard:
	case <-ctx.Done():
	}
}

// GetCluster implements the API's call.
func (s clusterService) GetCluster(context.Context, *steadfastv1.GetClusterRequest) (*steadfastv1.GetClusterResponse, error) {
	if _, err := s.n.inCluster(); fault.Is(err, fault.NotFound) {
		return nil, err
	}
	return &steadfastv1.GetClusterResponse{Cluster: s.n.describeCluster()}, nil
}

// describeCluster returns the cluster as the API shows it.
func (n *Node) describeCluster() *steadfastv1.Cluster {
	n.mu.RLock()
	c, problem := n.cluster, n.clusterProblem
	n.mu.RUnlock()
	out := &steadfastv1.Cluster{Problem: problem}
	if c == nil {
		return out
	}
	state := c.member.State()
	out.Id, out.Self, out.Leader, out.Recovered = c.id.Cluster(), string(c.member.Self().Member), string(c.member.Leader()), state.Roll.Recovered
	heard := c.member.Reachable()
	for _, r := range state.Roll.Sorted() {
		word, ok := heard[r.Name]
		out.Members = append(out.Members, &steadfastv1.Member{
			Name: string(r.Name), Role: string(r.Role), Address: r.Address, Voter: r.Voter, Boot: uint64(state.Boots[r.Name]),
			Reachable: r.Name == c.member.Self().Member || ok && word.Age < 3*time.Second, Drained: ha.Drained(state.Inventory.Entries, r.Name),
		})
	}
	for _, t := range state.Roll.Tokens {
		out.Tokens = append(out.Tokens, &steadfastv1.Token{Id: string(t.Hash[:12]), Role: string(t.Role), Expires: timestamppb.New(time.Unix(t.Expires, 0))})
	}
	return out
}

// RemoveMember implements the API's call.
func (s clusterService) RemoveMember(ctx context.Context, req *steadfastv1.RemoveMemberRequest) (*steadfastv1.RemoveMemberResponse, error) {
	c, err := s.n.inCluster()
	if err != nil {
		return nil, err
	}
	if err := memberThere(c, req.Name); err != nil {
		return nil, err
	}
	specs, err := ha.Specs(c.member.State().Inventory.Entries)
	if err != nil {
		return nil, err
	}
	for _, spec := range specs {
		if _, has := spec.Node(quorum.Member(req.Name)); has {
			return nil, fault.New(fault.Busy, "group %q has its copy on %s; give it another node first with \"steadfast group set %s --replace %s --with NODE\", or delete it", spec.Name, req.Name, spec.Name, req.Name)
		}
	}
	if err := noHost(c.member.State().Inventory.Entries, req.Name); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, decideTime)
	defer cancel()
	if err := c.member.RemoveMember(ctx, quorum.Member(req.Name)); err != nil {
		return nil, undecided(err)
	}
	s.n.publish("member-removed", "", "", "%s is no member of the cluster any more", req.Name)
	return &steadfastv1.RemoveMemberResponse{}, nil
}

// SetMember implements the API's call.
func (s clusterService) SetMember(ctx context.Context, req *steadfastv1.SetMemberRequest) (*steadfastv1.SetMemberResponse, error) {
	c, err := s.n.inCluster()
	if err != nil {
		return nil, err
	}
	if err := memberThere(c, req.Name); err != nil {
		return nil, err
	}
	if err := checkAddress(req.Address); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, decideTime)
	defer cancel()
	if err := c.member.ChangeAddress(ctx, quorum.Member(req.Name), req.Address); err != nil {
		return nil, undecided(err)
	}
	s.n.publish("member-changed", "", "", "%s is reached at %s now", req.Name, req.Address)
	for _, m := range s.n.describeCluster().Members {
		if m.Name == req.Name {
			return &steadfastv1.SetMemberResponse{Member: m}, nil
		}
	}
	return nil, fault.New(fault.NotFound, "member %q left meanwhile", req.Name)
}

func memberThere(c *cluster, name string) error {
	if state := c.member.State(); state.Roll.Members[quorum.Member(name)] == nil {
		return unknownMember(state, name)
	}
	return nil
}

func unknownMember(state *quorum.State, name string) error {
	var names []string
	for m := range state.Roll.Members {
		names = append(names, string(m))
	}
	return unknown("member", name, "cluster show", names)
}

// LeaveCluster implements the API's call.
func (s clusterService) LeaveCluster(_ context.Context, req *steadfastv1.LeaveClusterRequest) (*steadfastv1.LeaveClusterResponse, error) {
	s.n.membership.Lock()
	defer s.n.membership.Unlock()
	dir := s.n.clusterDir()
	id, err := identity.Load(dir)
	if err != nil {
		return nil, err
	}
	if c, err := s.n.inCluster(); err == nil {
		state := c.member.State()
		others := 0
		for name := range state.Roll.Members {
			if name != c.member.Self().Member {
				others++
			}
		}
		if state.Roll.Members[c.member.Self().Member] != nil && others > 0 {
			return nil, fault.New(fault.Busy, "this node is still a member, as far as it knows; remove it first, on another one: \"steadfast cluster remove %s\". "+
				"When it was removed while it did not run, it cannot hear of that: stop it and delete %s", c.member.Self().Member, dir)
		}
		for name := range state.Group {
			return nil, fault.New(fault.Busy, "group %q is still there; delete it first", name)
		}
	}
	if req.Cluster != id.Cluster() {
		return nil, fault.New(fault.Invalid, "this forgets the cluster %s, and what only its quorum knew; say so with --confirm %s", id.Cluster(), id.Cluster())
	}
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	err = s.n.state.Unshare()
	unlock()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(s.n.closeCluster(), os.RemoveAll(dir)); err != nil {
		return nil, err
	}
	s.n.mu.Lock()
	s.n.clusterProblem = ""
	s.n.mu.Unlock()
	s.n.publish("cluster-left", "", "", "this node is in no cluster any more")
	return &steadfastv1.LeaveClusterResponse{}, nil
}

// DrainNode implements the API's call.
func (s clusterService) DrainNode(ctx context.Context, req *steadfastv1.DrainNodeRequest) (*steadfastv1.DrainNodeResponse, error) {
	c, err := s.n.inCluster()
	if err != nil {
		return nil, err
	}
	name := quorum.Member(req.Name)
	if name == "" {
		name = c.member.Self().Member
	}
	if err := memberThere(c, string(name)); err != nil {
		return nil, err
	}
	if r := c.member.State().Roll.Members[name]; r != nil && r.Role == quorum.RoleHost {
		return nil, fault.New(fault.Invalid, "%s is a host, and owns no groups; its machines leave it with \"steadfast host maintenance %s\"", name, name)
	}
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	owned := ownedBy(c.member.State(), name)
	if err := ha.Drain(ctx, c.member, name, !req.Resume); err != nil {
		return nil, undecided(err)
	}
	if req.Resume {
		s.n.publish("node-resumed", "", "", "node %s takes groups again", name)
		return &steadfastv1.DrainNodeResponse{}, nil
	}
	for {
		left := ownedBy(c.member.State(), name)
		if len(left) == 0 {
			s.n.publish("node-drained", "", "", "node %s has given its groups away", name)
			return &steadfastv1.DrainNodeResponse{Moved: owned}, nil
		}
		select {
		case <-ctx.Done():
			return nil, fault.New(fault.Busy, "group %q is still on %s: its other node must run and be in sync (\"steadfast group show %s\"); it moves when it is", left[0], name, left[0])
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ownedBy lists the groups that a member owns, by name.
func ownedBy(s *quorum.State, name quorum.Member) (list []string) {
	for g, record := range s.Group {
		if record.Owner.Member == name {
			list = append(list, g)
		}
	}
	return list
}

// checkAddress returns fault.Invalid for what is no address of a member.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = netip.ParseAddr(host)
	}
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 {
		return fault.New(fault.Invalid, "%q is not an address that other members can reach, like 192.0.2.1:7400", address)
	}
	return nil
}

// undecided says what to do when the quorum does not answer.
func undecided(err error) error {
	if fault.Is(err, fault.Unreachable) {
		return fault.Wrap(fault.Unreachable, err, "the cluster cannot decide: two of its three members must run and reach one another; see \"steadfast cluster show\"")
	}
	return err
}
