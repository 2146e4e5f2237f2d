package riscv

import "steadfast/compute/device"

// saveVersion is the first byte of a saved hart.
const saveVersion = 1

// fields are the registers of csrs in the order of their saved form.
func (c *csrs) fields() []*uint64 {
	return []*uint64{
		&c.mstatus, &c.mie, &c.soft,
		&c.stvec, &c.sepc, &c.scause, &c.stval, &c.sscratch,
		&c.scounteren, &c.senvcfg, &c.satp, &c.stimecmp,
		&c.fflags, &c.frm,
		&c.medeleg, &c.mideleg,
		&c.mtvec, &c.mepc, &c.mcause, &c.mtval, &c.mscratch,
		&c.mcounteren, &c.menvcfg,
		&c.cycleOffset, &c.instretOffset,
	}
}

// Save appends the hart's state, RAM not included. Two harts that go on alike save
// alike, whatever they have translated and decoded. It is for between two runs.
func (h *Hart) Save(e *device.Encoder) {
	e.U8(saveVersion)
	e.U64(h.count)
	e.U64(h.pc)
	e.U8(uint8(h.mode))
	for _, v := range h.x[1:32] {
		e.U64(v)
	}
	for _, v := range h.f {
		e.U64(v)
	}
	for _, p := range h.fields() {
		e.U64(*p)
	}
	e.U8(h.reservedSize)
	e.U64(h.reserved)
	e.Bool(h.waiting)
	e.Bool(h.external)
	h.saveM(e)
}

// Restore takes a saved state; RAM is to hold what it held then. It errs with
// fault.Corrupt on what no hart has saved, and the hart is not to be used then.
func (h *Hart) Restore(d *device.Decoder) error {
	if d.U8() != saveVersion {
		d.Fail("a hart of another version")
	}
	h.count = d.U64()
	h.pc = d.U64()
	h.mode = mode(d.U8())
	h.x = [256]uint64{}
	for i := 1; i < 32; i++ {
		h.x[i] = d.U64()
	}
	for i := range h.f {
		h.f[i] = d.U64()
	}
	for _, p := range h.fields() {
		*p = d.U64()
	}
	h.reservedSize = d.U8()
	h.reserved = d.U64()
	h.waiting = d.Bool()
	h.external = d.Bool()
	h.restoreM(d)
	h.asked = false
	h.judge(d)
	if err := d.Err(); err != nil {
		h.Reset(h.base, 0, 0)
		return err
	}
	if h.reservedSize != 0 {
		h.reservedPage = h.pageAt(h.reserved)
	} else {
		h.unreserve()
	}
	h.refresh()
	return nil
}

// judge refuses what the registers cannot hold.
func (h *Hart) judge(d *device.Decoder) {
	size := uint64(h.reservedSize)
	switch {
	case d.Err() != nil:
	case h.mode != modeU && h.mode != modeS && (h.mode != modeM || !h.bare):
		d.Fail("a privilege mode that is not there")
	case h.pc&1 != 0 || h.sepc&1 != 0 || h.mepc&1 != 0 || h.stvec&2 != 0 || h.mtvec&2 != 0:
		d.Fail("an address of code that is odd")
	case h.mstatus&^mstatusMask != 0 || !h.bare && h.mstatus&^sstatusMask != 0 || h.mstatus&statusMPP == 2<<statusMPPShift:
		d.Fail("mstatus")
	case h.satp>>60 != 0 && h.satp>>60 != 8:
		d.Fail("satp")
	case h.fflags > 31 || h.frm > 7 || h.soft&^irqS != 0 || h.mie&^(irqS|irqM) != 0:
		d.Fail("flags or interrupts")
	case size != 0 && (size != 4 && size != 8 || h.reserved&(size-1) != 0 || !h.inRAM(h.reserved)):
		d.Fail("a reservation")
	}
}
