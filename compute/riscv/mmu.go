package riscv

import (
	"encoding/binary"

	"steadfast/compute/memory"
)

// Address translation, Sv39: RISC-V privileged manual, "Sv39: Page-Based 39-bit
// Virtual-Memory System". What is found is kept in tables of translations; they are
// emptied as soon as anything that they stand on changes, so that nobody can tell
// that they are there.

// access is what a translation is for.
type access uint8

const (
	accessRead access = iota
	accessWrite
	accessFetch
)

// context is what else a data access depends on: one table of translations for each.
type context uint8

const (
	contextBare context = iota // addresses are physical
	contextU
	contextS
	contextSum // S mode that may access the pages of U mode
	contexts
)

// Bits of a page table entry.
const (
	pteV = 1 << iota
	pteR
	pteW
	pteX
	pteU
	pteG
	pteA
	pteD

	ptePPN      = (1<<44 - 1) << 10
	pteReserved = ^uint64(1<<54 - 1)
)

const (
	pageSize = memory.PageSize
	pageMask = pageSize - 1

	tlbSize   = 1024
	fetchSize = 128
	// fewEntries are emptied one by one.
	fewEntries = 64
	// noTag is no page's address, whatever the alignment asked for with it.
	noTag = ^uint64(0)
)

// entry says where the bytes of a virtual page are that may be accessed directly.
type entry struct {
	// tag is the page's address. An access compares it to its own address without the
	// bits that may differ: so one that is not aligned never matches.
	tag  uint64
	page *[pageSize]byte
}

// table is entries by the page's number, and their pages' physical addresses.
type table struct {
	entries [tlbSize]entry
	frames  [tlbSize]uint64
	// filled are the first few entries that were made since it was empty, of count: a
	// table with few is emptied quickly, and that is most of them.
	filled [fewEntries]uint16
	count  int
}

// keep enters a page of RAM.
func (t *table) keep(va, pa uint64, page *[pageSize]byte) {
	i := va >> 12 % tlbSize
	t.entries[i], t.frames[i] = entry{va &^ pageMask, page}, pa&^pageMask
	if t.count < fewEntries {
		t.filled[t.count] = uint16(i)
	}
	t.count++
}

// find returns the page of an address, if it is there.
func (t *table) find(va uint64) (page *[pageSize]byte, pa uint64) {
	i := va >> 12 % tlbSize
	if t.entries[i].tag != va&^pageMask {
		return nil, 0
	}
	return t.entries[i].page, t.frames[i] | va&pageMask
}

// fetchEntry is where instructions of a virtual page are.
type fetchEntry struct {
	va, key uint64
	pa      uint64
}

// mmu is what is kept of translations.
type mmu struct {
	// reads and writes are the tables of the present data context.
	reads, writes *table
	data          context
	readTables    [contexts]table
	writeTables   [contexts]table

	fetches [fetchSize]fetchEntry
	// key names the translations of instruction addresses that are valid now: a number that
	// is never used again, and the mode. What was found under another is worth nothing.
	key        uint64
	generation uint64
}

func (m *mmu) init() {
	for c := range contexts {
		m.readTables[c].clear()
		m.writeTables[c].clear()
	}
}

// empty forgets all entries.
func (t *table) empty() {
	if t.count > fewEntries {
		t.clear()
	} else {
		for _, i := range t.filled[:t.count] {
			t.entries[i].tag = noTag
		}
	}
	t.count = 0
}

func (t *table) clear() {
	for i := range t.entries {
		t.entries[i].tag = noTag
	}
}

// flushTranslations forgets all translations.
func (h *Hart) flushTranslations() {
	for c := range contexts {
		h.readTables[c].empty()
	}
	h.guarded()
	h.newKey()
}

// guarded forgets what may be stored to directly: it is memory.RAM's hook.
func (h *Hart) guarded() {
	for c := range contexts {
		h.writeTables[c].empty()
	}
}

// newKey makes worthless what is kept of instruction addresses.
func (h *Hart) newKey() {
	h.generation++
	h.setKey()
}

func (h *Hart) setKey() { h.key = h.generation<<2 | uint64(h.mode) }

// setContext follows a change of the mode, of satp, or of the fields of mstatus that
// have a say in translation.
func (h *Hart) setContext() {
	h.setKey()
	m := h.mode
	if m == modeM && h.mstatus&statusMPRV != 0 {
		m = mode(h.mstatus >> statusMPPShift & 3)
	}
	switch {
	case m == modeM || h.satp>>60 == 0:
		h.data = contextBare
	case m == modeU:
		h.data = contextU
	case h.mstatus&statusSUM != 0:
		h.data = contextSum
	default:
		h.data = contextS
	}
	h.reads, h.writes = &h.readTables[h.data], &h.writeTables[h.data]
}

