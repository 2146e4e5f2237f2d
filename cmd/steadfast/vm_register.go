package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
)

func (a *app) vmRegister() *cobra.Command {
	var all bool
	req := &steadfastv1.RegisterMachineRequest{}
	c := &cobra.Command{
		Use: "register [HOME]", Short: "Make a virtual machine of volumes that have one", Args: between(0, 1),
		Long: `Make a virtual machine of its volumes: one that was deleted with --keep-volumes, or that
comes from another site. HOME is its home volume, which says what it is made of. Without
HOME the datastore's homes are listed; --all registers those that are not yet.

A home whose lock block is damaged does not tell whether a host runs its machine. It is
registered with --reset-lock, and what is given up by that typed out; without it the
command says what that is.`,
		Example: `  steadfast vm register
  steadfast vm register db1.home --datastore ds1
  steadfast vm register db1.home --name db2
  steadfast vm register db1.home --reset-lock no-host-runs-db1
  steadfast vm register --all`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 1 && all:
				return fault.New(fault.Invalid, "give either HOME, for one machine, or --all")
			case len(args) == 0 && (req.Name != "" || req.ResetLock != ""):
				return fault.New(fault.Invalid, "--name and --reset-lock are of one machine: name its home volume, as \"steadfast vm register\" lists it")
			case len(args) == 0:
				return a.vmHomes(cmd.Context(), req, all)
			}
			req.Home = args[0]
			r, err := a.vms().RegisterMachine(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Machine, "registered machine %q in datastore %q; start it: \"steadfast vm start %s\"", r.Machine.Name, r.Machine.Datastore, r.Machine.Name)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "register all machines of the datastore that are not yet")
	c.Flags().StringVar(&req.Datastore, "datastore", "", "the datastore (default: the only one)")
	c.Flags().StringVar(&req.Cluster, "cluster", "", "the cluster of hosts that is to run it (default: the only one)")
	c.Flags().StringVar(&req.Name, "name", "", "another name than it had; its volumes keep theirs")
	c.Flags().StringVar(&req.ResetLock, "reset-lock", "", "make a damaged lock block anew: what is given up, as the command without it says")
	a.complete(c, "", a.vmUnregistered)
	a.complete(c, "datastore", a.datastoreNames)
	a.complete(c, "cluster", a.hostClusterNames)
	return c
}

// vmUnregistered lists home volumes for completion.
func (a *app) vmUnregistered(ctx context.Context) (names []string) {
	r, err := a.vms().ListHomes(ctx, &steadfastv1.ListHomesRequest{})
	if err != nil {
		return nil
	}
	for _, h := range r.Homes {
		if !h.Registered {
			names = append(names, h.Volume)
		}
	}
	return names
}

// vmHomes lists homes of machines, or registers those that are not yet.
func (a *app) vmHomes(ctx context.Context, req *steadfastv1.RegisterMachineRequest, all bool) error {
	r, err := a.vms().ListHomes(ctx, &steadfastv1.ListHomesRequest{Datastore: req.Datastore})
	if err != nil {
		return err
	}
	if !all {
		return table(a, r.Homes, "VOLUME MACHINE REGISTERED PROBLEM", func(h *steadfastv1.MachineHome) []any {
			return []any{h.Volume, h.Machine, yesNo(h.Registered), h.Problem}
		})
	}
	var made []*steadfastv1.Machine
	var failed error
	for _, h := range r.Homes {
		if h.Registered {
			continue
		}
		one := &steadfastv1.RegisterMachineRequest{Datastore: req.Datastore, Cluster: req.Cluster, Home: h.Volume}
		r, err := a.vms().RegisterMachine(ctx, one)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		made = append(made, r.Machine)
	}
	return errors.Join(table(a, made, "NAME CLUSTER DATASTORE HOME", func(m *steadfastv1.Machine) []any {
		return []any{m.Name, m.Cluster, m.Datastore, m.Home}
	}), failed)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
