// Package scsi speaks SCSI as both sides of the wire need it: command
// descriptor blocks, status, sense data, VPD pages and parameter lists, and
// the task, the seam between a transport (package target) and the logical
// units behind it (package lun). It decodes and encodes; it performs nothing.
//
// Sources: SAM-5 (architecture), SPC-4 (primary commands), SBC-3 (block
// commands).
package scsi

// LUN is a logical unit number in its eight-byte form. SAM-5, 4.7.
type LUN uint64

// Nexus names an I_T nexus: one initiator port talking to one target port.
// SAM-5, 4.9.
type Nexus struct {
	// InitiatorName is the initiator's iSCSI name. Access control and LUN
	// mapping go by it.
	InitiatorName string
	// InitiatorPort is name + ",i,0x" + ISID in twelve hex digits. Persistent
	// reservations go by it. RFC 7143, 4.4.3 (SCSI port name).
	InitiatorPort string
	// TargetName is the iSCSI name of the target logged in to.
	TargetName string
	// TargetPort is the relative target port identifier: the tag of the
	// portal group the session came through. Never zero.
	TargetPort uint16
}

// Attribute is a task's ordering attribute. SAM-5, 8.6.
type Attribute uint8

// Task attributes, with RFC 7143's codes (11.3.1).
const (
	Untagged    Attribute = 0
	Simple      Attribute = 1
	Ordered     Attribute = 2
	HeadOfQueue Attribute = 3
	ACA         Attribute = 4
)

// Task is one SCSI command on its way through a logical unit. The transport
// fills the upper part, the device server the lower.
type Task struct {
	LUN       LUN
	Tag       uint32 // initiator task tag; unique within the nexus while the task lives
	Attribute Attribute
	CDB       []byte // 6 to 260 bytes

	// DataOut is all data the initiator sent. It is complete before Execute,
	// owned by the transport, and not retained by the device server.
	DataOut []byte
	// ExpectedIn and ExpectedOut are the initiator's transfer lengths in
	// bytes; the device server never produces more than ExpectedIn, and sees
	// ExpectedOut only to check a parameter list.
	ExpectedIn, ExpectedOut int

	// Status, Sense and DataIn are the answer. DataIn may be longer than
	// ExpectedIn: the transport sends what fits and reports the residual.
	Status Status
	Sense  []byte
	DataIn []byte
	// Required is how many bytes of DataOut the command asked for (0 for a
	// command without data-out): the transport reports the write residual.
	Required int
	// Release gives DataIn's memory back after it was sent; nil if it need not.
	Release func()

	// Unit is the device server's own state for the task.
	Unit any
}

// Function is a task management function, with RFC 7143's codes (11.5.1).
type Function uint8

// Task management functions.
const (
	AbortTask                Function = 1
	AbortTaskSet             Function = 2
	ClearACA                 Function = 3
	ClearTaskSet             Function = 4
	LogicalUnitResetFunction          = 5
	TargetWarmReset          Function = 6
	TargetColdReset          Function = 7
	TaskReassign             Function = 8
)

// FunctionResponse answers a task management function, with RFC 7143's codes
// (11.6.1).
type FunctionResponse uint8

// Task management responses.
const (
	FunctionComplete     FunctionResponse = 0
	TaskDoesNotExist     FunctionResponse = 1
	LUNDoesNotExist      FunctionResponse = 2
	StillAllegiant       FunctionResponse = 3
	ReassignUnsupported  FunctionResponse = 4
	FunctionUnsupported  FunctionResponse = 5
	AuthorizationFailure FunctionResponse = 6
	FunctionRejected     FunctionResponse = 255
)

// Port is one I_T nexus's way to the logical units behind a target. The
// transport calls it; package lun implements it.
//
// A task goes Begin, then (when all of DataOut is there) TryExecute or
// Execute, exactly once. Begin is called in command order, and puts the task
// into its logical unit's task set: from then on task management from any
// nexus can reach it. A task whose data will never come is ended with Drop.
type Port interface {
	// Begin enters t into the task set. It never blocks.
	Begin(t *Task)

	// TryExecute runs t if that needs no waiting for storage or other tasks,
	// and else returns false with t unchanged; the caller then uses Execute.
	TryExecute(t *Task) bool

	// Execute runs t to its end and may block. It returns false when the task
	// was aborted and no response may be sent.
	Execute(t *Task) bool

	// Drop takes a task that began and will not be executed out of its set.
	Drop(t *Task)

	// Manage performs a task management function on lun (tag names the task
	// for AbortTask). It returns when every write it ended has landed or never
	// can, which is what an initiator takes the answer to mean.
	Manage(f Function, lun LUN, tag uint32) FunctionResponse

	// Close ends the nexus: its tasks are aborted as by AbortTaskSet on every
	// logical unit, and Close returns when they have landed or never can.
	Close()
}

// Events are what logical units tell a transport, unasked.
type Events interface {
	// UnitAttention says that lun has a unit attention for this nexus, so
	// that the transport may send an asynchronous message. It must not block.
	UnitAttention(lun LUN)
}

// PortOpener admits a nexus to a target's logical units.
type PortOpener interface {
	// OpenPort returns the nexus's port. Fails with fault.Denied when no
	// volume is mapped for the initiator name, fault.NotFound when the target
	// does not exist.
	OpenPort(n Nexus, ev Events) (Port, error)
}

// Status is a SCSI status code. SAM-5, 5.3.
type Status uint8

// Status codes.
const (
	Good                Status = 0x00
	CheckCondition      Status = 0x02
	ConditionMet        Status = 0x04
	BusyStatus          Status = 0x08
	ReservationConflict Status = 0x18
	TaskSetFull         Status = 0x28
	ACAActive           Status = 0x30
	TaskAborted         Status = 0x40
)
