package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// machineService implements the API's MachineService. Storage nodes answer it: they
// decide where machines run, and reach all of their volumes. Other members pass calls on.
type machineService struct {
	n *Node
	steadfastv1connect.UnimplementedMachineServiceHandler
}

// ListMachines implements the API's call.
func (s machineService) ListMachines(ctx context.Context, _ *steadfastv1.ListMachinesRequest) (*steadfastv1.ListMachinesResponse, error) {
	if err := s.n.atStorage(ctx); err != nil && !fault.Is(err, fault.Unreachable) {
		return nil, err
	}
	v, err := s.n.site()
	if err != nil {
		return nil, err
	}
	return &steadfastv1.ListMachinesResponse{Machines: describeAll(v, v.Machines, s.n.describeMachine)}, nil
}

// GetMachine implements the API's call. A host that is asked by another member tells how the
// machine does on it.
func (s machineService) GetMachine(ctx context.Context, req *steadfastv1.GetMachineRequest) (*steadfastv1.GetMachineResponse, error) {
	asked := passedOn(ctx) && s.n.role() == quorum.RoleHost
	if !asked {
		// Without a storage node there is less to tell: why it waits.
		if err := s.n.atStorage(ctx); err != nil && !fault.Is(err, fault.Unreachable) {
			return nil, err
		}
	}
	v, m, err := s.n.findMachine(req.Name)
	if err != nil {
		return nil, err
	}
	out := s.n.describeMachine(v, m.Name)
	if asked {
		out.Status, err = s.n.hostedStatus(ctx, m.Name)
		return &steadfastv1.GetMachineResponse{Machine: out}, err
	}
	if p := v.Placements[m.Name]; p.Active() {
		s.n.askHosts(ctx, p, out)
	}
	return &steadfastv1.GetMachineResponse{Machine: out}, nil
}

// StartMachine implements the API's call.
func (s machineService) StartMachine(ctx context.Context, req *steadfastv1.StartMachineRequest) (*steadfastv1.StartMachineResponse, error) {
	m, err := s.order(ctx, req.Name, "machine-start", "is to run", (*inventory.View).Start)
	return &steadfastv1.StartMachineResponse{Machine: m}, err
}

// StopMachine implements the API's call.
func (s machineService) StopMachine(ctx context.Context, req *steadfastv1.StopMachineRequest) (*steadfastv1.StopMachineResponse, error) {
	text, rule := "is to stop", (*inventory.View).Stop
	if req.Force {
		text, rule = "is to be off at once", (*inventory.View).PowerOff
	}
	m, err := s.order(ctx, req.Name, "machine-stop", text, rule)
	return &steadfastv1.StopMachineResponse{Machine: m}, err
}

// ResetMachine implements the API's call.
func (s machineService) ResetMachine(ctx context.Context, req *steadfastv1.ResetMachineRequest) (*steadfastv1.ResetMachineResponse, error) {
	m, err := s.order(ctx, req.Name, "machine-reset", "is to begin anew", (*inventory.View).Reset)
	return &steadfastv1.ResetMachineResponse{Machine: m}, err
}

// order says what a machine is to do.
func (s machineService) order(ctx context.Context, name, kind, text string, rule func(*inventory.View, string) ([]quorum.Edit, error)) (*steadfastv1.Machine, error) {
	if err := s.n.atStorage(ctx); err != nil {
		return nil, err
	}
	if _, _, err := s.n.findMachine(name); err != nil {
		return nil, err
	}
	news := false
	v, err := s.n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) {
		edits, err := rule(v, name)
		news = len(edits) > 0
		return edits, err
	})
	if err != nil {
		return nil, err
	}
	if news {
		s.n.publishMachine(kind, name, "machine %q %s", name, text)
	}
	return s.n.describeMachine(v, name), nil
}

// findMachine returns a machine. Fails with fault.NotFound.
func (n *Node) findMachine(name string) (*inventory.View, *inventory.Machine, error) {
	v, err := n.site()
	if err != nil {
		return nil, nil, err
	}
	m := v.Machines[name]
	if m == nil {
		if slices.Contains(v.Unread, "machine/"+name) {
			return v, nil, fault.New(fault.Stale, "the machine %q was changed by a newer program, and this one cannot read of it; upgrade this node, or ask another", name)
		}
		return v, nil, unknown("machine", name, "vm list", namesWhere(v.Machines, func(*inventory.Machine) bool { return true }))
	}
	return v, m, nil
}

