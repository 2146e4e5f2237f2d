package lun

import (
	"sync/atomic"

	"steadfast/internal/invariant"
	"steadfast/scsi"
)

// States of a task. Queued to running and queued to dead are one
// compare-and-swap each, so that exactly one of Execute and abort wins.
const (
	queued uint32 = iota
	running
	dead // aborted before it started: it is out of the set and never starts
)

// task is the device server's state for one command, kept in scsi.Task.Unit.
// It comes from a pool.
type task struct {
	*scsi.Task
	port  *port
	itl   *itl // nil: there is no unit at the LUN
	began int64
	state atomic.Uint32
	// stop asks a running task to end early: nobody wants its result.
	stop atomic.Bool

	// Under unit.mu.
	prev, next *task // in the unit's set, by arrival; nil when not in it
	seq        uint64
	ready      bool // all its data is here: it takes part in ordering others
	told       bool // aborted by another nexus with TAS: TASK ABORTED
}

// taskSet is the task set of one unit, part of unit. One for all nexuses
// (TST 000b).
type taskSet struct {
	tasks task // head of the list, not a task itself
	seq   uint64
	// barriers counts ORDERED and HEAD OF QUEUE tasks; while there is none,
	// a task starts without the lock.
	barriers atomic.Int32
	waiters  int // of changed
}

// barrier reports whether other tasks may have to wait for t.
func (t *task) barrier() bool {
	return t.Attribute == scsi.Ordered || t.Attribute == scsi.HeadOfQueue
}

// insert puts t at the end of the set. Under mu.
func (u *unit) insert(t *task) {
	head := &u.set.tasks
	t.prev, t.next = head.prev, head
	t.prev.next, t.next.prev = t, t
	u.set.seq++
	t.seq = u.set.seq
	if t.barrier() {
		u.set.barriers.Add(1)
	}
}

// remove takes t out of the set. Under mu.
func (u *unit) remove(t *task) {
	invariant.Check(t.next != nil, "a task leaves its set twice")
	t.prev.next, t.next.prev = t.next, t.prev
	t.prev, t.next = nil, nil
	if t.barrier() {
		u.set.barriers.Add(-1)
	}
	if u.set.waiters > 0 {
		u.changed.Broadcast()
	}
}

// start lets t run, when its turn comes. It returns false when t was aborted
// before.
func (u *unit) start(t *task) bool {
	if !t.barrier() && u.set.barriers.Load() == 0 {
		// A barrier of another nexus that comes in right now may be taken as
		// the later one; one of our own nexus was seen, as Begin is in order.
		return t.state.CompareAndSwap(queued, running)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	t.ready = true
	for t.state.Load() == queued && !u.enabled(t) {
		u.wait()
	}
	return t.state.CompareAndSwap(queued, running)
}

// wait waits for a change of the task set. Under mu.
func (u *unit) wait() {
	u.set.waiters++
	u.changed.Wait()
	u.set.waiters--
}

// enabled reports whether t may start: HEAD OF QUEUE at once, ORDERED when
// everything older is done, SIMPLE when no older ORDERED task and no HEAD OF
// QUEUE task is left. A task of another nexus counts only once its data is
// here: an initiator that never sends it must not stop everyone else. Under
// mu. SAM-5, 8.6 and 8.7.
func (u *unit) enabled(t *task) bool {
	if t.Attribute == scsi.HeadOfQueue {
		return true
	}
	older := true
	for o := u.set.tasks.next; o != &u.set.tasks; o = o.next {
		if o == t {
			older = false
			continue
		}
		if o.port != t.port && !o.ready && o.state.Load() != running {
			continue
		}
		if o.Attribute == scsi.HeadOfQueue || older && (t.barrier() || o.barrier()) {
			return false
		}
	}
	return true
}

// abort ends every task that match wants, but for self (nil: for none), and
// returns the nexuses it hit. When it returns, the tasks that had reached the
// volume have come back from it, and the others can never start. by is who
// asks: tasks of another nexus are answered TASK ABORTED if the control mode
// page says so. SAM-5, 5.6 and 7.
func (u *unit) abort(by *port, self *task, match func(*task) bool) (hit []*itl) {
	u.mu.Lock()
	defer u.mu.Unlock()
	last := u.set.seq
	tas := u.mode.TaskAborted
	for t := u.set.tasks.next; t != &u.set.tasks; {
		next := t.next
		if t != self && match(t) {
			hit = append(hit, t.itl)
			t.told = tas && by != nil && t.port != by
			t.stop.Store(true)
			if t.state.CompareAndSwap(queued, dead) {
				u.remove(t)
			}
		}
		t = next
	}
	if u.set.waiters > 0 {
		u.changed.Broadcast() // those that waited for their turn learn that it will not come
	}
	for u.runningUpTo(last, self, match) {
		u.wait()
	}
	return hit
}

// runningUpTo reports whether a task that match wants, and that is no younger
// than last, is still there. Tasks in the set now that came before last are
// the very ones that abort marked: sequence numbers are never reused. Under mu.
func (u *unit) runningUpTo(last uint64, self *task, match func(*task) bool) bool {
	for t := u.set.tasks.next; t != &u.set.tasks && t.seq <= last; t = t.next {
		if t != self && match(t) {
			return true
		}
	}
	return false
}

// leave ends a task that ran. It returns whether the task is to be answered:
// as it is, or, with told, with TASK ABORTED.
func (u *unit) leave(t *task) (answer, told bool) {
	u.mu.Lock()
	u.remove(t)
	answer, told = !t.stop.Load(), t.told
	u.mu.Unlock()
	return answer, told
}
