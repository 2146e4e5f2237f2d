package store

import (
	"slices"

	"steadfast/internal/invariant"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// applier enters log records into the map and keeps the counts that follow
// from them. It is the same in service and in recovery: what the log says has
// one meaning.
type applier struct {
	p  *Pool
	tx *maptree.Tx
}

func kindOf(e maptree.Entry) format.Kind { return format.Ref(e.Ref).Kind() }

// visibleBelow tells whether a block that b itself has no entry for holds data
// in the branches it stands on.
func (a *applier) visibleBelow(b *branch, lba uint64) (bool, error) {
	for b.parent != nil {
		lsn := b.parentLSN
		b = b.parent
		e, ok, err := a.tx.Lookup(b.id, lba, lsn)
		if err != nil || ok {
			return ok && kindOf(e) != format.KindHole, err
		}
	}
	return false, nil
}

// set makes the head of b read as ref at lba from generation gen on. ref is
// data, shared or a hole. Blocks no pin needs any more are released.
func (a *applier) set(b *branch, lba, gen uint64, ref format.Ref, sum uint64) error {
	old, ok, err := a.tx.Lookup(b.id, lba, format.GenMax)
	if err != nil {
		return err
	}
	visible := ok && kindOf(old) != format.KindHole
	if !ok {
		if visible, err = a.visibleBelow(b, lba); err != nil {
			return err
		}
	}
	hole := ref.Kind() == format.KindHole
	if hole && !visible {
		return nil
	}
	var before, after readers // of the old entry
	if ok {
		if before, err = a.readers(b, lba, old.Gen, gone); err != nil {
			return err
		}
		if after, err = a.readers(b, lba, old.Gen, gen); err != nil {
			return err
		}
	}
	replaced := ok && after.n == 0
	entry := maptree.Entry{Key: maptree.Key{Branch: b.id, LBA: lba, Gen: gen}, Ref: uint64(ref), Sum: sum}
	switch {
	case replaced && hole:
		err = a.punch(b, old, entry)
	case replaced:
		err = a.tx.Swap(old.Key, entry)
	default:
		err = a.tx.Put(entry)
	}
	if err != nil {
		return err
	}
	b.countNew(entry, visible)
	switch {
	case !ok:
		return a.hide(b, lba)
	case replaced:
		err = a.release(old)
	}
	recount(old, before, after)
	return err
}

// hide follows the first entry of a block in b: what b stands on may have lost
// a reader by it.
func (a *applier) hide(b *branch, lba uint64) error {
	if !b.standsOnFork(lba) {
		return nil
	}
	if looks, err := a.looksBelow(b, lba); err != nil || looks {
		return err
	}
	return a.unread(b, lba)
}

// punch takes away an entry no pin needs. What is older and holds data must not
// show through: then a hole takes its place.
func (a *applier) punch(b *branch, old, hole maptree.Entry) error {
	under, ok, err := a.tx.Lookup(b.id, old.LBA, old.Gen-1)
	if err != nil {
		return err
	}
	shows := ok && kindOf(under) != format.KindHole
	if !ok {
		if shows, err = a.visibleBelow(b, old.LBA); err != nil {
			return err
		}
	}
	if shows {
		return a.tx.Swap(old.Key, hole)
	}
	_, err = a.tx.Delete(old.Key)
	return err
}

// countNew counts a block's new entry, which its head alone reads. visible
// tells whether the head read data there before.
func (b *branch) countNew(now maptree.Entry, visible bool) {
	if b.head != nil {
		if visible {
			b.head.referenced--
		}
		if kindOf(now) != format.KindHole {
			b.head.referenced++
		}
	}
	switch kindOf(now) {
	case format.KindData:
		b.exclusive++
		b.entries++
	case format.KindShared:
		b.entries++
	default: // a hole takes no space
	}
}

// release gives back what an entry that left the map referred to.
func (a *applier) release(e maptree.Entry) error {
	if k := kindOf(e); k != format.KindHole {
		if b := a.p.cat.branches[e.Branch]; b != nil {
			b.entries--
		}
		if k == format.KindShared {
			return a.unshare(format.Ref(e.Ref).Gen())
		}
		a.free(format.Ref(e.Ref))
	}
	return nil
}

// free counts a data block as dead.
func (a *applier) free(ref format.Ref) {
	a.p.space.count(ref.Addr(), -1)
	a.p.dataBlocks.Add(-1)
}

func sharedKey(gen uint64) maptree.Key {
	return maptree.Key{Branch: format.BranchShared, LBA: gen, Gen: 1}
}

func countKey(gen uint64) maptree.Key {
	return maptree.Key{Branch: format.BranchShared, LBA: gen, Gen: 2}
}

// share makes the block of e one that several entries may refer to, adds one
// reference for the caller, and returns the reference and the content's hash.
func (a *applier) share(b *branch, e maptree.Entry) (format.Ref, uint64, error) {
	hash := format.Unsum(e.Sum, e.Branch, e.LBA, e.Gen)
	if kindOf(e) == format.KindShared {
		gen := format.Ref(e.Ref).Gen()
		return format.Ref(e.Ref), hash, a.addCount(gen, 1)
	}
	if err := a.uncountShared(b, e); err != nil {
		return 0, 0, err
	}
	obj := maptree.Entry{Key: sharedKey(e.Gen), Ref: e.Ref, Sum: format.Sum(hash, format.BranchShared, e.Gen, 1)}
	if err := a.tx.Put(obj); err != nil {
		return 0, 0, err
	}
	if err := a.tx.Put(maptree.Entry{Key: countKey(e.Gen), Ref: 2}); err != nil {
		return 0, 0, err
	}
	e.Ref = uint64(format.SharedRef(e.Gen))
	return format.Ref(e.Ref), hash, a.tx.Put(e)
}

// uncountShared takes an entry that is about to become shared out of the
// exclusive count it is in.
func (a *applier) uncountShared(b *branch, e maptree.Entry) error {
	next, err := a.successor(e)
	if err != nil {
		return err
	}
	r, err := a.readers(b, e.LBA, e.Gen, next)
	if err == nil {
		recount(e, r, readers{})
	}
	return err
}

// successor returns the generation of the next newer entry of e's block, or gone.
func (a *applier) successor(e maptree.Entry) (uint64, error) {
	next := gone
	k := maptree.Key{Branch: e.Branch, LBA: e.LBA, Gen: format.GenMax}
	for {
		f, ok, err := a.tx.Ceil(k)
		if err != nil {
			return 0, err
		}
		if !ok || f.Key == e.Key || f.Branch != e.Branch || f.LBA != e.LBA {
			return next, nil
		}
		next, k.Gen = f.Gen, f.Gen-1
	}
}

func (a *applier) addCount(gen, n uint64) error {
	c, ok, err := a.tx.Ceil(countKey(gen))
	if err != nil {
		return err
	}
	invariant.Check(ok && c.Key == countKey(gen), "store: shared object %d has no count", gen)
	c.Ref += n
	return a.tx.Put(c)
}

// unshare drops one reference to a shared object; the last one frees it.
func (a *applier) unshare(gen uint64) error {
	c, ok, err := a.tx.Ceil(countKey(gen))
	if err != nil {
		return err
	}
	invariant.Check(ok && c.Key == countKey(gen) && c.Ref > 0, "store: shared object %d has no count", gen)
	if c.Ref > 1 {
		c.Ref--
		return a.tx.Put(c)
	}
	obj, ok, err := a.tx.Ceil(sharedKey(gen))
	if err != nil {
		return err
	}
	invariant.Check(ok && obj.Key == sharedKey(gen), "store: shared object %d is not there", gen)
	if _, err := a.tx.Delete(c.Key); err != nil {
		return err
	}
	if _, err := a.tx.Delete(obj.Key); err != nil {
		return err
	}
	a.free(format.Ref(obj.Ref))
	return nil
}

// write enters the blocks of a write record, whose data begins at block at.
func (a *applier) write(b *branch, r *format.Record, at format.Addr) error {
	for i, h := range r.Hashes {
		lba, gen, addr := r.LBA+uint64(i), r.Gen+uint64(i), at+format.Addr(i)
		a.p.space.count(addr, 1)
		a.p.dataBlocks.Add(1)
		if err := a.set(b, lba, gen, format.DataRef(addr), format.Sum(h, b.id, lba, gen)); err != nil {
			return err
		}
	}
	return nil
}

// trim makes a range read as zeros. Only blocks that hold data are touched:
// those that the branch or what it stands on has entries for.
func (a *applier) trim(b *branch, r *format.Record) error {
	b.trimmed(r.LBA, r.LBA+r.N, r.Gen)
	for br, lsn := b, uint64(format.GenMax); br != nil; br, lsn = br.parent, br.parentLSN {
		k, end := maptree.Key{Branch: br.id, LBA: r.LBA, Gen: format.GenMax}, r.LBA+r.N
		for {
			e, ok, err := a.tx.Ceil(k)
			if err != nil {
				return err
			}
			if !ok || e.Branch != br.id || e.LBA >= end {
				break
			}
			if e.Gen <= lsn {
				if err := a.set(b, e.LBA, r.Gen, format.HoleRef(), 0); err != nil {
					return err
				}
			}
			if e.Gen > lsn && lsn > 0 {
				k = maptree.Key{Branch: br.id, LBA: e.LBA, Gen: lsn} // older ones may be ours
			} else {
				k = maptree.Key{Branch: br.id, LBA: e.LBA + 1, Gen: format.GenMax}
			}
		}
	}
	return nil
}

// copyBlocks makes a range read as another one, by reference. All sources are
// looked up before anything is overwritten: the two may overlap.
func (a *applier) copyBlocks(b *branch, r *format.Record) error {
	src := a.p.cat.branches[r.SrcBranch]
	if src == nil {
		return nil // the source was deleted; the copy failed then, and does so now
	}
	type source struct {
		ref  format.Ref
		hash uint64
	}
	list := make([]source, r.N)
	for i := range list {
		e, at, err := a.find(src, r.SrcLBA+uint64(i), r.SrcGen)
		if err != nil {
			return err
		}
		list[i].ref = format.HoleRef()
		if at != nil {
			if list[i].ref, list[i].hash, err = a.share(at, e); err != nil {
				return err
			}
		}
	}
	if slices.ContainsFunc(list, func(s source) bool { return s.ref.Kind() == format.KindHole }) {
		b.trimmed(r.LBA, r.LBA+r.N, r.Gen+r.N-1)
	}
	for i, s := range list {
		lba, gen := r.LBA+uint64(i), r.Gen+uint64(i)
		if err := a.set(b, lba, gen, s.ref, format.Sum(s.hash, b.id, lba, gen)); err != nil {
			return err
		}
	}
	return nil
}

// find returns the entry that a view of b at lsn reads at lba, and the branch
// it is of: nil when there is no data.
func (a *applier) find(b *branch, lba, lsn uint64) (maptree.Entry, *branch, error) {
	for ; b != nil; b, lsn = b.parent, b.parentLSN {
		e, ok, err := a.tx.Lookup(b.id, lba, lsn)
		if err != nil {
			return e, nil, err
		}
		if ok {
			if kindOf(e) == format.KindHole {
				return e, nil, nil
			}
			return e, b, nil
		}
	}
	return maptree.Entry{}, nil, nil
}
