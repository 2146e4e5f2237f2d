package lun

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"steadfast/scsi"
)

// Identification. Vendor and product are what the T10 designator begins with;
// initiators compare identifiers by the NAA designator, which is random from
// its first byte.
const (
	vendor   = "STEADFST"
	product  = "VOLUME"
	revision = "1.0"
)

// naa makes the volume's NAA designator: type 6, 16 bytes, in which IEEE's
// layout asks for a vendor's number in 24 bits after the type. We have none
// registered; and initiators that shorten identifiers have taken two volumes
// that began alike for one. So all that follows the type's four bits is the
// volume's own random identifier. SPC-4, 7.8.6.6.5.
func naa(id [16]byte) [16]byte {
	id[0] = 0x60 | id[0]&0x0f
	return id
}

// inquiry is INQUIRY. SPC-4, 6.6.
func (k *task) inquiry() *scsi.Check {
	q := scsi.DecodeInquiry(k.CDB)
	if !q.VPD {
		if q.Page != 0 {
			return scsi.InvalidCDB(2, 7)
		}
		data := scsi.Inquiry{Peripheral: scsi.PeripheralDisk, Vendor: vendor, Product: product, Revision: revision}
		return k.reply(data.Append(nil), q.Allocation)
	}
	for _, p := range k.vpdPages() {
		if p.code == q.Page {
			return k.reply(scsi.AppendVPD(nil, scsi.PeripheralDisk, q.Page, p.fill), q.Allocation)
		}
	}
	return scsi.InvalidCDB(2, 7)
}

// vpdPage is a vital product data page and what fills it.
type vpdPage struct {
	code uint8
	fill func([]byte) []byte
}

// vpdPages lists the VPD pages in ascending order.
func (k *task) vpdPages() []vpdPage {
	u := k.itl.unit
	pages := []vpdPage{
		{scsi.VPDSupported, nil},
		{scsi.VPDSerial, func(b []byte) []byte { return append(b, hex.EncodeToString(u.id[:])...) }},
		{scsi.VPDIdentification, k.designators},
		{scsi.VPDExtended, func(b []byte) []byte { return scsi.AppendExtended(b, true) }},
		{scsi.VPDBlockLimits, limits().Append},
		{scsi.VPDCharacteristics, scsi.AppendCharacteristics},
		{scsi.VPDLogicalProvision, func(b []byte) []byte { return scsi.AppendProvisioning(b, thresholdExponent) }},
	}
	pages[0].fill = func(b []byte) []byte {
		for _, p := range pages {
			b = append(b, p.code)
		}
		return b
	}
	return pages
}

// limits is what VPD page B0h tells.
func limits() scsi.BlockLimits {
	return scsi.BlockLimits{
		CompareAndWriteMax: compareMax,
		Granularity:        perPhysical,
		TransferMax:        transferMax,
		TransferOptimal:    transferOptimal,
		PrefetchMax:        0,
		UnmapMax:           unmapMax,
		UnmapDescriptors:   unmapListMax,
		UnmapGranularity:   perPhysical,
		WriteSameMax:       writeSameMax,
	}
}

// designators fills VPD page 83h: who the unit is, and through which target
// port and group it was asked. Those of the unit are the same on every path;
// multipathing joins paths by them. SPC-4, 7.8.6.
func (k *task) designators(b []byte) []byte {
	i := k.itl
	id := naa(i.unit.id)
	tag := i.nexus.Port.Tag
	two := func(v uint16) []byte { return binary.BigEndian.AppendUint16([]byte{0, 0}, v) }
	b = scsi.AppendDesignator(b, scsi.CodeBinary, scsi.OfUnit, scsi.DesignatorNAA, id[:])
	b = scsi.AppendDesignator(b, scsi.CodeASCII, scsi.OfUnit, scsi.DesignatorT10, fmt.Appendf(nil, "%-8s%x", vendor, i.unit.id))
	b = scsi.AppendDesignator(b, scsi.CodeBinary, scsi.OfPort, scsi.DesignatorTargetPort, two(tag))
	b = scsi.AppendDesignator(b, scsi.CodeBinary, scsi.OfPort, scsi.DesignatorPortGroup, two(i.port.srv.groupOf(i)))
	b = scsi.AppendNameDesignator(b, scsi.OfPort, fmt.Sprintf("%s,t,0x%04x", i.nexus.Port.Target, tag))
	return scsi.AppendNameDesignator(b, scsi.OfTarget, i.nexus.Port.Target)
}

// absent answers for a LUN that has no unit. SPC-4, 6.6.1 and 6.33; SAM-5, 5.11.
func (k *task) absent() *scsi.Check {
	missing := scsi.Fail(scsi.KeyIllegalRequest, 0x25, 0) // LOGICAL UNIT NOT SUPPORTED
	switch scsi.Opcode(k.CDB[0]) {
	case scsi.OpInquiry:
		q := scsi.DecodeInquiry(k.CDB)
		if q.VPD || q.Page != 0 {
			return scsi.InvalidCDB(1, 0)
		}
		data := scsi.Inquiry{Peripheral: scsi.PeripheralAbsent, Vendor: vendor, Product: product, Revision: revision}
		return k.reply(data.Append(nil), q.Allocation)
	case scsi.OpReportLUNs:
		return k.reportLUNs()
	case scsi.OpRequestSense:
		return k.reply(missing.AppendSense(nil, k.CDB[1]&1 != 0), int(k.CDB[4]))
	default:
		return missing
	}
}

// reportLUNs is REPORT LUNS. It also takes back what unit attentions there are
// of the list having changed. SPC-4, 6.33.
func (k *task) reportLUNs() *scsi.Check {
	if len(k.CDB) < 12 {
		return scsi.InvalidCDB(len(k.CDB), -1)
	}
	allocation := binary.BigEndian.Uint32(k.CDB[6:])
	if allocation < 16 {
		return scsi.InvalidCDB(6, -1)
	}
	var luns []scsi.LUN
	switch k.CDB[2] {
	case 0, 2:
		for _, i := range *k.port.view.Load() {
			if i != nil {
				luns = append(luns, i.lun)
				i.drop(lunsChanged)
			}
		}
	case 1: // well-known logical units, of which there are none
	default:
		return scsi.InvalidCDB(2, 7)
	}
	return k.reply(scsi.AppendLUNs(nil, luns), int(min(allocation, 1<<30)))
}
