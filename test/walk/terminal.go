package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// terminal is a shell that commands are typed into, one after the other, as somebody does who
// waits for each to end.
type terminal struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	nth   int
	once  sync.Once
}

// openTerminal starts a shell by a command line that ends with one's arguments.
func openTerminal(argv ...string) (*terminal, error) {
	t := &terminal{cmd: exec.Command(argv[0], argv[1:]...), lines: make(chan string, 1024)}
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var err error
	if t.in, err = t.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := t.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	t.cmd.Stderr = t.cmd.Stdout
	if err := t.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(t.lines)
		scan := bufio.NewScanner(out)
		scan.Buffer(nil, 1<<20)
		for scan.Scan() {
			t.lines <- scan.Text()
		}
	}()
	return t, nil
}

// enter types a command, and returns what was printed until it ended, and its status.
// Its standard input is empty: what a command reads, the page says. Fails when the shell
// ends, and after the time.
func (t *terminal) enter(ctx context.Context, text string, within time.Duration) (string, int, error) {
	t.nth++
	mark := fmt.Sprintf("--%d-ended-with-", t.nth)
	if _, err := fmt.Fprintf(t.in, "{ %s\n} </dev/null\nprintf '\\n%s%%d\\n' $?\n", text, mark); err != nil {
		return "", 0, err
	}
	var out bytes.Buffer
	late := time.NewTimer(within)
	defer late.Stop()
	for {
		select {
		case line, open := <-t.lines:
			if !open {
				return out.String(), 0, errors.New("the shell has ended")
			}
			if rest, ok := strings.CutPrefix(line, mark); ok {
				var status int
				_, err := fmt.Sscanf(rest, "%d", &status)
				return out.String(), status, err
			}
			out.WriteString(line + "\n")
		case <-late.C:
			return out.String(), 0, fmt.Errorf("it has not ended in %v", within)
		case <-ctx.Done():
			return out.String(), 0, context.Cause(ctx)
		}
	}
}

// close ends the shell and what runs in its group.
func (t *terminal) close() {
	t.once.Do(func() {
		_ = t.in.Close()
		_ = syscall.Kill(-t.cmd.Process.Pid, syscall.SIGKILL) // it has ended, else
		go func() {
			for range t.lines { // so that the reader ends
			}
		}()
		_ = t.cmd.Wait()
	})
}
