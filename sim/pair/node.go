package pair

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/san/lun"
	"steadfast/san/mirror"
)

// groupName is the one group of the simulation.
const groupName = "g"

// witness is the index of the member that stores nothing.
const witness = 2

func memberOf(i int) quorum.Member { return quorum.Member([]string{"a", "b", "w"}[i]) }

func indexOf(m quorum.Member) int { return slices.Index([]quorum.Member{"a", "b", "w"}, m) }

// node is a member: what survives its lives, and the present life.
type node struct {
	world *world
	index int
	disk  medium // nil on the witness
	toy   *toy   // it, when it is one
	log   *raft.MemoryStorage
	boots quorum.Boot

	rate  float64 // of its clock
	since instant // its clock is counted from here
	clock group.Instant

	// Of a node with a device server.
	units   *lun.Server
	has     map[uint32]bool // its units
	pins    pins
	fibers  []*fiber
	behind  []*call       // of a mutant
	service *service      // while it owns the group
	leaving bool          // the last one is being ended
	grant   group.Instant // the alias is its until then

	up       bool
	frozen   bool
	broken   bool // its drive has failed
	thawRate float64
	inbox    instant // the latest packet is dealt with then
	life     int
	held     []func() // what came while it was frozen

	raft   *raft.RawNode
	state  *quorum.State
	mirror *mirror.Mirror
	link   int             // number of the connection to the peer, 0 when there is none
	asks   map[uint64]*ask // clients' operations under way
	// sessions are the newest that clients came in.
	sessions map[*client]int
}

// ask is a client's operation at a node.
type ask struct {
	client *client
	call   *call // of a device server's operation
	number int   // session
	block  uint64
	kind   mirror.Kind
	loaded []value
	alone  bool
	ending bool // its abort was asked for
	// Of a compare: what is expected, and that it is not there.
	expected []value
	differs  bool
	refused  bool // there was no room
	damaged  bool // what it needs cannot be read
	snapshot value
}

// time is the node's own clock, CLOCK_BOOTTIME.
func (n *node) time() group.Instant {
	return n.clock + group.Instant(float64(n.world.now-n.since)*n.rate)
}

// setRate changes how fast the clock runs; 0 stops it.
func (n *node) setRate(r float64) {
	n.clock, n.since, n.rate = n.time(), n.world.now, r
}

// in runs something in the node's present life, when it runs.
func (n *node) in(life int, do func()) {
	switch {
	case !n.up || n.life != life:
	case n.frozen:
		n.held = append(n.held, func() { n.in(life, do) })
	default:
		do()
	}
}

// later plans something in the present life.
func (n *node) later(d time.Duration, do func()) {
	life := n.life
	n.world.after(d, func() { n.in(life, do) })
}

// start begins a life.
func (n *node) start() {
	w := n.world
	var kept mirror.Position
	if n.disk != nil {
		var ok bool
		if kept, ok = n.disk.begin(n); !ok {
			w.after(time.Second, n.revive)
			return
		}
	}
	n.life++
	n.up, n.frozen, n.broken, n.held, n.link = true, false, false, nil, 0
	if !w.cfg.mutant("same-boot") || n.boots == 0 {
		n.boots++
	}
	n.state, n.asks, n.sessions = quorum.NewState(), map[uint64]*ask{}, map[*client]int{}
	r, err := raft.NewRawNode(&raft.Config{
		ID: uint64(n.index + 1), ElectionTick: 10, HeartbeatTick: 2, Storage: n.log, MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 64,
		PreVote: true, CheckQuorum: true, Logger: silent{},
	})
	if err != nil {
		w.fail("raft: %v", err)
		return
	}
	n.raft = r
	if n.disk != nil {
		cfg := w.cfg.mirror
		cfg.Agent.Me = quorum.Incarnation{Member: memberOf(n.index), Boot: n.boots}
		cfg.Agent.Group = groupName
		cfg.Position = kept
		n.mirror = mirror.New(cfg, n.time())
		if w.cfg.real {
			n.serverOf()
		}
	}
	w.note("%s begins life %d", memberOf(n.index), n.boots)
	if w.failure == "" {
		n.tick()
	}
}

