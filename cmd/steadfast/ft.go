package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/fault"
	"steadfast/node/size"
)

// ftCommand is "steadfast ft".
func (a *app) ftCommand() *cobra.Command {
	return group("ft", "Tend fault tolerance: machines that run on two hosts at once",
		a.ftOn(), a.ftOff(), a.ftDisable(), a.ftEnable(), a.ftStatus(), a.ftTestFailover(), a.ftTestRestart(), a.ftMigrate())
}

func (a *app) protections() steadfastv1connect.FaultToleranceServiceClient {
	return steadfastv1connect.NewFaultToleranceServiceClient(a.transport(), baseURL, a.options())
}

// ftNames lists the names of machines with fault tolerance, for completion.
func (a *app) ftNames(ctx context.Context) (names []string) {
	list, err := a.protectedVMs(ctx)
	if err != nil {
		return nil
	}
	return namesOf(list)
}

// protectedVMs lists the machines with fault tolerance.
func (a *app) protectedVMs(ctx context.Context) (list []*steadfastv1.Machine, err error) {
	r, err := a.vms().ListMachines(ctx, &steadfastv1.ListMachinesRequest{})
	if err != nil {
		return nil, err
	}
	for _, m := range r.Machines {
		if m.Protection != nil {
			list = append(list, m)
		}
	}
	return list, nil
}

// ftVerb is a verb that changes one machine, and may wait for what comes of it.
type ftVerb struct {
	use, short, long, example string
	names                     func(context.Context) []string
	ask                       func(ctx context.Context, name string) (*steadfastv1.Machine, error)
	did                       string // with the machine's name
	// until tells whether what was wanted has come about; nil: nothing is waited for.
	until func(*steadfastv1.Machine) bool
	// waits is what --wait waits for.
	waits string
}

func (a *app) ftDo(v ftVerb) *cobra.Command {
	var wait bool
	var patience time.Duration
	c := &cobra.Command{
		Use: v.use, Short: v.short, Long: v.long, Example: v.example, Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return interruptible(cmd.Context(), func(ctx context.Context) error {
				m, err := v.ask(ctx, args[0])
				if err != nil {
					return err
				}
				if wait {
					return a.untilFT(ctx, args[0], patience, v.until)
				}
				return a.did(m, v.did, args[0])
			})
		},
	}
	if v.until != nil {
		waitFlags(c, &wait, &patience, v.waits)
	}
	a.complete(c, "", v.names)
	return c
}

// untilFT waits until a machine is protected as was wanted, and says what it has come to.
func (a *app) untilFT(ctx context.Context, name string, patience time.Duration, until func(*steadfastv1.Machine) bool) error {
	began := time.Now()
	m, err := a.awaitVM(ctx, name, patience, func(m *steadfastv1.Machine) (bool, string, error) {
		p := m.Protection
		switch {
		case until(m):
			return true, "", nil
		case p == nil:
			return false, "", fault.New(fault.Failed, "the fault tolerance of the machine %q was turned off meanwhile", name)
		case p.Why == "VM not Running" && m.State != "waiting":
			return false, "", fault.New(fault.Busy, "the machine %q does not run, and is protected once it does: \"steadfast vm start %s\"", name, name)
		}
		return false, ftProgress(m), nil
	})
	if err != nil {
		return err
	}
	after := time.Since(began).Seconds()
	if m.Protection.GetProtected() {
		return a.did(m, "machine %q is protected after %.1f s: it runs on host %q, and its secondary on %q", name, after, m.Host, m.Protection.SecondaryHost)
	}
	return a.did(m, "machine %q: %s", name, ftStatusText(m.Protection))
}

// ftProgress is what a machine waits for to be protected.
func ftProgress(m *steadfastv1.Machine) string {
	p := m.Protection
	text := ftStatusText(p)
	if p.Because != "" {
		text += " (" + p.Because + ")"
	}
	switch pair := m.Status.GetPair(); {
	case p.Waits != "":
		text += ": " + p.Waits
	case p.SecondaryHost != "" && pair.GetState() != "":
		text += ": on host " + p.SecondaryHost + ", " + pair.State
	case p.SecondaryHost != "":
		text += ": on host " + p.SecondaryHost
	case p.Detail != "":
		text += ": " + p.Detail
	}
	return text
}

// ftStatusText is how a machine is protected, in a few words; nil: it is off.
func ftStatusText(p *steadfastv1.Protection) string {
	switch {
	case p == nil:
		return "off"
	case p.Protected:
		return "Protected"
	}
	return "Not Protected: " + p.Why
}

func isProtected(m *steadfastv1.Machine) bool { return m.Protection.GetProtected() }

