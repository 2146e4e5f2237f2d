package vmhome

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"steadfast/block"
	"steadfast/cluster/inventory"
	"steadfast/compute/machine"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errPower = errors.New("the power is gone")

// drive is a volume in memory with a write cache: blocks land whole or not at
// all, in any order, and when the power goes some of the cached ones do.
type drive struct {
	block.Device // what a home has no use for

	size   int64
	stable map[int64][]byte // by block
	cached []landing        // since the last flush, in order
	// left is how many blocks may be written before the power goes; negative: all.
	left int
	bad  map[int64]bool // blocks that cannot be read
}

type landing struct {
	at   int64
	data []byte
}

func newDrive(size int64) *drive {
	return &drive{size: size, stable: map[int64][]byte{}, left: -1, bad: map[int64]bool{}}
}

func (d *drive) Size() int64 { return d.size }

func (d *drive) held(at int64) []byte {
	for i := len(d.cached) - 1; i >= 0; i-- {
		if d.cached[i].at == at {
			return d.cached[i].data
		}
	}
	if b := d.stable[at]; b != nil {
		return b
	}
	return make([]byte, block.BlockSize)
}

func (d *drive) ReadAt(p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > d.size || off%block.SectorSize != 0 || len(p)%block.SectorSize != 0 {
		return fault.New(fault.Invalid, "a read of %d at %d", len(p), off)
	}
	for n := 0; n < len(p); {
		at, in := (off+int64(n))/block.BlockSize, (off+int64(n))%block.BlockSize
		if d.bad[at] {
			return fault.New(fault.Corrupt, "block %d", at)
		}
		n += copy(p[n:], d.held(at)[in:])
	}
	return nil
}

func (d *drive) WriteAt(p []byte, off int64, flags block.Flags) error {
	if off < 0 || off+int64(len(p)) > d.size || off%block.SectorSize != 0 || len(p)%block.SectorSize != 0 {
		return fault.New(fault.Invalid, "a write of %d at %d", len(p), off)
	}
	for n := 0; n < len(p); {
		at, in := (off+int64(n))/block.BlockSize, (off+int64(n))%block.BlockSize
		b := bytes.Clone(d.held(at))
		n += copy(b[in:], p[n:])
		if d.left == 0 {
			return errPower
		}
		d.left--
		d.cached = append(d.cached, landing{at, b})
	}
	if flags&block.FUA == 0 {
		return nil
	}
	first, last := off/block.BlockSize, (off+int64(len(p))-1)/block.BlockSize
	rest := d.cached[:0]
	for _, l := range d.cached {
		if l.at >= first && l.at <= last {
			d.stable[l.at] = l.data
		} else {
			rest = append(rest, l)
		}
	}
	d.cached = rest
	return nil
}

func (d *drive) Zero(off, n int64, flags block.Flags) error {
	return d.WriteAt(make([]byte, n), off, flags)
}

func (d *drive) Flush() error {
	if d.left == 0 {
		return errPower
	}
	for _, l := range d.cached {
		d.stable[l.at] = l.data
	}
	d.cached = nil
	return nil
}

// crash loses the power: lands says of each cached block whether it got there.
func (d *drive) crash(lands func() bool) {
	for _, l := range d.cached {
		if lands() {
			d.stable[l.at] = l.data
		}
	}
	d.cached, d.left = nil, -1
}

var testID = vmlock.ID{0xab, 15: 0xcd}

// example is a definition with something in each field.
func example() Definition {
	return Definition{
		Name: "web-1", ID: testID.String(), Revision: 7, Policy: inventory.Restart,
		Hardware: inventory.Hardware{
			Memory: 512 << 20, CommandLine: `root=/dev/vda rw console=ttyS0 <quiet> & "loud"`,
			Disks: []inventory.Disk{{Name: "root", Volume: "web-1.root", Bytes: 4 << 30}, {Name: "data", Volume: "web-1.data", Bytes: 1 << 30}},
			Nets:  []inventory.Net{{MAC: "02:00:5e:00:53:01", Network: "lan"}},
		},
	}
}

// large is a definition of several blocks, which can be torn.
func large() Definition {
	d := example()
	d.CommandLine = strings.Repeat(`"`, inventory.CommandLineMax)
	for i := range inventory.DisksMax {
		name := strings.Repeat("d", 61) + string(rune('a'+i))
		d.Disks = append(d.Disks[:i:i], inventory.Disk{Name: name, Volume: strings.Repeat("v", 127) + string(rune('a'+i)), Bytes: 1 << 50})
	}
	return d
}

