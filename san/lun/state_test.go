package lun

import (
	"fmt"
	"math/bits"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"steadfast/fault"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

func exampleState() unitState {
	nexus := func(i int) reserve.Nexus {
		return reserve.Nexus{Initiator: fmt.Sprintf("iqn.2026-11.io.example:h%d,i,0x000000000001", i), Port: reserve.Port{Target: "iqn.2026-11.io.example:t", Tag: uint16(i)}}
	}
	return unitState{
		volume: [16]byte{1, 2, 3}, blocks: 1 << 40, mode: scsi.Mode{DescriptorSense: true, TaskAborted: true},
		reservations: reserve.State{
			Generation: 77, Persist: true, Type: reserve.WriteExclusive, Holder: nexus(2),
			Registrations: []reserve.Registration{{Nexus: nexus(1), Key: 1 << 63}, {Nexus: nexus(2), Key: 5, AllPorts: true}},
		},
		nexuses: []nexusState{{nexus(2), capacityChanged | registrationsPreempted}, {nexus(9), mediumChanged}},
	}
}

func diff(a, b unitState) string {
	return cmp.Diff(a, b, cmp.Exporter(func(reflect.Type) bool { return true }))
}

// TestStateReadsBack: what is written down reads back the same, without what is
// not carried, and without those who have nothing to be told.
func TestStateReadsBack(t *testing.T) {
	want := exampleState()
	st := exampleState()
	st.nexuses[0].pending |= powerOn | nexusLost | commandsCleared
	st.nexuses = append(st.nexuses, nexusState{want.reservations.Registrations[0].Nexus, powerOn})
	b, err := encodeState(st)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeState(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(want, got); d != "" {
		t.Error(d)
	}
	empty, err := encodeState(unitState{})
	if err != nil || len(empty) != stateHeader {
		t.Errorf("an empty state has %d bytes, %v", len(empty), err)
	}
	for n := range b {
		if _, err := decodeState(b[:n]); err == nil {
			t.Errorf("%d of %d bytes are taken for a state", n, len(b))
		}
	}
	if _, err := decodeState(append(b, 0)); !fault.Is(err, fault.Corrupt) {
		t.Errorf("with a byte too much: %v", err)
	}
}

// TestStateLeavesOut: unit attentions take what room there is, registrants'
// first, and registrations are never left out for them.
func TestStateLeavesOut(t *testing.T) {
	st := exampleState()
	for i := range 4000 {
		st.nexuses = append(st.nexuses, nexusState{reserve.Nexus{Initiator: fmt.Sprintf("a%0200d", i), Port: reserve.Port{Target: "t"}}, modeChanged})
	}
	b, err := encodeState(st)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeState(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > StateMax || len(got.nexuses) < 500 || got.nexuses[0].nexus != st.reservations.Holder {
		t.Errorf("%d bytes, %d nexuses, the first is %v", len(b), len(got.nexuses), got.nexuses[0].nexus)
	}
	if d := diff(unitState{reservations: st.reservations}, unitState{reservations: got.reservations}); d != "" {
		t.Error(d)
	}
	st.reservations.Registrations[0].Nexus.Initiator = fmt.Sprintf("%0256d", 1)
	if _, err := encodeState(st); !fault.Is(err, fault.Limit) {
		t.Errorf("a registrant's name of 256 bytes: %v", err)
	}
}

// TestAttentionCodes: there is a code for every condition, and no two share one,
// so that they can be told from each other where they are written down.
func TestAttentionCodes(t *testing.T) {
	if len(attentionCodes) != bits.Len32(uint32(inquiryChanged)) {
		t.Errorf("%d codes", len(attentionCodes))
	}
	for bit, c := range attentionCodes {
		if want := attention(1<<bit) & carriedAttentions; attentionOf(c[0], c[1]) != want {
			t.Errorf("%02xh/%02xh is read as %b, want %b", c[0], c[1], attentionOf(c[0], c[1]), want)
		}
	}
	if attentionOf(0x3f, 0x01) != 0 {
		t.Error("an unknown code stands for something")
	}
}

// FuzzDecodeState: whatever is read either is refused or is a state that can be
// written and read again, the same.
func FuzzDecodeState(f *testing.F) {
	for _, st := range []unitState{{}, exampleState()} {
		b, err := encodeState(st)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := decodeState(b)
		if err != nil {
			return
		}
		again, err := encodeState(st)
		if fault.Is(err, fault.Limit) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeState(again)
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(unitState{volume: st.volume, blocks: st.blocks, mode: st.mode, reservations: st.reservations},
			unitState{volume: back.volume, blocks: back.blocks, mode: back.mode, reservations: back.reservations}); d != "" {
			t.Fatal(d)
		}
	})
}
