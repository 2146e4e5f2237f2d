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
	// answer is what the node that serves the unit gave to a task passed on to it.
	answer *Answer
	// late and known are of a task that another node passed on to this one.
	late  func() bool
	known []string

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

// enter is insert, unless the unit is no more.
func (u *unit) enter(t *task) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return false
	}
	u.insert(t)
	return true
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

// aborting is the end of some tasks of a unit, under way.
type aborting struct {
	unit  *unit
	self  *task // spared: the task that asks, or nil
	match func(*task) bool
	last  uint64 // the youngest task that was there
	hit   []*itl // whose tasks they are, one for each
}

// mark begins to end every task that match wants, but for self: those that
// have not started never will, and those that have are asked to stop. by is
// who asks: tasks of another nexus are answered TASK ABORTED if the control
// mode page says so. Under mu. SAM-5, 5.6 and 7.
func (u *unit) mark(by *port, self *task, match func(*task) bool) aborting {
	a := aborting{unit: u, self: self, match: match, last: u.set.seq}
	tas := u.mode.TaskAborted
	for t := u.set.tasks.next; t != &u.set.tasks; {
		next := t.next
		if t != self && match(t) {
			a.hit = append(a.hit, t.itl)
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
	return a
}

// drain returns when the marked tasks that had reached the volume have come
// back from it. Without mu.
func (a aborting) drain() {
	a.unit.mu.Lock()
	for a.left() {
		a.unit.wait()
	}
	a.unit.mu.Unlock()
}

// left reports whether a marked task is still in the set. Tasks there that are
// no younger than last are the very ones that were marked: sequence numbers
// are never reused. Under mu.
func (a aborting) left() bool {
	head := &a.unit.set.tasks
	for t := head.next; t != head && t.seq <= a.last; t = t.next {
		if t != a.self && a.match(t) {
			return true
		}
	}
	return false
}

// abort marks and drains.
func (u *unit) abort(by *port, match func(*task) bool) aborting {
	u.mu.Lock()
	a := u.mark(by, nil, match)
	u.mu.Unlock()
	a.drain()
	return a
}

// visit enters a command that stands in another unit's set into u's as well,
// running, for as long as it works there: whoever resets u or preempts the
// nexus there waits for it, and stops it. It returns nil when i is no more.
// The caller ends the visit with leave.
func (u *unit) visit(k *task, i *itl) *task {
	t := &task{Task: &scsi.Task{LUN: i.lun, Tag: k.Tag, CDB: k.CDB}, port: k.port, itl: i, began: k.began}
	t.state.Store(running)
	u.mu.Lock()
	defer u.mu.Unlock()
	if i.closed {
		return nil
	}
	u.insert(t)
	return t
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
