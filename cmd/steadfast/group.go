package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/size"
)

// groupCommand is "steadfast group".
func (a *app) groupCommand() *cobra.Command {
	return group("group", "Tend resource groups: volumes mirrored on two nodes, behind alias IPs",
		a.groupCreate(), a.groupList(), a.groupShow(), a.groupMove(), a.groupSet(), a.groupVerify(), a.groupPromote(), a.groupDelete())
}

// groupNames lists names for completion.
func (a *app) groupNames(ctx context.Context) []string {
	r, err := a.groups().ListGroups(ctx, &steadfastv1.ListGroupsRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, g := range r.Groups {
		names = append(names, g.Name)
	}
	return names
}

// parseAliases reads ADDRESS/LENGTH[%INTERFACE].
func parseAliases(list []string) (out []*steadfastv1.GroupAlias) {
	for _, text := range list {
		address, name, _ := strings.Cut(text, "%")
		out = append(out, &steadfastv1.GroupAlias{Address: address, Interface: name})
	}
	return out
}

// failback reads a --failback: manual, or automatic with a delay.
func failback(text string) (way string, delay int64, err error) {
	way, after, given := strings.Cut(text, "=")
	if !given {
		return way, 0, nil
	}
	d, err := time.ParseDuration(after)
	if err != nil || way != "automatic" {
		return "", 0, fault.New(fault.Invalid, "--failback %q is neither manual nor automatic nor automatic=5m", text)
	}
	return way, int64(d.Seconds()), nil
}

func (a *app) groupCreate() *cobra.Command {
	req := &steadfastv1.CreateGroupRequest{}
	var aliases []string
	var back string
	c := &cobra.Command{
		Use: "create NAME --nodes A,B --alias ADDRESS/LENGTH", Short: "Make a resource group on two nodes", Args: exactly(1),
		Long: `Make a resource group: its volumes are mirrored on two nodes, and clients reach
them at its alias addresses, which are always where the group is served. The
first node named is preferred and owns it at first. An alias goes to the
interface that has an address of its network, or to the one named after %.`,
		Example: `  steadfast group create g1 --nodes a,b --alias 192.0.2.50/24
  steadfast group create g2 --nodes b,a --pool tank --alias 192.0.2.51/24%eth1 --failback automatic=5m`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name, req.Aliases = args[0], parseAliases(aliases)
			var err error
			if req.Failback, req.FailbackDelaySeconds, err = failback(back); err != nil {
				return err
			}
			if len(req.Pools) == 0 {
				r, err := a.pools().ListPools(cmd.Context(), &steadfastv1.ListPoolsRequest{})
				if err != nil {
					return err
				}
				if len(r.Pools) != 1 {
					return fault.New(fault.Invalid, "name the pool that the group is in on both nodes, with --pool")
				}
				req.Pools = []string{r.Pools[0].Name}
			}
			r, err := a.groups().CreateGroup(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Group, "created group %q on %s; its target is %s", r.Group.Name, strings.Join(r.Group.Nodes, " and "), r.Group.Target)
		},
	}
	c.Flags().StringSliceVar(&req.Nodes, "nodes", nil, "its two storage nodes, the preferred one first")
	c.Flags().StringSliceVar(&req.Pools, "pool", nil, "the pool on both nodes, or one for each")
	c.Flags().StringSliceVar(&aliases, "alias", nil, "an address that clients reach it at: ADDRESS/LENGTH[%INTERFACE]")
	c.Flags().StringVar(&back, "failback", "manual", "manual, or automatic[=DELAY]: back to the preferred node once it is in sync")
	c.Flags().BoolVar(&req.Multipath, "multipath", false, "also show the nodes' own portals, as ALUA paths")
	c.Flags().BoolVar(&req.ConfirmReads, "confirm-reads", false, "ask the other node for each read: for nodes that may be stopped with their clocks, as virtual machines are")
	c.Flags().StringVar(&req.Target, "target", "", "its iSCSI name (default: made from the cluster's)")
	a.complete(c, "nodes", a.memberNames)
	a.complete(c, "pool", a.poolNames)
	return c
}

