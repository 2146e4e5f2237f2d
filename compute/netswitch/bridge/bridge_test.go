package bridge

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"steadfast/compute/virtio"
)

func mac(n int) MAC { return MAC{0x02, 0, 0, 0, byte(n >> 8), byte(n)} }

var everybody = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// frame is one of so many bytes.
func frame(from, to MAC, size int) []byte {
	f := make([]byte, size)
	copy(f, to[:])
	copy(f[6:], from[:])
	f[12], f[13] = 0x88, 0xb5
	return f
}

// three is a switch with the ports 0, 1 and 2, of which 2 takes large segments.
func three() *Bridge {
	b := New(MTUDefault)
	for p := range Port(3) {
		b.Add(p, p == 2)
	}
	return b
}

func TestForward(t *testing.T) {
	b := three()
	step := func(at time.Duration, from Port, src, dst MAC, want ...Port) {
		t.Helper()
		if got := b.Frame(Instant(at), from, frame(src, dst, 60), nil); !slices.Equal(got, want) {
			t.Errorf("from %d, %x to %x: out of %v, want %v", from, src, dst, got, want)
		}
	}
	step(0, 0, mac(1), mac(2), 1, 2) // not known
	step(1, 1, mac(2), mac(1), 0)
	step(2, 0, mac(1), mac(2), 1)
	step(3, 0, mac(3), mac(1)) // at the same port
	step(4, 0, mac(1), everybody, 1, 2)
	step(5, 0, mac(1), MAC{1, 0, 0x5e, 0, 0, 1}, 1, 2)
	step(6, 0, mac(1), MAC{1, 0x80, 0xc2, 0, 0, 0}) // a spanning tree's, which ends here
	step(6, 0, mac(1), MAC{1, 0x80, 0xc2, 0, 0, 16}, 1, 2)
	step(7, 0, everybody, mac(2))
	step(7, 0, MAC{}, mac(2))
	// A station that moves is found at its new port by the first frame from there.
	step(8, 2, mac(2), everybody, 0, 1)
	step(9, 0, mac(1), mac(2), 2)
	// One of which nothing is heard is forgotten, and not before.
	step(9+Ageing, 0, mac(1), mac(2), 1, 2)
	step(9+Ageing, 2, mac(2), mac(1), 0)
	step(9+2*Ageing, 1, mac(4), mac(1), 0)
	step(10+2*Ageing, 1, mac(4), mac(1), 0, 2)
	// A port that has gone takes its stations along.
	b.Remove(2)
	step(11+Ageing, 0, mac(1), mac(2), 1)
	step(11+Ageing, 2, mac(2), mac(1))
	want := Counters{Frames: 12, Bytes: 12 * 60, BadSource: 2, Filtered: 2, Flooded: 3}
	if diff := cmp.Diff(want, b.Counters(0)); diff != "" {
		t.Error(diff)
	}
}

func TestAnnouncement(t *testing.T) {
	b := three()
	b.Frame(0, 0, frame(mac(7), everybody, 60), nil)
	if got := b.Frame(1, 1, Announcement(mac(7)), nil); !slices.Equal(got, []Port{0, 2}) {
		t.Errorf("an announcement goes out of %v", got)
	}
	if got := b.Frame(2, 2, frame(mac(8), mac(7), 60), nil); !slices.Equal(got, []Port{1}) {
		t.Errorf("after the announcement of a move: out of %v", got)
	}
	if c := b.Counters(1); c.MovedTo != 1 {
		t.Errorf("%+v", c)
	}
}

func TestLengths(t *testing.T) {
	b := three()
	for _, tc := range []struct {
		from Port
		f    []byte
		want Counters
	}{
		{0, nil, Counters{Runts: 1}},
		{0, make([]byte, HeaderBytes-1), Counters{Runts: 1}},
		{0, frame(mac(1), everybody, HeaderBytes), Counters{}},
		{0, frame(mac(1), everybody, MTUDefault+18), Counters{}},
		{0, frame(mac(1), everybody, MTUDefault+19), Counters{Oversized: 1}},
		{2, frame(mac(1), everybody, MTUDefault+19), Counters{Oversized: 1}}, // no segment
		{0, tcpFrame(40000, false), Counters{Oversized: 1}},
		{2, tcpFrame(40000, false), Counters{}},
		{2, tcpFrame(65535-40, true), Counters{}},
		{2, append(tcpFrame(40000, false), 0), Counters{Oversized: 1}},
	} {
		t.Run(fmt.Sprint(tc.from, len(tc.f)), func(t *testing.T) {
			before := b.Counters(tc.from)
			out := b.Frame(0, tc.from, tc.f, nil)
			got := b.Counters(tc.from)
			if got.Runts-before.Runts != tc.want.Runts || got.Oversized-before.Oversized != tc.want.Oversized {
				t.Errorf("%+v, before %+v", got, before)
			}
			if pass := tc.want == (Counters{}); pass != (len(out) > 0) {
				t.Errorf("goes out of %v", out)
			}
		})
	}
}

