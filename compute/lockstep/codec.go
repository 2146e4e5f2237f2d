package lockstep

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"steadfast/compute/device"
	"steadfast/compute/machine"
	"steadfast/compute/memory"
	"steadfast/fault"
)

// StreamVersion is the version of a stream's bytes.
//
// A stream is one direction of one connection: a head, then frames.
//
//	head   "SFlstep", version, from (0 the primary, 1 the secondary), link, session 16 bytes,
//	       checksum uint32
//	frame  length of the body uvarint, body, checksum uint32
//	body   number of the frame in the stream uvarint from 1, kind, fields
//
//	1 Entry     count, port, kind uint8, status uint8, ID, data to the end
//	2 Horizon   count, released          7 Pages   first page, data     11 Ack  got, done, count
//	3 Digest    count, stripe, hash      8 Part    data                 12 Ready
//	4 Pairing   lock block               9 Start   count, output, hash  13 Live
//	5 Yield     6 Finished              10 Beat                         14 Bye  why uint8
//
// Integers are little-endian or, without a size, uvarints of the fewest bytes; hashes
// are 16 bytes, checksums CRC-32C. Counts of Entry, Horizon and Digest are
// differences from the last one in the stream.
const StreamVersion = 2

const (
	streamMagic = "SFlstep"
	headSize    = len(streamMagic) + 3 + 16 + 4
)

// Bounds of a stream's parts, in bytes.
const (
	// PartMax is of the data of a Pages or a Part.
	PartMax = 1 << 20
	// InputMax is of an input's data: the most that a disk reads at once, and some.
	InputMax = 24 << 20

	smallMax = 1 << 10 // of the body of any other message
)

// Session names a pair from the copy on: no other one has it.
type Session [16]byte

// Head begins a stream.
type Head struct {
	Session   Session
	Secondary bool // it is from the secondary
	Link      Link
}

