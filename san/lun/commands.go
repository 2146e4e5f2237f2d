package lun

import "steadfast/scsi"

// Recommended command timeouts in seconds. A durable write waits for a drive,
// and in a cluster for a takeover.
const (
	timeoutShort = 30
	timeoutIO    = 60
	timeoutLong  = 600
)

// newCommands builds the table of all commands, by operation code. It is built
// for each server rather than kept in a variable, since one command lists it.
func newCommands() (table [256]*entry) {
	for _, c := range commandList() {
		e := table[c.Opcode]
		if e == nil {
			e = &entry{}
			table[c.Opcode] = e
		}
		if c.HasAction {
			c.Usage[1] = c.Usage[1]&^0x1f | byte(c.Action)
			e.actions = append(e.actions, c)
		} else {
			e.command = c
		}
		c.Usage[0] = byte(c.Opcode)
	}
	return table
}

// usage makes a CDB usage bitmap: the operation code and the service action
// are filled in later. SPC-4, 6.35.3.
func usage(rest ...byte) []byte { return append([]byte{0}, rest...) }

// Usage bitmaps of the block commands by size: byte 1 is given.
func usage6() []byte { return usage(0x1f, 0xff, 0xff, 0xff, 0x04) }

func usage10(b byte) []byte {
	return usage(b, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0x04)
}

func usage12(b byte) []byte {
	return usage(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04)
}

func usage16(b byte) []byte {
	return usage(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04)
}

// plain makes the entry of a command without service actions.
func plain(op scsi.Opcode, c class, timeout uint32, use []byte, run func(*task) *scsi.Check) command {
	return command{scsi.Supported{Opcode: op, Usage: use, Timeout: timeout}, c, run}
}

// action makes the entry of a service action.
func action(op scsi.Opcode, a uint16, c class, timeout uint32, use []byte, run func(*task) *scsi.Check) command {
	return command{scsi.Supported{Opcode: op, Action: a, HasAction: true, Usage: use, Timeout: timeout}, c, run}
}

// commandList lists every command that a unit performs.
func commandList() []command {
	list := generalCommands()
	list = append(list, mediumCommands()...)
	return append(list, reservationCommands()...)
}

// generalCommands are those of SPC-4 that tell or set something.
func generalCommands() []command {
	const free = legacyFree | accessFree
	return []command{
		plain(scsi.OpTestUnitReady, 0, timeoutShort, usage(0, 0, 0, 0, 0x04), (*task).testUnitReady),
		plain(scsi.OpRequestSense, free|attentionFree, timeoutShort, usage(0x01, 0, 0, 0xff, 0x04), (*task).requestSense),
		plain(scsi.OpInquiry, free|attentionFree, timeoutShort, usage(0x01, 0xff, 0xff, 0xff, 0x04), (*task).inquiry),
		plain(scsi.OpReportLUNs, free|attentionFree, timeoutShort, usage(0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04), (*task).reportLUNs),
		plain(scsi.OpModeSense6, reads|standbyFree, timeoutShort, usage(0x08, 0xff, 0xff, 0xff, 0x04), (*task).modeSense),
		plain(scsi.OpModeSense10, reads|standbyFree, timeoutShort, usage(0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0x04), (*task).modeSense),
		plain(scsi.OpModeSelect6, writes|standbyFree|passes, timeoutShort, usage(0x11, 0, 0, 0xff, 0x04), (*task).modeSelect),
		plain(scsi.OpModeSelect10, writes|standbyFree|passes, timeoutShort, usage(0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04), (*task).modeSelect),
		plain(scsi.OpLogSense, legacyFree|standbyFree, timeoutShort, usage(0x01, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0x04), (*task).logSense),
		plain(scsi.OpStartStopUnit, 0, timeoutLong, usage(0x01, 0, 0x0f, 0xf7, 0x04), (*task).startStop),
		plain(scsi.OpReadDefectData10, reads, timeoutShort, usage(0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0x04), (*task).readDefects),
		plain(scsi.OpReadDefectData12, reads, timeoutShort, usage(0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04), (*task).readDefects),
		// SAM-5, 5.14 has it end with a unit attention like any other command. But it is
		// the answer to the attention that access states have changed, and Linux (up to
		// 6.1 at least, scsi_dh_alua) waits 2 s after each one that it meets there,
		// before it uses the path that has become active. They stay for other commands.
		action(scsi.OpMaintenanceIn, scsi.ActionReportTargetPortGroups, free|attentionFree, timeoutShort,
			usage(0xe0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04), (*task).reportPortGroups),
		action(scsi.OpMaintenanceIn, scsi.ActionReportOpcodes, reads|standbyFree, timeoutShort,
			usage(0, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04), (*task).reportOpcodes),
		action(scsi.OpMaintenanceIn, scsi.ActionReportTaskManagement, reads|standbyFree, timeoutShort,
			usage(0, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04), (*task).reportTaskManagement),
		plain(scsi.OpReadCapacity10, legacyFree|standbyFree, timeoutShort, usage(0, 0, 0, 0, 0, 0, 0, 0, 0x04), (*task).readCapacity10),
		action(scsi.OpServiceActionIn16, scsi.ActionReadCapacity16, legacyFree|standbyFree, timeoutShort,
			usage(0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04), (*task).readCapacity16),
		action(scsi.OpServiceActionIn16, scsi.ActionGetLBAStatus, reads, timeoutIO, usage16(0), (*task).getLBAStatus),
	}
}

