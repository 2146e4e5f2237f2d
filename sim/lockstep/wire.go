package lockstep

import (
	"bytes"
	"time"

	"steadfast/compute/lockstep"
	"steadfast/fault"
)

// session is a pair from the copy on: its two sides, and the two links between them.
type session struct {
	id    lockstep.Session
	sides [2]*proc // the primary, the secondary
	wires [lockstep.Links]*wire
	// state is the machine as it was copied.
	state *toy
	hot   bool // its memory changes faster than it is copied
	deaf  bool // its secondary takes nothing of the copy
	inert bool // its secondary never makes a machine of it
	small bool // its secondary has no room for it
}

// wire is a link of a session: a connection, with a stream in both directions. What is under way
// is late, waits where the link is cut, and is gone when the connection is.
type wire struct {
	w       *world
	s       *session
	link    lockstep.Link
	up      bool
	writers [2]*lockstep.Writer
	readers [2]*lockstep.Reader
	in      [2]*bytes.Buffer
	last    [2]lockstep.Instant
	stuck   [2][][]byte
}

func newSession(w *world, p, s *proc) *session {
	x := &session{id: w.nonce(), sides: [2]*proc{p, s}, hot: w.chance(20), deaf: w.chance(20), inert: w.chance(20), small: w.chance(10)}
	for l := range x.wires {
		x.wires[l] = &wire{w: w, s: x, link: lockstep.Link(l)}
		x.wires[l].open()
		w.wires = append(w.wires, x.wires[l])
	}
	return x
}

// open begins the connection.
func (c *wire) open() {
	c.up = true
	for d := range 2 {
		wr, head := lockstep.NewWriter(lockstep.Head{Session: c.s.id, Secondary: d == 1, Link: c.link})
		c.in[d] = bytes.NewBuffer(head)
		rd, err := lockstep.NewReader(c.in[d])
		if err != nil || rd.Head().Session != c.s.id {
			panic(err)
		}
		c.writers[d], c.readers[d] = wr, rd
	}
}

// cut tells whether nothing gets through in a direction: 0 is to the secondary.
func (c *wire) cut(d int) bool {
	return c.w.cut[c.link][c.s.sides[d].host.number][c.s.sides[1-d].host.number] && !c.w.calm
}

// send sends a message of a side.
func (c *wire) send(from *proc, m lockstep.Message) {
	if !c.up {
		return
	}
	d := 0
	if from == c.s.sides[1] {
		d = 1
	}
	b, err := c.writers[d].Append(nil, m)
	if err != nil {
		c.w.judge.fail("%v sent %#v: %v", from, m, err)
		return
	}
	if c.w.chance(c.w.profile.loss / 20) {
		b[c.w.rng.IntN(len(b))] ^= 1 << c.w.rng.IntN(8)
		c.w.counts.damaged++
	}
	at := c.w.now + lockstep.Instant(c.w.delay(30*time.Microsecond, 200*time.Microsecond))
	at = max(at, c.last[d])
	c.last[d] = at
	c.w.after(at.Sub(c.w.now), nil, func() { c.arrive(d, b) })
}

// arrive has bytes arrive at the other side's host.
func (c *wire) arrive(d int, b []byte) {
	switch {
	case !c.up:
		return
	case c.cut(d) || len(c.stuck[d]) > 0:
		c.stuck[d] = append(c.stuck[d], b)
		return
	}
	to := c.s.sides[1-d]
	c.w.after(0, to, func() {
		if !c.up {
			return
		}
		c.in[d].Write(b)
		m, err := c.readers[d].Next()
		if err != nil {
			if !fault.Is(err, fault.Corrupt) && !fault.Is(err, fault.Limit) && !fault.Is(err, fault.Stale) && !fault.Is(err, fault.Unreachable) {
				c.w.judge.fail("a damaged stream: %v", err)
			}
			c.sever()
			return
		}
		to.received(c, m)
	})
}

// heal lets through what waits, after a cut.
func (c *wire) heal() {
	for d := range 2 {
		if c.cut(d) {
			continue
		}
		list := c.stuck[d]
		c.stuck[d] = nil
		for _, b := range list {
			c.arrive(d, b)
		}
	}
}

// hangUp ends the connections, which a side needs no more, or which is no more. Where the link is
// cut the other one does not hear of it.
func (x *session) hangUp() {
	for _, c := range x.wires {
		c.w.after(c.w.delay(time.Millisecond, 10*time.Millisecond), nil, func() {
			if !c.cut(0) && !c.cut(1) {
				c.sever()
			}
		})
	}
}

// sever breaks the connection: its sides notice, soon.
func (c *wire) sever() {
	if !c.up {
		return
	}
	c.up = false
	c.w.counts.severed++
	c.stuck = [2][][]byte{}
	for _, p := range c.s.sides {
		c.w.after(c.w.delay(0, 5*time.Millisecond), p, func() {
			p.step(c.s, lockstep.Broken{Link: c.link, Err: fault.New(fault.Unreachable, "the connection broke")})
		})
	}
}
