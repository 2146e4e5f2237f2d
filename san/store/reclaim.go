package store

import (
	"slices"

	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// reclaimBatch is how many blocks one step of reclaiming looks at.
const reclaimBatch = 256

// reclaimStep does a piece of the first job: it finds the entries that nobody
// reads since a pin or a head went, and takes them out of the map. Nothing of
// this is logged: an entry that nobody reads may go at any time, so after a
// crash the job goes on from the checkpoint's cursor. Under Pool.work.
func (p *Pool) reclaimStep() (more bool, err error) {
	j, cursor := p.firstJob()
	if j == nil {
		return false, nil
	}
	lbas, err := p.blocksSince(j.branch.id, cursor, j.Floor, reclaimBatch)
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
		return nil
	})
	p.refreshUsed()
	if err != nil {
		return false, err
	}
	if len(lbas) < reclaimBatch {
		p.finish(j)
	}
	return true, nil
}

// firstJob returns the job to work on, started, and where it stands.
func (p *Pool) firstJob() (*job, uint64) {
	p.applyMu.Lock()
	defer p.applyMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.cat.jobs) == 0 {
		return nil, 0
	}
	j := p.cat.jobs[0]
	if !j.Started {
		p.cat.start(j, p.applied+1)
	}
	return j, j.Cursor
}

// blocksSince lists blocks of a branch, from one on, that have an entry newer
// than gen: at most limit.
func (p *Pool) blocksSince(branch uint32, from, gen uint64, limit int) ([]uint64, error) {
	var out []uint64
	err := p.tree.Scan(maptree.Key{Branch: branch, LBA: from, Gen: format.GenMax}, maptree.Key{Branch: branch + 1, Gen: format.GenMax}, gen, func(e maptree.Entry) bool {
		if n := len(out); n > 0 && out[n-1] == e.LBA {
			return true
		}
		if len(out) == limit {
			return false
		}
		out = append(out, e.LBA)
		return true
	})
	return out, err
}

// start fixes what a job is about: from now on its pin is not there, and
// writes treat what it read accordingly. next is the generation of the next
// write.
func (c *catalog) start(j *job, next uint64) {
	b := j.branch
	j.Started, j.Alive, j.Start = true, b.head != nil, next
	if j.Head {
		c.dropDying(b)
		j.LSN = format.GenMax
		j.Left = uint64(b.exclusive)
		if len(b.pins) == 0 {
			j.Left = uint64(b.entries)
		}
	} else {
		j.Left = uint64(j.pin.exclusive)
		b.removePin(j.pin)
		j.pin = nil
	}
	for _, p := range b.pins {
		switch {
		case p.lsn < j.LSN:
			j.Floor, j.Low = j.Low, p.lsn
		case j.High == 0:
			j.High = p.lsn
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

// reaches tells whether, with the job's pin gone, nobody reads an entry newer
// than Low whose successor is next.
func (j *job) reaches(next uint64) bool {
	switch {
	case j.High != 0:
		return next <= j.High
	case j.Alive:
		return next < j.Start
	}
	return true
}

// sweep looks at all entries of one block. With the pin p between q (Low) and r
// (High, or the head), and next being the generation that overwrote an entry:
//
//	q < gen <= p, next <= r: nobody reads it any more
//	q < gen <= p, next > r:  p's going may leave r, or the head, as the only reader
//	gen <= q, p < next <= r: p's going may leave q as the only reader
func (a *applier) sweep(j *job, lba uint64) error {
	b := j.branch
	entries, err := a.entriesOf(b.id, lba)
	if err != nil {
		return err
	}
	next := gone
	var oldest *maptree.Entry
	for i, e := range entries {
		switch {
		case e.Gen > j.Low && e.Gen <= j.LSN && j.reaches(next):
			if _, err := a.tx.Delete(e.Key); err != nil {
				return err
			}
			if err := a.release(e); err != nil {
				return err
			}
			if kindOf(e) != format.KindHole && j.Left > 0 {
				j.Left--
			}
			if j.Head && kindOf(e) == format.KindData {
				b.exclusive--
			}
		default:
			if kindOf(e) == format.KindData {
				a.nowAlone(j, e, next)
			}
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

// nowAlone counts an entry for the pin or head that is its only reader since
// the job's pin went. What was overwritten after that was counted then.
func (a *applier) nowAlone(j *job, e maptree.Entry, next uint64) {
	b := j.branch
	if next != gone && next >= j.Start {
		return
	}
	n, p := b.needed(e.Gen, next)
	if j.Alive && next == gone {
		// The head reads it too.
		if e.Gen > j.Low && e.Gen <= j.LSN && n == 0 {
			b.exclusive++
		}
		return
	}
	affected := e.Gen > j.Low && e.Gen <= j.LSN || e.Gen <= j.Low && next > j.LSN
	if affected && n == 1 {
		p.exclusive++
	}
}

// finish ends a job, and forgets the branch when it was the last of it.
func (p *Pool) finish(j *job) {
	c, b := p.cat, j.branch
	c.jobs = c.jobs[1:]
	idle := !slices.ContainsFunc(c.jobs, func(k *job) bool { return k.branch == b })
	if b.head == nil && len(b.pins) == 0 && idle {
		c.dropBranch(b)
	}
	if len(c.jobs) == 0 {
		p.notify(Event{Kind: EventDeleted, Text: "the space of what was deleted is free again"})
	}
}
