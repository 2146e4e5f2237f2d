package quorumio

import (
	"encoding/json"
	"maps"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// machine is what the log is applied to: the quorum's state, and the newest
// proposal of each member. It is pure, and the same on every member at the same
// index. A state that it has published never changes.
type machine struct {
	state *quorum.State
	last  map[uint64]mark
}

// mark is the newest proposal that was applied of a member.
type mark struct {
	Boot quorum.Boot `json:"boot"`
	Seq  uint64      `json:"seq"`
}

// outcome is what became of an entry.
type outcome struct {
	tag    tag
	err    error              // of the command
	void   bool               // it was applied before, or overtaken; err says nothing
	change *raftpb.ConfChange // to make in raft's configuration
}

func newMachine() *machine { return &machine{state: quorum.NewState(), last: map[uint64]mark{}} }

// apply takes the next entry of the log. It fails only when the entry cannot be
// of this log.
func (m *machine) apply(e *raftpb.Entry) (outcome, error) {
	next := m.state.Clone()
	next.Index = e.GetIndex()
	defer func() { m.state = next }()
	data := e.GetData()
	var change *raftpb.ConfChange
	switch {
	case len(data) == 0:
		return outcome{void: true}, nil // a leader's first entry
	case e.GetType() == raftpb.EntryConfChange:
		change = new(raftpb.ConfChange)
		if err := proto.Unmarshal(data, change); err != nil {
			return outcome{}, fault.Wrap(fault.Corrupt, err, "a change of the configuration")
		}
		data = change.GetContext()
	case e.GetType() != raftpb.EntryNormal:
		return outcome{}, fault.New(fault.Corrupt, "an entry of type %s", e.GetType())
	}
	t, c, err := decodeProposal(data)
	if err != nil {
		return outcome{}, err
	}
	out := outcome{tag: t}
	if l := m.last[t.member]; t.boot < l.Boot || t.boot == l.Boot && t.seq <= l.Seq {
		out.void = true
		return out, nil
	}
	m.last[t.member] = mark{t.boot, t.seq}
	if want := raftChange(c); !proto.Equal(bare(change), bare(want)) {
		out.err = fault.New(fault.Invalid, "a %s whose half for raft is of another kind", c.Kind)
		return out, nil
	}
	out.err = next.Apply(e.GetIndex(), c)
	if out.err == nil {
		out.change = change
		if c.Kind == quorum.KindLeave {
			delete(m.last, c.Change.ID) // it speaks no more: its number is never given again
		}
	}
	return out, nil
}

// raftChange returns what a command means to raft, or nil.
func raftChange(c quorum.Command) *raftpb.ConfChange {
	var kind raftpb.ConfChangeType
	switch {
	case c.Change == nil:
		return nil
	case c.Kind == quorum.KindJoin:
		kind = raftpb.ConfChangeAddLearnerNode
	case c.Kind == quorum.KindVote:
		kind = raftpb.ConfChangeAddNode
	case c.Kind == quorum.KindLeave:
		kind = raftpb.ConfChangeRemoveNode
	default:
		return nil
	}
	return &raftpb.ConfChange{Type: &kind, NodeId: new(c.Change.ID)}
}

// bare returns a change without what it carries, for comparison.
func bare(c *raftpb.ConfChange) *raftpb.ConfChange {
	if c == nil {
		return nil
	}
	return &raftpb.ConfChange{Type: c.GetType().Enum(), NodeId: new(c.GetNodeId())}
}

// image is the machine as a snapshot holds it.
type image struct {
	State json.RawMessage `json:"state"`
	Last  map[uint64]mark `json:"last"`
}

func (m *machine) encode() ([]byte, error) {
	s, err := m.state.Encode()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the quorum's snapshot")
	}
	return json.Marshal(image{State: s, Last: m.last})
}

func decodeMachine(p []byte) (*machine, error) {
	var i image
	if err := json.Unmarshal(p, &i); err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "the quorum's snapshot")
	}
	s, err := quorum.DecodeState(i.State)
	if err != nil {
		return nil, err
	}
	m := &machine{state: s, last: map[uint64]mark{}}
	maps.Copy(m.last, i.Last)
	return m, nil
}
