package mirrorio

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/mirror"
	"steadfast/san/store"
)

// snapDisk is a node's disk whose pool has snapshots: an action is "take", a name,
// a moment and volumes, or "drop", a name and volumes.
type snapDisk struct{ *poolDisk }

func (d snapDisk) hooks(o *Options) {
	o.Act, o.Undo = d.act, func(a []byte) error { return d.act([]byte(strings.Replace(string(a), "take", "drop", 1))) }
	o.ResyncBegins = func() error {
		d.mu.Lock() // a volume may be made meanwhile
		names, pool := slices.Sorted(maps.Values(d.names)), d.pool
		d.mu.Unlock()
		for _, volume := range names {
			if _, err := pool.CreateSnapshot(volume, KeptState); err != nil && !fault.Is(err, fault.Exists) {
				return err
			}
		}
		return nil
	}
}

func (d snapDisk) act(action []byte) error {
	var do, name string
	var at int64
	var volumes string
	if _, err := fmt.Sscan(string(action), &do, &name, &at, &volumes); err != nil {
		return fault.Wrap(fault.Invalid, err, "an action")
	}
	for volume := range strings.SplitSeq(volumes, ",") {
		var err error
		if do == "take" {
			_, err = d.pool.CreateSnapshotAs(volume, store.SnapshotSpec{Name: name, Created: store.Instant(at)})
		} else {
			err = d.pool.DeleteSnapshot(volume, name)
		}
		if err != nil && !fault.Is(err, fault.Exists) && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}

// frozen is a snapshot as it is found in a pool.
type frozen struct {
	Volume, Name string
	Created      int64
	Size         int64
	sum          []byte
}

// found lists the snapshots of a disk's pool and what is in them.
func (d snapDisk) found(t testing.TB) (out []frozen) {
	t.Helper()
	for n := range uint32(len(d.names)) {
		volume := d.names[n]
		list, err := d.pool.Snapshots(volume)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			if s.Name == KeptState {
				continue
			}
			v, err := d.pool.OpenSnapshot(volume, s.Name)
			if err != nil {
				t.Fatal(err)
			}
			p := bufpool.Aligned(int(s.Size))
			if err := v.ReadAt(p, 0); err != nil {
				t.Errorf("snapshot %s of %s: %v", s.Name, volume, err)
			}
			_ = v.Close()
			out = append(out, frozen{volume, s.Name, s.Created.UnixNano(), s.Size, p})
		}
	}
	return out
}

// snapPair is a pair on such disks, with what its snapshots are to be.
type snapPair struct {
	*pair
	a, b  snapDisk
	rand  *rand.Rand
	taken map[string][]byte // by name and volume
	last  time.Time
}

func newSnapPair(t testing.TB, seed uint64) *snapPair {
	a, b := snapDisk{newPoolDiskOf(t, 256<<20)}, snapDisk{newPoolDiskOf(t, 256<<20)}
	p := &snapPair{pair: newPairOn(t, a, b), a: a, b: b, rand: rand.New(rand.NewPCG(seed, 1)), taken: map[string][]byte{}}
	a.add(1, "w")
	b.add(1, "w")
	return p
}

func (p *snapPair) of(n uint32) *Volume {
	return p.groups["a"].Volume(n, func() int64 { return volumeBytes }, func() bool { return true })
}

