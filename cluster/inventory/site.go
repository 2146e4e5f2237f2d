package inventory

import (
	"maps"
	"slices"
	"strconv"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// CreateDatacenter makes a datacenter. It and the methods below fail with
// fault.Invalid, fault.Exists, fault.NotFound, fault.Limit, fault.Busy for what is in
// use, and fault.Stale for documents that cannot be read.
func (v *View) CreateDatacenter(name string) ([]quorum.Edit, error) {
	if err := fresh(v, v.Datacenters, datacenterPrefix, name, DatacentersMax); err != nil {
		return nil, err
	}
	return one(edit(datacenterPrefix+name, &Datacenter{Name: name}, nil))
}

// DeleteDatacenter deletes a datacenter without clusters and datastores.
func (v *View) DeleteDatacenter(name string) ([]quorum.Edit, error) {
	if _, err := find(v, v.Datacenters, datacenterPrefix, name); err != nil {
		return nil, err
	}
	if err := v.complete(clusterPrefix, datastorePrefix); err != nil {
		return nil, err
	}
	if c, ok := first(v.Clusters, func(c *Cluster) bool { return c.Datacenter == name }); ok {
		return nil, fault.New(fault.Busy, "datacenter %q has the cluster %q; delete it first: \"steadfast cluster delete %s\"", name, c, c)
	}
	if d, ok := first(v.Datastores, func(d *Datastore) bool { return d.Datacenter == name }); ok {
		return nil, fault.New(fault.Busy, "datacenter %q has the datastore %q; remove it first: \"steadfast datastore remove %s\"", name, d, d)
	}
	return []quorum.Edit{{Key: datacenterPrefix + name}}, nil
}

// CreateCluster makes a cluster in a datacenter.
func (v *View) CreateCluster(name, datacenter string, ha bool) ([]quorum.Edit, error) {
	if err := fresh(v, v.Clusters, clusterPrefix, name, ClustersMax); err != nil {
		return nil, err
	}
	if _, err := find(v, v.Datacenters, datacenterPrefix, datacenter); err != nil {
		return nil, err
	}
	return one(edit(clusterPrefix+name, &Cluster{Name: name, Datacenter: datacenter, HA: ha}, nil))
}

// SetHA says whether a cluster's machines are restarted when their host is lost.
func (v *View) SetHA(name string, ha bool) ([]quorum.Edit, error) {
	c, err := find(v, v.Clusters, clusterPrefix, name)
	if err != nil || c.HA == ha {
		return nil, err
	}
	next := *c
	next.HA = ha
	return one(edit(clusterPrefix+name, &next, c))
}

// DeleteCluster deletes a cluster without hosts and machines.
func (v *View) DeleteCluster(name string) ([]quorum.Edit, error) {
	if _, err := find(v, v.Clusters, clusterPrefix, name); err != nil {
		return nil, err
	}
	if err := v.complete(hostPrefix, machinePrefix); err != nil {
		return nil, err
	}
	if h, ok := first(v.Hosts, func(h *Host) bool { return h.Cluster == name }); ok {
		return nil, fault.New(fault.Busy, "cluster %q has the host %q; remove it first: \"steadfast host remove %s\"", name, h, h)
	}
	if m, ok := first(v.Machines, func(m *Machine) bool { return m.Cluster == name }); ok {
		return nil, fault.New(fault.Busy, "cluster %q has the machine %q; delete it first: \"steadfast vm delete %s\"", name, m, m)
	}
	return []quorum.Edit{{Key: clusterPrefix + name}}, nil
}

// AddHost makes a host, and gives it a number.
func (v *View) AddHost(name, cluster string, links Links) ([]quorum.Edit, error) {
	if err := fresh(v, v.Hosts, hostPrefix, name, HostsMax); err != nil {
		return nil, err
	}
	if err := v.readable(numberKey); err != nil {
		return nil, err
	}
	if _, err := find(v, v.Clusters, clusterPrefix, cluster); err != nil {
		return nil, err
	}
	if err := links.check(); err != nil {
		return nil, err
	}
	if v.numbers >= HostNumberMax {
		return nil, fault.New(fault.Limit, "%d hosts were added to this cluster, and there are no more numbers", v.numbers)
	}
	e, err := edit(hostPrefix+name, &Host{Name: name, Cluster: cluster, Number: v.numbers + 1, Links: links}, nil)
	if err != nil {
		return nil, err
	}
	// In one step: a number that was used is used up, whatever becomes of the host.
	return []quorum.Edit{e, {Key: numberKey, Value: []byte(strconv.Itoa(int(v.numbers) + 1))}}, nil
}

// SetLinks changes a host's links.
func (v *View) SetLinks(name string, links Links) ([]quorum.Edit, error) {
	h, err := find(v, v.Hosts, hostPrefix, name)
	if err != nil || h.Links == links {
		return nil, err
	}
	if err := links.check(); err != nil {
		return nil, err
	}
	next := *h
	next.Links = links
	return one(edit(hostPrefix+name, &next, h))
}

// SetMaintenance takes a host into maintenance or out of it. Its machines leave
// it for other hosts, if there are some that have the memory.
func (v *View) SetMaintenance(name string, on bool) ([]quorum.Edit, error) {
	h, err := find(v, v.Hosts, hostPrefix, name)
	if err != nil || h.Maintenance == on {
		return nil, err
	}
	next := *h
	next.Maintenance = on
	return one(edit(hostPrefix+name, &next, h))
}

// RemoveHost takes out a host that runs no machines. Its life goes with it: one
// that comes back under its name is another, with another number.
func (v *View) RemoveHost(name string) ([]quorum.Edit, error) {
	if _, err := find(v, v.Hosts, hostPrefix, name); err != nil {
		return nil, err
	}
	if err := v.complete(machinePrefix, placementPrefix); err != nil {
		return nil, err
	}
	if m, ok := first(v.Placements, func(p *Placement) bool { return p.Active() && p.Host == name }); ok {
		return nil, fault.New(fault.Busy, "host %q runs the machine %q; have it leave first: \"steadfast host maintenance %s\", or \"steadfast vm stop %s\"", name, m, name, m)
	}
	if m, ok := first(v.Placements, func(p *Placement) bool { return p.Second != nil && p.Second.Host == name }); ok {
		return nil, fault.New(fault.Busy, "host %q runs the secondary of the machine %q; have it leave first: \"steadfast host maintenance %s\", or \"steadfast ft migrate-secondary %s\"", name, m, name, m)
	}
	if m, ok := first(v.Machines, func(m *Machine) bool { return m.Host == name }); ok {
		return nil, fault.New(fault.Busy, "the machine %q prefers the host %q; have it prefer another, or none, first: \"steadfast vm set %s --host=\"", m, name, m)
	}
	edits := []quorum.Edit{{Key: hostPrefix + name}}
	if err := v.readable(lifePrefix + name); err != nil {
		return nil, err
	}
	if v.Lives[name] != nil {
		edits = append(edits, quorum.Edit{Key: lifePrefix + name})
	}
	return edits, nil
}

// AddDatastore makes a resource group a datastore.
func (v *View) AddDatastore(name, datacenter, group string) ([]quorum.Edit, error) {
	if err := fresh(v, v.Datastores, datastorePrefix, name, DatastoresMax); err != nil {
		return nil, err
	}
	if _, err := find(v, v.Datacenters, datacenterPrefix, datacenter); err != nil {
		return nil, err
	}
	if err := v.complete(datastorePrefix, groupPrefix+group); err != nil {
		return nil, err
	}
	if _, ok := v.Groups[group]; !ok {
		return nil, fault.New(fault.NotFound, "there is no resource group %q; create it first: \"steadfast group create %s\"", group, group)
	}
	if d, ok := first(v.Datastores, func(d *Datastore) bool { return d.Group == group }); ok {
		return nil, fault.New(fault.Exists, "the resource group %q is the datastore %q already", group, d)
	}
	return one(edit(datastorePrefix+name, &Datastore{Name: name, Datacenter: datacenter, Group: group}, nil))
}

// RemoveDatastore takes out a datastore without machines. Its group and volumes
// stay.
func (v *View) RemoveDatastore(name string) ([]quorum.Edit, error) {
	if _, err := find(v, v.Datastores, datastorePrefix, name); err != nil {
		return nil, err
	}
	if err := v.complete(machinePrefix); err != nil {
		return nil, err
	}
	if m, ok := first(v.Machines, func(m *Machine) bool { return m.Datastore == name }); ok {
		return nil, fault.New(fault.Busy, "the datastore %q has the machine %q; delete it first: \"steadfast vm delete %s\"", name, m, m)
	}
	return []quorum.Edit{{Key: datastorePrefix + name}}, nil
}

// check fails with fault.Invalid.
func (l Links) check() error {
	for _, s := range []string{l.Management, l.Migration, l.Logging} {
		if len(s) > linkMax || !graphic(s, false) {
			return fault.New(fault.Invalid, "%.200q is no address of a link: at most %d letters, and no spaces", s, linkMax)
		}
	}
	return nil
}

// graphic tells whether s is of printable ASCII.
func graphic(s string, spaces bool) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e || s[i] == ' ' && !spaces {
			return false
		}
	}
	return true
}

// first returns the first name, in their order, whose document is so.
func first[T any](in map[string]*T, so func(*T) bool) (string, bool) {
	for _, name := range slices.Sorted(maps.Keys(in)) {
		if so(in[name]) {
			return name, true
		}
	}
	return "", false
}
