package mirrorio

import (
	"bytes"
	"testing"

	"steadfast/fault"
	"steadfast/san/mirror"
)

// packet makes the bytes of a forwarded change.
func packet(op mirror.Op, c *Change) []byte {
	p := mirror.Packet{Kind: mirror.Forward, Op: op}
	return append(c.appendHeader(p.AppendHeader(nil, changeHeader+len(c.Data))), c.Data...)
}

// TestSenselessPackets holds that what makes no sense ends at the link.
func TestSenselessPackets(t *testing.T) {
	data := make([]byte, BlockSize)
	write := mirror.Op{Kind: mirror.Write, Block: 1, Count: 1}
	good := &Change{Kind: Data, Off: BlockSize, Length: BlockSize, Data: data}
	if p, err := readPacket(bytes.NewReader(packet(write, good))); err != nil || p.Op.Payload.(*Change).Off != BlockSize {
		t.Fatalf("a good one: %v", err)
	}
	nothing := mirror.Packet{Kind: mirror.Forward, Op: write}
	for name, b := range map[string][]byte{
		"a write of nothing":          nothing.AppendHeader(nil, 0),
		"a read":                      packet(mirror.Op{Kind: mirror.Read, Block: 1, Count: 1}, good),
		"a change outside of its op":  packet(write, &Change{Kind: Data, Off: 0, Length: BlockSize, Data: data}),
		"a change longer than its op": packet(write, &Change{Kind: Zero, Off: BlockSize, Length: 2 * BlockSize}),
		"data that is not there":      packet(write, &Change{Kind: Data, Off: BlockSize, Length: BlockSize}),
		"a change of an unknown kind": packet(write, &Change{Kind: 9, Off: BlockSize, Length: BlockSize, Data: data}),
	} {
		if _, err := readPacket(bytes.NewReader(b)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzPacket holds that a peer's bytes never do more than fail, and that a change
// that comes through lies in its operation.
func FuzzPacket(f *testing.F) {
	f.Add(packet(mirror.Op{Kind: mirror.Write, Block: 1, Count: 1}, &Change{Kind: Data, Off: BlockSize, Length: 512, Data: make([]byte, 512)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := readPacket(bytes.NewReader(b))
		if err != nil || !p.Carries() {
			return
		}
		c := p.Op.Payload.(*Change)
		if first, end := c.blocks(); first != p.Op.Block || end != p.Op.Block+p.Op.Count || c.Kind == Data && int64(len(c.Data)) != c.Length {
			t.Fatalf("%+v in %+v", c, p.Op)
		}
		c.release()
	})
}
