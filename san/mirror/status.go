package mirror

import (
	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
)

// totals count since the life began.
type totals struct {
	takeovers        uint64 // times that this node became the owner
	copied           uint64 // blocks that a resync copied from here
	healed, unhealed uint64 // blocks of this node that could not be read
}

// Phase is how far the other node is from being one of the set.
type Phase uint8

// Phases, in their order.
const (
	None    Phase = iota // there is no stream
	Asking               // what differs is being asked
	Copying              // and copied
	Ending               // all is copied, and being flushed
	Joined               // it is sent everything, and has everything
)

func (p Phase) String() string {
	return [...]string{"none", "asking", "copying", "ending", "joined"}[p]
}

// Status is what a mirror is at, for people. Blocks and numbers are of this
// life.
type Status struct {
	Standing group.Standing
	Peer     *quorum.Incarnation // connected
	Phase    Phase
	// Of a resync from here: blocks that are left, how many copies may be under way
	// (1.0 is one at a time, without pauses), and blocks that wait because they
	// cannot be read.
	Left, Stuck uint64
	// Snapshots are left to be made at the other node.
	Snapshots int
	Copies    float64
	// Slowdown is what clients' operations last took, in percent of what they take
	// without the resync; 0 when that is not known.
	Slowdown int
	// Receiving: this node is the end of a resync that has not ended.
	Receiving bool
	// Operations are under way; Waiting those of clients that wait for this node to
	// be allowed to serve.
	Operations, Waiting int
	Position            Position
	Broken              bool
	// Counted in this life.
	Takeovers, Copied, Healed, Unhealed uint64
}

// Status returns what the mirror is at.
func (m *Mirror) Status() Status {
	st := Status{
		Standing: m.at, Peer: m.link, Receiving: m.Resyncing(), Operations: len(m.ops), Waiting: len(m.held), Position: m.position, Broken: m.broken,
		Takeovers: m.totals.takeovers, Copied: m.totals.copied, Healed: m.totals.healed, Unhealed: m.totals.unhealed,
	}
	switch s := m.stream; {
	case s != nil:
		st.Phase = Asking + Phase(s.phase)
		st.Left, st.Stuck = s.steps.blocks()+s.stuck.blocks(), s.stuck.blocks()
		st.Snapshots = len(s.steps) - 1
		for _, o := range m.ops {
			if o.op.Kind == copied && o.from == nil {
				st.Left += o.op.Count
			}
		}
		if st.Phase == Copying {
			st.Copies, st.Slowdown = m.governed(), m.govern.ratio
		}
	case m.missed != nil:
		st.Left, st.Snapshots = m.missed.steps.blocks(), len(m.missed.steps)-1
	}
	return st
}

// governed returns how many copies may be under way.
func (m *Mirror) governed() float64 {
	if m.cfg.Slowdown == 0 {
		return float64(m.cfg.Copies)
	}
	return min(float64(m.cfg.Copies), float64(m.govern.share)/shareOne)
}

// ServesUntil tells until when this node, as the owner, may answer; see
// group.Agent.ServesUntil.
func (m *Mirror) ServesUntil() (until group.Instant, unlimited, ok bool) {
	if m.at.Role != group.Owner || m.broken {
		return 0, false, false
	}
	return m.agent.ServesUntil()
}

// Copied returns how many blocks resyncs have copied from here.
func (m *Mirror) Copied() uint64 { return m.totals.copied }

// Busy is how many operations are under way.
func (m *Mirror) Busy() int { return len(m.ops) }
