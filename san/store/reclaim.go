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
)

// reclaimStep does a piece of the first job: it finds the entries that nobody
// reads since a pin or a head went, and takes them out of the map. Nothing of
// this is logged: an entry that nobody reads may go at any time, so after a
// crash the job goes on from the checkpoint's cursor. Under Pool.work.
func (p *Pool) reclaimStep() (more bool, err error) {
	j, cursor, among := p.firstJob()
	if j == nil {
		return false, nil
	}
	lbas, next, done, err := p.affected(j, cursor, among)
	if err != nil {
		return false, err
	}
	p.applyMu.Lock()
	defer p.applyMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	err = p.tree.Mutate(nil, func(tx *maptree.Tx) error {
		a := &applier{p: p, tx: tx}
		for _, lba := range lbas {
			if err := a.sweep(j, lba); err != nil {
				return err
			}
			j.Cursor = lba + 1
		}
		if !done {
			j.Cursor = next
		}
		return nil
	})
	p.refreshUsed()
	if err != nil {
		return false, err
	}
	if done {
		p.finish(j)
	}
	return true, nil
}

// generations are those after the first, up to the last.
type generations struct{ after, upTo uint64 }

// firstJob returns the job to work on, started, where it stands, and which
// generations make a block one that it may change.
func (p *Pool) firstJob() (*job, uint64, generations) {
	p.applyMu.Lock()
	defer p.applyMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.cat.jobs) == 0 {
		return nil, 0, generations{}
	}
	j := p.cat.jobs[0]
	if !j.Started {
		p.cat.start(j)
	}
	return j, j.Cursor, j.among()
}

// among returns the generations of which a block has an entry if the job may
// change something in it. What the job's pin reads and the second pin after it
// too keeps two readers, and nothing changes; any other block was written
// between the two. So deleting one of thousands of snapshots costs what was
// written around it, not what the volume holds. With fewer pins after it, the
// entries that the pin reads themselves tell, down to the floor.
func (j *job) among() generations {
	for i, p := range j.branch.pins {
		if p == j.pin && i+2 < len(j.branch.pins) {
			return generations{after: p.lsn, upTo: j.branch.pins[i+2].lsn}
		}
	}
	return generations{after: j.Floor, upTo: j.LSN}
}

// affected lists blocks from one on that have an entry of the generations. It
// returns where the next step goes on, and whether there is nothing left for
// one.
func (p *Pool) affected(j *job, from uint64, among generations) (lbas []uint64, next uint64, done bool, err error) {
	looked, at := 0, from
	to := maptree.Key{Branch: j.branch.id + 1, Gen: format.GenMax}
	done = true
	err = p.tree.Scan(maptree.Key{Branch: j.branch.id, LBA: from, Gen: format.GenMax}, to, among.after, func(e maptree.Entry) bool {
		if e.LBA != at && (len(lbas) == reclaimBatch || looked >= reclaimLook) {
			next, done = e.LBA, false // between two blocks: a step never ends where it began
			return false
		}
		at = e.LBA
		looked++
		if n := len(lbas); e.Gen <= among.upTo && (n == 0 || lbas[n-1] != at) {
			lbas = append(lbas, at)
		}
		return true
	})
	return lbas, next, done, err
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
		if p.lsn < j.LSN {
			j.Floor, low = low, p.lsn
		}
	}
}

// dropDying removes the pins and jobs of a headless branch whose pins are all
// on their way out: one sweep then takes everything.
func (c *catalog) dropDying(b *branch) {
	if b.head != nil || slices.ContainsFunc(b.pins, func(p *pin) bool { return p.snapshot != nil || p.children > 0 }) {
		return
	}
	b.pins = nil
	b.setMaxPin()
	c.jobs = slices.DeleteFunc(c.jobs, func(j *job) bool { return j.branch == b && !j.Head })
}

// sweep makes the job's pin or head go from one block: entries that nobody else
// reads leave the map, and those with one reader left count as that one's.
func (a *applier) sweep(j *job, lba uint64) error {
	b := j.branch
	entries, err := a.entriesOf(b.id, lba)
	if err != nil {
		return err
	}
	next := gone
	var oldest *maptree.Entry
	for i, e := range entries {
		before, _ := b.needed(lba, e.Gen, next)
		head := next == gone && b.headReads(lba)
		j.Cursor = lba + 1 // from here on the job's own pin or head does not count
		after, p := b.needed(lba, e.Gen, next)
		stays := next == gone && b.headReads(lba)
		j.Cursor = lba
		switch {
		case after == 0 && !stays:
			err = a.sweepAway(b, e, before, head)
		case kindOf(e) != format.KindData || before == after && head == stays:
		case after == 0:
			b.exclusive++
		case after == 1 && !stays:
			p.exclusive++
		}
		if err != nil {
			return err
		}
		if after > 0 || stays {
			oldest = &entries[i]
		}
		next = e.Gen
	}
	// A hole with nothing beneath hides nothing.
	if oldest != nil && kindOf(*oldest) == format.KindHole && b.parent == nil {
		_, err = a.tx.Delete(oldest.Key)
	}
	return err
}

// sweepAway takes an entry that nobody reads out of the map, and out of the
// count of who read it last.
func (a *applier) sweepAway(b *branch, e maptree.Entry, pins int, head bool) error {
	if kindOf(e) == format.KindData {
		switch {
		case head && pins == 0:
			b.exclusive--
		case pins == 1 && !head && b.job.pin != nil:
			b.job.pin.exclusive--
		}
	}
	if _, err := a.tx.Delete(e.Key); err != nil {
		return err
	}
	return a.release(e)
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

// finish ends a job, and forgets the branch when it was the last of it.
func (p *Pool) finish(j *job) {
	c, b := p.cat, j.branch
	c.jobs = c.jobs[1:]
	b.job = nil
	if j.Head {
		b.leaving, b.exclusive = false, 0
	} else {
		b.removePin(j.pin)
	}
	idle := !slices.ContainsFunc(c.jobs, func(k *job) bool { return k.branch == b })
	if b.head == nil && len(b.pins) == 0 && idle {
		c.dropBranch(b)
	}
	if len(c.jobs) == 0 {
		p.notify(Event{Kind: EventDeleted, Text: "the space of what was deleted is free again"})
	}
}
