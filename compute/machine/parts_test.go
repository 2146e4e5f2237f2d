package machine

import (
	"slices"
	"testing"

	"steadfast/compute/device"
	"steadfast/compute/devices"
	"steadfast/compute/memory"
	"steadfast/fault"
)

// TestParts: a machine whose memory and parts were copied to another is the same, and goes on
// alike.
func TestParts(t *testing.T) {
	m := newGuest(t)
	must(t, m.Deliver(&device.Input{At: 0, Port: PortSerial, Kind: devices.UARTData, Data: []byte("abc")}))
	m.Run(300_000)
	m.Outputs()
	n, err := New(guestConfig())
	must(t, err)
	defer func() { must(t, n.Release()) }()
	for page := range m.RAM().Pages() {
		if !n.RAM().Write(m.RAM().Data(page), n.RAM().Base()+uint64(page)*memory.PageSize) {
			t.Fatal("no such page")
		}
	}
	must(t, n.RestoreParts(m.SaveParts()))
	if n.Count() != m.Count() || n.Hash() != m.Hash() || n.Hash() != m.HashAnew() {
		t.Fatalf("at %d it is another machine than at %d", n.Count(), m.Count())
	}
	if !slices.EqualFunc(m.Pending(), n.Pending(), func(a, b device.Output) bool { return a.ID == b.ID && a.Port == b.Port }) {
		t.Errorf("%v and %v are pending", m.Pending(), n.Pending())
	}
	for range 10 {
		m.Run(m.Count() + 100_000)
		n.Run(n.Count() + 100_000)
		a, b := m.Outputs(), n.Outputs()
		if m.Hash() != n.Hash() || !slices.EqualFunc(a, b, func(a, b device.Output) bool {
			return a.At == b.At && a.Port == b.Port && a.ID == b.ID && string(a.Data) == string(b.Data)
		}) {
			t.Fatalf("at %d they differ", m.Count())
		}
	}
}

// TestBadParts: what is no state is refused.
func TestBadParts(t *testing.T) {
	good := newGuest(t).SaveParts()
	other := slices.Clone(good)
	other[0] = StateVersion + 1
	for name, c := range map[string]struct {
		parts []byte
		kind  fault.Kind
	}{
		"none": {nil, fault.Corrupt}, "cut": {good[:len(good)-1], fault.Corrupt}, "long": {append(slices.Clone(good), 0), fault.Corrupt}, "another version": {other, fault.Invalid},
	} {
		if err := newGuest(t).RestoreParts(c.parts); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