func source(name, content string) *Source {
	return &Source{name, int64(len(content)), strings.NewReader(content)}
}

func mustOpen(t *testing.T, d *drive) *Home {
	t.Helper()
	h, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// content returns a file of the definition.
func content(h *Home, f *File) string {
	if f == nil {
		return ""
	}
	var b bytes.Buffer
	if err := h.Copy(&b, *f); err != nil {
		return err.Error()
	}
	return b.String()
}

// TestBounds holds what the inventory lets in to what a machine can be.
func TestBounds(t *testing.T) {
	if inventory.MemoryMin != machine.MemoryMin || inventory.MemoryMax != machine.MemoryMax || inventory.DisksMax != machine.DisksMax || inventory.NetsMax != machine.NetsMax {
		t.Error("the inventory's bounds are not the machine's")
	}
	d := large()
	if _, err := encodeSlot(testID, 1, &d); err != nil {
		t.Error(err)
	}
}

// TestLife: a home is made, saved, read and saved again.
func TestLife(t *testing.T) {
	d := newDrive(SizeFor(3<<20, 10_000))
	if _, err := Open(d); !fault.Is(err, fault.NotFound) {
		t.Errorf("an empty volume: %v", err)
	}
	if err := Format(d, testID, 41); err != nil {
		t.Fatal(err)
	}
	if err := Format(d, testID, 0); !fault.Is(err, fault.Exists) {
		t.Errorf("a home, formatted: %v", err)
	}
	if b, err := ReadLock(d); err != nil || b != (vmlock.Block{VM: testID, Generation: 41}) {
		t.Errorf("the lock block: %+v, %v", b, err)
	}
	h := mustOpen(t, d)
	if _, ok := h.Definition(); ok || h.Torn() || h.ID() != testID {
		t.Error("a new home has a definition, or is torn")
	}
	kernel := strings.Repeat("kernel", 3<<20/6)
	if err := h.Save(example(), source("vmlinuz", kernel), source("initrd", "an initial RAM disk")); err != nil {
		t.Fatal(err)
	}
	h = mustOpen(t, d)
	got, ok := h.Definition()
	if !ok || content(h, got.Kernel) != kernel || content(h, got.Initrd) != "an initial RAM disk" || got.Kernel.Name != "vmlinuz" {
		t.Fatalf("read: %+v", got)
	}
	want := example()
	want.Kernel, want.Initrd = got.Kernel, got.Initrd
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// A change without files keeps them; a new kernel goes beside the old one.
	got.Memory = 1 << 30
	if err := h.Save(got, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := h.Save(got, source("vmlinuz-2", strings.ToUpper(kernel)), nil); err != nil {
		t.Fatal(err)
	}
	h = mustOpen(t, d)
	again, _ := h.Definition()
	if content(h, again.Kernel) != strings.ToUpper(kernel) || content(h, again.Initrd) != "an initial RAM disk" || again.Memory != 1<<30 {
		t.Errorf("read: %+v", again)
	}
	// The one before is where the next goes, and then there is no more room.
	for range 3 {
		if err := h.Save(again, source("vmlinuz-3", kernel), nil); err != nil {
			t.Fatal(err)
		}
		again, _ = h.Definition()
	}
	if err := h.Save(again, source("huge", kernel+kernel), nil); !fault.Is(err, fault.Full) {
		t.Errorf("a kernel that is too large: %v", err)
	}
	if err := h.Save(again, source("empty", ""), nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("an empty kernel: %v", err)
	}
	if err := h.Save(got, nil, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("a kernel that is not there any more: %v", err)
	}
	if err := h.Save(again, &Source{"short", 100, strings.NewReader("x")}, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("a kernel that ends early: %v", err)
	}
	again.Kernel = nil
	if err := h.Save(again, nil, nil); err != nil {
		t.Error(err)
	}
	again.ID = vmlock.ID{1}.String()
	if err := h.Save(again, nil, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("another machine's definition: %v", err)
	}
}

// TestDamage: one copy is lost, then both; a file's bit flips; a block cannot be
// read.
func TestDamage(t *testing.T) {
	fresh := func() *drive {
		d := newDrive(SizeFor(10_000, 10_000))
		if err := Format(d, testID, 0); err != nil {
			t.Fatal(err)
		}
		h := mustOpen(t, d)
		for _, name := range []string{"one", "two"} {
			def := example()
			def.Name = name
			if err := h.Save(def, source(name, "kernel "+name), nil); err != nil {
				t.Fatal(err)
			}
		}
		return d
	}
	flip := func(d *drive, off int64) {
		b := bytes.Clone(d.held(off / block.BlockSize))
		b[off%block.BlockSize] ^= 4
		d.stable[off/block.BlockSize] = b
	}
	for i, want := range []string{"two", "one"} { // slot 1 has the newer one
		for _, at := range []int64{0, 12, 16, 30, 60, 100} {
			for _, unreadable := range []bool{false, true} {
				d := fresh()
				if unreadable {
					d.bad[slotOffset(i)/block.BlockSize] = true
				} else {
					flip(d, slotOffset(i)+at)
				}
				h := mustOpen(t, d)
				def, ok := h.Definition()
				if !ok || def.Name != want || !h.Torn() || content(h, def.Kernel) != "kernel "+want {
					t.Errorf("slot %d damaged at %d: %q %t", i, at, def.Name, h.Torn())
				}
				// The next save mends it.
				d.bad = map[int64]bool{}
				def.Name = "three"
				if err := h.Save(def, nil, nil); err != nil {
					t.Fatal(err)
				}
				h = mustOpen(t, d)
				if def, _ := h.Definition(); def.Name != "three" || h.Torn() {
					t.Errorf("after the next save: %q, torn %t", def.Name, h.Torn())
				}
				flip(d, slotOffset(0)+70)
				flip(d, slotOffset(1)+70)
				if _, err := Open(d); !fault.Is(err, fault.Corrupt) {
					t.Errorf("both copies damaged: %v", err)
				}
			}
		}
	}
	d := fresh()
	h := mustOpen(t, d)
	def, _ := h.Definition()
	flip(d, def.Kernel.Offset+3)
	if err := h.Copy(&bytes.Buffer{}, *def.Kernel); !fault.Is(err, fault.Corrupt) {
		t.Errorf("a damaged kernel: %v", err)
	}
	flip(d, headerBlock*block.BlockSize+20)
	if _, err := Open(d); !fault.Is(err, fault.Corrupt) {
		t.Errorf("a damaged header: %v", err)
	}
	if err := h.Copy(&bytes.Buffer{}, File{Offset: -4096, Bytes: 1}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a file before the volume: %v", err)
	}
}

// TestNewer: what a newer program wrote is left alone.
func TestNewer(t *testing.T) {
	d := newDrive(SizeFor(4096, 0))
	if err := Format(d, testID, 0); err != nil {
		t.Fatal(err)
	}
	seal := func(p []byte, text []byte) []byte {
		binary.LittleEndian.PutUint32(p[headerSum:], checksum(p[:headerSum], text))
		return p
	}
	header := bytes.Clone(d.held(headerBlock))
	header[8] = 2
	was := d.stable[headerBlock]
	d.stable[headerBlock] = seal(header, nil)
	if _, err := Open(d); !fault.Is(err, fault.Stale) {
		t.Errorf("a later volume: %v", err)
	}
	d.stable[headerBlock] = was
	def := example()
	p, err := encodeSlot(testID, 1, &def)
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint32(p[12:])
	p[8] = 2
	d.stable[slotFirst] = seal(p, p[headerLen:headerLen+n])
	if _, err := Open(d); !fault.Is(err, fault.Stale) {
		t.Errorf("a later definition: %v", err)
	}
	p[8] = 1
	text := bytes.Replace(p[headerLen:headerLen+n], []byte(`"memory"`), []byte(`"memori"`), 1)
	copy(p[headerLen:], text)
	d.stable[slotFirst] = seal(p, p[headerLen:headerLen+n])
	if _, err := Open(d); !fault.Is(err, fault.Stale) {
		t.Errorf("a field that is not known: %v", err)
	} else if !strings.Contains(err.Error(), "upgrade this host") {
		t.Errorf("%q does not say what to do", err)
	}
	p[headerLen] = '}'
	d.stable[slotFirst] = seal(p, p[headerLen:headerLen+n])
	if _, err := Open(d); !fault.Is(err, fault.Corrupt) {
		t.Errorf("what is no text of ours: %v", err)
	}
}

// TestCrash loses the power anywhere in a save, with any of what was cached
// landing: then the old definition or the new one is there, whole, with its files.
func TestCrash(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		d := newDrive(SizeFor(9000, 9000))
		d.left = rng.IntN(areaFirst + 10)
		if err := Format(d, testID, 3); err != nil {
			d.crash(func() bool { return rng.IntN(2) == 0 })
			if _, err := Open(d); err == nil {
				t.Fatal("a home that was not finished is one")
			}
			if err := Format(d, testID, 3); err != nil {
				t.Fatal(err)
			}
		}
		d.left = -1
		h, err := Open(d)
		if err != nil {
			t.Fatal(err)
		}
		type version struct {
			memory         uint64
			kernel, initrd string
		}
		var present version // zero: none
		text := func() string { return strings.Repeat(string(rune('a'+rng.IntN(26))), 1+rng.IntN(9000)) }
		for i := range 12 {
			next := present
			next.memory = uint64(64+i) << 20
			def, ok := h.Definition()
			if !ok {
				def = large()
			}
			def.Memory = next.memory
			var kernel, initrd *Source
			if rng.IntN(2) == 0 {
				next.kernel = text()
				kernel = source("kernel", next.kernel)
			}
			if rng.IntN(2) == 0 {
				next.initrd = text()
				initrd = source("initrd", next.initrd)
			}
			if rng.IntN(2) == 0 {
				d.left = rng.IntN(12)
			}
			saved := h.Save(def, kernel, initrd)
			d.left = -1
			if h.broken != nil {
				if !fault.Is(h.Save(def, nil, nil), fault.Failed) {
					t.Fatal("a home whose save failed saves")
				}
			}
			if rng.IntN(3) > 0 || saved != nil {
				d.crash(func() bool { return rng.IntN(2) == 0 })
			}
			if h, err = reopen(h, d, saved); err != nil {
				t.Fatal(err)
			}
			def, ok = h.Definition()
			got := version{}
			if ok {
				got = version{def.Memory, content(h, def.Kernel), content(h, def.Initrd)}
			}
			if got != next && (saved == nil || got != present) {
				t.Fatalf("save %d (%v): %d %.20q %.20q", i, saved, got.memory, got.kernel, got.initrd)
			}
			present = got
		}
	})
}

