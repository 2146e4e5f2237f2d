package store

import (
	"slices"

	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// reclaimBatch is how many blocks one step of reclaiming sweeps, and
// reclaimLook how many entries it looks at to find them.
const (
	reclaimBatch = 256
	reclaimLook  = 32 << 10
	// lbaEnd is behind the last block of any volume.
	lbaEnd = uint64(VolumeSizeMax / format.BlockSize)
)

// reclaimStep does a piece of the first job: it finds the entries that nobody
// reads since a pin or a head went, and takes them out of the map. Nothing of
// this is logged: an entry that nobody reads may go at any time, so after a
// crash the job goes on from the checkpoint's cursor. Under Pool.work.
func (p *Pool) reclaimStep() (more bool, err error) {
	w := p.firstJob()
	if w == nil {
		return false, nil
	}
	lbas, next, done, err := p.affected(w)
	if err != nil {
		return false, err
	}
	err = p.sweepAll(w, lbas, next, done)
	return err == nil, err
}

// sweepAll sweeps blocks, and moves the job to where the next step goes on, or
// ends it.
func (p *Pool) sweepAll(w *piece, lbas []uint64, next uint64, done bool) error {
	p.applyMu.Lock()
	defer p.applyMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.tree.Mutate(w.prefetch(lbas), func(tx *maptree.Tx) error {
		a := &applier{p: p, tx: tx}
		for _, lba := range lbas {
			if err := a.sweep(w.job, lba); err != nil {
				w.job.Cursor = lba // again, from here
				return err
			}
		}
		if done {
			return a.finish(w.job)
		}
		w.job.Cursor = next
		return nil
	})
	p.refreshUsed()
	if err == nil && len(p.cat.jobs) == 0 {
		p.notify(Event{Kind: EventDeleted, Text: "the space of what was deleted is free again"})
	}
	return err
}

// generations are those after the first, up to the last.
type generations struct{ after, upTo uint64 }

// source is where a job learns which blocks it may change: those with entries
// of these generations.
type source struct {
	branch uint32
	generations
}

// piece is what a step needs to know of the first job.
type piece struct {
	job     *job
	cursor  uint64
	sources []source
	// children of the job's pin: what they hide is looked up at each block.
	children []uint32
}

// firstJob returns the job to work on, started, where it stands, and where to
// look for blocks.
func (p *Pool) firstJob() *piece {
	p.applyMu.Lock()
	defer p.applyMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.cat.jobs) == 0 {
		return nil
	}
	j := p.cat.jobs[0]
	if !j.Started {
		p.cat.start(j)
	}
	w := &piece{job: j, cursor: j.Cursor, sources: j.sources()}
	if j.pin != nil {
		for _, c := range j.pin.children {
			w.children = append(w.children, c.id)
		}
	}
	return w
}

// prefetch names what the map should bring into memory for blocks before it
// is locked for them.
func (w *piece) prefetch(lbas []uint64) (keys []maptree.Key) {
	for _, c := range w.children {
		for _, lba := range lbas {
			keys = append(keys, maptree.Key{Branch: c, LBA: lba, Gen: format.GenMax})
		}
	}
	return keys
}

// sources lists where the job's blocks are found.
//
// In its own branch: what the job's pin reads and the two pins after it too
// keeps two readers, and nothing changes; any other block was written between
// the first and the last of them. So deleting one of thousands of snapshots costs
// what was written around it, not what the volume holds. With fewer pins after
// it, the entries that the pin reads themselves tell, down to the floor.
//
// And as far as the branch stands on forks, in those below it: when the job's
// pin is the oldest reader, the next one may not look there.
func (j *job) sources() []source {
	b := j.branch
	i := len(b.pins)
	if j.pin != nil {
		i = slices.Index(b.pins, j.pin)
	}
	if i+2 < len(b.pins) && !b.pins[i+1].isFork() && !b.pins[i+2].isFork() {
		return []source{{b.id, generations{after: j.pin.lsn, upTo: b.pins[i+2].lsn}}}
	}
	out := []source{{b.id, generations{after: j.Floor, upTo: j.LSN}}}
	for lsn := j.LSN; b.fork != nil && b.fork.isFork() && !b.readBefore(lsn); {
		b, lsn = b.parent, b.parentLSN
		out = append(out, source{b.id, generations{upTo: lsn}})
	}
	return out
}

// readBefore tells whether some pin before lsn reads all that lay in b.
func (b *branch) readBefore(lsn uint64) bool {
	return slices.ContainsFunc(b.pins, func(p *pin) bool { return p.lsn < lsn && !p.isFork() })
}

// affected lists blocks, ascending, from the job's place on that it may change.
// It returns where the next step goes on, and whether there is nothing left for
// one.
func (p *Pool) affected(w *piece) (lbas []uint64, next uint64, done bool, err error) {
	next, done = lbaEnd, true
	for _, s := range w.sources {
		some, end, all, err := p.blocksOf(s, w.cursor, next)
		if err != nil {
			return nil, 0, false, err
		}
		lbas = append(lbas, some...)
		if !all {
			next, done = end, false
		}
	}
	slices.Sort(lbas)
	lbas = slices.Compact(lbas)
	i, _ := slices.BinarySearch(lbas, next)
	return lbas[:i], next, done, nil
}

