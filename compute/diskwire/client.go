package diskwire

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"steadfast/block"
	"steadfast/fault"
)

// windowMax is how many pieces of one request are under way at once: others have slots,
// too.
const windowMax = 16

// Client is a device that a Server serves. It makes no system calls but read(2) and
// write(2) once it is open.
type Client struct {
	sock *os.File
	mem  []byte
	out  outbox
	size atomic.Int64
	// done gets what a slot's request was answered with.
	done []chan answer

	mu     sync.Mutex
	change sync.Cond // a slot is free, or ended is set
	free   []int     // the one that was used last comes last: its memory is in the caches
	flying []bool    // by slot: sent, and not answered
	ended  error     // why nothing can be asked any more
	resize func(size int64)

	reader sync.WaitGroup
}

var _ block.Device = (*Client)(nil)

// Open makes a device of the descriptors of a Server's, which are the client's from now
// on, and waits until it is served. Fails with fault.Invalid for descriptors that are none
// and with fault.Unreachable when there is no server any more.
func Open(socket, memory *os.File) (*Client, error) {
	mem, slots, err := mapped(memory)
	if err = errors.Join(err, memory.Close()); err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	c := &Client{sock: socket, mem: mem, out: outbox{f: socket}, flying: make([]bool, slots)}
	c.change.L = &c.mu
	for i := range slots {
		c.free = append(c.free, slots-1-i)
		c.done = append(c.done, make(chan answer, 1))
	}
	first := make(chan struct{})
	c.reader.Go(func() { c.receive(first) })
	<-first
	c.mu.Lock()
	err = c.ended
	c.mu.Unlock()
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close ends what is under way with fault.Canceled, though the server may still do it, and
// everything that is asked afterwards.
func (c *Client) Close() error {
	c.end(fault.New(fault.Canceled, "the disk was let go"))
	err := c.sock.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	c.reader.Wait()
	c.mu.Lock()
	for len(c.free) < len(c.flying) { // who has a slot looks at its memory, or sends
		c.change.Wait()
	}
	c.mu.Unlock()
	c.out.end()
	return errors.Join(err, unix.Munmap(c.mem))
}

// OnResize has do called when the device's size has changed, and now if it is not size
// any more. do must not wait, nor use the client.
func (c *Client) OnResize(size int64, do func(size int64)) {
	c.mu.Lock()
	defer c.mu.Unlock() // the last size that do is told is the one that the device has
	c.resize = do
	if now := c.size.Load(); now != size {
		do(now)
	}
}

// end ends everything, once.
func (c *Client) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return
	}
	c.ended = err
	for i, flying := range c.flying {
		if flying {
			c.flying[i] = false
			c.done[i] <- answer{status: statusOf(err), text: -1}
		}
	}
	c.change.Broadcast()
}

// receive takes what the server says, until it has gone. first is closed when the size is
// known or never will be.
func (c *Client) receive(first chan struct{}) {
	began := sync.OnceFunc(func() { close(first) })
	defer began()
	b := make([]byte, 2*SlotsMax*answerBytes)
	for {
		n, err := c.sock.Read(b)
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			c.end(fault.Wrap(fault.Unreachable, err, "the disk's server"))
			return
		case err != nil || n == 0:
			c.end(fault.New(fault.Unreachable, "the disk's server has gone"))
			return
		}
		if err := c.take(b[:n], began); err != nil {
			c.end(err)
			return
		}
	}
}

// take takes a packet.
func (c *Client) take(b []byte, began func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; len(b) >= answerBytes; b = b[answerBytes:] {
		var a answer
		if err := a.get(b, len(c.flying)); err != nil {
			return err
		}
		if a.says == saysSize {
			if c.size.Swap(a.value) != a.value && c.resize != nil {
				c.resize(a.value)
			}
			began()
			continue
		}
		if !c.flying[a.slot] {
			return fault.New(fault.Internal, "a disk's server has answered what was not asked, in slot %d", a.slot)
		}
		c.flying[a.slot] = false
		c.done[a.slot] <- a
	}
	if len(b) != 0 {
		return fault.New(fault.Internal, "a disk's server says %x", b)
	}
	return nil
}

// acquire takes a free slot. If there is none it waits, or returns -1.
func (c *Client) acquire(wait bool) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.ended == nil && len(c.free) == 0 {
		if !wait {
			return -1, nil
		}
		c.change.Wait()
	}
	if c.ended != nil {
		return -1, c.ended
	}
	i := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	return i, nil
}

// release gives a slot back.
func (c *Client) release(i int) {
	c.mu.Lock()
	c.free = append(c.free, i)
	// Close waits for the last one.
	if c.ended == nil {
		c.change.Signal()
	} else {
		c.change.Broadcast()
	}
	c.mu.Unlock()
}

