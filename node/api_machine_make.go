package node

import (
	"context"
	"crypto/rand"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/block"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/host"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
	"steadfast/node/ha"
	"steadfast/san/store"
)

// bootBytes is the room that a kernel or an initial RAM disk has at least, in bytes.
const bootBytes = 64 << 20

// macPrefix begins the addresses that are made for network cards: locally administered
// (IEEE 802, 8.4), and "SF".
var macPrefix = [3]byte{0x02, 0x53, 0x46}

// newMAC returns an address that no machine of the inventory has, and none of those taken.
func newMAC(v *inventory.View, taken []inventory.Net) string {
	for {
		mac := [6]byte{macPrefix[0], macPrefix[1], macPrefix[2]}
		_, _ = rand.Read(mac[3:]) // it never fails
		text := inventory.FormatMAC(mac)
		has := func(n inventory.Net) bool { return n.MAC == text }
		used := slices.ContainsFunc(taken, has)
		for _, m := range v.Machines {
			used = used || slices.ContainsFunc(m.Nets, has)
		}
		if !used {
			return text
		}
	}
}

// netsOf reads network cards. One without an address gets one.
func netsOf(v *inventory.View, have []inventory.Net, list []*steadfastv1.MachineNet) []inventory.Net {
	out := slices.Clone(have)
	for _, c := range list {
		mac := strings.ToLower(c.GetMac())
		if mac == "" {
			mac = newMAC(v, out)
		}
		out = append(out, inventory.Net{MAC: mac, Network: c.GetNetwork()})
	}
	return out
}

// disksOf reads disks of a machine, and the volumes for them.
func disksOf(machine string, list []*steadfastv1.MachineDisk) (disks []inventory.Disk, volumes []ha.Volume, err error) {
	for _, d := range list {
		volume := diskVolume(machine, d.GetName())
		if volume == homeVolume(machine) {
			return nil, nil, fault.New(fault.Invalid, "a disk cannot be called \"home\": the volume of that name has the machine's definition; choose another name")
		}
		disks = append(disks, inventory.Disk{Name: d.GetName(), Volume: volume, Bytes: d.GetBytes()})
		volumes = append(volumes, ha.Volume{Name: volume, Size: volumeBytes(d.GetBytes())})
	}
	return disks, volumes, nil
}

// volumeBytes is the size of a volume for a disk of so many bytes.
func volumeBytes(disk int64) int64 { return max((disk+4095)/4096*4096, store.VolumeSizeMin) }

// withVolumes returns a view in which a group has more volumes, or larger ones, than it has:
// what is to be made is held to the inventory's rules before it is made.
func withVolumes(v *inventory.View, group string, volumes []ha.Volume) *inventory.View {
	out := *v
	out.Groups = maps.Clone(v.Groups)
	all := maps.Clone(v.Groups[group].Volumes)
	if all == nil {
		all = map[string]int64{}
	}
	for _, vol := range volumes {
		all[vol.Name] = max(all[vol.Name], vol.Size)
	}
	if _, there := out.Groups[group]; there {
		out.Groups[group] = inventory.Group{Volumes: all}
	}
	return &out
}

// planned is a machine that is to be made.
type planned struct {
	inventory.Machine
	group   string
	volumes []ha.Volume // the home first
}

// plan makes of a request what it asks for, and holds it to the rules.
func plan(v *inventory.View, req *steadfastv1.CreateMachineRequest) (p planned, err error) {
	m := inventory.Machine{
		Name: req.Name, Home: homeVolume(req.Name), Policy: inventory.Policy(req.Policy), Host: req.PreferredHost,
		Hardware: inventory.Hardware{Memory: req.Memory, CommandLine: req.CommandLine, Nets: netsOf(v, nil, req.Nets)},
	}
	if m.Cluster, err = onlyOne("cluster", req.Cluster, v.Clusters); err != nil {
		return p, err
	}
	if m.Datastore, err = onlyOneOr("datastore", "add", req.Datastore, v.Datastores); err != nil {
		return p, err
	}
	var id vmlock.ID
	_, _ = rand.Read(id[:]) // it never fails
	m.ID = id.String()
	for _, bytes := range []int64{req.KernelBytes, req.InitrdBytes} {
		if bytes < 0 || bytes > vmhome.FileBytesMax {
			return p, fault.New(fault.Invalid, "room for a kernel or an initial RAM disk of %d bytes: at most %d", bytes, vmhome.FileBytesMax)
		}
	}
	p.volumes = []ha.Volume{{Name: m.Home, Size: vmhome.SizeFor(max(bootBytes, req.KernelBytes), max(bootBytes, req.InitrdBytes))}}
	disks, volumes, err := disksOf(req.Name, req.Disks)
	if err != nil {
		return p, err
	}
	m.Disks, p.volumes = disks, append(p.volumes, volumes...)
	if d := v.Datastores[m.Datastore]; d != nil {
		p.group = d.Group
	}
	p.Machine = m
	_, err = withVolumes(v, p.group, p.volumes).CreateMachine(m)
	return p, err
}

