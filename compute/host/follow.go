package host

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"steadfast/block"
	"steadfast/cluster/inventory"
	"steadfast/compute/lockstep"
	"steadfast/compute/vmlock"
	"steadfast/compute/vmm"
	"steadfast/fault"
)

// This file is a run that begins as a machine's secondary:
//
//	opening --> waiting --> following --------------------> running, as any other
//	 volumes     links        vmm         TookOver
//	 networks                  |
//	                           +--> the pair has ended

// follower is a run while it follows.
type follower struct {
	r *run
	p *vmm.Process
	// volumes are opened beforehand, for the first attempt at the lock: they have carried
	// nothing.
	volumes []Volume
	late    []*lateDisk
	image   *image
	cards   []*card
	joined  *sync.WaitGroup
	gone    chan struct{} // of the guest's life here
	lives   chan struct{} // closed when that goes on here
	links   sync.WaitGroup
	events  chan lockstep.Event
	keeping *keeping

	mu   sync.Mutex
	k    *keeper
	over bool // nothing is to be taken any more
}

// follow is a secondary's run, from beginning to end.
func (r *run) follow() end {
	f := &follower{r: r, image: &image{}, joined: &sync.WaitGroup{}, gone: make(chan struct{}), lives: make(chan struct{}), events: make(chan lockstep.Event)}
	defer f.links.Wait()
	defer func() {
		f.image.close()
		f.keeping.end(r.pair, false)
	}()
	err := f.prepare()
	if err == nil {
		err = f.start()
	}
	if err != nil {
		close(f.gone)
		f.closeUnused()
		if r.starting.Err() == nil {
			why := inventory.PartHardware
			if r.meeting.Err() != nil && errors.Is(err, errAlone) {
				// Whoever places the machine waits for this word.
				why, err = inventory.PartLostConnection, errAlone
			}
			r.event(EventUnprotected, true, "has no secondary here: %v", err)
			r.say(word{kind: wordParted, why: why, detail: err.Error()})
		}
		return end{}
	}
	r.mu.Lock()
	r.told.process, r.told.phase, r.told.step, r.told.since = f.p, Following, "", time.Now()
	r.follower = f
	r.mu.Unlock()
	why, detail, over := f.watch()
	if over {
		f.stop()
		if r.ctx.Err() == nil {
			r.say(word{kind: wordParted, why: why, detail: detail})
		}
		return end{}
	}
	return f.live(why, detail)
}

// prepare opens what the machine will need if it goes on here.
func (f *follower) prepare() (err error) {
	r := f.r
	r.tell(Starting, "opens its volumes")
	if f.volumes, err = r.openFor(r.meeting); err != nil {
		return err
	}
	for i, n := range r.m.Nets {
		a, err := r.h.o.Attach(r.meeting, r.m.Name, i, n)
		if err != nil {
			return fault.Wrap(fault.KindOf(err), err, "the network "+n.Network)
		}
		f.image.wires = append(f.image.wires, a)
	}
	return nil
}

// start waits for the primary's links, and starts the process.
func (f *follower) start() error {
	r := f.r
	r.tell(Waiting, "waits for the machine's host")
	links, err := f.await()
	if err != nil {
		return err
	}
	o := vmm.Options{Nets: len(r.m.Nets), Pair: &vmm.Pair{Lock: f, Event: f.event}}
	for i, d := range r.m.Disks {
		late := &lateDisk{size: d.Bytes, is: make(chan struct{}), gone: f.gone}
		f.late = append(f.late, late)
		o.Disks = append(o.Disks, vmm.Disk{Device: late, Space: func(err error) { r.space(i, err) }})
	}
	f.keeping = r.keepFiles()
	s := &vmm.Secondary{Me: r.me, Session: links[0].Session, MemoryMax: r.m.Memory, Kept: f.keeping.kept()}
	o.Secondary = s
	r.tell(Starting, "starts its process")
	var ours [lockstep.Links]net.Conn
	for i, to := range []**os.File{&s.Logging, &s.Management} {
		if ours[i], *to, err = channel(); err != nil {
			break
		}
		defer (*to).Close()
	}
	if err == nil {
		f.p, err = vmm.Start(r.starting, o)
	}
	for i, a := range links {
		if werr := sendWord(a.conn, welcome{vmm.FailureOf(err)}); werr != nil || err != nil {
			// Who waits there sees its end, and so does the process.
			close(a.over)
			if ours[i] != nil {
				_ = ours[i].Close()
			}
			continue
		}
		f.links.Go(func() {
			defer close(a.over)
			relay(a.conn, ours[i])
		})
	}
	if err != nil {
		return err
	}
	for i, a := range f.image.wires {
		c := &card{Conn: f.p.Wires[i], state: cardQuiet}
		f.cards = append(f.cards, c)
		f.joined.Go(func() { r.join(i, a, c, f.p.Exited()) })
	}
	return nil
}