// describeMachine describes a machine as the inventory has it; nil: it has it not.
func (n *Node) describeMachine(v *inventory.View, name string) *steadfastv1.Machine {
	m := v.Machines[name]
	if m == nil {
		return nil // deleted meanwhile
	}
	out := &steadfastv1.Machine{
		Name: m.Name, Id: m.ID, Cluster: m.Cluster, Datastore: m.Datastore, Home: m.Home, Memory: m.Memory, CommandLine: m.CommandLine,
		Policy: string(m.Policy), PreferredHost: m.Host, Desired: wanted(m), State: machineState(v, m),
	}
	for _, d := range m.Disks {
		out.Disks = append(out.Disks, &steadfastv1.MachineDisk{Name: d.Name, Volume: d.Volume, Bytes: d.Bytes})
	}
	for _, c := range m.Nets {
		out.Nets = append(out.Nets, &steadfastv1.MachineNet{Mac: c.MAC, Network: c.Network})
	}
	if p := v.Placements[name]; p != nil {
		out.Generation, out.Reason, out.Restarts = p.Generation, p.Reason, int32(p.Restarts)
		out.Since = stamp(time.Unix(0, p.Since))
		if p.Active() {
			out.Host = p.Host
		} else {
			out.Since = stamp(time.Unix(0, p.EndedAt))
			if p.Run == m.Run { // else it is to be started anew, and that is past
				out.Detail = p.Ended.Text() + detail(p.Detail)
			}
		}
	}
	why := ""
	if out.State == "waiting" || m.FT != inventory.FTOff {
		why = n.waitsFor(v, m)
	}
	if out.State == "waiting" && why != "" {
		out.Detail = why
	}
	out.Protection = describeProtection(m, v.Placements[name], why)
	return out
}

// describeProtection describes how fault tolerance has a machine; nil: it is off. waits is what
// the machine waits for.
func describeProtection(m *inventory.Machine, p *inventory.Placement, waits string) *steadfastv1.Protection {
	is := inventory.ProtectionOf(m, p)
	if !is.On {
		return nil
	}
	out := &steadfastv1.Protection{
		Disabled: m.FT != inventory.FTOn, Protected: is.Protected, Why: is.Why, Because: string(is.Because), Detail: is.Detail,
	}
	if !p.Active() {
		return out
	}
	out.Failovers = int32(p.Failovers)
	if s := p.Second; s != nil {
		out.SecondaryHost, out.Pair, out.Since = s.Host, s.Pair, stamp(time.Unix(0, s.Since))
	} else if m.FT == inventory.FTOn {
		out.Waits = waits
	}
	return out
}

// wanted is what is wanted of a machine, as the API has it: how it is to stop is between the
// inventory and its host.
func wanted(m *inventory.Machine) string {
	if m.Desired == inventory.Running {
		return string(inventory.Running)
	}
	return string(inventory.Stopped)
}

// waitsFor tells why a machine is not placed that is to run, or has no secondary; empty: this member does not know.
func (n *Node) waitsFor(v *inventory.View, m *inventory.Machine) string {
	if len(namesWhere(v.Hosts, func(h *inventory.Host) bool { return h.Cluster == m.Cluster })) == 0 {
		return fmt.Sprintf("no host is in its cluster %q; add one: \"steadfast host add\"", m.Cluster)
	}
	c, err := n.inCluster()
	if err != nil || c.placer == nil {
		return ""
	}
	return c.placer.whyWaits(m.Name)
}

// askHosts asks the host of a machine how it does, and its secondary's.
func (n *Node) askHosts(ctx context.Context, p *inventory.Placement, out *steadfastv1.Machine) {
	ask := func(host string, status **steadfastv1.MachineStatus, silent *string) {
		var err error
		if *status, err = n.askHost(ctx, host, p.Machine); err != nil {
			*silent = err.Error()
		}
	}
	var both sync.WaitGroup
	if s := p.Second; s != nil && out.Protection != nil {
		both.Go(func() { ask(s.Host, &out.Protection.Secondary, &out.Protection.SecondarySilent) })
	}
	ask(p.Host, &out.Status, &out.Silent)
	both.Wait()
}

// publishMachine tells of a machine.
func (n *Node) publishMachine(kind, machine, format string, args ...any) {
	n.events.publish(&steadfastv1.Event{Severity: severityInfo, Kind: kind, Machine: machine, Text: fmt.Sprintf(format, args...)})
}
