package store

import (
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

const (
	// cleanWindow is how much of a victim one step reads, in blocks.
	cleanWindow = 256
	// moveBatch is how many blocks one chunk of the cleaner holds: what one
	// block of header has room for.
	moveBatch = 128
)

// victim is a segment that is being emptied.
type victim struct {
	d     *dev
	seg   int
	next  uint32 // block reached
	again bool   // the map was searched for what the segment does not tell
}

// move is a live block to be written elsewhere.
type move struct {
	entry maptree.Entry
	from  format.Addr
	data  []byte
}

// cleanStep does a piece of emptying the segment with the least in it: live
// blocks are copied to where the cleaner writes, and the map is told. None of
// it is logged or flushed: the source stays as it is until a checkpoint holds
// the new places. Under work.
func (p *Pool) cleanStep() (more bool, err error) {
	b := &p.bg
	if b.victim.d == nil {
		next := p.nextVictim()
		if next == nil {
			return false, nil
		}
		b.victim = *next
	}
	v := &b.victim
	if v.next >= v.d.segBlocks {
		return p.endVictim(v)
	}
	if err := p.cleanWindow(v); err != nil {
		p.giveUp(v)
		if fault.Is(err, fault.Corrupt) {
			return true, nil // told already; the rest of the pool can be cleaned
		}
		return false, err
	}
	return true, nil
}

// nextVictim chooses what to empty: when free segments run low, the one with
// the least in it, for that gives room to the rest; and else segments of a drive
// that is to leave.
func (p *Pool) nextVictim() *victim {
	r := p.room()
	short := r.free+r.spare <= r.low
	if short && r.free+r.spare+r.dead < r.high {
		if v := p.pickVictim(); v != nil {
			return v
		}
	}
	if short && r.free <= r.floor {
		return nil // what leaves would have nowhere to go
	}
	return p.pickLeaving()
}

// endVictim looks at what is left in a segment that was walked. Map nodes leave
// with the next checkpoint. Blocks that no readable header tells of are
// searched in the map, once.
func (p *Pool) endVictim(v *victim) (bool, error) {
	p.space.mu.Lock()
	left := v.d.segs[v.seg].live
	p.space.mu.Unlock()
	if left == 0 {
		p.bg.victim = victim{}
		return true, nil
	}
	if v.again || p.onlyBlobs(v, left) {
		p.giveUp(v)
		return true, nil
	}
	v.again = true
	return true, p.moveStrays(v)
}

// onlyBlobs tells whether what is left are blocks of the catalog and table,
// which each checkpoint writes anew.
func (p *Pool) onlyBlobs(v *victim, left uint32) bool {
	n := uint32(0)
	for _, b := range []format.Blob{p.bg.tableBlob, p.bg.catalogBlob} {
		p.eachBlock(b, func(a format.Addr) {
			if d, seg := p.space.at(a); d == v.d && seg == v.seg {
				n++
			}
		})
	}
	return n == left
}

// giveUp leaves a victim alone until something of it dies.
func (p *Pool) giveUp(v *victim) {
	p.space.mu.Lock()
	v.d.segs[v.seg].stuck = true
	p.space.mu.Unlock()
	p.bg.victim = victim{}
}

// pickLeaving returns a segment of a drive that is to be emptied, or nil.
func (p *Pool) pickLeaving() *victim {
	p.space.mu.Lock()
	defer p.space.mu.Unlock()
	for _, d := range p.space.devs {
		if d == nil || !d.leaving || d.live == 0 {
			continue
		}
		for i := range d.segs {
			if g := &d.segs[i]; g.state == segFull && g.live > 0 && !g.stuck {
				return &victim{d: d, seg: i}
			}
		}
	}
	return nil
}

// pickVictim returns the full segment with the smallest share of live blocks,
// or nil when emptying the best would gain next to nothing.
func (p *Pool) pickVictim() *victim {
	p.space.mu.Lock()
	defer p.space.mu.Unlock()
	var best *victim
	least := 0.95
	for _, d := range p.space.devs {
		if d == nil || d.state != devOnline {
			continue
		}
		for i := range d.segs {
			g := &d.segs[i]
			if g.state != segFull || g.live == 0 || g.stuck {
				continue
			}
			if share := float64(g.live) / float64(d.segBlocks); share < least {
				least, best = share, &victim{d: d, seg: i}
			}
		}
	}
	return best
}

// cleanWindow reads a piece of the victim and moves what is live in it.
func (p *Pool) cleanWindow(v *victim) error {
	n := min(cleanWindow, v.d.segBlocks-v.next)
	at := v.d.start(v.seg) + format.Addr(v.next)
	buf := bufpool.Get(int(n) * format.BlockSize)
	defer bufpool.Put(buf)
	if err := p.space.read(at, buf); err != nil {
		// What its blocks are is learnt from the map, at the end.
		v.next += n
		return nil //nolint:nilerr // an unreadable window is not the end of the segment
	}
	used, moves, err := p.liveIn(at, buf, v.next+n == v.d.segBlocks)
	if err != nil {
		return err
	}
	v.next += uint32(used)
	return p.moveAll(moves)
}

// liveIn finds the live blocks of a window, chunk by chunk, and touches the map
// nodes in it, so that the next checkpoint moves them. It returns how many
// blocks it went over: a chunk that reaches past the window comes next time,
// unless the segment ends there.
func (p *Pool) liveIn(at format.Addr, buf []byte, last bool) (used int, moves []move, err error) {
	shared, err := p.anyShared()
	if err != nil {
		return 0, nil, err
	}
	blocks := len(buf) / format.BlockSize
	block := func(i int) []byte { return buf[i*format.BlockSize : (i+1)*format.BlockSize] }
	for i := 0; i < blocks; {
		a := at + format.Addr(i)
		h := format.PeekChunk(block(i), p.tag, a)
		if h > 0 && i+h <= blocks {
			if c, err := format.DecodeChunk(buf[i*format.BlockSize : (i+h)*format.BlockSize]); err == nil {
				end := i + c.Blocks()
				if end > blocks && i > 0 {
					return i, moves, nil
				}
				if end <= blocks {
					if moves, err = p.liveOf(c, a+format.Addr(h), buf[(i+h)*format.BlockSize:end*format.BlockSize], moves, shared); err != nil {
						return i, nil, err
					}
					i = end
					continue
				}
			}
		} else if h > 0 && i > 0 && !last {
			return i, moves, nil
		}
		if level, first, _, ok := maptree.ParseNode(block(i)); ok {
			if _, err := p.tree.Touch(level, first, maptree.Addr(a)); err != nil {
				return i, nil, err
			}
		}
		i++
	}
	return blocks, moves, nil
}

// anyShared tells whether any block of the pool is shared. One that becomes so
// meanwhile is found when its segment's end is reached and it is still there.
func (p *Pool) anyShared() (any bool, err error) {
	first, end := maptree.Key{Branch: format.BranchShared, Gen: format.GenMax}, maptree.Key{Branch: format.BranchShared + 1, Gen: format.GenMax}
	err = p.tree.Scan(first, end, 0, func(maptree.Entry) bool {
		any = true
		return false
	})
	return any, err
}

// liveOf appends the live data blocks of a chunk, the first of which is at a.
// shared tells whether they may be shared ones.
func (p *Pool) liveOf(c *format.Chunk, a format.Addr, data []byte, moves []move, shared bool) ([]move, error) {
	i := 0
	add := func(branch uint32, lba, gen uint64) error {
		e, ok, err := p.liveEntry(branch, lba, gen, a+format.Addr(i), shared)
		if ok {
			moves = append(moves, move{entry: e, from: a + format.Addr(i), data: data[i*format.BlockSize : (i+1)*format.BlockSize]})
		}
		i++
		return err
	}
	for r := range c.Records {
		rec := &c.Records[r]
		for j := range rec.Hashes {
			if err := add(rec.Branch, rec.LBA+uint64(j), rec.Gen+uint64(j)); err != nil {
				return nil, err
			}
		}
		for _, m := range rec.Moved {
			if err := add(m.Branch, m.LBA, m.Gen); err != nil {
				return nil, err
			}
		}
	}
	return moves, nil
}

// liveEntry returns the map entry that refers to the block at a, which was
// written as the named one: its own, or that of the shared object it became.
func (p *Pool) liveEntry(branch uint32, lba, gen uint64, a format.Addr, shared bool) (maptree.Entry, bool, error) {
	e, ok, err := p.tree.Lookup(branch, lba, gen)
	if err != nil || ok && e.Gen == gen && e.Ref == uint64(format.DataRef(a)) {
		return e, err == nil, err
	}
	if branch == format.BranchShared || !shared {
		return e, false, nil
	}
	e, ok, err = p.tree.Lookup(format.BranchShared, gen, 1)
	return e, ok && e.Ref == uint64(format.DataRef(a)), err
}

// moveAll writes blocks where the cleaner writes, and tells the map. A block
// that does not match its checksum stays where it is.
func (p *Pool) moveAll(moves []move) error {
	for len(moves) > 0 {
		room, err := p.movesRoom()
		if err != nil {
			return err
		}
		n := min(len(moves), moveBatch, room-1)
		if err := p.moveSome(moves[:n]); err != nil {
			return err
		}
		moves = moves[n:]
	}
	return nil
}

// movesRoom makes sure that the cleaner has a segment to write to, and returns
// how many blocks of it are left: at least a header and one block.
func (p *Pool) movesRoom() (int, error) {
	pl := &p.bg.moves
	if pl.d != nil && (pl.room() < 2 || !p.writable(pl.d)) {
		p.space.fill(*pl)
		pl.d = nil
	}
	if pl.d == nil {
		next, err := p.space.take()
		if err != nil {
			return 0, err
		}
		*pl = next
	}
	return int(pl.room()), nil
}

func (p *Pool) moveSome(moves []move) error {
	rec := format.Record{Kind: format.RecordMoved}
	bufs := make([][]byte, 1, 1+len(moves))
	var good []move
	for _, m := range moves {
		e := m.entry
		hash := format.Hash(m.data)
		if format.Sum(hash, e.Branch, e.LBA, e.Gen) != e.Sum {
			p.reportCorrupt(e, m.from)
			continue
		}
		rec.Moved = append(rec.Moved, format.MovedBlock{Branch: e.Branch, LBA: e.LBA, Gen: e.Gen, Hash: hash})
		bufs = append(bufs, m.data)
		good = append(good, m)
	}
	if len(good) == 0 {
		return nil
	}
	at, err := p.writeMoved(rec, bufs)
	if err != nil {
		return err
	}
	return p.tree.Mutate(nil, func(tx *maptree.Tx) error {
		for i, m := range good {
			now, ok, err := tx.Ceil(m.entry.Key)
			if err != nil {
				return err
			}
			if !ok || now.Key != m.entry.Key || now.Ref != m.entry.Ref {
				continue // overwritten, deleted or shared meanwhile
			}
			to := at + format.Addr(i)
			now.Ref = uint64(format.DataRef(to))
			if err := tx.Put(now); err != nil {
				return err
			}
			p.space.count(to, 1)
			p.space.count(m.from, -1)
			p.blocks.Move(uint64(m.from), uint64(to), now.Sum, m.data)
		}
		return nil
	})
}

// writeMoved writes a chunk of the cleaner, for which movesRoom found room, and
// returns where its data begins.
func (p *Pool) writeMoved(rec format.Record, bufs [][]byte) (format.Addr, error) {
	c := &format.Chunk{Pool: p.tag, Cleaner: true, Records: []format.Record{rec}}
	header := bufpool.Get(format.HeaderBlocks(rec.Size()) * format.BlockSize)
	defer bufpool.Put(header)
	total := uint32(len(header)/format.BlockSize + len(bufs) - 1)
	pl := &p.bg.moves
	c.At = pl.addr()
	bufs[0] = c.Encode(header)
	if err := p.storeRun(bufs, c.At); err != nil {
		// What was written is referred to by nothing; go on elsewhere.
		p.space.fill(*pl)
		pl.d = nil
		return 0, err
	}
	pl.used += total
	return c.At + format.Addr(c.Header), nil
}

// moveStrays moves what the map says is in a segment, whose own headers do not
// tell. It costs a walk over the whole map, and happens when headers are
// damaged.
func (p *Pool) moveStrays(v *victim) error {
	first := v.d.start(v.seg)
	end := first + format.Addr(v.d.segBlocks)
	var moves []move
	err := p.tree.Scan(maptree.Key{Gen: format.GenMax}, maptree.Key{Branch: ^uint32(0)}, 0, func(e maptree.Entry) bool {
		if a := format.Ref(e.Ref).Addr(); kindOf(e) == format.KindData && a >= first && a < end {
			moves = append(moves, move{entry: e, from: a})
		}
		return true
	})
	if err != nil {
		return err
	}
	for len(moves) > 0 {
		n := min(len(moves), moveBatch)
		batch := moves[:0:0]
		for _, m := range moves[:n] {
			m.data = bufpool.Get(format.BlockSize)
			if err := p.space.read(m.from, m.data); err != nil {
				p.reportCorrupt(m.entry, m.from)
				bufpool.Put(m.data)
				continue
			}
			batch = append(batch, m)
		}
		err := p.moveAll(batch)
		for _, m := range batch {
			bufpool.Put(m.data)
		}
		if err != nil {
			return err
		}
		moves = moves[n:]
	}
	return nil
}
