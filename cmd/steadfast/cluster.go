package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/fault"
	"steadfast/node/config"
)

// clusterCommand is "steadfast cluster".
func (a *app) clusterCommand() *cobra.Command {
	return group("cluster", "Tend the quorum of two storage nodes and a witness, and clusters of hosts",
		a.clusterInit(), a.clusterToken(), a.clusterJoin(), a.clusterShow(), a.clusterSet(), a.clusterRemove(), a.clusterLeave(),
		a.clusterRecover(), a.clusterShutdown(), a.clusterCreate(), a.clusterList(), a.clusterDelete())
}

// memberNames lists names for completion.
func (a *app) memberNames(ctx context.Context) []string {
	r, err := a.clusters().GetCluster(ctx, &steadfastv1.GetClusterRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, m := range r.Cluster.Members {
		names = append(names, m.Name)
	}
	return names
}

func (a *app) clusterInit() *cobra.Command {
	var name, address string
	c := &cobra.Command{
		Use: "init --name NAME --address HOST:PORT", Short: "Make a cluster with this node as its first member", Args: exactly(0),
		Long: `Make a cluster of which this storage node is the first member. The other
storage node and the witness join it by tokens ("steadfast cluster token").
The address is where the members reach one another; best on a network of its
own, for it carries the mirror's traffic.`,
		Example: "  steadfast cluster init --name a --address 10.0.0.1:7400",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.clusters().InitCluster(cmd.Context(), &steadfastv1.InitClusterRequest{Name: name, Address: address})
			if err != nil {
				return err
			}
			return a.did(r.Cluster, "created cluster %s with %s as its first member", r.Cluster.Id, name)
		},
	}
	memberFlags(c, &name, &address)
	return c
}

// memberFlags adds the flags of a node that becomes a member.
func memberFlags(c *cobra.Command, name, address *string) {
	c.Flags().StringVar(name, "name", "", "its name in the cluster, for good")
	c.Flags().StringVar(address, "address", "", "where the other members reach it, like 10.0.0.1:7400")
	for _, f := range []string{"name", "address"} {
		_ = c.MarkFlagRequired(f) // it fails only for a flag that the command has not
	}
}

func (a *app) clusterToken() *cobra.Command {
	var role string
	good := time.Hour
	c := &cobra.Command{
		Use: "token --role node|witness|host", Short: "Make a token by which one node, witness or host may join", Args: exactly(0),
		Long: `Make a token for one joiner, which will ask at this node. Whoever has it may
join once: hand it over as you would a password. The first line of the output
is the token; with --delete ID, a token that was made is taken back.`,
		Example: `  steadfast cluster token --role witness
  steadfast cluster token --role host
  steadfast cluster token --delete 3f09c2a61b77`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if id, _ := cmd.Flags().GetString("delete"); id != "" {
				if _, err := a.clusters().DeleteToken(cmd.Context(), &steadfastv1.DeleteTokenRequest{Id: id}); err != nil {
					return err
				}
				return a.did(nil, "deleted token %s", id)
			}
			r, err := a.clusters().CreateToken(cmd.Context(), &steadfastv1.CreateTokenRequest{Role: role, GoodSeconds: int64(good.Seconds())})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.did(r, "")
			}
			_, err = fmt.Fprintln(a.out, r.Token)
			a.note("good for one %s until %s\n", role, when(r.Expires))
			return err
		},
	}
	c.Flags().StringVar(&role, "role", "node", "what the joiner is to be: node, witness or host")
	a.complete(c, "role", func(context.Context) []string { return []string{"node", "witness", "host"} })
	c.Flags().DurationVar(&good, "good", good, "how long it is good")
	c.Flags().String("delete", "", "take back the token with this id")
	return c
}

func (a *app) clusterJoin() *cobra.Command {
	var name, address string
	c := &cobra.Command{
		Use: "join TOKEN --name NAME --address HOST:PORT", Short: "Make this node a member of a token's cluster", Args: exactly(1),
		Long: `Make this node, witness or host a member of the cluster that the token is of.
With - the token is read from standard input, where no list of processes shows
it. Initiators that this node knows are given to the cluster.`,
		Example: "  steadfast cluster join - --name b --address 10.0.0.2:7400",
		RunE: func(cmd *cobra.Command, args []string) error {
			token := args[0]
			if token == "-" {
				b, err := io.ReadAll(io.LimitReader(a.in, 1<<16))
				if err != nil {
					return fault.Wrap(fault.Invalid, err, "the token")
				}
				token = string(b)
			}
			r, err := a.clusters().JoinCluster(cmd.Context(), &steadfastv1.JoinClusterRequest{Token: strings.TrimSpace(token), Name: name, Address: address})
			if err != nil {
				return err
			}
			return a.did(r.Cluster, "joined cluster %s as %s", r.Cluster.Id, name)
		},
	}
	memberFlags(c, &name, &address)
	return c
}

