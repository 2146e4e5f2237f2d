package main

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
)

// Of waiting for machines: how often is asked, and how long at most, if nothing is said.
const (
	vmAskEvery = 250 * time.Millisecond
	vmPatience = 2 * time.Minute
)

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// waitFlags adds --wait and --timeout.
func waitFlags(c *cobra.Command, wait *bool, patience *time.Duration, until string) {
	c.Flags().BoolVar(wait, "wait", false, "return when it "+until+", and show meanwhile what it waits for")
	c.Flags().DurationVar(patience, "timeout", vmPatience, "how long --wait waits")
}

func (a *app) vmStart() *cobra.Command {
	var wait bool
	var patience time.Duration
	c := &cobra.Command{
		Use: "start VM", Short: "Have a virtual machine run", Args: exactly(1),
		Long: `Have a virtual machine run: one of its cluster's hosts starts it, the preferred one if
that can be. When no host can, it waits until one can; "steadfast vm show" says why.`,
		Example: "  steadfast vm start db1\n  steadfast vm start db1 --wait",
		RunE: func(cmd *cobra.Command, args []string) error {
			return interruptible(cmd.Context(), func(ctx context.Context) error { return a.startVM(ctx, args[0], wait, patience) })
		},
	}
	waitFlags(c, &wait, &patience, "runs on a host")
	a.complete(c, "", a.vmNames)
	return c
}

func (a *app) startVM(ctx context.Context, name string, wait bool, patience time.Duration) error {
	r, err := a.vms().StartMachine(ctx, &steadfastv1.StartMachineRequest{Name: name})
	if err != nil {
		return err
	}
	if !wait {
		return a.did(r.Machine, "machine %q is to run", name)
	}
	m, err := a.awaitVM(ctx, name, patience, func(m *steadfastv1.Machine) (bool, string, error) {
		switch m.State {
		case "running":
			return m.Status.GetPhase() == "running", "on host " + m.Host + ": " + firstOf(m.Status.GetStep(), m.Silent, "starting"), nil
		case "waiting":
			return false, "waits: " + firstOf(m.Detail, "it is not placed yet"), nil
		}
		return false, "", fault.New(fault.Failed, "the machine %q does not run: %s; see \"steadfast vm show %s\"", name, firstOf(m.Detail, m.State), name)
	})
	if err != nil {
		return err
	}
	return a.did(m, "machine %q runs on host %q", name, m.Host)
}

// firstOf returns the first text that is not empty.
func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// awaitVM asks how a machine does until done says so, and shows what it waits for.
func (a *app) awaitVM(ctx context.Context, name string, patience time.Duration, done func(*steadfastv1.Machine) (is bool, why string, err error)) (*steadfastv1.Machine, error) {
	late := time.NewTimer(patience)
	defer late.Stop()
	t := time.NewTicker(vmAskEvery)
	defer t.Stop()
	said := ""
	for {
		m, err := a.getVM(ctx, name)
		if err != nil {
			return nil, err
		}
		is, why, err := done(m)
		if is || err != nil {
			return m, err
		}
		if why != said && why != "" {
			a.note("%s\n", why)
			said = why
		}
		select {
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Canceled, context.Cause(ctx), "waiting; the machine goes on as it was told")
		case <-late.C:
			return nil, fault.New(fault.Busy, "the machine %q is not so far after %v (%s); it goes on as it was told: see \"steadfast vm show %s\"", name, patience, firstOf(said, m.State), name)
		case <-t.C:
		}
	}
}

