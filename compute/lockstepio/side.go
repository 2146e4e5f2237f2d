package lockstepio

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// Lock is the machine's lock, which the caller has: package vmlock decides it. Its methods may
// take as long as they need, and return early when ctx ends; one is asked at a time. Both
// fail with fault.Fenced when the lock is another's. Any other error says that it is
// as it was, as far as is known; it is asked again.
type Lock interface {
	// Change has the block say that the machine is on two hosts, or with the zero Owner
	// on one again, and returns it.
	Change(ctx context.Context, partner vmlock.Owner) ([vmlock.BlockSize]byte, error)
	// Take takes the lock over from this very block, and has what the other one has under
	// way end.
	Take(ctx context.Context, from [vmlock.BlockSize]byte) ([vmlock.BlockSize]byte, error)
}

// Options are what both sides have.
type Options struct {
	Lock Lock
	// Limits are lockstep.DefaultLimits() if they are zero.
	Limits lockstep.Limits
	// Event, if any, is told what people are to know. It must not wait.
	Event func(lockstep.Event)
	// Keep, if any, is called with the machine when it was found that the two are not one any
	// more, and then KeepLog with the last of the log, as a machine.LogWriter writes it, up to
	// where the machine is: on the primary's host by the machine's goroutine, and it stands
	// still meanwhile; on the secondary's before Run returns. The machine may be saved, and
	// must not be changed. After a takeover they are the primary's.
	Keep    func(m *machine.Machine)
	KeepLog func(log []byte)
	// DigestEvery is how many counts are between two digests in the log; 0: DigestCounts.
	DigestEvery uint64
	Logger      *slog.Logger

	broken lockstep.Flaw           // for tests
	leaves func(lockstep.Out)      // for tests: it is told what leaves
	meets  func(lockstep.Message)  // for tests: it is told what comes
	clock  func() lockstep.Instant // the core's, but for tests: now
}

// DigestCounts is about a second of a machine's.
const DigestCounts = 250_000_000

func (o *Options) fill() {
	if o.Limits == (lockstep.Limits{}) {
		o.Limits = lockstep.DefaultLimits()
	}
	if o.Event == nil {
		o.Event = func(lockstep.Event) {}
	}
	if o.DigestEvery == 0 {
		o.DigestEvery = DigestCounts
	}
	if o.clock == nil {
		o.clock = now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// item is something for the core: an input, of a link's if from is one, or a call.
type item struct {
	in   lockstep.Input
	from *link
	call func()
}

// side is what both sides are: a core with its box and links.
type side struct {
	o    Options
	step func(lockstep.Instant, lockstep.Input) []lockstep.Effect
	do   func(lockstep.Effect)
	told func() // after inputs were taken

	ctx    context.Context // ends with the core
	cancel context.CancelFunc
	over   chan struct{} // it has ended
	bell   chan struct{}

	mu    sync.Mutex
	box   []item
	bytes int // of what came in it

	stepping sync.Mutex            // who has it has the core step
	links    [lockstep.Links]*link // the core's
	last     sync.WaitGroup        // words of links that end, before this process may
}

func newSide(o Options) *side {
	ctx, cancel := context.WithCancel(context.Background())
	return &side{o: o, ctx: ctx, cancel: cancel, over: make(chan struct{}), bell: make(chan struct{}, 1)}
}

// put puts an item into the box; ring has it taken now, else it is with the next one that is, or
// when the clock ticks. What belongs together becomes one.
func (s *side) put(i item, ring bool) {
	s.mu.Lock()
	s.box = joined(s.box, i)
	s.mu.Unlock()
	if ring {
		s.ring()
	}
}

// came puts a message of a link into the box: the link's goroutine has the core take it before it
// waits for another, or when there is much.
func (s *side) came(l *link, m lockstep.Message) {
	s.mu.Lock()
	s.bytes += sizeOf(m)
	full := s.bytes > boxMax
	s.box = joined(s.box, item{in: lockstep.Received{Link: l.number, List: []lockstep.Message{m}}, from: l})
	s.mu.Unlock()
	if full {
		s.takeAll(false)
	}
}

// heed has the core take what came, if there is any.
func (s *side) heed() {
	s.mu.Lock()
	some := s.bytes > 0
	s.mu.Unlock()
	if some {
		s.takeAll(false)
	}
}

// boxMax is how much of what came may be in the box, in bytes, but for the last message of each
// link.
const boxMax = 8 << 20

// sizeOf is about what a message takes in memory.
func sizeOf(m lockstep.Message) int {
	const each = 64
	switch m := m.(type) {
	case lockstep.Entry:
		return each + cap(m.In.Data)
	case lockstep.Pages:
		return each + len(m.Data)
	case lockstep.Part:
		return each + len(m.Data)
	default:
		return each
	}
}

func (s *side) ring() {
	select {
	case s.bell <- struct{}{}:
	default:
	}
}

// joined appends an item, or joins it with the last one.
func joined(box []item, i item) []item {
	if len(box) == 0 || i.in == nil {
		return append(box, i)
	}
	last := &box[len(box)-1]
	switch in := i.in.(type) {
	case lockstep.Ran:
		if was, ok := last.in.(lockstep.Ran); ok {
			was.Count, was.Outputs = in.Count, append(was.Outputs, in.Outputs...)
			last.in = was
			return box
		}
	case lockstep.Received:
		if was, ok := last.in.(lockstep.Received); ok && last.from == i.from {
			was.List = append(was.List, in.List...)
			last.in = was
			return box
		}
	default:
	}
	return append(box, i)
}

// post has the core take an input now.
func (s *side) post(in lockstep.Input) { s.put(item{in: in}, true) }

// call has do called as the core's, and returns when that is done; false: it has ended.
func (s *side) call(do func()) bool {
	done := make(chan struct{})
	s.put(item{call: func() { defer close(done); do() }}, true)
	select {
	case <-done:
		return true
	case <-s.over:
		return false
	}
}

// run is the core's goroutine.
func (s *side) run() {
	defer close(s.over)
	defer s.cut() // when nobody has the core step any more
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.bell:
			s.takeAll(false)
		case <-t.C:
			s.takeAll(true)
		}
	}
}

