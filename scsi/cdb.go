package scsi

import "encoding/binary"

// Transfer is what the block commands have in common, whatever the size of
// their CDB. Fields that a command does not have are zero.
type Transfer struct {
	LBA    uint64 // first logical block
	Blocks uint32 // how many; READ(6) and WRITE(6) count 0 as 256

	Protect   uint8 // RDPROTECT, WRPROTECT, VRPROTECT or ORPROTECT
	DPO, FUA  bool
	ByteCheck uint8 // BYTCHK of VERIFY and WRITE AND VERIFY
	Anchor    bool  // WRITE SAME
	Unmap     bool  // WRITE SAME
	NoData    bool  // NDOB of WRITE SAME(16)
	Immediate bool  // PRE-FETCH, SYNCHRONIZE CACHE
}

// DecodeTransfer decodes the CDB of a command that addresses a run of logical
// blocks. It returns false when cdb is shorter than its operation code
// demands, or of a group that has no such commands. SBC-3, 5.
func DecodeTransfer(cdb []byte) (t Transfer, ok bool) {
	if len(cdb) < 6 || len(cdb) < CDBLength(Opcode(cdb[0])) {
		return t, false
	}
	switch Opcode(cdb[0]) >> 5 {
	case 0:
		t.LBA = uint64(cdb[1]&0x1f)<<16 | uint64(cdb[2])<<8 | uint64(cdb[3])
		t.Blocks = uint32(cdb[4])
		if t.Blocks == 0 {
			t.Blocks = 256
		}
		return t, true
	case 1, 2:
		t.LBA = uint64(binary.BigEndian.Uint32(cdb[2:]))
		t.Blocks = uint32(binary.BigEndian.Uint16(cdb[7:]))
	case 4:
		t.LBA = binary.BigEndian.Uint64(cdb[2:])
		t.Blocks = binary.BigEndian.Uint32(cdb[10:])
	case 5:
		t.LBA = uint64(binary.BigEndian.Uint32(cdb[2:]))
		t.Blocks = binary.BigEndian.Uint32(cdb[6:])
	default:
		return t, false
	}
	t.options(cdb)
	return t, true
}

// options decodes byte 1, whose bits differ by command.
func (t *Transfer) options(cdb []byte) {
	b := cdb[1]
	switch Opcode(cdb[0]) {
	case OpPrefetch10, OpPrefetch16, OpSynchronizeCache10, OpSynchronizeCache16:
		t.Immediate = b&0x02 != 0
	case OpWriteSame10, OpWriteSame16:
		t.Protect = b >> 5
		t.Anchor = b&0x10 != 0
		t.Unmap = b&0x08 != 0
		t.NoData = b&0x01 != 0 && Opcode(cdb[0]) == OpWriteSame16
	case OpVerify10, OpVerify12, OpVerify16, OpWriteVerify10, OpWriteVerify12, OpWriteVerify16:
		t.Protect = b >> 5
		t.DPO = b&0x10 != 0
		t.ByteCheck = b >> 1 & 3
	case OpCompareAndWrite:
		// The count is one byte; the three before it are reserved. SBC-3, 5.2.
		t.Blocks = uint32(cdb[13])
		fallthrough
	default:
		t.Protect = b >> 5
		t.DPO = b&0x10 != 0
		t.FUA = b&0x08 != 0
	}
}

// InquiryCDB is a decoded INQUIRY. SPC-4, 6.6.
type InquiryCDB struct {
	VPD        bool
	Page       uint8
	Allocation int // bytes
}

// DecodeInquiry decodes an INQUIRY CDB of at least 6 bytes.
func DecodeInquiry(cdb []byte) InquiryCDB {
	return InquiryCDB{cdb[1]&1 != 0, cdb[2], int(binary.BigEndian.Uint16(cdb[3:]))}
}

// ModeCDB is a decoded MODE SENSE or MODE SELECT of either size.
// SPC-4, 6.11 to 6.14.
type ModeCDB struct {
	Ten           bool // the 10-byte command: a longer header
	NoDescriptors bool // DBD
	LongLBA       bool // LLBAA
	Control       uint8
	Page, Subpage uint8
	PageFormat    bool // PF of MODE SELECT
	Save          bool // SP of MODE SELECT
	Length        int  // allocation or parameter list length, bytes
}

// Values of ModeCDB.Control. SPC-4, 6.11.1.
const (
	ModeCurrent    = 0
	ModeChangeable = 1
	ModeDefault    = 2
	ModeSaved      = 3
)

// DecodeMode decodes the CDB of the four mode commands; it must have the
// length that its operation code demands.
func DecodeMode(cdb []byte) ModeCDB {
	m := ModeCDB{
		NoDescriptors: cdb[1]&0x08 != 0,
		Control:       cdb[2] >> 6,
		Page:          cdb[2] & 0x3f,
		Subpage:       cdb[3],
		PageFormat:    cdb[1]&0x10 != 0,
		Save:          cdb[1]&0x01 != 0,
		Length:        int(cdb[4]),
	}
	if op := Opcode(cdb[0]); op == OpModeSense10 || op == OpModeSelect10 {
		m.Ten = true
		m.LongLBA = op == OpModeSense10 && cdb[1]&0x10 != 0
		m.Length = int(binary.BigEndian.Uint16(cdb[7:]))
	}
	return m
}

// Number returns the logical unit number of l when it is in one of the forms
// we report: peripheral device addressing on bus 0, or flat space addressing.
// SAM-5, 4.7.7.
func (l LUN) Number() (n int, ok bool) {
	if l&0xffff_ffff_ffff != 0 {
		return 0, false
	}
	hi, lo := int(l>>56), int(l>>48&0xff)
	switch {
	case hi == 0:
		return lo, true
	case hi>>6 == 1:
		return hi&0x3f<<8 | lo, true
	}
	return 0, false
}

// LUNMax is the greatest logical unit number.
const LUNMax = 0x3fff

// MakeLUN returns n's eight-byte form: peripheral device addressing as far as
// it reaches, and flat space addressing beyond.
func MakeLUN(n int) LUN {
	if n < 256 {
		return LUN(n) << 48
	}
	return LUN(0x4000|n) << 48
}
