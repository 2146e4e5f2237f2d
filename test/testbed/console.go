package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Console is a guest's serial port, and a shell on it. It is an io.Writer for what the guest
// writes. One caller at a time, but for Write.
type Console struct {
	// In takes what is typed.
	In io.Writer
	// Tee also gets what the guest writes.
	Tee io.Writer
	// Patience bounds what the guest may take for one thing.
	Patience time.Duration
	// Ended is closed when the guest can write no more, and Exit says then how it ended. nil:
	// nothing ends it.
	Ended <-chan struct{}
	Exit  func() error

	mu   sync.Mutex
	text []byte        // what the guest wrote
	read int           // how much of it was awaited already
	more chan struct{} // it wrote more
}

// NewConsole returns a console that nothing was written on.
func NewConsole(in, tee io.Writer, patience time.Duration) *Console {
	return &Console{In: in, Tee: tee, Patience: patience, more: make(chan struct{}, 1)}
}

// Write takes what the guest writes.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.text = append(c.text, p...)
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
	return c.Tee.Write(p)
}

// take looks for text after what was awaited already.
func (c *Console) take(text string) (before string, found bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := bytes.Index(c.text[c.read:], []byte(text))
	if i < 0 {
		return "", false
	}
	before = string(c.text[c.read : c.read+i])
	c.read += i + len(text)
	return before, true
}

// Forget has Await look only at what is written from now on.
func (c *Console) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read = len(c.text)
}

// Await waits until the guest writes text, and returns what it wrote before that since the
// last call.
func (c *Console) Await(ctx context.Context, text string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	for {
		if before, found := c.take(text); found {
			return before, nil
		}
		select {
		case <-c.more:
		case <-c.Ended:
			if before, found := c.take(text); found {
				return before, nil
			}
			return "", errors.Join(fmt.Errorf("the machine has ended, and its console never said %q", text), c.Exit())
		case <-ctx.Done():
			return "", fmt.Errorf("the console did not say %q: %w", text, ctx.Err())
		}
	}
}

// Type types a line.
func (c *Console) Type(line string) error {
	_, err := io.WriteString(c.In, line+"\n")
	return err
}

// Login waits for the prompt and logs in as root.
func (c *Console) Login(ctx context.Context) error {
	if _, err := c.Await(ctx, "login: "); err != nil {
		return err
	}
	if err := c.Type("root"); err != nil {
		return err
	}
	if _, err := c.Await(ctx, "# "); err != nil {
		return err
	}
	// A prompt that nothing else looks like, and no wrapped lines.
	if err := c.Type("stty -echo cols 500; export NO_COLOR=1 TERM=dumb LC_ALL=C.UTF-8; PS1= PS2=; bind 'set enable-bracketed-paste off' 2>/dev/null; echo re''ady"); err != nil {
		return err
	}
	_, err := c.Await(ctx, "ready")
	return err
}

// tabs are what a shell at a terminal takes for a wish to have a word completed.
var tabs = regexp.MustCompile(`\t+`)

// Shell runs a command in the guest, which must succeed, and returns its output.
func (c *Console) Shell(ctx context.Context, format string, args ...any) (string, error) {
	command := tabs.ReplaceAllString(fmt.Sprintf(format, args...), " ")
	if err := c.Type("( " + command + "\n) 2>&1 </dev/null; echo \"=status:\"$?="); err != nil {
		return "", err
	}
	out, err := c.Await(ctx, "=status:")
	if err != nil {
		return out, fmt.Errorf("%s: %w", command, err)
	}
	out = strings.TrimSpace(strings.ReplaceAll(out, "\r", ""))
	status, err := c.Await(ctx, "=")
	if err == nil && status != "0" {
		err = fmt.Errorf("%s: status %s: %s", command, status, out)
	}
	return out, err
}

// Tail is the end of what the guest wrote, in bytes at most.
func (c *Console) Tail(bytesMax int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text[max(0, len(c.text)-bytesMax):])
}
