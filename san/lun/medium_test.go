package lun_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"steadfast/fault"
	"steadfast/scsi"
)

// TestReadWrite writes with each WRITE and reads with each READ.
func TestReadWrite(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	reads := []scsi.Opcode{scsi.OpRead6, scsi.OpRead10, scsi.OpRead12, scsi.OpRead16}
	for i, write := range []scsi.Opcode{
		scsi.OpWrite6, scsi.OpWrite10, scsi.OpWrite12, scsi.OpWrite16, scsi.OpWriteVerify10, scsi.OpWriteVerify12, scsi.OpWriteVerify16,
	} {
		lba := uint64(100*i + 3) // not aligned to a physical block
		want := pattern(byte(i+1), 5)
		h.ok(plainLUN, transfer(write, lba, 5), want)
		for _, cold := range []bool{false, true} {
			r.plain.Cold.Store(cold)
			for _, read := range reads {
				if got := h.ok(plainLUN, transfer(read, lba, 5), nil); !bytes.Equal(got, want) {
					t.Errorf("%02xh reads back wrongly by %02xh, cold %v", write, read, cold)
				}
			}
		}
	}
	// READ(6) and WRITE(6) count 0 as 256 blocks. SBC-3, 5.10.
	h.ok(plainLUN, transfer(scsi.OpWrite6, 1024, 0), pattern(9, 256))
	if got := h.ok(plainLUN, transfer(scsi.OpRead6, 1024, 0), nil); !bytes.Equal(got, pattern(9, 256)) {
		t.Errorf("READ(6) of 256 blocks gives %d bytes", len(got))
	}
}

// TestRanges holds every command on a run of blocks to the medium's end, the
// limits and the fields it must refuse. SBC-3, 5.
func TestRanges(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	const last = volumeBlocks - 1
	two := pattern(1, 2)
	for _, c := range []struct {
		op      scsi.Opcode
		out     []byte
		protect bool // has a protection field
	}{
		{scsi.OpRead6, nil, false},
		{scsi.OpRead10, nil, true},
		{scsi.OpRead12, nil, true},
		{scsi.OpRead16, nil, true},
		{scsi.OpWrite6, two, false},
		{scsi.OpWrite10, two, true},
		{scsi.OpWrite12, two, true},
		{scsi.OpWrite16, two, true},
		{scsi.OpVerify10, nil, true},
		{scsi.OpVerify12, nil, true},
		{scsi.OpVerify16, nil, true},
		{scsi.OpWriteVerify10, two, true},
		{scsi.OpWriteVerify12, two, true},
		{scsi.OpWriteVerify16, two, true},
		{scsi.OpOrWrite16, two, true},
		{scsi.OpWriteSame10, two[:512], true},
		{scsi.OpWriteSame16, two[:512], true},
		{scsi.OpPrefetch10, nil, false},
		{scsi.OpPrefetch16, nil, false},
		{scsi.OpSynchronizeCache10, nil, false},
		{scsi.OpSynchronizeCache16, nil, false},
	} {
		h.ok(plainLUN, transfer(c.op, last-1, 2), c.out)
		h.want(plainLUN, transfer(c.op, last, 2), c.out, "5h/21h/00h")
		h.want(plainLUN, transfer(c.op, last+2, 1), c.out[:min(len(c.out), 512)], "5h/21h/00h")
		if c.protect {
			h.want(plainLUN, flagged(transfer(c.op, 0, 2), 0x20), c.out, "5h/24h/00h")
		}
		if scsi.CDBLength(c.op) == 16 {
			h.want(plainLUN, transfer(c.op, 1<<63, 2), c.out, "5h/21h/00h")
			h.want(plainLUN, transfer(c.op, 1<<64-1, 2), c.out, "5h/21h/00h")
		}
		// NACA is refused by all. SAM-5, 5.2.
		naca := transfer(c.op, 0, 2)
		naca[len(naca)-1] = 0x04
		h.want(plainLUN, naca, c.out, "5h/24h/00h")
	}
	h.want(plainLUN, transfer(scsi.OpRead16, 0, 32769), nil, "5h/24h/00h")
	h.want(plainLUN, transfer(scsi.OpWriteSame16, 0, 32769), two[:512], "5h/24h/00h")
	// The INFORMATION field says which LBA was out of range. SBC-3, 4.18.1.
	got, _ := scsi.DecodeSense(h.do(plainLUN, transfer(scsi.OpRead10, last+9, 1), nil).Sense)
	if !got.HasInformation || got.Information != last+9 {
		t.Errorf("information %v %d", got.HasInformation, got.Information)
	}
}

