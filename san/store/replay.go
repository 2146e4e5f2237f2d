package store

import (
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// logCursor is a place in the log while it is read.
type logCursor struct {
	segment  format.Addr // its first block
	used     uint64      // blocks of it before this place
	next     format.Addr // the segment after it
	after    format.Addr // and the one after that
	sequence uint64
	chain    uint64
}

// replayed is one chunk of the log as recovery found it.
type replayed struct {
	*format.Chunk
	after logCursor // where the log goes on
	whole bool      // all its data blocks match
}

// replay enters the log from a checkpoint on into memory. It ends at the first
// chunk that is not there whole, unless a later one tells that it was: then it
// was acknowledged and is damaged. A damaged header hides what was in it, and
// that is an error; damaged data is found again by whoever reads it.
func (p *Pool) replay(start format.LogStart) error {
	r := &logReader{p: p, buf: bufpool.Get(format.ChunkBlocksMax * format.BlockSize)}
	defer bufpool.Put(r.buf)
	at := logCursor{start.Segment, start.Used, start.Next, start.After, start.Sequence, start.Chain}
	chunks, durable := r.readAll(at)
	if r.checkpoint > p.sequence.Load() {
		return fault.New(fault.Corrupt, "the superblocks of checkpoint %d are damaged on all drives, and older ones will not do", r.checkpoint)
	}
	end := at
	if n := len(chunks); n > 0 {
		end = chunks[n-1].after
	}
	// Also behind a chunk that is not whole: one damage may have hit that one and
	// the header after it.
	witness := r.witness(end)
	if witness >= end.sequence {
		return fault.New(fault.Corrupt, "the log is damaged on %s: writes that were acknowledged (log sequence %d to %d) cannot be recovered", p.space.where(end.segment+format.Addr(end.used)), end.sequence, witness)
	}
	keep := len(chunks)
	for i, c := range chunks {
		if !c.whole && c.Sequence > max(durable, witness) {
			keep, end = i, at
			if i > 0 {
				end = chunks[i-1].after
			}
			break
		}
	}
	if err := p.markLog(at, chunks[:keep], end); err != nil {
		return err
	}
	p.tail.lsn = start.LSN
	p.applied = start.LSN - 1
	for _, c := range chunks[:keep] {
		if err := p.enter(c); err != nil {
			return err
		}
	}
	return nil
}

// markLog takes the log's segments out of the free ones and sets the tail.
func (p *Pool) markLog(start logCursor, chunks []replayed, end logCursor) error {
	last := start.segment
	for _, c := range chunks {
		if c.after.segment != last {
			if _, err := p.space.mark(last, segFull); err != nil {
				return err
			}
			last = c.after.segment
		}
	}
	t := &p.tail
	*t = tail{sequence: end.sequence, chain: end.chain, sealed: true}
	var err error
	if t.at, err = p.space.mark(end.segment, segOpen); err != nil {
		return err
	}
	t.at.used = uint32(end.used)
	if t.next, err = p.space.mark(end.next, segOpen); err != nil {
		return err
	}
	t.after, err = p.space.mark(end.after, segOpen)
	return err
}

// enter applies a chunk of the log.
func (p *Pool) enter(c replayed) error {
	t := &p.tail
	t.blocks += int64(c.Blocks())
	t.sealed = len(c.Records) == 0
	at := c.At + format.Addr(c.Header)
	return p.tree.Mutate(nil, func(tx *maptree.Tx) error {
		a := &applier{p: p, tx: tx}
		refused := a.agrees(c.Records) != nil
		for i := range c.Records {
			r := &c.Records[i]
			// A change of the catalog that was refused then is refused again, and with
			// it those that were to be done together with it.
			if catalog := r.Kind == format.RecordCatalog; !catalog || !refused {
				if err := a.record(r, at); err != nil && !catalog {
					return err
				}
			}
			at += format.Addr(r.DataBlocks())
			p.applied = r.Gen + r.Gens() - 1
			t.lsn = p.applied + 1
		}
		return nil
	})
}

// logReader reads the log through a window of one chunk's size.
type logReader struct {
	p    *Pool
	buf  []byte
	from format.Addr // of the window; 0 when it is empty
	n    int         // blocks in it
	// checkpoint is the greatest that any chunk tells of.
	checkpoint uint64
}

// window returns n blocks from a, or nil when they cannot be read.
func (r *logReader) window(a format.Addr, n int) []byte {
	if r.n == 0 || a < r.from || a+format.Addr(n) > r.from+format.Addr(r.n) {
		d, seg := r.p.space.at(a)
		if d == nil {
			return nil
		}
		room := int(d.start(seg) + format.Addr(d.segBlocks) - a)
		if n > room {
			return nil
		}
		r.from, r.n = a, min(room, format.ChunkBlocksMax)
		if err := r.p.space.read(a, r.buf[:r.n*format.BlockSize]); err != nil {
			// One bad block must not hide the others.
			r.n = n
			if err := r.p.space.read(a, r.buf[:n*format.BlockSize]); err != nil {
				r.n = 0
				return nil
			}
		}
	}
	i := int(a-r.from) * format.BlockSize
	return r.buf[i : i+n*format.BlockSize]
}

// header reads the chunk header at a, or returns nil when there is none.
func (r *logReader) header(a format.Addr) *format.Chunk {
	b := r.window(a, 1)
	if b == nil {
		return nil
	}
	n := format.PeekChunk(b, r.p.tag, a)
	if n == 0 {
		return nil
	}
	if b = r.window(a, n); b == nil {
		return nil
	}
	c, err := format.DecodeChunk(b)
	if err != nil || c.Cleaner {
		return nil
	}
	return c
}

// readAll follows the log as far as its headers go. durable is the greatest
// sequence that any of them knew to be durable.
func (r *logReader) readAll(at logCursor) (chunks []replayed, durable uint64) {
	for {
		c, after := r.follow(at)
		if c == nil {
			return chunks, durable
		}
		durable, r.checkpoint = max(durable, c.Durable), max(r.checkpoint, c.Checkpoint)
		chunks = append(chunks, replayed{Chunk: c, after: after, whole: r.whole(c)})
		at = after
	}
}

// follow finds the chunk that continues the log at a place: there, or at the
// start of the next segment. What a crash tore stays where it is, and when what
// was written instead did not fit there it is at the other place: so a chunk that
// is not whole counts only if nothing else does.
func (r *logReader) follow(at logCursor) (*format.Chunk, logCursor) {
	d, _ := r.p.space.at(at.segment)
	if d == nil {
		return nil, at
	}
	continues := func(c *format.Chunk) bool {
		return c != nil && c.Sequence == at.sequence && c.Chain == at.chain
	}
	var here *format.Chunk
	if at.used < uint64(d.segBlocks) {
		if c := r.header(at.segment + format.Addr(at.used)); continues(c) && c.Next == at.next && c.After == at.after {
			here = c
		}
	}
	if here == nil || !r.whole(here) {
		if c := r.header(at.next); continues(c) {
			return c, logCursor{at.next, uint64(c.Blocks()), c.Next, c.After, at.sequence + 1, c.Sum}
		}
	}
	if here == nil {
		return nil, at
	}
	return here, logCursor{at.segment, at.used + uint64(here.Blocks()), at.next, at.after, at.sequence + 1, here.Sum}
}

// whole tells whether all data blocks of a chunk match their hashes.
func (r *logReader) whole(c *format.Chunk) bool {
	a := c.At + format.Addr(c.Header)
	for i := range c.Records {
		for _, h := range c.Records[i].Hashes {
			b := r.window(a, 1)
			if b == nil || format.Hash(b) != h {
				return false
			}
			a++
		}
	}
	return true
}

// witness looks behind the end of the log for chunks that know of more: it
// returns the greatest sequence that one of them knew to be durable. It follows
// the log from segment to segment as the chunks it finds name them. Chunks of
// earlier uses of the segments have lower sequences.
func (r *logReader) witness(end logCursor) (greatest uint64) {
	type stretch struct {
		segment format.Addr
		used    uint64
	}
	seen := map[format.Addr]bool{end.segment: true, end.next: true, end.after: true}
	for todo := []stretch{{end.segment, end.used}, {end.next, 0}, {end.after, 0}}; len(todo) > 0; todo = todo[1:] {
		d, _ := r.p.space.at(todo[0].segment)
		if d == nil {
			continue
		}
		for i := todo[0].used; i < uint64(d.segBlocks); i++ {
			c := r.header(todo[0].segment + format.Addr(i))
			if c == nil || c.Sequence <= end.sequence {
				continue
			}
			greatest = max(greatest, c.Durable)
			for _, a := range []format.Addr{c.Next, c.After} {
				if !seen[a] {
					seen[a] = true
					todo = append(todo, stretch{a, 0})
				}
			}
			i += uint64(c.Blocks() - 1)
		}
	}
	return greatest
}
