package scsi

import "encoding/binary"

// Extent is a run of logical blocks.
type Extent struct {
	LBA    uint64
	Blocks uint32
}

// Extents walks the block descriptors of an UNMAP parameter list without
// copying them. SBC-3, 5.28.
type Extents []byte

// DecodeUnmap checks an UNMAP parameter list and returns its block
// descriptors. A list that was cut short has as many as are whole; an empty
// one has none, which is no error.
func DecodeUnmap(list []byte) (Extents, *Check) {
	if len(list) == 0 {
		return nil, nil
	}
	if len(list) < 8 {
		return nil, ListLength()
	}
	n := min(int(binary.BigEndian.Uint16(list[2:])), len(list)-8)
	return Extents(list[8 : 8+n-n%16]), nil
}

// Len returns how many descriptors there are.
func (e Extents) Len() int { return len(e) / 16 }

// At returns the i-th descriptor.
func (e Extents) At(i int) Extent {
	return Extent{binary.BigEndian.Uint64(e[16*i:]), binary.BigEndian.Uint32(e[16*i+8:])}
}

// Limits of EXTENDED COPY, as RECEIVE COPY RESULTS tells them. The descriptor
// list holds the most targets and segments at once.
const (
	CopyTargetsMax  = 16
	CopySegmentsMax = 64
	CopyListMax     = CopyTargetsMax*32 + CopySegmentsMax*28 // bytes
	CopyBlocksMax   = 0xffff                                 // of one segment
	CopiesMax       = 16                                     // under way at once, of one nexus
)

// Copy is a decoded EXTENDED COPY(LID1) parameter list. SPC-4, 6.4.3.
type Copy struct {
	ListID   uint8
	Usage    uint8 // LIST ID USAGE; 3: no results are kept
	Targets  []CopyTarget
	Segments []CopySegment
}

// CopyTarget is an identification descriptor CSCD descriptor (type E4h): it
// names a logical unit by one of its designators. SPC-4, 6.4.6.2.
type CopyTarget struct {
	CodeSet, Association, Kind uint8
	Designator                 []byte
	BlockSize                  uint32
}

// CopySegment is a block device to block device segment (type 02h).
// SPC-4, 6.4.7.5.
type CopySegment struct {
	Source, Destination       uint16 // indices of Targets
	Blocks                    uint16
	SourceLBA, DestinationLBA uint64
}

// DecodeCopy decodes and checks the parameter list of EXTENDED COPY(LID1). An
// empty list copies nothing.
func DecodeCopy(list []byte) (c Copy, check *Check) {
	if len(list) == 0 {
		return c, nil
	}
	if len(list) < 16 {
		return c, ListLength()
	}
	c.ListID = list[0]
	c.Usage = list[1] >> 3 & 3
	targets := int(binary.BigEndian.Uint16(list[2:]))
	segments := int(binary.BigEndian.Uint32(list[8:]) & 0x7fff_ffff)
	inline := int(binary.BigEndian.Uint32(list[12:]) & 0x7fff_ffff)
	if inline != 0 {
		return c, Fail(KeyIllegalRequest, 0x26, 0x0b) // INLINE DATA LENGTH EXCEEDED
	}
	if targets+segments > CopyListMax || len(list) < 16+targets+segments {
		return c, ListLength()
	}
	if targets%32 != 0 {
		return c, InvalidData(2, -1)
	}
	if targets/32 > CopyTargetsMax {
		return c, Fail(KeyIllegalRequest, 0x26, 0x06) // TOO MANY TARGET DESCRIPTORS
	}
	for at := 16; at < 16+targets; at += 32 {
		t, check := decodeCopyTarget(list[at:at+32], at)
		if check != nil {
			return c, check
		}
		c.Targets = append(c.Targets, t)
	}
	return c, c.decodeSegments(list[16+targets:16+targets+segments], 16+targets)
}