// stop ends a life; with power, what was not stable may be gone.
func (n *node) stop(power bool) {
	w := n.world
	if !n.up {
		return
	}
	w.note("%s dies, power loss %t", memberOf(n.index), power)
	for _, m := range w.nodes[:2] {
		if m != n && m.mirror != nil && m.mirror.Resyncing() && n.mirror != nil {
			w.count.duringResync++
		}
	}
	n.up, n.raft, n.mirror = false, nil, nil
	if n.disk != nil {
		n.disk.end(power)
	}
	if n.rate == 0 {
		n.setRate(n.thawRate)
	}
	w.disconnect(n.index)
	n.drain()
	n.grant = 0
	for _, c := range w.clients {
		c.lost(n)
	}
	dead := quorum.Incarnation{Member: memberOf(n.index), Boot: n.boots}
	if w.chance(w.cfg.proof) {
		for _, m := range w.nodes {
			if m != n && m.disk != nil {
				w.datagram(n.index, m.index, func() {
					m.in(m.life, func() { m.step(group.Died{Who: dead}) })
				})
			}
		}
	}
}

// tick is the life's heartbeat.
func (n *node) tick() {
	n.raft.Tick()
	n.lead()
	n.ready()
	n.step(group.Tick{})
	n.later(25*time.Millisecond, n.tick)
}

// lead gives raft's leadership to the witness, when it is not there.
func (n *node) lead() {
	st := n.raft.Status()
	if st.RaftState != raft.StateLeader || n.index == witness || st.LeadTransferee != 0 {
		return
	}
	if p := st.Progress[witness+1]; p.RecentActive && p.Match == st.Progress[uint64(n.index+1)].Match {
		n.raft.TransferLeader(witness + 1)
	}
}

// ready does what raft wants. What it says must be stable before its messages
// leave is stable at once: the log's own writes are not what is tried here.
func (n *node) ready() {
	for n.raft != nil && n.raft.HasReady() {
		rd := n.raft.Ready()
		if !raft.IsEmptyHardState(rd.HardState) {
			_ = n.log.SetHardState(rd.HardState) // memory does not fail
		}
		_ = n.log.Append(rd.Entries)
		for _, m := range rd.Messages {
			n.send(m)
		}
		for _, e := range rd.CommittedEntries {
			n.apply(e)
		}
		n.raft.Advance(rd)
	}
}

func (n *node) send(m *raftpb.Message) {
	to := n.world.nodes[m.GetTo()-1]
	n.world.datagram(n.index, to.index, func() {
		to.in(to.life, func() {
			_ = to.raft.Step(m) // a message that cannot be used is as good as lost
			to.ready()
		})
	})
}

// apply enters a decision.
func (n *node) apply(e *raftpb.Entry) {
	if e.GetType() != raftpb.EntryNormal || len(e.Data) == 0 {
		return
	}
	c, err := quorum.DecodeCommand(e.Data)
	if err != nil {
		n.world.fail("%v", err)
		return
	}
	next := n.state.Clone()
	if n.world.cfg.mutant("no-revision") && next.Group[c.Group] != nil {
		c.Revision = next.Group[c.Group].Revision
	}
	err = next.Apply(e.GetIndex(), c)
	n.state = next
	if n.disk == nil {
		return
	}
	n.world.decided(c, next, err)
	n.step(group.Decided{State: next})
}

