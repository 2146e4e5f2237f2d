package mirrorio

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"steadfast/fault"
	"steadfast/san/drive/drivetest"
	"steadfast/san/store"
)

// TestPieceIsWhole fills a pool with pieces as large as one operation may be, and
// holds that one which finds no room leaves nothing of itself.
func TestPieceIsWhole(t *testing.T) {
	refused, seeds := 0, uint64(40)
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 1))
		disk := drivetest.NewWorld().NewDisk("a", 32<<20, r)
		ids := byte(0)
		pool, err := store.Create("p", store.Options{
			CacheBytes: 16 << 20,
			Now:        func() store.Instant { return 1 },
			NewID:      func() (id store.ID) { ids++; id[0] = ids; return id },
		}, []store.NamedDrive{{Name: "a", Drive: disk.Open()}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pool.CreateVolume(store.VolumeSpec{Name: "v", Size: 32 << 20}); err != nil {
			t.Fatal(err)
		}
		s, _, err := OpenStore(pool, map[uint32]string{1: "v"})
		if err != nil {
			t.Fatal(err)
		}
		held := map[int64]byte{}
		for n := range 120 {
			if n == 10+int(seed) {
				disk.SetSpace(disk.Space() + r.Int64N(64)*BlockSize)
			}
			off := r.Int64N((32<<20)/pieceMax) * pieceMax
			c := &Change{Kind: Data, Off: off, Length: pieceMax, Data: bytes.Repeat([]byte{byte(n + 1)}, pieceMax)}
			err := s.Apply(1, c, true)
			switch {
			case err == nil:
				held[off] = byte(n + 1)
			case !fault.Is(err, fault.Full):
				t.Fatal(err)
			default:
				refused++
				got := make([]byte, pieceMax)
				if err := s.Read(1, got, off); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, bytes.Repeat([]byte{held[off]}, pieceMax)) {
					t.Fatalf("seed %d: a piece at %d was refused (%v), and a part of it is there", seed, off, err)
				}
			}
			if r.IntN(20) == 0 { // which holds what is overwritten
				_, _ = pool.CreateSnapshot("v", string(rune('a'+n%26))) // or is there
			}
			if r.IntN(8) == 0 {
				if _, err := pool.Maintain(); err != nil && !fault.Is(err, fault.Full) {
					t.Fatal(err)
				}
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if refused == 0 {
		t.Fatal("nothing was refused")
	}
}
