package inventory

import (
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// clone returns a copy that shares nothing with p.
func (p *Placement) clone() *Placement {
	c := *p
	if p.Second != nil {
		s := *p.Second
		c.Second = &s
	}
	if p.Parted != nil {
		d := *p.Parted
		c.Parted = &d
	}
	return &c
}

// SetFT says how a machine is to be protected. Without FTOn its secondary, if any, ends in the
// same step; with it, what became of earlier ones is forgotten. What fault tolerance takes is not looked at: see placement.Prerequisites.
func (v *View) SetFT(machine string, ft FT, now int64) ([]quorum.Edit, error) {
	m, err := find(v, v.Machines, machinePrefix, machine)
	if err != nil || m.FT == ft {
		return nil, err
	}
	if err := v.readable(placementPrefix + machine); err != nil {
		return nil, err
	}
	next := m.clone()
	next.FT = ft
	edits, err := one(edit(machinePrefix+machine, next, m))
	p := v.Placements[machine]
	if err != nil || !p.Active() || p.Second == nil && p.Parted == nil {
		return edits, err
	}
	again := p.clone()
	again.Parted = nil
	more, err := one(edit(placementPrefix+machine, again, p))
	if p.Second != nil {
		more, err = v.Part(machine, p.Generation, p.Second.Pair, PartUser, "", now)
	}
	return append(edits, more...), err
}

// Pair gives a machine that runs a secondary on a host, in this life of it, in place of the
// one that it has, if any. Fails with fault.Stale when placement, machine or host are not as the
// decision had it.
func (v *View) Pair(machine string, generation uint64, host string, boot uint32, now int64) ([]quorum.Edit, error) {
	p, err := v.present(machine, generation)
	if err != nil {
		return nil, err
	}
	m, err := find(v, v.Machines, machinePrefix, machine)
	if err != nil {
		return nil, err
	}
	h, err := find(v, v.Hosts, hostPrefix, host)
	if err != nil {
		return nil, err
	}
	switch {
	case m.FT != FTOn || m.Desired != Running:
		return nil, fault.New(fault.Stale, "the machine %q is to have no secondary", machine)
	case host == p.Host:
		return nil, fault.New(fault.Invalid, "the machine %q and its secondary cannot both be on the host %q", machine, host)
	case !v.Standing(host, boot):
		return nil, fault.New(fault.Stale, "life %d of the host %q is over", boot, host)
	case h.Maintenance || h.Cluster != m.Cluster:
		return nil, fault.New(fault.Stale, "the host %q takes no machines of the cluster %q", h.Name, m.Cluster)
	}
	next := p.clone()
	next.Pairs++
	next.Second = &Second{Host: host, Boot: boot, Pair: next.Pairs, Since: now}
	return one(edit(placementPrefix+machine, next, p))
}

// Protected says that a machine's secondary can go on. Fails with fault.Stale when it is not
// the present one.
func (v *View) Protected(machine string, generation, pair uint64, now int64) ([]quorum.Edit, error) {
	p, err := v.paired(machine, generation, pair)
	if err != nil || p.Second.Protected {
		return nil, err
	}
	next := p.clone()
	next.Second.Protected, next.Second.Since, next.Parted = true, now, nil
	return one(edit(placementPrefix+machine, next, p))
}

// Part says that a machine has no secondary any more, and why. Fails with fault.Stale when that
// is not the present one.
func (v *View) Part(machine string, generation, pair uint64, why PartReason, detail string, now int64) ([]quorum.Edit, error) {
	p, err := v.paired(machine, generation, pair)
	if err != nil {
		return nil, err
	}
	next := p.clone()
	next.Parted = &Parted{Host: p.Second.Host, Boot: p.Second.Boot, Why: why, Detail: clip(detail), Since: now}
	if !p.Second.Protected && why != PartUser {
		next.Parted.Tries = 1
		if p.Parted != nil {
			next.Parted.Tries += p.Parted.Tries
		}
	}
	next.Second = nil
	return one(edit(placementPrefix+machine, next, p))
}

// TookOver says that a machine's secondary has the lock, and goes on: the machine is placed where
// that is. Fails with fault.Stale when it is not the present one.
func (v *View) TookOver(machine string, generation, pair uint64, why PartReason, detail string, now int64) ([]quorum.Edit, error) {
	p, err := v.paired(machine, generation, pair)
	if err != nil {
		return nil, err
	}
	next := p.clone()
	next.Parted = &Parted{Host: p.Host, Boot: p.Boot, Why: why, Detail: clip(detail), Since: now}
	next.Host, next.Boot, next.Second, next.Leave = p.Second.Host, p.Second.Boot, nil, false
	next.Failovers++
	next.Reason = clip("its secondary took over from the host " + p.Host)
	return one(edit(placementPrefix+machine, next, p))
}

// paired returns the active placement of a machine, if it is of this generation, and has this
// secondary.
func (v *View) paired(machine string, generation, pair uint64) (*Placement, error) {
	p, err := v.present(machine, generation)
	if err != nil {
		return nil, err
	}
	if p.Second == nil || p.Second.Pair != pair {
		return nil, fault.New(fault.Stale, "secondary %d of the machine %q is over already", pair, machine)
	}
	return p, nil
}

// Protection is how a machine is protected, in the paper's words.
type Protection struct {
	// On: fault tolerance is turned on. Protected: the death of its host is not noticed.
	On, Protected bool
	// Why is why it is not protected: "Starting", "Need Secondary VM", "Disabled" or "VM not
	// Running"; Because is, of the first two, why it had to get another secondary.
	Why     string
	Because PartReason
	Detail  string
}

// ProtectionOf tells how a machine is protected by what its documents say; p may be nil.
func ProtectionOf(m *Machine, p *Placement) Protection {
	out := Protection{On: m.FT != FTOff}
	switch {
	case !out.On:
		return out
	case m.FT != FTOn:
		out.Why = "Disabled"
		return out
	case !p.Active() || m.Desired != Running:
		out.Why = "VM not Running"
		return out
	case p.Second != nil && p.Second.Protected:
		out.Protected = true
		return out
	case p.Second != nil:
		out.Why = "Starting"
	default:
		out.Why = "Need Secondary VM"
	}
	out.Because = PartInitializing
	if p.Parted != nil {
		out.Because, out.Detail = p.Parted.Why, p.Parted.Detail
	}
	return out
}
