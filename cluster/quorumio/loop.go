package quorumio

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// input is what the loop is given: received, unreachable, snapshotSent, *ask, or
// a test's meddle.
type input any

// meddle is done on the loop. Tests spoil what it owns without a race.
type meddle func(*loop)

type received struct{ message *raftpb.Message }

// unreachable says that messages to a peer were lost, a snapshot among them.
type unreachable struct {
	id       uint64
	snapshot bool
}

type snapshotSent struct {
	id     uint64
	failed bool
}

// loop owns raft, the machine, the store and the proposals: one goroutine.
type loop struct {
	m       *Member
	store   *store
	disk    *disk
	raft    *raft.RawNode
	machine *machine
	conf    *raftpb.ConfState // as of the machine's index
	ticks   uint64

	compactEvery uint64
	compacted    uint64 // index of the newest snapshot
	applied      int    // bytes of the entries since

	proposals
	voting     bool   // a proposal to make someone a voter is under way
	transferAt uint64 // tick from which leadership may be given away
	lingers    uint64 // tick at which a member that has left ends; 0: it has not
}

// lingerTicks is how long a member that has left answers the others still: some
// elections.
const lingerTicks = 6 * electionTicks

// errLeft ends a member that is none any more.
var errLeft = &fault.Error{Kind: fault.Denied, Text: "this member has been taken out of the cluster"}

func newLoop(m *Member, s *store, compactEvery uint64) (*loop, error) {
	l := &loop{m: m, store: s, disk: newDisk(s, m.log), machine: newMachine(), conf: raftpb.EnsureConfState(nil), compactEvery: compactEvery}
	l.proposals.init()
	snap, err := s.mem.Snapshot()
	if err != nil {
		return nil, err
	}
	if !raft.IsEmptySnap(snap) {
		if err := l.restore(snap); err != nil {
			return nil, err
		}
	}
	l.publish()
	return l, l.startRaft()
}

// startRaft makes raft of what the store holds. Raft panics when that cannot be.
func (l *loop) startRaft() (err error) {
	defer guard(&err)
	l.raft, err = raft.NewRawNode(&raft.Config{
		ID: l.m.id.Self().ID, ElectionTick: electionTicks, HeartbeatTick: heartbeatTicks,
		Storage: l.store.mem, Applied: l.compacted,
		MaxSizePerMsg: 256 << 10, MaxUncommittedEntriesSize: 16 << 20, MaxInflightMsgs: 64, MaxInflightBytes: 8 << 20,
		AsyncStorageWrites: true,
		PreVote:            true, CheckQuorum: true, StepDownOnRemoval: true, Logger: raftLogger{l.m.log},
	})
	return fault.Wrap(fault.Corrupt, err, "the member's log")
}

// guard makes an error of a panic: what raft is told contradicts its log. The
// member ends, and the process, which serves data by what was decided before,
// need not.
func guard(err *error) {
	switch v := recover().(type) {
	case nil:
	case raftPanic:
		*err = fault.New(fault.Corrupt, "the member's log contradicts the cluster's: %s", string(v))
	default:
		*err = fault.New(fault.Internal, "a bug: %s\n%s", fmt.Sprint(v), debug.Stack())
	}
}

// run lives until ctx ends, which is no error, or the member can go on no more.
func (l *loop) run(ctx context.Context) (err error) {
	defer guard(&err)
	ticker := time.NewTicker(tickTime)
	defer ticker.Stop()
	l.disk.start()
	defer l.disk.stop()
	l.boot()
	if v := l.conf.GetVoters(); len(v) == 1 && v[0] == l.m.id.Self().ID {
		if err := l.raft.Campaign(); err != nil { // there is nobody to wait for
			return fault.Wrap(fault.Internal, err, "lead a cluster of one")
		}
	}
	for {
		if err := l.ready(); err != nil {
			return err
		}
		inbox := l.m.inbox
		if l.disk.full() {
			inbox = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case w := <-l.disk.done:
			if err := l.stable(w); err != nil {
				return err
			}
		case <-ticker.C: // ticks that were missed are left out
			l.tick()
			if l.lingers != 0 && l.ticks >= l.lingers {
				return errLeft
			}
		case in := <-inbox:
			l.take(in)
			// What waits goes into the same write.
			for range len(l.m.inbox) {
				l.take(<-l.m.inbox)
			}
		}
	}
}

