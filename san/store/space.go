package store

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"steadfast/fault"
	"steadfast/internal/invariant"
	"steadfast/san/drive"
	"steadfast/san/store/format"
)

// devState is what a drive of the pool is good for.
type devState uint8

const (
	devOnline     devState = iota
	devEvacuating          // read, and no longer written
	devFailed              // a write or flush failed: read where that works
)

func (s devState) String() string { return [...]string{"online", "evacuating", "failed"}[s] }

// segState says who may write to a segment.
type segState uint8

const (
	segFree segState = iota // nothing in it matters, not to the checkpoint on disk either
	segOpen                 // being filled
	segFull                 // not written until the checkpoint after its last block died
)

// segment is one segment of a drive.
type segment struct {
	live  uint32 // blocks of the map's, nodes and data
	state segState
	ready bool // reserved: writing it cannot fail for want of space
	stuck bool // the cleaner could not empty it; until live changes it does not try again
}

// dev is one drive of the pool. Fields are the space's to guard.
type dev struct {
	index     int
	id        ID
	name      string
	drive     drive.Drive // nil when the drive is absent
	blocks    uint64
	segBlocks uint32
	state     devState
	segs      []segment
	free      int
	freeReady int  // of these, reserved ones
	dead      int  // full segments with nothing live in them
	ready     int  // segments that are reserved
	limited   bool // the filesystem below is full: only reserved segments count
	hand      int
	live      int64
	fresh     bool // no superblock is on it yet
	leaving   bool // to be emptied
	told      bool // that it is empty
	lastErr   string
	// unsynced is set when something was written that a power loss may undo.
	unsynced atomic.Bool
}

// place is a segment taken for writing, and how far it is written.
type place struct {
	d    *dev
	seg  int
	used uint32 // blocks
}

// start returns the address of the segment's first block.
func (d *dev) start(seg int) format.Addr {
	return format.MakeAddr(d.index, format.FirstBlock+uint64(seg)*uint64(d.segBlocks))
}

func (pl *place) addr() format.Addr { return pl.d.start(pl.seg) + format.Addr(pl.used) }
func (pl *place) room() uint32      { return pl.d.segBlocks - pl.used }

// space knows which segments hold what. It is the leaf of the lock order.
type space struct {
	mu   sync.Mutex
	devs []*dev // by index; nil where a drive was removed
}

// newDev describes a drive that is, or becomes, part of the pool.
func newDev(index int, id ID, name string, d drive.Drive, blocks uint64, segBlocks uint32) *dev {
	n := int((blocks - format.FirstBlock) / uint64(segBlocks))
	return &dev{index: index, id: id, name: name, drive: d, blocks: blocks, segBlocks: segBlocks, segs: make([]segment, n), free: n}
}

// at returns the drive of an address and the segment in it; nil when there is
// no such place, which only a damaged reference names.
func (s *space) at(a format.Addr) (*dev, int) {
	i := a.Drive()
	if i >= len(s.devs) || s.devs[i] == nil || a.Block() < format.FirstBlock {
		return nil, 0
	}
	d := s.devs[i]
	seg := int((a.Block() - format.FirstBlock) / uint64(d.segBlocks))
	if seg >= len(d.segs) {
		return nil, 0
	}
	return d, seg
}

// edit changes a segment and keeps the drive's sums of segments right.
func (d *dev) edit(seg int, fn func(*segment)) {
	g := &d.segs[seg]
	d.sum(g, -1)
	fn(g)
	d.sum(g, 1)
}

func (d *dev) sum(g *segment, n int) {
	if g.state == segFree {
		d.free += n
		if g.ready {
			d.freeReady += n
		}
	}
	if g.state == segFull && g.live == 0 {
		d.dead += n
	}
	if g.ready {
		d.ready += n
	}
}

// count adds n live blocks to the segment of a.
func (s *space) count(a format.Addr, n int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, seg := s.at(a)
	invariant.Check(d != nil, "store: address %#x is in no segment", uint64(a))
	d.edit(seg, func(g *segment) {
		invariant.Check(int64(g.live)+int64(n) >= 0 && g.live+uint32(n) <= d.segBlocks, "store: segment %d of drive %d would have %d%+d live blocks", seg, d.index, g.live, n)
		g.live += uint32(n)
		g.stuck = false
	})
	d.live += int64(n)
}

// take opens a free segment that is reserved, of the drive with most of them.
// With none it reserves one first.
func (s *space) take() (place, error) {
	for {
		s.mu.Lock()
		if d := s.best(func(d *dev) int { return d.freeReady }); d != nil {
			seg := d.find(true)
			d.edit(seg, func(g *segment) { g.state, g.stuck = segOpen, false })
			s.mu.Unlock()
			return place{d: d, seg: seg}, nil
		}
		s.mu.Unlock()
		if !s.prepare() {
			return place{}, fault.New(fault.Full, "the pool has no free segment; delete something or add a drive")
		}
	}
}

