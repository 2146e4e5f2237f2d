package target

import (
	"log/slog"
	"sync"
	"time"
)

// logEvery is how often one cause from one address is logged.
const logEvery = time.Minute

// logsMax bounds the causes remembered.
const logsMax = 4096

// logs writes what initiators do wrong, once per cause and address and
// minute, so that a flood of errors is not a flood of log lines.
type logs struct {
	log *slog.Logger

	mu   sync.Mutex
	last map[[3]string]*logged
}

type logged struct {
	at         time.Time
	suppressed int
}

// warn logs msg with its cause and address, and how many were left out since
// the last time.
func (l *logs) warn(msg, cause, address string, args ...any) {
	now := time.Now()
	key := [3]string{msg, cause, address}
	l.mu.Lock()
	if l.last == nil || len(l.last) >= logsMax {
		l.last = make(map[[3]string]*logged)
	}
	e := l.last[key]
	if e != nil && now.Sub(e.at) < logEvery {
		e.suppressed++
		l.mu.Unlock()
		return
	}
	left := 0
	if e != nil {
		left = e.suppressed
	}
	l.last[key] = &logged{at: now}
	l.mu.Unlock()
	args = append([]any{"cause", cause, "address", address}, args...)
	if left > 0 {
		args = append(args, "suppressed", left)
	}
	l.log.Warn(msg, args...)
}