func (a *app) clusterShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show [NAME]", Short: "Show the quorum's members, or a cluster of hosts", Args: between(0, 1),
		Long: `Show the members of the quorum: storage nodes, witness, hosts. With a name, show
that cluster of hosts.`,
		Example: `  steadfast cluster show
  steadfast cluster show prod`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.showHostCluster(cmd.Context(), args[0])
			}
			r, err := a.clusters().GetCluster(cmd.Context(), &steadfastv1.GetClusterRequest{})
			if err != nil {
				return err
			}
			k := r.Cluster
			return a.show(k, func(w io.Writer) {
				row(w, "cluster", k.Id)
				row(w, "this member", k.Self)
				row(w, "leader", k.Leader)
				if k.Problem != "" {
					row(w, "problem", k.Problem)
				}
				if k.Recovered > 0 {
					row(w, "recovered", fmt.Sprintf("%d times without a quorum", k.Recovered))
				}
				for _, m := range k.Members {
					row(w, "member", describeMember(m))
				}
				for _, t := range k.Tokens {
					row(w, "token", fmt.Sprintf("%s for a %s, until %s", t.Id, t.Role, when(t.Expires)))
				}
			})
		},
	}
	a.complete(c, "", a.hostClusterNames)
	return c
}

// describeMember says in a line what a member is.
func describeMember(m *steadfastv1.Member) string {
	text := fmt.Sprintf("%s: %s at %s, life %d", m.Name, m.Role, m.Address, m.Boot)
	if !m.Voter && m.Role != string(quorum.RoleHost) { // which never votes
		text += ", not voting yet"
	}
	if !m.Reachable {
		text += ", not heard of"
	}
	if m.Drained {
		text += ", drained"
	}
	return text
}

func (a *app) clusterSet() *cobra.Command {
	var address string
	var ha bool
	c := &cobra.Command{
		Use: "set NAME", Short: "Change where a member is reached, or a cluster of hosts", Args: exactly(1),
		Long: `With --address, change where the other members reach a member. It goes on to be
reached at the old address until it is started again.

With --ha or --ha=false, say whether machines of a cluster of hosts are started
again on other hosts when theirs is lost.`,
		Example: `  steadfast cluster set b --address 10.0.1.2:7400
  steadfast cluster set prod --ha`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case cmd.Flags().Changed("ha") && cmd.Flags().Changed("address"):
				return fault.New(fault.Invalid, "--address is of a member, --ha of a cluster of hosts; give one")
			case cmd.Flags().Changed("ha"):
				r, err := a.datacenters().SetHostCluster(cmd.Context(), &steadfastv1.SetHostClusterRequest{Name: args[0], Ha: &ha})
				if err != nil {
					return err
				}
				return a.did(r.Cluster, "cluster %q: high availability is %s", args[0], onOff(ha))
			case !cmd.Flags().Changed("address"):
				return fault.New(fault.Invalid, "nothing to change; say --address of a member, or --ha of a cluster of hosts")
			}
			r, err := a.clusters().SetMember(cmd.Context(), &steadfastv1.SetMemberRequest{Name: args[0], Address: address})
			if err != nil {
				return err
			}
			return a.did(r.Member, "%s is reached at %s", r.Member.Name, r.Member.Address)
		},
	}
	c.Flags().StringVar(&address, "address", "", "a member's new address, like 10.0.1.2:7400")
	c.Flags().BoolVar(&ha, "ha", false, "start the machines of a lost host on others")
	a.complete(c, "", a.membersAndClusters)
	return c
}

func (a *app) clusterRemove() *cobra.Command {
	c := &cobra.Command{
		Use: "remove MEMBER", Short: "Take another member out of the cluster, for good", Args: exactly(1),
		Long: `Take a member out of the cluster. One that is lost is replaced so: remove it,
and have its successor join by a token. A storage node is first replaced in the
groups that have their copies on it ("steadfast group set --replace").`,
		Example: "  steadfast cluster remove w",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := a.clusters().RemoveMember(cmd.Context(), &steadfastv1.RemoveMemberRequest{Name: args[0]}); err != nil {
				return err
			}
			return a.did(nil, "removed %s", args[0])
		},
	}
	a.complete(c, "", a.memberNames)
	return c
}

func (a *app) clusterLeave() *cobra.Command {
	var confirm string
	c := &cobra.Command{
		Use: "leave --confirm CLUSTER", Short: "Have this node forget a cluster that it was removed from", Args: exactly(0),
		Example: "  steadfast cluster leave --confirm 5c1f0a94be2d4f7e9a3b6c8d7e1f2a3b",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := a.clusters().LeaveCluster(cmd.Context(), &steadfastv1.LeaveClusterRequest{Cluster: confirm}); err != nil {
				return err
			}
			return a.did(nil, "this node is in no cluster any more")
		},
	}
	c.Flags().StringVar(&confirm, "confirm", "", "the cluster's identifier, as \"steadfast cluster show\" tells it")
	return c
}

