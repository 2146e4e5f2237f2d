package iscsi

import "fmt"

// RejectReason says why a PDU was rejected. RFC 7143, 11.17.1.
type RejectReason uint8

// Reject reasons.
const (
	RejectDataDigest       RejectReason = 0x02
	RejectSNACK            RejectReason = 0x03
	RejectProtocolError    RejectReason = 0x04
	RejectNotSupported     RejectReason = 0x05
	RejectImmediate        RejectReason = 0x06 // too many immediate commands
	RejectTaskInProgress   RejectReason = 0x07
	RejectInvalidDataAck   RejectReason = 0x08
	RejectInvalidField     RejectReason = 0x09
	RejectLongOperation    RejectReason = 0x0a // long operation: cannot generate TTT
	RejectNegotiationReset RejectReason = 0x0b
	RejectWaitingForLogout RejectReason = 0x0c
)

// Asynchronous message events. RFC 7143, 11.9.1.
const (
	AsyncSCSI           uint8 = 0 // sense data in the data segment
	AsyncLogout         uint8 = 1 // the target asks for a logout within Parameter3 seconds
	AsyncDropConnection uint8 = 2
	AsyncDropSession    uint8 = 3
	AsyncNegotiate      uint8 = 4
)

// Logout reasons and responses. RFC 7143, 11.14.1 and 11.15.1.
const (
	LogoutCloseSession    uint8 = 0
	LogoutCloseConnection uint8 = 1
	LogoutRecovery        uint8 = 2

	LogoutDone           uint8 = 0
	LogoutCIDNotFound    uint8 = 1
	LogoutNoRecovery     uint8 = 2
	LogoutCleanupFailure uint8 = 3
)

// SCSI response codes. RFC 7143, 11.4.3.
const (
	ResponseComplete uint8 = 0x00 // command completed at target
	ResponseFailure  uint8 = 0x01 // target failure
)

// LoginStatus is a login response's status: class in the high byte, detail in
// the low. RFC 7143, 11.13.5.
type LoginStatus uint16

// Login statuses.
const (
	LoginSuccess            LoginStatus = 0x0000
	LoginMovedTemporarily   LoginStatus = 0x0101
	LoginMovedPermanently   LoginStatus = 0x0102
	LoginInitiatorError     LoginStatus = 0x0200
	LoginAuthFailure        LoginStatus = 0x0201
	LoginForbidden          LoginStatus = 0x0202 // authorization failure
	LoginNotFound           LoginStatus = 0x0203
	LoginTargetRemoved      LoginStatus = 0x0204
	LoginBadVersion         LoginStatus = 0x0205
	LoginTooManyConnections LoginStatus = 0x0206
	LoginMissingParameter   LoginStatus = 0x0207
	LoginCannotInclude      LoginStatus = 0x0208 // no connection of this kind in the session
	LoginBadSessionType     LoginStatus = 0x0209
	LoginNoSession          LoginStatus = 0x020a
	LoginInvalidRequest     LoginStatus = 0x020b
	LoginTargetError        LoginStatus = 0x0300
	LoginUnavailable        LoginStatus = 0x0301
	LoginOutOfResources     LoginStatus = 0x0302
)

var loginStatusNames = map[LoginStatus]string{
	LoginSuccess: "success", LoginMovedTemporarily: "target moved temporarily",
	LoginMovedPermanently: "target moved permanently", LoginInitiatorError: "initiator error",
	LoginAuthFailure: "authentication failure", LoginForbidden: "authorization failure",
	LoginNotFound: "target not found", LoginTargetRemoved: "target removed",
	LoginBadVersion: "unsupported version", LoginTooManyConnections: "too many connections",
	LoginMissingParameter: "missing parameter", LoginCannotInclude: "cannot include in session",
	LoginBadSessionType: "session type not supported", LoginNoSession: "session does not exist",
	LoginInvalidRequest: "invalid request during login", LoginTargetError: "target error",
	LoginUnavailable: "service unavailable", LoginOutOfResources: "out of resources",
}

// String returns the status's name in the RFC.
func (s LoginStatus) String() string {
	if n, ok := loginStatusNames[s]; ok {
		return n
	}
	return fmt.Sprintf("login status %#04x", uint16(s))
}

// Stage is a login stage. RFC 7143, 11.12.3.
type Stage uint8

// Stages. There is no stage 2.
const (
	StageSecurity    Stage = 0
	StageOperational Stage = 1
	StageFullFeature Stage = 3
)
