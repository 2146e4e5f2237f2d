package riscv

import (
	"math/bits"

	"steadfast/compute/device"
)

// PLIC is the platform-level interrupt controller, as its manual (RISC-V PLIC 1.0.0) and
// QEMU's virt machine have it: sources 1 to 63, and two contexts, of which 0 is M
// mode's, which is there only to be where drivers expect it, and 1 is S mode's.
//
// A source's gateway lets a raised line through once: it pends until it is claimed, and
// not again before it was completed. A line that falls before it was claimed is
// withdrawn; one that is still up at completion pends again.
type PLIC struct {
	external func(up bool)

	priority  [plicSources]uint32
	level     uint64
	pending   uint64
	claimed   uint64
	enabled   [plicContexts]uint64
	threshold [plicContexts]uint32
	up        bool
}

const (
	plicSources  = 64
	plicContexts = 2
	plicS        = 1
	plicLevels   = 7

	plicPriority  = 0x0
	plicPending   = 0x1000
	plicEnable    = 0x2000
	plicStride    = 0x80
	plicContext   = 0x200000
	plicPerCtx    = 0x1000
	plicThreshold = 0
	plicClaim     = 4

	// PLICSize is how much of the address space it takes, in bytes.
	PLICSize = 64 << 20
)

var _ device.Device = (*PLIC)(nil)

// NewPLIC makes one. external gets the level of S mode's line whenever it changes:
// Hart.SetExternal.
func NewPLIC(external func(up bool)) *PLIC { return &PLIC{external: external} }

// Raise sets the level of a source's line. Sources are 1 to 63; others are ignored.
func (p *PLIC) Raise(source int, up bool) {
	if source <= 0 || source >= plicSources {
		return
	}
	bit := uint64(1) << source
	if up {
		p.level |= bit
		p.pending |= bit &^ p.claimed
	} else {
		p.level &^= bit
		p.pending &^= bit
	}
	p.update()
}

// best is the pending source of the highest priority that a context has enabled, the
// lowest number among equals; 0 if there is none. One of priority 0 never is.
func (p *PLIC) best(ctx int, above uint32) int {
	found := 0
	for left := p.pending & p.enabled[ctx]; left != 0; left &= left - 1 {
		if n := bits.TrailingZeros64(left); p.priority[n] > above {
			found, above = n, p.priority[n]
		}
	}
	return found
}

// update tells S mode's line.
func (p *PLIC) update() {
	if up := p.best(plicS, p.threshold[plicS]) != 0; up != p.up {
		p.up = up
		p.external(up)
	}
}

// register is one 32-bit register, for Load and Store alike.
type register struct {
	kind uint64
	n    int // source, word, or context
	word int
}

// at finds the register at an offset; false if there is none.
func (p *PLIC) at(off uint64) (r register, ok bool) {
	switch {
	case off < plicPriority+4*plicSources:
		return register{plicPriority, int(off / 4), 0}, true
	case off >= plicPending && off < plicPending+plicSources/8:
		return register{plicPending, 0, int(off-plicPending) / 4}, true
	case off >= plicEnable && off < plicEnable+plicStride*plicContexts:
		word := int(off-plicEnable) % plicStride / 4
		return register{plicEnable, int(off-plicEnable) / plicStride, word}, word < plicSources/32
	case off >= plicContext && off < plicContext+plicPerCtx*plicContexts:
		word := int(off-plicContext) % plicPerCtx
		return register{plicContext, int(off-plicContext) / plicPerCtx, word}, word <= plicClaim
	}
	return register{}, false
}

// Load reads a register of 32 bits. A read of claim claims.
func (p *PLIC) Load(offset uint64, size int) uint64 {
	r, ok := p.at(offset)
	if !ok || size != 4 {
		return 0
	}
	switch r.kind {
	case plicPriority:
		return uint64(p.priority[r.n])
	case plicPending:
		return uint64(uint32(p.pending >> (32 * r.word)))
	case plicEnable:
		return uint64(uint32(p.enabled[r.n] >> (32 * r.word)))
	}
	if r.word == plicThreshold {
		return uint64(p.threshold[r.n])
	}
	return p.claim(r.n)
}

// claim takes the best source. The threshold has no say in it.
func (p *PLIC) claim(ctx int) uint64 {
	n := p.best(ctx, 0)
	if n != 0 {
		p.pending &^= 1 << n
		p.claimed |= 1 << n
		p.update()
	}
	return uint64(n)
}

// Store writes a register of 32 bits. A write of claim completes.
func (p *PLIC) Store(offset uint64, size int, value uint64) {
	r, ok := p.at(offset)
	if !ok || size != 4 {
		return
	}
	v := uint32(value)
	switch r.kind {
	case plicPriority:
		if r.n != 0 {
			p.priority[r.n] = min(v, plicLevels)
		}
	case plicPending:
		return
	case plicEnable:
		shift := 32 * r.word
		e := p.enabled[r.n]&^(0xffffffff<<shift) | uint64(v)<<shift
		p.enabled[r.n] = e &^ 1
	default:
		if r.word == plicThreshold {
			p.threshold[r.n] = min(v, plicLevels)
		} else {
			p.complete(r.n, v)
		}
	}
	p.update()
}

// complete ends the service of a source that the context has enabled; else it is ignored.
func (p *PLIC) complete(ctx int, source uint32) {
	if source >= plicSources || p.enabled[ctx]>>source&1 == 0 {
		return
	}
	bit := uint64(1) << source
	p.claimed &^= bit
	p.pending |= p.level & bit
}

// Deliver takes nothing: the world reaches the PLIC by devices only.
func (p *PLIC) Deliver(*device.Input) {}

// Save appends the state.
func (p *PLIC) Save(e *device.Encoder) {
	for _, v := range p.priority {
		e.U8(uint8(v))
	}
	e.U64(p.level)
	e.U64(p.pending)
	e.U64(p.claimed)
	for ctx := range plicContexts {
		e.U64(p.enabled[ctx])
		e.U8(uint8(p.threshold[ctx]))
	}
}

// Restore takes a saved state. It does not tell the line: the hart's own state has it.
func (p *PLIC) Restore(d *device.Decoder) error {
	for n := range p.priority {
		p.priority[n] = uint32(d.U8())
		if p.priority[n] > plicLevels {
			d.Fail("a priority of an interrupt")
		}
	}
	p.level, p.pending, p.claimed = d.U64(), d.U64(), d.U64()
	for ctx := range plicContexts {
		p.enabled[ctx] = d.U64()
		p.threshold[ctx] = uint32(d.U8())
		if p.threshold[ctx] > plicLevels {
			d.Fail("a threshold of interrupts")
		}
	}
	if (p.level|p.pending|p.claimed|p.enabled[0]|p.enabled[1])&1 != 0 || p.priority[0] != 0 {
		d.Fail("an interrupt of number 0")
	}
	if err := d.Err(); err != nil {
		*p = PLIC{external: p.external}
		return err
	}
	p.up = p.best(plicS, p.threshold[plicS]) != 0
	return nil
}
