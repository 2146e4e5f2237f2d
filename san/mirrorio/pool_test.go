package mirrorio

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

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

	mu   sync.Mutex
	pool *store.Pool
	vols *PoolStore
	stop chan struct{}
	busy sync.WaitGroup
}

func newPoolDisk(t testing.TB) *poolDisk {
	d := &poolDisk{t: t, world: drivetest.NewWorld()}
	d.disk = d.world.NewDisk("d", 64<<20, rand.New(rand.NewPCG(rand.Uint64(), 1)))
	pool, err := store.Create("p", d.options(), d.drives())
	if err == nil {
		_, err = pool.CreateVolume(store.VolumeSpec{Name: "v", Size: volumeBytes})
	}
	if err == nil {
		err = pool.SetBase("v", 0)
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
	vols, kept, err := OpenStore(d.pool, map[uint32]string{0: "v"})
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
	p := bufpool.Aligned(volumeBytes)
	if d.pool == nil {
		return nil
	}
	if err := d.vols.Read(0, p, 0); err != nil {
		d.t.Errorf("reading all of it: %v", err)
	}
	return p
}

// TestTakeoverOnPools is TestTakeover on real pools, on drives that lose what was
// not flushed.
func TestTakeoverOnPools(t *testing.T) {
	takeovers(t, newPairOn(t, newPoolDisk(t), newPoolDisk(t)))
}
