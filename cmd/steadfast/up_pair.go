package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/config"
	"steadfast/node/handed"
	"steadfast/node/handed/trial"
)

// How long things may take on a slow machine before they are given up.
const (
	startTime = 60 * time.Second
	syncTime  = 5 * time.Minute
)

// roomMin is what must be free for a pair to begin with, in bytes: its logs and what
// is verified, twice.
const roomMin = 512 << 20

// pair is two storage nodes and a witness, each a child of this process, with the
// alias of their group; and with hosts, if they are to be.
type pair struct {
	site
	options upOptions
	screen  *screen

	lock     *os.File
	keeper   *handed.Keeper
	portal   netip.AddrPort    // the group's alias
	members  map[string]string // where the members reach one another
	children []*child          // a, b, w, and then the switch and the hosts
	target   string
	lun      int // of upVolume; -1: there is none any more
	checked  int // of upChecked
	disk     *trial.Disk
	load     *trial.Load
	aliases  map[string]string // aliases that cannot be held, with the reason that was told
	vm       *guest            // nil: there are no hosts
	began    time.Time
	next     string // the heading of what is done next
}

// openPair takes a directory for a pair. Nothing runs yet.
func (a *app) openPair(o upOptions) (*pair, error) {
	p := &pair{
		site: site{a, filepath.Clean(o.dir)}, options: o, screen: newScreen(a.out),
		lun: -1, aliases: map[string]string{}, began: time.Now(),
	}
	if _, err := os.Stat(p.path("control.db")); err == nil {
		return nil, fault.New(fault.Exists, "%s holds the single node of an earlier version, or of --single; go on with it by \"steadfast up --single --data %s\", or name another directory with --data", p.dir, p.dir)
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.Denied, err, "cannot make the data directory; name another one with --data")
	}
	var err error
	p.lock, err = lockFileIn(p.dir, lockFile)
	if fault.Is(err, fault.Busy) {
		return nil, fault.Wrap(fault.Busy, err, fmt.Sprintf("another \"steadfast up\" runs on %s; end it by \"steadfast down --keep-data --data %s\", or name another directory with --data", p.dir, p.dir))
	}
	if err == nil {
		err = signLock(p.lock)
	}
	if err == nil {
		err = p.prepare()
	}
	if err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

// prepare gets the addresses, and checks what would fail later with less to say.
func (p *pair) prepare() error {
	var room unix.Statfs_t
	if err := unix.Statfs(p.dir, &room); err == nil && int64(room.Bavail)*room.Bsize < roomMin {
		return fault.New(fault.Full, "%s has %d MiB free, and %d are needed; make room there, or name another directory with --data", p.dir, int64(room.Bavail)*room.Bsize>>20, roomMin>>20)
	}
	p.keeper = handed.NewKeeper(handed.Options{
		Nodes: []string{handed.Socket(p.path(nodes[0])), handed.Socket(p.path(nodes[1]))}, Log: newLogger(p.a.errs, config.Log{Level: config.Level(4)}),
	})
	nth := 0
	for ; nth < upPorts; nth++ {
		at, err := p.keeper.Hold(loopback(config.DefaultPort+nth), upGroup)
		if err == nil {
			p.portal = at
			break
		}
		if !fault.Is(err, fault.Busy) {
			return err
		}
	}
	if nth == upPorts {
		return fault.New(fault.Busy, "the ports %d to %d are all in use on 127.0.0.1; stop what uses them (ss -ltnp)", config.DefaultPort, config.DefaultPort+upPorts-1)
	}
	if p.options.machine {
		vm, err := p.openGuest(nth)
		if err != nil {
			return err
		}
		p.vm = vm
	}
	return p.place(nth)
}

// memberNames are the members that are to run.
func (p *pair) memberNames() []string {
	names := []string{nodes[0], nodes[1], upWitness}
	if p.vm != nil {
		names = append(names, upHosts[:]...)
	}
	return names
}

// placed are what has an address: the members, and the hosts' logging links.
func (p *pair) placed() []string {
	names := p.memberNames()
	if p.vm != nil {
		for _, h := range upHosts {
			names = append(names, loggingLink(h))
		}
	}
	return names
}

