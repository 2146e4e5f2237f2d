package format

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"steadfast/fault"
)

func sampleChunk() *Chunk {
	return &Chunk{
		Pool: 7, At: MakeAddr(1, 300), Sequence: 9, Chain: 4, Durable: 8, Checkpoint: 3, Next: MakeAddr(0, 512), After: MakeAddr(0, 768),
		Records: []Record{
			{Kind: RecordWrite, Branch: 3, LBA: 5, Gen: 70, N: 2, Hashes: []uint64{1, 2}},
			{Kind: RecordTrim, Branch: 3, LBA: 1 << 33, Gen: 72, N: 1 << 20},
			{Kind: RecordCopy, Branch: 4, LBA: 9, Gen: 73, N: 6, SrcBranch: 3, SrcLBA: 5, SrcGen: 71},
			{Kind: RecordCatalog, Gen: 79, Payload: []byte("a change")},
			{Kind: RecordMoved, Moved: []MovedBlock{{3, 5, 70, 1}}},
		},
	}
}

// TestChunkRoundTrip encodes, damages each byte in turn, and decodes: what was
// written comes back, and nothing else does.
func TestChunkRoundTrip(t *testing.T) {
	c := sampleChunk()
	p := c.Encode(make([]byte, BlockSize))
	if n := PeekChunk(p, 7, c.At); n != 1 {
		t.Fatalf("peek: %d blocks", n)
	}
	if PeekChunk(p, 7, c.At+1) != 0 || PeekChunk(p, 8, c.At) != 0 {
		t.Error("a chunk was taken for one of another place or pool")
	}
	got, err := DecodeChunk(p)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c, got); d != "" {
		t.Error(d)
	}
	for i := range p {
		p[i] ^= 0x10
		if _, err := DecodeChunk(p); err == nil {
			t.Fatalf("byte %d was changed, and the chunk still counts", i)
		}
		p[i] ^= 0x10
	}
}

func sampleSuperblock() *Superblock {
	return &Superblock{
		Pool: [16]byte{1}, Drive: [16]byte{2}, Sequence: 3, Name: "pool",
		Drives:  []DriveEntry{{ID: [16]byte{2}, Name: "/dev/sdb", Blocks: 1 << 20, SegmentBlocks: 512}, {}},
		Log:     LogStart{Segment: 256, Used: 7, Next: 512, After: 768, Sequence: 4, Chain: 5, LSN: 6},
		Root:    RootEntry{Addr: 1, Sum: 2, Level: 3, Entries: 4, Nodes: 5},
		Table:   Blob{Bytes: 10, Sum: 11, Extents: []Extent{{At: 400, Blocks: 1}}},
		Catalog: Blob{Bytes: 5000, Sum: 12, Extents: []Extent{{At: 401, Blocks: 1}, {At: 500, Blocks: 1}}},
	}
}

func TestSuperblockRoundTrip(t *testing.T) {
	s := sampleSuperblock()
	p, err := EncodeSuperblock(s)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := DecodeSuperblock(p)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s, got); d != "" {
		t.Error(d)
	}
	if _, none, err := DecodeSuperblock(make([]byte, SuperblockSize)); !none || !fault.Is(err, fault.Corrupt) {
		t.Error("zeros were taken for a superblock:", err)
	}
	p[100] ^= 1
	if _, none, err := DecodeSuperblock(p); none || !fault.Is(err, fault.Corrupt) {
		t.Error("a damaged superblock:", none, err)
	}
	s.Drives = make([]DriveEntry, 60)
	for i := range s.Drives {
		s.Drives[i].Name = string(make([]byte, 2000))
	}
	if _, err := EncodeSuperblock(s); err == nil {
		t.Error("a superblock was cut short")
	}
}

func sampleCatalog() *Catalog {
	return &Catalog{
		Thresholds: []byte{70, 90}, NextBranch: 5,
		Branches: []Branch{{ID: 1, Entries: 3, Exclusive: 1, Pins: []Pin{{LSN: 4, Exclusive: 2}}}, {ID: 4, Owner: [16]byte{9}, Parent: 1, ParentLSN: 4}},
		Volumes: []Volume{{
			ID: [16]byte{9}, Name: "v", Size: 1 << 40, Flags: VolumeWriteCache, Created: 5, Branch: 4, Referenced: 6, Clone: true,
			Trims:      Trims{Tracked: true, Base: 3, Floor: 2, Ranges: []TrimRange{{LBA: 0, N: 4, Gen: 9}, {LBA: 4, N: 1, Gen: 8}, {LBA: 1 << 33, N: 1 << 20, Gen: 7}}},
			Attributes: []Attribute{{Key: "pr", Value: []byte{1, 2}}},
			Snapshots:  []Snapshot{{Name: "s", Branch: 1, LSN: 4, Size: 1 << 30, Created: 7, Referenced: 8}},
		}},
		Jobs: []Job{{Branch: 1, LSN: 2, Head: true, Started: true, Floor: 5, Cursor: 7}},
	}
}

