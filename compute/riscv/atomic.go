package riscv

// The A extension, and cbo.zero. One hart: each is as atomic as any instruction. What
// is not aligned traps, and only RAM has atomics: elsewhere they are access faults.

// atomic runs LR, SC, an AMO or cbo.zero.
func (h *Hart) atomic(o *op, i int) outcome {
	if o.code == opCboZero {
		return h.cboZero(o, i)
	}
	size, c := uint64(4), o.code
	if c >= opLrD {
		size, c = 8, c-(opLrD-opLrW)
	}
	va, a := h.x[o.rs1], accessWrite
	if c == opLrW {
		a = accessRead
	}
	if va&(size-1) != 0 {
		h.fault = exception{misaligned[a], va}
		return faulted
	}
	if c == opScW && h.reservedSize == 0 {
		h.x[o.rd] = 1
		return done
	}
	page, pa := h.atomicPage(va, a)
	if page == nil {
		return faulted
	}
	slot := page[pa&pageMask:]
	old := little(slot, size)
	if size == 4 {
		old = sext32(old)
	}
	v := h.x[o.rs2]
	switch c {
	case opLrW:
		h.reserved, h.reservedSize, h.reservedPage = pa, uint8(size), page
		h.x[o.rd] = old
		return done
	case opScW:
		held := h.reserved == pa && uint64(h.reservedSize) == size
		h.unreserve()
		h.x[o.rd] = truth(!held)
		if !held {
			return done
		}
	default:
		if size == 4 {
			v = sext32(v)
		}
		v = amoResult(c, old, v)
		h.x[o.rd] = old
	}
	changed := h.willStore(pa, size)
	putLittle(slot, size, v)
	return h.leaveIf(changed, i)
}

// atomicPage finds the page of RAM that an atomic is on; nil if it faults.
func (h *Hart) atomicPage(va uint64, a access) (page *[pageSize]byte, pa uint64) {
	t := h.reads
	if a == accessWrite {
		t = h.writes
	}
	if page, pa = t.find(va); page != nil {
		return page, pa
	}
	pa, ok := h.translate(va, a)
	if !ok {
		return nil, 0
	}
	if !h.inRAM(pa) {
		h.fault = exception{accessFaults[a], va}
		return nil, 0
	}
	if page = h.pageAt(pa); a == accessRead {
		h.reads.keep(va, pa, page)
	} else {
		h.writable(va, pa)
	}
	return page, pa
}

// amoResult is what an AMO stores. Words are sign-extended, which keeps their order, signed
// and unsigned.
func amoResult(c code, old, v uint64) uint64 {
	switch c {
	case opAmoaddW:
		return old + v
	case opAmoxorW:
		return old ^ v
	case opAmoandW:
		return old & v
	case opAmoorW:
		return old | v
	case opAmominW:
		return uint64(min(int64(old), int64(v)))
	case opAmomaxW:
		return uint64(max(int64(old), int64(v)))
	case opAmominuW:
		return min(old, v)
	case opAmomaxuW:
		return max(old, v)
	default: // opAmoswapW
		return v
	}
}

// cboBlock is what cbo.zero zeroes, in bytes. RISC-V cache-block operations manual.
const cboBlock = 64

// cboZero: the modes above say by menvcfg and senvcfg whether it is there; menvcfg
// allows it where there is no M mode.
func (h *Hart) cboZero(o *op, i int) outcome {
	if h.mode < modeM && h.environment()&envCBZE == 0 || h.mode == modeU && h.senvcfg&envCBZE == 0 {
		h.fault = exception{causeIllegal, uint64(opcodeCboZero) | uint64(o.rs1)<<15}
		return faulted
	}
	at := h.x[o.rs1]
	pa, ok := h.translate(at, accessWrite)
	if !ok {
		return faulted
	}
	if !h.inRAM(pa) {
		h.fault = exception{causeStoreAccess, at}
		return faulted
	}
	pa &^= cboBlock - 1
	changed := h.willStore(pa, cboBlock)
	clear(h.bytes[pa-h.base:][:cboBlock])
	return h.leaveIf(changed, i)
}

// opcodeCboZero is cbo.zero without its register.
const opcodeCboZero = 0x0040200f
