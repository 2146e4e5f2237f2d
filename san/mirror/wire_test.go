package mirror

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
)

// decode reads a packet as a connection does.
func decode(b []byte) (Packet, []byte, error) {
	if len(b) < HeaderSize {
		return Packet{}, nil, nil
	}
	p, ranges, size, err := DecodeHeader(b[:HeaderSize])
	if err != nil || len(b) < HeaderSize+ranges+size {
		return p, nil, err
	}
	p.Ranges, err = DecodeRanges(b[HeaderSize : HeaderSize+ranges])
	return p, b[HeaderSize+ranges : HeaderSize+ranges+size], err
}

// TestWire holds that what is sent is what comes.
func TestWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(0, 1<<40)
		p := Packet{
			Kind: PacketKind(rapid.IntRange(int(Control), int(Mend)).Draw(t, "kind")), Epoch: quorum.Epoch(n.Draw(t, "epoch")), Stream: n.Draw(t, "stream"),
			Sequence: n.Draw(t, "sequence"), Complete: n.Draw(t, "complete"),
			Control: group.Message{Kind: group.MessageKind(rapid.IntRange(0, 2).Draw(t, "message")), Epoch: quorum.Epoch(n.Draw(t, "its epoch")), Stamp: group.Instant(n.Draw(t, "stamp"))},
			Op:      Op{Kind: Kind(rapid.IntRange(0, int(stepping)).Draw(t, "op")), Volume: rapid.Uint32().Draw(t, "volume"), Block: n.Draw(t, "block"), Count: n.Draw(t, "count"), Durable: rapid.Bool().Draw(t, "durable")},
		}
		for range rapid.IntRange(0, 3).Draw(t, "ranges") {
			p.Ranges = append(p.Ranges, Range{rapid.Uint32().Draw(t, "v"), n.Draw(t, "b"), n.Draw(t, "c")})
		}
		if p.Kind == Forward {
			p.Op.Kind = rapid.SampledFrom([]Kind{Write, Flush, Barrier, copied, ending, fetching, mended, pruning, stepping}).Draw(t, "forwarded")
		}
		p.Refused, p.Damaged, p.Op.Undo = rapid.Bool().Draw(t, "refused"), rapid.Bool().Draw(t, "damaged"), rapid.Bool().Draw(t, "undo")
		var payload []byte
		if p.Carries() {
			payload = rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "payload")
		}
		got, rest, err := decode(append(p.AppendHeader(nil, len(payload)), payload...))
		if err != nil || cmp.Diff(p, got) != "" || string(rest) != string(payload) {
			t.Fatalf("%v\n%s", err, cmp.Diff(p, got))
		}
	})
}

// FuzzWire holds that a peer's bytes never do more than fail.
func FuzzWire(f *testing.F) {
	p := Packet{Kind: Differ, Ranges: []Range{{1, 2, 3}}}
	f.Add(append(p.AppendHeader(nil, 1), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, payload, err := decode(b)
		if err != nil || payload == nil {
			return
		}
		again, rest, err := decode(append(p.AppendHeader(nil, len(payload)), payload...))
		if err != nil || cmp.Diff(p, again) != "" || len(rest) != len(payload) {
			t.Fatalf("%v\n%s", err, cmp.Diff(p, again))
		}
	})
}
