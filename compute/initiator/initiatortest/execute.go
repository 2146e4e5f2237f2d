package initiatortest

import (
	"bytes"

	"steadfast/block"
	"steadfast/scsi"
)

// execute performs a command. Under Target.mu.
func (c *conn) execute(k *task) (scsi.Status, *scsi.Check, []byte) {
	t, cdb := c.t, k.h.CDB()
	fail := func(check *scsi.Check) (scsi.Status, *scsi.Check, []byte) { return scsi.CheckCondition, check, nil }
	op := scsi.Opcode(cdb[0])
	switch op {
	case scsi.OpInquiry:
		if b := c.inquiry(scsi.DecodeInquiry(cdb)); b != nil {
			return scsi.Good, nil, b
		}
		return fail(scsi.InvalidCDB(2, -1))
	case scsi.OpMaintenanceIn:
		var groups []scsi.PortGroup
		for _, g := range t.o.Groups {
			groups = append(groups, scsi.PortGroup{ID: g, State: t.states[g], Ports: []uint16{g}})
		}
		return scsi.Good, nil, scsi.AppendPortGroups(nil, groups, false)
	case scsi.OpPersistentIn, scsi.OpPersistentOut:
		return c.reservations(k)
	default:
	}
	if s := t.states[c.group]; s == scsi.Standby || s == scsi.Unavailable || s == scsi.Transitioning {
		ascq := map[scsi.AccessState]uint8{scsi.Standby: 0x0b, scsi.Unavailable: 0x0c, scsi.Transitioning: 0x0a}[s]
		return fail(scsi.Fail(scsi.KeyNotReady, 0x04, ascq))
	}
	_, _, changes := k.writes()
	if changes && t.held == 5 && t.keys[c.group] == 0 {
		return scsi.ReservationConflict, nil, nil
	}
	switch op {
	case scsi.OpServiceActionIn16:
		return scsi.Good, nil, scsi.AppendCapacity16(nil, uint64(len(t.disk)/block.SectorSize-1), block.SectorSize, 3)
	case scsi.OpTestUnitReady, scsi.OpSynchronizeCache16:
		return scsi.Good, nil, nil
	case scsi.OpRead16:
		r, _ := scsi.DecodeTransfer(cdb)
		off, n := int(r.LBA)*block.SectorSize, int(r.Blocks)*block.SectorSize
		if off+n > len(t.disk) {
			return fail(scsi.OutOfRange(r.LBA))
		}
		return scsi.Good, nil, bytes.Clone(t.disk[off : off+n])
	default:
	}
	off, n, changes := k.writes()
	if !changes {
		return fail(scsi.Fail(scsi.KeyIllegalRequest, 0x20, 0))
	}
	if off+n > len(t.disk) {
		return fail(scsi.OutOfRange(uint64(off / block.SectorSize)))
	}
	if op == scsi.OpCompareAndWrite {
		if id := string(cdb[:14]) + string(k.out); t.onceSeen[id] {
			t.accuse("a COMPARE AND WRITE came twice")
		} else {
			t.onceSeen[id] = true
		}
		for i := range n {
			if t.disk[off+i] != k.out[i] {
				check := scsi.Fail(scsi.KeyMiscompare, 0x1d, 0)
				check.Information, check.HasInformation = uint64(i), true
				return fail(check)
			}
		}
	}
	c.apply(k)
	return scsi.Good, nil, nil
}

// apply changes the disk as k says. Under Target.mu.
func (c *conn) apply(k *task) {
	off, n, _ := k.writes()
	if off+n > len(c.t.disk) {
		return
	}
	place := c.t.disk[off : off+n]
	switch scsi.Opcode(k.h.CDB()[0]) {
	case scsi.OpWrite16:
		copy(place, k.out)
	case scsi.OpCompareAndWrite:
		if bytes.Equal(place, k.out[:n]) {
			copy(place, k.out[n:])
		}
	default:
		clear(place)
	}
}

