// Package logline writes a log without ever making its writer wait: a log that hangs
// (a drive that stalls, a terminal that is held, a reader of a pipe that stopped) must
// not hold up who answers disks. Lines wait in memory, up to a bound; what does not
// fit is dropped, and how many lines that were is said as soon as something can be. The newest
// lines are kept in memory, for whoever asks the process itself.
package logline

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
)

// recentMax is how much of what was written last is kept, in bytes.
const recentMax = 512 << 10

// queueMax is how much waits, in bytes: some thousand lines.
const queueMax = 1 << 20

// Writer is an io.Writer of whole lines, safe for concurrent use.
type Writer struct {
	to io.Writer

	mu      sync.Mutex
	queue   []byte
	recent  []byte        // what came last, whole lines
	dropped int           // lines, since the last that was kept
	wake    chan struct{} // something is queued
	closed  bool
	done    chan struct{} // the last byte is written
}

// New returns a writer to another, which only it writes to until it is closed.
func New(to io.Writer) *Writer {
	w := &Writer{to: to, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go w.run()
	return w
}

// Write queues a line, which it copies. It never fails and never waits: what it is
// given is written, or counted as dropped.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keep(line)
	if w.closed || len(w.queue)+len(line) > queueMax {
		w.dropped++
		return len(line), nil
	}
	w.tell()
	w.queue = append(w.queue, line...)
	w.signal()
	return len(line), nil
}

// keep keeps a line for Recent. Under mu.
func (w *Writer) keep(line []byte) {
	if len(w.recent)+len(line) > recentMax {
		// A quarter goes at once, so that not every line moves all of it.
		old := w.recent[min(len(w.recent), recentMax/4):]
		_, old, _ = bytes.Cut(old, []byte("\n"))
		w.recent = append(w.recent[:0], old...)
	}
	w.recent = append(w.recent, line[:min(len(line), recentMax/4)]...)
}

// Recent returns the newest lines, those too that could not be written.
func (w *Writer) Recent() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Clone(w.recent)
}

// tell queues a line about those that were dropped. Under mu.
func (w *Writer) tell() {
	if w.dropped > 0 {
		w.queue = fmt.Appendf(w.queue, "the log could not be written for a time: %d lines are missing here\n", w.dropped)
		w.dropped = 0
	}
}

func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run writes what is queued. What cannot be written is lost: there is nowhere to say so.
func (w *Writer) run() {
	defer close(w.done)
	for range w.wake {
		for {
			w.mu.Lock()
			out, closed := w.queue, w.closed
			w.queue = nil
			w.mu.Unlock()
			if len(out) > 0 {
				_, _ = w.to.Write(out)
				continue
			}
			if closed {
				return
			}
			break
		}
	}
}

// Close waits until everything is written, at most for patience, and reports whether it
// is. What is written later is dropped.
func (w *Writer) Close(patience time.Duration) bool {
	w.mu.Lock()
	w.tell()
	w.closed = true
	w.mu.Unlock()
	w.signal()
	select {
	case <-w.done:
		return true
	case <-time.After(patience):
		return false
	}
}
