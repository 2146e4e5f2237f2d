package format

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

const (
	chunkMagic  = 0x6b634653 // "SFck"
	chunkFixed  = 104        // bytes before the records
	chunkSumOff = 88
)

// RecordKind is what a record says.
type RecordKind uint8

// Kinds of records.
const (
	RecordWrite   RecordKind = 1 // N blocks from LBA hold the chunk's next N data blocks
	RecordTrim    RecordKind = 2 // N blocks from LBA read as zeros
	RecordCopy    RecordKind = 3 // N blocks from LBA read as the source's
	RecordCatalog RecordKind = 4 // a change of the catalog
	RecordMoved   RecordKind = 5 // the cleaner's: data blocks of the keys listed
)

// Record is one change. Blocks of a write or copy have the generations Gen,
// Gen+1, ...: a generation names one block of the pool's history.
type Record struct {
	Kind      RecordKind
	Branch    uint32
	LBA       uint64
	Gen       uint64
	N         uint64
	SrcBranch uint32 // of a copy: the view (branch, generation) to read from
	SrcLBA    uint64
	SrcGen    uint64
	Hashes    []uint64 // of a write: the content's, one a block
	Payload   []byte   // of a catalog change
	Moved     []MovedBlock
}

// MovedBlock names one data block of a RecordMoved by its key in the map.
type MovedBlock struct {
	Branch   uint32
	LBA, Gen uint64
	Hash     uint64
}

// Gens returns how many generations r takes.
func (r *Record) Gens() uint64 {
	if r.Kind == RecordWrite || r.Kind == RecordCopy {
		return r.N
	}
	return 1
}

// DataBlocks returns how many of the chunk's data blocks are r's.
func (r *Record) DataBlocks() int {
	switch r.Kind {
	case RecordWrite:
		return len(r.Hashes)
	case RecordMoved:
		return len(r.Moved)
	default:
		return 0
	}
}

// Size returns the bytes r takes in a chunk's header.
func (r *Record) Size() int {
	switch r.Kind {
	case RecordWrite:
		return 1 + 4 + 8 + 8 + 4 + 8*len(r.Hashes)
	case RecordTrim:
		return 1 + 4 + 8 + 8 + 8
	case RecordCopy:
		return 1 + 4 + 8 + 8 + 8 + 4 + 8 + 8
	case RecordCatalog:
		return 1 + 8 + 4 + len(r.Payload)
	case RecordMoved:
		return 1 + 4 + 28*len(r.Moved)
	}
	return 0
}

// Chunk is the header of one write of the log: a few blocks of header, then
// the data blocks of its records in their order.
//
//	0   magic "SFck", uint32
//	4   version, uint8
//	5   flags, uint8: 1 for a chunk of the cleaner, which is no part of the log
//	6   blocks of header, uint16
//	8   blocks of data, uint32
//	12  records, uint32
//	16  pool: the first 8 bytes of its identifier
//	24  address of this chunk
//	32  sequence
//	40  chain: checksum field of the chunk before
//	48  greatest sequence known to be durable
//	56  address of the segment after this one
//	64  sequence number of the mirror's write-intent; 0 so far
//	72  bytes of records, uint32; 76 zero, uint32
//	80  sequence of the last checkpoint that stood when this was written
//	88  xxh3-64 of the header with this field zero
//	96  address of the segment after that
//	104 records
type Chunk struct {
	Pool     uint64
	At       Addr
	Sequence uint64
	Chain    uint64
	Durable  uint64
	Next     Addr
	// After is named too, so that a lost chunk at the start of the next segment
	// does not hide what follows it there.
	After  Addr
	Mirror uint64
	// Checkpoint tells recovery that no older superblock will do.
	Checkpoint uint64
	Cleaner    bool
	Header     int // blocks
	Data       int // blocks
	Sum        uint64
	Records    []Record
}

// Blocks returns the length of the chunk in blocks.
func (c *Chunk) Blocks() int { return c.Header + c.Data }

// HeaderBlocks returns how many blocks a header with so many bytes of records
// takes.
func HeaderBlocks(recordBytes int) int { return (chunkFixed + recordBytes + BlockSize - 1) / BlockSize }

// HeaderRoom returns how many bytes of records a header of n blocks holds.
func HeaderRoom(n int) int { return n*BlockSize - chunkFixed }

// Encode fills c's Header, Data and Sum from its Records, and writes the header
// to the start of p, which it must fit.
func (c *Chunk) Encode(p []byte) []byte {
	w := &writer{b: p[:chunkFixed]}
	clear(w.b)
	c.Data = 0
	for i := range c.Records {
		w.record(&c.Records[i])
		c.Data += c.Records[i].DataBlocks()
	}
	used := len(w.b)
	c.Header = HeaderBlocks(used - chunkFixed)
	p = p[:c.Header*BlockSize]
	clear(p[used:])
	le := binary.LittleEndian
	le.PutUint32(p, chunkMagic)
	p[4] = Version
	if c.Cleaner {
		p[5] = 1
	}
	le.PutUint16(p[6:], uint16(c.Header))
	le.PutUint32(p[8:], uint32(c.Data))
	le.PutUint32(p[12:], uint32(len(c.Records)))
	for i, v := range []uint64{c.Pool, uint64(c.At), c.Sequence, c.Chain, c.Durable, uint64(c.Next), c.Mirror} {
		le.PutUint64(p[16+8*i:], v)
	}
	le.PutUint32(p[72:], uint32(used-chunkFixed))
	le.PutUint64(p[80:], c.Checkpoint)
	le.PutUint64(p[96:], uint64(c.After))
	c.Sum = xxh3.Hash(p)
	le.PutUint64(p[chunkSumOff:], c.Sum)
	return p
}

