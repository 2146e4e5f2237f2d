package lockstep

import (
	"slices"

	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// SecondaryState is where a Secondary is, as the package doc draws it.
type SecondaryState uint8

// States of a Secondary.
const (
	Loading SecondaryState = iota
	Following
	Protecting
	Taking
	Draining
	IsLive
	SecondaryOver
)

var secondaryStates = [...]string{"loading", "following", "protecting", "taking", "draining", "live", "over"}

// String names the state.
func (s SecondaryState) String() string { return secondaryStates[s] }

// SecondaryConfig is what a Secondary is made with.
type SecondaryConfig struct {
	Limits Limits
	Me     vmlock.Owner
	Broken Flaw // for tests and the simulation
}

// Secondary is the side that executes the log, and of whose machine nothing leaves.
type Secondary struct {
	peer
	me    vmlock.Owner
	state SecondaryState

	started   bool     // the copy is complete
	waiting   []Record // came before the machine was loaded
	got, done Seq      // in memory, executed
	count     uint64   // of the machine
	next      uint64   // output
	released  uint64   // outputs up to this have left the primary
	streams   []Out    // that may not have

	block     [vmlock.BlockSize]byte
	told      bool // it is the block to take over from
	yielded   bool
	bad       *Differs
	ackedGot  Seq // as was said last
	ackedDone Seq
	ackedAt   Instant
	asked     bool // TakeLock is not answered
	retryAt   Instant
	tries     int // that came to nothing
	complains bool
	why       Why
}

// retrySlower is how often the time between two attempts doubles.
const retrySlower = 4

// NewSecondary returns a side that waits for the machine.
func NewSecondary(cfg SecondaryConfig, now Instant) *Secondary {
	return &Secondary{peer: peer{limits: cfg.Limits, now: now, ran: now, heard: now, heardLog: now, broken: cfg.Broken}, me: cfg.Me}
}

// State returns where it is.
func (s *Secondary) State() SecondaryState { return s.state }

// Step takes one input and returns what is to be done, in order.
func (s *Secondary) Step(now Instant, in Input) []Effect {
	s.wake(now)
	if s.state >= IsLive {
		return nil
	}
	switch in := in.(type) {
	case Received:
		s.hear(in.Link)
		for _, m := range in.List {
			s.receive(in.Link, m)
		}
		s.ack(false)
		s.yield()
	case Loaded:
		if s.state == Loading && s.started {
			s.state = Following
			s.do(Send{Link: Logging, Message: Ready{}})
			for i, r := range s.waiting {
				s.do(Execute{s.got - Seq(len(s.waiting)-1-i), r})
			}
			s.waiting = nil
		}
	case Executed:
		s.executed(in)
	case Differs:
		s.differs(in)
	case Broken:
		s.broke(in)
	case Gone:
		s.lost(WhyGone)
	case TurnOff:
		if s.state < Taking {
			s.farewell(WhyAsked, fault.New(fault.Canceled, "the secondary was ended"))
		}
	case LockChanged:
		if s.state == Taking {
			s.won()
		}
	case LockRefused:
		// Each time it is another attempt at the lock, and there are 255.
		s.asked, s.retryAt = false, s.now+Instant(s.limits.RetryEvery)<<min(s.tries, retrySlower)
		s.tries++
		if !s.complains && s.state == Taking {
			s.complains = true
			s.do(Event{Kind: Waiting, Err: in.Err})
		}
	case LockLost:
		if s.state == Taking || s.state == Draining {
			s.over(s.why, in.Err)
		}
	case Tick:
		s.tick()
	}
	if s.state < IsLive && s.beat() {
		s.ack(true)
	}
	return s.list
}

// receive takes a message of the primary. While the lock is asked for nothing counts
// any more: what is not acknowledged now never was needed.
func (s *Secondary) receive(l Link, m Message) {
	if s.state >= Taking {
		if _, ok := m.(Record); ok && s.state == Taking && s.broken == flawLateAck {
			s.got++
			s.do(Send{Link: Logging, Message: Ack{Got: s.got, Done: s.done, Count: s.count}})
			s.done = s.got
		}
		return
	}
	switch m := m.(type) {
	case Record:
		if l == Logging && s.started {
			s.record(m)
		}
	case Pages, Part:
		if !s.started {
			s.do(Store{m})
		}
	case Start:
		if !s.started {
			s.started, s.count, s.next, s.released = true, m.Count, m.Output, m.Output-1
			s.do(Load{m})
		}
	case Bye:
		err := fault.New(fault.Canceled, "the primary goes on without this secondary: %s", m.Why)
		if s.damage != nil {
			err = fault.Wrap(fault.KindOf(s.damage), s.damage, "the primary goes on without this secondary")
		}
		s.over(m.Why, err)
	default: // a heartbeat, or what a primary does not say
	}
}

// record takes the next record of the log.
func (s *Secondary) record(r Record) {
	s.got++
	switch r := r.(type) {
	case Horizon:
		s.left(r.Released)
	case Pairing:
		b, err := vmlock.Decode(r.Block)
		if err != nil || b.Partner != s.me || s.state != Following {
			s.farewell(WhyFailed, fault.New(fault.Invalid, "the primary told a lock block of another pair"))
			return
		}
		s.block, s.told, s.state = r.Block, true, Protecting
		s.do(Event{Kind: Protected})
	case Yield:
		s.yielded = true
	case Finished:
		s.farewell(WhyFinished, nil) // the primary waits for it
		return
	default:
	}
	if s.state == Loading {
		s.waiting = append(s.waiting, r)
		return
	}
	s.do(Execute{s.got, r})
}

// left forgets outputs that have left the primary.
func (s *Secondary) left(number uint64) {
	s.released = max(s.released, number)
	s.streams = slices.DeleteFunc(s.streams, func(o Out) bool { return o.Number <= s.released })
}

// executed takes what the machine did. Its outputs are kept until they are known to
// have left the primary; of those with a completion the machine knows itself.
func (s *Secondary) executed(e Executed) {
	s.done, s.count = max(s.done, e.Seq), max(s.count, e.Count)
	for _, o := range e.Outputs {
		o.Number = s.next
		s.next++
		if o.Class == Stream && o.Number > s.released {
			s.streams = append(s.streams, o)
		}
	}
	if s.state == Draining {
		s.drained()
		return
	}
	if s.now.Sub(s.ackedAt) >= s.limits.AckEvery {
		s.ack(true)
	}
	s.yield()
}

// yield follows the primary's wish, when all of the log is executed: the last digest is
// compared before, for a secondary that is another machine has to leave it to the primary.
func (s *Secondary) yield() {
	if s.yielded && s.done == s.got && s.state == Protecting {
		s.lost(WhyHandedOver)
	}
}

// ack acknowledges what is in memory, if that is more than was said; or, with
// progress, what was executed.
func (s *Secondary) ack(progress bool) {
	if s.state >= Taking || !s.started || s.got == s.ackedGot && (!progress || s.done == s.ackedDone) {
		return
	}
	s.ackedGot, s.ackedDone, s.ackedAt = s.got, s.done, s.now
	s.do(Send{Link: Logging, Message: Ack{s.got, s.done, s.count}})
}

// differs is the end of a machine that is not the primary's any more.
func (s *Secondary) differs(d Differs) {
	if s.broken == flawPaper {
		return
	}
	why := WhyDiverged
	if d.Count == 0 {
		why = WhyFailed
	}
	if s.state == Taking {
		s.bad = &d // nobody may go on with it; whether another can, the lock says
		return
	}
	if why == WhyDiverged {
		s.do(Event{Kind: Diverged, Why: why, Err: d.Err}, Keep{d.Count})
	}
	if s.state == Draining {
		s.over(why, d.Err)
		return
	}
	s.farewell(why, d.Err)
}

// broke follows the end of a connection. One that can go on waits for the word of a primary
// which it still hears on the other link; when both have ended, the primary most likely has.
func (s *Secondary) broke(b Broken) {
	s.ended[b.Link] = true
	if b.Link == Logging && s.damage == nil {
		s.damage = b.Err
	}
	if s.state < Protecting && b.Link == Logging {
		s.farewell(WhyBroken, fault.Wrap(fault.KindOf(b.Err), b.Err, "before this secondary could go on"))
	}
	if s.ended == [Links]bool{true, true} {
		s.lost(WhyBroken)
	}
}

// lost follows the suspicion that the primary is dead, or its wish.
func (s *Secondary) lost(why Why) {
	switch s.state {
	case Loading, Following:
		s.farewell(why, fault.New(fault.Unreachable, "the primary was lost before this secondary could go on: %s", why))
	case Protecting:
		s.why, s.state = why, Taking
		s.take()
	default:
	}
}

func (s *Secondary) take() {
	s.asked = true
	s.do(TakeLock{s.block})
}

// won follows the lock: it is this side's, and nothing of the other lands any more.
func (s *Secondary) won() {
	s.asked = false
	s.do(Event{Kind: TookOver, Why: s.why})
	if s.bad != nil {
		s.do(Event{Kind: Diverged, Why: WhyDiverged, Err: s.bad.Err}, Keep{s.bad.Count})
		s.over(WhyDiverged, s.bad.Err)
		return
	}
	s.state = Draining
	s.drained()
}

// drained goes on once the log is executed.
func (s *Secondary) drained() {
	if s.done < s.got && s.broken != flawLostLog {
		return
	}
	s.state = IsLive
	if s.broken == flawMute {
		s.streams = nil
	}
	s.both(Live{})
	s.do(GoLive{s.streams, s.next})
}

// farewell ends a side that takes no lock, and says so.
func (s *Secondary) farewell(why Why, err error) {
	s.both(Bye{why})
	s.over(why, err)
}

func (s *Secondary) over(why Why, err error) {
	s.state = SecondaryOver
	s.do(Halt{why, err})
}

// ackLate is how many times AckEvery what was executed may wait to be told.
const ackLate = 4

// tick does what is due.
func (s *Secondary) tick() {
	// What was executed last is told with the next record, or after a while.
	if s.now.Sub(s.ackedAt) >= ackLate*s.limits.AckEvery {
		s.ack(true)
	}
	switch {
	case s.state == Protecting && s.silent(), s.state < Taking && s.now.Sub(s.heard) >= s.limits.StuckAfter:
		s.lost(WhySilent)
	case s.state == Protecting && s.now.Sub(s.heardLog) >= 2*s.limits.Stalled:
		// The primary is there, and had the time to say that it goes on.
		s.lost(WhyStalled)
	case s.state == Taking && !s.asked && s.now >= s.retryAt:
		s.take()
	}
}
