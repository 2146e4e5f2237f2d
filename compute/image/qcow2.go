package image

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"io"

	"steadfast/fault"
)

// The header of a qcow2 file (QEMU, docs/interop/qcow2.rst): big-endian, at its start.
const (
	qcow2Magic = "QFI\xfb"
	// Lengths in bytes of the headers of version 2, and of the part of version 3 that is read.
	qcow2HeaderV2 = 72
	qcow2HeaderV3 = 104
	// Bounds of QEMU's own: size of clusters, and of the first table in bytes.
	qcow2ClusterBitsMin, qcow2ClusterBitsMax = 9, 21
	qcow2L1BytesMax                          = 32 << 20
)

// Incompatible features, bits. Others change how the file is read in ways that are not known here.
const (
	qcow2Dirty    = 1 << 0 // counts of references may be wrong; a reader needs none
	qcow2Corrupt  = 1 << 1
	qcow2External = 1 << 2
)

// Bits of entries of the tables.
const (
	qcow2Offset     = 0x00ff_ffff_ffff_fe00
	qcow2Compressed = 1 << 62
	qcow2Zero       = 1 << 0
)

// qcow2 reads a disk image of QEMU's kind. It reads versions 2 and 3, with clusters that
// are absent, zero, plain or compressed with zlib; what it does not read it refuses. Other
// files that such a file names are never opened.
type qcow2 struct {
	r           io.ReaderAt
	version     uint32
	clusterBits uint
	size        int64
	l1          []uint64
	l2          []uint64 // the table read last
	l2At        uint64
	packed      []byte
}

// isQcow2 tells whether a file's beginning is one's.
func isQcow2(head []byte) bool { return bytes.HasPrefix(head, []byte(qcow2Magic)) }

// openQcow2 reads the header and the first table. Fails with fault.Invalid for what it does
// not read, and fault.Corrupt for what makes no sense.
func openQcow2(r io.ReaderAt) (*qcow2, error) {
	var h [qcow2HeaderV3 + 1]byte
	n, err := r.ReadAt(h[:], 0)
	if n < qcow2HeaderV2 {
		return nil, fault.New(fault.Corrupt, "a qcow2 file of %d bytes: %w", n, err)
	}
	be := binary.BigEndian
	q := &qcow2{r: r, version: be.Uint32(h[4:]), clusterBits: uint(be.Uint32(h[20:])), size: int64(be.Uint64(h[24:]))}
	switch {
	case !isQcow2(h[:]):
		return nil, fault.New(fault.Invalid, "no qcow2 file")
	case q.version != 2 && q.version != 3:
		return nil, fault.New(fault.Invalid, "qcow2 version %d is not read; 2 and 3 are", q.version)
	case be.Uint64(h[8:]) != 0:
		return nil, fault.New(fault.Invalid, "the qcow2 file stands on another file; make one of both with: qemu-img convert -O qcow2")
	case be.Uint32(h[32:]) != 0:
		return nil, fault.New(fault.Invalid, "the qcow2 file is encrypted")
	case q.clusterBits < qcow2ClusterBitsMin || q.clusterBits > qcow2ClusterBitsMax:
		return nil, fault.New(fault.Corrupt, "qcow2 clusters of 2^%d bytes", q.clusterBits)
	case q.size < 0 || q.size > SizeMax:
		return nil, fault.New(fault.Invalid, "the qcow2 file is a disk of %d bytes; at most %d are read", uint64(q.size), int64(SizeMax))
	}
	if q.version == 3 {
		if n < qcow2HeaderV3 {
			return nil, fault.New(fault.Corrupt, "a qcow2 header that is cut short")
		}
		if err := qcow2Features(be.Uint64(h[72:])); err != nil {
			return nil, err
		}
	}
	return q, q.readL1(be.Uint32(h[36:]), be.Uint64(h[40:]))
}

// qcow2Features refuses incompatible features that change how the file is read.
func qcow2Features(bits uint64) error {
	switch {
	case bits&qcow2Corrupt != 0:
		return fault.New(fault.Corrupt, "QEMU has marked the qcow2 file as damaged; see: qemu-img check")
	case bits&qcow2External != 0:
		return fault.New(fault.Invalid, "the qcow2 file has its data in another file; make one of both with: qemu-img convert -O qcow2")
	case bits&^qcow2Dirty != 0:
		return fault.New(fault.Invalid, "the qcow2 file has features that are not read (%#x); write it without them: qemu-img convert -O raw", bits)
	}
	return nil
}

