package initiator

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"steadfast/compute/initiator/initiatortest"
	"steadfast/compute/initiator/nexus"
	"steadfast/fault"
	"steadfast/iscsi"
)

// TestFenceDoubt loses the answer to a fence, when the path that was fenced comes back at
// the same moment: it is not used, since its registration is gone.
func TestFenceDoubt(t *testing.T) {
	var struck atomic.Bool
	r, first, second := doubtWith(t, func(r *rig) {
		r.must("register", func() error { return r.disk.Register(r.Context(), 0xa1) })
		r.must("reserve", func() error { return r.disk.Reserve(r.Context(), WriteExclusiveRegistrants) })
	}, func(r *rig, g uint16, s initiatortest.Step) initiatortest.Fault {
		if g == 2 && s == initiatortest.Response && r != nil && r.target.Preempts.Load() == 1 && struck.CompareAndSwap(false, true) {
			r.target.Mend(1)
			return initiatortest.Drop
		}
		return initiatortest.None
	})
	r.must("first", func() error { return <-first })
	r.must("second", func() error { return <-second })
	if got := r.target.Peek(0, 4096); !bytes.Equal(got, pattern(4096, 2)) {
		t.Error("the later write is not there")
	}
	if !struck.Load() {
		t.Error("the fence was answered")
	}
	r.must("write", func() error { return r.disk.WriteAt(pattern(4096, 4), 0, 0) })
	for _, p := range r.disk.State().Paths {
		if p.Barred != (p.Group == 1) {
			t.Errorf("path %+v", p)
		}
	}
}

// TestCanceled gives up on a registration whose answer was lost: it is not asked again when
// the path is back.
func TestCanceled(t *testing.T) {
	var armed atomic.Bool
	var r *rig
	r = newRig(t, initiatortest.Options{Strike: func(_ uint16, s initiatortest.Step) initiatortest.Fault {
		if s == initiatortest.Command && armed.CompareAndSwap(true, false) {
			r.target.Refuse(1)
			return initiatortest.Drop
		}
		return initiatortest.None
	}}, nil)
	armed.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- r.disk.Register(ctx, 0xa1) }()
	r.until("in doubt", func() bool { return r.disk.State().Paths[0].InDoubt == 1 })
	cancel()
	r.must("register", func() error {
		if err := <-result; !fault.Is(err, fault.Canceled) {
			return err
		}
		return nil
	})
	r.target.Mend(1)
	r.until("back", func() bool {
		s := r.disk.State()
		return s.Paths[0].Up && s.Pending == 0
	})
	if keys := r.target.Keys(); len(keys) != 0 {
		t.Errorf("keys %x of a registration that was given up", keys)
	}
}

// TestExpelled hears that another took the registration: who asked is told, all that
// changes the disk fails from then on, and reads do not.
func TestExpelled(t *testing.T) {
	var armed atomic.Bool
	r := newRig(t, initiatortest.Options{Strike: func(_ uint16, s initiatortest.Step) initiatortest.Fault {
		if s == initiatortest.Command && armed.CompareAndSwap(true, false) {
			return initiatortest.Expelled
		}
		return initiatortest.None
	}}, nil)
	read := func() error { return r.disk.ReadAt(make([]byte, 512), 0) }
	fenced := func(what string, f func() error) {
		t.Helper()
		r.must(what, func() error {
			if err := f(); !fault.Is(err, fault.Fenced) {
				t.Errorf("%s: %v, want fenced", what, err)
			}
			return nil
		})
	}
	armed.Store(true)
	r.must("read of who has no registration", read)
	r.must("register", func() error { return r.disk.Register(t.Context(), 0xa1) })
	armed.Store(true)
	fenced("read", read)
	r.must("read again", read)
	writes := r.target.Writes.Load()
	fenced("write", func() error { return r.disk.WriteAt(make([]byte, 512), 0, 0) })
	fenced("compare and write", func() error {
		_, err := r.disk.CompareAndWrite(0, make([]byte, 512), make([]byte, 512), 0)
		return err
	})
	if now := r.target.Writes.Load(); now != writes {
		t.Errorf("%d writes were sent", now-writes)
	}
	r.must("read keys", func() error { _, err := r.disk.ReadKeys(t.Context()); return err })
	r.must("register again", func() error { return r.disk.Register(t.Context(), 0xa2) })
	r.must("write", func() error { return r.disk.WriteAt(make([]byte, 512), 0, 0) })

	// A command about reservations hears of it: the next request is told.
	armed.Store(true)
	r.must("read keys", func() error { _, err := r.disk.ReadKeys(t.Context()); return err })
	fenced("read", read)
}

