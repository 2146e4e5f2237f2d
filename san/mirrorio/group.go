// Package mirrorio joins the mirror to its I/O: one goroutine owns a group's
// core, others store, read and send for it.
//
//	clients ---> Volume ---\                        /---> store (a goroutine an operation)
//	peer ------> link -----+---> the core's loop ---+---> link (one writer)
//	quorum, clock ---------/                        \---> quorum
//
// Every input goes through one channel, so the core sees one order. What is under
// way is bounded by who asks: a client's queue depth, the resync's Copies, and
// what the peer has under way. The loop itself never waits for a drive, a peer or
// a client.
//
// Not yet: damage that the peer can heal; snapshots and attributes on both.
package mirrorio

import (
	"context"
	"log/slog"
	"sync"
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
	Apply(volume uint32, c *Change, durable bool) error
	Read(volume uint32, p []byte, off int64) error
	// Flush makes stable what was applied before.
	Flush() error
	// Position is at or above every change that has returned.
	Position() mirror.Position
	// Changed lists the blocks that were changed after a position.
	Changed(since mirror.Position) ([]mirror.Range, error)
	// SavePosition keeps a position; it may be lost, with the position before
	// kept instead.
	SavePosition(p mirror.Position) error
}

// Options are what a group is run with. All are required.
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
}

// inputsMax bounds the inputs that wait for the loop.
const inputsMax = 256

// Group is one group on this node.
type Group struct {
	opt    Options
	inputs chan mirror.Input
	ended  chan struct{} // closed by Close: nothing is taken any more
	close  sync.Once
	tasks  sync.WaitGroup

	mu       sync.Mutex
	requests map[uint64]*request
	last     uint64
	standing group.Standing

	// Of the loop alone.
	core *mirror.Mirror
	link *link
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
	g := &Group{opt: o, inputs: make(chan mirror.Input, inputsMax), ended: make(chan struct{}), requests: map[uint64]*request{}}
	g.core = mirror.New(o.Mirror, o.Now())
	g.tasks.Go(g.loop)
	return g
}

// Close ends the group on this node. Operations under way are abandoned; it
// returns when the store is at none of them any more.
func (g *Group) Close() {
	g.close.Do(func() { close(g.ended) })
	g.tasks.Wait()
}

// Decided gives the group a newer state of the quorum.
func (g *Group) Decided(s *quorum.State) { g.put(group.Decided{State: s}) }

// Died tells of a proof that an incarnation's life is over.
func (g *Group) Died(i quorum.Incarnation) { g.put(group.Died{Who: i}) }

// Move asks the owner to hand over.
func (g *Group) Move() { g.put(group.Move{}) }

// Standing tells what this node is to the group.
func (g *Group) Standing() group.Standing {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.standing
}

// put gives the loop an input, and reports whether it took it.
func (g *Group) put(in mirror.Input) bool {
	select {
	case g.inputs <- in:
		return true
	case <-g.ended:
		return false
	}
}

// loop owns the core.
func (g *Group) loop() {
	ticker := time.NewTicker(g.opt.Tick)
	defer ticker.Stop()
	defer g.abandonAll()
	g.step(group.Tick{})
	for {
		select {
		case in := <-g.inputs:
			g.step(in)
		case <-ticker.C:
			g.step(group.Tick{})
		case <-g.ended:
			if g.link != nil {
				g.link.end()
			}
			return
		}
	}
}

func (g *Group) step(in mirror.Input) {
	switch in := in.(type) {
	case attached:
		g.attach(in.link)
		return
	case lost:
		if g.link != in.link {
			return
		}
		g.link = nil
		g.do(g.core.Step(g.opt.Now(), mirror.Unlinked{}))
	case arrived:
		if g.link == in.link {
			g.do(g.core.Step(g.opt.Now(), in.Received))
		}
	default:
		g.do(g.core.Step(g.opt.Now(), in))
	}
	g.mu.Lock()
	g.standing = g.core.Standing()
	g.mu.Unlock()
}

