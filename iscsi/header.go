package iscsi

import (
	"encoding/binary"
	"fmt"
)

// HeaderSize is the length of the basic header segment in bytes. RFC 7143, 11.2.1.
const HeaderSize = 48

// Opcode is the six-bit PDU type. RFC 7143, 11.2.1.2.
type Opcode uint8

// Opcodes sent by initiators.
const (
	OpNopOut      Opcode = 0x00
	OpSCSICommand Opcode = 0x01
	OpTaskRequest Opcode = 0x02 // task management function request
	OpLoginReq    Opcode = 0x03
	OpTextReq     Opcode = 0x04
	OpDataOut     Opcode = 0x05
	OpLogoutReq   Opcode = 0x06
	OpSNACK       Opcode = 0x10
)

// Opcodes sent by targets.
const (
	OpNopIn        Opcode = 0x20
	OpSCSIResponse Opcode = 0x21
	OpTaskResponse Opcode = 0x22 // task management function response
	OpLoginResp    Opcode = 0x23
	OpTextResp     Opcode = 0x24
	OpDataIn       Opcode = 0x25
	OpLogoutResp   Opcode = 0x26
	OpR2T          Opcode = 0x31
	OpAsync        Opcode = 0x32
	OpReject       Opcode = 0x3f
)

var opcodeNames = map[Opcode]string{
	OpNopOut: "NOP-Out", OpSCSICommand: "SCSI Command", OpTaskRequest: "Task Management Request",
	OpLoginReq: "Login Request", OpTextReq: "Text Request", OpDataOut: "SCSI Data-Out",
	OpLogoutReq: "Logout Request", OpSNACK: "SNACK", OpNopIn: "NOP-In", OpSCSIResponse: "SCSI Response",
	OpTaskResponse: "Task Management Response", OpLoginResp: "Login Response", OpTextResp: "Text Response",
	OpDataIn: "SCSI Data-In", OpLogoutResp: "Logout Response", OpR2T: "R2T", OpAsync: "Async Message",
	OpReject: "Reject",
}

// String returns the opcode's name in the RFC.
func (o Opcode) String() string {
	if s, ok := opcodeNames[o]; ok {
		return s
	}
	return fmt.Sprintf("opcode %#02x", uint8(o))
}

// FromInitiator reports whether the opcode is one an initiator may send.
func (o Opcode) FromInitiator() bool { return o <= OpLogoutReq || o == OpSNACK }

// Flag bits of a header's second byte. Which apply depends on the opcode.
const (
	FlagFinal    = 0x80 // F: last PDU of a sequence (all but login)
	FlagContinue = 0x40 // C: text continues in the next PDU (login, text)
	FlagTransit  = 0x80 // T: the sender is ready for the next stage (login)

	FlagRead  = 0x40 // R: data-in expected (SCSI command)
	FlagWrite = 0x20 // W: data-out expected (SCSI command)

	FlagAck           = 0x40 // A: the initiator shall acknowledge (Data-In, ERL > 0)
	FlagBidiOverflow  = 0x10 // o (SCSI response)
	FlagBidiUnderflow = 0x08 // u (SCSI response)
	FlagOverflow      = 0x04 // O (SCSI response, Data-In)
	FlagUnderflow     = 0x02 // U (SCSI response, Data-In)
	FlagStatus        = 0x01 // S: the PDU carries status (Data-In)
)

// NoTag is the reserved task tag: "no task". RFC 7143, 11.2.1.8.
const NoTag uint32 = 0xffffffff

// Header is a basic header segment in wire form. The accessors name fields by
// their meaning; several opcodes share an offset for different fields, and the
// comments say which. RFC 7143, 11.2 to 11.20.
type Header [HeaderSize]byte

