package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/test/testbed"
)

// This file has every command by which the harness drives the product.

// Names and sizes of what the harness makes.
const (
	groupName   = "g1"
	poolName    = "p"
	machineName = "m1"
	// machineMemory is what copying a running machine is promised of.
	machineMemory = "512M"
	// Of each node: what the machine's disks take, and some more. Full is reached by a
	// disk that is larger.
	poolBytes = 1280 << 20
)

// site is two storage nodes, two or three hosts and a witness of this tree: processes on the boxes.
type site struct {
	world   *world
	bin     string
	nodes   [withNode]*testbed.Daemon // by box
	hosts   []*testbed.Daemon         // by box
	witness *testbed.Daemon
}

// newSite prepares the processes; Up starts them.
func newSite(w *world, bin string) (*site, error) {
	s := &site{world: w, bin: bin, hosts: make([]*testbed.Daemon, w.form)}
	var err error
	for b := range withNode {
		if s.nodes[b], err = s.node(b, b.String(), nodeSettings); err != nil {
			return nil, err
		}
	}
	for i := range s.hosts {
		if s.hosts[i], err = s.node(box(i), "h"+box(i).String(), hostSettings); err != nil {
			return nil, err
		}
	}
	if s.witness, err = s.daemon(boxW, boxW.String()); err == nil {
		s.witness.Args = []string{"witness", "--data-dir", s.witness.Data(), "--socket", s.witness.Socket()}
	}
	return s, err
}

// node is a "steadfast node" on a box, which does not run yet.
func (s *site) node(b box, name string, settings func(box, *testbed.Daemon) string) (*testbed.Daemon, error) {
	d, err := s.daemon(b, name)
	if err != nil {
		return nil, err
	}
	d.Args = []string{"node", "--config", d.Config()}
	return d, os.WriteFile(d.Config(), []byte(settings(b, d)), 0o600)
}

// daemon is a process on a box, which does not run yet.
func (s *site) daemon(b box, name string) (*testbed.Daemon, error) {
	log, err := s.world.log(name)
	if err != nil {
		return nil, err
	}
	d := &testbed.Daemon{Name: name, Space: s.world.spaces[b], Dir: s.world.path(name), Bin: s.bin, Log: log}
	return d, os.Mkdir(d.Dir, 0o755)
}

func nodeSettings(b box, d *testbed.Daemon) string {
	return fmt.Sprintf("data_dir = %q\nsocket = %q\ncache_size = \"64M\"\n[[portal]]\naddress = \"%s:3260\"\n", d.Data(), d.Socket(), b.address(front))
}

func hostSettings(b box, d *testbed.Daemon) string {
	return fmt.Sprintf("data_dir = %q\nsocket = %q\n[cluster]\nhost = true\n[host]\nmemory = \"2G\"\nbox = %q\n[[network]]\nname = %q\nbridge = %q\n",
		d.Data(), d.Socket(), b.String(), lan, lan)
}

// all are the site's processes.
func (s *site) all() []*testbed.Daemon {
	return append(append(s.nodes[:], s.witness), s.hosts...)
}

// start starts those that do not run, at the same time: they wait for one another.
func (s *site) start(ctx context.Context, daemons ...*testbed.Daemon) error {
	started := make(chan error, len(daemons))
	for _, d := range daemons {
		go func() { started <- d.Start(ctx) }()
	}
	var err error
	for range daemons {
		err = errors.Join(err, <-started)
	}
	return err
}

// Up starts everything and makes the site, but no machine.
func (s *site) Up(ctx context.Context) error {
	if err := s.start(ctx, s.all()...); err != nil {
		return err
	}
	if err := s.quorum(ctx); err != nil {
		return err
	}
	if err := s.storage(ctx); err != nil {
		return err
	}
	return s.datacenter(ctx)
}

// quorum makes one cluster: a begins, the others join.
func (s *site) quorum(ctx context.Context) error {
	first := s.nodes[boxA]
	if _, err := first.CLI(ctx, "cluster", "init", "--name", first.Name, "--address", boxA.address(back)+":7400"); err != nil {
		return err
	}
	type member struct {
		d    *testbed.Daemon
		role string
		at   string
	}
	others := []member{{s.nodes[boxB], "node", boxB.address(back) + ":7400"}, {s.witness, "witness", boxW.address(back) + ":7400"}}
	for b, d := range s.hosts {
		others = append(others, member{d, "host", box(b).address(back) + hostPort})
	}
	for _, m := range others {
		token, err := first.CLI(ctx, "cluster", "token", "--role", m.role)
		if err != nil {
			return err
		}
		token, _, _ = strings.Cut(token, "\n")
		if _, err := m.d.CLI(ctx, "cluster", "join", "--name", m.d.Name, "--address", m.at, token); err != nil {
			return err
		}
	}
	return nil
}

// Where hosts listen: to members, and for the logs of machines on two hosts.
const (
	hostPort    = ":7401"
	loggingPort = ":7402"
)

// storage makes pools and the group.
func (s *site) storage(ctx context.Context) error {
	for _, d := range s.nodes {
		if _, err := d.CLI(ctx, "pool", "create", poolName, s.world.path(d.Name+".pool"), "--size", strconv.FormatInt(poolBytes, 10)); err != nil {
			return err
		}
	}
	if _, err := s.nodes[boxA].CLI(ctx, "group", "create", groupName, "--nodes", "a,b", "--pool", poolName, "--alias", aliasAddress+"/24%"+front); err != nil {
		return err
	}
	_, err := s.whole(ctx)
	return err
}

