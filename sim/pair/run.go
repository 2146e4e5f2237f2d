package pair

import (
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/san/mirror"
)

// profile is what a seed makes of the world.
type profile struct {
	mirror   mirror.Config
	mutants  []string
	durable  bool
	blocks   uint64
	clients  int
	think    time.Duration
	patience time.Duration
	proof    float64 // how often a death is proven
	faults   int
	lists    time.Duration // how long an answer of what was changed may be on its way
	stalls   float64       // how often a packet waits before it is dealt with
	stall    time.Duration // at most so long
	rot      bool          // the owner's blocks are damaged all the time

	// Of a world with device servers and real stores.
	real    bool
	hot     int  // sectors at the front of each unit
	pieces  int  // large ones behind
	fence   bool // hosts register, reserve and preempt
	aptpl   bool
	standby bool // units that another node serves are there in standby
	lies    bool // drives lose writes, and put some elsewhere
	filling bool // there is much to write
}

func (p *profile) mutant(name string) bool { return slices.Contains(p.mutants, name) }

// inbox draws how long a packet waits to be dealt with.
func (p *profile) inbox(w *world) time.Duration {
	if w.calm || !w.chance(p.stalls) {
		return 0
	}
	return w.between(0, p.stall)
}

// counts are what a history came to.
type counts struct {
	takeovers, handed, yielded, revived, removed, admitted, settled, resyncs  int
	crashes, powerLosses, bothDown, duringResync, pauses, clockStops          int
	cuts, oneWay, mirrorCuts, driveFailures, slow, unanswered, durable, asked int
	aborted, snapshots, compared, differed, full, refused                     int
	flips, healed, unhealed, damaged, undone, refusedSnapshots, replaced      int
	mended, partials                                                          int

	// Of the units' histories alone.
	torn, tornOpen, wallSteps, squeezed, scrubs, lies, unopened       int
	lockWaits, condWaits, states, served, reinstated, grants, logins  int
	lunResets, attentions, conflicts, registered, reserved, preempted int
	fencedOff, relied, locks, cutsJudged                              int
	lone, unread, inUse, blackouts, hopeless                          int // snapshots on one node, blocks that cannot be read on either, histories

	snapshotCounts

	operations, undecided int
	simulated             time.Duration
	ids, index, values    uint64
}

// families that a counter is of.
const (
	ofToys  = 1 << iota // histories of toy stores and clients
	ofUnits             // of real pools, device servers and initiators
	ofBoth  = ofToys | ofUnits
)

// counter is one that many histories together must not leave at zero.
type counter struct {
	name string
	n    *int
	of   int
}

// coverage lists them.
func (c *counts) coverage() []counter {
	return append([]counter{
		{"takeovers", &c.takeovers, ofBoth},
		{"handed over", &c.handed, ofBoth},
		{"yielded", &c.yielded, ofToys},
		{"revived", &c.revived, ofBoth},
		{"removed", &c.removed, ofBoth},
		{"admitted", &c.admitted, ofBoth},
		{"settled", &c.settled, ofToys},
		{"resyncs", &c.resyncs, ofBoth},
		{"crashes", &c.crashes, ofBoth},
		{"power losses", &c.powerLosses, ofBoth},
		{"both crashed", &c.bothDown, ofBoth},
		{"both without power at once", &c.blackouts, ofUnits},
		{"deletions of what is read", &c.inUse, ofUnits},
		{"crashes during a resync", &c.duringResync, ofBoth},
		{"crashes in the middle of a write to the drive", &c.torn, ofUnits},
		{"crashes in the middle of a recovery", &c.tornOpen, ofUnits},
		{"pauses", &c.pauses, ofBoth},
		{"with the clock stopped", &c.clockStops, ofBoth},
		{"wall clock steps", &c.wallSteps, ofUnits},
		{"cut off", &c.cuts, ofBoth},
		{"one way only", &c.oneWay, ofBoth},
		{"mirror link cut", &c.mirrorCuts, ofBoth},
		{"drive failures", &c.driveFailures, ofBoth},
		{"slow drives", &c.slow, ofBoth},
		{"unanswered", &c.unanswered, ofBoth},
		{"durable groups", &c.durable, ofBoth},
		{"groups that ask for reads", &c.asked, ofBoth},
		{"aborted", &c.aborted, ofBoth},
		{"snapshots on both", &c.snapshots, ofBoth},
		{"judged as one moment", &c.cutsJudged, ofUnits},
		{"compared and written", &c.compared, ofBoth},
		{"that differed", &c.differed, ofBoth},
		{"locks taken", &c.locks, ofUnits},
		{"no room", &c.full, ofBoth},
		{"refused", &c.refused, ofBoth},
		{"snapshots refused", &c.refusedSnapshots, ofBoth},
		{"taken back", &c.undone, ofBoth},
		{"damaged", &c.flips, ofBoth},
		{"writes lost or misdirected", &c.lies, ofUnits},
		{"pools too damaged to open", &c.unopened, ofUnits},
		{"scrubs", &c.scrubs, ofUnits},
		{"healed", &c.healed, ofBoth},
		{"that could not be", &c.unhealed, ofBoth},
		{"errors for that", &c.damaged, ofBoth},
		{"replaced nodes", &c.replaced, ofBoth},
		{"healed on the other", &c.mended, ofBoth},
		{"writes of parts of what is damaged", &c.partials, ofBoth},
		{"logins", &c.logins, ofUnits},
		{"sessions reinstated", &c.reinstated, ofUnits},
		{"times that units were made", &c.served, ofUnits},
		{"grants of the alias", &c.grants, ofUnits},
		{"unit attentions", &c.attentions, ofUnits},
		{"logical unit resets", &c.lunResets, ofUnits},
		{"states of units saved", &c.states, ofUnits},
		{"waits for such", &c.lockWaits, ofUnits},
		{"waits of tasks for tasks", &c.condWaits, ofUnits},
		{"registered", &c.registered, ofUnits},
		{"reserved", &c.reserved, ofUnits},
		{"preempted", &c.preempted, ofUnits},
		{"conflicts", &c.conflicts, ofUnits},
		{"writes that a preemption ended", &c.fencedOff, ofUnits},
		{"relied on a registration", &c.relied, ofUnits},
	}, c.snapshotCounts.coverage()...)
}

