package node

import (
	"context"
	"fmt"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/cluster/inventory"
	"steadfast/cluster/placement"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/node/ha"
)

// ftService implements the API's FaultToleranceService: it changes what the inventory wants. Who
// has a secondary, and where, the placer decides; how a pair does, its hosts tell.
type ftService struct{ n *Node }

// TurnOnFaultTolerance implements the API's call.
func (s ftService) TurnOnFaultTolerance(ctx context.Context, req *steadfastv1.TurnOnFaultToleranceRequest) (*steadfastv1.TurnOnFaultToleranceResponse, error) {
	facts, err := s.facts(ctx, req.Machine)
	if err != nil {
		return nil, err
	}
	m, err := s.change(ctx, req.Machine, "ft-on", "has fault tolerance from now on", func(v *inventory.View, m *inventory.Machine) ([]quorum.Edit, error) {
		now := time.Now().UnixNano()
		if err := placement.Refused(placement.Prerequisites(v, m, facts, now)); err != nil {
			return nil, err
		}
		return v.SetFT(m.Name, inventory.FTOn, now)
	})
	return &steadfastv1.TurnOnFaultToleranceResponse{Machine: m}, err
}

// TurnOffFaultTolerance implements the API's call.
func (s ftService) TurnOffFaultTolerance(ctx context.Context, req *steadfastv1.TurnOffFaultToleranceRequest) (*steadfastv1.TurnOffFaultToleranceResponse, error) {
	m, err := s.change(ctx, req.Machine, "ft-off", "has no fault tolerance from now on", func(v *inventory.View, m *inventory.Machine) ([]quorum.Edit, error) {
		return v.SetFT(m.Name, inventory.FTOff, time.Now().UnixNano())
	})
	return &steadfastv1.TurnOffFaultToleranceResponse{Machine: m}, err
}

// DisableFaultTolerance implements the API's call.
func (s ftService) DisableFaultTolerance(ctx context.Context, req *steadfastv1.DisableFaultToleranceRequest) (*steadfastv1.DisableFaultToleranceResponse, error) {
	m, err := s.change(ctx, req.Machine, "ft-disabled", "has its fault tolerance disabled", func(v *inventory.View, m *inventory.Machine) ([]quorum.Edit, error) {
		if err := isOn(m); err != nil {
			return nil, err
		}
		return v.SetFT(m.Name, inventory.FTDisabled, time.Now().UnixNano())
	})
	return &steadfastv1.DisableFaultToleranceResponse{Machine: m}, err
}

// EnableFaultTolerance implements the API's call.
func (s ftService) EnableFaultTolerance(ctx context.Context, req *steadfastv1.EnableFaultToleranceRequest) (*steadfastv1.EnableFaultToleranceResponse, error) {
	m, err := s.change(ctx, req.Machine, "ft-enabled", "has its fault tolerance enabled", func(v *inventory.View, m *inventory.Machine) ([]quorum.Edit, error) {
		if err := isOn(m); err != nil {
			return nil, err
		}
		return v.SetFT(m.Name, inventory.FTOn, time.Now().UnixNano())
	})
	return &steadfastv1.EnableFaultToleranceResponse{Machine: m}, err
}

// isOn fails with fault.Busy for a machine whose fault tolerance was not turned on.
func isOn(m *inventory.Machine) error {
	if m.FT == inventory.FTOff {
		return fault.New(fault.Busy, "the fault tolerance of the machine %q is off; turn it on: \"steadfast ft on %s\"", m.Name, m.Name)
	}
	return nil
}

// CheckFaultTolerance implements the API's call.
func (s ftService) CheckFaultTolerance(ctx context.Context, req *steadfastv1.CheckFaultToleranceRequest) (*steadfastv1.CheckFaultToleranceResponse, error) {
	facts, err := s.facts(ctx, req.Machine)
	if err != nil {
		return nil, err
	}
	v, m, err := s.n.findMachine(req.Machine)
	if err != nil {
		return nil, err
	}
	out := &steadfastv1.CheckFaultToleranceResponse{}
	for _, p := range placement.Prerequisites(v, m, facts, time.Now().UnixNano()) {
		out.Prerequisites = append(out.Prerequisites, &steadfastv1.Prerequisite{Code: p.Code, What: p.What, Met: p.Refusal == "", Refusal: p.Refusal})
	}
	return out, nil
}

// TestRestartSecondary implements the API's call.
func (s ftService) TestRestartSecondary(ctx context.Context, req *steadfastv1.TestRestartSecondaryRequest) (*steadfastv1.TestRestartSecondaryResponse, error) {
	m, err := s.change(ctx, req.Machine, "ft-secondary-restart", "has its secondary started again, as a test", func(v *inventory.View, m *inventory.Machine) ([]quorum.Edit, error) {
		return endSecondary(v, m, time.Now().UnixNano())
	})
	return &steadfastv1.TestRestartSecondaryResponse{Machine: m}, err
}

