package alias

import (
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	us   = MAC{2, 0, 0, 0, 0, 1}
	them = MAC{2, 0, 0, 0, 0, 2}
	ip4  = IPv4{192, 0, 2, 9}
	ip6  = IPv6{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: 9}
)

// TestARPFrames holds the frames to bytes written down from the RFC's figures.
func TestARPFrames(t *testing.T) {
	announce := AnnounceARP(us, ip4)
	for _, tc := range []struct {
		name string
		arp  ARP
		want string
	}{
		{"probe", ProbeARP(us, ip4), "ffffffffffff" + "020000000001" + "0806" + "0001080006040001" + "020000000001" + "00000000" + "000000000000" + "c0000209"},
		{"announcement", announce[0], "ffffffffffff" + "020000000001" + "0806" + "0001080006040001" + "020000000001" + "c0000209" + "000000000000" + "c0000209"},
		{"gratuitous reply", announce[1], "ffffffffffff" + "020000000001" + "0806" + "0001080006040002" + "020000000001" + "c0000209" + "020000000001" + "c0000209"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			frame := tc.arp.Append(nil)
			if got := hex.EncodeToString(frame); got != tc.want {
				t.Errorf("frame is\n%s, want\n%s", got, tc.want)
			}
			padded := append(frame, make([]byte, 18)...)
			if back, ok := ParseARP(padded); !ok || back != tc.arp {
				t.Errorf("read back as %+v, %v", back, ok)
			}
		})
	}
}

// TestNDFrames reads back what is written, and checks one checksum that a
// few lines of another language reckoned.
func TestNDFrames(t *testing.T) {
	for _, n := range []ND{ProbeND(us, ip6), AnnounceND(us, ip6)} {
		frame := n.Append(nil)
		back, ok := ParseND(frame)
		if !ok {
			t.Fatalf("%v is not read back", n)
		}
		if d := cmp.Diff(n, back); d != "" {
			t.Error(d)
		}
		for i := range frame[etherLen:] {
			bad := append([]byte(nil), frame...)
			bad[etherLen+i] ^= 0x10
			if got, ok := ParseND(bad); ok && got == n {
				switch i {
				case 0, 1, 2, 3: // version's low bits, traffic class, flow label: not covered
				default:
					t.Errorf("a flip in byte %d goes unseen", i)
				}
			}
		}
	}
	const want = "3333ff000009" + "020000000001" + "86dd" + "6000000000183aff" +
		"00000000000000000000000000000000" + "ff0200000000000000000001ff000009" +
		"87004cdd" + "00000000" + "20010db8000000000000000000000009"
	if got := hex.EncodeToString(ProbeND(us, ip6).Append(nil)); got != want {
		t.Errorf("probe is\n%s, want\n%s", got, want)
	}
}

// TestConflicts holds what counts as a conflict to RFC 5227 and RFC 4862.
func TestConflicts(t *testing.T) {
	other4, other6 := IPv4{192, 0, 2, 10}, IPv6{15: 10}
	solicited := AnnounceND(them, ip6)
	solicited.Flags |= NDSolicited
	asks := ProbeND(them, ip6)
	asks.Src = other6
	for _, tc := range []struct {
		name string
		got  bool
		want bool
	}{
		{"their announcement", AnnounceARP(them, ip4)[0].Conflict(us, ip4), true},
		{"their reply", AnnounceARP(them, ip4)[1].Conflict(us, ip4), true},
		{"their probe", ProbeARP(them, ip4).Conflict(us, ip4), true},
		{"our announcement", AnnounceARP(us, ip4)[0].Conflict(us, ip4), false},
		{"our probe", ProbeARP(us, ip4).Conflict(us, ip4), false},
		{"another address", AnnounceARP(them, other4)[0].Conflict(us, ip4), false},
		{"a question for it", ARP{Op: ARPRequest, Sender: them, SenderIP: other4, TargetIP: ip4}.Conflict(us, ip4), false},
		{"their advertisement", AnnounceND(them, ip6).Conflict(us, ip6), true},
		{"their answer", solicited.Conflict(us, ip6), true},
		{"their detection", ProbeND(them, ip6).Conflict(us, ip6), true},
		{"our advertisement", AnnounceND(us, ip6).Conflict(us, ip6), false},
		{"another address, v6", AnnounceND(them, other6).Conflict(us, ip6), false},
		{"a solicitation for it", asks.Conflict(us, ip6), false},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: conflict %v, want %v", tc.name, tc.got, tc.want)
		}
	}
}

// TestTickles checks lengths and checksums; that kernels take them is shown in
// aliasio.
func TestTickles(t *testing.T) {
	for try := range 4 {
		v4 := Tickle4(ip4, IPv4{192, 0, 2, 1}, 3260, 40000, try)
		if checksum(v4[:ipv4Len], nil) != 0 {
			t.Errorf("try %d: the IPv4 header's checksum is wrong", try)
		}
		pseudo := append(append([]byte(nil), v4[12:20]...), 0, protoTCP, 0, tcpLen)
		if len(v4) != ipv4Len+tcpLen || checksum(pseudo, v4[ipv4Len:]) != 0 {
			t.Errorf("try %d: % x", try, v4)
		}
		v6 := Tickle6(ip6, IPv6{15: 1}, 3260, 40000, try)
		if len(v6) != ipv6Len+tcpLen || checksum(pseudo6(ip6, IPv6{15: 1}, protoTCP, tcpLen), v6[ipv6Len:]) != 0 {
			t.Errorf("try %d: % x", try, v6)
		}
	}
}

// FuzzParse feeds both decoders: what they accept is written back the same.
func FuzzParse(f *testing.F) {
	f.Add(ProbeARP(us, ip4).Append(nil))
	f.Add(AnnounceARP(us, ip4)[1].Append(nil))
	f.Add(ProbeND(us, ip6).Append(nil))
	f.Add(AnnounceND(us, ip6).Append(nil))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if a, ok := ParseARP(frame); ok {
			if got := string(a.Append(nil)); got != string(frame[:etherLen+arpLen]) {
				t.Errorf("ARP % x is written back as % x", frame, got)
			}
		}
		if n, ok := ParseND(frame); ok {
			// Other options and reserved bits are not kept, so compare the meaning.
			if back, ok := ParseND(n.Append(nil)); !ok || back != n {
				t.Errorf("ND %+v is read back as %+v, %v", n, back, ok)
			}
		}
	})
}
