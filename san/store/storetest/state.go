package storetest

import (
	"fmt"
	"maps"
	"slices"

	"steadfast/block"
	"steadfast/san/store"
)

// Cell is a block of a volume. Stored names the place the store keeps it in:
// two cells with one Stored share space. It is unknown (0) in what was read
// from a pool.
type Cell struct {
	Block  Block
	Stored uint64
}

// Content is what a volume or snapshot holds, by block number; what is not in
// it is a hole.
type Content map[int64]Cell

// State is all that a pool holds.
type State struct {
	Volumes    map[string]*Volume
	Thresholds []int
	// Copied holds the stored blocks that were ever copied by reference: no
	// volume counts them as its own any more.
	Copied map[uint64]bool
	// Inexact is set when a crash left it open which of two equal blocks is
	// stored: content is still known, exclusive space is not.
	Inexact bool
}

// Volume is a volume with its snapshots, oldest first.
type Volume struct {
	Name                 string
	ID                   store.ID // zero while unknown
	Size                 int64
	WriteCache, ReadOnly bool
	Origin               uint64 // Key of the snapshot it was cloned from, or 0
	OriginName           string // what a pool says about that; "" in a model
	RolledBack           bool   // ever
	Attributes           map[string]string
	Base                 store.LSN // if Tracked
	Tracked              bool
	// Sure is the first operation after which a pool must say what changed.
	Sure      uint64
	Snapshots []*Snapshot
	History
	// Bad holds blocks that could not be read. Only in what was read.
	Bad map[int64]bool
}

// Snapshot is a frozen copy of a volume.
type Snapshot struct {
	Name string
	Key  uint64 // the operation that took it; unique
	Size int64
	History
	Bad map[int64]bool
}

// History is a content, with what Changed and ChangedSince may say of it.
type History struct {
	Content Content
	// Touched holds, for each block, the last operation that wrote to it.
	Touched map[int64]uint64
	// Altered holds, for each block, the last operation that changed it.
	Altered map[int64]uint64
	// Cleared holds what was cleared in ranges too large for Touched.
	Cleared []cleared
	// Replaced is the operation that last put this content in another's place.
	Replaced uint64
	// Line holds the keys of the snapshots that this content came by, oldest
	// first, deleted ones too.
	Line []uint64
}

func newHistory() History {
	return History{Content: Content{}, Touched: map[int64]uint64{}, Altered: map[int64]uint64{}}
}

func (h History) clone() History {
	h.Content, h.Touched, h.Altered = maps.Clone(h.Content), maps.Clone(h.Touched), maps.Clone(h.Altered)
	h.Cleared, h.Line = slices.Clone(h.Cleared), slices.Clone(h.Line)
	return h
}

// NewState returns the state of a new pool.
func NewState() *State { return &State{Volumes: map[string]*Volume{}, Copied: map[uint64]bool{}} }

// Clone returns a copy that shares nothing.
func (s *State) Clone() *State {
	out := &State{Volumes: map[string]*Volume{}, Thresholds: slices.Clone(s.Thresholds), Copied: maps.Clone(s.Copied), Inexact: s.Inexact}
	for name, v := range s.Volumes {
		c := *v
		c.History = v.clone()
		c.Attributes = maps.Clone(v.Attributes)
		c.Snapshots = nil
		for _, snap := range v.Snapshots {
			copied := *snap
			copied.History = snap.clone()
			c.Snapshots = append(c.Snapshots, &copied)
		}
		out.Volumes[name] = &c
	}
	return out
}

// Names lists the volumes, sorted.
func (s *State) Names() []string { return slices.Sorted(maps.Keys(s.Volumes)) }

