package main

import (
	"bytes"
	"path/filepath"
	"testing"

	"steadfast/san/drive"
)

// TestEchoDrive gives back made blocks and others alike, also where one kind
// has replaced the other.
func TestEchoDrive(t *testing.T) {
	d, err := newEchoDrive(filepath.Join(t.TempDir(), "d"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	made := func(n int64) []byte {
		b := make([]byte, drive.BlockSize)
		fillBlock(b, n)
		return b
	}
	other := func(c byte) []byte { return bytes.Repeat([]byte{c}, drive.BlockSize) }
	for _, layout := range [][][]byte{
		{made(0), other(1), made(7), made(8), other(2)},
		{other(3), made(9), other(4), other(5), made(1 << 40)},
	} {
		want := bytes.Join(layout, nil)
		// In two buffers, so that a run ends inside and at the end of one.
		cut := 3 * drive.BlockSize
		if err := d.WriteAt([][]byte{want[:cut], want[cut:]}, 2*drive.BlockSize); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if err := d.ReadAt(got, 2*drive.BlockSize); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Error("what came back is not what was written")
		}
	}
}

// TestPlace checks that places stay inside the volume and do not fall together.
func TestPlace(t *testing.T) {
	seen := map[int64]bool{}
	for n := range int64(100_000) {
		p := place(n)
		if p < 0 || p > hugeVolume-hugeBlock || p%hugeBlock != 0 || seen[p] {
			t.Fatalf("place(%d) = %d", n, p)
		}
		seen[p] = true
	}
}
