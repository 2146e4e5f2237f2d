package pair

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"steadfast/cluster/group"
	"steadfast/san/drive/drivetest"
	"steadfast/san/mirror"
	"steadfast/san/mirrorio"
)

// RunUnits makes one history of real pools and device servers; see Run.
func RunUnits(seed uint64, mutants ...string) Outcome { return run(seed, true, mutants) }

// chooseUnits draws the rest of what kind of world it is.
func (w *world) chooseUnits() {
	c := &w.cfg
	c.real = true
	c.hot = []int{16, 24, 48}[w.rand.IntN(3)]
	c.pieces = []int{0, 4, 15}[w.rand.IntN(3)]
	c.fence, c.aptpl, c.standby = w.chance(0.7), w.chance(0.6), w.chance(0.5)
	if c.patience = w.between(100*time.Millisecond, time.Second); w.chance(0.4) {
		c.patience = w.between(2*time.Millisecond, 40*time.Millisecond)
	}
	c.mirror.CopyBlocks = []uint64{4, 16, 128}[w.rand.IntN(3)]
	if c.mirror.AheadBlocks > 0 {
		c.mirror.AheadBlocks *= 16
	}
	c.lies = w.chance(0.2)
	if c.filling = w.chance(0.3); c.filling {
		c.pieces = 15
	}
}

// equip gives a node its disk.
func (w *world) equip(n *node) {
	if w.cfg.real {
		n.disk = newPool(w, n.index)
		return
	}
	n.toy = newToy(w, memberOf(n.index))
	n.disk = n.toy
}

// pool returns the node's real pool.
func (n *node) pool() *pool { return n.disk.(*pool) }

func (w *world) buildHosts() {
	for i := range w.cfg.clients {
		h := &host{world: w, index: i, left: 20 + 200/w.cfg.clients, open: -1, reads: i > 1 && w.chance(0.3)}
		w.hosts = append(w.hosts, h)
	}
}

// tend does what else goes on: pools get time for their work, and are scrubbed;
// wall clocks step; the administrator takes snapshots.
func (w *world) tend() {
	for _, n := range w.nodes[:2] {
		if n.up && !n.frozen {
			n.pool().tend(n)
		}
	}
	if !w.calm && w.chance(0.1) {
		w.administer()
	}
	w.after(w.between(20*time.Millisecond, 80*time.Millisecond), w.tend)
}

// tend lends the pool time.
func (p *pool) tend(n *node) {
	w := p.world
	if w.chance(0.02) {
		w.count.wallSteps++
		p.wall += w.between(-10*time.Hour, 10*time.Hour)
	}
	if w.calm && p.more == nil {
		p.grow()
	}
	if !p.scrubs && w.chance(0.02) {
		p.scrubs = p.StartScrub() == nil
	}
	if w.cfg.lies && !w.calm && w.chance(0.004) && w.inSync() {
		w.count.lies++
		p.lied++
		p.disk.Plan([]drivetest.Fault{drivetest.LoseWrite, drivetest.MisdirectWrite}[p.rand.IntN(2)], 1+p.rand.IntN(4))
	}
	if !w.calm && w.chance(0.03) {
		p.readSnapshot(n)
	}
	p.dropLate(n)
	p.maintain(n)
}

// inSync tells whether both nodes are up and in the set.
func (w *world) inSync() bool {
	a, b := w.nodes[0], w.nodes[1]
	g := a.state.Group[groupName]
	return a.up && b.up && g != nil && len(g.Set) == 2
}

// administer takes a snapshot of both units at the owner, or deletes one.
func (w *world) administer() {
	n := w.owner()
	s := n.service
	if !n.up || n.frozen || s == nil || !s.open {
		return
	}
	if len(w.snapped) > 0 && w.chance(0.3) {
		x := w.snapped[w.rand.IntN(len(w.snapped))]
		for _, v := range volumeNames {
			if n.pool().volumes.Copying(v, x.name) {
				return // that is refused
			}
		}
		x.deleted = true
		w.barrier(s, "drop "+x.name, func(error) {})
		return
	}
	w.count.values++
	x := &snapped{name: fmt.Sprintf("s%d", w.count.values), call: w.now, ret: 1 << 62}
	w.snapped = append(w.snapped, x)
	w.barrier(s, "take "+x.name, func(err error) {
		x.ret = w.now
		x.answered, x.refused = err == nil, errors.Is(err, errFull)
		if x.refused {
			w.count.refusedSnapshots++
			w.refusedNowhere(n, x)
		}
	})
}

