package inventory

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// CreateMachine enters a machine, which does not run yet. Its volumes are there
// before: a crash between leaves volumes that nobody uses, and never a machine
// without. Also for a machine that is registered from its home volume, with the
// generation of its lock block as Floor. Fails as CreateDatacenter does.
func (v *View) CreateMachine(m Machine) ([]quorum.Edit, error) {
	if err := fresh(v, v.Machines, machinePrefix, m.Name, MachinesMax); err != nil {
		return nil, err
	}
	next := m.clone()
	next.Desired, next.Run, next.Resets, next.FT = Stopped, 0, 0, FTOff
	if next.Policy == "" {
		next.Policy = Restart
	}
	if err := v.checkMachine(next); err != nil {
		return nil, err
	}
	return one(edit(machinePrefix+m.Name, next, nil))
}

// ChangeMachine changes a machine: change edits a copy. While the machine runs,
// only what it notices nothing of may change: how its host's loss is met, which
// host it prefers, and disks that grow, which its guest sees at its next start.
// Name, identifier, datastore and home never change, and disks never shrink.
// What is wanted of the machine is changed by Start, Stop, Reset and SetFT. Fails
// as CreateDatacenter does.
func (v *View) ChangeMachine(name string, change func(*Machine) error) ([]quorum.Edit, error) {
	m, err := find(v, v.Machines, machinePrefix, name)
	if err != nil {
		return nil, err
	}
	next := m.clone()
	if err := change(next); err != nil {
		return nil, err
	}
	if err := v.readable(placementPrefix + name); err != nil {
		return nil, err
	}
	switch {
	case next.Name != m.Name || next.ID != m.ID:
		return nil, fault.New(fault.Invalid, "a machine keeps its name and identifier; export %q and import it under another name", name)
	case next.Datastore != m.Datastore || next.Home != m.Home:
		return nil, fault.New(fault.Invalid, "the machine %q keeps its datastore and home volume; export it, and import it into another", name)
	case next.FT != m.FT:
		return nil, fault.New(fault.Invalid, "\"steadfast ft\" says how a machine is protected")
	case next.Desired != m.Desired || next.Run != m.Run || next.Resets != m.Resets || next.Floor != m.Floor:
		return nil, fault.New(fault.Invalid, "\"steadfast vm start\", \"stop\" and \"reset\" say what a machine is to do")
	}
	for _, d := range next.Disks {
		k := slices.IndexFunc(m.Disks, func(o Disk) bool { return o.Volume == d.Volume })
		if k >= 0 && d.Bytes < m.Disks[k].Bytes {
			return nil, fault.New(fault.Invalid, "the disk %q has %d bytes, and cannot shrink to %d", d.Name, m.Disks[k].Bytes, d.Bytes)
		}
	}
	if v.runs(m) {
		if what := fixed(m, next); what != "" {
			return nil, fault.New(fault.Busy, "the %s of the machine %q cannot be changed while it runs; stop it first: \"steadfast vm stop %s\"", what, name, name)
		}
	}
	if err := v.checkMachine(next); err != nil {
		return nil, err
	}
	return one(edit(machinePrefix+name, next, m))
}

// fixed names what a change would change under a running guest.
func fixed(m, next *Machine) string {
	sizeless := func(list []Disk) []Disk {
		list = slices.Clone(list)
		for i := range list {
			list[i].Bytes = 0
		}
		return list
	}
	switch {
	case next.Cluster != m.Cluster:
		return "cluster"
	case next.Memory != m.Memory:
		return "memory"
	case next.CommandLine != m.CommandLine:
		return "kernel command line"
	case !slices.Equal(next.Nets, m.Nets):
		return "network cards"
	case !slices.Equal(sizeless(next.Disks), sizeless(m.Disks)):
		return "disks"
	}
	return ""
}

