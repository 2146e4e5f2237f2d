package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/size"
)

// volumeCommand is "steadfast volume".
func (a *app) volumeCommand() *cobra.Command {
	return group("volume", "Make volumes and say who sees them",
		a.volumeCreate(), a.volumeList(), a.volumeShow(), a.volumeSet(), a.volumeResize(), a.volumeDelete(),
		a.volumeMap(), a.volumeUnmap(), a.volumeClone(), a.volumeRollback(), a.volumeClear())
}

// volumeNames lists names for completion.
func (a *app) volumeNames(ctx context.Context) []string {
	r, err := a.volumes().ListVolumes(ctx, &steadfastv1.ListVolumesRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, v := range r.Volumes {
		names = append(names, v.Name)
	}
	return names
}

func (a *app) volumeCreate() *cobra.Command {
	var bytes sizeFlag
	var cache, readOnly switchFlag
	var pool, inGroup string
	c := &cobra.Command{
		Use: "create NAME --size SIZE", Short: "Make a thin volume", Args: exactly(1),
		Long: `Make a thin volume of 1 MiB to 64 TiB: it takes up space as it is written.

With the write cache off (the default), a write that was answered is safe
against the loss of power, whatever the initiator does. With it on, only what
was flushed is; use it for initiators that flush, as Linux and Windows do, and
not for ESXi, which never does.`,
		Example: `  steadfast volume create vm1 --size 100G
  steadfast volume create scratch --size 1T --write-cache=on --pool tank
  steadfast volume create db --size 100G --group g1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if bytes == 0 {
				return fault.New(fault.Invalid, "a volume needs a size; give for example --size 100G")
			}
			r, err := a.volumes().CreateVolume(cmd.Context(), &steadfastv1.CreateVolumeRequest{
				Name: args[0], Pool: pool, SizeBytes: int64(bytes), WriteCache: bool(cache), ReadOnly: bool(readOnly), Group: inGroup,
			})
			if err != nil {
				return err
			}
			if inGroup != "" {
				return a.did(r.Volume, "created volume %q of %s, mirrored in group %q", r.Volume.Name, size.Format(r.Volume.SizeBytes), inGroup)
			}
			return a.did(r.Volume, "created volume %q of %s in pool %q", r.Volume.Name, size.Format(r.Volume.SizeBytes), r.Volume.Pool)
		},
	}
	c.Flags().Var(&bytes, "size", "its size, like 100G or 1T")
	c.Flags().StringVar(&pool, "pool", "", "the pool; may be left out when there is one")
	c.Flags().StringVar(&inGroup, "group", "", "mirror it in this resource group, in the group's pools")
	a.complete(c, "group", a.groupNames)
	switchVar(c, &cache, "write-cache", "answer writes before they are safe against the loss of power")
	switchVar(c, &readOnly, "read-only", "refuse writes")
	a.complete(c, "pool", a.poolNames)
	return c
}

// switchVar adds an on|off flag that may stand without a value.
func switchVar(c *cobra.Command, v *switchFlag, name, usage string) {
	c.Flags().Var(v, name, usage)
	c.Flags().Lookup(name).NoOptDefVal = "on"
}

func (a *app) volumeList() *cobra.Command {
	var pool string
	c := &cobra.Command{
		Use: "list", Short: "List volumes", Example: "  steadfast volume list", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.volumes().ListVolumes(cmd.Context(), &steadfastv1.ListVolumesRequest{Pool: pool})
			if err != nil {
				return err
			}
			return table(a, r.Volumes, "NAME POOL SIZE USED WRITE-CACHE MODE SNAPSHOTS MAPPED", func(v *steadfastv1.Volume) []any {
				mode := "rw"
				if v.ReadOnly {
					mode = "ro"
				}
				return []any{v.Name, v.Pool, size.Format(v.SizeBytes), size.Format(v.ReferencedBytes), onOff(v.WriteCache), mode, v.Snapshots, len(v.Mappings)}
			})
		},
	}
	c.Flags().StringVar(&pool, "pool", "", "only this pool's")
	a.complete(c, "pool", a.poolNames)
	return c
}

func (a *app) volumeShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show VOLUME", Short: "Show a volume", Example: "  steadfast volume show vm1", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.volumes().GetVolume(cmd.Context(), &steadfastv1.GetVolumeRequest{Name: args[0]})
			if err != nil {
				return err
			}
			v := r.Volume
			return a.show(v, func(w io.Writer) {
				row(w, "name", v.Name)
				row(w, "id", v.Id)
				row(w, "pool", v.Pool)
				row(w, "size", size.Format(v.SizeBytes))
				row(w, "used", fmt.Sprintf("%s, %s of it its own", size.Format(v.ReferencedBytes), size.Format(v.ExclusiveBytes)))
				row(w, "write cache", onOff(v.WriteCache))
				row(w, "read only", onOff(v.ReadOnly))
				row(w, "cloned from", v.Origin)
				row(w, "snapshots", v.Snapshots)
				row(w, "corrupt blocks seen", v.CorruptBlocks)
				row(w, "created", when(v.Created))
				describeMappings(w, v.Mappings)
			})
		},
	}
	a.complete(c, "", a.volumeNames)
	return c
}

// describeMappings writes a line for each mapping.
func describeMappings(w io.Writer, all []*steadfastv1.Mapping) {
	for _, m := range all {
		mode := "rw"
		if m.ReadOnly {
			mode = "ro"
		}
		row(w, "mapped", fmt.Sprintf("%s LUN %d", m.Volume, m.Lun), mode, m.Initiator, m.Target)
	}
}

func (a *app) volumeSet() *cobra.Command {
	var cache, readOnly switchFlag
	var name string
	c := &cobra.Command{
		Use: "set VOLUME", Short: "Change a volume's settings", Args: exactly(1),
		Example: `  steadfast volume set vm1 --write-cache=off
  steadfast volume set vm1 --name vm1-old --read-only`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &steadfastv1.SetVolumeRequest{Name: args[0]}
			if cmd.Flags().Changed("name") {
				req.NewName = &name
			}
			if cmd.Flags().Changed("write-cache") {
				req.WriteCache = proto.Bool(bool(cache))
			}
			if cmd.Flags().Changed("read-only") {
				req.ReadOnly = proto.Bool(bool(readOnly))
			}
			if req.NewName == nil && req.WriteCache == nil && req.ReadOnly == nil {
				return fault.New(fault.Invalid, "nothing to change; give --name, --write-cache or --read-only")
			}
			r, err := a.volumes().SetVolume(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Volume, "changed volume %q", r.Volume.Name)
		},
	}
	c.Flags().StringVar(&name, "name", "", "a new name; mappings stay")
	switchVar(c, &cache, "write-cache", "answer writes before they are safe against the loss of power")
	switchVar(c, &readOnly, "read-only", "refuse writes")
	a.complete(c, "", a.volumeNames)
	return c
}

func (a *app) volumeResize() *cobra.Command {
	c := &cobra.Command{
		Use: "resize VOLUME SIZE", Short: "Grow a volume while it is in use", Args: exactly(2),
		Long: `Grow a volume. Initiators are told; Linux takes the new size over with
"iscsiadm -m session --rescan", ESXi and Windows with a rescan.`,
		Example: "  steadfast volume resize vm1 200G",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := size.Parse(args[1])
			if err != nil {
				return err
			}
			r, err := a.volumes().SetVolume(cmd.Context(), &steadfastv1.SetVolumeRequest{Name: args[0], SizeBytes: &n})
			if err != nil {
				return err
			}
			return a.did(r.Volume, "volume %q has %s", r.Volume.Name, size.Format(r.Volume.SizeBytes))
		},
	}
	a.complete(c, "", a.volumeNames)
	return c
}

func (a *app) volumeDelete() *cobra.Command {
	var snapshots, yes bool
	c := &cobra.Command{
		Use: "delete VOLUME", Short: "Delete a volume that is mapped to nobody", Args: exactly(1),
		Example: "  steadfast volume delete vm1 --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.confirm(yes, "Delete volume %q and all that is on it?", args[0]); err != nil {
				return err
			}
			_, err := a.volumes().DeleteVolume(cmd.Context(), &steadfastv1.DeleteVolumeRequest{Name: args[0], WithSnapshots: snapshots})
			if err != nil {
				return err
			}
			return a.did(nil, "deleted volume %q; its space comes back in the background", args[0])
		},
	}
	c.Flags().BoolVar(&snapshots, "with-snapshots", false, "delete its snapshots as well")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	a.complete(c, "", a.volumeNames)
	return c
}

func (a *app) volumeMap() *cobra.Command {
	var initiator, target string
	var lun int32
	var readOnly switchFlag
	c := &cobra.Command{
		Use: "map VOLUME --initiator NAME", Short: "Show a volume to an initiator or a group", Args: exactly(1),
		Long: `Show a volume to an initiator, or to a group of them, as a fixed logical unit
number of a target. An initiator may log in to a target as long as something is
mapped to it there. With no target yet, one is made.

Several initiators may see one volume, but only clusters that expect it (ESXi
with VMFS, Windows failover clusters, OCFS2, GFS2) may write from several.`,
		Example: `  steadfast volume map vm1 --initiator iqn.1993-08.org.debian:01:host1
  steadfast volume map datastore1 --initiator esx-cluster --lun 10`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if initiator == "" {
				return fault.New(fault.Invalid, "say who may see it with --initiator; see \"steadfast initiator list\"")
			}
			req := &steadfastv1.MapVolumeRequest{Volume: args[0], Initiator: initiator, Target: target, ReadOnly: bool(readOnly)}
			if cmd.Flags().Changed("lun") {
				req.Lun = &lun
			}
			r, err := a.volumes().MapVolume(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Mapping, "volume %q is LUN %d of %s for %s", r.Mapping.Volume, r.Mapping.Lun, r.Mapping.Target, r.Mapping.Initiator)
		},
	}
	c.Flags().StringVar(&initiator, "initiator", "", "an initiator's name, or a group's")
	c.Flags().StringVar(&target, "target", "", "the target; may be left out when there is one")
	c.Flags().Int32Var(&lun, "lun", 0, "the logical unit number (default the lowest that is free)")
	switchVar(c, &readOnly, "read-only", "these initiators may not write")
	a.complete(c, "", a.volumeNames)
	a.complete(c, "initiator", a.initiatorNames)
	a.complete(c, "target", a.targetNames)
	return c
}

func (a *app) volumeUnmap() *cobra.Command {
	var initiator, target string
	var force bool
	c := &cobra.Command{
		Use: "unmap VOLUME --initiator NAME", Short: "Stop showing a volume to an initiator or a group", Args: exactly(1),
		Long: `Stop showing a volume. It is refused while a session that sees the volume is
open: log out on the host first. --force takes the disk away under it.`,
		Example: "  steadfast volume unmap vm1 --initiator iqn.1993-08.org.debian:01:host1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if initiator == "" {
				return fault.New(fault.Invalid, "say from whom to take it with --initiator; see \"steadfast volume show %s\"", args[0])
			}
			_, err := a.volumes().UnmapVolume(cmd.Context(), &steadfastv1.UnmapVolumeRequest{
				Volume: args[0], Initiator: initiator, Target: target, Force: force,
			})
			if err != nil {
				return err
			}
			return a.did(nil, "volume %q is no longer shown to %s", args[0], initiator)
		},
	}
	c.Flags().StringVar(&initiator, "initiator", "", "an initiator's name, or a group's")
	c.Flags().StringVar(&target, "target", "", "only on this target")
	c.Flags().BoolVar(&force, "force", false, "although a session is open")
	a.complete(c, "", a.volumeNames)
	a.complete(c, "initiator", a.initiatorNames)
	a.complete(c, "target", a.targetNames)
	return c
}

// splitSnapshot takes VOLUME@SNAPSHOT apart.
func splitSnapshot(arg string) (volume, snapshot string, err error) {
	volume, snapshot, ok := strings.Cut(arg, "@")
	if !ok || volume == "" || snapshot == "" {
		return "", "", fault.New(fault.Invalid, "%q is not of the form VOLUME@SNAPSHOT", arg)
	}
	return volume, snapshot, nil
}

func (a *app) volumeClone() *cobra.Command {
	c := &cobra.Command{
		Use: "clone VOLUME@SNAPSHOT NEW", Short: "Make a new volume with a snapshot's content", Args: exactly(2),
		Example: `  steadfast snapshot create golden@2026-11
  steadfast volume clone golden@2026-11 vm2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			volume, snapshot, err := splitSnapshot(args[0])
			if err != nil {
				return err
			}
			r, err := a.volumes().CloneVolume(cmd.Context(), &steadfastv1.CloneVolumeRequest{Volume: volume, Snapshot: snapshot, Name: args[1]})
			if err != nil {
				return err
			}
			return a.did(r.Volume, "created volume %q of %s from %s", r.Volume.Name, size.Format(r.Volume.SizeBytes), args[0])
		},
	}
	a.complete(c, "", a.snapshotNames)
	return c
}

