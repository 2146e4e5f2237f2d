package lun_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"steadfast/san/lun"
	"steadfast/scsi"
)

// mappings is the view that a rig begins with.
func mappings(r *rig) []lun.Mapping {
	return []lun.Mapping{{LUN: plainLUN, Volume: r.plain.ID()}, {LUN: otherLUN, Volume: r.other.ID()}}
}

// control makes a control mode page: D_SENSE, SWP and TAS.
func control(sense, protect, aborted byte) []byte {
	return []byte{0x0a, 0x0a, 0x02 | sense, 0x10, protect, aborted, 0, 0, 0xff, 0xff, 0, 0}
}

// modeList makes a MODE SELECT(6) parameter list of pages.
func modeList(pages ...[]byte) []byte {
	list := make([]byte, 4)
	for _, p := range pages {
		list = append(list, p...)
	}
	return list
}

// modeSelect makes the CDB for a list.
func modeSelect(list []byte) []byte {
	return cdb(scsi.OpModeSelect6, 1, uint8(0x10), 4, uint8(len(list)))
}

// vpd reads a VPD page.
func (h *host) vpd(n int, page uint8) []byte {
	h.t.Helper()
	return h.ok(n, cdb(scsi.OpInquiry, 1, uint8(1), 2, page, 3, uint16(1024)), nil)
}

// TestVPD reads every page that page 00h lists, in ascending order, and what
// initiators go by.
func TestVPD(t *testing.T) {
	r := newRig(t)
	a, b := r.open(hostA), r.login(hostB, 2)
	list := a.vpd(plainLUN, scsi.VPDSupported)
	if want := []byte{0, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2}; !bytes.Equal(list[4:], want) {
		t.Errorf("page 00h lists % x, want % x", list[4:], want)
	}
	for _, code := range list[4:] {
		page := a.vpd(plainLUN, code)
		if page[1] != code || int(binary.BigEndian.Uint16(page[2:])) != len(page)-4 {
			t.Errorf("page %02xh has the header % x and %d bytes", code, page[:4], len(page))
		}
	}
	// The identifier is type 6, the same on every path, and differs between
	// volumes from its first bytes on.
	id, other := a.vpd(plainLUN, scsi.VPDIdentification)[4:24], a.vpd(otherLUN, scsi.VPDIdentification)[4:24]
	if id[4]>>4 != 6 || !bytes.Equal(id, b.vpd(plainLUN, scsi.VPDIdentification)[4:24]) || id[4] == other[4] {
		t.Errorf("NAA designators % x, % x", id, other)
	}
	for path, h := range map[string]*host{",t,0x0001": a, ",t,0x0002": b} {
		if page := h.vpd(plainLUN, scsi.VPDIdentification); !bytes.Contains(page, []byte(targetName+path)) {
			t.Errorf("page 83h does not name the port %s", path)
		}
	}
	a.want(plainLUN, cdb(scsi.OpInquiry, 1, uint8(1), 2, uint8(0x99), 3, uint16(255)), nil, "5h/24h/00h")
	a.want(plainLUN, cdb(scsi.OpInquiry, 2, uint8(1), 3, uint16(255)), nil, "5h/24h/00h")
	if got := a.ok(plainLUN, cdb(scsi.OpInquiry, 3, uint16(5)), nil); len(got) != 5 {
		t.Errorf("INQUIRY cut to 5 gives %d bytes", len(got))
	}
}

// TestAbsentUnit: a LUN without a unit answers INQUIRY, REPORT LUNS and
// REQUEST SENSE, and nothing else. SPC-4, 6.6.1; SAM-5, 5.11.
func TestAbsentUnit(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	for _, n := range []int{0, 77, 300} {
		if got := h.ok(n, cdb(scsi.OpInquiry, 3, uint16(96)), nil); got[0] != scsi.PeripheralAbsent {
			t.Errorf("LUN %d: peripheral %02xh", n, got[0])
		}
		h.want(n, cdb(scsi.OpTestUnitReady), nil, "5h/25h/00h")
		h.want(n, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1), "5h/25h/00h")
		want := "00000010" + "00000000" + "0001000000000000" + "0002000000000000"
		if got := hex.EncodeToString(h.ok(n, cdb(scsi.OpReportLUNs, 6, uint32(256)), nil)); got != want {
			t.Errorf("LUN %d reports %s", n, got)
		}
		if c, ok := scsi.DecodeSense(h.ok(n, cdb(scsi.OpRequestSense, 4, uint8(252)), nil)); !ok || c.ASC != 0x25 {
			t.Errorf("LUN %d: REQUEST SENSE gives %+v", n, c)
		}
		if got := h.Manage(scsi.LogicalUnitResetFunction, scsi.MakeLUN(n), 0); got != scsi.LUNDoesNotExist {
			t.Errorf("LUN %d: a reset gives %d", n, got)
		}
	}
	h.want(plainLUN, cdb(scsi.OpReportLUNs, 6, uint32(15)), nil, "5h/24h/00h")
}

