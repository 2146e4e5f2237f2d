package main

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// said builds frames of a connection.
type said struct {
	w     *witness
	at    time.Time
	count uint16 // of the packets
}

var (
	testClient = netip.MustParseAddrPort(clientAddress + ":40000")
	testStart  = time.Unix(1_700_000_000, 0)
)

// tcp is a frame with a segment.
func (s *said) tcp(from box, seg segment) frame {
	s.count++
	s.at = s.at.Add(time.Millisecond)
	be := binary.BigEndian
	src, dst := testClient, redisEnd
	mac := []byte{2, 0, 0, 0, 0, 9}
	if from != boxes {
		src, dst = dst, src
		mac = []byte{2, 0x53, 0x46, 0, 0x77, 0x14}
	}
	var options []byte
	if seg.scale > 0 {
		options = append(options, 3, 3, byte(seg.scale), 1)
	}
	if seg.stamped {
		options = be.AppendUint32(append(options, 1, 1, 8, 10), seg.stamp)
		options = be.AppendUint32(options, 0)
	}
	t := be.AppendUint16(be.AppendUint16(nil, src.Port()), dst.Port())
	t = be.AppendUint32(be.AppendUint32(t, seg.seq), seg.ack)
	t = append(t, byte(20+len(options))<<2, seg.flags)
	t = append(be.AppendUint16(t, uint16(seg.window)), 0, 0, 0, 0)
	t = append(append(t, options...), seg.payload...)
	ip := append([]byte{0x45, 0}, be.AppendUint16(nil, uint16(20+len(t)))...)
	ip = append(be.AppendUint16(ip, s.count), 0, 0, 64, protocolTCP, 0, 0)
	ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	e := append([]byte{2, 0, 0, 0, 0, 1}, mac...)
	return frame{s.at, from, append(append(be.AppendUint16(e, etherIPv4), ip...), t...)}
}

func (s *said) say(from box, seg segment) { s.w.see(s.tcp(from, seg)) }

// story is the beginning of a connection, up to one request and its answer.
func story() *said {
	s := &said{w: newWitness(), at: testStart}
	s.say(boxes, segment{seq: 100, flags: flagSYN})
	s.say(boxA, segment{seq: 0xffff_fff0, ack: 101, flags: flagSYN | flagACK, window: 1000, scale: 7, stamped: true, stamp: 10})
	s.say(boxes, segment{seq: 101, ack: 0xffff_fff1, flags: flagACK, payload: []byte("request")})
	s.say(boxA, segment{seq: 0xffff_fff1, ack: 108, flags: flagACK, window: 500, stamped: true, stamp: 11, payload: []byte("the first answer is this")})
	return s
}

// after is the sequence number behind the story's answer, which is past the greatest number.
const after = 9

// TestWitnessGoesOn: another box may go on, and say again what may have been lost.
func TestWitnessGoesOn(t *testing.T) {
	s := story()
	s.w.mark()
	last := s.tcp(boxA, segment{seq: after, ack: 108, flags: flagACK, window: 500, stamped: true, stamp: 12, payload: []byte("more")})
	s.w.see(last)
	s.say(boxA, segment{seq: after + 4, ack: 108, flags: flagACK, window: 500, stamped: true, stamp: 13})
	last.from, last.at = boxC, s.at.Add(time.Second)
	s.w.see(last) // the very same packet, of the other host
	s.say(boxC, segment{seq: 0xffff_fff1, ack: 108, flags: flagACK, window: 500, stamped: true, stamp: 13, payload: []byte("the first answer is thismore")})
	s.say(boxes, segment{seq: 108, ack: after, flags: flagACK, payload: []byte("next")})
	s.say(boxC, segment{seq: after + 4, ack: 112, flags: flagACK, window: 500, stamped: true, stamp: 14, payload: []byte("answer")})
	turns, n, err := s.w.since()
	if err != nil {
		t.Error(err)
	}
	if len(turns) != 2 || turns[0].from != boxA || turns[1].from != boxC || turns[1].frames != 3 || !turns[1].first.Equal(last.at) {
		t.Errorf("who has sent: %+v", turns)
	}
	if n != (tally{segments: 5, again: 28, twice: 1}) {
		t.Errorf("counted %+v", n)
	}
}

