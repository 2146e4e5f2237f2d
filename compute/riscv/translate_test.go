package riscv

import (
	"encoding/binary"
	"testing"

	"steadfast/compute/memory"
	"steadfast/compute/riscv/asm"
)

// The tests' address space: code at its physical address for both modes, and one page
// at testPage whose leaf each test chooses.
const (
	testRoot   = testBase + 0x10000
	testLeaf   = testBase + 0x12000 // of the 2 MiB at testPage
	testPage   = 0x40000000
	testTarget = testBase + 0x20000 // the page behind it, at first
	testTrap   = testBase + 0x8000  // S mode's handler, and its code
)

const leafAll = pteV | pteR | pteW | pteX | pteA | pteD

// paged makes a hart in a mode at code, which is at testBase.
func paged(t *testing.T, m mode, leaf uint64, code ...uint32) (*Hart, *world) {
	t.Helper()
	h, w := newTest(t, 1<<20, Options{})
	flags := uint64(leafAll)
	if m == modeU {
		flags |= pteU
	}
	put64(h, testRoot+8*2, testBase>>2|flags) // 1 GiB
	put64(h, testRoot+8*1, (testBase+0x11000)>>2|pteV)
	put64(h, testBase+0x11000, testLeaf>>2|pteV)
	put64(h, testLeaf, leaf)
	put(h, testBase, code...)
	h.Reset(testBase, 0, 0)
	h.stvec, h.mode = testTrap, m
	h.csrWrite(csrSatp, 8<<60|testRoot>>12)
	h.x[1], h.x[2] = testPage, 0x1234
	return h, w
}

// TestPageFaults: the cause and the address of each kind, and that A and D are set.
func TestPageFaults(t *testing.T) {
	load, store, fetch := asm.Ld(3, 1, 8), asm.Sd(2, 1, 8), asm.Jalr(0, 1, 8)
	const target = testTarget >> 2
	for _, c := range []struct {
		name   string
		mode   mode
		status uint64
		word   uint32
		leaf   uint64
		cause  uint64 // 0: none
		want   uint64 // the leaf afterwards
	}{
		{"not valid", modeS, 0, load, target | leafAll&^pteV, causeLoadPage, target | leafAll&^pteV},
		{"write without read", modeS, 0, load, target | pteV | pteW | pteA, causeLoadPage, target | pteV | pteW | pteA},
		{"reserved bit", modeS, 0, load, target | leafAll | 1<<54, causeLoadPage, target | leafAll | 1<<54},
		{"N", modeS, 0, store, target | leafAll | 1<<63, causeStorePage, target | leafAll | 1<<63},
		{"no leaf at the last level", modeS, 0, load, target | pteV, causeLoadPage, target | pteV},
		{"read only", modeS, 0, store, target | pteV | pteR, causeStorePage, target | pteV | pteR},
		{"execute only", modeS, 0, load, target | pteV | pteX, causeLoadPage, target | pteV | pteX},
		{"execute only with MXR", modeS, statusMXR, load, target | pteV | pteX, 0, target | pteV | pteX | pteA},
		{"not to be executed", modeS, 0, fetch, target | pteV | pteR | pteW, causeFetchPage, target | pteV | pteR | pteW},
		{"user page from S", modeS, 0, load, target | leafAll | pteU, causeLoadPage, target | leafAll | pteU},
		{"user page from S with SUM", modeS, statusSUM, load, target | pteV | pteR | pteU, 0, target | pteV | pteR | pteU | pteA},
		{"user code from S with SUM", modeS, statusSUM, fetch, target | leafAll | pteU, causeFetchPage, target | leafAll | pteU},
		{"S page from U", modeU, 0, load, target | leafAll, causeLoadPage, target | leafAll},
		{"a load sets A", modeS, 0, load, target | pteV | pteR | pteW, 0, target | pteV | pteR | pteW | pteA},
		{"a store sets A and D", modeS, 0, store, target | pteV | pteR | pteW, 0, target | pteV | pteR | pteW | pteA | pteD},
		{"a fetch sets A", modeS, 0, fetch, target | pteV | pteX, 0, target | pteV | pteX | pteA},
		{"no memory behind", modeS, 0, load, 0x1000>>2 | leafAll, causeLoadAccess, 0x1000>>2 | leafAll},
		{"no memory behind", modeS, 0, store, 0x1000>>2 | leafAll, causeStoreAccess, 0x1000>>2 | leafAll},
		{"no memory behind", modeS, 0, fetch, 0x1000>>2 | leafAll, causeFetchAccess, 0x1000>>2 | leafAll},
	} {
		h, _ := paged(t, c.mode, c.leaf, c.word)
		h.mstatus |= c.status
		h.setContext()
		put(h, testTarget+8, asm.Nop)
		h.Step()
		if c.word == fetch {
			h.Step()
		}
		if h.scause != c.cause || c.cause != 0 && (h.stval != testPage+8 || h.mode != modeS || h.pc != testTrap) {
			t.Errorf("%s: cause %d, address %x", c.name, h.scause, h.stval)
		}
		if got := get64(h, testLeaf); got != c.want {
			t.Errorf("%s: the leaf is %x, want %x", c.name, got, c.want)
		}
	}
}

