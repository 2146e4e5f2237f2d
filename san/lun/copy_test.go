package lun_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"testing"

	"steadfast/fault"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

func hexOf(b []byte) string { return hex.EncodeToString(b) }

// segment is one block device to block device segment.
type segment struct {
	from, to       uint16
	blocks         uint16
	source, target uint64
}

// copyOf makes an EXTENDED COPY: its CDB and its parameter list. The units are
// named by the NAA designators that h reads of them.
func (h *host) copyOf(list byte, units []int, segments ...segment) (c, out []byte) {
	h.t.Helper()
	out = make([]byte, 16)
	out[0] = list
	binary.BigEndian.PutUint16(out[2:], uint16(32*len(units)))
	binary.BigEndian.PutUint32(out[8:], uint32(28*len(segments)))
	for _, n := range units {
		d := make([]byte, 32)
		d[0] = 0xe4
		copy(d[4:], h.vpd(n, scsi.VPDIdentification)[4:24])
		d[30] = 0x02 // 512-byte blocks
		out = append(out, d...)
	}
	for _, s := range segments {
		d := make([]byte, 28)
		d[0], d[3] = 0x02, 0x18
		binary.BigEndian.PutUint16(d[4:], s.from)
		binary.BigEndian.PutUint16(d[6:], s.to)
		binary.BigEndian.PutUint16(d[10:], s.blocks)
		binary.BigEndian.PutUint64(d[12:], s.source)
		binary.BigEndian.PutUint64(d[20:], s.target)
		out = append(out, d...)
	}
	return cdb(scsi.OpExtendedCopy, 10, uint32(len(out))), out
}

// copyResult asks for a copy's result. SPC-4, 6.18.
func copyResult(action, list uint8) []byte {
	return cdb(scsi.OpReceiveCopyResults, 1, action, 2, list, 10, uint32(128))
}

// TestCopy copies inside of a unit and between two, and reads the results.
// SPC-4, 6.4, 6.18.
func TestCopy(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	h.ok(plainLUN, transfer(scsi.OpWrite10, 0, 64), pattern(3, 64))
	c, out := h.copyOf(5, []int{plainLUN, otherLUN}, segment{0, 1, 40, 8, 100}, segment{0, 0, 8, 0, 1000}, segment{0, 1, 0, 0, 0})
	h.ok(plainLUN, c, out)
	if got := r.other.Bytes(); !bytes.Equal(got[100*512:140*512], pattern(3, 40)) || got[99*512] != 0 || got[140*512] != 0 {
		t.Error("the copy between units is wrong")
	}
	if got := r.plain.Bytes(); !bytes.Equal(got[1000*512:1008*512], pattern(3, 8)) {
		t.Error("the copy inside of the unit is wrong")
	}
	if got, want := hexOf(h.ok(plainLUN, copyResult(scsi.ActionCopyStatus, 5), nil)), "00000008"+"01"+"0003"+"00"+"00006000"; got != want {
		t.Errorf("COPY STATUS %s, want %s", got, want)
	}
	h.want(plainLUN, copyResult(scsi.ActionCopyStatus, 6), nil, "5h/24h/00h")
	h.want(plainLUN, copyResult(scsi.ActionCopyFailedSegments, 5), nil, "5h/24h/00h") // it did not fail
	h.want(otherLUN, copyResult(scsi.ActionCopyStatus, 5), nil, "5h/24h/00h")         // it was not sent there
	if got := h.ok(plainLUN, copyResult(scsi.ActionCopyOperatingParams, 0), nil); int(binary.BigEndian.Uint32(got)) != len(got)-4 {
		t.Errorf("operating parameters % x", got)
	}
	h.ok(plainLUN, cdb(scsi.OpExtendedCopy), nil) // an empty list
}

