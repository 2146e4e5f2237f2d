package store

import (
	"runtime"
	"sync/atomic"

	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/internal/invariant"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// opBlocksMax bounds the data blocks of one operation; larger requests are
// several.
const opBlocksMax = 128

// op is one change on its way into the log. It is applied as a whole or not at
// all.
type op struct {
	vol     *volume // whose head it changes; nil for changes of the catalog
	records []format.Record
	data    [][]byte // blocks of the write records, aligned, in their order
	blocks  int      // in data
	durable bool
	reserve int64 // blocks set aside for it
	sealing bool  // part of background work: it must not wait for space
	from    *Volume

	err  error
	wake chan bool // true: lead; false: done
}

// tail is where the log goes on. Under Pool.logMu.
type tail struct {
	at       place
	next     place
	after    place
	sequence uint64 // of the next chunk
	chain    uint64
	lsn      uint64 // next generation
	// sure is what lsn was when a chunk was last written durably. A crash can take
	// back what came after, and recovery then goes on lsnGap further: so no
	// generation may be given out beyond that. See placeChunk.
	sure   uint64
	sealed bool // the last chunk is an empty one, or there is none
	blocks int64
	// last and before are the youngest chunks under way, or nil.
	last, before *flight
}

// flight is a chunk that has its place and is being written. Two are at a
// time: the second one's place and sequence follow from the first, and it is
// entered into the map, and answered, after it. When the first fails, so does
// the second, whatever became of it: recovery would not find it.
type flight struct {
	sequence uint64
	prev     *flight // nil when it had landed already
	landed   chan struct{}
	failed   error // set before landed is closed
}

// turn waits until the next chunk may be on its way. A durable one follows
// when the last has landed: what comes meanwhile joins it, and fewer, larger
// writes cost less than two at a time gain. Under logMu.
func (t *tail) turn(durable bool) {
	f := t.before
	if durable {
		f = t.last
	}
	_ = f.await() // whoever it failed has the error
}

// land tells that f is over.
func (f *flight) land(err error) {
	f.prev, f.failed = nil, err
	close(f.landed)
}

// await returns when f is over, if there is one, with what it failed with.
func (f *flight) await() error {
	if f == nil {
		return nil
	}
	<-f.landed
	return f.failed
}

// commit puts operations into the log and returns when they are in the map:
// the first error, if any. Whoever finds nobody leading writes for everyone
// that waits; when its chunk is written it hands on to one who came meanwhile.
func (p *Pool) commit(ops ...*op) error {
	for _, o := range ops {
		// One may be asked to lead and then hear of its end.
		o.wake = make(chan bool, 2)
	}
	p.queueMu.Lock()
	p.queue = append(p.queue, ops...)
	leads := !p.leading
	p.leading = true
	p.queueMu.Unlock()
	if leads {
		p.writeGroup()
	}
	var first error
	for _, o := range ops {
		if err := p.await(o); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// await waits for an operation's end, and leads when it is asked to.
func (p *Pool) await(o *op) error {
	for <-o.wake {
		p.writeGroup()
	}
	return o.err
}

// gather lets those who are about to write join the queue: a chunk of one block
// is half header, and each costs its system call. For a write to memory, which
// is over before others come, one look is enough when it would go alone; for a
// durable one, as long as more come. Nobody is waited for.
func (p *Pool) gather(durable bool) {
	for n := p.waiting(); durable || n == 1; {
		runtime.Gosched()
		m := p.waiting()
		if m == n || !durable {
			return
		}
		n = m
	}
}

// waiting returns how many operations wait for a chunk.
func (p *Pool) waiting() int {
	p.queueMu.Lock()
	defer p.queueMu.Unlock()
	return len(p.queue)
}

// takeGroup takes from the queue what fits into one chunk. A change of the
// catalog ends its group: what comes after may depend on it. Under logMu.
func (p *Pool) takeGroup() []*op {
	limit := format.ChunkBlocksMax
	if room := int(p.tail.at.room()); room >= 16 {
		limit = min(limit, room) // fill the segment rather than leave its end
	}
	p.queueMu.Lock()
	defer p.queueMu.Unlock()
	blocks, bytes, n := 0, 0, 0
	for _, o := range p.queue {
		blocks += o.blocks
		for i := range o.records {
			bytes += o.records[i].Size()
		}
		if header := format.HeaderBlocks(bytes); n > 0 && (blocks+header > limit || header > format.ChunkHeaderBlocksMax) {
			break // recovery takes a longer header for no chunk
		}
		n++
		if o.vol == nil {
			break
		}
	}
	group := p.queue[:n:n]
	p.queue = p.queue[n:]
	return group
}

// passOn makes one of those who wait the next leader.
func (p *Pool) passOn() {
	p.queueMu.Lock()
	defer p.queueMu.Unlock()
	if len(p.queue) == 0 {
		p.queue = nil
		p.leading = false
		return
	}
	p.queue[0].wake <- true
}

// writeGroup writes one chunk for those who wait, and enters it into the map.
// It keeps logMu only until the chunk has its place: the next one is on its way
// before this one has landed. After a change of the catalog that waits, since
// the next may depend on it.
func (p *Pool) writeGroup() {
	p.queueMu.Lock()
	sealing := len(p.queue) > 0 && p.queue[0].sealing
	durable := len(p.queue) > 0 && p.queue[0].durable
	p.queueMu.Unlock()
	err := p.ensureRoom(sealing)
	p.logMu.Lock()
	for err == nil {
		p.tail.turn(durable)
		if !p.tailBroken() {
			break
		}
		// A checkpoint moves the log just now: go on where it will be.
		p.logMu.Unlock()
		err = p.ensureRoom(sealing)
		p.logMu.Lock()
	}
	p.gather(durable)
	group := p.takeGroup()
	w := &writing{group: group, errs: make([]error, len(group))}
	if err == nil {
		p.buildChunk(w)
		err = p.placeChunk(w)
	}
	barrier := len(group) > 0 && group[len(group)-1].vol == nil
	if !barrier {
		p.logMu.Unlock()
		p.passOn()
	}
	if err == nil && w.flight != nil {
		err = p.writeChunk(w)
	}
	if barrier {
		p.logMu.Unlock()
		p.passOn()
	}
	for i, o := range group {
		e := w.errs[i]
		if e == nil {
			e = err
		}
		p.pending.Add(-o.reserve)
		o.err = e
		o.wake <- false
	}
	p.afterGroup()
}

// writing is a group of operations on its way into the log.
type writing struct {
	group   []*op
	errs    []error // of each that cannot go
	chunk   *format.Chunk
	at      place
	header  []byte
	bufs    [][]byte // header and data
	flight  *flight  // nil when there is nothing to write
	durable bool
}

// buildChunk gives the group's records their generations, and operations that
// cannot go (their volume is gone) an error. Under logMu.
func (p *Pool) buildChunk(w *writing) {
	c, errs := &format.Chunk{Pool: p.tag, Durable: p.durable.Load(), Checkpoint: p.sequence.Load()}, w.errs
	w.chunk = c
	p.mu.RLock()
	defer p.mu.RUnlock()
	for i, o := range w.group {
		if o.vol != nil && o.vol.deleted {
			errs[i] = fault.New(fault.NotFound, "volume %q was deleted", o.vol.name)
			continue
		}
		for j := range o.records {
			r := &o.records[j]
			r.Gen = p.tail.lsn
			p.tail.lsn += r.Gens()
			if o.vol != nil {
				r.Branch = o.vol.branch.id
			}
			if r.Kind == format.RecordCopy {
				if errs[i] = o.from.source(r); errs[i] != nil {
					break
				}
			}
		}
		if errs[i] == nil {
			c.Records = append(c.Records, o.records...)
		}
	}
	p.position.Store(p.tail.lsn - 1)
}

// placeChunk gives the chunk its place at the tail, which moves on. Under logMu.
func (p *Pool) placeChunk(w *writing) error {
	c, bytes := w.chunk, w.list()
	if len(c.Records) == 0 && !anySealing(w.group) {
		return nil
	}
	header := bufpool.Get(format.HeaderBlocks(bytes) * format.BlockSize)
	t := &p.tail
	total := uint32(len(header)/format.BlockSize + len(w.bufs) - 1)
	if t.at.room() < total {
		if err := p.advance(); err != nil {
			bufpool.Put(header)
			return err
		}
	}
	w.at, w.header = t.at, header
	c.At, c.Next, c.After = t.at.addr(), t.next.d.start(t.next.seg), t.after.d.start(t.after.seg)
	c.Sequence, c.Chain = t.sequence, t.chain
	w.bufs[0] = c.Encode(header)
	w.flight = &flight{sequence: c.Sequence, prev: t.last, landed: make(chan struct{})}
	if w.durable = w.durable || t.lsn > t.sure+lsnGap; w.durable {
		t.sure = t.lsn
	}
	t.before, t.last = t.last, w.flight
	t.sequence++
	t.chain = c.Sum
	t.at.used += total
	t.blocks += int64(total)
	t.sealed = len(c.Records) == 0
	return nil
}

// writeChunk writes a chunk that has its place, durably if one of the group
// asks for that, and enters it into the map when those before it are there.
func (p *Pool) writeChunk(w *writing) error {
	defer bufpool.Put(w.header)
	err := p.put(w)
	if before := w.flight.prev.await(); err == nil {
		err = before
	}
	if err == nil && w.durable && p.anyUnsynced() {
		// Recovery stops at the first chunk that is missing: a durable one needs
		// those before it to be durable too. Whichever drive fails is taken out
		// by the one that flushes it.
		err = p.syncDrives()
	}
	if err != nil {
		p.tailFailed.Store(true)
		w.flight.land(err)
		return err
	}
	p.landed.Store(w.flight.sequence)
	if w.durable {
		raise(&p.durable, w.flight.sequence)
	}
	p.cacheChunk(w.chunk, w.bufs[1:])
	p.applyMu.Lock()
	p.applyChunk(w.chunk, w.group, w.errs)
	p.applyMu.Unlock()
	w.flight.land(nil)
	return nil
}

// raise sets a to n if that is more.
func raise(a *atomic.Uint64, n uint64) {
	for old := a.Load(); old < n && !a.CompareAndSwap(old, n); old = a.Load() {
		continue
	}
}

func anySealing(group []*op) bool { return len(group) == 1 && group[0].sealing }

// list lists the chunk's buffers, the first of them to be the header, and
// returns the bytes of its records.
func (w *writing) list() (bytes int) {
	blocks := 1
	for _, o := range w.group {
		blocks += o.blocks
	}
	w.bufs = make([][]byte, 1, blocks)
	for i, o := range w.group {
		if w.errs[i] != nil {
			continue
		}
		w.durable = w.durable || o.durable
		for _, d := range o.data {
			for len(d) > 0 {
				w.bufs = append(w.bufs, d[:format.BlockSize])
				d = d[format.BlockSize:]
			}
		}
	}
	for i := range w.chunk.Records {
		bytes += w.chunk.Records[i].Size()
	}
	return bytes
}

// tailBroken tells whether the log cannot go on where it is. Under logMu.
func (p *Pool) tailBroken() bool {
	t := &p.tail
	if p.tailFailed.Load() {
		return true
	}
	for _, pl := range t.places() {
		if p.space.stateOf(pl.d) == devFailed {
			return true
		}
	}
	return false
}

// places are the segments that the log has taken.
func (t *tail) places() [3]place { return [3]place{t.at, t.next, t.after} }

// advance moves the tail to the next segment. Under logMu.
func (p *Pool) advance() error {
	after, err := p.space.take()
	if err != nil {
		p.noteFailed()
		return err
	}
	t := &p.tail
	p.space.fill(t.at)
	t.at, t.next, t.after = t.next, t.after, after
	return nil
}

// put writes the chunk's bytes. It is durable at once only if all before it is
// known to be: else a flush follows.
func (p *Pool) put(w *writing) error {
	var err error
	d, at := w.at.d, off(w.chunk.At)
	if w.durable && !p.anyUnsynced() {
		err = d.drive.WriteDurable(w.bufs, at)
	} else {
		err = d.drive.WriteAt(w.bufs, at)
		d.unsynced.Store(true) // after it: a flush meanwhile may have missed it
	}
	if err != nil && !fault.Is(err, fault.Full) {
		p.driveFailed(d, err)
	}
	for _, b := range w.bufs {
		p.written.Add(uint64(len(b)))
	}
	return err
}

// cacheChunk keeps what was written for readers.
func (p *Pool) cacheChunk(c *format.Chunk, bufs [][]byte) {
	at := c.At + format.Addr(c.Header)
	i := 0
	for r := range c.Records {
		rec := &c.Records[r]
		for j, h := range rec.Hashes {
			gen, lba := rec.Gen+uint64(j), rec.LBA+uint64(j)
			p.blocks.Put(uint64(at)+uint64(i), format.Sum(h, rec.Branch, lba, gen), bufs[i])
			i++
		}
	}
}

// applyChunk enters a chunk that is written into the map. Under applyMu.
func (p *Pool) applyChunk(c *format.Chunk, group []*op, errs []error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := c.At + format.Addr(c.Header)
	for i, o := range group {
		if errs[i] != nil {
			continue
		}
		errs[i] = p.tree.Mutate(nil, func(tx *maptree.Tx) error {
			a := &applier{p: p, tx: tx}
			if err := a.agrees(o.records); err != nil {
				return err
			}
			for j := range o.records {
				r := &o.records[j]
				if err := a.record(r, at); err != nil {
					return err
				}
				at += format.Addr(r.DataBlocks())
				p.applied = r.Gen + r.Gens() - 1
			}
			return nil
		})
		if errs[i] != nil && o.vol != nil {
			// The log says it is done and the map cannot say so. Going on would
			// make the two differ for ever; after a restart the log is right.
			p.halt(errs[i])
		}
	}
	p.refreshUsed()
}

// agrees tells whether the changes of the catalog among the records can all be
// done. Those of one chunk are one operation's.
func (a *applier) agrees(records []format.Record) error {
	var list []*format.Op
	for i := range records {
		if records[i].Kind != format.RecordCatalog {
			continue
		}
		o, err := format.DecodeOp(records[i].Payload)
		if err != nil {
			return err
		}
		list = append(list, o)
	}
	if len(list) < 2 {
		return nil // of one alone, applying it tells
	}
	return a.p.cat.checkAll(list)
}

// record applies one record, whose data begins at block at.
func (a *applier) record(r *format.Record, at format.Addr) error {
	if r.Kind == format.RecordCatalog {
		o, err := format.DecodeOp(r.Payload)
		if err != nil {
			return err
		}
		return a.p.cat.apply(o, r.Gen)
	}
	b := a.p.cat.branches[r.Branch]
	if b == nil {
		return nil // deleted and reclaimed since: recovery meets such
	}
	switch r.Kind {
	case format.RecordWrite:
		return a.write(b, r, at)
	case format.RecordTrim:
		return a.trim(b, r)
	case format.RecordCopy:
		return a.copyBlocks(b, r)
	default:
		invariant.Check(false, "store: a record of kind %d in the log", r.Kind)
		return nil
	}
}

// afterGroup wakes the background when there is work for it.
func (p *Pool) afterGroup() {
	if p.opt.Wake != nil && p.wantsWork() {
		p.opt.Wake()
	}
}
