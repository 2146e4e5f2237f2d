package store

import (
	"math/bits"
	"slices"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// changedWindow is how many blocks are compared at once.
const changedWindow = 1 << 20

// stretch is a part of a branch's history: the generations in (from, to].
type stretch struct {
	branch   uint32
	from, to uint64
}

// Changed calls emit, in ascending order, with the ranges whose content may
// differ between two snapshots of a volume (to == "" means its head now;
// from == "" means an empty volume). Its cost grows with what changed since
// from, not with the volume. emit returning false ends it.
func (p *Pool) Changed(volume, from, to string, emit func(Range) bool) error {
	old, now, size, err := p.moments(volume, from, to)
	if err != nil {
		return err
	}
	c := &changes{p: p, parts: between(old, now), size: size}
	return c.each(emit)
}

// changes are what Changed and ChangedSince look for.
type changes struct {
	p     *Pool
	parts []stretch
	// trims lists what was trimmed among the blocks in [from, to); nil where holes
	// have entries.
	trims func(from, to uint64) ([]trimmed, error)
	size  int64 // bytes
}

// each finds the blocks that a stretch has entries for or that were trimmed,
// window by window, and emits them. It looks at the map before it looks at the
// trims: an entry that a trim takes out meanwhile is then found there.
func (c *changes) each(emit func(Range) bool) error {
	end := uint64((c.size + block.BlockSize - 1) / block.BlockSize)
	marks := make([]uint64, changedWindow/64)
	runs := &runs{size: c.size, emit: emit}
	for base := uint64(0); base < end; {
		first, err := c.first(base, end)
		if err != nil {
			return err
		}
		if first == end {
			break
		}
		base = first / changedWindow * changedWindow
		to, err := c.mark(base, end, marks)
		switch {
		case err != nil:
			return err
		case to > base: // all trimmed: the map can say nothing more
			if !runs.add(base, to) {
				return nil
			}
			base = to
		default:
			if !runs.addAll(marks, base) {
				return nil
			}
			base += changedWindow
		}
	}
	runs.flush()
	return nil
}

// trimmed lists the trims in [from, to).
func (c *changes) trimmed(from, to uint64) ([]trimmed, error) {
	if c.trims == nil {
		return nil, nil
	}
	return c.trims(from, to)
}

// first returns the first block in [from, end) that changed, or end.
func (c *changes) first(from, end uint64) (uint64, error) {
	first, err := c.p.firstChanged(c.parts, from, end)
	if err != nil {
		return 0, err
	}
	list, err := c.trimmed(from, end)
	if err != nil {
		return 0, err
	}
	if len(list) > 0 {
		first = min(first, list[0].from)
	}
	return first, nil
}

// mark marks what changed in the window at base. If the window is trimmed whole
// it does not, and returns to where whole windows are.
func (c *changes) mark(base, end uint64, marks []uint64) (whole uint64, err error) {
	to := min(base+changedWindow, end)
	list, err := c.trimmed(base, end)
	if err != nil {
		return 0, err
	}
	if len(list) > 0 && list[0].from == base && list[0].to >= to {
		if whole = list[0].to; whole < end {
			whole = whole / changedWindow * changedWindow
		}
		return whole, nil
	}
	if err := c.p.markChanged(c.parts, base, to, marks); err != nil {
		return 0, err
	}
	if list, err = c.trimmed(base, to); err != nil {
		return 0, err
	}
	for _, r := range list {
		for b := r.from; b < r.to; b++ {
			marks[(b-base)/64] |= 1 << ((b - base) % 64)
		}
	}
	return 0, nil
}

// runs joins neighbouring blocks into ranges.
type runs struct {
	size int64
	run  Range
	emit func(Range) bool
}

// addAll takes the marked blocks of the window at base, in order. It reports
// whether the receiver wants more.
func (r *runs) addAll(marks []uint64, base uint64) bool {
	for i, word := range marks {
		for ; word != 0; word &= word - 1 {
			b := base + uint64(i*64+bits.TrailingZeros64(word))
			if !r.add(b, b+1) {
				return false
			}
		}
	}
	return true
}

// add takes the blocks in [from, to). It reports whether the receiver wants more.
func (r *runs) add(from, to uint64) bool {
	off, n := int64(from)*block.BlockSize, int64(to-from)*block.BlockSize
	if r.run.Length > 0 && r.run.Offset+r.run.Length == off {
		r.run.Length += n
		return true
	}
	if !r.flush() {
		return false
	}
	r.run = Range{Offset: off, Length: n}
	return true
}

// flush emits what was joined, cut at the volume's end.
func (r *runs) flush() bool {
	if r.run.Length == 0 {
		return true
	}
	out := r.run
	out.Length = min(out.Length, r.size-out.Offset)
	r.run = Range{}
	return r.emit(out)
}

// moments resolves what is compared, and the greater size of the two.
func (p *Pool) moments(volume, from, to string) (old, now *view, size int64, err error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, err := p.cat.findVolume(volume)
	if err != nil {
		return nil, nil, 0, err
	}
	resolve := func(name string, other *view) (*view, error) {
		if name == "" {
			return other, nil
		}
		s, err := v.findSnapshot(name)
		if err != nil {
			return nil, err
		}
		size = max(size, s.size)
		return viewOf(s.branch, s.pin.lsn), nil
	}
	if old, err = resolve(from, &view{}); err != nil {
		return nil, nil, 0, err
	}
	if to == "" {
		size = max(size, v.size.Load())
	}
	now, err = resolve(to, v.view.Load())
	return old, now, size, err
}

// between returns the stretches of history that two views do not share, the
// oldest of b's first: what a write to its head takes out of an older one
// meanwhile is then found in the head.
func between(a, b *view) (out []stretch) {
	at := map[uint32]uint64{}
	for _, l := range a.links {
		at[l.branch] = l.lsn
	}
	common := map[uint32]bool{}
	for _, l := range slices.Backward(b.links) {
		other, ok := at[l.branch]
		if !ok {
			out = append(out, stretch{l.branch, 0, l.lsn})
			continue
		}
		common[l.branch] = true
		if lo, hi := min(l.lsn, other), max(l.lsn, other); lo != hi {
			out = append(out, stretch{l.branch, lo, hi})
		}
	}
	for _, l := range a.links {
		if !common[l.branch] {
			out = append(out, stretch{l.branch, 0, l.lsn})
		}
	}
	return out
}

// firstChanged returns the first block in [from, end) that a stretch has
// entries for, or end.
func (p *Pool) firstChanged(parts []stretch, from, end uint64) (uint64, error) {
	first := end
	for _, s := range parts {
		if err := p.scanStretch(s, from, first, func(lba uint64) bool { first = lba; return false }); err != nil {
			return 0, err
		}
	}
	return first, nil
}

// markChanged marks the blocks of a window that a stretch has entries for.
func (p *Pool) markChanged(parts []stretch, base, end uint64, marks []uint64) error {
	clear(marks)
	for _, s := range parts {
		err := p.scanStretch(s, base, end, func(lba uint64) bool {
			marks[(lba-base)/64] |= 1 << ((lba - base) % 64)
			return true
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// scanStretch calls fn with the blocks in [from, to) that a stretch has entries
// for.
func (p *Pool) scanStretch(s stretch, from, to uint64, fn func(lba uint64) bool) error {
	err := p.tree.Scan(maptree.Key{Branch: s.branch, LBA: from, Gen: format.GenMax}, maptree.Key{Branch: s.branch, LBA: to, Gen: format.GenMax}, s.from, func(e maptree.Entry) bool {
		return e.Gen > s.to || fn(e.LBA)
	})
	return fault.Wrap(fault.KindOf(err), p.noteNode(err), "listing changes")
}
