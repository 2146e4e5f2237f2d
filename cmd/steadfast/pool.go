package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node"
	"steadfast/node/size"
)

// poolCommand is "steadfast pool".
func (a *app) poolCommand() *cobra.Command {
	return group("pool", "Make and tend pools: the space that volumes are made of",
		a.poolCreate(), a.poolImport(), a.poolList(), a.poolShow(), a.poolSet(), a.poolScrub(), a.poolCheck(), a.poolForget())
}

// poolNames lists names for completion.
func (a *app) poolNames(ctx context.Context) []string {
	r, err := a.pools().ListPools(ctx, &steadfastv1.ListPoolsRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, p := range r.Pools {
		names = append(names, p.Name)
	}
	return names
}

// absolute returns paths as the node, which runs elsewhere, must be told them.
func absolute(paths ...string) ([]string, error) {
	out := make([]string, len(paths))
	for i, p := range paths {
		abs, err := filepath.Abs(p)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot tell where "+p+" is")
		}
		out[i] = abs
	}
	return out, nil
}

func (a *app) poolCreate() *cobra.Command {
	var bytes sizeFlag
	var force bool
	c := &cobra.Command{
		Use: "create NAME DRIVE...", Short: "Format drives as a new pool", Args: between(2, -1),
		Long: `Format block devices or files as a new pool.

With --size, a path where nothing is becomes a file of that size. A drive that
holds anything (a filesystem, a partition table, another pool) is refused
unless --force is given, and then what is on it is lost.

Name devices by /dev/disk/by-id: names like /dev/sdb change between boots.`,
		Example: `  steadfast pool create tank /dev/disk/by-id/nvme-A /dev/disk/by-id/nvme-B
  steadfast pool create test /srv/pool.img --size 100G`,
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := absolute(args[1:]...)
			if err != nil {
				return err
			}
			req := &steadfastv1.CreatePoolRequest{Name: args[0], Force: force}
			for _, p := range paths {
				req.Drives = append(req.Drives, &steadfastv1.NewDrive{Path: p, CreateSizeBytes: int64(bytes)})
			}
			r, err := a.pools().CreatePool(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.did(r.Pool, "created pool %q with room for %s", r.Pool.Name, size.Format(r.Pool.CapacityBytes))
		},
	}
	c.Flags().Var(&bytes, "size", "make a file of this size where nothing is (each)")
	c.Flags().BoolVar(&force, "force", false, "format drives that hold data; it is lost")
	return c
}

func (a *app) poolImport() *cobra.Command {
	return &cobra.Command{
		Use: "import DRIVE...", Short: "Open a pool that lies on drives already", Args: between(1, -1),
		Long: `Open a pool that lies on drives already: one that was forgotten, that comes
from another node, or whose node lost its data directory. Name all its drives.`,
		Example: "  steadfast pool import /dev/disk/by-id/nvme-A /dev/disk/by-id/nvme-B",
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := absolute(args...)
			if err != nil {
				return err
			}
			r, err := a.pools().ImportPool(cmd.Context(), &steadfastv1.ImportPoolRequest{Paths: paths})
			if err != nil {
				return err
			}
			return a.did(r.Pool, "imported pool %q with %d volumes", r.Pool.Name, r.Pool.Volumes)
		},
	}
}

func (a *app) poolList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List pools", Example: "  steadfast pool list --output json", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.pools().ListPools(cmd.Context(), &steadfastv1.ListPoolsRequest{})
			if err != nil {
				return err
			}
			return table(a, r.Pools, "NAME STATE CAPACITY USED USE% PROVISIONED VOLUMES SNAPSHOTS DRIVES", func(p *steadfastv1.Pool) []any {
				return []any{
					p.Name, p.State, size.Format(p.CapacityBytes), size.Format(p.UsedBytes), share(p.UsedBytes, p.CapacityBytes),
					size.Format(p.ProvisionedBytes), p.Volumes, p.Snapshots, len(p.Drives),
				}
			})
		},
	}
}

func (a *app) poolShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show [POOL]", Short: "Show a pool", Example: "  steadfast pool show tank", Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.pools().GetPool(cmd.Context(), &steadfastv1.GetPoolRequest{Name: first(args)})
			if err != nil {
				return err
			}
			return a.show(r.Pool, func(w io.Writer) { describePool(w, r.Pool) })
		},
	}
	a.complete(c, "", a.poolNames)
	return c
}

