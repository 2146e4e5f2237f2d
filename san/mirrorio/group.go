// Package mirrorio joins the mirror to its I/O: whoever brings an input steps a
// group's core, and others store, read and send for it.
//
//	clients ---> Volume ---\                 /---> store (the client, or a goroutine an operation)
//	peer ------> link -----+---> the core ---+---> link (its writer, or who stepped the core)
//	quorum, clock ---------/                 \---> quorum
//
// Every input goes through one queue, and one goroutine at a time, the driver, takes
// them from it: the core sees one order. See drive.go. What is under way is bounded
// by who asks: a client's queue depth, the resync's Copies, and what the peer has
// under way. A driver never waits for a drive, a peer or a client. Reads of an owner
// go past the core where that is as good: see direct.go.
//
// Locks: Group.pins.mu is above the store's; Group.mu (requests), inbox.mu and link.mu (its queue) are leaves; Group.direct is
// held while a client reads past the core, or stores its own write; never while the core is stepped.
package mirrorio

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/san/mirror"
)

// Store is what a group's volumes lie in on this node. Volumes have the numbers
// that both nodes know them by.
type Store interface {
	// Apply makes a change; when it returns nil it is stable if durable is set,
	// and else survives the death of this process.
	// When it returns fault.Full or fault.Corrupt nothing was stored.
	Apply(volume uint32, c *Change, durable bool) error
	Read(volume uint32, p []byte, off int64) error
	// TryRead is Read if that needs no waiting, and else returns false.
	TryRead(volume uint32, p []byte, off int64) bool
	// Ready tells whether a change up to the byte end of a volume can be made, or
	// could be when changed is closed.
	Ready(volume uint32, end int64) (r Readiness, changed <-chan struct{})
	// Flush makes stable what was applied before.
	Flush() error
	// Position is at or above every change that has returned.
	Position() mirror.Position
	// Changed lists the blocks that were changed after a position. Of a volume of
	// which that is not known, or that is in whole, it lists all that is there; and
	// of the former a range of no blocks.
	Changed(since mirror.Position, whole []uint32) ([]mirror.Range, error)
	// SavePosition keeps a position; it may be lost, with the position before
	// kept instead.
	SavePosition(p mirror.Position) error
}

// Readiness is whether a store can change a part of a volume.
type Readiness uint8

// Readiness of a volume.
const (
	Ready  Readiness = iota
	NotYet           // it is not there yet, or not that large
	Gone             // it was removed: what comes for it is of no use any more
)

// Options are what a group is run with. All up to Tick are required.
type Options struct {
	Mirror mirror.Config
	Store  Store
	// Now reads CLOCK_BOOTTIME.
	Now func() group.Instant
	// Propose puts a command to the quorum. It must not wait; what it loses is
	// proposed again.
	Propose func(quorum.Command)
	Log     *slog.Logger
	// Tick is how often time is looked at.
	Tick time.Duration

	// Stood is told when the standing has changed. The driver calls it: it must not
	// wait, nor call the group.
	Stood func(group.Standing)
	// Act does the action of a Barrier on this node: what was ordered before is in
	// the store, and nothing that is ordered after. It may be called again with an
	// action that it did, and then has nothing to do. An error of the kinds Full,
	// Limit, Exists, NotFound, Busy, Invalid, Denied, ReadOnly or Stale refuses it,
	// for both nodes; any other ends this node's part in the group.
	Act func(action []byte) error
	// Undo takes an action back that the other node refused, or does nothing when
	// it was not done. An error ends this node's part.
	Undo func(action []byte) error
	// Healed is told what became of n bytes of a volume that could not be read on
	// this node for their checksum: nil, and they are what the other node had; or
	// why not. The driver calls it.
	Healed func(volume uint32, off, n int64, err error)
	// ResyncBegins keeps the state of this node's volumes before a resync changes
	// them; while it fails nothing is copied. When one is kept of a resync that did
	// not end, be it of a former life, it must stay that one.
	ResyncBegins func() error
	// ResyncEnded tells the end of a resync of this node, from the driver: ok, and
	// what ResyncBegins kept can go; or it was cut off, and may go on.
	ResyncEnded func(ok bool)
}

