package lun_test

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"steadfast/san/lun"
	"steadfast/san/lun/luntest"
	"steadfast/scsi"
)

// order runs tasks at once and records in what order they reach the device.
type order struct {
	t    *testing.T
	mu   sync.Mutex
	seen []int64 // LBAs
	hold map[int64]chan struct{}
}

func (o *order) gate(op string, off, _ int64) {
	if op != "write" {
		return
	}
	o.mu.Lock()
	o.seen = append(o.seen, off/512)
	wait := o.hold[off/512]
	o.mu.Unlock()
	if wait != nil {
		<-wait
	}
}

// run starts a write at lba with an attribute, and lets everything settle.
func (o *order) run(h *host, a scsi.Attribute, lba uint64) *scsi.Task {
	h.tag++
	task := &scsi.Task{
		LUN: scsi.MakeLUN(plainLUN), Tag: h.tag, Attribute: a, CDB: transfer(scsi.OpWrite10, lba, 1), DataOut: pattern(1, 1), ExpectedOut: 512,
	}
	h.Begin(task)
	go h.Execute(task)
	synctest.Wait()
	return task
}

func (o *order) want(lbas ...int64) {
	o.t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Equal(o.seen, lbas) {
		o.t.Errorf("the device has seen %v, want %v", o.seen, lbas)
	}
}

// TestTaskAttributes: ORDERED waits for all that is older, SIMPLE for older
// ORDERED tasks, HEAD OF QUEUE for nothing and everybody for it. SAM-5, 8.6.
func TestTaskAttributes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.open(hostA), r.open(hostB)
		o := &order{t: t, hold: map[int64]chan struct{}{1: make(chan struct{}), 3: make(chan struct{}), 6: make(chan struct{})}}
		r.plain.Gate = o.gate
		o.run(a, scsi.Simple, 1)
		o.run(b, scsi.Simple, 2)
		o.run(a, scsi.Ordered, 3)
		o.run(a, scsi.Simple, 4)
		o.run(b, scsi.Simple, 5)
		o.want(1, 2)
		o.run(b, scsi.HeadOfQueue, 6)
		o.want(1, 2, 6)
		close(o.hold[1])
		synctest.Wait()
		o.want(1, 2, 6) // the ORDERED task waits for HEAD OF QUEUE as well
		close(o.hold[6])
		synctest.Wait()
		o.want(1, 2, 6, 3)
		close(o.hold[3])
		synctest.Wait()
		slices.Sort(o.seen[4:])
		o.want(1, 2, 6, 3, 4, 5)
	})
}

// TestWithheldData: an ORDERED task whose data never comes holds up its own
// nexus, and nobody else.
func TestWithheldData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.open(hostA), r.open(hostB)
		o := &order{t: t}
		r.plain.Gate = o.gate
		a.tag++
		stuck := &scsi.Task{LUN: scsi.MakeLUN(plainLUN), Tag: a.tag, Attribute: scsi.Ordered, CDB: transfer(scsi.OpWrite10, 1, 1)}
		a.Begin(stuck)
		o.run(a, scsi.Simple, 2)
		o.run(b, scsi.Simple, 3)
		o.want(3)
		a.Drop(stuck)
		synctest.Wait()
		o.want(3, 2)
	})
}

// TestTaskAborted: with TAS, tasks that another nexus ends are answered TASK
// ABORTED; without, their nexus has a unit attention. SAM-5, 5.6.2.
func TestTaskAborted(t *testing.T) {
	for _, tas := range []byte{0, 0x40} {
		r := newRig(t)
		a, b := r.open(hostA), r.open(hostB)
		list := modeList(control(0, 0, tas))
		a.ok(plainLUN, modeSelect(list), list)
		b.next(plainLUN)
		task := a.begin(plainLUN, transfer(scsi.OpRead10, 0, 1), nil)
		if got := b.Manage(scsi.ClearTaskSet, scsi.MakeLUN(plainLUN), 0); got != scsi.FunctionComplete {
			t.Fatalf("CLEAR TASK SET: %d", got)
		}
		answered := a.TryExecute(task) || a.Execute(task)
		if answered != (tas != 0) || answered && (task.Status != scsi.TaskAborted || task.DataIn != nil) {
			t.Errorf("TAS %02xh: answered %v with %s", tas, answered, verdict(task))
		}
		want := "6h/2fh/00h"
		if tas != 0 {
			want = "good"
		}
		if got := a.next(plainLUN); got != want {
			t.Errorf("TAS %02xh: then %s, want %s", tas, got, want)
		}
		if got := b.next(plainLUN); got != "good" {
			t.Errorf("TAS %02xh: who cleared is told %s", tas, got)
		}
	}
}

// TestManage: what each task management function answers. SAM-5, 7; RFC 7143,
// 11.6.1.
func TestManage(t *testing.T) {
	r := newRig(t)
	a := r.open(hostA)
	task := a.begin(plainLUN, transfer(scsi.OpRead10, 0, 1), nil)
	unit := scsi.MakeLUN(plainLUN)
	for _, c := range []struct {
		f    scsi.Function
		lun  scsi.LUN
		tag  uint32
		want scsi.FunctionResponse
	}{
		{scsi.AbortTask, unit, task.Tag + 1, scsi.TaskDoesNotExist},
		{scsi.AbortTask, scsi.MakeLUN(otherLUN), task.Tag, scsi.TaskDoesNotExist},
		{scsi.AbortTask, unit, task.Tag, scsi.FunctionComplete},
		{scsi.AbortTask, unit, task.Tag, scsi.TaskDoesNotExist},
		{scsi.AbortTaskSet, unit, 0, scsi.FunctionComplete},
		{scsi.ClearACA, unit, 0, scsi.FunctionComplete},
		{scsi.AbortTaskSet, scsi.MakeLUN(5), 0, scsi.LUNDoesNotExist},
		{scsi.TaskReassign, unit, 0, scsi.ReassignUnsupported},
		{99, unit, 0, scsi.FunctionUnsupported},
	} {
		if got := a.Manage(c.f, c.lun, c.tag); got != c.want {
			t.Errorf("function %d on %x, task %d: %d, want %d", c.f, uint64(c.lun), c.tag, got, c.want)
		}
	}
	if a.Execute(task) {
		t.Error("the aborted task has an answer")
	}
}

// interrupted is a volume that calls a test back in the middle of a read from
// memory.
type interrupted struct {
	*luntest.RAM
	during func()
}

func (v *interrupted) TryReadAt(p []byte, off int64) bool {
	v.during()
	return v.RAM.TryReadAt(p, off)
}

// TestAbortQuickRead ends a task while it is served from memory: it must not be
// answered, though its data was there.
func TestAbortQuickRead(t *testing.T) {
	r := newRig(t)
	v := &interrupted{RAM: luntest.NewRAM("interrupted", 0x44, volumeSize)}
	if err := r.srv.AddVolume(v); err != nil {
		t.Fatal(err)
	}
	r.view(append(mappings(r), lun.Mapping{LUN: 4, Volume: v.ID()})...)
	h := r.open(hostA)
	h.next(4)
	task := h.begin(4, transfer(scsi.OpRead10, 0, 8), nil)
	v.during = func() {
		if got := h.Manage(scsi.AbortTask, task.LUN, task.Tag); got != scsi.FunctionComplete {
			t.Errorf("ABORT TASK: %d", got)
		}
	}
	if h.TryExecute(task) || h.Execute(task) || task.DataIn != nil {
		t.Errorf("the aborted read has an answer: %s, %d bytes", verdict(task), len(task.DataIn))
	}
}
