package lun_test

import (
	"testing"

	"steadfast/san/lun"
	"steadfast/scsi"
)

// next takes the foremost unit attention of a nexus: "good" if there is none.
func (h *host) next(n int) string {
	h.t.Helper()
	return verdict(h.do(n, cdb(scsi.OpTestUnitReady), nil))
}

// TestAttentions raises each unit attention and looks who hears of it: once,
// and who caused it only where the standard says so. SAM-5, 5.14; SPC-4,
// annex F.
func TestAttentions(t *testing.T) {
	wce := append([]byte{0x08, 0x12, 0x04}, make([]byte, 17)...)
	for _, c := range []struct {
		name   string
		raise  func(r *rig, by *host)
		by     string // what the cause itself is told
		others string
	}{
		{"grow", func(r *rig, _ *host) { r.plain.Grow(1 << 20) }, "6h/2ah/09h", "6h/2ah/09h"},
		{"threshold", func(r *rig, _ *host) { r.plain.Tell(lun.Threshold) }, "6h/38h/07h", "6h/38h/07h"},
		{"rollback", func(r *rig, _ *host) { r.plain.Tell(lun.Replaced) }, "6h/28h/00h", "6h/28h/00h"},
		{"read-only", func(r *rig, _ *host) { r.plain.SetReadOnly(true) }, "6h/2ah/01h", "6h/2ah/01h"},
		{"mode select", func(_ *rig, by *host) { by.ok(plainLUN, modeSelect(modeList(wce)), modeList(wce)) }, "good", "6h/2ah/01h"},
		{"reset", func(_ *rig, by *host) { by.Manage(scsi.LogicalUnitResetFunction, scsi.MakeLUN(plainLUN), 0) }, "6h/29h/03h", "6h/29h/03h"},
		{"target reset", func(_ *rig, by *host) { by.Manage(scsi.TargetWarmReset, 0, 0) }, "6h/29h/03h", "6h/29h/03h"},
		{"access state", func(r *rig, _ *host) {
			r.srv.SetPortGroups([]scsi.PortGroup{{ID: 1, State: scsi.ActiveNonOptimized, Ports: []uint16{1}}})
		}, "6h/2ah/06h", "6h/2ah/06h"},
		{"LUNs", func(r *rig, _ *host) { r.view(mappings(r)[:1]...) }, "6h/3fh/0eh", "6h/3fh/0eh"},
		{"reservations cleared by hand", func(r *rig, _ *host) {
			if err := r.srv.ClearReservations(r.plain.ID()); err != nil {
				r.t.Error(err)
			}
		}, "6h/2ah/03h", "6h/2ah/03h"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			a, b := r.open(hostA), r.open(hostB)
			b.told.Store(0)
			c.raise(r, a)
			for who, want := range map[*host]string{a: c.by, b: c.others} {
				if got := who.next(plainLUN); got != want {
					t.Errorf("first %s, want %s", got, want)
				}
				if got := who.next(plainLUN); got != "good" {
					t.Errorf("then %s", got)
				}
			}
			if b.told.Load() == 0 {
				t.Error("the transport was not told")
			}
		})
	}
}

// TestGrow: the new capacity is there with the attention, also for a rollback
// that changes the size.
func TestGrow(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	h.want(plainLUN, transfer(scsi.OpWrite10, volumeBlocks, 1), pattern(1, 1), "5h/21h/00h")
	r.plain.Grow(1 << 20)
	h.want(plainLUN, transfer(scsi.OpWrite10, volumeBlocks, 1), pattern(1, 1), "6h/2ah/09h")
	h.ok(plainLUN, transfer(scsi.OpWrite10, volumeBlocks, 1), pattern(1, 1))
}