// takeAll has the core take what is in the box, and then a tick of the clock if there was one: what
// came is heard before silence is judged.
func (s *side) takeAll(tick bool) {
	s.stepping.Lock()
	defer s.stepping.Unlock()
	s.mu.Lock()
	box := s.box
	s.box, s.bytes = nil, 0
	s.mu.Unlock()
	for _, i := range box {
		s.take(i)
	}
	if tick {
		s.take(item{in: lockstep.Tick{Carried: s.carried()}})
	}
	for _, l := range s.links {
		if l != nil {
			l.flush()
		}
	}
	s.told()
}

// take does an item.
func (s *side) take(i item) {
	switch {
	case s.ctx.Err() != nil:
	case i.call != nil:
		i.call()
	case i.from != nil && s.links[i.from.number] != i.from: // of a pair that has ended
	default:
		for _, e := range s.step(s.o.clock(), i.in) {
			s.effect(e)
		}
	}
}

// effect does what both sides do alike.
func (s *side) effect(e lockstep.Effect) {
	switch e := e.(type) {
	case lockstep.Send:
		l := s.links[e.Link]
		if l == nil {
			return
		}
		if err := l.send(e.Message); err != nil {
			s.o.Logger.Error("a message to the other host cannot be sent", slog.Any("error", err))
			s.lost(l, err)
		}
	case lockstep.Event:
		s.o.Event(e)
	default:
		s.do(e)
	}
}

// carried is how many bytes the log's connection has taken.
func (s *side) carried() int64 {
	if l := s.links[lockstep.Logging]; l != nil {
		return l.bytes()
	}
	return 0
}

// connect begins to speak on the links, as of a session.
func (s *side) connect(links Links, session lockstep.Session, secondary bool) {
	for n, conn := range links {
		h := lockstep.Head{Session: session, Secondary: secondary, Link: lockstep.Link(n)}
		l := newLink(conn, h)
		s.links[n] = l
		h.Secondary = !secondary
		go func() {
			err := l.listen(h, func(m lockstep.Message) {
				if s.o.meets != nil {
					s.o.meets(m)
				}
				s.came(l, m)
			}, s.heed)
			s.lost(l, err)
		}()
	}
}

// lost ends a link that is no use any more, so that the other side notices, too.
func (s *side) lost(l *link, err error) {
	s.o.Logger.Debug("a link to the other host is over", slog.Int("link", int(l.number)), slog.Any("error", err))
	s.put(item{in: lockstep.Broken{Link: l.number, Err: err}, from: l}, true)
	l.cut()
}

// part ends the links, when all is said.
func (s *side) part() {
	for n, l := range s.links {
		if l != nil {
			s.last.Go(l.end)
			s.links[n] = nil
		}
	}
}

// cut ends them at once.
func (s *side) cut() {
	s.stepping.Lock()
	defer s.stepping.Unlock()
	for n, l := range s.links {
		if l != nil {
			l.cut()
			s.links[n] = nil
		}
	}
}

// stop ends the core: it returns when nothing steps it any more.
func (s *side) stop() {
	s.cancel()
	<-s.over
}

// ask asks for the lock, on a goroutine of its own.
func (s *side) ask(what func(context.Context, Lock) ([vmlock.BlockSize]byte, error)) {
	go func() {
		block, err := what(s.ctx, s.o.Lock)
		switch {
		case err == nil:
			s.post(lockstep.LockChanged{Block: block})
		case fault.Is(err, fault.Fenced):
			s.post(lockstep.LockLost{Err: err})
		default:
			s.post(lockstep.LockRefused{Err: err})
		}
	}()
}