// add sums what histories came to.
func (c *counts) add(o counts) {
	sum, more := c.coverage(), o.coverage()
	for i := range sum {
		*sum[i].n += *more[i].n
	}
	c.operations += o.operations
	c.undecided += o.undecided
	c.hopeless += o.hopeless
	c.lone += o.lone
	c.unread += o.unread
	c.simulated += o.simulated
}

// source is raft's randomness: it takes it from crypto/rand.
type source struct{ rand *mathrand.Rand }

func (s source) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(s.rand.Uint32())
	}
	return len(p), nil
}

// Outcome is what a history came to.
type Outcome struct {
	Failure string
	Trace   []string
	counts
}

// Run makes one history. Histories of one process go one after the other: raft
// takes its randomness from the process.
func Run(seed uint64, mutants ...string) Outcome { return run(seed, false, mutants) }

func run(seed uint64, units bool, mutants []string) (out Outcome) {
	w := &world{rand: mathrand.New(mathrand.NewPCG(seed, 0x5ead)), owners: map[quorum.Epoch]int{}, latest: map[uint64]value{}, seen: map[int]value{}}
	old := rand.Reader
	rand.Reader = source{mathrand.New(mathrand.NewPCG(seed, 0x4af7))}
	defer func() { rand.Reader = old }()
	w.choose(mutants)
	if units {
		w.chooseUnits()
	}
	w.build()
	w.guarded()
	w.count.simulated = time.Duration(w.now)
	return Outcome{Failure: w.failure, Trace: w.trace, counts: w.count}
}

// guarded lets the history happen; a panic is its failure.
func (w *world) guarded() {
	defer w.caught()
	w.history()
}

// caught makes a panic the history's failure.
func (w *world) caught() {
	if p := recover(); p != nil {
		w.fail("panic: %v\n%s", p, debug.Stack())
	}
}