func (a *app) ftOn() *cobra.Command {
	return a.ftDo(ftVerb{
		use: "on VM", short: "Have a virtual machine run on two hosts at once",
		long: `Turn a virtual machine's fault tolerance on: another host, in another box, runs it in
lockstep as its secondary, and goes on when the machine's host dies, so that nobody can
tell. When one of the two is lost another is chosen by itself.

What that takes is checked before; "steadfast ft status VM --check" shows it. A machine that
does not run gets its secondary when it is started.`,
		example: "  steadfast ft on db1\n  steadfast ft on db1 --wait",
		names:   a.vmNames, did: "fault tolerance of machine %q is on", until: isProtected, waits: "is protected",
		ask: func(ctx context.Context, name string) (*steadfastv1.Machine, error) {
			r, err := a.protections().TurnOnFaultTolerance(ctx, &steadfastv1.TurnOnFaultToleranceRequest{Machine: name})
			return r.GetMachine(), err
		},
	})
}

func (a *app) ftOff() *cobra.Command {
	return a.ftDo(ftVerb{
		use: "off VM", short: "Have a virtual machine run on one host only", long: "Turn a virtual machine's fault tolerance off: its secondary ends, and it runs on.",
		example: "  steadfast ft off db1", names: a.ftNames, did: "fault tolerance of machine %q is off",
		ask: func(ctx context.Context, name string) (*steadfastv1.Machine, error) {
			r, err := a.protections().TurnOffFaultTolerance(ctx, &steadfastv1.TurnOffFaultToleranceRequest{Machine: name})
			return r.GetMachine(), err
		},
	})
}

func (a *app) ftDisable() *cobra.Command {
	return a.ftDo(ftVerb{
		use: "disable VM", short: "End a virtual machine's secondary for now",
		long:    "Disable a virtual machine's fault tolerance: its secondary ends, and it gets no other one until\nit is enabled. Nothing is checked again then.",
		example: "  steadfast ft disable db1", names: a.ftNames, did: "fault tolerance of machine %q is disabled",
		ask: func(ctx context.Context, name string) (*steadfastv1.Machine, error) {
			r, err := a.protections().DisableFaultTolerance(ctx, &steadfastv1.DisableFaultToleranceRequest{Machine: name})
			return r.GetMachine(), err
		},
	})
}

func (a *app) ftEnable() *cobra.Command {
	return a.ftDo(ftVerb{
		use: "enable VM", short: "Give a virtual machine a secondary again", example: "  steadfast ft enable db1 --wait", names: a.ftNames,
		did: "fault tolerance of machine %q is enabled", until: isProtected, waits: "is protected",
		ask: func(ctx context.Context, name string) (*steadfastv1.Machine, error) {
			r, err := a.protections().EnableFaultTolerance(ctx, &steadfastv1.EnableFaultToleranceRequest{Machine: name})
			return r.GetMachine(), err
		},
	})
}

func (a *app) ftTestRestart() *cobra.Command {
	return a.ftDo(ftVerb{
		use: "test-restart-secondary VM", short: "End a virtual machine's secondary, to see another be started",
		long:    "Test that a secondary is started again: the present one ends as if it had been lost, and another\nis chosen, maybe on the same host.",
		example: "  steadfast ft test-restart-secondary db1 --wait", names: a.ftNames,
		did: "the secondary of machine %q is started again", until: isProtected, waits: "is protected again",
		ask: func(ctx context.Context, name string) (*steadfastv1.Machine, error) {
			r, err := a.protections().TestRestartSecondary(ctx, &steadfastv1.TestRestartSecondaryRequest{Machine: name})
			return r.GetMachine(), err
		},
	})
}

func (a *app) ftMigrate() *cobra.Command {
	var wait bool
	var patience time.Duration
	c := &cobra.Command{
		Use: "migrate-secondary VM HOST", Short: "Have a virtual machine's secondary be on another host", Args: exactly(2),
		Long: `Move a virtual machine's secondary to another host. The one that there is ends, and one is made
on that host: until that is ready the machine is not protected.`,
		Example: "  steadfast ft migrate-secondary db1 h3 --wait",
		RunE: func(cmd *cobra.Command, args []string) error {
			return interruptible(cmd.Context(), func(ctx context.Context) error {
				r, err := a.protections().MigrateSecondary(ctx, &steadfastv1.MigrateSecondaryRequest{Machine: args[0], Host: args[1]})
				switch {
				case err != nil:
					return err
				case wait:
					return a.untilFT(ctx, args[0], patience, isProtected)
				}
				return a.did(r.Machine, "the secondary of machine %q moves to host %q", args[0], args[1])
			})
		},
	}
	waitFlags(c, &wait, &patience, "is protected again")
	a.complete(c, "", a.ftNames)
	return c
}

