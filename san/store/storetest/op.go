package storetest

import (
	"fmt"
	"maps"
	"slices"

	"steadfast/block"
	"steadfast/san/store"
)

// Op is a change of a pool that succeeds when it is applied. at is its place
// in the history, from 1.
type Op interface {
	Apply(s *State, at uint64)
	String() string
}

// BlockOp is an Op on the blocks of one volume. A crash can cut it between any
// two of them.
type BlockOp interface {
	Op
	// Effects lists what Apply would do to s: each block once, ascending.
	Effects(s *State, at uint64) (volume string, effects []Effect)
}

// Effect is the new content of one block.
type Effect struct {
	Block int64
	Cell  Cell
}

// put carries effects out.
func (s *State) put(volume string, effects []Effect, at uint64) {
	v := s.Volumes[volume]
	for _, e := range effects {
		v.Touched[e.Block] = at
		if v.Content[e.Block].Block != e.Cell.Block {
			v.Altered[e.Block] = at
		}
		if e.Cell.Block == (Block{}) {
			delete(v.Content, e.Block)
		} else {
			v.Content[e.Block] = e.Cell
		}
	}
}

// stored returns the i-th place that operation at stores blocks in.
func stored(at uint64, i int) uint64 { return at<<20 | uint64(i) }

// Write stores stamps: a write, a zero, or a compare-and-write that matched.
type Write struct {
	Volume string
	Offset int64 // bytes
	Stamps []Stamp
	Verb   string // for the trace
}

// Effects implements BlockOp.
func (o Write) Effects(s *State, at uint64) (string, []Effect) {
	content := s.Volumes[o.Volume].Content
	var out []Effect
	for i, stamp := range o.Stamps {
		sector := o.Offset/block.SectorSize + int64(i)
		b := sector / SectorsPerBlock
		if len(out) == 0 || out[len(out)-1].Block != b {
			out = append(out, Effect{b, Cell{content[b].Block, stored(at, len(out))}})
		}
		out[len(out)-1].Cell.Block[sector%SectorsPerBlock] = stamp
	}
	return o.Volume, out
}

// Apply implements Op.
func (o Write) Apply(s *State, at uint64) { applyBlocks(o, s, at) }

// String implements Op.
func (o Write) String() string {
	first := Stamp(0)
	if len(o.Stamps) > 0 {
		first = o.Stamps[0]
	}
	return fmt.Sprintf("%s %s +%d %d stamp %#x", o.Verb, o.Volume, o.Offset, len(o.Stamps)*block.SectorSize, first)
}

// Clear makes a range read as zeros: a trim or a zero.
type Clear struct {
	Volume string
	Offset int64
	Length int64
	Verb   string
}

// touchMax bounds the holes that are noted as touched when they are cleared
// again, in blocks.
const touchMax = 1 << 14

// Effects implements BlockOp.
func (o Clear) Effects(s *State, at uint64) (string, []Effect) {
	content := s.Volumes[o.Volume].Content
	end := o.Offset + o.Length
	first, last := o.span().first, o.span().end
	var out []Effect
	add := func(b int64) {
		cell := Cell{content[b].Block, stored(at, len(out))}
		for i := range cell.Block {
			if sector := b*block.BlockSize + int64(i)*block.SectorSize; o.Offset <= sector && sector < end {
				cell.Block[i] = 0
			}
		}
		out = append(out, Effect{b, cell})
	}
	if last-first <= touchMax {
		for b := first; b < last; b++ {
			add(b)
		}
		return o.Volume, out
	}
	for _, b := range slices.Sorted(maps.Keys(content)) {
		if first <= b && b < last {
			add(b)
		}
	}
	return o.Volume, out
}

// span is the blocks that the range has a part in.
func (o Clear) span() span {
	return span{o.Offset / block.BlockSize, (o.Offset + o.Length + block.BlockSize - 1) / block.BlockSize}
}

// Apply implements Op.
func (o Clear) Apply(s *State, at uint64) { applyBlocks(o, s, at) }

