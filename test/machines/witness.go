package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// frame is an Ethernet frame that came in, and where.
type frame struct {
	at   time.Time
	from box // boxes: of the client
	data []byte
}

// A turn is a stretch in which one box alone sent as the guest.
type turn struct {
	from        box
	first, last time.Time
	frames      int
}

// witness judges what the outside gets to see of the machine: who sends as the guest, and
// whether what the guest's TCP says is one story. Frames come in the order of the wire.
type witness struct {
	mu     sync.Mutex
	turns  []turn
	flows  map[netip.AddrPort]*flow // by the client's end
	faults []string
	count  tally
	lines  []line // the newest segments
}

// line is a segment as it is told to people.
type line struct {
	at       time.Time
	from     box
	flow     *flow
	seq, ack uint32
	bytes    int
	flags    byte
}

// linesKept is how many of the newest segments can be told.
const linesKept = 2000

// tell writes the newest segments, from a time on: when after that, who sent, its sequence number, how
// many bytes and what it acknowledges.
func (w *witness) tell(out io.Writer, from time.Time) {
	w.mu.Lock()
	lines := slices.Clone(w.lines)
	w.mu.Unlock()
	for _, l := range lines {
		who, seq, ack := "client", l.seq-l.flow.mine.first, l.ack-l.flow.its.first
		if l.from != boxes {
			who, seq, ack = l.from.String(), l.seq-l.flow.its.first, l.ack-l.flow.mine.first
		}
		_, _ = fmt.Fprintf(out, "%9.3f %-6s seq %d, %d bytes, ack %d, flags %02x\n", l.at.Sub(from).Seconds(), who, seq, l.bytes, ack, l.flags)
	}
}

// note keeps a segment to be told.
func (w *witness) note(f frame, of *flow, s segment) {
	if len(w.lines) >= 2*linesKept {
		w.lines = append(w.lines[:0], w.lines[linesKept:]...)
	}
	w.lines = append(w.lines, line{f.at, f.from, of, s.seq, s.ack, len(s.payload), s.flags})
}

// tally is what a witness has seen of the guest.
type tally struct {
	segments int // of the guest's TCP
	again    int // bytes that were sent again, each the same
	twice    int // segments that came twice, bit for bit, as a switch may repeat them
}

func newWitness() *witness { return &witness{flows: map[netip.AddrPort]*flow{}} }

// faultsMax bounds what is kept: the first ones tell.
const faultsMax = 20

func (w *witness) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrong(format, args...)
}

func (w *witness) wrong(format string, args ...any) {
	if len(w.faults) < faultsMax {
		w.faults = append(w.faults, fmt.Sprintf(format, args...))
	}
}

// mark begins a stretch, of which since tells.
func (w *witness) mark() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.turns); n > 0 {
		w.turns = w.turns[n-1:]
	}
	w.count = tally{}
}

// since returns who has sent as the guest since mark, he included who did so then; and what was
// wrong ever.
func (w *witness) since() ([]turn, tally, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var err error
	for _, f := range w.faults {
		err = errors.Join(err, errors.New(f))
	}
	return append([]turn(nil), w.turns...), w.count, err
}

// Ethernet II, RFC 894; Internet Protocol, RFC 791; TCP, RFC 9293, 3.1.
const (
	etherHeader = 14
	etherIPv4   = 0x0800
	protocolTCP = 6

	flagFIN = 1 << 0
	flagSYN = 1 << 1
	flagRST = 1 << 2
	flagACK = 1 << 4
)

