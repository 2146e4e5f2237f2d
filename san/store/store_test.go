package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"steadfast/internal/bufpool"
	"steadfast/san/drive"
)

// options makes options for tests: a clock that ticks and identifiers in order.
func options() Options {
	var now Instant
	r := rand.New(rand.NewPCG(1, 2))
	return Options{
		CacheBytes: 16 << 20,
		Now:        func() Instant { now++; return now },
		NewID: func() (id ID) {
			binary.LittleEndian.PutUint64(id[:], r.Uint64())
			binary.LittleEndian.PutUint64(id[8:], r.Uint64())
			return id
		},
	}
}

// fileDrive makes a drive on a file of size bytes.
func fileDrive(t testing.TB, name string, size int64) NamedDrive {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := drive.CreateFile(path, size); err != nil {
		t.Fatal(err)
	}
	d, err := drive.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return NamedDrive{Name: name, Drive: d}
}

// must fails the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// idle lends the pool time until it has nothing to do.
func idle(t testing.TB, p *Pool) {
	t.Helper()
	for {
		more, err := p.Maintain()
		must(t, err)
		if !more {
			return
		}
	}
}

// sound checks a closed pool.
func sound(t testing.TB, d ...NamedDrive) {
	t.Helper()
	r, err := Check(options(), d, nil)
	must(t, err)
	if len(r.Problems) > 0 {
		t.Fatalf("%d problems:\n%s", len(r.Problems), strings.Join(r.Problems[:min(len(r.Problems), 30)], "\n"))
	}
}

// stamp fills n bytes with something that tells seed and place.
func stamp(n int, seed uint64) []byte {
	b := bufpool.Aligned(n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], seed<<20+uint64(i)+1)
	}
	return b
}

// TestWritesComeBack writes at every alignment, and finds all again, in
// service and after opening anew.
func TestWritesComeBack(t *testing.T) {
	d := fileDrive(t, "a", 128<<20)
	p, err := Create("pool", options(), []NamedDrive{d})
	must(t, err)
	const size = 16 << 20
	_, err = p.CreateVolume(VolumeSpec{Name: "v", Size: size})
	must(t, err)
	v, err := p.OpenVolume("v")
	must(t, err)
	model := make([]byte, size)
	r := rand.New(rand.NewPCG(3, 4))
	compare := func() {
		t.Helper()
		got := bufpool.Aligned(size)
		must(t, v.ReadAt(got, 0))
		if !bytes.Equal(got, model) {
			t.Fatal("the volume does not hold what was written")
		}
	}
	for i := range uint64(1500) {
		n := 512 * (1 + r.IntN(64))
		off := 512 * r.IntN((size-n)/512)
		switch r.IntN(6) {
		case 0:
			must(t, v.Zero(int64(off), int64(n), 0))
			clear(model[off : off+n])
		case 1:
			n, off := n/4096*4096, off/4096*4096
			to := 4096 * r.IntN((size-n)/4096)
			must(t, v.CopyFrom(int64(to), v, int64(off), int64(n), 0))
			copy(model[to:to+n], bytes.Clone(model[off:off+n]))
		default:
			b := stamp(n, i)
			must(t, v.WriteAt(b, int64(off), 0))
			copy(model[off:], b)
		}
		if r.IntN(20) == 0 {
			_, err := p.Maintain()
			must(t, err)
		}
	}
	compare()
	idle(t, p)
	compare()
	must(t, v.Close())
	must(t, p.Close())
	sound(t, d)
	p, err = Open(options(), []NamedDrive{d})
	must(t, err)
	v, err = p.OpenVolume("v")
	must(t, err)
	compare()
	must(t, v.Close())
	must(t, p.Close())
}

// TestSurvivesAbandonment opens a pool that nobody closed.
func TestSurvivesAbandonment(t *testing.T) {
	d := fileDrive(t, "a", 128<<20)
	p, err := Create("pool", options(), []NamedDrive{d})
	must(t, err)
	_, err = p.CreateVolume(VolumeSpec{Name: "v", Size: 8 << 20})
	must(t, err)
	for round := range 5 {
		v, err := p.OpenVolume("v")
		must(t, err)
		for i := range 100 {
			must(t, v.WriteAt(stamp(4096, uint64(round*100+i)), int64(i)*8192, 0))
		}
		_, err = p.CreateSnapshot("v", fmt.Sprintf("s%d", round))
		must(t, err)
		sound(t, d)
		p, err = Open(options(), []NamedDrive{d})
		must(t, err)
	}
	v, err := p.OpenSnapshot("v", "s2")
	must(t, err)
	got := bufpool.Aligned(4096)
	must(t, v.ReadAt(got, 8192*7))
	if !bytes.Equal(got, stamp(4096, 207)) {
		t.Fatal("the snapshot does not hold what was written before it")
	}
	must(t, p.Close())
}

// TestOverwriteAtFill overwrites a pool filled to 85 % over and over, so that
// the cleaner has to work.
func TestOverwriteAtFill(t *testing.T) {
	d := fileDrive(t, "a", 64<<20)
	p, err := Create("pool", options(), []NamedDrive{d})
	must(t, err)
	capacity := p.Status().Capacity
	size := capacity * 85 / 100 / (1 << 20) << 20
	_, err = p.CreateVolume(VolumeSpec{Name: "v", Size: size, WriteCache: true})
	must(t, err)
	v, err := p.OpenVolume("v")
	must(t, err)
	r := rand.New(rand.NewPCG(3, 4))
	blocks := size / 4096
	last := make([]uint64, blocks)
	passes := uint64(3)
	if testing.Short() {
		passes = 2
	}
	for i := range uint64(blocks) * passes {
		lba := r.Uint64N(uint64(blocks))
		if i < uint64(blocks) {
			lba = i
		}
		last[lba] = i
		must(t, v.WriteAt(stamp(4096, i), int64(lba)*4096, 0))
		if i%64 == 0 {
			_, err := p.Maintain()
			must(t, err)
		}
	}
	s := p.Status()
	t.Logf("write amplification %.2f", float64(s.WrittenToDrives)/float64(s.WrittenByUsers))
	got := bufpool.Aligned(4096)
	for lba, i := range last {
		must(t, v.ReadAt(got, int64(lba)*4096))
		if !bytes.Equal(got, stamp(4096, i)) {
			t.Fatalf("block %d is not what was last written", lba)
		}
	}
	must(t, v.Close())
	must(t, p.Close())
	sound(t, d)
}
