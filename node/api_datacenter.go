package node

import (
	"context"
	"maps"
	"slices"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/fault"
)

// datacenterService implements the API's DatacenterService.
type datacenterService struct{ n *Node }

// site returns what the inventory says of datacenters and what is in them. What a
// newer program wrote there is left out.
func (n *Node) site() (*inventory.View, error) {
	c, err := n.inCluster()
	if err != nil {
		return nil, err
	}
	v, err := inventory.Read(c.member.State().Inventory.Entries)
	if err != nil {
		n.log.Debug("a part of the inventory is left out", "error", err)
	}
	return v, nil
}

// amend changes the inventory by one of its rules, and returns it as it is then.
func (n *Node) amend(ctx context.Context, rule func(*inventory.View) ([]quorum.Edit, error)) (*inventory.View, error) {
	c, err := n.inCluster()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, editTime)
	defer cancel()
	err = quorumio.Update(ctx, c.member, func(inv quorum.Inventory) ([]quorum.Edit, error) {
		v, err := inventory.Read(inv.Entries)
		if v == nil {
			return nil, err
		}
		return rule(v) // which refuses what it cannot judge for want of a document
	})
	if err != nil {
		return nil, undecided(err)
	}
	return n.site()
}

// CreateDatacenter implements the API's call.
func (s datacenterService) CreateDatacenter(ctx context.Context, req *steadfastv1.CreateDatacenterRequest) (*steadfastv1.CreateDatacenterResponse, error) {
	v, err := s.n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateDatacenter(req.Name) })
	if err != nil {
		return nil, err
	}
	s.n.publish("datacenter-created", "", "", "datacenter %q was created", req.Name)
	return &steadfastv1.CreateDatacenterResponse{Datacenter: describeDatacenter(v, req.Name)}, nil
}

// ListDatacenters implements the API's call.
func (s datacenterService) ListDatacenters(context.Context, *steadfastv1.ListDatacentersRequest) (*steadfastv1.ListDatacentersResponse, error) {
	v, err := s.n.site()
	if err != nil {
		return nil, err
	}
	return &steadfastv1.ListDatacentersResponse{Datacenters: describeAll(v, v.Datacenters, describeDatacenter)}, nil
}

// DeleteDatacenter implements the API's call.
func (s datacenterService) DeleteDatacenter(ctx context.Context, req *steadfastv1.DeleteDatacenterRequest) (*steadfastv1.DeleteDatacenterResponse, error) {
	_, err := s.n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.DeleteDatacenter(req.Name) })
	if err != nil {
		return nil, err
	}
	s.n.publish("datacenter-deleted", "", "", "datacenter %q was deleted", req.Name)
	return &steadfastv1.DeleteDatacenterResponse{}, nil
}

// CreateHostCluster implements the API's call.
func (s datacenterService) CreateHostCluster(ctx context.Context, req *steadfastv1.CreateHostClusterRequest) (*steadfastv1.CreateHostClusterResponse, error) {
	v, err := s.n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) {
		datacenter, err := onlyOne("datacenter", req.Datacenter, v.Datacenters)
		if err != nil {
			return nil, err
		}
		return v.CreateCluster(req.Name, datacenter, req.Ha)
	})
	if err != nil {
		return nil, err
	}
	s.n.publish("host-cluster-created", "", "", "cluster %q of hosts was created", req.Name)
	return &steadfastv1.CreateHostClusterResponse{Cluster: describeHostCluster(v, req.Name)}, nil
}

// ListHostClusters implements the API's call.
func (s datacenterService) ListHostClusters(context.Context, *steadfastv1.ListHostClustersRequest) (*steadfastv1.ListHostClustersResponse, error) {
	v, err := s.n.site()
	if err != nil {
		return nil, err
	}
	out := describeAll(v, v.Clusters, describeHostCluster)
	if c, err := s.n.inCluster(); err == nil && c.placer != nil {
		waits := c.placer.waiting()
		for _, k := range out {
			for _, m := range k.Machines {
				if why, waiting := waits[m]; waiting {
					k.Waiting = append(k.Waiting, &steadfastv1.WaitingMachine{Machine: m, Why: why})
				}
			}
		}
	}
	return &steadfastv1.ListHostClustersResponse{Clusters: out}, nil
}

// SetHostCluster implements the API's call.
func (s datacenterService) SetHostCluster(ctx context.Context, req *steadfastv1.SetHostClusterRequest) (*steadfastv1.SetHostClusterResponse, error) {
	if req.Ha == nil {
		return nil, fault.New(fault.Invalid, "nothing to change; say --ha or --ha=false")
	}
	v, err := s.n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.SetHA(req.Name, *req.Ha) })
	if err != nil {
		return nil, err
	}
	s.n.publish("host-cluster-changed", "", "", "cluster %q: high availability is %s", req.Name, onOff(*req.Ha))
	return &steadfastv1.SetHostClusterResponse{Cluster: describeHostCluster(v, req.Name)}, nil
}

