package riscv

import (
	"encoding/binary"

	"steadfast/compute/memory"
)

// Decoded code. A block is a straight line of instructions of one page, known by the
// physical address of its first. It is dropped as soon as one of its bytes is stored to.

const (
	// blockOps bounds a block's instructions.
	blockOps = 64
	// decodedMax bounds all blocks together, in ops, of which blockCost are what a block
	// is without any; then all are dropped, and made again as they are needed. It is 64 MiB.
	decodedMax = 4 << 20
	blockCost  = 6
	// chainMax bounds how many blocks lie at one place of the hash: code that was laid out
	// for that makes itself slow, and no instruction of it takes long.
	chainMax = 256

	hashSize = 1 << 18
	jumpSize = 1 << 12
)

type block struct {
	ops []op
	pa  uint64
	// size is the length of all instructions in bytes.
	size uint64
	// taken and fall are the blocks where a jump and the end lead to, if they are known
	// and begin in the same page: then they are dropped together.
	taken, fall *block
	// next is in the chain of the hash, sibling in the list of the page.
	next, sibling *block
	// second is the physical address of the other half of a lone instruction that lies
	// on two pages. Such a block is right for one translation only: it is neither in the
	// hash nor linked to.
	second  uint64
	astride bool
}

// codePage is what was decoded of a page: its blocks, and the bounds of their bytes.
type codePage struct {
	first  *block
	lo, hi uint64
}

// jump remembers which block a virtual address leads to under a key.
type jump struct {
	pc, key uint64
	to      *block
}

type blocks struct {
	hash  [hashSize]*block
	jumps [jumpSize]jump
	pages map[uint32]*codePage
	// decoded is what all blocks in the hash cost: see decodedMax.
	decoded int
}

func (b *blocks) init(*memory.RAM) { b.pages = make(map[uint32]*codePage) }

func hashOf(pa uint64) uint64 { return pa >> 1 % hashSize }

func jumpOf(pc uint64) uint64 { return (pc>>1 ^ pc>>13) % jumpSize }

// lookup finds, or decodes, the block at pc; nil if the fetch faults.
func (h *Hart) lookup(pc uint64) *block {
	pa, ok := h.fetch(pc)
	if !ok {
		return nil
	}
	var b *block
	steps := 0
	for b = h.hash[hashOf(pa)]; b != nil && b.pa != pa; steps++ {
		b = b.next
	}
	if b == nil && steps >= chainMax {
		h.dropAllCode()
	}
	if b == nil {
		if b = h.decode(pc, pa); b == nil {
			return nil
		}
	}
	h.jumps[jumpOf(pc)] = jump{pc, h.key, b}
	return b
}

// fetch translates the address of an instruction, which must be in RAM.
func (h *Hart) fetch(pc uint64) (pa uint64, ok bool) {
	e := &h.fetches[pc>>12%fetchSize]
	if e.va == pc&^pageMask && e.key == h.key {
		return e.pa | pc&pageMask, true
	}
	if pa, ok = h.translate(pc, accessFetch); !ok {
		return 0, false
	}
	if !h.inRAM(pa) {
		h.fault = exception{causeFetchAccess, pc}
		return 0, false
	}
	*e = fetchEntry{pc &^ pageMask, h.key, pa &^ pageMask}
	return pa, true
}

// decode makes the block at pc; nil if the fetch of a second half faults.
func (h *Hart) decode(pc, pa uint64) *block {
	if h.decoded >= decodedMax {
		h.dropAllCode()
	}
	page := h.pageAt(pa)
	start := pa & pageMask
	at := start
	var buf [blockOps]op
	n := 0
	for n < blockOps && at < pageSize {
		raw := uint32(binary.LittleEndian.Uint16(page[at:]))
		off := uint16(at - start)
		if raw&3 != 3 {
			buf[n] = decode16(raw, off)
		} else if at+4 <= pageSize {
			buf[n] = decode32(binary.LittleEndian.Uint32(page[at:]), off)
		} else if n == 0 {
			return h.decodeAstride(pc, pa, raw)
		} else {
			break
		}
		h.flaw.apply(&buf[n])
		at += uint64(buf[n].len)
		n++
		if endsBlock(buf[n-1].code) {
			break
		}
	}
	b := &block{ops: append([]op(nil), buf[:n]...), pa: pa, size: at - start}
	b.next, h.hash[hashOf(pa)] = h.hash[hashOf(pa)], b
	p := h.keepCode(pa, at-start)
	b.sibling, p.first = p.first, b
	h.decoded += n + blockCost
	return b
}

// decodeAstride makes the block of an instruction that lies on two pages.
func (h *Hart) decodeAstride(pc, pa uint64, raw uint32) *block {
	second, ok := h.fetch(pc + 2)
	if !ok {
		return nil
	}
	raw |= uint32(binary.LittleEndian.Uint16(h.pageAt(second)[:])) << 16
	b := &block{ops: []op{decode32(raw, 0)}, pa: pa, size: 4, second: second, astride: true}
	h.flaw.apply(&b.ops[0])
	h.keepCode(pa, 2)
	h.keepCode(second, 2)
	return b
}

// keepCode has the page watched for stores into n bytes at pa.
func (h *Hart) keepCode(pa, n uint64) *codePage {
	page := h.ram.Page(pa)
	h.ram.Flag(page, memory.Code)
	p := h.pages[page]
	if p == nil {
		p = &codePage{lo: pageSize}
		h.pages[page] = p
	}
	p.lo, p.hi = min(p.lo, pa&pageMask), max(p.hi, pa&pageMask+n)
	return p
}

// endsBlock tells which instructions nothing follows in a block: what may jump, and
// what may change how the next is fetched, or whether an interrupt comes before it.
func endsBlock(c code) bool {
	return c >= opJal && c <= opBgeu || c == opIllegal || c >= opFenceI
}

// overlapsCode tells whether n bytes at an offset of a page may have been decoded.
func (h *Hart) overlapsCode(page uint32, off, n uint64) bool {
	if h.ram.FlagsOf(page)&memory.Code == 0 {
		return false
	}
	p := h.pages[page]
	return p == nil || off < p.hi && off+n > p.lo
}

// dropCode drops the blocks of a page.
func (h *Hart) dropCode(page uint32) {
	p := h.pages[page]
	if p == nil || h.flaw.code {
		return
	}
	for b := p.first; b != nil; b = b.sibling {
		h.unhash(b)
		h.decoded -= len(b.ops) + blockCost
	}
	delete(h.pages, page)
	h.newKey()
}

func (h *Hart) unhash(b *block) {
	for at := &h.hash[hashOf(b.pa)]; *at != nil; at = &(*at).next {
		if *at == b {
			*at = b.next
			return
		}
	}
}

// dropAllCode drops all blocks. Pages stay flagged: the next store into one finds
// nothing there, and takes the flag away.
func (h *Hart) dropAllCode() {
	h.hash = [hashSize]*block{}
	clear(h.pages)
	h.decoded = 0
	h.newKey()
}

// rawAt reads the bits of an instruction of a block again: those decoded, since a
// block is dropped when they change.
func (h *Hart) rawAt(b *block, o *op) uint64 {
	at := b.pa + uint64(o.off)
	raw := uint64(binary.LittleEndian.Uint16(h.bytes[at-h.base:]))
	switch {
	case o.len == 2:
		return raw
	case b.astride:
		return raw | uint64(binary.LittleEndian.Uint16(h.bytes[b.second-h.base:]))<<16
	}
	return raw | uint64(binary.LittleEndian.Uint16(h.bytes[at+2-h.base:]))<<16
}
