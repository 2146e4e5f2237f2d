package lockstep

import (
	"encoding/binary"
	"time"

	"steadfast/compute/device"
)

// client wants one promise after the other, and asks again until it has it.
type client struct {
	w      *world
	number uint8
	want   uint32 // 0: it thinks
	asked  int    // how often it was asked for this
	had    int
}

func (c *client) start() {
	c.w.after(c.w.delay(0, 200*time.Millisecond), nil, c.ask)
}

// ask begins with another wish.
func (c *client) ask() {
	c.asked++
	c.want = uint32(c.asked)
	c.send(c.want)
}

// send sends the wish to where the switch thinks the machine is.
func (c *client) send(want uint32) {
	if c.want != want || c.w.quorum.finished {
		return
	}
	c.w.frame(binary.LittleEndian.AppendUint32([]byte{c.number}, want))
	c.w.after(c.w.delay(100*time.Millisecond, 400*time.Millisecond), nil, func() { c.send(want) })
}

// answer takes a promise, a little later.
func (c *client) answer(p promise) {
	c.w.after(c.w.delay(50*time.Microsecond, 2*time.Millisecond), nil, func() {
		c.w.judge.promised(p)
		if p.number != c.want {
			return
		}
		c.want = 0
		c.had++
		c.w.counts.promises++
		c.w.after(c.w.delay(0, 60*time.Millisecond), nil, c.ask)
	})
}

// frame brings a frame to the machine.
func (w *world) frame(data []byte) {
	p := w.attached
	if p == nil {
		return
	}
	w.after(w.delay(50*time.Microsecond, time.Millisecond), p, func() {
		if !p.gone() && p.prim != nil && len(p.inbox) < 32 {
			p.inbox = append(p.inbox, device.Input{Port: portNet, Kind: 1, Data: data})
			p.soon()
		}
	})
}