func (h *Header) u32(at int) uint32        { return binary.BigEndian.Uint32(h[at : at+4]) }
func (h *Header) put32(at int, v uint32)   { binary.BigEndian.PutUint32(h[at:at+4], v) }
func (h *Header) u16(at int) uint16        { return binary.BigEndian.Uint16(h[at : at+2]) }
func (h *Header) put16(at int, v uint16)   { binary.BigEndian.PutUint16(h[at:at+2], v) }
func (h *Header) has(bit byte) bool        { return h[1]&bit != 0 }
func (h *Header) Opcode() Opcode           { return Opcode(h[0] & 0x3f) } // Opcode returns the PDU type.
func (h *Header) SetOpcode(o Opcode)       { h[0] = h[0]&^0x3f | byte(o) }
func (h *Header) Immediate() bool          { return h[0]&0x40 != 0 } // Immediate is the I bit.
func (h *Header) SetImmediate()            { h[0] |= 0x40 }
func (h *Header) Flags() byte              { return h[1] } // Flags is byte 1 as it stands.
func (h *Header) SetFlags(f byte)          { h[1] = f }
func (h *Header) Final() bool              { return h.has(FlagFinal) }
func (h *Header) Continue() bool           { return h.has(FlagContinue) }
func (h *Header) AHSLength() int           { return int(h[4]) * 4 } // AHSLength is in bytes.
func (h *Header) SetAHSLength(n int)       { h[4] = byte(n / 4) }
func (h *Header) LUN() uint64              { return binary.BigEndian.Uint64(h[8:16]) }
func (h *Header) SetLUN(l uint64)          { binary.BigEndian.PutUint64(h[8:16], l) }
func (h *Header) InitiatorTag() uint32     { return h.u32(16) } // InitiatorTag is the ITT.
func (h *Header) SetInitiatorTag(t uint32) { h.put32(16, t) }

// DataLength is the data segment's length in bytes, without padding or digest.
func (h *Header) DataLength() int { return int(h[5])<<16 | int(h[6])<<8 | int(h[7]) }

// SetDataLength sets the data segment's length; n is below 2^24.
func (h *Header) SetDataLength(n int) { h[5], h[6], h[7] = byte(n>>16), byte(n>>8), byte(n) }

// TargetTag is the TTT of NOP, Text, Data and R2T PDUs; at the same offset
// lie EDTL (SCSI command), the referenced tag (task management) and the CID.
func (h *Header) TargetTag() uint32     { return h.u32(20) }
func (h *Header) SetTargetTag(t uint32) { h.put32(20, t) }

// ExpectedLength is the expected data transfer length of a SCSI command.
func (h *Header) ExpectedLength() uint32     { return h.u32(20) }
func (h *Header) SetExpectedLength(n uint32) { h.put32(20, n) }

// ReferencedTag names the task a task management request is about.
func (h *Header) ReferencedTag() uint32     { return h.u32(20) }
func (h *Header) SetReferencedTag(t uint32) { h.put32(20, t) }

// CID is the connection identifier of login and logout requests.
func (h *Header) CID() uint16     { return h.u16(20) }
func (h *Header) SetCID(c uint16) { h.put16(20, c) }

// CmdSN is the command sequence number of a request that has one.
func (h *Header) CmdSN() uint32     { return h.u32(24) }
func (h *Header) SetCmdSN(n uint32) { h.put32(24, n) }

// ExpStatSN acknowledges responses below it (every initiator PDU).
func (h *Header) ExpStatSN() uint32     { return h.u32(28) }
func (h *Header) SetExpStatSN(n uint32) { h.put32(28, n) }

// StatSN, ExpCmdSN and MaxCmdSN are the sequence numbers of target PDUs.
func (h *Header) StatSN() uint32       { return h.u32(24) }
func (h *Header) SetStatSN(n uint32)   { h.put32(24, n) }
func (h *Header) ExpCmdSN() uint32     { return h.u32(28) }
func (h *Header) SetExpCmdSN(n uint32) { h.put32(28, n) }
func (h *Header) MaxCmdSN() uint32     { return h.u32(32) }
func (h *Header) SetMaxCmdSN(n uint32) { h.put32(32, n) }

