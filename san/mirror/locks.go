package mirror

// span is a run of blocks of one volume. A span of no blocks is all of every
// volume.
type span struct {
	volume       uint32
	block, count uint64
}

func (s span) overlaps(o span) bool {
	if s.count == 0 || o.count == 0 {
		return true
	}
	return s.volume == o.volume && s.block < o.block+o.count && o.block < s.block+s.count
}

// locks orders operations by the blocks they touch: those that overlap, and are
// not both shared, go one after the other in the order they came. Nobody
// overtakes, so nobody starves.
type locks struct {
	list []hold // in order of arrival
}

// hold is one operation's claim.
type hold struct {
	id      uint64
	span    span
	shared  bool
	granted bool
}

// claim asks for a span.
func (l *locks) claim(id uint64, s span, shared bool) {
	l.list = append(l.list, hold{id: id, span: s, shared: shared})
}

// drop ends a claim, granted or not.
func (l *locks) drop(id uint64) {
	for i := range l.list {
		if l.list[i].id == id {
			l.list = append(l.list[:i], l.list[i+1:]...)
			return
		}
	}
}

// grant returns the claims that became free to go, in order.
func (l *locks) grant() (ids []uint64) {
	for i := range l.list {
		h := &l.list[i]
		if h.granted {
			continue
		}
		free := true
		for j := 0; j < i && free; j++ {
			o := &l.list[j]
			free = o.shared && h.shared || !o.span.overlaps(h.span)
		}
		if free {
			h.granted = true
			ids = append(ids, h.id)
		}
	}
	return ids
}
