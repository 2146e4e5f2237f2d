// Package placement decides which host a machine runs on, which one has its
// secondary, when a host counts as lost, and when a machine is started again. It also
// says what fault tolerance takes (prerequisites.go). Pure: a View of the inventory, what
// the nodes heard from hosts, and the time are inputs; decisions come out, which
// Edits turns into changes of the inventory.
//
//	            Place                     guest's end, vm stop: End
//	waiting ------------->  active  --------------------------------->  ended
//	   ^                    |    |                                        |
//	   |      maintenance:  |    | host lost, failed: Place again,        |
//	   +------ Leave, End --+    | generation+1, or End                   |
//	   +------------------------------- vm start (another run) -----------+
//
// # No decision is a matter of safety
//
// A host that is declared lost may live, and run its machines while they are
// placed elsewhere; two nodes may decide from different reports; a decision may
// be carried out minutes late. None of that harms a disk: a host takes the lock
// block of a machine before it does anything, with the generation of its
// placement, and fences whoever had it before (compute/vmlock). So what is here
// is judged by how soon machines run again, and how seldom one is restarted that
// need not be. That two decisions which were made at once do not both happen is
// the inventory's affair: their edits name one revision.
//
// # Who is lost
//
// A host renews its life at the nodes. It is lost when for Silence no node has
// heard of it, as far as the deciding node knows: it merges its own reports
// with those of the nodes that it reaches. A node counts from when it began to
// listen, so one that has just come up holds a decision back for Silence, and
// declares nobody lost whom it had no chance to hear. A life that was declared
// lost stays so: when it is heard of again it is told (Evict), ends what it runs,
// and comes back under a new one.
//
// # When a machine is started again
//
// When its host is lost, or could not run it, in a cluster with HA, and unless
// its policy is to leave it: once, on another host if one has the memory, and on
// a new life of the same one if none has. A machine that had run for GiveBack
// since has its restart back: the bound is there for a machine that takes host
// after host down with it, not for two power cuts in a year. Neither does the loss of a life
// count that no node has heard anything of since it began to listen: the nodes were down as
// well; and when everything goes down, a host may be the first: a machine ends with its host
// only a few seconds later. A machine that is
// not started again has ended, for as long as nobody starts it. Neither has a
// guest that shut down or panicked failed: that is its own affair, and what was
// wanted of it ends with it. A reset is carried out by the host, in place.
//
// A whole box that dies, storage and host, is no case of its own here: its host
// is lost, and what the storage's other node serves is started elsewhere.
//
// # Secondaries
//
// A machine with fault tolerance that runs is given a secondary (Pair) on another host
// of another box, with the same build, the machine's networks and memory for it. When its
// host is lost while the secondary's stands, nothing is decided here: the two and the lock
// have decided already (compute/lockstep), and the secondary's host says what came of it. Only
// when that is lost, too, it is a restart as above. A machine whose pair has ended is let breathe
// before the next one. A host on which a pair has ended is tried again after holdOff, and so is
// every host after triesMax pairs that never were ready.
//
//	         Pair            the machine's host says that it can go on
//	none ----------> second ------------------------------------------> protected
//	  ^                |                                                  |
//	  +---- Part ------+--------- Part, or the secondary took over -------+
//
// # Maintenance
//
// A host in maintenance gets no machines. Those on it are asked to shut down, one
// decision each, as far as other hosts have the memory for them, and are
// then started there. That is no failure and costs no restart. One that is protected is
// handed over to its secondary instead, and a secondary there is made elsewhere, or ends.
package placement

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
)

// Times.
const (
	// Silence is after what time without a word a host is lost.
	Silence = 3 * time.Second
	// GiveBack is how long a machine runs before its restart is given back.
	GiveBack = 10 * time.Minute
)

// restartsMax is how often a machine is started again before GiveBack has passed.
const restartsMax = 1

// settle is how long the loss of a host is known before a machine ends with it.
const settle = 5 * time.Second

// Heard is what one node heard of hosts.
type Heard struct {
	Node quorum.Member
	// Listening is for how long the node has listened without a break.
	Listening time.Duration
	Hosts     []Report
	// First is, by host, the first life of it that the node heard of since then.
	First map[string]uint32
}

// Report is the newest word of a host.
type Report struct {
	Host string
	Boot uint32
	Age  time.Duration // since it was heard
	// Machines are those that the host knows to have ended, or could not run.
	Machines []Machine
}

