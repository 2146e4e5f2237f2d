package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/compute/image"
	"steadfast/compute/netswitch"
	"steadfast/fault"
	"steadfast/node"
	"steadfast/node/size"
)

// What "steadfast up" makes for a machine.
const (
	upDatacenter = "dc1"
	upCluster    = "prod"
	upDatastore  = "ds1"
	upNetwork    = "lan"
	// upSwitch is what the switch's files are called by.
	upSwitch = "switch"
	// upHostMemory is what each host has for machines.
	upHostMemory = "1G"
	// upMAC and upAddress are the machine's on the switch's network.
	upMAC     = "02:53:46:00:00:14"
	upAddress = "10.0.2.20"
	upService = 6379 // Redis' port
)

// What must be free for hosts and a machine to be made, in bytes: of memory, twice the
// machine's with what six processes take; of the filesystem, the image, its copies on both
// nodes, and what is written to them.
const (
	guestMemoryMin = 3 << 30
	guestRoomMin   = 3 << 30
)

// hostTime is how long hosts may take to be up on a slow machine.
const hostTime = time.Minute

// upHosts are the hosts, and upBoxes the boxes that they would stand in: the first two with a
// storage node each, the third with the witness.
var (
	upHosts = [3]string{"h1", "h2", "h3"}
	upBoxes = [3]string{"box-a", "box-b", "box-w"}
)

// loggingLink is what the address of a host's logging link is kept by, beside the members'.
func loggingLink(host string) string { return host + ".logging" }

// guest is a machine with what it needs besides the pair: a switch and three hosts.
type guest struct {
	at    netip.AddrPort // where its Redis is reached
	runs  bool           // it is to run
	ready bool           // it has answered
	probe *probe
	// joined are the hosts that this run has made members.
	joined []string
}

// openGuest finds where the machine's Redis is to be reached; nil with the reason said when
// there can be no machine.
func (p *pair) openGuest(nth int) (*guest, error) {
	if why := p.guestLacks(); why != "" {
		p.screen.say("NO HOSTS AND NO MACHINE, the nodes and the witness only: %s", why)
		return nil, nil
	}
	for i := range upPorts {
		if at := loopback(upService + (nth+i)%upPorts); free(at.String()) {
			return &guest{at: at}, nil
		}
	}
	return nil, fault.New(fault.Busy, "the ports %d to %d are all in use on 127.0.0.1; stop what uses them (ss -ltnp), or go without a machine: --no-vm", upService, upService+upPorts-1)
}

// guestLacks says what keeps this computer from running hosts and a machine; "" for nothing.
func (p *pair) guestLacks() string {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return "how much memory is free is not known: " + err.Error()
	}
	if why := memoryLacks(string(text), node.MemoryMax()); why != "" {
		return why
	}
	if p.wasMade() {
		return "" // all else is there
	}
	var room unix.Statfs_t
	if err := unix.Statfs(p.dir, &room); err == nil && int64(room.Bavail)*room.Bsize < guestRoomMin {
		return fmt.Sprintf("%s has %s free, and they need %s; make room there, or name another directory with --data", p.dir, size.Format(int64(room.Bavail)*room.Bsize), size.Format(guestRoomMin))
	}
	if p.options.poolSize < guestPoolMin {
		return fmt.Sprintf("pools of %s have no room for a machine; --pool-size %s does", size.Format(p.options.poolSize), size.Format(guestPoolMin))
	}
	if _, err := (image.Store{Dir: p.images()}).Get(upImage); err == nil {
		return ""
	}
	if err := image.CheckTools(); err != nil {
		return "a machine's image cannot be built: " + err.Error()
	}
	return ""
}

// memoryLacks says what memory is wanting, by /proc/meminfo and the limit of this process's
// control group, in bytes; 0: there is none.
func memoryLacks(meminfo string, limit int64) string {
	left, whose := freeMemory(meminfo), "end other programs, or use a computer with more"
	if limit > 0 && limit < left {
		left, whose = limit, "this program's control group or container allows no more: raise its memory limit"
	}
	if left >= guestMemoryMin {
		return ""
	}
	return fmt.Sprintf("%s of memory are free, and they need %s; %s", size.Format(left), size.Format(guestMemoryMin), whose)
}

// freeMemory is what /proc/meminfo says is free for new programs, in bytes. proc(5).
func freeMemory(meminfo string) int64 {
	for line := range strings.Lines(meminfo) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemAvailable:" {
			n, _ := strconv.ParseInt(f[1], 10, 64) // 0: none is known to be free
			return n << 10
		}
	}
	return 0
}

// bringUpGuest starts switch and hosts, and makes the machine. Without it the pair goes on:
// what is wrong is said, and an error is that ctx has ended.
func (p *pair) bringUpGuest(ctx context.Context) error {
	for _, do := range []func(context.Context) error{p.startSwitch, p.startHosts, p.makeSite, p.awaitHosts, p.makeMachine, p.startMachine, p.awaitMachine, p.protectMachine} {
		err := do(ctx)
		if ctx.Err() != nil {
			return fault.Wrap(fault.Canceled, context.Cause(ctx), "the machine")
		}
		if err != nil {
			p.screen.say("\nNO MACHINE: %v\nThe nodes go on without it; the next \"steadfast up\" tries again.", err)
			return nil
		}
	}
	return nil
}

// switchSocket is where hosts attach machines.
func (p *pair) switchSocket() string { return p.path("switch.sock") }

