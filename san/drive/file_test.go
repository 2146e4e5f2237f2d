package drive

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"steadfast/fault"
	"steadfast/internal/bufpool"
)

// open makes a drive of size bytes in dir.
func open(t testing.TB, dir string, size int64) *File {
	t.Helper()
	path := filepath.Join(dir, "drive")
	if err := CreateFile(path, size); err != nil {
		t.Fatal(err)
	}
	d, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// random returns n aligned bytes of noise.
func random(seed uint64, n int) []byte {
	b := bufpool.Aligned(n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// TestPathsAgree writes through each of the three ways in (page cache, direct,
// durable), in turns over the same places, and reads back what came last.
func TestPathsAgree(t *testing.T) {
	const size = 4 << 20
	d := open(t, t.TempDir(), size)
	model := make([]byte, size)
	r := rand.New(rand.NewPCG(7, 7))
	got := bufpool.Aligned(size)
	for step := range uint64(300) {
		n := (1 + r.IntN(40)) * BlockSize
		off := int64(r.IntN((size-n)/BlockSize)) * BlockSize
		data := random(step, n)
		bufs := [][]byte{data[:BlockSize], data[BlockSize:]}
		var err error
		if step%2 == 0 {
			err = d.WriteAt(bufs, off)
		} else {
			err = d.WriteDurable(bufs, off)
		}
		if err != nil {
			t.Fatal(err)
		}
		copy(model[off:], data)
		if step%10 == 0 {
			if err := d.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, model) {
				t.Fatalf("step %d: the drive does not hold what was written", step)
			}
		}
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestConcurrentReads has more readers than the ring has places, of many
// sizes; each must get its own bytes.
func TestConcurrentReads(t *testing.T) {
	const size = 8 << 20
	d := open(t, t.TempDir(), size)
	if d.ring == nil {
		t.Log("no io_uring here: plain reads are tested")
	}
	data := random(3, size)
	if err := d.WriteDurable([][]byte{data}, 0); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 300 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			p := bufpool.Aligned(16 * BlockSize)
			for range 50 {
				n := (1 + r.IntN(16)) * BlockSize
				off := r.IntN((size-n)/BlockSize) * BlockSize
				if err := d.ReadAt(p[:n], int64(off)); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(p[:n], data[off:off+n]) {
					t.Errorf("%d bytes at %d: not what was written", n, off)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkRead32(b *testing.B) {
	d := open(b, b.TempDir(), 256<<20)
	if err := d.Reserve(0, d.Size()); err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(32 / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		p := bufpool.Aligned(BlockSize)
		for pb.Next() {
			if err := d.ReadAt(p, rand.Int64N(d.Size()/BlockSize)*BlockSize); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestManyBuffers(t *testing.T) {
	const n = iovMax + 10
	d := open(t, t.TempDir(), n*BlockSize)
	data := random(1, n*BlockSize)
	var bufs [][]byte
	for i := range n {
		bufs = append(bufs, data[i*BlockSize:(i+1)*BlockSize])
	}
	if err := d.WriteDurable(bufs, 0); err != nil {
		t.Fatal(err)
	}
	got := bufpool.Aligned(len(data))
	if err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("more buffers than one system call takes were not all written in place")
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, 1<<20)
	if _, err := OpenFile(d.Path()); !fault.Is(err, fault.Busy) {
		t.Errorf("second opening: %v, want busy", err)
	}
	if _, err := OpenFile(filepath.Join(dir, "none")); !fault.Is(err, fault.NotFound) {
		t.Errorf("missing file: %v, want not-found", err)
	}
	if _, err := OpenFile(dir); !fault.Is(err, fault.Invalid) {
		t.Errorf("a folder: %v, want invalid", err)
	}
	if err := CreateFile(d.Path(), 1<<20); !fault.Is(err, fault.Exists) {
		t.Errorf("create over a file: %v, want exists", err)
	}
}

// TestReserve fills a small filesystem: a range that was reserved can be
// written when there is no space left, one that was not is refused as full, and
// the drive is not taken for failed.
func TestReserve(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("needs root to mount a small filesystem: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := open(t, dir, 16<<20)
	if err := d.Reserve(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := d.Reserve(1<<20, 8<<20); !fault.Is(err, fault.Full) {
		t.Fatalf("reserving more than there is: %v, want full", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 4<<20), 0o600); err == nil {
		t.Fatal("the filesystem is not full: the test tests nothing")
	}
	if err := d.WriteDurable([][]byte{random(1, 1<<20)}, 0); err != nil {
		t.Errorf("writing into a reserved range of a full filesystem: %v", err)
	}
	if err := d.WriteAt([][]byte{random(1, 1<<20)}, 12<<20); !fault.Is(err, fault.Full) {
		t.Errorf("writing into a hole of a full filesystem: %v, want full", err)
	}
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteAt([][]byte{random(1, 1<<20)}, 12<<20); err != nil {
		t.Errorf("after space came back: %v", err)
	}
}
