package scsi

import "encoding/binary"

// Peripheral qualifier and device type bytes of INQUIRY data. SPC-4, 6.6.2.
const (
	PeripheralDisk   = 0x00
	PeripheralAbsent = 0x7f // qualifier 011b, type 1Fh: no logical unit can be here
)

// VPD page codes.
const (
	VPDSupported        = 0x00
	VPDSerial           = 0x80
	VPDIdentification   = 0x83
	VPDExtended         = 0x86
	VPDBlockLimits      = 0xb0
	VPDCharacteristics  = 0xb1
	VPDLogicalProvision = 0xb2
)

// Inquiry is what the standard INQUIRY data of a disk tells. SPC-4, 6.6.2.
type Inquiry struct {
	Peripheral uint8
	Vendor     string // at most 8 ASCII characters
	Product    string // at most 16
	Revision   string // at most 4
}

// Append appends the 96 bytes: SPC-4, implicit ALUA (TPGS 01b), third-party
// copy, command queuing, several ports.
func (q Inquiry) Append(dst []byte) []byte {
	var b [96]byte
	b[0] = q.Peripheral
	b[2] = 6    // SPC-4
	b[3] = 0x12 // HISUP, response data format 2
	b[4] = byte(len(b) - 5)
	if q.Peripheral == PeripheralDisk {
		b[5] = 0x18 // TPGS implicit, 3PC
	}
	b[6] = 0x10 // MULTIP
	b[7] = 0x02 // CMDQUE
	putASCII(b[8:16], q.Vendor)
	putASCII(b[16:32], q.Product)
	putASCII(b[32:36], q.Revision)
	// Version descriptors: SAM-5, iSCSI, SPC-4, SBC-3. SPC-4, 6.6.2, table 144.
	for i, v := range []uint16{0x00a0, 0x0960, 0x0460, 0x04c0} {
		binary.BigEndian.PutUint16(b[58+2*i:], v)
	}
	return append(dst, b[:]...)
}

// putASCII fills b with s, left aligned and padded with spaces; what is not
// printable ASCII becomes a space. SPC-4, 4.4.1.
func putASCII(b []byte, s string) {
	for i := range b {
		b[i] = ' '
		if i < len(s) && s[i] >= 0x20 && s[i] <= 0x7e {
			b[i] = s[i]
		}
	}
}

// AppendVPD appends a VPD page: its header, and the body that fill appends.
// SPC-4, 7.8.1.
func AppendVPD(dst []byte, peripheral, page uint8, fill func([]byte) []byte) []byte {
	start := len(dst)
	dst = fill(append(dst, peripheral, page, 0, 0))
	binary.BigEndian.PutUint16(dst[start+2:], uint16(len(dst)-start-4))
	return dst
}

// Designator types and associations of VPD page 83h. SPC-4, 7.8.6.
const (
	DesignatorT10        = 1
	DesignatorNAA        = 3
	DesignatorTargetPort = 4
	DesignatorPortGroup  = 5
	DesignatorName       = 8

	OfUnit   = 0
	OfPort   = 1
	OfTarget = 2

	CodeBinary = 1
	CodeASCII  = 2
	CodeUTF8   = 3
)

// AppendDesignator appends one designation descriptor. Descriptors of ports
// and targets name the protocol, iSCSI. SPC-4, 7.8.6.1.
func AppendDesignator(dst []byte, code, association, kind uint8, value []byte) []byte {
	protocol := uint8(0)
	if association != OfUnit {
		protocol = 0x50
		kind |= 0x80 // PIV
	}
	dst = append(dst, protocol|code, association<<4|kind, 0, byte(len(value)))
	return append(dst, value...)
}

// AppendNameDesignator appends a SCSI name string: UTF-8, ended by at least
// one zero and padded to a multiple of four. SPC-4, 7.8.6.11.
func AppendNameDesignator(dst []byte, association uint8, name string) []byte {
	value := make([]byte, (len(name)+4)&^3)
	copy(value, name)
	return AppendDesignator(dst, CodeUTF8, association, DesignatorName, value)
}

// BlockLimits is VPD page B0h. Counts are logical blocks. SBC-3, 6.6.4.
type BlockLimits struct {
	CompareAndWriteMax uint8
	Granularity        uint16
	TransferMax        uint32
	TransferOptimal    uint32
	PrefetchMax        uint32
	UnmapMax           uint32
	UnmapDescriptors   uint32
	UnmapGranularity   uint32
	WriteSameMax       uint64
}

// Append appends the page's body. WSNZ is clear: a WRITE SAME of 0 blocks goes
// to the end of the medium.
func (l BlockLimits) Append(dst []byte) []byte {
	var b [60]byte
	b[1] = l.CompareAndWriteMax
	be := binary.BigEndian
	be.PutUint16(b[2:], l.Granularity)
	be.PutUint32(b[4:], l.TransferMax)
	be.PutUint32(b[8:], l.TransferOptimal)
	be.PutUint32(b[12:], l.PrefetchMax)
	be.PutUint32(b[16:], l.UnmapMax)
	be.PutUint32(b[20:], l.UnmapDescriptors)
	be.PutUint32(b[24:], l.UnmapGranularity)
	be.PutUint32(b[28:], 1<<31) // UGAVALID, alignment 0
	be.PutUint64(b[32:], l.WriteSameMax)
	return append(dst, b[:]...)
}

// AppendCharacteristics appends the body of VPD page B1h: a medium that does
// not rotate. SBC-3, 6.6.2.
func AppendCharacteristics(dst []byte) []byte {
	var b [60]byte
	b[1] = 1
	return append(dst, b[:]...)
}

// AppendProvisioning appends the body of VPD page B2h: thin, with UNMAP and
// both WRITE SAME commands, zeros read from unmapped blocks. exponent is the
// threshold set size, as a power of two of blocks. SBC-3, 6.6.7.
func AppendProvisioning(dst []byte, exponent uint8) []byte {
	return append(dst, exponent, 0xe4, 0x02, 0)
}

// AppendExtended appends the body of VPD page 86h: HEAD OF QUEUE, ORDERED and
// SIMPLE, and a volatile cache. SPC-4, 7.8.7.
func AppendExtended(dst []byte, volatile bool) []byte {
	var b [60]byte
	b[1] = 0x07
	if volatile {
		b[2] = 0x01
	}
	return append(dst, b[:]...)
}
