package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/compute/host"
	"steadfast/compute/vmlock"
	"steadfast/fault"
	"steadfast/internal/journal"
	"steadfast/node/guard"
)

// meetTime is how long after a kill without a go-live requests are sent that meet with it.
const meetTime = 200 * time.Millisecond

// killKind is one kind of kill. What it hits follows from how all stands.
type killKind struct {
	name string
	// target are the members that are killed, and what they are.
	target func(*standing) (members []string, what string)
	// box: all processes of a box are, with those that would tell others of it.
	box bool
	// leads: its node leads the quorum, too.
	leads bool
}

// allKills are the names of all kinds, in their order.
func allKills() []string {
	return []string{"primary", "secondary", "owner", "witness", "box", "box-leader"}
}

// kinds are all kinds of kill.
func kinds() map[string]killKind {
	list := []killKind{
		{name: "primary", target: func(s *standing) ([]string, string) {
			return []string{s.machine.Host}, "host " + s.machine.Host + ", where the machine lives"
		}},
		{name: "secondary", target: func(s *standing) ([]string, string) {
			at := s.machine.Protection.SecondaryHost
			return []string{at}, "host " + at + ", the secondary's"
		}},
		{name: "owner", target: func(s *standing) ([]string, string) {
			return []string{s.group.Owner}, "node " + s.group.Owner + ", which owns the group"
		}},
		{name: "witness", target: func(s *standing) ([]string, string) {
			return []string{upWitness}, "witness " + upWitness + ledText(s, upWitness)
		}},
		{name: "box", target: wholeBox, box: true},
		{name: "box-leader", target: wholeBox, box: true, leads: true},
	}
	all := map[string]killKind{}
	for _, k := range list {
		all[k.name] = k
	}
	return all
}

// wholeBox is the box with the group's owner and the machine.
func wholeBox(s *standing) ([]string, string) {
	h := s.machine.Host
	return []string{s.group.Owner, h}, fmt.Sprintf("%s: node %s, the owner%s, and host %s, where the machine lives", upBoxes[slices.Index(upHosts[:], h)], s.group.Owner, ledText(s, s.group.Owner), h)
}

func ledText(s *standing, member string) string {
	if s.leader == member {
		return " and raft leader"
	}
	return ""
}

// standing is how all stands at one time, with everything well.
type standing struct {
	group   *steadfastv1.Group
	machine *steadfastv1.Machine
	leader  string
	lock    vmlock.Block
}

// steady waits until all is well, and beyond what there was before, if that is said: the group in
// sync, the machine protected, every member at work.
func (d *siteDemo) steady(ctx context.Context, beyond func(*standing) bool) (*standing, error) {
	s := &standing{}
	err := d.await(ctx, syncTime, func() (bool, string) {
		one, cancel := context.WithTimeout(ctx, groupTime)
		defer cancel()
		why, err := d.look(one, s)
		if err == nil && why == "" {
			why = d.membersWell(one, s)
		}
		switch {
		case fault.Is(err, fault.Failed):
			return true, ""
		case why == "" && beyond != nil && !beyond(s):
			why = "nobody has taken over"
		}
		return why == "", why
	})
	if err == nil {
		_, err = d.look(ctx, s)
		if !fault.Is(err, fault.Failed) {
			err = nil
		}
	}
	if err == nil && d.lock != nil {
		s.lock, err = d.lock.Read(ctx)
	}
	return s, err
}

