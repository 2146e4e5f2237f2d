package ha

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/san/drive/drivetest"
	"steadfast/san/mirror"
	"steadfast/san/mirrorio"
	"steadfast/san/store"
)

// alone is a group on this node only, which owns it, with a real pool on a drive that
// crashes. Each life of the node has a Group of its own.
type alone struct {
	t     *testing.T
	world *drivetest.World
	disk  *drivetest.Disk
	rand  *rand.Rand
	pool  *store.Pool
	spec  *Spec
	ids   uint64

	*Group
	mu   sync.Mutex
	told []Event
}

func newAlone(t *testing.T, seed uint64) *alone {
	a := &alone{t: t, world: drivetest.NewWorld(), rand: rand.New(rand.NewPCG(seed, 0xac7))}
	a.disk = a.world.NewDisk("d", 64<<20, a.rand)
	var err error
	if a.pool, err = store.Create("tank", a.options(), a.drives()); err != nil {
		t.Fatal(err)
	}
	a.spec = &Spec{Name: "g", Nodes: []Node{{Name: "a", Pool: "tank"}, {Name: "b", Pool: "tank"}}, StateID: newID()}
	for i := range 3 {
		if _, err := a.spec.AddVolume(Volume{Name: fmt.Sprintf("v%d", i+1), Size: store.VolumeSizeMin}); err != nil {
			t.Fatal(err)
		}
	}
	a.begin()
	t.Cleanup(func() { a.end() })
	return a
}

func (a *alone) options() store.Options {
	return store.Options{
		CacheBytes: 16 << 20,
		Now:        func() store.Instant { return store.Instant(time.Now().UnixNano()) },
		NewID: func() (id store.ID) {
			a.ids++
			binary.LittleEndian.PutUint64(id[:], a.ids)
			id[15] = 1
			return id
		},
	}
}

func (a *alone) drives() []store.NamedDrive {
	return []store.NamedDrive{{Name: "d", Drive: a.disk.Open()}}
}

// begin opens the group's part on this node.
func (a *alone) begin() {
	a.t.Helper()
	me := quorum.Incarnation{Member: "a", Boot: 1}
	g := &Group{
		name: "g", spec: a.spec, pool: a.pool, verifications: map[string]bool{}, stood: make(chan struct{}, 1),
		cfg: &Config{Log: slog.New(slog.DiscardHandler), Publish: func(e Event) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.told = append(a.told, e)
		}},
		gs: &Groups{},
	}
	a.Group = g
	g.ctx, g.stop = context.WithCancel(context.Background())
	if err := g.haveVolumes(a.spec, a.pool); err != nil {
		a.t.Fatal(err)
	}
	names := map[uint32]string{0: a.spec.stateName()}
	for _, v := range a.spec.Volumes {
		names[v.Number] = v.Name
	}
	ps, kept, err := mirrorio.OpenStore(a.pool, names)
	if err != nil {
		a.t.Fatal(err)
	}
	began := time.Now()
	m := mirrorio.Start(mirrorio.Options{
		Mirror: mirror.Config{
			Agent: group.Config{
				Me: me, Group: "g", Lease: time.Second, Renew: 100 * time.Millisecond, Silence: 400 * time.Millisecond, Drift: 1000,
				Revive: time.Second, Retry: 100 * time.Millisecond,
			},
			Position: kept, Copies: 4, CopyBlocks: 16, Settle: time.Second, Pause: time.Second,
		},
		Store: copyOf{ps, g}, Now: func() group.Instant { return group.Instant(time.Since(began)) }, Propose: func(quorum.Command) {},
		Stood: g.stoodAs, Act: func(b []byte) error { return g.act(a.pool, b) }, Undo: func(b []byte) error { return g.undo(a.pool, b) },
		Log: g.cfg.Log, Tick: 5 * time.Millisecond,
	})
	g.mu.Lock()
	g.store, g.mirror = ps, m
	g.mu.Unlock()
	s := quorum.NewState()
	for i, c := range []quorum.Command{{Kind: quorum.KindBoot, By: me}, {Kind: quorum.KindCreate, Group: "g", By: me}} {
		if err := s.Apply(uint64(i+1), c); err != nil {
			a.t.Fatal(err)
		}
	}
	m.Decided(s)
	a.await("it serves", func() bool { return m.Standing().Serving })
}

// end ends the group's part, and the pool.
func (a *alone) end() {
	a.stop()
	a.gs.tasks.Wait()
	a.Group.mirror.Close()
	_ = a.store.Close() // of a drive that may be gone
	_ = a.pool.Close()
}

