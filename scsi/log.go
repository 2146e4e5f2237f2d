package scsi

import "encoding/binary"

// Log pages that a disk of ours has.
const (
	LogSupported    = 0x00
	LogProvisioning = 0x0c
	LogExceptions   = 0x2f
)

// AppendLogPage appends a log page: its header, and the parameters that fill
// appends. SPC-4, 7.3.2.
func AppendLogPage(dst []byte, page, subpage uint8, fill func([]byte) []byte) []byte {
	start := len(dst)
	code := page
	if subpage != 0 {
		code |= 0x40 // SPF
	}
	dst = fill(append(dst, code, subpage, 0, 0))
	binary.BigEndian.PutUint16(dst[start+2:], uint16(len(dst)-start-4))
	return dst
}

// AppendSpaceParameters appends the parameters of the logical block
// provisioning log page: available and used LBA mapping resources, in
// threshold sets; the pool's are shared among its volumes. Parameters below
// first are left out. SBC-3, 6.4.4.
func AppendSpaceParameters(dst []byte, available, used uint32, first uint16) []byte {
	const dedicated, shared = 1, 2
	if first <= 1 {
		dst = append(dst, 0, 1, 0x03, 8)
		dst = binary.BigEndian.AppendUint32(dst, available)
		dst = append(dst, shared, 0, 0, 0)
	}
	if first <= 2 {
		dst = append(dst, 0, 2, 0x03, 8)
		dst = binary.BigEndian.AppendUint32(dst, used)
		dst = append(dst, dedicated, 0, 0, 0)
	}
	return dst
}

// AppendExceptionParameters appends the one parameter of the informational
// exceptions log page: none pending, temperature unknown. SPC-4, 7.3.8.
func AppendExceptionParameters(dst []byte, first uint16) []byte {
	if first > 0 {
		return dst
	}
	return append(dst, 0, 0, 0x03, 4, 0, 0, 0xff, 0)
}

// LogCDB is a decoded LOG SENSE. SPC-4, 6.9.
type LogCDB struct {
	Control       uint8 // 0 threshold, 1 cumulative, 2 and 3 their defaults
	Page, Subpage uint8
	First         uint16 // parameter pointer
	Save          bool
	Allocation    int
}

// DecodeLogSense decodes a LOG SENSE CDB of at least 10 bytes.
func DecodeLogSense(cdb []byte) LogCDB {
	return LogCDB{
		Control:    cdb[2] >> 6,
		Page:       cdb[2] & 0x3f,
		Subpage:    cdb[3],
		First:      binary.BigEndian.Uint16(cdb[5:]),
		Save:       cdb[1]&1 != 0,
		Allocation: int(binary.BigEndian.Uint16(cdb[7:])),
	}
}