// ReserveGeneration reserves a generation of a machine that has stopped, above all that
// there were: whoever it is given to takes the machine's lock with it to write into its
// volumes, as EditorNumber. A placement that is decided later has a greater
// one, and fences that. Fails with fault.Busy while the machine runs.
func (v *View) ReserveGeneration(name string) (generation uint64, edits []quorum.Edit, err error) {
	m, err := find(v, v.Machines, machinePrefix, name)
	if err != nil {
		return 0, nil, err
	}
	if err := v.readable(placementPrefix + name); err != nil {
		return 0, nil, err
	}
	if v.runs(m) {
		return 0, nil, fault.New(fault.Busy, "the machine %q runs; stop it first: \"steadfast vm stop %s\"", name, name)
	}
	next := m.clone()
	if p := v.Placements[name]; p != nil {
		next.Floor = max(next.Floor, p.Generation)
	}
	next.Floor++
	if err := next.check(); err != nil {
		return 0, nil, err // there is none left
	}
	edits, err = one(edit(machinePrefix+name, next, m))
	return next.Floor, edits, err
}

// runs tells whether a machine shall run, or some host still sees to its end.
func (v *View) runs(m *Machine) bool {
	return m.Desired == Running || v.Placements[m.Name].Active()
}

// Start has a machine run. One that runs already goes on.
func (v *View) Start(name string) ([]quorum.Edit, error) {
	m, err := find(v, v.Machines, machinePrefix, name)
	if err != nil || m.Desired == Running {
		return nil, err
	}
	if err := v.readable(placementPrefix + name); err != nil {
		return nil, err
	}
	if p := v.Placements[name]; p.Active() {
		return nil, fault.New(fault.Busy, "the machine %q is still being stopped by the host %q; start it when \"steadfast vm show %s\" says that it has stopped, or end it at once: \"steadfast vm stop %s --force\"", name, p.Host, name, name)
	}
	next := m.clone()
	next.Desired = Running
	next.Run++ // the restarts and the ending of the run before are its own
	return one(edit(machinePrefix+name, next, m))
}

// Stop has a machine stop: its host presses its power button.
func (v *View) Stop(name string) ([]quorum.Edit, error) {
	m, err := find(v, v.Machines, machinePrefix, name)
	if err != nil || m.Desired != Running {
		return nil, err
	}
	next := m.clone()
	next.Desired = Stopped
	return one(edit(machinePrefix+name, next, m))
}

// PowerOff has a machine stop at once: its host ends its process, as a loss of power would
// end it, also when it is being stopped already. One that no host has is stopped as by Stop.
func (v *View) PowerOff(name string) ([]quorum.Edit, error) {
	m, err := find(v, v.Machines, machinePrefix, name)
	if err != nil {
		return nil, err
	}
	if err := v.readable(placementPrefix + name); err != nil {
		return nil, err
	}
	if !v.Placements[name].Active() {
		return v.Stop(name)
	}
	if m.Desired == Off {
		return nil, nil
	}
	next := m.clone()
	next.Desired = Off
	return one(edit(machinePrefix+name, next, m))
}

// Reset has a machine begin anew, on its host and under its lock.
func (v *View) Reset(name string) ([]quorum.Edit, error) {
	m, err := find(v, v.Machines, machinePrefix, name)
	if err != nil {
		return nil, err
	}
	if m.Desired != Running {
		return nil, fault.New(fault.Busy, "the machine %q does not run; start it: \"steadfast vm start %s\"", name, name)
	}
	next := m.clone()
	next.Resets++
	return one(edit(machinePrefix+name, next, m))
}

