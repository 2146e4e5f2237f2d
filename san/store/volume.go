package store

import (
	"slices"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// Volume is an open volume or snapshot: a block.Device, and what a logical
// unit wants to know beyond that.
type Volume struct {
	p    *Pool
	vol  *volume
	snap *snapshot // nil for the volume itself
	past *view     // of a snapshot
}

var _ block.Device = (*Volume)(nil)

// VolumeEvent is what Watch reports.
type VolumeEvent uint8

// Volume events.
const (
	VolumeResized   VolumeEvent = iota // capacity data has changed
	VolumeThreshold                    // the pool's thin threshold was crossed
	VolumeChanged                      // write cache or read-only changed
	VolumeReplaced                     // the content was rolled back
)

// view returns where v's blocks are looked for now.
func (v *Volume) view() *view {
	if v.past != nil {
		return v.past
	}
	return v.vol.view.Load()
}

// check refuses what lies outside the device or between sectors.
func (v *Volume) check(off, n int64) error {
	switch size := v.Size(); {
	case off < 0 || n < 0 || off > size-n:
		return fault.New(fault.Invalid, "%d bytes at %d are outside of volume %q (%d bytes)", n, off, v.vol.name, size)
	case off%block.SectorSize != 0 || n%block.SectorSize != 0:
		return fault.New(fault.Invalid, "%d bytes at %d are not whole sectors", n, off)
	}
	return nil
}

// writable refuses changes of what must not change.
func (v *Volume) writable() error {
	if v.snap != nil {
		return fault.New(fault.ReadOnly, "snapshots do not change; clone %q to write", v.snap.name)
	}
	if v.vol.readOnly.Load() {
		return fault.New(fault.ReadOnly, "volume %q is read-only", v.vol.name)
	}
	return v.p.admitting()
}

// durable tells whether an answer must mean stable storage.
func (v *Volume) durable(flags block.Flags) bool {
	return flags&block.FUA != 0 || !v.vol.writeCache.Load()
}

// WriteAt implements block.Device.
func (v *Volume) WriteAt(p []byte, off int64, flags block.Flags) error {
	if err := v.check(off, int64(len(p))); err != nil {
		return err
	}
	if err := v.writable(); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	end := off + int64(len(p))
	head, tail := off%block.BlockSize != 0, end%block.BlockSize != 0
	unlock := v.vol.locks.lock(span{from: uint64(off / block.BlockSize), to: uint64((end + block.BlockSize - 1) / block.BlockSize), loneFirst: head, loneLast: tail})
	defer unlock()
	v.p.userBytes.Add(uint64(len(p)))
	if !head && !tail && bufpool.IsAligned(p) {
		return v.store(p, uint64(off/block.BlockSize), v.durable(flags))
	}
	buf, from, err := v.whole(p, off)
	if err != nil {
		return err
	}
	defer bufpool.Put(buf)
	return v.store(buf, uint64(from/block.BlockSize), v.durable(flags))
}

// whole returns p in an aligned buffer of whole blocks from offset from on,
// filled up with what the volume holds around it. The caller is alone on the
// blocks at the ends. A block that cannot be read is an error: writing a part of
// it would bless the rest.
func (v *Volume) whole(p []byte, off int64) (buf []byte, from int64, err error) {
	from = off / block.BlockSize * block.BlockSize
	end := off + int64(len(p))
	to := (end + block.BlockSize - 1) / block.BlockSize * block.BlockSize
	buf = bufpool.Get(int(to - from))
	if off != from {
		err = v.readBlocks(buf[:block.BlockSize], uint64(from/block.BlockSize))
	}
	if last := to - block.BlockSize; err == nil && end != to && (last != from || off == from) {
		err = v.readBlocks(buf[last-from:], uint64(last/block.BlockSize))
	}
	if err != nil {
		bufpool.Put(buf)
		return nil, 0, err
	}
	copy(buf[off-from:], p)
	return buf, from, nil
}

// store puts whole blocks from lba on into the log. p is aligned. The caller
// holds the stripes.
func (v *Volume) store(p []byte, lba uint64, durable bool) error {
	const most = opBlocksMax * block.BlockSize
	if len(p) <= most {
		o, err := v.makeOp(p, lba, durable)
		if err != nil {
			return err
		}
		return v.p.commit(o)
	}
	var ops []*op
	for len(p) > 0 {
		n := min(len(p), most)
		o, err := v.makeOp(p[:n], lba, durable)
		if err != nil {
			v.p.forget(ops)
			return err
		}
		ops = append(ops, o)
		p, lba = p[n:], lba+uint64(n/block.BlockSize)
	}
	return v.p.commit(ops...)
}

// forget gives back what operations that will not be committed set aside.
func (p *Pool) forget(ops []*op) {
	for _, o := range ops {
		p.pending.Add(-o.reserve)
	}
}

// makeOp makes one operation of up to opBlocksMax blocks. Runs of zeros become
// trims: they take no space.
func (v *Volume) makeOp(p []byte, lba uint64, durable bool) (*op, error) {
	o := &op{vol: v.vol, durable: durable}
	var hashes []uint64
	start := 0 // of the run of data that hashes belongs to
	flush := func(to int) {
		if len(hashes) > 0 {
			o.records = append(o.records, format.Record{Kind: format.RecordWrite, LBA: lba + uint64(start), N: uint64(len(hashes)), Hashes: hashes})
			o.data = append(o.data, p[start*block.BlockSize:to*block.BlockSize])
			o.blocks += len(hashes)
			hashes = nil
		}
	}
	blocks := len(p) / block.BlockSize
	for i := 0; i < blocks; i++ {
		b := p[i*block.BlockSize : (i+1)*block.BlockSize]
		if !isZero(b) {
			if hashes == nil {
				start = i
				hashes = make([]uint64, 0, blocks-i)
			}
			hashes = append(hashes, format.Hash(b))
			continue
		}
		flush(i)
		if n := len(o.records); n > 0 && o.records[n-1].Kind == format.RecordTrim && o.records[n-1].LBA+o.records[n-1].N == lba+uint64(i) {
			o.records[n-1].N++
		} else {
			o.records = append(o.records, format.Record{Kind: format.RecordTrim, LBA: lba + uint64(i), N: 1})
		}
	}
	flush(blocks)
	need, err := v.need(o)
	if err != nil {
		return nil, err
	}
	if err := v.p.admit(need); err != nil {
		return nil, err
	}
	o.reserve = need
	return o, nil
}

// isZero tells whether a block is all zeros.
func isZero(b []byte) bool {
	for len(b) >= 8 {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
		b = b[8:]
	}
	return true
}

// need counts the blocks of space that an operation takes: those that replace
// nothing. Looking also brings the map's nodes into memory before the log's
// order is held up for them, and finds damage in them in time.
func (v *Volume) need(o *op) (int64, error) {
	b := v.vol.view.Load().head
	maxPin := b.maxPin.Load()
	var fewEntries [4]maptree.Entry
	var fewFound [4]bool
	entries, found := fewEntries[:], fewFound[:]
	need := int64(0)
	for i := range o.records {
		r := &o.records[i]
		n := int(r.N)
		if n > len(entries) {
			entries, found = make([]maptree.Entry, opBlocksMax), make([]bool, opBlocksMax)
		}
		if err := v.p.tree.LookupRange(b.id, r.LBA, n, format.GenMax, entries[:n], found[:n]); err != nil {
			return 0, v.p.noteNode(err)
		}
		if r.Kind != format.RecordWrite {
			continue
		}
		for j := range n {
			if !found[j] || entries[j].Gen <= maxPin || kindOf(entries[j]) != format.KindData {
				need++
			}
		}
	}
	return need, nil
}

// Flush implements block.Device.
func (v *Volume) Flush() error {
	if err := v.p.admitting(); err != nil {
		return err
	}
	return v.p.flushLog()
}

// Trim implements block.Device.
func (v *Volume) Trim(off, n int64) error { return v.Zero(off, n, 0) }

// Zero implements block.Device. Whole blocks become holes; of blocks at the
// ends, the part in the range is overwritten.
func (v *Volume) Zero(off, n int64, flags block.Flags) error {
	if err := v.check(off, n); err != nil {
		return err
	}
	if err := v.writable(); err != nil {
		return err
	}
	end := off + n
	from := min((off+block.BlockSize-1)/block.BlockSize*block.BlockSize, end)
	to := max(end/block.BlockSize*block.BlockSize, from)
	for _, part := range [][2]int64{{off, from}, {to, end}} {
		if part[0] < part[1] {
			if err := v.zeroPart(part[0], part[1], flags); err != nil {
				return err
			}
		}
	}
	if err := v.trimBlocks(uint64(from/block.BlockSize), uint64(to/block.BlockSize), v.durable(flags)); err != nil {
		return err
	}
	if v.durable(flags) && v.p.anyUnsynced() {
		// What was a hole already may be one by a trim that is not stable yet.
		return v.p.syncDrives()
	}
	return nil
}

// zeroPart overwrites a part of one block with zeros, if it holds data.
func (v *Volume) zeroPart(from, to int64, flags block.Flags) error {
	if mapped, _, err := v.Mapped(from, block.SectorSize); err != nil || !mapped {
		return err
	}
	zeros := bufpool.Get(block.BlockSize)
	defer bufpool.Put(zeros)
	clear(zeros)
	return v.WriteAt(zeros[:to-from], from, flags)
}

// trimRunMax bounds the blocks of one trim record, and so the time for which
// the map is held to apply it.
const trimRunMax = 4096

// trimBlocks makes the blocks in [from, to) holes. Only runs that hold data are
// logged, so that a trim of a hole of any size costs next to nothing.
func (v *Volume) trimBlocks(from, to uint64, durable bool) error {
	for from < to {
		start, n, err := v.mappedRun(from, to)
		if err != nil || n == 0 {
			return err
		}
		unlock := v.vol.locks.lock(span{from: start, to: start + n})
		o := &op{vol: v.vol, durable: durable, records: []format.Record{{Kind: format.RecordTrim, LBA: start, N: n}}}
		err = v.p.commit(o)
		unlock()
		if err != nil {
			return err
		}
		from = start + n
	}
	return nil
}

// mappedRun finds the first run in [from, to) worth a trim record: blocks that
// have entries, with gaps smaller than a run between them.
func (v *Volume) mappedRun(from, to uint64) (start, n uint64, err error) {
	first, ok, err := v.nextEntry(from, to)
	if err != nil || !ok {
		return 0, 0, err
	}
	return first, min(to, first+trimRunMax) - first, nil
}

// nextEntry returns the first block in [from, to) that the view has any entry
// for. It looks at the oldest branch first: what a write to a younger one takes
// out of it meanwhile is then found in that one.
func (v *Volume) nextEntry(from, to uint64) (lba uint64, found bool, err error) {
	lba = to
	for _, l := range slices.Backward(v.view().links) {
		var hit uint64
		any := false
		err := v.p.tree.Scan(maptree.Key{Branch: l.branch, LBA: from, Gen: format.GenMax}, maptree.Key{Branch: l.branch, LBA: lba, Gen: format.GenMax}, 0, func(e maptree.Entry) bool {
			if e.Gen > l.lsn || kindOf(e) == format.KindHole {
				return true
			}
			hit, any = e.LBA, true
			return false
		})
		if err != nil {
			return 0, false, v.p.noteNode(err)
		}
		if any {
			lba, found = hit, true
		}
	}
	return lba, found, nil
}

// CompareAndWrite implements block.Device.
func (v *Volume) CompareAndWrite(off int64, old, new []byte, flags block.Flags) (int64, error) {
	if err := v.check(off, int64(len(old))); err != nil {
		return 0, err
	}
	if len(old) != len(new) {
		return 0, fault.New(fault.Invalid, "compare and write: %d bytes against %d", len(old), len(new))
	}
	if err := v.writable(); err != nil {
		return 0, err
	}
	if len(old) == 0 {
		return -1, nil
	}
	from := off / block.BlockSize * block.BlockSize
	to := (off + int64(len(old)) + block.BlockSize - 1) / block.BlockSize * block.BlockSize
	unlock := v.vol.locks.lock(span{from: uint64(from / block.BlockSize), to: uint64(to / block.BlockSize), lone: true})
	defer unlock()
	buf := bufpool.Get(int(to - from))
	defer bufpool.Put(buf)
	if err := v.readBlocks(buf, uint64(from/block.BlockSize)); err != nil {
		return 0, err
	}
	have := buf[off-from:]
	for i := range old {
		if have[i] != old[i] {
			return int64(i), nil
		}
	}
	copy(have, new)
	v.p.userBytes.Add(uint64(len(new)))
	return -1, v.store(buf, uint64(from/block.BlockSize), v.durable(flags))
}

// Size implements block.Device.
func (v *Volume) Size() int64 {
	if v.snap != nil {
		return v.snap.size
	}
	return v.vol.size.Load()
}

// ID returns the volume's identifier, from which its NAA name is made.
func (v *Volume) ID() ID { return v.vol.id }

// Name returns the volume's present name.
func (v *Volume) Name() string {
	v.p.mu.RLock()
	defer v.p.mu.RUnlock()
	return v.vol.name
}

// WriteCache reports whether writes are answered before they are stable.
func (v *Volume) WriteCache() bool { return v.vol.writeCache.Load() }

// SetWriteCache changes that; turning it off flushes first. Kept with the
// volume.
func (v *Volume) SetWriteCache(on bool) error {
	_, err := v.p.ChangeVolume(v.Name(), VolumeChange{WriteCache: &on})
	return err
}

// ReadOnly reports whether writes are refused.
func (v *Volume) ReadOnly() bool { return v.snap != nil || v.vol.readOnly.Load() }

// Watch registers fn to be called, without locks held and without blocking,
// when something happened that the volume's users should learn of.
func (v *Volume) Watch(fn func(VolumeEvent)) (stop func()) {
	v.p.mu.Lock()
	defer v.p.mu.Unlock()
	vol := v.vol
	if vol.watchers == nil {
		vol.watchers = map[int]func(VolumeEvent){}
	}
	key := vol.watched
	vol.watched++
	vol.watchers[key] = fn
	return func() {
		v.p.mu.Lock()
		defer v.p.mu.Unlock()
		delete(vol.watchers, key)
	}
}

// watcherList returns who watches v. Under mu.
func (v *volume) watcherList() (out []func(VolumeEvent)) {
	for _, fn := range v.watchers {
		out = append(out, fn)
	}
	return out
}

// Close ends this opening.
func (v *Volume) Close() error {
	v.p.mu.Lock()
	defer v.p.mu.Unlock()
	if v.snap != nil {
		v.snap.open--
		return nil
	}
	v.vol.open--
	return nil
}

// Attribute returns a small value kept with the volume (nil when unset), and
// SetAttribute stores one durably before it returns (nil deletes). At most
// 64 KiB each. Persistent reservations live here.
func (v *Volume) Attribute(key string) ([]byte, error) {
	v.p.mu.RLock()
	defer v.p.mu.RUnlock()
	val, ok := v.vol.attributes[key]
	if !ok {
		return nil, nil
	}
	return append([]byte{}, val...), nil
}

// SetAttribute stores a value; see Attribute.
func (v *Volume) SetAttribute(key string, value []byte) error {
	if len(value) > 64<<10 || len(key) > 255 {
		return fault.New(fault.Limit, "an attribute of %d bytes; at most 64 KiB", len(value))
	}
	_, err := v.p.change(&format.Op{Kind: format.OpAttribute, Volume: v.vol.id, Name: key, Value: value, Delete: value == nil})
	return err
}

// copyRunMax bounds the blocks of one copy record.
const copyRunMax = 256

// CopyFrom makes [dst, dst+n) of v read as [src, src+n) of from, by reference
// where both are of one pool and all three numbers are multiples of
// block.BlockSize, and by copying else. As one write to v for ordering.
func (v *Volume) CopyFrom(dst int64, from *Volume, src, n int64, flags block.Flags) error {
	if err := v.check(dst, n); err != nil {
		return err
	}
	if err := from.check(src, n); err != nil {
		return err
	}
	if err := v.writable(); err != nil {
		return err
	}
	if v.p != from.p || dst%block.BlockSize != 0 || src%block.BlockSize != 0 || n%block.BlockSize != 0 {
		return v.copyBytes(dst, from, src, n, flags)
	}
	return v.copyBlocks(uint64(dst/block.BlockSize), from, uint64(src/block.BlockSize), uint64(n/block.BlockSize), v.durable(flags))
}

// copyBlocks copies by reference. Overlapping ranges of one volume are copied
// as if all were read first: from the end when the target lies behind.
func (v *Volume) copyBlocks(dst uint64, from *Volume, src, n uint64, durable bool) error {
	if n == 0 {
		return nil
	}
	backwards := v.vol == from.vol && from.snap == nil && dst > src && dst < src+n
	unlock := v.vol.locks.lock(span{from: dst, to: dst + n})
	defer unlock()
	for done := uint64(0); done < n; {
		k := min(copyRunMax, n-done)
		at := done
		if backwards {
			at = n - done - k
		}
		if err := v.copyRun(dst+at, from, src+at, k, durable); err != nil {
			return err
		}
		done += k
	}
	return nil
}

func (v *Volume) copyRun(dst uint64, from *Volume, src, n uint64, durable bool) error {
	// Nothing is stored but map entries, up to three for a block: count them
	// generously, as a block of map for every thirty.
	need := int64(n/30 + 1)
	if err := v.p.admit(need); err != nil {
		return err
	}
	o := &op{
		vol: v.vol, from: from, durable: durable, reserve: need,
		records: []format.Record{{Kind: format.RecordCopy, LBA: dst, N: n, SrcLBA: src}},
	}
	return v.p.commit(o)
}

// source fills in where a copy reads from: v as it is at this place of the log.
// Under logMu and mu.
func (v *Volume) source(r *format.Record) error {
	if v.vol.deleted {
		return fault.New(fault.NotFound, "volume %q was deleted", v.vol.name)
	}
	if v.snap != nil {
		r.SrcBranch, r.SrcGen = v.snap.branch.id, v.snap.pin.lsn
		return nil
	}
	r.SrcBranch, r.SrcGen = v.vol.branch.id, r.Gen-1
	return nil
}

// copyBytes copies by reading and writing: between pools, or off the blocks'
// borders.
func (v *Volume) copyBytes(dst int64, from *Volume, src, n int64, flags block.Flags) error {
	const most = 1 << 20
	buf := bufpool.Get(most)
	defer bufpool.Put(buf)
	backwards := v.vol == from.vol && from.snap == nil && dst > src && dst < src+n
	for done := int64(0); done < n; {
		k := min(most, n-done)
		at := done
		if backwards {
			at = n - done - k
		}
		if err := from.ReadAt(buf[:k], src+at); err != nil {
			return err
		}
		if err := v.WriteAt(buf[:k], dst+at, flags); err != nil {
			return err
		}
		done += k
	}
	return nil
}
