package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"steadfast/fault"
)

// gather reads a disk by Each, and holds what that gives to what it says.
func gather(t *testing.T, d *Disk) []byte {
	t.Helper()
	out, last := make([]byte, d.Bytes), int64(0)
	err := d.Each(t.Context(), func(off int64, p []byte) error {
		if off < last || off%512 != 0 || len(p) == 0 || len(p) > pieceBytes || isZero(p) {
			t.Errorf("a piece of %d bytes at %d, after %d", len(p), off, last)
		}
		last = off + int64(len(p))
		copy(out[off:], p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestDisk: a disk's file is read without its holes, raw with a tail that is no whole sector
// and qcow2 alike; a raw one is not taken for what its guest has written on it.
func TestDisk(t *testing.T) {
	dir := t.TempDir()
	want := pattern(3<<20 + 77)
	sparse := filepath.Join(dir, "sparse.raw")
	f, err := os.Create(sparse)
	if err != nil {
		t.Fatal(err)
	}
	const hole = 5 << 20
	if _, err := f.WriteAt(want, hole); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(20<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	open := func(file string, raw bool) *Disk {
		t.Helper()
		d, err := openDisk(file, raw)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}
	all := make([]byte, 20<<20)
	copy(all[hole:], want)
	if got := gather(t, open(sparse, false)); !bytes.Equal(got, all) {
		t.Error("a sparse file reads as something else")
	}
	tail := filepath.Join(dir, "tail.raw")
	if err := os.WriteFile(tail, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := gather(t, open(tail, false)); !bytes.Equal(got, want) {
		t.Error("a file with a tail reads as something else")
	}
	stop := errors.New("enough")
	if err := open(tail, false).Each(t.Context(), func(int64, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped by its caller: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := open(tail, false).Each(ctx, func(int64, []byte) error { return nil }); !fault.Is(err, fault.Canceled) {
		t.Errorf("given up: %v", err)
	}

	// What is no disk, or none that is read.
	like := filepath.Join(dir, "like.raw")
	if err := os.WriteFile(like, append([]byte("vhdxfile"), want...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDisk(like); !fault.Is(err, fault.Invalid) {
		t.Errorf("a VHDX file: %v", err)
	}
	raw, err := OpenRawDisk(like)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if got := gather(t, raw); !bytes.Equal(got[8:], want) {
		t.Error("a raw disk that looks like another kind reads as something else")
	}
	if err := os.WriteFile(like, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDisk(like); !fault.Is(err, fault.Invalid) {
		t.Errorf("an empty file: %v", err)
	}
	if _, err := OpenDisk(dir); !fault.Is(err, fault.Invalid) {
		t.Errorf("a folder: %v", err)
	}
	if _, err := OpenDisk(filepath.Join(dir, "none")); !fault.Is(err, fault.NotFound) {
		t.Errorf("no file: %v", err)
	}

	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Log("qcow2 is left out: qemu-img is not on this host")
		return
	}
	packed := filepath.Join(dir, "packed.qcow2")
	if out, err := exec.Command("qemu-img", "convert", "-c", "-O", "qcow2", sparse, packed).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := gather(t, open(packed, false)); !bytes.Equal(got, all) {
		t.Error("a qcow2 file reads as something else")
	}
}

// TestDiskGrows: a raw file that grows while it is read has the size that it had, hole or not
// at that end.
func TestDiskGrows(t *testing.T) {
	file := filepath.Join(t.TempDir(), "grows.raw")
	want := pattern(128 << 10)
	if err := os.WriteFile(file, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 1<<20); err != nil {
		t.Fatal(err)
	}
	d, err := OpenRawDisk(file)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(want, 8<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	all := make([]byte, 1<<20)
	copy(all, want)
	if got := gather(t, d); !bytes.Equal(got, all) {
		t.Error("it reads as something else")
	}
}
