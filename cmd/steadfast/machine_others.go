package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"steadfast/compute/vmm/standalone"
	"steadfast/node/size"
)

func (a *app) machineList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the machines that run here", Example: "  steadfast machine list", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := a.socketsDir()
			if err != nil {
				return err
			}
			all, silent := standalone.List(cmd.Context(), dir)
			if a.output == "json" {
				return errors.Join(a.printJSON(append([]standalone.Info{}, all...)), silent)
			}
			w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
			row(w, "MACHINE", "PID", "SINCE", "MEMORY", "INSTRUCTIONS", "RESTARTS", "FORWARDS")
			for _, m := range all {
				row(w, m.Name, m.PID, m.Began.Local().Format(time.DateTime), size.Format(int64(m.Memory)), counted(m.Status.Count), m.Restarts, strings.Join(m.Forwards, " "))
			}
			return errors.Join(w.Flush(), silent)
		},
	}
}

func (a *app) machineShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show NAME", Short: "Show a machine that runs here", Example: "  steadfast machine show vm1 --output json", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.socketsDir()
			if err != nil {
				return err
			}
			m, err := standalone.Find(cmd.Context(), dir, args[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.printJSON(m)
			}
			return a.showMachine(m)
		},
	}
	a.complete(c, "", a.machineNames)
	return c
}

func (a *app) showMachine(m standalone.Info) error {
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	s := m.Status
	row(w, "machine", m.Name)
	row(w, "process", m.PID)
	row(w, "since", m.Began.Local().Format(time.DateTime))
	row(w, "restarts", m.Restarts)
	row(w, "state", m.State)
	row(w, "memory", size.Format(int64(m.Memory)))
	row(w, "kernel", m.Kernel)
	row(w, "command line", m.CommandLine)
	for _, d := range m.Disks {
		row(w, "disk", d)
	}
	for _, f := range m.Forwards {
		row(w, "forward", f)
	}
	row(w, "instructions", counted(s.Count))
	row(w, "of them idle", counted(s.Idled))
	row(w, "guest's time", seconds(s.GuestNS))
	row(w, "behind by", s.Counters.Lag.Round(time.Millisecond))
	row(w, "inputs", counted(s.Counters.Inputs))
	row(w, "outputs", counted(s.Counters.Outputs))
	row(w, "frames dropped", counted(s.FramesDropped))
	if m.Record != "" {
		row(w, "recorded in", m.Record)
		row(w, "log", size.Format(s.Counters.LogBytes))
	}
	return w.Flush()
}

func (a *app) machineConsole() *cobra.Command {
	c := &cobra.Command{
		Use: "console NAME", Short: "Attach to a machine's console", Example: "  steadfast machine console vm1", Args: exactly(1),
		Long: `Attach to the console of a machine that runs here, until the machine ends or standard
input does. Several may be attached; one that does not read is dropped.

` + standalone.EscapeHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.socketsDir()
			if err != nil {
				return err
			}
			return a.attachConsole(cmd.Context(), dir, args[0])
		},
	}
	a.complete(c, "", a.machineNames)
	return c
}

// attachConsole makes this terminal, or standard input and output, a machine's console.
func (a *app) attachConsole(ctx context.Context, dir, name string) error {
	at, err := standalone.Attach(ctx, dir, name)
	if err != nil {
		return err
	}
	restore := func() {}
	if isTerminal(a.in) {
		if restore, err = rawTerminal(a.in.(*os.File)); err != nil {
			return errors.Join(err, at.Close())
		}
		a.note("(%s)\r\n", standalone.EscapeHelp)
		go a.watchKeys(func(p []byte) error { _, err := at.Write(p); return err }, func(k standalone.Key, times int) bool {
			if k == standalone.KeyPower {
				go func() {
					// How it ends is seen here by the console's end.
					_, _ = standalone.StopOther(ctx, dir, name, times > 1)
				}()
				return true
			}
			_ = at.Close() // which ends the other way
			return false
		})
	} else {
		go func() {
			_, _ = io.Copy(at, a.in)
			_ = at.Leave() // the machine has ended before, then
		}()
	}
	_, _ = io.Copy(a.out, at) // its end is the machine's, or ours
	restore()
	_ = at.Close()
	a.note("\n")
	return nil
}

func (a *app) machineStop() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "stop NAME", Short: "Press a machine's power button, and wait for its end", Args: exactly(1),
		Example: "  steadfast machine stop vm1\n  steadfast machine stop vm1 --force",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.socketsDir()
			if err != nil {
				return err
			}
			return interruptible(cmd.Context(), func(ctx context.Context) error {
				end, err := standalone.StopOther(ctx, dir, args[0], force)
				if err != nil && !(force && isCanceledByForce(ctx, err)) {
					return err
				}
				what := end.String()
				if err != nil {
					what = "by force"
				}
				return a.did(nil, "machine %q has ended: %s", args[0], what)
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "end it at once, as a power failure would")
	a.complete(c, "", a.machineNames)
	return c
}
