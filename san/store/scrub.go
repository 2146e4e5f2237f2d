package store

import (
	"time"

	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

const (
	// scrubBatch is how many blocks one step of a scrub reads, and corruptListMax
	// how many damaged ones its report lists; all are counted.
	scrubBatch     = 512
	corruptListMax = 10000
)

// scrub is the running or last scrub. Under scrubMu.
type scrub struct {
	status ScrubStatus
	cursor maptree.Key
	nodes  bool // the nodes are verified; the blocks are under way
	node   maptree.Key
}

// StartScrub begins to verify every block of the pool; Maintain does the
// work. fault.Busy when one is running.
func (p *Pool) StartScrub() error {
	if err := p.admitting(); err != nil {
		return err
	}
	p.scrubMu.Lock()
	defer p.scrubMu.Unlock()
	if p.scrub.status.Running {
		return fault.New(fault.Busy, "a scrub is running")
	}
	p.scrub = scrub{cursor: maptree.Key{Gen: format.GenMax}, node: maptree.Key{Gen: format.GenMax}}
	p.scrub.status = ScrubStatus{Running: true, Started: p.time(), Total: blockBytes(p.dataBlocks.Load() + int64(p.tree.Nodes()))}
	p.wanted.Store(true)
	if p.opt.Wake != nil {
		p.opt.Wake()
	}
	return nil
}

func (p *Pool) time() time.Time { return time.Unix(0, int64(p.opt.Now())) }

// StopScrub ends a running scrub.
func (p *Pool) StopScrub() {
	p.scrubMu.Lock()
	defer p.scrubMu.Unlock()
	if p.scrub.status.Running {
		p.scrub.status.Running, p.scrub.status.Finished = false, p.time()
	}
}

// Scrub reports on the running or last scrub.
func (p *Pool) Scrub() ScrubStatus {
	p.scrubMu.Lock()
	defer p.scrubMu.Unlock()
	s := p.scrub.status
	s.Corrupt = append([]CorruptBlock(nil), s.Corrupt...)
	return s
}

// scrubStep verifies a piece: first the map's nodes as they lie on the drives,
// then the blocks. Under work.
func (p *Pool) scrubStep() (more bool, err error) {
	p.scrubMu.Lock()
	s := p.scrub
	p.scrubMu.Unlock()
	if !s.status.Running {
		return false, nil
	}
	var done int64
	var bad []CorruptBlock
	finished := false
	if !s.nodes {
		done, bad, err = p.scrubNodes(&s)
	} else {
		done, bad, finished, err = p.scrubBlocks(&s)
	}
	p.scrubMu.Lock()
	defer p.scrubMu.Unlock()
	t := &p.scrub
	if !t.status.Running || !t.status.Started.Equal(s.status.Started) {
		return true, nil // stopped meanwhile
	}
	t.cursor, t.node, t.nodes = s.cursor, s.node, s.nodes
	t.status.Done = min(t.status.Done+done, t.status.Total)
	if room := corruptListMax - len(t.status.Corrupt); len(bad) > 0 && room > 0 {
		t.status.Corrupt = append(t.status.Corrupt, bad[:min(room, len(bad))]...)
	}
	if finished || err != nil && !fault.Is(err, fault.Corrupt) {
		t.status.Running, t.status.Finished = false, p.time()
		if finished {
			t.status.Done = t.status.Total
		}
	}
	return true, nil
}

// scrubNodes verifies the nodes that lead to one leaf after the other.
func (p *Pool) scrubNodes(s *scrub) (done int64, bad []CorruptBlock, err error) {
	for range scrubBatch / 8 {
		read, damaged, next, more, err := p.tree.Verify(s.node)
		done += blockBytes(int64(read))
		for _, a := range damaged {
			bad = append(bad, p.locateNode(a))
		}
		if err != nil {
			return done, bad, err
		}
		s.node = next
		if !more {
			s.nodes = true
			break
		}
	}
	return done, bad, nil
}

// locateNode describes a damaged block of the map.
func (p *Pool) locateNode(a maptree.Addr) CorruptBlock {
	p.corrupt.Add(1)
	text := "the map: a node on " + p.space.where(format.Addr(a)) + " does not match its checksum"
	p.notify(Event{Kind: EventCorrupt, Text: text})
	return CorruptBlock{Drive: p.driveName(format.Addr(a)), DriveOffset: off(format.Addr(a))}
}

func (p *Pool) driveName(a format.Addr) string {
	p.space.mu.Lock()
	defer p.space.mu.Unlock()
	if d, _ := p.space.at(a); d != nil {
		return d.name
	}
	return ""
}

// scrubBlocks verifies the blocks of the next entries of the map.
func (p *Pool) scrubBlocks(s *scrub) (done int64, bad []CorruptBlock, finished bool, err error) {
	batch := make([]maptree.Entry, 0, scrubBatch)
	finished = true
	err = p.tree.Scan(s.cursor, maptree.Key{Branch: ^uint32(0)}, 0, func(e maptree.Entry) bool {
		return p.scrubTake(s, e, &batch, &finished)
	})
	if err != nil {
		// A damaged node was counted when the nodes were verified: pass over
		// what is beneath it.
		if finished, err = p.passDamage(s); err != nil {
			return 0, nil, false, err
		}
	}
	buf := bufpool.Get(format.BlockSize)
	defer bufpool.Put(buf)
	for _, e := range batch {
		done += format.BlockSize
		if c, damaged := p.scrubBlock(e, buf); damaged {
			bad = append(bad, c)
		}
	}
	return done, bad, finished, nil
}

// passDamage moves the scrub's cursor behind the next damaged node. It reports
// whether nothing is left.
func (p *Pool) passDamage(s *scrub) (finished bool, err error) {
	for {
		_, damaged, next, more, err := p.tree.Verify(s.cursor)
		if err != nil {
			return false, err
		}
		s.cursor = next
		if !more || len(damaged) > 0 {
			return !more, nil
		}
	}
}

// scrubTake gathers entries that refer to blocks, up to a batch.
func (p *Pool) scrubTake(s *scrub, e maptree.Entry, batch *[]maptree.Entry, finished *bool) bool {
	if len(*batch) == scrubBatch {
		s.cursor, *finished = e.Key, false
		return false
	}
	if kindOf(e) == format.KindData {
		*batch = append(*batch, e)
	}
	return true
}

// scrubBlock reads a block from its drive. One that does not match is looked up
// again: it may have moved or gone.
func (p *Pool) scrubBlock(e maptree.Entry, buf []byte) (CorruptBlock, bool) {
	for range retriesMax {
		a := format.Ref(e.Ref).Addr()
		err := p.space.read(a, buf)
		if err == nil && format.Sum(format.Hash(buf), e.Branch, e.LBA, e.Gen) == e.Sum {
			return CorruptBlock{}, false
		}
		now, ok, lerr := p.tree.Lookup(e.Branch, e.LBA, e.Gen)
		if lerr != nil || !ok || now.Gen != e.Gen || kindOf(now) != format.KindData {
			return CorruptBlock{}, false // overwritten, deleted or shared since
		}
		if now.Ref == e.Ref {
			return p.reportCorrupt(e, a), true
		}
		e = now
	}
	return CorruptBlock{}, false
}

// reportCorrupt counts and tells of a damaged block, by its entry.
func (p *Pool) reportCorrupt(e maptree.Entry, a format.Addr) CorruptBlock {
	p.corrupt.Add(1)
	c := CorruptBlock{Drive: p.driveName(a), DriveOffset: off(a)}
	p.mu.RLock()
	if b := p.cat.branches[e.Branch]; b != nil {
		if v := p.cat.volumes[b.owner]; v != nil {
			v.corrupt.Add(1)
			c.Volume, c.Offset = v.name, int64(e.LBA)*format.BlockSize
		}
	}
	p.mu.RUnlock()
	p.notify(Event{Kind: EventCorrupt, Volume: c.Volume, Offset: c.Offset, Drive: c.Drive, Text: "a block on " + p.space.where(a) + " does not match its checksum"})
	return c
}