// send sends a request in its slot. What it leads to comes by wait.
func (c *Client) send(r request) {
	c.mu.Lock()
	others := len(c.flying)-len(c.free) > 1
	if c.ended != nil {
		c.done[r.slot] <- answer{status: statusOf(c.ended), text: -1}
		c.mu.Unlock()
		return
	}
	c.flying[r.slot] = true
	c.mu.Unlock()
	var b [requestBytes]byte
	r.put(b[:])
	c.out.put(b[:], others)
}

// wait returns what a slot's request was answered with.
func (c *Client) wait(i int) (value int64, err error) {
	a := <-c.done[i]
	switch {
	case a.status == 0:
		return a.value, nil
	case a.text < 0:
		c.mu.Lock()
		defer c.mu.Unlock()
		return 0, c.ended
	}
	return 0, fault.New(fault.Kind(a.status-1), "%s", slot(c.mem, i)[:a.text])
}

// check judges a range.
func (c *Client) check(off, n int64) error {
	if size := c.size.Load(); off < 0 || n < 0 || off > size-n || off%block.SectorSize != 0 || n%block.SectorSize != 0 {
		return fault.New(fault.Invalid, "%d bytes at %d of a disk of %d", n, off, size)
	}
	return nil
}

// piece is a part of a request that is under way.
type piece struct{ slot, at, n int }

// transfer reads or writes p in pieces.
func (c *Client) transfer(o op, p []byte, off int64, flags block.Flags) (first error) {
	if err := c.check(off, int64(len(p))); err != nil {
		return err
	}
	var window [windowMax]piece
	sent, had := 0, 0
	for at := 0; ; {
		for at < len(p) && first == nil && sent-had < windowMax {
			// Who has slots must not wait for another: all might.
			i, err := c.acquire(sent == had)
			if err != nil {
				first = err
				break
			}
			if i < 0 {
				break
			}
			// It ends at a block's end.
			n := min(len(p)-at, SlotBytes-int((off+int64(at))%block.BlockSize))
			if o == opWrite {
				copy(slot(c.mem, i), p[at:at+n])
			}
			window[sent%windowMax] = piece{i, at, n}
			sent++
			c.send(request{op: o, flags: flags, slot: i, off: off + int64(at), n: int64(n)})
			at += n
		}
		if sent == had {
			return first
		}
		w := window[had%windowMax]
		had++
		_, err := c.wait(w.slot)
		switch {
		case err == nil && o == opRead:
			copy(p[w.at:w.at+w.n], slot(c.mem, w.slot))
		case err != nil && first == nil:
			first = err
		}
		c.release(w.slot)
	}
}

// one does a request that needs one slot, filled by fill if that is not nil.
func (c *Client) one(r request, fill func(b []byte)) (value int64, err error) {
	if err := c.check(r.off, r.n); err != nil || r.n == 0 && r.op != opFlush {
		return -1, err
	}
	if r.slot, err = c.acquire(true); err != nil {
		return 0, err
	}
	if fill != nil {
		fill(slot(c.mem, r.slot))
	}
	c.send(r)
	value, err = c.wait(r.slot)
	c.release(r.slot)
	return value, err
}

// ReadAt implements block.Device.
func (c *Client) ReadAt(p []byte, off int64) error { return c.transfer(opRead, p, off, 0) }

// WriteAt implements block.Device. When a large one fails, some of it may have been written.
func (c *Client) WriteAt(p []byte, off int64, flags block.Flags) error {
	return c.transfer(opWrite, p, off, flags)
}

// Flush implements block.Device.
func (c *Client) Flush() error {
	_, err := c.one(request{op: opFlush}, nil)
	return err
}

// Trim implements block.Device.
func (c *Client) Trim(off, n int64) error {
	_, err := c.one(request{op: opTrim, off: off, n: n}, nil)
	return err
}

// Zero implements block.Device.
func (c *Client) Zero(off, n int64, flags block.Flags) error {
	_, err := c.one(request{op: opZero, flags: flags, off: off, n: n}, nil)
	return err
}

// CompareAndWrite implements block.Device. It fails with fault.Invalid beyond half of
// SlotBytes: what is atomic cannot be cut.
func (c *Client) CompareAndWrite(off int64, old, new []byte, flags block.Flags) (mismatch int64, err error) {
	if len(old) != len(new) || len(old) > SlotBytes/2 {
		return -1, fault.New(fault.Invalid, "a comparison of %d bytes to write %d: they must be as many, and at most %d", len(old), len(new), SlotBytes/2)
	}
	mismatch, err = c.one(request{op: opCompareAndWrite, flags: flags, off: off, n: int64(len(old))}, func(b []byte) {
		copy(b[copy(b, old):], new)
	})
	if err != nil {
		return -1, err
	}
	return mismatch, nil
}

// Size implements block.Device.
func (c *Client) Size() int64 { return c.size.Load() }