// startSwitch starts what stands for the user's switch and router.
func (p *pair) startSwitch(ctx context.Context) error {
	args := []string{
		"switch", "--socket", p.switchSocket(), "--reserve", upMAC + "=" + upAddress,
		"--forward", p.vm.at.String() + ":" + upAddress + ":" + strconv.Itoa(upService),
	}
	p.heading("Your network: a switch, as there is no root to use a real one")
	c := p.start("the switch", upSwitch, args...)
	p.showHeading()
	p.screen.say("%s %s\n  stands for your network's switch and router: no demo kills it, and nothing here keeps it available", os.Args[0], strings.Join(args, " "))
	client := netswitch.Client{Socket: p.switchSocket()}
	return p.awaitChild(ctx, c, func(ctx context.Context) bool {
		_, err := client.State(ctx)
		return err == nil
	})
}

// startHosts starts the hosts, and makes members of them.
func (p *pair) startHosts(ctx context.Context) error {
	p.heading("Three hosts: h1 in the box of node a, h2 in that of node b, h3 in that of the witness")
	var started []*child
	for i, h := range upHosts {
		if err := os.MkdirAll(p.path(h), 0o700); err != nil {
			return fault.Wrap(fault.Denied, err, "cannot make a host's directory")
		}
		text := fmt.Appendf(nil, "# Written by steadfast up.\ndata_dir = %q\nsocket = %q\n[cluster]\nhost = true\nalias_port = %d\n[host]\nmemory = %q\nbox = %q\n[[network]]\nname = %q\nswitch = %q\n",
			p.path(h), p.socket(h), p.portal.Port(), upHostMemory, upBoxes[i], upNetwork, p.switchSocket())
		if err := os.WriteFile(p.path(h+".toml"), text, 0o600); err != nil {
			return fault.Wrap(fault.Denied, err, "cannot write a host's configuration")
		}
		started = append(started, p.start("host "+h, h, "node", "--config", p.path(h+".toml")))
	}
	for _, c := range started {
		if err := p.awaitMember(ctx, c); err != nil {
			return err
		}
		joined, err := p.makeMember(ctx, c.member, "host")
		if err != nil {
			return err
		}
		if joined {
			p.vm.joined = append(p.vm.joined, c.member)
		}
	}
	return nil
}

// makeSite makes datacenter, cluster and datastore, and has the hosts run the cluster's
// machines; once: what the user does to them stays. A host that is new to what an earlier
// version made comes to it.
func (p *pair) makeSite(ctx context.Context) error {
	if p.wasMade() {
		return p.addHosts(ctx, p.vm.joined)
	}
	p.heading("A datacenter, and in it a cluster of hosts with high availability")
	api := p.at(nodes[0]).datacenters()
	centers, err := api.ListDatacenters(ctx, &steadfastv1.ListDatacentersRequest{})
	if err != nil {
		return err
	}
	clusters, err := api.ListHostClusters(ctx, &steadfastv1.ListHostClustersRequest{})
	if err != nil {
		return err
	}
	stores, err := api.ListDatastores(ctx, &steadfastv1.ListDatastoresRequest{})
	if err != nil {
		return err
	}
	for _, s := range []struct {
		made bool
		args []string
	}{
		{slices.Contains(namesOf(centers.Datacenters), upDatacenter), []string{"datacenter", "create", upDatacenter}},
		{slices.Contains(namesOf(clusters.Clusters), upCluster), []string{"cluster", "create", upCluster, "--datacenter", upDatacenter, "--ha"}},
		{slices.Contains(namesOf(stores.Datastores), upDatastore), []string{"datastore", "add", upDatastore, "--group", upGroup, "--datacenter", upDatacenter}},
	} {
		if s.made {
			continue
		}
		if err := p.step(ctx, nodes[0], nil, s.args...); err != nil {
			return err
		}
	}
	return p.addHosts(ctx, upHosts[:])
}

// addHosts has hosts run the cluster's machines, each with its links: machines move by the link
// that it is managed by, and fault tolerance logs by one of its own.
func (p *pair) addHosts(ctx context.Context, names []string) error {
	r, err := p.at(nodes[0]).datacenters().ListHosts(ctx, &steadfastv1.ListHostsRequest{})
	if err != nil {
		return err
	}
	for _, h := range names {
		if slices.Contains(namesOf(r.Hosts), h) {
			continue
		}
		if err := p.step(ctx, nodes[0], nil, "host", "add", h, "--cluster", upCluster, "--migration", p.members[h], "--logging", p.members[loggingLink(h)]); err != nil {
			return err
		}
	}
	return nil
}

// awaitHosts waits until the hosts can run machines.
func (p *pair) awaitHosts(ctx context.Context) error {
	var last string
	return p.await(ctx, hostTime, func(ctx context.Context) bool {
		r, err := p.at(nodes[0]).datacenters().ListHosts(ctx, &steadfastv1.ListHostsRequest{})
		if err != nil {
			last = err.Error()
			return false
		}
		last = ""
		for _, h := range r.Hosts {
			if slices.Contains(upHosts[:], h.Name) && h.State != "up" {
				last += fmt.Sprintf("host %s is %s; ", h.Name, h.State)
			}
		}
		return last == ""
	}, func() string { return "the hosts are not up: " + last + "their logs are in " + p.dir })
}

// await waits until something holds. Fails with fault.Unreachable and what else says after
// the time for it, and with fault.Canceled when ctx ends.
func (p *pair) await(ctx context.Context, within time.Duration, holds func(context.Context) bool, otherwise func() string) error {
	late := time.NewTimer(within)
	defer late.Stop()
	for {
		one, cancel := context.WithTimeout(ctx, groupTime)
		good := holds(one)
		cancel()
		if good {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Canceled, context.Cause(ctx), "waiting")
		case <-late.C:
			return fault.New(fault.Unreachable, "%s (waited %v)", otherwise(), within)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