// fetchContext is the context of instructions.
func (h *Hart) fetchContext() context {
	switch {
	case h.mode == modeM || h.satp>>60 == 0:
		return contextBare
	case h.mode == modeU:
		return contextU
	}
	return contextS
}

// pageFaults and accessFaults are the causes by access.
var (
	pageFaults   = [...]uint64{accessRead: causeLoadPage, accessWrite: causeStorePage, accessFetch: causeFetchPage}
	accessFaults = [...]uint64{accessRead: causeLoadAccess, accessWrite: causeStoreAccess, accessFetch: causeFetchAccess}
	misaligned   = [...]uint64{accessRead: causeLoadMisaligned, accessWrite: causeStoreMisaligned}
)

// translate finds the physical address, or makes the fault.
func (h *Hart) translate(va uint64, a access) (pa uint64, ok bool) {
	c := h.data
	if a == accessFetch {
		c = h.fetchContext()
	}
	if c == contextBare {
		return va, true
	}
	if uint64(int64(va<<25)>>25) != va {
		h.fault = exception{pageFaults[a], va}
		return 0, false
	}
	cause := h.walk(va, a, c, &pa)
	if cause != 0 {
		h.fault = exception{cause, va}
		if h.flaw.value {
			h.fault.tval = 0
		}
	}
	return pa, cause == 0
}

// walk is the manual's algorithm ("Virtual Address Translation Process"). It sets A,
// and D for a store. It returns the cause of the fault, or 0.
func (h *Hart) walk(va uint64, a access, c context, pa *uint64) uint64 {
	at := h.satp & (1<<44 - 1) << 12
	for level := 2; level >= 0; level-- {
		shift := uint(12 + 9*level)
		at += va >> shift & 511 * 8
		if !h.ram.Contains(at, 8) {
			return accessFaults[a]
		}
		h.ram.Flag(h.ram.Page(at), memory.Table)
		slot := h.bytes[at-h.base:][:8]
		pte := binary.LittleEndian.Uint64(slot)
		switch {
		case pte&pteV == 0 || pte&(pteR|pteW) == pteW || pte&pteReserved != 0:
			return pageFaults[a]
		case pte&(pteR|pteW|pteX) == 0:
			if level == 0 || pte&(pteD|pteA|pteU) != 0 {
				return pageFaults[a]
			}
			at = pte & ptePPN << 2
			continue
		case !h.permits(pte, a, c):
			return pageFaults[a]
		}
		frame, mask := pte&ptePPN<<2, uint64(1)<<shift-1
		if frame&mask != 0 {
			return pageFaults[a]
		}
		used := pte | pteA
		if a == accessWrite && !h.flaw.dirty {
			used |= pteD
		}
		if used != pte {
			h.mark(at, used, slot)
		}
		*pa = frame | va&mask
		return 0
	}
	return pageFaults[a]
}

// permits tells whether a leaf allows the access.
func (h *Hart) permits(pte uint64, a access, c context) bool {
	if user := pte&pteU != 0; user != (c == contextU) && (!user || c != contextSum) {
		return false
	}
	switch a {
	case accessRead:
		return pte&pteR != 0 || h.mstatus&statusMXR != 0 && pte&pteX != 0
	case accessWrite:
		return pte&pteW != 0
	default:
		return pte&pteX != 0
	}
}

// mark stores an entry with its new A and D: a store of the hart's own, but of one that
// changes no translation that is kept, since an entry that lacked A or D for it was
// not kept.
func (h *Hart) mark(at, pte uint64, slot []byte) {
	page := h.ram.Page(at)
	h.ram.All()[page] |= memory.Dirty
	h.clobber(at, 8)
	if h.overlapsCode(page, at&pageMask, 8) {
		h.dropCode(page)
	}
	binary.LittleEndian.PutUint64(slot, pte)
}

// clobber takes the reservation away if n bytes at a physical address touch its granule.
func (h *Hart) clobber(addr, n uint64) {
	if h.reservedSize != 0 && addr>>granuleBits <= h.reserved>>granuleBits && (addr+n-1)>>granuleBits >= h.reserved>>granuleBits {
		h.unreserve()
	}
}

// granuleBits: a reservation is on 64 bytes.
const granuleBits = 6

// wrote is memory.RAM's hook: a device has stored.
func (h *Hart) wrote(addr, n uint64) { h.clobber(addr, n) }

// stored is memory.RAM's hook: a device stores into a page with flags.
func (h *Hart) stored(page uint32, was memory.Flags) {
	if was&memory.Table != 0 {
		h.flushTranslations()
	}
	if was&memory.Code != 0 {
		h.dropCode(page)
	}
}
