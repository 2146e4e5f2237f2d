package storetest

import (
	"fmt"

	"steadfast/san/store"
)

// Model follows a history of operations, and says which states of the pool a
// crash may leave.
type Model struct {
	base    *State    // what is durable for sure
	pending []pending // operations after base, in order
	now     *State    // base with all answered operations of pending
	next    uint64
	moments []*Moment
}

// pending is an operation that a power loss may take back.
type pending struct {
	op       Op
	at       uint64
	answered bool
}

// NewModel returns the model of a new pool.
func NewModel() *Model { return &Model{base: NewState(), now: NewState(), next: 1} }

// Now returns the state after all that was answered. It is not to be changed.
func (m *Model) Now() *State { return m.now }

// Answered applies an operation that succeeded. A durable one makes all before
// it durable: they are earlier in the log.
func (m *Model) Answered(op Op, durable bool) {
	op.Apply(m.now, m.next)
	m.pending = append(m.pending, pending{op, m.next, true})
	m.next++
	if durable {
		m.Durable()
	}
}

// Unanswered notes an operation whose answer never came, or was an error that
// leaves open what it did. Recover must follow.
func (m *Model) Unanswered(op Op) {
	m.pending = append(m.pending, pending{op, m.next, false})
	m.next++
}

// Durable notes that all that was answered has become durable.
func (m *Model) Durable() {
	for _, p := range m.pending {
		p.op.Apply(m.base, p.at)
	}
	m.pending = nil
}

// Compare holds a pool that did not crash against the model.
func (m *Model) Compare(got *State) error {
	if d := m.now.differ(got, doubt{}); d != "" {
		return fmt.Errorf("the pool is not as it was left: %s", d)
	}
	return nil
}

// Recover holds a pool that was opened after a crash against what may be
// there, and takes over what is. lost says that the power was lost, else only
// the process died.
func (m *Model) Recover(got *State, lost bool) error {
	first := 0
	for !lost && first < len(m.pending) && m.pending[first].answered {
		first++
	}
	s := m.base.Clone()
	least, found, fit, open, left := -1, -1, map[int64]bool(nil), false, doubt{}
	var last string
	for k := 0; k <= len(m.pending); k++ {
		if k >= first {
			may := m.doubt(s, k)
			d := s.differ(got, may)
			if d == "" {
				if found < 0 {
					least = k
				}
				found, left = k, may
				parted, same := may.settle(s, got)
				fit, open = parted, open || same
			}
			last += fmt.Sprintf("\n  after %s: %s", m.describe(k), d)
		}
		if k < len(m.pending) {
			m.pending[k].op.Apply(s, m.pending[k].at)
		}
	}
	if found < 0 {
		return fmt.Errorf("the pool is in none of the %d states the crash may leave:%s", len(m.pending)+1-first, tail(last, 3000))
	}
	m.base.Inexact = m.base.Inexact || open
	taken := uint64(never) // the first operation that the crash may have taken back
	if least < len(m.pending) {
		taken = m.pending[least].at
	}
	m.take(found, fit, left, got, lost)
	m.forgetLost(taken)
	return nil
}

// doubt returns what operation k may have done to s in part.
func (m *Model) doubt(s *State, k int) doubt {
	if k == len(m.pending) {
		return doubt{}
	}
	op, ok := m.pending[k].op.(BlockOp)
	if !ok {
		return doubt{}
	}
	volume, effects := op.Effects(s, m.pending[k].at)
	may := doubt{volume, map[int64]Block{}}
	for _, e := range effects {
		may.blocks[e.Block] = e.Cell.Block
	}
	return may
}

// settle returns the blocks in doubt that got has in the new state. One that
// is the same either way counts as new if any other is; open tells that it is
// no hole, so that its place is in doubt.
func (d doubt) settle(s, got *State) (fit map[int64]bool, open bool) {
	fit = map[int64]bool{}
	var same []int64
	for b, alt := range d.blocks {
		switch g := got.Volumes[d.volume].Content[b].Block; {
		case alt == s.Volumes[d.volume].Content[b].Block:
			same = append(same, b)
			open = open || alt != Block{}
		case g == alt:
			fit[b] = true
		}
	}
	if len(fit) > 0 {
		for _, b := range same {
			fit[b] = true
		}
	}
	return fit, open
}

// take makes the state after the first k operations, and the blocks in fit of
// the next one, of which left is in doubt, the present.
func (m *Model) take(k int, fit map[int64]bool, left doubt, got *State, lost bool) {
	kept := m.pending[:k:k]
	if len(left.blocks) > 0 {
		next := m.pending[k]
		op := next.op.(BlockOp)
		if len(fit) > 0 {
			kept = append(kept, pending{part{op, fit}, next.at, true})
		}
		kept = append(kept, pending{touched{op, left}, next.at, true})
	}
	m.pending = nil
	m.now = m.base.Clone()
	for _, p := range kept {
		p.op.Apply(m.now, p.at)
		p.op, p.answered = withID(p.op, got), true
		m.pending = append(m.pending, p)
	}
	for name, v := range m.now.Volumes {
		v.ID = got.Volumes[name].ID
	}
	if lost { // what is there now has outlived the power
		m.pending = nil
		m.base = m.now.Clone()
	}
}

// withID fills in an identifier that an unanswered creation did not tell.
func withID(op Op, got *State) Op {
	id := func(name string, known store.ID) store.ID {
		if g := got.Volumes[name]; g != nil && known == (store.ID{}) {
			return g.ID
		}
		return known
	}
	switch o := op.(type) {
	case CreateVolume:
		o.ID = id(o.Spec.Name, o.ID)
		return o
	case Clone:
		o.ID = id(o.Name, o.ID)
		return o
	}
	return op
}

// describe names the state after k operations by the last of them.
func (m *Model) describe(k int) string {
	if k == 0 {
		return "all that is durable"
	}
	p := m.pending[k-1]
	if !p.answered {
		return fmt.Sprintf("unanswered %q", p.op)
	}
	return fmt.Sprintf("%q", p.op)
}

// tail returns the end of a text.
func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "\n  ..." + s[len(s)-n:]
}
