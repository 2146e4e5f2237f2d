package scsi

import "encoding/binary"

// What an initiator sends and reads: the other direction of the codecs beside
// this file. CDBs are built in place, so that the data path allocates nothing.

// PutTransfer builds a 16-byte block command: READ, WRITE, SYNCHRONIZE CACHE,
// WRITE SAME or, with at most 255 blocks, COMPARE AND WRITE. SBC-3, 5.
func PutTransfer(cdb []byte, op Opcode, lba uint64, blocks uint32, fua bool) {
	clear(cdb[:16])
	cdb[0] = byte(op)
	if fua {
		cdb[1] = 0x08
	}
	binary.BigEndian.PutUint64(cdb[2:], lba)
	if op == OpCompareAndWrite {
		cdb[13] = byte(blocks)
		return
	}
	binary.BigEndian.PutUint32(cdb[10:], blocks)
}

// PutWriteSame is PutTransfer for WRITE SAME(16): unmap lets the target free
// the blocks if they read as the data would have them. SBC-3, 5.42.
func PutWriteSame(cdb []byte, lba uint64, blocks uint32, unmap bool) {
	PutTransfer(cdb, OpWriteSame16, lba, blocks, unmap) // UNMAP is where FUA is elsewhere
}

// PutInquiry builds INQUIRY; page below zero asks for the standard data.
func PutInquiry(cdb []byte, page, allocation int) {
	clear(cdb[:16])
	cdb[0] = byte(OpInquiry)
	if page >= 0 {
		cdb[1], cdb[2] = 1, byte(page)
	}
	binary.BigEndian.PutUint16(cdb[3:], uint16(allocation))
}

// PutCapacity16 builds READ CAPACITY(16).
func PutCapacity16(cdb []byte, allocation int) {
	clear(cdb[:16])
	cdb[0], cdb[1] = byte(OpServiceActionIn16), ActionReadCapacity16
	binary.BigEndian.PutUint32(cdb[10:], uint32(allocation))
}

// PutPortGroups builds REPORT TARGET PORT GROUPS.
func PutPortGroups(cdb []byte, allocation int) {
	clear(cdb[:16])
	cdb[0], cdb[1] = byte(OpMaintenanceIn), ActionReportTargetPortGroups
	binary.BigEndian.PutUint32(cdb[6:], uint32(allocation))
}

// PutUnmap builds UNMAP and appends its parameter list of one extent to dst.
// SBC-3, 5.28.
func PutUnmap(cdb, dst []byte, e Extent) []byte {
	clear(cdb[:16])
	cdb[0], cdb[8] = byte(OpUnmap), 24
	dst = append(dst, 0, 22, 0, 16, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, e.LBA)
	dst = binary.BigEndian.AppendUint32(dst, e.Blocks)
	return append(dst, 0, 0, 0, 0)
}

// PutPersistIn builds PERSISTENT RESERVE IN.
func PutPersistIn(cdb []byte, action uint8, allocation int) {
	clear(cdb[:16])
	cdb[0], cdb[1] = byte(OpPersistentIn), action
	binary.BigEndian.PutUint16(cdb[7:], uint16(allocation))
}

// PutPersistOut builds PERSISTENT RESERVE OUT of a basic parameter list, which
// it appends to dst. SPC-4, 6.16.3.
func PutPersistOut(cdb, dst []byte, p PersistOut) []byte {
	clear(cdb[:16])
	cdb[0], cdb[1], cdb[2], cdb[8] = byte(OpPersistentOut), p.Action, p.Scope<<4|p.Type, 24
	dst = binary.BigEndian.AppendUint64(dst, p.Key)
	dst = binary.BigEndian.AppendUint64(dst, p.ActionKey)
	flags := byte(0)
	if p.AllPorts {
		flags |= 0x04
	}
	if p.Persist {
		flags |= 0x01
	}
	return append(dst, 0, 0, 0, 0, flags, 0, 0, 0)
}

// DecodeCapacity16 reads READ CAPACITY(16) data. zeroed is LBPRZ: unmapped
// blocks read as zeros. It returns false when b is too short.
func DecodeCapacity16(b []byte) (last uint64, blockSize uint32, zeroed, ok bool) {
	if len(b) < 12 {
		return 0, 0, false, false
	}
	zeroed = len(b) >= 15 && b[14]&0x40 != 0
	return binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:]), zeroed, true
}