// look sees how all stands, and says what is not well. Fails with fault.Failed for what will not
// be by itself.
func (d *siteDemo) look(ctx context.Context, s *standing) (why string, err error) {
	if s.group, err = d.group(ctx); err != nil {
		return err.Error(), nil
	}
	if !inSync(s.group) {
		return fmt.Sprintf("group %s is %s, and %v are in sync", upGroup, s.group.State, s.group.InSync), nil
	}
	if s.machine, err = d.machine(ctx); err != nil {
		return err.Error(), nil
	}
	m := s.machine
	switch {
	case m == nil:
		return "", fault.New(fault.Failed, "there is no machine %q any more; begin anew: \"steadfast down\", \"steadfast up\"", upMachine)
	case m.Desired != desiredRunning:
		return "", fault.New(fault.Failed, "machine %s; start it: \"steadfast --socket %s vm start %s\"", machineText(m), d.socket(nodes[0]), upMachine)
	case m.Protection == nil || m.Protection.Disabled:
		return "", fault.New(fault.Failed, "the fault tolerance of machine %q is %s; turn it on: \"steadfast --socket %s ft on %s --wait\" (ft enable, if it is disabled)", upMachine, ftStatusText(m.Protection), d.socket(nodes[0]), upMachine)
	case !isProtected(m):
		return "machine " + machineText(m) + protectionText(m), nil
	}
	return "", nil
}

// membersWell sees whether every member is at work, and says what is not.
func (d *siteDemo) membersWell(ctx context.Context, s *standing) (why string) {
	for _, n := range allMembers() {
		r, err := d.at(n).node().GetStatus(ctx, &steadfastv1.GetStatusRequest{})
		if err != nil || r.Status.State != "serving" {
			return "member " + n + " does not serve"
		}
	}
	c, err := d.at(s.group.Owner).clusters().GetCluster(ctx, &steadfastv1.GetClusterRequest{})
	if err != nil {
		return err.Error()
	}
	if s.leader = c.Cluster.Leader; s.leader == "" {
		return "the quorum has no leader"
	}
	for _, m := range c.Cluster.Members {
		if !m.Reachable && m.Name != c.Cluster.Self {
			return "member " + m.Name + " is not heard of"
		}
	}
	h, err := d.at(s.group.Owner).datacenters().ListHosts(ctx, &steadfastv1.ListHostsRequest{})
	if err != nil {
		return err.Error()
	}
	for _, h := range h.Hosts {
		if slices.Contains(upHosts[:], h.Name) && (h.State != "up" || h.Maintenance) {
			return "host " + h.Name + " is " + hostState(h)
		}
	}
	return ""
}

// inOneBox has the group's owner and the machine be in one box with a storage node. One thing is
// moved at a time.
func (d *siteDemo) inOneBox(ctx context.Context, s *standing) error {
	box := boxFor(s)
	node, to := nodes[box], upHosts[box]
	switch at := s.machine.Protection.SecondaryHost; {
	case s.group.Owner != node:
		d.a.say("  the group is moved to node %s\n", node)
		_, err := d.at(node).groups().MoveGroup(ctx, &steadfastv1.MoveGroupRequest{Name: upGroup, To: node})
		return err
	case s.machine.Host == to:
	case at != to:
		d.a.say("  the secondary is moved to host %s\n", to)
		_, err := d.at(node).protections().MigrateSecondary(ctx, &steadfastv1.MigrateSecondaryRequest{Machine: upMachine, Host: to})
		return err
	default:
		d.a.say("  the machine is moved to host %s, by a test failover\n", to)
		_, err := d.at(node).protections().TestFailover(ctx, &steadfastv1.TestFailoverRequest{Machine: upMachine})
		return err
	}
	return nil
}

// boxFor chooses the box, by the number of its node and host: of those whose node does not lead
// the quorum, the one with less to move.
func boxFor(s *standing) int {
	best, least := -1, 0
	for i, n := range nodes {
		moves := 0
		switch upHosts[i] {
		case s.machine.Host:
		case s.machine.Protection.GetSecondaryHost():
			moves += 2
		default:
			moves += 4
		}
		if s.group.Owner != n {
			moves++
		}
		if s.leader == n {
			moves += 10
		}
		if best < 0 || moves < least {
			best, least = i, moves
		}
	}
	return best
}

