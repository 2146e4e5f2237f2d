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
	// upPorts are how many ports from a service's own on are tried.
	upPorts = 40
)

// upWitness is the witness.
const upWitness = "w"

// upOptions are the flags of "steadfast up".
type upOptions struct {
	dir        string
	poolSize   int64 // bytes
	volumeSize int64 // bytes
	rate       int   // requests a second of the verified I/O; 0: none runs
	// machine: hosts, a switch and a machine, too.
	machine bool
	cache   string // folder of image builds; empty: the user's
	// restart is how long a member that has ended stays so.
	restart time.Duration
}

// restartAfter is what a service manager would let pass, too.
const restartAfter = 3 * time.Second

// upCommand is "steadfast up".
func (a *app) upCommand() *cobra.Command {
	var single bool
	var noVM bool
	o := upOptions{restart: restartAfter}
	poolSize, volumeSize := sizeFlag(4<<30), sizeFlag(1<<30)
	c := &cobra.Command{
		Use: "up", Short: "Start a pair, three hosts and a fault-tolerant machine on loopback, without root", Args: exactly(0),
		Long: `Start two storage nodes, a witness and three hosts on 127.0.0.1, each a process of its
own with its data under the data directory. What is not there yet is made (pools, a
quorum, a resource group, a mirrored volume, a cluster of hosts with high availability,
and on it a Debian machine with Redis, with fault tolerance), and each command for that is
shown. Then blocks are written and read back over iSCSI, every one verified, and a line a
second shows how that goes, until Ctrl-C or "steadfast down" ends everything.

Kill a node with kill -9 and watch: the other one takes over, and Redis goes on. Kill the
machine's host: its secondary goes on, on the same connections, and the machine gets
another secondary. The dead process is started again after a few seconds, as a service
manager would. "steadfast demo" does all of that under a load that is checked.

A switch runs, too ("steadfast switch"), which stands for the one that you have. It is no
part of what is kept available.

The machine's image is built the first time, which takes minutes, and kept in the user's
cache. With --no-vm, or where that cannot be, there are the nodes and the witness alone.

Everyone who can reach 127.0.0.1 may use the volume and Redis: this is for a first look,
and the only command that opens a volume to anyone. With --single there is one
node, in this process.`,
		Example: `  steadfast up
  steadfast up --data ./steadfast-data --pool-size 10G
  steadfast up --no-vm
  steadfast up --single --data ./one-node`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.poolSize, o.volumeSize, o.machine = int64(poolSize), int64(volumeSize), !noVM
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
	c.Flags().BoolVar(&noVM, "no-vm", false, "the nodes and the witness only: no hosts, no switch, no machine")
	c.Flags().StringVar(&o.cache, "image-cache", "", "folder of built images (default steadfast/images in the user's cache)")
	c.Flags().BoolVar(&single, "single", false, "one node only, which survives nothing")
	return c
}

// upPair runs two nodes and a witness until a signal, with hosts and a machine if they are to be.
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
