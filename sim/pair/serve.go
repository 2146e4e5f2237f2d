package pair

import (
	"maps"
	"slices"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/san/lun"
	"steadfast/san/statevol"
	"steadfast/scsi"
)

// The model of node/ha and san/target: what a node does when it comes to own the group
// and when it gives it up, in their order. The real ones have threads, sockets and
// addresses, which a seed cannot decide; the rules of theirs that are
// relied on are broken one by one by mutants (mutants_test.go).

// targetName is the group's target.
const targetName = "iqn.2026-11.io.example:g"

// Times of the alias. grantMost is for who owns the group alone, and shorter than
// Silence: who has just been admitted may succeed it after that.
const (
	refreshEvery = 60 * time.Millisecond
	grantMost    = 300 * time.Millisecond
)

// service is what a node has while it owns the group: the units, the sessions of
// initiators, and the alias.
type service struct {
	node     *node
	life     int
	epoch    quorum.Epoch
	state    *statevol.State
	open     bool // the units are there
	over     bool
	sessions map[int]*session // by host
	tasks    map[*fiber]*task
	late     fiberLock // of a mutant
}

// session is an initiator's at a node.
type session struct {
	service *service
	host    *host
	number  int
	port    scsi.Port
	mute    bool // it says nothing any more
	ending  bool
}

// UnitAttention implements scsi.Events: the initiator hears of it with its next command.
func (*session) UnitAttention(scsi.LUN) {}

// task is a command under way.
type task struct {
	session *session
	scsi    *scsi.Task
	unit    int
	alone   bool
	parts   int // operations that it was
}

// follow begins and ends serving as the standing has it.
func (n *node) follow() {
	if n.units == nil || n.mirror == nil {
		return
	}
	at := n.mirror.Standing()
	if s := n.service; s != nil && (at.Role != group.Owner || at.Epoch != s.epoch) {
		n.leave()
	}
	if at.Role == group.Owner && n.service == nil && !n.leaving {
		s := &service{node: n, life: n.life, epoch: at.Epoch, sessions: map[int]*session{}, tasks: map[*fiber]*task{}, late: fiberLock{world: n.world}}
		n.service = s
		n.fork(s.begin)
		n.prolong(s)
	}
}

// begin reads the state volume and makes the units, until that has worked.
func (s *service) begin() {
	for !s.over && !s.ready() {
		s.node.world.sleep(20 * time.Millisecond)
		if !s.node.world.running.alive() {
			return
		}
	}
}

// ready tries.
func (s *service) ready() bool {
	w := s.node.world
	state, err := statevol.Open(&volume{service: s, number: stateVolume, size: statevol.Size, cached: true})
	if err != nil {
		w.note("%s cannot open the state volume: %v", memberOf(s.node.index), err)
		return false
	}
	s.state = state
	for n := uint32(1); n <= dataVolumes; n++ {
		place, err := state.Unit(n)
		if err != nil {
			w.fail("%v", err)
			return false
		}
		v := &volume{StateKeeper: keeper{place, s}, service: s, number: n, size: volumeSize, cached: !w.cfg.durable}
		if err := s.take(v); err != nil {
			w.note("%s cannot make a unit: %v", memberOf(s.node.index), err)
			return false
		}
	}
	if s.over {
		return true
	}
	s.open = true
	w.count.served++
	w.note("%s has the units, epoch %d", memberOf(s.node.index), s.epoch)
	s.tickle()
	return true
}

// take makes a volume a unit: in the place of one in standby, where there are such.
func (s *service) take(v *volume) error {
	if s.node.world.cfg.standby {
		return s.node.units.ReplaceVolume(v)
	}
	if s.node.has[v.number] {
		return nil // of a try before
	}
	err := s.node.units.AddVolume(v)
	s.node.has[v.number] = err == nil
	return err
}

// leave ends serving: the gate first, then the sessions in silence, then the units.
func (n *node) leave() {
	s := n.service
	n.service, n.leaving = nil, true
	n.grant = 0
	s.over = true
	s.mute()
	n.world.note("%s leaves epoch %d", memberOf(n.index), s.epoch)
	n.fork(func() {
		for _, h := range slices.Sorted(maps.Keys(s.sessions)) {
			if x := s.sessions[h]; x != nil {
				x.end()
			}
		}
		for v := uint32(1); v <= dataVolumes; v++ {
			n.give(v)
		}
		n.leaving = false
		n.follow()
	})
}

// give takes a unit away, or puts it in standby.
func (n *node) give(number uint32) {
	if n.world.cfg.standby {
		_ = n.units.ReplaceVolume(standby(number)) // it needs nothing that could fail
		return
	}
	if n.has[number] {
		_ = n.units.RemoveVolume(unitID(number)) // it is there
		n.has[number] = false
	}
}

func standby(number uint32) *lun.Standby {
	return lun.NewStandby(lun.Metadata{ID: unitID(number), Name: volumeNames[number], Size: volumeSize}, nil)
}

