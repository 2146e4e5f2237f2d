package maptree

import (
	"encoding/binary"

	"steadfast/internal/bufpool"
	"steadfast/internal/invariant"
)

// Tx is the exclusive right to change the tree, for the time of one Mutate.
type Tx struct{ t *Tree }

// Mutate runs fn alone with the tree. The nodes on the way to the prefetch keys
// are read before, with no lock held; what fn needs beyond them it reads while
// everyone waits. If fn returns an error, the changes it made stand: fn must
// check before it changes.
func (t *Tree) Mutate(prefetch []Key, fn func(tx *Tx) error) error {
	for i, k := range prefetch {
		if i > 0 && k.Branch == prefetch[i-1].Branch && k.LBA == prefetch[i-1].LBA+1 {
			continue // most likely in the leaf just read; if not, fn reads it
		}
		if _, _, err := t.Lookup(k.Branch, k.LBA, k.Gen); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.check()
	return fn(&Tx{t})
}

// read brings a missing node in while the lock is held.
func (tx *Tx) read(m missing) error {
	p := bufpool.Get(NodeSize)
	defer bufpool.Put(p)
	if err := tx.t.fetch(m, p); err != nil {
		return err
	}
	tx.t.install(m.addr, p)
	return nil
}

// Lookup returns the newest entry of a block with a generation up to maxGen.
func (tx *Tx) Lookup(branch uint32, lba, maxGen uint64) (Entry, bool, error) {
	return tx.ceil(pack(Key{branch, lba, maxGen}), true)
}

// Ceil returns the first entry at or after k.
func (tx *Tx) Ceil(k Key) (Entry, bool, error) { return tx.ceil(pack(k), false) }

func (tx *Tx) ceil(k packed, block bool) (Entry, bool, error) {
	for {
		e, ok, miss := tx.t.ceil(k, block)
		if miss.addr == 0 {
			return e, ok, nil
		}
		if err := tx.read(miss); err != nil {
			return Entry{}, false, err
		}
	}
}

// step is one node on the way down and which child was taken.
type step struct {
	slot uint32
	i    int
}

// path walks down to the leaf that covers k and makes every node on it
// changeable. The last step is the leaf, with the place of k.
func (tx *Tx) path(k packed, steps []step) ([]step, error) {
	t := tx.t
	// First bring everything in, so that an error leaves the tree unchanged.
	for {
		n, _, _, miss := t.leaf(k)
		if n != nil {
			break
		}
		if err := tx.read(miss); err != nil {
			return nil, err
		}
	}
	steps = steps[:0]
	a := t.root
	for {
		s, ok := t.resident(a)
		invariant.Check(ok, "maptree: node %#x left memory under the lock", uint64(a))
		s = t.own(s, steps)
		n := t.node(s)
		if n.level() == 0 {
			return append(steps, step{s, n.search(k)}), nil
		}
		i := n.child(k)
		steps = append(steps, step{s, i})
		a = n.addr(i)
	}
}

// own makes the node in slot s, whose parent is the last of steps, changeable:
// one that lies on a drive will get a new place, one that a checkpoint is
// writing is copied. It returns the slot of the changeable node.
func (t *Tree) own(s uint32, steps []step) uint32 {
	switch sl := t.slots[s]; sl.state {
	case slotDirty:
		return s
	case slotClean:
		delete(t.index, sl.addr)
		t.pager.FreeNode(sl.addr)
		sl.addr, sl.state = 0, slotDirty
		t.dirty++
	case slotFrozen:
		c := t.take()
		copy(t.data[c], t.data[s])
		sl.superseded = true
		t.slots[c].addr, t.slots[c].state = 0, slotDirty
		t.dirty++
		s = c
	case slotFree:
		invariant.Check(false, "maptree: slot %d is free but in the tree", s)
	}
	t.point(steps, s)
	return s
}

// point makes the last of steps (or the root) refer to the node in slot s.
func (t *Tree) point(steps []step, s uint32) {
	a := tempBit | Addr(s)
	if len(steps) == 0 {
		t.root, t.rootSum = a, 0
		return
	}
	p := steps[len(steps)-1]
	t.node(p.slot).setAddr(p.i, a, 0)
}

// fresh returns a new, empty, changeable node.
func (t *Tree) fresh(level uint8) uint32 {
	s := t.take()
	t.slots[s].addr, t.slots[s].state = 0, slotDirty
	t.dirty++
	t.nodes++
	format(t.node(s), level)
	return s
}

// forget takes a changeable node out of the tree.
func (t *Tree) forget(s uint32) {
	t.dirty--
	t.nodes--
	t.drop(s)
}

// Put inserts e, or overwrites the entry with the same key.
func (tx *Tx) Put(e Entry) error {
	t, k := tx.t, pack(e.Key)
	if t.root == 0 {
		s := t.fresh(0)
		t.level = 0
		t.point(nil, s)
	}
	var buf [levelsMax]step
	steps, err := tx.path(k, buf[:0])
	if err != nil {
		return err
	}
	t.announce(steps, k, e.Gen)
	at := steps[len(steps)-1]
	n := t.node(at.slot)
	if at.i < n.count() && n.word(at.i) == k {
		fillLeaf(n.at(at.i), e)
		return nil
	}
	if n.full() {
		steps = t.split(steps, e.Gen)
		at = steps[len(steps)-1]
		n = t.node(at.slot)
	}
	fillLeaf(n.insert(at.i, k), e)
	t.entries++
	return nil
}

// announce tells the inner nodes on the way to a leaf what is about to be put
// there: its generation, and its key where that is before all they know of.
// First keys are thus true lower bounds, which splits and merges rely on.
func (t *Tree) announce(steps []step, k packed, gen uint64) {
	for _, p := range steps[:len(steps)-1] {
		n := t.node(p.slot)
		if n.maxGen(p.i) < gen {
			n.setMaxGen(p.i, gen)
		}
		if p.i == 0 && k.less(n.word(0)) {
			n.setWord(0, k)
		}
	}
}

// Swap puts e, a newer entry of old's block, in old's place. old must exist and
// be the block's newest. It is Put and Delete in one, for the price of one when
// both belong in the same leaf.
func (tx *Tx) Swap(old Key, e Entry) error {
	t, k, o := tx.t, pack(e.Key), pack(old)
	var buf [levelsMax]step
	steps, err := tx.path(k, buf[:0])
	if err != nil {
		return err
	}
	at := steps[len(steps)-1]
	n := t.node(at.slot)
	if at.i >= n.count() || n.word(at.i) != o {
		if err := tx.Put(e); err != nil {
			return err
		}
		_, err := tx.Delete(old)
		return err
	}
	// The new key sorts just before the old one, so the order stands.
	t.announce(steps, k, e.Gen)
	n.setWord(at.i, k)
	fillLeaf(n.at(at.i), e)
	return nil
}

func fillLeaf(b []byte, e Entry) {
	binary.BigEndian.PutUint64(b[16:], e.Ref)
	binary.BigEndian.PutUint64(b[24:], e.Sum)
}

// split makes room in the full node at the end of steps (and, if need be, above
// it) and returns the path to the half where the insertion belongs. A node that
// grows at its end keeps nearly all it has: what is written in order fills
// nodes whole. gen is the generation of what will be inserted.
func (t *Tree) split(steps []step, gen uint64) []step {
	d := len(steps) - 1
	if d == 0 {
		// A new root above.
		old := steps[0]
		s := t.fresh(t.node(old.slot).level() + 1)
		n := t.node(s)
		b := n.insert(0, t.node(old.slot).word(0))
		clear(b[16:])
		n.setAddr(0, tempBit|Addr(old.slot), 0)
		n.setMaxGen(0, t.node(old.slot).greatestGen())
		t.level++
		t.point(nil, s)
		steps = append([]step{{s, 0}}, old)
		d = 1
	} else if t.node(steps[d-1].slot).full() {
		steps = append(t.split(steps[:d], gen), steps[d])
		d = len(steps) - 1
	}
	left, i := steps[d].slot, steps[d].i
	n := t.node(left)
	c := n.count()
	cut := c / 2
	if i == c || n.level() > 0 && i == c-1 {
		cut = c - 1
	}
	right := t.fresh(n.level())
	n = t.node(left)
	r, size := t.node(right), n.size()
	copy(r[headerSize:], n[headerSize+cut*size:headerSize+c*size])
	r.setCount(c - cut)
	clear(n[headerSize+cut*size : headerSize+c*size])
	n.setCount(cut)

	up := steps[d-1]
	p := t.node(up.slot)
	b := p.insert(up.i+1, r.word(0))
	clear(b[16:])
	p.setAddr(up.i+1, tempBit|Addr(right), 0)
	p.setMaxGen(up.i+1, r.greatestGen())
	p.setMaxGen(up.i, n.greatestGen())
	// An entry at the cut belongs to the left: it is before the right's first
	// key. A child at the cut is the right's first.
	if i > cut || i == cut && n.level() > 0 {
		steps[d-1].i++
		steps[d] = step{right, i - cut}
	}
	half := steps[d-1].i
	p.setMaxGen(half, max(p.maxGen(half), gen))
	return steps
}

// Delete removes the entry with key k and reports whether there was one.
func (tx *Tx) Delete(k Key) (bool, error) {
	t, w := tx.t, pack(k)
	if t.root == 0 {
		return false, nil
	}
	if e, ok, err := tx.ceil(w, false); err != nil || !ok || e.Key != k {
		return false, err
	}
	var buf [levelsMax]step
	steps, err := tx.path(w, buf[:0])
	if err != nil {
		return false, err
	}
	at := steps[len(steps)-1]
	n := t.node(at.slot)
	if at.i >= n.count() || n.word(at.i) != w {
		return false, nil
	}
	n.remove(at.i)
	t.entries--
	return true, tx.shrink(steps)
}

// shrink takes empty nodes out of the tree, merges a nearly empty one with its
// neighbour, and lowers a root with one child.
func (tx *Tx) shrink(steps []step) error {
	t := tx.t
	for d := len(steps) - 1; d > 0; d-- {
		n := t.node(steps[d].slot)
		up := steps[d-1]
		if n.count() == 0 {
			t.forget(steps[d].slot)
			t.node(up.slot).remove(up.i)
			continue
		}
		if n.count() < n.max()/4 {
			if err := tx.merge(up, steps[d].slot); err != nil {
				return err
			}
		}
		if t.node(up.slot).count() >= innerMax/4 {
			break
		}
	}
	return tx.lower()
}

// lower drops roots that only pass on to one child, and an empty root.
func (tx *Tx) lower() error {
	t := tx.t
	for {
		s, ok := t.resident(t.root)
		if !ok {
			return nil
		}
		n := t.node(s)
		if t.slots[s].state != slotDirty {
			return nil
		}
		if n.count() == 0 {
			t.forget(s)
			t.root, t.rootSum, t.level = 0, 0, 0
			return nil
		}
		if n.level() == 0 || n.count() > 1 {
			return nil
		}
		t.root, t.rootSum = n.addr(0), n.sum(0)
		t.level--
		t.forget(s)
	}
}

// merge joins the child at up with its right or left neighbour when both fit
// into one node with room to spare.
func (tx *Tx) merge(up step, child uint32) error {
	t := tx.t
	p := t.node(up.slot)
	li := up.i
	if li+1 == p.count() {
		li--
	}
	if li < 0 {
		return nil
	}
	other := li
	if li == up.i {
		other = li + 1
	}
	a := p.addr(other)
	s, ok := t.resident(a)
	if !ok {
		if err := tx.read(missing{a, p.sum(other)}); err != nil {
			return nil //nolint:nilerr // merging is a kindness: an unreadable neighbour stays where it is
		}
		s, _ = t.resident(a)
	}
	if t.node(s).count()+t.node(child).count() > t.node(child).max()*3/4 {
		return nil
	}
	s = t.own(s, []step{{up.slot, other}})
	left, right := child, s
	if other < up.i {
		left, right = s, child
	}
	l, r := t.node(left), t.node(right)
	size := l.size()
	copy(l[headerSize+l.count()*size:], r[headerSize:headerSize+r.count()*size])
	l.setCount(l.count() + r.count())
	p.setMaxGen(li, max(p.maxGen(li), p.maxGen(li+1)))
	p.remove(li + 1)
	t.forget(right)
	return nil
}

// Touch makes the node of a level that covers key move at the next checkpoint,
// if it still lies at a; for emptying a place. It reports whether it did.
func (t *Tree) Touch(level uint8, key Key, a Addr) (bool, error) {
	k := pack(key)
	now, err := t.NodeAddr(level, key)
	if err != nil || now != a {
		return false, err
	}
	touched := false
	err = t.Mutate(nil, func(tx *Tx) error {
		var steps []step
		at := t.root
		if t.level < level || at == 0 {
			return nil
		}
		sum := t.rootSum
		for {
			s, ok := t.resident(at)
			if !ok {
				if err := tx.read(missing{at, sum}); err != nil {
					return err
				}
				s, _ = t.resident(at)
			}
			// Parents of a node that moves change too: that is inherent.
			s = t.own(s, steps)
			n := t.node(s)
			if n.level() == level {
				touched = true
				return nil
			}
			i := n.child(k)
			steps = append(steps, step{s, i})
			at, sum = n.addr(i), n.sum(i)
		}
	})
	return touched, err
}