// TestUpperLevels: what is wrong before the last level, and superpages.
func TestUpperLevels(t *testing.T) {
	for _, c := range []struct {
		name   string
		va     uint64
		at     uint64
		pte    uint64
		cause  uint64
		loaded uint64
	}{
		{"1 GiB", 0xc0000000 + 0x20008, testRoot + 8*3, testBase>>2 | leafAll, 0, 77},
		{"1 GiB, misaligned", 0xc0000000, testRoot + 8*3, (testBase+0x1000)>>2 | leafAll, causeLoadPage, 0},
		{"2 MiB", testPage + 0x220008, testBase + 0x11000 + 8, testBase>>2 | leafAll, 0, 77},
		{"2 MiB, misaligned", testPage + 0x200000, testBase + 0x11000 + 8, (testBase+0x1000)>>2 | leafAll, causeLoadPage, 0},
		{"a pointer with A", 0xc0000000, testRoot + 8*3, (testBase+0x11000)>>2 | pteV | pteA, causeLoadPage, 0},
		{"a pointer with U", 0xc0000000, testRoot + 8*3, (testBase+0x11000)>>2 | pteV | pteU, causeLoadPage, 0},
		{"a table in no memory", 0xc0000000, testRoot + 8*3, 0x1000>>2 | pteV, causeLoadAccess, 0},
		{"not canonical", 1 << 38, testRoot, 0, causeLoadPage, 0},
		{"the highest", all &^ 7, testRoot + 8*511, testBase>>2 | leafAll, causeLoadAccess, 0},
	} {
		h, _ := paged(t, modeS, 0, asm.Ld(3, 1, 0))
		put64(h, c.at, c.pte)
		put64(h, testTarget+8, 77)
		h.x[1] = c.va
		h.Step()
		if h.scause != c.cause || h.x[3] != c.loaded || c.cause != 0 && h.stval != c.va {
			t.Errorf("%s: cause %d, address %x, loaded %d", c.name, h.scause, h.stval, h.x[3])
		}
	}
}

