package verify

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
)

// A Kind is a way in which an answer was wrong.
type Kind int

// The kinds, the gravest first.
const (
	// Corrupt: what was read is no stamp, or one of another disk, place or
	// writer, or of a write that had not begun.
	Corrupt Kind = iota
	// Lost: an acknowledged write is not there, and no read since has had it.
	Lost
	// Stale: a read returned less than an earlier read had returned.
	Stale
	// Torn: parts of a block that were never there together.
	Torn
	// Failed: the client was told of an error.
	Failed

	kinds
)

func (k Kind) String() string {
	return [...]string{"corrupt", "lost", "stale", "torn", "error"}[k]
}

// A Finding is one wrong answer.
type Finding struct {
	Kind Kind
	Disk uint32
	Off  int64 // bytes
	Text string
}

func (f Finding) String() string {
	return fmt.Sprintf("%v: disk %d, offset %d: %s", f.Kind, f.Disk, f.Off, f.Text)
}

// Counts are what a Judge found, by kind; of lost, stale, torn and corrupt,
// each is a block of one read.
type Counts [kinds]int

// Of returns the count of a kind.
func (c Counts) Of(k Kind) int { return c[k] }

// Clean tells that nothing at all was wrong.
func (c Counts) Clean() bool { return c == Counts{} }

// Sub returns what was found since an earlier count.
func (c Counts) Sub(earlier Counts) Counts {
	for k := range c {
		c[k] -= earlier[k]
	}
	return c
}

// findingsKept bounds what a Judge remembers in full of each kind; it counts all.
const findingsKept = 50

// Judge knows what was written to one disk, and judges every read of it.
//
// The blocks are registers with one writer at a time each: nobody begins a
// write to a block before the write before it has ended. So the writes of a
// block have an order, the version, and a history of reads and writes is
// linearizable exactly when every read returns a version that is
//
//   - not older than any write that was acknowledged, or any version that
//     another read had returned, before this read began, and
//   - not newer than the last write begun before this read ended.
//
// A write may touch a part of a block. What a block holds at version n is then
// in each sector the newest write up to n that touched it, and a read must
// return the sectors of one n. A target that does not write 4 KiB at once fails
// that: what we promise is that ours does.
//
// A write that failed is a finding, and then it may be there or not: until the
// block has been written as a whole again, each sector of it is judged by itself,
// without that write. One that comes after a later write was answered is wrong.
//
// After a finding the judge takes what was read for what is there: one lost
// write is found once, not by every read from then on.
//
// All methods may be called at once. Begin calls belong before the request is
// given away, End calls after its answer came.
type Judge struct {
	disk uint32
	run  uint64

	mu     sync.Mutex
	blocks []register
	counts Counts
	kept   []Finding
}

// register is what the judge knows of a block. Versions count from 1; 0 is what
// was there before.
type register struct {
	acked uint32 // newest acknowledged
	seen  uint32 // newest that a read has certainly returned
	// masks has for each version the sectors it wrote, from version 1.
	masks   []uint8
	failed  []uint32 // versions whose writes failed, in order
	writing bool
}

func (r *register) last() uint32 { return uint32(len(r.masks)) }

// state returns the version that sector s has at version n, without writes that
// failed.
func (r *register) state(s int, n uint32) uint32 {
	for ; n > 0; n-- {
		if r.masks[n-1]>>s&1 != 0 && !slices.Contains(r.failed, n) {
			return n
		}
	}
	return 0
}

// doubtful tells whether a write that failed may show at some version from low
// on: unless all of the block was written since.
func (r *register) doubtful(low uint32) bool {
	if len(r.failed) == 0 {
		return false
	}
	for n := low; n > r.failed[len(r.failed)-1]; n-- {
		if r.masks[n-1] == 1<<sectorsPerBlock-1 {
			return false
		}
	}
	return true
}

