package netswitch

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// slowLink takes messages when it is let.
type slowLink struct {
	begun chan int      // how many messages a write has
	let   chan struct{} // one write
}

func (l *slowLink) read([]byte) (int, error) { select {} }
func (l *slowLink) try([]byte) error         { return unix.EAGAIN }
func (l *slowLink) Close() error             { return nil }
func (l *slowLink) write(messages ...[]byte) error {
	l.begun <- len(messages)
	<-l.let
	return nil
}

// TestQueueRoom fills a port's queue while its other side takes nothing: more is dropped and
// counted; and as soon as a part was taken there is room for as much again, not only
// when all was.
func TestQueueRoom(t *testing.T) {
	l := &slowLink{begun: make(chan int, 8), let: make(chan struct{})}
	p := newPort(Hello{}, "test", 1500)
	p.link = l
	p.begin()
	var carrying sync.WaitGroup
	carrying.Go(p.carry)
	defer func() {
		p.close()
		close(l.let)
		carrying.Wait()
	}()
	frame := make([]byte, 1000)
	p.send(frame)
	part := <-l.begun // it is being sent, and takes its room
	if part != 1 {
		t.Fatalf("%d messages of one frame", part)
	}
	sent := 1
	for ; p.lost.Load() == 0; sent++ {
		p.send(frame)
	}
	if room := queueBytesMax / (len(frame) + queuedBytes); sent-1 != room {
		t.Errorf("%d frames wait, %d have room", sent-1, room)
	}
	l.let <- struct{}{}
	part = <-l.begun // what was one is out; a part of the rest is on its way
	if most := 2 * carryBytes / (len(frame) + queuedBytes); part > most {
		t.Fatalf("%d frames are sent at a time, more than %d", part, most)
	}
	l.let <- struct{}{}
	<-l.begun
	lost := p.lost.Load()
	for i := range part + 1 {
		p.send(frame)
		if p.lost.Load() != lost {
			t.Fatalf("frame %d of %d for which there is room was dropped", i+1, part+1)
		}
	}
	if p.send(frame); p.lost.Load() != lost+1 {
		t.Error("more was taken than there is room for")
	}
}
