package node

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/node/ha"
	"steadfast/node/overview"
)

const (
	// siteTime bounds what other members are asked for a page about the site. One that is gone is
	// not asked; one that is busy is waited for rather than called silent.
	siteTime = 5 * time.Second
	// askedMax is how many machines' hosts are asked at most, and askedAtOnce how many at a time.
	askedMax    = 64
	askedAtOnce = 8
	// aloneMax is how many volumes a node names that it alone has.
	aloneMax = 32
)

// siteService implements the API's SiteService. It decides nothing and changes nothing, and
// waits for no majority: it is what people look at when there is none.
type siteService struct{ n *Node }

// GetSite implements the API's call.
func (s siteService) GetSite(ctx context.Context, _ *steadfastv1.GetSiteRequest) (*steadfastv1.GetSiteResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, siteTime)
	defer cancel()
	return &steadfastv1.GetSiteResponse{Site: s.n.describeSite(ctx)}, nil
}

// describeSite asks all members that are heard of, at once, until ctx ends.
func (n *Node) describeSite(ctx context.Context) *steadfastv1.Site {
	out := &steadfastv1.Site{Time: timestamppb.New(time.Now())}
	c, err := n.inCluster()
	if !fault.Is(err, fault.NotFound) {
		out.Cluster = n.describeCluster()
	}
	if err != nil {
		out.Members = []*steadfastv1.SiteMember{{Role: string(n.role()), Self: true, Heard: true, Status: n.Status()}}
	} else {
		var asked sync.WaitGroup
		n.askMembers(ctx, &asked, c, out)
		n.askOwners(ctx, &asked, c, out)
		asked.Go(func() { n.siteMachines(ctx, out) })
		asked.Wait()
	}
	overview.Boxes(out)
	out.Risks = overview.Risks(out)
	return out
}

// askMembers asks the members how they are.
func (n *Node) askMembers(ctx context.Context, asked *sync.WaitGroup, c *cluster, out *steadfastv1.Site) {
	for _, r := range c.member.State().Roll.Sorted() {
		m := &steadfastv1.SiteMember{
			Name: string(r.Name), Role: string(r.Role), Address: r.Address, Self: r.Name == c.member.Self().Member, Heard: c.hears(r.Name),
		}
		out.Members = append(out.Members, m)
		switch {
		case m.Self:
			m.Status = n.Status()
		case !m.Heard:
			m.Silent = "it is not heard of"
		default:
			asked.Go(func() {
				resp, err := c.nodeAt(r.Name).GetStatus(ctx, &steadfastv1.GetStatusRequest{})
				if err != nil {
					m.Silent = unanswered(err)
					return
				}
				m.Status = resp.Status
			})
		}
	}
}

// unanswered tells in a few words why a member gave no answer.
func unanswered(err error) string {
	var ce *connect.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), connect.CodeOf(err) == connect.CodeDeadlineExceeded:
		return "it did not answer in time"
	case errors.As(err, &ce) && ce.Code() == connect.CodeUnavailable:
		return "its connection has ended, or cannot be made"
	case errors.As(err, &ce):
		return ce.Message()
	}
	return err.Error()
}

// askOwners asks the owners of groups how those are; one that does not answer is described as
// this node knows it.
func (n *Node) askOwners(ctx context.Context, asked *sync.WaitGroup, c *cluster, out *steadfastv1.Site) {
	specs, err := ha.Specs(c.member.State().Inventory.Entries)
	if err != nil {
		n.log.Debug("groups are left out", "error", err)
	}
	out.Groups = make([]*steadfastv1.Group, len(specs))
	for i, spec := range specs {
		out.Groups[i] = n.describeGroup(c, spec)
		owner := quorum.Member(out.Groups[i].Owner)
		if owner == "" || owner == c.member.Self().Member || !c.hears(owner) {
			continue
		}
		asked.Go(func() {
			resp, err := c.groupsAt(owner).GetGroup(ctx, &steadfastv1.GetGroupRequest{Name: spec.Name})
			if err == nil {
				out.Groups[i] = resp.Group
			}
		})
	}
}

// siteMachines enters hosts and machines, and asks the hosts of those with fault tolerance.
func (n *Node) siteMachines(ctx context.Context, out *steadfastv1.Site) {
	v, err := n.site()
	if err != nil {
		return // this node has just left its cluster
	}
	out.HostClusters, out.Hosts = describeAll(v, v.Clusters, describeHostCluster), describeAll(v, v.Hosts, describeHost)
	out.Machines = n.machinesAsKnown(ctx, v)
	turns := make(chan struct{}, askedAtOnce)
	var asked sync.WaitGroup
	count := 0
	for _, m := range out.Machines {
		p := v.Placements[m.Name]
		if m.Protection == nil || !p.Active() || count == askedMax {
			continue
		}
		count++
		asked.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			n.askHosts(ctx, p, m)
		})
	}
	asked.Wait()
}

// machinesAsKnown describes all machines as a storage node has them, which knows what they wait
// for; without one, as this member has them.
func (n *Node) machinesAsKnown(ctx context.Context, v *inventory.View) []*steadfastv1.Machine {
	if !n.cfg.Cluster.Stores() {
		if c, err := n.inCluster(); err == nil {
			if to, err := n.storageNode(); err == nil {
				if r, err := c.machinesAt(to).ListMachines(ctx, &steadfastv1.ListMachinesRequest{}); err == nil {
					return r.Machines
				}
			}
		}
	}
	return describeAll(v, v.Machines, n.describeMachine)
}

// nodeAt returns a client of another member's NodeService.
func (c *cluster) nodeAt(to quorum.Member) steadfastv1connect.NodeServiceClient {
	return steadfastv1connect.NewNodeServiceClient(c.passingTo(to), "http://"+string(to))
}

// groupsAt returns a client of another member's GroupService, which asks nobody else.
func (c *cluster) groupsAt(to quorum.Member) steadfastv1connect.GroupServiceClient {
	return steadfastv1connect.NewGroupServiceClient(c.passingTo(to), "http://"+string(to))
}

// siteAt returns a client of another member's SiteService.
func (c *cluster) siteAt(to quorum.Member) steadfastv1connect.SiteServiceClient {
	return steadfastv1connect.NewSiteServiceClient(c.passingTo(to), "http://"+string(to))
}

// whereabouts enters what dies with this node.
func (n *Node) whereabouts(out *steadfastv1.Status) {
	out.Box = n.cfg.Cluster.Box
	if text, err := os.ReadFile(machineID); err == nil { // else nobody knows
		out.Computer = boxIn(string(text))
	}
	if name, err := os.Hostname(); err == nil {
		out.Hostname = strings.TrimSpace(name)
	}
}

// aloneHere returns volumes that this node alone has: those of no group. What a node that left
// its cluster has of groups counts among them, since nobody else keeps it in step.
func (n *Node) aloneHere() (list []string) {
	if _, err := n.inCluster(); err != nil && !fault.Is(err, fault.NotFound) {
		return nil // which are groups' is not known
	}
	groups := n.groupsVolumes()
	for _, p := range n.allPools() {
		s := p.opened()
		if s == nil {
			continue
		}
		for _, v := range s.Volumes() {
			if _, grouped := groups[hexID(v.ID)]; !grouped && !reserved(v.Name) && len(list) < aloneMax {
				list = append(list, v.Name)
			}
		}
	}
	return list
}
