package lun

import (
	"bytes"
	"encoding/binary"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/scsi"
)

// unmap is UNMAP. All extents are checked before any is unmapped.
// SBC-3, 5.28.
func (k *task) unmap() *scsi.Check {
	length := int(binary.BigEndian.Uint16(k.CDB[7:]))
	k.Required = length
	if k.CDB[1]&0x01 != 0 {
		return scsi.InvalidCDB(1, 0) // ANCHOR: no anchored state
	}
	list, check := scsi.DecodeUnmap(k.DataOut[:min(length, len(k.DataOut))])
	if check != nil {
		return check
	}
	if list.Len() > unmapListMax {
		return scsi.InvalidData(2, -1)
	}
	total := uint64(0)
	for i := range list.Len() {
		e := list.At(i)
		if check := k.inRange(e.LBA, uint64(e.Blocks)); check != nil {
			return check
		}
		if total += uint64(e.Blocks); total > unmapMax {
			return scsi.InvalidData(8+16*i+8, -1)
		}
	}
	for i := range list.Len() {
		if k.stop.Load() {
			return ended
		}
		e := list.At(i)
		if err := k.deallocate(bytesOf(e.LBA), bytesOf(uint64(e.Blocks)), 0, true); err != nil {
			return failed(err, int64(e.LBA))
		}
	}
	return nil
}

// deallocate makes a range read as zeros and frees the physical blocks that it
// covers whole; the parts of blocks at its ends are written. With hint, a full
// pool leaves those parts as they are: UNMAP need not do everything it is
// asked, and must always be able to give space back.
func (k *task) deallocate(off, n int64, f block.Flags, hint bool) error {
	vol := k.itl.unit.vol()
	first := (off + block.BlockSize - 1) &^ (block.BlockSize - 1)
	last := (off + n) &^ (block.BlockSize - 1)
	zero := func(off, n int64) error {
		if n <= 0 {
			return nil
		}
		err := vol.Zero(off, n, f)
		if hint && fault.Is(err, fault.Full) {
			return nil
		}
		return err
	}
	if first >= last {
		return zero(off, n)
	}
	// The middle first: it frees the space that the ends may take.
	if err := vol.Trim(first, last-first); err != nil {
		return err
	}
	if err := zero(off, first-off); err != nil {
		return err
	}
	return zero(last, off+n-last)
}

// writeSame is WRITE SAME(10) and (16). Zeros are not stored but unmapped,
// asked for or not, as no read can tell. With UNMAP the data is not looked at:
// SBC-3, 4.7.3.4.4 wants data other than zeros written in spite of UNMAP, but
// LIO, tgt and Linux's scsi_debug unmap, and libiscsi's conformance suite
// (WriteSame10.UnmapUntilEnd) sends such data and reads zeros. No initiator is
// known that asks to unmap and means to write. SBC-3, 5.36, 5.37.
func (k *task) writeSame() *scsi.Check {
	t, check := k.transfer(writeSameMax)
	if !t.NoData {
		k.Required = block.SectorSize
	}
	u := k.itl.unit
	blocks := uint64(t.Blocks)
	if check == nil && blocks == 0 {
		// To the end of the medium, if that is not too far. SBC-3, 5.36.
		blocks = u.blocks.Load() - t.LBA
	}
	switch {
	case check != nil:
		return check
	case blocks == 0:
		return scsi.OutOfRange(t.LBA)
	case blocks > writeSameMax:
		return scsi.InvalidCDB(lengthField(k.CDB), -1)
	case t.Anchor:
		return scsi.InvalidCDB(1, 4)
	case t.NoData && len(k.DataOut) != 0, !t.NoData && len(k.DataOut) != block.SectorSize:
		return scsi.InvalidCDB(lengthField(k.CDB), -1)
	}
	off, n := bytesOf(t.LBA), bytesOf(blocks)
	var err error
	switch {
	case t.Unmap:
		err = k.deallocate(off, n, 0, false)
	case t.NoData || isZero(k.DataOut):
		err = u.vol().Zero(off, n, 0)
	default:
		err = k.fill(off, n, k.DataOut)
	}
	if err != nil {
		return failed(err, int64(t.LBA))
	}
	u.count.written(n, k.port.srv.now()-k.began)
	return nil
}

// isZero reports whether b is all zeros.
func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// fill writes one block again and again.
func (k *task) fill(off, n int64, one []byte) error {
	b := bufpool.Get(int(min(n, chunkMax)))
	defer bufpool.Put(b)
	for at := 0; at < len(b); at += len(one) {
		copy(b[at:], one)
	}
	for n > 0 {
		if k.stop.Load() {
			return ended
		}
		p := b[:min(n, int64(len(b)))]
		if err := k.itl.unit.vol().WriteAt(p, off, 0); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}
