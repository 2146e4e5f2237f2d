package virtio

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"steadfast/compute/device"
)

// segment is a TCP segment over IPv4 with so much payload and options of 12 bytes, its
// checksums right by another way of adding.
func segment4(payload int, flags byte) []byte {
	be := binary.BigEndian
	f := make([]byte, 14+20+32+payload)
	copy(f, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0})
	ip, tcp := f[14:34], f[34:]
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	be.PutUint16(ip[2:], uint16(len(f)-14))
	be.PutUint16(ip[4:], 0xfffe)
	ip[6] = 0x40
	copy(ip[12:], []byte{10, 0, 2, 2, 10, 0, 2, 15})
	be.PutUint16(ip[10:], ^slowSum(ip))
	copy(tcp, []byte{0x18, 0xeb, 0, 80, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 9, 8 << 4, flags, 1, 0})
	for i := range tcp[32:] {
		tcp[32+i] = byte(i*7 + i>>8)
	}
	be.PutUint16(tcp[16:], ^slowSum(pseudo4(f), tcp))
	return f
}

// pseudo4 is the pseudo header of a segment4.
func pseudo4(f []byte) []byte {
	p := append([]byte(nil), f[26:34]...)
	return append(p, 0, 6, byte((len(f)-34)>>8), byte(len(f)-34))
}

// slowSum is the one's complement sum, two bytes at a time.
func slowSum(parts ...[]byte) uint16 {
	sum := uint32(0)
	for _, p := range parts {
		for i := range p {
			if i%2 == 0 {
				sum += uint32(p[i]) << 8
			} else {
				sum += uint32(p[i])
			}
			sum = sum>>16 + sum&0xffff
		}
	}
	return uint16(sum)
}

// right tells whether a segment4's checksums are.
func right(f []byte) bool {
	return slowSum(f[14:34]) == 0xffff && slowSum(pseudo4(f), f[34:]) == 0xffff
}

// TestSum: eight bytes at a time are two at a time.
func TestSum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 200 {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(r.Uint32()) | byte(n%3)*0x7f
		}
		if got, want := fold(sum16(0, p)), slowSum(p); got != want {
			t.Errorf("%d bytes: %04x, not %04x", n, got, want)
		}
	}
}

// sendWith sends a frame behind a header.
func (q *vq) sendWith(h [netHeader]byte, p []byte) {
	at, body := q.g.alloc(netHeader), q.g.alloc(len(p))
	q.g.put(at, h[:])
	q.g.put(body, p)
	q.add(piece{at, netHeader, false}, piece{body, uint32(len(p)), false})
	q.kick()
}

// TestNetTransmitOffload: what the driver leaves to the device is done, if it was negotiated.
func TestNetTransmitOffload(t *testing.T) {
	large := segment4(60_000, 0x18)
	open := func(f []byte) []byte { // as a driver leaves it
		f = bytes.Clone(f)
		binary.BigEndian.PutUint16(f[50:], slowSum(pseudo4(f)))
		return f
	}
	header := func(flags, kind byte, start, offset uint16) (h [netHeader]byte) {
		h[headerFlags], h[headerType] = flags, kind
		binary.LittleEndian.PutUint16(h[headerStart:], start)
		binary.LittleEndian.PutUint16(h[headerOffset:], offset)
		return h
	}
	for _, c := range []struct {
		name    string
		want    uint64
		h       [netHeader]byte
		p, sent []byte
	}{
		{"a checksum", wantAll, header(1, 0, 34, 16), open(segment4(100, 0x18)), segment4(100, 0x18)},
		{"a large segment", wantAll, header(1, 1, 34, 16), open(large), large},
		{"a checksum that was not negotiated", wantAll &^ (1<<netCSUM | 1<<netHostTSO4), header(1, 0, 34, 16), open(segment4(100, 0x18)), nil},
		{"a large segment that was not negotiated", wantAll &^ (1 << netHostTSO4), header(1, 1, 34, 16), open(large), nil},
		{"a large segment without a checksum", wantAll, header(0, 1, 34, 16), open(large), nil},
		{"a large segment of another kind", wantAll, header(1, 4, 34, 16), open(large), nil},
		{"a large frame that is no segment", wantAll, header(1, 1, 34, 16), frame(9000), nil},
		{"a checksum outside", wantAll, header(1, 0, 34, 200), open(segment4(100, 0x18)), nil},
		{"a checksum of nothing", wantAll, header(1, 0, 166, 0), open(segment4(100, 0x18)), nil},
	} {
		g, dev := newNetGuest(t, c.want, NetOptions{MAC: mac})
		tx := g.start(16, 16).vqs[1]
		tx.sendWith(c.h, c.p)
		outs := g.board.drain()
		switch {
		case c.sent == nil && (len(outs) != 0 || dev.Counters().TransmitDropped != 1):
			t.Errorf("%s: sent, or not counted", c.name)
		case c.sent != nil && (len(outs) != 1 || !bytes.Equal(outs[0].Data, c.sent)):
			t.Errorf("%s: %d frames, or another", c.name, len(outs))
		}
		if g.failed() {
			t.Errorf("%s: the device has failed", c.name)
		}
	}
}

