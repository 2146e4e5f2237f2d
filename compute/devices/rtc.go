package devices

import (
	"steadfast/compute/device"
	"steadfast/fault"
)

// Registers of the goldfish real-time clock, by offset: each is four bytes. Android's
// "goldfish virtual hardware", RTC.
const (
	rtcTimeLow        = 0x00
	rtcTimeHigh       = 0x04
	rtcAlarmLow       = 0x08
	rtcAlarmHigh      = 0x0c
	rtcEnabled        = 0x10
	rtcClearAlarm     = 0x14
	rtcAlarmStatus    = 0x18
	rtcClearInterrupt = 0x1c
)

// RTC is a real-time clock with an alarm: the guest's wall clock in nanoseconds since
// 1970, and what the guest has set it off by.
//
// The machine asks for its deadline after every access, and when the wall clock was set,
// and calls Fire then.
type RTC struct {
	board device.Board

	offset  uint64 // what is added to the wall clock, modulo 2^64
	high    uint32 // of the time whose low half was read last
	alarm   uint64 // when, by this clock
	armed   bool
	due     bool // the alarm has fired
	enabled bool // and is to interrupt
}

// NewRTC makes up a clock.
func NewRTC(board device.Board) *RTC { return &RTC{board: board} }

func (r *RTC) now() uint64 { return r.board.Wall() + r.offset }

// Deadline is when the alarm fires, by Board.Now in nanoseconds; false when none is set.
func (r *RTC) Deadline() (at uint64, ok bool) {
	if !r.armed {
		return 0, false
	}
	at = r.board.Now()
	if now := r.now(); r.alarm > now {
		left := r.alarm - now
		if at+left < at {
			return 0, false // after the end of time
		}
		at += left
	}
	return at, true
}

// Fire has the alarm go off if it is time. Now is the guest's time, in nanoseconds.
func (r *RTC) Fire(now uint64) {
	if at, ok := r.Deadline(); ok && at <= now {
		r.armed, r.due = false, true
		r.update()
	}
}

func (r *RTC) update() { r.board.Interrupt(r.due && r.enabled) }

// Load reads a register. The low half of the time says what its high half was then.
func (r *RTC) Load(offset uint64, size int) uint64 {
	if size != 4 {
		return 0
	}
	switch offset {
	case rtcTimeLow:
		now := r.now()
		r.high = uint32(now >> 32)
		return now & 0xffff_ffff
	case rtcTimeHigh:
		return uint64(r.high)
	case rtcAlarmLow:
		return r.alarm & 0xffff_ffff
	case rtcAlarmHigh:
		return r.alarm >> 32
	case rtcEnabled:
		return bit(r.enabled)
	case rtcAlarmStatus:
		return bit(r.armed)
	}
	return 0
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// Store writes a register. Of a time or an alarm the high half comes first, and the
// low half sets it; each half alone leaves the other.
func (r *RTC) Store(offset uint64, size int, value uint64) {
	if size != 4 {
		return
	}
	value &= 0xffff_ffff
	switch offset {
	case rtcTimeLow:
		now := r.now()
		r.offset += (now&^0xffff_ffff | value) - now
	case rtcTimeHigh:
		now := r.now()
		r.offset += (value<<32 | now&0xffff_ffff) - now
	case rtcAlarmLow:
		r.alarm = r.alarm&^0xffff_ffff | value
		r.armed = true
		r.Fire(r.board.Now()) // one that has passed goes off at once
	case rtcAlarmHigh:
		r.alarm = value<<32 | r.alarm&0xffff_ffff
	case rtcEnabled:
		r.enabled = value&1 != 0
		r.update()
	case rtcClearAlarm:
		r.armed = false
	case rtcClearInterrupt:
		r.due = false
		r.update()
	}
}

// Deliver ignores everything: there is nothing that comes from the world.
func (r *RTC) Deliver(*device.Input) {}

const rtcVersion = 1

// Save appends the device's state. docs/formats/machine.md
func (r *RTC) Save(e *device.Encoder) {
	e.U8(rtcVersion)
	e.U64(r.offset)
	e.U32(r.high)
	e.U64(r.alarm)
	e.Bool(r.armed)
	e.Bool(r.due)
	e.Bool(r.enabled)
}

// Restore takes what Save has made. It does not call Board.Interrupt.
func (r *RTC) Restore(d *device.Decoder) error {
	if v := d.U8(); d.Err() == nil && v != rtcVersion {
		return fault.New(fault.Invalid, "a saved clock of version %d: this program knows %d", v, rtcVersion)
	}
	r.offset = d.U64()
	r.high = d.U32()
	r.alarm = d.U64()
	r.armed = d.Bool()
	r.due = d.Bool()
	r.enabled = d.Bool()
	return d.Err()
}
