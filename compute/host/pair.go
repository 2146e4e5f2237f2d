package host

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"time"

	"steadfast/cluster/inventory"
	"steadfast/compute/lockstep"
	"steadfast/compute/lockstepio"
	"steadfast/compute/vmlock"
	"steadfast/compute/vmm"
	"steadfast/fault"
)

// pairing is the secondary that the inventory wants of a machine; the zero one: none.
type pairing struct {
	number uint64
	host   string
	owner  vmlock.Owner
}

// mate is the secondary that a life of the guest has; the zero one: none.
type mate struct {
	pairing
	begun     bool // its process has the links
	protected bool
	parting   bool // it is to end
	cancel    context.CancelFunc
	keeping   *keeping
}

// met is what became of the beginning of a pair.
type met struct {
	number uint64
	err    error
}

// PairStatus is how a machine does as one of a pair.
type PairStatus struct {
	// Secondary tells that the machine is not this host's, and goes on here when its host dies.
	Secondary bool
	// Pair is its number among the placement's, Other the other host.
	Pair  uint64
	Other string
	lockstepio.Status
	// LogBytesPerSecond is the log's bandwidth over the last look; of the primary's side.
	LogBytesPerSecond float64
}

// pairUp has the life have the secondary that is wanted.
func (l *life) pairUp() {
	w := l.r.wanted().pair
	switch {
	case l.mate.number == w.number: // as it is to be, or becomes so
	case l.mate.number != 0:
		l.part()
	case w.number == l.refused || l.stopping || l.resetting:
	default:
		l.beginPair(w)
	}
}

// part ends the pair.
func (l *life) part() {
	if l.mate.number == 0 || l.mate.parting {
		return
	}
	l.mate.parting = true
	if l.mate.begun {
		l.order("it is to have no secondary", l.p.TurnOff)
	} else {
		l.mate.cancel()
	}
}

// beginPair connects to the secondary's host, and turns the pair on.
func (l *life) beginPair(w pairing) {
	ctx, cancel := context.WithTimeout(l.r.ctx, l.r.h.o.Times.Pair)
	l.mate = mate{pairing: w, cancel: cancel, keeping: l.r.keepFiles()}
	kept := l.mate.keeping.kept()
	l.notePair()
	l.tasks.Go(func() {
		defer cancel()
		err := l.meet(ctx, w, kept)
		select {
		case l.meets <- met{w.number, err}:
		case <-l.gone:
		}
	})
}

// meet gives the machine's process its links. A secondary that is not ready is asked again.
func (l *life) meet(ctx context.Context, w pairing, kept *vmm.Kept) error {
	var session lockstep.Session
	_, _ = rand.Read(session[:]) // it never fails
	var conns [lockstep.Links]net.Conn
	for n := range conns {
		conn, err := l.link(ctx, w, session, lockstep.Link(n))
		if err != nil {
			for _, c := range conns[:n] {
				_ = c.Close() // nothing was sent on it
			}
			return err
		}
		conns[n] = conn
	}
	var ours [lockstep.Links]net.Conn
	var theirs [lockstep.Links]*os.File
	var err error
	for n, conn := range conns {
		if err == nil {
			err = awaitReady(ctx, conn)
		}
		if err == nil {
			ours[n], theirs[n], err = channel()
		}
	}
	if err == nil {
		for n := range conns {
			l.tasks.Go(func() { relay(conns[n], ours[n]) })
		}
		err = l.p.TurnOn(ctx, session, w.owner, theirs[lockstep.Logging], theirs[lockstep.Management], kept)
	} else {
		for n, conn := range conns {
			_ = conn.Close() // the secondary sees its end
			if ours[n] != nil {
				_ = ours[n].Close()
			}
		}
	}
	for _, f := range theirs {
		if f != nil {
			_ = f.Close() // the process has it, or nobody
		}
	}
	return err
}

// link makes one link to the secondary's host.
func (l *life) link(ctx context.Context, w pairing, session lockstep.Session, link lockstep.Link) (net.Conn, error) {
	for {
		conn, err := l.linkOnce(ctx, w, session, link)
		if err == nil || ctx.Err() != nil || fault.Is(err, fault.Invalid) || fault.Is(err, fault.Stale) {
			return conn, err
		}
		again := time.NewTimer(pairRetry)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return nil, err
		}
	}
}

