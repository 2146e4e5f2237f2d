// Package nexus decides for an iSCSI initiator what may be sent, on which
// I_T nexus, and when again. It is a core: no I/O, no clock, no lock. Package
// initiator carries out what it says.
//
// A command lives through these states:
//
//	         overlaps an earlier write
//	Submit ---------------------------> held
//	  |                                  | that one has ended
//	  v                                  v
//	ready <------------------------------+<--------------------+
//	  | Next                             |                     |
//	  v          answered: not performed, or may be repeated   | the pause is over
//	sent --------------------------------+--> parked ----------+
//	  |  |                                                     ^
//	  |  | connection lost                                     | may be repeated
//	  |  v                                                     |
//	  | doubt ----- nexus reinstated, or its tasks fenced -----+
//	  v                                                        | a Once: unknown
//	ended <----------------------------------------------------+
//
// # What guarantees the order of writes
//
// Two writes that overlap are never both between ready and ended: the later
// one is held. A write in doubt has not ended, so nothing that overlaps it is
// sent on any nexus. It leaves doubt only when the target has promised that it
// will never perform it any more: by completing a login of the same initiator
// port to the same target port group (RFC 7143, 6.3.5: the old session's tasks
// are terminated before the login completes), or by answering a LOGICAL UNIT
// RESET or a PREEMPT AND ABORT that ended the nexus's tasks (SAM-5, 7.7;
// SPC-4, 5.13.11.2.6). Only the target's keeping of these promises is trusted.
//
// A read changes nothing, so it is asked again anywhere at once.
package nexus

import (
	"time"

	"steadfast/internal/invariant"
	"steadfast/scsi"
)

// Instant is a moment, in time since an origin of the caller's.
type Instant time.Duration

// Kind says how a command may be repeated.
type Kind uint8

// The kinds of commands.
const (
	// Read may be sent again at any time, anywhere.
	Read Kind = iota
	// Write may be sent again when what was sent before can have no effect any
	// more. It has a range.
	Write
	// Once is not sent again when it may have been performed: it ends as
	// unknown, once it can have no effect any more. It may have a range.
	Once
)

// state is where a command is. See the package's diagram.
type state uint8

const (
	idle state = iota
	held
	ready
	sent
	doubt
	parked
)

// Command is what the core knows of one SCSI command. The owner fills in the
// upper part; a Command is reused after it has ended.
type Command struct {
	Kind     Kind
	Off, Len int64 // bytes; Len 0: no range
	// Pin, if set, is the only nexus that the command may go to.
	Pin *Nexus
	// Probe marks a command that is part of bringing Pin up: it goes before
	// the nexus is up, and ends as lost, never repeated, when the connection
	// does. It has no range.
	Probe bool
	// Owner is whatever the owner wants to find again.
	Owner any

	// Nexus and CmdSN are where and as what it was sent last.
	Nexus *Nexus
	CmdSN uint32
	// Tries is how often it was answered with "again", Missing since when
	// there was no unit to answer.
	Tries   int
	Missing Instant

	state    state
	canceled bool     // it is not sent again
	blockers int      // earlier writes that overlap, not ended
	due      Instant  // while parked
	next     *Command // in the queue or list that state says
	prev     *Command
	wnext    *Command // in Core.writes
	wprev    *Command
}

// overlaps tells whether two ranges meet.
func (c *Command) overlaps(o *Command) bool {
	return c.Off < o.Off+o.Len && o.Off < c.Off+c.Len
}

// list is a doubly linked list through next and prev.
type list struct {
	first, last *Command
	n           int
}

func (l *list) push(c *Command) {
	c.prev, c.next = l.last, nil
	if l.last != nil {
		l.last.next = c
	} else {
		l.first = c
	}
	l.last = c
	l.n++
}

// insert puts c at the front: what was sent once keeps its turn.
func (l *list) insert(c *Command) {
	c.prev, c.next = nil, l.first
	if l.first != nil {
		l.first.prev = c
	} else {
		l.last = c
	}
	l.first = c
	l.n++
}

