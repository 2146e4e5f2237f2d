package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node"
	"steadfast/node/config"
	"steadfast/node/size"
)

// upSingle runs one node in this process, without a second one: it survives nothing.
func (a *app) upSingle(ctx context.Context, dir string, poolSize, volumeSize int64) error {
	if _, err := os.Stat(filepath.Join(dir, membersFile)); err == nil {
		return fault.New(fault.Exists, "%s holds two nodes and a witness; leave --single out, or name another directory with --data", dir)
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	cfg := config.Default()
	if cfg.DataDir, err = filepath.Abs(dir); err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot tell where "+dir+" is")
	}
	// As short as it was given: a socket's path holds 107 bytes.
	cfg.Socket = filepath.Join(dir, "api.sock")
	cfg.Portals = []config.Portal{{Address: config.Address(net.JoinHostPort("127.0.0.1", strconv.Itoa(port))), Group: 1}}
	cfg.Drain = config.Duration(3 * time.Second)
	ctx, stop := a.signals(ctx)
	defer stop()
	node.LimitMemory(a.getenv)
	n, err := node.Start(ctx, node.Options{Config: cfg, Version: version, Log: newLogger(a.errs, config.Log{Level: config.Level(4)})})
	if err != nil {
		return err
	}
	a.socket = cfg.Socket
	err = a.upSetUp(ctx, n, cfg, poolSize, volumeSize)
	if err == nil {
		a.live(ctx, n)
	}
	a.say("stopping\n")
	if stopErr := n.Stop(); err == nil {
		err = stopErr
	}
	return err
}

// freePort returns the first port from iSCSI's on that is free on loopback.
func freePort() (int, error) {
	for port := config.DefaultPort; port < config.DefaultPort+upPorts; port++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, fault.New(fault.Busy, "the ports %d to %d are all in use on 127.0.0.1; stop what uses them (ss -ltnp)", config.DefaultPort, config.DefaultPort+upPorts-1)
}

// upSetUp makes what is not there yet, through the API as an administrator
// would, and prints how to use it.
func (a *app) upSetUp(ctx context.Context, n *node.Node, cfg config.Config, poolSize, volumeSize int64) error {
	pools, err := a.pools().ListPools(ctx, &steadfastv1.ListPoolsRequest{})
	if err != nil {
		return err
	}
	if len(pools.Pools) == 0 {
		_, err := a.pools().CreatePool(ctx, &steadfastv1.CreatePoolRequest{
			Name:   upPool,
			Drives: []*steadfastv1.NewDrive{{Path: filepath.Join(cfg.DataDir, "pool.img"), CreateSizeBytes: poolSize}},
		})
		if err != nil {
			return err
		}
	}
	volumes, err := a.volumes().ListVolumes(ctx, &steadfastv1.ListVolumesRequest{})
	if err != nil {
		return err
	}
	if len(volumes.Volumes) == 0 {
		r, err := a.volumes().CreateVolume(ctx, &steadfastv1.CreateVolumeRequest{Name: upVolume, SizeBytes: volumeSize})
		if err != nil {
			return err
		}
		volumes.Volumes = append(volumes.Volumes, r.Volume)
	}
	v := volumes.Volumes[0]
	m, err := n.AdmitAnyone(v.Name)
	if err != nil {
		return err
	}
	if len(n.Portals()) == 0 {
		return fault.New(fault.Failed, "the node serves nothing: %s", n.Status().Problem)
	}
	portal := n.Portals()[0].Address
	url := fmt.Sprintf("iscsi://%s/%s/%d", portal, m.Target, m.Lun)
	_, err = fmt.Fprintf(a.out, `Steadfast is up on %[1]s with volume %[2]q of %[3]s; data in %[4]s.
ANYONE who can reach %[1]s may read and write it: for a first look only.

  %[5]s

Three lines to try, in another terminal:
  iscsi-ls -s iscsi://%[1]s
  qemu-img info %[5]s
  iscsi-perf -t 5 -m 32 %[5]s
And to look around: steadfast --socket %[6]s volume list
Ctrl-C ends it; the data stays.

`, portal, v.Name, size.Format(v.SizeBytes), cfg.DataDir, url, cfg.Socket)
	return err
}

// live prints what the node does, each second, until ctx ends: over itself on
// a terminal, line by line elsewhere.
func (a *app) live(ctx context.Context, n *node.Node) {
	before, end := "", "\n"
	if isTerminal(a.out) {
		before, end = "\r\x1b[K", ""
		defer a.say("\n")
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	last, at := n.Status(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now, moment := n.Status(), time.Now()
		a.say("%s%s%s", before, liveLine(last, now, moment.Sub(at)), end)
		last, at = now, moment
	}
}

// liveLine says what happened between two states, dt apart.
func liveLine(last, now *steadfastv1.Status, dt time.Duration) string {
	a, b := last.Counters, now.Counters
	side := func(ops, bytes, nanos uint64) string {
		latency := time.Duration(0)
		if ops > 0 {
			latency = time.Duration(nanos / ops).Round(time.Microsecond)
		}
		return fmt.Sprintf("%.0f/s %.1f MB/s %v", float64(ops)/dt.Seconds(), float64(bytes)/1e6/dt.Seconds(), latency)
	}
	var used, capacity int64
	for _, p := range now.Pools {
		used, capacity = used+p.UsedBytes, capacity+p.CapacityBytes
	}
	return fmt.Sprintf("%s  read %s  write %s  sessions %d  used %s of %s", time.Now().Format("15:04:05"),
		side(b.Reads-a.Reads, b.ReadBytes-a.ReadBytes, b.ReadNanoseconds-a.ReadNanoseconds),
		side(b.Writes-a.Writes, b.WrittenBytes-a.WrittenBytes, b.WriteNanoseconds-a.WriteNanoseconds),
		now.Sessions, size.Format(used), size.Format(capacity))
}