// readL1 reads the first table: where second tables are.
func (q *qcow2) readL1(entries uint32, at uint64) error {
	perL2 := int64(1) << (q.clusterBits - 3 + q.clusterBits)
	need := (q.size + perL2 - 1) / perL2
	if int64(entries) < need || need*8 > qcow2L1BytesMax {
		return fault.New(fault.Corrupt, "a qcow2 table of %d entries for %d bytes", entries, q.size)
	}
	var err error
	q.l1, err = q.table(at, int(need))
	return err
}

// table reads n big-endian numbers.
func (q *qcow2) table(at uint64, n int) ([]uint64, error) {
	b := make([]byte, 8*n)
	if err := q.read(b, at); err != nil {
		return nil, err
	}
	t := make([]uint64, n)
	for i := range t {
		t[i] = binary.BigEndian.Uint64(b[8*i:])
	}
	return t, nil
}

func (q *qcow2) read(b []byte, at uint64) error {
	if at > 1<<62 {
		return fault.New(fault.Corrupt, "a qcow2 offset of %d", at)
	}
	if _, err := q.r.ReadAt(b, int64(at)); err != nil {
		return fault.Wrap(fault.Corrupt, err, "a qcow2 file whose tables lead past its end")
	}
	return nil
}

// cluster reads cluster i of the disk into b; false if it is all zeros, and b is not touched.
func (q *qcow2) cluster(i int64, b []byte) (bool, error) {
	perL2 := int64(1) << (q.clusterBits - 3)
	table := q.l1[i/perL2] & qcow2Offset
	if table == 0 {
		return false, nil
	}
	if q.l2 == nil || q.l2At != table {
		t, err := q.table(table, int(perL2))
		if err != nil {
			return false, err
		}
		q.l2, q.l2At = t, table
	}
	switch e := q.l2[i%perL2]; {
	case e&qcow2Compressed != 0:
		return true, q.inflate(e, b)
	case e&qcow2Zero != 0 && q.version >= 3, e&qcow2Offset == 0:
		return false, nil
	default:
		// A last cluster may end with the file.
		n, err := q.r.ReadAt(b, int64(e&qcow2Offset))
		if n == 0 || err != nil && !errors.Is(err, io.EOF) {
			return false, fault.New(fault.Corrupt, "a qcow2 file whose tables lead past its end: %w", err)
		}
		clear(b[n:])
		return true, nil
	}
}

// inflate reads a compressed cluster: an entry has its offset and, above, how many
// sectors of 512 bytes it takes beyond the first.
func (q *qcow2) inflate(e uint64, b []byte) error {
	split := 62 - (q.clusterBits - 8)
	at := e & (1<<split - 1)
	sectors := e&(qcow2Compressed-1)>>split + 1
	n := sectors*512 - at%512
	if cap(q.packed) < int(n) {
		q.packed = make([]byte, n)
	}
	packed := q.packed[:n]
	// The last sector may end with the file.
	got, err := q.r.ReadAt(packed, int64(at))
	if got == 0 || err != nil && !errors.Is(err, io.EOF) {
		return fault.New(fault.Corrupt, "a qcow2 file whose tables lead past its end: %w", err)
	}
	z := flate.NewReader(bytes.NewReader(packed[:got]))
	if _, err := io.ReadFull(z, b); err != nil {
		return fault.Wrap(fault.Corrupt, err, "a compressed cluster of a qcow2 file")
	}
	return nil
}

// copyTo writes the disk to w, which reads as zeros where nothing was written.
func (q *qcow2) copyTo(ctx context.Context, w io.WriterAt) error {
	b := make([]byte, 1<<q.clusterBits)
	for i, at := int64(0), int64(0); at < q.size; i, at = i+1, at+int64(len(b)) {
		if err := ctx.Err(); err != nil {
			return fault.Wrap(fault.Canceled, err, "reading a qcow2 file")
		}
		some, err := q.cluster(i, b)
		if err != nil {
			return err
		}
		part := b[:min(int64(len(b)), q.size-at)]
		if !some || isZero(part) {
			continue
		}
		if _, err := w.WriteAt(part, at); err != nil {
			return err
		}
	}
	return nil
}

// isZero tells whether all of b is 0.
func isZero(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