// DeleteHostCluster implements the API's call.
func (s datacenterService) DeleteHostCluster(ctx context.Context, req *steadfastv1.DeleteHostClusterRequest) (*steadfastv1.DeleteHostClusterResponse, error) {
	_, err := s.n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.DeleteCluster(req.Name) })
	if err != nil {
		return nil, err
	}
	s.n.publish("host-cluster-deleted", "", "", "cluster %q of hosts was deleted", req.Name)
	return &steadfastv1.DeleteHostClusterResponse{}, nil
}

// AddHost implements the API's call.
func (s datacenterService) AddHost(ctx context.Context, req *steadfastv1.AddHostRequest) (*steadfastv1.AddHostResponse, error) {
	c, err := s.n.inCluster()
	if err != nil {
		return nil, err
	}
	switch r := c.member.State().Roll.Members[quorum.Member(req.Name)]; {
	case r == nil:
		return nil, fault.New(fault.NotFound, "no member %q has joined; a host joins by a token of \"steadfast cluster token --role host\"", req.Name)
	case r.Role != quorum.RoleHost:
		return nil, fault.New(fault.Invalid, "member %q is a %s; on the same box a host is a process of its own, with a name of its own", req.Name, r.Role)
	}
	v, err := s.n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) {
		cluster, err := onlyOne("cluster", req.Cluster, v.Clusters)
		if err != nil {
			return nil, err
		}
		return v.AddHost(req.Name, cluster, linksOf(req.Links))
	})
	if err != nil {
		return nil, err
	}
	s.n.publish("host-added", "", "", "host %q was added", req.Name)
	return &steadfastv1.AddHostResponse{Host: describeHost(v, req.Name)}, nil
}

// ListHosts implements the API's call.
func (s datacenterService) ListHosts(context.Context, *steadfastv1.ListHostsRequest) (*steadfastv1.ListHostsResponse, error) {
	v, err := s.n.site()
	if err != nil {
		return nil, err
	}
	return &steadfastv1.ListHostsResponse{Hosts: describeAll(v, v.Hosts, describeHost)}, nil
}

// SetHost implements the API's call.
func (s datacenterService) SetHost(ctx context.Context, req *steadfastv1.SetHostRequest) (*steadfastv1.SetHostResponse, error) {
	links := req.Management != nil || req.Migration != nil || req.Logging != nil
	if req.Maintenance == nil && !links {
		return nil, fault.New(fault.Invalid, "nothing to change; see \"steadfast host set --help\"")
	}
	// Two changes of one document cannot be one edit; either is whole by itself.
	var v *inventory.View
	var err error
	if links {
		v, err = s.n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.SetLinks(req.Name, linksAfter(v, req)) })
		if err != nil {
			return nil, err
		}
		s.n.publish("host-changed", "", "", "the links of host %q were changed", req.Name)
	}
	if req.Maintenance != nil {
		v, err = s.n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.SetMaintenance(req.Name, *req.Maintenance) })
		if err != nil {
			return nil, err
		}
		s.n.publish("host-maintenance", "", "", "host %q: maintenance is %s", req.Name, onOff(*req.Maintenance))
	}
	return &steadfastv1.SetHostResponse{Host: describeHost(v, req.Name)}, nil
}

// RemoveHost implements the API's call.
func (s datacenterService) RemoveHost(ctx context.Context, req *steadfastv1.RemoveHostRequest) (*steadfastv1.RemoveHostResponse, error) {
	_, err := s.n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.RemoveHost(req.Name) })
	if err != nil {
		return nil, err
	}
	s.n.publish("host-removed", "", "", "host %q was removed; it is a member of the cluster still", req.Name)
	return &steadfastv1.RemoveHostResponse{}, nil
}

// AddDatastore implements the API's call.
func (s datacenterService) AddDatastore(ctx context.Context, req *steadfastv1.AddDatastoreRequest) (*steadfastv1.AddDatastoreResponse, error) {
	v, err := s.n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) {
		datacenter, err := onlyOne("datacenter", req.Datacenter, v.Datacenters)
		if err != nil {
			return nil, err
		}
		return v.AddDatastore(req.Name, datacenter, req.Group)
	})
	if err != nil {
		return nil, err
	}
	s.n.publish("datastore-added", "", "", "group %q is the datastore %q", req.Group, req.Name)
	return &steadfastv1.AddDatastoreResponse{Datastore: describeDatastore(v, req.Name)}, nil
}

// ListDatastores implements the API's call.
func (s datacenterService) ListDatastores(context.Context, *steadfastv1.ListDatastoresRequest) (*steadfastv1.ListDatastoresResponse, error) {
	v, err := s.n.site()
	if err != nil {
		return nil, err
	}
	return &steadfastv1.ListDatastoresResponse{Datastores: describeAll(v, v.Datastores, describeDatastore)}, nil
}