// step gives the mirror an input and does what it wants.
func (n *node) step(in mirror.Input) {
	if n.mirror == nil {
		return
	}
	effects := n.mirror.Step(n.time(), in)
	if k := n.mirror.Overlooked(); k > 0 {
		n.world.fail("%s: %d operations are complete after %T and have not ended", memberOf(n.index), k, in)
	}
	n.shut()
	n.world.serves(n)
	life := n.life
	for _, e := range effects {
		if !n.up || n.life != life {
			return // one of them ended it
		}
		n.do(e)
	}
	n.follow()
}

// did gives the mirror what became of something that the disk was asked for.
func (n *node) did(a mirror.Applied) {
	if !n.ended() {
		n.step(a)
	}
}

// ended ends the life, if the disk ended it in the middle of what it was asked for.
func (n *node) ended() bool {
	if !n.up {
		return true
	}
	if !n.disk.ended() {
		return false
	}
	w := n.world
	w.count.torn++
	power := w.chance(0.5)
	w.count.crashes++
	if power {
		w.count.powerLosses++
	}
	n.stop(power)
	w.after(w.between(10*time.Millisecond, 4*time.Second), n.revive)
	return true
}

func (n *node) do(e mirror.Effect) {
	w := n.world
	switch e := e.(type) {
	case group.Propose:
		n.propose(e.Command)
	case mirror.Apply:
		if n.mirror.Resyncing() && !n.disk.stateKept() {
			w.fail("%s is resynced, and has not kept what it was", memberOf(n.index))
		}
		n.later(n.disk.delay(e.Op.Durable), func() { n.did(n.disk.change(n, e)) })
	case mirror.Load:
		n.later(n.disk.delay(false), func() { n.did(n.disk.load(n, e)) })
	case mirror.Sync:
		n.later(n.disk.delay(true), func() { n.did(mirror.Applied{ID: e.ID, Failed: n.disk.sync(n)}) })
	case mirror.List:
		// The store looks at some moment, and the answer is known some time later.
		n.later(n.disk.delay(false), func() {
			ranges := n.disk.list(n, e)
			if n.ended() {
				return
			}
			answer := n.answerList(e, ranges)
			if n.ended() {
				return
			}
			w.note("%s has changed since %d: %+v", memberOf(n.index), e.Since, answer)
			n.later(n.disk.delay(false)+w.between(0, w.cfg.lists), func() { n.step(answer) })
		})
	case mirror.Open:
		n.openSnapshot(e)
	case mirror.Shut:
		n.shutSnapshot(e)
	case mirror.SavePosition:
		w.note("%s keeps position %d", memberOf(n.index), e.Position)
		n.disk.save(e.Position)
		n.ended()
	case mirror.Transmit:
		w.packet(n, e.To, e.Packet)
	case mirror.Prepare:
		n.later(n.disk.delay(true), func() {
			failed := !w.calm && w.chance(0.1) || !n.disk.keepState()
			if n.ended() {
				return
			}
			n.step(mirror.Prepared{Number: e.Number, Failed: failed})
		})
	case mirror.Settled:
		if e.OK {
			n.disk.dropState()
			n.ended()
		}
	default:
		n.told(e)
	}
}

// told takes what the mirror tells.
func (n *node) told(e mirror.Effect) {
	w := n.world
	switch e := e.(type) {
	case mirror.Done:
		if !n.answerCall(e.ID, nil) {
			n.answer(e.ID)
		}
	case mirror.Abandon:
		if n.answerCall(e.ID, errMoved) {
			break
		}
		a := n.asks[e.ID]
		delete(n.asks, e.ID)
		a.client.dropped(n, a.number)
	case mirror.Refuse:
		if n.refuseCall(e) {
			break
		}
		a := n.asks[e.ID]
		if a.refused, a.damaged = !e.Damaged, e.Damaged; a.refused {
			w.count.refused++
			w.takenBack(n, a)
		}
		n.answer(e.ID)
	case mirror.Healed:
		w.note("%s could not read %+v: healed %t", memberOf(n.index), e.What, e.OK)
		switch {
		case !e.OK:
			w.count.unhealed++
		case n.mirror.Standing().Role == group.Owner:
			w.count.healed++
		default:
			w.count.mended++
		}
	case mirror.Aborted:
		w.count.aborted++
		delete(n.asks, e.ID)
	case mirror.Resynced:
		w.count.resyncs++
	}
}