// linkOnce tries to.
func (l *life) linkOnce(ctx context.Context, w pairing, session lockstep.Session, link lockstep.Link) (net.Conn, error) {
	r := l.r
	conn, err := r.h.o.Dial(ctx, w.host, link)
	if err != nil {
		return nil, err
	}
	g := greeting{
		Machine: r.m.Name, ID: r.m.ID, Generation: r.generation, Pair: w.number, Session: session, Link: link,
		Program: r.h.o.Program, Build: r.h.o.Build,
	}
	if err := greet(ctx, conn, g); err != nil {
		_ = conn.Close() // nothing was sent on it
		return nil, err
	}
	return conn, nil
}

// pairRetry is between two attempts to reach a secondary.
const pairRetry = 100 * time.Millisecond

// hasMet takes what became of the beginning of a pair.
func (l *life) hasMet(m met) {
	if m.number != l.mate.number {
		return
	}
	if m.err == nil {
		l.mate.begun = true
		if l.mate.parting {
			l.order("it is to have no secondary", l.p.TurnOff)
		}
		return
	}
	why := inventory.PartLostConnection
	if fault.Is(m.err, fault.Invalid) {
		why = inventory.PartHardware
	}
	l.parted(why, m.err.Error())
}

// heard takes what the process says of its pair.
func (l *life) heard(e lockstep.Event) {
	switch e.Kind {
	case lockstep.Protected:
		if l.mate.number == 0 {
			l.order("it is to have no secondary", l.p.TurnOff) // its beginning was given up
			return
		}
		l.mate.protected = true
		l.notePair()
		l.r.say(word{kind: wordProtected, pair: l.mate.number})
		l.r.event(EventProtected, false, "is protected: its secondary is on the host %s", l.mate.host)
	case lockstep.Diverged:
		l.diverged = true
		where := l.mate.keeping.end(l.mate.number, true)
		l.mate.keeping = nil
		l.r.event(EventDiverged, true, "its secondary on the host %s is not the same any more, and is dropped: %s%s", l.mate.host, reasonText(e), keptText(where))
	case lockstep.Waiting:
		l.r.event(EventWaits, true, "the machine has lost its secondary, and waits for its lock to say so: %s", reasonText(e))
	case lockstep.Unprotected:
		why := reasonOf(e.Why)
		if l.diverged {
			why, l.diverged = inventory.PartDivergence, false
		}
		l.parted(why, reasonText(e))
	case lockstep.TookOver: // of a secondary, which this is no more
	}
}

// keptText tells people where a machine is that differs.
func keptText(where string) string {
	if where == "" {
		return ""
	}
	return "; what it was here is in " + where + ", for \"steadfast machine replay\""
}

// parted notes that the life has no secondary any more.
func (l *life) parted(why inventory.PartReason, detail string) {
	was := l.mate
	if was.number == 0 {
		return
	}
	was.cancel()
	was.keeping.end(was.number, false)
	l.mate, l.refused = mate{}, was.number
	l.notePair()
	switch w := l.r.wanted(); {
	case w.pair.number == was.number:
		l.r.say(word{kind: wordParted, pair: was.number, why: why, detail: detail})
		l.r.tellParted(was.host, detail)
	case w.pair.number == 0 && w.parted != "": // its host has said so
		l.r.tellParted(was.host, w.parted)
	default:
		l.r.event(EventUnprotected, false, "has no secondary on the host %s any more, as was asked", was.host)
	}
	if l.after != nil {
		after := l.after
		l.after = nil
		after()
	}
	l.r.notify() // there may be something that waits for this
}

// tellParted tells people that the machine has lost its secondary: of the same reason, while
// attempts at another fail one after the other, every Times.Repeat.
func (r *run) tellParted(host, detail string) {
	text := fmt.Sprintf("is not protected: its secondary on the host %s is no more: %s", host, detail)
	now := time.Now()
	if text == r.partedText && now.Sub(r.partedAt) < r.h.o.Times.Repeat {
		return
	}
	r.partedText, r.partedAt = text, now
	r.event(EventUnprotected, true, "%s", text)
}

