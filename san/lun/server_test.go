package lun_test

import (
	"testing"

	"steadfast/fault"
	"steadfast/san/lun"
	"steadfast/san/lun/luntest"
	"steadfast/scsi"
)

// TestViews: who sees what, under its own name or as anyone, and what the
// server refuses.
func TestViews(t *testing.T) {
	r := newRig(t)
	third := luntest.NewRAM("third", 0x33, volumeSize)
	if err := r.srv.SetView(targetName, map[string][]lun.Mapping{
		lun.Any: {{LUN: 1, Volume: r.plain.ID()}, {LUN: 300, Volume: third.ID()}},
		hostB:   {{LUN: 1, Volume: r.other.ID()}},
	}); err != nil {
		t.Fatal(err)
	}
	a, b := r.login(hostA, 1), r.login(hostB, 1)
	a.next(1)
	b.next(1)
	a.ok(1, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
	b.ok(1, transfer(scsi.OpWrite10, 0, 1), pattern(2, 1))
	if r.plain.Bytes()[0] != 1 || r.other.Bytes()[0] != 2 {
		t.Error("an initiator's own mapping does not take precedence")
	}
	// A volume that becomes a unit appears, and everyone is told.
	a.want(300, cdb(scsi.OpTestUnitReady), nil, "5h/25h/00h")
	if err := r.srv.AddVolume(third); err != nil {
		t.Fatal(err)
	}
	a.want(1, cdb(scsi.OpTestUnitReady), nil, "6h/3fh/0eh")
	a.want(300, cdb(scsi.OpTestUnitReady), nil, "6h/29h/00h")
	if err := r.srv.RemoveVolume(third.ID()); err != nil {
		t.Fatal(err)
	}
	a.want(300, cdb(scsi.OpTestUnitReady), nil, "5h/25h/00h")

	for name, err := range map[string]error{
		"volume twice":    r.srv.AddVolume(r.plain),
		"no volume":       r.srv.RemoveVolume(third.ID()),
		"no target":       r.srv.RemoveTarget("iqn.2026-11.io.example:none"),
		"LUN twice":       r.srv.SetView(targetName, map[string][]lun.Mapping{hostA: {{LUN: 1}, {LUN: 1}}}),
		"LUN too great":   r.srv.SetView(targetName, map[string][]lun.Mapping{hostA: {{LUN: scsi.LUNMax + 1}}}),
		"nothing to lift": r.srv.ClearReservations(third.ID()),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	_, err := r.srv.OpenPort(scsi.Nexus{InitiatorName: hostA, TargetName: "iqn.2026-11.io.example:none"}, nil)
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("a port of no target: %v", err)
	}
	if err := r.srv.SetView(targetName, map[string][]lun.Mapping{hostB: {{LUN: 1, Volume: r.other.ID()}}}); err != nil {
		t.Fatal(err)
	}
	a.want(1, cdb(scsi.OpTestUnitReady), nil, "5h/25h/00h")
	if _, err = r.srv.OpenPort(scsi.Nexus{InitiatorName: hostA, TargetName: targetName}, nil); !fault.Is(err, fault.Denied) {
		t.Errorf("a port that sees nothing: %v", err)
	}
}

// TestStatus counts what was done and lists who sees a unit.
func TestStatus(t *testing.T) {
	r := newRig(t)
	a := r.open(hostA)
	r.open(hostB)
	a.ok(plainLUN, transfer(scsi.OpWrite10, 0, 8), pattern(1, 8))
	a.ok(plainLUN, transfer(scsi.OpRead10, 0, 4), nil)
	a.want(plainLUN, transfer(scsi.OpRead10, volumeBlocks, 4), nil, "5h/21h/00h")
	units := r.srv.Units()
	if len(units) != 2 || units[1].Name != "plain" || len(units[1].Nexuses) != 2 || units[1].Nexuses[0].InitiatorName != hostA {
		t.Fatalf("units %+v", units)
	}
	c := units[1].Counters
	c.ReadNanos, c.WriteNanos = 0, 0
	if want := (lun.Counters{Reads: 1, Writes: 1, ReadBytes: 2048, WrittenBytes: 4096, Errors: 1}); c != want {
		t.Errorf("counters %+v, want %+v", c, want)
	}
}
