// Package journal is a client of a Redis that proves what it was promised: it appends to a list,
// one request at a time, each with a number of its own and never sent twice, checks every
// answer, and reads the list back.
//
//	request n --RPUSH--> list     answered with the list's length: n is there for good
//	                              not answered, for the connection has ended: n is there once,
//	                              or never
//	the list, read back           every answered request, once and in order; else it is lost,
//	                              duplicated or wrong, and counted
//
// A connection that ends is made anew, and counted: whoever keeps connections alive over a
// fault has none of those. It trusts nothing but its own memory of what it has sent.
//
// A Client's goroutine is the only one that appends; reading back takes turns with it, on the
// same connection, so that nothing is under way while it is judged.
package journal

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"
)

// Times of a client.
const (
	// answerTime bounds one answer: TCP alone would wait for a quarter of an hour.
	answerTime = 2 * time.Minute
	// againTime is between two attempts to connect, and after an error that Redis answers.
	againTime = 100 * time.Millisecond
	// readAtOnce is how many entries are read at a time.
	readAtOnce = 1000
	// findingsMax is how many findings are kept in words; all are counted.
	findingsMax = 20
)

// Options say whom a client uses.
type Options struct {
	// Dial connects to the Redis. It is bounded by ctx.
	Dial func(ctx context.Context) (net.Conn, error)
	// Key is the list's, of no other client.
	Key string
	// KeepFor is when Redis may forget the list, from the last time that it was read back: a
	// client that is killed cannot remove it. 0: never.
	KeepFor time.Duration
}

// Stats are what a client has seen so far.
type Stats struct {
	Requests   int // that were sent
	Answers    int
	Lost       int // answered, and not in the list
	Duplicated int // in the list more than once
	Wrong      int // answers and entries that cannot be
	Reconnects int
	ReadBack   int      // entries that were read last time, by ReadAll
	Findings   []string // the first few of what was lost, duplicated or wrong
}

// Clean tells whether nothing was lost, duplicated or wrong.
func (s Stats) Clean() bool { return s.Lost == 0 && s.Duplicated == 0 && s.Wrong == 0 }

// Add adds what another client has seen.
func (s *Stats) Add(o Stats) {
	s.Requests, s.Answers, s.Lost, s.Duplicated = s.Requests+o.Requests, s.Answers+o.Answers, s.Lost+o.Lost, s.Duplicated+o.Duplicated
	s.Wrong, s.Reconnects, s.ReadBack = s.Wrong+o.Wrong, s.Reconnects+o.Reconnects, s.ReadBack+o.ReadBack
	s.Findings = append(s.Findings, o.Findings...)
}

// fate is what became of a request.
type fate uint8

const (
	open fate = iota // it was sent, and not answered
	done             // it is in the list
	none             // it was not answered, and is not there
	lost             // it was answered, is not there, and was counted
)

// wait is how long a request took, or has taken so far.
type wait struct {
	asked time.Time
	took  time.Duration
}

// Client appends to a list.
type Client struct {
	o      Options
	cancel context.CancelFunc // ends what is under way
	ctx    context.Context
	gone   chan struct{} // the load has ended

	// turn is had by who uses the connection, before mu.
	turn sync.Mutex
	conn *Conn // nil: there is none

	mu      sync.Mutex
	stop    bool
	stats   Stats
	fates   []fate // of the requests, by their numbers
	length  int    // of the list, but for those in doubt
	doubt   int    // how many are
	waits   []wait // since Mark
	asked   time.Time
	reading judge
}

// Start connects, within ctx, and begins to append. Stop is to follow.
func Start(ctx context.Context, o Options) (*Client, error) {
	c := &Client{o: o, gone: make(chan struct{}), reading: newJudge()}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := c.connect(ctx); err != nil {
		c.cancel()
		return nil, err
	}
	go c.load()
	return c, nil
}

// connect tries until Redis answers: one that has just begun loads what it has, and says so.
func (c *Client) connect(ctx context.Context) error {
	for {
		err := c.dial(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no answer of Redis: %w", err)
		case <-time.After(againTime):
		}
	}
}

