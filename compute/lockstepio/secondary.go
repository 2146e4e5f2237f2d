package lockstepio

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"steadfast/compute/device"
	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
	"steadfast/compute/machineio"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// SecondaryOptions are what a secondary is made with.
type SecondaryOptions struct {
	Options
	// Me is this host, as the primary was told, and Session names the pair.
	Me      vmlock.Owner
	Session lockstep.Session
	Links   Links
	// Accept, if any, may refuse a machine of this Config.
	Accept func(cfg machine.Config) error
	// Reload is the machine's: see machine.Machine.
	Reload func() (kernel, initrd []byte, err error)
	// Leak is the machine's, for a check that must notice.
	Leak func() uint64

	spoil func(m *machine.Machine) // for tests: before each record
}

// Secondary executes what a primary says. Its methods may be called by any goroutine.
type Secondary struct {
	*side
	opt  SecondaryOptions
	core *lockstep.Secondary

	// The core's, and from Load on the machine's goroutine's.
	m     *machine.Machine
	parts []byte
	bad   error // what came makes no machine
	tail  tail  // of the log that it has executed

	heard lockstep.Instant // when the last record came

	mu     sync.Mutex
	work   []lockstep.Effect
	result lockstep.Effect // Halt or GoLive
	keep   bool
	bellM  chan struct{}
	status Status
}

// Over is the error that a secondary has ended, and does not go on.
type Over struct {
	Why lockstep.Why
	Err error // may be nil
}

// Error implements error.
func (o *Over) Error() string {
	if o.Err != nil {
		return fmt.Sprintf("the secondary has ended: %s: %v", o.Why, o.Err)
	}
	return fmt.Sprintf("the secondary has ended: %s", o.Why)
}

// Unwrap returns what was the matter.
func (o *Over) Unwrap() error { return o.Err }

// Takeover is a machine that goes on here: the lock is this host's.
type Takeover struct {
	Machine *machine.Machine
	resumed machineio.Resumed
	next    uint64
	options Options
}

// Live makes the life of the machine: Run of it issues again what the machine waits
// for, sends what may not have left, and goes on. Its Primary is alone; Close it when the
// life has ended.
func (t *Takeover) Live(o machineio.Options) (*machineio.Live, *Primary, error) {
	p := newPrimary(t.options)
	o.Gate, o.Resumed = p, &t.resumed
	l, err := machineio.New(t.Machine, o)
	if err != nil {
		return nil, nil, err
	}
	p.live = l
	p.begin(t.Machine, t.next)
	return l, p, nil
}

// NewSecondary makes the side of a machine that lives elsewhere; Run is to follow.
func NewSecondary(o SecondaryOptions) *Secondary {
	o.fill()
	s := &Secondary{side: newSide(o.Options), opt: o, bellM: make(chan struct{}, 1)}
	s.core = lockstep.NewSecondary(lockstep.SecondaryConfig{Limits: o.Limits, Me: o.Me, Broken: o.broken}, o.clock())
	s.side.do, s.told = s.doEffect, s.note
	s.side.step = func(at lockstep.Instant, in lockstep.Input) []lockstep.Effect { return s.core.Step(at, in) }
	s.note()
	return s
}

// TurnOff ends the pair: Run returns, unless it takes over already.
func (s *Secondary) TurnOff() { s.post(lockstep.TurnOff{}) }

// Gone tells that the primary's process has ended.
func (s *Secondary) Gone() { s.post(lockstep.Gone{}) }

// Status tells how it does.
func (s *Secondary) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *Secondary) note() {
	state := s.core.State()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.State, s.status.Protected = state.String(), state >= lockstep.Protecting && state <= lockstep.IsLive
	if l := s.links[lockstep.Logging]; l != nil {
		s.status.LogBytes = l.bytes()
	}
}

