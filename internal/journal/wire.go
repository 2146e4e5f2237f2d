package journal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Conn is a connection to a Redis, for one request at a time. What fails with another error than
// one that Redis has answered leaves it of no use. Redis serialization protocol, version 2.
type Conn struct {
	conn net.Conn
	in   *bufio.Reader
}

// NewConn speaks on a connection, which is the Conn's from now on.
func NewConn(conn net.Conn) *Conn { return &Conn{conn, bufio.NewReader(conn)} }

// Close ends it, and what is under way.
func (c *Conn) Close() error { return c.conn.Close() }

// refusal is an error that Redis has answered: the connection is well.
type refusal struct{ text string }

// Error implements error.
func (r *refusal) Error() string { return "Redis says " + r.text }

// isRefusal tells whether an error is one.
func isRefusal(err error) bool {
	var r *refusal
	return errors.As(err, &r)
}

// bound ends what is under way when ctx ends, or after answerTime; the function that is returned
// ends that.
func (c *Conn) bound(ctx context.Context) func() {
	_ = c.conn.SetDeadline(time.Now().Add(answerTime)) // one that is closed says so at once
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// Ask sends a command and reads an answer of one line, without its first character.
func (c *Conn) Ask(ctx context.Context, args ...string) (string, error) {
	defer c.bound(ctx)()
	if err := c.send(args...); err != nil {
		return "", err
	}
	line, err := c.line()
	if err != nil {
		return "", err
	}
	if line[0] != '+' && line[0] != ':' {
		return "", fmt.Errorf("an answer that is none: %q", line)
	}
	return line[1:], nil
}

// Range reads up to count entries of a list, from one on.
func (c *Conn) Range(ctx context.Context, key string, from, count int) ([]string, error) {
	defer c.bound(ctx)()
	if err := c.send("LRANGE", key, strconv.Itoa(from), strconv.Itoa(from+count-1)); err != nil {
		return nil, err
	}
	n, err := c.sizeOf('*', count)
	if err != nil {
		return nil, err
	}
	list := make([]string, n)
	for i := range list {
		size, err := c.sizeOf('$', entryMax)
		if err != nil {
			return nil, err
		}
		b := make([]byte, size+2)
		if _, err := io.ReadFull(c.in, b); err != nil {
			return nil, err
		}
		list[i] = string(b[:size])
	}
	return list, nil
}

func (c *Conn) send(args ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	_, err := io.WriteString(c.conn, b.String())
	return err
}

// line reads a line of an answer, which is not empty; one of an error is returned as such.
func (c *Conn) line() (string, error) {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	switch {
	case line == "":
		return "", errors.New("an answer that is none")
	case line[0] == '-':
		return "", &refusal{line[1:]}
	}
	return line, nil
}

// entryMax is how long an entry can be, in bytes.
const entryMax = 1 << 10

// sizeOf reads a line that says how many, or how long what follows is.
func (c *Conn) sizeOf(kind byte, most int) (int, error) {
	line, err := c.line()
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(line[1:])
	if line[0] != kind || err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("an answer that is none: %q", line)
	}
	return n, nil
}

// Entry is a request's entry in a list: its number, and enough more that a piece of another entry
// shows.
func Entry(request int) string { return strings.Repeat(strconv.Itoa(request)+".", 3) }

// requestOf reads what Entry returns; -1 for what is none.
func requestOf(entry string) int {
	text, _, _ := strings.Cut(entry, ".")
	if n, err := strconv.Atoi(text); err == nil && n >= 0 && Entry(n) == entry {
		return n
	}
	return -1
}