// mediumCommands are those of SBC-3 that read or write the medium.
func mediumCommands() []command {
	const w = writes | modifies
	return []command{
		plain(scsi.OpRead6, reads, timeoutIO, usage6(), (*task).read),
		plain(scsi.OpRead10, reads, timeoutIO, usage10(0xf8), (*task).read),
		plain(scsi.OpRead12, reads, timeoutIO, usage12(0xf8), (*task).read),
		plain(scsi.OpRead16, reads, timeoutIO, usage16(0xf8), (*task).read),
		plain(scsi.OpWrite6, w, timeoutIO, usage6(), (*task).write),
		plain(scsi.OpWrite10, w, timeoutIO, usage10(0xf8), (*task).write),
		plain(scsi.OpWrite12, w, timeoutIO, usage12(0xf8), (*task).write),
		plain(scsi.OpWrite16, w, timeoutIO, usage16(0xf8), (*task).write),
		plain(scsi.OpVerify10, reads, timeoutIO, usage10(0xf6), (*task).verify),
		plain(scsi.OpVerify12, reads, timeoutIO, usage12(0xf6), (*task).verify),
		plain(scsi.OpVerify16, reads, timeoutIO, usage16(0xf6), (*task).verify),
		plain(scsi.OpWriteVerify10, w, timeoutIO, usage10(0xf6), (*task).writeVerify),
		plain(scsi.OpWriteVerify12, w, timeoutIO, usage12(0xf6), (*task).writeVerify),
		plain(scsi.OpWriteVerify16, w, timeoutIO, usage16(0xf6), (*task).writeVerify),
		plain(scsi.OpOrWrite16, w, timeoutIO, usage16(0xf8), (*task).orWrite),
		plain(scsi.OpCompareAndWrite, w, timeoutIO,
			usage(0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 0x04), (*task).compareAndWrite),
		plain(scsi.OpWriteSame10, w, timeoutIO, usage10(0xf8), (*task).writeSame),
		plain(scsi.OpWriteSame16, w, timeoutIO, usage16(0xf9), (*task).writeSame),
		plain(scsi.OpUnmap, w, timeoutIO, usage(0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04), (*task).unmap),
		plain(scsi.OpPrefetch10, reads, timeoutIO, usage10(0x02), (*task).prefetch),
		plain(scsi.OpPrefetch16, reads, timeoutIO, usage16(0x02), (*task).prefetch),
		plain(scsi.OpSynchronizeCache10, writes, timeoutLong, usage10(0x02), (*task).synchronize),
		plain(scsi.OpSynchronizeCache16, writes, timeoutLong, usage16(0x02), (*task).synchronize),
		action(scsi.OpExtendedCopy, scsi.ActionExtendedCopyLID1, writes, timeoutLong,
			usage(0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04), (*task).extendedCopy),
		action(scsi.OpReceiveCopyResults, scsi.ActionCopyStatus, reads, timeoutShort, usageCopyResults(), (*task).copyStatus),
		action(scsi.OpReceiveCopyResults, scsi.ActionCopyOperatingParams, reads, timeoutShort, usageCopyResults(), (*task).copyParams),
		action(scsi.OpReceiveCopyResults, scsi.ActionCopyFailedSegments, reads, timeoutShort, usageCopyResults(), (*task).copyFailure),
	}
}

func usageCopyResults() []byte {
	return usage(0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04)
}

// reservationCommands are RESERVE and RELEASE, and persistent reservations.
func reservationCommands() []command {
	list := []command{
		plain(scsi.OpReserve6, legacyFree, timeoutShort, usage(0, 0, 0, 0, 0x04), (*task).reserve),
		plain(scsi.OpReserve10, legacyFree, timeoutShort, usage(0, 0, 0, 0, 0, 0, 0, 0, 0x04), (*task).reserve),
		plain(scsi.OpRelease6, legacyFree, timeoutShort, usage(0, 0, 0, 0, 0x04), (*task).release),
		plain(scsi.OpRelease10, legacyFree, timeoutShort, usage(0, 0, 0, 0, 0, 0, 0, 0, 0x04), (*task).release),
	}
	for _, a := range []uint16{scsi.ActionPersistReadKeys, scsi.ActionPersistReadReserved, scsi.ActionPersistCapabilities, scsi.ActionPersistReadFull} {
		list = append(list, action(scsi.OpPersistentIn, a, standbyFree, timeoutShort,
			usage(0, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04), (*task).persistentIn))
	}
	for a := uint16(scsi.ActionPersistRegister); a <= scsi.ActionPersistRegisterMove; a++ {
		// Whether it conflicts is for the reservations themselves to say.
		list = append(list, action(scsi.OpPersistentOut, a, standbyFree|passes, timeoutIO,
			usage(0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x04), (*task).persistentOut))
	}
	return list
}
