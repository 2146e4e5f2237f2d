package target

import (
	"sync/atomic"
	"testing"
	"time"

	"steadfast/iscsi"
	"steadfast/san/target/targettest"
	"steadfast/scsi"
)

// TestInline brings a session to have its reader execute writes, lets one of
// them hang, and proves that the connection is read all the same, that a reset
// is answered only when the write has ended, and that the session goes on.
func TestInline(t *testing.T) {
	r := newRig(t, Config{})
	var hang atomic.Bool
	entered, release, marked := make(chan struct{}), make(chan struct{}), make(chan struct{})
	r.disk.Marked = func() { close(marked) }
	r.disk.Gate = func(*scsi.Task) {
		if hang.CompareAndSwap(true, false) {
			close(entered)
			<-release
		}
	}
	c, _ := r.login("")
	write := func() iscsi.Header {
		h := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...)
		r.send(c, h, pattern(512, 1))
		return h
	}
	settle := func(n int) {
		for range n {
			h := write()
			if status, _ := r.expectStatus(c, h.InitiatorTag()); status != 0 {
				t.Fatalf("status %#x", status)
			}
		}
	}
	s := r.session(c)
	turns := func() uint64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.inline.turn
	}
	// A machine that stalls the test may relieve the reader early; the slow
	// commands it then owes to workers pass.
	for deadline := time.Now().Add(20 * time.Second); turns() == 0; {
		if settle(2 * aloneMin); time.Now().After(deadline) {
			t.Fatal("the reader executes nothing")
		}
	}
	for {
		before := turns()
		if settle(1); turns() == before+2 {
			break
		}
	}
	hang.Store(true)
	write()
	<-entered
	ping := c.Request(iscsi.OpNopOut)
	ping.SetTargetTag(iscsi.NoTag)
	r.send(c, ping, []byte("still there"))
	if _, data := r.expect(c, iscsi.OpNopIn); string(data) != "still there" {
		t.Errorf("ping: %q", data)
	}
	r.send(c, manage(c, scsi.LogicalUnitResetFunction, 0, 0), nil)
	<-marked
	close(release)
	// The write that the reset ended is not answered: a NOP-In carries the
	// window that it leaves open, ahead of the reset's answer or behind it.
	for want := map[iscsi.Opcode]bool{iscsi.OpNopIn: true, iscsi.OpTaskResponse: true}; len(want) > 0; {
		h, _, err := c.Recv()
		if err != nil || !want[h.Opcode()] {
			t.Fatalf("%v, %v", h.Opcode(), err)
		}
		delete(want, h.Opcode())
	}
	if b, e := r.disk.Begun.Load(), r.disk.Ended.Load(); b != e {
		t.Errorf("the reset was answered with %d of %d tasks ended", e, b)
	}
	settle(2 * aloneMin)
}