// Group is one group on this node.
type Group struct {
	opt   Options
	inbox *inbox
	ended chan struct{} // closed by Close: nothing is taken any more
	close sync.Once
	tasks sync.WaitGroup

	mu       sync.Mutex
	requests map[uint64]*request
	last     uint64
	standing group.Standing

	serves atomic.Int64 // until when the owner may answer; see ServesUntil
	reads  atomic.Int64 // and until when without a question, never later
	direct sync.RWMutex // held for reading by a client that is at the store itself
	under  underWay     // what may be on one node only
	sample atomic.Uint64
	rate   rate
	pins   pinning
	differ differ

	snapshots Snapshots // the store, if it has some

	// Of the driver alone.
	own     *ownApply
	core    *mirror.Mirror
	link    *link
	marked  map[uint64]mirror.Op // in under
	resyncs bool                 // ResyncBegins was called, and ResyncEnded is due
}

// request is a client's operation.
type request struct {
	read []byte // what a read, or a compare, fills
	off  int64
	// Of a compare: what is expected, and where the first difference is, or -1.
	expected []byte
	mismatch int64
	err      error
	done     chan struct{}
	// holds are the core, which has not ended it, and the store, which is at its
	// memory: the caller has it back when neither is left. Under Group.mu.
	holds int
}

// Start runs a group. Close ends it.
func Start(o Options) *Group {
	g := &Group{opt: o, inbox: newInbox(), ended: make(chan struct{}), requests: map[uint64]*request{}, marked: map[uint64]mirror.Op{}}
	g.snapshots, _ = o.Store.(Snapshots)
	g.core = mirror.New(o.Mirror, o.Now())
	g.tasks.Go(g.loop)
	return g
}

// Close ends the group on this node. Operations under way are abandoned; it
// returns when the store is at none of them any more.
func (g *Group) Close() {
	g.close.Do(func() { close(g.ended) })
	g.tasks.Wait()
	g.direct.Lock() // for clients that are at the store themselves
	defer g.direct.Unlock()
}

// Decided gives the group a newer state of the quorum.
func (g *Group) Decided(s *quorum.State) { g.put(group.Decided{State: s}) }

// Died tells of a proof that an incarnation's life is over.
func (g *Group) Died(i quorum.Incarnation) { g.put(group.Died{Who: i}) }

// Move asks the owner to hand over.
func (g *Group) Move() { g.put(group.Move{}) }

// step takes one input. Of the driver.
func (g *Group) step(in mirror.Input) {
	switch in := in.(type) {
	case group.Tick:
		g.give(in)
		g.rate.look(time.Duration(g.opt.Now()), g.core.Copied())
	case attached:
		g.attach(in.link)
	case lost:
		if g.link == in.link {
			g.link = nil
			g.give(mirror.Unlinked{})
		}
	case arrived:
		if g.link == in.link {
			g.give(in.Received)
		}
	case asked:
		in.answer <- g.core.Status()
	default:
		g.give(in)
	}
}

// give gives the core an input. What the node may do now is known before anything
// that follows from it is done.
func (g *Group) give(in mirror.Input) {
	effects := g.core.Step(g.opt.Now(), in)
	g.stand()
	g.do(effects)
}