// Outcome is what a host says of a machine that was placed on it and does not
// run.
type Outcome uint8

// Outcomes.
const (
	Runs       Outcome = iota // or is about to
	Shutdown                  // by its guest
	Panicked                  // its guest did
	Stopped                   // because that was wanted
	Failed                    // the host could not run it, or its process died
	Superseded                // the lock block has a greater generation
)

// Machine is what a host reports of a machine.
type Machine struct {
	Name       string
	Generation uint64 // of the placement
	Outcome    Outcome
	Detail     string // for people
	// Found is the lock block's generation, with Superseded.
	Found uint64
}

// Decision is one thing to be done.
type Decision interface{ decision() }

// Decisions.
type (
	// Lost declares a life of a host lost.
	Lost struct {
		Host    string
		Boot    uint32
		Silence time.Duration
	}
	// Evict tells a host that this life of it was declared lost, or is over.
	Evict struct {
		Host string
		Boot uint32
	}
	// Place places a machine.
	Place struct {
		Machine    string
		Host       string
		Boot       uint32
		Generation uint64
		Restarts   int
		Reason     string
	}
	// Leave asks a host in maintenance to shut a machine down.
	Leave struct {
		Machine    string
		Generation uint64
	}
	// End says that a placement is over, and why.
	End struct {
		Machine    string
		Generation uint64
		Why        inventory.Ending
		Detail     string
	}
	// Pair gives a machine a secondary, in place of the one that it has, if any.
	Pair struct {
		Machine    string
		Generation uint64
		Host       string
		Boot       uint32
	}
	// Part takes a machine's secondary away.
	Part struct {
		Machine    string
		Generation uint64
		Pair       uint64
		Why        inventory.PartReason
		Detail     string
	}
	// Wait says that a machine can not be placed or moved now, or have a secondary. It
	// changes nothing; people are shown it.
	Wait struct {
		Machine string
		Why     string
	}
)

func (Lost) decision()  {}
func (Evict) decision() {}
func (Place) decision() {}
func (Leave) decision() {}
func (End) decision()   {}
func (Pair) decision()  {}
func (Part) decision()  {}
func (Wait) decision()  {}

// decider is one round of Decide.
type decider struct {
	v     *inventory.View
	now   int64
	hosts []string          // all, by name
	heard map[string]Report // the newest word, by host
	lost  map[string]bool   // by host: its newest life is lost, or being declared so
	first map[string]uint32 // by host: the first life of it that a node heard of
	free  map[string]int64  // bytes of memory by host that takes machines or runs some
	done  map[string]bool   // machines that are decided about
	out   []Decision
}

// Decide returns what is to be done, of which at most one thing is about one
// machine. now is in nanoseconds since 1970, UTC. The same inputs give the same
// decisions.
func Decide(v *inventory.View, reports []Heard, now int64) []Decision {
	d := newDecider(v, reports, now)
	waiting := d.judge()
	// Large machines first: small ones fit into what they leave. What a machine
	// prefers is met if there is room for it then: nobody waits for it.
	slices.SortStableFunc(waiting, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.m.Memory, a.m.Memory), cmp.Compare(a.m.Name, b.m.Name))
	})
	for _, c := range waiting {
		d.place(c)
	}
	d.pairs()
	d.empty()
	return d.out
}

// newDecider begins a round: it knows who is lost, and what memory is left.
func newDecider(v *inventory.View, reports []Heard, now int64) *decider {
	d := &decider{
		v: v, now: now, hosts: slices.Sorted(maps.Keys(v.Hosts)), heard: map[string]Report{}, first: map[string]uint32{}, lost: map[string]bool{}, free: map[string]int64{}, done: map[string]bool{},
	}
	d.merge(reports)
	for _, name := range d.hosts {
		d.host(name, reports)
	}
	for name, p := range v.Placements {
		m := v.Machines[name]
		if m == nil || !p.Active() {
			continue
		}
		d.free[p.Host] -= int64(m.Memory)
		if p.Second != nil {
			d.free[p.Second.Host] -= int64(m.Memory)
		}
	}
	return d
}

// decide decides about a machine.
func (d *decider) decide(machine string, what Decision) {
	d.done[machine] = true
	d.out = append(d.out, what)
}

