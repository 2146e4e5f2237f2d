package pair

import (
	"maps"
	"slices"
	"time"

	"steadfast/san/mirror"
)

// Clients of the pair's family: no SCSI, no sessions but a number. They put operations
// to a node's mirror as the device server would, so that many a second can be had.

// client asks for one operation at a time, of the node that it believes serves.
// When an answer does not come it goes to the other node, or comes back to the
// same one: in a new session, before which whatever is left of the old one has
// ended.
type client struct {
	world   *world
	index   int
	node    int // where it is
	session int
	left    int // operations to go
	open    int // index of the operation under way in world.ops, or -1
	stopped bool
	reads   bool // it never writes
}

// record is one operation as its client saw it.
type record struct {
	client   int
	kind     mirror.Kind
	block    uint64
	values   []value
	call     instant
	answered bool
	ret      instant // of an answered one; else the bound that judge finds
	alone    bool    // it was answered by a set of one, which writes through
	snapshot value   // a barrier's name
	removes  value   // or the name of the snapshot that it deletes
	expected []value // of a compare
	refused  bool    // there was no room: it was not done
	partial  bool    // a write of parts of blocks
}

func (c *client) think() {
	if c.left == 0 || c.stopped {
		c.stopped = true
		return
	}
	c.world.after(c.world.between(0, c.world.cfg.think), c.ask)
}

// ask begins an operation.
func (c *client) ask() {
	w := c.world
	c.left--
	count := uint64(1 + w.rand.IntN(2))
	r := record{client: c.index, block: w.rand.Uint64N(w.cfg.blocks - count + 1), call: w.now}
	switch {
	case !c.reads && w.chance(0.03):
		r.kind = mirror.Barrier
		w.count.values++
		r.snapshot = value(w.count.values)
		if w.chance(0.3) { // or deletes one
			r.removes, r.snapshot = value(1+w.rand.Uint64N(w.count.values)), 0
			if taken := w.someSnapshot(); taken != 0 {
				r.removes = taken
			}
		}
	case !c.reads && w.chance(0.1):
		r.kind = mirror.Compare
		for range count {
			w.count.values++
			r.values = append(r.values, value(w.count.values))
		}
		r.expected = make([]value, count)
		for i := range r.expected { // most likely what is there
			r.expected[i] = w.latest[r.block+uint64(i)]
		}
	case c.reads || w.chance(0.45):
		r.kind, r.values = mirror.Read, make([]value, count)
	case w.chance(0.9):
		r.kind = mirror.Write
		for range count {
			w.count.values++
			r.values = append(r.values, value(w.count.values))
		}
	default:
		r.kind = mirror.Flush
	}
	r.partial = w.chance(0.3)
	w.count.operations++
	w.ops = append(w.ops, r)
	c.open = len(w.ops) - 1
	c.send()
}

// send puts the operation to the node. Without an answer in time the client
// gives the session up.
func (c *client) send() {
	w := c.world
	n := w.nodes[c.node]
	session, life, open := c.session, n.life, c.open
	w.after(w.delay(), func() {
		if !n.up || n.life != life || w.net.cut[outside][n.index] {
			return
		}
		n.in(life, func() { n.ask(c, session, w.ops[open]) })
	})
	w.after(w.cfg.patience, func() {
		if c.session == session && c.open == open {
			c.giveUp()
		}
	})
}

// giveUp leaves the operation without an answer and goes elsewhere.
func (c *client) giveUp() {
	w := c.world
	c.open = -1
	c.session++
	w.count.unanswered++
	if w.chance(0.8) {
		c.node = 1 - c.node
	}
	w.after(w.between(time.Millisecond, 50*time.Millisecond), func() { c.think() })
}

// lost tells that a node died under the client.
func (c *client) lost(n *node) {
	if c.node == n.index && c.open >= 0 {
		session := c.session
		c.world.after(c.world.delay(), func() {
			if c.session == session && c.open >= 0 {
				c.giveUp()
			}
		})
	}
}

// dropped tells that a node ended the session.
func (c *client) dropped(n *node, session int) {
	c.world.after(c.world.delay(), func() {
		if c.session == session && c.open >= 0 && c.node == n.index {
			c.giveUp()
		}
	})
}

// answered takes an answer.
func (c *client) answered(n *node, session int, a *ask) {
	if c.session != session || c.open < 0 || c.node != n.index {
		return
	}
	r := &c.world.ops[c.open]
	if a.damaged { // an error: it was not done, or was not seen
		c.world.count.damaged++
		c.open = -1
		c.think()
		return
	}
	r.answered, r.ret, r.alone = true, c.world.now, a.alone
	switch {
	case a.refused:
		r.refused = true
	case r.kind == mirror.Read:
		copy(r.values, a.loaded)
	case r.kind == mirror.Compare && a.differs:
		r.kind, r.values = mirror.Read, a.loaded // which is all that it was
		c.world.count.differed++
	case r.kind == mirror.Compare:
		c.world.count.compared++
	}
	if !r.refused && (r.kind == mirror.Read || r.kind == mirror.Write || r.kind == mirror.Compare) {
		for i, v := range r.values {
			c.world.latest[r.block+uint64(i)] = v
		}
	}
	c.open = -1
	c.think()
}

// ask takes a client's operation. Of a new session it waits until what is left
// of the client's old ones has ended here, as the reinstatement of a session does.
func (n *node) ask(c *client, session int, r record) {
	if n.sessions[c] > session {
		return // it was on its way when the client came back in another
	}
	n.sessions[c] = session
	left := false
	for _, id := range slices.Sorted(maps.Keys(n.asks)) {
		a := n.asks[id]
		if a == nil || a.client != c {
			continue
		}
		if left = true; !a.ending {
			a.ending = true
			n.step(mirror.Abort{ID: id})
		}
	}
	if left {
		n.later(time.Millisecond, func() {
			if c.session == session {
				n.ask(c, session, r)
			}
		})
		return
	}
	w := n.world
	w.count.ids++
	n.asks[w.count.ids] = &ask{client: c, number: session, block: r.block, kind: r.kind, expected: r.expected, snapshot: r.snapshot}
	op := mirror.Op{Kind: r.kind, Durable: w.cfg.durable || r.kind == mirror.Barrier}
	switch r.kind {
	case mirror.Write, mirror.Compare:
		op.Block, op.Count, op.Payload = r.block, uint64(len(r.values)), content{slices.Clone(r.values), r.partial}
	case mirror.Barrier:
		if op.Payload, op.Moment = r.snapshot, mirror.Moment(r.snapshot); r.removes != 0 {
			op.Payload = removal(r.removes)
		}
	default:
		op.Block, op.Count = r.block, uint64(len(r.values))
	}
	n.step(mirror.Begin{ID: w.count.ids, Op: op})
}