// prepare reserves one more free segment, of the drive with most of them, and
// reports whether it did. A drive whose filesystem is full is left alone from
// then on; one that fails is out. Reserving writes, so no lock is held.
func (s *space) prepare() bool {
	for {
		s.mu.Lock()
		d := s.best(func(d *dev) int {
			if d.limited {
				return 0
			}
			return d.free - d.freeReady
		})
		if d == nil {
			s.mu.Unlock()
			return false
		}
		seg := d.find(false)
		d.edit(seg, func(g *segment) { g.state = segOpen })
		s.mu.Unlock()
		err := d.drive.Reserve(off(d.start(seg)), int64(d.segBlocks)*format.BlockSize)
		s.mu.Lock()
		d.edit(seg, func(g *segment) { g.state, g.ready = segFree, err == nil })
		switch {
		case err == nil:
		case fault.Is(err, fault.Full):
			d.limited = true
		default:
			d.state, d.lastErr = devFailed, err.Error()
		}
		s.mu.Unlock()
		if err == nil {
			return true
		}
	}
}

// best returns the drive that can be written with the greatest count above
// zero, or nil.
func (s *space) best(count func(*dev) int) *dev {
	var best *dev
	most := 0
	for _, d := range s.devs {
		if d == nil || d.state != devOnline {
			continue
		}
		if n := count(d); n > most {
			best, most = d, n
		}
	}
	return best
}

// find returns the next free segment that is, or is not, reserved. There is one.
func (d *dev) find(ready bool) int {
	for {
		d.hand = (d.hand + 1) % len(d.segs)
		if g := &d.segs[d.hand]; g.state == segFree && g.ready == ready {
			return d.hand
		}
	}
}

// fill marks a segment as full: no more is written to it.
func (s *space) fill(pl place) {
	if pl.d == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if pl.d.segs[pl.seg].state == segOpen {
		pl.d.edit(pl.seg, func(g *segment) { g.state = segFull })
	}
}

// dead lists the full segments in which nothing is live: once the checkpoint
// that is being frozen stands, they are free.
func (s *space) dead() (out []place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.devs {
		if d == nil || d.dead == 0 {
			continue
		}
		for i := range d.segs {
			if d.segs[i].state == segFull && d.segs[i].live == 0 {
				out = append(out, place{d: d, seg: i})
			}
		}
	}
	return out
}

// release frees segments that dead listed.
func (s *space) release(list []place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pl := range list {
		pl.d.edit(pl.seg, func(g *segment) {
			invariant.Check(g.live == 0 && g.state == segFull, "store: segment %d of drive %d came back to life", pl.seg, pl.d.index)
			g.state, g.stuck = segFree, false
		})
	}
}

// tally sums the pool's segments.
type tally struct {
	total  int   // segments of drives that are written; limited ones count what is reserved
	ready  int   // of these, reserved ones
	free   int   // of these, free ones
	spare  int   // free ones that can still be reserved
	dead   int   // full ones with nothing live in them
	blocks int64 // that total holds
}

func (s *space) tally() (t tally) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.devs {
		if d == nil || d.state != devOnline {
			continue
		}
		n := len(d.segs)
		if d.limited {
			n = d.ready
		}
		t.total += n
		t.blocks += int64(n) * int64(d.segBlocks)
		t.ready += d.ready
		t.free += d.freeReady
		if !d.limited {
			t.spare += d.free - d.freeReady
		}
		t.dead += d.dead
	}
	return t
}

// clearLimits lets drives whose filesystem was full try again. It reports
// whether there were any.
func (s *space) clearLimits() (any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.devs {
		if d != nil && d.limited {
			d.limited, any = false, true
		}
	}
	return any
}

// copyLive returns the live counts of all drives, for a checkpoint.
func (s *space) copyLive() *liveTable {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &liveTable{live: make([][]uint32, len(s.devs))}
	for i, d := range s.devs {
		if d == nil {
			continue
		}
		t.live[i] = make([]uint32, len(d.segs))
		for j := range d.segs {
			t.live[i][j] = d.segs[j].live
		}
	}
	return t
}

// readyBit marks a reserved segment in the table on disk.
const readyBit = 1 << 31

// liveTable is the segment table of a checkpoint that is being written: what
// is live as of its freeze, and the nodes it places itself.
type liveTable struct{ live [][]uint32 }

func (t *liveTable) count(d *dev, seg int, n int32) { t.live[d.index][seg] += uint32(n) }

// size returns the bytes that encode makes.
func (t *liveTable) size() int {
	n := 0
	for _, l := range t.live {
		n += 4 + 4*len(l)
	}
	return n
}

