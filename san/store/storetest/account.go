package storetest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"steadfast/block"
	"steadfast/san/store"
)

// Stored returns how many different blocks the pool holds.
func (s *State) Stored() int64 {
	seen := map[uint64]bool{}
	s.each(func(_ *Volume, _ *Snapshot, c Content) {
		for _, cell := range c {
			seen[cell.Stored] = true
		}
	})
	return int64(len(seen))
}

// each calls fn with the content of every volume and snapshot.
func (s *State) each(fn func(v *Volume, snap *Snapshot, c Content)) {
	for _, name := range s.Names() {
		v := s.Volumes[name]
		fn(v, nil, v.Content)
		for _, snap := range v.Snapshots {
			fn(v, snap, snap.Content)
		}
	}
}

// readers counts, for each stored block, the contents that have it.
func (s *State) readers() map[uint64]int {
	out := map[uint64]int{}
	s.each(func(_ *Volume, _ *Snapshot, c Content) {
		mine := map[uint64]bool{}
		for _, cell := range c {
			if !mine[cell.Stored] {
				mine[cell.Stored] = true
				out[cell.Stored]++
			}
		}
	})
	return out
}

// Own returns how many blocks of a content only that content has.
func (s *State) Own(c Content) int64 { return own(c, s.readers(), s.Copied) }

func own(c Content, readers map[uint64]int, copied map[uint64]bool) (n int64) {
	for _, cell := range c {
		if readers[cell.Stored] == 1 && !copied[cell.Stored] {
			n++
		}
	}
	return n
}

// Account holds what a quiet pool says about space against the model. It must
// have no background work left.
func (s *State) Account(got *Observed) error {
	if got.Waste > 0 {
		return fmt.Errorf("%d blocks are mapped and hold zeros", got.Waste)
	}
	if n := s.Stored() * block.BlockSize; n != got.Status.Data && !s.Inexact {
		return fmt.Errorf("the pool says it holds %d bytes of data, want %d", got.Status.Data, n)
	}
	if got.Status.Data+got.Status.Metadata != got.Status.Used {
		return fmt.Errorf("data %d and metadata %d are not the %d used", got.Status.Data, got.Status.Metadata, got.Status.Used)
	}
	var err error
	provisioned := int64(0)
	readers := s.readers()
	s.each(func(v *Volume, snap *Snapshot, c Content) {
		if snap == nil {
			provisioned += v.Size
		}
		if err == nil {
			err = s.accountOne(got, v, snap, c, own(c, readers, s.Copied)*block.BlockSize)
		}
	})
	if err == nil && provisioned != got.Status.Provisioned {
		err = fmt.Errorf("provisioned %d bytes, want %d", got.Status.Provisioned, provisioned)
	}
	return err
}

// accountOne judges the figures of a volume or snapshot, of which own bytes
// are its own. A pool may say less where lines of history have forked: what a
// clone or a rolled-back volume reads of a snapshot's line counts for nobody.
func (s *State) accountOne(got *Observed, v *Volume, snap *Snapshot, c Content, own int64) error {
	name, says := v.Name, spaceOf(got, v, snap)
	forked := v.Origin != 0 || v.RolledBack
	for _, o := range v.Snapshots {
		forked = forked || len(s.Clones(o.Key)) > 0
	}
	if snap != nil {
		name += "@" + snap.Name
		if clones := s.Clones(snap.Key); !slices.Equal(clones, says.clones) {
			return fmt.Errorf("%s: clones are %q, want %q", name, says.clones, clones)
		}
	}
	if n := int64(len(c)) * block.BlockSize; n != says.referenced {
		return fmt.Errorf("%s: references %d bytes, want %d", name, says.referenced, n)
	}
	if s.Inexact || own == says.exclusive || forked && 0 <= says.exclusive && says.exclusive <= own {
		return nil
	}
	return fmt.Errorf("%s: has %d bytes for itself, want %d (forked: %v)", name, says.exclusive, own, forked)
}

type space struct {
	referenced, exclusive int64
	clones                []string
}

func spaceOf(got *Observed, v *Volume, snap *Snapshot) space {
	if snap == nil {
		st := got.Statuses[v.Name]
		return space{referenced: st.Referenced, exclusive: st.Exclusive}
	}
	i := slices.Index(v.Snapshots, snap)
	st := got.Snapshots[v.Name][i]
	return space{st.Referenced, st.Exclusive, st.Clones}
}

// Changed holds p's list of changes between two snapshots against the model.
// from == "" is an empty volume, to == "" the head.
func (s *State) Changed(p Pool, volume, from, to string) error {
	v := s.Volumes[volume]
	old, cur := newHistory(), v.History
	if snap := v.Snapshot(from); snap != nil {
		old = snap.History
		old.Line = append(slices.Clone(old.Line), snap.Key)
	}
	if snap := v.Snapshot(to); snap != nil {
		cur = snap.History
		cur.Line = append(slices.Clone(cur.Line), snap.Key)
	}
	size := v.Size
	for _, snap := range v.Snapshots {
		size = max(size, snap.Size)
	}
	said := map[int64]bool{}
	last := int64(-1)
	var bad error
	err := p.Changed(volume, from, to, func(r store.Range) bool {
		if r.Offset <= last || r.Length <= 0 || (r.Offset|r.Length)%block.BlockSize != 0 || r.Offset+r.Length > size {
			bad = fmt.Errorf("range %+v after %d, in a volume of %d bytes", r, last, size)
			return false
		}
		last = r.Offset + r.Length - 1
		for b := r.Offset / block.BlockSize; b*block.BlockSize <= last; b++ {
			said[b] = true
		}
		return true
	})
	if err := cmp.Or(bad, err); err != nil {
		return err
	}
	return judgeChanged(old, cur, said)
}

// judgeChanged demands every block that differs, and allows those that were
// written since the two contents' lines of history parted.
func judgeChanged(old, cur History, said map[int64]bool) error {
	fork := uint64(0)
	for i := 0; i < min(len(old.Line), len(cur.Line)) && old.Line[i] == cur.Line[i]; i++ {
		fork = old.Line[i]
	}
	for _, c := range []Content{old.Content, cur.Content} {
		for _, b := range slices.Sorted(maps.Keys(c)) {
			if old.Content[b].Block != cur.Content[b].Block && !said[b] {
				return fmt.Errorf("block %d differs and was not said", b)
			}
		}
	}
	for _, b := range slices.Sorted(maps.Keys(said)) {
		if old.Touched[b] <= fork && cur.Touched[b] <= fork {
			return fmt.Errorf("block %d was said, but not written since", b)
		}
	}
	return nil
}