func (l *loop) take(in input) {
	switch in := in.(type) {
	case received:
		_ = l.raft.Step(in.message) // a message that cannot be used is as good as lost
	case unreachable:
		l.raft.ReportUnreachable(in.id)
		if in.snapshot {
			l.raft.ReportSnapshot(in.id, raft.SnapshotFailure)
		}
	case snapshotSent:
		status := raft.SnapshotFinish
		if in.failed {
			status = raft.SnapshotFailure
		}
		l.raft.ReportSnapshot(in.id, status)
	case *ask:
		l.ask(in)
	case meddle:
		in(l)
	}
}

func (l *loop) tick() {
	l.ticks++
	l.raft.Tick()
	l.repeat()
	l.lead()
}

// ready does what raft wants, in the order that the package doc gives.
func (l *loop) ready() error {
	for l.raft.HasReady() {
		rd := l.raft.Ready()
		if rd.SoftState != nil {
			l.m.leader.Store(rd.SoftState.Lead)
		}
		var store job
		var apply *raftpb.Message
		var now []*raftpb.Message
		put := false
		for _, msg := range rd.Messages {
			switch {
			case msg.GetTo() == raft.LocalAppendThread:
				store.change, store.after, put = changeOf(msg), append(store.after, msg.GetResponses()...), true
			case msg.GetTo() == raft.LocalApplyThread:
				apply = msg
			case msg.GetType() == raftpb.MsgVote:
				// Raft would have it leave at once. Who asks for votes shall have the term
				// and its own vote on the disk: so what is answered to this life cannot
				// make a leader of a later one, that knows less.
				store.after, put = append(store.after, msg), true
			default:
				now = append(now, msg)
			}
		}
		if put {
			l.disk.put(store)
		}
		l.send(now)
		if apply == nil {
			continue
		}
		if err := l.apply(apply.GetEntries()); err != nil {
			return err
		}
		if err := l.superseded(); err != nil {
			return err
		}
		if err := l.steps(apply.GetResponses()); err != nil {
			return err
		}
	}
	return nil
}

// changeOf is what a MsgStorageAppend wants to be stable.
func changeOf(msg *raftpb.Message) change {
	c := change{entries: msg.GetEntries(), snap: msg.GetSnapshot()}
	if hard := (&raftpb.HardState{Term: msg.Term, Vote: msg.Vote, Commit: msg.Commit}); !raft.IsEmptyHardState(hard) {
		c.hard = hard
	}
	return c
}

// stable takes what the disk has, and says what waited for it.
func (l *loop) stable(w written) error {
	l.disk.taken(w)
	if w.err != nil {
		return w.err
	}
	for _, j := range w.jobs {
		if err := l.store.show(j.change); err != nil {
			return err
		}
		if !raft.IsEmptySnap(j.change.snap) {
			if err := l.restore(j.change.snap); err != nil {
				return err
			}
			l.publish()
			l.afterSnapshot()
			if err := l.superseded(); err != nil {
				return err
			}
		}
		if err := l.steps(j.after); err != nil {
			return err
		}
	}
	return nil
}

// steps delivers messages: raft's to itself, and to peers.
func (l *loop) steps(messages []*raftpb.Message) error {
	var out []*raftpb.Message
	for _, msg := range messages {
		if msg.GetTo() != l.m.id.Self().ID {
			out = append(out, msg)
			continue
		}
		// Who was taken out of the configuration has no use for its own answers.
		if err := l.raft.Step(msg); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
			return fault.Wrap(fault.Internal, err, "raft refuses its own "+msg.GetType().String())
		}
	}
	l.send(out)
	return nil
}

// send gives messages to the transport, and tells raft of those that were lost.
func (l *loop) send(messages []*raftpb.Message) {
	for _, msg := range messages {
		if !l.m.transport.send(msg) {
			l.take(unreachable{id: msg.GetTo(), snapshot: msg.GetType() == raftpb.MsgSnap})
		}
	}
}