// encode writes the table as docs/formats/pool.md says: for each drive index
// the number of segments and a word for each.
func (t *liveTable) encode(s *space) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := make([]byte, 0, t.size())
	for i, l := range t.live {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(l)))
		for j, n := range l {
			if s.devs[i].segs[j].ready {
				n |= readyBit
			}
			b = binary.LittleEndian.AppendUint32(b, n)
		}
	}
	return b
}

// load fills the drives' segments from an encoded table. A segment with live
// blocks is full, any other free; the log's own are marked by recovery.
func (s *space) load(b []byte) error {
	for i, d := range s.devs {
		want := 0
		if d != nil {
			want = len(d.segs)
		}
		if len(b) < 4 || int(binary.LittleEndian.Uint32(b)) != want || len(b) < 4+4*want {
			return fault.New(fault.Corrupt, "the segment table does not fit drive %d", i)
		}
		b = b[4:]
		for j := range want {
			w := binary.LittleEndian.Uint32(b[4*j:])
			live := w &^ readyBit
			if live > d.segBlocks {
				return fault.New(fault.Corrupt, "segment %d of drive %q: %d live blocks", j, d.name, live)
			}
			d.edit(j, func(g *segment) {
				g.live, g.ready = live, w&readyBit != 0
				if live > 0 {
					g.state = segFull
				}
			})
			d.live += int64(live)
		}
		b = b[4*want:]
	}
	if len(b) != 0 {
		return fault.New(fault.Corrupt, "the segment table is too long")
	}
	return nil
}

// mark takes the segment at a, which the log uses, out of the free ones.
func (s *space) mark(a format.Addr, state segState) (place, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, seg := s.at(a)
	if d == nil {
		return place{}, fault.New(fault.Corrupt, "the log's address %#x is in no segment", uint64(a))
	}
	d.edit(seg, func(g *segment) { g.state, g.ready = state, true })
	return place{d: d, seg: seg, used: uint32(a.Block()-format.FirstBlock) % d.segBlocks}, nil
}

// fail takes a drive out. It reports whether it was in until now.
func (s *space) fail(d *dev, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.state == devFailed {
		return false
	}
	d.state, d.lastErr = devFailed, err.Error()
	return true
}

// list returns the pool's drives.
func (s *space) list() (out []*dev) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.devs {
		if d != nil {
			out = append(out, d)
		}
	}
	return out
}

// stateOf returns what a drive is good for now.
func (s *space) stateOf(d *dev) devState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return d.state
}

// healthy lists the drives that can be written.
func (s *space) healthy() (out []*dev) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.devs {
		if d != nil && d.state != devFailed && d.drive != nil {
			out = append(out, d)
		}
	}
	return out
}

// off returns the byte offset of an address in its drive.
func off(a format.Addr) int64 { return int64(a.Block()) * format.BlockSize }

// read reads len(p) bytes from a. A drive that is absent, or has no such
// place, is an error like any other.
func (s *space) read(a format.Addr, p []byte) error {
	s.mu.Lock()
	d, _ := s.at(a)
	s.mu.Unlock()
	switch {
	case d == nil:
		return fault.New(fault.Corrupt, "a reference names no place of the pool: %#x", uint64(a))
	case d.drive == nil:
		return fault.New(fault.Failed, "drive %q failed and is absent", d.name)
	case a.Block()*format.BlockSize+uint64(len(p)) > d.blocks*format.BlockSize:
		return fault.New(fault.Corrupt, "a reference reaches past the end of drive %q", d.name)
	}
	return d.drive.ReadAt(p, off(a))
}

// readBatch reads several runs: those of one drive together.
func (s *space) readBatch(addrs []format.Addr, reads []drive.Read) {
	for len(reads) > 0 {
		s.mu.Lock()
		d, _ := s.at(addrs[0])
		s.mu.Unlock()
		n := 1
		for n < len(reads) && addrs[n].Drive() == addrs[0].Drive() {
			n++
		}
		if d == nil || d.drive == nil || !d.holds(addrs[:n], reads[:n]) {
			for i := range n {
				reads[i].Err = s.read(addrs[i], reads[i].P)
			}
		} else {
			d.drive.ReadBatch(reads[:n])
		}
		addrs, reads = addrs[n:], reads[n:]
	}
}

// holds sets the reads' offsets, and tells whether all are within the drive.
func (d *dev) holds(addrs []format.Addr, reads []drive.Read) bool {
	for i := range reads {
		reads[i].Off = off(addrs[i])
		if uint64(reads[i].Off)+uint64(len(reads[i].P)) > d.blocks*format.BlockSize {
			return false
		}
	}
	return true
}

// where says an address as people want it.
func (s *space) where(a format.Addr) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, _ := s.at(a); d != nil {
		return fmt.Sprintf("drive %s at byte %d", d.name, off(a))
	}
	return fmt.Sprintf("no drive (%#x)", uint64(a))
}
