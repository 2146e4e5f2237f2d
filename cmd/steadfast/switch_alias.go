package main

import (
	"net/netip"

	"github.com/spf13/cobra"

	"steadfast/fault"
	"steadfast/node/config"
	"steadfast/node/handed"
)

// switchAlias is "steadfast switch alias".
func (a *app) switchAlias() *cobra.Command {
	var dirs []string
	var port uint16
	c := &cobra.Command{
		Use: "alias ADDRESS GROUP", Short: "Stand in for an alias address that moves between nodes, on loopback", Args: exactly(2),
		Long: `Listen at a resource group's alias address, and hand each connection to the node that serves
the group, until SIGTERM or SIGINT.

It is for a first look by hand on one computer: addresses of loopback do not move between
processes. Nodes there have "handed_aliases = true" under [cluster], and --node names their
data directories. A real node takes the alias with the group, and needs none of this.`,
		Example: "  steadfast switch alias 127.0.0.50 g1 --node ./a --node ./b",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := a.signals(cmd.Context())
			defer stop()
			at, err := netip.ParseAddr(args[0])
			if err != nil {
				return fault.New(fault.Invalid, "%q is no address, as 127.0.0.50 is", args[0])
			}
			if len(dirs) == 0 {
				return fault.New(fault.Invalid, "say the data directory of each node: --node ./a --node ./b")
			}
			o := handed.Options{Log: newLogger(a.errs, config.Log{})}
			for _, dir := range dirs {
				o.Nodes = append(o.Nodes, handed.Socket(dir))
			}
			k := handed.NewKeeper(o)
			defer k.Close()
			held, err := k.Hold(netip.AddrPortFrom(at, port), args[1])
			if err != nil {
				return err
			}
			a.note("%v is held for group %q\n", held, args[1])
			<-ctx.Done()
			return nil
		},
	}
	c.Flags().StringArrayVar(&dirs, "node", nil, "data directory of a node that may serve the group; repeated")
	c.Flags().Uint16Var(&port, "port", config.DefaultPort, "the port, as the nodes' alias_port is")
	return c
}
