package target

import (
	"sync/atomic"
	"time"
)

// An initiator that has one command outstanding at a time waits for every
// goroutine that must wake before its answer leaves. For such a session the
// reader may execute the command itself, and send the answer on its way back to
// the socket: no worker and no second sender take part. Whether that is faster
// is tried; see choice.
//
// While the reader executes, nobody reads: a task management function or a
// ping that comes meanwhile waits. How long is bounded by the watchdog. When
// an execution has outlived one of its periods, a worker becomes the
// connection's reader, and the goroutine that executes does only what a
// worker would: it answers the command and is done. The command stands in the
// session's task list all the time, as one with a worker does, so that a
// function that ends it waits for it to land all the same.

// aloneMin is how many commands in a row must have come with no other
// outstanding, and nothing behind them in the input, before the reader
// executes one itself.
const aloneMin = 16

// aloneSlow is how many commands go to workers after one that took so long that
// the connection had to be read by another.
const aloneSlow = 1024

// lingerMax is how long the reader waits in poll(2) for the next command before
// it parks with the runtime. To be woken there costs one switch of threads;
// through the runtime's poller it costs two or three, and the second processor
// of a small machine. A wait in vain ends it until the pattern is there again.
// The session's end is noticed as much later.
const lingerMax = time.Millisecond

// places counts who does something at a time.
type places struct {
	limit int32
	n     atomic.Int32
}

// enter takes a place, and returns whether there was one; leave is owed
// either way.
func (p *places) enter() bool { return p.n.Add(1) <= p.limit }

func (p *places) leave() { p.n.Add(-1) }

// relieveAfter is the watchdog's period. An execution that began before one
// period and lasts to its end is taken from the reader: the connection is not
// read for twice this time at most.
const relieveAfter = 10 * time.Millisecond

// inline is the reader's own execution of commands, part of session.
type inline struct {
	// Only the reader.
	next  *command // to be executed when its PDU is dealt with
	alone int      // commands in a row that had the session to themselves
	away  int      // commands to pass before the reader executes again
	way   choice
	last  time.Time // when the last command came

	// Under session.mu.
	turn     uint64 // odd while the reader executes
	seen     uint64 // turn when the watchdog looked last
	watching bool   // the watchdog runs
	watchdog *time.Timer
}

// noteAlone notes whether a command that arrived, with n bytes of its data
// next in the input, has the session to itself. Reader only; under s.mu.
func (s *session) noteAlone(n int) {
	if s.outstanding+s.immediates == 1 && s.managing == 0 && !s.in.follows(n) {
		now := time.Now()
		if s.inline.alone++; s.inline.alone > aloneMin {
			s.inline.way.note(now.Sub(s.inline.last))
		}
		s.inline.last = now
	} else {
		s.inline.alone = 0
		s.inline.way.drop()
	}
	s.inline.away = max(s.inline.away-1, 0)
}

// lingerNext decides how the reader waits for the next PDU. Reader only; under
// s.mu.
func (s *session) lingerNext() {
	if s.in.lingered {
		s.in.lingered, s.inline.alone = false, 0
		s.inline.way.drop()
	}
	s.in.linger = s.inline.alone > aloneMin && s.outstanding+s.immediates == 0 && s.managing == 0
}

// mayInline reports whether the reader should execute a command that has
// come with all its data. An answer that waits to be sent must not wait for
// it; and what was numbered ahead of its turn, or is read from such a
// request, has its reader busy already. Reader only; under s.mu.
func (s *session) mayInline() bool {
	return s.inline.alone > aloneMin && s.inline.away == 0 && !s.inline.way.byWorker() && s.outstanding+s.immediates == 1 && s.managing == 0 &&
		s.out.empty() && !s.in.follows(0) && !s.in.eof && len(s.reorder) == 0
}

// executeInline executes the command that dispatch left for the reader. It
// returns false when another goroutine has become the reader meanwhile.
func (s *session) executeInline() bool {
	c := s.inline.next
	if c == nil {
		return true
	}
	s.inline.next = nil
	s.mu.Lock()
	s.inline.turn++
	mine := s.inline.turn
	if !s.inline.watching {
		s.inline.watching = true
		if s.inline.watchdog == nil {
			s.inline.watchdog = time.AfterFunc(relieveAfter, s.watch)
		} else {
			s.inline.watchdog.Reset(relieveAfter)
		}
	}
	s.mu.Unlock()
	c.perform()
	s.mu.Lock()
	if s.inline.turn != mine {
		s.send()
		return false
	}
	s.inline.turn++
	s.mu.Unlock()
	return true
}

// watch is the watchdog's look at the reader. It comes back while the reader
// executes commands, and rests when it stops to.
func (s *session) watch() {
	s.mu.Lock()
	i := &s.inline
	switch {
	case i.turn != i.seen:
		i.seen = i.turn
		i.watchdog.Reset(relieveAfter)
	case i.turn%2 == 0:
		i.watching = false
	default:
		i.turn++
		i.watching = false
		s.mu.Unlock()
		s.srv.workers.submit((*relief)(s))
		return
	}
	s.mu.Unlock()
}

// relief is the job of reading a session's connection on, in place of a
// reader that executes a command for too long.
type relief session

func (r *relief) work() {
	s := (*session)(r)
	s.inline.away = aloneSlow
	s.read()
}
