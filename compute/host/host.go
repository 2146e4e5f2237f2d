package host

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"steadfast/cluster/inventory"
	"steadfast/cluster/placement"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/compute/vmlock"
	"steadfast/fault"
	"steadfast/iscsi"
)

// Host runs machines. Its methods may be called by several goroutines.
type Host struct {
	o      Options
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	changed  chan struct{} // the inventory, or a run, may have
	speaking chan struct{} // there may be something to be said

	mu     sync.Mutex
	life   string // what this life calls itself
	lives  int    // that this process has begun
	boot   uint32 // its number; 0: it is not entered
	why    error  // why it is not
	opened uint32 // ISIDs that were given
	// attempts are those at machines' locks in this life, by machine and generation.
	attempts map[string]uint8
	runs     map[string]*run
}

// Open begins to run machines: it enters a life of this host, and follows the inventory from
// then on. Close is to follow. Fails with fault.Invalid.
func Open(o Options) (*Host, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := o.clearKeeping(); err != nil {
		o.Log.Warn("what was left of pairs takes space", "error", err)
	}
	h := &Host{
		o: o, log: o.Log, runs: map[string]*run{},
		changed: make(chan struct{}, 1), speaking: make(chan struct{}, 1),
	}
	h.begin()
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.tasks.Go(h.follow)
	h.tasks.Go(h.speak)
	return h, nil
}

// begin names a life of the host, which is not entered yet: the number of the member's
// life, a count, and what no member of another directory has under the same numbers. Under
// mu, or before the host is known.
func (h *Host) begin() {
	var id [8]byte
	_, _ = rand.Read(id[:]) // it never fails
	h.lives++
	h.attempts = map[string]uint8{}
	h.life, h.boot = fmt.Sprintf("%d.%d.%s", h.o.Boot, h.lives, hex.EncodeToString(id[:])), 0
}

// Leave ends all machines at once, as Close does, and has the inventory say so: what is to run
// is started on another host without waiting for this one's silence, and it is no failure that
// counts against a machine. Close is to follow. Fails with fault.Unreachable when the quorum
// does not decide before ctx ends: then the host is lost, as if it had crashed.
func (h *Host) Leave(ctx context.Context) error {
	h.handOverAll(ctx)
	h.cancel()
	h.tasks.Wait() // nothing else begins or says anything from here on
	if h.boot == 0 {
		return nil
	}
	return quorumio.Update(ctx, h.o.Member, func(inv quorum.Inventory) ([]quorum.Edit, error) {
		v, _ := inventory.Read(inv.Entries) // what cannot be read stays as it is
		return h.leaving(v, time.Now().UnixNano())
	})
}

// handOverAll has the secondaries of this host's machines take over.
func (h *Host) handOverAll(ctx context.Context) {
	var all sync.WaitGroup
	for _, r := range h.all() {
		all.Go(func() {
			if h.HandOver(ctx, r.m.Name) != nil {
				return // it has none, and ends with this host
			}
			select {
			case <-r.done:
			case <-ctx.Done():
			}
		})
	}
	all.Wait()
}

// leaving is the change that ends this life, with all placements that are of it.
func (h *Host) leaving(v *inventory.View, now int64) ([]quorum.Edit, error) {
	life := v.Lives[h.o.Name]
	if life == nil || life.ID != h.life || life.State != inventory.Up {
		return nil, nil // it is over already
	}
	report := placement.Report{Host: h.o.Name, Boot: life.Boot}
	for name, p := range v.Placements {
		if !p.Active() || p.Host != h.o.Name || p.Boot != life.Boot {
			continue
		}
		if s := p.Second; s != nil && v.Standing(s.Host, s.Boot) {
			continue // it goes on there
		}
		how := placement.Machine{Name: name, Generation: p.Generation, Outcome: placement.Stopped, Detail: "the process of its host was ended"}
		if r := h.runs[name]; r != nil && r.present(p, h.o.Name) && r.outcome != nil {
			how = *r.outcome // it had ended by itself
		}
		report.Machines = append(report.Machines, how)
	}
	word := []placement.Heard{{Node: quorum.Member(h.o.Name), Hosts: []placement.Report{report}}}
	var ends []placement.Decision
	for _, d := range placement.Decide(v, word, now) {
		if e, is := d.(placement.End); is && slices.ContainsFunc(report.Machines, func(m placement.Machine) bool { return m.Name == e.Machine }) {
			ends = append(ends, e)
		}
	}
	edits, err := placement.Edits(v, ends, now)
	if err != nil {
		return nil, err
	}
	left, err := v.HostLeft(h.o.Name, life.Boot, now)
	return append(edits, left...), err
}