// TestBounds: a port fills its share of the table and no more, and who is not in it is still
// reached; places come free by age.
func TestBounds(t *testing.T) {
	b := New(MTUDefault)
	for p := range Port(6) {
		b.Add(p, false)
	}
	n := 0
	for p := range Port(5) {
		for range PortStationsMax + 10 {
			n++
			b.Frame(1, p, frame(mac(n), everybody, 60), nil)
		}
	}
	if len(b.table) != StationsMax {
		t.Errorf("%d stations", len(b.table))
	}
	if c := b.Counters(0); c.Unlearnt != 10 {
		t.Errorf("%d of port 0 found no place", c.Unlearnt)
	}
	if c := b.Counters(4); c.Unlearnt != PortStationsMax+10 {
		t.Errorf("%d of port 4 found no place", c.Unlearnt)
	}
	if out := b.Frame(2, 0, frame(mac(1), mac(n), 60), nil); len(out) != 5 {
		t.Errorf("to who found no place: out of %v", out)
	}
	later := Instant(Ageing) + 2
	b.Frame(later, 4, frame(mac(n), everybody, 60), nil)
	if out := b.Frame(later, 0, frame(mac(1), mac(n), 60), nil); !slices.Equal(out, []Port{4}) {
		t.Errorf("when there was place again: out of %v", out)
	}
	if all := b.Stations(later); len(all) != 2 || all[0].MAC != mac(1) || all[1].Port != 4 {
		t.Errorf("known are %v", all)
	}
}

// TestModel: whatever comes, a frame goes where a dumb list of the last frames says.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := New(MTUDefault)
		type heard struct {
			at   Instant
			port Port
		}
		last := map[MAC]heard{}
		in := map[Port]bool{}
		now := Instant(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now += Instant(rapid.SampledFrom([]time.Duration{0, 1, fresh, Ageing / 3, Ageing, Ageing + 1}).Draw(t, "pause"))
			p := Port(rapid.IntRange(0, 3).Draw(t, "port"))
			if rapid.IntRange(0, 9).Draw(t, "what") == 0 {
				if in[p] = !in[p]; in[p] {
					b.Add(p, false)
				} else {
					b.Remove(p)
					for m, h := range last {
						if h.port == p {
							delete(last, m)
						}
					}
				}
				continue
			}
			src, dst := mac(rapid.IntRange(1, 4).Draw(t, "from")), mac(rapid.IntRange(1, 4).Draw(t, "to"))
			got := b.Frame(now, p, frame(src, dst, 60), nil)
			var want []Port
			if in[p] {
				// What is known is noted once a second: an entry may be that much older.
				if h := last[src]; h.port != p || last[src] == (heard{}) || now-h.at >= Instant(fresh) {
					last[src] = heard{now, p}
				}
				h, ok := last[dst]
				switch {
				case ok && now-h.at <= Instant(Ageing):
					if h.port != p {
						want = []Port{h.port}
					}
				default:
					for o := range in {
						if in[o] && o != p {
							want = append(want, o)
						}
					}
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("from %d, %x to %x: out of %v, want %v", p, src, dst, got, want)
			}
		}
		stations := 0
		for _, p := range b.ports {
			stations += p.stations
		}
		if stations != len(b.table) {
			t.Fatalf("ports count %d stations, the table has %d", stations, len(b.table))
		}
	})
}

// Flags of TCP (RFC 9293, 3.1).
const flagFIN, flagPSH, flagCWR = 0x01, 0x08, 0x80

// tcpFrame is a segment with right checksums, and options in both headers.
func tcpFrame(size int, plain bool) []byte {
	options := 12
	if plain {
		options = 0
	}
	f := frame(mac(1), mac(2), HeaderBytes+20+20+options+size)
	f[12], f[13] = 8, 0
	ip := f[HeaderBytes:]
	ip[0], ip[9], ip[8] = 0x45, 6, 64
	ip[2], ip[3] = byte(len(ip)>>8), byte(len(ip))
	ip[4], ip[5] = 0xff, 0xfe
	copy(ip[12:], []byte{10, 0, 2, 15, 10, 0, 2, 16})
	tcp := ip[20:]
	copy(tcp, []byte{0x12, 0x34, 0, 80, 0xff, 0xff, 0xf0, 0, 1, 2, 3, 4, byte(20+options) / 4 << 4, flagFIN | flagPSH | flagCWR | 0x10, 5, 6})
	for i := range tcp[20:] {
		tcp[20+i] = byte(i * 7)
	}
	put := func(p []byte, v uint16) { p[0], p[1] = byte(v>>8), byte(v) }
	put(ip[10:], ^slow(ip[:20]))
	put(tcp[16:], ^slow(append(pseudoHeader(ip), tcp...)))
	return f
}