// TestNeverStale: a store to a page table entry in use takes effect at the next
// access, without a fence, whoever stores; so does one of what a walk has read above it.
func TestNeverStale(t *testing.T) {
	const other = testTarget + 0x1000
	pointer := uint64(testBase + 0x11000)
	for _, c := range []struct {
		name  string
		store func(h *Hart)
		cause uint64
		want  uint64
	}{
		{"another page", func(h *Hart) { guestStore(h, testLeaf, other>>2|leafAll) }, 0, 2},
		{"no page", func(h *Hart) { guestStore(h, testLeaf, 0) }, causeLoadPage, 1},
		{"no page, above", func(h *Hart) { guestStore(h, pointer, 0) }, causeLoadPage, 1},
		{"by a device", func(h *Hart) {
			h.ram.Write(binary.LittleEndian.AppendUint64(nil, other>>2|leafAll), testLeaf)
		}, 0, 2},
		{"satp", func(h *Hart) { h.csrWrite(csrSatp, 8<<60|(testRoot+0x5000)>>12) }, causeLoadPage, 1},
	} {
		h, _ := paged(t, modeS, testTarget>>2|leafAll, asm.Ld(3, 1, 8), asm.Nop, asm.Ld(3, 1, 8))
		put64(h, testRoot+0x5000+8*2, testBase>>2|leafAll)
		put64(h, testTarget+8, 1)
		put64(h, other+8, 2)
		h.Run(1)
		if h.x[3] != 1 {
			t.Fatalf("%s: loaded %d at first", c.name, h.x[3])
		}
		c.store(h)
		h.pc = testBase + 8
		h.Step()
		if h.scause != c.cause || h.x[3] != c.want {
			t.Errorf("%s: cause %d, loaded %d", c.name, h.scause, h.x[3])
		}
	}
}

// guestStore has the hart itself store, by an instruction at testBase+4 whose page maps to itself.
func guestStore(h *Hart, pa, v uint64) {
	put(h, testBase+0x9000, asm.Sd(6, 5, 0))
	h.pc, h.x[5], h.x[6] = testBase+0x9000, pa, v
	h.Run(h.count + 1)
}

// TestStoreToItsOwnEntry: a store by a translation to the very entry that it came from is
// the last one by it.
func TestStoreToItsOwnEntry(t *testing.T) {
	const moved = testTarget>>2 | leafAll
	for _, c := range []struct {
		name string
		code []uint32
		leaf uint64
	}{
		{"sd", []uint32{asm.Sd(6, 1, 0)}, moved},
		{"sd of an entry that is not valid", []uint32{asm.Sd(0, 1, 0)}, 0},
		{"sw", []uint32{asm.Sw(6, 1, 0)}, moved},
		{"misaligned", []uint32{asm.Sw(7, 1, 1)}, moved},
		{"fsd", []uint32{asm.S(0x27, 3, 1, 6, 0)}, moved},
		{"amoswap.d", []uint32{asm.Amo(1, 3, 0, 1, 6)}, moved},
		{"sc.d", []uint32{asm.Lr(3, 0, 1), asm.Sc(3, 0, 1, 6)}, moved},
		{"cbo.zero", []uint32{opcodeCboZero | 1<<15}, 0},
	} {
		// The page is the table that maps it. A store before has it known for stores.
		before := asm.Sd(2, 1, 0x200)
		h, _ := paged(t, modeS, testLeaf>>2|leafAll, append(append([]uint32{before}, c.code...), asm.Sd(2, 1, 8))...)
		h.x[6], h.x[7], h.f[6], h.mstatus = moved, moved>>8, moved, statusFS
		h.Run(uint64(1 + len(c.code)))
		if got := get64(h, testLeaf); got != c.leaf || h.scause != 0 {
			t.Fatalf("%s: the entry is %x, cause %d", c.name, got, h.scause)
		}
		h.Step()
		faulted := h.scause == causeStorePage && h.stval == testPage+8
		if stale := get64(h, testLeaf+8) != 0; stale || faulted != (c.leaf == 0) || !faulted && get64(h, testTarget+8) != 0x1234 {
			t.Errorf("%s: the next store went to the old page: %v; cause %d", c.name, stale, h.scause)
		}
	}
}

