package scsi

// Opcode is the first byte of a CDB. SPC-4, annex E.
type Opcode uint8

// Operation codes of the commands that package lun serves.
const (
	OpTestUnitReady      Opcode = 0x00
	OpRequestSense       Opcode = 0x03
	OpRead6              Opcode = 0x08
	OpWrite6             Opcode = 0x0a
	OpInquiry            Opcode = 0x12
	OpModeSelect6        Opcode = 0x15
	OpReserve6           Opcode = 0x16
	OpRelease6           Opcode = 0x17
	OpModeSense6         Opcode = 0x1a
	OpStartStopUnit      Opcode = 0x1b
	OpReadCapacity10     Opcode = 0x25
	OpRead10             Opcode = 0x28
	OpWrite10            Opcode = 0x2a
	OpWriteVerify10      Opcode = 0x2e
	OpVerify10           Opcode = 0x2f
	OpPrefetch10         Opcode = 0x34
	OpSynchronizeCache10 Opcode = 0x35
	OpReadDefectData10   Opcode = 0x37
	OpWriteSame10        Opcode = 0x41
	OpUnmap              Opcode = 0x42
	OpLogSense           Opcode = 0x4d
	OpModeSelect10       Opcode = 0x55
	OpReserve10          Opcode = 0x56
	OpRelease10          Opcode = 0x57
	OpModeSense10        Opcode = 0x5a
	OpPersistentIn       Opcode = 0x5e
	OpPersistentOut      Opcode = 0x5f
	OpExtendedCopy       Opcode = 0x83
	OpReceiveCopyResults Opcode = 0x84
	OpRead16             Opcode = 0x88
	OpCompareAndWrite    Opcode = 0x89
	OpWrite16            Opcode = 0x8a
	OpOrWrite16          Opcode = 0x8b
	OpWriteVerify16      Opcode = 0x8e
	OpVerify16           Opcode = 0x8f
	OpPrefetch16         Opcode = 0x90
	OpSynchronizeCache16 Opcode = 0x91
	OpWriteSame16        Opcode = 0x93
	OpServiceActionIn16  Opcode = 0x9e
	OpReportLUNs         Opcode = 0xa0
	OpMaintenanceIn      Opcode = 0xa3
	OpRead12             Opcode = 0xa8
	OpWrite12            Opcode = 0xaa
	OpWriteVerify12      Opcode = 0xae
	OpVerify12           Opcode = 0xaf
	OpReadDefectData12   Opcode = 0xb7
)

// Service actions of SERVICE ACTION IN(16). SBC-3, 5.
const (
	ActionReadCapacity16 = 0x10
	ActionGetLBAStatus   = 0x12
)

// Service actions of MAINTENANCE IN. SPC-4, 6.35 to 6.37.
const (
	ActionReportTargetPortGroups = 0x0a
	ActionReportOpcodes          = 0x0c
	ActionReportTaskManagement   = 0x0d
)

// Service actions of EXTENDED COPY and RECEIVE COPY RESULTS. SPC-4, 6.4, 6.18.
const (
	ActionExtendedCopyLID1    = 0x00
	ActionCopyStatus          = 0x00
	ActionCopyOperatingParams = 0x03
	ActionCopyFailedSegments  = 0x04
	ActionReceiveCopyDataLID1 = 0x01
	ActionPersistReadKeys     = 0x00
	ActionPersistReadReserved = 0x01
	ActionPersistCapabilities = 0x02
	ActionPersistReadFull     = 0x03
	ActionPersistRegister     = 0x00
	ActionPersistReserve      = 0x01
	ActionPersistRelease      = 0x02
	ActionPersistClear        = 0x03
	ActionPersistPreempt      = 0x04
	ActionPersistPreemptAbort = 0x05
	ActionPersistRegisterAny  = 0x06
	ActionPersistRegisterMove = 0x07
)

// CDBLength returns the length in bytes of the CDB that begins with op, by
// the group code in its upper three bits, and 0 for groups that have none
// fixed. SAM-5, 5.2.2; SPC-4, 4.2.5.1.
func CDBLength(op Opcode) int {
	switch uint8(op) >> 5 {
	case 0:
		return 6
	case 1, 2:
		return 10
	case 4:
		return 16
	case 5:
		return 12
	}
	return 0
}
