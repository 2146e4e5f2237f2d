package lun

import (
	"encoding/binary"

	"steadfast/block"
	"steadfast/scsi"
)

// lbaStatusMax bounds the descriptors of one GET LBA STATUS answer.
const lbaStatusMax = 256

// testUnitReady is TEST UNIT READY: what could be wrong was checked before.
// SPC-4, 6.47.
func (k *task) testUnitReady() *scsi.Check { return nil }

// requestSense is REQUEST SENSE: a pending unit attention, or nothing.
// SPC-4, 6.39.
func (k *task) requestSense() *scsi.Check {
	check, ok := k.itl.take()
	if !ok {
		check = scsi.Fail(scsi.KeyNoSense, 0, 0)
	}
	return k.reply(check.AppendSense(nil, k.CDB[1]&1 != 0), int(k.CDB[4]))
}

// startStop is START STOP UNIT. Stopping makes what was written stable and no
// more: the unit serves other hosts. There is no medium to load or eject.
// SBC-3, 5.21.
func (k *task) startStop() *scsi.Check {
	power, flags := k.CDB[4]>>4, k.CDB[4]
	switch {
	case power == 0 && flags&0x02 != 0:
		return scsi.InvalidCDB(4, 1) // LOEJ
	case power != 0 || flags&0x05 != 0:
		return nil // power conditions, START, or NO_FLUSH
	}
	// A stop is for those who may write: it could disturb who holds the unit.
	if check := k.admit(writes); check != nil {
		return check
	}
	if err := k.itl.unit.vol().Flush(); err != nil {
		return failed(err, -1)
	}
	return nil
}

// readCapacity10 is READ CAPACITY(10). SBC-3, 5.15.
func (k *task) readCapacity10() *scsi.Check {
	return k.reply(scsi.AppendCapacity10(nil, k.itl.unit.blocks.Load()-1, block.SectorSize), 8)
}

// readCapacity16 is READ CAPACITY(16). SBC-3, 5.16.
func (k *task) readCapacity16() *scsi.Check {
	data := scsi.AppendCapacity16(nil, k.itl.unit.blocks.Load()-1, block.SectorSize, perPhysicalLog)
	return k.reply(data, allocation32(k.CDB[10:]))
}

// allocation32 reads a four-byte allocation length.
func allocation32(b []byte) int { return int(min(binary.BigEndian.Uint32(b), 1<<30)) }

// getLBAStatus is GET LBA STATUS. SBC-3, 5.6.
//
// Blocks are mapped by the physical block. A request that begins inside of a
// mapped one, with another mapped one behind it, is answered from that next
// one on. SBC-3, 5.6.2.3 wants the very block that was asked for; libiscsi's
// conformance suite (GetLBAStatus.UnmapSingle) expects this rounding. What is
// left out is only ever mapped, and initiators that walk a disk by what they
// are told never ask from inside of a physical block. A deallocated extent is
// told from the block that was asked for.
func (k *task) getLBAStatus() *scsi.Check {
	u := k.itl.unit
	lba := binary.BigEndian.Uint64(k.CDB[2:])
	total := u.blocks.Load()
	if lba >= total {
		return scsi.OutOfRange(lba)
	}
	allocation := allocation32(k.CDB[10:])
	want := max(min((allocation-8)/16, lbaStatusMax), 1)
	var list []scsi.LBAStatus
	for at := lba; at < total && len(list) < want && !k.stop.Load(); {
		mapped, n, err := u.vol().Mapped(bytesOf(at), bytesOf(min(total-at, 1<<31)))
		if err != nil {
			return failed(err, int64(at))
		}
		blocks := uint64(max(n/block.SectorSize, 1))
		state := uint8(scsi.LBADeallocated)
		if mapped {
			state = scsi.LBAMapped
			if skip := (perPhysical - at%perPhysical) % perPhysical; at == lba && skip > 0 && blocks > skip {
				at, blocks = at+skip, blocks-skip
			}
		}
		if last := len(list) - 1; last >= 0 && list[last].State == state && uint64(list[last].Blocks)+blocks < 1<<32 {
			list[last].Blocks += uint32(blocks)
		} else {
			list = append(list, scsi.LBAStatus{LBA: at, Blocks: uint32(blocks), State: state})
		}
		at += blocks
	}
	return k.reply(scsi.AppendLBAStatus(nil, list), allocation)
}

// readDefects is READ DEFECT DATA(10) and (12): there are none to tell.
// SBC-3, 5.17, 5.18.
func (k *task) readDefects() *scsi.Check {
	if scsi.Opcode(k.CDB[0]) == scsi.OpReadDefectData10 {
		data := []byte{0, k.CDB[2] & 0x1f, 0, 0}
		return k.reply(data, int(binary.BigEndian.Uint16(k.CDB[7:])))
	}
	data := []byte{0, k.CDB[1] & 0x1f, 0, 0, 0, 0, 0, 0}
	return k.reply(data, allocation32(k.CDB[6:]))
}

// reportPortGroups is REPORT TARGET PORT GROUPS. SPC-4, 6.37.
func (k *task) reportPortGroups() *scsi.Check {
	format := k.CDB[1] >> 5
	if format > 1 {
		return scsi.InvalidCDB(1, 7)
	}
	data := scsi.AppendPortGroups(nil, k.port.srv.groupsOf(k.itl), format == 1)
	return k.reply(data, allocation32(k.CDB[6:]))
}

// reportTaskManagement is REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
// SPC-4, 6.36.
func (k *task) reportTaskManagement() *scsi.Check {
	return k.reply(scsi.AppendTaskManagement(nil, k.CDB[2]&0x80 != 0), allocation32(k.CDB[6:]))
}

// reportOpcodes is REPORT SUPPORTED OPERATION CODES. SPC-4, 6.35.
func (k *task) reportOpcodes() *scsi.Check {
	rctd := k.CDB[2]&0x80 != 0
	op, sa := k.CDB[3], binary.BigEndian.Uint16(k.CDB[4:])
	allocation := allocation32(k.CDB[6:])
	e := k.port.srv.commands[op]
	switch option := k.CDB[2] & 0x07; option {
	case 0:
		return k.reply(scsi.AppendSupportedAll(nil, k.port.srv.supported(), rctd), allocation)
	case 1, 2, 3:
		// One says that the code has no service actions, two that it has, and
		// three leaves it open.
		if e != nil && (option == 1 && e.actions != nil || option == 2 && e.actions == nil) {
			return scsi.InvalidCDB(2, 2)
		}
	default:
		return scsi.InvalidCDB(2, 2)
	}
	return k.reply(scsi.AppendSupportedOne(nil, e.supports(sa), rctd), allocation)
}

// supports returns the command of a service action (ignored where there are
// none, but 0 is expected), or nil.
func (e *entry) supports(sa uint16) *scsi.Supported {
	switch {
	case e == nil:
		return nil
	case e.actions == nil:
		if sa != 0 {
			return nil
		}
		return &e.Supported
	}
	for i := range e.actions {
		if e.actions[i].Action == sa {
			return &e.actions[i].Supported
		}
	}
	return nil
}

// supported lists all commands by operation code.
func (s *Server) supported() []scsi.Supported {
	var list []scsi.Supported
	for _, e := range s.commands {
		switch {
		case e == nil:
		case e.actions == nil:
			list = append(list, e.Supported)
		default:
			for i := range e.actions {
				list = append(list, e.actions[i].Supported)
			}
		}
	}
	return list
}