// String implements Op.
func (o Clear) String() string {
	return fmt.Sprintf("%s %s +%d %d", o.Verb, o.Volume, o.Offset, o.Length)
}

// Copy makes a range of Volume read as a range of From, or of its snapshot.
type Copy struct {
	Volume             string
	Offset             int64
	From, FromSnapshot string
	FromOffset         int64
	Length             int64
}

func (o Copy) source(s *State) History {
	from := s.Volumes[o.From]
	if o.FromSnapshot == "" {
		return from.History
	}
	return from.Snapshot(o.FromSnapshot).History
}

// Effects implements BlockOp.
func (o Copy) Effects(s *State, at uint64) (string, []Effect) {
	source := o.source(s)
	if !o.shares() {
		return Write{Volume: o.Volume, Offset: o.Offset, Stamps: source.Read(o.FromOffset, o.Length)}.Effects(s, at)
	}
	var out []Effect
	for i := range o.Length / block.BlockSize {
		out = append(out, Effect{o.Offset/block.BlockSize + i, source.Content[o.FromOffset/block.BlockSize+i]})
	}
	return o.Volume, out
}

// Apply implements Op.
func (o Copy) Apply(s *State, at uint64) { applyBlocks(o, s, at) }

// shares tells whether the copy is by reference.
func (o Copy) shares() bool { return (o.Offset|o.FromOffset|o.Length)%block.BlockSize == 0 }

// String implements Op.
func (o Copy) String() string {
	return fmt.Sprintf("copy %s +%d %d from %s@%s +%d", o.Volume, o.Offset, o.Length, o.From, o.FromSnapshot, o.FromOffset)
}

func applyBlocks(o BlockOp, s *State, at uint64) {
	volume, effects := o.Effects(s, at)
	whole := o
	if p, ok := o.(part); ok {
		whole = p.BlockOp
	}
	if c, ok := whole.(Copy); ok && c.shares() {
		for _, e := range effects {
			s.Copied[e.Cell.Stored] = true
		}
	}
	s.put(volume, effects, at)
	s.Volumes[volume].noteCleared(whole, at)
}

// part is a BlockOp of which a crash left only some blocks.
type part struct {
	BlockOp
	keep map[int64]bool
}

func (o part) Effects(s *State, at uint64) (string, []Effect) {
	volume, effects := o.BlockOp.Effects(s, at)
	return volume, slices.DeleteFunc(effects, func(e Effect) bool { return !o.keep[e.Block] })
}

func (o part) Apply(s *State, at uint64) { applyBlocks(o, s, at) }

// CreateVolume makes a volume.
type CreateVolume struct {
	Spec store.VolumeSpec
	ID   store.ID // zero while its answer has not come
}

// Apply implements Op.
func (o CreateVolume) Apply(s *State, _ uint64) {
	s.Volumes[o.Spec.Name] = &Volume{
		Name: o.Spec.Name, ID: o.ID, Size: o.Spec.Size, WriteCache: o.Spec.WriteCache, ReadOnly: o.Spec.ReadOnly,
		Attributes: map[string]string{}, History: newHistory(),
	}
}

// String implements Op.
func (o CreateVolume) String() string { return fmt.Sprintf("create %+v", o.Spec) }

// ChangeVolume changes settings.
type ChangeVolume struct {
	Volume string
	Change store.VolumeChange
}

// Apply implements Op.
func (o ChangeVolume) Apply(s *State, _ uint64) {
	v := s.Volumes[o.Volume]
	if o.Change.Size != nil {
		v.Size = *o.Change.Size
	}
	if o.Change.WriteCache != nil {
		v.WriteCache = *o.Change.WriteCache
	}
	if o.Change.ReadOnly != nil {
		v.ReadOnly = *o.Change.ReadOnly
	}
	if o.Change.Name != nil {
		delete(s.Volumes, v.Name)
		v.Name = *o.Change.Name
		s.Volumes[v.Name] = v
	}
}