// await returns the two links of one session.
func (f *follower) await() (links [lockstep.Links]arrival, err error) {
	r := f.r
	drop := func() {
		for _, a := range links {
			if a.over != nil {
				close(a.over)
			}
		}
	}
	patience := time.NewTimer(r.h.o.Times.Links)
	defer patience.Stop()
	for {
		select {
		case a := <-r.links:
			if a.Link >= lockstep.Links || links[a.Link].over != nil || a.Session != links[1-a.Link].Session && links[1-a.Link].over != nil {
				// The primary's host has begun anew.
				drop()
				links = [lockstep.Links]arrival{}
				if a.Link >= lockstep.Links {
					close(a.over)
					continue
				}
			}
			links[a.Link] = a
			if links[0].over != nil && links[1].over != nil {
				return links, nil
			}
		case <-r.meeting.Done():
			drop()
			return links, fault.Wrap(fault.Canceled, context.Cause(r.meeting), "a secondary")
		case <-patience.C:
			drop()
			return links, fault.New(fault.Unreachable, "the machine's host has not connected for %v", r.h.o.Times.Links)
		}
	}
}

// event is vmm.Pair.Event.
func (f *follower) event(e lockstep.Event) {
	select {
	case f.events <- e:
	case <-f.gone:
	}
}

// watch returns when the lock is this host's, or the pair has ended: over.
func (f *follower) watch() (why inventory.PartReason, detail string, over bool) {
	why, detail = inventory.PartLostConnection, "its secondary has ended"
	for {
		select {
		case e := <-f.events:
			switch e.Kind {
			case lockstep.TookOver:
				return reasonOf(e.Why), reasonText(e), false
			case lockstep.Diverged:
				where := f.keeping.end(f.r.pair, true)
				f.keeping = nil
				f.r.event(EventDiverged, true, "its secondary here is not the same any more: %s%s", reasonText(e), keptText(where))
				why, detail = inventory.PartDivergence, reasonText(e)
			case lockstep.Waiting:
				f.r.event(EventWaits, true, "the machine is to go on here, and waits for its lock: %s", reasonText(e))
			case lockstep.Unprotected:
				why, detail = reasonOf(e.Why), reasonText(e)
			case lockstep.Protected:
			}
		case <-f.p.Exited():
			if _, err := f.p.Wait(); err != nil && detail == "its secondary has ended" {
				detail = err.Error()
			}
			return why, detail, true
		case <-f.r.ctx.Done():
			return why, detail, true
		case <-f.r.notice:
			if f.r.wanted().off {
				return inventory.PartUser, "ended by force, as was asked", true
			}
		}
	}
}

// stop ends a secondary that did not take over, or that is over.
func (f *follower) stop() {
	f.p.Kill()
	<-f.p.Exited()
	close(f.gone)
	f.mu.Lock()
	k := f.k
	f.over = true
	f.mu.Unlock()
	if k != nil {
		k.close()
	}
	f.closeUnused()
	<-f.p.Drained()
	f.r.mu.Lock()
	f.r.told.process = nil
	f.r.mu.Unlock()
	if err := f.p.Close(); err != nil {
		f.r.h.log.Warn("a secondary's process was not closed in order", "machine", f.r.m.Name, "error", err)
	}
	f.joined.Wait()
}

// closeUnused closes the volumes that were opened for an attempt which there was not.
func (f *follower) closeUnused() {
	f.mu.Lock()
	volumes := f.volumes
	f.volumes = nil
	f.mu.Unlock()
	closeVolumes(volumes)
	f.r.setVolumes(nil)
}

// live runs the machine, which is this host's now, to its end.
func (f *follower) live(why inventory.PartReason, detail string) end {
	r := f.r
	for _, c := range f.cards {
		c.become(cardLive)
	}
	close(f.lives)
	r.mu.Lock()
	r.took = true
	r.mu.Unlock()
	r.say(word{kind: wordTookOver, why: why, detail: detail})
	r.event(EventTookOver, why != inventory.PartUser, "goes on here, for its host was lost to it (%s): generation %d", detail, r.generation)
	f.mu.Lock()
	k := f.k
	f.mu.Unlock()
	l := &life{r: r, k: k, p: f.p, gone: f.gone, waiting: map[int]bool{}, events: f.events, cards: f.cards}
	return r.hold(k, l, f)
}

// frames gives the machine what came for it where it was, once it goes on here.
func (f *follower) frames(conn net.Conn) {
	select {
	case <-f.lives:
	case <-f.gone:
		return
	}
	for {
		n, frame, err := readFrame(conn)
		if err != nil || n >= len(f.cards) {
			return // all that there is, or what cannot be
		}
		if _, err := f.cards[n].Conn.Write(frame); err != nil {
			return // the machine has ended
		}
	}
}

// Change implements lockstepio.Lock, for when the machine has gone on here.
func (f *follower) Change(ctx context.Context, partner vmlock.Owner) (b [vmlock.BlockSize]byte, err error) {
	f.mu.Lock()
	k := f.k
	f.mu.Unlock()
	if k == nil {
		return b, fault.New(fault.Fenced, "the machine's lock was not taken over yet")
	}
	return k.change(ctx, partner)
}

