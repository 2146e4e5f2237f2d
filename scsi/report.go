package scsi

import "encoding/binary"

// AppendCapacity10 appends READ CAPACITY(10) data. last is the last LBA; when
// it does not fit, FFFFFFFFh tells the initiator to use the longer command.
// SBC-3, 5.15.2.
func AppendCapacity10(dst []byte, last uint64, blockSize uint32) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(min(last, 0xffff_ffff)))
	return binary.BigEndian.AppendUint32(dst, blockSize)
}

// AppendCapacity16 appends READ CAPACITY(16) data: no protection, thin
// (LBPME), zeros from unmapped blocks (LBPRZ), 2^exponent logical blocks in a
// physical one. SBC-3, 5.16.2.
func AppendCapacity16(dst []byte, last uint64, blockSize uint32, exponent uint8) []byte {
	var b [32]byte
	binary.BigEndian.PutUint64(b[0:], last)
	binary.BigEndian.PutUint32(b[8:], blockSize)
	b[13] = exponent & 0xf
	b[14] = 0xc0
	return append(dst, b[:]...)
}

// AppendLUNs appends REPORT LUNS data. SPC-4, 6.33.
func AppendLUNs(dst []byte, luns []LUN) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(8*len(luns)))
	dst = append(dst, 0, 0, 0, 0)
	for _, l := range luns {
		dst = binary.BigEndian.AppendUint64(dst, uint64(l))
	}
	return dst
}

// Provisioning states of GET LBA STATUS. SBC-3, 5.6.2.2.
const (
	LBAMapped      = 0
	LBADeallocated = 1
)

// LBAStatus is one descriptor of GET LBA STATUS data.
type LBAStatus struct {
	LBA    uint64
	Blocks uint32
	State  uint8
}

// AppendLBAStatus appends GET LBA STATUS data. SBC-3, 5.6.2.
func AppendLBAStatus(dst []byte, list []LBAStatus) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+16*len(list)))
	dst = append(dst, 0, 0, 0, 0)
	for _, s := range list {
		dst = binary.BigEndian.AppendUint64(dst, s.LBA)
		dst = binary.BigEndian.AppendUint32(dst, s.Blocks)
		dst = append(dst, s.State&0xf, 0, 0, 0)
	}
	return dst
}

// AccessState is an asymmetric access state. SPC-4, 5.15.2.4.
type AccessState uint8

// Asymmetric access states.
const (
	ActiveOptimized    AccessState = 0x0
	ActiveNonOptimized AccessState = 0x1
	Standby            AccessState = 0x2
	Unavailable        AccessState = 0x3
	Transitioning      AccessState = 0xf
)

// PortGroup is a target port group.
type PortGroup struct {
	ID        uint16
	State     AccessState
	Preferred bool
	Ports     []uint16 // relative target port identifiers
}

// AppendPortGroups appends REPORT TARGET PORT GROUPS data, with the extended
// header if asked for. All states but offline and LBA dependent are supported;
// changes are implicit. SPC-4, 6.37.
func AppendPortGroups(dst []byte, groups []PortGroup, extended bool) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	if extended {
		dst = append(dst, 0x10, 0, 0, 0)
	}
	for _, g := range groups {
		state := byte(g.State)
		if g.Preferred {
			state |= 0x80
		}
		dst = append(dst, state, 0x8f, byte(g.ID>>8), byte(g.ID), 0, 0x02, 0, byte(len(g.Ports)))
		for _, p := range g.Ports {
			dst = append(dst, 0, 0, byte(p>>8), byte(p))
		}
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst
}

// Supported describes one command to REPORT SUPPORTED OPERATION CODES.
type Supported struct {
	Opcode    Opcode
	Action    uint16
	HasAction bool
	// Usage is the CDB usage bitmap: the operation code (and the service
	// action in its place), and a one in every bit that is looked at. Its
	// length is the CDB's.
	Usage []byte
	// Nominal and Timeout are the nominal and the recommended command timeout
	// in seconds; 0 says nothing.
	Nominal, Timeout uint32
}

// AppendTimeouts appends a command timeouts descriptor. SPC-4, 6.35.4.
func (s Supported) appendTimeouts(dst []byte) []byte {
	dst = append(dst, 0, 0x0a, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, s.Nominal)
	return binary.BigEndian.AppendUint32(dst, s.Timeout)
}

// AppendSupportedAll appends all commands, with timeouts if rctd. SPC-4, 6.35.2.
func AppendSupportedAll(dst []byte, list []Supported, rctd bool) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	for _, s := range list {
		flags := byte(0)
		if s.HasAction {
			flags |= 1
		}
		if rctd {
			flags |= 2
		}
		dst = append(dst, byte(s.Opcode), 0, byte(s.Action>>8), byte(s.Action), 0, flags, 0, byte(len(s.Usage)))
		if rctd {
			dst = s.appendTimeouts(dst)
		}
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst
}

// AppendSupportedOne appends one command, or, when s is nil, that it is not
// supported. SPC-4, 6.35.3.
func AppendSupportedOne(dst []byte, s *Supported, rctd bool) []byte {
	if s == nil {
		return append(dst, 0, 0x01, 0, 0)
	}
	support := byte(0x03) // in conformance with the standard
	if rctd {
		support |= 0x80
	}
	dst = append(dst, 0, support, 0, byte(len(s.Usage)))
	dst = append(dst, s.Usage...)
	if rctd {
		dst = s.appendTimeouts(dst)
	}
	return dst
}

// AppendTaskManagement appends REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
// data: ABORT TASK, ABORT TASK SET, CLEAR ACA, CLEAR TASK SET, LOGICAL UNIT
// RESET, and with extended the timeouts, of which we state none. SPC-4, 6.36.
func AppendTaskManagement(dst []byte, extended bool) []byte {
	if !extended {
		return append(dst, 0xf8, 0, 0, 0)
	}
	var b [16]byte
	b[0], b[3] = 0xf8, 12
	return append(dst, b[:]...)
}