// CreateMachine implements the API's call. The volumes come first and the document last: what
// a crash leaves is volumes that no machine has, which the next try names.
func (s machineService) CreateMachine(ctx context.Context, req *steadfastv1.CreateMachineRequest) (*steadfastv1.CreateMachineResponse, error) {
	n := s.n
	if err := n.atStorage(ctx); err != nil {
		return nil, err
	}
	v, err := n.site()
	if err != nil {
		return nil, err
	}
	p, err := plan(v, req)
	if err != nil {
		return nil, err
	}
	c, _, err := n.findSpec(p.group)
	if err != nil {
		return nil, err
	}
	made, err := n.makeVolumes(ctx, c, p.group, p.volumes)
	if err != nil {
		return nil, err
	}
	err = formatHome(ctx, c, p)
	if err == nil {
		v, err = n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateMachine(p.Machine) })
	}
	if err != nil {
		return nil, n.undoVolumes(ctx, c, p.group, made, err)
	}
	n.publishMachine("machine-created", p.Name, "machine %q was created in datastore %q", p.Name, p.Datastore)
	return &steadfastv1.CreateMachineResponse{Machine: n.describeMachine(v, p.Name)}, nil
}

// formatHome makes the home of a new machine, of which nobody knows yet.
func formatHome(ctx context.Context, c *cluster, p planned) error {
	id, err := vmlock.ParseID(p.ID)
	if err != nil {
		return err
	}
	return withVolume(ctx, c, host.At{Group: p.group, Volume: p.Home}, func(dev host.Volume) error {
		if err := vmhome.Format(dev, id, 0); err != nil {
			return err
		}
		h, err := vmhome.Open(dev)
		if err != nil {
			return err
		}
		policy := p.Policy
		if policy == "" {
			policy = inventory.Restart
		}
		return h.Save(vmhome.Definition{Name: p.Name, ID: p.ID, Hardware: p.Hardware, Policy: policy}, nil, nil)
	})
}

// onlyOneOr is onlyOne for what is made by another verb than "create".
func onlyOneOr[T any](kind, verb, given string, there map[string]*T) (string, error) {
	if given == "" && len(there) == 0 {
		return "", fault.New(fault.NotFound, "there is no %s yet; make one with \"steadfast %s %s\"", kind, kind, verb)
	}
	return onlyOne(kind, given, there)
}

// DeleteMachine implements the API's call. The document goes first: it forbids that its volumes are
// deleted.
func (s machineService) DeleteMachine(ctx context.Context, req *steadfastv1.DeleteMachineRequest) (*steadfastv1.DeleteMachineResponse, error) {
	n := s.n
	if err := n.atStorageOf(ctx, req.Name); err != nil {
		return nil, err
	}
	v, m, err := n.findMachine(req.Name)
	if err != nil {
		return nil, err
	}
	if _, err := v.DeleteMachine(req.Name); err != nil {
		return nil, err // before anything is asked of others
	}
	c, spec, err := n.groupOf(v, m)
	if err != nil {
		return nil, err
	}
	volumes := volumesOf(spec, m.Volumes())
	if !req.KeepVolumes {
		if err := n.deletable(ctx, c, spec, volumes, req.WithSnapshots, ", or say --with-snapshots"); err != nil {
			return nil, err
		}
	}
	_, err = n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.DeleteMachine(req.Name) })
	if err != nil {
		return nil, err
	}
	n.publishMachine("machine-deleted", req.Name, "machine %q was deleted", req.Name)
	if req.KeepVolumes {
		return &steadfastv1.DeleteMachineResponse{Kept: m.Volumes()}, nil
	}
	if err := n.dropVolumes(ctx, c, spec.Name, volumes); err != nil {
		return nil, fault.Wrap(fault.KindOf(err), err, "the machine is deleted, and its volumes are there still; delete them: "+deleting(m.Volumes()))
	}
	return &steadfastv1.DeleteMachineResponse{}, nil
}