// Close ends all machines at once, as the end of this process would, and returns when
// nothing of them is left. Who wants their guests to be shut down has the host in
// maintenance first.
func (h *Host) Close() error {
	h.cancel()
	h.tasks.Wait()
	return nil
}

// wake has the inventory looked at.
func (h *Host) wake() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// isid returns a session name that no other nexus of this host has had, as far as anybody
// remembers: the host's life, and a count in it. RFC 7143, 11.12.5, type "random"
// (T = 10b): 40 bits after the type.
func (h *Host) isid() (isid iscsi.ISID, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.opened > isidCountMax || h.boot == 0 {
		return isid, fault.New(fault.Limit, "this host has opened %d volumes in life %d, and begins another when its process is started again", h.opened, h.boot)
	}
	n := uint64(h.boot)<<20 | uint64(h.opened)
	h.opened++
	isid[0] = 0x80
	for i := range 5 {
		isid[5-i] = byte(n >> (8 * i))
	}
	return isid, nil
}

// isidCountMax bounds what a life opens: 20 bits, beside 20 of the life's number.
const isidCountMax = 1<<20 - 1

// follow is the goroutine that follows the inventory.
func (h *Host) follow() {
	stop := h.o.Member.Watch(func(*quorum.State) { h.wake() })
	defer stop()
	var retry <-chan time.Time
	told := ""
	for {
		select {
		case <-h.ctx.Done():
			h.endAll(errClosed)
			return
		case <-h.changed:
		case <-retry:
		}
		retry = nil
		err := h.look()
		told = h.tellWhy(err, told)
		if err != nil && !fault.Is(err, fault.NotFound) { // that changes with the inventory only
			retry = time.After(h.o.Times.Retry)
		}
	}
}

// tellWhy logs why this host is not up, unless it was told so before; it returns what was told.
func (h *Host) tellWhy(err error, told string) string {
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == told || text == "" || h.ctx.Err() != nil:
	case fault.Is(err, fault.NotFound):
		h.log.Info("this host waits to be added to a cluster of hosts", "command", "steadfast host add "+h.o.Name, "reason", err)
	default:
		h.log.Warn("this host is not up; it tries again", "error", err)
	}
	return text
}

// look looks at the inventory, and does what it wants of this host.
func (h *Host) look() error {
	v, err := inventory.Read(h.o.Member.State().Inventory.Entries)
	if err != nil {
		h.log.Warn("a part of the inventory cannot be read", "error", err)
	}
	if unread(v, "life/"+h.o.Name) || unread(v, "host/"+h.o.Name) {
		return fault.New(fault.Stale, "a newer program wrote what the inventory says of this host; upgrade it")
	}
	life := v.Lives[h.o.Name]
	mine := life != nil && life.ID == h.life
	h.mu.Lock()
	boot := h.boot
	h.mu.Unlock()
	if mine && life.State != inventory.Up || boot != 0 && !mine {
		h.evict()
		mine = false
	}
	if !mine {
		err := h.enter()
		h.mu.Lock()
		h.why = err
		h.mu.Unlock()
		return err
	}
	if boot != life.Boot {
		h.mu.Lock()
		h.boot, h.opened, h.why = life.Boot, 0, nil
		h.mu.Unlock()
		h.o.Event(Event{Type: EventHostUp, Text: fmt.Sprintf("this host is up, in its life %d", life.Boot)})
	}
	h.reconcile(v, life.Boot)
	return nil
}

// unread tells whether a document is there that cannot be read.
func unread(v *inventory.View, key string) bool {
	for _, k := range v.Unread {
		if k == key {
			return true
		}
	}
	return false
}

