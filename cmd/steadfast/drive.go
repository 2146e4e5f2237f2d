package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/node/size"
)

// driveCommand is "steadfast drive".
func (a *app) driveCommand() *cobra.Command {
	return group("drive", "Change the drives of a pool while it is in use",
		a.driveAdd(), a.driveList(), a.driveShow(), a.driveEvacuate(), a.driveRemove(), a.driveReplace())
}

// drivePaths lists paths for completion.
func (a *app) drivePaths(ctx context.Context) []string {
	r, err := a.drives().ListDrives(ctx, &steadfastv1.ListDrivesRequest{})
	if err != nil {
		return nil
	}
	var paths []string
	for _, d := range r.Drives {
		paths = append(paths, d.Path)
	}
	return paths
}

func (a *app) driveAdd() *cobra.Command {
	var bytes sizeFlag
	var force bool
	var pool string
	c := &cobra.Command{
		Use: "add DRIVE", Short: "Format a drive and add it to a pool", Args: exactly(1),
		Example: `  steadfast drive add /dev/disk/by-id/nvme-C --pool tank
  steadfast drive add /srv/more.img --size 100G`,
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := absolute(args...)
			if err != nil {
				return err
			}
			r, err := a.drives().AddDrive(cmd.Context(), &steadfastv1.AddDriveRequest{
				Pool: pool, Path: paths[0], CreateSizeBytes: int64(bytes), Force: force,
			})
			if err != nil {
				return err
			}
			return a.did(r.Drive, "added drive %s of %s to pool %q", r.Drive.Path, size.Format(r.Drive.SizeBytes), r.Drive.Pool)
		},
	}
	c.Flags().StringVar(&pool, "pool", "", "the pool; may be left out when there is one")
	c.Flags().Var(&bytes, "size", "make a file of this size where nothing is")
	c.Flags().BoolVar(&force, "force", false, "format a drive that holds data; it is lost")
	a.complete(c, "pool", a.poolNames)
	return c
}

func (a *app) driveList() *cobra.Command {
	var pool string
	c := &cobra.Command{
		Use: "list", Short: "List drives", Example: "  steadfast drive list --pool tank", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.drives().ListDrives(cmd.Context(), &steadfastv1.ListDrivesRequest{Pool: pool})
			if err != nil {
				return err
			}
			return table(a, r.Drives, "DRIVE POOL STATE SIZE USED USE%", func(d *steadfastv1.Drive) []any {
				return []any{d.Path, d.Pool, d.State, size.Format(d.SizeBytes), size.Format(d.UsedBytes), share(d.UsedBytes, d.SizeBytes)}
			})
		},
	}
	c.Flags().StringVar(&pool, "pool", "", "only this pool's")
	a.complete(c, "pool", a.poolNames)
	return c
}

func (a *app) driveShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show DRIVE", Short: "Show a drive", Example: "  steadfast drive show /dev/disk/by-id/nvme-A", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := absolute(args...)
			if err != nil {
				return err
			}
			r, err := a.drives().GetDrive(cmd.Context(), &steadfastv1.GetDriveRequest{Path: paths[0]})
			if err != nil {
				return err
			}
			d := r.Drive
			return a.show(d, func(w io.Writer) {
				row(w, "drive", d.Path)
				row(w, "id", d.Id)
				row(w, "pool", d.Pool)
				row(w, "state", d.State)
				row(w, "size", size.Format(d.SizeBytes))
				row(w, "used", size.Format(d.UsedBytes))
				if d.LastError != "" {
					row(w, "error", d.LastError)
				}
			})
		},
	}
	a.complete(c, "", a.drivePaths)
	return c
}

func (a *app) driveEvacuate() *cobra.Command {
	c := &cobra.Command{
		Use: "evacuate DRIVE", Short: "Move everything off a drive, in the background", Args: exactly(1),
		Long: `Move everything off a drive, onto the others of its pool, beside the usual
work. The event drive-empty tells the end; then the drive can be removed.`,
		Example: "  steadfast drive evacuate /dev/disk/by-id/nvme-A",
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := absolute(args...)
			if err != nil {
				return err
			}
			r, err := a.drives().EvacuateDrive(cmd.Context(), &steadfastv1.EvacuateDriveRequest{Path: paths[0]})
			if err != nil {
				return err
			}
			return a.did(r.Drive, "moving %s off drive %s; \"steadfast drive show\" says what is left", size.Format(r.Drive.UsedBytes), r.Drive.Path)
		},
	}
	a.complete(c, "", a.drivePaths)
	return c
}

func (a *app) driveRemove() *cobra.Command {
	c := &cobra.Command{
		Use: "remove DRIVE", Short: "Take an empty drive out of its pool", Example: "  steadfast drive remove /dev/disk/by-id/nvme-A", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := absolute(args...)
			if err != nil {
				return err
			}
			if _, err := a.drives().RemoveDrive(cmd.Context(), &steadfastv1.RemoveDriveRequest{Path: paths[0]}); err != nil {
				return err
			}
			return a.did(nil, "removed drive %s", paths[0])
		},
	}
	a.complete(c, "", a.drivePaths)
	return c
}

func (a *app) driveReplace() *cobra.Command {
	var bytes sizeFlag
	var force bool
	c := &cobra.Command{
		Use: "replace OLD NEW", Short: "Replace a drive by a new one, in the background", Args: exactly(2),
		Long: `Format a new drive, add it to the pool, move everything off the old one and
remove that when it is empty. The pool stays in use throughout; a restart of the
node in between is no harm.`,
		Example: "  steadfast drive replace /dev/disk/by-id/nvme-A /dev/disk/by-id/nvme-C",
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := absolute(args...)
			if err != nil {
				return err
			}
			r, err := a.drives().ReplaceDrive(cmd.Context(), &steadfastv1.ReplaceDriveRequest{
				Path: paths[0], NewPath: paths[1], CreateSizeBytes: int64(bytes), Force: force,
			})
			if err != nil {
				return err
			}
			return a.did(r.Drive, "added drive %s; moving everything off %s, which leaves when it is empty", r.Drive.Path, paths[0])
		},
	}
	c.Flags().Var(&bytes, "size", "make a file of this size where nothing is")
	c.Flags().BoolVar(&force, "force", false, "format a drive that holds data; it is lost")
	a.complete(c, "", a.drivePaths)
	return c
}