// TestResidualCounts shows what the transport makes residuals of: data-in is as
// long as the command says, whatever the initiator expects, and Required is
// how much data-out it takes. RFC 7143, 11.4.5.
func TestResidualCounts(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	h.ok(plainLUN, transfer(scsi.OpWrite10, 0, 8), pattern(5, 8))
	for _, expected := range []int{0, 512, 700, 4096, 8192} {
		task := h.begin(plainLUN, transfer(scsi.OpRead10, 0, 4), nil)
		task.ExpectedIn = expected
		if !h.TryExecute(task) && !h.Execute(task) || verdict(task) != "good" || len(task.DataIn) != 2048 {
			t.Errorf("READ of 2048 with %d expected: %s, %d bytes", expected, verdict(task), len(task.DataIn))
		}
		n := min(expected, 2048)
		if !bytes.Equal(task.DataIn[:n], pattern(5, 4)[:n]) {
			t.Errorf("READ with %d expected gives wrong data", expected)
		}
		task.Release()
	}
	for _, c := range []struct {
		cdb      []byte
		out      []byte
		required int
		ends     string
	}{
		{transfer(scsi.OpWrite10, 8, 4), pattern(1, 2), 2048, "good"},                 // short: whole blocks are written
		{transfer(scsi.OpWrite10, 16, 4), pattern(1, 8), 2048, "good"},                // long: the rest is not
		{transfer(scsi.OpWrite10, 24, 4), pattern(1, 2)[:700], 2048, "5h/0eh/03h"},    // part of a block
		{transfer(scsi.OpWrite10, volumeBlocks, 1), pattern(1, 1), 512, "5h/21h/00h"}, // refused
		{flagged(transfer(scsi.OpVerify10, 0, 4), 2), pattern(5, 4), 2048, "good"},
		{transfer(scsi.OpRead10, 0, 4), nil, 0, "good"},
		{cdb(scsi.OpCompareAndWrite, 13, uint8(1)), pattern(5, 2), 1024, "good"},
		{transfer(scsi.OpWriteSame10, 0, 4), pattern(5, 1), 512, "good"},
	} {
		task := h.do(plainLUN, c.cdb, c.out)
		if verdict(task) != c.ends || task.Required != c.required {
			t.Errorf("% x: %s, required %d; want %s, %d", c.cdb, verdict(task), task.Required, c.ends, c.required)
		}
	}
	want := append(pattern(1, 2), pattern(0, 6)...)
	want = append(append(want, pattern(1, 4)...), pattern(0, 12)...)
	if got := r.plain.Bytes()[8*512 : 32*512]; !bytes.Equal(got, want) {
		t.Error("short and long writes wrote something else than what was sent of their blocks")
	}
}

// TestVerify compares by BYTCHK. SBC-3, 5.26 to 5.28.
func TestVerify(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	h.ok(plainLUN, transfer(scsi.OpWrite10, 0, 4), pattern(7, 4))
	off := pattern(7, 4)
	off[1000] = 8
	for _, op := range []scsi.Opcode{scsi.OpVerify10, scsi.OpVerify12, scsi.OpVerify16} {
		h.ok(plainLUN, transfer(op, 0, 4), nil)
		h.ok(plainLUN, flagged(transfer(op, 0, 4), 2), pattern(7, 4))
		h.ok(plainLUN, flagged(transfer(op, 0, 4), 6), pattern(7, 1)) // each block with one
		h.want(plainLUN, flagged(transfer(op, 0, 4), 4), pattern(7, 4), "5h/24h/00h")
		task := h.do(plainLUN, flagged(transfer(op, 0, 4), 2), off)
		if c, _ := scsi.DecodeSense(task.Sense); verdict(task) != "eh/1dh/00h" || c.Information != 1000 {
			t.Errorf("%02xh: %s at %d", op, verdict(task), c.Information)
		}
	}
	h.want(plainLUN, flagged(transfer(scsi.OpVerify10, 0, 5), 6), pattern(7, 1), "eh/1dh/00h")
	// WRITE AND VERIFY writes first, and compares what it reads back.
	h.ok(plainLUN, flagged(transfer(scsi.OpWriteVerify10, 0, 4), 2), off)
	if !bytes.Equal(r.plain.Bytes()[:2048], off) {
		t.Error("WRITE AND VERIFY did not write")
	}
}

