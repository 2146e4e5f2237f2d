package format

// Catalog is everything of a pool that is not a block: volumes, snapshots,
// branches, and what is still to be reclaimed. A checkpoint holds it whole; the
// log after it holds changes (Op).
type Catalog struct {
	Thresholds []uint8
	NextBranch uint32
	Branches   []Branch
	Volumes    []Volume
	Jobs       []Job
}

// Branch is a line of history. Its Parent, if any, is where it forked.
type Branch struct {
	ID        uint32
	Owner     [16]byte // the volume it was made for
	Parent    uint32   // 0: none
	ParentLSN uint64
	Entries   uint64 // map entries that hold data
	Exclusive uint64 // of these, newer than every pin and not shared
	Pins      []Pin
}

// Pin is a moment of a branch that snapshots or other branches still read. One
// that no snapshot and no job names reads only what those branches do not hide.
type Pin struct {
	LSN       uint64
	Exclusive uint64 // blocks that no other pin and no head reads
}

// Volume is a volume and its snapshots.
type Volume struct {
	ID         [16]byte
	Name       string
	Size       uint64 // bytes
	Flags      uint8  // VolumeWriteCache, VolumeReadOnly
	Created    uint64 // nanoseconds since the Unix epoch
	Branch     uint32 // the head's
	Referenced uint64 // blocks
	Clone      bool   // its first branch forked from another volume's snapshot
	Trims      Trims
	Attributes []Attribute
	Snapshots  []Snapshot
}

// TrimsMax bounds the ranges that are kept of a volume's trims.
const TrimsMax = 1024

// Trims say where a volume was trimmed: by what is newer than Floor. They are
// kept while it is Tracked.
type Trims struct {
	Tracked bool
	Base    uint64 // the position that changes will be asked from
	Floor   uint64
	Ranges  []TrimRange // ascending, none overlapping another
}

// TrimRange is a range of blocks, with the newest generation that trimmed some.
type TrimRange struct{ LBA, N, Gen uint64 }

// Flags of a volume.
const (
	VolumeWriteCache = 1 << iota
	VolumeReadOnly
)

// Snapshot is a named moment of a volume.
type Snapshot struct {
	Name       string
	Branch     uint32
	LSN        uint64
	Size       uint64 // bytes
	Created    uint64
	Referenced uint64 // blocks
}

// Attribute is a value kept with a volume.
type Attribute struct {
	Key   string
	Value []byte
}

// Job is reclaiming that is under way or waits: of a pin of a branch whose
// snapshot is gone, or (Head) of a head that is gone. For the blocks before
// Cursor it is done, and for the others it is as if nothing had gone.
type Job struct {
	Branch  uint32
	LSN     uint64 // of the pin
	Head    bool
	Started bool
	Floor   uint64 // nothing this old is affected
	Cursor  uint64 // block reached
}

// Encode returns c as bytes.
func (c *Catalog) Encode() []byte {
	w := &writer{}
	w.bytes(c.Thresholds)
	w.u32(c.NextBranch)
	w.u32(uint32(len(c.Branches)))
	for _, b := range c.Branches {
		w.u32(b.ID)
		w.raw(b.Owner[:])
		w.u32(b.Parent)
		w.u64(b.ParentLSN)
		w.u64(b.Entries)
		w.u64(b.Exclusive)
		w.u32(uint32(len(b.Pins)))
		for _, p := range b.Pins {
			w.u64(p.LSN)
			w.u64(p.Exclusive)
		}
	}
	w.u32(uint32(len(c.Volumes)))
	for i := range c.Volumes {
		w.volume(&c.Volumes[i])
	}
	w.u32(uint32(len(c.Jobs)))
	for _, j := range c.Jobs {
		w.u32(j.Branch)
		w.bool(j.Head)
		w.bool(j.Started)
		for _, v := range []uint64{j.LSN, j.Floor, j.Cursor} {
			w.u64(v)
		}
	}
	return w.b
}

func (w *writer) volume(v *Volume) {
	w.raw(v.ID[:])
	w.str(v.Name)
	w.u64(v.Size)
	w.u8(v.Flags)
	w.u64(v.Created)
	w.u32(v.Branch)
	w.u64(v.Referenced)
	w.bool(v.Clone)
	w.trims(&v.Trims)
	w.u32(uint32(len(v.Attributes)))
	for _, a := range v.Attributes {
		w.str(a.Key)
		w.bytes(a.Value)
	}
	w.u32(uint32(len(v.Snapshots)))
	for _, s := range v.Snapshots {
		w.str(s.Name)
		w.u32(s.Branch)
		w.u64(s.LSN)
		w.u64(s.Size)
		w.u64(s.Created)
		w.u64(s.Referenced)
	}
}

func (w *writer) trims(t *Trims) {
	w.bool(t.Tracked)
	w.u64(t.Base)
	w.u64(t.Floor)
	w.u32(uint32(len(t.Ranges)))
	for _, r := range t.Ranges {
		w.u64(r.LBA)
		w.u64(r.N)
		w.u64(r.Gen)
	}
}