// volumesOf returns those of a group's volumes that have one of the names.
func volumesOf(spec *ha.Spec, names []string) (list []ha.Volume) {
	for _, v := range spec.Volumes {
		if slices.Contains(names, v.Name) {
			list = append(list, v)
		}
	}
	return list
}

// deleting names the commands that delete volumes.
func deleting(volumes []string) string {
	return "\"steadfast volume delete " + strings.Join(volumes, "\", \"steadfast volume delete ") + "\""
}

// SetMachine implements the API's call. Volumes are made and grown before the machine has
// them, and deleted when it has them no more.
func (s machineService) SetMachine(ctx context.Context, req *steadfastv1.SetMachineRequest) (*steadfastv1.SetMachineResponse, error) {
	n := s.n
	if err := n.atStorageOf(ctx, req.Name); err != nil {
		return nil, err
	}
	v, m, err := n.findMachine(req.Name)
	if err != nil {
		return nil, err
	}
	ch, err := changeOf(v, m, req)
	if err != nil {
		return nil, err
	}
	c, spec, err := n.groupOf(v, m)
	if err != nil {
		return nil, err
	}
	// What is against the rules is refused before anything is made.
	if _, err := withVolumes(v, spec.Name, append(slices.Clone(ch.add), ch.grow...)).ChangeMachine(m.Name, ch.apply); err != nil {
		return nil, err
	}
	gone := volumesOf(spec, ch.removed)
	if err := n.deletable(ctx, c, spec, gone, false, ""); err != nil {
		return nil, err
	}
	var made []ha.Volume
	if len(ch.add) > 0 {
		if made, err = n.makeVolumes(ctx, c, spec.Name, ch.add); err != nil {
			return nil, err
		}
	}
	for _, g := range ch.grow {
		if err := n.growVolume(ctx, c, spec.Name, g.Name, g.Size); err != nil {
			return nil, n.undoVolumes(ctx, c, spec.Name, made, err)
		}
	}
	v, err = n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) { return v.ChangeMachine(m.Name, ch.apply) })
	if err != nil {
		return nil, n.undoVolumes(ctx, c, spec.Name, made, err)
	}
	n.publishMachine("machine-changed", m.Name, "machine %q was changed: %s", m.Name, strings.Join(ch.what, ", "))
	behind := n.redefine(ctx, m, v.Machines[m.Name])
	err = n.dropVolumes(ctx, c, spec.Name, gone)
	if err != nil {
		err = fault.Wrap(fault.KindOf(err), err, "the disks are taken out, and their volumes are there still; delete them: "+deleting(ch.removed))
	}
	return &steadfastv1.SetMachineResponse{Machine: n.describeMachine(v, m.Name), HomeBehind: behind}, err
}

// redefine has the home volume of a machine that was changed say so, for whoever registers
// the machine from its volumes some day. It returns why that could not be done now, which
// harms nothing: the machine's next start does it. One that runs is left to its host.
func (n *Node) redefine(ctx context.Context, was, is *inventory.Machine) (why string) {
	if is == nil || reflect.DeepEqual(was.Hardware, is.Hardware) && was.Policy == is.Policy {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, redefineTime)
	defer cancel()
	err := n.editMachine(ctx, is.Name, func(m *inventory.Machine, home *vmhome.Home, _ []block.Device) error {
		d, _ := home.Definition()
		define(&d, m)
		return home.Save(d, nil, nil)
	})
	switch {
	case err == nil, fault.Is(err, fault.Busy) && n.runs(is.Name), fault.Is(err, fault.Fenced):
		return ""
	}
	n.log.Warn("the home volume of a machine does not say yet how the machine was changed", "machine", is.Name, "error", err)
	return err.Error()
}