// unpaired does something when the life has no secondary: at once, or when that has parted.
// The secondary would else take over what is ended here.
func (l *life) unpaired(do func()) {
	if l.mate.number == 0 {
		do()
		return
	}
	l.after = do
	l.part()
}

// unpairs notes that the life has ended with its pair. A guest that begins anew gets another
// secondary.
func (l *life) unpairs(e end) {
	was := l.mate
	if was.number == 0 {
		return
	}
	was.cancel()
	was.keeping.end(was.number, false)
	l.mate = mate{}
	l.notePair()
	if e.again {
		l.r.say(word{kind: wordParted, pair: was.number, why: inventory.PartUser, detail: e.detail})
	}
}

// notePair notes for people how the pair does.
func (l *life) notePair() {
	m := l.mate
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	if m.number == 0 {
		l.r.told.pair = nil
		return
	}
	l.r.told.pair = &pairTold{number: m.number, other: m.host, protected: m.protected}
}

// pairTold is what is known of a pair for people. It is under run.mu.
type pairTold struct {
	number    uint64
	other     string
	protected bool
	logBytes  int64
	at        time.Time
	rate      float64
}

// measureEvery is how often the log's bandwidth is looked at.
const measureEvery = time.Second

// measure looks at the log's bandwidth: one look after the other.
func (l *life) measure() {
	now := time.Now()
	if !l.mate.begun || now.Sub(l.measured) < measureEvery || !l.measures.CompareAndSwap(false, true) {
		return
	}
	l.measured = now
	l.order("how its pair does", func(ctx context.Context) error {
		defer l.measures.Store(false)
		s, err := l.p.Status(ctx)
		if err == nil && s.Pair != nil {
			l.r.noteLog(s.Pair.LogBytes, time.Now())
		}
		return err
	})
}

func (r *run) noteLog(bytes int64, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.told.pair
	if p == nil {
		return
	}
	if d := now.Sub(p.at); !p.at.IsZero() && bytes >= p.logBytes && d > 0 {
		p.rate = float64(bytes-p.logBytes) / d.Seconds()
	}
	p.logBytes, p.at = bytes, now
}

// HandOver has a machine's secondary take over now. What becomes of it the inventory tells.
// Fails with fault.NotFound, and with fault.Busy when the machine is not protected.
func (h *Host) HandOver(ctx context.Context, machine string) error {
	r, err := h.find(machine)
	if err != nil {
		return err
	}
	answer := make(chan error, 1)
	select {
	case r.hands <- answer:
		return <-answer
	case <-r.done:
	case <-ctx.Done():
	case <-time.After(r.h.o.Times.Force):
	}
	return unprotected(machine)
}

func unprotected(machine string) error {
	return fault.New(fault.Busy, "the machine %q is not protected here now; see \"steadfast ft status %s\"", machine, machine)
}

// handOver has the secondary take over. Frames that come for the machine meanwhile go there, for
// their senders would else wait until they notice that nobody has them.
func (l *life) handOver() error {
	if !l.mate.protected || l.mate.parting || l.stopping || l.resetting {
		return unprotected(l.r.m.Name)
	}
	if l.handing {
		return nil
	}
	l.handing = true
	l.r.tell(Running, "its secondary takes over")
	w := l.mate.pairing
	l.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(l.r.ctx, l.r.h.o.Times.Force)
		defer cancel()
		conn, err := l.linkOnce(ctx, w, lockstep.Session{}, linkFrames)
		if err != nil {
			l.r.h.log.Debug("frames do not follow a machine", "machine", l.r.m.Name, "error", err)
		} else {
			defer conn.Close()
		}
		for _, c := range l.cards {
			c.become(cardHolds)
		}
		if err = l.p.HandOver(ctx); err == nil {
			select {
			case <-l.p.Exited():
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		if err == nil && conn != nil {
			frames := make([][][]byte, len(l.cards))
			for i, c := range l.cards {
				frames[i] = c.become(cardHolds)
			}
			_ = conn.SetDeadline(time.Now().Add(greetingTime))
			_ = sendFrames(conn, frames) // they are lost, as on any network
			return
		}
		if err == nil {
			return
		}
		for _, c := range l.cards {
			for _, frame := range c.become(cardLive) {
				_, _ = c.Conn.Write(frame) // as above
			}
		}
		l.r.tell(Running, "")
		select {
		case l.handed <- struct{}{}:
		case <-l.gone:
		}
	})
	return nil
}