func describePool(w io.Writer, p *steadfastv1.Pool) {
	row(w, "name", p.Name)
	row(w, "id", p.Id)
	row(w, "state", p.State)
	if p.Problem != "" {
		row(w, "problem", p.Problem)
	}
	if p.State != "absent" {
		row(w, "capacity", size.Format(p.CapacityBytes))
		row(w, "used", fmt.Sprintf("%s (%s): data %s, map %s", size.Format(p.UsedBytes), share(p.UsedBytes, p.CapacityBytes),
			size.Format(p.DataBytes), size.Format(p.MetadataBytes)))
		row(w, "provisioned", size.Format(p.ProvisionedBytes))
		row(w, "shared", size.Format(p.SharedBytes))
		row(w, "reclaimable", size.Format(p.ReclaimableBytes))
		row(w, "warns at", percents(p.ThresholdsPercent))
		row(w, "volumes", p.Volumes)
		row(w, "snapshots", p.Snapshots)
		row(w, "corrupt blocks seen", p.CorruptBlocks)
		if p.WrittenByUsersBytes > 0 {
			row(w, "write amplification", fmt.Sprintf("%.2f", float64(p.WrittenToDrivesBytes)/float64(p.WrittenByUsersBytes)))
		}
	}
	for _, d := range p.Drives {
		row(w, "drive", d.Path, d.State, size.Format(d.UsedBytes)+" of "+size.Format(d.SizeBytes), d.LastError)
	}
}

// percents says at what use a pool warns.
func percents(list []int32) string {
	if len(list) == 0 {
		return "no level"
	}
	parts := make([]string, len(list))
	for i, p := range list {
		parts[i] = fmt.Sprintf("%d%%", p)
	}
	return strings.Join(parts, ", ")
}

func (a *app) poolSet() *cobra.Command {
	var percent []int32
	c := &cobra.Command{
		Use: "set [POOL]", Short: "Change a pool's settings", Args: between(0, 1),
		Example: "  steadfast pool set tank --thresholds 70,85,95",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("thresholds") {
				return fault.New(fault.Invalid, "nothing to change; give --thresholds")
			}
			r, err := a.pools().SetPool(cmd.Context(), &steadfastv1.SetPoolRequest{
				Name: first(args), Thresholds: &steadfastv1.Thresholds{Percent: percent},
			})
			if err != nil {
				return err
			}
			return a.did(r.Pool, "pool %q warns at %s", r.Pool.Name, percents(r.Pool.ThresholdsPercent))
		},
	}
	c.Flags().Int32SliceVar(&percent, "thresholds", nil, "warn when this much of the capacity is used (percent, ascending)")
	a.complete(c, "", a.poolNames)
	return c
}

func (a *app) poolScrub() *cobra.Command {
	var stop, status, wait bool
	c := &cobra.Command{
		Use: "scrub [POOL]", Short: "Verify every block of a pool while it is in use", Args: between(0, 1),
		Long: `Read everything in the pool and verify its checksums, beside the usual work.
Without flags it starts a scrub and returns.`,
		Example: `  steadfast pool scrub tank --wait
  steadfast pool scrub tank --status`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, name := cmd.Context(), first(args)
			switch {
			case stop:
				r, err := a.pools().StopScrub(ctx, &steadfastv1.StopScrubRequest{Pool: name})
				if err != nil {
					return err
				}
				return a.did(r.Scrub, "stopped the scrub of pool %q at %s of %s", r.Scrub.Pool, size.Format(r.Scrub.DoneBytes), size.Format(r.Scrub.TotalBytes))
			case status:
				r, err := a.pools().GetScrub(ctx, &steadfastv1.GetScrubRequest{Pool: name})
				if err != nil {
					return err
				}
				return a.showScrub(r.Scrub)
			}
			r, err := a.pools().StartScrub(ctx, &steadfastv1.StartScrubRequest{Pool: name})
			if err != nil {
				return err
			}
			if !wait {
				return a.did(r.Scrub, "started a scrub of pool %q; see \"steadfast pool scrub --status\"", r.Scrub.Pool)
			}
			return a.waitScrub(ctx, r.Scrub.Pool)
		},
	}
	c.Flags().BoolVar(&stop, "stop", false, "end the running scrub")
	c.Flags().BoolVar(&status, "status", false, "show the running or last scrub")
	c.Flags().BoolVar(&wait, "wait", false, "show progress and return when it is done")
	c.MarkFlagsMutuallyExclusive("stop", "status", "wait")
	a.complete(c, "", a.poolNames)
	return c
}