// merge keeps the newest word of each host; of two lives the later one's.
func (d *decider) merge(reports []Heard) {
	for _, n := range reports {
		for host, boot := range n.First {
			if first, ok := d.first[host]; !ok || boot < first {
				d.first[host] = boot
			}
		}
		for _, r := range n.Hosts {
			old, ok := d.heard[r.Host]
			if !ok || r.Boot > old.Boot || r.Boot == old.Boot && r.Age < old.Age {
				d.heard[r.Host] = r
			}
		}
	}
}

// host decides about a host's life, and what memory it has for machines.
func (d *decider) host(name string, reports []Heard) {
	life := d.v.Lives[name]
	if life == nil {
		return
	}
	silence := d.silence(name, life, reports)
	if life.State == inventory.Up && silence >= Silence {
		d.out = append(d.out, Lost{name, life.Boot, silence})
	}
	d.lost[name] = life.State != inventory.Up || silence >= Silence
	d.free[name] = int64(min(life.Memory, 1<<62))
	// It speaks, under a life that is over: it may not know yet.
	if r, ok := d.heard[name]; ok && r.Age < Silence && (r.Boot < life.Boot || r.Boot == life.Boot && life.State == inventory.Lost) {
		d.out = append(d.out, Evict{name, r.Boot})
	}
}

// silence is for how long no node has heard of a host's newest life.
func (d *decider) silence(name string, life *inventory.HostLife, reports []Heard) time.Duration {
	if len(reports) == 0 {
		return 0 // nobody listened
	}
	least := time.Duration(1<<63 - 1)
	for _, n := range reports {
		s := n.Listening
		for _, r := range n.Hosts {
			if r.Host == name && r.Boot >= life.Boot {
				s = min(s, r.Age)
			}
		}
		least = min(least, s)
	}
	// It was heard of when its life was entered, by a node that may not be among
	// these. A time to come is another node's clock, which says nothing.
	if since := time.Duration(d.now - life.Since); since >= 0 {
		least = min(least, since)
	}
	return least
}

// candidate is a machine to be placed.
type candidate struct {
	m        *inventory.Machine
	not      string // the host that it comes from: the last to be taken
	above    uint64 // generation
	restarts int
	reason   string
}

// judge decides about each machine what does not depend on where there is room,
// and returns those that are to be placed.
func (d *decider) judge() (waiting []candidate) {
	for _, name := range slices.Sorted(maps.Keys(d.v.Machines)) {
		m, p := d.v.Machines[name], d.v.Placements[name]
		if key := d.unread(m, p); key != "" {
			d.decide(name, Wait{name, fmt.Sprintf("the inventory's %q was written by a newer program; upgrade this node", key)})
			continue
		}
		switch {
		case p.Active():
			if c, ok := d.active(m, p); ok {
				waiting = append(waiting, c)
			}
		case m.Desired == inventory.Running:
			c := candidate{m: m, above: m.Floor, reason: "started"}
			if p != nil {
				c.above = max(m.Floor, p.Generation)
			}
			if p != nil && p.Run == m.Run { // it left a host in maintenance
				c.restarts, c.reason = p.Restarts, "left the host "+p.Host
			}
			waiting = append(waiting, c)
		}
	}
	return waiting
}

// unread returns the key of a document that deciding about a machine takes and
// that cannot be read: a host is not lost because a newer program wrote of it.
func (d *decider) unread(m *inventory.Machine, p *inventory.Placement) string {
	keys := []string{"placement/" + m.Name, "cluster/" + m.Cluster}
	if p.Active() {
		keys = append(keys, "host/"+p.Host, "life/"+p.Host)
		if p.Second != nil {
			keys = append(keys, "host/"+p.Second.Host, "life/"+p.Second.Host)
		}
	}
	for _, key := range keys {
		if _, found := slices.BinarySearch(d.v.Unread, key); found {
			return key
		}
	}
	return ""
}