// Run executes the primary's log, on the calling goroutine, until this side goes on, or
// has ended: *Over. When ctx ends it is over at once, as if this host had died: fault.Canceled.
func (s *Secondary) Run(ctx context.Context) (*Takeover, error) {
	defer context.AfterFunc(ctx, s.wakeMachine)()
	s.put(item{call: func() { s.connect(s.opt.Links, s.opt.Session, true) }}, true)
	go s.run()
	t, err := s.execute(ctx)
	if !fault.Is(err, fault.Canceled) || ctx.Err() == nil {
		s.call(s.part) // what was to be said is said, soon
	}
	s.stop()
	if t == nil {
		s.last.Wait() // one that goes on has no time for that
	}
	if t == nil && s.m != nil {
		if s.keeps() {
			s.o.keep(s.m, &s.tail)
		}
		_ = s.m.Release() // nobody needs it
	}
	return t, err
}

// execute is the machine's goroutine.
func (s *Secondary) execute(ctx context.Context) (*Takeover, error) {
	failed := false // the machine is kept as it is then
	for {
		work, result := s.next()
		switch r := result.(type) {
		case lockstep.Halt:
			return nil, &Over{r.Why, r.Err}
		case lockstep.GoLive:
			if s.o.leaves != nil {
				for _, o := range r.Streams {
					s.o.leaves(o)
				}
			}
			return &Takeover{
				Machine: s.m, next: r.Next, options: s.opt.Options,
				resumed: machineio.Resumed{Host: uint64(s.heard), Guest: s.m.Now(), Outputs: plain(r.Streams)},
			}, nil
		}
		if len(work) > 0 && !failed {
			failed = !s.batch(work)
			continue
		}
		select {
		case <-s.bellM:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return nil, fault.Wrap(fault.Canceled, context.Cause(ctx), "a secondary")
		}
	}
}

// next takes what is to be done.
func (s *Secondary) next() ([]lockstep.Effect, lockstep.Effect) {
	s.mu.Lock()
	defer s.mu.Unlock()
	work := s.work
	s.work = nil
	return work, s.result
}

// halted tells whether nothing needs to be executed any more.
func (s *Secondary) halted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result != nil
}

func (s *Secondary) keeps() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keep
}

func (s *Secondary) wakeMachine() {
	select {
	case s.bellM <- struct{}{}:
	default:
	}
}

// doEffect does an effect of the core's.
func (s *Secondary) doEffect(e lockstep.Effect) {
	switch e := e.(type) {
	case lockstep.Store:
		if s.bad == nil {
			s.bad = s.store(e.Message)
		}
		return
	case lockstep.TakeLock:
		s.ask(func(ctx context.Context, l Lock) ([vmlock.BlockSize]byte, error) { return l.Take(ctx, e.Block) })
		return
	case lockstep.Keep:
		s.o.Logger.Error("the machine is another one than the primary's", slog.Uint64("count", e.Count))
		s.mu.Lock()
		s.keep = true
		s.mu.Unlock()
		return
	default:
	}
	s.mu.Lock()
	switch e.(type) {
	case lockstep.Halt, lockstep.GoLive:
		s.result = e
	case lockstep.Execute:
		s.heard = now()
		s.work = append(s.work, e)
	default:
		s.work = append(s.work, e)
	}
	s.mu.Unlock()
	s.wakeMachine()
}

// statePartsMax bounds a machine's state but for its memory, in bytes.
const statePartsMax = 1 << 30

// store keeps what comes of a copy: the configuration first, then pages, then the state.
func (s *Secondary) store(m lockstep.Message) error {
	switch m := m.(type) {
	case lockstep.Part:
		if s.m == nil {
			cfg, err := machine.DecodeConfig(m.Data)
			if err == nil && s.opt.Accept != nil {
				err = s.opt.Accept(cfg)
			}
			if err == nil {
				s.m, err = machine.New(cfg)
			}
			return err
		}
		if len(s.parts)+len(m.Data) > statePartsMax {
			return fault.New(fault.Limit, "the state of a machine that is copied has more than %d bytes", statePartsMax)
		}
		s.parts = append(s.parts, m.Data...)
	case lockstep.Pages:
		if s.m == nil || !s.m.RAM().Write(m.Data, s.m.RAM().Base()+uint64(m.First)*pageBytes) {
			return fault.New(fault.Corrupt, "the copy of a machine has pages that it has not: %d from %d on", len(m.Data)/pageBytes, m.First)
		}
	default:
	}
	return nil
}

