package vmm

import (
	"context"
	"os"

	"steadfast/compute/lockstep"
	"steadfast/compute/lockstepio"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// Pair is what the process of a machine that lives on two hosts needs of its parent.
type Pair struct {
	// Lock is the machine's lock. Its methods are called by goroutines of their own, one at a
	// time, and their context ends with the process.
	Lock lockstepio.Lock
	// Event, if any, is told what people are to know, in its order. Of a secondary TookOver
	// comes when the lock is its own.
	Event func(lockstep.Event)
}

// Secondary has a process follow a machine that lives elsewhere. Config, State and Log are not
// used then, Kernel and Initrd for Restarts only. Nets is how many network cards it has.
type Secondary struct {
	Me      vmlock.Owner
	Session lockstep.Session
	// Logging and Management are stream sockets to the primary's process; they stay the
	// caller's.
	Logging, Management *os.File
	// MemoryMax is the largest machine that is accepted, in bytes.
	MemoryMax uint64
	Kept      *Kept
}

// Kept are files that get the state, as Process.Save writes it, and the last of the log of a
// machine that is found to be another than the other one of its pair. They stay the caller's. nil:
// nothing is kept.
type Kept struct{ State, Log *os.File }

// give adds them to the descriptors of a request.
func (k *Kept) give(roles []string, files []*os.File) ([]string, []*os.File) {
	if k == nil {
		return roles, files
	}
	return append(roles, roleKept, roleKept), append(files, k.State, k.Log)
}

// eventsMax is how many events may wait for the hook.
const eventsMax = 64

// pairing is a pair to begin.
type pairing struct {
	Session []byte       `json:"session"`
	Host    vmlock.Owner `json:"host"` // of the secondary
	// MemoryMax is Secondary's.
	MemoryMax uint64 `json:"memory_max,omitempty"`
}

// word is what a process tells by itself of its pair: one of these.
type word struct {
	Lock  *lockAsk   `json:"lock,omitempty"`
	Event *pairEvent `json:"event,omitempty"`
}

// lockAsk asks for the lock: to be taken over from a block, or to be changed.
type lockAsk struct {
	From    []byte       `json:"from,omitempty"`
	Partner vmlock.Owner `json:"partner"`
}

// lockAnswer is what became of it.
type lockAnswer struct {
	Block []byte   `json:"block,omitempty"`
	Error *Failure `json:"error,omitempty"`
}

// pairEvent is a lockstep.Event.
type pairEvent struct {
	Kind  lockstep.EventKind `json:"kind"`
	Why   lockstep.Why       `json:"why"`
	Error *Failure           `json:"error,omitempty"`
}

// TurnOn gives the machine a secondary, whose process has the other ends of the sockets.
// The files stay the caller's. That it was begun is told; what becomes of it the events tell.
// Fails as lockstepio.Primary.TurnOn, and with fault.Invalid without Options.Pair.
func (p *Process) TurnOn(ctx context.Context, session lockstep.Session, partner vmlock.Owner, logging, management *os.File, kept *Kept) error {
	if p.pair == nil {
		return fault.New(fault.Invalid, "the machine's process was started without a lock for a pair")
	}
	p.mu.Lock()
	p.partner = partner
	p.mu.Unlock()
	roles, files := kept.give([]string{roleLink, roleLink}, []*os.File{logging, management})
	_, err := p.ask(ctx, request{Verb: verbTurnOn, Files: roles, Pair: &pairing{Session: session[:], Host: partner}}, files)
	return err
}

// TurnOff ends the pair: of a primary the machine goes on alone, a secondary's process ends.
func (p *Process) TurnOff(ctx context.Context) error {
	_, err := p.ask(ctx, request{Verb: verbTurnOff}, nil)
	return err
}

// HandOver has the secondary take over now.
func (p *Process) HandOver(ctx context.Context) error {
	_, err := p.ask(ctx, request{Verb: verbHandOver}, nil)
	return err
}

// OtherGone tells that the other one's process is known to have ended.
func (p *Process) OtherGone(ctx context.Context) error {
	_, err := p.ask(ctx, request{Verb: verbGone}, nil)
	return err
}

// heardOf takes what the process says of its pair: p.mu is held.
func (p *Process) heardOf(w *word) error {
	switch {
	case p.pair == nil || (w.Lock == nil) == (w.Event == nil):
		return fault.New(fault.Internal, "a word of a pair that there is not")
	case w.Event != nil:
		if w.Event.Kind == 0 || w.Event.Kind > lockstep.TookOver {
			return fault.New(fault.Internal, "an event that there is not")
		}
		select {
		case p.events <- lockstep.Event{Kind: w.Event.Kind, Why: w.Event.Why, Err: w.Event.Error.Err()}:
		default:
			return fault.New(fault.Internal, "more than %d events at once", eventsMax)
		}
		return nil
	case p.locking:
		return fault.New(fault.Internal, "two questions to the lock at once")
	case len(w.Lock.From) != 0 && len(w.Lock.From) != vmlock.BlockSize:
		return fault.New(fault.Internal, "a lock block of %d bytes", len(w.Lock.From))
	case len(w.Lock.From) > 0 && !p.follows:
		return fault.New(fault.Internal, "a wish to take a lock over that is its own")
	case len(w.Lock.From) == 0 && w.Lock.Partner != (vmlock.Owner{}) && w.Lock.Partner != p.partner:
		return fault.New(fault.Internal, "a wish to share the lock with host %d", w.Lock.Partner.Host)
	}
	p.locking = true
	go p.lock(*w.Lock)
	return nil
}

// lock asks for the lock, and tells the process.
func (p *Process) lock(ask lockAsk) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-p.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	var block [vmlock.BlockSize]byte
	var err error
	if len(ask.From) > 0 {
		block, err = p.pair.Lock.Take(ctx, [vmlock.BlockSize]byte(ask.From))
	} else {
		block, err = p.pair.Lock.Change(ctx, ask.Partner)
	}
	p.mu.Lock()
	p.locking = false
	p.mu.Unlock()
	answer := lockAnswer{Error: FailureOf(err)}
	if err == nil {
		answer.Block = block[:]
	}
	// A process that cannot be told has ended, or is about to.
	_, _ = p.ask(ctx, request{Verb: verbLock, Lock: &answer}, nil)
}

// tellEvents calls the hook until the process has ended, and with all that it said.
func (p *Process) tellEvents() {
	tell := func(e lockstep.Event) {
		if p.pair.Event != nil {
			p.pair.Event(e)
		}
	}
	for {
		select {
		case e := <-p.events:
			tell(e)
			continue
		case <-p.exited:
		}
		for {
			select {
			case e := <-p.events:
				tell(e)
				continue
			default:
			}
			return
		}
	}
}