// active decides about a machine that a host shall run or is to end.
func (d *decider) active(m *inventory.Machine, p *inventory.Placement) (candidate, bool) {
	again := candidate{m: m, not: p.Host, above: max(m.Floor, p.Generation), restarts: p.Restarts}
	said, ok := d.said(p)
	switch {
	case d.stands(p.Second) && d.takesOver(m, p, said, ok):
		d.decide(m.Name, Wait{m.Name, fmt.Sprintf("its secondary on the host %s takes over", p.Second.Host)})
	case !ok && (d.lost[p.Host] || !d.same(p)):
		return d.again(again, p, inventory.EndedHostLost, fmt.Sprintf("the host %s was lost", p.Host))
	case !ok, said.Outcome == Runs:
	case said.Outcome == Shutdown && p.Leave && m.Desired == inventory.Running, said.Outcome == Stopped && m.Desired == inventory.Running:
		// Its host shut it down because it was to leave, or because a stop was
		// wanted when it looked.
		d.end(p, inventory.EndedMoved, said.Detail)
	case said.Outcome == Shutdown && m.Desired == inventory.Running:
		d.end(p, inventory.EndedShutdown, said.Detail)
	case said.Outcome == Panicked:
		d.end(p, inventory.EndedPanic, said.Detail)
	case said.Outcome == Superseded && m.Desired == inventory.Running:
		// The disks have seen more than the inventory: it was restored, or the
		// machine registered anew. Another generation, and no failure.
		again.not, again.above, again.reason = "", max(again.above, said.Found), "the lock block had a greater generation"
		d.leaves(m, p)
		return again, true
	case said.Outcome == Failed && m.Desired == inventory.Running:
		return d.again(again, p, inventory.EndedFailed, said.Detail)
	default:
		d.end(p, inventory.EndedStopped, said.Detail)
	}
	return candidate{}, false
}

// same tells whether a placement's host still is in the life that it was made for.
func (d *decider) same(p *inventory.Placement) bool {
	l := d.v.Lives[p.Host]
	return l != nil && l.Boot == p.Boot
}

// said returns what a placement's host says of it. The word of a life that was
// declared lost counts, too: an ending is one, whoever tells it.
func (d *decider) said(p *inventory.Placement) (Machine, bool) {
	r, ok := d.heard[p.Host]
	if !ok || r.Boot != p.Boot {
		return Machine{}, false
	}
	for _, m := range r.Machines {
		if m.Name == p.Machine && m.Generation == p.Generation && m.Outcome != Runs {
			return m, true
		}
	}
	return Machine{}, false
}

// again decides about a machine that failed through no doing of its guest.
func (d *decider) again(c candidate, p *inventory.Placement, why inventory.Ending, detail string) (candidate, bool) {
	if time.Duration(d.now-p.Since) >= GiveBack {
		c.restarts = 0
	}
	cluster := d.v.Clusters[c.m.Cluster]
	switch {
	case c.m.Desired != inventory.Running:
		d.end(p, inventory.EndedStopped, detail)
		return c, false
	case p.Leave:
		// It was on its way out: it goes on elsewhere, HA or not.
	case cluster == nil || !cluster.HA:
		d.end(p, why, detail+"; the cluster has no HA")
		return c, false
	case c.m.Policy != inventory.Restart:
		d.end(p, why, detail+"; its policy is to leave it")
		return c, false
	case why == inventory.EndedHostLost && !d.heardOf(p):
		// Everything has been down, and no machine did that.
	case c.restarts >= restartsMax && why == inventory.EndedHostLost && d.fresh(p):
		// When everything goes down, a host may be the first: then nobody is there to say more.
		d.decide(c.m.Name, Wait{c.m.Name, detail + "; it was restarted once already, and ends if nothing else is lost"})
		return c, false
	case c.restarts >= restartsMax:
		d.end(p, why, detail+"; it was restarted once already")
		return c, false
	default:
		c.restarts++
	}
	c.reason = detail
	d.leaves(c.m, p)
	return c, true
}

// leaves gives back the memory of a machine that is to be placed anew, and of its secondary.
func (d *decider) leaves(m *inventory.Machine, p *inventory.Placement) {
	d.free[p.Host] += int64(m.Memory)
	if p.Second != nil {
		d.free[p.Second.Host] += int64(m.Memory)
	}
}

// heardOf tells whether a node has heard of the life that a placement was made for.
func (d *decider) heardOf(p *inventory.Placement) bool {
	first, ok := d.first[p.Host]
	return ok && first <= p.Boot
}

// fresh tells whether the loss of a placement's host was noticed just now.
func (d *decider) fresh(p *inventory.Placement) bool {
	l := d.v.Lives[p.Host]
	if l == nil {
		return false
	}
	return l.State == inventory.Up && l.Boot == p.Boot || time.Duration(d.now-l.Since) < settle
}