// TestCapacity: READ CAPACITY of both sizes. SBC-3, 5.15, 5.16.
func TestCapacity(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	if got, want := hex.EncodeToString(h.ok(plainLUN, cdb(scsi.OpReadCapacity10), nil)), "00001fff00000200"; got != want {
		t.Errorf("READ CAPACITY(10): %s, want %s", got, want)
	}
	got := hex.EncodeToString(h.ok(plainLUN, cdb(scsi.OpServiceActionIn16, 1, uint8(scsi.ActionReadCapacity16), 10, uint32(32)), nil))
	// Physical blocks of 2^3 logical ones, LBPME and LBPRZ.
	if want := "0000000000001fff" + "00000200" + "00" + "03" + "c000"; !strings.HasPrefix(got, want) || len(got) != 64 {
		t.Errorf("READ CAPACITY(16): %s, want %s...", got, want)
	}
	h.want(plainLUN, cdb(scsi.OpServiceActionIn16, 1, uint8(0x11)), nil, "5h/24h/00h")
}

// TestSupportedOpcodes asks for every command that the list of all names, one
// by one, and for what there is not. SPC-4, 6.35.
func TestSupportedOpcodes(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	report := func(option, op uint8, action uint16) *scsi.Task {
		return h.do(plainLUN, cdb(scsi.OpMaintenanceIn, 1, uint8(scsi.ActionReportOpcodes), 2, option, 3, op, 4, action, 6, uint32(8192)), nil)
	}
	all := report(0, 0, 0).DataIn
	if int(binary.BigEndian.Uint32(all)) != len(all)-4 || len(all)%8 != 4 {
		t.Fatalf("the list has %d bytes and says %d", len(all), binary.BigEndian.Uint32(all))
	}
	count := 0
	for d := all[4:]; len(d) > 0; d = d[8:] {
		count++
		op, action, has, length := d[0], binary.BigEndian.Uint16(d[2:]), d[5]&1 != 0, int(d[7])
		option, wrong := uint8(1), uint8(2)
		if has {
			option, wrong = 2, 1
		}
		for _, o := range []uint8{option, 3} {
			one := report(o, op, action).DataIn
			if one[1]&7 != 3 || int(binary.BigEndian.Uint16(one[2:])) != length || len(one) != 4+length || one[4] != op {
				t.Errorf("%02xh/%02xh, option %d: % x", op, action, o, one)
			}
			if has && one[5]&0x1f != byte(action) {
				t.Errorf("%02xh/%02xh: usage % x", op, action, one[4:])
			}
		}
		if got := verdict(report(wrong, op, action)); got != "5h/24h/00h" {
			t.Errorf("%02xh/%02xh, option %d: %s", op, action, wrong, got)
		}
		if with := report(option|0x80, op, action).DataIn; len(with) != 4+length+12 || with[1]&0x80 == 0 {
			t.Errorf("%02xh/%02xh with timeouts: % x", op, action, with)
		}
	}
	if count < 60 {
		t.Errorf("only %d commands", count)
	}
	if got := report(1, 0xff, 0).DataIn; got[1]&7 != 1 {
		t.Errorf("FFh: % x", got)
	}
	if got := report(3, uint8(scsi.OpMaintenanceIn), 0x1f).DataIn; got[1]&7 != 1 {
		t.Errorf("an unknown service action: % x", got)
	}
	if got := hex.EncodeToString(h.ok(plainLUN, cdb(scsi.OpMaintenanceIn, 1, uint8(scsi.ActionReportTaskManagement), 6, uint32(16)), nil)); got != "f8000000" {
		t.Errorf("task management functions %s", got)
	}
	h.want(plainLUN, []byte{0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, nil, "5h/20h/00h")
}

// TestModePages reads and changes what can be changed. SPC-4, 7.5.
func TestModePages(t *testing.T) {
	r := newRig(t)
	a, b := r.open(hostA), r.open(hostB)
	sense := func(page, pc uint8) []byte {
		return cdb(scsi.OpModeSense10, 1, uint8(0x08), 2, pc<<6|page, 7, uint16(512))
	}
	caching := func(wce byte) []byte { return append([]byte{0x08, 0x12, wce}, make([]byte, 17)...) }
	if got := a.ok(plainLUN, sense(0x08, 0), nil); got[10] != 0 {
		t.Error("WCE is set on a volume without write cache")
	}
	list := modeList(caching(0x04), control(0x04, 0, 0x40))
	a.ok(plainLUN, modeSelect(list), list)
	if got := a.ok(plainLUN, sense(0x08, 0), nil); got[10] != 0x04 || !r.plain.WriteCache() {
		t.Error("WCE was not set")
	}
	// The others hear of it; who changed it does not.
	b.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/2ah/01h")
	b.ok(plainLUN, cdb(scsi.OpTestUnitReady), nil)
	a.ok(plainLUN, cdb(scsi.OpTestUnitReady), nil)
	// D_SENSE: descriptor format from now on.
	if task := a.do(plainLUN, transfer(scsi.OpRead10, volumeBlocks, 1), nil); task.Sense[0] != 0x72 {
		t.Errorf("sense % x", task.Sense)
	}
	a.want(plainLUN, sense(0x08, 3), nil, "5h/39h/00h")
	a.want(plainLUN, sense(0x01, 0), nil, "5h/24h/00h")
	bad := modeList(control(0, 0, 0x20))
	a.want(plainLUN, modeSelect(bad), bad, "5h/26h/00h")
	a.want(plainLUN, cdb(scsi.OpModeSelect6, 1, uint8(0x11), 4, uint8(len(list))), list, "5h/24h/00h") // SP
	a.want(plainLUN, modeSelect(list), list[:6], "5h/1ah/00h")
	a.ok(plainLUN, modeSelect(nil), nil)
	b.ok(plainLUN, cdb(scsi.OpTestUnitReady), nil)
}

// TestLogPages reads every page that page 00h lists. SPC-4, 7.3.
func TestLogPages(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	sense := func(page uint8) []byte { return cdb(scsi.OpLogSense, 2, 0x40|page, 7, uint16(512)) }
	list := h.ok(plainLUN, sense(0), nil)
	for _, code := range list[4:] {
		page := h.ok(plainLUN, sense(code), nil)
		if page[0] != code || int(binary.BigEndian.Uint16(page[2:])) != len(page)-4 {
			t.Errorf("page %02xh: % x", code, page)
		}
	}
	// Available and used, in threshold sets of 1 MiB. SBC-3, 6.4.4.
	h.ok(plainLUN, transfer(scsi.OpWriteSame16, 0, 2048), pattern(1, 1))
	if got, want := hexOf(h.ok(plainLUN, sense(scsi.LogProvisioning), nil)[4:]), "0001030800000003"+"02000000"+"0002030800000001"+"01000000"; got != want {
		t.Errorf("provisioning %s, want %s", got, want)
	}
	h.ok(plainLUN, cdb(scsi.OpLogSense, 2, uint8(0x40), 3, uint8(0xff), 7, uint16(64)), nil)
	h.want(plainLUN, cdb(scsi.OpLogSense, 2, uint8(0x4c), 3, uint8(1), 7, uint16(64)), nil, "5h/24h/00h")
	h.want(plainLUN, sense(0x3e), nil, "5h/24h/00h")
	h.want(plainLUN, flagged(sense(0), 1), nil, "5h/24h/00h") // SP
}

// TestSmallCommands covers the rest of what tells or sets something.
func TestSmallCommands(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	for _, c := range []struct {
		name string
		cdb  []byte
		ends string
		data string
	}{
		{"REQUEST SENSE", cdb(scsi.OpRequestSense, 4, uint8(252)), "good", "70000000000000" + "0a" + strings.Repeat("00", 10)},
		{"REQUEST SENSE, descriptors", cdb(scsi.OpRequestSense, 1, uint8(1), 4, uint8(252)), "good", "7200000000000000"},
		{"READ DEFECT DATA(10)", cdb(scsi.OpReadDefectData10, 2, uint8(0x1d), 7, uint16(64)), "good", "001d0000"},
		{"READ DEFECT DATA(12)", cdb(scsi.OpReadDefectData12, 1, uint8(0x0d), 6, uint32(64)), "good", "000d000000000000"},
		{"START", cdb(scsi.OpStartStopUnit, 4, uint8(1)), "good", ""},
		{"STOP", cdb(scsi.OpStartStopUnit, 4, uint8(0)), "good", ""},
		{"EJECT", cdb(scsi.OpStartStopUnit, 4, uint8(2)), "5h/24h/00h", ""},
		{
			"RTPG", cdb(scsi.OpMaintenanceIn, 1, uint8(scsi.ActionReportTargetPortGroups), 6, uint32(64)), "good",
			"0000000c" + "008f0001" + "00020001" + "00000001",
		},
		{"RTPG, extended", cdb(scsi.OpMaintenanceIn, 1, uint8(0x20|scsi.ActionReportTargetPortGroups), 6, uint32(8)), "good", "00000010" + "10000000"},
		{"RTPG, unknown format", cdb(scsi.OpMaintenanceIn, 1, uint8(0x40|scsi.ActionReportTargetPortGroups), 6, uint32(8)), "5h/24h/00h", ""},
	} {
		task := h.do(plainLUN, c.cdb, nil)
		if got := hex.EncodeToString(task.DataIn); verdict(task) != c.ends || got != c.data {
			t.Errorf("%s: %s %s, want %s %s", c.name, verdict(task), got, c.ends, c.data)
		}
	}
}
