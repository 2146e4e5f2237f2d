package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"steadfast/cluster/inventory"
	"steadfast/cluster/placement"
	"steadfast/compute/vmlock"
	"steadfast/compute/vmm"
	"steadfast/compute/vmm/standalone"
	"steadfast/fault"
)

// Causes of a run's contexts.
var (
	errStopped = fault.New(fault.Canceled, "the machine is not to run any more")
	errOver    = fault.New(fault.Canceled, "the machine is not this host's any more")
	errClosed  = fault.New(fault.Canceled, "this host's process ends")
	errEvicted = fault.New(fault.Fenced, "this host was declared lost")
	errAlone   = fault.New(fault.Unreachable, "the machine's host was lost before it had connected")
)

// wants is what the inventory wants of a run.
type wants struct {
	stop   bool
	off    bool   // stop, and ask nobody
	leave  bool   // stop, because the host is to have no machines
	resets uint64 // the machine's count
	pair   pairing
	// alone: of a secondary, the life of the host that it is to follow is over.
	alone bool
	// parted is what became of the last secondary, when there is to be another; empty: people
	// wanted it so.
	parted string
}

// run is one placement of a machine on this host, from beginning to end.
type run struct {
	h          *Host
	m          *inventory.Machine // as it was when the run began
	group      string             // of its datastore
	me         vmlock.Owner
	generation uint64
	// pair is not 0 of a run that begins as the machine's secondary: its number.
	pair   uint64
	links  chan arrival    // that have come to it
	hands  chan chan error // who wants the secondary to take over
	before *run            // of this machine, or nil

	// ctx ends when the machine is to end at once, and nothing is to be said; starting, too,
	// when it is not to start any more.
	ctx      context.Context
	cancel   context.CancelCauseFunc
	starting context.Context
	stop     context.CancelCauseFunc
	// meeting ends, too, when a secondary has nobody to wait for. It counts until both links are
	// there: before that the secondary can take nothing over.
	meeting context.Context
	give    context.CancelCauseFunc
	notice  chan struct{} // wants may have changed
	done    chan struct{}
	console *standalone.Console

	// again is when people were told last that the guest restarts, unsaid how often it has
	// since then; partedText what they were told last of the end of a pair, and partedAt when. Of
	// main alone.
	again      time.Time
	unsaid     int
	partedText string
	partedAt   time.Time

	mu      sync.Mutex
	wants   wants
	told    told
	outcome *placement.Machine // how it ended, once it has
	words   []word             // what is to be said beside that, in this order
	took    bool               // it began as a secondary, and has taken over
	// follower is what it was then, from when its process ran.
	follower *follower
}

// told is what is known of a run for people. It is under run.mu.
type told struct {
	phase    Phase
	step     string
	since    time.Time // of the phase
	process  *vmm.Process
	volumes  []Volume
	restarts int
	resets   int
	full     map[int]string // disks that wait for space, and what the storage says
	pair     *pairTold
}

// newRun begins a run. The first wants are there before it begins.
func newRun(h *Host, m *inventory.Machine, group string, me vmlock.Owner, p *inventory.Placement, w wants, before *run) *run {
	r := &run{
		h: h, m: m, group: group, me: me, generation: p.Generation, before: before, wants: w,
		notice: make(chan struct{}, 1), done: make(chan struct{}), links: make(chan arrival), hands: make(chan chan error),
	}
	if s := p.Second; s != nil && s.Host == h.o.Name {
		r.pair = s.Pair
		r.told.pair = &pairTold{number: s.Pair, other: p.Host}
	}
	r.ctx, r.cancel = context.WithCancelCause(context.Background())
	r.starting, r.stop = context.WithCancelCause(r.ctx)
	r.meeting, r.give = context.WithCancelCause(r.starting)
	r.heed(w)
	r.told.phase, r.told.since, r.told.full = Starting, time.Now(), map[int]string{}
	h.tasks.Go(r.main)
	return r
}