// RemoveDatastore implements the API's call.
func (s datacenterService) RemoveDatastore(ctx context.Context, req *steadfastv1.RemoveDatastoreRequest) (*steadfastv1.RemoveDatastoreResponse, error) {
	_, err := s.n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.RemoveDatastore(req.Name) })
	if err != nil {
		return nil, err
	}
	s.n.publish("datastore-removed", "", "", "datastore %q was removed; its volumes are there still", req.Name)
	return &steadfastv1.RemoveDatastoreResponse{}, nil
}

// onlyOne returns the name that was given, or of the only one that there is.
func onlyOne[T any](kind, given string, there map[string]*T) (string, error) {
	if given != "" {
		return given, nil
	}
	names := slices.Sorted(maps.Keys(there))
	switch len(names) {
	case 0:
		return "", fault.New(fault.NotFound, "there is no %s yet; make one with \"steadfast %s create\"", kind, kind)
	case 1:
		return names[0], nil
	}
	return "", fault.New(fault.Invalid, "there are several: name one of the %ss %v with --%s", kind, names, kind)
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// describeAll describes everything of a kind, by name.
func describeAll[T, D any](v *inventory.View, of map[string]*T, describe func(*inventory.View, string) D) (list []D) {
	for _, name := range slices.Sorted(maps.Keys(of)) {
		list = append(list, describe(v, name))
	}
	return list
}

// namesWhere lists those that are so, by name.
func namesWhere[T any](of map[string]*T, so func(*T) bool) (list []string) {
	for _, name := range slices.Sorted(maps.Keys(of)) {
		if so(of[name]) {
			list = append(list, name)
		}
	}
	return list
}

func describeDatacenter(v *inventory.View, name string) *steadfastv1.Datacenter {
	return &steadfastv1.Datacenter{
		Name:       name,
		Clusters:   namesWhere(v.Clusters, func(c *inventory.Cluster) bool { return c.Datacenter == name }),
		Datastores: namesWhere(v.Datastores, func(d *inventory.Datastore) bool { return d.Datacenter == name }),
	}
}

func describeHostCluster(v *inventory.View, name string) *steadfastv1.HostCluster {
	c := v.Clusters[name]
	if c == nil {
		return nil // deleted meanwhile
	}
	return &steadfastv1.HostCluster{
		Name: name, Datacenter: c.Datacenter, Ha: c.HA,
		Hosts:    namesWhere(v.Hosts, func(h *inventory.Host) bool { return h.Cluster == name }),
		Machines: namesWhere(v.Machines, func(m *inventory.Machine) bool { return m.Cluster == name }),
	}
}

func describeHost(v *inventory.View, name string) *steadfastv1.Host {
	h := v.Hosts[name]
	if h == nil {
		return nil
	}
	out := &steadfastv1.Host{
		Name: name, Cluster: h.Cluster, Maintenance: h.Maintenance, State: "unknown",
		Links:       &steadfastv1.Links{Management: h.Links.Management, Migration: h.Links.Migration, Logging: h.Links.Logging},
		Machines:    namesWhere(v.Placements, func(p *inventory.Placement) bool { return p.Active() && p.Host == name }),
		Secondaries: namesWhere(v.Placements, func(p *inventory.Placement) bool { return p.Active() && p.Second != nil && p.Second.Host == name }),
	}
	for _, m := range slices.Concat(out.Machines, out.Secondaries) {
		if v.Machines[m] != nil {
			out.MemoryGiven += v.Machines[m].Memory
		}
	}
	if l := v.Lives[name]; l != nil {
		out.State, out.Since, out.Boot = string(l.State), stamp(time.Unix(0, l.Since)), l.Boot
		out.Version, out.Build, out.Memory, out.Cpus = l.Program, l.Build, l.Memory, int32(l.CPUs)
		out.Box = l.Box
	}
	return out
}

func describeDatastore(v *inventory.View, name string) *steadfastv1.Datastore {
	d := v.Datastores[name]
	if d == nil {
		return nil
	}
	return &steadfastv1.Datastore{
		Name: name, Datacenter: d.Datacenter, Group: d.Group,
		Machines: namesWhere(v.Machines, func(m *inventory.Machine) bool { return m.Datastore == name }),
	}
}

// linksAfter returns a host's links with the changes of a request.
func linksAfter(v *inventory.View, req *steadfastv1.SetHostRequest) (links inventory.Links) {
	if h := v.Hosts[req.Name]; h != nil {
		links = h.Links
	}
	for _, l := range []struct {
		to   *string
		from *string
	}{{&links.Management, req.Management}, {&links.Migration, req.Migration}, {&links.Logging, req.Logging}} {
		if l.from != nil {
			*l.to = *l.from
		}
	}
	return links
}

func linksOf(l *steadfastv1.Links) inventory.Links {
	return inventory.Links{Management: l.GetManagement(), Migration: l.GetMigration(), Logging: l.GetLogging()}
}