// write changes some of the volumes.
func (p *snapPair) write() {
	p.t.Helper()
	for range p.rand.IntN(20) {
		v := p.of(uint32(p.rand.IntN(len(p.a.names))))
		count := 1 + p.rand.Int64N(16)
		at := p.rand.Int64N(volumeBlocks - count + 1)
		var err error
		if p.rand.IntN(4) == 0 {
			err = v.Trim(at*BlockSize, count*BlockSize)
		} else {
			err = v.WriteAt(filled(int(count), byte(1+p.rand.IntN(255))), at*BlockSize, 0)
		}
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

// take takes a snapshot of some volumes, and notes what is to be in it.
func (p *snapPair) take(name string, volumes ...string) {
	p.t.Helper()
	now := time.Now()
	if !now.After(p.last) {
		now = p.last.Add(1)
	}
	p.last = now
	for n := range uint32(len(p.a.names)) {
		if !slices.Contains(volumes, p.a.names[n]) {
			continue
		}
		content := bufpool.Aligned(volumeBytes)
		if err := p.of(n).ReadAt(content, 0); err != nil {
			p.t.Fatal(err)
		}
		p.taken[name+"@"+p.a.names[n]] = content
	}
	if err := p.groups["a"].Snapshot(mirror.Moment(now.UnixNano()), fmt.Appendf(nil, "take %s %d %s", name, now.UnixNano(), strings.Join(volumes, ","))); err != nil {
		p.t.Fatal(err)
	}
}

// drop deletes a snapshot of some volumes, and reports whether it was not in use.
func (p *snapPair) drop(name string, volumes ...string) bool {
	p.t.Helper()
	err := p.groups["a"].Barrier(fmt.Appendf(nil, "drop %s 0 %s", name, strings.Join(volumes, ",")))
	if err != nil && !fault.Is(err, fault.Busy) {
		p.t.Fatal(err)
	}
	for _, v := range volumes {
		if err == nil {
			delete(p.taken, name+"@"+v)
		}
	}
	return err == nil
}

// back brings b back.
func (p *snapPair) back() {
	p.start("b")
	p.connect()
}

// judge holds that both nodes have the snapshots that there are to be, and what is
// to be in them.
func (p *snapPair) judge() {
	p.t.Helper()
	p.inSync()
	p.equal()
	a, b := p.a.found(p.t), p.b.found(p.t)
	key := func(s frozen) string { return s.Volume + "@" + s.Name }
	sort := func(l []frozen) { slices.SortFunc(l, func(x, y frozen) int { return strings.Compare(key(x), key(y)) }) }
	sort(a)
	sort(b)
	ignore := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".sum" }, cmp.Ignore())
	if diff := cmp.Diff(a, b, ignore); diff != "" {
		p.t.Fatalf("the nodes' snapshots differ:\n%s", diff)
	}
	if len(a) != len(p.taken) {
		p.t.Errorf("%d snapshots, want %d", len(a), len(p.taken))
	}
	for i := range a {
		want := p.taken[a[i].Name+"@"+a[i].Volume]
		for who, got := range map[quorum.Member][]byte{"a": a[i].sum, "b": b[i].sum} {
			if len(got) != len(want) {
				p.t.Errorf("%s has %d bytes of %s, want %d", who, len(got), key(a[i]), len(want))
			} else if at := firstDifference(got, want); at >= 0 {
				p.t.Errorf("%s has another byte %d of %s", who, at, key(a[i]))
			}
		}
	}
}

// TestSnapshotsOfAnAbsentNode takes snapshots while a node is away, deletes some, and
// takes one by an old name: it has them all when it is back, and those alone.
func TestSnapshotsOfAnAbsentNode(t *testing.T) {
	p := newSnapPair(t, 1)
	both := []string{"v", "w"}
	p.write()
	p.take("kept", both...)
	p.take("anew", both...)
	p.take("gone", both...)
	p.write()
	p.stop("b", true)
	p.write()
	p.take("first", both...)
	p.write()
	p.drop("anew", both...)
	p.drop("gone", both...)
	p.take("anew", both...)
	p.write()
	p.take("one", "v")
	p.write()
	p.take("brief", "w")
	p.drop("brief", "w")
	p.drop("first", "w")
	p.write()
	p.back()
	p.judge()
	if have, err := p.b.pool.Snapshots("w"); err != nil || len(have) < 2 {
		t.Errorf("%+v %v", have, err)
	}
}

// TestSnapshotsDuringAResync takes and deletes snapshots while the resync is under
// way, which is cut off and killed in the middle.
func TestSnapshotsDuringAResync(t *testing.T) {
	rounds := uint64(12)
	if testing.Short() {
		rounds = 3
	}
	for seed := range rounds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { snapshotsDuringAResync(newSnapPair(t, seed)) })
	}
}

func snapshotsDuringAResync(p *snapPair) {
	number := 0
	var names []string
	some := func() []string { return [][]string{{"v"}, {"w"}, {"v", "w"}}[p.rand.IntN(3)] }
	act := func() {
		p.write()
		if len(names) > 3 && p.rand.IntN(3) == 0 {
			p.drop(names[p.rand.IntN(len(names))], some()...)
			return
		}
		name := fmt.Sprintf("s%d", number)
		if number++; len(names) > 3 && p.rand.IntN(4) == 0 {
			if old := names[p.rand.IntN(len(names))]; p.drop(old, "v", "w") {
				name = old
			}
		}
		names = append(names, name)
		p.take(name, some()...)
	}
	act()
	act()
	for range 3 {
		p.stop("b", p.rand.IntN(2) == 0)
		for range 1 + p.rand.IntN(5) {
			act()
		}
		p.back()
		for range p.rand.IntN(4) {
			time.Sleep(time.Duration(p.rand.IntN(25)) * time.Millisecond)
			switch p.rand.IntN(3) {
			case 0:
				p.stop("b", p.rand.IntN(2) == 0)
				p.back()
			case 1:
				p.connect()
			default:
				act()
			}
		}
		p.judge()
	}
}