// serverOf makes a life's device server.
func (n *node) serverOf() {
	n.units = lun.NewServerThatWaits(waits{n.world})
	n.service, n.leaving, n.has, n.grant = nil, false, map[uint32]bool{}, 0
	var list []lun.Mapping
	for v := uint32(1); v <= dataVolumes; v++ {
		list = append(list, lun.Mapping{LUN: uint16(v), Volume: unitID(v)})
	}
	if err := n.units.SetView(targetName, map[string][]lun.Mapping{lun.Any: list}); err != nil {
		n.world.fail("%v", err)
	}
	if !n.world.cfg.standby {
		return
	}
	for v := uint32(1); v <= dataVolumes; v++ {
		if err := n.units.AddVolume(standby(v)); err != nil {
			n.world.fail("%v", err)
		}
	}
}

// mute silences the sessions.
func (s *service) mute() {
	for _, x := range s.sessions {
		x.mute = true
	}
}

// end ends a session, and returns when its tasks have landed or never can.
func (x *session) end() {
	x.mute = true
	if x.port == nil || x.ending {
		return
	}
	x.ending = true
	x.port.Close()
}

// login makes a session, after what is left of the initiator's former ones has ended.
func (s *service) login(h *host, number int) {
	w := s.node.world
	for s.sessions[h.index] != nil {
		old := s.sessions[h.index]
		if old.number >= number {
			return
		}
		if old.ending {
			w.sleep(time.Millisecond) // another login is at it
			if !w.running.alive() {
				return
			}
			continue
		}
		w.count.reinstated++
		old.end()
		if s.sessions[h.index] == old {
			delete(s.sessions, h.index)
		}
	}
	if s.over || !s.open || !w.running.alive() {
		return
	}
	x := &session{service: s, host: h, number: number}
	port, err := s.node.units.OpenPort(scsi.Nexus{InitiatorName: h.name(), InitiatorPort: h.name() + ",i,0x000000000001", TargetName: targetName, TargetPort: 1}, x)
	if err != nil {
		w.note("host %d cannot log in: %v", h.index, err)
		return
	}
	x.port = port
	s.sessions[h.index] = x
	s.reply(x, func() { h.loggedIn(s.node, number) })
}

// reply has something reach an initiator, if the session speaks, the alias is here
// and the way is open.
func (s *service) reply(x *session, do func()) {
	n := s.node
	if x.mute || !n.up || n.life != s.life || !n.answers() {
		return
	}
	n.world.after(n.world.delay(), func() {
		if !n.world.net.cut[n.index][outside] {
			do()
		}
	})
}

// execute runs a command of a session to its end.
func (x *session) execute(t *scsi.Task, unit int, done func(k *task, answered bool)) {
	s := x.service
	k := &task{session: x, scsi: t, unit: unit, alone: true}
	x.port.Begin(t)
	s.node.fork(func() {
		f := s.node.world.running
		s.tasks[f] = k
		answered := x.port.TryExecute(t) || x.port.Execute(t)
		delete(s.tasks, f)
		done(k, answered)
	})
}

// answers tells whether the node answers for the alias: its grant has not ended.
func (n *node) answers() bool { return n.up && n.time() < n.grant }

// prolong keeps the alias's grant alive for as long as the group is served.
func (n *node) prolong(s *service) {
	if s.over || n.service != s {
		return
	}
	until, unlimited, ok := n.mirror.ServesUntil()
	now := n.time()
	switch {
	case !ok || !n.mirror.Standing().Serving && !n.world.cfg.mutant("late-shut"):
	case n.world.cfg.mutant("long-grant"):
		n.granted(now.Add(5 * time.Second))
	case unlimited && n.world.cfg.mutant("long-alone"):
		n.granted(now.Add(600 * time.Millisecond))
	case unlimited:
		n.granted(now.Add(grantMost))
	default:
		n.granted(until)
	}
	n.later(refreshEvery, func() { n.prolong(s) })
}

// shut shuts the gate of who gives the group up, before anything that follows from
// that is known elsewhere: whoever gets it does not wait for the grant's end.
func (n *node) shut() {
	if n.service != nil && !n.mirror.Standing().Serving && !n.world.cfg.mutant("late-shut") {
		n.grant = 0
	}
}

// granted opens the gate, and holds that nobody else's is open. Where reads are
// asked for, clocks are not trusted, and two may be.
func (n *node) granted(until group.Instant) {
	if until <= n.time() {
		return
	}
	n.grant = until
	w := n.world
	w.count.grants++
	if o := w.nodes[1-n.index]; o.answers() && !w.cfg.mirror.Agent.Confirm {
		w.fail("%s and %s both answer for the alias", memberOf(n.index), memberOf(o.index))
	}
}

// atAlias returns the node that a packet to the alias reaches now, or nil. Of two,
// the one that announced it last.
func (w *world) atAlias() (at *node) {
	for _, n := range w.nodes[:2] {
		if !n.answers() || w.net.cut[outside][n.index] {
			continue
		}
		if at == nil || n.service != nil && (at.service == nil || n.service.epoch > at.service.epoch) {
			at = n
		}
	}
	return at
}