// DecodeCatalog reads what Encode wrote.
func DecodeCatalog(p []byte) (*Catalog, error) {
	r := &reader{b: p}
	c := &Catalog{Thresholds: r.bytes(), NextBranch: r.u32()}
	for range r.count(52) {
		b := Branch{ID: r.u32(), Owner: r.id(), Parent: r.u32(), ParentLSN: r.u64(), Entries: r.u64(), Exclusive: r.u64()}
		for range r.count(16) {
			b.Pins = append(b.Pins, Pin{LSN: r.u64(), Exclusive: r.u64()})
		}
		c.Branches = append(c.Branches, b)
	}
	for range r.count(79) {
		c.Volumes = append(c.Volumes, r.volume())
	}
	for range r.count(30) {
		j := Job{Branch: r.u32(), Head: r.bool(), Started: r.bool()}
		for _, v := range []*uint64{&j.LSN, &j.Floor, &j.Cursor} {
			*v = r.u64()
		}
		c.Jobs = append(c.Jobs, j)
	}
	if r.bad || len(r.b) != 0 {
		return nil, corrupt("the catalog's fields do not add up")
	}
	return c, nil
}

func (r *reader) volume() Volume {
	v := Volume{
		ID: r.id(), Name: r.str(), Size: r.u64(), Flags: r.u8(), Created: r.u64(),
		Branch: r.u32(), Referenced: r.u64(), Clone: r.bool(),
		Trims: r.trims(),
	}
	for range r.count(8) {
		v.Attributes = append(v.Attributes, Attribute{Key: r.str(), Value: r.bytes()})
	}
	for range r.count(40) {
		v.Snapshots = append(v.Snapshots, Snapshot{Name: r.str(), Branch: r.u32(), LSN: r.u64(), Size: r.u64(), Created: r.u64(), Referenced: r.u64()})
	}
	return v
}

// trims reads the ranges of a volume, which must be in order and within the
// bounds: what is made of them later trusts that.
func (r *reader) trims() Trims {
	t := Trims{Tracked: r.bool(), Base: r.u64(), Floor: r.u64()}
	end := uint64(0)
	for range r.count(24) {
		g := TrimRange{LBA: r.u64(), N: r.u64(), Gen: r.u64()}
		if g.LBA < end || g.LBA > lbaMax || g.N == 0 || g.N > lbaMax-g.LBA || g.Gen > GenMax {
			r.bad = true
		}
		end = g.LBA + g.N
		t.Ranges = append(t.Ranges, g)
	}
	if len(t.Ranges) > TrimsMax || !t.Tracked && (t.Base > 0 || len(t.Ranges) > 0) || t.Base > GenMax || t.Floor > GenMax {
		r.bad = true
	}
	return t
}

// OpKind is what a change of the catalog does.
type OpKind uint8

// Changes of the catalog.
const (
	OpCreateVolume   OpKind = 1  // Volume, Name, Size, Flags, Time
	OpChangeVolume   OpKind = 2  // Volume, Name, Size, Flags
	OpDeleteVolume   OpKind = 3  // Volume
	OpCreateSnapshot OpKind = 4  // Volume, Name, Time; Size, if it is not the volume's
	OpDeleteSnapshot OpKind = 5  // Volume, Name
	OpRollback       OpKind = 6  // Volume, Name
	OpClone          OpKind = 7  // Volume, Name of the snapshot; NewID, NewName, Time
	OpThresholds     OpKind = 8  // Value: a percentage a byte
	OpAttribute      OpKind = 9  // Volume, Name: the key; Value, or Delete
	OpBase           OpKind = 10 // Volume, Size: the position; or Delete
)

// Op is one change of the catalog, as the log holds it.
type Op struct {
	Kind    OpKind
	Volume  [16]byte
	Name    string
	NewID   [16]byte
	NewName string
	Size    uint64
	Flags   uint8
	Time    uint64
	Delete  bool
	Value   []byte
}

// Encode returns o as a record's payload.
func (o *Op) Encode() []byte {
	w := &writer{}
	w.u8(uint8(o.Kind))
	w.raw(o.Volume[:])
	w.str(o.Name)
	w.raw(o.NewID[:])
	w.str(o.NewName)
	w.u64(o.Size)
	w.u8(o.Flags)
	w.u64(o.Time)
	w.bool(o.Delete)
	w.bytes(o.Value)
	return w.b
}

// DecodeOp reads what Encode wrote.
func DecodeOp(p []byte) (*Op, error) {
	r := &reader{b: p}
	o := &Op{
		Kind: OpKind(r.u8()), Volume: r.id(), Name: r.str(), NewID: r.id(), NewName: r.str(),
		Size: r.u64(), Flags: r.u8(), Time: r.u64(), Delete: r.bool(), Value: r.bytes(),
	}
	if r.bad || len(r.b) != 0 {
		return nil, corrupt("a change of the catalog does not add up")
	}
	return o, nil
}
