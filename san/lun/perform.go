package lun

import (
	"errors"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/scsi"
)

// class says how a command meets reservations, protection and access states.
// SPC-4, table 62 and 5.15.2.4; SBC-3, table 13.
type class uint16

const (
	// reads: conflicts with exclusive access types.
	reads class = 1 << iota
	// writes: conflicts with all types.
	writes
	// modifies: changes the medium, so that write protection refuses it.
	modifies
	// legacyFree: allowed although another nexus has RESERVE(6).
	legacyFree
	// attentionFree: performed although a unit attention is pending.
	attentionFree
	// standbyFree: performed in the asymmetric access state standby, too. READ
	// CAPACITY is among them, which SPC-4 does not ask for: Linux sizes a disk
	// by whatever path it finds first.
	standbyFree
	// accessFree: performed in every asymmetric access state.
	accessFree
	// passes: in standby, it is performed by the node that serves the unit.
	passes
)

// command is what is known of one command, or one service action of it.
type command struct {
	scsi.Supported
	class class
	run   func(*task) *scsi.Check
}

// entry is what an operation code stands for: a command, or some by service
// action.
type entry struct {
	command
	actions []command
}

// find returns the command that a CDB is, or why it is none.
func (s *Server) find(cdb []byte) (*command, *scsi.Check) {
	e := s.commands[cdb[0]]
	if e == nil {
		return nil, scsi.Fail(scsi.KeyIllegalRequest, 0x20, 0) // INVALID COMMAND OPERATION CODE
	}
	c := &e.command
	if e.actions != nil {
		c = nil
		for i := range e.actions {
			if e.actions[i].Action == uint16(cdb[1]&0x1f) {
				c = &e.actions[i]
			}
		}
		if c == nil {
			return nil, scsi.InvalidCDB(1, 4)
		}
	}
	if len(cdb) < len(c.Usage) {
		return nil, scsi.InvalidCDB(len(cdb), -1)
	}
	if control := len(c.Usage) - 1; cdb[control]&0x04 != 0 {
		return nil, scsi.InvalidCDB(control, 2) // NACA, which we have not
	}
	return c, nil
}

// perform runs a started task on its unit.
func (k *task) perform() *scsi.Check {
	c, check := k.port.srv.find(k.CDB)
	if k.itl.pending() && (c == nil || c.class&attentionFree == 0) {
		if check, ok := k.itl.take(); ok {
			return check
		}
	}
	if check != nil {
		return check
	}
	if check := k.admit(c.class); check != nil {
		return check
	}
	if c.class&passes != 0 && k.late == nil { // it goes on once
		if v := k.itl.unit.standby(); v != nil {
			return k.passOn(v)
		}
	}
	return c.run(k)
}

// admit checks what keeps this nexus, or everyone, from commands of a class.
func (k *task) admit(c class) *scsi.Check {
	d := k.itl.denied.Load()
	if d != 0 {
		if d&denyLegacy != 0 && c&legacyFree == 0 ||
			d&denyRead != 0 && c&(reads|writes) != 0 ||
			d&denyWrite != 0 && c&writes != 0 {
			return &scsi.Check{Status: scsi.ReservationConflict}
		}
		if d&denyAccess != 0 && c&accessFree == 0 {
			if check := k.notAccessible(c); check != nil {
				return check
			}
		}
	}
	if c&modifies != 0 && (d&denyProtect != 0 || k.itl.unit.protected.Load()) {
		return scsi.Fail(scsi.KeyDataProtect, 0x27, 0) // WRITE PROTECTED
	}
	return nil
}

// notAccessible says why the target port's group does not serve a command of
// class c, or nil if it does. SPC-4, 5.15.2.4.
func (k *task) notAccessible(c class) *scsi.Check {
	u := k.itl.unit
	u.mu.Lock()
	state := k.itl.access
	u.mu.Unlock()
	if (state == scsi.ActiveOptimized || state == scsi.ActiveNonOptimized) && u.elsewhere() {
		state = scsi.Standby // what there is to serve is with another node, whatever is said of the port
	}
	switch state {
	case scsi.ActiveOptimized, scsi.ActiveNonOptimized:
		return nil // it became active just now
	case scsi.Standby:
		if c&standbyFree != 0 {
			return nil
		}
		return errStandby
	case scsi.Transitioning:
		return scsi.Fail(scsi.KeyNotReady, 0x04, 0x0a)
	default:
		return scsi.Fail(scsi.KeyNotReady, 0x04, 0x0c)
	}
}

// finish makes check the task's answer. An answer without one is GOOD.
func (k *task) finish(check *scsi.Check) {
	k.Status = scsi.Good
	if check == nil {
		if k.answer != nil {
			k.Status, k.Sense = k.answer.Status, k.answer.Sense
		}
		return
	}
	k.Status = check.Status
	k.dropData()
	if check.Status == scsi.CheckCondition {
		descriptors := k.itl != nil && k.itl.unit.sense.Load()
		k.Sense = check.AppendSense(make([]byte, 0, scsi.SenseMax), descriptors)
	}
	if k.itl != nil && check.Status == scsi.CheckCondition && check.Key != scsi.KeyUnitAttention && check.Key != scsi.KeyMiscompare {
		k.itl.unit.count.errors.Add(1)
	}
}

// dropData gives back what data-in there is.
func (k *task) dropData() {
	if k.Release != nil {
		k.Release()
	}
	k.DataIn, k.Release = nil, nil
}

// clearAnswer takes an answer back that must not be sent.
func clearAnswer(t *scsi.Task) {
	if t.Release != nil {
		t.Release()
	}
	t.Sense, t.DataIn, t.Release, t.Required = nil, nil, nil, 0
}

// reply makes data the task's data-in, cut to the CDB's allocation length.
func (k *task) reply(data []byte, allocation int) *scsi.Check {
	k.DataIn = data[:min(len(data), allocation)]
	return nil
}

// failed turns a volume's error into a check; the fault table says which.
// lba, when not negative, goes into the INFORMATION field of a medium error.
func failed(err error, lba int64) *scsi.Check {
	var check *scsi.Check
	if errors.As(err, &check) {
		return check
	}
	check = &scsi.Check{Status: scsi.CheckCondition, Sense: fault.KindOf(err).Of().Sense}
	if check.Key == scsi.KeyMediumError && lba >= 0 {
		check.Information, check.HasInformation = uint64(lba), true
	}
	return check
}

// ended is what a task that was told to stop returns; nobody sees it.
var ended = &scsi.Check{Status: scsi.TaskAborted}

// buffer is a pooled data-in buffer with its release bound once, so that
// lending it allocates nothing.
type buffer struct {
	srv     *Server
	data    []byte
	release func()
}

// getBuffer lends a buffer of n bytes.
func (s *Server) getBuffer(n int) *buffer {
	b, _ := s.buffers.Get().(*buffer)
	if b == nil {
		b = &buffer{srv: s}
		b.release = b.put
	}
	b.data = bufpool.Get(n)
	return b
}

func (b *buffer) put() {
	bufpool.Put(b.data)
	b.data = nil
	b.srv.buffers.Put(b)
}

// bytesOf returns a number of logical blocks in bytes.
func bytesOf(blocks uint64) int64 { return int64(blocks) * block.SectorSize }
