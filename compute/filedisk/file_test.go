package filedisk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"steadfast/block"
	"steadfast/fault"
)

func newFile(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(name, nil, 0o600))
	must(t, os.Truncate(name, size))
	return name
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, name string, readOnly bool) *File {
	t.Helper()
	d, err := Open(name, readOnly)
	must(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// TestDevice: what is stored is read back, by this opening and the next; what is trimmed
// or zeroed reads as zeros, to the byte.
func TestDevice(t *testing.T) {
	name := newFile(t, 1<<20)
	d := open(t, name, false)
	if d.Size() != 1<<20 {
		t.Errorf("%d bytes", d.Size())
	}
	want := make([]byte, 1<<20)
	put := func(off int, p []byte) {
		copy(want[off:], p)
	}
	must(t, d.WriteAt(bytes.Repeat([]byte{1}, 65536), 512, 0))
	put(512, bytes.Repeat([]byte{1}, 65536))
	must(t, d.WriteAt(bytes.Repeat([]byte{2}, 512), 1<<20-512, block.FUA))
	put(1<<20-512, bytes.Repeat([]byte{2}, 512))
	must(t, d.Zero(1024, 512, block.FUA))
	put(1024, make([]byte, 512))
	must(t, d.Trim(8192, 8192))
	put(8192, make([]byte, 8192))
	if n, err := d.CompareAndWrite(512, bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{3}, 512), 0); n != -1 || err != nil {
		t.Error(n, err)
	}
	put(512, bytes.Repeat([]byte{3}, 512))
	if n, err := d.CompareAndWrite(512, append(bytes.Repeat([]byte{3}, 511), 9), bytes.Repeat([]byte{4}, 512), 0); n != 511 || err != nil {
		t.Error(n, err)
	}
	must(t, d.Flush())
	check := func(d *File) {
		t.Helper()
		got := make([]byte, 1<<20)
		must(t, d.ReadAt(got, 0))
		if !bytes.Equal(got, want) {
			t.Error("the disk is not what was stored")
		}
	}
	check(d)
	must(t, d.Close())
	check(open(t, name, true))
}

// TestRefused: what a disk refuses, and that nothing was done.
func TestRefused(t *testing.T) {
	name := newFile(t, 4096)
	d := open(t, name, false)
	p := make([]byte, 512)
	for what, c := range map[string]struct {
		err  error
		kind fault.Kind
	}{
		"a read past the end":  {d.ReadAt(p, 4000), fault.Invalid},
		"a write past the end": {d.WriteAt(p, 1<<62, 0), fault.Invalid},
		"a negative offset":    {d.WriteAt(p, -512, 0), fault.Invalid},
		"a trim past the end":  {d.Trim(0, 8192), fault.Invalid},
	} {
		if !fault.Is(c.err, c.kind) {
			t.Errorf("%s: %v", what, c.err)
		}
	}
	if _, err := Open(name, false); !fault.Is(err, fault.Busy) {
		t.Errorf("a disk that is in use: %v", err)
	}
	if _, err := Open(name+"x", false); !fault.Is(err, fault.NotFound) {
		t.Errorf("no disk: %v", err)
	}
	if _, err := Open(newFile(t, 100), false); !fault.Is(err, fault.Invalid) {
		t.Errorf("an odd size: %v", err)
	}
	must(t, d.Close())
	r := open(t, name, true)
	if err := r.WriteAt(p, 0, 0); !fault.Is(err, fault.ReadOnly) {
		t.Errorf("a write of a disk that is read-only: %v", err)
	}
	if err := r.Trim(0, 512); !fault.Is(err, fault.ReadOnly) {
		t.Errorf("a trim of it: %v", err)
	}
}

// TestLockPasses: who has a file for a moment more is waited for.
func TestLockPasses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := OpenFile(name, false)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = first.Close() })
	second, err := OpenFile(name, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}
