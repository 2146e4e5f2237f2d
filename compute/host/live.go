package host

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"steadfast/cluster/placement"
	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
	"steadfast/compute/vmlock"
	"steadfast/compute/vmm"
	"steadfast/fault"
)

// waitingAfter is for how long a disk has to have had no path before people are told.
const waitingAfter = 5 * time.Second

// hold runs the machine, whose lock is held, and gives the lock back if nothing is under way
// then. Of a secondary that has taken over l is the life of the guest that goes on, and f where it
// came from.
func (r *run) hold(k *keeper, l *life, f *follower) end {
	defer k.close()
	defer r.setVolumes(nil)
	e, drained := end{again: true}, true
	if l != nil {
		e, drained = l.carry(f.joined, r.wanted().resets)
		f.image.close()
		f.image = &image{} // what is to follow makes its own
	}
	if e.again && drained {
		e, drained = r.lives(k)
	}
	if !drained || isOver(k) || r.ctx.Err() != nil {
		return e
	}
	r.tell(Stopping, "gives the lock back")
	if err := k.release(r.h.o.Times.Drain); err != nil {
		// The next holder fences what is left of it, as after a crash.
		r.h.log.Warn("a machine's lock was not given back", "machine", r.m.Name, "error", err)
	}
	return e
}

// lives runs the guest from its beginning, as often as it begins anew. drained tells that the
// lock may be given back.
func (r *run) lives(k *keeper) (e end, drained bool) {
	r.tell(Starting, "reads its home volume")
	// Reading may take as long as storage is away: it ends with the volumes.
	unless := context.AfterFunc(r.starting, func() { closeVolumes(k.volumes) })
	b, err := r.boot(r.starting, k.gates[vmlock.Home])
	defer b.close()
	began := unless()
	switch {
	case r.ctx.Err() != nil:
		return end{}, false
	case isOver(k):
		return r.fenced(k), false
	case !began:
		return end{outcome: placement.Stopped, detail: "stopped before it began"}, false // the lock stays as it is
	case err != nil:
		return endOf(err), true
	}
	drained = true
	for again := true; again && drained; again = e.again {
		e, drained = r.live(k, b)
	}
	return e, drained
}

// isOver tells whether the lock is held no more.
func isOver(k *keeper) bool {
	select {
	case <-k.over:
		return true
	default:
		return false
	}
}

// fenced is the end of a machine whose lock another has. What it wants to write is refused; it
// is for the inventory to say where the machine is. One whose lock block is damaged has
// failed: nobody has taken it over.
func (r *run) fenced(k *keeper) end {
	if fault.Is(k.err, fault.Corrupt) {
		return endOf(k.err)
	}
	r.event(EventFenced, true, "another host has taken the machine over: %v", k.err)
	return end{outcome: placement.Superseded, detail: k.err.Error(), found: k.found}
}

// life is one life of the guest.
type life struct {
	r *run
	k *keeper
	p *vmm.Process
	// gone is closed when nobody is there any more who would see what the disks answer.
	gone  chan struct{}
	tasks sync.WaitGroup

	stopping, resetting, forced, off bool
	press, force, kill               <-chan time.Time
	waiting                          map[int]bool // disks without a path that people were told of

	mate     mate
	refused  uint64 // the secondary that there was last: it does not come back
	diverged bool
	handing  bool          // the secondary was asked to take over
	handed   chan struct{} // it was, and did not
	cards    []*card
	after    func() // to be done when there is no secondary
	meets    chan met
	events   chan lockstep.Event // what the process says of its pair
	measured time.Time
	measures atomic.Bool
}

// event is vmm.Pair.Event.
func (l *life) event(e lockstep.Event) {
	select {
	case l.events <- e:
	case <-l.gone:
	}
}

