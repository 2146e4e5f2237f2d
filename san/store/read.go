package store

import (
	"fmt"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/drive"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// readBatch is how many blocks are looked up at once, and retriesMax how often
// a block is looked up anew because it moved while it was read.
const (
	readBatch  = 128
	retriesMax = 8
)

// A run of streamBlocks or more that comes from a drive is kept in the cache
// only each streamKeep-th time. It is most likely part of something that is read
// through once, for which caching costs a third of the speed and pushes out what
// is read again; what is read through again and again gets there all the same.
const (
	streamBlocks = 16
	streamKeep   = 8
)

// found is a block's place as the map gave it.
type found struct {
	entry maptree.Entry
	addr  format.Addr // 0: a hole
}

// ReadAt implements block.Device.
func (v *Volume) ReadAt(p []byte, off int64) error {
	if err := v.check(off, int64(len(p))); err != nil {
		return err
	}
	return v.eachPiece(p, off, v.readBlocks)
}

// eachPiece calls read with whole blocks that make up the range: straight into
// p where it is aligned, through a buffer where not.
func (v *Volume) eachPiece(p []byte, off int64, read func([]byte, uint64) error) error {
	for len(p) > 0 {
		lba, skip := uint64(off/block.BlockSize), int(off%block.BlockSize)
		n := min(len(p), readBatch*block.BlockSize-skip)
		if skip == 0 && n >= block.BlockSize && bufpool.IsAligned(p) {
			n = n / block.BlockSize * block.BlockSize
			if err := read(p[:n], lba); err != nil {
				return err
			}
		} else {
			blocks := (skip + n + block.BlockSize - 1) / block.BlockSize
			buf := bufpool.Get(blocks * block.BlockSize)
			err := read(buf, lba)
			copy(p[:n], buf[skip:])
			bufpool.Put(buf)
			if err != nil {
				return err
			}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// readBlocks fills p, at most readBatch aligned blocks, from lba on.
func (v *Volume) readBlocks(p []byte, lba uint64) error {
	n := len(p) / block.BlockSize
	places := make([]found, n)
	if err := v.locate(lba, places); err != nil {
		return err
	}
	var runs []run
	for i := 0; i < n; {
		b := p[i*block.BlockSize : (i+1)*block.BlockSize]
		f := &places[i]
		if f.addr == 0 {
			clear(b)
			i++
			continue
		}
		if v.p.blocks.Get(uint64(f.addr), f.entry.Sum, b) {
			i++
			continue
		}
		k := 1
		for i+k < n && places[i+k].addr == f.addr+format.Addr(k) {
			k++
		}
		runs = append(runs, run{i, k})
		i += k
	}
	return v.readRuns(p, lba, places, runs)
}

// run is blocks that lie next to each other on a drive, by place in a request.
type run struct{ first, blocks int }

// readRuns reads runs, all at once, and verifies each block. One that does not
// match may have moved since it was looked up.
func (v *Volume) readRuns(p []byte, lba uint64, places []found, runs []run) error {
	if len(runs) == 0 {
		return nil
	}
	reads, addrs := make([]drive.Read, len(runs)), make([]format.Addr, len(runs))
	for i, r := range runs {
		reads[i].P = p[r.first*block.BlockSize : (r.first+r.blocks)*block.BlockSize]
		addrs[i] = places[r.first].addr
	}
	if len(runs) == 1 {
		reads[0].Err = v.p.space.read(addrs[0], reads[0].P)
	} else {
		v.p.space.readBatch(addrs, reads)
	}
	for k, r := range runs {
		keep := r.blocks < streamBlocks || v.p.streams.Add(1)%streamKeep == 0
		for i := r.first; i < r.first+r.blocks; i++ {
			b := p[i*block.BlockSize : (i+1)*block.BlockSize]
			if reads[k].Err == nil && v.p.verify(&places[i], b, keep) {
				continue
			}
			if err := v.readAgain(b, lba+uint64(i), places[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// verify checks a block that came from a drive, and keeps it, if it is right, in
// the cache.
func (p *Pool) verify(f *found, b []byte, keep bool) bool {
	e := &f.entry
	if format.Sum(format.Hash(b), e.Branch, e.LBA, e.Gen) != e.Sum {
		return false
	}
	if keep {
		p.blocks.Put(uint64(f.addr), e.Sum, b)
	}
	return true
}

// readAgain reads one block whose first reading failed. As long as the map
// sends it elsewhere than last time, the block has moved; when it does not, the
// block is damaged.
func (v *Volume) readAgain(b []byte, lba uint64, last found) error {
	for range retriesMax {
		now := make([]found, 1)
		if err := v.locate(lba, now); err != nil {
			return err
		}
		f := now[0]
		if f.addr == 0 {
			clear(b)
			return nil
		}
		err := v.p.space.read(f.addr, b)
		if err == nil && v.p.verify(&f, b, true) {
			return nil
		}
		if f == last {
			return v.damaged(lba, f, err)
		}
		last = f
	}
	return fault.New(fault.Failed, "volume %q, byte %d: the block moved faster than it could be read", v.vol.name, lba*block.BlockSize)
}

// damaged counts and tells of a block that cannot be had.
func (v *Volume) damaged(lba uint64, f found, err error) error {
	v.vol.corrupt.Add(1)
	v.p.corrupt.Add(1)
	where := v.p.space.where(f.addr)
	text := fmt.Sprintf("volume %q, byte %d: the block on %s does not match its checksum", v.vol.name, lba*block.BlockSize, where)
	if err != nil {
		text = fmt.Sprintf("volume %q, byte %d: the block on %s cannot be read: %v", v.vol.name, lba*block.BlockSize, where, err)
	}
	v.p.tellOnce(Event{Kind: EventCorrupt, Volume: v.vol.name, Offset: int64(lba * block.BlockSize), Text: text})
	return fault.New(fault.Corrupt, "%s", text)
}

// toldMax bounds the damages that are remembered as told.
const toldMax = 10000

// tellOnce tells of a damage that may be met again and again, the first time.
func (p *Pool) tellOnce(e Event) {
	p.toldMu.Lock()
	known := p.told[e.Text]
	if !known && len(p.told) < toldMax {
		p.told[e.Text] = true
	}
	p.toldMu.Unlock()
	if !known {
		p.notify(e)
	}
}

// noteNode counts a map node that cannot be read.
func (p *Pool) noteNode(err error) error {
	if fault.Is(err, fault.Corrupt) {
		p.corrupt.Add(1)
		p.tellOnce(Event{Kind: EventCorrupt, Text: "the map is damaged: " + err.Error()})
	}
	return err
}

// locate looks the blocks from lba on up in v's view.
func (v *Volume) locate(lba uint64, out []found) error {
	return v.p.locate(v.view(), lba, out, v.p.tree.LookupRange)
}

// lookup is Tree.LookupRange, or a form of it that may give up.
type lookup func(branch uint32, lba uint64, n int, maxGen uint64, out []maptree.Entry, found []bool) error

// locate looks blocks up in a view: in each link what the ones before have no
// entry for.
func (p *Pool) locate(w *view, lba uint64, out []found, look lookup) error {
	var entriesBuf [readBatch]maptree.Entry
	var foundBuf [readBatch]bool
	n := len(out)
	entries, have := entriesBuf[:n], foundBuf[:n]
	left := n
	dropped := p.dropped.Load()
	for i, l := range w.links {
		if err := look(l.branch, lba, n, l.lsn, entries, have); err != nil {
			return p.noteNode(err)
		}
		for j := range out {
			if (i > 0 && out[j].entry.Gen != 0) || !have[j] {
				continue
			}
			out[j].entry = entries[j]
			left--
		}
		if left == 0 {
			break
		}
	}
	if len(w.links) > 1 && p.dropped.Load() != dropped {
		// What was not in the head when it was looked up may have been written
		// to it since, and what that hid, dropped before it was looked up.
		if err := look(w.links[0].branch, lba, n, w.links[0].lsn, entries, have); err != nil {
			return p.noteNode(err)
		}
		for j := range out {
			if have[j] {
				out[j].entry = entries[j]
			}
		}
	}
	for j := range out {
		if err := p.place(&out[j], look); err != nil {
			return err
		}
	}
	return nil
}

// place finds out where an entry's block lies.
func (p *Pool) place(f *found, look lookup) error {
	ref := format.Ref(f.entry.Ref)
	switch ref.Kind() {
	case format.KindData:
		f.addr = ref.Addr()
	case format.KindShared:
		var e [1]maptree.Entry
		var ok [1]bool
		if err := look(format.BranchShared, ref.Gen(), 1, 1, e[:], ok[:]); err != nil {
			return p.noteNode(err)
		}
		if !ok[0] {
			return fault.New(fault.Corrupt, "shared block %d is not in the map", ref.Gen())
		}
		f.addr = format.Ref(e[0].Ref).Addr()
	case format.KindHole, format.KindNone:
	}
	return nil
}

// errWouldWait is how a lookup that must not wait gives up.
var errWouldWait = fault.New(fault.Busy, "not in memory")

// TryReadAt is ReadAt if all the range is in memory (or is a hole), and else
// returns false at once, with p undefined. It never waits for a drive.
func (v *Volume) TryReadAt(p []byte, off int64) bool {
	return v.check(off, int64(len(p))) == nil && v.eachPiece(p, off, v.tryBlocks) == nil
}

func (v *Volume) tryBlocks(p []byte, lba uint64) error {
	var buf [readBatch]found
	places := buf[:len(p)/block.BlockSize]
	try := func(branch uint32, lba uint64, n int, maxGen uint64, out []maptree.Entry, have []bool) error {
		if v.p.tree.TryLookupRange(branch, lba, n, maxGen, out, have) {
			return nil
		}
		return errWouldWait
	}
	if err := v.p.locate(v.view(), lba, places, try); err != nil {
		return err
	}
	for i := range places {
		b := p[i*block.BlockSize : (i+1)*block.BlockSize]
		if places[i].addr == 0 {
			clear(b)
		} else if !v.p.blocks.Get(uint64(places[i].addr), places[i].entry.Sum, b) {
			return errWouldWait
		}
	}
	return nil
}

// Mapped tells whether the block at off is backed by data, and for how many
// bytes from off (at most max) that stays so.
func (v *Volume) Mapped(off, max int64) (mapped bool, n int64, err error) {
	if err := v.check(off, block.SectorSize); err != nil {
		return false, 0, err
	}
	end := min(off+max, v.Size())
	lba := uint64(off / block.BlockSize)
	last := uint64((end + block.BlockSize - 1) / block.BlockSize)
	var buf [readBatch]found
	places := buf[:min(uint64(readBatch), last-lba)]
	if err := v.locate(lba, places); err != nil {
		return false, 0, err
	}
	mapped = places[0].addr != 0
	run := uint64(1)
	for run < uint64(len(places)) && (places[run].addr != 0) == mapped {
		run++
	}
	to := lba + run
	if !mapped && run == uint64(len(places)) && to < last {
		// A hole may be long: the next entry of any kind ends what is certain.
		next, ok, err := v.nextEntry(to, last)
		if err != nil {
			return false, 0, err
		}
		to = last
		if ok {
			to = next
		}
	}
	return mapped, min(int64(to)*block.BlockSize, end) - off, nil
}
