// Package format is the pool as bytes: superblocks, chunks of the log, the
// catalog and the segment table, and the checksums that bind each block to its
// place. docs/formats/pool.md describes the same bytes in words; the two change
// together, with Version.
//
// Everything here decides or translates; nothing does I/O. Decoders take any
// bytes whatever and return an error (fault.Corrupt) rather than trust them.
package format

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"

	"steadfast/fault"
)

// Version is the format this program writes, and the only one it reads.
const Version = 2

// Sizes of the layout, in bytes and in blocks of BlockSize.
const (
	BlockSize = 4096
	// SuperblockSize is the size of a slot.
	SuperblockSize = 64 << 10
	// FirstBlock is where segments begin: everything before is the slots' and
	// is left alone otherwise, so that a stray boot sector harms nothing.
	FirstBlock = 256
	// SegmentBlocksMin and SegmentBlocksMax bound a segment: 1 to 32 MiB.
	SegmentBlocksMin = 256
	SegmentBlocksMax = 8192
	// DriveBlocksMin is the smallest drive: 32 MiB.
	DriveBlocksMin = 8192
	// DrivesMax bounds the drives a pool ever had at once.
	DrivesMax = 64
	// ChunkBlocksMax bounds a chunk, header included; it never exceeds a segment.
	ChunkBlocksMax = 256
	// ChunkHeaderBlocksMax bounds its header: an attribute of 64 KiB fits.
	ChunkHeaderBlocksMax = 24
)

// SuperblockSlots is how many slots a drive has: superblocks alternate between
// the first two, and each has a copy in the other two.
const SuperblockSlots = 4

// SuperblockSlot returns the slot of a checkpoint's superblock, or of its copy.
func SuperblockSlot(sequence uint64, backup bool) int {
	slot := int(sequence & 1)
	if backup {
		slot += 2
	}
	return slot
}

// SuperblockBlock returns the block at which a slot begins.
func SuperblockBlock(slot int) uint64 { return uint64(16 + 16*slot) }

// SegmentBlocks returns the segment size for a drive of so many blocks: about
// two thousand segments, so that the cleaner has a choice and the table is small.
func SegmentBlocks(driveBlocks uint64) uint32 {
	s := uint32(SegmentBlocksMin)
	for s < SegmentBlocksMax && driveBlocks/uint64(s) > 2048 {
		s *= 2
	}
	return s
}

// Kind classes what a map entry refers to.
type Kind uint8

// Kinds of references. The top bit of a reference stays clear: the map uses it.
const (
	KindNone   Kind = 0
	KindData   Kind = 1 // a block at an address
	KindHole   Kind = 2 // reads as zeros, and hides what is older
	KindShared Kind = 3 // an object that several entries refer to, by its generation
)

// Ref is what a map entry refers to: a kind (4 bits), and an address or a
// generation (60 bits).
type Ref uint64

// Addr is a block's place in the pool: drive (12 bits) and block (48 bits).
type Addr uint64

const (
	blockBits = 48
	blockMask = 1<<blockBits - 1
	kindShift = 60
)

// MakeAddr joins a drive's index and a block of it.
func MakeAddr(drive int, block uint64) Addr { return Addr(uint64(drive)<<blockBits | block) }

// Drive returns the index of the drive in the superblock's list.
func (a Addr) Drive() int { return int(a >> blockBits & (1<<12 - 1)) }

// Block returns the block in the drive.
func (a Addr) Block() uint64 { return uint64(a) & blockMask }

// DataRef refers to the block at a.
func DataRef(a Addr) Ref { return Ref(uint64(KindData)<<kindShift | uint64(a)) }

// HoleRef refers to nothing.
func HoleRef() Ref { return Ref(uint64(KindHole) << kindShift) }

// SharedRef refers to the shared object whose block was written as gen.
func SharedRef(gen uint64) Ref { return Ref(uint64(KindShared)<<kindShift | gen) }

// Kind returns what r refers to.
func (r Ref) Kind() Kind { return Kind(r >> kindShift) }

// Addr returns the address of a data reference.
func (r Ref) Addr() Addr { return Addr(r & (1<<kindShift - 1)) }

// Gen returns the generation of a shared reference.
func (r Ref) Gen() uint64 { return uint64(r & (1<<kindShift - 1)) }

// BranchShared is the branch in which shared objects live, keyed by the
// generation of their block as LBA: with Gen 1 the object (address and
// checksum), with Gen 2 the count of entries that refer to it.
const BranchShared = 0

// GenMax is the greatest generation.
const GenMax = 1<<48 - 1

// lbaMax is past the last block of the largest volume: 64 TiB.
const lbaMax = 1 << 34

// Hash returns the hash of a block's content.
func Hash(block []byte) uint64 { return xxh3.Hash(block) }

// Sum binds the hash of a block's content to volume, address and generation.
// The binding can be undone by whoever knows them, so a copy by reference
// needs no second look at the data.
func Sum(hash uint64, branch uint32, lba, gen uint64) uint64 { return hash + bind(branch, lba, gen) }

// Unsum returns the content's hash from its sum.
func Unsum(sum uint64, branch uint32, lba, gen uint64) uint64 { return sum - bind(branch, lba, gen) }

func bind(branch uint32, lba, gen uint64) uint64 {
	h := mix(uint64(branch) + 0x9e3779b97f4a7c15)
	h = mix(h ^ lba)
	return mix(h ^ gen)
}

// mix is the finalizer of splitmix64: every input bit moves every output bit.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// writer appends fields, little-endian.
type writer struct{ b []byte }

func (w *writer) u8(v uint8)   { w.b = append(w.b, v) }
func (w *writer) u32(v uint32) { w.b = binary.LittleEndian.AppendUint32(w.b, v) }
func (w *writer) u64(v uint64) { w.b = binary.LittleEndian.AppendUint64(w.b, v) }
func (w *writer) raw(p []byte) { w.b = append(w.b, p...) }

func (w *writer) bool(v bool) {
	if v {
		w.u8(1)
	} else {
		w.u8(0)
	}
}

// bytes appends a length (32 bits) and that many bytes.
func (w *writer) bytes(p []byte) {
	w.u32(uint32(len(p)))
	w.raw(p)
}

func (w *writer) str(s string) { w.bytes([]byte(s)) }

// reader takes fields off; after the first one missing it is bad for good and
// returns zeros, so that decoders check once at the end.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) raw(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.bad = true
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8() uint8 {
	if p := r.raw(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.raw(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.raw(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (r *reader) bool() bool    { return r.u8() != 0 }
func (r *reader) bytes() []byte { return append([]byte(nil), r.raw(int(r.u32()))...) }
func (r *reader) str() string   { return string(r.raw(int(r.u32()))) }
func (r *reader) id() (i [16]byte) {
	copy(i[:], r.raw(16))
	return i
}

// count reads a number of items of at least size bytes each, so that a length
// made up cannot make the decoder allocate more than its input.
func (r *reader) count(size int) int {
	n := int(r.u32())
	if n < 0 || n > len(r.b)/size {
		r.bad = true
		return 0
	}
	return n
}

func corrupt(format string, args ...any) error { return fault.New(fault.Corrupt, format, args...) }