// live runs one life of the guest. drained tells that nothing of it is under way any more.
func (r *run) live(k *keeper, b *image) (e end, drained bool) {
	l := &life{r: r, k: k, gone: make(chan struct{}), waiting: map[int]bool{}, events: make(chan lockstep.Event)}
	r.tell(Starting, "starts its process")
	base := r.wanted().resets
	p, err := l.start(b)
	if err != nil {
		close(l.gone)
		l.tasks.Wait()
		return l.failed(err), false // what its disks were asked ends with the volumes
	}
	l.p = p
	return l.carry(l.wire(b), base)
}

// carry brings a life of the guest, whose process runs, to its end. joined are its network
// cards; base is how often the machine had been reset when it began.
func (l *life) carry(joined *sync.WaitGroup, base uint64) (e end, drained bool) {
	r, k, p := l.r, l.k, l.p
	l.meets, l.handed = make(chan met), make(chan struct{})
	r.begins(p)
	read := make(chan struct{})
	r.console.Connect(p.Console)
	go func() {
		defer close(read)
		_, _ = io.Copy(r.console, p.Console) // it ends with the process
	}()
	l.watch(base)
	if r.ctx.Err() != nil || isOver(k) {
		l.p.Kill()
		<-l.p.Exited()
		close(l.gone)
		k.shut()
		closeVolumes(k.volumes) // what waits there ends
		<-p.Drained()
	} else {
		close(l.gone)
		drained = l.drain()
	}
	r.console.Connect(nil)
	<-read
	joined.Wait()
	e = l.judge()
	if e.outcome == placement.Superseded || e.outcome == placement.Failed && l.mate.begun {
		drained = false // the lock is the secondary's, or to become so: it is not given back
	}
	l.unpairs(e)
	r.mu.Lock()
	r.told.process = nil
	r.mu.Unlock()
	err := p.Close()
	l.tasks.Wait()
	if err != nil {
		r.h.log.Warn("a machine's process was not closed in order", "machine", r.m.Name, "error", err)
	}
	if e.again {
		r.tellAgain(e.detail, l.resetting)
	}
	return e, drained
}

// start starts the process.
func (l *life) start(b *image) (*vmm.Process, error) {
	ctx, cancel := context.WithCancel(l.r.starting)
	defer cancel()
	l.tasks.Go(func() {
		select {
		case <-l.k.over:
			cancel() // a start may wait for disks that answer nothing any more
		case <-ctx.Done():
		}
	})
	if err := l.k.alone(ctx); err != nil {
		return nil, err
	}
	o := vmm.Options{Config: b.config(), Kernel: b.kernel, Initrd: b.initrd, Pair: &vmm.Pair{Lock: l.k, Event: l.event}}
	for i, d := range o.Config.Disks {
		g := l.k.gates[1+i]
		g.begin(d.Size, l.gone)
		if has := g.volume.Size(); has < d.Size {
			return nil, fault.New(fault.Invalid, "the volume %s has %d bytes, and the disk %s %d", l.r.m.Disks[i].Volume, has, l.r.m.Disks[i].Name, d.Size)
		}
		o.Disks = append(o.Disks, vmm.Disk{Device: g, Space: func(err error) { l.r.space(i, err) }})
	}
	return vmm.Start(ctx, o)
}

// failed is the end of a life that did not begin.
func (l *life) failed(err error) end {
	switch {
	case l.r.ctx.Err() != nil:
		return end{}
	case isOver(l.k):
		return l.r.fenced(l.k)
	case l.r.starting.Err() != nil:
		return end{outcome: placement.Stopped, detail: "stopped before it began"}
	}
	return endOf(err)
}

// begins notes that a life of the guest has begun.
func (r *run) begins(p *vmm.Process) {
	r.mu.Lock()
	first := r.told.restarts+r.told.resets == 0
	r.told.process, r.told.phase, r.told.step = p, Running, ""
	if first {
		r.told.since = time.Now()
	}
	r.mu.Unlock()
	if first && !r.took {
		r.event(EventStarted, false, "runs here, as generation %d", r.generation)
	}
}