// datacenter makes a cluster with HA of the hosts, and the group a datastore. The host without
// a storage node is left out until spare lets it in.
func (s *site) datacenter(ctx context.Context) error {
	all := [][]string{
		{"datacenter", "create", "dc1"},
		{"cluster", "create", "c1", "--datacenter", "dc1", "--ha"},
		{"datastore", "add", "ds1", "--group", groupName},
	}
	for b, d := range s.hosts {
		all = append(all, []string{"host", "add", d.Name, "--cluster", "c1", "--logging", box(b).address(logs) + loggingPort})
	}
	if s.world.hasHost(boxC) {
		all = append(all, []string{"host", "maintenance", s.hosts[boxC].Name})
	}
	for _, args := range all {
		if _, err := s.nodes[boxA].CLI(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// spare has the host without a storage node, if there is one, take machines, or not.
func (s *site) spare(ctx context.Context, takes bool) error {
	if !s.world.hasHost(boxC) {
		return nil
	}
	args := []string{"host", "maintenance", s.hosts[boxC].Name}
	if takes {
		args = append(args, "--off")
	}
	_, err := s.nodes[boxA].CLI(ctx, args...)
	return err
}

// A disk is one that a machine has besides its image's.
type disk struct{ name, size string }

// Disks of the machine: fio's, and one that is larger than the pools.
var (
	dataDisk = disk{"data", "64M"}
	bigDisk  = disk{"big", "8G"}
)

// createMachine makes the machine of an image.
func (s *site) createMachine(ctx context.Context, store string, i testbed.Image) error {
	args := []string{
		"vm", "create", machineName, "--store", store, "--image", i.Name, "--memory", machineMemory, "--net", lan + ",mac=" + guestMAC,
		"--host", s.hosts[boxA].Name,
	}
	for _, d := range []disk{dataDisk, bigDisk} {
		args = append(args, "--disk", d.name+"="+d.size)
	}
	_, err := s.nodes[boxA].CLI(ctx, args...)
	return err
}

// whole waits until both nodes have all data, all is started, and somebody serves.
func (s *site) whole(ctx context.Context) (testbed.GroupState, error) {
	return s.group(ctx, "is not whole", func(g testbed.GroupState) bool { return g.Owner != "" && g.InSync == len(s.nodes) })
}

// groupPatience bounds how long the group may take to become something.
const groupPatience = 3 * time.Minute

// group waits until the group is as it shall be.
func (s *site) group(ctx context.Context, not string, good func(testbed.GroupState) bool) (testbed.GroupState, error) {
	ctx, cancel := context.WithTimeout(ctx, groupPatience)
	defer cancel()
	last := "nobody answered"
	for {
		g, err := testbed.AskGroup(ctx, groupName, s.nodes[:]...)
		if err == nil && good(g) {
			return g, nil
		}
		if ctx.Err() != nil {
			return g, fmt.Errorf("the group %s: %w: %s", not, ctx.Err(), last)
		}
		last = g.Detail
		pause(ctx, pollEvery)
	}
}

// pollEvery is how often something is asked for that is waited for.
const pollEvery = 50 * time.Millisecond

// pause waits, or not, when ctx is done.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// boxOf finds a node's or a host's box by its name.
func (s *site) boxOf(name string) (box, bool) {
	for i, d := range s.hosts {
		if b := box(i); d.Name == name || b < withNode && s.nodes[b].Name == name {
			return b, true
		}
	}
	return 0, false
}

// machineAskPatience is how long a node may take to say how the machine is.
const machineAskPatience = time.Second

// machine asks the nodes how the machine is: "vm list", without a process for each question.
func (s *site) machine(ctx context.Context) (*steadfastv1.Machine, error) {
	var failure error
	for _, d := range s.nodes {
		if !d.Runs() {
			continue
		}
		m, err := machineBy(ctx, d)
		if err == nil {
			return m, nil
		}
		failure = errors.Join(failure, err)
	}
	return nil, failure
}

// machineBy asks one node how the machine is.
func machineBy(ctx context.Context, d *testbed.Daemon) (*steadfastv1.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, machineAskPatience)
	defer cancel()
	r, err := steadfastv1connect.NewMachineServiceClient(d.API(), "http://node").ListMachines(ctx, &steadfastv1.ListMachinesRequest{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Name, err)
	}
	for _, m := range r.Machines {
		if m.Name == machineName {
			return m, nil
		}
	}
	return nil, fmt.Errorf("%s knows no machine %s", d.Name, machineName)
}

// status is how the machine does on its host: "vm show".
func (s *site) status(ctx context.Context) (*steadfastv1.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*machineAskPatience)
	defer cancel()
	r, err := steadfastv1connect.NewMachineServiceClient(s.nodes[boxA].API(), "http://node").GetMachine(ctx, &steadfastv1.GetMachineRequest{Name: machineName})
	if err != nil {
		return nil, err
	}
	return r.Machine, nil
}

// awaitMachine waits until the machine is as it shall be.
func (s *site) awaitMachine(ctx context.Context, patience time.Duration, what string, good func(*steadfastv1.Machine) bool) (*steadfastv1.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	last := "nobody answered"
	for {
		m, err := s.machine(ctx)
		switch {
		case err == nil && good(m):
			return m, nil
		case err == nil:
			last = fmt.Sprintf("state %q (%s) on %q, generation %d, %d restarts, %s", m.State, m.Detail, m.Host, m.Generation, m.Restarts, m.Reason)
		case ctx.Err() == nil:
			last = err.Error()
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the machine was not %s within %v: %s", what, patience, last)
		}
		pause(ctx, pollEvery)
	}
}

// Close ends all processes.
func (s *site) Close() error {
	var err error
	for _, d := range s.all() {
		if d != nil {
			err = errors.Join(err, d.Kill())
		}
	}
	return err
}
