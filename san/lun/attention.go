package lun

import (
	"math/bits"
	"sync/atomic"

	"steadfast/fault"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// attention is a set of unit attention conditions. A nexus has each at most
// once; the lowest bit is reported first, so that the order here is that of
// precedence. SAM-5, 5.14.
type attention uint32

// Unit attention conditions.
const (
	powerOn attention = 1 << iota
	resetOccurred
	nexusLost
	mediumChanged
	lunsChanged
	capacityChanged
	modeChanged
	accessChanged
	reservationsPreempted
	reservationsReleased
	registrationsPreempted
	commandsCleared
	thresholdReached
	inquiryChanged
)

// attentionCodes are ASC and ASCQ by bit number. SPC-4, annex F.
var attentionCodes = [...][2]uint8{
	{0x29, 0x00}, // POWER ON, RESET, OR BUS DEVICE RESET OCCURRED
	{0x29, 0x03}, // BUS DEVICE RESET FUNCTION OCCURRED
	{0x29, 0x07}, // I_T NEXUS LOSS OCCURRED
	{0x28, 0x00}, // NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED
	{0x3f, 0x0e}, // REPORTED LUNS DATA HAS CHANGED
	{0x2a, 0x09}, // CAPACITY DATA HAS CHANGED
	{0x2a, 0x01}, // MODE PARAMETERS CHANGED
	{0x2a, 0x06}, // ASYMMETRIC ACCESS STATE CHANGED
	{0x2a, 0x03}, // RESERVATIONS PREEMPTED
	{0x2a, 0x04}, // RESERVATIONS RELEASED
	{0x2a, 0x05}, // REGISTRATIONS PREEMPTED
	{0x2f, 0x00}, // COMMANDS CLEARED BY ANOTHER INITIATOR
	{0x38, 0x07}, // THIN PROVISIONING SOFT THRESHOLD REACHED
	{0x3f, 0x03}, // INQUIRY DATA HAS CHANGED
}

// carriedAttentions are those that a nexus is still told when it comes back to
// another node. The others say less than the loss of the nexus does.
const carriedAttentions = (inquiryChanged<<1 - 1) &^ (powerOn | nexusLost | commandsCleared)

// noticed are the conditions that changes of reservations raise.
var noticed = [...]attention{
	reserve.ReservationsPreempted:  reservationsPreempted,
	reserve.ReservationsReleased:   reservationsReleased,
	reserve.RegistrationsPreempted: registrationsPreempted,
}

// attentions is what one I_T_L nexus is still to be told. It needs no lock.
type attentions struct{ set atomic.Uint32 }

// raise adds a.
func (p *attentions) raise(a attention) { p.set.Or(uint32(a)) }

// drop removes a, which the initiator has learned of otherwise.
func (p *attentions) drop(a attention) { p.set.And(^uint32(a)) }

// pending reports whether there is any.
func (p *attentions) pending() bool { return p.set.Load() != 0 }

// take removes the foremost and returns its sense data.
func (p *attentions) take() (*scsi.Check, bool) {
	for {
		old := p.set.Load()
		if old == 0 {
			return nil, false
		}
		if p.set.CompareAndSwap(old, old&(old-1)) {
			c := attentionCodes[bits.TrailingZeros32(old)]
			return &scsi.Check{
				Status: scsi.CheckCondition,
				Sense:  fault.Sense{Key: scsi.KeyUnitAttention, ASC: c[0], ASCQ: c[1]},
			}, true
		}
	}
}

// attend raises a for all of list and tells their transports. Without locks.
func attend(list []*itl, a attention) {
	for _, i := range list {
		i.raise(a)
		i.tell()
	}
}

// tell lets the transport know that there is a unit attention. Without locks.
func (i *itl) tell() {
	if i.port.events != nil {
		i.port.events.UnitAttention(i.lun)
	}
}
