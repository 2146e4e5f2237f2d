package store

import (
	"cmp"
	"slices"

	"steadfast/san/store/format"
)

// trims are the parts of a volume that were trimmed, as far as they are known. A
// trim takes entries out of the map, and what is not there has no generation: so
// the map alone cannot tell that a block was trimmed. They are kept while the
// volume has a base, for what came after it. They change as the log is applied,
// and so replaying it makes them again. Under Pool.mu.
type trims struct {
	tracked bool   // the volume has a base
	base    uint64 // what a resync will ask from
	// floor is the generation of the newest trim that is not listed. Of moments
	// before it nobody can say what was trimmed since.
	floor uint64
	list  []trimmed // ascending, none overlapping another
}

// trimmed is a range of blocks, the last of which was trimmed by gen.
type trimmed struct {
	from, to uint64 // blocks; to is past the end
	gen      uint64
}

// note enters a range that was trimmed by gen, which is newer than all before.
func (t *trims) note(from, to, gen uint64) {
	if !t.tracked {
		t.floor = gen
		return
	}
	i, _ := slices.BinarySearchFunc(t.list, from, func(r trimmed, b uint64) int {
		if r.to <= b {
			return -1
		}
		return 1
	})
	// What it covers of older ranges is now as new as it is; of the first and the
	// last one, a rest may stay.
	put, j := []trimmed{{from, to, gen}}, i
	for ; j < len(t.list) && t.list[j].from < to; j++ {
		old := t.list[j]
		if old.from < from {
			put = slices.Insert(put, 0, trimmed{old.from, from, old.gen})
		}
		if old.to > to {
			put = append(put, trimmed{to, old.to, old.gen})
		}
	}
	t.list = slices.Replace(t.list, i, j, put...)
	for len(t.list) > format.TrimsMax {
		t.joinClosest()
	}
}

// joinClosest makes one range of the two with the fewest blocks between them,
// the oldest of such pairs. What lies between counts as trimmed: that says too
// much, which costs copying, and never too little.
func (t *trims) joinClosest() {
	best := 0
	measure := func(i int) (gap, age uint64) {
		a, b := t.list[i], t.list[i+1]
		return b.from - a.to, max(a.gen, b.gen)
	}
	for i := 1; i+1 < len(t.list); i++ {
		gap, age := measure(i)
		least, oldest := measure(best)
		if cmp.Or(cmp.Compare(gap, least), cmp.Compare(age, oldest)) < 0 {
			best = i
		}
	}
	a, b := t.list[best], t.list[best+1]
	t.list = slices.Replace(t.list, best, best+2, trimmed{a.from, b.to, max(a.gen, b.gen)})
}

// setBase begins tracking, or goes on with it from another base. What is not
// newer than that is forgotten.
func (t *trims) setBase(base uint64) {
	t.tracked, t.base = true, base
	t.forget(base)
}

// clearBase ends tracking.
func (t *trims) clearBase() {
	t.forget(format.GenMax)
	*t = trims{floor: t.floor}
}

// forget drops what is not newer than gen. The floor becomes what was dropped,
// not gen: of moments before gen all is known if nothing was trimmed since.
func (t *trims) forget(gen uint64) {
	t.list = slices.DeleteFunc(t.list, func(r trimmed) bool {
		if r.gen <= gen {
			t.floor = max(t.floor, r.gen)
		}
		return r.gen <= gen
	})
}

// since returns the ranges of blocks in [from, to) that were trimmed after a
// generation, ascending, with gaps between them.
func (t *trims) since(gen, from, to uint64) (out []trimmed) {
	for _, r := range t.list {
		r.from, r.to = max(r.from, from), min(r.to, to)
		if r.gen <= gen || r.from >= r.to {
			continue
		}
		if n := len(out); n > 0 && out[n-1].to == r.from {
			out[n-1].to = r.to
			continue
		}
		out = append(out, r)
	}
	return out
}

// trimmed notes that blocks of b's head were made holes.
func (b *branch) trimmed(from, to, gen uint64) {
	if b.head != nil {
		b.head.trims.note(from, to, gen)
	}
}

// format returns the ranges as a checkpoint holds them.
func (t *trims) format() format.Trims {
	out := format.Trims{Tracked: t.tracked, Base: t.base, Floor: t.floor}
	for _, r := range t.list {
		out.Ranges = append(out.Ranges, format.TrimRange{LBA: r.from, N: r.to - r.from, Gen: r.gen})
	}
	return out
}

// decodeTrims is the inverse of format. The decoder has seen that the ranges are
// in order.
func decodeTrims(in format.Trims) trims {
	t := trims{tracked: in.Tracked, base: in.Base, floor: in.Floor}
	for _, r := range in.Ranges {
		t.list = append(t.list, trimmed{r.LBA, r.LBA + r.N, r.Gen})
	}
	return t
}
