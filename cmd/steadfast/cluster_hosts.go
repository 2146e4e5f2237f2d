package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
)

// hostClusterNames lists names for completion.
func (a *app) hostClusterNames(ctx context.Context) []string {
	r, err := a.datacenters().ListHostClusters(ctx, &steadfastv1.ListHostClustersRequest{})
	if err != nil {
		return nil
	}
	return namesOf(r.Clusters)
}

// membersAndClusters are the names that "cluster set" takes.
func (a *app) membersAndClusters(ctx context.Context) []string {
	return append(a.memberNames(ctx), a.hostClusterNames(ctx)...)
}

func (a *app) clusterCreate() *cobra.Command {
	req := &steadfastv1.CreateHostClusterRequest{}
	c := &cobra.Command{
		Use: "create NAME --datacenter DATACENTER", Short: "Make a cluster of hosts", Args: exactly(1),
		Long: `Make a cluster of hosts, which take machines over from one another. With --ha the
machines of a host that is lost are started again on the others. The quorum,
of storage nodes and a witness, is another thing: "steadfast cluster init".`,
		Example: "  steadfast cluster create prod --datacenter dc1 --ha",
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			r, err := a.datacenters().CreateHostCluster(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Cluster, "created cluster %q of hosts in datacenter %q", req.Name, r.Cluster.GetDatacenter())
		},
	}
	c.Flags().StringVar(&req.Datacenter, "datacenter", "", "the datacenter (default: the only one)")
	c.Flags().BoolVar(&req.Ha, "ha", false, "start the machines of a lost host on others")
	a.complete(c, "datacenter", a.datacenterNames)
	return c
}

func (a *app) clusterList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List clusters of hosts", Example: "  steadfast cluster list", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.datacenters().ListHostClusters(cmd.Context(), &steadfastv1.ListHostClustersRequest{})
			if err != nil {
				return err
			}
			return table(a, r.Clusters, "NAME DATACENTER HA HOSTS MACHINES WAITING", func(k *steadfastv1.HostCluster) []any {
				return []any{k.Name, k.Datacenter, onOff(k.Ha), strings.Join(k.Hosts, ","), len(k.Machines), len(k.Waiting)}
			})
		},
	}
}

// showHostCluster is "cluster show NAME".
func (a *app) showHostCluster(ctx context.Context, name string) error {
	r, err := a.datacenters().ListHostClusters(ctx, &steadfastv1.ListHostClustersRequest{})
	if err != nil {
		return err
	}
	k, err := pick("cluster", name, r.Clusters)
	if err != nil {
		return err
	}
	return a.show(k, func(w io.Writer) {
		row(w, "cluster", k.Name)
		row(w, "datacenter", k.Datacenter)
		row(w, "high availability", onOff(k.Ha))
		rows(w, "host", k.Hosts)
		rows(w, "machine", k.Machines)
		for _, m := range k.Waiting {
			row(w, "waits", m.Machine+": "+m.Why)
		}
	})
}

func (a *app) clusterDelete() *cobra.Command {
	c := &cobra.Command{
		Use: "delete NAME", Short: "Delete a cluster that has neither hosts nor machines", Args: exactly(1), Example: "  steadfast cluster delete prod",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := a.datacenters().DeleteHostCluster(cmd.Context(), &steadfastv1.DeleteHostClusterRequest{Name: args[0]}); err != nil {
				return err
			}
			return a.did(nil, "deleted cluster %q", args[0])
		},
	}
	a.complete(c, "", a.hostClusterNames)
	return c
}
