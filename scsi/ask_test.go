package scsi

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestAskedIsUnderstood has the target's decoders read what an initiator
// builds.
func TestAskedIsUnderstood(t *testing.T) {
	var cdb [16]byte
	for _, op := range []Opcode{OpRead16, OpWrite16} {
		PutTransfer(cdb[:], op, 1<<40+7, 999, true)
		got, ok := DecodeTransfer(cdb[:])
		if want := (Transfer{LBA: 1<<40 + 7, Blocks: 999, FUA: true}); !ok || got != want {
			t.Errorf("%v: %+v", op, got)
		}
	}
	PutTransfer(cdb[:], OpCompareAndWrite, 5, 8, false)
	if got, _ := DecodeTransfer(cdb[:]); got != (Transfer{LBA: 5, Blocks: 8}) {
		t.Errorf("COMPARE AND WRITE: %+v", got)
	}
	PutWriteSame(cdb[:], 5, 1<<20, true)
	if got, _ := DecodeTransfer(cdb[:]); got != (Transfer{LBA: 5, Blocks: 1 << 20, Unmap: true}) {
		t.Errorf("WRITE SAME: %+v", got)
	}
	PutInquiry(cdb[:], 0x83, 300)
	if got := DecodeInquiry(cdb[:]); got != (InquiryCDB{true, 0x83, 300}) {
		t.Errorf("INQUIRY: %+v", got)
	}
	list := PutUnmap(cdb[:], nil, Extent{77, 88})
	if e, check := DecodeUnmap(list); check != nil || e.Len() != 1 || e.At(0) != (Extent{77, 88}) || int(cdb[8]) != len(list) {
		t.Errorf("UNMAP: %x", list)
	}
	want := PersistOut{Action: ActionPersistPreemptAbort, Type: 5, Key: 1 << 60, ActionKey: 3}
	list = PutPersistOut(cdb[:], nil, want)
	if got, check := DecodePersistOut(cdb[:10], list); check != nil || cmp.Diff(got, want) != "" {
		t.Errorf("PERSISTENT RESERVE OUT: %+v", got)
	}
}

// TestAnswersAreUnderstood reads what the target's encoders write, and no more
// than is there.
func TestAnswersAreUnderstood(t *testing.T) {
	b := AppendCapacity16(nil, 1<<41, 512, 3)
	if last, size, zeroed, ok := DecodeCapacity16(b); last != 1<<41 || size != 512 || !zeroed || !ok {
		t.Error("capacity")
	}
	groups := []PortGroup{{ID: 7, State: Standby, Preferred: true, Ports: []uint16{1, 300}}, {ID: 8, Ports: []uint16{2}}}
	b = AppendPortGroups(nil, groups, false)
	if got, ok := DecodePortGroups(b); !ok || cmp.Diff(got, groups) != "" {
		t.Errorf("groups %+v", got)
	}
	limits := BlockLimits{1, 8, 32768, 256, 4, 5, 6, 7, 1 << 33}
	b = AppendVPD(nil, 0, VPDBlockLimits, limits.Append)
	if got, ok := DecodeBlockLimits(b); !ok || got != limits {
		t.Errorf("limits %+v", got)
	}
	b = AppendVPD(nil, 0, VPDLogicalProvision, func(b []byte) []byte { return AppendProvisioning(b, 3) })
	if got, ok := DecodeProvisioning(b); !ok || got != (Provisioning{true, true, true}) {
		t.Errorf("provisioning %+v", got)
	}
	b = AppendVPD(nil, 0, VPDIdentification, func(b []byte) []byte {
		b = AppendDesignator(b, CodeBinary, OfUnit, DesignatorNAA, []byte{1, 2, 3})
		return AppendDesignator(b, CodeBinary, OfPort, DesignatorPortGroup, []byte{0, 0, 0, 9})
	})
	list, ok := DecodeDesignators(b)
	if want := []Designator{{1, 0, 3, []byte{1, 2, 3}}, {1, 1, 5, []byte{0, 0, 0, 9}}}; !ok || cmp.Diff(list, want) != "" {
		t.Errorf("designators %+v", list)
	}
	b = AppendKeys(nil, 4, []uint64{1, 1 << 63})
	if gen, keys, more, ok := DecodeKeys(b); gen != 4 || len(keys) != 2 || keys[1] != 1<<63 || more || !ok {
		t.Error("keys")
	}
	if _, keys, more, _ := DecodeKeys(b[:16]); len(keys) != 1 || !more {
		t.Error("keys cut short")
	}
	if gen, kind, key, ok := DecodeReservation(AppendReservation(nil, 4, 5, 6)); gen != 4 || kind != 5 || key != 6 || !ok {
		t.Error("reservation")
	}
	if _, kind, _, ok := DecodeReservation(AppendReservation(nil, 4, 0, 0)); kind != 0 || !ok {
		t.Error("no reservation")
	}
}

// FuzzAnswers reads anything as every answer.
func FuzzAnswers(f *testing.F) {
	f.Add(AppendPortGroups(nil, []PortGroup{{ID: 7, Ports: []uint16{1, 300}}}, false))
	f.Add(AppendVPD(nil, 0, VPDBlockLimits, BlockLimits{}.Append))
	f.Add(AppendKeys(nil, 4, []uint64{1, 2}))
	f.Add([]byte{0, 0x83, 0, 8, 1, 3, 0, 4, 1, 2, 3, 4})
	f.Fuzz(func(_ *testing.T, b []byte) {
		DecodeCapacity16(b)
		DecodePortGroups(b)
		DecodeBlockLimits(b)
		DecodeProvisioning(b)
		DecodeDesignators(b)
		DecodeKeys(b)
		DecodeReservation(b)
		DecodeSense(b)
	})
}