// see takes a frame in.
func (w *witness) see(f frame) {
	if len(f.data) < etherHeader {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	guest := formatMAC(f.data[6:12]) == guestMAC
	if guest {
		w.sent(f)
	}
	if binary.BigEndian.Uint16(f.data[12:]) != etherIPv4 {
		return
	}
	s, ok := parseSegment(f.data[etherHeader:])
	switch {
	case !ok:
	case guest && s.from == redisEnd:
		w.note(f, w.flow(s.to), s)
		w.flow(s.to).guest(w, s)
	case !guest && s.to == redisEnd:
		w.note(f, w.flow(s.from), s)
		w.flow(s.from).client(s)
	}
}

// redisEnd is where the guest is spoken to.
var redisEnd = netip.MustParseAddrPort(redisAt)

func formatMAC(b []byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
}

// sent notes who sends as the guest.
func (w *witness) sent(f frame) {
	if n := len(w.turns); n == 0 || w.turns[n-1].from != f.from {
		w.turns = append(w.turns, turn{from: f.from, first: f.at})
	}
	t := &w.turns[len(w.turns)-1]
	t.last = f.at
	t.frames++
}

func (w *witness) flow(client netip.AddrPort) *flow {
	f := w.flows[client]
	if f == nil {
		f = &flow{name: client.String(), seen: map[uint64]bool{}}
		w.flows[client] = f
	}
	return f
}

// segment is one of TCP.
type segment struct {
	from, to netip.AddrPort
	flags    byte
	seq, ack uint32
	window   uint32 // as it is said: not scaled
	payload  []byte
	whole    []byte // the packet from the internet header on
	scale    int    // of the window, -1: it is not said
	stamp    uint32 // TSval; stamped: it is there. RFC 7323
	stamped  bool
}

// parseSegment reads a segment of an IPv4 packet; false: it is none, or is cut short.
func parseSegment(p []byte) (s segment, ok bool) {
	be := binary.BigEndian
	if len(p) < 20 || p[0]>>4 != 4 || p[9] != protocolTCP {
		return s, false
	}
	header, total := int(p[0]&15)*4, int(be.Uint16(p[2:]))
	if total == 0 { // longer than it can say: the kernel's own, not cut yet
		total = len(p)
	}
	if total > len(p) || total < header+20 || header < 20 {
		return s, false
	}
	s.whole = p[:total]
	t := s.whole[header:]
	data := int(t[12]>>4) * 4
	if data < 20 || data > len(t) {
		return s, false
	}
	s.from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:16])), be.Uint16(t))
	s.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[16:20])), be.Uint16(t[2:]))
	s.seq, s.ack, s.flags, s.window = be.Uint32(t[4:]), be.Uint32(t[8:]), t[13], uint32(be.Uint16(t[14:]))
	s.payload, s.scale = t[data:], -1
	s.options(t[20:data])
	return s, true
}

// options reads those that count here. RFC 9293, 3.2; RFC 7323, 2.2 and 3.2.
func (s *segment) options(o []byte) {
	const (
		end, nothing     = 0, 1
		windowScale      = 3
		timestamps       = 8
		windowScaleBytes = 3
		timestampsBytes  = 10
	)
	for len(o) > 0 && o[0] != end {
		if o[0] == nothing {
			o = o[1:]
			continue
		}
		if len(o) < 2 || int(o[1]) < 2 || int(o[1]) > len(o) {
			return
		}
		switch {
		case o[0] == windowScale && o[1] == windowScaleBytes:
			s.scale = int(o[2])
		case o[0] == timestamps && o[1] == timestampsBytes:
			s.stamp, s.stamped = binary.BigEndian.Uint32(o[2:]), true
		}
		o = o[o[1]:]
	}
}

// flow is a connection to the guest.
type flow struct {
	name       string
	mine, its  stream // the client's bytes, the guest's
	scale      int    // of the guest's window; -1: its SYN was not seen, or says none
	began      bool   // the guest has said something
	ack, right uint32 // the greatest of the guest's
	stamp      uint32
	stamped    bool
	over       bool // the client has ended it

	seen  map[uint64]bool // the newest packets of the guest
	order []uint64
}

// client takes a segment of the client's in. The client's own kernel is not judged.
func (f *flow) client(s segment) {
	f.mine.take(s)
	if s.flags&(flagFIN|flagRST) != 0 {
		f.over = true
	}
}

// packetsKept is how many of the guest's newest packets are known again.
const packetsKept = 4096

// seed makes hashes of this process.
var seed = maphash.MakeSeed()

// known tells whether this very packet came before, and not long ago.
func (f *flow) known(p []byte) bool {
	h := maphash.Bytes(seed, p)
	if f.seen[h] {
		return true
	}
	f.seen[h] = true
	if f.order = append(f.order, h); len(f.order) > packetsKept {
		delete(f.seen, f.order[0])
		f.order = f.order[1:]
	}
	return false
}