// NewJudge judges the first size bytes of a disk. What is there before the
// first write is not judged, but zeros or stamps of an earlier run, where a
// write was acknowledged, are lost writes.
func NewJudge(disk uint32, size int64) *Judge {
	return &Judge{disk: disk, run: rand.Uint64(), blocks: make([]register, size/Block)}
}

// Size returns the bytes judged.
func (j *Judge) Size() int64 { return int64(len(j.blocks)) * Block }

// Counts returns what was found so far.
func (j *Judge) Counts() Counts {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.counts
}

// Findings returns the first findings in full.
func (j *Judge) Findings() []Finding {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]Finding(nil), j.kept...)
}

func (j *Judge) found(k Kind, off int64, format string, args ...any) {
	j.counts[k]++
	if j.counts[k] <= findingsKept {
		j.kept = append(j.kept, Finding{k, j.disk, off, fmt.Sprintf(format, args...)})
	}
}

// A Write is a write under way.
type Write struct {
	off, n   int64
	versions []uint32 // by block
}

// A Read is a read under way.
type Read struct {
	off, n int64
	marks  []mark // by block
}

// mark is what was known of a block when a read began.
type mark struct{ acked, seen uint32 }

// span returns the blocks that a request touches.
func span(off, n int64) (first, end int64) { return off / Block, (off + n + Block - 1) / Block }

// mask returns the sectors of block b that a request touches.
func mask(b, off, n int64) uint8 {
	var m uint8
	for s := range int64(sectorsPerBlock) {
		at := b*Block + s*Sector
		if at >= off && at < off+n {
			m |= 1 << s
		}
	}
	return m
}

// BeginWrite counts a write of whole sectors and fills p with what to write.
func (j *Judge) BeginWrite(lane uint32, p []byte, off int64) *Write {
	w := &Write{off: off, n: int64(len(p))}
	first, end := span(off, w.n)
	j.mu.Lock()
	for b := first; b < end; b++ {
		r := &j.blocks[b]
		if r.writing {
			panic(fmt.Sprintf("verify: two writes to block %d at once", b))
		}
		r.writing = true
		r.masks = append(r.masks, mask(b, off, w.n))
		w.versions = append(w.versions, r.last())
	}
	j.mu.Unlock()
	for at := int64(0); at < w.n; at += Sector {
		version := w.versions[(off+at)/Block-first]
		s := Stamp{Run: j.run, Disk: j.disk, Lane: lane, Sector: uint64((off + at) / Sector), Version: uint64(version)}
		s.put(p[at:][:Sector])
	}
	return w
}

// EndWrite says how a write ended.
func (j *Judge) EndWrite(w *Write, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	first, _ := span(w.off, w.n)
	for i, v := range w.versions {
		r := &j.blocks[first+int64(i)]
		r.writing = false
		if err == nil {
			r.acked = max(r.acked, v)
		} else {
			r.failed = append(r.failed, v)
		}
	}
	if err != nil {
		j.found(Failed, w.off, "write of %d bytes: %v", w.n, err)
	}
}

// Flushed says how a flush ended.
func (j *Judge) Flushed(err error) {
	if err == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.found(Failed, 0, "flush: %v", err)
}

// BeginRead notes what a read of whole sectors must at least return.
func (j *Judge) BeginRead(off, n int64) *Read {
	first, end := span(off, n)
	r := &Read{off: off, n: n, marks: make([]mark, end-first)}
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range r.marks {
		reg := &j.blocks[first+int64(i)]
		r.marks[i] = mark{reg.acked, reg.seen}
	}
	return r
}