func (l *list) remove(c *Command) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		l.last = c.prev
	}
	c.prev, c.next = nil, nil
	l.n--
}

// Phase is how far a nexus's connection has come.
type Phase uint8

// The phases of a nexus.
const (
	Down    Phase = iota // no session that we know of
	Probing              // logged in, only probes may be sent
	Up
	Draining // logged in, nothing new is sent
)

// Nexus is one I_T nexus: our initiator port, and one target port group of the
// iSCSI kind (a portal group). There is at most one session on it.
type Nexus struct {
	Tag       uint16
	Phase     Phase
	Access    scsi.AccessState
	Preferred bool
	// Barred keeps ordinary commands away: a registration is missing here.
	Barred bool
	// DownSince is when the last session was lost.
	DownSince Instant

	depth         int
	cmdSN, maxSN  uint32
	sent, inDoubt list
}

// Outstanding returns how many commands have been sent and not answered.
func (n *Nexus) Outstanding() int { return n.sent.n }

// Oldest returns the command that was sent first of those not answered, or nil.
func (n *Nexus) Oldest() *Command { return n.sent.first }

// InDoubt returns how many lost commands wait for the nexus's reinstatement.
func (n *Nexus) InDoubt() int { return n.inDoubt.n }

// NextCmdSN is the number that the next command will have: immediate requests
// carry it, too. RFC 7143, 4.2.2.1.
func (n *Nexus) NextCmdSN() uint32 { return n.cmdSN }

// room tells whether the window and the depth have room.
func (n *Nexus) room() bool {
	return n.sent.n < n.depth && !iscsiLess(n.maxSN, n.cmdSN)
}

// iscsiLess is serial number comparison. RFC 1982.
func iscsiLess(a, b uint32) bool { return int32(a-b) < 0 }

// usable tells whether ordinary commands may go to n.
func (n *Nexus) usable() bool {
	return n.Phase == Up && !n.Barred && (n.Access == scsi.ActiveOptimized || n.Access == scsi.ActiveNonOptimized)
}

// Core holds the commands of one disk. The zero Core is ready.
type Core struct {
	nexuses []*Nexus
	queue   list // ready, for any nexus
	pinned  list // ready, for one nexus
	waiting list // parked
	// writes are all commands with a range that have not ended, in the order
	// they came.
	writes  struct{ first, last *Command }
	turn    int
	pending int
}

// Nexus returns the nexus with a portal group tag, making it on first use.
func (k *Core) Nexus(tag uint16) *Nexus {
	for _, n := range k.nexuses {
		if n.Tag == tag {
			return n
		}
	}
	n := &Nexus{Tag: tag}
	k.nexuses = append(k.nexuses, n)
	return n
}

// Nexuses returns all nexuses there ever were.
func (k *Core) Nexuses() []*Nexus { return k.nexuses }

// Pending returns how many commands have not ended.
func (k *Core) Pending() int { return k.pending }

// Usable tells whether any nexus takes ordinary commands.
func (k *Core) Usable() bool {
	for _, n := range k.nexuses {
		if n.usable() {
			return true
		}
	}
	return false
}

// Submit takes a command in. What its fields say must not change before it has
// ended.
func (k *Core) Submit(c *Command) {
	invariant.Check(c.state == idle, "a command is submitted twice")
	c.Tries, c.Missing, c.blockers, c.Nexus, c.canceled = 0, 0, 0, nil, false
	k.pending++
	if c.Len > 0 && c.Kind != Read {
		for w := k.writes.first; w != nil; w = w.wnext {
			if w.overlaps(c) {
				c.blockers++
			}
		}
		c.wprev, c.wnext = k.writes.last, nil
		if k.writes.last != nil {
			k.writes.last.wnext = c
		} else {
			k.writes.first = c
		}
		k.writes.last = c
	}
	if c.blockers > 0 {
		c.state = held
		return
	}
	k.enqueue(c, false)
}

// enqueue makes c ready.
func (k *Core) enqueue(c *Command, first bool) {
	c.state = ready
	l := &k.queue
	if c.Pin != nil {
		l = &k.pinned
	}
	if first {
		l.insert(c)
	} else {
		l.push(c)
	}
}