// load makes the machine of what came.
func (s *Secondary) load(start lockstep.Start) error {
	if s.bad != nil {
		return s.bad
	}
	if s.m == nil {
		return fault.New(fault.Corrupt, "the copy of a machine without a machine")
	}
	if err := s.m.RestoreParts(s.parts); err != nil {
		return err
	}
	s.parts = nil
	s.m.Reload, s.m.Leak = s.opt.Reload, s.opt.Leak
	if s.m.Count() != start.Count || s.m.Hash() != start.Hash {
		return fault.New(fault.Corrupt, "the copy of a machine is not what it was copied of, at %d", start.Count)
	}
	return nil
}

// batchFor is how long records are executed before the core is told.
const batchFor = lockstep.Instant(1_000_000)

// batch does some work, and tells the core; false: the machine cannot do it, or is another one.
func (s *Secondary) batch(work []lockstep.Effect) bool {
	var told lockstep.Executed
	began := now()
	tell := func() {
		if told.Seq > 0 {
			s.post(told)
			told, began = lockstep.Executed{}, now()
		}
	}
	ports := ports{}
	if s.m != nil {
		ports = portsOf(s.m)
	}
	for _, e := range work {
		if s.halted() {
			return true
		}
		switch e := e.(type) {
		case lockstep.Load:
			if err := s.load(e.Start); err != nil {
				s.post(lockstep.Differs{Count: 0, Err: err})
				return false
			}
			ports = portsOf(s.m)
			s.post(lockstep.Loaded{})
		case lockstep.Execute:
			if s.opt.spoil != nil {
				s.opt.spoil(s.m)
			}
			err := s.record(e.Record)
			if countOf(e.Record) <= s.m.Count() {
				s.tail.add(e.Record)
			}
			told.Seq, told.Count = e.Seq, s.m.Count()
			told.Outputs = append(told.Outputs, ports.classify(s.m.Outputs())...)
			if err != nil {
				s.post(lockstep.Differs{Count: max(s.m.Count(), 1), Err: err})
				return false
			}
			if now()-began >= batchFor {
				tell()
			}
		}
	}
	tell()
	return true
}

// countOf is the count of an input or a digest, or 0.
func countOf(r lockstep.Record) uint64 {
	switch r := r.(type) {
	case lockstep.Entry:
		return r.In.At
	case lockstep.Digest:
		return r.Count
	default:
		return 0
	}
}

// record does what a record says. Fails with fault.Invalid when the machine is not the
// primary's, or cannot do it.
func (s *Secondary) record(r lockstep.Record) error {
	switch r := r.(type) {
	case lockstep.Entry:
		if err := s.runTo(r.In.At, r.In); err != nil {
			return err
		}
		return s.m.Deliver(r.In)
	case lockstep.Horizon:
		return s.runTo(r.Count, nil)
	case lockstep.Digest:
		if err := s.runTo(r.Count, nil); err != nil {
			return err
		}
		is := machine.Hash{}
		switch {
		case r.Stripe == 0:
			is = s.m.Hash()
		case r.Stripe <= stripes(s.m):
			is = stripe(s.m, r.Stripe)
		default:
			return fault.New(fault.Invalid, "a digest of stripe %d of %d", r.Stripe, stripes(s.m))
		}
		if is != r.Hash {
			return fault.New(fault.Invalid, "at %d the machine (stripe %d) is not the primary's: %x, and that is %x", r.Count, r.Stripe, is, r.Hash)
		}
	default: // nothing for the machine
	}
	return nil
}

// sliceCounts is how far the machine runs between two looks at whether it has to.
const sliceCounts = 2_000_000

// runTo takes the machine to a count, for an input if there is one.
func (s *Secondary) runTo(count uint64, in *device.Input) error {
	for s.m.Count() < count {
		if s.halted() {
			return nil
		}
		if s.m.Run(min(count, s.m.Count()+sliceCounts)) == machine.StopEnded && s.m.Count() < count {
			return fault.New(fault.Invalid, "the machine has ended (%s) at %d, and the primary's is at %d", s.m.End(), s.m.Count(), count)
		}
	}
	if in != nil && s.m.End() != machine.Running && (in.Port != machine.PortMachine || in.Kind != machine.Restart) {
		return fault.New(fault.Invalid, "the machine has ended (%s) at %d, and the primary's was given an input", s.m.End(), s.m.Count())
	}
	return nil
}