// DeleteMachine deletes a machine that has stopped. Its volumes stay until they
// are deleted, which its document would forbid.
func (v *View) DeleteMachine(name string) ([]quorum.Edit, error) {
	m, err := find(v, v.Machines, machinePrefix, name)
	if err != nil {
		return nil, err
	}
	if err := v.readable(placementPrefix + name); err != nil {
		return nil, err
	}
	if v.runs(m) {
		return nil, fault.New(fault.Busy, "the machine %q runs; stop it first: \"steadfast vm stop %s\"", name, name)
	}
	edits := []quorum.Edit{{Key: machinePrefix + name}}
	if v.Placements[name] != nil {
		edits = append(edits, quorum.Edit{Key: placementPrefix + name})
	}
	return edits, nil
}

// checkMachine holds a machine to the rules: its own, and against all else.
func (v *View) checkMachine(m *Machine) error {
	if err := m.check(); err != nil {
		return err
	}
	c, err := find(v, v.Clusters, clusterPrefix, m.Cluster)
	if err != nil {
		return err
	}
	d, err := find(v, v.Datastores, datastorePrefix, m.Datastore)
	if err != nil {
		return err
	}
	if c.Datacenter != d.Datacenter {
		return fault.New(fault.Invalid, "the cluster %q is in the datacenter %q, the datastore %q in %q: a machine needs both in one", c.Name, c.Datacenter, d.Name, d.Datacenter)
	}
	if m.Host != "" {
		h, err := find(v, v.Hosts, hostPrefix, m.Host)
		if err != nil {
			return err
		}
		if h.Cluster != m.Cluster {
			return fault.New(fault.Invalid, "the host %q is in the cluster %q, and the machine in %q", h.Name, h.Cluster, m.Cluster)
		}
	}
	if err := v.complete(machinePrefix, datastorePrefix, groupPrefix+d.Group); err != nil {
		return err
	}
	if err := v.checkVolumes(m, d); err != nil {
		return err
	}
	return v.checkOthers(m, d)
}

// checkVolumes holds a machine's volumes against those that its group has.
func (v *View) checkVolumes(m *Machine, d *Datastore) error {
	g, ok := v.Groups[d.Group]
	if !ok {
		return fault.New(fault.NotFound, "the datastore %q is the resource group %q, which does not exist", d.Name, d.Group)
	}
	for _, name := range m.Volumes() {
		if _, ok := g.Volumes[name]; !ok {
			return fault.New(fault.NotFound, "the resource group %q has no volume %q; see \"steadfast volume list\"", d.Group, name)
		}
	}
	for _, disk := range m.Disks {
		if has := g.Volumes[disk.Volume]; disk.Bytes > has {
			return fault.New(fault.Invalid, "the disk %q would have %d bytes, and its volume %q has %d; let it grow first: \"steadfast volume resize %s\"", disk.Name, disk.Bytes, disk.Volume, has, disk.Volume)
		}
	}
	return nil
}

// checkOthers holds a machine against the other machines.
func (v *View) checkOthers(m *Machine, d *Datastore) error {
	for name, o := range v.Machines {
		if name == m.Name {
			continue
		}
		if o.ID == m.ID {
			return fault.New(fault.Exists, "the machine %q has the identifier %s already", name, m.ID)
		}
		for _, n := range m.Nets {
			if slices.ContainsFunc(o.Nets, func(p Net) bool { return p.MAC == n.MAC }) {
				return fault.New(fault.Exists, "the machine %q has the address %s already", name, n.MAC)
			}
		}
		od := v.Datastores[o.Datastore]
		if od == nil || od.Group != d.Group {
			continue
		}
		for _, volume := range m.Volumes() {
			if slices.Contains(o.Volumes(), volume) {
				return fault.New(fault.Busy, "the machine %q has the volume %q already", name, volume)
			}
		}
	}
	return nil
}

