package boot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"steadfast/compute/memory"
	"steadfast/fault"
)

// testImage is a kernel of n bytes that uses more.
func testImage(n int, uses uint64) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * 31)
	}
	le := binary.LittleEndian
	copy(p, "MZ")
	le.PutUint64(p[8:], 0x20_0000)
	le.PutUint64(p[16:], uses)
	le.PutUint64(p[24:], 0)
	le.PutUint32(p[32:], 2)
	copy(p[48:], "RISCV\x00\x00\x00RSC\x05")
	return p
}

func gzipped(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t testing.TB, p []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(p, nil)
}

// zboot wraps a payload as Linux's EFI zboot does.
func zboot(name string, payload []byte) []byte {
	p := make([]byte, 512)
	copy(p, "MZ\x00\x00zimg")
	binary.LittleEndian.PutUint32(p[8:], 512)
	binary.LittleEndian.PutUint32(p[12:], uint32(len(payload)))
	copy(p[24:], name)
	p = append(p, payload...)
	return append(p, "the rest of a PE file"...)
}

func TestParseKernel(t *testing.T) {
	plain := testImage(5000, 1<<20)
	for name, file := range map[string][]byte{
		"plain":               plain,
		"gzip":                gzipped(t, plain),
		"gzip and its length": append(gzipped(t, plain), 0x88, 0x13, 0, 0),
		"zstd":                zstded(t, plain),
		"zboot gzip":          zboot("gzip", gzipped(t, plain)),
		"zboot zstd":          zboot("zstd22", zstded(t, plain)),
		"gzip of zboot":       gzipped(t, zboot("gzip", gzipped(t, plain))),
	} {
		k, err := ParseKernel(file)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(k.image, plain) || k.size != 1<<20 || k.offset != 2<<20 {
			t.Errorf("%s: %d bytes, size %d, offset %d", name, len(k.image), k.size, k.offset)
		}
	}
}