// TestCopyFails: every failure of a segment is COPY ABORTED, with details to
// fetch once; what came before it stays copied.
func TestCopyFails(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(r *rig, h *host)
		second  segment
		ends    string
	}{
		{"source beyond the end", nil, segment{0, 1, 8, volumeBlocks, 0}, "ah/00h/00h"},
		{"destination beyond the end", nil, segment{0, 1, 8, 0, volumeBlocks - 7}, "ah/00h/00h"},
		{"no such descriptor", nil, segment{0, 2, 8, 0, 0}, "ah/08h/04h"},
		{"unreadable", func(r *rig, _ *host) {
			r.plain.Fail = func(op string, off, _ int64) error {
				if op == "read" && off >= 512*512 {
					return fault.New(fault.Corrupt, "bad")
				}
				return nil
			}
		}, segment{0, 1, 8, 512, 0}, "ah/11h/00h"},
		{"write-protected", func(r *rig, h *host) {
			r.other.SetReadOnly(true)
			h.next(otherLUN)
		}, segment{0, 1, 8, 0, 0}, "ah/00h/00h"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			h := r.open(hostA)
			h.ok(plainLUN, transfer(scsi.OpWrite10, 0, 8), pattern(3, 8))
			if c.prepare != nil {
				c.prepare(r, h)
			}
			cmd, out := h.copyOf(1, []int{plainLUN, otherLUN}, segment{0, 0, 8, 0, 64}, c.second)
			task := h.do(plainLUN, cmd, out)
			sense, _ := scsi.DecodeSense(task.Sense)
			if verdict(task) != c.ends || binary.BigEndian.Uint32(task.Sense[8:]) != 1 {
				t.Errorf("%s in segment %d, want %s (%+v)", verdict(task), binary.BigEndian.Uint32(task.Sense[8:]), c.ends, sense)
			}
			if r.plain.Bytes()[64*512] != 3 {
				t.Error("the first segment was not copied")
			}
			h.ok(plainLUN, copyResult(scsi.ActionCopyFailedSegments, 1), nil)
			h.want(plainLUN, copyResult(scsi.ActionCopyFailedSegments, 1), nil, "5h/24h/00h")
		})
	}
}

// TestCopyUnderWay asks for the result of a copy that is not done, and uses
// its list identifier again. SPC-4, 6.4.3.2, 6.18.2.
func TestCopyUnderWay(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	c, out := h.copyOf(5, []int{plainLUN, otherLUN}, segment{0, 1, 8, 0, 0}, segment{0, 1, 8, 0, 64})
	var status string
	r.other.Gate = func(op string, off, _ int64) {
		if op == "copy" && off > 0 {
			status = hexOf(h.ok(plainLUN, copyResult(scsi.ActionCopyStatus, 5), nil))
			h.want(plainLUN, c, out, "5h/00h/16h")
		}
	}
	h.ok(plainLUN, c, out)
	if want := "00000008" + "00" + "0001" + "00" + "00001000"; status != want {
		t.Errorf("COPY STATUS in between %s, want %s", status, want)
	}
	r.other.Gate = nil
	// Results of many copies: the oldest is dropped.
	for list := byte(6); list < 6+scsi.CopiesMax; list++ {
		out[0] = list
		h.ok(plainLUN, c, out)
	}
	h.want(plainLUN, copyResult(scsi.ActionCopyStatus, 5), nil, "5h/24h/00h")
	h.ok(plainLUN, copyResult(scsi.ActionCopyStatus, 6), nil)
}

// TestCopyLists refuses parameter lists that are wrong, and units that this
// nexus does not see or may not write.
func TestCopyLists(t *testing.T) {
	r := newRig(t)
	h, b := r.open(hostA), r.open(hostB)
	c, out := h.copyOf(1, []int{plainLUN, otherLUN}, segment{0, 1, 8, 0, 0})
	h.want(plainLUN, c, out[:len(out)-1], "5h/1ah/00h")
	wrong := func(at int, v byte, ends string) {
		t.Helper()
		bad := bytes.Clone(out)
		bad[at] = v
		h.want(plainLUN, c, bad, ends)
	}
	wrong(16, 0xe0, "5h/26h/07h")
	wrong(16+64, 0x01, "5h/26h/09h")
	wrong(16+30, 0x10, "5h/26h/00h") // 4096-byte blocks
	wrong(15, 1, "5h/26h/0bh")
	wrong(16+9, 0x77, "ah/0dh/02h") // another designator: not seen

	b.do(otherLUN, persistCDB(scsi.ActionPersistRegister, 0), persistList(0, 2, 0))
	b.do(otherLUN, persistCDB(scsi.ActionPersistReserve, reserve.WriteExclusive), persistList(2, 0, 0))
	h.want(plainLUN, c, out, "conflict")
}