func (a *app) clusterRecover() *cobra.Command {
	var path string
	var lost []string
	var newQuorum bool
	c := &cobra.Command{
		Use: "recover --new-quorum --lost MEMBER,...", Short: "Have this member go on alone when the majority is lost for good", Args: exactly(0),
		Long: `Make this member, which must not run, the only one of its cluster: for when two
of three are lost for good. Every other member is named, for it is given up:
decisions that this member has not seen are lost with them, and if one of them
still runs somewhere, both could serve the same group. New members join then,
by tokens. The groups stay: what this node holds of them goes on when it is in
sync, and else by "steadfast group promote".`,
		Example: "  steadfast cluster recover --new-quorum --lost b,w --config /etc/steadfast/steadfast.toml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			if !newQuorum {
				return fault.New(fault.Invalid, "this gives up the other members for good; say so with --new-quorum, and name them with --lost")
			}
			var names []quorum.Member
			for _, n := range lost {
				names = append(names, quorum.Member(n))
			}
			err = quorumio.Recover(cmd.Context(), quorumio.Options{
				Dir: filepath.Join(cfg.DataDir, "cluster"), Log: slog.New(slog.NewTextHandler(a.errs, &slog.HandlerOptions{Level: slog.LevelWarn})),
			}, names)
			if err != nil {
				return err
			}
			return a.did(nil, "this member is the only one now; start it, and have others join")
		},
	}
	c.Flags().StringVar(&path, "config", config.DefaultPath, "the member's configuration file")
	c.Flags().StringSliceVar(&lost, "lost", nil, "every other member")
	c.Flags().BoolVar(&newQuorum, "new-quorum", false, "that is what you want")
	return c
}

func (a *app) clusterShutdown() *cobra.Command {
	var confirm string
	c := &cobra.Command{
		Use: "shutdown --confirm CLUSTER", Short: "End every member, in the right order", Args: exactly(0),
		Long: `End the daemons of all members: hosts first, whose machines need their disks to
end, then the other storage node, the witness, and this node. Clients lose their disks until the cluster is started again.`,
		Example: "  steadfast cluster shutdown --confirm 5c1f0a94be2d4f7e9a3b6c8d7e1f2a3b",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := a.clusters().ShutdownCluster(cmd.Context(), &steadfastv1.ShutdownClusterRequest{Cluster: confirm}); err != nil {
				return err
			}
			return a.did(nil, "the cluster is ending")
		},
	}
	c.Flags().StringVar(&confirm, "confirm", "", "the cluster's identifier, as \"steadfast cluster show\" tells it")
	return c
}

// nodeDrain is "steadfast node drain".
func (a *app) nodeDrain() *cobra.Command {
	var resume bool
	c := &cobra.Command{
		Use: "drain [NODE]", Short: "Move every group away from a node, before work on it", Args: between(0, 1),
		Long: `Move every group that a node owns to its other node, and keep groups from
coming back until it is resumed. Without a name it is the node that is asked.`,
		Example: `  steadfast node drain a
  steadfast node drain a --resume`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.clusters().DrainNode(cmd.Context(), &steadfastv1.DrainNodeRequest{Name: first(args), Resume: resume})
			switch {
			case err != nil:
				return err
			case resume:
				return a.did(r, "it takes groups again")
			}
			if len(r.Moved) == 0 {
				return a.did(r, "it owns no groups, and gets none until it is resumed")
			}
			return a.did(r, "moved %d groups away: %s", len(r.Moved), strings.Join(r.Moved, ", "))
		},
	}
	c.Flags().BoolVar(&resume, "resume", false, "end the drain")
	a.complete(c, "", a.memberNames)
	return c
}

// witnessCommand is "steadfast witness".
func (a *app) witnessCommand() *cobra.Command {
	var dir, metrics, box string
	c := &cobra.Command{
		Use: "witness --data-dir DIR", Short: "Run a witness: the third vote, on any small box", Args: exactly(0),
		Long: `Run the witness of a cluster until SIGTERM or SIGINT. It holds no data and
serves none: it only votes. It joins by a token, over its own socket.`,
		Example: `  steadfast witness --data-dir /var/lib/steadfast-witness --socket /run/steadfast/witness.sock
  steadfast --socket /run/steadfast/witness.sock cluster join - --name w --address 10.0.0.3:7400`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := config.Default()
			cfg.DataDir, cfg.Socket, cfg.Cluster.Witness, cfg.Cluster.Box = dir, a.socketPath(), true, box
			if metrics != "" {
				if err := cfg.Metrics.UnmarshalText([]byte(metrics)); err != nil {
					return fault.Wrap(fault.Invalid, err, "--metrics-address")
				}
			}
			return a.serve(cmd.Context(), cfg)
		},
	}
	c.Flags().StringVar(&dir, "data-dir", "/var/lib/steadfast-witness", "where it keeps its membership")
	c.Flags().StringVar(&metrics, "metrics-address", "", "serve Prometheus metrics here, too, like 127.0.0.1:9620")
	c.Flags().StringVar(&box, "box", "", "what dies with it, as others that have the same, like rack1 (default: this computer)")
	return c
}