func TestParseKernelRefuses(t *testing.T) {
	with := func(off int, s string) []byte {
		p := testImage(5000, 1<<20)
		copy(p[off:], s)
		return p
	}
	foreign := func(off int, s string) []byte {
		p := make([]byte, 1024)
		copy(p[off:], s)
		return p
	}
	deep := testImage(100, 100)
	for range 4 {
		deep = gzipped(t, deep)
	}
	for _, c := range []struct {
		name, says string
		file       []byte
	}{
		{"nothing", "magic", nil},
		{"short", "EFI", []byte("MZ")},
		{"x86", "x86", foreign(0x202, "HdrS")},
		{"arm64", "arm64", foreign(56, "ARM\x64")},
		{"ELF", "ELF", foreign(0, "\x7fELF")},
		{"xz", "packed", foreign(0, "\xfd7zXZ\x00")},
		{"EFI", "EFI", foreign(0, "MZ")},
		{"zeros", "magic", foreign(0, "")},
		{"big-endian", "big-endian", with(24, "\x01")},
		{"huge", "damaged", with(16, "\xff\xff\xff\xff\xff\xff\xff\xff")},
		{"odd offset", "damaged", with(8, "\x01")},
		{"far offset", "damaged", with(15, "\x80")},
		{"gzip cut short", "unpacking", gzipped(t, testImage(5000, 0))[:100]},
		{"gzip of nothing", "unpacking", []byte{0x1f, 0x8b}},
		{"zstd cut short", "unpacking", zstded(t, testImage(5000, 0))[:100]},
		{"zboot cut short", "cut short", zboot("gzip", gzipped(t, testImage(5000, 0)))[:600]},
		{"zboot xz", `"xzkern"`, zboot("xzkern", []byte("\xfd7zXZ"))},
		{"too deep", "packed more than", deep},
	} {
		_, err := ParseKernel(c.file)
		if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// What unpacks to more than there may be ends there.
func TestUnpackBound(t *testing.T) {
	for n, ok := range map[int]bool{1000: true, 1001: false, 100_000: false} {
		if p, err := all(bytes.NewReader(make([]byte, n)), 1000); (err == nil) != ok || ok && len(p) != n || !ok && fault.KindOf(err) != fault.Invalid {
			t.Errorf("%d bytes: %d, %v", n, len(p), err)
		}
	}
}

func newRAM(t testing.TB, base, size uint64) *memory.RAM {
	t.Helper()
	ram, err := memory.New(base, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ram.Release(); err != nil {
			t.Error(err)
		}
	})
	return ram
}

// Everything is in place, apart from the rest, and where the tree says.
func TestLoad(t *testing.T) {
	for _, base := range []uint64{0x8000_0000, 0x8000_1000} {
		ram := newRAM(t, base, 64<<20)
		plain := testImage(1<<20+5, 3<<20)
		k, err := ParseKernel(plain)
		if err != nil {
			t.Fatal(err)
		}
		initrd := bytes.Repeat([]byte("initrd"), 10_001)
		s, err := Load(ram, virt(), k, initrd, Chosen{Arguments: "quiet", Seed: make([]byte, 32)})
		if err != nil {
			t.Fatal(err)
		}
		if s.PC%(2<<20) != 0 || s.PC < base+2<<20 || s.PC > base+4<<20 || s.Hart != 0 || s.Tree%8 != 0 {
			t.Errorf("it starts as %+v", s)
		}
		at := func(addr uint64, n int) []byte { return ram.Bytes()[addr-base:][:n] }
		if !bytes.Equal(at(s.PC, len(plain)), plain) {
			t.Error("the kernel is not there")
		}
		tree := at(s.Tree, int(base+64<<20-s.Tree))
		all := parse(t, tree)
		from, to := binary.BigEndian.Uint64(all["/chosen/linux,initrd-start"]), binary.BigEndian.Uint64(all["/chosen/linux,initrd-end"])
		if to-from != uint64(len(initrd)) || from%4096 != 0 || from < s.PC+3<<20 || to > s.Tree || !bytes.Equal(at(from, len(initrd)), initrd) {
			t.Errorf("the initial RAM disk is from %#x to %#x", from, to)
		}
		if got := binary.BigEndian.Uint64(all["/memory@"+map[uint64]string{0x8000_0000: "80000000", 0x8000_1000: "80001000"}[base]+"/reg"]); got != base {
			t.Errorf("memory begins at %#x", got)
		}
		for page := range ram.Pages() {
			if wrote := ram.FlagsOf(page)&memory.Dirty != 0; !wrote && !bytes.Equal(ram.Data(page), make([]byte, 4096)) {
				t.Fatalf("page %d was written past the flags", page)
			}
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	k, err := ParseKernel(testImage(5000, 4<<20))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		size   uint64
		initrd int
		ok     bool
	}{{8 << 20, 1 << 20, true}, {8 << 20, 2 << 20, false}, {8 << 20, 9 << 20, false}, {4 << 20, 0, false}, {4096, 0, false}, {6<<20 + 4096, 0, true}, {6 << 20, 0, false}} {
		ram := newRAM(t, 0x8000_0000, c.size)
		_, err := Load(ram, virt(), k, make([]byte, c.initrd), Chosen{})
		if c.ok != (err == nil) || err != nil && (fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "more")) {
			t.Errorf("%d bytes with an initrd of %d: %v", c.size, c.initrd, err)
		}
		ram.Clean(func(page uint32) {
			if !c.ok {
				t.Errorf("page %d was written before it was refused", page)
			}
		})
	}
	ram := newRAM(t, 0x8000_0000, 8<<20)
	if _, err := Load(ram, virt(), k, nil, Chosen{Seed: []byte{1}}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a seed of one byte: %v", err)
	}
}

// A kernel that a distribution built, named by the environment.
func TestRealKernel(t *testing.T) {
	name := os.Getenv("STEADFAST_RISCV_KERNEL")
	if name == "" {
		t.Skip("STEADFAST_RISCV_KERNEL names no kernel")
	}
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseKernel(file)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Load(newRAM(t, 0x8000_0000, 128<<20), virt(), k, nil, Chosen{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes, uses %d, from %#x, tree at %#x", len(k.image), k.size, s.PC, s.Tree)
}

func FuzzParseKernel(f *testing.F) {
	plain := testImage(200, 1000)
	for _, p := range [][]byte{plain, gzipped(f, plain), zstded(f, plain), zboot("gzip", gzipped(f, plain)), zboot("zstd", zstded(f, plain))} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		k, err := ParseKernel(p)
		if err != nil {
			return
		}
		if k.size < uint64(len(k.image)) || k.size > KernelMax || k.offset > KernelMax {
			t.Fatalf("%d bytes, size %d, offset %d", len(k.image), k.size, k.offset)
		}
	})
}
