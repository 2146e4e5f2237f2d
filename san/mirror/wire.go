package mirror

import (
	"encoding/binary"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// WireVersion is the version of packets' bytes. A reader refuses others.
const WireVersion = 3

// Sizes of a packet's parts on the wire, in bytes, and what bounds them. All
// numbers are little-endian.
//
//	0  version, kind, op kind, flags (1: op is durable,
//	   2: refused, 4: damaged, 8: op is taken back)       uint8 each
//	4  volume                                             uint32
//	8  epoch, stream, sequence, complete                  uint64 each
//	40 block, count                                       uint64 each
//	56 control: stamp                                     int64
//	64 control: epoch                                     uint64
//	72 control: kind                                      uint8, then 3 of zero
//	76 ranges: how many                                   uint32
//	80 payload: bytes                                     uint32, then 4 of zero
//	88 ranges: volume uint32, 4 of zero, block, count     24 bytes each
//	   payload
const (
	HeaderSize  = 88
	rangeSize   = 24
	RangesMax   = 1 << 20
	PayloadMax  = 64 << 20
	flagDurable = 1
	flagRefused = 2
	flagDamaged = 4
	flagUndo    = 8
)

// AppendHeader appends a packet's bytes but for its payload, of which size is
// the length in bytes.
func (p *Packet) AppendHeader(b []byte, size int) []byte {
	var h [HeaderSize]byte
	h[0], h[1], h[2] = WireVersion, byte(p.Kind), byte(p.Op.Kind)
	for i, is := range [...]bool{p.Op.Durable, p.Refused, p.Damaged, p.Op.Undo} {
		if is {
			h[3] |= 1 << i
		}
	}
	le := binary.LittleEndian
	le.PutUint32(h[4:], p.Op.Volume)
	for i, n := range []uint64{uint64(p.Epoch), p.Stream, p.Sequence, p.Complete, p.Op.Block, p.Op.Count, uint64(p.Control.Stamp), uint64(p.Control.Epoch)} {
		le.PutUint64(h[8+8*i:], n)
	}
	h[72] = byte(p.Control.Kind)
	le.PutUint32(h[76:], uint32(len(p.Ranges)))
	le.PutUint32(h[80:], uint32(size))
	b = append(b, h[:]...)
	for _, r := range p.Ranges {
		b = le.AppendUint32(b, r.Volume)
		b = le.AppendUint32(b, 0)
		b = le.AppendUint64(b, r.Block)
		b = le.AppendUint64(b, r.Count)
	}
	return b
}

// DecodeHeader reads the first HeaderSize bytes of a packet. It returns how many
// bytes of ranges follow, and of payload after them.
func DecodeHeader(h []byte) (p Packet, rangesSize, payloadSize int, err error) {
	le := binary.LittleEndian
	if len(h) != HeaderSize {
		return p, 0, 0, fault.New(fault.Invalid, "a packet header of %d bytes", len(h))
	}
	n, size := le.Uint32(h[76:]), le.Uint32(h[80:])
	p.Kind, p.Op.Kind, p.Op.Durable = PacketKind(h[1]), Kind(h[2]), h[3]&flagDurable != 0
	p.Refused, p.Damaged, p.Op.Undo = h[3]&flagRefused != 0, h[3]&flagDamaged != 0, h[3]&flagUndo != 0
	p.Control.Kind = group.MessageKind(h[72])
	switch {
	case h[0] != WireVersion:
		return p, 0, 0, fault.New(fault.Invalid, "a packet of version %d; this node speaks %d", h[0], WireVersion)
	case p.Kind < Control || p.Kind > Mend, p.Op.Kind > stepping, h[3]&^(flagDurable|flagRefused|flagDamaged|flagUndo) != 0, p.Control.Kind > group.Promise, n > RangesMax, size > PayloadMax:
		return p, 0, 0, fault.New(fault.Invalid, "a packet that makes no sense: kind %d, operation %d, %d ranges, %d bytes", h[1], h[2], n, size)
	}
	p.Op.Volume = le.Uint32(h[4:])
	var f [8]uint64
	for i := range f {
		f[i] = le.Uint64(h[8+8*i:])
	}
	p.Epoch, p.Stream, p.Sequence, p.Complete = quorum.Epoch(f[0]), f[1], f[2], f[3]
	p.Op.Block, p.Op.Count = f[4], f[5]
	p.Control.Stamp, p.Control.Epoch = group.Instant(f[6]), quorum.Epoch(f[7])
	if p.Op.Block+p.Op.Count < p.Op.Block {
		return p, 0, 0, fault.New(fault.Invalid, "a packet about %d blocks at %d", p.Op.Count, p.Op.Block)
	}
	if p.Kind == Forward && (p.Op.Kind == 0 || p.Op.Kind == Read || p.Op.Kind == Compare) || p.Carries() != (size > 0) {
		return p, 0, 0, fault.New(fault.Invalid, "a packet of kind %d about operation %d with %d bytes", p.Kind, p.Op.Kind, size)
	}
	return p, int(n) * rangeSize, int(size), nil
}

// Carries tells whether the packet has a payload: what is to be stored or done, what
// is there instead, why it was not done, or which snapshots there are.
func (p *Packet) Carries() bool {
	switch {
	case p.Kind == Differ:
		return true
	case p.Kind == Forward:
		return p.Op.changes() || p.Op.own()
	case p.Kind == Ack:
		return p.Refused != (p.Op.Kind == fetching)
	}
	return false
}

// DecodeRanges reads the ranges that follow a header.
func DecodeRanges(b []byte) ([]Range, error) {
	if len(b)%rangeSize != 0 {
		return nil, fault.New(fault.Invalid, "%d bytes of ranges", len(b))
	}
	le := binary.LittleEndian
	var out []Range
	for ; len(b) > 0; b = b[rangeSize:] {
		r := Range{le.Uint32(b), le.Uint64(b[8:]), le.Uint64(b[16:])}
		if r.Block+r.Count < r.Block {
			return nil, fault.New(fault.Invalid, "a range of %d blocks at %d", r.Count, r.Block)
		}
		out = append(out, r)
	}
	return out, nil
}
