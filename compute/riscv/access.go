package riscv

import (
	"encoding/binary"

	"steadfast/compute/memory"
)

// The slow paths of loads and stores: what misses the tables of translations, what is
// not aligned, what is not RAM, and stores into pages that are watched.

// outcome is how an instruction inside a block ended.
type outcome uint8

const (
	// done: go on with the next.
	done outcome = iota
	// left: it is retired, Count was advanced by those before it, and the block must be
	// left because the world may be another now.
	left
	// faulted: Hart.fault has the exception, and nothing has changed.
	faulted
)

// pageAt is the bytes of the page of RAM that a physical address lies in.
func (h *Hart) pageAt(pa uint64) *[pageSize]byte {
	off := (pa - h.base) &^ pageMask
	return (*[pageSize]byte)(h.bytes[off : off+pageSize])
}

// inRAM tells whether an address is; RAM is whole pages, so its page is, too.
func (h *Hart) inRAM(pa uint64) bool { return pa-h.base < uint64(len(h.bytes)) }

// load reads size bytes, zero-extended. i instructions of the block went before.
func (h *Hart) load(va, size uint64, i int) (uint64, outcome) {
	if va&(size-1) != 0 {
		return h.loadMisaligned(va, size)
	}
	pa, ok := h.translate(va, accessRead)
	if !ok {
		return 0, faulted
	}
	if !h.inRAM(pa) {
		return h.loadBus(va, pa, size, i)
	}
	page := h.pageAt(pa)
	h.reads.keep(va, pa, page)
	return little(page[pa&pageMask:], size), done
}

// little reads size bytes, 1, 2, 4 or 8.
func little(p []byte, size uint64) uint64 {
	switch size {
	case 1:
		return uint64(p[0])
	case 2:
		return uint64(binary.LittleEndian.Uint16(p))
	case 4:
		return uint64(binary.LittleEndian.Uint32(p))
	}
	return binary.LittleEndian.Uint64(p)
}

// putLittle writes size bytes, 1, 2, 4 or 8.
func putLittle(p []byte, size, v uint64) {
	switch size {
	case 1:
		p[0] = byte(v)
	case 2:
		binary.LittleEndian.PutUint16(p, uint16(v))
	case 4:
		binary.LittleEndian.PutUint32(p, uint32(v))
	default:
		binary.LittleEndian.PutUint64(p, v)
	}
}

func (h *Hart) loadBus(va, pa, size uint64, i int) (uint64, outcome) {
	h.count += uint64(i)
	v, ok := h.bus.Load(pa, int(size))
	if !ok {
		h.count -= uint64(i)
		h.fault = exception{causeLoadAccess, va}
		return 0, faulted
	}
	h.attention = true
	if size < 8 {
		v &= 1<<(8*size) - 1
	}
	return v, left
}

// span finds the physical addresses of the two halves of an access that is not
// aligned: n bytes at first, the rest at second. All of it must be RAM. That nothing is
// done before both are known is the policy: such an access happens whole or not at all.
func (h *Hart) span(va, size uint64, a access) (first, second, n uint64, ok bool) {
	n = min(size, pageSize-va&pageMask)
	if first, ok = h.translate(va, a); !ok {
		return
	}
	if n < size {
		if second, ok = h.translate(va+n, a); !ok {
			return
		}
	}
	switch {
	case !h.inRAM(first):
		h.fault, ok = exception{accessFaults[a], va}, false
	case n < size && !h.inRAM(second):
		h.fault, ok = exception{accessFaults[a], va + n}, false
	}
	return
}

func (h *Hart) loadMisaligned(va, size uint64) (uint64, outcome) {
	first, second, n, ok := h.span(va, size, accessRead)
	if !ok {
		return 0, faulted
	}
	var b [8]byte
	copy(b[:n], h.bytes[first-h.base:])
	if n < size {
		copy(b[n:size], h.bytes[second-h.base:])
	}
	return binary.LittleEndian.Uint64(b[:]), done
}

// store writes the low size bytes of v. i instructions of the block went before.
func (h *Hart) store(va, size, v uint64, i int) outcome {
	if va&(size-1) != 0 {
		return h.storeMisaligned(va, size, v, i)
	}
	if page, pa := h.writes.find(va); page != nil {
		// It came here because something on the page is reserved.
		h.clobber(pa, size)
		putLittle(page[pa&pageMask:], size, v)
		return done
	}
	pa, ok := h.translate(va, accessWrite)
	if !ok {
		return faulted
	}
	if !h.inRAM(pa) {
		return h.storeBus(va, pa, size, v, i)
	}
	changed := h.willStore(pa, size)
	page := h.pageAt(pa)
	putLittle(page[pa&pageMask:], size, v)
	if !changed {
		// Else it may have been a store to the very entry that this translation came from.
		h.writable(va, pa)
	}
	return h.leaveIf(changed, i)
}

// leaveIf leaves the block if translations or code were dropped.
func (h *Hart) leaveIf(changed bool, i int) outcome {
	if changed {
		h.count += uint64(i)
		return left
	}
	return done
}

// writable lets later stores go to the page directly, unless it is watched.
func (h *Hart) writable(va, pa uint64) {
	if h.ram.FlagsOf(h.ram.Page(pa)) == memory.Dirty {
		h.writes.keep(va, pa, h.pageAt(pa))
	}
}

// willStore does what goes before a store of n bytes of RAM, all in one page. It tells
// whether anything was dropped that the block in progress may stand on.
func (h *Hart) willStore(pa, n uint64) (changed bool) {
	page := h.ram.Page(pa)
	flags := &h.ram.All()[page]
	h.clobber(pa, n)
	if *flags&memory.Table != 0 && !h.flaw.translations && h.validEntry(pa, n) {
		h.flushTranslations()
		*flags &^= memory.Table
		changed = true
	}
	if *flags&memory.Code != 0 && h.overlapsCode(page, pa&pageMask, n) {
		h.dropCode(page)
		*flags &^= memory.Code
		changed = true
	}
	*flags |= memory.Dirty
	return changed
}

// validEntry tells whether n bytes touch what would be a valid page table entry. One
// that is not valid is in no translation that is kept.
func (h *Hart) validEntry(pa, n uint64) bool {
	for at := pa &^ 7; at < pa+n; at += 8 {
		if h.bytes[at-h.base]&pteV != 0 {
			return true
		}
	}
	return false
}

func (h *Hart) storeBus(va, pa, size, v uint64, i int) outcome {
	if size < 8 {
		v &= 1<<(8*size) - 1
	}
	h.count += uint64(i)
	if !h.bus.Store(pa, int(size), v) {
		h.count -= uint64(i)
		h.fault = exception{causeStoreAccess, va}
		return faulted
	}
	h.attention = true
	return left
}

func (h *Hart) storeMisaligned(va, size, v uint64, i int) outcome {
	first, second, n, ok := h.span(va, size, accessWrite)
	if !ok {
		return faulted
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	changed := h.willStore(first, n)
	copy(h.bytes[first-h.base:], b[:n])
	if n < size {
		changed = h.willStore(second, size-n) || changed
		copy(h.bytes[second-h.base:], b[n:size])
	}
	return h.leaveIf(changed, i)
}
