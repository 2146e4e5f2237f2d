package mirrorio

import (
	"sync"
	"time"

	"steadfast/cluster/group"
	"steadfast/san/mirror"
)

// Whoever brings an input when nobody is at the core becomes its driver: it takes
// inputs from the queue and steps the core until the queue is empty. So a lone
// operation goes through without being handed from goroutine to goroutine, which
// costs more than all that the core has to think. A driver whose own business waits
// hands over to the group's loop after some inputs, so that nobody works for others
// without end.

// inbox is the queue of inputs. It is bounded by what is under way.
type inbox struct {
	mu     sync.Mutex
	free   *sync.Cond // nobody drives
	queue  []mirror.Input
	spare  []mirror.Input // an empty queue's memory
	driven bool           // somebody is at the core
	closed bool
	hand   chan struct{} // the loop is to drive on
}

func newInbox() *inbox {
	b := &inbox{hand: make(chan struct{}, 1)}
	b.free = sync.NewCond(&b.mu)
	return b
}

// turnMost is about how many inputs a driver takes before it hands over.
const turnMost = 16

// loneMost is up to how many operations under way the driver sends itself. With more, the
// writer finds several packets to send at once by the time it runs.
const loneMost = 2

// ownApply is a client's operation that its driver has begun: if the core wants it
// stored at once, the client does that itself.
type ownApply struct {
	id    uint64
	apply *mirror.Apply
}

// put gives the core an input, and reports whether it was taken.
func (g *Group) put(in mirror.Input) bool { return g.bring(in, nil) }

// bring is put. own, if any, is what the caller would do of the effects.
func (g *Group) bring(in mirror.Input, own *ownApply) bool {
	b := g.inbox
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return false
	}
	b.queue = append(b.queue, in)
	if b.driven {
		b.mu.Unlock()
		return true
	}
	b.driven = true
	b.mu.Unlock()
	most := turnMost
	if own != nil {
		most = 1
	}
	g.own = own
	g.drive(most)
	g.own = nil
	g.leave()
	return true
}

// offer is put for what is of no use when the core is busy.
func (g *Group) offer(in mirror.Input) {
	g.inbox.mu.Lock()
	busy := g.inbox.driven
	g.inbox.mu.Unlock()
	if !busy {
		g.put(in)
	}
}

// drive steps the core with what is queued, until nothing is or so many inputs
// were taken. The caller is the driver, and remains it.
func (g *Group) drive(most int) {
	b := g.inbox
	for n := 0; ; {
		b.mu.Lock()
		list := b.queue
		if len(list) == 0 || n >= most || b.closed {
			b.mu.Unlock()
			return
		}
		b.queue, b.spare = b.spare[:0], nil
		b.mu.Unlock()
		for i, in := range list {
			g.step(in)
			list[i] = nil
		}
		n += len(list)
		b.mu.Lock()
		b.spare = list[:0]
		b.mu.Unlock()
	}
}

// leave ends a driver's turn. What is left, or has come meanwhile, is the loop's.
func (g *Group) leave() {
	if l := g.link; l != nil {
		l.flush(g.core.Busy() <= loneMost)
	}
	b := g.inbox
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		b.driven = false
		b.free.Broadcast()
	case len(b.queue) > 0:
		b.hand <- struct{}{} // there is room: who drives hands over once
	default:
		b.driven = false
	}
}

// loop looks at the time, and drives when others hand over.
func (g *Group) loop() {
	ticker := time.NewTicker(g.opt.Tick)
	defer ticker.Stop()
	g.put(group.Tick{})
	for {
		select {
		case <-g.inbox.hand:
			g.drive(turnMost)
			g.leave()
		case <-ticker.C:
			g.put(group.Tick{})
		case <-g.ended:
			g.end()
			return
		}
	}
}

// end takes the core from whoever drives.
func (g *Group) end() {
	b := g.inbox
	b.mu.Lock()
	b.closed = true
	for b.driven && len(b.hand) == 0 {
		b.free.Wait()
	}
	b.queue = nil
	b.mu.Unlock()
	if g.link != nil {
		g.link.end()
	}
	g.abandonAll()
}