// arranged has all stand so that the target of a kill is at work, under load.
func (d *siteDemo) arranged(ctx context.Context, k killKind) (*standing, error) {
	const tries = 10 // others may move meanwhile
	for range tries {
		s, err := d.steady(ctx, nil)
		if err != nil || !k.box || isArranged(s) {
			return s, err
		}
		if err := d.inOneBox(ctx, s); err != nil && !passing(err) {
			return nil, err
		}
		// What was asked for may not be seen yet.
		if err := d.flowing(ctx); err != nil {
			return nil, err
		}
	}
	return nil, fault.New(fault.Busy, "owner and machine do not stay in one box; is this computer very busy? Try again, or leave it out with --kill")
}

// isArranged tells whether owner and machine are in one box, whose node does not lead.
func isArranged(s *standing) bool {
	i := slices.Index(nodes[:], s.group.Owner)
	return i >= 0 && s.machine.Host == upHosts[i] && s.leader != s.group.Owner
}

// passing tells whether an error is one of a moment.
func passing(err error) bool {
	return fault.Is(err, fault.Busy) || fault.Is(err, fault.Unreachable)
}

// kill is one kill, to its end.
func (d *siteDemo) kill(ctx context.Context, k killKind) (r demoRow, err error) {
	if _, err := d.arranged(ctx, k); err != nil {
		return r, err
	}
	d.stall = max(d.stall, d.waited(time.Time{}, time.Now()))
	for _, c := range d.clients {
		c.Mark()
	}
	if err := d.flowing(ctx); err != nil {
		return r, err
	}
	// It may have moved since: what is killed is what is at work now.
	s, err := d.steady(ctx, nil)
	if err != nil {
		return r, err
	}
	if k.box && !isArranged(s) {
		return r, fault.New(fault.Busy, "owner and machine have just left the box that was to be killed; try again")
	}
	wake := func() {}
	if k.leads {
		if wake, err = d.lead(ctx, s); err != nil {
			return r, err
		}
		defer wake()
	}
	members, what := k.target(s)
	before := d.stats()
	r = demoRow{name: k.name, what: what}
	killed, err := d.strike(members, k.box)
	wake()
	if err != nil {
		return r, err
	}
	met := killed.Add(meetTime)
	if slices.Contains(members, s.machine.Host) {
		if met, err = d.wentLive(ctx, s.machine.Protection.SecondaryHost, killed); err != nil {
			return r, err
		}
		r.live = met.Sub(killed)
	}
	if slices.Contains(members, s.group.Owner) {
		if _, err := d.awaitGroup(ctx, "in sync", syncTime, func(g *steadfastv1.Group) bool { return inSync(g) && g.Epoch > s.group.Epoch }); err != nil {
			return r, err
		}
		r.synced = time.Since(killed)
	}
	if err := d.flowing(ctx); err != nil {
		return r, err
	}
	r.stall = d.waited(killed, met)
	now, err := d.steady(ctx, func(n *standing) bool { return tookOver(s, n, members) })
	if err != nil {
		return r, err
	}
	if now.machine.Protection.Pair != s.machine.Protection.Pair || now.machine.Host != s.machine.Host {
		r.protected = now.machine.Protection.Since.AsTime().Sub(killed)
	}
	if err := counts(s, now, members); err != nil {
		return r, err
	}
	r.later = d.waited(met, time.Now())
	d.stall = max(d.stall, r.stall, r.later)
	if err := d.each(func(c *journal.Client) error { return c.ReadNew(ctx) }); err != nil {
		return r, fault.Wrap(fault.Unreachable, err, "reading back")
	}
	n := d.stats()
	r.requests, r.reconnects = n.Answers-before.Answers, n.Reconnects-before.Reconnects
	r.lost, r.duplicated, r.wrong = n.Lost-before.Lost, n.Duplicated-before.Duplicated, n.Wrong-before.Wrong
	return r, nil
}

// tookOver tells whether others do what the members that were killed did.
func tookOver(s, now *standing, members []string) bool {
	onMachine := slices.Contains(members, s.machine.Host) || slices.Contains(members, s.machine.Protection.SecondaryHost)
	moved := now.machine.Protection.Pair != s.machine.Protection.Pair || now.machine.Host != s.machine.Host
	return (moved || !onMachine) && (now.group.Epoch > s.group.Epoch || !slices.Contains(members, s.group.Owner))
}