// Kinds of frames.
const (
	kindEntry uint8 = iota + 1
	kindHorizon
	kindDigest
	kindPairing
	kindYield
	kindFinished
	kindPages
	kindPart
	kindStart
	kindBeat
	kindAck
	kindReady
	kindLive
	kindBye
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Writer makes a stream's bytes.
type Writer struct {
	number uint64 // of the last frame
	count  uint64 // of the last record that has one
	body   []byte
}

// NewWriter begins a stream, and returns its first bytes.
func NewWriter(h Head) (*Writer, []byte) {
	b := append(make([]byte, 0, headSize), streamMagic...)
	b = append(b, StreamVersion, flag(h.Secondary), uint8(h.Link))
	b = append(b, h.Session[:]...)
	return &Writer{}, binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func flag(on bool) uint8 {
	if on {
		return 1
	}
	return 0
}

// Append appends a message's frame to b. Fails with fault.Limit for one that no reader
// takes, and with fault.Invalid for a count that is before the last one's; the stream is
// as before then.
func (w *Writer) Append(b []byte, m Message) ([]byte, error) {
	count := w.count
	body := binary.AppendUvarint(w.body[:0], w.number+1)
	kind := len(body)
	most := smallMax
	step := func(to uint64) {
		body = binary.AppendUvarint(body, to-w.count)
		count = to
	}
	switch m := m.(type) {
	case Entry:
		most = InputMax + smallMax
		body = append(body, kindEntry)
		step(m.In.At)
		body = binary.AppendUvarint(body, uint64(m.In.Port))
		body = append(body, m.In.Kind, m.In.Status)
		body = append(binary.AppendUvarint(body, m.In.ID), m.In.Data...)
	case Horizon:
		body = append(body, kindHorizon)
		step(m.Count)
		body = binary.AppendUvarint(body, m.Released)
	case Digest:
		body = append(body, kindDigest)
		step(m.Count)
		body = append(binary.AppendUvarint(body, uint64(m.Stripe)), m.Hash[:]...)
	case Pairing:
		body = append(append(body, kindPairing), m.Block[:]...)
	case Yield:
		body = append(body, kindYield)
	case Finished:
		body = append(body, kindFinished)
	case Pages:
		most = PartMax + smallMax
		body = binary.AppendUvarint(append(body, kindPages), uint64(m.First))
		body = append(body, m.Data...)
	case Part:
		most = PartMax + smallMax
		body = append(append(body, kindPart), m.Data...)
	case Start:
		body = binary.AppendUvarint(append(body, kindStart), m.Count)
		body = append(binary.AppendUvarint(body, m.Output), m.Hash[:]...)
	case Beat:
		body = append(body, kindBeat)
	case Ack:
		body = binary.AppendUvarint(append(body, kindAck), uint64(m.Got))
		body = binary.AppendUvarint(binary.AppendUvarint(body, uint64(m.Done)), m.Count)
	case Ready:
		body = append(body, kindReady)
	case Live:
		body = append(body, kindLive)
	case Bye:
		body = append(body, kindBye, uint8(m.Why))
	}
	w.body = body
	switch {
	case len(body) > most:
		return b, fault.New(fault.Limit, "a message of %d bytes to the other host, and %d are the most", len(body), most)
	case count < w.count:
		return b, fault.New(fault.Invalid, "a record of count %d after one of %d", count, w.count)
	case len(body) == kind:
		return b, fault.New(fault.Invalid, "a message that has no form")
	}
	w.number, w.count = w.number+1, count
	b = binary.AppendUvarint(b, uint64(len(body)))
	b = append(b, body...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(body, castagnoli)), nil
}

// Reader reads a stream. What it returned is what was sent, from the first message on
// and without a gap.
type Reader struct {
	r      *bufio.Reader
	head   Head
	number uint64
	count  uint64
	err    error
}

// NewReader reads a stream's head. Fails with fault.Corrupt, with fault.Invalid for
// another version, and with fault.Unreachable where the stream is cut.
func NewReader(r io.Reader) (*Reader, error) {
	s := &Reader{r: bufio.NewReaderSize(r, 64<<10)}
	b := make([]byte, headSize)
	if _, err := io.ReadFull(s.r, b); err != nil {
		return nil, cut(err)
	}
	at := len(streamMagic)
	le := binary.LittleEndian
	switch {
	case string(b[:at]) != streamMagic || le.Uint32(b[headSize-4:]) != crc32.Checksum(b[:headSize-4], castagnoli):
		return nil, fault.New(fault.Corrupt, "this is no stream of a pair of hosts, or it is damaged")
	case b[at] != StreamVersion:
		return nil, fault.New(fault.Invalid, "the other host's program speaks version %d, and this one %d: upgrade the older one", b[at], StreamVersion)
	case b[at+1] > 1 || b[at+2] >= Links:
		return nil, fault.New(fault.Corrupt, "a stream of no side or no link")
	}
	s.head = Head{Session(b[at+3 : at+19]), b[at+1] == 1, Link(b[at+2])}
	return s, nil
}

// Head returns what the stream began with: whether it is of one's session is the caller's
// to see.
func (s *Reader) Head() Head { return s.head }

func cut(err error) error {
	return fault.Wrap(fault.Unreachable, err, "the stream from the other host is cut")
}

// Next returns the next message. io.EOF: the stream ends between two. Fails with
// fault.Unreachable where it is cut in the middle of one, with fault.Corrupt where it is
// damaged, with fault.Stale for a frame that was there before or comes after one that is
// missing, and with fault.Limit for one that is too long. After an error there is no
// other message.
func (s *Reader) Next() (Message, error) {
	if s.err != nil {
		return nil, s.err
	}
	m, err := s.next()
	if s.err = err; err != nil {
		return nil, err
	}
	return m, nil
}

func (s *Reader) next() (Message, error) {
	if _, err := s.r.Peek(1); errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	head, err := s.r.Peek(binary.MaxVarintLen32) // fewer near the end
	size, rest, ok := uvarint(head)
	switch {
	case !ok && err != nil:
		return nil, cut(err)
	case !ok:
		return nil, fault.New(fault.Corrupt, "the length of a message from the other host is no number")
	case size > InputMax+smallMax:
		return nil, fault.New(fault.Limit, "a message of %d bytes from the other host", size)
	}
	_, _ = s.r.Discard(len(head) - len(rest)) // it is there
	// The memory comes with the bytes: a length alone buys nothing.
	b := make([]byte, 0, min(size+4, 64<<10))
	for uint64(len(b)) < size+4 {
		n := min(size+4-uint64(len(b)), max(uint64(len(b)), 64<<10))
		b = append(b, make([]byte, n)...)
		if _, err := io.ReadFull(s.r, b[uint64(len(b))-n:]); err != nil {
			return nil, cut(err)
		}
	}
	body, sum := b[:size], binary.LittleEndian.Uint32(b[size:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fault.New(fault.Corrupt, "a message from the other host does not match its checksum")
	}
	number, body, ok := uvarint(body)
	if ok && number != s.number+1 {
		return nil, fault.New(fault.Stale, "message %d from the other host came after message %d", number, s.number)
	}
	s.number++
	d := decoding{b: body, count: s.count}
	m := d.message()
	if !ok || m == nil || d.bad || len(d.b) > 0 {
		return nil, fault.New(fault.Corrupt, "a message from the other host makes no sense")
	}
	s.count = d.count
	return m, nil
}

// decoding takes a body apart.
type decoding struct {
	b     []byte
	count uint64
	bad   bool
}

func (d *decoding) message() Message {
	long := len(d.b) > smallMax
	kind := d.u8()
	if long && kind != kindEntry && kind != kindPages && kind != kindPart {
		return nil
	}
	switch kind {
	case kindEntry:
		in := &device.Input{At: d.step()}
		in.Port, in.Kind, in.Status, in.ID = device.Port(d.most(1<<16-1)), d.u8(), d.u8(), d.uvarint()
		if len(d.b) > 0 {
			in.Data = d.take(len(d.b))
		}
		return Entry{in}
	case kindHorizon:
		return Horizon{d.step(), d.uvarint()}
	case kindDigest:
		return Digest{d.step(), uint32(d.most(1<<32 - 1)), d.hash()}
	case kindPairing:
		var m Pairing
		copy(m.Block[:], d.take(len(m.Block)))
		return m
	case kindPages:
		m := Pages{First: uint32(d.most(1<<32 - 1))}
		m.Data = d.take(len(d.b))
		d.bad = d.bad || len(m.Data) == 0 || len(m.Data)%memory.PageSize != 0 || len(m.Data) > PartMax
		return m
	case kindPart:
		m := Part{d.take(len(d.b))}
		d.bad = d.bad || len(m.Data) == 0 || len(m.Data) > PartMax
		return m
	case kindStart:
		return Start{d.uvarint(), d.uvarint(), d.hash()}
	case kindAck:
		return Ack{Seq(d.uvarint()), Seq(d.uvarint()), d.uvarint()}
	case kindBye:
		why := Why(d.u8())
		d.bad = d.bad || why >= whyEnd
		return Bye{why}
	}
	return bare(kind)
}

// bare is a message without fields, or nil.
func bare(kind uint8) Message {
	switch kind {
	case kindYield:
		return Yield{}
	case kindFinished:
		return Finished{}
	case kindBeat:
		return Beat{}
	case kindReady:
		return Ready{}
	case kindLive:
		return Live{}
	}
	return nil
}

func (d *decoding) take(n int) []byte {
	if n > len(d.b) {
		d.bad, n = true, len(d.b)
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

func (d *decoding) u8() uint8 {
	if p := d.take(1); len(p) == 1 {
		return p[0]
	}
	return 0
}

func (d *decoding) uvarint() uint64 {
	v, rest, ok := uvarint(d.b)
	if !ok {
		d.bad = true
		return 0
	}
	d.b = rest
	return v
}

func (d *decoding) most(limit uint64) uint64 {
	v := d.uvarint()
	d.bad = d.bad || v > limit
	return min(v, limit)
}

// step is a count, of its difference from the last one.
func (d *decoding) step() uint64 {
	to := d.count + d.uvarint()
	d.bad = d.bad || to < d.count
	d.count = to
	return to
}

func (d *decoding) hash() (h machine.Hash) {
	copy(h[:], d.take(len(h)))
	return h
}

// uvarint reads a number that is written in the fewest bytes.
func uvarint(b []byte) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 || n > 1 && b[n-1] == 0 {
		return 0, b, false
	}
	return v, b[n:], true
}