// do does what the core wants. What takes time is done elsewhere, and comes back
// as an input.
func (g *Group) do(effects []mirror.Effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case mirror.Apply:
			g.mark(e)
			if g.own != nil && g.own.id == e.ID && g.own.apply == nil {
				g.own.apply = &e
				continue
			}
			g.apart(e.ID, func(r *request) mirror.Applied { return g.apply(e, r) })
		case mirror.Freed:
			g.unmark(e.ID)
		case mirror.Load:
			g.apart(e.ID, func(r *request) mirror.Applied { return g.load(e, r) })
		case mirror.Sync:
			g.apart(e.ID, func(*request) mirror.Applied { return mirror.Applied{Failed: g.failed("flush", g.opt.Store.Flush())} })
		case mirror.List:
			g.tasks.Go(func() { g.list(e) })
		case mirror.Open:
			g.tasks.Go(func() { g.open(e) })
		case mirror.Shut:
			g.tasks.Go(func() { g.unpin(e) })
		case mirror.SavePosition:
			g.tasks.Go(func() { g.failed("save the position", g.opt.Store.SavePosition(e.Position)) })
		case mirror.Transmit:
			if g.link != nil {
				g.link.send(e.Packet)
			}
		case mirror.Done:
			g.finish(e.ID, nil)
		case mirror.Refuse:
			g.refuse(e)
		case mirror.Abandon:
			g.finish(e.ID, errMoved)
		case group.Propose:
			g.opt.Propose(e.Command)
		case mirror.Resynced:
			g.opt.Log.Info("the peer has everything", slog.String("group", g.opt.Mirror.Agent.Group))
		case mirror.Healed:
			g.healed(e)
		case mirror.Prepare:
			g.resyncs = true
			g.tasks.Go(func() { g.prepare(e.Number) })
		case mirror.Settled:
			if g.resyncs && g.opt.ResyncEnded != nil {
				g.opt.ResyncEnded(e.OK)
			}
			g.resyncs = g.resyncs && !e.OK
		}
	}
}

// errFull refuses a write for which either node has no room.
var errFull = fault.New(fault.Full, "a node of the group has no room; delete something or add a drive there")

// errMoved ends what this node cannot answer any more.
var errMoved = fault.New(fault.Fenced, "the group is served elsewhere")

// apart does something that takes time, and tells the core of its end.
func (g *Group) apart(id uint64, do func(*request) mirror.Applied) {
	r := g.hold(id)
	g.tasks.Go(func() {
		a := do(r)
		a.ID = id
		g.put(a)
		g.release(r)
	})
}

// failed reports whether something failed, and says so.
func (g *Group) failed(doing string, err error) bool {
	if err != nil {
		g.opt.Log.Error("the group's store failed", slog.String("group", g.opt.Mirror.Agent.Group), slog.String("doing", doing), slog.Any("error", err))
	}
	return err != nil
}

// begin puts a client's operation to the core and waits for its end: it was done
// or refused, or this node cannot answer it any more. What there is to store is
// stored by the caller itself, if the operation's turn comes at once.
func (g *Group) begin(op mirror.Op, r *request) error {
	r.done, r.holds = make(chan struct{}), 1
	g.mu.Lock()
	g.last++
	id := g.last
	g.requests[id] = r
	g.mu.Unlock()
	own := ownApply{id: id}
	if !g.bring(mirror.Begin{ID: id, Op: op}, &own) {
		g.finish(id, errMoved)
	}
	if own.apply != nil {
		g.applyOwn(own.apply, r)
	}
	<-r.done
	return r.err
}

// applyOwn stores what the caller's operation has to store, unless the group has ended:
// Close waits for it.
func (g *Group) applyOwn(e *mirror.Apply, r *request) {
	g.direct.RLock()
	select {
	case <-g.ended:
		g.direct.RUnlock()
		return
	default:
	}
	a := g.apply(*e, r)
	g.direct.RUnlock()
	a.ID = e.ID
	g.put(a)
}

// hold returns the request of an operation, if it is a client's, for as long as
// the store is at it.
func (g *Group) hold(id uint64) *request {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.requests[id]
	if r != nil {
		r.holds++
	}
	return r
}

// release ends a hold.
func (g *Group) release(r *request) {
	if r == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.holds--; r.holds == 0 {
		close(r.done)
	}
}

// finish ends a client's operation for the core.
func (g *Group) finish(id uint64, err error) {
	g.mu.Lock()
	r := g.requests[id]
	delete(g.requests, id)
	if r != nil && err != nil {
		r.err = err
	}
	g.mu.Unlock()
	g.release(r)
}

// abandonAll ends every operation when nobody steps the core any more.
func (g *Group) abandonAll() {
	g.mu.Lock()
	var ids []uint64
	for id := range g.requests {
		ids = append(ids, id)
	}
	g.standing = group.Standing{}
	g.mu.Unlock()
	g.serves.Store(never)
	g.reads.Store(never)
	for _, id := range ids {
		g.finish(id, errMoved)
	}
}
