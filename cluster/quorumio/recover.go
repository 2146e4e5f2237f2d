package quorumio

import (
	"context"
	"errors"
	"slices"
	"sync"

	"go.etcd.io/raft/v3/raftpb"

	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// Recover makes the member in o.Dir, which must not run, the only one of the
// cluster: for when the majority is lost for good. lost are the members that are
// given up, all of the others: who names them knows what may be lost with them,
// which is every decision that this member has not seen, and, if one of them
// still runs somewhere, that there is one cluster only.
//
// Everything in the log is taken as decided, also what was not known to be: it
// may have been. The others' numbers are void from then on, so that they are
// refused when they come back.
//
// Fails with fault.Busy while members answer that make a majority with this one,
// and with fault.Denied when lost are not the others.
func Recover(ctx context.Context, o Options, lost []quorum.Member) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	id, s, err := load(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	machine, hard, last, term, err := replay(s)
	if err != nil {
		return err
	}
	var others []quorum.Member
	voters := map[uint64]*quorum.Record{}
	for _, r := range machine.state.Roll.Sorted() {
		if r.ID != id.Self().ID {
			others = append(others, r.Name)
		}
		if r.Voter {
			voters[r.ID] = r
		}
	}
	lost = slices.Clone(lost)
	slices.Sort(lost)
	slices.Sort(others)
	if len(others) == len(machine.state.Roll.Members) {
		return fault.New(fault.Denied, "%s is not a member of the cluster any more", id.Self().Name)
	}
	if !slices.Equal(lost, others) {
		return fault.New(fault.Denied, "name the members that are given up: %v, not %v", others, lost)
	}
	answer := probe(ctx, o, id, s, machine.state.Roll, voters)
	present := len(answer)
	if voters[id.Self().ID] != nil {
		present++
	}
	if present > len(voters)/2 {
		return fault.New(fault.Busy, "%v of %d voters answer: with this one they are a majority, so the cluster goes on without this", answer, len(voters))
	}
	if err := machine.state.Recover(id.Self().Name); err != nil {
		return err
	}
	// A term and an index of its own: no log of before can pass for this one.
	machine.state.Index = last + 1
	data, err := machine.encode()
	if err != nil {
		return err
	}
	term = max(term, hard.GetTerm()) + 1
	snap := snapshotOf(last+1, term, &raftpb.ConfState{Voters: []uint64{id.Self().ID}}, data)
	if err := s.commit([]change{{hard: &raftpb.HardState{Term: &term, Commit: new(last + 1)}, snap: snap}}); err != nil {
		return err
	}
	o.Log.Warn("the member goes on as the only one of its cluster", "member", string(id.Self().Name), "given up", lost, "index", last+1)
	return nil
}

// replay applies the whole log, what is not known to be committed too.
func replay(s *store) (m *machine, hard *raftpb.HardState, last, term uint64, err error) {
	hard, _, err = s.mem.InitialState()
	if err != nil {
		return nil, nil, 0, 0, err
	}
	snap, err := s.mem.Snapshot()
	if err != nil {
		return nil, nil, 0, 0, err
	}
	if m, err = decodeMachine(snap.GetData()); err != nil {
		return nil, nil, 0, 0, fault.Wrap(fault.Corrupt, err, "a member that never had the cluster's state")
	}
	first, _ := s.mem.FirstIndex() // these do not fail
	last, _ = s.mem.LastIndex()
	if first <= last {
		entries, err := s.mem.Entries(first, last+1, ^uint64(0))
		if err != nil {
			return nil, nil, 0, 0, fault.Wrap(fault.Corrupt, err, "the member's log")
		}
		for _, e := range entries {
			if _, err := m.apply(e); err != nil {
				return nil, nil, 0, 0, err
			}
		}
	}
	term, err = s.mem.Term(last)
	return m, hard, last, term, fault.Wrap(fault.Corrupt, err, "the member's log")
}

// probe returns the names of the other voters that answer.
func probe(ctx context.Context, o Options, id *identity.Identity, s *store, roll quorum.Roll, voters map[uint64]*quorum.Record) (names []quorum.Member) {
	ctx, cancel := context.WithCancel(ctx)
	t := newTransport(ctx, id, s.boot, o.Log, s.seeds)
	t.deliver = func(input) bool { return false }
	t.enrol(roll)
	var mu sync.Mutex
	var all sync.WaitGroup
	for n, r := range voters {
		if n == id.Self().ID {
			continue
		}
		all.Go(func() {
			// A handshake will do: who refuses this one answers as well.
			_, raw, err := t.dial(ctx, r.Address, n)
			if err != nil {
				o.Log.Info("a voter does not answer", "member", string(r.Name), "address", r.Address, "err", err)
				return
			}
			t.drop(raw)
			mu.Lock()
			defer mu.Unlock()
			names = append(names, r.Name)
		})
	}
	all.Wait()
	cancel()
	t.close()
	slices.Sort(names)
	return names
}
