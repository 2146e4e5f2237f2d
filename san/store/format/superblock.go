package format

import (
	"bytes"
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// superMagic begins a superblock.
const superMagic = "SFpool\x00\x01"

// Superblock is one consistent state of a pool: where its map, catalog and
// table lie, and where the log goes on from there. The one with the greatest
// Sequence that is whole counts.
//
//	0   magic "SFpool", 0, 1
//	8   version, uint32
//	12  length of the body, uint32
//	16  xxh3-64 of the body
//	24  body
type Superblock struct {
	Pool     [16]byte
	Drive    [16]byte // the drive this copy lies on
	Sequence uint64   // number of the checkpoint
	Name     string
	Drives   []DriveEntry
	Log      LogStart
	Root     RootEntry
	Table    Blob // live blocks by segment
	Catalog  Blob
}

// DriveEntry is a drive of the pool; its index is the drive part of addresses.
// An entry whose Blocks is 0 is a place that a removed drive left.
type DriveEntry struct {
	ID            [16]byte
	Name          string
	Blocks        uint64
	SegmentBlocks uint32
	State         uint8 // 0 online, 1 evacuating, 2 failed
}

// LogStart is where recovery begins to read the log.
type LogStart struct {
	Segment  Addr   // its first block; of the first chunk the checkpoint does not contain
	Used     uint64 // blocks of the segment before that chunk
	Next     Addr   // the segment after it
	After    Addr   // and the one after that
	Sequence uint64 // of that chunk
	Chain    uint64 // that chunk's Chain
	LSN      uint64 // the first generation that is not used yet
}

// RootEntry is the map's root.
type RootEntry struct {
	Addr, Sum      uint64
	Level          uint8
	Entries, Nodes uint64
}

// Extent is a run of blocks.
type Extent struct {
	At     Addr
	Blocks uint32
}

// Blob is a run of bytes in extents, padded with zeros to whole blocks.
type Blob struct {
	Bytes   uint64
	Sum     uint64 // xxh3-64
	Extents []Extent
}

// EncodeSuperblock returns s in SuperblockSize bytes. It fails when the drives'
// names or the extents are too many to fit.
func EncodeSuperblock(s *Superblock) ([]byte, error) {
	w := &writer{}
	w.raw(s.Pool[:])
	w.raw(s.Drive[:])
	w.u64(s.Sequence)
	w.str(s.Name)
	w.u32(uint32(len(s.Drives)))
	for _, d := range s.Drives {
		w.raw(d.ID[:])
		w.str(d.Name)
		w.u64(d.Blocks)
		w.u32(d.SegmentBlocks)
		w.u8(d.State)
	}
	l, r := s.Log, s.Root
	for _, v := range []uint64{uint64(l.Segment), l.Used, uint64(l.Next), uint64(l.After), l.Sequence, l.Chain, l.LSN, r.Addr, r.Sum, uint64(r.Level), r.Entries, r.Nodes} {
		w.u64(v)
	}
	for _, b := range []Blob{s.Table, s.Catalog} {
		w.u64(b.Bytes)
		w.u64(b.Sum)
		w.u32(uint32(len(b.Extents)))
		for _, e := range b.Extents {
			w.u64(uint64(e.At))
			w.u32(e.Blocks)
		}
	}
	if len(w.b) > SuperblockSize-24 {
		return nil, corrupt("the superblock does not fit: %d bytes", len(w.b))
	}
	out := &writer{b: make([]byte, 0, SuperblockSize)}
	out.raw([]byte(superMagic))
	out.u32(Version)
	out.u32(uint32(len(w.b)))
	out.u64(xxh3.Hash(w.b))
	out.raw(w.b)
	return out.b[:SuperblockSize], nil
}

// DecodeSuperblock reads what EncodeSuperblock wrote. none tells that there is
// no superblock at all, rather than a damaged one.
func DecodeSuperblock(p []byte) (s *Superblock, none bool, err error) {
	if len(p) != SuperblockSize || !bytes.HasPrefix(p, []byte(superMagic)) {
		return nil, true, corrupt("no superblock here")
	}
	n := binary.LittleEndian.Uint32(p[12:])
	if v := binary.LittleEndian.Uint32(p[8:]); v != Version {
		return nil, false, corrupt("a pool of format version %d; this program reads version %d", v, Version)
	}
	if n > SuperblockSize-24 || xxh3.Hash(p[24:24+n]) != binary.LittleEndian.Uint64(p[16:]) {
		return nil, false, corrupt("the superblock does not match its checksum")
	}
	r := &reader{b: p[24 : 24+n]}
	s = &Superblock{Pool: r.id(), Drive: r.id(), Sequence: r.u64(), Name: r.str()}
	for range r.count(33) {
		s.Drives = append(s.Drives, DriveEntry{ID: r.id(), Name: r.str(), Blocks: r.u64(), SegmentBlocks: r.u32(), State: r.u8()})
	}
	s.Log = LogStart{Segment: Addr(r.u64()), Used: r.u64(), Next: Addr(r.u64()), After: Addr(r.u64()), Sequence: r.u64(), Chain: r.u64(), LSN: r.u64()}
	s.Root = RootEntry{Addr: r.u64(), Sum: r.u64(), Level: uint8(r.u64()), Entries: r.u64(), Nodes: r.u64()}
	for _, b := range []*Blob{&s.Table, &s.Catalog} {
		b.Bytes, b.Sum = r.u64(), r.u64()
		for range r.count(12) {
			b.Extents = append(b.Extents, Extent{At: Addr(r.u64()), Blocks: r.u32()})
		}
	}
	if r.bad || len(s.Drives) == 0 || len(s.Drives) > DrivesMax {
		return nil, false, corrupt("the superblock's fields do not add up")
	}
	for _, d := range s.Drives {
		if d.Blocks != 0 && (d.SegmentBlocks < SegmentBlocksMin || d.SegmentBlocks > SegmentBlocksMax || d.Blocks < DriveBlocksMin) {
			return nil, false, corrupt("the superblock describes an impossible drive %q", d.Name)
		}
	}
	return s, false, nil
}