// crash ends this life of the node, and begins the next.
func (a *alone) crash() {
	a.t.Helper()
	a.world.Kill(a.rand)
	a.end()
	var err error
	if a.pool, err = store.Open(a.options(), a.drives()); err != nil {
		a.t.Fatal(err)
	}
	a.begin()
}

func (a *alone) await(what string, is func() bool) {
	a.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			a.t.Fatalf("%s: never", what)
		}
	}
}

// have counts the volumes that have a snapshot.
func (a *alone) have(snapshot string) (n int) {
	for _, v := range a.spec.Volumes {
		if taken(a.pool, v.Name, snapshot, 0) {
			n++
		}
	}
	return n
}

// moment returns when the snapshot of the first volume was taken.
func (a *alone) moment(snapshot string) int64 {
	a.t.Helper()
	all, err := a.pool.Snapshots("v1")
	if err != nil {
		a.t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(s store.SnapshotStatus) bool { return s.Name == snapshot })
	if i < 0 {
		a.t.Fatalf("v1 has no snapshot %q", snapshot)
	}
	return all[i].Created.UnixNano()
}

func (a *alone) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a *alone) kinds() (kinds []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.told {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

var allVolumes = []uint32{1, 2, 3}

// TestActTogether ends a node at each write that an action makes: what it finds in its
// next life is a snapshot of every volume, or of none.
func TestActTogether(t *testing.T) {
	cuts := map[bool]int{}
	for cut := 1; cut <= 4; cut++ {
		a := newAlone(t, uint64(cut))
		a.must(a.Snapshot("old", allVolumes))
		a.world.EndAfter(cut)
		b, err := json.Marshal(action{Do: doSnapshot, Name: "new", Moment: 77, Volumes: allVolumes})
		a.must(err)
		taken := a.act(a.pool, b) == nil
		if taken {
			b, err = json.Marshal(action{Do: doDeleteSnapshot, Name: "old", Volumes: allVolumes})
			a.must(err)
			_ = a.act(a.pool, b) // or it ends here
		}
		a.crash()
		if n, old := a.have("new"), a.have("old"); n != 0 && n != 3 || taken && n == 0 || old != 0 && old != 3 || !taken && old == 0 {
			t.Errorf("cut at write %d: taken %t; %d volumes have the new snapshot, %d the old one", cut, taken, n, old)
		}
		cuts[taken]++
	}
	if len(cuts) != 2 {
		t.Errorf("taken or not: %v", cuts)
	}
}

// TestActTwice does an action again, which changes nothing, and takes it back.
func TestActTwice(t *testing.T) {
	a := newAlone(t, 1)
	b, err := json.Marshal(action{Do: doSnapshot, Name: "s", Moment: 77, Volumes: allVolumes})
	a.must(err)
	a.must(a.pool.CreateSnapshots(store.NewSnapshot{Volume: "v2", SnapshotSpec: store.SnapshotSpec{Name: "s", Created: 77}}))
	for range 2 {
		a.must(a.act(a.pool, b))
		if n := a.have("s"); n != 3 {
			t.Errorf("%d volumes have it", n)
		}
	}
	for range 2 {
		a.must(a.undo(a.pool, b))
		if n := a.have("s"); n != 0 {
			t.Errorf("%d volumes have what was taken back", n)
		}
	}
	_, err = a.pool.CreateSnapshot("v3", "s")
	a.must(err)
	if err := a.act(a.pool, b); !fault.Is(err, fault.Exists) || a.have("s") != 1 {
		t.Errorf("one volume has another by that name: %v, and %d have one", err, a.have("s"))
	}
	a.must(a.undo(a.pool, b))
	if n := a.have("s"); n != 1 {
		t.Errorf("the other one by that name was taken back")
	}
}

// TestDeleteInUse deletes a snapshot that somebody reads: it goes when the reader has
// gone, and a newer one by its name stays.
func TestDeleteInUse(t *testing.T) {
	a := newAlone(t, 1)
	a.must(a.Snapshot("s", allVolumes))
	reader, err := a.pool.OpenSnapshot("v2", "s")
	a.must(err)
	a.must(a.DeleteSnapshot("s", allVolumes))
	a.dropLate()
	if n := a.have("s"); n != 3 {
		t.Errorf("%d volumes have it while one of them is read", n)
	}
	if err := a.Snapshot("s", allVolumes); !fault.Is(err, fault.Exists) {
		t.Errorf("another one by its name: %v", err)
	}
	a.must(reader.Close())
	a.dropLate()
	if n := a.have("s"); n != 0 {
		t.Errorf("%d volumes have it still", n)
	}
	a.must(a.Snapshot("s", allVolumes))
	was := a.moment("s")
	a.putLate("s", was-1, 1)
	a.dropLate()
	a.gs.tasks.Wait()
	if n := a.have("s"); n != 3 {
		t.Errorf("%d volumes have the newer one", n)
	}
	if len(a.late) > 0 {
		t.Errorf("left: %v", a.late)
	}
}

// TestPruneInUse has a resync of this node find a snapshot that it is to delete in
// use: it stays whole, and goes later.
func TestPruneInUse(t *testing.T) {
	a := newAlone(t, 1)
	a.must(a.Snapshot("s", allVolumes))
	a.must(a.Snapshot("other", allVolumes))
	reader, err := a.pool.OpenSnapshot("v2", "s")
	a.must(err)
	if err := (copyOf{a.store, a.Group}).Prune(nil); err != nil {
		t.Errorf("what is in use hinders the rest: %v", err)
	}
	if n, o := a.have("s"), a.have("other"); n != 3 || o != 0 {
		t.Errorf("%d volumes have it, and %d the other one", n, o)
	}
	a.must(reader.Close())
	a.dropLate()
	if n := a.have("s"); n != 0 {
		t.Errorf("%d volumes have it still", n)
	}
}

// TestDeleteVolumeInUse takes a volume out of the group while somebody reads a snapshot
// of it: nothing else waits for that, and it goes later.
func TestDeleteVolumeInUse(t *testing.T) {
	a := newAlone(t, 1)
	a.must(a.Snapshot("s", allVolumes))
	reader, err := a.pool.OpenSnapshot("v2", "s")
	a.must(err)
	less := a.spec.Clone()
	less.Volumes = slices.Delete(less.Volumes, 1, 2)
	state := quorum.NewState()
	there := func() bool {
		_, err := a.pool.Volume("v2")
		return err == nil
	}
	for range 2 {
		a.must(a.dropLeft(less, a.pool, state))
		a.must(a.haveVolumes(less, a.pool))
		if !there() {
			t.Error("it was deleted under its reader")
		}
	}
	a.must(reader.Close())
	a.must(a.dropLeft(less, a.pool, state))
	if there() || a.left {
		t.Errorf("it is there still: %t; is looked for: %t", there(), a.left)
	}
	for _, v := range []string{"v1", "v3"} {
		if _, err := a.pool.Volume(v); err != nil {
			t.Error(err)
		}
	}
}

// TestVerificationsLeft ends a node in the middle of a comparison: the snapshots that
// it made for it are deleted in its next life, and one that goes on keeps its own.
func TestVerificationsLeft(t *testing.T) {
	a := newAlone(t, 1)
	if err := a.Snapshot("verify-0123456789ab", allVolumes); !fault.Is(err, fault.Invalid) {
		t.Errorf("a name that only comparisons have: %v", err)
	}
	a.must(a.Snapshot("verify-mine", allVolumes))
	name, _, err := a.Freeze(allVolumes)
	a.must(err)
	a.crash()
	if n := a.have(name); n != 3 {
		t.Fatalf("%d volumes have it", n)
	}
	goes, end, err := a.Freeze([]uint32{1, 3})
	a.must(err)
	a.serving = &service{}
	a.tidy()
	a.gs.tasks.Wait()
	if left, going, mine := a.have(name), a.have(goes), a.have("verify-mine"); left != 0 || going != 2 || mine != 3 {
		t.Errorf("%d volumes have what was left, %d of 2 what goes on, and %d of 3 what somebody made", left, going, mine)
	}
	if !slices.Contains(a.kinds(), "verify-left") {
		t.Errorf("told: %v", a.kinds())
	}
	a.must(end())
	if n := a.have(goes); n != 0 {
		t.Errorf("%d volumes have the snapshot of a comparison that has ended", n)
	}
}

// TestUnreadable holds that a snapshot which a resync leaves out is told of, with the
// volume's name.
func TestUnreadable(t *testing.T) {
	a := newAlone(t, 1)
	copyOf{a.store, a.Group}.Unreadable(mirrorio.Snapshot{Volume: 2, Name: "s"})
	a.mu.Lock()
	defer a.mu.Unlock()
	last := a.told[len(a.told)-1]
	if last.Kind != "snapshot-unreadable" || last.Severity != Error || last.Group != "g" || last.Volume != "v2" || !strings.Contains(last.Text, `"s"`) {
		t.Errorf("told: %+v", last)
	}
}