// Next returns the next command that may be sent now, marked as sent to its
// Nexus with its CmdSN, or nil. Commands must go out in the order of Next's
// returns: the numbers say so.
func (k *Core) Next() *Command {
	for c := k.pinned.first; c != nil; c = c.next {
		n := c.Pin
		if n.room() && (n.Phase == Up || n.Phase == Probing && c.Probe) {
			k.pinned.remove(c)
			return k.send(c, n)
		}
	}
	if k.queue.first == nil {
		return nil
	}
	n := k.choose()
	if n == nil {
		return nil
	}
	c := k.queue.first
	k.queue.remove(c)
	return k.send(c, n)
}

func (k *Core) send(c *Command, n *Nexus) *Command {
	c.state, c.Nexus, c.CmdSN = sent, n, n.cmdSN
	n.cmdSN++
	n.sent.push(c)
	return c
}

// choose returns the nexus for the next command: of those with the best access
// state that one which has the least to do. A full nexus of the best state is
// waited for, not evaded: a target that has to forward is slower than a queue.
func (k *Core) choose() *Nexus {
	best := 4
	for _, n := range k.nexuses {
		best = min(best, rank(n))
	}
	if best == 4 {
		return nil
	}
	var pick *Nexus
	for i := range k.nexuses {
		n := k.nexuses[(i+k.turn)%len(k.nexuses)]
		if rank(n) == best && n.room() && (pick == nil || n.sent.n < pick.sent.n) {
			pick = n
		}
	}
	k.turn++
	return pick
}

// rank orders nexuses: preferred and optimized first. 4 is not usable.
func rank(n *Nexus) int {
	if !n.usable() {
		return 4
	}
	r := 0
	if n.Access != scsi.ActiveOptimized {
		r = 2
	}
	if !n.Preferred {
		r++
	}
	return r
}

// Window takes the numbers of a PDU from n. RFC 7143, 4.2.2.1: numbers that
// contradict each other, and older ones, are not looked at.
func (n *Nexus) Window(exp, highest uint32) {
	if iscsiLess(highest, exp-1) || !iscsiLess(n.maxSN, highest) {
		return
	}
	n.maxSN = highest
}

// LoggedIn says that a session is established on n. What was in doubt there
// can have no effect any more: it is ready again, or, if it may not be
// repeated, appended to dst: it has ended, and its outcome is unknown.
func (k *Core) LoggedIn(n *Nexus, cmdSN uint32, depth int, dst []*Command) []*Command {
	invariant.Check(n.Phase == Down, "a session where there is one")
	n.Phase, n.cmdSN, n.maxSN, n.depth = Probing, cmdSN, cmdSN-1, depth
	return k.resolve(n, dst)
}

// Fenced says that no task of any nexus that is down can have an effect any
// more, but of the one that a PREEMPT AND ABORT came by, which it spares and
// which may be down by now; nil spares none. As LoggedIn.
func (k *Core) Fenced(by *Nexus, dst []*Command) []*Command {
	for _, n := range k.nexuses {
		if n != by {
			dst = k.resolve(n, dst)
		}
	}
	return dst
}

func (k *Core) resolve(n *Nexus, dst []*Command) []*Command {
	// From the last to the first, each to the front of the queue: they keep
	// the order in which they were sent.
	for c := n.inDoubt.last; c != nil; c = n.inDoubt.last {
		n.inDoubt.remove(c)
		if c.Kind == Once || c.canceled {
			dst = append(dst, c)
			k.end(c)
			continue
		}
		k.enqueue(c, true)
	}
	return dst
}

// Doubtful tells whether a nexus without a session holds up commands.
func (k *Core) Doubtful() bool {
	for _, n := range k.nexuses {
		if n.Phase == Down && n.inDoubt.n > 0 {
			return true
		}
	}
	return false
}