func (a *app) groupList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List resource groups", Example: "  steadfast group list", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.groups().ListGroups(cmd.Context(), &steadfastv1.ListGroupsRequest{})
			if err != nil {
				return err
			}
			return table(a, r.Groups, "NAME STATE OWNER IN-SYNC ALIASES VOLUMES PROBLEM", func(g *steadfastv1.Group) []any {
				return []any{g.Name, g.State, g.Owner, strings.Join(g.InSync, ","), strings.Join(aliasTexts(g), ","), len(g.Volumes), g.Problem}
			})
		},
	}
}

func aliasTexts(g *steadfastv1.Group) (out []string) {
	for _, al := range g.Aliases {
		text := al.Address
		if al.Interface != "" {
			text += "%" + al.Interface
		}
		out = append(out, text)
	}
	return out
}

func (a *app) groupShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show GROUP", Short: "Show a resource group", Example: "  steadfast group show g1", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.groups().GetGroup(cmd.Context(), &steadfastv1.GetGroupRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.show(r.Group, func(w io.Writer) { groupRows(w, r.Group) })
		},
	}
	a.complete(c, "", a.groupNames)
	return c
}

func groupRows(w io.Writer, g *steadfastv1.Group) {
	row(w, "group", g.Name)
	row(w, "state", g.State)
	if g.Problem != "" {
		row(w, "problem", g.Problem)
	}
	for i, n := range g.Nodes {
		row(w, "node", fmt.Sprintf("%s, pool %s", n, g.Pools[i]))
	}
	row(w, "owner", g.Owner)
	row(w, "owner since", when(g.OwnerSince))
	row(w, "epoch", g.Epoch)
	row(w, "in sync", strings.Join(g.InSync, ", "))
	if s := g.Sync; s != nil {
		row(w, "sync", syncText(s))
	}
	for _, text := range aliasTexts(g) {
		row(w, "alias", text)
	}
	row(w, "target", g.Target)
	row(w, "portal group", g.PortGroup)
	row(w, "multipath", onOff(g.Multipath))
	row(w, "confirm reads", onOff(g.ConfirmReads))
	back := g.Failback
	if g.FailbackDelaySeconds > 0 {
		back += fmt.Sprintf(" after %v", time.Duration(g.FailbackDelaySeconds)*time.Second)
	}
	row(w, "preferred", g.Preferred+", failback "+back)
	row(w, "sessions", g.Sessions)
	for _, v := range g.Volumes {
		row(w, "volume", v)
	}
	if g.Revived > 0 {
		row(w, "revived", fmt.Sprintf("%d times after every node had died", g.Revived))
	}
	if g.Promoted > 0 {
		row(w, "promoted", fmt.Sprintf("%d times by an administrator, with a loss of data", g.Promoted))
	}
}

// syncText says in a line how the other copy is.
func syncText(s *steadfastv1.Sync) string {
	text := s.State
	if !s.Linked {
		text += ", no link to the other node"
	}
	if s.BytesLeft > 0 {
		text += ", " + size.Format(s.BytesLeft) + " differ"
	}
	if s.BytesPerSecond > 0 {
		text += fmt.Sprintf(", %.1f MB/s", float64(s.BytesPerSecond)/1e6)
	}
	if s.SecondsLeft > 0 {
		text += fmt.Sprintf(", %v left", time.Duration(s.SecondsLeft)*time.Second)
	}
	return text
}

func (a *app) groupMove() *cobra.Command {
	var to string
	c := &cobra.Command{
		Use: "move GROUP", Short: "Hand a group over to its other node, planned", Args: exactly(1),
		Example: "  steadfast group move g1 --to b",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.groups().MoveGroup(cmd.Context(), &steadfastv1.MoveGroupRequest{Name: args[0], To: to})
			if err != nil {
				return err
			}
			return a.did(r.Group, "moved group %q to %s", r.Group.Name, r.Group.Owner)
		},
	}
	c.Flags().StringVar(&to, "to", "", "the node (default: the other one)")
	a.complete(c, "", a.groupNames)
	a.complete(c, "to", a.memberNames)
	return c
}