// Take implements lockstepio.Lock.
func (f *follower) Take(ctx context.Context, from [vmlock.BlockSize]byte) (b [vmlock.BlockSize]byte, err error) {
	pairing, err := vmlock.Decode(from)
	if err != nil {
		return b, fault.Wrap(fault.Fenced, err, "the lock of the pair")
	}
	for {
		k, err := f.attempt(ctx, pairing, from)
		if err != nil {
			if ctx.Err() != nil || !fault.Is(err, fault.Busy) && !fault.Is(err, fault.Unreachable) {
				return b, fault.Wrap(fault.Fenced, err, "taking the machine's lock over")
			}
			pause(ctx, f.r.h.o.Times.Retry)
			continue
		}
		f.mu.Lock()
		over := f.over
		if !over {
			f.k = k
		}
		f.mu.Unlock()
		if over {
			k.close()
			return b, fault.New(fault.Canceled, "the secondary has ended")
		}
		for i, late := range f.late {
			k.gates[1+i].begin(late.size, f.gone)
			late.become(k.gates[1+i])
		}
		return k.block, nil
	}
}

// attempt makes one attempt at the lock.
func (f *follower) attempt(ctx context.Context, pairing vmlock.Block, from [vmlock.BlockSize]byte) (*keeper, error) {
	r := f.r
	n, err := r.h.attempt(r.m.ID, pairing.Generation)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	volumes := f.volumes
	f.volumes = nil
	f.mu.Unlock()
	if volumes == nil {
		if volumes, err = r.openFor(ctx); err != nil {
			return nil, err
		}
	}
	id, err := vmlock.ParseID(r.m.ID)
	var k *keeper
	if err == nil {
		cfg := vmlock.Config{VM: id, Me: r.me, Generation: pairing.Generation, Attempt: n, Pairing: &from}
		k, err = newKeeper(cfg, volumes, r.h.o.Times.Check, func(err error) {
			r.h.log.Warn("a look at a machine's lock failed", "machine", r.m.Name, "error", err)
		})
	}
	if err != nil {
		closeVolumes(volumes)
		return nil, err
	}
	select {
	case <-k.held:
		return k, nil
	case <-k.over:
		err = k.err
	case <-ctx.Done():
		err = fault.Wrap(fault.Canceled, context.Cause(ctx), "taking the machine's lock over")
	}
	k.close()
	r.setVolumes(nil)
	return nil, err
}

// lateDisk is a disk of a machine that follows: it becomes a volume's when the lock is held.
// Nobody asks it for anything before.
type lateDisk struct {
	size int64
	is   chan struct{} // closed: gate is set
	gate *gate
	gone chan struct{}
}

var _ block.Device = (*lateDisk)(nil)

func (d *lateDisk) become(g *gate) {
	d.gate = g
	close(d.is)
}

// wait returns when the disk is there, or nobody needs it.
func (d *lateDisk) wait() error {
	select {
	case <-d.is:
		return nil
	case <-d.gone:
		return fault.New(fault.Fenced, "the secondary has not taken the machine over")
	}
}

// ReadAt implements block.Device.
func (d *lateDisk) ReadAt(p []byte, off int64) error {
	if err := d.wait(); err != nil {
		return err
	}
	return d.gate.ReadAt(p, off)
}

// WriteAt implements block.Device.
func (d *lateDisk) WriteAt(p []byte, off int64, flags block.Flags) error {
	if err := d.wait(); err != nil {
		return err
	}
	return d.gate.WriteAt(p, off, flags)
}

// Flush implements block.Device.
func (d *lateDisk) Flush() error {
	if err := d.wait(); err != nil {
		return err
	}
	return d.gate.Flush()
}

// Trim implements block.Device.
func (d *lateDisk) Trim(off, n int64) error {
	if err := d.wait(); err != nil {
		return err
	}
	return d.gate.Trim(off, n)
}

// Zero implements block.Device.
func (d *lateDisk) Zero(off, n int64, flags block.Flags) error {
	if err := d.wait(); err != nil {
		return err
	}
	return d.gate.Zero(off, n, flags)
}

// CompareAndWrite implements block.Device.
func (d *lateDisk) CompareAndWrite(off int64, old, data []byte, flags block.Flags) (int64, error) {
	if err := d.wait(); err != nil {
		return 0, err
	}
	return d.gate.CompareAndWrite(off, old, data, flags)
}

// Size implements block.Device.
func (d *lateDisk) Size() int64 {
	select {
	case <-d.is:
		return d.gate.Size()
	default:
		return d.size
	}
}

// reasonOf is the paper's word for why a pair ended.
func reasonOf(w lockstep.Why) inventory.PartReason {
	switch w {
	case lockstep.WhyAsked, lockstep.WhyFinished, lockstep.WhyHandedOver:
		return inventory.PartUser
	case lockstep.WhyDiverged:
		return inventory.PartDivergence
	case lockstep.WhyFailed, lockstep.WhyLock, lockstep.WhyTooFast, lockstep.WhySlow:
		return inventory.PartHardware
	default:
		return inventory.PartLostConnection
	}
}

// reasonText is an event's reason for people.
func reasonText(e lockstep.Event) string {
	if e.Err != nil {
		return e.Why.String() + ": " + e.Err.Error()
	}
	return e.Why.String()
}
