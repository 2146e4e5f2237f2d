package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// refusal is an error that Redis has answered: the connection is well.
type refusal struct{ text string }

// Error implements error.
func (r *refusal) Error() string { return "Redis says " + r.text }

// isRefusal tells whether an error is one.
func isRefusal(err error) bool {
	var r *refusal
	return errors.As(err, &r)
}

// bound ends what is under way on the connection when ctx ends, or after answerTime; the
// function that is returned ends that. Under turn.
func (c *Client) bound(ctx context.Context) func() {
	conn := c.conn
	_ = conn.SetDeadline(time.Now().Add(answerTime)) // one that is closed says so at once
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// ask sends a command and reads an answer of one line. Under turn.
func (c *Client) ask(ctx context.Context, args ...string) (string, error) {
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

func (c *Client) send(args ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	_, err := io.WriteString(c.conn, b.String())
	return err
}

// line reads a line of an answer, which is not empty; one of an error is returned as such.
func (c *Client) line() (string, error) {
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

func (c *Client) fill(b []byte) error {
	_, err := io.ReadFull(c.in, b)
	return err
}