// TestSnapshotsOfAReplacedPool gives a node an empty pool, where a volume that it never
// knew is made while its snapshots are on their way, and others have grown.
func TestSnapshotsOfAReplacedPool(t *testing.T) {
	p := newSnapPair(t, 7)
	p.write()
	p.take("one", "v", "w")
	p.write()
	p.take("two", "w")
	p.write()
	p.stop("b", true)
	p.a.add(2, "x")
	p.write()
	p.take("three", "w", "x")
	p.write()
	p.b = snapDisk{newPoolDiskOf(t, 256<<20)}
	p.disks["b"] = p.b
	p.b.begin()
	p.b.add(1, "w")
	larger := int64(2 * volumeBytes)
	for _, d := range []snapDisk{p.a, p.b} {
		if _, err := d.pool.ChangeVolume("w", store.VolumeChange{Size: &larger}); err != nil {
			t.Fatal(err)
		}
	}
	p.b.end(false)
	p.back()
	time.Sleep(20 * time.Millisecond)
	p.b.add(2, "x")
	p.judge()
}

// TestPinnedSnapshot holds that what a resync copies from is not deleted, and that a
// volume that goes takes it along.
func TestPinnedSnapshot(t *testing.T) {
	d := snapDisk{newPoolDiskOf(t, 256<<20)}
	d.begin()
	defer d.end(false)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(d.vols.Apply(0, &Change{Kind: Data, Length: BlockSize, Data: filled(1, 1)}, true))
	must(d.act([]byte("take s 5 v")))
	must(d.vols.Apply(0, &Change{Kind: Data, Length: BlockSize, Data: filled(1, 2)}, true))
	if got := d.vols.Pin(5); !slices.Equal(got, []uint32{0}) || !d.vols.Copying("v", "s") {
		t.Fatalf("pinned in volumes %v", got)
	}
	if err := d.act([]byte("drop s 0 v")); !fault.Is(err, fault.Busy) {
		t.Errorf("it was deleted: %v", err)
	}
	p := filled(2, 9)
	must(d.vols.ReadPinned(0, p, volumeBytes-BlockSize))
	if !bytes.Equal(p, make([]byte, 2*BlockSize)) {
		t.Error("there is something past its end")
	}
	must(d.vols.ReadPinned(0, p[:BlockSize], 0))
	if p[0] != 1 {
		t.Errorf("read %d from the snapshot", p[0])
	}
	d.vols.Unpin()
	must(d.act([]byte("drop s 0 v")))
	if got := d.vols.Pin(5); len(got) > 0 {
		t.Errorf("what was deleted is pinned in %v", got)
	}
	must(d.act([]byte("take s 6 v")))
	d.vols.Pin(6)
	must(d.vols.Remove(0))
	must(d.pool.DeleteVolume("v", true))
}

// TestSnapshotList holds that a list comes as it was sent, and that nothing else
// does.
func TestSnapshotList(t *testing.T) {
	for _, list := range [][]Snapshot{nil, {{1, "s", 5, 4096, false}}, {{0, strings.Repeat("x", 63), 1 << 62, 1 << 46, true}, {9, "y", 1, 0, false}}} {
		c := listOf(list)
		got, err := decodeList(c.Data)
		if diff := cmp.Diff(list, got); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
		for n := range c.Data {
			if _, err := decodeList(c.Data[:n]); err == nil {
				t.Errorf("%d of %d bytes are a list", n, len(c.Data))
			}
		}
	}
}

// FuzzSnapshotList holds that a peer's bytes never do more than fail.
func FuzzSnapshotList(f *testing.F) {
	f.Add(listOf([]Snapshot{{1, "s", 5, 4096, true}}).Data)
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeList(b)
		if err == nil && !bytes.Equal(listOf(list).Data, b) {
			t.Errorf("%x became %+v", b, list)
		}
	})
}