// TestManyR2T has a target ask for more at a time than was agreed on, and read nothing.
func TestManyR2T(t *testing.T) {
	r := newRig(t, initiatortest.Options{}, nil)
	d := r.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	q := &request{out: make([]byte, 64<<10), tag: 1 << 16}
	c := &conn{d: d, n: &nexus.Nexus{}, params: d.conns[0].params, slots: []*request{q}, listening: true}
	limit := c.params.MaxOutstandingR2T
	if limit != 2 {
		t.Fatalf("%d R2Ts are agreed on", limit)
	}
	want := func(i int) error {
		var h iscsi.Header
		h.SetOpcode(iscsi.OpR2T)
		h.SetInitiatorTag(q.tag)
		h.SetTargetTag(uint32(i))
		h.SetDataSN(uint32(i))
		h.SetBufferOffset(uint32(i) * 8192)
		h.SetDesiredLength(8192) // two PDUs
		return c.wanted(&h)
	}
	for i := range limit {
		if err := want(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := want(limit); err == nil {
		t.Errorf("%d R2Ts at a time were taken", limit+1)
	}
	if n := len(c.queue); n != 2*limit {
		t.Errorf("%d PDUs are queued", n)
	}
}

// TestNoDialAfterClose closes a disk of two paths, one of which does not say farewell: the
// other one is not dialed again meanwhile.
func TestNoDialAfterClose(t *testing.T) {
	var dials atomic.Int64
	r := newRig(t, initiatortest.Options{Groups: []uint16{1, 2}, Strike: func(g uint16, s initiatortest.Step) initiatortest.Fault {
		if g == 2 && s == initiatortest.Farewell {
			return initiatortest.Silence
		}
		return initiatortest.None
	}}, func(c *Config) {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			dials.Add(1)
			return dial(ctx, address)
		}
		c.Times.Retry, c.Times.Logout = time.Millisecond, 500*time.Millisecond
	})
	r.until("both up", func() bool {
		s := r.disk.State()
		return len(s.Paths) == 2 && s.Paths[0].Up && s.Paths[1].Up
	})
	before := dials.Load()
	r.must("close", r.disk.Close)
	if n := dials.Load() - before; n != 0 {
		t.Errorf("%d dials of a disk that is being closed", n)
	}
}

// TestAlone has one request at a time, whose caller receives: pings, losses and what comes
// unasked are heard as ever, and so are others that come meanwhile.
func TestAlone(t *testing.T) {
	r := newRig(t, initiatortest.Options{}, nil)
	led := 0
	for i := range 200 {
		r.must("write", func() error { return r.disk.WriteAt(pattern(4096, byte(i)), 0, 0) })
		r.disk.mu.Lock()
		for _, c := range r.disk.conns {
			if !c.listening {
				led++
			}
		}
		r.disk.mu.Unlock()
		if i%50 == 49 {
			losses := r.disk.State().Losses
			r.target.Cut(1, false)
			r.until("the loss is heard", func() bool { return r.disk.State().Losses > losses })
		}
	}
	if led == 0 {
		t.Error("nobody but the receiver ever received")
	}
}

// TestCloseIsQuiet closes a disk: that its path ends is no trouble, and people are not told of it.
func TestCloseIsQuiet(t *testing.T) {
	var text bytes.Buffer // of whom the log writes, one at a time
	r := newRig(t, initiatortest.Options{}, func(c *Config) {
		c.Log = slog.New(slog.NewTextHandler(&text, nil))
	})
	r.must("close", r.disk.Close)
	if text.Len() > 0 {
		t.Errorf("said %s", text.String())
	}
}
