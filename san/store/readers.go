package store

import (
	"cmp"
	"slices"

	"steadfast/internal/invariant"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// Who reads an entry. A branch's own readers are its head and the pins that a
// snapshot is of: they read all that lay in the branch at their moment. A pin
// that is a fork only reads for the branches that stand on it, and so not the
// blocks for which all their readers find entries of their own:
//
//	snapshot   fork
//	   v        v
//	---+--------+------    parent: an entry hidden from the child's oldest
//	            |          reader is not read at the fork
//	            +--+---->  child
//
// An entry that nobody reads is taken out at once, by whatever hid it or made
// its last reader go. It always is one of these: the first entry of a block in a
// child (applier.set), or a job at that block (applier.sweep). Then the child's
// readers do not look below it any more, and so on downwards (applier.unread).

// readers is who reads an entry within its branch, up to two of them, and the
// count that the first one's exclusive blocks are in.
type readers struct {
	n     int
	count *int64
}

func (r *readers) add(count *int64) {
	if r.n++; r.n == 1 {
		r.count = count
	}
}

// isFork tells whether a pin reads only for the branches that stand on it.
func (p *pin) isFork() bool { return p.snapshot == nil && !p.dying }

// reads tells whether a pin reads what lay in b at its moment, whoever stands
// on it: it is a snapshot's, or was, and the job has not reached the block.
func (b *branch) reads(p *pin, lba uint64) bool {
	if p.dying {
		return b.job == nil || b.job.pin != p || lba >= b.job.Cursor
	}
	return p.snapshot != nil
}

// headReads tells whether a head reads the newest entry of a block.
func (b *branch) headReads(lba uint64) bool {
	return b.head != nil || b.leaving && (b.job == nil || !b.job.Head || lba >= b.job.Cursor)
}

// standsOnFork tells whether b stands on what is read, at a block, only for
// those that stand on it.
func (b *branch) standsOnFork(lba uint64) bool {
	return b.parent != nil && !b.parent.reads(b.fork, lba)
}

// readers returns who reads an entry of block lba of generation gen whose next
// newer one is of generation next.
func (a *applier) readers(b *branch, lba, gen, next uint64) (r readers, err error) {
	i, _ := slices.BinarySearchFunc(b.pins, gen, func(p *pin, g uint64) int { return cmp.Compare(p.lsn, g) })
	for ; i < len(b.pins) && b.pins[i].lsn < next && r.n < 2; i++ {
		p := b.pins[i]
		reads := b.reads(p, lba)
		if !reads {
			if reads, err = a.passes(p, lba); err != nil {
				return r, err
			}
		}
		if reads {
			r.add(&p.exclusive)
		}
	}
	if next == gone && r.n < 2 && b.headReads(lba) {
		r.add(&b.exclusive)
	}
	return r, nil
}

// passes tells whether a branch that stands on a pin has a reader that looks
// for a block below it.
func (a *applier) passes(p *pin, lba uint64) (bool, error) {
	for _, c := range p.children {
		if looks, err := a.looksBelow(c, lba); err != nil || looks {
			return looks, err
		}
	}
	return false, nil
}

// looksBelow tells whether b has a reader that finds no entry of b for a block.
// What is hidden from one reader is hidden from all later ones.
func (a *applier) looksBelow(b *branch, lba uint64) (bool, error) {
	for _, p := range b.pins {
		reads := b.reads(p, lba)
		if !reads && len(p.children) == 0 {
			continue
		}
		if _, found, err := a.tx.Lookup(b.id, lba, p.lsn); err != nil || found || reads {
			return !found, err
		}
		if looks, err := a.passes(p, lba); err != nil || looks {
			return looks, err
		}
	}
	if !b.headReads(lba) {
		return false, nil
	}
	_, found, err := a.tx.Lookup(b.id, lba, format.GenMax)
	return !found, err
}

// unread follows the change that no reader of b looks below b for a block any
// more: in the branch that b stands on, and where that has no entry, in the one
// below, an entry has lost a reader.
func (a *applier) unread(b *branch, lba uint64) error {
	for b.standsOnFork(lba) {
		if others, err := a.passes(b.fork, lba); err != nil || others {
			return err
		}
		e, ok, err := a.tx.Lookup(b.parent.id, lba, b.fork.lsn)
		if err != nil {
			return err
		}
		if ok {
			return a.lose(b.parent, b.fork, e)
		}
		b = b.parent
		if looks, err := a.looksBelow(b, lba); err != nil || looks {
			return err
		}
	}
	return nil
}

// lose takes a fork, which reads e no more, from the readers of e.
func (a *applier) lose(b *branch, fork *pin, e maptree.Entry) error {
	next, err := a.successor(e)
	if err != nil {
		return err
	}
	after, err := a.readers(b, e.LBA, e.Gen, next)
	if err != nil {
		return err
	}
	if after.n == 0 {
		if err := a.drop(e); err != nil {
			return err
		}
	}
	recount(e, readers{n: after.n + 1, count: &fork.exclusive}, after)
	if after.n > 0 {
		return nil
	}
	if err := a.uncover(b, e.LBA); err != nil {
		return err
	}
	return a.settle(b)
}

// recount moves an entry between the counts of exclusive blocks.
func recount(e maptree.Entry, before, after readers) {
	if kindOf(e) != format.KindData {
		return
	}
	if before.n == 1 {
		*before.count--
	}
	if after.n == 1 {
		*after.count++
	}
}

// drop takes an entry that nobody reads out of the map.
func (a *applier) drop(e maptree.Entry) error {
	a.p.dropped.Add(1)
	if _, err := a.tx.Delete(e.Key); err != nil {
		return err
	}
	return a.release(e)
}

// uncover follows the loss of entries of a block in b: holes that hid them, in
// b or where branches stand on it, may have nothing left to hide. What a
// snapshot reads has not changed.
func (a *applier) uncover(b *branch, lba uint64) error {
	if err := a.dropIdle(b, lba); err != nil {
		return err
	}
	for _, p := range b.pins {
		if b.reads(p, lba) {
			continue
		}
		for _, c := range slices.Clone(p.children) { // settling one may change them
			if err := a.uncover(c, lba); err != nil {
				return err
			}
			if err := a.settle(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropIdle takes holes with nothing beneath them out of the map: they hide
// nothing.
func (a *applier) dropIdle(b *branch, lba uint64) error {
	entries, err := a.entriesOf(b.id, lba)
	if err != nil {
		return err
	}
	for _, e := range slices.Backward(entries) {
		if kindOf(e) != format.KindHole {
			return nil
		}
		if hides, err := a.visibleBelow(b, lba); err != nil || hides {
			return err
		}
		if _, err := a.tx.Delete(e.Key); err != nil {
			return err
		}
	}
	return nil
}

// settle forgets a branch of which nothing is left, or that only leads from
// others to where it forked.
func (a *applier) settle(b *branch) error {
	busy := slices.ContainsFunc(b.pins, func(p *pin) bool { return !p.isFork() })
	switch {
	case b.head != nil || b.leaving || busy:
		return nil
	case len(b.pins) == 0:
		return a.dropBranch(b)
	case b.entries == 0:
		return a.splice(b)
	}
	return nil
}

// dropBranch forgets a branch of which nothing is left, and lets go of where
// it forked. What a fork read for it alone has gone with its readers.
func (a *applier) dropBranch(b *branch) error {
	invariant.Check(b.head == nil && len(b.pins) == 0 && b.entries == 0, "store: branch %d is dropped with %d entries and %d pins", b.id, b.entries, len(b.pins))
	delete(a.p.cat.branches, b.id)
	if b.parent == nil {
		return nil
	}
	b.fork.removeChild(b)
	if !b.fork.isFork() || len(b.fork.children) > 0 {
		return nil
	}
	b.parent.removePin(b.fork)
	return a.settle(b.parent)
}

// splice takes a branch that only forks read, and that has no entries, out of
// the line: otherwise each rollback would make lookups longer for ever. Nothing
// in the log asks for it: records name branches that have a head or a snapshot,
// and it will never have one again. What still looks for it in the map finds
// nothing there.
func (a *applier) splice(b *branch) error {
	e, ok, err := a.tx.Ceil(maptree.Key{Branch: b.id, Gen: format.GenMax})
	if err != nil || ok && e.Branch == b.id { // holes
		return err
	}
	delete(a.p.cat.branches, b.id)
	if b.fork != nil {
		b.fork.removeChild(b)
	}
	for _, p := range b.pins {
		for _, c := range p.children {
			c.stand(b.parent, b.parentLSN)
		}
	}
	for _, v := range a.p.cat.volumes {
		if v.view.Load().leads(b) {
			v.setHead(v.branch)
		}
	}
	return nil
}
