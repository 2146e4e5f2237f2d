package machine

import (
	"slices"

	"github.com/zeebo/xxh3"

	"steadfast/compute/device"
	"steadfast/compute/memory"
)

// Hash is a digest of all that a machine goes on from: two that go on alike have the
// same, whatever they have cached. It is no defence against one who wants two to be
// equal.
type Hash [16]byte

// hasher keeps the sum of the pages' digests: what a page adds depends on its number and
// its bytes, and a page of zeros adds nothing. So only the pages that were stored to
// since the last time have to be read.
type hasher struct {
	ram   *memory.RAM
	pages []xxh3.Uint128
	sum   xxh3.Uint128
	// changed are the pages that were stored to since Changed was last asked, and marks
	// says so of each; nil while nobody copies the machine.
	changed []uint32
	marks   []bool
}

func (h *hasher) init(ram *memory.RAM) {
	*h = hasher{ram: ram, pages: make([]xxh3.Uint128, ram.Pages())}
}

// refresh reads the pages that were stored to.
func (h *hasher) refresh() {
	h.ram.Clean(func(page uint32) {
		is := pageHash(page, h.ram.Data(page))
		h.sum = add(sub(h.sum, h.pages[page]), is)
		h.pages[page] = is
		if h.marks != nil && !h.marks[page] {
			h.marks[page] = true
			h.changed = append(h.changed, page)
		}
	})
}

// zero makes all of the memory zeros: only what was ever stored to has to be.
func (h *hasher) zero() {
	for page := range h.ram.Pages() {
		if h.pages[page] != (xxh3.Uint128{}) || h.ram.FlagsOf(page)&memory.Dirty != 0 {
			h.ram.Touch(page)
			clear(h.ram.Data(page))
		}
	}
}

var zeroPage [memory.PageSize]byte

// pageHash is what a page adds to the sum.
func pageHash(page uint32, p []byte) xxh3.Uint128 {
	if string(p) == string(zeroPage[:]) {
		return xxh3.Uint128{}
	}
	return xxh3.Hash128Seed(p, uint64(page))
}

func add(a, b xxh3.Uint128) xxh3.Uint128 {
	lo := a.Lo + b.Lo
	carry := uint64(0)
	if lo < a.Lo {
		carry = 1
	}
	return xxh3.Uint128{Hi: a.Hi + b.Hi + carry, Lo: lo}
}

func sub(a, b xxh3.Uint128) xxh3.Uint128 {
	lo := a.Lo - b.Lo
	borrow := uint64(0)
	if lo > a.Lo {
		borrow = 1
	}
	return xxh3.Uint128{Hi: a.Hi - b.Hi - borrow, Lo: lo}
}

// Hash returns the machine's digest: the more pages were stored to since the last time,
// the longer it takes.
func (m *Machine) Hash() Hash {
	m.hash.refresh()
	return m.digest(m.hash.sum)
}

// HashAnew is Hash from all of the memory, whatever is known of it.
func (m *Machine) HashAnew() Hash {
	var sum xxh3.Uint128
	for page := range m.ram.Pages() {
		sum = add(sum, pageHash(page, m.ram.Data(page)))
	}
	return m.digest(sum)
}

// Copy begins, or with false ends, a copy of the machine while it runs: from now on
// Changed tells which pages to send again.
func (m *Machine) Copy(on bool) {
	m.hash.refresh()
	m.hash.changed, m.hash.marks = nil, nil
	if on {
		m.hash.marks = make([]bool, m.ram.Pages())
	}
}

// Changed returns the pages that were stored to, by the processor or a device, since it
// was last called, or since Copy.
func (m *Machine) Changed() []uint32 {
	m.hash.refresh()
	list := m.hash.changed
	m.hash.changed = nil
	for _, page := range list {
		m.hash.marks[page] = false
	}
	slices.Sort(list)
	return list
}

// Zeros tells whether a page of the memory, by its number, was all zeros when Hash, Copy or Changed
// last looked: one that nobody has ever stored to is told without a look at it, for which the host
// would have to map it.
func (m *Machine) Zeros(page uint32) bool { return m.hash.pages[page] == (xxh3.Uint128{}) }

// digest joins the memory's digest and the state of everything else.
func (m *Machine) digest(sum xxh3.Uint128) Hash {
	var e device.Encoder
	m.saveParts(&e)
	e.U64(sum.Hi)
	e.U64(sum.Lo)
	return Hash(xxh3.Hash128(e.Bytes()).Bytes())
}
