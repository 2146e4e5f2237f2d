package mirrorio

import (
	"cmp"
	"errors"
	"slices"

	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/mirror"
	"steadfast/san/store"
)

var _ Snapshots = (*PoolStore)(nil)

// held is a snapshot of the pool with what the group knows it by.
type held struct {
	Snapshot
	volume string // its name
	lsn    store.LSN
}

// pin is a snapshot that is open, and so is not deleted.
type pin struct {
	v        *store.Volume
	snapshot string
}

// snapshotsOf lists a volume's snapshots but for KeptState, oldest first.
func (s *PoolStore) snapshotsOf(n uint32, name string) (out []held, err error) {
	list, err := s.pool.Snapshots(name)
	for _, st := range list {
		if st.Name != KeptState {
			out = append(out, held{Snapshot{Volume: n, Name: st.Name, Moment: momentOf(st), Size: st.Size}, name, st.LSN})
		}
	}
	return out, err
}

func momentOf(st store.SnapshotStatus) mirror.Moment { return mirror.Moment(st.Created.UnixNano()) }

// held lists the snapshots of all volumes, oldest first.
func (s *PoolStore) held() (out []held, err error) {
	for n, name := range s.Volumes() {
		list, err := s.snapshotsOf(n, name)
		if fault.Is(err, fault.NotFound) {
			continue // it is gone
		}
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	slices.SortFunc(out, func(a, b held) int { return cmp.Compare(a.lsn, b.lsn) })
	return out, nil
}

// Snapshots implements Snapshots.
func (s *PoolStore) Snapshots() (out []Snapshot, err error) {
	all, err := s.held()
	for _, h := range all {
		out = append(out, h.Snapshot)
	}
	return out, err
}

// stepTries bounds how often the steps are looked for while snapshots are deleted.
const stepTries = 8

// Steps implements Snapshots.
func (s *PoolStore) Steps(since mirror.Position, whole []uint32, has []Snapshot) (steps []mirror.Step, now []mirror.Range, err error) {
	for range stepTries {
		steps, now, err = s.steps(since, whole, has)
		if !fault.Is(err, fault.NotFound) {
			break
		}
	}
	return steps, now, err
}

func (s *PoolStore) steps(since mirror.Position, whole []uint32, has []Snapshot) (steps []mirror.Step, now []mirror.Range, err error) {
	all, err := s.held()
	if err != nil {
		return nil, nil, err
	}
	lacking := map[uint32][]held{}
	for _, h := range all {
		if h.Within(has) {
			continue
		}
		lacking[h.Volume] = append(lacking[h.Volume], h)
		if !slices.ContainsFunc(steps, func(st mirror.Step) bool { return st.Moment == h.Moment }) {
			steps = append(steps, mirror.Step{Moment: h.Moment})
		}
	}
	for _, n := range s.numbers() {
		v, done, err := s.use(n)
		if err != nil {
			continue // it is gone
		}
		list, err := s.stepsOf(v, n, store.LSN(since), slices.Contains(whole, n), lacking[n], steps)
		done()
		if err != nil {
			return nil, nil, err
		}
		now = append(now, list...)
	}
	return steps, now, nil
}

// stepsOf adds to the steps what they are of one volume, and returns what changed
// since the last.
func (s *PoolStore) stepsOf(v *store.Volume, n uint32, since store.LSN, whole bool, lacking []held, steps []mirror.Step) ([]mirror.Range, error) {
	if len(lacking) == 0 {
		return s.changedOf(v, n, since, whole, nil)
	}
	before := ""
	for i := range lacking {
		h := &lacking[i]
		var list []mirror.Range
		var err error
		if before == "" {
			list, err = s.changedOf(v, n, since, whole, h)
		} else {
			list, err = s.between(v, n, before, h.Name)
		}
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(steps, func(st mirror.Step) bool { return st.Moment == h.Moment })
		steps[at].Ranges = append(steps[at].Ranges, list...)
		before = h.Name
	}
	return s.between(v, n, before, "")
}

// collect makes ranges of blocks of what the pool emits.
func collect(n uint32, out *[]mirror.Range) func(store.Range) bool {
	return func(r store.Range) bool {
		first, end := r.Offset/BlockSize, (r.Offset+r.Length+BlockSize-1)/BlockSize
		*out = append(*out, mirror.Range{Volume: n, Block: uint64(first), Count: uint64(end - first)})
		return true
	}
}

// between lists what differs between two snapshots of a volume; "" is nothing as
// the first, and what is there now as the second.
func (s *PoolStore) between(v *store.Volume, n uint32, from, to string) (out []mirror.Range, err error) {
	return out, s.pool.Changed(v.Name(), from, to, collect(n, &out))
}

// changedOf lists what was changed of a volume since its base, up to a snapshot if
// to is one; or all that is there.
func (s *PoolStore) changedOf(v *store.Volume, n uint32, since store.LSN, whole bool, to *held) (out []mirror.Range, err error) {
	base, known := s.pool.Base(v.Name())
	since = max(since, base)
	name := ""
	if to != nil {
		name = to.Name
	}
	if known && !whole {
		switch {
		case to != nil && to.lsn <= since:
			// Its node has lost it. What both have since the base is not what it was then.
			if out, err = s.between(v, n, name, ""); err == nil {
				err = s.pool.ChangedSince(v.Name(), since, collect(n, &out))
			}
		default:
			err = s.pool.ChangedUpTo(v.Name(), since, name, collect(n, &out))
		}
		if !fault.Is(err, fault.Stale) {
			return out, err
		}
		known = false
	}
	if out, err = s.between(v, n, "", name); !known {
		out = append(out, mirror.Range{Volume: n})
	}
	return out, err
}

// Pin implements Snapshots.
func (s *PoolStore) Pin(at mirror.Moment) (volumes []uint32) {
	s.Unpin()
	s.pins.Lock()
	defer s.pins.Unlock()
	all, err := s.held()
	if err != nil {
		return nil
	}
	for _, h := range all {
		if h.Moment != at || s.pinned[h.Volume].v != nil {
			continue
		}
		if v, err := s.pool.OpenSnapshot(h.volume, h.Name); err == nil { // else it was deleted just now
			s.pinned[h.Volume] = pin{v, h.Name}
			volumes = append(volumes, h.Volume)
		}
	}
	slices.Sort(volumes)
	return volumes
}

// Unpin implements Snapshots.
func (s *PoolStore) Unpin() { s.unpin(func(uint32) bool { return true }) }

// unpin closes pinned snapshots of some volumes, when nobody reads them.
func (s *PoolStore) unpin(of func(volume uint32) bool) {
	s.pins.Lock()
	defer s.pins.Unlock()
	for n, p := range s.pinned {
		if of(n) {
			_ = p.v.Close() // of an opening that only reads: it cannot fail
			delete(s.pinned, n)
		}
	}
}

// Copying tells whether a resync of the other node copies from a snapshot, which
// cannot be deleted meanwhile.
func (s *PoolStore) Copying(volume, snapshot string) bool {
	s.pins.RLock()
	defer s.pins.RUnlock()
	for _, p := range s.pinned {
		if p.v.Name() == volume && p.snapshot == snapshot {
			return true
		}
	}
	return false
}

// ReadPinned implements Snapshots.
func (s *PoolStore) ReadPinned(volume uint32, p []byte, off int64) error {
	s.pins.RLock()
	defer s.pins.RUnlock()
	v := s.pinned[volume].v
	if v == nil {
		return fault.New(fault.NotFound, "no snapshot of volume %d is pinned", volume)
	}
	there := int(max(0, min(int64(len(p)), v.Size()-off)))
	clear(p[there:])
	if there == 0 {
		return nil
	}
	buf := bufpool.Get(there)
	defer bufpool.Put(buf)
	err := v.ReadAt(buf, off)
	copy(p, buf)
	return err
}

// Take implements Snapshots. All of them are taken in one step of the pool.
func (s *PoolStore) Take(list []Snapshot) error {
	names := s.Volumes()
	var others []store.SnapshotName
	var lacking []store.NewSnapshot
	for i := range list {
		want := &list[i]
		volume, there := names[want.Volume]
		if !there {
			continue // it was removed just now
		}
		have, err := s.snapshotsOf(want.Volume, volume)
		if err != nil {
			return err
		}
		same := slices.IndexFunc(have, func(h held) bool { return h.Name == want.Name })
		if same >= 0 && have[same].is(want) {
			continue
		}
		if same >= 0 {
			others = append(others, store.SnapshotName{Volume: volume, Name: want.Name})
		}
		spec := store.SnapshotSpec{Name: want.Name, Created: store.Instant(want.Moment), Size: want.Size}
		lacking = append(lacking, store.NewSnapshot{Volume: volume, SnapshotSpec: spec})
	}
	if err := s.pool.DeleteSnapshots(others...); err != nil {
		return err
	}
	return s.pool.CreateSnapshots(lacking...)
}

// Prune implements Snapshots. Those that were taken together go together. What is in
// use stays, with the rest of its moment, and is the error.
func (s *PoolStore) Prune(list []Snapshot) error {
	all, err := s.held()
	if err != nil {
		return err
	}
	var errs []error
	for len(all) > 0 {
		var moment []store.SnapshotName
		at, name := all[0].Moment, all[0].Name
		all = slices.DeleteFunc(all, func(h held) bool {
			if h.Moment != at || h.Name != name {
				return false
			}
			if !h.Within(list) {
				moment = append(moment, store.SnapshotName{Volume: h.volume, Name: name})
			}
			return true
		})
		errs = append(errs, s.dropAll(moment))
	}
	return errors.Join(errs...)
}

// dropAll deletes snapshots in one step; those whose volume has just gone are gone.
func (s *PoolStore) dropAll(list []store.SnapshotName) error {
	err := s.pool.DeleteSnapshots(list...)
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	var errs []error
	for _, n := range list {
		if err := s.pool.DeleteSnapshot(n.Volume, n.Name); !fault.Is(err, fault.NotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
