package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
)

// screen prints for several goroutines: lines that stay, and one line of status,
// over itself on a terminal and line by line elsewhere.
type screen struct {
	mu       sync.Mutex
	out      io.Writer
	terminal bool
	open     bool // the status is on the last line
}

func newScreen(out io.Writer) *screen { return &screen{out: out, terminal: isTerminal(out)} }

// say prints lines that stay.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	s.print(strings.TrimSuffix(fmt.Sprintf(format, args...), "\n") + "\n")
}

// status prints the status.
func (s *screen) status(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.terminal {
		s.print(text + "\n")
		return
	}
	s.clear()
	s.print(text)
	s.open = true
}

// endStatus leaves the status where it is.
func (s *screen) endStatus() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open {
		s.print("\n")
	}
	s.open = false
}

// clear takes the status off the last line. Under mu.
func (s *screen) clear() {
	if s.open {
		s.print("\r\x1b[K")
	}
	s.open = false
}

// print prints, whose error there is nobody to tell. Under mu.
func (s *screen) print(text string) { _, _ = io.WriteString(s.out, text) }
