package standalone

import (
	"io"
	"sync"
)

// Bounds of a console, in bytes.
const (
	// recentMax is what who attaches is shown of what was written before.
	recentMax = 4 << 10
	// behindMax is how far an attached client may be behind.
	behindMax = 1 << 20
)

// console carries what the guest writes to all who read it.
type console struct {
	turn    sync.Mutex  // one write at a time
	outputs []io.Writer // those that the guest waits for
	say     func(format string, args ...any)

	mu      sync.Mutex
	recent  []byte
	clients map[*client]struct{}
	typed   io.Writer // the present process's, nil between two
	changed sync.Cond // typed or ended
	ended   bool
}

// client is who has attached.
type client struct {
	c       *console
	w       io.WriteCloser
	changed sync.Cond
	held    []byte
	gone    bool
	closed  bool
	done    chan struct{} // it was closed
}

func newConsole(outputs []io.Writer, say func(format string, args ...any)) *console {
	c := &console{outputs: outputs, say: say, clients: map[*client]struct{}{}}
	c.changed.L = &c.mu
	return c
}

// Write implements io.Writer. It never fails: an output that does is written to no more, and people
// are told.
func (c *console) Write(p []byte) (int, error) {
	c.turn.Lock()
	defer c.turn.Unlock()
	c.mu.Lock()
	c.recent = append(c.recent, p...)
	if over := len(c.recent) - recentMax; over > 0 {
		c.recent = append(c.recent[:0], c.recent[over:]...)
	}
	for k := range c.clients {
		k.put(p)
	}
	c.mu.Unlock()
	for i := 0; i < len(c.outputs); i++ {
		if _, err := c.outputs[i].Write(p); err != nil {
			c.say("the console's output goes on without one that cannot be written to: %v", err)
			c.outputs = append(c.outputs[:i:i], c.outputs[i+1:]...)
			i--
		}
	}
	return len(p), nil
}

// put gives a client bytes; c.mu is held.
func (k *client) put(p []byte) {
	if k.gone {
		return
	}
	if len(k.held)+len(p) > behindMax {
		k.gone, k.held = true, nil
		k.close() // a write may wait for it without end
	} else {
		k.held = append(k.held, p...)
	}
	k.changed.Signal()
}

// attach gives a client what is written from now on, and a little of before. The client is
// closed when it is too far behind, when it fails or leaves, or when the console ends.
func (c *console) attach(w io.WriteCloser) *client {
	k := &client{c: c, w: w, done: make(chan struct{})}
	k.changed.L = &c.mu
	c.mu.Lock()
	defer c.mu.Unlock()
	k.held = append(k.held, c.recent...)
	k.gone = c.ended
	c.clients[k] = struct{}{}
	go k.carry()
	return k
}

// leave lets a client have what there is, and go; it returns when it has.
func (k *client) leave() {
	k.c.mu.Lock()
	k.gone = true
	k.changed.Signal()
	k.c.mu.Unlock()
	<-k.done
}

// carry is the goroutine that writes to a client.
func (k *client) carry() {
	defer close(k.done)
	c := k.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for len(k.held) == 0 && !k.gone {
			k.changed.Wait()
		}
		p := k.held
		k.held = nil
		if len(p) == 0 {
			k.close()
			delete(c.clients, k)
			return
		}
		c.mu.Unlock()
		_, err := k.w.Write(p)
		c.mu.Lock()
		if err != nil {
			k.gone, k.held = true, nil
		}
	}
}

// close closes a client, once; c.mu is held. It is told by that.
func (k *client) close() {
	if !k.closed {
		k.closed = true
		_ = k.w.Close()
	}
}

// end lets all clients have the rest, and go.
func (c *console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.changed.Broadcast()
	for k := range c.clients {
		k.gone = true
		k.changed.Signal()
	}
}

// connect makes w what is typed to; nil: who types has to wait for the next.
func (c *console) connect(w io.Writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.typed = w
	c.changed.Broadcast()
}

// typeIn types. It waits for a guest, and for it to take that, unless the console has ended.
func (c *console) typeIn(p []byte) {
	c.mu.Lock()
	for c.typed == nil && !c.ended {
		c.changed.Wait()
	}
	w := c.typed
	c.mu.Unlock()
	if w != nil {
		_, _ = w.Write(p) // the process has just ended, then
	}
}
