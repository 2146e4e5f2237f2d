package lun_test

import (
	"sync"
	"testing"
	"testing/synctest"

	"steadfast/san/lun/luntest"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// device watches what reaches the volumes, and holds it there while closed.
type device struct {
	mu     sync.Mutex
	closed chan struct{} // while not nil, changes wait for it
	landed int           // changes that came as far as the content
}

// gate is a volume's Gate.
func (d *device) gate(op string, _, _ int64) {
	if op == "read" || op == "flush" || op == "attribute" {
		return
	}
	d.mu.Lock()
	wait := d.closed
	d.mu.Unlock()
	if wait != nil {
		<-wait
	}
	d.mu.Lock()
	d.landed++
	d.mu.Unlock()
}

func (d *device) close() {
	d.mu.Lock()
	d.closed = make(chan struct{})
	d.mu.Unlock()
}

func (d *device) open() {
	d.mu.Lock()
	close(d.closed)
	d.closed = nil
	d.mu.Unlock()
}

func (d *device) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.landed
}

// ending is one way to end the tasks that an initiator has on a volume.
type ending struct {
	name string
	// end returns when it has an answer. victim's task has the tag.
	end func(r *rig, victim, other *host, n int, tag uint32)
}

func endings() []ending {
	manage := func(h *host, f scsi.Function, n int, tag uint32) { h.Manage(f, scsi.MakeLUN(n), tag) }
	return []ending{
		{"ABORT TASK", func(_ *rig, v, _ *host, n int, tag uint32) { manage(v, scsi.AbortTask, n, tag) }},
		{"ABORT TASK SET", func(_ *rig, v, _ *host, n int, _ uint32) { manage(v, scsi.AbortTaskSet, n, 0) }},
		{"CLEAR TASK SET", func(_ *rig, _, o *host, n int, _ uint32) { manage(o, scsi.ClearTaskSet, n, 0) }},
		{"LOGICAL UNIT RESET", func(_ *rig, _, o *host, n int, _ uint32) { manage(o, scsi.LogicalUnitResetFunction, n, 0) }},
		{"TARGET WARM RESET", func(_ *rig, _, o *host, n int, _ uint32) { manage(o, scsi.TargetWarmReset, n, 0) }},
		{"PREEMPT AND ABORT", func(_ *rig, _, o *host, n int, _ uint32) {
			o.do(n, persistCDB(scsi.ActionPersistPreemptAbort, reserve.WriteExclusive), persistList(2, 1, 0))
		}},
		{"session end", func(_ *rig, v, _ *host, _ int, _ uint32) { v.Close() }},
		{"unmapping", func(r *rig, _, _ *host, n int, _ uint32) {
			m := mappings(r)
			r.view(m[2-n])
		}},
		{"volume removal", func(r *rig, _, _ *host, n int, _ uint32) {
			v := map[int]*luntest.RAM{plainLUN: r.plain, otherLUN: r.other}[n]
			if err := r.srv.RemoveVolume(v.ID()); err != nil {
				r.t.Error(err)
			}
		}},
		{"server end", func(r *rig, _, _ *host, _ int, _ uint32) { r.srv.Close() }},
	}
}

// change is a command that changes a volume.
type change struct {
	name string
	on   int // the unit that it is sent to
	hits int // the unit that it changes
	make func(h *host) (c, out []byte)
}

func changes() []change {
	extents := unmapList(scsi.Extent{LBA: 0, Blocks: 8}, scsi.Extent{LBA: 32, Blocks: 8})
	fixed := func(c, out []byte) func(*host) ([]byte, []byte) {
		return func(*host) ([]byte, []byte) { return c, out }
	}
	copies := func(h *host) ([]byte, []byte) {
		return h.copyOf(1, []int{plainLUN, otherLUN}, segment{0, 1, 8, 0, 0}, segment{0, 1, 8, 0, 64})
	}
	return []change{
		{"WRITE", plainLUN, plainLUN, fixed(transfer(scsi.OpWrite10, 0, 2), pattern(1, 2))},
		{"WRITE AND VERIFY", plainLUN, plainLUN, fixed(transfer(scsi.OpWriteVerify10, 0, 2), pattern(1, 2))},
		{"WRITE SAME", plainLUN, plainLUN, fixed(transfer(scsi.OpWriteSame16, 0, 8000), pattern(1, 1))},
		{"UNMAP", plainLUN, plainLUN, fixed(unmapCDB(extents), extents)},
		{"ORWRITE", plainLUN, plainLUN, fixed(transfer(scsi.OpOrWrite16, 0, 2), pattern(1, 2))},
		{"COMPARE AND WRITE", plainLUN, plainLUN, fixed(cdb(scsi.OpCompareAndWrite, 13, uint8(1)), append(pattern(0, 1), pattern(1, 1)...))},
		{"EXTENDED COPY", plainLUN, otherLUN, copies},
	}
}

