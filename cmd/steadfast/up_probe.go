package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// How a probe asks.
const (
	probeEvery    = 250 * time.Millisecond
	probePatience = 2 * time.Second
	// probeSilence is from when on silence is worth telling.
	probeSilence = time.Second
)

// probe asks a Redis again and again whether it is there, each time on a new connection, as
// a client that comes back does.
type probe struct {
	address string
	cancel  context.CancelFunc
	done    chan struct{}

	mu      sync.Mutex
	last    time.Time     // it answered last; zero: never
	longest time.Duration // between two answers
}

// startProbe starts a probe. end is to follow.
func startProbe(address string) *probe {
	ctx, cancel := context.WithCancel(context.Background())
	p := &probe{address: address, cancel: cancel, done: make(chan struct{})}
	go p.run(ctx)
	return p
}

func (p *probe) run(ctx context.Context) {
	defer close(p.done)
	t := time.NewTicker(probeEvery)
	defer t.Stop()
	for {
		if ping(ctx, p.address) {
			p.heard(time.Now())
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// heard notes an answer.
func (p *probe) heard(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.last.IsZero() {
		p.longest = max(p.longest, now.Sub(p.last))
	}
	p.last = now
}

// ping asks once.
func ping(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // nothing waits any more
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && strings.TrimSpace(line) == "+PONG"
}

// answers tells whether there was ever an answer.
func (p *probe) answers() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.last.IsZero()
}

// line says how it answers.
func (p *probe) line(now time.Time) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last.IsZero() {
		return "its Redis has not answered yet"
	}
	text := "its Redis answers"
	if silent := now.Sub(p.last); silent > probeSilence {
		text = fmt.Sprintf("its Redis is silent for %.0f s", silent.Seconds())
	}
	return text + fmt.Sprintf(", longest silence %.1f s", p.longest.Seconds())
}

// end ends it.
func (p *probe) end() {
	p.cancel()
	<-p.done
}
