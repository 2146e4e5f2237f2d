package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/drive/drivetest"
	"steadfast/san/store/format"
)

// several is a pool with volumes v0, v1, ... on a drive that crashes.
type several struct {
	t     *testing.T
	p     *Pool
	world *drivetest.World
	disk  *drivetest.Disk
	r     *rand.Rand
	names []string
}

func newSeveral(t *testing.T, seed uint64, volumes int) *several {
	s := &several{t: t, world: drivetest.NewWorld(), r: rand.New(rand.NewPCG(seed, 0x5e))}
	s.disk = s.world.NewDisk("d", 32<<20, s.r)
	var err error
	s.p, err = Create("p", options(), s.drives())
	must(t, err)
	for i := range volumes {
		s.names = append(s.names, fmt.Sprintf("v%d", i))
		_, err := s.p.CreateVolume(VolumeSpec{Name: s.names[i], Size: VolumeSizeMin})
		must(t, err)
	}
	return s
}

func (s *several) drives() []NamedDrive { return []NamedDrive{{Name: "d", Drive: s.disk.Open()}} }

// crash ends this life of the pool and begins the next.
func (s *several) crash() {
	s.t.Helper()
	if s.r.IntN(2) == 0 {
		s.world.PowerLoss(s.r)
	} else {
		s.world.Kill(s.r)
	}
	_ = s.p.Close() // its drive is gone: this gives its memory back
	var err error
	s.p, err = Open(options(), s.drives())
	must(s.t, err)
}

// have counts the volumes that have a snapshot.
func (s *several) have(name string) (n int) {
	s.t.Helper()
	for _, v := range s.names {
		all, err := s.p.Snapshots(v)
		must(s.t, err)
		if slices.ContainsFunc(all, func(st SnapshotStatus) bool { return st.Name == name }) {
			n++
		}
	}
	return n
}

func (s *several) take(name string) []NewSnapshot {
	var list []NewSnapshot
	for _, v := range s.names {
		list = append(list, NewSnapshot{v, SnapshotSpec{Name: name, Created: 77}})
	}
	return list
}

func (s *several) drop(name string) []SnapshotName {
	var list []SnapshotName
	for _, v := range s.names {
		list = append(list, SnapshotName{v, name})
	}
	return list
}

// write stores something in each volume.
func (s *several) write(seed uint64) {
	s.t.Helper()
	for _, name := range s.names {
		v, err := s.p.OpenVolume(name)
		must(s.t, err)
		if err := v.WriteAt(stamp(block.BlockSize, seed), 0, 0); err != nil && !s.world.Ended() {
			s.t.Fatal(err)
		}
		must(s.t, v.Close())
	}
}

// TestSnapshotsTogether takes and deletes snapshots of several volumes, and finds
// each of them, or none: after a refusal, and after a crash at every write that the
// pool makes meanwhile, by a kill or by a loss of power.
func TestSnapshotsTogether(t *testing.T) {
	const volumes, cuts = 5, 60
	cutTaking, cutDeleting := 0, 0
	for cut := 1; cut <= cuts; cut++ {
		s := newSeveral(t, uint64(cut), volumes)
		must(t, s.p.CreateSnapshots(s.take("old")...))
		s.write(1)
		s.world.EndAfter(cut)
		taken := s.p.CreateSnapshots(s.take("new")...) == nil
		s.write(2)
		deleted := s.p.DeleteSnapshots(s.drop("old")...) == nil
		for range 10 {
			if _, err := s.p.Maintain(); err != nil {
				break
			}
		}
		s.crash()
		old, new := s.have("old"), s.have("new")
		if old != 0 && old != volumes || new != 0 && new != volumes {
			t.Errorf("cut at write %d: %d volumes have the old snapshot and %d the new one", cut, old, new)
		}
		if taken && new == 0 || deleted && old != 0 {
			t.Errorf("cut at write %d: taken %t, deleted %t; %d have the new one and %d the old one", cut, taken, deleted, new, old)
		}
		if !taken {
			cutTaking++
		} else if !deleted {
			cutDeleting++
		}
		idle(t, s.p)
		must(t, s.p.Close())
		sound(t, s.drives()...)
	}
	if cutTaking == 0 || cutDeleting == 0 {
		t.Errorf("%d cuts hit the taking and %d the deleting", cutTaking, cutDeleting)
	}
}