func (a *app) groupSet() *cobra.Command {
	req := &steadfastv1.SetGroupRequest{}
	var aliases []string
	var preferred, back string
	c := &cobra.Command{
		Use: "set GROUP", Short: "Change a resource group", Args: exactly(1),
		Long: `Change a resource group. With --replace and --with, another storage node of the
cluster takes the place of one that was lost: it gets a whole copy. The same
node twice has it begin anew, in another pool.`,
		Example: `  steadfast group set g1 --preferred b --failback automatic=5m
  steadfast group set g1 --add-alias 192.0.2.60/24 --remove-alias 192.0.2.50
  steadfast group set g1 --replace b --with c --with-pool tank`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name, req.AddAliases = args[0], parseAliases(aliases)
			if cmd.Flags().Changed("preferred") {
				req.Preferred = &preferred
			}
			if cmd.Flags().Changed("failback") {
				way, delay, err := failback(back)
				if err != nil {
					return err
				}
				req.Failback, req.FailbackDelaySeconds = &way, &delay
			}
			r, err := a.groups().SetGroup(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Group, "changed group %q", r.Group.Name)
		},
	}
	c.Flags().StringVar(&preferred, "preferred", "", "the node that it belongs on")
	c.Flags().StringVar(&back, "failback", "", "manual, or automatic[=DELAY]")
	c.Flags().StringSliceVar(&aliases, "add-alias", nil, "one more address: ADDRESS/LENGTH[%INTERFACE]")
	c.Flags().StringSliceVar(&req.RemoveAliases, "remove-alias", nil, "an address to give up")
	c.Flags().StringVar(&req.ReplaceNode, "replace", "", "a node that was lost")
	c.Flags().StringVar(&req.WithNode, "with", "", "the node that takes its place")
	c.Flags().StringVar(&req.WithPool, "with-pool", "", "the pool there (default: of the same name)")
	a.complete(c, "", a.groupNames)
	a.complete(c, "preferred", a.memberNames)
	return c
}

func (a *app) groupVerify() *cobra.Command {
	c := &cobra.Command{
		Use: "verify GROUP", Short: "Compare both copies of a group while it is used", Args: exactly(1),
		Long: `Compare what the two nodes hold: both freeze their volumes at one moment between
two writes, and read what was frozen, and the snapshots there are. Ends with
status 81 when they differ.`,
		Example: "  steadfast group verify g1",
		RunE: func(cmd *cobra.Command, args []string) error {
			stream, err := a.groups().VerifyGroup(cmd.Context(), &steadfastv1.VerifyGroupRequest{Name: args[0]})
			if err != nil {
				return a.answer(err)
			}
			last := &steadfastv1.VerifyGroupResponse{}
			for stream.Receive() {
				last = stream.Msg()
				if isTerminal(a.errs) {
					a.note("\r%s of %s", size.Format(last.ComparedBytes), size.Format(last.TotalBytes))
				}
			}
			if isTerminal(a.errs) {
				a.note("\n")
			}
			switch {
			case stream.Err() != nil:
				return a.answer(stream.Err())
			case last.DifferentMebibytes > 0:
				return fault.New(fault.Corrupt, "the copies differ in %d MiB, the last at %d of volume %q; see docs/OPERATING.md", last.DifferentMebibytes, last.OffsetBytes, last.Volume)
			}
			return a.did(last, "both copies of group %q are the same: %s compared", args[0], size.Format(last.ComparedBytes))
		},
	}
	a.complete(c, "", a.groupNames)
	return c
}

func (a *app) groupPromote() *cobra.Command {
	req := &steadfastv1.PromoteGroupRequest{}
	c := &cobra.Command{
		Use: "promote GROUP --accept-data-loss WHAT", Short: "Have this node go on with a group without the newest copy", Args: exactly(1),
		Long: `Make this node the owner of a group although it lacks writes that were
acknowledged: for when the node that has them is lost for good. What is lost
has to be typed; without it the command says what that is.`,
		Example: "  steadfast group promote g1 --accept-data-loss what-only-a-has",
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			r, err := a.groups().PromoteGroup(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Group, "this node goes on with group %q; what only the other had is lost", r.Group.Name)
		},
	}
	c.Flags().StringVar(&req.AcceptDataLoss, "accept-data-loss", "", "what is given up, as the command without it says")
	a.complete(c, "", a.groupNames)
	return c
}

func (a *app) groupDelete() *cobra.Command {
	c := &cobra.Command{
		Use: "delete GROUP", Short: "Delete a group that has no volumes", Args: exactly(1), Example: "  steadfast group delete g1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := a.groups().DeleteGroup(cmd.Context(), &steadfastv1.DeleteGroupRequest{Name: args[0]}); err != nil {
				return err
			}
			return a.did(nil, "deleted group %q", args[0])
		},
	}
	a.complete(c, "", a.groupNames)
	return c
}