func TestCatalogRoundTrip(t *testing.T) {
	c := sampleCatalog()
	got, err := DecodeCatalog(c.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c, got); d != "" {
		t.Error(d)
	}
	if _, err := DecodeCatalog(append(c.Encode(), 0)); err == nil {
		t.Error("a catalog with something after its end")
	}
	o := &Op{Kind: OpClone, Volume: [16]byte{1}, Name: "s", NewID: [16]byte{2}, NewName: "w", Size: 3, Flags: 1, Time: 4, Delete: true, Value: []byte{5}}
	back, err := DecodeOp(o.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(o, back); d != "" {
		t.Error(d)
	}
}

// TestSumBinds changes volume, address or generation of a block: its sum must
// change, and only the right ones give the hash back.
func TestSumBinds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hash, branch := rapid.Uint64().Draw(t, "hash"), rapid.Uint32().Draw(t, "branch")
		lba, gen := rapid.Uint64Max(1<<34).Draw(t, "lba"), rapid.Uint64Max(GenMax).Draw(t, "gen")
		sum := Sum(hash, branch, lba, gen)
		if Unsum(sum, branch, lba, gen) != hash {
			t.Fatal("the hash does not come back")
		}
		for _, other := range []uint64{Sum(hash, branch+1, lba, gen), Sum(hash, branch, lba+1, gen), Sum(hash, branch, lba, gen+1), Sum(hash, branch, gen, lba+1)} {
			if other == sum {
				t.Fatal("two places have one sum")
			}
		}
	})
}

func TestSegmentBlocks(t *testing.T) {
	for _, c := range []struct {
		blocks uint64
		want   uint32
	}{{DriveBlocksMin, 256}, {1 << 19, 256}, {1<<19 + 256, 512}, {1 << 40, SegmentBlocksMax}} {
		if got := SegmentBlocks(c.blocks); got != c.want {
			t.Errorf("%d blocks: segments of %d, want %d", c.blocks, got, c.want)
		}
	}
}

func FuzzDecodeChunk(f *testing.F) {
	f.Add(sampleChunk().Encode(make([]byte, BlockSize)))
	f.Fuzz(func(t *testing.T, p []byte) {
		// Checksums keep a fuzzer out: mend it, as a lucky flip would.
		c, err := DecodeChunk(p)
		if err != nil && len(p) >= BlockSize && len(p)%BlockSize == 0 {
			h := &Chunk{}
			sum := h.sum(p)
			for i := range 8 {
				p[chunkSumOff+i] = byte(sum >> (8 * i))
			}
			c, err = DecodeChunk(p)
		}
		if err == nil && c.Blocks() > ChunkBlocksMax {
			t.Fatal("a chunk larger than there are")
		}
	})
}

func FuzzDecodeSuperblock(f *testing.F) {
	p, _ := EncodeSuperblock(sampleSuperblock())
	f.Add(p[:512])
	f.Fuzz(func(t *testing.T, p []byte) {
		full := make([]byte, SuperblockSize)
		copy(full, p)
		if s, _, err := DecodeSuperblock(full); err == nil && len(s.Drives) > DrivesMax {
			t.Fatal("more drives than there are")
		}
	})
}

func FuzzDecodeCatalog(f *testing.F) {
	f.Add(sampleCatalog().Encode())
	r := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		p := sampleCatalog().Encode()
		p[r.IntN(len(p))] ^= byte(1 << r.IntN(8))
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if c, err := DecodeCatalog(p); err == nil && len(c.Encode()) != len(p) {
			t.Fatal("a catalog that does not encode to what it came from")
		}
		if o, err := DecodeOp(p); err == nil && len(o.Encode()) != len(p) {
			t.Fatal("a change that does not encode to what it came from")
		}
	})
}