// TestNoGhosts ends tasks in every way, while they are in the device and
// before they are executed, and holds each answer to its meaning: nothing of
// the tasks lands after it. Inside the bubble Wait returns when all goroutines
// are blocked, so that "has not answered" is a fact and not a matter of time.
func TestNoGhosts(t *testing.T) {
	for _, e := range endings() {
		for _, c := range changes() {
			t.Run(e.name+"/"+c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { endBeforeStart(t, e, c) })
				synctest.Test(t, func(t *testing.T) { endInDevice(t, e, c, c.on) })
				if c.hits != c.on {
					// EXTENDED COPY is met where it writes as well.
					synctest.Test(t, func(t *testing.T) { endInDevice(t, e, c, c.hits) })
				}
			})
		}
	}
}

// ghostRig makes a rig whose device is watched, with the two hosts registered
// on both units, so that one can preempt the other.
func ghostRig(t *testing.T) (*rig, *device, *host, *host) {
	r, d := newRig(t), &device{}
	r.plain.Gate, r.other.Gate = d.gate, d.gate
	victim, other := r.open(hostA), r.open(hostB)
	for key, h := range []*host{victim, other} {
		for _, n := range []int{plainLUN, otherLUN} {
			h.do(n, persistCDB(scsi.ActionPersistRegister, 0), persistList(0, uint64(key+1), 0))
		}
	}
	for _, n := range []int{plainLUN, otherLUN} {
		victim.do(n, persistCDB(scsi.ActionPersistReserve, reserve.WriteExclusive), persistList(1, 0, 0))
	}
	return r, d, victim, other
}

// endInDevice ends a task that has reached the device.
func endInDevice(t *testing.T, e ending, c change, n int) {
	r, d, victim, other := ghostRig(t)
	cmd, out := c.make(victim)
	d.close()
	task := victim.begin(c.on, cmd, out)
	ran, answered := make(chan bool, 1), make(chan struct{})
	go func() { ran <- victim.Execute(task) }()
	synctest.Wait()
	go func() {
		e.end(r, victim, other, n, task.Tag)
		close(answered)
	}()
	synctest.Wait()
	select {
	case <-answered:
		t.Error("there is an answer while a write is in the device")
	default:
	}
	d.open()
	<-answered
	before := d.count()
	if n == c.on && <-ran {
		t.Errorf("the ended task has an answer: %s", verdict(task))
	}
	synctest.Wait()
	if after := d.count(); after != before {
		t.Errorf("%d writes of an ended task landed after the answer", after-before)
	}
	if before != 1 {
		t.Errorf("%d writes landed after the task was told to stop, besides the one in the device", before-1)
	}
}

// endBeforeStart ends a task that has begun, and is executed only then.
func endBeforeStart(t *testing.T, e ending, c change) {
	r, d, victim, other := ghostRig(t)
	cmd, out := c.make(victim)
	task := victim.begin(c.on, cmd, out)
	e.end(r, victim, other, c.on, task.Tag)
	if victim.TryExecute(task) || victim.Execute(task) {
		t.Errorf("the ended task has an answer: %s", verdict(task))
	}
	if got := d.count(); got > 0 {
		t.Errorf("%d writes of an ended task landed", got)
	}
}

// TestReinstatedWriteOrder: a write of a dead session never lands after one of
// its successor, which the transport admits when Close has returned.
func TestReinstatedWriteOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d, victim, _ := ghostRig(t)
		d.close()
		old := victim.begin(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(0x0d, 1))
		late := victim.begin(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(0x0e, 1))
		done := make(chan struct{})
		go func() {
			victim.Execute(old)
			victim.Execute(late)
			close(done)
		}()
		synctest.Wait()
		go func() {
			victim.Close()
			again := r.login(hostA, 1)
			again.next(plainLUN)
			again.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(0x42, 1))
			<-done
		}()
		synctest.Wait()
		d.open()
		synctest.Wait()
		if got := r.plain.Bytes()[0]; got != 0x42 {
			t.Errorf("the block holds %02xh of the dead session", got)
		}
	})
}

// TestPreemptEachOther: two hosts that preempt each other and abort, at the
// same time, with tasks of both in the device, do not wait for each other
// forever.
func TestPreemptEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, d, a, b := ghostRig(t)
		d.close()
		run := func(h *host, c, out []byte) chan string {
			task, ends := h.begin(plainLUN, c, out), make(chan string, 1)
			go func() {
				if !h.Execute(task) {
					ends <- "no answer"
					return
				}
				ends <- verdict(task)
			}()
			return ends
		}
		write := run(a, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
		synctest.Wait()
		preempt := persistCDB(scsi.ActionPersistPreemptAbort, reserve.WriteExclusive)
		first, second := run(b, preempt, persistList(2, 1, 0)), run(a, preempt, persistList(1, 2, 0))
		synctest.Wait()
		d.open()
		<-write
		if x, y := <-first, <-second; (x == "good") == (y == "good") {
			t.Errorf("the two preemptions end with %s and %s", x, y)
		}
	})
}