// decodeCopyTarget decodes one CSCD descriptor, which stands at byte at. The
// LU ID TYPE and NUL fields are obsolete in SPC-4 and not looked at.
func decodeCopyTarget(d []byte, at int) (t CopyTarget, check *Check) {
	if d[0] != 0xe4 {
		return t, Fail(KeyIllegalRequest, 0x26, 0x07) // UNSUPPORTED TARGET DESCRIPTOR TYPE CODE
	}
	if d[1]&0x1f != PeripheralDisk {
		return t, InvalidData(at+1, 4)
	}
	n := int(d[7])
	if n > 20 {
		return t, InvalidData(at+7, -1)
	}
	t.CodeSet, t.Association, t.Kind = d[4]&0xf, d[5]>>4&3, d[5]&0xf
	t.Designator = d[8 : 8+n]
	t.BlockSize = uint32(d[29])<<16 | uint32(d[30])<<8 | uint32(d[31])
	return t, nil
}

// decodeSegments decodes the segment descriptors, which begin at byte at.
func (c *Copy) decodeSegments(list []byte, at int) *Check {
	for len(list) > 0 {
		if len(c.Segments) == CopySegmentsMax {
			return Fail(KeyIllegalRequest, 0x26, 0x08) // TOO MANY SEGMENT DESCRIPTORS
		}
		if list[0] != 0x02 {
			return Fail(KeyIllegalRequest, 0x26, 0x09) // UNSUPPORTED SEGMENT DESCRIPTOR TYPE CODE
		}
		if len(list) < 28 {
			return ListLength()
		}
		if binary.BigEndian.Uint16(list[2:]) != 0x18 {
			return InvalidData(at+2, -1)
		}
		c.Segments = append(c.Segments, CopySegment{
			Source:         binary.BigEndian.Uint16(list[4:]),
			Destination:    binary.BigEndian.Uint16(list[6:]),
			Blocks:         binary.BigEndian.Uint16(list[10:]),
			SourceLBA:      binary.BigEndian.Uint64(list[12:]),
			DestinationLBA: binary.BigEndian.Uint64(list[20:]),
		})
		list, at = list[28:], at+28
	}
	return nil
}

// AppendCopyParams appends the operating parameters of RECEIVE COPY RESULTS:
// segments of at most CopyBlocksMax blocks, block to block and identification
// descriptors only. SPC-4, 6.18.4.
func AppendCopyParams(dst []byte, blockSize uint32) []byte {
	var b [46]byte
	be := binary.BigEndian
	be.PutUint32(b[0:], uint32(len(b)-4))
	b[4] = 0x01 // SNLID: EXTENDED COPY with LIST ID USAGE 11b is accepted
	be.PutUint16(b[8:], CopyTargetsMax)
	be.PutUint16(b[10:], CopySegmentsMax)
	be.PutUint32(b[12:], CopyListMax)
	be.PutUint32(b[16:], CopyBlocksMax*blockSize)
	be.PutUint16(b[34:], 0xffff) // concurrent copies in all: no limit of their own
	b[36] = CopiesMax            // and of one nexus
	b[37] = 9                    // data segment granularity, log 2
	b[43] = 2
	b[44], b[45] = 0x02, 0xe4
	return append(dst, b[:]...)
}

// CopyResult is what RECEIVE COPY RESULTS tells of an EXTENDED COPY.
type CopyResult struct {
	Running  bool
	Failed   bool
	Segments uint16 // processed
	Bytes    uint64 // written
	Sense    []byte // of the failure
}

// AppendCopyStatus appends COPY STATUS data: in progress, or complete with or
// without errors; the transfer count in bytes, or in KiB when it does not fit.
// SPC-4, 6.18.2.
func AppendCopyStatus(dst []byte, r CopyResult) []byte {
	state := byte(1)
	switch {
	case r.Running:
		state = 0
	case r.Failed:
		state = 2
	}
	units, count := byte(0), r.Bytes
	if count > 0xffff_ffff {
		units, count = 1, count>>10
	}
	dst = append(dst, 0, 0, 0, 8, state, byte(r.Segments>>8), byte(r.Segments), units)
	return binary.BigEndian.AppendUint32(dst, uint32(count))
}

// AppendCopyFailure appends FAILED SEGMENT DETAILS data. SPC-4, 6.18.5.
func AppendCopyFailure(dst []byte, r CopyResult) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, 60)...)
	dst[start+56] = 2
	binary.BigEndian.PutUint16(dst[start+58:], uint16(len(r.Sense)))
	dst = append(dst, r.Sense...)
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst
}
