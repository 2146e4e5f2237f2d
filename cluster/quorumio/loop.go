package quorumio

import (
	"context"
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
	raft    *raft.RawNode
	machine *machine
	conf    *raftpb.ConfState // as of the machine's index
	ticks   uint64

	compactEvery uint64
	compacted    uint64 // index of the newest snapshot

	proposals
	voting     bool   // a proposal to make someone a voter is under way
	transferAt uint64 // tick from which leadership may be given away
}

func newLoop(m *Member, s *store, compactEvery uint64) (*loop, error) {
	l := &loop{m: m, store: s, machine: newMachine(), conf: raftpb.EnsureConfState(nil), compactEvery: compactEvery}
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
		MaxSizePerMsg: 256 << 10, MaxUncommittedEntriesSize: 16 << 20, MaxInflightMsgs: 64,
		PreVote: true, CheckQuorum: true, StepDownOnRemoval: true, Logger: raftLogger{l.m.log},
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
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C: // ticks that a slow disk kept from us are left out
			l.tick()
		case in := <-l.m.inbox:
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
		if err := l.store.save(rd.HardState, rd.Entries, rd.Snapshot, rd.MustSync); err != nil {
			return err
		}
		var lost []*raftpb.Message
		for _, msg := range rd.Messages {
			if !l.m.transport.send(msg) {
				lost = append(lost, msg)
			}
		}
		if rd.SoftState != nil {
			l.m.leader.Store(rd.SoftState.Lead)
		}
		if !raft.IsEmptySnap(rd.Snapshot) {
			if err := l.restore(rd.Snapshot); err != nil {
				return err
			}
			l.publish()
			l.afterSnapshot()
		}
		if err := l.apply(rd.CommittedEntries); err != nil {
			return err
		}
		if err := l.superseded(); err != nil {
			return err
		}
		l.raft.Advance(rd)
		for _, msg := range lost {
			l.take(unreachable{id: msg.GetTo(), snapshot: msg.GetType() == raftpb.MsgSnap})
		}
	}
	return nil
}

// apply enters decisions, shows them, and tells their proposers.
func (l *loop) apply(entries []*raftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	var done []outcome
	changed, left := false, false
	for _, e := range entries {
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
		return fault.New(fault.Denied, "this member has been taken out of the cluster")
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
	l.machine, l.conf, l.compacted = m, snap.GetMetadata().GetConfState(), m.state.Index
	return nil
}

// compact makes a snapshot when it is time. A change of raft's configuration is
// such a time: who has joined takes no snapshot of a configuration without it.
func (l *loop) compact(changed bool) error {
	index := l.machine.state.Index
	if index < l.compacted+l.compactEvery && !changed {
		return nil
	}
	data, err := l.machine.encode()
	if err != nil {
		return err
	}
	if err := l.store.compact(index, l.conf, data, l.compactEvery); err != nil {
		return err
	}
	l.compacted = index
	return nil
}

// transferPause is how long a leader waits between tries to give away its place.
const transferPause = 2 * uint64(time.Second/tickTime)

// lead does what is the leader's: who has caught up becomes a voter, and a
// witness that has caught up becomes leader, for its host has nothing else to do
// and a storage node's death then needs no election.
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