// String implements Op.
func (o ChangeVolume) String() string {
	text := "change " + o.Volume
	if c := o.Change; c.Size != nil {
		text += fmt.Sprintf(" size=%d", *c.Size)
	} else if c.WriteCache != nil {
		text += fmt.Sprintf(" write-cache=%v", *c.WriteCache)
	} else if c.ReadOnly != nil {
		text += fmt.Sprintf(" read-only=%v", *c.ReadOnly)
	}
	if o.Change.Name != nil {
		text += " name=" + *o.Change.Name
	}
	return text
}

// DeleteVolume deletes a volume and its snapshots.
type DeleteVolume struct{ Volume string }

// Apply implements Op.
func (o DeleteVolume) Apply(s *State, _ uint64) { delete(s.Volumes, o.Volume) }

// String implements Op.
func (o DeleteVolume) String() string { return "delete " + o.Volume }

// CreateSnapshot freezes a volume.
type CreateSnapshot struct{ Volume, Name string }

// Apply implements Op.
func (o CreateSnapshot) Apply(s *State, at uint64) {
	v := s.Volumes[o.Volume]
	v.Snapshots = append(v.Snapshots, &Snapshot{Name: o.Name, Key: at, Size: v.Size, History: v.clone()})
	v.Line = append(v.Line, at)
}

// String implements Op.
func (o CreateSnapshot) String() string { return "snapshot " + o.Volume + "@" + o.Name }

// DeleteSnapshot deletes a snapshot.
type DeleteSnapshot struct{ Volume, Name string }

// Apply implements Op.
func (o DeleteSnapshot) Apply(s *State, _ uint64) {
	v := s.Volumes[o.Volume]
	v.Snapshots = slices.DeleteFunc(v.Snapshots, func(s *Snapshot) bool { return s.Name == o.Name })
}

// String implements Op.
func (o DeleteSnapshot) String() string { return "delete " + o.Volume + "@" + o.Name }

// Rollback makes a volume's content and size a snapshot's again.
type Rollback struct{ Volume, Name string }

// Apply implements Op.
func (o Rollback) Apply(s *State, at uint64) {
	v := s.Volumes[o.Volume]
	snap := v.Snapshot(o.Name)
	v.Size, v.History, v.RolledBack = snap.Size, snap.clone(), true
	v.Line = append(v.Line, snap.Key)
	v.Replaced = at
}

// String implements Op.
func (o Rollback) String() string { return "roll back " + o.Volume + "@" + o.Name }

// Clone makes a volume of a snapshot, with the write cache as the snapshot's
// volume has it.
type Clone struct {
	Volume, Snapshot, Name string
	ID                     store.ID
}

// Apply implements Op.
func (o Clone) Apply(s *State, at uint64) {
	from := s.Volumes[o.Volume]
	snap := from.Snapshot(o.Snapshot)
	v := &Volume{
		Name: o.Name, ID: o.ID, Size: snap.Size, WriteCache: from.WriteCache, Origin: snap.Key,
		Attributes: map[string]string{}, History: snap.clone(),
	}
	v.Line = append(v.Line, snap.Key)
	v.Replaced = at
	s.Volumes[o.Name] = v
}

// String implements Op.
func (o Clone) String() string { return fmt.Sprintf("clone %s@%s as %s", o.Volume, o.Snapshot, o.Name) }

// SetAttribute stores a small value; an empty one deletes.
type SetAttribute struct{ Volume, Key, Value string }

// Apply implements Op.
func (o SetAttribute) Apply(s *State, _ uint64) {
	if o.Value == "" {
		delete(s.Volumes[o.Volume].Attributes, o.Key)
	} else {
		s.Volumes[o.Volume].Attributes[o.Key] = o.Value
	}
}

// String implements Op.
func (o SetAttribute) String() string {
	return fmt.Sprintf("attribute %s %s (%d bytes)", o.Volume, o.Key, len(o.Value))
}

// SetThresholds sets the pool's thin thresholds.
type SetThresholds struct{ Percent []int }

// Apply implements Op.
func (o SetThresholds) Apply(s *State, _ uint64) { s.Thresholds = slices.Clone(o.Percent) }

// String implements Op.
func (o SetThresholds) String() string { return fmt.Sprintf("thresholds %v", o.Percent) }
