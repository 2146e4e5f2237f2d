package target

import (
	"slices"
	"sync"
	"sync/atomic"
)

// budget hands out data-buffer memory: so much per session, and so much in
// all. A command takes its session's share first and the server's second. What
// does not fit waits: in its session's queue while the session is over its own
// share, so that it delays nobody else, and then in the server's queue. Both
// are first come, first served, and granted from as memory comes back.
//
// Order matters for more than fairness. A task may hold memory while it waits
// in its logical unit for tasks of its nexus that began before it; were those
// still waiting for memory behind it, both would wait forever.
//
// Data that arrives unasked has to be put somewhere, and is held whatever the
// limits say. So that commands which hold such data and wait for the rest do
// not wait for each other, the next in a queue always gets what it wants when
// no other has all it needs. A command larger than a share is thus slow and
// not stuck.
type budget struct {
	account
	mu    sync.Mutex
	queue []*command // have their session's share
}

// account counts one share: a session's, or the server's.
type account struct {
	limit   int64
	used    atomic.Int64 // bytes, with what is held
	granted atomic.Int64 // bytes of commands that have all they need
	waiters atomic.Int32 // length of the queue, readable without the lock
}

// share is a session's part of the budget.
type share struct {
	account
	queue []*command // under budget.mu
}

// add counts n as granted, or changes nothing and returns false.
func (a *account) add(n int64) bool {
	first := a.granted.Add(n) == n
	if a.used.Add(n) > a.limit && !first {
		a.sub(n)
		return false
	}
	return true
}

// sub counts n granted bytes as free.
func (a *account) sub(n int64) {
	a.granted.Add(-n)
	a.used.Add(-n)
}

// take reserves n bytes for c if nothing waits before it and both shares
// allow. A command it refuses must wait, or hold something and release it: a
// look that came in between may have seen too little.
func (b *budget) take(c *command, n int64) bool {
	mine := &c.s.memory
	if mine.waiters.Load() > 0 || b.waiters.Load() > 0 || !mine.add(n) {
		return false
	}
	if !b.add(n) {
		mine.sub(n)
		return false
	}
	c.reserved += n
	return true
}

// wait puts c at the end of the queue for n bytes; a worker runs it when it
// has them, which may be at once.
func (b *budget) wait(c *command, n int64) {
	mine := &c.s.memory
	b.mu.Lock()
	c.wants = n
	// The count goes up before pump looks: a release that happens after the
	// look sees the count and takes the lock, one that happened before is
	// seen by the look. Either way no waiter is forgotten.
	mine.waiters.Add(1)
	mine.queue = append(mine.queue, c)
	b.pump(mine)
}

// pump grants what now fits, to mine's session first. Called with b.mu held;
// returns with it released.
func (b *budget) pump(mine *share) {
	for len(mine.queue) > 0 {
		c := mine.queue[0]
		// Up before the look, as in wait.
		b.waiters.Add(1)
		if !mine.add(c.wants) {
			b.waiters.Add(-1)
			break
		}
		mine.queue = slices.Delete(mine.queue, 0, 1)
		mine.waiters.Add(-1)
		b.queue = append(b.queue, c)
	}
	n := 0
	for n < len(b.queue) && b.add(b.queue[n].wants) {
		c := b.queue[n]
		c.reserved += c.wants
		c.wants = 0
		n++
	}
	granted := slices.Clone(b.queue[:n])
	b.queue = slices.Delete(b.queue, 0, n)
	b.waiters.Add(-int32(n))
	b.mu.Unlock()
	for _, c := range granted {
		c.s.srv.workers.submit(c)
	}
}

// hold counts n bytes that came unasked.
func (b *budget) hold(s *session, n int64) {
	s.memory.used.Add(n)
	b.used.Add(n)
}

// give counts n held bytes as free again, and starts what now fits.
func (b *budget) give(s *session, n int64) {
	if n == 0 {
		return
	}
	s.memory.used.Add(-n)
	b.used.Add(-n)
	b.freed(s)
}

// freed starts what fits after memory of s came back.
func (b *budget) freed(s *session) {
	if b.waiters.Load() > 0 || s.memory.waiters.Load() > 0 {
		b.mu.Lock()
		b.pump(&s.memory)
	}
}

// release gives c's memory back.
func (b *budget) release(c *command) {
	if n := c.reserved; n > 0 {
		c.s.memory.sub(n)
		b.sub(n)
		b.freed(c.s)
	}
	b.give(c.s, c.held)
	c.reserved, c.held = 0, 0
}

// cancel takes c out of its queue; false if it is in none (it was granted).
func (b *budget) cancel(c *command) bool {
	mine := &c.s.memory
	b.mu.Lock()
	if i := slices.Index(mine.queue, c); i >= 0 {
		mine.queue = slices.Delete(mine.queue, i, i+1)
		mine.waiters.Add(-1)
	} else if i := slices.Index(b.queue, c); i >= 0 {
		b.queue = slices.Delete(b.queue, i, i+1)
		b.waiters.Add(-1)
		mine.sub(c.wants)
	} else {
		b.mu.Unlock()
		return false
	}
	c.wants = 0
	b.pump(mine) // those behind it may fit where it did not
	return true
}

// short reports whether the server has given out all it has, or somebody waits.
func (b *budget) short() bool { return b.used.Load() >= b.limit || b.waiters.Load() > 0 }

// overdrawn reports whether a quarter more than the limit is in use: data
// already on the wire is then left in the sockets.
func (b *budget) overdrawn() bool { return b.used.Load() > b.limit+b.limit/4 }