// TestInvalidEntries: a store over an entry that is not valid leaves what is known alone;
// one over a valid entry does not.
func TestInvalidEntries(t *testing.T) {
	h, _ := paged(t, modeS, testTarget>>2|leafAll, asm.Ld(3, 1, 8))
	h.Run(1)
	key := h.key
	guestStore(h, testLeaf+8, testTarget>>2|leafAll)
	before := h.key
	guestStore(h, testLeaf+16, testTarget>>2|leafAll)
	if h.key != before || h.ram.FlagsOf(h.ram.Page(testLeaf))&memory.Table == 0 {
		t.Errorf("an entry that was not valid: key %x to %x", key, h.key)
	}
	guestStore(h, testLeaf+8, 0)
	if h.key == before {
		t.Error("a valid entry changed, and nothing was dropped")
	}
}

// TestMisalignedFaults: over the end of a page nothing is stored unless all can be, and the
// fault tells the half that cannot.
func TestMisalignedFaults(t *testing.T) {
	h, _ := paged(t, modeS, testTarget>>2|leafAll, asm.Sd(2, 1, 0), asm.Ld(3, 1, 0))
	h.x[1] = testPage + 0xffc
	h.Step()
	if h.scause != causeStorePage || h.stval != testPage+0x1000 || get64(h, testTarget+0xff8) != 0 {
		t.Errorf("cause %d, address %x, stored %x", h.scause, h.stval, get64(h, testTarget+0xff8))
	}
	put64(h, testLeaf+8, (testTarget+0x3000)>>2|leafAll)
	h.pc = testBase
	h.Run(2)
	if h.x[3] != 0x1234 || get64(h, testTarget+0xff8) != 0x1234<<32 {
		t.Errorf("loaded %x", h.x[3])
	}
}

// TestUnmappedMode: satp keeps its value when another mode than Bare and Sv39 is written.
func TestUnmappedMode(t *testing.T) {
	h, _ := paged(t, modeS, 0)
	for _, m := range []uint64{1, 7, 9, 10, 15} {
		h.csrWrite(csrSatp, m<<60|5)
		if h.satp != 8<<60|testRoot>>12 {
			t.Errorf("mode %d was taken", m)
		}
	}
}

// TestCodeNeverStale: code that was run and is stored to is run as it is now.
func TestCodeNeverStale(t *testing.T) {
	const code = testBase + 0x4000
	for _, c := range []struct {
		name  string
		start uint64
		store func(h *Hart, at uint64)
	}{
		{"by the hart", code, func(h *Hart, at uint64) { guestStore(h, at, asm.Nop<<32|uint64(asm.Addi(3, 3, 100))) }},
		{"by a device", code, func(h *Hart, at uint64) {
			h.ram.Write(binary.LittleEndian.AppendUint32(nil, asm.Addi(3, 3, 100)), at)
		}},
		{"on two pages, by the hart", code + 0xffe, func(h *Hart, at uint64) { guestStore(h, at, asm.Nop<<32|uint64(asm.Addi(3, 3, 100))) }},
		{"on two pages, the second by a device", code + 0xffe, func(h *Hart, at uint64) {
			h.ram.Write(binary.LittleEndian.AppendUint16(nil, uint16(asm.Addi(3, 3, 100)>>16)), at+2)
		}},
	} {
		h, _ := paged(t, modeS, 0)
		put(h, c.start, asm.Addi(3, 3, 1), asm.Nop)
		for range 3 {
			h.pc = c.start
			h.Run(h.count + 2)
		}
		if h.x[3] != 3 {
			t.Fatalf("%s: x3 is %d", c.name, h.x[3])
		}
		c.store(h, c.start)
		h.pc = c.start
		h.Run(h.count + 2)
		if h.x[3] != 103 {
			t.Errorf("%s: x3 is %d", c.name, h.x[3])
		}
	}
}