// tellAgain tells people that the guest begins anew: of one that restarts again and again the
// first time, and then every Times.Repeat how often. Of the run's goroutine.
func (r *run) tellAgain(why string, reset bool) {
	if reset {
		r.event(EventAgain, false, "%s", why)
		return
	}
	r.unsaid++
	if now := time.Now(); r.again.IsZero() || now.Sub(r.again) >= r.h.o.Times.Repeat {
		r.tellUnsaid(why)
		r.again = now
	}
}

// tellUnsaid tells of restarts that people were not told of yet.
func (r *run) tellUnsaid(why string) {
	switch r.unsaid {
	case 0:
		return
	case 1:
		r.event(EventAgain, false, "%s", why)
	default:
		r.event(EventAgain, true, "%s: %d times in %v", why, r.unsaid, time.Since(r.again).Round(time.Second))
	}
	r.unsaid = 0
}

// guestRestarts is why a guest begins anew by itself.
const guestRestarts = "its guest restarts"

// space takes what a disk says of its space.
func (r *run) space(disk int, err error) {
	r.mu.Lock()
	if err != nil {
		r.told.full[disk] = err.Error()
	} else {
		delete(r.told.full, disk)
	}
	r.mu.Unlock()
	if err != nil {
		r.event(EventFull, true, "the machine waits: there is no space for its disk %s: %v", r.m.Disks[disk].Name, err)
	} else {
		r.event(EventRoom, false, "the machine goes on: nothing of its disk %s waits for space", r.m.Disks[disk].Name)
	}
}

// wire joins the network cards.
func (l *life) wire(b *image) *sync.WaitGroup {
	var joined sync.WaitGroup
	for i, a := range b.wires {
		c := &card{Conn: l.p.Wires[i]}
		l.cards = append(l.cards, c)
		joined.Go(func() { l.r.join(i, a, c, l.p.Exited()) })
	}
	return &joined
}

// watch returns when the process has ended, or when it is to: because the lock is lost, or
// the run over.
func (l *life) watch(resets uint64) {
	t := time.NewTicker(l.r.h.o.Times.Check)
	defer t.Stop()
	l.obey(resets)
	for {
		select {
		case <-l.p.Exited():
			return
		case <-l.k.over:
			return
		case <-l.r.ctx.Done():
			return
		case <-l.r.notice:
			l.obey(resets)
		case e := <-l.events:
			l.heard(e)
		case m := <-l.meets:
			l.hasMet(m)
		case answer := <-l.r.hands:
			answer <- l.handOver()
		case <-l.handed:
			l.handing = false
			l.obey(resets)
		case <-l.press:
			l.pressPower()
		case <-l.force:
			l.end()
		case <-l.kill:
			l.kill = nil
			l.p.Kill()
		case <-t.C:
			l.look()
			l.measure()
		}
	}
}

// obey does what the inventory wants now.
func (l *life) obey(resets uint64) {
	w := l.r.wanted()
	switch {
	case w.off && !l.off:
		l.stopping, l.off = true, true
		l.r.tell(Stopping, "its process is ended")
		l.press, l.force = nil, nil
		l.kill = time.After(offPatience)
		l.unpaired(l.p.Kill)
	case w.leave && !l.stopping && l.mate.protected:
		_ = l.handOver() // it does already, or is about to
	case w.stop && !l.stopping:
		l.stopping = true
		l.r.tell(Stopping, "its power button was pressed")
		l.pressPower()
		l.force = time.After(l.r.h.o.Times.Grace)
	case w.resets != resets && !l.stopping && !l.resetting:
		l.resetting = true
		l.end()
	default:
		l.pairUp()
	}
}

// offPatience is how long a machine that is to end at once waits for its secondary to be told.
const offPatience = time.Second

// pressPower presses the power button, and does so again later.
func (l *life) pressPower() {
	l.order("its power button is pressed", l.p.PressPower)
	l.press = time.After(l.r.h.o.Times.Press)
}

// end has the process end its machine at once.
func (l *life) end() {
	l.press, l.force, l.forced = nil, nil, true
	if l.stopping {
		l.r.tell(Stopping, "its guest has not powered off, and is ended")
	}
	l.kill = time.After(l.r.h.o.Times.Force)
	l.unpaired(func() { l.order("it is to end", l.p.Stop) })
}

