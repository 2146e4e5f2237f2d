package storetest

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/store"
)

// Moment is what a volume held at a position of its pool.
type Moment struct {
	ID       store.ID
	Position store.LSN
	At       uint64 // the last operation before it
	Content  Content
}

// momentsMax bounds the moments that a model keeps.
const momentsMax = 8

// Remember keeps a volume's content of now, which is that of a position. When
// there is no room, it takes the place of the one that spare chooses.
func (m *Model) Remember(volume string, position store.LSN, spare func(n int) int) {
	v := m.now.Volumes[volume]
	mo := &Moment{ID: v.ID, Position: position, At: m.At(), Content: maps.Clone(v.Content)}
	if len(m.moments) < momentsMax {
		m.moments = append(m.moments, mo)
		return
	}
	m.moments[spare(momentsMax)] = mo
}

// At returns the last operation that was answered.
func (m *Model) At() uint64 { return m.next - 1 }

// Moments returns what is remembered of a volume.
func (m *Model) Moments(volume string) (out []*Moment) {
	for _, mo := range m.moments {
		if mo.ID == m.now.Volumes[volume].ID {
			out = append(out, mo)
		}
	}
	return out
}

// forgetLost follows a crash that may have taken back the operations from one on.
// What a moment saw of them may be called changed or not, and so may what they did
// and undid again; but all that is done from now on must be.
func (m *Model) forgetLost(first uint64) {
	for _, s := range []*State{m.base, m.now} {
		for _, v := range s.Volumes {
			maps.DeleteFunc(v.Altered, func(_ int64, at uint64) bool { return at >= first })
		}
	}
	m.moments = slices.DeleteFunc(m.moments, func(mo *Moment) bool {
		if mo.At < first {
			return false
		}
		_, v := m.now.byID(mo.ID)
		if v == nil {
			return true
		}
		mo.At, mo.Content = m.At(), maps.Clone(v.Content)
		return false
	})
}

// byID returns the volume with an identifier, or nil.
func (s *State) byID(id store.ID) (string, *Volume) {
	for name, v := range s.Volumes {
		if v.ID == id {
			return name, v
		}
	}
	return "", nil
}

// Since asks p, for each moment, what has changed since its position, and judges
// the answers. It returns how many there were, and how many refusals.
func (m *Model) Since(p Pool) (answers, refusals int, err error) {
	for _, mo := range m.moments {
		name, v := m.now.byID(mo.ID)
		if v == nil {
			continue // deleted
		}
		said, err := ask(p, name, v.Size, mo.Position)
		switch {
		case fault.Is(err, fault.Stale) && (!v.Tracked || mo.At < v.Sure):
			refusals++
			continue
		case err == nil:
			answers++
			err = v.judgeSince(mo, said)
		}
		if err != nil {
			return answers, refusals, fmt.Errorf("changes of %s since position %d (operation %d): %w", name, mo.Position, mo.At, err)
		}
	}
	return answers, refusals, nil
}

// ask returns what a pool says has changed, in blocks.
func ask(p Pool, volume string, size int64, since store.LSN) (said []span, err error) {
	var bad error
	end := int64(0)
	err = p.ChangedSince(volume, since, func(r store.Range) bool {
		if r.Offset < end || r.Length <= 0 || (r.Offset|r.Length)%block.BlockSize != 0 || r.Offset+r.Length > size {
			bad = fmt.Errorf("range %+v after %d, in a volume of %d bytes", r, end, size)
			return false
		}
		end = r.Offset + r.Length
		said = append(said, span{r.Offset / block.BlockSize, end / block.BlockSize})
		return true
	})
	return said, errors.Join(bad, err)
}

// judgeSince demands each block that differs from what it was, or that did so
// meanwhile, and allows those that something was done to.
func (v *Volume) judgeSince(mo *Moment, said []span) error {
	size := v.Size / block.BlockSize
	must := map[int64]bool{}
	for _, c := range []Content{mo.Content, v.Content} {
		for b := range c {
			must[b] = must[b] || mo.Content[b].Block != v.Content[b].Block
		}
	}
	for b, at := range v.Altered {
		must[b] = must[b] || at > mo.At
	}
	for _, b := range slices.Sorted(maps.Keys(must)) {
		i, _ := slices.BinarySearchFunc(said, b, func(s span, b int64) int {
			if s.end <= b {
				return -1
			}
			return 1
		})
		if must[b] && b < size && (i == len(said) || said[i].first > b) {
			return fmt.Errorf("block %d was changed by operation %d and was not said", b, v.Altered[b])
		}
	}
	if v.Replaced > mo.At {
		return nil // everything may be said
	}
	for _, s := range said {
		for b := s.first; b < s.end; b++ {
			if v.Touched[b] <= mo.At && !v.cleared(b, mo.At) {
				return fmt.Errorf("block %d was said, and nothing was done to it since operation %d", b, v.Touched[b])
			}
		}
	}
	return nil
}

// cleared tells whether a block was in a range too large to note each of its
// holes that was cleared after an operation.
func (v *Volume) cleared(b int64, after uint64) bool {
	return slices.ContainsFunc(v.Cleared, func(c cleared) bool { return c.at > after && c.first <= b && b < c.end })
}

// span is a run of blocks; end is past the last.
type span struct{ first, end int64 }

// cleared is a span that an operation cleared.
type cleared struct {
	span
	at uint64
}

// touched notes that a crash left it open which blocks an operation reached.
type touched struct {
	op    BlockOp
	doubt doubt
}

// Apply implements Op.
func (o touched) Apply(s *State, at uint64) {
	v := s.Volumes[o.doubt.volume]
	if v == nil {
		return
	}
	for b := range o.doubt.blocks {
		v.Touched[b] = at
	}
	v.noteCleared(o.op, at)
}

// String implements Op.
func (o touched) String() string { return "what may be left of " + o.op.String() }

// noteCleared notes a clearing that is too large to note each block.
func (v *Volume) noteCleared(o BlockOp, at uint64) {
	if c, ok := o.(Clear); ok {
		if s := c.span(); s.end-s.first > touchMax {
			v.Cleared = append(v.Cleared, cleared{s, at})
		}
	}
}

// never is a moment that no operation reaches.
const never = math.MaxUint64

// SetBase keeps a position with a volume. At is the operation it followed.
type SetBase struct {
	Volume string
	Base   store.LSN
	At     uint64
}

// Apply implements Op.
func (o SetBase) Apply(s *State, at uint64) {
	v := s.Volumes[o.Volume]
	if !v.Tracked {
		v.Sure = at // what was trimmed before was not kept
	}
	v.Tracked, v.Base, v.Sure = true, o.Base, max(v.Sure, o.At)
}

// String implements Op.
func (o SetBase) String() string { return fmt.Sprintf("base of %s: %d", o.Volume, o.Base) }

// ClearBase forgets a volume's base.
type ClearBase struct{ Volume string }

// Apply implements Op.
func (o ClearBase) Apply(s *State, _ uint64) {
	v := s.Volumes[o.Volume]
	v.Tracked, v.Base, v.Sure = false, 0, never
}

// String implements Op.
func (o ClearBase) String() string { return "no base of " + o.Volume }