// MemberDied tells that the process of another host has ended: pairs with it need not wait for
// its silence.
func (h *Host) MemberDied(host string) {
	for _, r := range h.all() {
		r.mu.Lock()
		p := r.told.process
		concerned := r.told.pair != nil && r.told.pair.other == host
		r.mu.Unlock()
		if !concerned || p == nil {
			continue
		}
		h.tasks.Go(func() {
			ctx, cancel := context.WithTimeout(h.ctx, h.o.Times.Force)
			defer cancel()
			if err := p.OtherGone(ctx); err != nil {
				h.log.Debug("a machine's process was not told of a death", "machine", r.m.Name, "error", err)
			}
		})
	}
}

// Change implements lockstepio.Lock.
func (k *keeper) Change(ctx context.Context, partner vmlock.Owner) ([vmlock.BlockSize]byte, error) {
	return k.change(ctx, partner)
}

// Take implements lockstepio.Lock: a machine that did not begin as a secondary takes nothing over.
func (k *keeper) Take(context.Context, [vmlock.BlockSize]byte) (b [vmlock.BlockSize]byte, err error) {
	return b, fault.New(fault.Fenced, "the machine's lock is this host's already")
}

// change has the lock say that the machine is one of a pair, or with the zero partner alone.
func (k *keeper) change(ctx context.Context, partner vmlock.Owner) (b [vmlock.BlockSize]byte, err error) {
	select {
	case <-k.changed: // of one that nobody waited for
	default:
	}
	in := vmlock.Change{Partner: partner}
	_, _ = rand.Read(in.Nonce[:]) // it never fails
	k.give(in)
	k.paired.Store(true)
	select {
	case c := <-k.changed:
		if c.err == nil {
			k.paired.Store(partner != vmlock.Owner{})
		}
		return c.block, c.err
	case <-k.over:
		return b, fault.Wrap(fault.Fenced, errOr(k.err, "the lock was given back"), "the machine's lock")
	case <-k.ctx.Done():
		return b, fault.New(fault.Canceled, "the machine's lock is looked after no more")
	case <-ctx.Done():
		return b, fault.Wrap(fault.Canceled, context.Cause(ctx), "the machine's lock")
	}
}

// alone has the lock say that the machine is on this host only, if it may say otherwise: a
// secondary that was not heard of for long could else go on from what is over.
func (k *keeper) alone(ctx context.Context) error {
	for k.paired.Load() {
		if _, err := k.change(ctx, vmlock.Owner{}); err != nil && (ctx.Err() != nil || fault.Is(err, fault.Fenced) || fault.Is(err, fault.Canceled)) {
			return err
		}
	}
	return nil
}

// lockChange is what became of a change of the lock.
type lockChange struct {
	block [vmlock.BlockSize]byte
	err   error
}

// tellChange hands it to who waits for it.
func (k *keeper) tellChange(c lockChange) {
	select {
	case <-k.changed:
	default:
	}
	k.changed <- c
}

func errOr(err error, text string) error {
	if err != nil {
		return err
	}
	return fault.New(fault.Stale, "%s", text)
}

// attempt numbers this host's attempts at a generation of a machine's lock, in this life.
// Fails with fault.Limit when there is no number left.
func (h *Host) attempt(id string, generation uint64) (uint8, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := fmt.Sprintf("%s/%d", id, generation)
	if h.attempts[key] >= vmlock.AttemptMax {
		return 0, fault.New(fault.Limit, "this host has tried to take generation %d of the machine's lock %d times in this life", generation, vmlock.AttemptMax)
	}
	h.attempts[key]++
	return h.attempts[key], nil
}