// Cancel says that nobody waits for c any more. It returns true when c has ended by
// that: it was not sent, and will not be. Else it is on its way, and is not sent again:
// it ends when it is answered, or when it is known that it can have no effect.
func (k *Core) Cancel(c *Command) bool {
	switch c.state {
	case ready:
		if c.Pin != nil {
			k.pinned.remove(c)
		} else {
			k.queue.remove(c)
		}
	case parked:
		k.waiting.remove(c)
	case held:
	case sent, doubt:
		c.canceled = true
		return false
	default:
		return false // it has ended
	}
	k.end(c)
	return true
}

// Canceled tells whether c is not to be sent again.
func (c *Command) Canceled() bool { return c.canceled }

// Lost says that n's connection is over and nothing more of it will come in
// or go out. Probes, and canceled reads, are appended to dst: they have ended.
func (k *Core) Lost(n *Nexus, now Instant, dst []*Command) []*Command {
	n.Phase, n.DownSince = Down, now
	for c := n.sent.last; c != nil; c = n.sent.last {
		n.sent.remove(c)
		switch {
		case c.Probe, c.Kind == Read && c.canceled:
			dst = append(dst, c)
			k.end(c)
		case c.Kind == Read:
			k.enqueue(c, true)
		default:
			c.state = doubt
			n.inDoubt.insert(c)
		}
	}
	for _, l := range []*list{&k.pinned, &k.waiting} {
		for c := l.first; c != nil; {
			following := c.next
			if c.Pin == n && c.Probe {
				l.remove(c)
				dst = append(dst, c)
				k.end(c)
			}
			c = following
		}
	}
	return dst
}

// Best returns the nexus that the next ordinary command would go to, or nil.
func (k *Core) Best() *Nexus {
	var pick *Nexus
	for _, n := range k.nexuses {
		if rank(n) < 4 && (pick == nil || rank(n) < rank(pick)) {
			pick = n
		}
	}
	return pick
}

// End says that a command was answered for good.
func (k *Core) End(c *Command) {
	invariant.Check(c.state == sent, "an answer to a command that was not sent")
	c.Nexus.sent.remove(c)
	k.end(c)
}

// Again says that c was answered, is not performed any more by what was sent,
// and shall be sent again: at once, or from due on if that is not zero.
func (k *Core) Again(c *Command, due Instant) {
	invariant.Check(c.state == sent, "an answer to a command that was not sent")
	c.Nexus.sent.remove(c)
	c.Tries++
	if due == 0 {
		k.enqueue(c, true)
		return
	}
	c.state, c.due = parked, due
	k.waiting.push(c)
}

// end takes c out and lets go what it held up.
func (k *Core) end(c *Command) {
	c.state = idle
	k.pending--
	if c.Len == 0 || c.Kind == Read {
		return
	}
	for w := c.wnext; w != nil; w = w.wnext {
		if !w.overlaps(c) {
			continue
		}
		if w.blockers--; w.blockers == 0 {
			k.enqueue(w, false)
		}
	}
	if c.wprev != nil {
		c.wprev.wnext = c.wnext
	} else {
		k.writes.first = c.wnext
	}
	if c.wnext != nil {
		c.wnext.wprev = c.wprev
	} else {
		k.writes.last = c.wprev
	}
	c.wprev, c.wnext = nil, nil
}

// Wake makes ready what is due, and returns when to call again, or 0.
func (k *Core) Wake(now Instant) (again Instant) {
	for c := k.waiting.first; c != nil; {
		following := c.next
		switch {
		case c.due <= now:
			k.waiting.remove(c)
			k.enqueue(c, true)
		case again == 0 || c.due < again:
			again = c.due
		}
		c = following
	}
	return again
}

// Abandon ends everything that is not sent on a live session, for a disk that
// is closed: all sessions are over. It appends to dst what has ended.
func (k *Core) Abandon(dst []*Command) []*Command {
	take := func(l *list) {
		for c := l.first; c != nil; c = l.first {
			l.remove(c)
			dst = append(dst, c)
			k.end(c)
		}
	}
	for {
		before := len(dst)
		take(&k.queue)
		take(&k.pinned)
		take(&k.waiting)
		for _, n := range k.nexuses {
			take(&n.inDoubt)
		}
		if len(dst) == before {
			return dst // what was held became ready as its blockers ended
		}
	}
}