// choose draws what kind of world it is.
func (w *world) choose(mutants []string) {
	w.cfg = profile{
		mutants: mutants, durable: w.chance(0.5), blocks: []uint64{4, 4, 8, 32}[w.rand.IntN(4)], clients: 2 + w.rand.IntN(3),
		think: w.between(time.Millisecond, 20*time.Millisecond), patience: w.between(50*time.Millisecond, time.Second),
		proof: []float64{0, 0.5, 1}[w.rand.IntN(3)], faults: 4 + w.rand.IntN(9), lists: []time.Duration{0, 10 * time.Millisecond, 3 * time.Second}[w.rand.IntN(3)], stalls: []float64{0, 0.001, 0.01, 0.05}[w.rand.IntN(4)], stall: w.between(0, 2*time.Second),
		rot: w.chance(0.2),
	}
	w.cfg.mirror = mirror.Config{
		Agent: group.Config{
			Lease: time.Second, Renew: 100 * time.Millisecond, Silence: 400 * time.Millisecond, Drift: 1000,
			Revive: 3 * time.Second, Retry: 200 * time.Millisecond, Confirm: w.chance(0.3),
		},
		Copies: 1 + w.rand.IntN(4), CopyBlocks: 1 + w.rand.Uint64N(4), Settle: w.between(10*time.Millisecond, 500*time.Millisecond), Pause: w.between(50*time.Millisecond, time.Second),
		Slowdown: []int{0, 200}[w.rand.IntN(2)], AheadBlocks: []uint64{0, 1, 4}[w.rand.IntN(3)],
	}
	if w.cfg.durable {
		w.count.durable++
	}
	if w.cfg.mirror.Agent.Confirm {
		w.count.asked++
	}
	for _, m := range mutants {
		w.cfg.mirror.Fault |= mirror.Mutations()[m]
	}
	if w.cfg.mutant("old-list") { // no list is old where they are answered at once
		w.cfg.lists = 3 * time.Second
		w.cfg.stall = max(w.cfg.stall, time.Second)
	}
	w.net.drop = []float64{0, 0.01, 0.1}[w.rand.IntN(3)]
	if w.chance(0.3) {
		w.net.slow = w.between(time.Millisecond, 100*time.Millisecond)
	}
}

func (w *world) build() {
	var voters []uint64
	for i := range 3 {
		voters = append(voters, uint64(i+1))
	}
	for i := range 3 {
		n := &node{world: w, index: i, log: raft.NewMemoryStorage(), rate: 1 + float64(w.rand.Int64N(2001)-1000)/1e6}
		_ = n.log.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{ConfState: &raftpb.ConfState{Voters: voters}, Index: new(uint64(1)), Term: new(uint64(1))}})
		if i != witness {
			w.equip(n)
		}
		w.nodes = append(w.nodes, n)
	}
	if w.cfg.real {
		w.buildHosts()
		return
	}
	for i := range w.cfg.clients {
		w.clients = append(w.clients, &client{world: w, index: i, left: 20 + 200/w.cfg.clients, open: -1, reads: i > 0 && w.chance(0.3)})
	}
}

// history lets it all happen.
func (w *world) history() {
	w.note("durable %t, confirm %t, proof %.1f, %d blocks", w.cfg.durable, w.cfg.mirror.Agent.Confirm, w.cfg.proof, w.cfg.blocks)
	for _, n := range w.nodes {
		n.start()
	}
	w.connect()
	w.create()
	if w.cfg.real {
		w.tend()
	} else {
		w.scrub()
	}
	w.rotting()
	w.runUntil(w.now.add(3 * time.Second))
	for _, c := range w.clients {
		c.think()
	}
	for _, h := range w.hosts {
		h.think()
	}
	for range w.cfg.faults {
		w.runUntil(w.now.add(w.between(0, 800*time.Millisecond)))
		w.fault()
	}
	w.runUntil(w.now.add(w.between(0, 2*time.Second)))
	w.calmDown()
	switch {
	case w.failure != "", w.count.hopeless > 0:
	case w.cfg.real:
		w.judge()
	default:
		w.linearizable()
	}
}

// create has the first node make the group, until it is there.
func (w *world) create() {
	n := w.nodes[0]
	if n.up && n.state.Boots[memberOf(0)] == n.boots && n.state.Group[groupName] == nil {
		c := quorum.Command{Kind: quorum.KindCreate, Group: groupName, By: quorum.Incarnation{Member: memberOf(0), Boot: n.boots}}
		if data, err := c.Encode(); err == nil {
			_ = n.raft.Propose(data) // made again until it is decided
			n.ready()
		}
	}
	if n.state.Group[groupName] == nil {
		w.after(100*time.Millisecond, w.create)
	}
}

// calmDown ends the faults, and holds that everything comes back by itself.
func (w *world) calmDown() {
	w.note("calm")
	w.calm, w.net.drop, w.net.slow = true, 0, 0
	w.net.cut = [4][4]bool{}
	for _, n := range w.nodes {
		if n.disk != nil {
			n.disk.calm()
		}
		if n.frozen {
			n.thaw()
		}
		n.mend()
		if !n.up {
			n.start()
		}
	}
	for i := range 60 {
		w.runUntil(w.now.add(time.Second))
		if i == 30 { // what neither can read may be what a resync waits for
			for _, n := range w.nodes[:2] {
				n.disk.repair()
			}
		}
		if w.failure != "" || w.settledDown() {
			break
		}
		for _, n := range w.nodes[:2] {
			if n.mend() {
				n.revive()
			}
		}
	}
	if w.failure == "" && !w.settledDown() && w.hopeless() {
		w.note("hopeless")
		w.count.hopeless++
		return
	}
	if w.failure == "" && !w.settledDown() {
		w.fail("it does not settle: %s", w.describe())
		return
	}
	w.runUntil(w.now.add(2 * time.Second))
	if w.cfg.real {
		w.scrubAll()
		w.same()
		return
	}
	w.equal()
	w.whole()
}

