package target

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// logEvery is the time that the bounds below are for.
const logEvery = time.Minute

// How much is logged in that time. What initiators say about themselves goes
// into attributes, never into a cause: else a flood could be made of ever new
// causes.
const (
	addressesPerCause = 32 // a cause, by different addresses
	eventsPerAddress  = 64 // sessions that begin or end well
	causesMax         = 4096
)

// logs writes what initiators do, and do wrong: once per cause and address and
// minute, and for few of many addresses, so that a flood of errors is not a
// flood of log lines.
type logs struct {
	log *slog.Logger

	mu        sync.Mutex
	since     time.Time
	seen      map[[3]string]int // lines, by message, cause and address
	addresses map[[2]string]int // addresses logged, by message and cause
	left      int               // lines left out
}

// warn logs msg with its cause and address, once.
func (l *logs) warn(msg, cause, address string, args ...any) {
	l.write(slog.LevelWarn, 1, msg, cause, address, args)
}

// info logs an event of ordinary life; cause may be empty.
func (l *logs) info(msg, cause, address string, args ...any) {
	l.write(slog.LevelInfo, eventsPerAddress, msg, cause, address, args)
}

func (l *logs) write(level slog.Level, most int, msg, cause, address string, args []any) {
	ok, left := l.admit(most, [3]string{msg, cause, address})
	if left > 0 {
		l.log.Warn("log lines about initiators left out", "count", left)
	}
	if !ok {
		return
	}
	if cause != "" {
		args = append(args, "cause", cause)
	}
	//nolint:sloglint // The messages are constants where this is called from.
	l.log.Log(context.Background(), level, msg, append(args, "address", address)...)
}

// admit counts a line, and reports whether it is to be written. A new minute
// begins with how many lines of the last were left out.
func (l *logs) admit(most int, key [3]string) (ok bool, left int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); l.seen == nil || now.Sub(l.since) >= logEvery {
		left, l.left, l.since = l.left, 0, now
		l.seen, l.addresses = make(map[[3]string]int), make(map[[2]string]int)
	}
	group := [2]string{key[0], key[1]}
	n, known := l.seen[key]
	if n >= most || !known && (l.addresses[group] >= addressesPerCause || len(l.seen) >= causesMax) {
		l.left++
		return false, left
	}
	if !known {
		l.addresses[group]++
	}
	l.seen[key]++
	return true, left
}

// causeOf is an error without the ports and lengths that make each one
// different.
func causeOf(err error) string {
	var op *net.OpError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.As(err, &op):
		return op.Err.Error()
	}
	return err.Error()
}
