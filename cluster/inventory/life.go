package inventory

import (
	"maps"
	"slices"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// HostUp enters a new life of a host: life lacks what is given here, its boot and
// state. Asking again for a life that is up changes nothing. Fails with
// fault.NotFound for no host of the cluster, and with fault.Fenced for a life that
// was declared lost: the host ends its machines, and comes back under a new one.
func (v *View) HostUp(life HostLife, now int64) (boot uint32, edits []quorum.Edit, err error) {
	if _, err := find(v, v.Hosts, hostPrefix, life.Host); err != nil {
		return 0, nil, err
	}
	if err := v.readable(lifePrefix + life.Host); err != nil {
		return 0, nil, err
	}
	for _, s := range []string{life.ID, life.Program, life.Build, life.Box} {
		if len(s) > textMax || !graphic(s, true) {
			return 0, nil, fault.New(fault.Invalid, "%.200q is not what a host says of itself", s)
		}
	}
	if life.ID == "" {
		return 0, nil, fault.New(fault.Invalid, "a host's life has no identifier")
	}
	if len(life.Private) > PrivateMax {
		return 0, nil, fault.New(fault.Limit, "a host with %d networks of its own process; at most %d", len(life.Private), PrivateMax)
	}
	for _, s := range life.Private {
		if err := checkName("network", s); err != nil {
			return 0, nil, err
		}
	}
	old := v.Lives[life.Host]
	next := life
	next.Boot, next.State, next.Since = 1, Up, now
	if old == nil {
		e, err := one(edit(lifePrefix+life.Host, &next, nil))
		return next.Boot, e, err
	}
	switch {
	case old.ID == life.ID && old.State != Up:
		return 0, nil, fault.New(fault.Fenced, "the host %q was declared lost in this life; it ends its machines, and begins another", life.Host)
	case old.ID == life.ID:
		return old.Boot, nil, nil
	case old.Boot >= BootMax:
		return 0, nil, fault.New(fault.Limit, "the host %q has begun %d times; remove it, and add it again: \"steadfast host remove %s\"", life.Host, old.Boot, life.Host)
	}
	next.Boot = old.Boot + 1
	e, err := one(edit(lifePrefix+life.Host, &next, old))
	return next.Boot, e, err
}

// HostLost declares a life of a host lost. Fails with fault.Stale when it is not
// the host's newest, or lost already.
func (v *View) HostLost(host string, boot uint32, now int64) ([]quorum.Edit, error) {
	return v.hostOver(host, boot, Lost, now)
}

// HostLeft ends a life of a host in order: its process ends, and takes no machines any more.
// Fails as HostLost does.
func (v *View) HostLeft(host string, boot uint32, now int64) ([]quorum.Edit, error) {
	return v.hostOver(host, boot, Left, now)
}

// hostOver ends a life of a host.
func (v *View) hostOver(host string, boot uint32, state State, now int64) ([]quorum.Edit, error) {
	if err := v.readable(lifePrefix + host); err != nil {
		return nil, err
	}
	old := v.Lives[host]
	if old == nil || old.Boot != boot || old.State != Up {
		return nil, fault.New(fault.Stale, "life %d of the host %q is over already", boot, host)
	}
	next := *old
	next.State, next.Since = state, now
	return one(edit(lifePrefix+host, &next, old))
}

// Standing tells whether a life of a host is up.
func (v *View) Standing(host string, boot uint32) bool {
	l := v.Lives[host]
	return l != nil && l.Boot == boot && l.State == Up
}

// Place places a machine that shall run: p lacks the machine's identifier and
// run, and has a greater generation than any before. Fails with fault.Stale
// when the host or the machine is not as the decision had it.
func (v *View) Place(p Placement, now int64) ([]quorum.Edit, error) {
	m, err := find(v, v.Machines, machinePrefix, p.Machine)
	if err != nil {
		return nil, err
	}
	h, err := find(v, v.Hosts, hostPrefix, p.Host)
	if err != nil {
		return nil, err
	}
	if err := v.readable(placementPrefix + p.Machine); err != nil {
		return nil, err
	}
	old := v.Placements[p.Machine]
	switch {
	case m.Desired != Running:
		return nil, fault.New(fault.Stale, "the machine %q is not to run", m.Name)
	case !v.Standing(p.Host, p.Boot):
		return nil, fault.New(fault.Stale, "life %d of the host %q is over", p.Boot, p.Host)
	case h.Maintenance || h.Cluster != m.Cluster:
		return nil, fault.New(fault.Stale, "the host %q takes no machines of the cluster %q", h.Name, m.Cluster)
	case v.Lives[p.Host].Memory < m.Memory:
		return nil, fault.New(fault.Stale, "the host %q has %d bytes of memory for machines, and %q needs %d", h.Name, v.Lives[p.Host].Memory, m.Name, m.Memory)
	case p.Generation <= m.Floor || old != nil && p.Generation <= old.Generation:
		return nil, fault.New(fault.Stale, "generation %d of the machine %q is not a new one", p.Generation, m.Name)
	case p.Generation > GenerationMax:
		return nil, fault.New(fault.Limit, "the machine %q was placed %d times, and cannot be placed again; export it and import it as another", m.Name, p.Generation)
	}
	next := p
	next.ID, next.Run, next.Since = m.ID, m.Run, now
	next.Leave, next.Ended, next.EndedAt, next.Detail = false, "", 0, clip(p.Detail)
	next.Reason = clip(p.Reason)
	var before document
	if old != nil {
		before = old
	}
	return one(edit(placementPrefix+p.Machine, &next, before))
}

// AskLeave asks a placement's host to shut its machine down. Fails with
// fault.Stale when it is not the present one.
func (v *View) AskLeave(machine string, generation uint64) ([]quorum.Edit, error) {
	p, err := v.present(machine, generation)
	if err != nil || p.Leave {
		return nil, err
	}
	next := p.clone()
	next.Leave = true
	return one(edit(placementPrefix+machine, next, p))
}

// End ends a placement. All endings but EndedMoved end what was wanted of the
// machine, too, in the same step: a guest that shut down is not started again by
// whoever looks next. Fails with fault.Stale when it is not the present one.
func (v *View) End(machine string, generation uint64, why Ending, detail string, now int64) ([]quorum.Edit, error) {
	p, err := v.present(machine, generation)
	if err != nil {
		return nil, err
	}
	if !why.valid() {
		return nil, fault.New(fault.Invalid, "%.80q is no ending of a machine", why)
	}
	next := p.clone()
	next.Ended, next.EndedAt, next.Leave, next.Detail = why, now, false, clip(detail)
	next.Second = nil
	edits, err := one(edit(placementPrefix+machine, next, p))
	if err != nil || why == EndedMoved {
		return edits, err
	}
	m, err := find(v, v.Machines, machinePrefix, machine)
	if err != nil || m.Desired == Stopped {
		return edits, err
	}
	stopped := m.clone()
	stopped.Desired = Stopped
	e, err := edit(machinePrefix+machine, stopped, m)
	return append(edits, e), err
}

// present returns the active placement of a machine, if it is of this
// generation.
func (v *View) present(machine string, generation uint64) (*Placement, error) {
	if err := v.readable(placementPrefix + machine); err != nil {
		return nil, err
	}
	p := v.Placements[machine]
	if !p.Active() || p.Generation != generation {
		return nil, fault.New(fault.Stale, "generation %d of the machine %q is over already", generation, machine)
	}
	return p, nil
}

// clip holds a text for people to its bound.
func clip(s string) string {
	out := []byte(s)
	for i, c := range out {
		if c < 0x20 || c > 0x7e {
			out[i] = '.'
		}
	}
	return string(out[:min(len(out), textMax)])
}

// Check fails with fault.Corrupt when the documents contradict one another: no
// sequence of edits that this package made leads there. The rules:
//
//   - a cluster's datacenter, a host's cluster, a datastore's datacenter and
//     group, and a machine's cluster, datastore and volumes are there;
//   - hosts' numbers, machines' identifiers, volumes and addresses are each
//     there once, and no number is above the count of hosts;
//   - a machine's cluster and datastore are in one datacenter;
//   - a life is of a host, and a placement of a machine and of its identifier;
//   - an active placement is of the machine's run and of a generation above the
//     machine's floor, and its host is there, in this life or a later one;
//   - a secondary is of an active placement, on another host than that's, which is
//     there in this life or a later one, and is the newest of the placement's.
func (v *View) Check() error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Corrupt, "the inventory contradicts itself: "+format, args...)
	}
	for name, c := range v.Clusters {
		if v.Datacenters[c.Datacenter] == nil {
			return bad("the cluster %q has no datacenter", name)
		}
	}
	groups := map[string]string{}
	for name, d := range v.Datastores {
		if _, ok := v.Groups[d.Group]; !ok || v.Datacenters[d.Datacenter] == nil {
			return bad("the datastore %q has no datacenter or no resource group", name)
		}
		if groups[d.Group] != "" {
			return bad("the resource group %q is two datastores", d.Group)
		}
		groups[d.Group] = name
	}
	numbers := map[uint16]bool{}
	for name, h := range v.Hosts {
		if v.Clusters[h.Cluster] == nil || h.Number == 0 || h.Number > v.numbers || numbers[h.Number] {
			return bad("the host %q has no cluster, or no number of its own", name)
		}
		numbers[h.Number] = true
	}
	for name := range v.Lives {
		if v.Hosts[name] == nil {
			return bad("there is a life of no host %q", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(v.Machines)) {
		if err := v.checkMachine(v.Machines[name]); err != nil {
			return fault.Wrap(fault.Corrupt, err, "the inventory contradicts itself: the machine "+name)
		}
	}
	for name, p := range v.Placements {
		m := v.Machines[name]
		if m == nil || m.ID != p.ID || p.Run > m.Run {
			return bad("there is a placement of no machine %q", name)
		}
		if l := v.Lives[p.Host]; p.Active() && (p.Run != m.Run || p.Generation <= m.Floor || v.Hosts[p.Host] == nil || l == nil || p.Boot > l.Boot) {
			return bad("the machine %q is placed on no host %q", name, p.Host)
		}
		if s := p.Second; s != nil {
			if l := v.Lives[s.Host]; !p.Active() || s.Host == p.Host || s.Pair == 0 || s.Pair != p.Pairs || v.Hosts[s.Host] == nil || l == nil || s.Boot > l.Boot {
				return bad("the secondary of the machine %q is on no other host %q", name, s.Host)
			}
		}
	}
	return nil
}
