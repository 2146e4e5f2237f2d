package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/node/size"
)

// hostCommand is "steadfast host".
func (a *app) hostCommand() *cobra.Command {
	return group("host", "Tend hosts: members that run a cluster's machines",
		a.hostAdd(), a.hostList(), a.hostShow(), a.hostSet(), a.hostMaintenance(), a.hostRemove())
}

// hostNames lists names for completion.
func (a *app) hostNames(ctx context.Context) []string {
	r, err := a.datacenters().ListHosts(ctx, &steadfastv1.ListHostsRequest{})
	if err != nil {
		return nil
	}
	return namesOf(r.Hosts)
}

// linkFlags adds the flags of a host's links.
func linkFlags(c *cobra.Command, management, migration, logging *string) {
	const none = "; empty: as the management link"
	c.Flags().StringVar(management, "management", "", "address and port that it is managed at")
	c.Flags().StringVar(migration, "migration", "", "address and port that machines move to it by"+none)
	c.Flags().StringVar(logging, "logging", "", "address and port of fault tolerance's logging channel"+none)
}

func (a *app) hostAdd() *cobra.Command {
	req := &steadfastv1.AddHostRequest{Links: &steadfastv1.Links{}}
	c := &cobra.Command{
		Use: "add NAME --cluster CLUSTER", Short: "Have a member of the role host run a cluster's machines", Args: exactly(1),
		Long: `Have a member of the role host run machines of a cluster of hosts. It has joined
before, by "steadfast cluster token --role host"; its name is the member's.`,
		Example: `  steadfast host add h1 --cluster prod
  steadfast host add h2 --cluster prod --migration 10.0.1.2:7500 --logging 10.0.2.2:7501`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			r, err := a.datacenters().AddHost(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Host, "host %q runs machines of cluster %q", req.Name, r.Host.GetCluster())
		},
	}
	c.Flags().StringVar(&req.Cluster, "cluster", "", "the cluster of hosts (default: the only one)")
	linkFlags(c, &req.Links.Management, &req.Links.Migration, &req.Links.Logging)
	a.complete(c, "", a.hostMembers)
	a.complete(c, "cluster", a.hostClusterNames)
	return c
}

// hostMembers lists the members that can be added as hosts, for completion.
func (a *app) hostMembers(ctx context.Context) []string {
	r, err := a.clusters().GetCluster(ctx, &steadfastv1.GetClusterRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, m := range r.Cluster.Members {
		if m.Role == "host" {
			names = append(names, m.Name)
		}
	}
	return names
}

// hostState is a host's state in a word or two.
func hostState(h *steadfastv1.Host) string {
	if h.Maintenance {
		return h.State + ",maintenance"
	}
	return h.State
}

// memoryText says how much of a host's memory machines have.
func memoryText(h *steadfastv1.Host) string {
	if h.Memory == 0 {
		return ""
	}
	return size.Format(int64(h.MemoryGiven)) + " of " + size.Format(int64(h.Memory))
}

func (a *app) hostList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List hosts", Example: "  steadfast host list", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.datacenters().ListHosts(cmd.Context(), &steadfastv1.ListHostsRequest{})
			if err != nil {
				return err
			}
			return table(a, r.Hosts, "NAME CLUSTER STATE SINCE BOX CPUS MEMORY-GIVEN MACHINES SECONDARIES", func(h *steadfastv1.Host) []any {
				return []any{h.Name, h.Cluster, hostState(h), when(h.Since), h.Box, h.Cpus, memoryText(h), len(h.Machines), len(h.Secondaries)}
			})
		},
	}
}

func (a *app) hostShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show HOST", Short: "Show a host", Example: "  steadfast host show h1", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.datacenters().ListHosts(cmd.Context(), &steadfastv1.ListHostsRequest{})
			if err != nil {
				return err
			}
			h, err := pick("host", args[0], r.Hosts)
			if err != nil {
				return err
			}
			return a.show(h, func(w io.Writer) { hostRows(w, h) })
		},
	}
	a.complete(c, "", a.hostNames)
	return c
}