// TestSnapshotsRefusedTogether refuses what one of several volumes does not allow,
// and has changed nothing of the others, in service and after a crash.
func TestSnapshotsRefusedTogether(t *testing.T) {
	s := newSeveral(t, 1, 3)
	must(t, s.p.CreateSnapshots(s.take("one")...))
	_, err := s.p.CreateSnapshot("v2", "two")
	must(t, err)
	_, err = s.p.Clone("v1", "one", "clone")
	must(t, err)
	open, err := s.p.OpenSnapshot("v2", "two")
	must(t, err)
	for what, c := range map[string]struct {
		err  error
		kind fault.Kind
	}{
		"a name that is there":           {s.p.CreateSnapshots(s.take("two")...), fault.Exists},
		"a volume that is not":           {s.p.CreateSnapshots(append(s.take("x"), NewSnapshot{"v9", SnapshotSpec{Name: "x"}})...), fault.NotFound},
		"one volume twice":               {s.p.CreateSnapshots(append(s.take("x"), s.take("x")[0])...), fault.Invalid},
		"a bad name":                     {s.p.CreateSnapshots(append(s.take("x"), NewSnapshot{"v1", SnapshotSpec{Name: "X"}})...), fault.Invalid},
		"a clone stands on one":          {s.p.DeleteSnapshots(s.drop("one")...), fault.Busy},
		"one is open":                    {s.p.DeleteSnapshots(SnapshotName{"v0", "one"}, SnapshotName{"v2", "two"}), fault.Busy},
		"one is not there":               {s.p.DeleteSnapshots(s.drop("two")...), fault.NotFound},
		"one is to be deleted twice":     {s.p.DeleteSnapshots(SnapshotName{"v0", "one"}, SnapshotName{"v0", "one"}), fault.Invalid},
		"more than fit into one step":    {s.p.CreateSnapshots(many(2000)...), fault.Limit},
		"none at all (which is allowed)": {s.p.CreateSnapshots(), 0},
	} {
		if c.kind == 0 && c.err != nil || c.kind != 0 && !fault.Is(c.err, c.kind) {
			t.Errorf("%s: %v", what, c.err)
		}
	}
	must(t, open.Close())
	for range 2 {
		if one, two, x := s.have("one"), s.have("two"), s.have("x"); one != 3 || two != 1 || x != 0 {
			t.Errorf("%d have one, %d two, and %d x", one, two, x)
		}
		s.crash()
	}
	must(t, s.p.Close())
	sound(t, s.drives()...)
}

// many are snapshots of one volume.
func many(n int) (list []NewSnapshot) {
	for i := range n {
		list = append(list, NewSnapshot{"v0", SnapshotSpec{Name: fmt.Sprintf("a-name-that-is-rather-long-%d", i)}})
	}
	return list
}

// TestRefusedWhenApplied has one of several changes be refused only after they were
// logged, by another that came in between, and holds that none is done: then, and
// when recovery reads the log.
func TestRefusedWhenApplied(t *testing.T) {
	s := newSeveral(t, 1, 3)
	var records []format.Record
	for _, n := range s.names {
		id, err := s.p.volumeID(n)
		must(t, err)
		o := &format.Op{Kind: format.OpCreateSnapshot, Volume: id, Name: "x", Time: 5}
		records = append(records, format.Record{Kind: format.RecordCatalog, Payload: o.Encode()})
	}
	_, err := s.p.CreateSnapshot("v1", "x")
	must(t, err)
	if err := s.p.commit(&op{durable: true, records: records}); !fault.Is(err, fault.Exists) {
		t.Errorf("a change that another one came before: %v", err)
	}
	for range 2 {
		if n := s.have("x"); n != 1 {
			t.Errorf("%d volumes have the snapshot", n)
		}
		s.crash()
	}
	s.write(3)
	must(t, s.p.Close())
	sound(t, s.drives()...)
}

// TestNotOpenedWhileDeleted holds that what is being deleted cannot be opened: its
// deletion would be refused when it is applied, but not in recovery.
func TestNotOpenedWhileDeleted(t *testing.T) {
	s := newSeveral(t, 1, 2)
	must(t, s.p.CreateSnapshots(s.take("s")...))
	v0, err := s.p.volumeID("v0")
	must(t, err)
	v1, err := s.p.volumeID("v1")
	must(t, err)
	stay, err := s.p.leave([]*format.Op{{Kind: format.OpDeleteVolume, Volume: v0}, {Kind: format.OpDeleteSnapshot, Volume: v1, Name: "s"}})
	must(t, err)
	opens := map[string]func() (*Volume, error){
		"the volume":           func() (*Volume, error) { return s.p.OpenVolume("v0") },
		"the volume's":         func() (*Volume, error) { return s.p.OpenSnapshot("v0", "s") },
		"a volume's snapshot":  func() (*Volume, error) { return s.p.OpenSnapshot("v1", "s") },
		"(which is not going)": func() (*Volume, error) { return s.p.OpenVolume("v1") },
	}
	for what, open := range opens {
		v, err := open()
		if what == "(which is not going)" {
			must(t, err)
			must(t, v.Close())
		} else if !fault.Is(err, fault.Busy) {
			t.Errorf("%s is being deleted, and is opened: %v", what, err)
		}
	}
	stay()
	for what, open := range opens {
		v, err := open()
		if err != nil {
			t.Errorf("%s is not deleted, and cannot be opened: %v", what, err)
			continue
		}
		must(t, v.Close())
	}
	must(t, s.p.Close())
}

// TestLongHeaders has more operations wait for one chunk than the header of one
// that recovery reads has room for.
func TestLongHeaders(t *testing.T) {
	s := newSeveral(t, 1, 1)
	v, err := s.p.OpenVolume("v0")
	must(t, err)
	buf := bufpool.Aligned(block.BlockSize)
	must(t, v.WriteAt(buf, 0, 0))
	var ops []*op
	for i := range format.HeaderRoom(format.ChunkHeaderBlocksMax)/29 + 100 {
		r := format.Record{Kind: format.RecordTrim, LBA: uint64(i % 250), N: 1}
		ops = append(ops, &op{vol: v.vol, durable: true, records: []format.Record{r}})
	}
	must(t, s.p.commit(ops...))
	copy(buf, stamp(block.BlockSize, 9))
	must(t, v.WriteAt(buf, block.BlockSize, block.FUA))
	s.crash()
	v, err = s.p.OpenVolume("v0")
	must(t, err)
	got := bufpool.Aligned(block.BlockSize)
	must(t, v.ReadAt(got, block.BlockSize))
	if string(got) != string(buf) {
		t.Error("what was written durably after them is gone")
	}
	must(t, v.Close())
	must(t, s.p.Close())
}
