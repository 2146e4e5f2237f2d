package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"steadfast/test/testbed"
)

// redisClient sets keys in the guest's Redis over one connection, one at a time, and knows
// what was acknowledged. It never connects again by itself.
type redisClient struct {
	space *testbed.Space

	conn net.Conn
	in   *bufio.Reader
	done chan struct{} // the load has ended

	mu      sync.Mutex
	acked   map[int]int // sequence number that a key was acknowledged with
	maybe   map[int]int // that was sent, and never answered
	next    int
	stop    bool
	err     error     // how the load ended, when nobody asked it to
	asked   time.Time // of the request under way; zero: there is none
	longest time.Duration
	answers int
}

const (
	redisAt = guestAddress + ":6379"
	// keys are so many that reading all back takes moments, and each is set often.
	keys = 500
	// dialPatience and answerPatience bound one attempt to connect, and one answer: TCP alone
	// would wait for a quarter of an hour.
	dialPatience   = 2 * time.Second
	answerPatience = 2 * time.Minute
)

func newRedisClient(space *testbed.Space) *redisClient {
	return &redisClient{space: space, acked: map[int]int{}, maybe: map[int]int{}}
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

func (c *redisClient) dial(ctx context.Context) error {
	var conn net.Conn
	err := c.space.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: dialPatience}).DialContext(ctx, "tcp4", redisAt)
		return err
	})
	if err != nil {
		return err
	}
	c.conn, c.in = conn, bufio.NewReader(conn)
	// It may be loading what it has on disk, and says so.
	if _, err := c.ask("PING"); err != nil {
		return errors.Join(err, conn.Close())
	}
	return nil
}

// ask sends a command and reads an answer of one line or one bulk string.
func (c *redisClient) ask(args ...string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if err := c.conn.SetDeadline(time.Now().Add(answerPatience)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c.conn, b.String()); err != nil {
		return "", err
	}
	return c.answer()
}

func (c *redisClient) answer() (string, error) {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimSuffix(line[1:], "\r\n")
	switch kind {
	case '+', ':':
		return rest, nil
	case '-':
		return "", errors.New("an error of Redis: " + rest)
	case '$':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 {
			return "", errNil
		}
		b := make([]byte, n+2)
		_, err = io.ReadFull(c.in, b)
		return string(b[:n]), err
	}
	return "", fmt.Errorf("an answer that is none: %q", line)
}

// errNil is Redis' word for a key that is not there.
var errNil = errors.New("there is no such key")

func keyName(k int) string { return "k" + strconv.Itoa(k) }

// valueOf has the sequence number, and enough more that a piece of another value shows.
func valueOf(seq int) string { return strings.Repeat(strconv.Itoa(seq)+".", 8) }

// begin starts the load on the connection.
func (c *redisClient) begin() {
	c.mu.Lock()
	c.stop, c.err, c.longest, c.answers = false, nil, 0, 0
	c.mu.Unlock()
	c.done = make(chan struct{})
	go c.load()
}

// load sets keys until it is stopped or the connection ends.
func (c *redisClient) load() {
	defer close(c.done)
	for {
		c.mu.Lock()
		if c.stop {
			c.mu.Unlock()
			return
		}
		c.next++
		seq := c.next
		key := seq % keys
		c.maybe[key] = seq
		c.asked = time.Now()
		c.mu.Unlock()
		answer, err := c.ask("SET", keyName(key), valueOf(seq))
		if err == nil && answer != "OK" {
			err = fmt.Errorf("SET was answered %q", answer)
		}
		c.mu.Lock()
		c.longest = max(c.longest, time.Since(c.asked))
		c.asked = time.Time{}
		if err != nil {
			c.err = fmt.Errorf("the client's connection ended after %d answers: %w", c.answers, err)
			c.mu.Unlock()
			return
		}
		c.acked[key] = seq
		delete(c.maybe, key)
		c.answers++
		c.mu.Unlock()
	}
}

// mark begins a stretch of which waited tells the longest wait.
func (c *redisClient) mark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.longest = 0
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

// answered is how many answers there were since begin.
func (c *redisClient) answered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answers
}

// flowing waits until there were more answers, or the load ended.
func (c *redisClient) flowing(ctx context.Context, more int, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for from := c.answered(); c.answered() < from+more; {
		if _, err := c.waited(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("only %d of %d answers of Redis within %v", c.answered()-from, more, patience)
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

// readBack reads every key on the connection: what was acknowledged must be there, or what was
// sent after it and not answered. It returns how many keys it read.
func (c *redisClient) readBack() (int, error) {
	for key, acked := range c.acked {
		got, err := c.ask("GET", keyName(key))
		if err != nil && !errors.Is(err, errNil) {
			return 0, err
		}
		maybe, sent := c.maybe[key]
		switch {
		case got == valueOf(acked):
		case sent && got == valueOf(maybe):
			c.acked[key] = maybe
		default:
			return 0, fmt.Errorf("LOST: %s was acknowledged with %q and is %q", keyName(key), valueOf(acked), got)
		}
		delete(c.maybe, key)
	}
	return len(c.acked), nil
}

// follower is a client of the same keys on a connection of its own, which is not there yet. What
// the first has under way may count for it or not. The first must set no more.
func (c *redisClient) follower() *redisClient {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &redisClient{space: c.space, acked: maps.Clone(c.acked), maybe: maps.Clone(c.maybe), next: c.next}
}
