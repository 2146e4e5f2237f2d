package lun_test

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"testing"

	"steadfast/block"
	"steadfast/san/lun"
	"steadfast/san/lun/luntest"
	"steadfast/scsi"
)

const (
	targetName = "iqn.2026-11.io.example:t"
	hostA      = "iqn.2026-11.io.example:a"
	hostB      = "iqn.2026-11.io.example:b"

	volumeSize   = 4 << 20
	volumeBlocks = volumeSize / block.SectorSize

	plainLUN, otherLUN = 1, 2
)

// rig is a device server with two volumes that every initiator sees.
type rig struct {
	t            testing.TB
	srv          *lun.Server
	plain, other *luntest.RAM
}

func newRig(t testing.TB) *rig {
	r := &rig{t: t, srv: lun.NewServer(), plain: luntest.NewRAM("plain", 0x11, volumeSize), other: luntest.NewRAM("other", 0x22, volumeSize)}
	for _, v := range []lun.Volume{r.plain, r.other} {
		if err := r.srv.AddVolume(v); err != nil {
			t.Fatal(err)
		}
	}
	r.view(lun.Mapping{LUN: plainLUN, Volume: r.plain.ID()}, lun.Mapping{LUN: otherLUN, Volume: r.other.ID()})
	return r
}

// view sets what all initiators see.
func (r *rig) view(list ...lun.Mapping) {
	r.t.Helper()
	if err := r.srv.SetView(targetName, map[string][]lun.Mapping{lun.Any: list}); err != nil {
		r.t.Fatal(err)
	}
}

// host is one initiator port that talks to the server. It implements
// scsi.Events.
type host struct {
	scsi.Port
	t    testing.TB
	told atomic.Int32 // unit attentions that the transport was told of
	tag  uint32
}

func (h *host) UnitAttention(scsi.LUN) { h.told.Add(1) }

// login opens an initiator's port through a portal group.
func (r *rig) login(initiator string, group uint16) *host {
	r.t.Helper()
	h := &host{t: r.t}
	n := scsi.Nexus{InitiatorName: initiator, InitiatorPort: initiator + ",i,0x000000000001", TargetName: targetName, TargetPort: group}
	var err error
	if h.Port, err = r.srv.OpenPort(n, h); err != nil {
		r.t.Fatal(err)
	}
	return h
}

// open is login with the unit attentions of a power on out of the way.
func (r *rig) open(initiator string) *host {
	r.t.Helper()
	h := r.login(initiator, 1)
	for _, n := range []int{plainLUN, otherLUN} {
		h.want(n, cdb(scsi.OpTestUnitReady), nil, "6h/29h/00h")
	}
	return h
}

// task makes a task that has begun.
func (h *host) begin(n int, c []byte, out []byte) *scsi.Task {
	h.tag++
	t := &scsi.Task{LUN: scsi.MakeLUN(n), Tag: h.tag, Attribute: scsi.Simple, CDB: c, DataOut: out, ExpectedIn: 1 << 20, ExpectedOut: len(out)}
	h.Begin(t)
	return t
}

// do runs a command from beginning to end, as a transport does.
func (h *host) do(n int, c []byte, out []byte) *scsi.Task {
	h.t.Helper()
	t := h.begin(n, c, out)
	if !h.TryExecute(t) && !h.Execute(t) {
		h.t.Fatalf("% x has no answer", c)
	}
	return t
}

// verdict writes a task's answer as "good", "conflict", "aborted" or its sense
// triple.
func verdict(t *scsi.Task) string {
	switch t.Status {
	case scsi.Good:
		return "good"
	case scsi.ReservationConflict:
		return "conflict"
	case scsi.TaskAborted:
		return "aborted"
	case scsi.CheckCondition:
		if c, ok := scsi.DecodeSense(t.Sense); ok {
			return fmt.Sprintf("%xh/%02xh/%02xh", c.Key, c.ASC, c.ASCQ)
		}
	default:
	}
	return fmt.Sprintf("status %02xh, sense % x", t.Status, t.Sense)
}

// want runs a command that must end as said, and returns its data-in.
func (h *host) want(n int, c []byte, out []byte, ends string) []byte {
	h.t.Helper()
	t := h.do(n, c, out)
	if got := verdict(t); got != ends {
		h.t.Fatalf("% x: %s, want %s", c, got, ends)
	}
	data := append([]byte(nil), t.DataIn...)
	if t.Release != nil {
		t.Release()
	}
	return data
}

// ok is want for a command that must succeed.
func (h *host) ok(n int, c []byte, out []byte) []byte {
	h.t.Helper()
	return h.want(n, c, out, "good")
}

// cdb makes a CDB of the length that the operation code demands. Pairs of an
// offset and a value follow: the value is written there, big-endian, in as
// many bytes as its type has.
func cdb(op scsi.Opcode, fields ...any) []byte {
	c := make([]byte, scsi.CDBLength(op))
	c[0] = byte(op)
	for i := 0; i < len(fields); i += 2 {
		at := fields[i].(int)
		switch v := fields[i+1].(type) {
		case uint8:
			c[at] = v
		case uint16:
			binary.BigEndian.PutUint16(c[at:], v)
		case uint32:
			binary.BigEndian.PutUint32(c[at:], v)
		case uint64:
			binary.BigEndian.PutUint64(c[at:], v)
		default:
			panic("a field of an unknown size")
		}
	}
	return c
}

// transfer makes the CDB of a command on n blocks at lba.
func transfer(op scsi.Opcode, lba uint64, n uint32) []byte {
	switch scsi.CDBLength(op) {
	case 6:
		return cdb(op, 1, uint8(lba>>16), 2, uint16(lba), 4, uint8(n))
	case 10:
		return cdb(op, 2, uint32(lba), 7, uint16(n))
	case 12:
		return cdb(op, 2, uint32(lba), 6, n)
	}
	return cdb(op, 2, lba, 10, n)
}

// flagged sets bits of byte 1.
func flagged(c []byte, bits byte) []byte {
	c[1] |= bits
	return c
}

// pattern returns n blocks of a byte.
func pattern(b byte, n int) []byte {
	p := make([]byte, n*block.SectorSize)
	for i := range p {
		p[i] = b
	}
	return p
}

// unmapList makes an UNMAP parameter list.
func unmapList(extents ...scsi.Extent) []byte {
	n := 16 * len(extents)
	b := make([]byte, 8, 8+n)
	binary.BigEndian.PutUint16(b, uint16(n+6))
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	for _, e := range extents {
		b = binary.BigEndian.AppendUint64(b, e.LBA)
		b = binary.BigEndian.AppendUint32(b, e.Blocks)
		b = append(b, 0, 0, 0, 0)
	}
	return b
}

// unmapCDB makes the CDB for a list.
func unmapCDB(list []byte) []byte { return cdb(scsi.OpUnmap, 7, uint16(len(list))) }