// place finds where the members reach one another: what a cluster has once, it
// keeps.
func (p *pair) place(nth int) error {
	b, err := os.ReadFile(p.path(membersFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.members = map[string]string{}
	case err != nil:
		return fault.Wrap(fault.Denied, err, "the members' addresses")
	default:
		if err := json.Unmarshal(b, &p.members); err != nil || p.members[nodes[0]] == "" || p.members[nodes[1]] == "" || p.members[upWitness] == "" {
			return fault.New(fault.Corrupt, "%s is not readable (%v); begin anew in another directory with --data", p.path(membersFile), err)
		}
	}
	for _, name := range p.placed() {
		if address := p.members[name]; address != "" && !free(address) {
			return fault.New(fault.Busy, "%s is in use, and is where member %s of the cluster in %s is reached; stop what uses it (ss -ltnp), or begin anew in another directory with --data", address, name, p.dir)
		}
	}
	if err := placeNew(p.members, p.placed(), nth); err != nil {
		return err
	}
	return writeJSON(p.path(membersFile), p.members)
}

// bringUp starts the members, makes what is not there, and starts the verified I/O.
func (p *pair) bringUp(ctx context.Context) error {
	if err := p.startAll(ctx); err != nil {
		return err
	}
	if err := p.setUp(ctx); err != nil {
		return err
	}
	now := running{PID: os.Getpid(), Portal: p.portal.String(), Target: p.target, LUN: p.checked}
	if err := writeJSON(p.path(runningFile), now); err != nil {
		return err
	}
	if p.vm != nil {
		if err := p.bringUpGuest(ctx); err != nil {
			return err
		}
	}
	if p.vm != nil && p.vm.ready {
		now.Redis = p.vm.at.String()
		if err := writeJSON(p.path(runningFile), now); err != nil {
			return err
		}
	}
	if p.options.rate == 0 {
		return nil
	}
	var err error
	if p.disk, err = p.openDisk(ctx, "up", p.portal.String(), p.target, p.checked); err != nil {
		return err
	}
	region := upRegion
	region.RateMax = p.options.rate
	p.load, err = trial.Start(ctx, p.disk, region)
	return err
}

// openDisk logs in to the verified volume.
func (s site) openDisk(ctx context.Context, who, portal, target string, lun int) (*trial.Disk, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	d, err := trial.Open(ctx, trial.Options{Portal: portal, Target: target, LUN: lun, Initiator: "iqn.2026-11.io.steadfast:" + who})
	return d, fault.Wrap(fault.KindOf(err), err, "the verified volume cannot be reached")
}

// startAll starts the members, and returns when each answers.
func (p *pair) startAll(ctx context.Context) error {
	for _, n := range nodes {
		if err := os.MkdirAll(p.path(n), 0o700); err != nil {
			return fault.Wrap(fault.Denied, err, "cannot make a node's directory")
		}
		// Portals of their own the nodes have none: the alias is held by this process.
		text := fmt.Appendf(nil, "# Written by steadfast up.\ndata_dir = %q\nsocket = %q\ncache_size = \"64M\"\ndrain_timeout = \"2s\"\nportal = []\n[cluster]\nhanded_aliases = true\nalias_port = %d\nbox = %q\n",
			p.path(n), p.socket(n), p.portal.Port(), "box-"+n)
		if err := os.WriteFile(p.path(n+".toml"), text, 0o600); err != nil {
			return fault.Wrap(fault.Denied, err, "cannot write a node's configuration")
		}
		p.start("node "+n, n, "node", "--config", p.path(n+".toml"))
	}
	p.start("witness "+upWitness, upWitness, "witness", "--data-dir", p.path(upWitness), "--socket", p.socket(upWitness), "--box", "box-"+upWitness)
	for _, c := range p.children {
		if err := p.awaitMember(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// start starts a child; member is what its files are called by.
func (p *pair) start(name, member string, args ...string) *child {
	c := startChild(&child{
		name: name, member: member, args: args, log: p.path(member + ".log"), restart: p.options.restart, say: p.screen.say,
	})
	p.children = append(p.children, c)
	return c
}

// awaitMember waits until a member answers.
func (p *pair) awaitMember(ctx context.Context, c *child) error {
	return p.awaitChild(ctx, c, func(ctx context.Context) bool {
		r, err := p.at(c.member).node().GetStatus(ctx, &steadfastv1.GetStatusRequest{})
		return err == nil && r.Status.State == "serving"
	})
}

// awaitChild waits until a child serves. One that ends before is not waited for.
func (p *pair) awaitChild(ctx context.Context, c *child, serves func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		good := serves(ctx)
		pid, starts, failed := c.running()
		switch {
		case failed != nil:
			return fault.Wrap(fault.Failed, failed, c.name+" cannot be started")
		case good:
			p.screen.say("%s runs as process %d; its log is %s", c.name, pid, c.log)
			return nil
		case starts > 1 || starts == 1 && pid == 0:
			return fault.New(fault.Failed, "%s has ended instead of serving:\n%s", c.name, c.lastWords())
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unreachable, "%s does not serve; its log is %s: %v", c.name, c.log, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// end ends what runs, in order: the machine, the load, the hosts, the node that does not own the
// group, the one that does, so that its copy is the newest, the witness, and the switch.
func (p *pair) end() {
	if len(p.children) > 0 {
		_ = os.Remove(p.path(runningFile)) // the lock tells as well
		p.screen.say("stopping")
	}
	p.stopMachine()
	if p.load != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		p.load.Stop(ctx)
		cancel()
	}
	if p.disk != nil {
		p.disk.Close()
	}
	if p.keeper != nil {
		p.keeper.Close()
	}
	p.endChildren()
	if p.lock != nil {
		_ = p.lock.Close() // which gives it back
	}
}

// endOrder is the order in which members end.
func endOrder(owner string) []string {
	first, then := nodes[0], nodes[1]
	if owner == first {
		first, then = then, first
	}
	return append(upHosts[:len(upHosts):len(upHosts)], first, then, upWitness, upSwitch)
}

func (p *pair) endChildren() {
	if len(p.children) == 0 {
		return
	}
	var owner string
	ctx, cancel := context.WithTimeout(context.Background(), groupTime)
	if g, err := p.group(ctx); err == nil {
		owner = g.Owner
	}
	cancel()
	place := endOrder(owner)
	order := slices.SortedStableFunc(slices.Values(p.children), func(c, d *child) int {
		return slices.Index(place, c.member) - slices.Index(place, d.member)
	})
	var left []*os.Process
	for _, c := range order {
		pid, _, _ := c.running()
		left = append(left, guards(pid)...)
		if c.end() {
			p.screen.say("%s has ended", c.name)
		} else {
			p.screen.say("%s did not end in %v, and was killed", c.name, endPatience)
		}
	}
	for _, g := range left {
		_ = g.Signal(syscall.SIGTERM) // there is nobody left to tell
	}
}

// live follows the group until ctx ends.
func (p *pair) live(ctx context.Context) error {
	defer p.screen.endStatus()
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var last trial.Stats
	if p.load != nil {
		p.load.ResetLongest() // what was waited for before all was up is not the pair's
		last = p.load.Stats()
	}
	at := time.Now()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		text := p.groupLine(ctx)
		if p.load != nil {
			now, moment := p.load.Stats(), time.Now()
			text += "  " + loadLine(last, now, moment.Sub(at))
			for _, f := range now.Findings[len(last.Findings):] {
				p.screen.say("WRONG: %s", f)
			}
			last, at = now, moment
		}
		if ctx.Err() == nil {
			p.screen.status(time.Now().Format("15:04:05") + "  " + text + p.guestLine(ctx))
		}
		if n%2 == 0 {
			p.holdAliases(ctx)
		}
	}
}

// groupLine says how the group is.
func (p *pair) groupLine(ctx context.Context) string {
	g, err := p.group(ctx)
	if err != nil {
		why, _, _ := strings.Cut(err.Error(), "\n")
		return "the group cannot be seen: " + why
	}
	text := fmt.Sprintf("owner %s, epoch %d, in sync %s", g.Owner, g.Epoch, strings.Join(g.InSync, " "))
	if s := g.Sync; s != nil && s.State == "resyncing" {
		text += fmt.Sprintf(" (%d MiB to go)", s.BytesLeft>>20)
	}
	return text
}

// loadLine says what the load saw between two moments, dt apart.
func loadLine(last, now trial.Stats, dt time.Duration) string {
	text := fmt.Sprintf("%.0f IO/s  verified %d  worst stall %.2f s", float64(now.Requests-last.Requests)/dt.Seconds(), now.Verified, now.Longest.Seconds())
	if !now.Clean() {
		text += fmt.Sprintf("  LOST %d  WRONG %d  ERRORS %d", now.Lost, now.Wrong, now.Failed)
	}
	return text
}

// holdAliases holds the aliases of all groups: those that were made meanwhile as
// well.
func (p *pair) holdAliases(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, groupTime)
	defer cancel()
	for _, n := range nodes {
		r, err := p.at(n).groups().ListGroups(ctx, &steadfastv1.ListGroupsRequest{})
		if err == nil {
			p.holdAll(r.Groups)
			return
		}
	}
}

func (p *pair) holdAll(groups []*steadfastv1.Group) {
	want := map[netip.AddrPort]bool{p.portal: true} // from before there was a group
	for _, g := range groups {
		for _, alias := range g.Aliases {
			prefix, err := netip.ParsePrefix(alias.Address)
			if err != nil || prefix.Addr() == p.portal.Addr() {
				continue
			}
			at := netip.AddrPortFrom(prefix.Addr(), p.portal.Port())
			want[at] = true
			_, had := p.keeper.Held()[at]
			_, err = p.keeper.Hold(at, g.Name)
			switch {
			case err != nil && p.aliases[alias.Address] != err.Error():
				p.aliases[alias.Address] = err.Error()
				p.screen.say("alias %s of group %q cannot be held here: %v", alias.Address, g.Name, err)
			case err == nil && !had:
				p.screen.say("group %q is reached at %s", g.Name, at)
			}
		}
	}
	for at := range p.keeper.Held() {
		if !want[at] {
			p.keeper.Release(at)
		}
	}
}
