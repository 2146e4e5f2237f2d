package node

import (
	"context"
	"fmt"
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
	damage     error // of the lock block
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
		switch {
		case fault.Is(err, fault.Corrupt):
			f.damage, err = err, nil
		case err == nil && f.lock.VM != h.ID():
			f.damage = fault.New(fault.Corrupt, "it is that of the machine %s", f.lock.VM)
		}
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
	switch {
	case fault.Is(err, fault.NotFound):
		return nil, fault.Wrap(fault.NotFound, err, "volume "+req.Home+" (\"steadfast vm register\" lists those that are homes)")
	case err != nil:
		return nil, fault.Wrap(fault.KindOf(err), err, "volume "+req.Home)
	}
	switch machine, used, err := v.UsedBy(spec.Name, req.Home); {
	case err != nil:
		return nil, err
	case used:
		return nil, fault.New(fault.Exists, "volume %q is that of the machine %q, which is registered; see \"steadfast vm show %s\"", req.Home, machine, machine)
	}
	d := f.definition
	m := inventory.Machine{
		Name: d.Name, ID: d.ID, Cluster: cluster, Datastore: store, Home: req.Home,
		Hardware: d.Hardware, Policy: d.Policy, Floor: f.lock.Generation,
	}
	set(&m.Name, named(req.Name))
	if _, err := v.CreateMachine(m); err != nil {
		return nil, err // before anything is changed
	}
	for _, vol := range volumesOf(spec, m.Volumes()) {
		if mapped := n.state.Mappings(func(o control.Mapping) bool { return o.Volume == vol.ID }); len(mapped) > 0 {
			return nil, fault.New(fault.Busy, "volume %q of the machine %q is mapped to %s; take that away first: \"steadfast volume unmap %s --initiator %s\"", vol.Name, m.Name, mapped[0].Initiator, vol.Name, mapped[0].Initiator)
		}
	}
	if f.damage != nil {
		if m.Floor, err = n.resetLock(ctx, c, spec.Name, m, f.damage, req.ResetLock); err != nil {
			return nil, err
		}
	}
	v, err = n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateMachine(m) })
	if err != nil {
		return nil, err
	}
	n.publishMachine("machine-registered", m.Name, "machine %q was registered from volume %q", m.Name, req.Home)
	return &steadfastv1.RegisterMachineResponse{Machine: n.describeMachine(v, m.Name)}, nil
}

// resetLock makes the damaged lock block of a machine anew that is to be registered, when a
// person has said what is given up by that. It returns the generation of the new one.
func (n *Node) resetLock(ctx context.Context, c *cluster, group string, m inventory.Machine, damage error, said string) (generation uint64, err error) {
	if price := "no-host-runs-" + m.Name; said != price {
		return 0, fault.New(fault.Corrupt, "the lock block on volume %q is damaged (%v), so nothing tells whether a host runs the machine still: one of another site, or one that is cut off. "+
			"To make it anew takes the machine away from such a host, and what both have written is on its disks. If none runs it, say --reset-lock %s", m.Home, damage, price)
	}
	id, err := vmlock.ParseID(m.ID)
	if err != nil {
		return 0, err
	}
	var volumes []host.Volume
	defer func() {
		for _, v := range volumes {
			_ = v.Close() // what was asked of it was answered
		}
	}()
	for _, name := range m.Volumes() {
		v, err := openSoon(ctx, c, host.At{Group: group, Volume: name})
		if err != nil {
			return 0, err
		}
		volumes = append(volumes, v)
	}
	// What waits for storage ends when ctx does.
	defer context.AfterFunc(ctx, func() {
		for _, v := range volumes {
			_ = v.Close()
		}
	})()
	generation, err = host.ResetLock(ctx, id, vmlock.Owner{Host: inventory.EditorNumber, Boot: inventory.EditorBoot}, volumes)
	if err != nil {
		return 0, fault.Wrap(fault.KindOf(err), err, "making the lock block of "+m.Home+" anew; try again")
	}
	n.events.publish(&steadfastv1.Event{
		Severity: severityWarning, Kind: "machine-lock-reset", Machine: m.Name,
		Text: fmt.Sprintf("the damaged lock block of machine %q was made anew, with generation %d", m.Name, generation),
	})
	return generation, nil
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

// groupOf returns the group that has a machine's volumes. Fails with fault.Stale when only a newer
// program can read of its datastore.
func (n *Node) groupOf(v *inventory.View, m *inventory.Machine) (*cluster, *ha.Spec, error) {
	d := v.Datastores[m.Datastore]
	if d == nil {
		return nil, nil, fault.New(fault.Stale, "this program cannot read of the datastore %q; upgrade this node, or ask another", m.Datastore)
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
	if f.damage != nil {
		out.Problem = "its lock block is damaged; what to do: \"steadfast vm register " + at.Volume + "\""
	}
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
