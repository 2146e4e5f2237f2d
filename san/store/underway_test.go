package store

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"steadfast/block"
	"steadfast/internal/bufpool"
	"steadfast/san/drive/drivetest"
)

// TestTwoUnderWay ends the world under writers that have two chunks of the log
// under way, by a kill or by a loss of power, and holds that every write that was
// answered is there. The simulation has one caller; this has eight.
func TestTwoUnderWay(t *testing.T) {
	rounds := 600
	if testing.Short() {
		rounds = 40
	}
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 0x2))
		power := r.IntN(2) == 0
		world := drivetest.NewWorld()
		disk := world.NewDisk("d", 32<<20, r)
		p, err := Create("p", options(), []NamedDrive{{Name: "d", Drive: disk.Open()}})
		must(t, err)
		_, err = p.CreateVolume(VolumeSpec{Name: "v", Size: 1 << 20, WriteCache: true})
		must(t, err)
		v, err := p.OpenVolume("v")
		must(t, err)
		world.EndAfter(1 + r.IntN(150))
		const writers = 8
		var answered, tried [writers]uint64
		var all sync.WaitGroup
		for w := range writers {
			all.Go(func() {
				buf := bufpool.Aligned(block.BlockSize)
				for n := uint64(1); ; n++ {
					binary.LittleEndian.PutUint64(buf, n)
					var flags block.Flags
					if power || n%4 == 0 { // after a loss of power only these count
						flags = block.FUA
					}
					tried[w] = n
					if v.WriteAt(buf, int64(w)*block.BlockSize, flags) != nil {
						return
					}
					answered[w] = n
				}
			})
		}
		all.Wait()
		if power {
			world.PowerLoss(r)
		} else {
			world.Kill(r)
		}
		_ = p.Close() // its drive is gone: this gives its memory back
		if p, err = Open(options(), []NamedDrive{{Name: "d", Drive: disk.Open()}}); err != nil {
			t.Fatalf("seed %d, power loss %t: %v", seed, power, err)
		}
		v, err = p.OpenVolume("v")
		must(t, err)
		buf := bufpool.Aligned(block.BlockSize)
		for w := range writers {
			must(t, v.ReadAt(buf, int64(w)*block.BlockSize))
			if got := binary.LittleEndian.Uint64(buf); got < answered[w] || got > tried[w] {
				t.Errorf("seed %d, power loss %t: writer %d finds %d, of %d answered and %d tried", seed, power, w, got, answered[w], tried[w])
			}
		}
		must(t, v.Close())
		must(t, p.Close())
	}
}