// endSecondary ends a machine's secondary, so that another is chosen.
func endSecondary(v *inventory.View, m *inventory.Machine, now int64) ([]quorum.Edit, error) {
	p := v.Placements[m.Name]
	if err := hasSecondary(m, p); err != nil {
		return nil, err
	}
	return v.Part(m.Name, p.Generation, p.Second.Pair, inventory.PartUser, "a test", now)
}

// hasSecondary fails with fault.Busy for a machine that has none.
func hasSecondary(m *inventory.Machine, p *inventory.Placement) error {
	if p.Active() && p.Second != nil {
		return nil
	}
	if err := isOn(m); err != nil {
		return err
	}
	is := inventory.ProtectionOf(m, p)
	return fault.New(fault.Busy, "the machine %q has no secondary (%s); see \"steadfast ft status %s\"", m.Name, is.Why, m.Name)
}

// MigrateSecondary implements the API's call.
func (s ftService) MigrateSecondary(ctx context.Context, req *steadfastv1.MigrateSecondaryRequest) (*steadfastv1.MigrateSecondaryResponse, error) {
	text := fmt.Sprintf("has its secondary move to the host %q", req.Host)
	m, err := s.change(ctx, req.Machine, "ft-secondary-moves", text, func(v *inventory.View, m *inventory.Machine) ([]quorum.Edit, error) {
		return moveSecondary(v, m, req.Host, time.Now().UnixNano())
	})
	return &steadfastv1.MigrateSecondaryResponse{Machine: m}, err
}

// moveSecondary has a machine's secondary be on a host. One that is there already stays.
func moveSecondary(v *inventory.View, m *inventory.Machine, host string, now int64) ([]quorum.Edit, error) {
	p, h := v.Placements[m.Name], v.Hosts[host]
	if err := isOn(m); err != nil {
		return nil, err
	}
	switch {
	case h == nil:
		return nil, unknown("host", host, "host list", namesWhere(v.Hosts, func(h *inventory.Host) bool { return h.Cluster == m.Cluster }))
	case m.FT != inventory.FTOn:
		return nil, fault.New(fault.Busy, "the fault tolerance of the machine %q is disabled; enable it: \"steadfast ft enable %s\"", m.Name, m.Name)
	case !p.Active() || m.Desired != inventory.Running:
		return nil, fault.New(fault.Busy, "the machine %q does not run, and has no secondary then; start it: \"steadfast vm start %s\"", m.Name, m.Name)
	case p.Second != nil && p.Second.Host == host && v.Standing(host, p.Second.Boot):
		return nil, nil // it is there
	case p.Host == host:
		return nil, fault.New(fault.Busy, "the host %q runs the machine %q itself; \"steadfast ft test-failover %s\" has the secondary go on", host, m.Name, m.Name)
	case h.Cluster != m.Cluster:
		return nil, fault.New(fault.Invalid, "the host %q is in the cluster %q, and the machine in %q", host, h.Cluster, m.Cluster)
	}
	if why := placement.SecondaryOn(v, m, host, now); why != "" {
		return nil, fault.New(fault.Busy, "the secondary of the machine %q cannot be there: %s; see \"steadfast ft status %s --check\"", m.Name, why, m.Name)
	}
	return v.Pair(m.Name, p.Generation, host, v.Lives[host].Boot, now)
}

// change changes how a machine is protected, by a rule that is given the machine, and tells people
// if that is something new.
func (s ftService) change(ctx context.Context, machine, kind, text string, rule func(*inventory.View, *inventory.Machine) ([]quorum.Edit, error)) (*steadfastv1.Machine, error) {
	return machineService{n: s.n}.order(ctx, machine, kind, text, func(v *inventory.View, name string) ([]quorum.Edit, error) {
		m := v.Machines[name]
		if m == nil {
			return nil, fault.New(fault.NotFound, "the machine %q was deleted; see \"steadfast vm list\"", name)
		}
		return rule(v, m)
	})
}

// facts finds out what fault tolerance takes that the inventory does not say. A node without the
// machine's volumes has their owner asked: the error is the handler's.
func (s ftService) facts(ctx context.Context, machine string) (f placement.Facts, err error) {
	n := s.n
	if err := n.atStorageOf(ctx, machine); err != nil {
		return f, err
	}
	v, m, err := n.findMachine(machine)
	if err != nil {
		return f, err
	}
	c, err := n.inCluster()
	if err != nil {
		return f, err
	}
	f.Heard = map[string]bool{}
	for host := range v.Hosts {
		f.Heard[host] = c.hears(quorum.Member(host))
	}
	_, spec, err := n.groupOf(v, m)
	if err != nil {
		f.Storage = err
		return f, nil
	}
	if _, mine := spec.Node(c.member.Self().Member); !mine {
		if _, err := ownGroup(ctx, c, spec); err != nil {
			return f, err
		}
	}
	f.Snapshots = map[string]int{}
	for _, name := range m.Volumes() {
		if f.Snapshots[name], err = n.countSnapshots(name); err != nil {
			f.Storage = err
		}
	}
	return f, nil
}