// propose puts a command to the quorum. Without a leader it is dropped, and will
// be made again; now and then it is only late, and comes after its author's end.
func (n *node) propose(c quorum.Command) {
	w := n.world
	data, err := c.Encode()
	if err != nil {
		w.fail("%v", err)
		return
	}
	if !w.calm && w.chance(max(0.1, w.late)) {
		w.after(w.between(0, 4*time.Second), func() {
			via := w.nodes[w.rand.IntN(3)]
			via.in(via.life, func() { _ = via.raft.Propose(data); via.ready() })
		})
		return
	}
	_ = n.raft.Propose(data)
	n.later(0, n.ready)
}

// answer sends a client its answer.
func (n *node) answer(id uint64) {
	a := n.asks[id]
	delete(n.asks, id)
	n.world.reads(n, a)
	life, number := n.life, a.number
	a.alone = len(n.mirror.Standing().Others) == 0
	n.world.after(n.world.delay(), func() {
		if !n.world.net.cut[n.index][outside] && n.life == life {
			a.client.answered(n, number, a)
		}
	})
}

// connection is a stream of packets between the nodes: in order, all or a
// beginning of them.
type connection struct {
	number int
	dead   bool
	last   [2]instant // arrival of the latest packet to each
}

// connect keeps trying to have the nodes connected.
func (w *world) connect() {
	a, b := w.nodes[0], w.nodes[1]
	if w.conn == nil && a.up && b.up && !a.frozen && !b.frozen && !w.net.cut[0][1] && !w.net.cut[1][0] {
		w.conns++
		w.conn = &connection{number: w.conns}
		for i, n := range w.nodes[:2] {
			n.link = w.conns
			peer := w.nodes[1-i]
			n.step(mirror.Linked{To: quorum.Incarnation{Member: memberOf(peer.index), Boot: peer.boots}})
		}
	}
	w.after(w.between(20*time.Millisecond, 80*time.Millisecond), w.connect)
}

// disconnect ends the connection; each side that runs learns of it in time.
func (w *world) disconnect(int) {
	c := w.conn
	if c == nil {
		return
	}
	c.dead, w.conn = true, nil
	for _, n := range w.nodes[:2] {
		if n.up {
			life := n.life
			w.after(w.between(0, 5*time.Millisecond), func() {
				n.in(life, func() {
					if n.link == c.number {
						n.link = 0
						n.step(mirror.Unlinked{})
					}
				})
			})
		}
	}
}

// packet sends on the connection.
func (w *world) packet(from *node, to quorum.Incarnation, p mirror.Packet) {
	c := w.conn
	if c == nil || from.link != c.number {
		return
	}
	peer := w.nodes[indexOf(to.Member)]
	at := max(w.now.add(w.delay()), c.last[peer.index]+1)
	c.last[peer.index] = at
	me := quorum.Incarnation{Member: memberOf(from.index), Boot: from.boots}
	life := peer.life
	w.at(at, func() {
		if c.dead || w.net.cut[from.index][peer.index] {
			if !c.dead {
				w.disconnect(0) // a gap would be noticed: the connection is over
			}
			return
		}
		peer.in(life, func() {
			if peer.link != c.number {
				return
			}
			// It has arrived; when it is dealt with is another matter.
			admitted := peer.mirror.Current(p)
			peer.inbox = max(w.now.add(w.cfg.inbox(w)), peer.inbox+1)
			w.at(peer.inbox, func() {
				peer.in(life, func() {
					if peer.link == c.number {
						peer.step(mirror.Received{From: me, Packet: p, Admitted: admitted})
					}
				})
			})
		})
	})
}