// waitScrub follows a scrub to its end. What it found is an error's status.
func (a *app) waitScrub(ctx context.Context, pool string) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		r, err := a.pools().GetScrub(ctx, &steadfastv1.GetScrubRequest{Pool: pool})
		if err != nil {
			return err
		}
		if !r.Scrub.Running {
			if err := a.showScrub(r.Scrub); err != nil {
				return err
			}
			if n := len(r.Scrub.Corrupt); n > 0 {
				return fault.New(fault.Corrupt, "%d blocks do not match their checksums", n)
			}
			return nil
		}
		a.note("%s of %s (%s)\n", size.Format(r.Scrub.DoneBytes), size.Format(r.Scrub.TotalBytes), share(r.Scrub.DoneBytes, r.Scrub.TotalBytes))
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, ctx.Err(), "waiting for the scrub, which goes on")
		case <-t.C:
		}
	}
}

func (a *app) showScrub(s *steadfastv1.Scrub) error {
	return a.show(s, func(w io.Writer) {
		row(w, "pool", s.Pool)
		state := "finished"
		switch {
		case s.Running:
			state = "running"
		case s.Started == nil:
			state = "never ran since the pool was opened"
		}
		row(w, "state", state)
		row(w, "verified", fmt.Sprintf("%s of %s (%s)", size.Format(s.DoneBytes), size.Format(s.TotalBytes), share(s.DoneBytes, s.TotalBytes)))
		row(w, "started", when(s.Started))
		row(w, "finished", when(s.Finished))
		row(w, "corrupt blocks", len(s.Corrupt))
		for _, c := range s.Corrupt {
			where := "the pool's map"
			if c.Volume != "" {
				where = fmt.Sprintf("volume %s at %d", c.Volume, c.OffsetBytes)
			}
			row(w, "corrupt", where, fmt.Sprintf("%s at %d", c.Drive, c.DriveOffsetBytes))
		}
	})
}

func (a *app) poolCheck() *cobra.Command {
	cache := sizeFlag(256 << 20)
	c := &cobra.Command{
		Use: "check DRIVE...", Short: "Check a pool that is not open", Args: between(1, -1),
		Long: `Read a pool that no node has open, and report whether it is sound. It writes
nothing. Name all drives of the pool. While a node runs, use
"steadfast pool scrub".`,
		Example: "  steadfast pool check /dev/disk/by-id/nvme-A /dev/disk/by-id/nvme-B",
		RunE: func(_ *cobra.Command, args []string) error {
			report, err := node.CheckPool(args, int64(cache), a.progress())
			if err != nil {
				return err
			}
			problems := make([]any, 0, len(report.Problems))
			for _, p := range report.Problems {
				problems = append(problems, p)
			}
			if a.output == "json" {
				err = a.printJSON(object{
					{"pool", fmt.Sprintf("%x", report.Pool[:])},
					{"blocks", report.Blocks},
					{"nodes", report.Nodes},
					{"volumes", report.Volumes},
					{"snapshots", report.Snapshots},
					{"log_tail", report.LogTail},
					{"problems", problems},
				})
			} else {
				for _, p := range report.Problems {
					a.say("%s\n", p)
				}
				_, err = fmt.Fprintf(a.out, "checked %d blocks, %d map nodes, %d volumes, %d snapshots: %d problems\n",
					report.Blocks, report.Nodes, report.Volumes, report.Snapshots, len(problems))
			}
			if err == nil && len(problems) > 0 {
				err = fault.New(fault.Corrupt, "the pool is not sound")
			}
			return err
		},
	}
	c.Flags().Var(&cache, "cache", "memory to check with")
	return c
}

// progress returns a function that says how far a check is, each second and
// only to a terminal.
func (a *app) progress() func(done, total int64) {
	if !isTerminal(a.errs) {
		return nil
	}
	last := time.Now()
	return func(done, total int64) {
		if now := time.Now(); now.Sub(last) >= time.Second {
			last = now
			a.note("\r%s of %s (%s) ", size.Format(done), size.Format(total), share(done, total))
		}
	}
}

func (a *app) poolForget() *cobra.Command {
	c := &cobra.Command{
		Use: "forget POOL", Short: "Close a pool and stop opening it; its drives keep their data", Args: exactly(1),
		Long: `Close a pool none of whose volumes is mapped, and do not open it again. Its
drives keep their data: "steadfast pool import" takes it back, here or on
another node. A pool whose drives are gone for good is got rid of this way.`,
		Example: "  steadfast pool forget tank",
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := a.pools().ForgetPool(cmd.Context(), &steadfastv1.ForgetPoolRequest{Name: args[0]}); err != nil {
				return err
			}
			return a.did(nil, "forgot pool %q; its drives keep their data", args[0])
		},
	}
	a.complete(c, "", a.poolNames)
	return c
}

// first returns the first argument, or "".
func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
