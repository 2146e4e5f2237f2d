package store

import (
	"bytes"
	"cmp"

	"github.com/zeebo/xxh3"

	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/internal/invariant"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// checkpoint writes the map, the catalog and the segment table as they are
// now, and a superblock that names them. Under work.
//
// The order is what makes it safe: nodes and blobs go to places that the
// checkpoint on disk does not use; then all drives are flushed; then the
// superblock; and only when that is stable do segments become free that the old
// one may still need.
func (p *Pool) checkpoint() error {
	c, err := p.freeze()
	if err != nil {
		return err
	}
	if err := p.writeCheckpoint(c); err != nil {
		// The nodes this attempt placed belong to nothing.
		for _, a := range p.bg.placed {
			p.space.count(a, -1)
		}
		p.bg.placed, p.bg.table = nil, nil
		p.noteFailed()
		return err
	}
	p.bg.placed, p.bg.table = nil, nil
	p.space.release(c.dead)
	for _, d := range c.failed {
		d.unsynced.Store(false) // recovery does not go by it any more
	}
	p.logMu.Lock()
	if c.moved {
		p.tailFailed.Store(false)
	}
	raise(&p.durable, c.start.Sequence-1)
	p.tail.blocks -= c.logBlocks
	p.logMu.Unlock()
	p.recapacity()
	p.refreshUsed()
	return nil
}

// frozen is a moment of the pool on its way to disk.
type frozen struct {
	tree      *maptree.Frozen
	catalog   []byte
	start     format.LogStart
	dead      []place
	failed    []*dev // had failed by then: the log is not on them
	logBlocks int64
	moved     bool // the log begins at a new place, which nobody has written to
}

// freeze fixes the moment: between two chunks, with all placed ones in the map.
func (p *Pool) freeze() (*frozen, error) {
	p.logMu.Lock()
	defer p.logMu.Unlock()
	_ = p.tail.last.await() // whoever waits for it has its error
	moved := p.tailBroken() || p.tailLeaves(p.room())
	if moved {
		if err := p.restartLog(); err != nil {
			p.noteFailed()
			return nil, cmp.Or(p.usable(), err)
		}
	}
	p.applyMu.Lock()
	defer p.applyMu.Unlock()
	p.mu.RLock()
	defer p.mu.RUnlock()
	f, err := p.tree.Freeze()
	if err != nil {
		return nil, err
	}
	t := &p.tail
	c := &frozen{tree: f, catalog: p.cat.encode(), dead: p.space.dead(), logBlocks: t.blocks, moved: moved}
	c.start = format.LogStart{Segment: t.at.d.start(t.at.seg), Used: uint64(t.at.used), Next: t.next.d.start(t.next.seg), After: t.after.d.start(t.after.seg), Sequence: t.sequence, Chain: t.chain, LSN: t.lsn}
	p.bg.table = p.space.copyLive()
	for _, d := range p.space.list() {
		if p.space.stateOf(d) == devFailed {
			c.failed = append(c.failed, d)
		}
	}
	return c, nil
}

// tailLeaves tells whether the log is on a drive that is to be emptied and can
// go on elsewhere. Under logMu.
func (p *Pool) tailLeaves(r room) bool {
	if r.free <= r.floor+2 || p.tailBroken() {
		return false
	}
	for _, pl := range p.tail.places() {
		if !p.writable(pl.d) {
			return true
		}
	}
	return false
}

// restartLog takes new segments for the log; the checkpoint being frozen will
// name them. Nothing is under way. Under logMu.
func (p *Pool) restartLog() error {
	var fresh [3]place
	for i := range fresh {
		pl, err := p.space.take()
		if err != nil {
			for _, got := range fresh[:i] {
				p.space.fill(got)
			}
			return err
		}
		fresh[i] = pl
	}
	for _, old := range p.tail.places() {
		p.space.fill(old)
	}
	// Broken it stays until a superblock names the new place: nothing may be
	// acknowledged there before.
	p.tailFailed.Store(true)
	p.tail.at, p.tail.next, p.tail.after = fresh[0], fresh[1], fresh[2]
	p.tail.last, p.tail.before = nil, nil // what failed there has no followers here
	// The chain starts anew: a chunk of the old end must not follow.
	p.tail.chain = xxh3.Hash(p.id[:]) ^ uint64(p.opt.Now())
	return nil
}

func (p *Pool) writeCheckpoint(c *frozen) error {
	root, err := c.tree.Write()
	if err != nil {
		return err
	}
	// From here on the tree counts on these nodes, whatever becomes of the
	// checkpoint.
	p.bg.placed = nil
	healthy := len(p.space.healthy())
	old := [2]format.Blob{p.bg.tableBlob, p.bg.catalogBlob}
	catalogBlob, err := p.writeBlob(c.catalog)
	if err != nil {
		return err
	}
	// The table counts itself: its place is taken before it is encoded. What
	// the old blobs took is free in it.
	for _, b := range old {
		p.eachBlock(b, func(a format.Addr) {
			d, seg := p.space.at(a)
			p.bg.table.count(d, seg, -1)
		})
	}
	addrs, err := p.placeMeta((p.bg.table.size() + format.BlockSize - 1) / format.BlockSize)
	if err != nil {
		return err
	}
	table := p.bg.table.encode(p.space)
	tableBlob := describeBlob(table, addrs)
	if err := p.storeMeta(split(table), addrs); err != nil {
		return err
	}
	if err := p.flushDrives(); err != nil {
		return err
	}
	if len(p.space.healthy()) != healthy {
		// Somebody else's flush failed: what lies on that drive is in doubt.
		return fault.New(fault.Failed, "a drive failed during the checkpoint")
	}
	sb := &format.Superblock{
		Pool: p.id, Sequence: p.sequence.Load() + 1, Name: p.name, Log: c.start, Table: tableBlob, Catalog: catalogBlob,
		Root: format.RootEntry{Addr: uint64(root.Addr), Sum: root.Sum, Level: root.Level, Entries: root.Entries, Nodes: root.Nodes},
	}
	if err := p.writeSuperblocks(sb); err != nil {
		return err
	}
	p.sequence.Add(1)
	for _, b := range old {
		p.eachBlock(b, func(a format.Addr) { p.space.count(a, -1) })
	}
	p.bg.tableBlob, p.bg.catalogBlob = tableBlob, catalogBlob
	p.blobBlocks.Store(blobLen(tableBlob) + blobLen(catalogBlob))
	return nil
}

func blobLen(b format.Blob) (n int64) {
	for _, e := range b.Extents {
		n += int64(e.Blocks)
	}
	return n
}

func (p *Pool) eachBlock(b format.Blob, fn func(format.Addr)) {
	for _, e := range b.Extents {
		for i := range e.Blocks {
			fn(e.At + format.Addr(i))
		}
	}
}

// split cuts b into aligned blocks, the last one padded with zeros.
func split(b []byte) (out [][]byte) {
	n := (len(b) + format.BlockSize - 1) / format.BlockSize
	all := bufpool.Aligned(n * format.BlockSize)
	copy(all, b)
	for i := range n {
		out = append(out, all[i*format.BlockSize:(i+1)*format.BlockSize])
	}
	return out
}

// writeBlob stores bytes in segments of map nodes.
func (p *Pool) writeBlob(b []byte) (format.Blob, error) {
	addrs, err := p.writeMeta(split(b))
	if err != nil {
		return format.Blob{}, err
	}
	return describeBlob(b, addrs), nil
}

// describeBlob makes extents of consecutive addresses.
func describeBlob(b []byte, addrs []format.Addr) format.Blob {
	out := format.Blob{Bytes: uint64(len(b)), Sum: xxh3.Hash(b)}
	for _, a := range addrs {
		if n := len(out.Extents); n > 0 && out.Extents[n-1].At+format.Addr(out.Extents[n-1].Blocks) == a {
			out.Extents[n-1].Blocks++
			continue
		}
		out.Extents = append(out.Extents, format.Extent{At: a, Blocks: 1})
	}
	return out
}

// writeMeta places and stores blocks of the checkpoint under way.
func (p *Pool) writeMeta(blocks [][]byte) ([]format.Addr, error) {
	addrs, err := p.placeMeta(len(blocks))
	if err != nil {
		return nil, err
	}
	return addrs, p.storeMeta(blocks, addrs)
}

// placeMeta takes room for n blocks and counts them live, in the checkpoint's
// table too.
func (p *Pool) placeMeta(n int) ([]format.Addr, error) {
	var addrs []format.Addr
	pl := &p.bg.nodes
	for range n {
		if pl.d != nil && (pl.room() == 0 || !p.writable(pl.d)) {
			p.space.fill(*pl)
			pl.d = nil
		}
		if pl.d == nil {
			next, err := p.space.take()
			if err != nil {
				return nil, err
			}
			*pl = next
		}
		a := pl.addr()
		pl.used++
		p.space.count(a, 1)
		p.bg.table.count(pl.d, pl.seg, 1)
		p.bg.placed = append(p.bg.placed, a)
		addrs = append(addrs, a)
	}
	return addrs, nil
}

func (p *Pool) writable(d *dev) bool {
	p.space.mu.Lock()
	defer p.space.mu.Unlock()
	return d.state == devOnline
}

// storeMeta writes blocks to their addresses, neighbours together.
func (p *Pool) storeMeta(blocks [][]byte, addrs []format.Addr) error {
	for len(blocks) > 0 {
		n := 1
		for n < len(blocks) && addrs[n] == addrs[0]+format.Addr(n) {
			n++
		}
		if err := p.storeRun(blocks[:n], addrs[0]); err != nil {
			return err
		}
		blocks, addrs = blocks[n:], addrs[n:]
	}
	return nil
}

// storeRun writes blocks that lie next to each other, not yet durably.
func (p *Pool) storeRun(blocks [][]byte, at format.Addr) error {
	p.space.mu.Lock()
	d, _ := p.space.at(at)
	p.space.mu.Unlock()
	p.written.Add(uint64(len(blocks) * format.BlockSize))
	err := d.drive.WriteAt(blocks, off(at))
	d.unsynced.Store(true) // after it: a flush meanwhile may have missed it
	if err != nil && !fault.Is(err, fault.Full) {
		p.driveFailed(d, err)
	}
	return err
}

// writeSuperblocks stores the superblock on every drive that works, in the
// slot that does not hold the present one, and reads it back: the moment it
// stands, what the old one needs may be overwritten, so it must stand.
func (p *Pool) writeSuperblocks(sb *format.Superblock) error {
	sb.Drives = p.describeDrives()
	buf := bufpool.Get(format.SuperblockSize)
	back := bufpool.Get(format.SuperblockSize)
	defer bufpool.Put(buf)
	defer bufpool.Put(back)
	var first error
	done := 0
	for _, d := range freshFirst(p.space.healthy()) {
		sb.Drive = d.id
		b, err := format.EncodeSuperblock(sb)
		if err != nil {
			return err
		}
		copy(buf, b)
		for _, backup := range []bool{false, true} {
			at := int64(format.SuperblockBlock(format.SuperblockSlot(sb.Sequence, backup))) * format.BlockSize
			if err == nil {
				err = writeBack(d, buf, back, at)
			}
		}
		if fault.Is(err, fault.Full) {
			return err
		}
		if err != nil {
			p.driveFailed(d, err)
			first = err
			continue
		}
		d.fresh = false
		done++
	}
	p.written.Add(uint64(done * 2 * format.SuperblockSize))
	if done == 0 {
		return fault.Wrap(fault.Failed, first, "no drive took the superblock")
	}
	// A drive that failed just now is in the list as online. The next
	// checkpoint says it; until then it is as if it had failed a moment later.
	return nil
}

// writeBack stores buf durably and reads it back, into back.
func writeBack(d *dev, buf, back []byte, at int64) error {
	if err := d.drive.WriteDurable([][]byte{buf}, at); err != nil {
		return err
	}
	if err := d.drive.ReadAt(back, at); err != nil {
		return err
	}
	if !bytes.Equal(buf, back) {
		return fault.New(fault.Failed, "drive %s does not return the superblock just written", d.name)
	}
	return nil
}

// freshFirst puts drives that have no superblock yet before the others: as soon
// as one superblock names them, recovery asks for them.
func freshFirst(list []*dev) (out []*dev) {
	for _, fresh := range []bool{true, false} {
		for _, d := range list {
			if d.fresh == fresh {
				out = append(out, d)
			}
		}
	}
	return out
}

func (p *Pool) describeDrives() (out []format.DriveEntry) {
	p.space.mu.Lock()
	defer p.space.mu.Unlock()
	for _, d := range p.space.devs {
		if d == nil {
			out = append(out, format.DriveEntry{})
			continue
		}
		out = append(out, format.DriveEntry{ID: d.id, Name: d.name, Blocks: d.blocks, SegmentBlocks: d.segBlocks, State: uint8(d.state)})
	}
	invariant.Check(len(out) <= format.DrivesMax, "store: %d drives", len(out))
	return out
}