// TestStoreAhead: a store changes the very next instruction of its own block.
func TestStoreAhead(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.Sw(2, 1, 0), asm.Sw(2, 1, 4), asm.Addi(3, 3, 1), asm.Addi(3, 3, 1), asm.Addi(3, 3, 1))
	h.Reset(testBase, 0, 0)
	h.x[1], h.x[2] = testBase+8, uint64(asm.Addi(3, 3, 100))
	h.Run(5)
	if h.x[3] != 201 || h.count != 5 {
		t.Errorf("x3 is %d after %d", h.x[3], h.count)
	}
}

// TestStraddlingFetch: the fault of an instruction whose second half cannot be fetched
// tells that half's address.
func TestStraddlingFetch(t *testing.T) {
	h, _ := paged(t, modeS, testTarget>>2|leafAll, asm.Jalr(0, 1, 0))
	put16(h, testTarget+0xffe, uint16(asm.Addi(3, 0, 5)&0xffff))
	h.x[1] = testPage + 0xffe
	h.Step()
	h.Step()
	if h.scause != causeFetchPage || h.stval != testPage+0x1000 || h.sepc != testPage+0xffe {
		t.Errorf("cause %d, address %x, pc %x", h.scause, h.stval, h.sepc)
	}
	// The same bytes under another translation of the second page are another instruction.
	for i, imm := range []uint32{5, 6} {
		put16(h, testTarget+0x1000+uint64(i)<<12, uint16(asm.Addi(3, 0, int32(imm))>>16))
	}
	for i, want := range []uint64{5, 6} {
		guestStore(h, testLeaf+8, (testTarget+0x1000+uint64(i)<<12)>>2|leafAll)
		h.pc = testPage + 0xffe
		h.Run(h.count + 1)
		if h.x[3] != want {
			t.Errorf("x3 is %d, want %d", h.x[3], want)
		}
	}
}

// TestWatchedPages: after Clean a direct store marks its page again.
func TestWatchedPages(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.Sd(2, 1, 0), asm.Jal(0, -4))
	h.Reset(testBase, 0, 0)
	h.x[1] = testBase + 0x5000
	for range 3 {
		h.Run(h.count + 10)
		var pages []uint32
		h.ram.Clean(func(page uint32) { pages = append(pages, page) })
		if len(pages) != 1 || pages[0] != 5 {
			t.Errorf("dirty pages %v, want 5", pages)
		}
	}
}

// TestJumpBetweenAliases: a jump from one virtual page to another that is the same page of
// RAM goes on to wherever the other page is mapped later.
func TestJumpBetweenAliases(t *testing.T) {
	h, _ := paged(t, modeS, testTarget>>2|leafAll)
	const other = testTarget + 0x1000
	put64(h, testLeaf+8, testTarget>>2|leafAll)
	put(h, testTarget, asm.Jal(0, 0x1010), asm.Nop, asm.Nop, asm.Nop, asm.Addi(3, 3, 1), asm.Nop)
	put(h, other+16, asm.Addi(3, 3, 100), asm.Nop)
	for range 3 {
		h.pc = testPage
		h.Run(h.count + 3)
	}
	guestStore(h, testLeaf+8, other>>2|leafAll)
	h.pc = testPage
	h.Run(h.count + 3)
	if h.x[3] != 103 {
		t.Errorf("x3 is %d, want 103", h.x[3])
	}
	// The same across a block's end without a jump.
	h.x[3] = 0
	guestStore(h, testLeaf+8, testTarget>>2|leafAll)
	put(h, testTarget+0xffc, asm.Addi(3, 3, 1))
	put(h, testTarget, asm.Addi(3, 3, 2), asm.Jal(0, 0))
	put(h, other, asm.Addi(3, 3, 100), asm.Jal(0, 0))
	h.dropAllCode()
	for _, at := range []uint64{testTarget, other} {
		guestStore(h, testLeaf+8, at>>2|leafAll)
		for range 2 {
			h.pc = testPage + 0xffc
			h.Run(h.count + 4)
		}
	}
	if h.x[3] != 2*3+2*101 {
		t.Errorf("x3 is %d, want %d", h.x[3], 2*3+2*101)
	}
}