// mend ends a life whose drive has failed.
func (n *node) mend() bool {
	broken := n.up && n.mirror != nil && (n.broken || n.mirror.Status().Broken)
	if broken {
		n.stop(false)
	}
	return broken
}

func (w *world) settledDown() bool {
	for _, c := range w.clients {
		if !c.stopped {
			return false
		}
	}
	for _, h := range w.hosts {
		if !h.stopped {
			return false
		}
	}
	g := w.nodes[0].state.Group[groupName]
	return g != nil && len(g.Set) == 2 && len(w.nodes[0].asks)+len(w.nodes[1].asks) == 0 &&
		g.Has(quorum.Incarnation{Member: memberOf(0), Boot: w.nodes[0].boots}) && g.Has(quorum.Incarnation{Member: memberOf(1), Boot: w.nodes[1].boots})
}

func (w *world) describe() string {
	var parts []string
	for _, n := range w.nodes[:2] {
		parts = append(parts, string(memberOf(n.index))+": "+describe(n.state))
		for id, a := range n.asks {
			if a.call != nil {
				parts = append(parts, fmt.Sprintf("operation %d, kind %d, on block %d", id, a.kind, a.block))
				continue
			}
			parts = append(parts, fmt.Sprintf("operation %d of client %d, kind %d, on block %d", id, a.client.index, a.kind, a.block))
		}
	}
	for _, h := range w.hosts {
		if !h.stopped {
			parts = append(parts, fmt.Sprintf("host %d waits, logged in %t", h.index, h.in != nil))
		}
	}
	for _, c := range w.clients {
		if !c.stopped {
			parts = append(parts, "a client waits")
		}
	}
	return strings.Join(parts, "; ")
}

// owner returns the node that owns the group now, or any that stores.
func (w *world) owner() *node {
	for _, n := range w.nodes[:2] {
		if n.up && n.mirror.Standing().Role == group.Owner {
			return n
		}
	}
	return w.nodes[w.rand.IntN(2)]
}

// fault makes one thing go wrong, and plans its end. Half of them are meant for
// the owner.
func (w *world) fault() {
	n, storing := w.nodes[w.rand.IntN(3)], w.nodes[w.rand.IntN(2)]
	if w.chance(0.5) {
		n, storing = w.owner(), w.owner()
	}
	lasts := w.between(10*time.Millisecond, 4*time.Second)
	if w.cfg.real && w.faultOfUnits(lasts) {
		return
	}
	switch w.rand.IntN(26) {
	case 0, 1:
		w.crash(n, lasts)
	case 2:
		w.count.bothDown++
		for _, m := range w.nodes[:2] {
			w.crash(m, w.between(10*time.Millisecond, 4*time.Second))
		}
	case 3, 4:
		n.freeze(w.cfg.mirror.Agent.Confirm && w.chance(0.5))
		w.after(lasts, n.thaw)
	case 5, 6:
		w.count.cuts++
		w.cutOff(n.index, lasts, w.chance(0.5))
	case 7:
		w.count.mirrorCuts++
		w.cut(0, 1, lasts, w.chance(0.7))
	case 8: // what was written last is on one node only, and that one dies
		w.count.mirrorCuts++
		w.cut(0, 1, lasts, true)
		w.after(w.between(0, 400*time.Millisecond), func() { w.crash(storing, lasts) })
	case 9:
		w.count.slow++
		storing.disk.slowDown(w.between(time.Millisecond, 300*time.Millisecond))
		w.after(lasts, func() { storing.disk.slowDown(0) })
	case 10:
		if storing.up && (w.cfg.real || w.chance(0.5)) {
			storing.disk.breakNext()
			life := storing.life
			w.after(lasts, func() { storing.in(life, func() { storing.stop(false); storing.start() }) })
		}
	case 11:
		storing.in(storing.life, func() { storing.step(group.Move{}) })
	case 12:
		w.isolate(w.owner())
	case 13, 21, 22, 23:
		w.stale()
	case 14:
		storing.disk.squeeze(true)
		w.after(lasts, func() { storing.disk.squeeze(false) })
	case 15, 19: // a member returns, and what it is admitted by is late
		w.late = 0.7
		w.after(lasts, func() { w.late = 0 })
		w.crash(storing, w.between(10*time.Millisecond, 300*time.Millisecond))
		w.after(w.between(time.Second, 2*time.Second), func() { w.crash(storing, lasts) })
	case 24, 25:
		w.flap(lasts)
	case 16, 17: // bits flip
		storing.disk.rot()
		if w.chance(0.2) {
			w.nodes[1-storing.index].disk.rot()
		}
	case 18, 20: // a member stays away for so long that it is removed, and comes back with nothing
		w.replace(w.nodes[w.rand.IntN(2)])
	}
}