// blocksOf lists blocks in [from, to) that a source has entries of. It returns
// where it ended if that is not all of them.
func (p *Pool) blocksOf(s source, from, to uint64) (lbas []uint64, next uint64, all bool, err error) {
	looked, at := 0, from
	all = true
	first, end := maptree.Key{Branch: s.branch, LBA: from, Gen: format.GenMax}, maptree.Key{Branch: s.branch, LBA: to, Gen: format.GenMax}
	err = p.tree.Scan(first, end, s.after, func(e maptree.Entry) bool {
		if e.LBA != at && (len(lbas) == reclaimBatch || looked >= reclaimLook) {
			next, all = e.LBA, false // between two blocks: a step never ends where it began
			return false
		}
		at = e.LBA
		looked++
		if n := len(lbas); e.Gen <= s.upTo && (n == 0 || lbas[n-1] != at) {
			lbas = append(lbas, at)
		}
		return true
	})
	return lbas, next, all, err
}

// start begins a job. From now on its pin or head is gone for the blocks
// before the cursor, and only for those: so every count is exact at every moment.
func (c *catalog) start(j *job) {
	b := j.branch
	j.Started, b.job = true, j
	j.LSN = format.GenMax
	if j.Head {
		c.dropDying(b)
	} else {
		j.LSN = j.pin.lsn
	}
	// An entry is affected if the pin before, at the least, reads it too.
	low := uint64(0)
	for _, p := range b.pins {
		if p.lsn < j.LSN && !p.isFork() {
			j.Floor, low = low, p.lsn
		}
	}
}

// dropDying removes the pins and jobs of a headless branch whose pins are all
// on their way out: one sweep then takes everything. Not from one that stands on
// a fork, for which each reader counts.
func (c *catalog) dropDying(b *branch) {
	stays := slices.ContainsFunc(b.pins, func(p *pin) bool { return p.snapshot != nil || len(p.children) > 0 })
	if b.head != nil || stays || b.fork != nil && b.fork.isFork() {
		return
	}
	b.pins = nil
	b.setMaxPin()
	c.jobs = slices.DeleteFunc(c.jobs, func(j *job) bool { return j.branch == b && !j.Head })
}

// sweep makes the job's pin or head go from one block: entries that nobody else
// reads leave the map, and those with one reader left count as that one's. A
// snapshot's pin that branches stand on becomes a fork there.
func (a *applier) sweep(j *job, lba uint64) error {
	b := j.branch
	entries, err := a.entriesOf(b.id, lba)
	if err != nil {
		return err
	}
	j.Cursor = lba
	before, looked, err := a.allReaders(b, lba, entries)
	if err != nil {
		return err
	}
	j.Cursor = lba + 1 // from here on the job's own pin or head does not count
	after, looks, err := a.allReaders(b, lba, entries)
	if err != nil {
		return err
	}
	for i, e := range entries {
		if after[i].n == 0 {
			if err := a.drop(e); err != nil {
				return err
			}
		}
		recount(e, before[i], after[i])
	}
	if err := a.uncover(b, lba); err != nil || !looked || looks {
		return err
	}
	return a.unread(b, lba)
}

// allReaders returns who reads each entry of a block, and whether someone looks
// for it below the branch.
func (a *applier) allReaders(b *branch, lba uint64, entries []maptree.Entry) (out []readers, looks bool, err error) {
	next := gone
	for _, e := range entries {
		r, err := a.readers(b, lba, e.Gen, next)
		if err != nil {
			return nil, false, err
		}
		out = append(out, r)
		next = e.Gen
	}
	if b.parent != nil {
		looks, err = a.looksBelow(b, lba)
	}
	return out, looks, err
}

// entriesOf returns the entries of a block, newest first.
func (a *applier) entriesOf(branch uint32, lba uint64) (out []maptree.Entry, err error) {
	k := maptree.Key{Branch: branch, LBA: lba, Gen: format.GenMax}
	for {
		e, ok, err := a.tx.Ceil(k)
		if err != nil || !ok || e.Branch != branch || e.LBA != lba {
			return out, err
		}
		out = append(out, e)
		if e.Gen == 0 {
			return out, nil
		}
		k.Gen = e.Gen - 1
	}
}

// finish ends a job, and forgets the branch when it was the last of it. A pin
// that branches stand on stays, as a fork.
func (a *applier) finish(j *job) error {
	c, b := a.p.cat, j.branch
	c.jobs = c.jobs[1:]
	b.job = nil
	if j.Head {
		b.leaving, b.exclusive = false, 0
	} else {
		j.pin.dying = false
		if len(j.pin.children) == 0 {
			b.removePin(j.pin)
		}
	}
	return a.settle(b)
}