func (d *decider) end(p *inventory.Placement, why inventory.Ending, detail string) {
	d.decide(p.Machine, End{p.Machine, p.Generation, why, detail})
}

// place finds a host for a machine.
func (d *decider) place(c candidate) {
	host := d.best(c)
	if host == "" {
		d.decide(c.m.Name, Wait{c.m.Name, fmt.Sprintf("no host of the cluster %s that is up and not in maintenance has %d MiB of memory left", c.m.Cluster, c.m.Memory>>20)})
		return
	}
	if c.above >= inventory.GenerationMax {
		d.decide(c.m.Name, Wait{c.m.Name, "it was placed too often; export it and import it as another"})
		return
	}
	d.free[host] -= int64(c.m.Memory)
	d.decide(c.m.Name, Place{c.m.Name, host, d.v.Lives[host].Boot, c.above + 1, c.restarts, c.reason})
}

// best returns the host for a machine: the one that it prefers, else the one with
// the most memory left, else the first by name; the one that it comes from is the
// last to be taken. Empty: none.
func (d *decider) best(c candidate) string {
	var best string
	rank := func(name string) [2]int64 {
		switch name {
		case c.not:
			return [2]int64{0, 0}
		case c.m.Host:
			return [2]int64{2, 0}
		}
		return [2]int64{1, d.free[name]}
	}
	for _, name := range d.hosts {
		if !d.takes(name, c.m) {
			continue
		}
		if r, b := rank(name), rank(best); best == "" || r[0] > b[0] || r[0] == b[0] && r[1] > b[1] {
			best = name
		}
	}
	return best
}

// takes tells whether a machine can be placed on a host now.
func (d *decider) takes(host string, m *inventory.Machine) bool {
	h := d.v.Hosts[host]
	return d.v.Lives[host] != nil && !d.lost[host] && !h.Maintenance && h.Cluster == m.Cluster && d.free[host] >= int64(m.Memory)
}

// empty asks the machines on hosts in maintenance to leave, as far as there is
// room elsewhere for them after all that was placed.
func (d *decider) empty() {
	for _, name := range slices.Sorted(maps.Keys(d.v.Placements)) {
		p, m := d.v.Placements[name], d.v.Machines[name]
		h := d.v.Hosts[p.Host]
		if !p.Active() || m == nil || m.Desired != inventory.Running || h == nil || !h.Maintenance || d.lost[p.Host] || d.done[name] {
			continue
		}
		to := d.best(candidate{m: m})
		switch {
		case to == "":
			d.decide(name, Wait{name, fmt.Sprintf("it stays on the host %s, which is in maintenance: no other has %d MiB of memory left", p.Host, m.Memory>>20)})
		case !p.Leave:
			d.decide(name, Leave{name, p.Generation})
			fallthrough
		default:
			d.free[to] -= int64(m.Memory) // kept for it
		}
	}
}

// Edits turns decisions into edits of the inventory, for the revision that v was
// read at. now is in nanoseconds since 1970, UTC. Evict and Wait have none.
// Machines are placed on hosts of v: not on one that a decision before declares
// lost, which Decide does not do. Fails as the View's methods do.
func Edits(v *inventory.View, decisions []Decision, now int64) ([]quorum.Edit, error) {
	var all []quorum.Edit
	for _, d := range decisions {
		var edits []quorum.Edit
		var err error
		switch d := d.(type) {
		case Lost:
			edits, err = v.HostLost(d.Host, d.Boot, now)
		case Place:
			edits, err = v.Place(inventory.Placement{
				Machine: d.Machine, Host: d.Host, Boot: d.Boot, Generation: d.Generation, Restarts: d.Restarts, Reason: d.Reason,
			}, now)
		case Leave:
			edits, err = v.AskLeave(d.Machine, d.Generation)
		case End:
			edits, err = v.End(d.Machine, d.Generation, d.Why, d.Detail, now)
		case Pair:
			edits, err = v.Pair(d.Machine, d.Generation, d.Host, d.Boot, now)
		case Part:
			edits, err = v.Part(d.Machine, d.Generation, d.Pair, d.Why, d.Detail, now)
		case Evict, Wait:
		}
		if err != nil {
			return nil, err
		}
		all = append(all, edits...)
	}
	return all, nil
}
