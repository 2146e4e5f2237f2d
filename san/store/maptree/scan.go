package maptree

// Scan calls fn, in ascending order, with the entries in [from, to) whose
// generation is greater than minGen. Subtrees without any are not read. No lock
// is held while fn runs; entries put or deleted meanwhile may or may not be
// seen. fn returning false ends it.
func (t *Tree) Scan(from, to Key, minGen uint64, fn func(Entry) bool) error {
	k, end := pack(from), pack(to)
	first := k // where to look from: k, or the start of its block
	var seen packed
	buf := make([]Entry, 0, leafMax)
	for {
		t.mu.RLock()
		var next packed
		var last bool
		var miss missing
		buf, next, last, miss = t.scanFrom(first, k, end, minGen, buf[:0])
		t.mu.RUnlock()
		if miss.addr != 0 {
			if err := t.load(miss); err != nil {
				return err
			}
			continue
		}
		for _, e := range buf {
			if !fn(e) {
				return nil
			}
			seen = pack(e.Key)
		}
		if last || !next.less(end) {
			return nil
		}
		k, first = next, next
		if !seen.sameBlock(k) {
			// A newer entry that has taken the place of the one at k since the lock
			// was given back stands before it, in the leaf that was read.
			first = k.newest()
		}
	}
}

// scanFrom gathers from first on, and, as long as there is nothing, up to the
// leaf that covers k, which is of the same block.
func (t *Tree) scanFrom(first, k, end packed, minGen uint64, buf []Entry) (_ []Entry, next packed, last bool, miss missing) {
	for {
		buf, next, last, miss = t.scanLeaf(first, end, minGen, buf)
		if last || miss.addr != 0 || len(buf) > 0 || k.less(next) {
			return buf, next, last, miss
		}
		first = next
	}
}

// scanLeaf gathers from the leaf that covers k, or skips what has nothing newer
// than minGen. next is where to go on.
func (t *Tree) scanLeaf(k, end packed, minGen uint64, buf []Entry) (_ []Entry, next packed, last bool, miss missing) {
	if t.root == 0 {
		return buf, k, true, missing{}
	}
	last = true
	a, sum := t.root, t.rootSum
	for {
		s, ok := t.resident(a)
		if !ok {
			return buf, k, false, missing{a, sum}
		}
		n := t.node(s)
		if n.level() == 0 {
			for i := n.search(k); i < n.count(); i++ {
				w := n.word(i)
				if !w.less(end) {
					return buf, w, true, missing{}
				}
				if ^w.lo&genMask > minGen {
					buf = append(buf, n.entry(i))
				}
			}
			return buf, next, last, missing{}
		}
		i := n.child(k)
		for n.maxGen(i) <= minGen {
			i++
			if i == n.count() {
				return buf, next, last, missing{}
			}
		}
		if i+1 < n.count() {
			next, last = n.word(i+1), false
		}
		a, sum = n.addr(i), n.sum(i)
	}
}