// TestAttentionOrder: conditions are reported one by one, the gravest first;
// INQUIRY and REPORT LUNS are performed in spite of them, and so is REPORT TARGET
// PORT GROUPS, which takes none away; REQUEST SENSE returns them as data, and
// REPORT LUNS answers that of the list. SPC-4, 6.33 and 6.39; SAM-5, 5.14.
func TestAttentionOrder(t *testing.T) {
	r := newRig(t)
	h := r.login(hostA, 1)
	r.plain.Tell(lun.Threshold)
	r.plain.Tell(lun.Changed)
	r.view(append(mappings(r), lun.Mapping{LUN: 9, Volume: r.plain.ID()})...)
	h.ok(plainLUN, cdb(scsi.OpInquiry, 3, uint16(96)), nil)
	h.ok(plainLUN, cdb(scsi.OpReportLUNs, 6, uint32(256)), nil)
	h.ok(plainLUN, cdb(scsi.OpMaintenanceIn, 1, uint8(scsi.ActionReportTargetPortGroups), 6, uint32(64)), nil)
	// An unknown command comes after the attention as well.
	h.want(plainLUN, []byte{0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, nil, "6h/29h/00h")
	sense, _ := scsi.DecodeSense(h.ok(plainLUN, cdb(scsi.OpRequestSense, 4, uint8(252)), nil))
	if sense.Key != scsi.KeyUnitAttention || sense.ASC != 0x2a || sense.ASCQ != 0x01 {
		t.Errorf("REQUEST SENSE returns %v", sense.Error())
	}
	for _, want := range []string{"6h/38h/07h", "good"} {
		if got := h.next(plainLUN); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := h.next(9); got != "6h/29h/00h" {
		t.Errorf("a new LUN begins with %s", got)
	}
}

// TestAccessStates: what a port's group serves in each asymmetric access
// state. SPC-4, 5.15.2.4.
func TestAccessStates(t *testing.T) {
	always := [][]byte{
		cdb(scsi.OpInquiry, 3, uint16(96)),
		cdb(scsi.OpReportLUNs, 6, uint32(64)),
		cdb(scsi.OpRequestSense, 4, uint8(252)),
		cdb(scsi.OpMaintenanceIn, 1, uint8(scsi.ActionReportTargetPortGroups), 6, uint32(64)),
	}
	standby := [][]byte{
		cdb(scsi.OpModeSense6, 2, uint8(0x3f), 4, uint8(255)),
		cdb(scsi.OpLogSense, 7, uint16(64)),
		cdb(scsi.OpReadCapacity10),
		cdb(scsi.OpPersistentIn, 7, uint16(64)),
	}
	active := [][]byte{cdb(scsi.OpTestUnitReady), transfer(scsi.OpRead10, 0, 1), transfer(scsi.OpSynchronizeCache10, 0, 0)}
	for _, c := range []struct {
		state           scsi.AccessState
		standby, active string
	}{
		{scsi.ActiveOptimized, "good", "good"},
		{scsi.ActiveNonOptimized, "good", "good"},
		{scsi.Standby, "good", "2h/04h/0bh"},
		{scsi.Unavailable, "2h/04h/0ch", "2h/04h/0ch"},
		{scsi.Transitioning, "2h/04h/0ah", "2h/04h/0ah"},
	} {
		r := newRig(t)
		h := r.open(hostA)
		away := r.login(hostB, 2) // in another group, which stays active
		away.next(plainLUN)
		r.srv.SetPortGroups([]scsi.PortGroup{{ID: 1, State: c.state, Ports: []uint16{1}}, {ID: 2, Ports: []uint16{2}}})
		if c.state != scsi.ActiveOptimized {
			// All nexuses hear of it, those of other groups too. SPC-4, 5.15.2.5.
			h.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/2ah/06h")
			away.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/2ah/06h")
		}
		for _, x := range always {
			h.ok(plainLUN, x, nil)
		}
		for _, x := range standby {
			h.want(plainLUN, x, nil, c.standby)
		}
		for _, x := range active {
			h.want(plainLUN, x, nil, c.active)
			away.ok(plainLUN, x, nil)
		}
	}
}
