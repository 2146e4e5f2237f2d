package journal

import (
	"context"
	"strconv"
)

// judge is what was read of a list, in order.
type judge struct {
	entries int    // that many
	last    int    // the last request seen
	settled int    // the requests before it are judged
	seen    []bool // which were
}

func newJudge() judge { return judge{last: -1} }

// ReadNew reads what is behind the entries that were read last, while nothing is under way, and
// judges it. A connection that ends meanwhile is made anew, and it begins again where it was.
func (c *Client) ReadNew(ctx context.Context) error {
	c.turn.Lock()
	defer c.turn.Unlock()
	for {
		if err := c.reconnect(ctx); err != nil {
			return err
		}
		err := c.readOn(ctx)
		if err == nil {
			return c.keep(ctx)
		}
		if isRefusal(err) {
			return err
		}
		c.hangUp()
	}
}

// ReadAll reads the whole list anew, on another connection, and judges it as if for the first
// time. What a reading before has found stays found.
func (c *Client) ReadAll(ctx context.Context) error {
	c.turn.Lock()
	c.hangUp()
	err := c.dial(ctx) // which is no reconnection
	c.mu.Lock()
	before := c.stats
	c.reading = newJudge()
	c.stats.Lost, c.stats.Duplicated = 0, 0
	for i, f := range c.fates {
		if f == lost {
			c.fates[i] = done
		}
	}
	c.mu.Unlock()
	c.turn.Unlock()
	if err == nil {
		err = c.ReadNew(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Lost, c.stats.Duplicated = max(c.stats.Lost, before.Lost), max(c.stats.Duplicated, before.Duplicated)
	c.stats.ReadBack = c.reading.entries
	return err
}

// readOn reads to the list's end. Under turn.
func (c *Client) readOn(ctx context.Context) error {
	for {
		list, err := c.conn.Range(ctx, c.o.Key, c.reading.entries, readAtOnce)
		if err != nil {
			return err
		}
		c.mu.Lock()
		for _, e := range list {
			c.next(e)
		}
		if len(list) < readAtOnce {
			c.settle()
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
	}
}

// keep has Redis keep the list for another while. Under turn.
func (c *Client) keep(ctx context.Context) error {
	if c.o.KeepFor == 0 {
		return nil
	}
	_, err := c.conn.Ask(ctx, "EXPIRE", c.o.Key, strconv.Itoa(int(c.o.KeepFor.Seconds())))
	return err
}

// next judges the next entry. Under mu.
func (c *Client) next(entry string) {
	r := &c.reading
	at := r.entries
	r.entries++
	r.seen = append(r.seen, make([]bool, len(c.fates)-len(r.seen))...)
	n := requestOf(entry)
	switch {
	case n < 0 || n >= len(c.fates):
		c.wrong("entry %d is %q, which nobody sent", at, entry)
		return
	case r.seen[n]:
		c.stats.Duplicated++
		c.find("DUPLICATED: entry %d is request %d again", at, n)
		return
	}
	r.seen[n] = true
	switch {
	case n < r.last:
		c.wrong("entry %d is request %d, after request %d", at, n, r.last)
	case c.fates[n] == none:
		c.wrong("entry %d is request %d, which was not there when it was looked for", at, n)
	}
	r.last = max(r.last, n)
	if c.fates[n] == open {
		c.fates[n] = done
		c.doubt--
	}
}

// settle judges the requests that have no entry: nothing is under way, so they never will.
// Under mu.
func (c *Client) settle() {
	r := &c.reading
	r.seen = append(r.seen, make([]bool, len(c.fates)-len(r.seen))...)
	for ; r.settled < len(c.fates); r.settled++ {
		if r.seen[r.settled] {
			continue
		}
		switch n := r.settled; c.fates[n] {
		case done:
			c.fates[n] = lost
			c.stats.Lost++
			c.find("LOST: request %d was answered and is not there", n)
		case open:
			c.fates[n] = none
			c.doubt--
		case none, lost:
		}
	}
	c.length = r.entries
}