// isolate leaves the owner alone with its clients, for longer than a promise lasts.
func (w *world) isolate(o *node) {
	w.count.cuts++
	for j := range w.nodes {
		if j != o.index {
			w.cut(o.index, j, w.between(1500*time.Millisecond, 4*time.Second), true)
		}
	}
}

// stale has what the owner sent before it froze be dealt with after it was
// succeeded.
func (w *world) stale() {
	o := w.owner()
	other := w.nodes[1-o.index]
	other.inbox = max(other.inbox, w.now.add(w.between(1200*time.Millisecond, 2500*time.Millisecond)))
	w.after(w.between(0, 20*time.Millisecond), func() { o.freeze(false) })
	w.after(3*time.Second, o.thaw)
}

// flap breaks the connection again and again.
func (w *world) flap(lasts time.Duration) {
	w.count.mirrorCuts++
	for at := time.Duration(0); at < lasts; at += w.between(20*time.Millisecond, 600*time.Millisecond) {
		w.after(at, func() { w.disconnect(0) })
	}
}

// rotting damages the owner's blocks, one after the other.
func (w *world) rotting() {
	if w.cfg.rot && !w.calm {
		w.owner().disk.rot()
		pause := 20 * time.Millisecond
		if w.cfg.real {
			pause *= 10 // or there is nothing but healing
		}
		w.after(w.between(pause/20, pause), w.rotting)
	}
}

// replace crashes a member, and gives it an empty store if the other owns the group
// alone by then.
func (w *world) replace(n *node) {
	w.crash(n, 2*time.Second)
	w.after(1500*time.Millisecond, func() {
		o := w.nodes[1-n.index]
		if n.up || !o.up || w.calm {
			return
		}
		if at := o.mirror.Standing(); at.Role == group.Owner && len(at.Others) == 0 {
			w.count.replaced++
			w.note("%s gets an empty store", memberOf(n.index))
			n.disk.renew()
		}
	})
}

// crash ends a member's life, and plans the next.
func (w *world) crash(n *node, lasts time.Duration) {
	if w.calm {
		return
	}
	power := w.chance(0.5)
	w.count.crashes++
	if power {
		w.count.powerLosses++
	}
	n.stop(power)
	w.after(lasts, n.revive)
}

// cutOff separates a member from the others, and perhaps from the clients.
func (w *world) cutOff(i int, lasts time.Duration, both bool) {
	clients := w.chance(0.5)
	for j := range outside + 1 {
		if j != i && (j != outside || clients) {
			w.cut(i, j, lasts, both)
		}
	}
}

// cut stops one direction, or both.
func (w *world) cut(i, j int, lasts time.Duration, both bool) {
	w.net.cut[i][j] = true
	w.after(lasts, func() { w.net.cut[i][j] = false })
	if both {
		w.net.cut[j][i] = true
		w.after(lasts, func() { w.net.cut[j][i] = false })
	} else {
		w.count.oneWay++
	}
	if i < witness && j < witness {
		w.after(w.between(0, 300*time.Millisecond), func() {
			if w.net.cut[i][j] || w.net.cut[j][i] {
				w.disconnect(0)
			}
		})
	}
}

// revive starts a member that is down.
func (n *node) revive() {
	if !n.up {
		n.start()
	}
}

// freeze stops a member without ending its life; with its clock, perhaps.
func (n *node) freeze(clock bool) {
	if !n.up || n.frozen {
		return
	}
	n.world.count.pauses++
	n.world.note("%s freezes, its clock too: %t", memberOf(n.index), clock)
	n.frozen, n.thawRate = true, n.rate
	if clock {
		n.world.count.clockStops++
		n.setRate(0)
	}
}

// thaw lets it go on, with all that came meanwhile.
func (n *node) thaw() {
	if !n.frozen {
		return
	}
	n.world.note("%s goes on", memberOf(n.index))
	if n.rate == 0 {
		n.setRate(n.thawRate)
	}
	n.frozen = false
	held := n.held
	n.held = nil
	for _, do := range held {
		do()
	}
}
