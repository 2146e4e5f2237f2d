package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"steadfast/internal/journal"
	"steadfast/test/testbed"
)

// redisClient appends to a journal in the guest's Redis, a list, over one connection, one request
// at a time. Each request has a number of its own and is sent once, whatever becomes of it; an
// answer is the journal's length. The client never connects again by itself.
type redisClient struct {
	space   *testbed.Space
	journal string

	conn *journal.Conn
	done chan struct{} // the load has ended

	mu      sync.Mutex
	fates   []fate // of the requests, by their numbers
	length  int    // of the journal, but for those in doubt
	doubt   int    // how many are
	stop    bool
	err     error     // how the load ended, when nobody asked it to
	asked   time.Time // of the request under way; zero: there is none
	longest time.Duration
	waits   []wait // since mark
	answers int
	read    position // what readNew has read
}

// fate is what became of a request.
type fate uint8

const (
	fateOpen fate = iota // it was sent, and not answered
	fateDone             // it is in the journal
	fateNone             // it was not answered, and is not there
)

// wait is how long a request took.
type wait struct {
	asked time.Time
	took  time.Duration
}

// position is a place in the journal: that many of its entries, and of the requests, are before it.
type position struct{ entries, requests int }

const (
	redisAt = guestAddress + ":6379"
	// readAtOnce is how many entries are read at a time.
	readAtOnce = 1000
	// dialPatience bounds one attempt to connect: TCP alone would wait for minutes.
	dialPatience = 2 * time.Second
)

func newRedisClient(space *testbed.Space) *redisClient {
	return &redisClient{space: space, journal: fmt.Sprintf("journal-%d", time.Now().UnixNano())}
}

// connect tries until Redis answers.
func (c *redisClient) connect(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := c.dial(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no answer of Redis within %v: %w", patience, err)
		}
		pause(ctx, pollEvery)
	}
}

// again makes another connection in place of the one there is.
func (c *redisClient) again(ctx context.Context) error {
	return errors.Join(c.conn.Close(), c.connect(ctx, guestPatience))
}

func (c *redisClient) dial(ctx context.Context) error {
	var conn net.Conn
	err := c.space.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: dialPatience}).DialContext(ctx, "tcp4", redisAt)
		return err
	})
	if err != nil {
		return err
	}
	c.conn = journal.NewConn(conn)
	// It may be loading what it has on disk, and says so.
	if _, err := c.conn.Ask(ctx, "PING"); err != nil {
		return errors.Join(err, c.conn.Close())
	}
	return nil
}

// begin starts the load on the connection.
func (c *redisClient) begin() {
	c.mu.Lock()
	c.stop, c.err, c.longest, c.waits, c.answers = false, nil, 0, nil, 0
	c.mu.Unlock()
	c.done = make(chan struct{})
	go c.load()
}

// load appends until it is stopped or the connection ends.
func (c *redisClient) load() {
	defer close(c.done)
	for {
		c.mu.Lock()
		if c.stop {
			c.mu.Unlock()
			return
		}
		request := len(c.fates)
		c.fates = append(c.fates, fateOpen)
		c.doubt++
		c.asked = time.Now()
		c.mu.Unlock()
		answer, err := c.conn.Ask(context.Background(), "RPUSH", c.journal, journal.Entry(request))
		c.mu.Lock()
		w := wait{c.asked, time.Since(c.asked)}
		c.waits = append(c.waits, w)
		c.longest = max(c.longest, w.took)
		c.asked = time.Time{}
		if err == nil {
			err = c.answered(request, answer)
		} else {
			err = fmt.Errorf("the client's connection ended after %d answers: %w", c.answers, err)
		}
		c.err = err
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// answered notes an answer: that many entries there are.
func (c *redisClient) answered(request int, answer string) error {
	c.fates[request] = fateDone
	c.doubt--
	c.length++
	c.answers++
	n, err := strconv.Atoi(answer)
	if err != nil || n < c.length || n > c.length+c.doubt {
		return fmt.Errorf("WRONG: request %d was answered %q, and the journal has %d entries", request, answer, c.length)
	}
	return nil
}

// mark begins a stretch of which waited tells the longest wait.
func (c *redisClient) mark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.longest, c.waits = 0, nil
}

// waitedFrom is the longest that a request has taken that was sent between two times, and has
// been answered. Those before mark are not known.
func (c *redisClient) waitedFrom(from, to time.Time) (longest time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.waits {
		if !w.asked.Before(from) && w.asked.Before(to) {
			longest = max(longest, w.took)
		}
	}
	return longest
}

// waited is the longest that a request has waited since mark, one under way included, and how
// the load ended if it has.
func (c *redisClient) waited() (time.Duration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	longest := c.longest
	if !c.asked.IsZero() {
		longest = max(longest, time.Since(c.asked))
	}
	return longest, c.err
}

// answeredYet is how many answers there were since begin.
func (c *redisClient) answeredYet() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answers
}

