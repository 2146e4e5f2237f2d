package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"steadfast/test/testbed"
)

// beatPort is where the client hears the guest.
const beatPort = "7777"

// A boot is one life of the guest, as the client hears it.
type boot struct {
	id          string
	first, last time.Time
	beats       int
}

// listener hears the guest on the client's kernel.
type listener struct {
	conn  net.PacketConn
	ended sync.WaitGroup

	mu    sync.Mutex
	boots []boot // in the order of their first beats
}

func newListener(space *testbed.Space) (*listener, error) {
	l := &listener{}
	err := space.Do(func() (err error) {
		l.conn, err = net.ListenPacket("udp4", clientAddress+":"+beatPort)
		return err
	})
	if err != nil {
		return nil, err
	}
	l.ended.Go(l.hear)
	return l, nil
}

func (l *listener) hear() {
	b := make([]byte, 256)
	for {
		n, _, err := l.conn.ReadFrom(b)
		if err != nil {
			return // Close
		}
		id, _, ok := strings.Cut(string(b[:n]), " ")
		if ok {
			l.heard(id, time.Now())
		}
	}
}

func (l *listener) heard(id string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.boots {
		if l.boots[i].id == id {
			l.boots[i].last = now
			l.boots[i].beats++
			return
		}
	}
	l.boots = append(l.boots, boot{id, now, now, 1})
}

// present is the newest boot; false if there was none.
func (l *listener) present() (boot, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.boots) == 0 {
		return boot{}, false
	}
	return l.boots[len(l.boots)-1], true
}

// after waits for another boot than that one.
func (l *listener) after(ctx context.Context, old boot, patience time.Duration) (boot, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if b, ok := l.present(); ok && b.id != old.id {
			return b, nil
		}
		if ctx.Err() != nil {
			return boot{}, fmt.Errorf("no new life of the guest was heard of within %v: %w", patience, ctx.Err())
		}
		pause(ctx, pollEvery)
	}
}

// of tells how a boot was heard until now.
func (l *listener) of(id string) boot {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.boots {
		if b.id == id {
			return b
		}
	}
	return boot{id: id}
}

// alone fails if an old life of the guest was heard after a newer one.
func (l *listener) alone(old, newer boot) error {
	if b := l.of(old.id); b.last.After(newer.first) {
		return fmt.Errorf("two lives of the machine at once: the old one was heard for %v after the new one", b.last.Sub(newer.first).Round(time.Millisecond))
	}
	return nil
}

// Close ends it.
func (l *listener) Close() error {
	err := l.conn.Close()
	l.ended.Wait()
	return err
}