// want takes what the inventory wants now.
func (r *run) want(w wants) {
	r.mu.Lock()
	changed := r.wants != w
	r.wants = w
	r.mu.Unlock()
	if !changed {
		return
	}
	r.heed(w)
	r.notify()
}

// heed ends what is not to begin any more.
func (r *run) heed(w wants) {
	if w.stop {
		r.stop(errStopped)
	}
	if w.alone {
		r.give(errAlone)
	}
}

func (r *run) notify() {
	select {
	case r.notice <- struct{}{}:
	default:
	}
}

func (r *run) wanted() wants {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wants
}

// tell notes where a run is.
func (r *run) tell(p Phase, step string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told.phase != p {
		r.told.since = time.Now()
	}
	r.told.phase, r.told.step = p, step
}

// event tells people something about the machine.
func (r *run) event(kind string, trouble bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.h.log.Debug("machine", "machine", r.m.Name, "event", kind, "text", text)
	r.h.o.Event(Event{Type: kind, Machine: r.m.Name, Trouble: trouble, Text: text})
}

// end is how a run, or a life of its guest, ended. Runs: there is nothing to be said.
type end struct {
	outcome placement.Outcome
	detail  string
	found   uint64
	again   bool // another life of the guest is to follow
}

// endOf is the end that an error is.
func endOf(err error) end { return end{outcome: placement.Failed, detail: err.Error()} }

// main is a run's goroutine.
func (r *run) main() {
	defer r.h.wake() // when it is done: else it would be looked at too early, and not again
	defer close(r.done)
	defer r.cancel(nil)
	if r.before != nil {
		<-r.before.done // two lives of a machine at once would be fenced, but why
		r.before = nil
	}
	log := r.openConsole()
	e := end{}
	if r.pair != 0 {
		e = r.follow()
	} else {
		e = r.carry()
	}
	r.tellUnsaid(guestRestarts)
	r.console.End()
	if log != nil {
		if err := log.Close(); err != nil {
			r.event(EventConsole, true, "the console's log is not whole: %v", err)
		}
	}
	r.mu.Lock()
	r.told.phase, r.told.step, r.told.since = Ended, e.detail, time.Now()
	r.told.process, r.told.volumes = nil, nil
	if e.outcome != placement.Runs {
		r.outcome = &placement.Machine{Name: r.m.Name, Generation: r.generation, Outcome: e.outcome, Detail: e.detail, Found: e.found}
	}
	r.mu.Unlock()
	if e.outcome != placement.Runs {
		r.event(EventEnded, e.outcome != placement.Shutdown && e.outcome != placement.Stopped, "%s", e.detail)
		r.h.wakeSpeaker()
	}
}

// openConsole makes the console. A machine runs without a log rather than not at all.
func (r *run) openConsole() io.Closer {
	say := func(format string, args ...any) { r.event(EventConsole, true, format, args...) }
	log, err := standalone.OpenConsoleLog(filepath.Join(r.h.o.Consoles, r.m.Name+".log"))
	var outputs []io.Writer
	if err == nil {
		outputs = append(outputs, log)
	} else {
		say("what the guest writes is not kept: %v", err)
	}
	c := standalone.NewConsole(outputs, say)
	r.mu.Lock()
	r.console = c
	r.mu.Unlock()
	if err != nil {
		return nil
	}
	return log
}

