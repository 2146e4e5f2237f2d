package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"steadfast/fault"
)

// What "steadfast up" makes in an empty directory.
const (
	upPool   = "pool"
	upVolume = "vol1"
	upGroup  = "g1"
	// upChecked is the volume that verified I/O runs on.
	upChecked     = "checked"
	upCheckedSize = 64 << 20
	// upPorts are how many ports from iSCSI's own on are tried.
	upPorts = 40
)

// upOptions are the flags of "steadfast up".
type upOptions struct {
	dir        string
	poolSize   int64 // bytes
	volumeSize int64 // bytes
	rate       int   // requests a second of the verified I/O; 0: none runs
	// restart is how long a member that has ended stays so.
	restart time.Duration
}

// upCommand is "steadfast up".
func (a *app) upCommand() *cobra.Command {
	var single bool
	o := upOptions{restart: 3 * time.Second}
	poolSize, volumeSize := sizeFlag(4<<30), sizeFlag(1<<30)
	c := &cobra.Command{
		Use: "up", Short: "Start two storage nodes and a witness on loopback for a first look, without root", Args: exactly(0),
		Long: `Start two storage nodes and a witness on 127.0.0.1, each a process of its own
with its data under the data directory. What is not there yet is made (pools, a
cluster, a resource group, a mirrored volume), and each command for that is
shown. Then blocks are written and read back over iSCSI, every one verified,
and a line a second shows how that goes, until Ctrl-C ends everything in order.

Kill a node with kill -9 and watch: the other one takes over. The dead one is
started again after a few seconds, as a service manager would.

Everyone who can reach 127.0.0.1 may use the volume: this is for a first look,
and the only command that opens a volume to anyone. With --single there is one
node, in this process.`,
		Example: `  steadfast up
  steadfast up --data ./steadfast-data --pool-size 10G
  steadfast up --single --data ./one-node`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.poolSize, o.volumeSize = int64(poolSize), int64(volumeSize)
			if o.rate < 0 {
				return fault.New(fault.Invalid, "--rate %d is negative", o.rate)
			}
			if single {
				return a.upSingle(cmd.Context(), o.dir, o.poolSize, o.volumeSize)
			}
			return a.upPair(cmd.Context(), o)
		},
	}
	c.Flags().StringVar(&o.dir, "data", "steadfast-data", "the data directory")
	c.Flags().Var(&poolSize, "pool-size", "size of each pool file, if it is to be made")
	c.Flags().Var(&volumeSize, "volume-size", "size of the volume, if it is to be made")
	c.Flags().IntVar(&o.rate, "rate", 400, "verified requests a second; 0: none")
	c.Flags().BoolVar(&single, "single", false, "one node only, which survives nothing")
	return c
}

// upPair runs two nodes and a witness until a signal.
func (a *app) upPair(ctx context.Context, o upOptions) error {
	ctx, stop := a.signals(ctx)
	defer stop()
	p, err := a.openPair(o)
	if err != nil {
		return err
	}
	err = p.bringUp(ctx)
	if err == nil {
		p.greet()
		err = p.live(ctx)
	}
	if ctx.Err() != nil {
		err = nil // that is how it ends
	}
	p.end()
	if err == nil && p.load != nil && !p.load.Stats().Clean() {
		return exitStatus(fault.Corrupt.Of().Exit)
	}
	return err
}