func hostRows(w io.Writer, h *steadfastv1.Host) {
	row(w, "host", h.Name)
	row(w, "cluster", h.Cluster)
	row(w, "state", h.State)
	row(w, "since", when(h.Since))
	row(w, "maintenance", onOff(h.Maintenance))
	if h.Boot > 0 {
		row(w, "life", h.Boot)
		row(w, "version", strings.TrimSpace(h.Version+" "+h.Build))
		row(w, "box", h.Box)
		row(w, "processors", h.Cpus)
		row(w, "memory given", memoryText(h))
	}
	row(w, "management", h.Links.GetManagement())
	row(w, "migration", h.Links.GetMigration())
	row(w, "logging", h.Links.GetLogging())
	rows(w, "machine", h.Machines)
	rows(w, "secondary of", h.Secondaries)
}

func (a *app) hostSet() *cobra.Command {
	var management, migration, logging string
	c := &cobra.Command{
		Use: "set HOST", Short: "Change a host's links", Args: exactly(1),
		Long:    "Change the addresses of a host's links. Those that are not given stay.",
		Example: "  steadfast host set h2 --migration 10.0.1.2:7500 --logging=",
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &steadfastv1.SetHostRequest{Name: args[0]}
			for _, f := range []struct {
				name string
				from *string
				to   **string
			}{{"management", &management, &req.Management}, {"migration", &migration, &req.Migration}, {"logging", &logging, &req.Logging}} {
				if cmd.Flags().Changed(f.name) {
					*f.to = f.from
				}
			}
			r, err := a.datacenters().SetHost(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Host, "changed host %q", args[0])
		},
	}
	linkFlags(c, &management, &migration, &logging)
	a.complete(c, "", a.hostNames)
	return c
}

func (a *app) hostMaintenance() *cobra.Command {
	var off bool
	c := &cobra.Command{
		Use: "maintenance HOST", Short: "Have machines leave a host, before work on it", Args: exactly(1),
		Long: `Take a host into maintenance: it gets no machines, and those on it are shut down
and started on other hosts of its cluster, as far as those have the memory.
"steadfast host show" tells which are still there.`,
		Example: `  steadfast host maintenance h1
  steadfast host maintenance h1 --off`,
		RunE: func(cmd *cobra.Command, args []string) error {
			on := !off
			r, err := a.datacenters().SetHost(cmd.Context(), &steadfastv1.SetHostRequest{Name: args[0], Maintenance: &on})
			switch {
			case err != nil:
				return err
			case off:
				return a.did(r.Host, "host %q takes machines again", args[0])
			case len(r.Host.GetMachines()) == 0:
				return a.did(r.Host, "host %q is in maintenance, and runs no machines", args[0])
			}
			return a.did(r.Host, "host %q is in maintenance; to leave it: %s", args[0], strings.Join(r.Host.GetMachines(), ", "))
		},
	}
	c.Flags().BoolVar(&off, "off", false, "end the maintenance")
	a.complete(c, "", a.hostNames)
	return c
}

func (a *app) hostRemove() *cobra.Command {
	c := &cobra.Command{
		Use: "remove HOST", Short: "Take a host that runs nothing out of its cluster of hosts", Args: exactly(1),
		Long: `Take a host out of its cluster of hosts. It must run no machines: see "steadfast
host maintenance". It stays a member; "steadfast cluster remove" ends that, too.`,
		Example: "  steadfast host remove h1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := a.datacenters().RemoveHost(cmd.Context(), &steadfastv1.RemoveHostRequest{Name: args[0]}); err != nil {
				return err
			}
			return a.did(nil, "removed host %q; it is a member still", args[0])
		},
	}
	a.complete(c, "", a.hostNames)
	return c
}