// carry takes the lock, in as many attempts as it takes, and runs the machine.
func (r *run) carry() end {
	for {
		attempt, err := r.h.attempt(r.m.ID, r.generation)
		if err != nil {
			return endOf(err)
		}
		k, err := r.take(attempt)
		if err == nil {
			return r.hold(k, nil, nil)
		}
		var newer *superseded
		switch {
		case r.ctx.Err() != nil:
			return end{}
		case r.starting.Err() != nil:
			return end{outcome: placement.Stopped, detail: "stopped before it began"}
		case errors.As(err, &newer):
			return end{outcome: placement.Superseded, detail: err.Error(), found: newer.found}
		case !fault.Is(err, fault.Busy) && !fault.Is(err, fault.Unreachable):
			return endOf(err)
		}
		r.tell(Starting, "waits: "+err.Error())
		pause(r.starting, r.h.o.Times.Retry)
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// superseded is a lock block that has a greater generation.
type superseded struct {
	error
	found uint64
}

func (s *superseded) Unwrap() error { return s.error }

// take makes one attempt at the lock, on volumes of its own.
func (r *run) take(attempt uint8) (*keeper, error) {
	volumes, err := r.open()
	if err != nil {
		return nil, err
	}
	id, err := vmlock.ParseID(r.m.ID)
	var k *keeper
	if err == nil {
		cfg := vmlock.Config{VM: id, Me: r.me, Generation: r.generation, Attempt: attempt}
		k, err = newKeeper(cfg, volumes, r.h.o.Times.Check, func(err error) {
			r.h.log.Warn("a look at a machine's lock failed", "machine", r.m.Name, "error", err)
		})
	}
	if err != nil {
		closeVolumes(volumes)
		return nil, err
	}
	r.tell(Starting, "takes the lock")
	select {
	case <-k.held:
		return k, nil
	case <-k.over:
		err = k.err
		if k.found > 0 {
			err = &superseded{err, k.found}
		}
	case <-r.starting.Done():
		err = context.Cause(r.starting)
	}
	r.setVolumes(nil)
	k.close()
	return nil, err
}

func (r *run) setVolumes(list []Volume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told.volumes = list
}

// open opens all volumes, the home first. It waits for those that cannot be reached.
func (r *run) open() ([]Volume, error) {
	r.tell(Starting, "opens its volumes")
	return r.openFor(r.starting)
}

// openFor opens all volumes, for as long as ctx lasts.
func (r *run) openFor(ctx context.Context) ([]Volume, error) {
	names := r.m.Volumes()
	volumes := make([]Volume, len(names))
	errs := make([]error, len(names))
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for i, name := range names {
		all.Go(func() {
			if volumes[i], errs[i] = r.openOne(ctx, At{r.group, name}); errs[i] != nil {
				cancel() // the others need not go on
			}
		})
	}
	all.Wait()
	var err error
	for _, e := range errs {
		if e != nil && (err == nil || fault.Is(err, fault.Canceled)) {
			err = e // rather what went wrong than who gave up for it
		}
	}
	if err == nil {
		r.setVolumes(volumes)
		return volumes, nil
	}
	var opened []Volume
	for _, v := range volumes {
		if v != nil {
			opened = append(opened, v)
		}
	}
	closeVolumes(opened)
	return nil, err
}

// openOne opens a volume.
func (r *run) openOne(ctx context.Context, at At) (Volume, error) {
	// One name for all tries: a volume that did not open has carried nothing and was not registered,
	// and names are not to run out while storage is away for hours.
	isid, err := r.h.isid()
	if err != nil {
		return nil, err
	}
	for told := false; ; {
		try, cancel := context.WithTimeout(ctx, r.h.o.Times.Try)
		v, err := r.h.o.Open(try, at, isid)
		cancel()
		switch {
		case err == nil:
			return v, nil
		case ctx.Err() != nil:
			return nil, fault.Wrap(fault.Canceled, context.Cause(ctx), "opening the volume "+at.Volume)
		case !fault.Is(err, fault.Unreachable) && !fault.Is(err, fault.Busy) && !errors.Is(err, context.DeadlineExceeded):
			return nil, fault.Wrap(fault.KindOf(err), err, "opening the volume "+at.Volume)
		}
		r.tell(Starting, fmt.Sprintf("waits for the volume %s: %v", at.Volume, err))
		if !told {
			told = true
			r.event(EventWaits, true, "waits for the volume %s: %v", at.Volume, err)
		}
		pause(ctx, r.h.o.Times.Retry)
	}
}