// do does what the core wants. What takes time is done elsewhere, and comes back
// as an input.
func (g *Group) do(effects []mirror.Effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case mirror.Apply:
			g.apart(e.ID, func(*request) mirror.Applied { return g.apply(e) })
		case mirror.Load:
			g.apart(e.ID, func(r *request) mirror.Applied { return g.load(e, r) })
		case mirror.Sync:
			g.apart(e.ID, func(*request) mirror.Applied { return mirror.Applied{Failed: g.failed("flush", g.opt.Store.Flush())} })
		case mirror.List:
			g.tasks.Go(func() { g.list(e) })
		case mirror.SavePosition:
			g.tasks.Go(func() { g.failed("save the position", g.opt.Store.SavePosition(e.Position)) })
		case mirror.Transmit:
			if g.link != nil {
				g.link.send(e.Packet)
			}
		case mirror.Done:
			g.finish(e.ID, nil)
		case mirror.Refuse:
			g.finish(e.ID, errFull)
		case mirror.Aborted:
			g.finish(e.ID, fault.New(fault.Canceled, "the operation was aborted"))
		case mirror.Abandon:
			g.finish(e.ID, errMoved)
		case group.Propose:
			g.opt.Propose(e.Command)
		case mirror.Resynced:
			g.opt.Log.Info("the peer has everything", slog.String("group", g.opt.Mirror.Agent.Group))
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

func (g *Group) apply(e mirror.Apply) mirror.Applied {
	if e.Op.Kind == mirror.Barrier {
		return mirror.Applied{Position: g.opt.Store.Position()}
	}
	c := e.Op.Payload.(*Change)
	err := g.opt.Store.Apply(e.Op.Volume, c, e.Op.Durable)
	c.release()
	if fault.Is(err, fault.Full) {
		return mirror.Applied{Full: true}
	}
	return mirror.Applied{Position: g.opt.Store.Position(), Failed: g.failed("apply a change", err)}
}

// load reads for a client, into its buffer, or for a copy. What a client cannot
// read is its error; what a copy cannot is the end of this node's part.
func (g *Group) load(e mirror.Load, r *request) mirror.Applied {
	if r != nil && (e.Op.Kind == mirror.Read || e.Op.Kind == mirror.Compare) {
		err := g.opt.Store.Read(e.Op.Volume, r.read, r.off)
		g.mu.Lock()
		defer g.mu.Unlock()
		if r.err == nil {
			r.err = err
		}
		r.mismatch = firstDifference(r.read, r.expected)
		// What cannot be read is not what is expected.
		return mirror.Applied{Differs: r.expected != nil && (err != nil || r.mismatch >= 0)}
	}
	c := newChange(int(e.Op.Count) * BlockSize)
	c.Kind, c.Off = Data, int64(e.Op.Block)*BlockSize
	err := g.opt.Store.Read(e.Op.Volume, c.Data, c.Off)
	return mirror.Applied{Payload: c, Failed: g.failed("read for a copy", err)}
}

func (g *Group) list(l mirror.List) {
	ranges, err := g.opt.Store.Changed(l.Since)
	if !g.failed("list changes", err) {
		g.put(mirror.Changes{Number: l.Number, Ranges: ranges})
	}
}

// firstDifference returns where got is not what is expected, or -1.
func firstDifference(got, expected []byte) int64 {
	for i := range expected {
		if got[i] != expected[i] {
			return int64(i)
		}
	}
	return -1
}

// begin puts a client's operation to the core and waits for its end. When ctx
// ends it asks for the operation's, and waits for that.
func (g *Group) begin(ctx context.Context, op mirror.Op, r *request) error {
	r.done, r.holds = make(chan struct{}), 1
	g.mu.Lock()
	g.last++
	id := g.last
	g.requests[id] = r
	g.mu.Unlock()
	g.put(mirror.Begin{ID: id, Op: op})
	select {
	case <-r.done:
		return r.err
	case <-g.ended: // the loop may have ended before it took the operation
		g.finish(id, errMoved)
	case <-ctx.Done():
		g.put(mirror.Abort{ID: id})
	}
	select {
	case <-r.done:
	case <-g.ended:
		g.finish(id, errMoved)
		<-r.done
	}
	return r.err
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

// abandonAll ends every operation when the loop has ended.
func (g *Group) abandonAll() {
	g.mu.Lock()
	var ids []uint64
	for id := range g.requests {
		ids = append(ids, id)
	}
	g.standing = group.Standing{}
	g.mu.Unlock()
	for _, id := range ids {
		g.finish(id, errMoved)
	}
}