// TestWitnessTells: what was on the wire is told with numbers that begin at 0.
func TestWitnessTells(t *testing.T) {
	s := story()
	var b strings.Builder
	s.w.tell(&b, testStart)
	const want = "    0.001 client seq 0, 0 bytes, ack 16, flags 02\n" +
		"    0.002 a      seq 0, 0 bytes, ack 1, flags 12\n" +
		"    0.003 client seq 1, 7 bytes, ack 1, flags 10\n" +
		"    0.004 a      seq 1, 24 bytes, ack 8, flags 10\n"
	if b.String() != want {
		t.Errorf("told\n%s", b.String())
	}
}

// TestWitnessNotices everything that no guest that lives once can say.
func TestWitnessNotices(t *testing.T) {
	const ack = flagACK
	for want, seg := range map[string]segment{
		"sequence number 4294967285 are others": {seq: 0xffff_fff1, ack: 108, flags: ack, window: 500, payload: []byte("the worst answer")},
		"sequence number 7 are others":          {seq: 5, ack: 108, flags: ack, window: 500, payload: []byte("thus")},
		"acknowledges 107 after 108":            {seq: after, ack: 107, flags: ack, window: 501},
		"the client has sent up to 108":         {seq: after, ack: 109, flags: ack, window: 500},
		"takes up to 63980 after":               {seq: after, ack: 108, flags: ack, window: 499},
		"time stamp 10 after 11":                {seq: after, ack: 108, flags: ack, window: 500, stamped: true, stamp: 10},
		"has reset":                             {seq: after, flags: flagRST},
		"has ended the connection":              {seq: after, ack: 108, flags: ack | flagFIN, window: 500},
		"a second time":                         {seq: 77, ack: 101, flags: ack | flagSYN, window: 500},
	} {
		s := story()
		if _, _, err := s.w.since(); err != nil {
			t.Fatal(err)
		}
		s.say(boxB, seg)
		if _, _, err := s.w.since(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not noticed: %v", want, err)
		}
	}
}

// TestWitnessOver: a connection that its client has ended is over, and the next one may use its
// numbers anew.
func TestWitnessOver(t *testing.T) {
	s := story()
	s.say(boxes, segment{seq: 108, ack: after, flags: flagACK | flagFIN})
	s.say(boxA, segment{seq: after, ack: 109, flags: flagACK | flagFIN, window: 500})
	if _, _, err := s.w.since(); err != nil {
		t.Error(err)
	}
}

// TestParseSegment: what is cut short or is something else is none.
func TestParseSegment(t *testing.T) {
	s := &said{at: testStart}
	whole := s.tcp(boxA, segment{seq: 1, ack: 2, flags: flagACK, window: 3, scale: 7, stamped: true, stamp: 4, payload: []byte("x")}).data[etherHeader:]
	for n := range whole {
		if _, ok := parseSegment(whole[:n]); ok {
			t.Errorf("%d bytes of %d are taken for a segment", n, len(whole))
		}
	}
	got, ok := parseSegment(append(whole, 0, 0, 0)) // Ethernet's padding
	if !ok || got.seq != 1 || got.ack != 2 || got.window != 3 || got.scale != 7 || got.stamp != 4 || string(got.payload) != "x" {
		t.Errorf("read %+v, %v", got, ok)
	}
}

// TestStreamKeeps: of a long stream the newest bytes are compared, and what is older is not
// taken for something else.
func TestStreamKeeps(t *testing.T) {
	var s stream
	p := make([]byte, 1000)
	for seq := uint32(0); seq < 5*streamKept; seq += 1000 {
		for i := range p {
			p[i] = byte((seq + uint32(i)) % 251)
		}
		if at, differs := s.take(segment{seq: seq, payload: p}); differs {
			t.Fatalf("differs at %d", at)
		}
	}
	if len(s.have) < streamKept || len(s.have) > 2*streamKept {
		t.Errorf("%d bytes are kept", len(s.have))
	}
	if _, differs := s.take(segment{seq: 0, payload: make([]byte, 1000)}); differs {
		t.Error("bytes that are not kept are compared")
	}
	if _, differs := s.take(segment{seq: s.end - 1000, payload: make([]byte, 1000)}); !differs {
		t.Error("other bytes are not noticed")
	}
}
