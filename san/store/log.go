package store

import (
	"runtime"

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
	durable  uint64 // greatest sequence known to be durable
	lsn      uint64 // next generation
	// broken: a write failed, so what lies at the tail is unknown. The log goes
	// on elsewhere, after a checkpoint that names the new place.
	broken bool
	sealed bool // the last chunk is an empty one, or there is none
	blocks int64
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
		if n > 0 && blocks+format.HeaderBlocks(bytes) > limit {
			break
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
// The next chunk may be written while this one is entered, never the other way
// round: applyMu is taken before logMu is let go.
func (p *Pool) writeGroup() {
	p.queueMu.Lock()
	sealing := len(p.queue) > 0 && p.queue[0].sealing
	hurry := len(p.queue) == 1 && !p.queue[0].durable
	p.queueMu.Unlock()
	if hurry {
		// A write to memory is over before others can join it, and a chunk of
		// one block is half header. Those who are about to write may do so first.
		runtime.Gosched()
	}
	roomErr := p.ensureRoom(sealing)
	p.logMu.Lock()
	for roomErr == nil && p.tailBroken() {
		// A checkpoint moves the log just now: go on where it will be.
		p.logMu.Unlock()
		roomErr = p.ensureRoom(sealing)
		p.logMu.Lock()
	}
	group := p.takeGroup()
	c, errs := p.buildChunk(group)
	var err error
	if err = roomErr; err == nil {
		err = p.writeChunk(c, group, errs)
	}
	p.applyMu.Lock()
	barrier := len(group) > 0 && group[len(group)-1].vol == nil
	if !barrier {
		p.logMu.Unlock()
		p.passOn()
	}
	if err == nil {
		p.applyChunk(c, group, errs)
	}
	p.applyMu.Unlock()
	if barrier {
		p.logMu.Unlock()
		p.passOn()
	}
	for i, o := range group {
		e := errs[i]
		if e == nil {
			e = err
		}
		p.pending.Add(-o.reserve)
		o.err = e
		o.wake <- false
	}
	p.afterGroup()
}

// buildChunk gives the group's records their generations, and operations that
// cannot go (their volume is gone) an error. Under logMu.
func (p *Pool) buildChunk(group []*op) (*format.Chunk, []error) {
	c := &format.Chunk{Pool: p.tag, Durable: p.tail.durable, Checkpoint: p.sequence.Load()}
	errs := make([]error, len(group))
	p.mu.RLock()
	defer p.mu.RUnlock()
	for i, o := range group {
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
	return c, errs
}

// writeChunk places the chunk at the tail and writes it, durably if one of the
// group asks for that. Under logMu.
func (p *Pool) writeChunk(c *format.Chunk, group []*op, errs []error) error {
	bufs, durable, bytes := p.gather(c, group, errs)
	if len(c.Records) == 0 && !anySealing(group) {
		return nil
	}
	header := bufpool.Get(format.HeaderBlocks(bytes) * format.BlockSize)
	defer bufpool.Put(header)
	t := &p.tail
	total := uint32(len(header)/format.BlockSize + len(bufs) - 1)
	if t.at.room() < total {
		if err := p.advance(); err != nil {
			return err
		}
	}
	c.At, c.Next, c.After = t.at.addr(), t.next.d.start(t.next.seg), t.after.d.start(t.after.seg)
	c.Sequence, c.Chain = t.sequence, t.chain
	bufs[0] = c.Encode(header)
	if err := p.put(t.at.d, bufs, off(c.At), durable); err != nil {
		return err
	}
	if durable {
		t.durable = c.Sequence
	}
	t.sequence++
	t.chain = c.Sum
	t.at.used += total
	t.blocks += int64(total)
	t.sealed = len(c.Records) == 0
	p.cacheChunk(c, bufs[1:])
	return nil
}

func anySealing(group []*op) bool { return len(group) == 1 && group[0].sealing }

// gather lists the chunk's buffers, the first of them to be the header.
func (p *Pool) gather(c *format.Chunk, group []*op, errs []error) (bufs [][]byte, durable bool, bytes int) {
	blocks := 1
	for _, o := range group {
		blocks += o.blocks
	}
	bufs = make([][]byte, 1, blocks)
	for i, o := range group {
		if errs[i] != nil {
			continue
		}
		durable = durable || o.durable
		for _, d := range o.data {
			for len(d) > 0 {
				bufs = append(bufs, d[:format.BlockSize])
				d = d[format.BlockSize:]
			}
		}
	}
	for i := range c.Records {
		bytes += c.Records[i].Size()
	}
	return bufs, durable, bytes
}

// tailBroken tells whether the log cannot go on where it is. Under logMu.
func (p *Pool) tailBroken() bool {
	t := &p.tail
	if t.broken {
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

// put writes a chunk. A durable one needs those before it to be durable too:
// recovery stops at the first that is missing.
func (p *Pool) put(d *dev, bufs [][]byte, off int64, durable bool) error {
	var err error
	flush := durable && p.anyUnsynced()
	if durable && !flush {
		err = d.drive.WriteDurable(bufs, off)
	} else {
		err = d.drive.WriteAt(bufs, off)
		d.unsynced.Store(true) // after it: a flush meanwhile may have missed it
	}
	switch {
	case err == nil && flush:
		// Whichever drive fails is taken out by the one that flushes it.
		if err = p.syncDrives(); err != nil {
			p.tail.broken = true
		}
	case err != nil && !fault.Is(err, fault.Full):
		p.driveFailed(d, err)
		p.tail.broken = true
	}
	for _, b := range bufs {
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