// countSnapshots counts the snapshots of a volume that people made.
func (n *Node) countSnapshots(volume string) (count int, err error) {
	_, st, _, err := n.findVolume(volume)
	if err != nil {
		return 0, err
	}
	all, err := st.Snapshots(volume)
	for _, s := range all {
		if s.Name != ha.ResyncSnapshot { // it comes and goes by itself
			count++
		}
	}
	return count, err
}

// unprotected fails with fault.Busy when a machine with fault tolerance has one of a group's
// volumes: it takes that they have no snapshots.
func (n *Node) unprotected(group string, volumes ...ha.Volume) error {
	v, err := n.site()
	if err != nil {
		return err
	}
	for _, volume := range volumes {
		name, used, err := v.UsedBy(group, volume.Name)
		if err != nil {
			return err
		}
		if used && v.Machines[name].FT != inventory.FTOff {
			return fault.New(fault.Busy, "the volume %q is of the machine %q, whose fault tolerance takes that it has no snapshots; turn that off first: \"steadfast ft off %s\"", volume.Name, name, name)
		}
	}
	return nil
}

// failoverTime bounds how long is waited for a secondary to have taken over.
const failoverTime = 15 * time.Second

// TestFailover implements the API's call. The machine's host is asked, and answers when it has
// handed over; that the other one goes on is seen in the inventory.
func (s ftService) TestFailover(ctx context.Context, req *steadfastv1.TestFailoverRequest) (*steadfastv1.TestFailoverResponse, error) {
	if passedOn(ctx) && s.n.role() == quorum.RoleHost {
		h, err := s.n.hosted()
		if err != nil {
			return nil, err
		}
		return &steadfastv1.TestFailoverResponse{}, h.HandOver(ctx, req.Machine)
	}
	v, m, err := s.n.findMachine(req.Machine)
	if err != nil {
		return nil, err
	}
	p := v.Placements[m.Name]
	if err := isOn(m); err != nil {
		return nil, err
	}
	if is := inventory.ProtectionOf(m, p); !is.Protected {
		return nil, fault.New(fault.Busy, "the machine %q is not protected (%s), and nobody could take over; see \"steadfast ft status %s\"", m.Name, is.Why, m.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, failoverTime)
	defer cancel()
	began := time.Now()
	if err := s.handOver(ctx, p.Host, m.Name); err != nil {
		return nil, err
	}
	now, err := s.untilElsewhere(ctx, p)
	if err != nil {
		return nil, err
	}
	s.n.publishMachine("ft-test-failover", m.Name, "machine %q: its secondary on host %q took over from host %q, as a test", m.Name, p.Second.Host, p.Host)
	return &steadfastv1.TestFailoverResponse{
		From: p.Host, To: p.Second.Host, TookNanoseconds: int64(time.Since(began)), Machine: s.n.describeMachine(now, m.Name),
	}, nil
}

// handOver has the host of a machine hand it over.
func (s ftService) handOver(ctx context.Context, host, machine string) error {
	c, err := s.n.inCluster()
	if err != nil {
		return err
	}
	if quorum.Member(host) == c.member.Self().Member {
		h, err := s.n.hosted()
		if err != nil {
			return err
		}
		return h.HandOver(ctx, machine)
	}
	_, err = c.protectionAt(quorum.Member(host)).TestFailover(ctx, &steadfastv1.TestFailoverRequest{Machine: machine})
	return answered(quorum.Member(host), err)
}

// untilElsewhere waits until a machine is where its secondary was. Fails with fault.Failed when it
// is started anew instead.
func (s ftService) untilElsewhere(ctx context.Context, was *inventory.Placement) (v *inventory.View, err error) {
	var p *inventory.Placement
	err = s.n.waitFor(ctx, func() bool {
		v, err = s.n.site()
		if err != nil {
			return true
		}
		p = v.Placements[was.Machine]
		return !p.Active() || p.Generation != was.Generation || p.Host != was.Host || p.Second == nil
	})
	switch {
	case err != nil:
		return nil, fault.Wrap(fault.KindOf(err), err, fmt.Sprintf("the secondary of the machine %q has not taken over for %v; see \"steadfast ft status %s\"", was.Machine, failoverTime, was.Machine))
	case p.Active() && p.Generation == was.Generation && p.Host == was.Second.Host:
		return v, nil
	}
	return nil, fault.New(fault.Failed, "the secondary of the machine %q did not take over; see \"steadfast ft status %s\", \"steadfast events\"", was.Machine, was.Machine)
}

// protectionAt returns a client of another member's FaultToleranceService. What it is asked is not
// passed on further.
func (c *cluster) protectionAt(to quorum.Member) steadfastv1connect.FaultToleranceServiceClient {
	return steadfastv1connect.NewFaultToleranceServiceClient(c.passingTo(to), "http://"+string(to))
}