func (w *writer) record(r *Record) {
	w.u8(uint8(r.Kind))
	switch r.Kind {
	case RecordWrite:
		w.u32(r.Branch)
		w.u64(r.LBA)
		w.u64(r.Gen)
		w.u32(uint32(len(r.Hashes)))
		for _, h := range r.Hashes {
			w.u64(h)
		}
	case RecordTrim, RecordCopy:
		w.u32(r.Branch)
		w.u64(r.LBA)
		w.u64(r.Gen)
		w.u64(r.N)
		if r.Kind == RecordCopy {
			w.u32(r.SrcBranch)
			w.u64(r.SrcLBA)
			w.u64(r.SrcGen)
		}
	case RecordCatalog:
		w.u64(r.Gen)
		w.bytes(r.Payload)
	case RecordMoved:
		w.u32(uint32(len(r.Moved)))
		for _, m := range r.Moved {
			w.u32(m.Branch)
			w.u64(m.LBA)
			w.u64(m.Gen)
			w.u64(m.Hash)
		}
	}
}

// PeekChunk tells, from its first block, how many blocks the header of a chunk
// at address at takes; 0 when no chunk of the pool begins there.
func PeekChunk(p []byte, pool uint64, at Addr) int {
	le := binary.LittleEndian
	if len(p) < BlockSize || le.Uint32(p) != chunkMagic || p[4] != Version || le.Uint64(p[16:]) != pool || Addr(le.Uint64(p[24:])) != at {
		return 0
	}
	n := int(le.Uint16(p[6:]))
	if n == 0 || n > ChunkHeaderBlocksMax {
		return 0
	}
	return n
}

// DecodeChunk reads a header of whole blocks, as long as PeekChunk said.
func DecodeChunk(p []byte) (*Chunk, error) {
	if len(p) < BlockSize || len(p)%BlockSize != 0 || binary.LittleEndian.Uint32(p) != chunkMagic {
		return nil, corrupt("no chunk here")
	}
	le := binary.LittleEndian
	c := &Chunk{
		Header: int(le.Uint16(p[6:])), Data: int(le.Uint32(p[8:])), Cleaner: p[5]&1 != 0,
		Pool: le.Uint64(p[16:]), At: Addr(le.Uint64(p[24:])), Sequence: le.Uint64(p[32:]), Chain: le.Uint64(p[40:]),
		Durable: le.Uint64(p[48:]), Next: Addr(le.Uint64(p[56:])), Mirror: le.Uint64(p[64:]), Checkpoint: le.Uint64(p[80:]), After: Addr(le.Uint64(p[96:])), Sum: le.Uint64(p[chunkSumOff:]),
	}
	if c.Header*BlockSize != len(p) || c.sum(p) != c.Sum {
		return nil, corrupt("the chunk's header does not match its checksum")
	}
	n, used := int(le.Uint32(p[12:])), int(le.Uint32(p[72:]))
	if used > len(p)-chunkFixed || n > used {
		return nil, corrupt("the chunk's records do not fit it")
	}
	r := &reader{b: p[chunkFixed : chunkFixed+used]}
	data := 0
	for range n {
		rec := r.record()
		data += rec.DataBlocks()
		c.Records = append(c.Records, rec)
	}
	if r.bad || data != c.Data || c.Blocks() > ChunkBlocksMax {
		return nil, corrupt("the chunk's records do not add up")
	}
	return c, nil
}

// sum hashes a header as if its checksum field were zero.
func (c *Chunk) sum(p []byte) uint64 {
	var h xxh3.Hasher
	var zero [8]byte
	_, _ = h.Write(p[:chunkSumOff])
	_, _ = h.Write(zero[:])
	_, _ = h.Write(p[chunkSumOff+8:])
	return h.Sum64()
}

func (r *reader) record() Record {
	rec := Record{Kind: RecordKind(r.u8())}
	switch rec.Kind {
	case RecordWrite:
		rec.Branch, rec.LBA, rec.Gen = r.u32(), r.u64(), r.u64()
		rec.Hashes = make([]uint64, r.count(8))
		for i := range rec.Hashes {
			rec.Hashes[i] = r.u64()
		}
		rec.N = uint64(len(rec.Hashes))
	case RecordTrim, RecordCopy:
		rec.Branch, rec.LBA, rec.Gen, rec.N = r.u32(), r.u64(), r.u64(), r.u64()
		if rec.Kind == RecordCopy {
			rec.SrcBranch, rec.SrcLBA, rec.SrcGen = r.u32(), r.u64(), r.u64()
		}
	case RecordCatalog:
		rec.Gen, rec.Payload = r.u64(), r.bytes()
	case RecordMoved:
		rec.Moved = make([]MovedBlock, r.count(28))
		for i := range rec.Moved {
			rec.Moved[i] = MovedBlock{Branch: r.u32(), LBA: r.u64(), Gen: r.u64(), Hash: r.u64()}
		}
	default:
		r.bad = true
	}
	if rec.LBA > lbaMax || rec.N > lbaMax || rec.SrcLBA > lbaMax || rec.Gen > GenMax {
		r.bad = true
	}
	return rec
}