// EndRead judges what a read returned.
func (j *Judge) EndRead(r *Read, p []byte, err error) {
	first, _ := span(r.off, r.n)
	stamps := make([]verdict, r.n/Sector)
	if err == nil {
		for i := range stamps { // sums are costly: outside of the lock
			stamps[i] = j.sector(p[i*Sector:][:Sector], uint64(r.off/Sector)+uint64(i))
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.found(Failed, r.off, "read of %d bytes: %v", r.n, err)
		return
	}
	for i, m := range r.marks {
		b := first + int64(i)
		from := max(b*Block, r.off)
		to := min((b+1)*Block, r.off+r.n)
		sectors := stamps[(from-r.off)/Sector : (to-r.off)/Sector]
		j.block(b, int(from%Block/Sector), sectors, m)
	}
}

// verdict is what one sector says of itself.
type verdict struct {
	version uint32
	wrong   string // why it is corrupt; else empty
}

// sector reads a stamp and judges all of it but the version.
func (j *Judge) sector(p []byte, at uint64) verdict {
	s, zero, good := stampOf(p)
	switch {
	case !good:
		return verdict{wrong: "no stamp, or one with a wrong sum"}
	case zero:
		return verdict{}
	case s.Disk != j.disk || s.Sector != at:
		return verdict{wrong: fmt.Sprintf("sector %d of disk %d in place of sector %d", s.Sector, s.Disk, at)}
	case s.Run != j.run: // of before this run
		return verdict{}
	case s.Version == 0 || s.Version > 1<<32-1:
		return verdict{wrong: "a version that was never written"}
	}
	return verdict{version: uint32(s.Version)}
}

// block judges the sectors of one block, which begin at its sector from.
func (j *Judge) block(b int64, from int, sectors []verdict, m mark) {
	r := &j.blocks[b]
	off := b * Block
	for i, v := range sectors {
		switch {
		case v.wrong != "":
			j.found(Corrupt, off, "%s", v.wrong)
			return
		case v.version > r.last():
			j.found(Corrupt, off, "version %d, and the last one begun is %d", v.version, r.last())
			return
		case v.version > 0 && r.masks[v.version-1]>>(from+i)&1 == 0:
			j.found(Corrupt, off, "sector %d has version %d, which did not write it", from+i, v.version)
			return
		}
	}
	low := max(m.acked, m.seen)
	if r.doubtful(low) {
		j.judgeOld(b, from, sectors, m, low)
		return
	}
	if n, ok := r.match(from, sectors, low, r.last()); ok {
		r.seen = max(r.seen, n)
		return
	}
	if !j.judgeOld(b, from, sectors, m, low) {
		j.found(Torn, off, "versions %v were never there together (from %d on)", versions(sectors), low)
	}
	if n, ok := r.match(from, sectors, 0, low); ok { // see Judge: it is what is there now
		r.acked, r.seen = min(r.acked, n), min(r.seen, n)
	}
}

// judgeOld finds a sector that is older than it was at version low.
func (j *Judge) judgeOld(b int64, from int, sectors []verdict, m mark, low uint32) bool {
	r := &j.blocks[b]
	for i, v := range sectors {
		want := r.state(from+i, low)
		if v.version >= want {
			continue
		}
		kind, why := Lost, "acknowledged"
		if m.seen >= want {
			kind, why = Stale, "read before"
		}
		j.found(kind, b*Block, "sector %d has version %d, and %d was %s", from+i, v.version, want, why)
		return true
	}
	return false
}

func versions(sectors []verdict) []uint32 {
	out := make([]uint32, len(sectors))
	for i, v := range sectors {
		out[i] = v.version
	}
	return out
}

// match finds the oldest version from low to high at which the block had these
// sectors.
func (r *register) match(from int, sectors []verdict, low, high uint32) (uint32, bool) {
	now := make([]uint32, len(sectors))
	differ := 0
	for i, v := range sectors {
		if now[i] = r.state(from+i, low); now[i] != v.version {
			differ++
		}
	}
	for n := low; ; n++ {
		if differ == 0 {
			return n, true
		}
		if n == high {
			return 0, false
		}
		for i, v := range sectors {
			if r.masks[n]>>(from+i)&1 == 0 { // masks[n] is of version n+1
				continue
			}
			if now[i] == v.version {
				differ++
			}
			if now[i] = n + 1; now[i] == v.version {
				differ--
			}
		}
	}
}