func (a *app) volumeRollback() *cobra.Command {
	var yes, force bool
	c := &cobra.Command{
		Use: "rollback VOLUME@SNAPSHOT", Short: "Make a volume's content that of its snapshot again", Args: exactly(1),
		Long: `Make a volume's content that of its snapshot again. What was written since is
lost, unless a later snapshot holds it; later snapshots stay. It is refused
while a session that sees the volume is open, since a host with the volume
mounted would write what it remembers over it.`,
		Example: "  steadfast volume rollback vm1@before-upgrade --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			volume, snapshot, err := splitSnapshot(args[0])
			if err != nil {
				return err
			}
			if err := a.confirm(yes, "Give up what was written to volume %q since snapshot %q?", volume, snapshot); err != nil {
				return err
			}
			r, err := a.volumes().RollbackVolume(cmd.Context(), &steadfastv1.RollbackVolumeRequest{Volume: volume, Snapshot: snapshot, Force: force})
			if err != nil {
				return err
			}
			return a.did(r.Volume, "volume %q is as it was at snapshot %q", volume, snapshot)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.Flags().BoolVar(&force, "force", false, "although a session is open")
	a.complete(c, "", a.snapshotNames)
	return c
}

func (a *app) volumeClear() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "clear-reservations VOLUME", Short: "Take all SCSI reservations off a volume", Args: exactly(1),
		Long: `Take all SCSI reservations and registrations off a volume: for a cluster host
that died for good while it held one. A live cluster that relied on them may
then write from two hosts at once.`,
		Example: "  steadfast volume clear-reservations quorum --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.confirm(yes, "Take all reservations off volume %q? No cluster may be using it.", args[0]); err != nil {
				return err
			}
			_, err := a.volumes().ClearReservations(cmd.Context(), &steadfastv1.ClearReservationsRequest{Volume: args[0]})
			if err != nil {
				return err
			}
			return a.did(nil, "cleared the reservations on volume %q", args[0])
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	a.complete(c, "", a.volumeNames)
	return c
}