// RefCmdSN is the CmdSN of the task that ABORT TASK is about.
func (h *Header) RefCmdSN() uint32     { return h.u32(32) }
func (h *Header) SetRefCmdSN(n uint32) { h.put32(32, n) }

// DataSN numbers Data PDUs in a sequence; R2TSN and ExpDataSN share its place.
func (h *Header) DataSN() uint32     { return h.u32(36) }
func (h *Header) SetDataSN(n uint32) { h.put32(36, n) }

// BufferOffset is where a Data PDU's payload, or an R2T's request, begins.
func (h *Header) BufferOffset() uint32     { return h.u32(40) }
func (h *Header) SetBufferOffset(n uint32) { h.put32(40, n) }

// DesiredLength is how many bytes an R2T asks for.
func (h *Header) DesiredLength() uint32     { return h.u32(44) }
func (h *Header) SetDesiredLength(n uint32) { h.put32(44, n) }

// Residual is the residual count of a SCSI response or final Data-In.
func (h *Header) Residual() uint32     { return h.u32(44) }
func (h *Header) SetResidual(n uint32) { h.put32(44, n) }

// BidiResidual is the read residual of a bidirectional command.
func (h *Header) BidiResidual() uint32     { return h.u32(40) }
func (h *Header) SetBidiResidual(n uint32) { h.put32(40, n) }

// CDB returns the sixteen CDB bytes of a SCSI command, in place.
func (h *Header) CDB() []byte { return h[32:48] }

// Response is the response code of SCSI, task management and logout
// responses, and a Reject's reason.
func (h *Header) Response() uint8     { return h[2] }
func (h *Header) SetResponse(r uint8) { h[2] = r }

// SCSIStatus is the status of a SCSI response or of a Data-In with S set.
func (h *Header) SCSIStatus() uint8     { return h[3] }
func (h *Header) SetSCSIStatus(s uint8) { h[3] = s }

// Function is a task management request's function code.
func (h *Header) Function() uint8     { return h[1] & 0x7f }
func (h *Header) SetFunction(f uint8) { h[1] = FlagFinal | f&0x7f }

// LogoutReason is a logout request's reason code.
func (h *Header) LogoutReason() uint8     { return h[1] & 0x7f }
func (h *Header) SetLogoutReason(r uint8) { h[1] = FlagFinal | r&0x7f }

// AsyncEvent and AsyncVCode are an asynchronous message's event codes.
func (h *Header) AsyncEvent() uint8     { return h[36] }
func (h *Header) SetAsyncEvent(e uint8) { h[36] = e }
func (h *Header) AsyncVCode() uint8     { return h[37] }
func (h *Header) SetAsyncVCode(e uint8) { h[37] = e }

// AsyncParameter returns parameter 1, 2 or 3 of an asynchronous message.
func (h *Header) AsyncParameter(i int) uint16       { return h.u16(36 + 2*i) }
func (h *Header) SetAsyncParameter(i int, v uint16) { h.put16(36+2*i, v) }

// Time2Wait and Time2Retain are a logout response's times in seconds.
func (h *Header) Time2Wait() uint16       { return h.u16(40) }
func (h *Header) SetTime2Wait(s uint16)   { h.put16(40, s) }
func (h *Header) Time2Retain() uint16     { return h.u16(42) }
func (h *Header) SetTime2Retain(s uint16) { h.put16(42, s) }

// Login fields. RFC 7143, 11.12 and 11.13.

// ISID is the initiator's part of the session identifier.
func (h *Header) ISID() (id ISID)   { copy(id[:], h[8:14]); return id }
func (h *Header) SetISID(id ISID)   { copy(h[8:14], id[:]) }
func (h *Header) TSIH() uint16      { return h.u16(14) }
func (h *Header) SetTSIH(t uint16)  { h.put16(14, t) }
func (h *Header) Transit() bool     { return h.has(FlagTransit) }
func (h *Header) CSG() Stage        { return Stage(h[1] >> 2 & 3) }
func (h *Header) NSG() Stage        { return Stage(h[1] & 3) }
func (h *Header) VersionMax() uint8 { return h[2] }
func (h *Header) VersionMin() uint8 { return h[3] }

