package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
)

// targetCommand is "steadfast target".
func (a *app) targetCommand() *cobra.Command {
	return group("target", "Tend the names that initiators log in to",
		a.targetCreate(), a.targetList(), a.targetShow(), a.targetSet(), a.targetDelete())
}

// targetNames lists names for completion.
func (a *app) targetNames(ctx context.Context) []string {
	r, err := a.targets().ListTargets(ctx, &steadfastv1.ListTargetsRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, t := range r.Targets {
		names = append(names, t.Name)
	}
	return names
}

func (a *app) targetCreate() *cobra.Command {
	var alias string
	var groups []int32
	c := &cobra.Command{
		Use: "create [NAME]", Short: "Make a target", Args: between(0, 1),
		Long: `Make an iSCSI target. Without a name it gets one made from the node's
identifier. It admits nobody until a volume is mapped through it.`,
		Example: `  steadfast target create
  steadfast target create iqn.2026-11.com.example:san1 --alias "rack 3"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.targets().CreateTarget(cmd.Context(), &steadfastv1.CreateTargetRequest{Name: first(args), Alias: alias, Groups: groups})
			if err != nil {
				return err
			}
			return a.did(r.Target, "created target %s", r.Target.Name)
		},
	}
	c.Flags().StringVar(&alias, "alias", "", "a name for people, which initiators show")
	c.Flags().Int32SliceVar(&groups, "groups", nil, "only reachable through portals with these group tags")
	return c
}

func (a *app) targetList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List targets", Example: "  steadfast target list", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.targets().ListTargets(cmd.Context(), &steadfastv1.ListTargetsRequest{})
			if err != nil {
				return err
			}
			return table(a, r.Targets, "NAME ALIAS MAPPINGS INITIATORS SESSIONS", func(t *steadfastv1.Target) []any {
				return []any{t.Name, t.Alias, len(t.Mappings), len(t.Initiators), t.Sessions}
			})
		},
	}
}

func (a *app) targetShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show TARGET", Short: "Show a target", Example: "  steadfast target show iqn.2026-11.com.example:san1", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.targets().GetTarget(cmd.Context(), &steadfastv1.GetTargetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			t := r.Target
			return a.show(t, func(w io.Writer) {
				row(w, "name", t.Name)
				row(w, "alias", t.Alias)
				groups := "all"
				if len(t.Groups) > 0 {
					groups = strings.Trim(fmt.Sprint(t.Groups), "[]")
				}
				row(w, "portal groups", groups)
				for _, p := range t.Portals {
					row(w, "portal", fmt.Sprintf("%s,%d", p.Address, p.Group))
				}
				row(w, "sessions", t.Sessions)
				for _, i := range t.Initiators {
					row(w, "admits", i)
				}
				describeMappings(w, t.Mappings)
			})
		},
	}
	a.complete(c, "", a.targetNames)
	return c
}

func (a *app) targetSet() *cobra.Command {
	var alias string
	var groups []int32
	c := &cobra.Command{
		Use: "set TARGET", Short: "Change a target that has no sessions", Args: exactly(1),
		Example: `  steadfast target set iqn.2026-11.com.example:san1 --groups 1,2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &steadfastv1.SetTargetRequest{Name: args[0]}
			if cmd.Flags().Changed("alias") {
				req.Alias = &alias
			}
			if cmd.Flags().Changed("groups") {
				req.Groups = &steadfastv1.PortalGroups{Tags: groups}
			}
			if req.Alias == nil && req.Groups == nil {
				return fault.New(fault.Invalid, "nothing to change; give --alias or --groups")
			}
			r, err := a.targets().SetTarget(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Target, "changed target %s", r.Target.Name)
		},
	}
	c.Flags().StringVar(&alias, "alias", "", "a name for people, which initiators show")
	c.Flags().Int32SliceVar(&groups, "groups", nil, "only reachable through portals with these group tags; empty: all")
	a.complete(c, "", a.targetNames)
	return c
}

func (a *app) targetDelete() *cobra.Command {
	c := &cobra.Command{
		Use: "delete TARGET", Short: "Delete a target that nothing is mapped through", Args: exactly(1),
		Example: "  steadfast target delete iqn.2026-11.com.example:san1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := a.targets().DeleteTarget(cmd.Context(), &steadfastv1.DeleteTargetRequest{Name: args[0]}); err != nil {
				return err
			}
			return a.did(nil, "deleted target %s", args[0])
		},
	}
	a.complete(c, "", a.targetNames)
	return c
}