// TestNetReceiveLarge: a driver that takes large segments gets one whole, with what it needs to
// cut it; another one gets pieces.
func TestNetReceiveLarge(t *testing.T) {
	large := segment4(30_000, 0x19)
	g, dev := newNetGuest(t, wantAll, NetOptions{MAC: mac})
	rx := g.start(64, 16).vqs[0]
	const room = 2048
	var at []uint64
	for range 20 {
		at = append(at, rx.buffer(room))
	}
	if !dev.Takes(len(large)) || dev.Takes(20*room) {
		t.Error("Takes does not see what there is room for")
	}
	dev.Deliver(&device.Input{Kind: NetFrame, Data: bytes.Clone(large)})
	used := rx.collect()
	var got []byte
	for i, d := range used {
		got = append(got, g.bytes(at[i], int(d.n))...)
	}
	if len(got) != netHeader+len(large) || got[headerFlags] != flagNeedsChecksum || got[headerType] != segmentsTCP4 ||
		binary.LittleEndian.Uint16(got[headerSegment:]) != 1500-52 || binary.LittleEndian.Uint16(got[headerLength:]) != 66 ||
		binary.LittleEndian.Uint16(got[headerStart:]) != 34 || binary.LittleEndian.Uint16(got[headerOffset:]) != 16 ||
		int(binary.LittleEndian.Uint16(got[headerBuffers:])) != len(used) {
		t.Fatalf("%d bytes in %d buffers, header %x", len(got), len(used), got[:min(len(got), netHeader)])
	}
	whole := got[netHeader:]
	if binary.BigEndian.Uint16(whole[50:]) != slowSum(pseudo4(large)) {
		t.Error("the checksum's place does not hold the pseudo header's sum")
	}
	copy(whole[50:52], large[50:52])
	if !bytes.Equal(whole, large) {
		t.Error("another frame")
	}

	for _, want := range []uint64{wantAll &^ (1 << netGuestTSO4), wantAll &^ (1<<netGuestTSO4 | 1<<netGuestCSUM | 1<<netMrgRxbuf)} {
		g, dev = newNetGuest(t, want, NetOptions{MAC: mac})
		rx = g.start(64, 16).vqs[0]
		at = at[:0]
		for range 30 {
			at = append(at, rx.buffer(room))
		}
		if !dev.Takes(len(large)) || dev.Takes(60_000) {
			t.Error("Takes does not see how many pieces there will be")
		}
		dev.Deliver(&device.Input{Kind: NetFrame, Data: bytes.Clone(large)})
		checkPieces(t, g, large, at, rx.collect())
	}
}