func (a *app) ftTestFailover() *cobra.Command {
	c := &cobra.Command{
		Use: "test-failover VM", Short: "Have a virtual machine's secondary go on, and see that nobody can tell", Args: exactly(1),
		Long: `Test a failover: the secondary of a machine that is protected goes on, and the machine's present
host runs it no more. Another secondary is chosen then. It returns when the other host runs
the machine, and says after what time the cluster knew so; the machine itself stands still
for much less.`,
		Example: "  steadfast ft test-failover db1",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.protections().TestFailover(cmd.Context(), &steadfastv1.TestFailoverRequest{Machine: args[0]})
			if err != nil {
				return err
			}
			return a.did(r, "machine %q runs on host %q, and not on %q any more, after %.3f s", args[0], r.To, r.From, time.Duration(r.TookNanoseconds).Seconds())
		},
	}
	a.complete(c, "", a.ftNames)
	return c
}

func (a *app) ftStatus() *cobra.Command {
	var check bool
	c := &cobra.Command{
		Use: "status [VM]", Short: "Show how virtual machines are protected", Args: between(0, 1),
		Long: `Show how fault tolerance has a virtual machine; without a name, all that have it on. A
machine is Protected, or Not Protected: Starting (its secondary gets ready), Need Secondary VM
(no host can take it now), Disabled, VM not Running. The reason says why it had to get a
secondary: initializing, divergence, lost connection, partial hardware failure, user action.

--check shows all that fault tolerance takes, and whether it is there.`,
		Example: "  steadfast ft status\n  steadfast ft status db1\n  steadfast ft status db1 --check",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case check && len(args) == 0:
				return fault.New(fault.Invalid, "--check is of one machine; name it: \"steadfast ft status VM --check\"")
			case check:
				return a.ftCheck(cmd.Context(), args[0])
			case len(args) == 0:
				return a.ftList(cmd.Context())
			}
			m, err := a.getVM(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(m, func(w io.Writer) { ftRows(w, m) })
		},
	}
	c.Flags().BoolVar(&check, "check", false, "show what it takes, and whether it is there")
	a.complete(c, "", a.vmNames)
	return c
}

func (a *app) ftCheck(ctx context.Context, name string) error {
	r, err := a.protections().CheckFaultTolerance(ctx, &steadfastv1.CheckFaultToleranceRequest{Machine: name})
	if err != nil {
		return err
	}
	return table(a, r.Prerequisites, "CODE MET WHAT REFUSAL", func(p *steadfastv1.Prerequisite) []any {
		met := "ok"
		if !p.Met {
			met = "refused"
		}
		return []any{p.Code, met, p.What, p.Refusal}
	})
}

func (a *app) ftList(ctx context.Context) error {
	list, err := a.protectedVMs(ctx)
	if err != nil {
		return err
	}
	return table(a, list, "NAME STATUS REASON HOST SECONDARY SINCE FAILOVERS DETAIL", func(m *steadfastv1.Machine) []any {
		p := m.Protection
		return []any{m.Name, ftStatusText(p), p.Because, m.Host, p.SecondaryHost, when(p.Since), p.Failovers, cmp.Or(p.Waits, p.Detail)}
	})
}

// ftRows shows how a machine is protected.
func ftRows(w io.Writer, m *steadfastv1.Machine) {
	row(w, "machine", m.Name)
	row(w, "fault tolerance", ftStatusText(m.Protection))
	row(w, "host", m.Host)
	ftDetailRows(w, m)
	if m.Silent != "" {
		row(w, "host does not say", m.Silent)
	}
}

// ftDetailRows shows what there is to be told of a machine's secondary.
func ftDetailRows(w io.Writer, m *steadfastv1.Machine) {
	p := m.Protection
	if p == nil {
		return
	}
	if p.Because != "" {
		row(w, "reason", p.Because)
	}
	if p.Detail != "" {
		row(w, "reason's detail", p.Detail)
	}
	if p.Waits != "" {
		row(w, "waits", p.Waits)
	}
	row(w, "secondary", p.SecondaryHost)
	if p.SecondaryHost == "" {
		return
	}
	row(w, "since", when(p.Since))
	row(w, "failovers", p.Failovers)
	if s := m.Status.GetPair(); s != nil {
		row(w, "pair", s.State)
		row(w, "lockstep interval", seconds(uint64(max(s.LagNanoseconds, 0))))
		row(w, "log bandwidth", bandwidth(s.LogBytesPerSecond))
		row(w, "log so far", size.Format(s.LogBytes))
		row(w, "last copy", size.Format(int64(s.CopyBytes))+", and a pause of "+seconds(uint64(max(s.PauseNanoseconds, 0))))
	}
	if s := p.Secondary; s != nil {
		row(w, "secondary on its host", firstOf(s.GetPair().GetState(), s.Step, s.Phase))
		row(w, "secondary's processor time", seconds(uint64(max(s.GetPair().GetCpuNanoseconds(), s.CpuNanoseconds, 0))))
		row(w, "secondary's memory", size.Format(int64(s.GetPair().GetMemoryBytes())))
	}
	if p.SecondarySilent != "" {
		row(w, "its host does not say", p.SecondarySilent)
	}
}

// bandwidth prints bytes per second as the field does.
func bandwidth(bytes int64) string {
	return fmt.Sprintf("%.3f Mbit/s", float64(bytes)*8/1e6)
}
