package memory

import (
	"bytes"
	"slices"
	"testing"

	"steadfast/fault"
)

func newRAM(t *testing.T) *RAM {
	t.Helper()
	r, err := New(0x8000_0000, 8*PageSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Release(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestFlags: a page is dirty once it was stored to, and until Clean has told of it; who
// watches a page hears of a store, once, and who stores directly of each guard.
func TestFlags(t *testing.T) {
	r := newRAM(t)
	var stored []uint32
	guarded := 0
	r.Stored = func(page uint32, was Flags) {
		stored = append(stored, page)
		if was&Table == 0 {
			t.Errorf("page %d was %x", page, was)
		}
	}
	r.Guarded = func() { guarded++ }
	r.Flag(2, Table)
	r.Flag(2, Table)
	if guarded != 1 {
		t.Errorf("%d guards", guarded)
	}
	p := bytes.Repeat([]byte{7}, PageSize+2)
	if !r.Write(p, r.Base()+PageSize*2-1) { // of pages 1 to 3
		t.Fatal("not written")
	}
	r.Write(p[:1], r.Base()+PageSize*2)
	if !slices.Equal(stored, []uint32{2}) {
		t.Errorf("told of %v", stored)
	}
	var dirty []uint32
	r.Clean(func(page uint32) { dirty = append(dirty, page) })
	r.Clean(func(page uint32) { t.Errorf("page %d is dirty again", page) })
	if !slices.Equal(dirty, []uint32{1, 2, 3}) || guarded != 2 {
		t.Errorf("%v are dirty, %d guards", dirty, guarded)
	}
	got := make([]byte, len(p))
	if !r.Read(got, r.Base()+PageSize*2-1) || !bytes.Equal(got, p) {
		t.Error("not what was written")
	}
}

// TestBounds: what is not all RAM is neither read nor written.
func TestBounds(t *testing.T) {
	r := newRAM(t)
	end := r.Base() + r.Size()
	p := make([]byte, 16)
	for _, addr := range []uint64{end - 15, end, r.Base() - 1, r.Base() - 16, 0, 1<<64 - 8} {
		if r.Read(p, addr) || r.Write(p, addr) || r.Contains(addr, 16) {
			t.Errorf("%x is taken for RAM", addr)
		}
	}
	if !r.Write(p, end-16) || !r.Contains(end-16, 16) || !r.Write(nil, r.Base()) {
		t.Error("the last bytes are not there")
	}
	for _, size := range []uint64{0, 100, SizeMax + PageSize} {
		if _, err := New(0, size); !fault.Is(err, fault.Invalid) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// TestResident: a page is there when it was stored to, past the flags, too, and not before.
func TestResident(t *testing.T) {
	r, err := New(0, 8*PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	r.Bytes()[3*PageSize] = 1
	is := make([]bool, 4)
	if r.Resident(2, is); !slices.Equal(is, []bool{false, true, false, false}) {
		t.Errorf("%v", is)
	}
}
