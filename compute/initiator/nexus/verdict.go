package nexus

import (
	"time"

	"steadfast/fault"
	"steadfast/scsi"
)

// Action is what a target's answer means for a command.
type Action uint8

// The actions.
const (
	Done      Action = iota // performed
	AtOnce                  // not performed, and the next attempt may be
	Later                   // not performed: in a moment
	Elsewhere               // not performed here: this path does not serve, another may
	Ended                   // perhaps performed, in part too, and over
	Missing                 // no such unit, which a takeover explains for a while
	Differs                 // COMPARE AND WRITE found something else
	Failed                  // for good
)

// News is what an answer tells beside the command's fate.
type News uint8

// News of a unit.
const (
	NoNews    News = 0
	Capacity  News = 1 << iota // the size changed
	Paths                      // access states changed
	Lost                       // the nexus was lost, or the power: what the target forgot it says by this
	Preempted                  // our registration is gone
)

// Verdict is what an answer means.
type Verdict struct {
	Action Action
	Kind   fault.Kind       // of Failed
	Access scsi.AccessState // of the path, for Elsewhere
	News   News
}

// Judge says what a status and its sense data mean. SAM-5, 5.3; SPC-4, 4.5.6.
func Judge(status scsi.Status, s fault.Sense) Verdict {
	switch status {
	case scsi.Good, scsi.ConditionMet:
		return Verdict{}
	case scsi.BusyStatus, scsi.TaskSetFull:
		return Verdict{Action: Later}
	case scsi.ReservationConflict:
		return Verdict{Action: Failed, Kind: fault.Fenced}
	case scsi.TaskAborted:
		return Verdict{Action: Ended}
	case scsi.CheckCondition:
		return judgeSense(s)
	default: // ACA ACTIVE, which nobody asked for, and reserved ones
		return Verdict{Action: Later}
	}
}

func judgeSense(s fault.Sense) Verdict {
	switch s.Key {
	case scsi.KeyUnitAttention:
		return Verdict{Action: AtOnce, News: attention(s)}
	case scsi.KeyNotReady:
		return notReady(s)
	case scsi.KeyMediumError:
		return Verdict{Action: Failed, Kind: fault.Corrupt}
	case scsi.KeyIllegalRequest:
		if s.ASC == 0x25 {
			return Verdict{Action: Missing}
		}
		return Verdict{Action: Failed, Kind: fault.Invalid}
	case scsi.KeyDataProtect:
		// 27h/07h: space allocation failed. SBC-3, 4.7.3.6.
		if s.ASC == 0x27 && s.ASCQ == 0x07 {
			return Verdict{Action: Failed, Kind: fault.Full}
		}
		return Verdict{Action: Failed, Kind: fault.ReadOnly}
	case scsi.KeyAbortedCommand:
		return Verdict{Action: Ended}
	case scsi.KeyMiscompare:
		return Verdict{Action: Differs}
	case scsi.KeyNoSense, 0x1:
		// RECOVERED ERROR and NO SENSE: the command was performed. SPC-4, 4.5.6.
		return Verdict{}
	default:
		return Verdict{Action: Failed, Kind: fault.Failed}
	}
}

// attention reads a unit attention.
func attention(s fault.Sense) News {
	switch {
	case s.ASC == 0x2a && s.ASCQ == 0x09:
		return Capacity
	case s.ASC == 0x2a && (s.ASCQ == 0x06 || s.ASCQ == 0x07):
		return Paths
	case s.ASC == 0x2a && s.ASCQ == 0x05:
		// Not 03h and 04h, reservations preempted and released: who hears those has its
		// registration still. SPC-4, 5.13.11.2.4 and 5.13.11.2.2.
		return Preempted
	case s.ASC == 0x29:
		return Lost
	case s.ASC == 0x3f: // inquiry data, identifier or LUNs changed
		return Paths | Capacity
	}
	return NoNews
}

// notReady tells a path that does not serve from a unit that does not yet.
// SPC-4, 5.15.2.5 ff.
func notReady(s fault.Sense) Verdict {
	if s.ASC == 0x3a {
		return Verdict{Action: Failed, Kind: fault.Failed} // no medium
	}
	if s.ASC != 0x04 {
		return Verdict{Action: Later}
	}
	switch s.ASCQ {
	case 0x0a:
		return Verdict{Action: Elsewhere, Access: scsi.Transitioning, News: Paths}
	case 0x0b:
		return Verdict{Action: Elsewhere, Access: scsi.Standby, News: Paths}
	case 0x0c:
		return Verdict{Action: Elsewhere, Access: scsi.Unavailable, News: Paths}
	}
	return Verdict{Action: Later}
}

// Times of what is asked again.
const (
	pauseFirst = 5 * time.Millisecond
	PauseMax   = 250 * time.Millisecond
)

// Pause is how long to wait before a command is sent again that was refused
// tries times already: never longer than PauseMax.
func Pause(tries int) time.Duration {
	return min(pauseFirst<<min(tries, 10), PauseMax)
}

// attentionsMax is how many unit attentions in a row are answered at once: a
// target has a handful for each nexus, and only one that is mad has more.
const attentionsMax = 16

// Due returns when a command that v wants sent again may go: 0 is at once.
func Due(v Verdict, c *Command, now Instant) Instant {
	if v.Action == AtOnce && c.Tries < attentionsMax {
		return 0
	}
	tries := c.Tries
	if v.Action == AtOnce {
		tries -= attentionsMax
	}
	return now + Instant(Pause(tries))
}