// apply enters decisions, shows them, and tells their proposers.
func (l *loop) apply(entries []*raftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	var done []outcome
	changed, left := false, false
	for _, e := range entries {
		l.applied += len(e.GetData())
		out, err := l.machine.apply(e)
		if err != nil {
			return err
		}
		if out.change != nil {
			// ApplyConfChange is due for what was not refused, and only for that.
			l.conf = l.raft.ApplyConfChange(out.change)
			changed = true
			left = left || out.change.GetType() == raftpb.ConfChangeRemoveNode && out.change.GetNodeId() == l.m.id.Self().ID
		}
		done = append(done, out)
	}
	l.publish() // before the proposers hear of it: they find it in State
	for _, out := range done {
		l.settle(out)
	}
	if left {
		// Of two members the other one cannot decide without us as long as it has
		// not heard that this is decided. When we led, raft has just stepped down:
		// then it has to become leader first, with our vote.
		l.lingers = l.ticks + lingerTicks
	}
	return l.compact(changed)
}

// publish shows the state to everyone.
func (l *loop) publish() {
	s := l.machine.state
	l.m.state.Store(s)
	l.m.transport.enrol(s.Roll)
	l.m.watchers.changed()
}

// restore begins anew from a snapshot.
func (l *loop) restore(snap *raftpb.Snapshot) error {
	m, err := decodeMachine(snap.GetData())
	if err != nil {
		return err
	}
	if m.state.Index != snap.GetMetadata().GetIndex() {
		return fault.New(fault.Corrupt, "a snapshot of index %d holds the state of %d", snap.GetMetadata().GetIndex(), m.state.Index)
	}
	l.machine, l.conf, l.compacted, l.applied = m, snap.GetMetadata().GetConfState(), m.state.Index, 0
	return nil
}

// compactBytes is after how many bytes of entries the log becomes a snapshot, at
// the latest; as many are kept for peers that are a little behind.
const compactBytes = 32 << 20

// compact makes a snapshot when it is time. A change of raft's configuration is
// such a time: who has joined takes no snapshot of a configuration without it.
// What it covers is stable, so peers may have it before it is on our own disk.
func (l *loop) compact(changed bool) error {
	index := l.machine.state.Index
	if index < l.compacted+l.compactEvery && l.applied < compactBytes && !changed {
		return nil
	}
	data, err := l.machine.encode()
	if err != nil {
		return err
	}
	c, err := l.store.snapshot(index, l.conf, data, l.compactEvery, compactBytes)
	if err != nil {
		return err
	}
	l.disk.put(job{change: c})
	l.compacted, l.applied = index, 0
	return nil
}

// transferPause is how long a leader waits between tries to give away its place.
const transferPause = 2 * uint64(time.Second/tickTime)

// lead does what is the leader's: who has caught up becomes a voter, unless it is a
// host, which stays a learner; and a witness that has caught up becomes leader, for
// its box has nothing else to do and a storage node's death then needs no election.
func (l *loop) lead() {
	st := l.raft.BasicStatus()
	if st.RaftState != raft.StateLeader || l.machine.state.Boots[l.m.self.Member] != l.m.self.Boot {
		return
	}
	roll := l.machine.state.Roll
	me := roll.ByID(st.ID)
	for id, p := range l.raft.Status().Progress {
		r := roll.ByID(id)
		if r == nil || id == st.ID || !p.RecentActive || p.Match < st.HardState.GetCommit() {
			continue
		}
		switch {
		case p.IsLearner && r.Role == quorum.RoleHost:
		case p.IsLearner && !l.voting:
			l.voting = true
			l.ask(&ask{
				ctx: context.Background(), done: func(error) { l.voting = false },
				command: quorum.Command{Kind: quorum.KindVote, Revision: roll.Revision, By: l.m.self, Change: &quorum.Change{Name: r.Name, ID: id}},
			})
		case !p.IsLearner && r.Role == quorum.RoleWitness && me != nil && me.Role != quorum.RoleWitness &&
			st.LeadTransferee == raft.None && l.ticks >= l.transferAt:
			l.transferAt = l.ticks + transferPause
			l.m.log.Info("leadership goes to the witness", "witness", string(r.Name))
			l.raft.TransferLeader(id)
		}
	}
}