// barrier has an action done, and then does something.
func (w *world) barrier(s *service, action string, then func(error)) {
	c := &mirrorio.Change{Kind: mirrorio.Act, Length: int64(len(action)), Data: []byte(action)}
	n := s.node
	n.fork(func() {
		err := n.perform(mirror.Op{Kind: mirror.Barrier, Durable: true, Moment: momentOf(strings.TrimPrefix(action, "take ")), Payload: c}, &call{host: -1})
		if w.running.alive() {
			then(err)
		}
	})
}

// refusedNowhere holds that a refused snapshot is on no node of the set.
func (w *world) refusedNowhere(n *node, x *snapped) {
	for _, m := range w.nodes[:2] {
		if m.up && (m == n || len(n.mirror.Standing().Others) > 0) && m.pool().hasSnapshot(x.name) {
			w.fail("snapshot %s was refused, and %s has it", x.name, memberOf(m.index))
		}
	}
}

// tickle tells the hosts that were logged in elsewhere that this node serves now.
func (s *service) tickle() {
	w := s.node.world
	for _, h := range w.hosts {
		if h.in == nil || s.sessions[h.index] != nil || w.chance(0.2) {
			continue
		}
		session := h.session
		w.after(w.between(time.Millisecond, 50*time.Millisecond), func() { h.reset(session) })
	}
}

// hopeless tells whether a drive lied about what one node alone had, and that node
// does not come back: nobody has it any more.
func (w *world) hopeless() bool {
	for _, n := range w.nodes[:2] {
		if w.cfg.real && !n.up && n.pool().lied > 0 {
			return true
		}
	}
	return false
}

// scrubAll has both pools scrubbed, and what that finds healed, until there is
// nothing left that can be. What is found may be a snapshot's, which stays as it is.
func (w *world) scrubAll() {
	for range 12 {
		for _, n := range w.nodes[:2] {
			w.rest(n.pool())
			n.pool().scrubs = n.pool().StartScrub() == nil
		}
		found := 0
		for _, n := range w.nodes[:2] {
			w.rest(n.pool())
			found += len(n.pool().Scrub().Corrupt)
		}
		w.runUntil(w.now.add(time.Second))
		if found == 0 {
			return
		}
	}
}

// rest waits until a scrub has ended.
func (w *world) rest(p *pool) {
	for range 200 {
		if w.runUntil(w.now.add(50 * time.Millisecond)); !p.scrubs {
			return
		}
	}
}

// faultOfUnits makes one of the faults of this family alone, or none.
func (w *world) faultOfUnits(lasts time.Duration) bool {
	switch {
	case w.chance(0.05):
		w.handOver(lasts)
	case w.chance(0.05):
		w.blackout(lasts)
	default:
		return false
	}
	return true
}

// handOver has the owner asked to hand over, or its drive fail, while it does not
// hear what the quorum decides.
func (w *world) handOver(lasts time.Duration) {
	o := w.owner()
	w.cut(witness, o.index, lasts, false)
	life := o.life
	w.after(w.between(0, 100*time.Millisecond), func() {
		if w.chance(0.7) {
			o.in(life, func() { o.step(group.Move{}) })
			return
		}
		o.in(life, o.disk.breakNext)
		w.after(lasts, func() { o.in(life, func() { o.stop(false); o.start() }) })
	})
}

// blackout takes the power from both nodes.
func (w *world) blackout(lasts time.Duration) {
	w.count.blackouts++
	for _, n := range w.nodes[:2] {
		if n.up {
			w.count.crashes++
			w.count.powerLosses++
			n.stop(true)
			w.after(lasts, n.revive)
		}
	}
}
