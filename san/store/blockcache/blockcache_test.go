package blockcache

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// fill makes a block that says which version of which reference it is.
func fill(ref, version uint64) []byte {
	b := make([]byte, BlockSize)
	binary.LittleEndian.PutUint64(b, ref)
	binary.LittleEndian.PutUint64(b[BlockSize-8:], version)
	return b
}

// TestModel holds the cache against a map: it may forget, but what it returns
// is the last block put, and a dropped block is gone.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, err := New(int64(shards*BlockSize) * int64(rapid.IntRange(0, 4).Draw(t, "slots")))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		model := map[uint64]uint64{}
		version, p := uint64(0), make([]byte, BlockSize)
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			ref := rapid.Uint64Range(1, 200).Draw(t, "ref")
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				version++
				c.Put(ref, 0, fill(ref, version))
				model[ref] = version
			case 2:
				c.Drop(ref)
				delete(model, ref)
			default:
				if !c.Get(ref, 0, p) {
					continue
				}
				want, ok := model[ref]
				if !ok || !bytes.Equal(p, fill(ref, want)) {
					t.Fatalf("ref %d: got a block that was not the last one put", ref)
				}
			}
		}
	})
}

// TestKeepsUsed puts more than fits while one block is used all the time: it
// must still be there.
func TestKeepsUsed(t *testing.T) {
	c, err := New(shards * BlockSize * 64)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, BlockSize)
	c.Put(1, 0, fill(1, 1))
	for ref := uint64(2); ref < 10000; ref++ {
		c.Put(ref, 0, fill(ref, 1))
		if !c.Get(1, 0, p) {
			t.Fatalf("the block in use was evicted after %d others", ref)
		}
	}
	if hits, _ := c.Counts(); hits != 9998 {
		t.Fatalf("hits = %d", hits)
	}
}

// TestConcurrent lets readers and writers meet; the race detector judges, and
// every block read must be whole.
func TestConcurrent(t *testing.T) {
	c, err := New(shards * BlockSize * 8)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			p := make([]byte, BlockSize)
			for i := range uint64(5000) {
				ref := (i*7+uint64(g))%300 + 1
				if c.Get(ref, 0, p) {
					if binary.LittleEndian.Uint64(p) != ref || binary.LittleEndian.Uint64(p[BlockSize-8:]) != ref*3 {
						t.Errorf("ref %d: torn or foreign block", ref)
						return
					}
				} else {
					c.Put(ref, 0, fill(ref, ref*3))
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkGet(b *testing.B) {
	c, err := New(64 << 20)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for ref := uint64(1); ref <= 8192; ref++ {
		c.Put(ref, 0, fill(ref, 1))
	}
	p := make([]byte, BlockSize)
	ref := uint64(1)
	for b.Loop() {
		ref = ref*2862933555777941757 + 3037000493
		c.Get(ref%8192+1, 0, p)
	}
}

// TestAbandoned: a cache that nobody closed gives its memory back with the
// garbage, as the pool of a simulated crash must.
func TestAbandoned(t *testing.T) {
	unmapped := make(chan []byte, 1)
	c, err := newCache(shards*BlockSize, func(arena []byte) error {
		unmapped <- arena
		return unix.Munmap(arena)
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Put(1, 1, fill(1, 1))
	runtime.KeepAlive(c)
	for range 1000 {
		runtime.GC()
		select {
		case arena := <-unmapped:
			if len(arena) != shards*BlockSize {
				t.Errorf("%d bytes were given back", len(arena))
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatal("nobody gave the memory of an abandoned cache back")
}
