// Command steadfast is the whole product in one binary: storage node, host and witness, and
// the command line that administers them over their API. This package parses, calls and
// prints, a file a verb; package node decides.
//
//	node, witness                      the daemon; guard and the vmm of each machine are this program, too
//	pool, drive, volume, snapshot,
//	target, initiator, session         storage of one node
//	cluster, group                     members, and what they mirror
//	datacenter, host, vm, ft, image    machines, and who runs them
//	status, events, version            what there is, and what happens
//	machine, switch                    a machine without a cluster; a switch without root
//	up*, demo                          all of it on loopback, and its end
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"steadfast/fault"
)

// version is set by the linker for releases.
var version = "dev"

func main() {
	a := &app{in: os.Stdin, out: os.Stdout, errs: os.Stderr, getenv: os.Getenv}
	os.Exit(a.run(context.Background(), os.Args[1:]))
}

// app is one run of the command line.
type app struct {
	in     io.Reader
	out    io.Writer
	errs   io.Writer
	getenv func(string) string

	socket string
	output string
	// parsed is set once arguments and flags were found right: what fails
	// before that is the caller's mistake.
	parsed bool
}

// run runs one command and returns the process's exit status, which is that
// of the error's kind in the fault table.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit exitStatus
	if errors.As(err, &exit) {
		return int(exit)
	}
	kind := fault.KindOf(err)
	if !a.parsed && kind == fault.Internal {
		kind = fault.Invalid
	}
	a.note("steadfast: %v\n", err)
	return kind.Of().Exit
}

// exitStatus ends the program with a status of its own, nothing printed.
type exitStatus int

// Error implements error.
func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// root returns the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "steadfast",
		Short: "Storage that survives a node, machines that survive a host",
		Long: `Steadfast serves thin, checksummed volumes over iSCSI, mirrored on two nodes, and runs
virtual machines on them, on two hosts at once where they have fault tolerance.

"steadfast node" is the daemon; every other command talks to it over its
socket. "steadfast up" starts two nodes, a witness and three hosts with a fault-tolerant
machine on loopback, for a first look; "steadfast demo" kills them, "steadfast down" ends it.`,
		Example: `  steadfast pool create tank /dev/disk/by-id/nvme-XYZ
  steadfast volume create vm1 --size 100G
  steadfast initiator add iqn.1993-08.org.debian:01:host1 --chap-user host1
  steadfast volume map vm1 --initiator iqn.1993-08.org.debian:01:host1`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "table" && a.output != "json" {
				return fault.New(fault.Invalid, "--output %q is neither table nor json", a.output)
			}
			a.parsed = true
			return nil
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errs)
	root.PersistentFlags().StringVar(&a.socket, "socket", "", "the node's API socket (default $STEADFAST_SOCKET, or /run/steadfast/api.sock)")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "table or json")
	a.complete(root, "output", func(context.Context) []string { return []string{"table", "json"} })
	root.AddCommand(
		a.nodeCommand(), a.upCommand(), a.downCommand(), a.statusCommand(), a.eventsCommand(), a.bundleCommand(), a.versionCommand(),
		a.poolCommand(), a.driveCommand(), a.volumeCommand(), a.snapshotCommand(),
		a.targetCommand(), a.initiatorCommand(), a.sessionCommand(),
		a.clusterCommand(), a.groupCommand(), a.witnessCommand(), a.guardCommand(), a.demoCommand(), a.imageCommand(),
		a.machineCommand(), a.vmmCommand(), a.switchCommand(), a.manCommand(),
		a.datacenterCommand(), a.datastoreCommand(), a.hostCommand(), a.vmCommand(), a.ftCommand(),
	)
	return root
}

// group returns a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(commands...)
	return c
}

// noSuchCommand refuses a mistyped subcommand, with the nearest there is.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return fault.New(fault.Invalid, "%q is no command of %q; did you mean %q?", args[0], cmd.CommandPath(), cmd.CommandPath()+" "+near[0])
	}
	return fault.New(fault.Invalid, "%q is no command of %q; see %q", args[0], cmd.CommandPath(), cmd.CommandPath()+" --help")
}

// exactly demands n arguments, named as in the usage line.
func exactly(n int) cobra.PositionalArgs { return between(n, n) }

// between demands from min to max arguments; max < 0 is no bound.
func between(min, max int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= min && (max < 0 || len(args) <= max) {
			return nil
		}
		return fault.New(fault.Invalid, "usage: %s\nsee %q", cmd.UseLine(), cmd.CommandPath()+" --help")
	}
}

// versionCommand is "steadfast version".
func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the program's version", Example: "  steadfast version", Args: exactly(0),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.out, "steadfast", version)
			return err
		},
	}
}
