package mirror

import (
	"math"
	"slices"
)

// span is a run of blocks of one volume. A span of no blocks is all of every
// volume.
type span struct {
	volume       uint32
	block, count uint64
}

// beside is no block of a volume: who holds it waits for barriers, and they for it.
var beside = span{volume: math.MaxUint32, count: 1}

func (s span) overlaps(o span) bool {
	if s.count == 0 || o.count == 0 {
		return true
	}
	return s.volume == o.volume && s.block < o.block+o.count && o.block < s.block+s.count
}

// locks orders operations by the blocks they touch: those that overlap, and are
// not both shared, go one after the other in the order they came. Nobody
// overtakes, so nobody starves. A claim and its end each look at all claims once.
type locks struct {
	list  []hold   // in order of arrival
	ready []uint64 // free to go, not told yet
}

// hold is one operation's claim.
type hold struct {
	id     uint64
	span   span
	shared bool
	waits  int // earlier claims that are in its way
}

func (h *hold) conflicts(o *hold) bool {
	return !(h.shared && o.shared) && h.span.overlaps(o.span)
}

// claim asks for a span.
func (l *locks) claim(id uint64, s span, shared bool) {
	h := hold{id: id, span: s, shared: shared}
	for i := range l.list {
		if l.list[i].conflicts(&h) {
			h.waits++
		}
	}
	l.list = append(l.list, h)
	if h.waits == 0 {
		l.ready = append(l.ready, id)
	}
}

// drop ends a claim, granted or not.
func (l *locks) drop(id uint64) {
	i := slices.IndexFunc(l.list, func(h hold) bool { return h.id == id })
	if i < 0 {
		return
	}
	gone := l.list[i]
	l.list = slices.Delete(l.list, i, i+1)
	for k := i; k < len(l.list); k++ {
		h := &l.list[k]
		if !h.conflicts(&gone) {
			continue
		}
		if h.waits--; h.waits == 0 {
			l.ready = append(l.ready, h.id)
		}
	}
}

// grant returns the claims that became free to go, in order. Some may have been
// dropped since.
func (l *locks) grant() (ids []uint64) {
	ids, l.ready = l.ready, nil
	return ids
}
