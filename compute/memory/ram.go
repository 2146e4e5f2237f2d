// Package memory is a machine's RAM: pages that cost nothing before they are touched,
// with flags for what the processor and a copy in progress have to know of each.
//
// A processor stores into a page directly, past this package, only while the page's
// flags are Dirty and nothing else; every other store comes through Touch. So a page
// that is clean becomes dirty in the slow path once, and a page that holds a page
// table or decoded code is looked at on every store. Flags that would stop a direct
// store are set by Flag, which tells the processor to forget what it may store to
// directly.
//
// It is one goroutine's property, as the machine is.
package memory

import (
	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// PageSize is the unit of flags, in bytes.
const PageSize = 4096

// Flags are what is known of a page.
type Flags uint8

// Flags of a page.
const (
	// Dirty: it may have changed since the last Clean.
	Dirty Flags = 1 << iota
	// Code: the processor has decoded instructions of it.
	Code
	// Table: the processor has translated addresses by it.
	Table
)

// RAM is one stretch of guest memory.
type RAM struct {
	base  uint64
	bytes []byte
	flags []Flags
	// Stored is told, before the return of Touch or Write, that a page with Code or Table
	// was stored to, or is about to be. Its flags other than Dirty are cleared.
	Stored func(page uint32, was Flags)
	// Guarded is told that pages may no longer be stored to directly.
	Guarded func()
	// Wrote is told what Write has stored: a reservation of the processor may lie there.
	Wrote func(addr, n uint64)
}

// SizeMax bounds a machine's RAM, in bytes.
const SizeMax = 1 << 40

// New maps size bytes of zeros at the guest's address base; both are multiples of PageSize.
// Release gives them back.
func New(base, size uint64) (*RAM, error) {
	if size == 0 || size > SizeMax || size%PageSize != 0 || base%PageSize != 0 || base+size < base {
		return nil, fault.New(fault.Invalid, "a memory of %d bytes: it must be a multiple of %d, and at most %d", size, PageSize, uint64(SizeMax))
	}
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fault.Wrap(fault.Full, err, "mapping guest memory")
	}
	return &RAM{base: base, bytes: b, flags: make([]Flags, size/PageSize)}, nil
}

// Release unmaps the memory. Nothing may use it any more.
func (r *RAM) Release() error {
	b := r.bytes
	r.bytes, r.flags = nil, nil
	return unix.Munmap(b)
}

// Base is the guest's address of the first byte, Size how many bytes there are.
func (r *RAM) Base() uint64 { return r.base }

// Size is in bytes.
func (r *RAM) Size() uint64 { return uint64(len(r.bytes)) }

// Bytes is the memory itself, for the processor's direct accesses.
func (r *RAM) Bytes() []byte { return r.bytes }

// Contains tells whether n bytes at a guest's address are all there.
func (r *RAM) Contains(addr, n uint64) bool {
	off := addr - r.base
	return off < uint64(len(r.bytes)) && n <= uint64(len(r.bytes))-off
}

// Page is the number of the page that a guest's address in RAM lies in.
func (r *RAM) Page(addr uint64) uint32 { return uint32((addr - r.base) / PageSize) }

// Pages is how many there are.
func (r *RAM) Pages() uint32 { return uint32(len(r.flags)) }

// FlagsOf returns a page's flags.
func (r *RAM) FlagsOf(page uint32) Flags { return r.flags[page] }

// All returns the flags of all pages, for the processor: it may keep Table on a page
// when it knows that a store changes no translation.
func (r *RAM) All() []Flags { return r.flags }

// Flag adds Code or Table to a page's flags.
func (r *RAM) Flag(page uint32, f Flags) {
	if r.flags[page]&f == f {
		return
	}
	r.flags[page] |= f
	if r.Guarded != nil {
		r.Guarded()
	}
}

// Touch is what goes before a store into a page by whoever does not store directly.
// After it the page is Dirty and nothing else.
func (r *RAM) Touch(page uint32) {
	was := r.flags[page]
	r.flags[page] = Dirty
	if was&(Code|Table) != 0 && r.Stored != nil {
		r.Stored(page, was)
	}
}

// Read copies guest memory for a device; false, and nothing, if it is not all there.
func (r *RAM) Read(p []byte, addr uint64) bool {
	if !r.Contains(addr, uint64(len(p))) {
		return false
	}
	copy(p, r.bytes[addr-r.base:])
	return true
}

// Write stores into guest memory for a device; false, and nothing, if it is not all there.
func (r *RAM) Write(p []byte, addr uint64) bool {
	if !r.Contains(addr, uint64(len(p))) {
		return false
	}
	if len(p) == 0 {
		return true
	}
	for page, last := r.Page(addr), r.Page(addr+uint64(len(p))-1); page <= last; page++ {
		r.Touch(page)
	}
	copy(r.bytes[addr-r.base:], p)
	if r.Wrote != nil {
		r.Wrote(addr, uint64(len(p)))
	}
	return true
}

// Clean takes the Dirty flag of all pages, and calls do for each that had it, ascending.
func (r *RAM) Clean(do func(page uint32)) {
	any := false
	for page, f := range r.flags {
		if f&Dirty == 0 {
			continue
		}
		r.flags[page] = f &^ Dirty
		any = true
		do(uint32(page))
	}
	if any && r.Guarded != nil {
		r.Guarded()
	}
}

// Data is a page's bytes.
func (r *RAM) Data(page uint32) []byte {
	return r.bytes[uint64(page)*PageSize:][:PageSize:PageSize]
}
