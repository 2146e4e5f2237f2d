package node

import (
	"context"
	"slices"
	"sync"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/host"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
	"steadfast/node/control"
	"steadfast/node/ha"
)

// Of the search for homes.
const (
	// lookTime bounds how long one volume is looked at, and looksMax how many at once.
	lookTime = 5 * time.Second
	looksMax = 8
)

// found is what a home volume says.
type found struct {
	definition vmhome.Definition
	lock       vmlock.Block
}

// readHome reads a home volume. Fails with fault.NotFound for what is none, or has no definition.
func readHome(ctx context.Context, c *cluster, at host.At) (f found, err error) {
	err = withVolume(ctx, c, at, func(dev host.Volume) error {
		h, err := vmhome.Open(dev)
		if err != nil {
			return err
		}
		d, ok := h.Definition()
		if !ok {
			return fault.New(fault.NotFound, "it has no definition: its machine was not made to its end; delete it: \"steadfast volume delete %s\"", at.Volume)
		}
		f.definition = d
		f.lock, err = vmhome.ReadLock(dev)
		return err
	})
	return f, err
}

// RegisterMachine implements the API's call. What is entered is what the home says, with a
// generation above all that its lock has seen: a host of another site that still runs the
// machine loses its lock when this one is started.
func (s machineService) RegisterMachine(ctx context.Context, req *steadfastv1.RegisterMachineRequest) (*steadfastv1.RegisterMachineResponse, error) {
	n := s.n
	if err := n.atStorage(ctx); err != nil {
		return nil, err
	}
	v, err := n.site()
	if err != nil {
		return nil, err
	}
	store, err := onlyOneOr("datastore", "add", req.Datastore, v.Datastores)
	if err != nil {
		return nil, err
	}
	cluster, err := onlyOne("cluster", req.Cluster, v.Clusters)
	if err != nil {
		return nil, err
	}
	c, spec, err := n.datastoresGroup(v, store)
	if err != nil {
		return nil, err
	}
	f, err := readHome(ctx, c, host.At{Group: spec.Name, Volume: req.Home})
	if err != nil {
		return nil, fault.Wrap(fault.KindOf(err), err, "volume "+req.Home)
	}
	d := f.definition
	m := inventory.Machine{
		Name: d.Name, ID: d.ID, Cluster: cluster, Datastore: store, Home: req.Home,
		Hardware: d.Hardware, Policy: d.Policy, Floor: f.lock.Generation,
	}
	set(&m.Name, named(req.Name))
	for _, vol := range volumesOf(spec, m.Volumes()) {
		if mapped := n.state.Mappings(func(o control.Mapping) bool { return o.Volume == vol.ID }); len(mapped) > 0 {
			return nil, fault.New(fault.Busy, "volume %q of the machine %q is mapped to %s; take that away first: \"steadfast volume unmap %s --initiator %s\"", vol.Name, m.Name, mapped[0].Initiator, vol.Name, mapped[0].Initiator)
		}
	}
	v, err = n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateMachine(m) })
	if err != nil {
		return nil, err
	}
	n.publishMachine("machine-registered", m.Name, "machine %q was registered from volume %q", m.Name, req.Home)
	return &steadfastv1.RegisterMachineResponse{Machine: n.describeMachine(v, m.Name)}, nil
}

// named returns a name that was given, or nil.
func named(name string) *string {
	if name == "" {
		return nil
	}
	return &name
}

// datastoresGroup returns the group that a datastore is.
func (n *Node) datastoresGroup(v *inventory.View, store string) (*cluster, *ha.Spec, error) {
	d := v.Datastores[store]
	if d == nil {
		return nil, nil, unknown("datastore", store, "datastore list", namesWhere(v.Datastores, func(*inventory.Datastore) bool { return true }))
	}
	return n.findSpec(d.Group)
}

// ListHomes implements the API's call. Volumes that machines have as disks are not looked at.
func (s machineService) ListHomes(ctx context.Context, req *steadfastv1.ListHomesRequest) (*steadfastv1.ListHomesResponse, error) {
	n := s.n
	if err := n.atStorage(ctx); err != nil {
		return nil, err
	}
	v, err := n.site()
	if err != nil {
		return nil, err
	}
	store, err := onlyOneOr("datastore", "add", req.Datastore, v.Datastores)
	if err != nil {
		return nil, err
	}
	c, spec, err := n.datastoresGroup(v, store)
	if err != nil {
		return nil, err
	}
	homes, disks := map[string]*inventory.Machine{}, map[string]bool{}
	for _, m := range v.Machines {
		if d := v.Datastores[m.Datastore]; d == nil || d.Group != spec.Name {
			continue
		}
		homes[m.Home] = m
		for _, d := range m.Disks {
			disks[d.Volume] = true
		}
	}
	list := make([]*steadfastv1.MachineHome, len(spec.Volumes))
	var all sync.WaitGroup
	looks := make(chan struct{}, looksMax)
	for i, vol := range spec.Volumes {
		if m := homes[vol.Name]; m != nil {
			list[i] = &steadfastv1.MachineHome{Volume: vol.Name, Machine: m.Name, Id: m.ID, Registered: true}
		}
		if list[i] != nil || disks[vol.Name] {
			continue
		}
		looks <- struct{}{}
		all.Go(func() {
			defer func() { <-looks }()
			list[i] = lookAt(ctx, c, host.At{Group: spec.Name, Volume: vol.Name})
		})
	}
	all.Wait()
	list = slices.DeleteFunc(list, func(h *steadfastv1.MachineHome) bool { return h == nil })
	return &steadfastv1.ListHomesResponse{Homes: list}, ctx.Err()
}

// lookAt describes a volume that may be a home; nil: it is none.
func lookAt(ctx context.Context, c *cluster, at host.At) *steadfastv1.MachineHome {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	out := &steadfastv1.MachineHome{Volume: at.Volume}
	f, err := readHome(ctx, c, at)
	switch {
	case fault.Is(err, fault.NotFound) && isNoHome(ctx, c, at):
		return nil
	case err != nil:
		out.Problem = err.Error()
		return out
	}
	out.Machine, out.Id = f.definition.Name, f.definition.ID
	return out
}

// isNoHome tells a volume of something else from a home without a definition.
func isNoHome(ctx context.Context, c *cluster, at host.At) bool {
	err := withVolume(ctx, c, at, func(dev host.Volume) error {
		_, err := vmhome.Open(dev)
		return err
	})
	return fault.Is(err, fault.NotFound)
}