// flowing waits until there were more answers, or the load ended.
func (c *redisClient) flowing(ctx context.Context, more int, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for from := c.answeredYet(); c.answeredYet() < from+more; {
		if _, err := c.waited(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("only %d of %d answers of Redis within %v", c.answeredYet()-from, more, patience)
		}
		pause(ctx, pollEvery)
	}
	return nil
}

// end stops the load and waits for the request under way. It returns how the load ended if it
// did before.
func (c *redisClient) end() error {
	c.mu.Lock()
	c.stop = true
	c.mu.Unlock()
	<-c.done
	_, err := c.waited()
	return err
}

// abandon closes the connection, of a guest that is gone.
func (c *redisClient) abandon() {
	_ = c.conn.Close()
	<-c.done
}

// readBack reads the whole journal on the connection: what was acknowledged must be there, once
// and in order, and nothing else but what was sent and not answered. It returns how many entries
// it read.
func (c *redisClient) readBack() (int, error) {
	c.mu.Lock()
	c.read = position{}
	c.mu.Unlock()
	return c.readNew()
}

// readNew does so with what is behind the entries that were read last, and returns how many
// those are.
func (c *redisClient) readNew() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	from := c.read.entries
	for {
		list, err := c.conn.Range(context.Background(), c.journal, c.read.entries, readAtOnce)
		if err != nil {
			return 0, err
		}
		for _, got := range list {
			if err := c.next(got); err != nil {
				return 0, err
			}
		}
		if len(list) < readAtOnce {
			break
		}
	}
	for ; c.read.requests < len(c.fates); c.read.requests++ {
		if err := c.missing(c.read.requests); err != nil {
			return 0, err
		}
	}
	return c.read.entries - from, nil
}

// next judges the next entry of the journal.
func (c *redisClient) next(got string) error {
	for ; c.read.requests < len(c.fates); c.read.requests++ {
		request := c.read.requests
		if got == journal.Entry(request) && c.fates[request] != fateNone {
			if c.fates[request] == fateOpen {
				c.fates[request] = fateDone
				c.doubt--
				c.length++
			}
			c.read.requests++
			c.read.entries++
			return nil
		}
		if err := c.missing(request); err != nil {
			return fmt.Errorf("%w; entry %d is %q", err, c.read.entries, got)
		}
	}
	return fmt.Errorf("WRONG: entry %d of the journal is %q, which nobody sent, or which is there twice", c.read.entries, got)
}

// missing judges a request that has no entry.
func (c *redisClient) missing(request int) error {
	switch c.fates[request] {
	case fateDone:
		return fmt.Errorf("LOST: request %d was acknowledged and is not there", request)
	case fateOpen:
		c.fates[request] = fateNone
		c.doubt--
	case fateNone:
	}
	return nil
}

// follower is a client of the same journal on a connection of its own, which is not there yet. What
// the first has under way may count for it or not. The first must send no more.
func (c *redisClient) follower() *redisClient {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &redisClient{space: c.space, journal: c.journal, fates: slices.Clone(c.fates), length: c.length, doubt: c.doubt}
}