// order has the process do something, for as long as somebody may want it.
func (l *life) order(what string, do func(context.Context) error) {
	l.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), l.r.h.o.Times.Force)
		defer cancel()
		if err := do(ctx); err != nil && !fault.Is(err, fault.Stale) {
			l.r.h.log.Warn("a machine's process was not told", "machine", l.r.m.Name, "what", what, "error", err)
		}
	})
}

// look tells people of disks that have no path, and that they have one again.
func (l *life) look() {
	for i, v := range l.k.volumes[1:] {
		since := v.State().Waiting
		name := l.r.m.Disks[i].Name
		switch {
		case since >= waitingAfter && !l.waiting[i]:
			l.waiting[i] = true
			l.r.event(EventWaits, true, "the disk %s has had no path for %v; the machine waits for it", name, since.Round(time.Second))
		case since == 0 && l.waiting[i]:
			delete(l.waiting, i)
			l.r.event(EventRoom, false, "the disk %s has a path again", name)
		}
	}
}

// drain waits until all has ended that the process had asked of the disks: without end while
// another life of the guest is to follow, and else for Times.Drain.
func (l *life) drain() bool {
	r := l.r
	var late <-chan time.Time
	stop := r.starting.Done()
	if _, follows := l.follows(); follows {
		r.tell(Starting, "waits for what the life before has asked of its disks")
	} else {
		r.tell(Stopping, "what it has written is on its way")
		late, stop = time.After(r.h.o.Times.Drain), nil
	}
	for {
		select {
		case <-l.p.Drained():
			return true
		case <-stop:
			stop, late = nil, time.After(r.h.o.Times.Drain)
			continue
		case <-late:
		case <-l.k.over:
		case <-r.ctx.Done():
		}
		break
	}
	l.k.shut()
	closeVolumes(l.k.volumes)
	<-l.p.Drained()
	return false
}

// follows tells whether another life of the guest is to follow this one, as far as the guest
// is concerned, and what to say of it.
func (l *life) follows() (why string, follows bool) {
	s, err := l.p.Wait()
	switch {
	case l.stopping:
		return "", false
	case err == nil && s.End == machine.Restarts:
		return guestRestarts, true
	case l.resetting && (err != nil || s.End == machine.Running):
		return "it was reset", true
	}
	return "", false
}

// judge says how the life ended.
func (l *life) judge() end {
	r := l.r
	s, err := l.p.Wait()
	switch {
	case err == nil && s.End == machine.PoweredOff:
		return end{outcome: placement.Shutdown, detail: "its guest powered off"}
	case err == nil && s.End == machine.Wedged:
		return end{outcome: placement.Panicked, detail: "its processor can do nothing any more: its trap handler traps"}
	case r.ctx.Err() != nil:
		return end{}
	case isOver(l.k):
		return r.fenced(l.k)
	case fault.Is(err, fault.Fenced):
		return end{outcome: placement.Superseded, detail: err.Error()}
	case l.stopping && err == nil && s.End == machine.Restarts:
		return end{outcome: placement.Shutdown, detail: "its guest restarted when it was to stop"}
	case l.off:
		return end{outcome: placement.Stopped, detail: "ended by force, as was asked"}
	case l.stopping && l.forced:
		return end{outcome: placement.Stopped, detail: fmt.Sprintf("ended by force: its guest had not powered off in %v", r.h.o.Times.Grace)}
	}
	if why, again := l.follows(); again {
		if r.starting.Err() != nil {
			return end{outcome: placement.Stopped, detail: "stopped while it began anew"}
		}
		r.mu.Lock()
		if l.resetting {
			r.told.resets++
		} else {
			r.told.restarts++
		}
		r.mu.Unlock()
		return end{detail: why, again: true}
	}
	if err == nil {
		err = fault.New(fault.Internal, "the machine's process was stopped by nobody")
	}
	return endOf(err)
}
