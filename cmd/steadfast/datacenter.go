package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
)

// datacenterCommand is "steadfast datacenter".
func (a *app) datacenterCommand() *cobra.Command {
	return group("datacenter", "Tend datacenters: what clusters of hosts and datastores are in",
		a.datacenterCreate(), a.datacenterList(), a.datacenterShow(), a.datacenterDelete())
}

// named is what has a name.
type named interface{ GetName() string }

// namesOf lists names for completion.
func namesOf[T named](list []T) []string {
	var names []string
	for _, t := range list {
		names = append(names, t.GetName())
	}
	return names
}

// pick returns the one of a list that has the name.
func pick[T named](kind, name string, list []T) (one T, err error) {
	for _, t := range list {
		if t.GetName() == name {
			return t, nil
		}
	}
	return one, fault.New(fault.NotFound, "%s %q does not exist; see \"steadfast %s list\"", kind, name, kind)
}

// datacenterNames lists names for completion.
func (a *app) datacenterNames(ctx context.Context) []string {
	r, err := a.datacenters().ListDatacenters(ctx, &steadfastv1.ListDatacentersRequest{})
	if err != nil {
		return nil
	}
	return namesOf(r.Datacenters)
}

func (a *app) datacenterCreate() *cobra.Command {
	return &cobra.Command{
		Use: "create NAME", Short: "Make a datacenter", Args: exactly(1), Example: "  steadfast datacenter create dc1",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.datacenters().CreateDatacenter(cmd.Context(), &steadfastv1.CreateDatacenterRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.did(r.Datacenter, "created datacenter %q", r.Datacenter.Name)
		},
	}
}

func (a *app) datacenterList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List datacenters", Example: "  steadfast datacenter list", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.datacenters().ListDatacenters(cmd.Context(), &steadfastv1.ListDatacentersRequest{})
			if err != nil {
				return err
			}
			return table(a, r.Datacenters, "NAME CLUSTERS DATASTORES", func(d *steadfastv1.Datacenter) []any {
				return []any{d.Name, strings.Join(d.Clusters, ","), strings.Join(d.Datastores, ",")}
			})
		},
	}
}

func (a *app) datacenterShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show DATACENTER", Short: "Show a datacenter", Example: "  steadfast datacenter show dc1", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.datacenters().ListDatacenters(cmd.Context(), &steadfastv1.ListDatacentersRequest{})
			if err != nil {
				return err
			}
			d, err := pick("datacenter", args[0], r.Datacenters)
			if err != nil {
				return err
			}
			return a.show(d, func(w io.Writer) {
				row(w, "datacenter", d.Name)
				rows(w, "cluster", d.Clusters)
				rows(w, "datastore", d.Datastores)
			})
		},
	}
	a.complete(c, "", a.datacenterNames)
	return c
}

// rows writes a line for each of a list.
func rows(w io.Writer, what string, list []string) {
	for _, s := range list {
		row(w, what, s)
	}
}

func (a *app) datacenterDelete() *cobra.Command {
	c := &cobra.Command{
		Use: "delete DATACENTER", Short: "Delete a datacenter that has neither clusters nor datastores", Args: exactly(1), Example: "  steadfast datacenter delete dc1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := a.datacenters().DeleteDatacenter(cmd.Context(), &steadfastv1.DeleteDatacenterRequest{Name: args[0]}); err != nil {
				return err
			}
			return a.did(nil, "deleted datacenter %q", args[0])
		},
	}
	a.complete(c, "", a.datacenterNames)
	return c
}

// datastoreCommand is "steadfast datastore".
func (a *app) datastoreCommand() *cobra.Command {
	return group("datastore", "Tend datastores: resource groups whose space machines use",
		a.datastoreAdd(), a.datastoreList(), a.datastoreShow(), a.datastoreRemove())
}

// datastoreNames lists names for completion.
func (a *app) datastoreNames(ctx context.Context) []string {
	r, err := a.datacenters().ListDatastores(ctx, &steadfastv1.ListDatastoresRequest{})
	if err != nil {
		return nil
	}
	return namesOf(r.Datastores)
}

func (a *app) datastoreAdd() *cobra.Command {
	req := &steadfastv1.AddDatastoreRequest{}
	c := &cobra.Command{
		Use: "add NAME --group GROUP", Short: "Offer a resource group's space to machines", Args: exactly(1),
		Long: `Make a resource group a datastore: volumes of machines are made in it, and it is
not deleted while it is one. Other volumes of the group stay what they are.`,
		Example: `  steadfast datastore add ds1 --group g1
  steadfast datastore add ds2 --group g2 --datacenter dc1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			r, err := a.datacenters().AddDatastore(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Datastore, "group %q is the datastore %q of datacenter %q", r.Datastore.GetGroup(), req.Name, r.Datastore.GetDatacenter())
		},
	}
	c.Flags().StringVar(&req.Group, "group", "", "the resource group")
	c.Flags().StringVar(&req.Datacenter, "datacenter", "", "the datacenter (default: the only one)")
	_ = c.MarkFlagRequired("group") // it fails only for a flag that the command has not
	a.complete(c, "group", a.groupNames)
	a.complete(c, "datacenter", a.datacenterNames)
	return c
}

func (a *app) datastoreList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List datastores", Example: "  steadfast datastore list", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.datacenters().ListDatastores(cmd.Context(), &steadfastv1.ListDatastoresRequest{})
			if err != nil {
				return err
			}
			return table(a, r.Datastores, "NAME DATACENTER GROUP MACHINES", func(d *steadfastv1.Datastore) []any {
				return []any{d.Name, d.Datacenter, d.Group, len(d.Machines)}
			})
		},
	}
}

func (a *app) datastoreShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show DATASTORE", Short: "Show a datastore", Example: "  steadfast datastore show ds1", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.datacenters().ListDatastores(cmd.Context(), &steadfastv1.ListDatastoresRequest{})
			if err != nil {
				return err
			}
			d, err := pick("datastore", args[0], r.Datastores)
			if err != nil {
				return err
			}
			return a.show(d, func(w io.Writer) {
				row(w, "datastore", d.Name)
				row(w, "datacenter", d.Datacenter)
				row(w, "group", d.Group)
				rows(w, "machine", d.Machines)
			})
		},
	}
	a.complete(c, "", a.datastoreNames)
	return c
}

func (a *app) datastoreRemove() *cobra.Command {
	c := &cobra.Command{
		Use: "remove DATASTORE", Short: "Take a group's space from machines again", Args: exactly(1),
		Long: `Have a resource group be no datastore any more, which must have no machines. The
group and its volumes stay.`,
		Example: "  steadfast datastore remove ds1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := a.datacenters().RemoveDatastore(cmd.Context(), &steadfastv1.RemoveDatastoreRequest{Name: args[0]}); err != nil {
				return err
			}
			return a.did(nil, "removed datastore %q; its group is there still", args[0])
		},
	}
	a.complete(c, "", a.datastoreNames)
	return c
}