// reopen opens the volume again. After a save that was answered the new definition
// must be there: saved tells.
func reopen(old *Home, d *drive, saved error) (*Home, error) {
	h, err := Open(d)
	if err != nil || saved != nil {
		return h, err
	}
	want, _ := old.Definition()
	got, _ := h.Definition()
	if diff := cmp.Diff(want, got); diff != "" {
		return h, errors.New("a save that was answered is not there: " + diff)
	}
	return h, nil
}

// FuzzSlot: whatever a slot holds, it is a definition that can be used, or none.
func FuzzSlot(f *testing.F) {
	def := example()
	def.Kernel = &File{"k", areaOffset, 100, strings.Repeat("ab", 32)}
	p, err := encodeSlot(testID, 9, &def)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Add([]byte{})
	f.Add(p[:100])
	f.Fuzz(func(t *testing.T, in []byte) {
		const size = areaOffset + 1<<20
		p := make([]byte, slotBytes)
		copy(p, in)
		sealed := bytes.Clone(p)
		if n := binary.LittleEndian.Uint32(p[12:]); n <= DefinitionBytesMax {
			binary.LittleEndian.PutUint32(sealed[headerSum:], checksum(p[:headerSum], p[headerLen:headerLen+n]))
		}
		for _, p := range [][]byte{p, sealed} {
			s, err := decodeSlot(p, testID, size)
			if err != nil || s.kind != slotWhole {
				continue
			}
			q, err := encodeSlot(testID, s.sequence, &s.definition)
			if err != nil {
				t.Fatal(err)
			}
			again, err := decodeSlot(append(q, make([]byte, slotBytes-len(q))...), testID, size)
			if err != nil || cmp.Diff(s.definition, again.definition) != "" {
				t.Fatalf("%+v\n%+v\n%v", s.definition, again.definition, err)
			}
			for _, f := range s.definition.files() {
				if f.Offset < areaOffset || f.end() > size {
					t.Fatalf("%+v", f)
				}
			}
		}
	})
}

// FuzzHeader: what decodes encodes to the same bytes.
func FuzzHeader(f *testing.F) {
	f.Add(encodeHeader(testID))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		p := make([]byte, block.BlockSize)
		copy(p, in)
		binary.LittleEndian.PutUint32(p[headerSum:], checksum(p[:headerSum]))
		if id, err := decodeHeader(p); err == nil && !bytes.Equal(encodeHeader(id), p) {
			t.Fatal("another header")
		}
	})
}
