package lun_test

import (
	"math/rand/v2"
	"testing"

	"steadfast/scsi"
)

// FuzzExecute sends whatever CDB and data to a unit. Nothing may panic, every
// task has an answer, sense data is there when the status says so, and the
// answer keeps to the initiator's bounds where the standard sets them.
func FuzzExecute(f *testing.F) {
	f.Add(transfer(scsi.OpRead10, 0, 8), []byte(nil), uint32(4096))
	f.Add(transfer(scsi.OpWriteSame16, 1<<40, 0), pattern(1, 1), uint32(0))
	f.Add(cdb(scsi.OpCompareAndWrite, 13, uint8(1)), pattern(0, 2), uint32(0))
	f.Add(unmapCDB(unmapList(scsi.Extent{LBA: 3, Blocks: 30})), unmapList(scsi.Extent{LBA: 3, Blocks: 30}), uint32(0))
	f.Add(persistCDB(scsi.ActionPersistRegister, 0), persistList(0, 1, 1), uint32(0))
	f.Add(modeSelect(modeList(control(0, 0, 0x40))), modeList(control(0, 0, 0x40)), uint32(0))
	f.Add(copyResult(scsi.ActionCopyOperatingParams, 0), []byte(nil), uint32(512))
	for _, op := range []scsi.Opcode{scsi.OpMaintenanceIn, scsi.OpServiceActionIn16, scsi.OpPersistentIn, scsi.OpLogSense, scsi.OpInquiry} {
		f.Add(cdb(op), []byte(nil), uint32(255))
	}
	r := newRig(f)
	h := r.login(hostA, 1)
	c, out := h.copyOf(1, []int{plainLUN, otherLUN}, segment{0, 1, 8, 0, 0})
	f.Add(c, out, uint32(0))
	f.Fuzz(func(t *testing.T, c, out []byte, in uint32) {
		if len(c) < 6 || len(c) > 260 || len(out) > 1<<20 || in > 1<<20 {
			return // what no transport delivers
		}
		h.t = t
		for _, n := range []int{plainLUN, otherLUN + 1} {
			h.tag++
			task := &scsi.Task{LUN: scsi.MakeLUN(n), Tag: h.tag, CDB: c, DataOut: out, ExpectedIn: int(in), ExpectedOut: len(out)}
			h.Begin(task)
			if !h.TryExecute(task) && !h.Execute(task) {
				t.Fatalf("% x has no answer", c)
			}
			if (task.Status == scsi.CheckCondition) != (task.Sense != nil) {
				t.Fatalf("% x: status %02xh with %d bytes of sense", c, task.Status, len(task.Sense))
			}
			if task.Status != scsi.Good && len(task.DataIn) > 0 {
				t.Fatalf("% x: %s, and data", c, verdict(task))
			}
			if task.Release != nil {
				task.Release()
			}
		}
		if r.plain.Size() != volumeSize {
			t.Fatal("the volume changed its size")
		}
	})
}

// BenchmarkQuickRead serves reads from memory, as a transport's reader does. It
// allocates nothing: tasks and buffers come from pools.
func BenchmarkQuickRead(b *testing.B) {
	r := newRig(b)
	h := r.open(hostA)
	h.ok(plainLUN, transfer(scsi.OpWrite10, 0, 8), pattern(1, 8))
	task := &scsi.Task{LUN: scsi.MakeLUN(plainLUN), CDB: transfer(scsi.OpRead10, 0, 8), ExpectedIn: 4096}
	b.ReportAllocs()
	for b.Loop() {
		h.Begin(task)
		if !h.TryExecute(task) {
			b.Fatal("a read from memory needs a worker")
		}
		task.Release()
		task.DataIn, task.Release, task.Unit = nil, nil, nil
	}
}

// TestRandomCommands sends many random CDBs of every command that there is,
// with random parameter lists: more of them get past the first checks than of
// what a fuzzer makes up.
func TestRandomCommands(t *testing.T) {
	r := newRig(t)
	h := r.open(hostA)
	list := h.ok(plainLUN, cdb(scsi.OpMaintenanceIn, 1, uint8(scsi.ActionReportOpcodes), 6, uint32(8192)), nil)[4:]
	rnd := rand.New(rand.NewPCG(7, 143))
	for ; len(list) > 0; list = list[8:] {
		for range 300 {
			c := make([]byte, list[7])
			for i := range c {
				// Small numbers and zeros, as fields of real CDBs are.
				c[i] = byte(rnd.Uint32()) & byte(rnd.Uint32()>>8) & -byte(rnd.Uint32()>>16&1)
			}
			c[0], c[len(c)-1] = list[0], 0
			if list[5]&1 != 0 {
				c[1] = c[1]&0xe0 | list[3]
			}
			out := make([]byte, []int{0, 8, 24, 512, 1024, 4096}[rnd.IntN(6)])
			for i := range out {
				out[i] = byte(rnd.Uint32()) & -byte(rnd.Uint32()&1)
			}
			task := h.do(plainLUN, c, out)
			if (task.Status == scsi.CheckCondition) != (task.Sense != nil) {
				t.Fatalf("% x: status %02xh with %d bytes of sense", c, task.Status, len(task.Sense))
			}
			if task.Release != nil {
				task.Release()
			}
		}
	}
}