// TestCompareAndWrite: all or nothing, and the offset of the first difference.
// SBC-3, 5.2.
func TestCompareAndWrite(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	ats := func(n uint8) []byte { return cdb(scsi.OpCompareAndWrite, 2, uint64(4), 13, n) }
	h.ok(plainLUN, ats(2), append(pattern(0, 2), pattern(3, 2)...))
	task := h.do(plainLUN, ats(2), append(append(pattern(3, 1), pattern(4, 1)...), pattern(5, 2)...))
	c, _ := scsi.DecodeSense(task.Sense)
	if verdict(task) != "eh/1dh/00h" || !c.HasInformation || c.Information != 512 {
		t.Errorf("miscompare: %s at %d", verdict(task), c.Information)
	}
	if got := r.plain.Bytes()[2048:3072]; !bytes.Equal(got, pattern(3, 2)) {
		t.Error("a miscompare wrote")
	}
	h.ok(plainLUN, ats(0), nil)
	h.want(plainLUN, ats(2), pattern(3, 3), "5h/24h/00h")
	h.want(plainLUN, ats(129), pattern(3, 258), "5h/24h/00h")
	h.want(plainLUN, cdb(scsi.OpCompareAndWrite, 2, uint64(volumeBlocks), 13, uint8(1)), pattern(3, 2), "5h/21h/00h")
}

// TestOrWrite shows that ORWRITE is one step: another write in between makes
// it begin again. SBC-3, 5.8.
func TestOrWrite(t *testing.T) {
	r := newRig(t)
	h, other := r.open(hostA), r.open(hostB)
	h.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(0x01, 1))
	raced := false
	r.plain.Gate = func(op string, _, _ int64) {
		if op == "compare" && !raced {
			raced = true
			other.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(0x02, 1))
		}
	}
	h.ok(plainLUN, transfer(scsi.OpOrWrite16, 0, 1), pattern(0x40, 1))
	if got := r.plain.Bytes()[0]; got != 0x42 {
		t.Errorf("01h, then 02h in between, OR 40h gives %02xh", got)
	}
}

// TestUnmap covers aligned, unaligned, refused and bounded lists. SBC-3, 5.28.
func TestUnmap(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	h.ok(plainLUN, transfer(scsi.OpWrite10, 0, 64), pattern(1, 64))
	list := unmapList(scsi.Extent{LBA: 4, Blocks: 24}, scsi.Extent{LBA: 40, Blocks: 0}, scsi.Extent{LBA: 50, Blocks: 3})
	h.ok(plainLUN, unmapCDB(list), list)
	want := append(pattern(1, 4), pattern(0, 24)...)
	want = append(append(append(want, pattern(1, 22)...), pattern(0, 3)...), pattern(1, 11)...)
	if !bytes.Equal(r.plain.Bytes()[:64*512], want) {
		t.Error("UNMAP zeroed other blocks than those asked for")
	}
	if mapped, n, _ := r.plain.Mapped(8*512, 1<<20); mapped || n != 16*512 {
		t.Errorf("blocks 8 to 23: mapped %v for %d bytes", mapped, n)
	}
	h.ok(plainLUN, unmapCDB(nil), nil)
	many := unmapList(make([]scsi.Extent, 257)...)
	for _, c := range []struct {
		name      string
		cdb, list []byte
		ends      string
	}{
		{"beyond the end", nil, unmapList(scsi.Extent{LBA: 0, Blocks: 1}, scsi.Extent{LBA: volumeBlocks, Blocks: 1}), "5h/21h/00h"},
		{"wraps", nil, unmapList(scsi.Extent{LBA: 1<<64 - 1, Blocks: 2}), "5h/21h/00h"},
		{"too many", nil, many, "5h/26h/00h"},
		{"cut header", cdb(scsi.OpUnmap, 7, uint16(7)), list[:7], "5h/1ah/00h"},
		{"anchored", flagged(unmapCDB(list), 1), list, "5h/24h/00h"},
	} {
		if c.cdb == nil {
			c.cdb = unmapCDB(c.list)
		}
		if got := verdict(h.do(plainLUN, c.cdb, c.list)); got != c.ends {
			t.Errorf("%s: %s, want %s", c.name, got, c.ends)
		}
	}
	if r.plain.Bytes()[0] != 1 {
		t.Error("a refused UNMAP zeroed the extent before the wrong one")
	}
}

