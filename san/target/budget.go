package target

import (
	"sync"
	"sync/atomic"
)

// budget hands out data-buffer memory: so much in all, so much per session.
// What does not fit waits in one queue, in order of arrival, and is granted as
// memory comes back.
//
// Order matters for more than fairness. A task may hold memory while it waits
// in its logical unit for tasks that began before it; were those still waiting
// for memory behind it, both would wait forever. The queue is first come,
// first served for the server's memory, and a session that is over its own
// share delays only itself.
type budget struct {
	limit   int64
	used    atomic.Int64
	waiters atomic.Int32 // length of queue, readable without the lock

	mu    sync.Mutex
	queue []*command
}

// take reserves n bytes for c if nothing waits and both shares allow. A
// session with nothing reserved always gets what it asks for once, so that
// one command larger than a share is slow and not stuck.
func (b *budget) take(c *command, n int64) bool {
	if b.waiters.Load() > 0 || !b.reserve(c.s, n) {
		return false
	}
	c.reserved += n
	return true
}

// reserve counts n for s, or changes nothing and returns false.
func (b *budget) reserve(s *session, n int64) bool {
	if mine := s.memory.Add(n); mine > s.memoryMax && mine != n {
		s.memory.Add(-n)
		return false
	}
	if all := b.used.Add(n); all > b.limit && all != n {
		b.used.Add(-n)
		s.memory.Add(-n)
		return false
	}
	return true
}

// wait puts c at the end of the queue for n bytes; a worker runs it when it
// has them. It returns true when the memory came free meanwhile.
func (b *budget) wait(c *command, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	// The count goes up before the second look: a release that happens after
	// the look sees the count and takes the lock, one that happened before is
	// seen by the look. Either way no waiter is forgotten.
	b.waiters.Add(1)
	if len(b.queue) == 0 && b.reserve(c.s, n) {
		b.waiters.Add(-1)
		c.reserved += n
		return true
	}
	c.wants = n
	b.queue = append(b.queue, c)
	return false
}

// overdraw counts n bytes for s whatever the limits say: data that is already
// on the wire has to be put somewhere.
func (b *budget) overdraw(c *command, n int64) {
	c.s.memory.Add(n)
	b.used.Add(n)
	c.reserved += n
}

// release gives c's memory back and starts what now fits.
func (b *budget) release(c *command) {
	n := c.reserved
	if n == 0 {
		return
	}
	c.reserved = 0
	c.s.memory.Add(-n)
	b.used.Add(-n)
	if b.waiters.Load() > 0 {
		b.pump()
	}
}

// cancel takes c out of the queue; false if it is not in it (it was granted).
func (b *budget) cancel(c *command) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, q := range b.queue {
		if q == c {
			b.queue = append(b.queue[:i], b.queue[i+1:]...)
			b.waiters.Add(-1)
			return true
		}
	}
	return false
}

// pump grants from the head of the queue.
func (b *budget) pump() {
	b.mu.Lock()
	var granted []*command
	kept := b.queue[:0]
	stop := false
	over := make(map[*session]bool)
	for _, c := range b.queue {
		if stop || over[c.s] || !b.reserve(c.s, c.wants) {
			kept = append(kept, c)
			if !stop && !over[c.s] {
				// Which share was short decides who has to wait behind c.
				over[c.s] = true
				stop = c.s.memory.Load()+c.wants <= c.s.memoryMax || c.s.memory.Load() == 0
			}
			continue
		}
		c.reserved += c.wants
		b.waiters.Add(-1)
		granted = append(granted, c)
	}
	clear(b.queue[len(kept):])
	b.queue = kept
	b.mu.Unlock()
	for _, c := range granted {
		c.s.srv.workers.submit(c)
	}
}

// short reports whether the server has given out all it has, or somebody waits.
func (b *budget) short() bool { return b.used.Load() >= b.limit || b.waiters.Load() > 0 }

// overdrawn reports whether a quarter more than the limit is in use: data
// already on the wire is then left in the sockets.
func (b *budget) overdrawn() bool { return b.used.Load() > b.limit+b.limit/4 }
