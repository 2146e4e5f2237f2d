package mirrorio

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/drive/drivetest"
	"steadfast/san/mirror"
	"steadfast/san/store"
)

// poolDisk is a node's disk with a pool on it, which every life opens as the
// life before left it: killed, or without power.
type poolDisk struct {
	t     testing.TB
	world *drivetest.World
	disk  *drivetest.Disk
	names map[uint32]string

	mu   sync.Mutex
	pool *store.Pool
	vols *PoolStore
	stop chan struct{}
	busy sync.WaitGroup
}

func newPoolDisk(t testing.TB) *poolDisk { return newPoolDiskOf(t, 64<<20) }

func newPoolDiskOf(t testing.TB, size int64) *poolDisk {
	d := &poolDisk{t: t, world: drivetest.NewWorld(), names: map[uint32]string{0: "v"}}
	d.disk = d.world.NewDisk("d", size, rand.New(rand.NewPCG(rand.Uint64(), 1)))
	pool, err := store.Create("p", d.options(), d.drives())
	if err == nil {
		_, err = pool.CreateVolume(store.VolumeSpec{Name: "v", Size: volumeBytes})
	}
	if err == nil {
		err = pool.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *poolDisk) drives() []store.NamedDrive {
	return []store.NamedDrive{{Name: "d", Drive: d.disk.Open()}}
}

func (d *poolDisk) options() store.Options {
	return store.Options{CacheBytes: 16 << 20, Now: func() store.Instant { return store.Instant(time.Now().UnixNano()) }, NewID: func() (id store.ID) {
		binary.LittleEndian.PutUint64(id[:], rand.Uint64())
		return id
	}}
}

func (d *poolDisk) begin() (Store, mirror.Position) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	if d.pool, err = store.Open(d.options(), d.drives()); err != nil {
		d.t.Fatal(err)
	}
	vols, kept, err := OpenStore(d.pool, d.names)
	if err != nil {
		d.t.Fatal(err)
	}
	d.vols, d.stop = vols, make(chan struct{})
	pool, stop := d.pool, d.stop
	d.busy.Go(func() {
		for {
			more, err := pool.Maintain()
			if err != nil {
				return // its disk is gone
			}
			wait := time.Millisecond
			if more {
				wait = 0
			}
			select {
			case <-stop:
				return
			case <-time.After(wait):
			}
		}
	})
	return vols, kept
}

func (d *poolDisk) end(power bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.stop)
	d.busy.Wait()
	if r := rand.New(rand.NewPCG(rand.Uint64(), 2)); power {
		d.world.PowerLoss(r)
	} else {
		d.world.Kill(r)
	}
	_ = d.pool.Close() // its disk is gone: this gives its memory back
	d.pool = nil
}

func (d *poolDisk) content() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pool == nil {
		return nil
	}
	var all []byte
	for n := range uint32(len(d.names)) {
		p := bufpool.Aligned(volumeBytes)
		if err := d.vols.Read(n, p, 0); err != nil {
			d.t.Errorf("reading all of volume %d: %v", n, err)
		}
		all = append(all, p...)
	}
	return all
}

// TestTakeoverOnPools is TestTakeover on real pools, on drives that lose what was
// not flushed.
func TestTakeoverOnPools(t *testing.T) {
	takeovers(t, newPairOn(t, newPoolDisk(t), newPoolDisk(t)))
}

// add makes a volume and enters it.
func (d *poolDisk) add(n uint32, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.pool.CreateVolume(store.VolumeSpec{Name: name, Size: volumeBytes}); err != nil {
		d.t.Fatal(err)
	}
	if err := d.vols.Add(n, name); err != nil {
		d.t.Fatal(err)
	}
	d.names[n] = name
}

// filled returns n blocks of something.
func filled(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n*BlockSize) }

// TestVolumesComeAndGo adds a volume at the owner first, removes one at the peer
// first, and resyncs what was written to a volume that the peer never had.
func TestVolumesComeAndGo(t *testing.T) {
	a, b := newPoolDisk(t), newPoolDisk(t)
	p := newPairOn(t, a, b)
	a.add(1, "w")
	added := p.groups["a"].Volume(1, func() int64 { return volumeBytes }, func() bool { return false })
	done := make(chan error)
	go func() { done <- added.WriteAt(filled(3, 1), 0, 0) }()
	time.Sleep(20 * time.Millisecond)
	b.add(1, "w")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p.equal()
	if err := b.vols.Add(1, "w"); !fault.Is(err, fault.Exists) {
		t.Errorf("added twice: %v", err)
	}

	larger := int64(2 * volumeBytes)
	if _, err := a.pool.ChangeVolume("w", store.VolumeChange{Size: &larger}); err != nil {
		t.Fatal(err)
	}
	grown := p.groups["a"].Volume(1, func() int64 { return larger }, func() bool { return false })
	go func() { done <- grown.WriteAt(filled(1, 9), volumeBytes, 0) }()
	select {
	case err := <-done:
		t.Errorf("written to where the peer's volume has not grown: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	if _, err := b.pool.ChangeVolume("w", store.VolumeChange{Size: &larger}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	p.stop("b", true)
	a.add(2, "x")
	late := p.groups["a"].Volume(2, func() int64 { return volumeBytes }, func() bool { return false })
	if err := late.WriteAt(filled(5, 2), BlockSize, 0); err != nil {
		t.Fatal(err)
	}
	p.start("b")
	p.connect()
	b.add(2, "x")
	p.inSync()
	p.equal()

	if err := b.vols.Remove(2); err != nil {
		t.Fatal(err)
	}
	if err := late.WriteAt(filled(1, 3), 0, 0); err != nil {
		t.Errorf("a write that the peer has no use for any more: %v", err)
	}
	if err := a.vols.Remove(2); err != nil {
		t.Fatal(err)
	}
	if err := late.ReadAt(filled(1, 0), 0); !fault.Is(err, fault.NotFound) {
		t.Errorf("a read of a removed volume: %v", err)
	}
	if g := p.state().Group["g"]; len(g.Set) != 2 {
		t.Errorf("%d entries", len(g.Set))
	}
	delete(a.names, 2)
	delete(b.names, 2)
}

// TestReplacedPool gives a member an empty pool: it gets all there is, also what
// both had long ago, and no room is taken for what is empty.
func TestReplacedPool(t *testing.T) {
	a, b := newPoolDisk(t), newPoolDisk(t)
	p := newPairOn(t, a, b)
	if err := p.volume("a").WriteAt(filled(16, 1), 0, 0); err != nil {
		t.Fatal(err)
	}
	p.await("it is long ago", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		base, ok := a.pool.Base("v")
		return ok && base > 0
	})
	p.stop("b", true)
	c := newPoolDisk(t)
	p.disks["b"] = c
	p.start("b")
	if err := p.volume("a").Trim(0, BlockSize); err != nil {
		t.Fatal(err)
	}
	p.connect()
	p.inSync()
	p.equal()
	for _, d := range []*poolDisk{a, c} {
		v, err := d.pool.Volume("v")
		if err != nil || v.Referenced != 15*BlockSize {
			t.Errorf("%d bytes are referenced, %v", v.Referenced, err)
		}
	}
}