// inquiry answers the standard data and the pages there are.
func (c *conn) inquiry(q scsi.InquiryCDB) []byte {
	if !q.VPD {
		return scsi.Inquiry{Vendor: "TEST", Product: "DOUBLE", Revision: "1"}.Append(nil)
	}
	var fill func([]byte) []byte
	switch q.Page {
	case scsi.VPDIdentification:
		fill = func(b []byte) []byte {
			b = scsi.AppendDesignator(b, scsi.CodeBinary, scsi.OfUnit, scsi.DesignatorNAA, []byte{0x60, 1, 2, 3, 4, 5, 6, 7})
			return scsi.AppendDesignator(b, scsi.CodeBinary, scsi.OfPort, scsi.DesignatorPortGroup, []byte{0, 0, byte(c.group >> 8), byte(c.group)})
		}
	case scsi.VPDBlockLimits:
		fill = scsi.BlockLimits{
			CompareAndWriteMax: 16, Granularity: 8, TransferMax: 256, TransferOptimal: 64,
			UnmapMax: 64, UnmapDescriptors: 1, UnmapGranularity: 8, WriteSameMax: 64,
		}.Append
	case scsi.VPDLogicalProvision:
		fill = func(b []byte) []byte { return scsi.AppendProvisioning(b, 0) }
	default:
		return nil
	}
	return scsi.AppendVPD(nil, 0, q.Page, fill)
}

// reservations is PERSISTENT RESERVE IN and OUT, by portal group: all that the
// double's one initiator has. Under Target.mu.
func (c *conn) reservations(k *task) (scsi.Status, *scsi.Check, []byte) {
	t, cdb := c.t, k.h.CDB()
	if scsi.Opcode(cdb[0]) == scsi.OpPersistentIn {
		if cdb[1]&0x1f == scsi.ActionPersistReadKeys {
			var keys []uint64
			for _, key := range t.keys {
				keys = append(keys, key)
			}
			return scsi.Good, nil, scsi.AppendKeys(nil, t.gen, keys)
		}
		return scsi.Good, nil, scsi.AppendReservation(nil, t.gen, t.held, t.keys[t.holder])
	}
	p, check := scsi.DecodePersistOut(cdb, k.out)
	if check != nil {
		return scsi.CheckCondition, check, nil
	}
	conflict := func() (scsi.Status, *scsi.Check, []byte) { return scsi.ReservationConflict, nil, nil }
	if p.Action != scsi.ActionPersistRegisterAny && t.keys[c.group] != p.Key || p.Action != scsi.ActionPersistRegisterAny && p.Key == 0 {
		return conflict()
	}
	t.gen++
	switch p.Action {
	case scsi.ActionPersistRegisterAny:
		if p.AllPorts && t.noAll {
			return scsi.CheckCondition, scsi.InvalidData(20, 2), nil
		}
		for _, g := range t.o.Groups {
			if g == c.group || p.AllPorts {
				t.setKey(g, p.ActionKey)
			}
		}
	case scsi.ActionPersistReserve:
		if t.held != 0 && t.holder != c.group {
			return conflict()
		}
		t.held, t.holder = p.Type, c.group
	case scsi.ActionPersistRelease:
		if t.held != 0 && t.holder == c.group {
			t.held = 0
		}
	case scsi.ActionPersistClear:
		clear(t.keys)
		t.held = 0
	case scsi.ActionPersistPreemptAbort:
		return c.preempt(p)
	}
	return scsi.Good, nil, nil
}

func (t *Target) setKey(g uint16, key uint64) {
	if key == 0 {
		delete(t.keys, g)
		if t.holder == g {
			t.held = 0
		}
		return
	}
	t.keys[g] = key
}

// preempt is PREEMPT AND ABORT: it spares only the nexus that asks.
func (c *conn) preempt(p scsi.PersistOut) (scsi.Status, *scsi.Check, []byte) {
	t := c.t
	found := false
	for g, key := range t.keys {
		if key != p.ActionKey {
			continue
		}
		found = true
		if g == c.group {
			continue
		}
		delete(t.keys, g)
		for w := range t.open {
			if w.s.group == g {
				delete(t.open, w)
			}
		}
	}
	if !found {
		return scsi.ReservationConflict, nil, nil
	}
	t.held, t.holder = p.Type, c.group
	t.Preempts.Add(1)
	return scsi.Good, nil, nil
}