// SetVersions sets Version-max, and Version-min (request) or Version-active
// (response).
func (h *Header) SetVersions(highest, other uint8) { h[2], h[3] = highest, other }

// SetStages sets byte 1 of a login PDU.
func (h *Header) SetStages(transit, cont bool, csg, nsg Stage) {
	b := byte(csg)<<2 | byte(nsg)
	if transit {
		b |= FlagTransit
	}
	if cont {
		b |= FlagContinue
	}
	h[1] = b
}

// LoginStatus is the status of a login response: class in the high byte.
func (h *Header) LoginStatus() LoginStatus     { return LoginStatus(h.u16(36)) }
func (h *Header) SetLoginStatus(s LoginStatus) { h.put16(36, uint16(s)) }

// ISID is the initiator's part of a session's name. RFC 7143, 11.12.5.
type ISID [6]byte

// String returns the ISID as twelve hex digits, as port names carry it.
func (i ISID) String() string { return fmt.Sprintf("%02x", [6]byte(i)) }

// Padding returns how many bytes follow n data bytes up to a multiple of four.
// RFC 7143, 11.1.
func Padding(n int) int { return -n & 3 }

// AHS types. RFC 7143, 11.2.2.
const (
	ahsExtendedCDB = 1
	ahsBidiRead    = 2
)

// AHS is what additional header segments of a SCSI command say.
type AHS struct {
	// ExtendedCDB holds the CDB's bytes from the seventeenth on; it points
	// into the parsed buffer.
	ExtendedCDB []byte
	// BidiReadLength is the expected read length of a bidirectional command.
	BidiReadLength uint32
	HasBidi        bool
}

// ParseAHS decodes the additional header segments in b (whose length is a
// multiple of four). It fails on a segment that runs past the end, on an
// unknown type and on a repeated one. RFC 7143, 11.2.2.
func ParseAHS(b []byte) (AHS, error) {
	var a AHS
	for len(b) > 0 {
		if len(b) < 4 {
			return a, fmt.Errorf("additional header segment of %d bytes", len(b))
		}
		// AHSLength excludes itself and the type, and includes the one
		// reserved (or first specific) byte that follows the type.
		n := int(binary.BigEndian.Uint16(b))
		total := 3 + n + Padding(3+n)
		if n == 0 || total > len(b) {
			return a, fmt.Errorf("additional header segment says %d bytes of %d", n, len(b))
		}
		switch b[2] & 0x3f {
		case ahsExtendedCDB:
			if a.ExtendedCDB != nil || n < 2 {
				return a, fmt.Errorf("bad extended CDB segment")
			}
			a.ExtendedCDB = b[4 : 3+n : 3+n]
		case ahsBidiRead:
			if a.HasBidi || n != 5 {
				return a, fmt.Errorf("bad bidirectional length segment")
			}
			a.HasBidi, a.BidiReadLength = true, binary.BigEndian.Uint32(b[4:8])
		default:
			return a, fmt.Errorf("additional header segment of unknown type %d", b[2]&0x3f)
		}
		b = b[total:]
	}
	return a, nil
}

// AppendAHS appends a's segments in wire form.
func AppendAHS(b []byte, a AHS) []byte {
	if n := len(a.ExtendedCDB); n > 0 {
		b = append(b, byte((n+1)>>8), byte(n+1), ahsExtendedCDB, 0)
		b = append(b, a.ExtendedCDB...)
		b = append(b, make([]byte, Padding(n))...)
	}
	if a.HasBidi {
		b = append(b, 0, 5, ahsBidiRead, 0)
		b = binary.BigEndian.AppendUint32(b, a.BidiReadLength)
	}
	return b
}

// SNLess reports whether a comes before b in serial number arithmetic, which
// every iSCSI sequence number uses. RFC 7143, 4.2.2; RFC 1982.
func SNLess(a, b uint32) bool { return int32(a-b) < 0 }