// checkPieces looks whether frames are what a segment is cut into.
func checkPieces(t *testing.T, g *guest, large []byte, at []uint64, used []done) {
	t.Helper()
	var all []byte
	for i, d := range used {
		f := g.bytes(at[i], int(d.n))[netHeader:]
		tcp := f[34:]
		sequence, flags := uint32(0xffffff00)+uint32(len(all)), byte(0x10)
		if i == len(used)-1 {
			flags = 0x19
		}
		if len(f) > 1514 || !right(f) || binary.BigEndian.Uint32(tcp[4:]) != sequence || tcp[13] != flags ||
			binary.BigEndian.Uint16(f[18:]) != 0xfffe+uint16(i) {
			t.Errorf("piece %d: %x", i, f[:66])
		}
		all = append(all, tcp[32:]...)
	}
	if !bytes.Equal(all, large[66:]) {
		t.Errorf("the pieces are %d bytes, not %d", len(all), len(large)-66)
	}
}

// TestNetTakesSmallRing: a frame that a driver's whole ring does not hold is not waited for, which
// would be without end.
func TestNetTakesSmallRing(t *testing.T) {
	const all = 16
	for name, c := range map[string]struct {
		want   uint64
		pieces int // of a buffer
	}{
		"whole":            {wantAll, 1},
		"in pieces":        {wantAll &^ (1 << netGuestTSO4), 1},
		"in pairs":         {wantAll &^ (1 << netGuestTSO4), 2},
		"without checksum": {wantAll &^ (1 << netGuestCSUM), 1},
	} {
		g, dev := newNetGuest(t, c.want, NetOptions{MAC: mac})
		rx := g.start(all, 16).vqs[0]
		for i := range all / c.pieces {
			if i < all/2-1 && dev.Takes(60_000) {
				t.Errorf("%s: with %d buffers there is room", name, i)
			}
			buffer := []piece{{g.alloc(1024), 1024, true}, {g.alloc(1024), 1024, true}}
			rx.add(buffer[:c.pieces]...)
		}
		if !dev.Takes(60_000) {
			t.Errorf("%s: it is waited for what cannot be", name)
		}
	}
}

// TestNetTakes: what is not worth waiting for is taken, and to ask changes nothing.
func TestNetTakes(t *testing.T) {
	g, dev := newNetGuest(t, wantAll, NetOptions{MAC: mac})
	if !dev.Takes(1514) {
		t.Error("without a driver there is something to wait for")
	}
	rx := g.start(16, 16).vqs[0]
	if dev.Takes(60) {
		t.Error("there is room without buffers")
	}
	rx.buffer(1000)
	rx.buffer(1000)
	before := saved(dev)
	if !dev.Takes(1514) || dev.Takes(2000) {
		t.Error("2,000 bytes hold a header and 1,514, and not 2,000")
	}
	if !bytes.Equal(before, saved(dev)) {
		t.Error("to ask has changed the device")
	}
	dev.Deliver(&device.Input{Kind: NetLink})
	if !dev.Takes(9999) {
		t.Error("without a link there is something to wait for")
	}
	dev.Deliver(&device.Input{Kind: NetLink, Status: 1})
	// Nonsense is seen when a frame is delivered, not when one is asked for.
	g.put16(rx.avail+2, 999)
	before = saved(dev)
	if !dev.Takes(1514) || g.failed() || !bytes.Equal(before, saved(dev)) {
		t.Error("nonsense is waited for, or noticed too early")
	}
}

// FuzzSegments: whatever a frame is, it is cut into frames that fit and are right, or not at all.
func FuzzSegments(f *testing.F) {
	f.Add(segment4(5000, 0x18), 1448)
	f.Add(segment4(0, 2), 1)
	f.Add([]byte{}, 1)
	f.Fuzz(func(t *testing.T, p []byte, most int) {
		s, ok := parseTCP4(p)
		if most = s.most(most % 70000); !ok || most <= 0 || len(p) > frameMost || len(p)/most > 4096 {
			return
		}
		data := 0
		s.cut(most, func(q []byte) bool {
			piece, ok := parseTCP4(q)
			if !ok || len(q)-piece.payload > most || fold(sum16(piece.pseudo(), q[piece.tcp:])) != 0xffff {
				t.Fatalf("a piece %x of %x", q, p)
			}
			data += len(q) - piece.payload
			return true
		})
		if data != len(p)-s.payload {
			t.Errorf("%d of %d bytes", data, len(p)-s.payload)
		}
	})
}
