package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
)

// initiatorCommand is "steadfast initiator".
func (a *app) initiatorCommand() *cobra.Command {
	return group("initiator", "Tend the list of initiators that may log in",
		a.initiatorAdd(), a.initiatorList(), a.initiatorShow(), a.initiatorSet(), a.initiatorRemove())
}

// initiatorNames lists names and groups for completion.
func (a *app) initiatorNames(ctx context.Context) []string {
	r, err := a.initiators().ListInitiators(ctx, &steadfastv1.ListInitiatorsRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, i := range r.Initiators {
		names = append(names, i.Name)
		if i.Group != "" {
			names = append(names, i.Group)
		}
	}
	return names
}

// chapFlags are the flags by which secrets come in: by file, by standard
// input, or typed; never as an argument, which every user of the machine could
// read in the list of processes.
type chapFlags struct {
	user, secretFile             string
	mutualUser, mutualSecretFile string
}

func (f *chapFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.user, "chap-user", "", "the CHAP name that the initiator must prove")
	c.Flags().StringVar(&f.secretFile, "chap-secret-file", "", "file with the secret, 12 to 255 bytes (\"-\": standard input; default: asked for)")
	c.Flags().StringVar(&f.mutualUser, "mutual-user", "", "the CHAP name that the node proves in turn")
	c.Flags().StringVar(&f.mutualSecretFile, "mutual-secret-file", "", "file with that secret")
}

// read returns the secrets that the flags ask for; nil where they say nothing.
func (f *chapFlags) read(a *app, c *cobra.Command) (chap, mutual *steadfastv1.Chap, err error) {
	if f.secretFile == "-" && f.mutualSecretFile == "-" {
		return nil, nil, fault.New(fault.Invalid, "standard input holds one secret; give the other by a file")
	}
	one := func(userFlag, user, fileFlag, file, prompt string) (*steadfastv1.Chap, error) {
		switch changed := c.Flags().Changed(userFlag); {
		case !changed && file != "":
			return nil, fault.New(fault.Invalid, "--%s needs --%s as well", fileFlag, userFlag)
		case !changed:
			return nil, nil
		case user == "":
			return &steadfastv1.Chap{}, nil
		}
		secret, err := a.secret(file, "--"+fileFlag, prompt)
		return &steadfastv1.Chap{User: user, Secret: secret}, err
	}
	if chap, err = one("chap-user", f.user, "chap-secret-file", f.secretFile, "CHAP secret: "); err != nil {
		return nil, nil, err
	}
	mutual, err = one("mutual-user", f.mutualUser, "mutual-secret-file", f.mutualSecretFile, "mutual CHAP secret: ")
	return chap, mutual, err
}

func (a *app) initiatorAdd() *cobra.Command {
	var chap chapFlags
	var comment, groupName string
	c := &cobra.Command{
		Use: "add NAME", Short: "Let an initiator be known", Args: exactly(1),
		Long: `Add an initiator by its iSCSI name. It sees nothing, and is admitted nowhere,
until a volume is mapped to it or to its group.

Secrets are read from a file, from standard input ("-") or from the terminal;
12 to 16 bytes work with every initiator.`,
		Example: `  steadfast initiator add iqn.1993-08.org.debian:01:host1 --chap-user host1 --chap-secret-file secret
  steadfast initiator add iqn.1998-01.com.vmware:esx1 --group esx-cluster`,
		RunE: func(cmd *cobra.Command, args []string) error {
			in, mutual, err := chap.read(a, cmd)
			if err != nil {
				return err
			}
			r, err := a.initiators().AddInitiator(cmd.Context(), &steadfastv1.AddInitiatorRequest{
				Name: args[0], Comment: comment, Group: groupName, Chap: in, Mutual: mutual,
			})
			if err != nil {
				return err
			}
			return a.did(r.Initiator, "added initiator %s", r.Initiator.Name)
		},
	}
	chap.add(c)
	c.Flags().StringVar(&comment, "comment", "", "a note for people")
	c.Flags().StringVar(&groupName, "group", "", "the group it belongs to; volumes can be mapped to a group")
	return c
}

func (a *app) initiatorList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List initiators", Example: "  steadfast initiator list", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.initiators().ListInitiators(cmd.Context(), &steadfastv1.ListInitiatorsRequest{})
			if err != nil {
				return err
			}
			return table(a, r.Initiators, "NAME GROUP CHAP MUTUAL MAPPINGS SESSIONS COMMENT", func(i *steadfastv1.Initiator) []any {
				return []any{i.Name, i.Group, i.ChapUser, i.MutualUser, len(i.Mappings), i.Sessions, i.Comment}
			})
		},
	}
}

func (a *app) initiatorShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show NAME", Short: "Show an initiator", Example: "  steadfast initiator show iqn.1993-08.org.debian:01:host1", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.initiators().GetInitiator(cmd.Context(), &steadfastv1.GetInitiatorRequest{Name: args[0]})
			if err != nil {
				return err
			}
			i := r.Initiator
			return a.show(i, func(w io.Writer) {
				row(w, "name", i.Name)
				row(w, "comment", i.Comment)
				row(w, "group", i.Group)
				row(w, "CHAP user", i.ChapUser)
				row(w, "mutual CHAP user", i.MutualUser)
				row(w, "sessions", i.Sessions)
				describeMappings(w, i.Mappings)
			})
		},
	}
	a.complete(c, "", a.initiatorNames)
	return c
}

func (a *app) initiatorSet() *cobra.Command {
	var chap chapFlags
	var comment, groupName string
	c := &cobra.Command{
		Use: "set NAME", Short: "Change an initiator", Args: exactly(1),
		Long: `Change an initiator. An empty --chap-user or --mutual-user removes the secret.
Open sessions stay; the new secret is asked for at the next login.`,
		Example: `  steadfast initiator set iqn.1993-08.org.debian:01:host1 --chap-user host1 --chap-secret-file -
  steadfast initiator set iqn.1998-01.com.vmware:esx1 --group esx-cluster`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &steadfastv1.SetInitiatorRequest{Name: args[0]}
			var err error
			if req.Chap, req.Mutual, err = chap.read(a, cmd); err != nil {
				return err
			}
			if cmd.Flags().Changed("comment") {
				req.Comment = &comment
			}
			if cmd.Flags().Changed("group") {
				req.Group = &groupName
			}
			if req.Chap == nil && req.Mutual == nil && req.Comment == nil && req.Group == nil {
				return fault.New(fault.Invalid, "nothing to change; give --chap-user, --mutual-user, --group or --comment")
			}
			r, err := a.initiators().SetInitiator(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Initiator, "changed initiator %s", r.Initiator.Name)
		},
	}
	chap.add(c)
	c.Flags().StringVar(&comment, "comment", "", "a note for people")
	c.Flags().StringVar(&groupName, "group", "", "the group it belongs to; empty: none")
	a.complete(c, "", a.initiatorNames)
	return c
}

func (a *app) initiatorRemove() *cobra.Command {
	c := &cobra.Command{
		Use: "remove NAME", Short: "Remove an initiator that nothing is mapped to", Args: exactly(1),
		Example: "  steadfast initiator remove iqn.1993-08.org.debian:01:host1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := a.initiators().RemoveInitiator(cmd.Context(), &steadfastv1.RemoveInitiatorRequest{Name: args[0]}); err != nil {
				return err
			}
			return a.did(nil, "removed initiator %s", args[0])
		},
	}
	a.complete(c, "", a.initiatorNames)
	return c
}