// guest takes one of the guest's in, and judges it by all before.
func (f *flow) guest(w *witness, s segment) {
	if f.over {
		return
	}
	w.count.segments++
	if f.known(s.whole) {
		w.count.twice++
		return
	}
	switch {
	case s.flags&flagRST != 0:
		w.wrong("%s: the guest has reset the connection", f.name)
		return
	case s.flags&flagFIN != 0:
		w.wrong("%s: the guest has ended the connection", f.name)
		return
	case s.flags&flagSYN != 0:
		if f.began && s.seq != f.its.first {
			w.wrong("%s: the guest has begun the connection a second time, at %d after %d", f.name, s.seq, f.its.first)
			return
		}
		f.scale = s.scale
	case !f.began:
		f.scale = -1
	}
	before := f.its.end
	at, differs := f.its.take(s)
	if differs {
		w.wrong("%s: the guest's bytes at sequence number %d are others than before", f.name, at)
	}
	if s.flags&flagSYN == 0 && f.began && len(s.payload) > 0 {
		w.count.again += max(0, min(len(s.payload), int(int32(before-s.seq))))
	}
	if s.flags&flagACK != 0 {
		f.acknowledges(w, s)
	}
	if s.stamped {
		if f.stamped && int32(s.stamp-f.stamp) < 0 {
			w.wrong("%s: the guest's clock went back: time stamp %d after %d", f.name, s.stamp, f.stamp)
		}
		f.stamp, f.stamped = s.stamp, true
	}
	f.began = true
}

// acknowledges judges what the guest acknowledges and takes.
func (f *flow) acknowledges(w *witness, s segment) {
	if f.mine.began && int32(s.ack-f.mine.end) > 0 {
		w.wrong("%s: the guest acknowledges %d, and the client has sent up to %d", f.name, s.ack, f.mine.end)
	}
	if f.began && int32(s.ack-f.ack) < 0 {
		w.wrong("%s: the guest acknowledges %d after %d", f.name, s.ack, f.ack)
	}
	f.ack = s.ack
	if s.flags&flagSYN != 0 || f.scale < 0 {
		f.right = s.ack // the window of a SYN is not scaled, and is not compared
		return
	}
	right := s.ack + s.window<<f.scale
	if f.began && int32(right-f.right) < 0 {
		w.wrong("%s: the guest takes up to %d after it took up to %d", f.name, right, f.right)
	}
	f.right = right
}

// stream is the bytes of one direction, the newest of them.
type stream struct {
	began      bool
	first, end uint32 // sequence numbers: of the first segment, and behind the last byte or SYN
	have       []byte // those before end
}

// streamKept bounds how many bytes are kept to be compared with what is sent again.
const streamKept = 1 << 20

// take takes a segment in, and returns the first place where it says something else than
// before.
func (t *stream) take(s segment) (at uint32, differs bool) {
	seq, p := s.seq, s.payload
	if s.flags&flagSYN != 0 {
		seq++
	}
	if !t.began {
		t.began, t.first, t.end = true, s.seq, seq
	}
	// What is before what is kept is compared no more.
	if back := int(int32(t.end - seq)); back > len(t.have) {
		cut := min(len(p), back-len(t.have))
		seq, p = seq+uint32(cut), p[cut:]
	}
	if back := int(int32(t.end - seq)); back > 0 {
		old := t.have[len(t.have)-min(back, len(t.have)):]
		for i := range min(len(old), len(p)) {
			if old[i] != p[i] {
				return seq + uint32(i), true
			}
		}
		seq, p = seq+uint32(min(back, len(p))), p[min(back, len(p)):]
	}
	if len(p) == 0 {
		return 0, false
	}
	if gap := int(int32(seq - t.end)); gap > 0 {
		// A segment was lost on its way; what was in it is not known until it comes again.
		t.have, t.end = t.have[:0], seq
	}
	t.have, t.end = append(t.have, p...), t.end+uint32(len(p))
	if len(t.have) > 2*streamKept {
		t.have = append(t.have[:0], t.have[len(t.have)-streamKept:]...)
	}
	return 0, false
}