// evict ends a life of this host that is over: its machines first.
func (h *Host) evict() {
	h.o.Event(Event{Type: EventHostOver, Trouble: true, Text: "this host was declared lost, or began elsewhere: its machines are ended"})
	h.endAll(errEvicted)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.begin()
}

// endAll ends all runs at once, and returns when they have ended.
func (h *Host) endAll(why error) {
	all := h.all()
	for _, r := range all {
		r.cancel(why)
	}
	for _, r := range all {
		<-r.done
	}
}

// enter enters this life.
func (h *Host) enter() error {
	ctx, cancel := context.WithTimeout(h.ctx, h.o.Times.Edit)
	defer cancel()
	life := inventory.HostLife{
		Host: h.o.Name, ID: h.life, Program: h.o.Program, Build: h.o.Build, Memory: h.o.Memory, CPUs: h.o.CPUs, Box: h.o.Box, Private: h.o.Private,
	}
	return quorumio.Update(ctx, h.o.Member, func(inv quorum.Inventory) ([]quorum.Edit, error) {
		v, _ := inventory.Read(inv.Entries) // HostUp refuses what it cannot judge
		_, edits, err := v.HostUp(life, time.Now().UnixNano())
		return edits, err
	})
}

// reconcile begins what is placed here, tells runs what is wanted of them, and ends those that
// are not this host's any more.
func (h *Host) reconcile(v *inventory.View, boot uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, p := range v.Placements {
		primary := p.Host == h.o.Name && p.Boot == boot
		if !p.Active() || !primary && (p.Second == nil || p.Second.Host != h.o.Name || p.Second.Boot != boot) {
			continue
		}
		m, me := v.Machines[name], v.Hosts[h.o.Name]
		if m == nil || me == nil || v.Datastores[m.Datastore] == nil {
			continue // a newer program wrote of it: what runs goes on
		}
		w := wants{stop: m.Desired != inventory.Running || m.Run != p.Run, off: m.Desired == inventory.Off, resets: m.Resets}
		if primary {
			w.leave = p.Leave && !w.stop
			w.stop = w.stop || w.leave
			w.pair = wantedPair(v, p)
			if d := p.Parted; p.Second == nil && d != nil && d.Why != inventory.PartUser {
				w.parted = d.Detail
			}
		} else {
			w.alone = !v.Standing(p.Host, p.Boot) && !unread(v, "life/"+p.Host)
		}
		r := h.runs[name]
		if r != nil && r.present(p, h.o.Name) {
			r.want(w)
			continue
		}
		if r != nil {
			r.cancel(errOver)
		}
		owner := vmlock.Owner{Host: me.Number, Boot: boot}
		h.runs[name] = newRun(h, m, v.Datastores[m.Datastore].Group, owner, p, w, r)
	}
	for name, r := range h.runs {
		p := v.Placements[name]
		if unread(v, "placement/"+name) || r.present(p, h.o.Name) && (r.me.Boot == boot || r.saying()) {
			continue
		}
		r.cancel(errOver)
		select {
		case <-r.done:
			delete(h.runs, name)
		default: // it wakes this when it has ended
		}
	}
}

// present tells whether a placement is the one that is run: not that of another machine, which got
// the name of one that was deleted, and counts its generations anew.
func (r *run) present(p *inventory.Placement, host string) bool {
	if !p.Active() || p.ID != r.m.ID || p.Generation != r.generation {
		return false
	}
	if s := p.Second; r.pair != 0 && s != nil && s.Pair == r.pair && s.Host == host && s.Boot == r.me.Boot {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return p.Host == host && p.Boot == r.me.Boot && (r.pair == 0 || r.took)
}

// saying tells whether there is something to be said of how the machine ended.
func (r *run) saying() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.outcome != nil
}

// wantedPair is the secondary that the inventory wants of a machine.
func wantedPair(v *inventory.View, p *inventory.Placement) pairing {
	s := p.Second
	if s == nil || v.Hosts[s.Host] == nil {
		return pairing{}
	}
	return pairing{number: s.Pair, host: s.Host, owner: vmlock.Owner{Host: v.Hosts[s.Host].Number, Boot: s.Boot}}
}