// redefineTime bounds how long a change of a machine waits for its home volume.
const redefineTime = 10 * time.Second

// runs tells whether a machine shall run, or runs.
func (n *Node) runs(machine string) bool {
	_, _, err := n.atRest(machine)
	return fault.Is(err, fault.Busy)
}

// machineChange is what a SetMachine comes to.
type machineChange struct {
	apply   func(*inventory.Machine) error
	what    []string    // for people
	add     []ha.Volume // to be made
	grow    []ha.Volume // to have at least this size
	removed []string    // volumes
}

// changeOf reads a SetMachine.
func changeOf(v *inventory.View, m *inventory.Machine, req *steadfastv1.SetMachineRequest) (ch machineChange, err error) {
	added, volumes, err := disksOf(m.Name, req.AddDisks)
	if err != nil {
		return ch, err
	}
	ch.add = volumes
	taken := m.Nets
	nets := netsOf(v, taken, req.AddNets)[len(taken):]
	for _, name := range req.RemoveDisks {
		k := slices.IndexFunc(m.Disks, func(d inventory.Disk) bool { return d.Name == name })
		if k < 0 {
			return ch, noDisk(m, name)
		}
		ch.removed = append(ch.removed, m.Disks[k].Volume)
	}
	for _, g := range req.GrowDisks {
		k := slices.IndexFunc(m.Disks, func(d inventory.Disk) bool { return d.Name == g.GetName() })
		if k < 0 {
			return ch, noDisk(m, g.GetName())
		}
		ch.grow = append(ch.grow, ha.Volume{Name: m.Disks[k].Volume, Size: volumeBytes(g.GetBytes())})
	}
	for _, mac := range req.RemoveNets {
		if !slices.ContainsFunc(m.Nets, func(n inventory.Net) bool { return n.MAC == strings.ToLower(mac) }) {
			return ch, fault.New(fault.NotFound, "the machine %q has no network card %q; see \"steadfast vm show %s\"", m.Name, mac, m.Name)
		}
	}
	for _, w := range []struct {
		is   bool
		text string
	}{
		{req.Memory != nil, "memory"},
		{req.CommandLine != nil, "kernel command line"},
		{req.Policy != nil, "policy"},
		{req.PreferredHost != nil, "preferred host"},
		{req.Cluster != nil, "cluster"},
		{len(req.AddDisks)+len(req.GrowDisks)+len(req.RemoveDisks) > 0, "disks"},
		{len(req.AddNets)+len(req.RemoveNets) > 0, "network cards"},
	} {
		if w.is {
			ch.what = append(ch.what, w.text)
		}
	}
	if len(ch.what) == 0 {
		return ch, fault.New(fault.Invalid, "nothing to change; see \"steadfast vm set --help\"")
	}
	ch.apply = func(next *inventory.Machine) error {
		set(&next.Memory, req.Memory)
		set(&next.CommandLine, req.CommandLine)
		set(&next.Host, req.PreferredHost)
		set(&next.Cluster, req.Cluster)
		if req.Policy != nil {
			next.Policy = inventory.Policy(*req.Policy)
		}
		next.Disks = slices.DeleteFunc(next.Disks, func(d inventory.Disk) bool { return slices.Contains(req.RemoveDisks, d.Name) })
		for i, d := range next.Disks {
			for _, g := range req.GrowDisks {
				if g.GetName() == d.Name {
					next.Disks[i].Bytes = g.GetBytes()
				}
			}
		}
		next.Disks = append(next.Disks, added...)
		next.Nets = slices.DeleteFunc(next.Nets, func(n inventory.Net) bool {
			return slices.ContainsFunc(req.RemoveNets, func(mac string) bool { return strings.ToLower(mac) == n.MAC })
		})
		next.Nets = append(next.Nets, nets...)
		return nil
	}
	return ch, nil
}

func noDisk(m *inventory.Machine, name string) error {
	return fault.New(fault.NotFound, "the machine %q has no disk %q; see \"steadfast vm show %s\"", m.Name, name, m.Name)
}

// set changes what a request names.
func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}