// counts fails if a kill does not count: the machine's lock is to have been taken by the secondary,
// or to stand as it did, and the machine is to be the same life.
func counts(s, now *standing, members []string) error {
	primary := slices.Contains(members, s.machine.Host)
	secondary := slices.Contains(members, s.machine.Protection.SecondaryHost)
	lock := fmt.Sprintf("the machine's lock was at %d.%d of host %d, and is at %d.%d of host %d", s.lock.Generation, s.lock.Turn, s.lock.Owner.Host, now.lock.Generation, now.lock.Turn, now.lock.Owner.Host)
	switch {
	case now.machine.Generation != s.machine.Generation || now.machine.Restarts != s.machine.Restarts:
		return fault.New(fault.Failed, "this does not count: the machine was started again, and did not go on (%s)", now.machine.Reason)
	case (primary || secondary) && !now.lock.After(s.lock):
		return fault.New(fault.Failed, "this does not count: %s", lock)
	case primary && now.machine.Protection.Failovers <= s.machine.Protection.Failovers:
		return fault.New(fault.Failed, "this does not count: the secondary has not taken over; %s", lock)
	case primary && now.machine.Host == s.machine.Host:
		return fault.New(fault.Failed, "this does not count: the machine still lives on %s; %s", s.machine.Host, lock)
	}
	return nil
}

// wentLive waits until a host says that it goes on as the machine, and returns since when.
func (d *siteDemo) wentLive(ctx context.Context, secondary string, killed time.Time) (at time.Time, err error) {
	err = d.await(ctx, takeoverTime, func() (bool, string) {
		one, cancel := context.WithTimeout(ctx, groupTime)
		defer cancel()
		stream, err := d.at(secondary).node().WatchEvents(one, &steadfastv1.WatchEventsRequest{KeptOnly: true})
		if err != nil {
			return false, err.Error()
		}
		defer func() { _ = stream.Close() }()
		for stream.Receive() {
			e := stream.Msg().Event
			if e.Kind == host.EventTookOver && e.Machine == upMachine && e.Time.AsTime().After(killed) {
				at = e.Time.AsTime()
			}
		}
		return !at.IsZero(), "the secondary's host " + secondary + " does not go on as the machine"
	})
	return at, err
}

// strike kills the processes of members in the same moment: those of a box with all that they
// have started, so that nobody is left there to tell others.
func (d *siteDemo) strike(members []string, box bool) (killed time.Time, err error) {
	pids := make([]int, len(members))
	var all []*os.Process
	for i, m := range members {
		if pids[i], err = d.processOf(m); err != nil {
			return killed, err
		}
		for _, c := range childrenOf(pids[i]) {
			if box || !c.guard {
				all = append(all, c.process)
			}
		}
		p, err := os.FindProcess(pids[i])
		if err != nil {
			return killed, fault.Wrap(fault.NotFound, err, "the process of member "+m)
		}
		all = append(all, p)
	}
	// A number may be another process's by now; what was found by it is not.
	for i, m := range members {
		if again, err := d.processOf(m); err != nil || again != pids[i] {
			return killed, fault.New(fault.Busy, "member %s has just ended by itself; try again", m)
		}
	}
	killed = time.Now()
	for _, p := range all {
		_ = p.Kill() // it has just ended with its parent, then
	}
	return killed, nil
}

// started is a process that another has started.
type started struct {
	process *os.Process
	guard   bool
}

// childrenOf finds what a process has started.
func childrenOf(pid int) (list []started) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is right
	for _, path := range paths {
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || parentOf(child) != pid {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		if p, err := os.FindProcess(child); err == nil {
			words := strings.Split(string(b), "\x00")
			list = append(list, started{p, len(words) > 1 && words[1] == guard.Command})
		}
	}
	return list
}