// TestUnmapOfFullPool: giving space back works however full the pool is, and
// the parts of blocks that would need space are left.
func TestUnmapOfFullPool(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	h.ok(plainLUN, transfer(scsi.OpWrite10, 0, 64), pattern(1, 64))
	r.plain.Fail = func(op string, _, _ int64) error {
		if op == "write" || op == "zero" {
			return fault.New(fault.Full, "full")
		}
		return nil
	}
	list := unmapList(scsi.Extent{LBA: 4, Blocks: 24})
	h.ok(plainLUN, unmapCDB(list), list)
	if got := r.plain.Bytes(); got[8*512] != 0 || got[7*512] != 1 {
		t.Error("whole blocks are not freed, or parts of blocks changed")
	}
	h.want(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1), "7h/27h/07h")
}

// TestWriteSame covers data, zeros, UNMAP, NDOB and the end of the medium.
// SBC-3, 5.36, 5.37.
func TestWriteSame(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	mapped := func(lba int64) bool {
		m, _, err := r.plain.Mapped(lba*512, 512)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, op := range []scsi.Opcode{scsi.OpWriteSame10, scsi.OpWriteSame16} {
		h.ok(plainLUN, transfer(op, 0, 4096), pattern(3, 1)) // more than is written at a time
		if got := r.plain.Bytes()[:4096*512]; !bytes.Equal(got, pattern(3, 4096)) {
			t.Errorf("%02xh wrote something else", op)
		}
		h.ok(plainLUN, flagged(transfer(op, 8, 16), 0x08), pattern(0, 1))
		if r.plain.Bytes()[8*512] != 0 || mapped(8) || mapped(16) || !mapped(24) {
			t.Errorf("%02xh with UNMAP does not unmap", op)
		}
		h.ok(plainLUN, transfer(op, volumeBlocks-100, 0), pattern(6, 1)) // to the end
		if got := r.plain.Bytes(); got[volumeSize-1] != 6 || got[volumeSize-100*512-1] == 6 {
			t.Errorf("%02xh of 0 blocks does not write to the end", op)
		}
		h.want(plainLUN, flagged(transfer(op, 0, 8), 0x18), pattern(0, 1), "5h/24h/00h") // ANCHOR
		h.want(plainLUN, transfer(op, 0, 8), pattern(0, 2), "5h/24h/00h")
		h.want(plainLUN, transfer(op, volumeBlocks, 0), pattern(0, 1), "5h/21h/00h")
	}
	h.ok(plainLUN, flagged(transfer(scsi.OpWriteSame16, 24, 8), 0x01), nil) // NDOB
	if r.plain.Bytes()[24*512] != 0 {
		t.Error("NDOB does not zero")
	}
	h.want(plainLUN, flagged(transfer(scsi.OpWriteSame16, 0, 8), 0x01), pattern(0, 1), "5h/24h/00h")
}

// TestLBAStatus reads the map of a volume with holes. SBC-3, 5.6.
func TestLBAStatus(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	h.ok(plainLUN, transfer(scsi.OpWrite10, 16, 16), pattern(1, 16))
	ask := func(lba uint64, allocation uint32) string {
		data := h.ok(plainLUN, cdb(scsi.OpServiceActionIn16, 1, uint8(scsi.ActionGetLBAStatus), 2, lba, 10, allocation), nil)
		text := ""
		for d := data[min(8, len(data)):]; len(d) >= 16; d = d[16:] {
			text += fmt.Sprintf("%d+%d:%d ", binary.BigEndian.Uint64(d), binary.BigEndian.Uint32(d[8:]), d[12])
		}
		return text
	}
	for _, c := range []struct {
		lba        uint64
		allocation uint32
		want       string
	}{
		{0, 1024, "0+16:1 16+16:0 32+8160:1 "},
		{0, 24, "0+16:1 "},
		{3, 1024, "3+13:1 16+16:0 32+8160:1 "},
		{16, 24, "16+16:0 "},
		{19, 24, "24+8:0 "}, // rounded: see getLBAStatus
		{27, 24, "27+5:0 "},
		{volumeBlocks - 1, 24, "8191+1:1 "},
		{0, 0, ""},
	} {
		if got := ask(c.lba, c.allocation); got != c.want {
			t.Errorf("from %d, %d bytes: %q, want %q", c.lba, c.allocation, got, c.want)
		}
	}
	h.want(plainLUN, cdb(scsi.OpServiceActionIn16, 1, uint8(scsi.ActionGetLBAStatus), 2, uint64(volumeBlocks)), nil, "5h/21h/00h")
}

// TestVolumeErrors shows what an initiator is told of a volume's errors, and
// that a medium error names the first block that is bad.
func TestVolumeErrors(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	r.plain.Cold.Store(true)
	for _, c := range []struct {
		kind fault.Kind
		want string
	}{
		{fault.Corrupt, "3h/11h/00h"},
		{fault.Full, "7h/27h/07h"},
		{fault.Failed, "4h/44h/00h"},
		{fault.ReadOnly, "7h/27h/00h"},
		{fault.Fenced, "2h/04h/0ah"},
	} {
		r.plain.Fail = func(op string, off, n int64) error {
			if off+n > 20*512 {
				return fault.New(c.kind, "asked for by the test")
			}
			return nil
		}
		h.want(plainLUN, transfer(scsi.OpWrite10, 18, 8), pattern(1, 8), c.want)
		h.want(plainLUN, transfer(scsi.OpWriteSame10, 18, 8), pattern(1, 1), c.want)
		task := h.do(plainLUN, transfer(scsi.OpRead10, 3, 64), nil)
		at, _ := scsi.DecodeSense(task.Sense)
		if verdict(task) != c.want || c.kind == fault.Corrupt && at.Information != 16 {
			t.Errorf("%v: READ ends with %s at %d, want %s", c.kind, verdict(task), at.Information, c.want)
		}
	}
	r.plain.Fail = func(op string, _, _ int64) error { return fault.New(fault.Failed, "gone") }
	h.want(plainLUN, transfer(scsi.OpSynchronizeCache10, 0, 0), nil, "4h/44h/00h")
	if c, err := r.srv.Counters(r.plain.ID()); err != nil || c.Errors == 0 {
		t.Errorf("errors are not counted: %+v, %v", c, err)
	}
}

// TestWriteProtect: a read-only volume, a read-only mapping and SWP refuse all
// that changes the medium and nothing else.
func TestWriteProtect(t *testing.T) {
	writes := [][2][]byte{
		{transfer(scsi.OpWrite10, 0, 1), pattern(1, 1)},
		{transfer(scsi.OpWriteVerify16, 0, 1), pattern(1, 1)},
		{transfer(scsi.OpOrWrite16, 0, 1), pattern(1, 1)},
		{transfer(scsi.OpWriteSame16, 0, 1), pattern(1, 1)},
		{cdb(scsi.OpCompareAndWrite, 2, uint64(100), 13, uint8(1)), pattern(0, 2)},
		{unmapCDB(unmapList(scsi.Extent{Blocks: 8})), unmapList(scsi.Extent{Blocks: 8})},
	}
	check := func(t *testing.T, h *host, ends string) {
		t.Helper()
		for _, w := range writes {
			h.want(plainLUN, w[0], w[1], ends)
		}
		h.ok(plainLUN, transfer(scsi.OpRead10, 0, 1), nil)
		h.ok(plainLUN, transfer(scsi.OpSynchronizeCache10, 0, 0), nil)
		wp := byte(0x10)
		if ends != "good" {
			wp |= 0x80
		}
		if got := h.ok(plainLUN, cdb(scsi.OpModeSense6, 2, uint8(0x3f), 4, uint8(255)), nil)[2]; got != wp {
			t.Errorf("device-specific parameter %02xh, want %02xh", got, wp)
		}
	}
	t.Run("volume", func(t *testing.T) {
		r := newRig(t)
		h := r.open(hostA)
		check(t, h, "good")
		r.plain.SetReadOnly(true)
		h.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/2ah/01h")
		check(t, h, "7h/27h/00h")
	})
	t.Run("mapping", func(t *testing.T) {
		r := newRig(t)
		h := r.open(hostA)
		m := mappings(r)
		m[0].ReadOnly = true
		r.view(m...)
		h.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/2ah/01h")
		check(t, h, "7h/27h/00h")
	})
	t.Run("SWP", func(t *testing.T) {
		r := newRig(t)
		h := r.open(hostA)
		list := modeList(control(0, 0x08, 0))
		h.ok(plainLUN, modeSelect(list), list)
		check(t, h, "7h/27h/00h")
		if got := h.Manage(scsi.LogicalUnitResetFunction, scsi.MakeLUN(plainLUN), 0); got != scsi.FunctionComplete {
			t.Fatalf("reset: %d", got)
		}
		h.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/29h/03h")
		check(t, h, "good")
	})
}
