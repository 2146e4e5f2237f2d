package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/node/size"
)

// vmCommand is "steadfast vm".
func (a *app) vmCommand() *cobra.Command {
	return group("vm", "Tend virtual machines on the mirrored storage, which hosts run",
		a.vmCreate(), a.vmList(), a.vmShow(), a.vmStart(), a.vmStop(), a.vmReset(), a.vmConsole(),
		a.vmSet(), a.vmExport(), a.vmImport(), a.vmRegister(), a.vmDelete())
}

func (a *app) vms() steadfastv1connect.MachineServiceClient {
	return steadfastv1connect.NewMachineServiceClient(a.transport(), baseURL, a.options())
}

// vmNames lists names for completion.
func (a *app) vmNames(ctx context.Context) []string {
	r, err := a.vms().ListMachines(ctx, &steadfastv1.ListMachinesRequest{})
	if err != nil {
		return nil
	}
	return namesOf(r.Machines)
}

// getVM returns a machine, with how it does.
func (a *app) getVM(ctx context.Context, name string) (*steadfastv1.Machine, error) {
	r, err := a.vms().GetMachine(ctx, &steadfastv1.GetMachineRequest{Name: name})
	if err != nil {
		return nil, err
	}
	return r.Machine, nil
}

func (a *app) vmList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List virtual machines", Args: exactly(0),
		Long: `List virtual machines. A state is of what is decided of a machine: running (a host
runs it, or is about to), stopping, waiting (it shall run, and cannot yet: the last
column says why), stopped, panicked (its guest), failed (its host was lost or could not
run it, and it is not started again). "steadfast vm show" also asks its host.`,
		Example: "  steadfast vm list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.vms().ListMachines(cmd.Context(), &steadfastv1.ListMachinesRequest{})
			if err != nil {
				return err
			}
			return table(a, r.Machines, "NAME CLUSTER STATE HOST SINCE MEMORY DISKS FT DETAIL", func(m *steadfastv1.Machine) []any {
				return []any{m.Name, m.Cluster, m.State, m.Host, when(m.Since), size.Format(int64(m.Memory)), len(m.Disks), ftStatusText(m.Protection), m.Detail}
			})
		},
	}
}

func (a *app) vmShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show VM", Short: "Show a virtual machine, and how it does on its host", Example: "  steadfast vm show db1\n  steadfast vm show db1 --output json", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := a.getVM(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(m, func(w io.Writer) { vmRows(w, m) })
		},
	}
	a.complete(c, "", a.vmNames)
	return c
}

func vmRows(w io.Writer, m *steadfastv1.Machine) {
	row(w, "machine", m.Name)
	row(w, "state", m.State)
	if m.Detail != "" {
		row(w, "detail", m.Detail)
	}
	row(w, "wanted", m.Desired)
	row(w, "host", m.Host)
	if m.Since != nil {
		row(w, "since", when(m.Since))
	}
	if m.Host != "" {
		row(w, "placed because", m.Reason)
	}
	row(w, "restarts", m.Restarts)
	row(w, "fault tolerance", ftStatusText(m.Protection))
	ftDetailRows(w, m)
	row(w, "cluster", m.Cluster)
	row(w, "preferred host", m.PreferredHost)
	row(w, "when its host is lost", m.Policy)
	row(w, "memory", size.Format(int64(m.Memory)))
	row(w, "command line", m.CommandLine)
	row(w, "datastore", m.Datastore)
	row(w, "home", m.Home)
	for _, d := range m.Disks {
		row(w, "disk", d.Name+": "+size.Format(d.Bytes)+", volume "+d.Volume)
	}
	for _, n := range m.Nets {
		row(w, "network", n.Network+": "+n.Mac)
	}
	row(w, "id", m.Id)
	if m.Silent != "" {
		row(w, "host does not say", m.Silent)
	}
	if m.Status != nil {
		vmStatusRows(w, m.Status)
	}
}

// vmStatusRows shows what a machine's host says.
func vmStatusRows(w io.Writer, s *steadfastv1.MachineStatus) {
	row(w, "on its host", strings.TrimSpace(s.Phase+" "+s.Step))
	row(w, "since", when(s.Since))
	if s.Pid != 0 {
		row(w, "process", s.Pid)
		row(w, "instructions", counted(s.Instructions))
		row(w, "processor time", seconds(uint64(max(0, s.CpuNanoseconds))))
	}
	if s.GuestRestarts+s.Resets > 0 {
		row(w, "guest's restarts", s.GuestRestarts)
		row(w, "resets", s.Resets)
	}
	for _, d := range sortedKeys(s.Full) {
		row(w, "waits for space", d+": "+s.Full[d])
	}
	for _, v := range s.Volumes {
		text := strings.Join(v.Paths, ", ")
		if v.AwaySince != nil {
			text += "; has not answered since " + when(v.AwaySince)
		}
		row(w, "volume", v.Volume+": "+text)
	}
}