// check holds what a machine's document says of itself alone.
func (m *Machine) check() error {
	id, err := hex.DecodeString(m.ID)
	switch {
	case err != nil || len(id) != 16 || m.ID != hex.EncodeToString(id):
		return fault.New(fault.Invalid, "%.80q is no identifier of a machine: 16 bytes in hex", m.ID)
	case m.Policy != Restart && m.Policy != Leave:
		return fault.New(fault.Invalid, "%.80q is not what can happen to a machine whose host is lost: %q or %q", m.Policy, Restart, Leave)
	case m.Floor >= GenerationMax:
		return fault.New(fault.Limit, "the machine was placed %d times, and cannot be placed again; export it and import it as another", m.Floor)
	}
	if err := checkVolume(m.Home); err != nil {
		return err
	}
	if err := m.Hardware.Check(); err != nil {
		return err
	}
	if slices.ContainsFunc(m.Disks, func(d Disk) bool { return d.Volume == m.Home }) {
		return fault.New(fault.Invalid, "the volume %q is the machine's home, and cannot be a disk", m.Home)
	}
	return nil
}

// Check fails with fault.Invalid for what no machine can be made up as.
func (h *Hardware) Check() error {
	switch {
	case h.Memory < MemoryMin || h.Memory > MemoryMax || h.Memory%memoryUnit != 0:
		return fault.New(fault.Invalid, "a machine with %d bytes of memory: it must be a multiple of %d, at least %d MiB and at most %d GiB", h.Memory, memoryUnit, MemoryMin>>20, uint64(MemoryMax)>>30)
	case len(h.Disks) > DisksMax || len(h.Nets) > NetsMax:
		return fault.New(fault.Invalid, "a machine with %d disks and %d network cards: at most %d and %d", len(h.Disks), len(h.Nets), DisksMax, NetsMax)
	case len(h.CommandLine) > CommandLineMax || !graphic(h.CommandLine, true):
		return fault.New(fault.Invalid, "a kernel command line is of at most %d printable ASCII letters", CommandLineMax)
	}
	for i, d := range h.Disks {
		if err := checkName("disk", d.Name); err != nil {
			return err
		}
		if err := checkVolume(d.Volume); err != nil {
			return err
		}
		if d.Bytes <= 0 || d.Bytes > sizeMax || d.Bytes%sectorSize != 0 {
			return fault.New(fault.Invalid, "the disk %q has %d bytes: it must be a multiple of %d", d.Name, d.Bytes, sectorSize)
		}
		if slices.ContainsFunc(h.Disks[:i], func(o Disk) bool { return o.Name == d.Name || o.Volume == d.Volume }) {
			return fault.New(fault.Invalid, "the disk %q or its volume %q is there twice", d.Name, d.Volume)
		}
	}
	for i, n := range h.Nets {
		if err := checkName("network", n.Network); err != nil {
			return err
		}
		if _, err := n.Address(); err != nil {
			return err
		}
		if slices.ContainsFunc(h.Nets[:i], func(o Net) bool { return o.MAC == n.MAC }) {
			return fault.New(fault.Invalid, "the address %s is there twice", n.MAC)
		}
	}
	return nil
}

// checkVolume holds the name of a volume to what the SAN takes.
func checkVolume(name string) error {
	if len(name) == 0 || len(name) > textMax || !graphic(name, false) {
		return fault.New(fault.Invalid, "%.200q is no name of a volume", name)
	}
	return nil
}

// Address returns the card's address. Fails with fault.Invalid.
func (n *Net) Address() (mac [6]byte, err error) {
	for i := range mac {
		if len(n.MAC) != 17 {
			break
		}
		b, perr := strconv.ParseUint(n.MAC[3*i:3*i+2], 16, 8)
		if perr != nil {
			break
		}
		mac[i] = byte(b)
	}
	// As it is written is how it is compared, so there is one way to write it.
	if FormatMAC(mac) != n.MAC || mac[0]&1 != 0 || mac == [6]byte{} {
		return mac, fault.New(fault.Invalid, "%.40q is no address of a network card: as 02:00:5e:00:53:01, in small letters, not of a group", n.MAC)
	}
	return mac, nil
}

// FormatMAC writes an address as Net has it.
func FormatMAC(mac [6]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5])
}