// DecodePortGroups reads REPORT TARGET PORT GROUPS data without the extended
// header. It returns false when a descriptor runs past the end. SPC-4, 6.37.
func DecodePortGroups(b []byte) (groups []PortGroup, ok bool) {
	if len(b) < 4 {
		return nil, false
	}
	rest := b[4:min(len(b), 4+int(min(binary.BigEndian.Uint32(b), 1<<16)))]
	for len(rest) > 0 {
		if len(rest) < 8 || len(rest) < 8+4*int(rest[7]) {
			return groups, false
		}
		g := PortGroup{
			ID: binary.BigEndian.Uint16(rest[2:]), State: AccessState(rest[0] & 0xf), Preferred: rest[0]&0x80 != 0,
		}
		n := int(rest[7])
		for i := range n {
			g.Ports = append(g.Ports, binary.BigEndian.Uint16(rest[8+4*i+2:]))
		}
		groups = append(groups, g)
		rest = rest[8+4*n:]
	}
	return groups, true
}

// vpdBody returns the body of a VPD page, cut to what is there.
func vpdBody(b []byte, page uint8) ([]byte, bool) {
	if len(b) < 4 || b[1] != page {
		return nil, false
	}
	return b[4:min(len(b), 4+int(binary.BigEndian.Uint16(b[2:])))], true
}

// DecodeBlockLimits reads VPD page B0h with its header. Short pages, as old
// targets have them, leave the rest zero.
func DecodeBlockLimits(b []byte) (l BlockLimits, ok bool) {
	body, ok := vpdBody(b, VPDBlockLimits)
	if !ok {
		return l, false
	}
	var f [60]byte
	copy(f[:], body)
	be := binary.BigEndian
	return BlockLimits{
		CompareAndWriteMax: f[1], Granularity: be.Uint16(f[2:]), TransferMax: be.Uint32(f[4:]),
		TransferOptimal: be.Uint32(f[8:]), PrefetchMax: be.Uint32(f[12:]), UnmapMax: be.Uint32(f[16:]),
		UnmapDescriptors: be.Uint32(f[20:]), UnmapGranularity: be.Uint32(f[24:]), WriteSameMax: be.Uint64(f[32:]),
	}, true
}

// Provisioning is what VPD page B2h tells of unmapping. SBC-3, 6.6.7.
type Provisioning struct {
	Unmap     bool // LBPU: UNMAP
	WriteSame bool // LBPWS: WRITE SAME(16) with UNMAP
	Zeroed    bool // LBPRZ
}

// DecodeProvisioning reads VPD page B2h with its header.
func DecodeProvisioning(b []byte) (p Provisioning, ok bool) {
	body, ok := vpdBody(b, VPDLogicalProvision)
	if !ok || len(body) < 2 {
		return p, false
	}
	return Provisioning{body[1]&0x80 != 0, body[1]&0x40 != 0, body[1]&0x04 != 0}, true
}

// Designator is one descriptor of VPD page 83h; Value points into the page.
type Designator struct {
	Code, Association, Kind uint8
	Value                   []byte
}

// DecodeDesignators reads VPD page 83h with its header, as far as it is whole.
func DecodeDesignators(b []byte) (list []Designator, ok bool) {
	body, ok := vpdBody(b, VPDIdentification)
	for len(body) >= 4 && len(body) >= 4+int(body[3]) {
		n := 4 + int(body[3])
		list = append(list, Designator{body[0] & 0xf, body[1] >> 4 & 3, body[1] & 0xf, body[4:n]})
		body = body[n:]
	}
	return list, ok
}

// DecodeKeys reads READ KEYS data. more is set when there are keys beyond b.
func DecodeKeys(b []byte) (generation uint32, keys []uint64, more, ok bool) {
	if len(b) < 8 {
		return 0, nil, false, false
	}
	n := int(min(binary.BigEndian.Uint32(b[4:]), 1<<20))
	rest := b[8:]
	more = n > len(rest)
	rest = rest[:min(n, len(rest))]
	for ; len(rest) >= 8; rest = rest[8:] {
		keys = append(keys, binary.BigEndian.Uint64(rest))
	}
	return binary.BigEndian.Uint32(b), keys, more, true
}

// DecodeReservation reads READ RESERVATION data; kind 0 means that there is
// none.
func DecodeReservation(b []byte) (generation uint32, kind uint8, key uint64, ok bool) {
	if len(b) < 8 {
		return 0, 0, 0, false
	}
	generation = binary.BigEndian.Uint32(b)
	if binary.BigEndian.Uint32(b[4:]) == 0 {
		return generation, 0, 0, true
	}
	if len(b) < 24 {
		return 0, 0, 0, false
	}
	return generation, b[21] & 0xf, binary.BigEndian.Uint64(b[8:]), true
}
