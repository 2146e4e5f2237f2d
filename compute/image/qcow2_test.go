package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"steadfast/fault"
)

// pattern is a disk with data, holes and runs that compress, of n bytes.
func pattern(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(7, uint64(n)))
	for at := 0; at < n; {
		run := min(n-at, 1+r.IntN(200<<10))
		switch r.IntN(3) {
		case 0:
			for i := range run {
				b[at+i] = byte(r.Uint32())
			}
		case 1:
			copy(b[at:at+run], bytes.Repeat([]byte("steadfast "), run/10+1))
		}
		at += run
	}
	return b
}

// readQcow2 returns the disk in a file.
func readQcow2(t *testing.T, file string) ([]byte, error) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	q, err := openQcow2(f)
	if err != nil {
		return nil, err
	}
	w := &diskInMemory{b: make([]byte, q.size)}
	return w.b, q.copyTo(context.Background(), w)
}

type diskInMemory struct{ b []byte }

func (m *diskInMemory) WriteAt(p []byte, at int64) (int, error) { return copy(m.b[at:], p), nil }

// TestQcow2 reads what QEMU writes, and refuses what it says it refuses.
func TestQcow2(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not on this host")
	}
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	// No multiple of any cluster's size.
	want := pattern(3<<20 + 4096 + 512)
	if err := os.WriteFile(raw, want, 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for name, options := range map[string][]string{
		"version 2":     {"-o", "compat=0.10"},
		"version 3":     nil,
		"compressed":    {"-c"},
		"compressed v2": {"-c", "-o", "compat=0.10"},
		"small":         {"-o", "cluster_size=512"},
		"large":         {"-c", "-o", "cluster_size=2M"},
		"preallocated":  {"-o", "preallocation=metadata"},
		"lazy":          {"-o", "lazy_refcounts=on"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "disk.qcow2")
			run(append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...), raw, file)...)
			got, err := readQcow2(t, file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got[:len(want)], want) || !isZero(got[len(want):]) {
				t.Error("the disk is another")
			}
		})
	}
	for name, options := range map[string][]string{
		"on another file": {"create", "-f", "qcow2", "-b", raw, "-F", "raw"},
		"extended L2":     {"create", "-f", "qcow2", "-o", "extended_l2=on"},
		"zstd":            {"create", "-f", "qcow2", "-o", "compression_type=zstd"},
		"data elsewhere":  {"create", "-f", "qcow2", "-o", "data_file=" + filepath.Join(dir, "data")},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "disk.qcow2")
			run(append(options, file, "4M")...)
			if _, err := readQcow2(t, file); !fault.Is(err, fault.Invalid) {
				t.Errorf("it is read: %v", err)
			}
		})
	}
	t.Run("written to", func(t *testing.T) {
		if _, err := exec.LookPath("qemu-io"); err != nil {
			t.Skip("qemu-io is not on this host")
		}
		file := filepath.Join(t.TempDir(), "disk.qcow2")
		run("convert", "-f", "raw", "-O", "qcow2", raw, file)
		if out, err := exec.Command("qemu-io", "-f", "qcow2", "-c", "write -z 64k 1M", "-c", "write -P 7 100 1000", file).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		changed := bytes.Clone(want)
		clear(changed[64<<10:][:1<<20])
		copy(changed[100:], bytes.Repeat([]byte{7}, 1000))
		got, err := readQcow2(t, file)
		if err != nil || !bytes.Equal(got[:len(want)], changed) {
			t.Errorf("the disk is another, %v", err)
		}
	})
}

// tinyQcow2 is a file of version 3 with clusters of 512 bytes and a disk of two: the first
// plain, the second compressed by entry.
func tinyQcow2(entry uint64) []byte {
	b := make([]byte, 5*512)
	copy(b, qcow2Magic)
	be := binary.BigEndian
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], 9)
	be.PutUint64(b[24:], 1024)
	be.PutUint32(b[36:], 1)
	be.PutUint64(b[40:], 512)
	be.PutUint32(b[100:], 104)
	be.PutUint64(b[512:], 1024)
	be.PutUint64(b[1024:], 1536)
	be.PutUint64(b[1032:], entry)
	copy(b[1536:], bytes.Repeat([]byte("plain"), 102))
	// A stored block of deflate of 512 bytes (RFC 1951, 3.2.4).
	copy(b[2048:], []byte{1, 0, 2, 0xff, 0xfd})
	return append(b, bytes.Repeat([]byte("zip"), 170)...)
}

// tinyEntry: compressed, at 2048, one sector beyond the first.
const tinyEntry = uint64(qcow2Compressed | 1<<61 | 2048)

func TestQcow2Damaged(t *testing.T) {
	open := func(b []byte) error {
		q, err := openQcow2(bytes.NewReader(b))
		if err != nil {
			return err
		}
		return q.copyTo(context.Background(), &diskInMemory{b: make([]byte, q.size)})
	}
	// Offsets have 61 bits with clusters of 512 bytes: 62 - (9 - 8).
	if err := open(tinyQcow2(tinyEntry)); err != nil {
		t.Fatal(err)
	}
	put32 := func(at int, v uint32) []byte {
		b := tinyQcow2(tinyEntry)
		binary.BigEndian.PutUint32(b[at:], v)
		return b
	}
	put64 := func(at int, v uint64) []byte {
		b := tinyQcow2(tinyEntry)
		binary.BigEndian.PutUint64(b[at:], v)
		return b
	}
	for name, tc := range map[string]struct {
		b    []byte
		kind fault.Kind
	}{
		"cut short":          {tinyQcow2(tinyEntry)[:71], fault.Corrupt},
		"version":            {put32(4, 4), fault.Invalid},
		"clusters":           {put32(20, 40), fault.Corrupt},
		"size":               {put64(24, 1<<63), fault.Invalid},
		"more than a table":  {put64(24, 1<<40), fault.Corrupt},
		"encrypted":          {put32(32, 1), fault.Invalid},
		"table elsewhere":    {put64(40, 1<<40), fault.Corrupt},
		"table far away":     {put64(40, 1<<63), fault.Corrupt},
		"second table":       {put64(512, 1<<40), fault.Corrupt},
		"cluster":            {put64(1024, 1<<40), fault.Corrupt},
		"compressed cluster": {put64(1032, qcow2Compressed|1<<40), fault.Corrupt},
		"no deflate":         {tinyQcow2(qcow2Compressed | 1536), fault.Corrupt},
		"marked damaged":     {put64(72, qcow2Corrupt), fault.Corrupt},
		"unknown feature":    {put64(72, 1<<40), fault.Invalid},
	} {
		if err := open(tc.b); !fault.Is(err, tc.kind) {
			t.Errorf("%s: %v; want %v", name, err, tc.kind)
		}
	}
}

// FuzzQcow2: no file does harm, nor reads more than it should.
func FuzzQcow2(f *testing.F) {
	f.Add(tinyQcow2(tinyEntry))
	f.Fuzz(func(_ *testing.T, b []byte) {
		q, err := openQcow2(bytes.NewReader(b))
		if err != nil || q.size > 64<<20 {
			return
		}
		_ = q.copyTo(context.Background(), &diskInMemory{b: make([]byte, q.size)})
	})
}