func pseudoHeader(ip []byte) []byte {
	n := len(ip) - 20
	return append(slices.Clone(ip[12:20]), 0, 6, byte(n>>8), byte(n))
}

// slow is RFC 1071 as its first example has it.
func slow(p []byte) uint16 {
	s := uint32(0)
	for i, b := range p {
		if i%2 == 0 {
			s += uint32(b) << 8
		} else {
			s += uint32(b)
		}
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// TestCut: what is cut is put together again to what it was, each piece a right frame.
func TestCut(t *testing.T) {
	for _, size := range []int{1, 1447, 1448, 1449, 40000, 65535 - 52} {
		f := tcpFrame(size, false)
		var data []byte
		var flags []byte
		ok := Cut(f, MTUDefault, func(p []byte) {
			if len(p) > MTUDefault+HeaderBytes {
				t.Fatalf("a piece of %d bytes", len(p))
			}
			if !virtio.WholeTCP4(p) {
				t.Fatalf("no segment: %x", p[:60])
			}
			ip := p[HeaderBytes:]
			if slow(ip[:20]) != 0xffff || slow(append(pseudoHeader(ip), ip[20:]...)) != 0xffff {
				t.Errorf("a checksum is wrong")
			}
			seq := uint32(ip[24])<<24 | uint32(ip[25])<<16 | uint32(ip[26])<<8 | uint32(ip[27])
			if want := uint32(0xfffff000) + uint32(len(data)); seq != want {
				t.Errorf("sequence number %x, want %x", seq, want)
			}
			flags = append(flags, ip[33])
			data = append(data, p[HeaderBytes+52:]...)
		})
		if !ok || !bytes.Equal(data, f[HeaderBytes+52:]) {
			t.Errorf("%d bytes: %v, %d came", size, ok, len(data))
		}
		for i, fl := range flags {
			want := byte(0x10)
			if i == 0 {
				want |= flagCWR
			}
			if i == len(flags)-1 {
				want |= flagFIN | flagPSH
			}
			if fl != want {
				t.Errorf("%d bytes: piece %d of %d has the flags %x, want %x", size, i, len(flags), fl, want)
			}
		}
	}
	if Cut(frame(mac(1), mac(2), 9000), MTUDefault, func([]byte) { t.Error("cut") }) {
		t.Error("what is no segment was cut")
	}
}

// FuzzFrame: no frame does harm, and none comes back.
func FuzzFrame(f *testing.F) {
	f.Add(frame(mac(1), mac(2), 60), byte(0))
	f.Add(tcpFrame(3000, false), byte(2))
	f.Add(Announcement(mac(1)), byte(1))
	f.Add([]byte{1}, byte(1))
	f.Fuzz(func(t *testing.T, p []byte, from byte) {
		b := three()
		at := Port(from % 3)
		out := b.Frame(1, at, p, nil)
		if slices.Contains(out, at) {
			t.Errorf("out of the port that it came in at")
		}
		if c := b.Counters(at); len(out) == 0 && c.Runts+c.Oversized+c.BadSource+c.Filtered != 1 {
			t.Errorf("dropped, and not counted: %+v", c)
		}
		if len(out) > 0 && Large(p, MTUDefault) {
			total := 0
			if !Cut(p, MTUDefault, func(piece []byte) {
				if total += len(piece); Large(piece, MTUDefault) {
					t.Errorf("a piece of %d bytes", len(piece))
				}
			}) {
				t.Error("it passes, and cannot be cut")
			}
		}
	})
}

func BenchmarkFrame(b *testing.B) {
	s := three()
	r := rand.New(rand.NewPCG(1, 2))
	frames := make([][]byte, 256)
	for i := range frames {
		frames[i] = frame(mac(r.IntN(64)+1), mac(r.IntN(64)+1), 60)
		s.Frame(0, Port(i%3), frames[i], nil)
	}
	var out []Port
	i := 0
	for b.Loop() {
		out = s.Frame(Instant(i), Port(i%3), frames[i%len(frames)], out[:0])
		i++
	}
}
