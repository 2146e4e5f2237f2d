package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/node/size"
)

// snapshotCommand is "steadfast snapshot".
func (a *app) snapshotCommand() *cobra.Command {
	return group("snapshot", "Freeze the content of volumes",
		a.snapshotCreate(), a.snapshotList(), a.snapshotShow(), a.snapshotDelete(), a.snapshotChanges())
}

// snapshotNames lists VOLUME@SNAPSHOT for completion.
func (a *app) snapshotNames(ctx context.Context) []string {
	r, err := a.snapshots().ListSnapshots(ctx, &steadfastv1.ListSnapshotsRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, s := range r.Snapshots {
		names = append(names, s.Volume+"@"+s.Name)
	}
	return names
}

func (a *app) snapshotCreate() *cobra.Command {
	var whole string
	c := &cobra.Command{
		Use: "create VOLUME@SNAPSHOT", Short: "Freeze a volume's content under a name", Args: exactly(1),
		Long: `Freeze a volume's content, at once whatever its size. The volume may be in
use: the snapshot holds every write that was answered before. What a host has
not written yet is not in it, so flush or freeze its filesystem first for more
than what a crash would leave.`,
		Example: `  steadfast snapshot create vm1@before-upgrade
  steadfast snapshot create --group g1 before-upgrade`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if whole != "" {
				r, err := a.snapshots().CreateSnapshot(cmd.Context(), &steadfastv1.CreateSnapshotRequest{Group: whole, Name: args[0]})
				if err != nil {
					return err
				}
				return a.did(r, "created snapshot %q of the %d volumes of group %q, at one moment", args[0], len(r.Snapshots), whole)
			}
			volume, name, err := splitSnapshot(args[0])
			if err != nil {
				return err
			}
			r, err := a.snapshots().CreateSnapshot(cmd.Context(), &steadfastv1.CreateSnapshotRequest{Volume: volume, Name: name})
			if err != nil {
				return err
			}
			return a.did(r.Snapshot, "created snapshot %s", args[0])
		},
	}
	c.Flags().StringVar(&whole, "group", "", "of every volume of this resource group, at one moment; then only the snapshot's name is given")
	a.complete(c, "group", a.groupNames)
	a.complete(c, "", a.volumeNames)
	return c
}

func (a *app) snapshotList() *cobra.Command {
	c := &cobra.Command{
		Use: "list [VOLUME]", Short: "List snapshots, oldest first", Example: "  steadfast snapshot list vm1", Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.snapshots().ListSnapshots(cmd.Context(), &steadfastv1.ListSnapshotsRequest{Volume: first(args)})
			if err != nil {
				return err
			}
			return table(a, r.Snapshots, "SNAPSHOT SIZE USED OWN CLONES CREATED", func(s *steadfastv1.Snapshot) []any {
				return []any{
					s.Volume + "@" + s.Name, size.Format(s.SizeBytes), size.Format(s.ReferencedBytes), size.Format(s.ExclusiveBytes),
					len(s.Clones), when(s.Created),
				}
			})
		},
	}
	a.complete(c, "", a.volumeNames)
	return c
}

func (a *app) snapshotShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show VOLUME@SNAPSHOT", Short: "Show a snapshot", Example: "  steadfast snapshot show vm1@before-upgrade", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			volume, name, err := splitSnapshot(args[0])
			if err != nil {
				return err
			}
			r, err := a.snapshots().GetSnapshot(cmd.Context(), &steadfastv1.GetSnapshotRequest{Volume: volume, Name: name})
			if err != nil {
				return err
			}
			s := r.Snapshot
			return a.show(s, func(w io.Writer) {
				row(w, "volume", s.Volume)
				row(w, "snapshot", s.Name)
				row(w, "sequence", s.Sequence)
				row(w, "size", size.Format(s.SizeBytes))
				row(w, "used", fmt.Sprintf("%s, %s of it its own", size.Format(s.ReferencedBytes), size.Format(s.ExclusiveBytes)))
				row(w, "created", when(s.Created))
				for _, c := range s.Clones {
					row(w, "clone", c)
				}
			})
		},
	}
	a.complete(c, "", a.snapshotNames)
	return c
}

func (a *app) snapshotDelete() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "delete VOLUME@SNAPSHOT", Short: "Delete a snapshot that no clone stands on", Args: exactly(1),
		Example: "  steadfast snapshot delete vm1@before-upgrade --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			volume, name, err := splitSnapshot(args[0])
			if err != nil {
				return err
			}
			if err := a.confirm(yes, "Delete snapshot %s?", args[0]); err != nil {
				return err
			}
			_, err = a.snapshots().DeleteSnapshot(cmd.Context(), &steadfastv1.DeleteSnapshotRequest{Volume: volume, Name: name})
			if err != nil {
				return err
			}
			return a.did(nil, "deleted snapshot %s; its space comes back in the background", args[0])
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	a.complete(c, "", a.snapshotNames)
	return c
}

func (a *app) snapshotChanges() *cobra.Command {
	var from, to string
	c := &cobra.Command{
		Use: "changes VOLUME", Short: "List what changed between two snapshots of a volume", Args: exactly(1),
		Long: `List the ranges of a volume, in bytes, that may differ between two of its
snapshots. Without --from it is all that is written; without --to, up to now.
It takes as long as there is change, however large the volume.`,
		Example: "  steadfast snapshot changes vm1 --from monday --to tuesday --output json",
		RunE: func(cmd *cobra.Command, args []string) error {
			stream, err := a.snapshots().ListChanges(cmd.Context(), &steadfastv1.ListChangesRequest{Volume: args[0], From: from, To: to})
			if err != nil {
				return a.answer(err)
			}
			defer stream.Close()
			if a.output != "json" {
				a.say("OFFSET\tLENGTH\n")
			}
			// As they come: there may be millions.
			for stream.Receive() {
				for _, r := range stream.Msg().Ranges {
					if a.output == "json" {
						_, err = fmt.Fprintf(a.out, "{\"offset_bytes\":%d,\"length_bytes\":%d}\n", r.OffsetBytes, r.LengthBytes)
					} else {
						_, err = fmt.Fprintf(a.out, "%d\t%d\n", r.OffsetBytes, r.LengthBytes)
					}
					if err != nil {
						return err
					}
				}
			}
			return a.answer(stream.Err())
		},
	}
	c.Flags().StringVar(&from, "from", "", "the earlier snapshot (default: an empty volume)")
	c.Flags().StringVar(&to, "to", "", "the later snapshot (default: the volume now)")
	a.complete(c, "", a.volumeNames)
	return c
}