func (a *app) vmStop() *cobra.Command {
	var wait, yes bool
	var patience time.Duration
	req := &steadfastv1.StopMachineRequest{}
	c := &cobra.Command{
		Use: "stop VM", Short: "Press a virtual machine's power button, or end it by force", Args: exactly(1),
		Long: `Have a virtual machine stop: its host presses its power button, and ends it by force
when it has not powered off after a minute. With --force it is ended at once, as by a
power failure, also while it is being stopped: what its guest has not written to its
disks is lost.`,
		Example: "  steadfast vm stop db1\n  steadfast vm stop db1 --wait\n  steadfast vm stop db1 --force --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			if err := a.confirm(yes || !req.Force, "End machine %q at once, and lose what its guest has not written?", req.Name); err != nil {
				return err
			}
			return interruptible(cmd.Context(), func(ctx context.Context) error { return a.stopVM(ctx, req, wait, patience) })
		},
	}
	c.Flags().BoolVar(&req.Force, "force", false, "at once, as by a power failure")
	c.Flags().BoolVar(&yes, "yes", false, "with --force: do not ask")
	waitFlags(c, &wait, &patience, "has stopped")
	a.complete(c, "", a.vmNames)
	return c
}

func (a *app) stopVM(ctx context.Context, req *steadfastv1.StopMachineRequest, wait bool, patience time.Duration) error {
	name := req.Name
	r, err := a.vms().StopMachine(ctx, req)
	if err != nil {
		return err
	}
	if !wait {
		return a.did(r.Machine, "machine %q is to stop", name)
	}
	m, err := a.awaitVM(ctx, name, patience, func(m *steadfastv1.Machine) (bool, string, error) {
		if m.Desired == "running" {
			return false, "", fault.New(fault.Busy, "the machine %q was started again meanwhile; if it is to stop, say so again: \"steadfast vm stop %s\"", name, name)
		}
		return m.Host == "", "on host " + m.Host + ": " + firstOf(m.Status.GetStep(), m.Silent, "stopping"), nil
	})
	if err != nil {
		return err
	}
	return a.did(m, "machine %q has stopped%s", name, inBrackets(m.Detail))
}

func inBrackets(text string) string {
	if text == "" {
		return ""
	}
	return " (" + text + ")"
}

func (a *app) vmReset() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "reset VM", Short: "Have a virtual machine begin anew, as its reset button would", Args: exactly(1),
		Long: `Have a virtual machine that runs begin anew on its host, at once: what its guest has
not written to its disks is lost.`,
		Example: "  steadfast vm reset db1 --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.confirm(yes, "Reset machine %q, and lose what its guest has not written?", args[0]); err != nil {
				return err
			}
			r, err := a.vms().ResetMachine(cmd.Context(), &steadfastv1.ResetMachineRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.did(r.Machine, "machine %q begins anew", args[0])
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	a.complete(c, "", a.vmNames)
	return c
}

func (a *app) vmDelete() *cobra.Command {
	var yes bool
	req := &steadfastv1.DeleteMachineRequest{}
	c := &cobra.Command{
		Use: "delete VM", Short: "Delete a virtual machine that has stopped", Args: exactly(1),
		Long: `Delete a virtual machine that has stopped, with its volumes and all that is on them.
With --keep-volumes those stay, and "steadfast vm register" makes a machine of them
again.`,
		Example: "  steadfast vm delete db1 --yes\n  steadfast vm delete db1 --keep-volumes",
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			m, err := a.getVM(cmd.Context(), req.Name)
			if err != nil {
				return err
			}
			if err := a.confirm(yes || req.KeepVolumes, "Delete machine %q and all that is on its %d disks?", req.Name, len(m.Disks)); err != nil {
				return err
			}
			r, err := a.vms().DeleteMachine(cmd.Context(), req)
			if err != nil {
				return err
			}
			if req.KeepVolumes {
				return a.did(r, "deleted machine %q; its volumes are there still: \"steadfast vm register %s\" makes a machine of them", req.Name, m.Home)
			}
			return a.did(r, "deleted machine %q", req.Name)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.Flags().BoolVar(&req.KeepVolumes, "keep-volumes", false, "leave its volumes")
	c.Flags().BoolVar(&req.WithSnapshots, "with-snapshots", false, "also when its volumes have snapshots")
	a.complete(c, "", a.vmNames)
	return c
}
