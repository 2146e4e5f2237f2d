package pair

import (
	"encoding/binary"

	"steadfast/scsi"
)

// choose draws a host's next command.
func (h *host) choose() *deed {
	w := h.world
	d := &deed{unit: w.rand.IntN(dataVolumes)}
	if d.unit == fenced && w.cfg.fence && h.fencing(d) {
		return d
	}
	n := 1 + w.rand.IntN(12)
	d.cell = w.rand.IntN(w.cfg.hot - n)
	d.fua = w.chance(0.2)
	switch x := w.rand.IntN(100); {
	case h.reads && x < 90, x < 35:
		d.kind, d.values = doRead, make([]value, n)
	case h.reads, x < 40:
		d.kind = doFlush
	case x < 50:
		h.compare(d)
	case x < 53:
		h.sameOrUnmap(d)
	case x < 54:
		d.kind = doReset
	case x < 58, w.cfg.filling && x < 80:
		h.piece(d)
	default:
		d.kind, d.values = doWrite, w.fresh(n)
		if d.unit == 0 && d.cell == 0 {
			d.cell = 1 // likewise
		}
	}
	d.abort = d.kind == doWrite && w.chance(0.1)
	return d
}

// fresh draws values that nobody wrote before.
func (w *world) fresh(n int) (list []value) {
	for range n {
		w.count.values++
		list = append(list, value(w.count.values))
	}
	return list
}

// compare is COMPARE AND WRITE: of what is most likely there, or of the lock, which
// cell 0 of unit 0 is.
func (h *host) compare(d *deed) {
	w := h.world
	d.kind = doCompare
	if w.chance(0.5) {
		d.unit, d.cell = 0, 0
		// Who finds it taken breaks it, now and then: what a cluster does with a
		// lock of the dead.
		d.expected, d.values = []value{0}, w.fresh(1)
		if w.chance(0.7) {
			d.expected[0] = w.seen[0]
		}
		if w.seen[0] != 0 && w.chance(0.3) {
			d.values[0] = 0
		}
		return
	}
	n := 1 + w.rand.IntN(2)
	d.cell = 1 + w.rand.IntN(w.cfg.hot-n)
	d.values = w.fresh(n)
	for i := range n {
		d.expected = append(d.expected, w.seen[d.unit*w.cells()+d.cell+i])
	}
}

// piece fills, empties or reads one of the large pieces.
func (h *host) piece(d *deed) {
	w := h.world
	if w.cfg.pieces == 0 {
		d.kind, d.values = doRead, make([]value, 1)
		return
	}
	d.cell = w.cfg.hot + w.rand.IntN(w.cfg.pieces)
	switch w.rand.IntN(4) {
	case 0:
		d.kind, d.values = doUnmap, []value{0}
	case 1:
		d.kind, d.values = doRead, make([]value, 1)
	default:
		d.kind, d.values = doSame, w.fresh(1)
	}
}

// sameOrUnmap writes one value, or zeros, over whole blocks or parts of them.
func (h *host) sameOrUnmap(d *deed) {
	w := h.world
	n := perBlock * (1 + w.rand.IntN(w.cfg.hot/perBlock))
	d.cell = w.rand.IntN(w.cfg.hot-n+1) / perBlock * perBlock
	if d.cell == 0 && d.unit == 0 {
		d.cell = perBlock // the lock is nobody's to overwrite
		n = min(n, w.cfg.hot-perBlock)
	}
	d.values = make([]value, n)
	if w.chance(0.5) {
		d.kind = doUnmap
		return
	}
	d.kind = doSame
	v := w.fresh(1)[0]
	for i := range d.values {
		d.values[i] = v
	}
}

// task makes the SCSI command of a deed.
func (w *world) task(d *deed) *scsi.Task {
	t := &scsi.Task{LUN: scsi.MakeLUN(d.unit + 1), Attribute: scsi.Simple, ExpectedIn: 64 << 10}
	lba, per := w.lba(d.cell)
	switch d.kind {
	case doRead:
		if d.cell >= w.cfg.hot {
			lba += w.rand.Uint64N(uint64(per))
		}
		t.CDB = transfer(scsi.OpRead16, lba, uint32(len(d.values)), d.fua)
	case doWrite:
		t.CDB, t.DataOut = transfer(scsi.OpWrite16, lba, uint32(len(d.values)), d.fua), sectors(d.values)
	case doCompare:
		t.CDB = transfer(scsi.OpCompareAndWrite, lba, 0, d.fua)
		t.CDB[13] = byte(len(d.values))
		t.DataOut = append(sectors(d.expected), sectors(d.values)...)
	case doFlush:
		t.CDB = transfer(scsi.OpSynchronizeCache16, 0, 0, false)
	case doSame:
		t.CDB, t.DataOut = transfer(scsi.OpWriteSame16, lba, uint32(len(d.values)*per), false), sectors(d.values[:1])
	case doUnmap:
		t.CDB = make([]byte, 10)
		t.CDB[0] = byte(scsi.OpUnmap)
		t.DataOut = unmapList(lba, uint32(len(d.values)*per))
		binary.BigEndian.PutUint16(t.CDB[7:], uint16(len(t.DataOut)))
	case doPR:
		t.CDB, t.DataOut = d.action.encode()
	case doKeys:
		t.CDB = make([]byte, 10)
		t.CDB[0] = byte(scsi.OpPersistentIn)
		binary.BigEndian.PutUint16(t.CDB[7:], 4096)
	default:
	}
	if w.chance(0.03) {
		t.Attribute = []scsi.Attribute{scsi.Ordered, scsi.HeadOfQueue}[w.rand.IntN(2)]
	}
	t.ExpectedOut = len(t.DataOut)
	return t
}

// transfer makes a CDB of 16 bytes.
func transfer(op scsi.Opcode, lba uint64, n uint32, fua bool) []byte {
	c := make([]byte, 16)
	c[0] = byte(op)
	if fua {
		c[1] = 0x08
	}
	binary.BigEndian.PutUint64(c[2:], lba)
	binary.BigEndian.PutUint32(c[10:], n)
	return c
}

func unmapList(lba uint64, n uint32) []byte {
	b := make([]byte, 24)
	binary.BigEndian.PutUint16(b, 22)
	binary.BigEndian.PutUint16(b[2:], 16)
	binary.BigEndian.PutUint64(b[8:], lba)
	binary.BigEndian.PutUint32(b[16:], n)
	return b
}

func sectors(list []value) []byte {
	b := make([]byte, len(list)*sector)
	for i, v := range list {
		fillSector(b[i*sector:], v)
	}
	return b
}
