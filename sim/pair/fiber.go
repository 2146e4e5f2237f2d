package pair

import (
	"iter"
	"sync"
	"time"

	"steadfast/san/lun"
)

// fiber is a thread of a node's device server: a task, a login, the beginning of a
// service. It runs until it waits for the mirror or for another fiber, and no two
// run at once: the world's queue says which goes on, so a seed decides their order.
type fiber struct {
	node *node
	life int
	next func() (struct{}, bool)
	park func(struct{}) bool
	due  bool // it may go on, and will
	naps bool // it waits for a time only
	over bool
}

// fork begins a fiber of the node's present life.
func (n *node) fork(do func()) {
	f := &fiber{node: n, life: n.life}
	f.next, _ = iter.Pull(func(yield func(struct{}) bool) {
		defer n.world.caught()
		f.park = yield
		do()
	})
	n.fibers = append(n.fibers, f)
	f.wake()
}

// wake has a fiber go on soon. It may be called from another.
func (f *fiber) wake() {
	if f.due || f.over {
		return
	}
	f.due = true
	w := f.node.world
	w.after(w.between(0, 20*time.Microsecond), func() { f.node.in(f.life, f.run) })
}

// run lets the fiber go on until it waits or ends.
func (f *fiber) run() {
	if !f.due || f.over {
		return
	}
	f.due = false
	w, n := f.node.world, f.node
	w.running = f
	_, more := f.next()
	w.running = nil
	if more {
		return
	}
	f.over = true
	for i, o := range n.fibers {
		if o == f {
			n.fibers = append(n.fibers[:i], n.fibers[i+1:]...)
			break
		}
	}
}

// wait parks the running fiber until it is woken.
func (w *world) wait() { w.running.park(struct{}{}) }

// sleep parks the running fiber for a time.
func (w *world) sleep(d time.Duration) {
	f, over := w.running, false
	w.after(d, func() { over = true; f.wake() })
	f.naps = true
	for !over && f.alive() {
		w.wait()
	}
	f.naps = false
}

// alive tells whether the fiber's life goes on.
func (f *fiber) alive() bool { return f.node.up && f.node.life == f.life }

// drain lets the fibers of a life that is over run to their ends: what they ask of
// the mirror fails, and what they answer nobody hears. That they end is held, too.
func (n *node) drain() {
	for _, f := range n.fibers {
		f.due = f.due || f.naps
	}
	for _, a := range n.asks {
		if a.call != nil {
			a.call.finish(errMoved)
		}
	}
	for len(n.fibers) > 0 {
		ran := false
		for _, f := range append([]*fiber(nil), n.fibers...) {
			ran = ran || f.due
			f.run()
		}
		if !ran {
			n.world.fail("%d threads of %s wait for ever", len(n.fibers), memberOf(n.index))
			return
		}
	}
}

// waits are the ways in which fibers wait for each other; see lun.Waits.
type waits struct{ world *world }

var _ lun.Waits = waits{}

// Lock implements lun.Waits.
func (s waits) Lock() sync.Locker { return &fiberLock{world: s.world} }

// Cond implements lun.Waits.
func (s waits) Cond(l sync.Locker) lun.Cond { return &fiberCond{world: s.world, lock: l} }

type fiberLock struct {
	world *world
	held  bool
	queue []*fiber
}

// Lock implements sync.Locker.
func (l *fiberLock) Lock() {
	for l.held {
		l.world.count.lockWaits++
		l.queue = append(l.queue, l.world.running)
		l.world.wait()
	}
	l.held = true
}

// Unlock implements sync.Locker.
func (l *fiberLock) Unlock() {
	l.held = false
	if len(l.queue) > 0 {
		f := l.queue[0]
		l.queue = l.queue[1:]
		f.wake()
	}
}

type fiberCond struct {
	world *world
	lock  sync.Locker
	queue []*fiber
}

// Wait implements lun.Cond.
func (c *fiberCond) Wait() {
	c.world.count.condWaits++
	c.queue = append(c.queue, c.world.running)
	c.lock.Unlock()
	c.world.wait()
	c.lock.Lock()
}

// Broadcast implements lun.Cond.
func (c *fiberCond) Broadcast() {
	queue := c.queue
	c.queue = nil
	for _, f := range queue {
		f.wake()
	}
}