func (c *Client) dial(ctx context.Context) error {
	conn, err := c.o.Dial(ctx)
	if err != nil {
		return err
	}
	c.conn = NewConn(conn)
	if _, err := c.conn.Ask(ctx, "PING"); err != nil {
		c.hangUp()
		return err
	}
	return nil
}

func (c *Client) hangUp() {
	if c.conn != nil {
		_ = c.conn.Close() // of no use any more
	}
	c.conn = nil
}

// reconnect makes another connection when there is none. Under turn.
func (c *Client) reconnect(ctx context.Context) error {
	if c.conn != nil {
		return nil
	}
	if err := c.connect(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	c.stats.Reconnects++
	c.mu.Unlock()
	return nil
}

// load appends until it is stopped.
func (c *Client) load() {
	defer close(c.gone)
	for c.goesOn() {
		c.turn.Lock()
		good := c.reconnect(c.ctx) == nil && c.append()
		c.turn.Unlock()
		if !good {
			select {
			case <-c.ctx.Done():
				return
			case <-time.After(againTime):
			}
		}
	}
}

func (c *Client) goesOn() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.stop && c.ctx.Err() == nil
}

// append sends one request, and notes its answer. Under turn.
func (c *Client) append() (good bool) {
	c.mu.Lock()
	request := len(c.fates)
	c.fates = append(c.fates, open)
	c.stats.Requests++
	c.doubt++
	c.asked = time.Now()
	c.mu.Unlock()
	answer, err := c.conn.Ask(c.ctx, "RPUSH", c.o.Key, Entry(request))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits = append(c.waits, wait{c.asked, time.Since(c.asked)})
	c.asked = time.Time{}
	if err != nil {
		if isRefusal(err) {
			c.fates[request] = none
			c.doubt--
			c.wrong("request %d was answered by an error: %v", request, err)
			return false
		}
		c.hangUp() // whether it is there, reading back will tell
		return false
	}
	c.fates[request] = done
	c.doubt--
	c.length++
	c.stats.Answers++
	if n, err := strconv.Atoi(answer); err != nil || n < c.length || n > c.length+c.doubt {
		c.wrong("request %d was answered %q, and the list has %d entries", request, answer, c.length)
	}
	return true
}

// wrong counts what cannot be. Under mu.
func (c *Client) wrong(format string, args ...any) {
	c.stats.Wrong++
	c.find("WRONG: "+format, args...)
}

// find keeps a finding in words. Under mu.
func (c *Client) find(format string, args ...any) {
	if len(c.stats.Findings) < findingsMax {
		c.stats.Findings = append(c.stats.Findings, c.o.Key+": "+fmt.Sprintf(format, args...))
	}
}

// Stats returns what was seen so far.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Findings = append([]string(nil), s.Findings...)
	return s
}

// Mark begins a stretch: what was waited before is not told any more.
func (c *Client) Mark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits = nil
}

// Waited is the longest that a request has taken which was under way at some time from one
// moment to another, one that is not answered yet included.
func (c *Client) Waited(from, to time.Time) (longest time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.waits
	if !c.asked.IsZero() {
		all = append(all[:len(all):len(all)], wait{c.asked, time.Since(c.asked)})
	}
	for _, w := range all {
		if w.asked.Before(to) && w.asked.Add(w.took).After(from) {
			longest = max(longest, w.took)
		}
	}
	return longest
}

// Stop ends the load, waits within ctx for the request under way, and then abandons it.
func (c *Client) Stop(ctx context.Context) {
	c.mu.Lock()
	c.stop = true
	c.mu.Unlock()
	select {
	case <-c.gone:
	case <-ctx.Done():
		c.cancel()
		<-c.gone
	}
}

// Remove removes the list from Redis. The load must have ended.
func (c *Client) Remove(ctx context.Context) error {
	c.turn.Lock()
	defer c.turn.Unlock()
	if c.conn == nil {
		if err := c.dial(ctx); err != nil {
			return err
		}
	}
	_, err := c.conn.Ask(ctx, "DEL", c.o.Key)
	return err
}

// Close ends the connection. The load must have ended.
func (c *Client) Close() {
	c.cancel()
	c.hangUp()
}