// Snapshot returns a volume's snapshot, or nil.
func (v *Volume) Snapshot(name string) *Snapshot {
	for _, s := range v.Snapshots {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Read returns the stamps of n bytes at off, both multiples of a sector.
func (h History) Read(off, n int64) []Stamp {
	out := make([]Stamp, 0, n/block.SectorSize)
	for at := off; at < off+n; at += block.SectorSize {
		out = append(out, h.Content[at/block.BlockSize].Block[at%block.BlockSize/block.SectorSize])
	}
	return out
}

// find returns the volume and snapshot that a key names, or nil.
func (s *State) find(key uint64) (*Volume, *Snapshot) {
	if key == 0 {
		return nil, nil
	}
	for _, v := range s.Volumes {
		for _, snap := range v.Snapshots {
			if snap.Key == key {
				return v, snap
			}
		}
	}
	return nil, nil
}

// originName is how a pool names a clone's origin.
func (s *State) originName(v *Volume) string {
	if of, snap := s.find(v.Origin); snap != nil {
		return of.Name + "@" + snap.Name
	}
	return v.OriginName
}

// Clones lists the volumes that stand on a snapshot, sorted.
func (s *State) Clones(key uint64) (names []string) {
	for _, name := range s.Names() {
		if s.Volumes[name].Origin == key {
			names = append(names, name)
		}
	}
	return names
}

// doubt is what an operation may have done in part: for blocks of one volume,
// the content they have if it got that far.
type doubt struct {
	volume string
	blocks map[int64]Block
}

// differ returns how got, read from a pool, differs from s, or "". Blocks in
// doubt may be as in s or as in may.
func (s *State) differ(got *State, may doubt) string {
	if a, b := s.Names(), got.Names(); !slices.Equal(a, b) {
		return fmt.Sprintf("volumes are %q, want %q", b, a)
	}
	if !slices.Equal(s.Thresholds, got.Thresholds) {
		return fmt.Sprintf("thresholds are %v, want %v", got.Thresholds, s.Thresholds)
	}
	for _, name := range s.Names() {
		v, g := s.Volumes[name], got.Volumes[name]
		var blocks map[int64]Block
		if may.volume == name {
			blocks = may.blocks
		}
		if d := s.differVolume(v, g, blocks); d != "" {
			return "volume " + name + ": " + d
		}
	}
	return ""
}

func (s *State) differVolume(v, g *Volume, may map[int64]Block) string {
	switch {
	case v.ID != store.ID{} && v.ID != g.ID:
		return fmt.Sprintf("its ID is %x, want %x", g.ID, v.ID)
	case v.Size != g.Size || v.WriteCache != g.WriteCache || v.ReadOnly != g.ReadOnly:
		return fmt.Sprintf("size %d, write-cache %v, read-only %v; want %d, %v, %v", g.Size, g.WriteCache, g.ReadOnly, v.Size, v.WriteCache, v.ReadOnly)
	case s.originName(v) != g.OriginName:
		return fmt.Sprintf("its origin is %q, want %q", g.OriginName, s.originName(v))
	case !maps.Equal(v.Attributes, g.Attributes):
		return fmt.Sprintf("attributes are %q, want %q", g.Attributes, v.Attributes)
	case v.Tracked != g.Tracked || v.Base != g.Base:
		return fmt.Sprintf("its base is %d (%v), want %d (%v)", g.Base, g.Tracked, v.Base, v.Tracked)
	case len(v.Snapshots) != len(g.Snapshots):
		return fmt.Sprintf("%d snapshots, want %d", len(g.Snapshots), len(v.Snapshots))
	}
	for i, snap := range v.Snapshots {
		other := g.Snapshots[i]
		if snap.Name != other.Name || snap.Size != other.Size {
			return fmt.Sprintf("snapshot %d is %s of %d bytes, want %s of %d", i, other.Name, other.Size, snap.Name, snap.Size)
		}
		if d := snap.Content.differ(other.Content, other.Bad, nil); d != "" {
			return "snapshot " + snap.Name + ": " + d
		}
	}
	return v.Content.differ(g.Content, g.Bad, may)
}

// differ names the first block, from the front, in which got is neither c nor
// may. Bad blocks answered with an error, which is never wrong.
func (c Content) differ(got Content, bad map[int64]bool, may map[int64]Block) string {
	first := int64(-1)
	check := func(b int64) {
		g := got[b].Block
		if g == c[b].Block || bad[b] || first >= 0 && b >= first {
			return
		}
		if alt, ok := may[b]; ok && g == alt {
			return
		}
		first = b
	}
	for b := range c {
		check(b)
	}
	for b := range got {
		if _, ok := c[b]; !ok {
			check(b)
		}
	}
	if first < 0 {
		return ""
	}
	text := fmt.Sprintf("block %d holds %x, want %x", first, got[first].Block, c[first].Block)
	if alt, ok := may[first]; ok {
		text += fmt.Sprintf(" or %x", alt)
	}
	return text
}
