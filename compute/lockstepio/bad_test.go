package lockstepio

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"steadfast/compute/lockstep"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// bent is the secondary's end of a link on which bytes can be bent, in both directions.
type bent struct {
	io.ReadWriteCloser
	in, out func(p []byte) []byte // what becomes of bytes, if set
	mu      sync.Mutex
	rest    []byte
}

// Read implements io.Reader.
func (b *bent) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.rest) == 0 {
		q := make([]byte, len(p))
		n, err := b.ReadWriteCloser.Read(q)
		if b.rest = q[:n]; b.in != nil {
			b.rest = b.in(b.rest)
		}
		if len(b.rest) == 0 {
			return 0, err
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// Write implements io.Writer.
func (b *bent) Write(p []byte) (int, error) {
	q := append([]byte(nil), p...)
	if b.out != nil {
		q = b.out(q)
	}
	if _, err := b.ReadWriteCloser.Write(q); err != nil {
		return 0, err
	}
	return len(p), nil
}

// bend has a secondary's log's link bent.
func bend(in, out func(b *bent) func([]byte) []byte) func(*SecondaryOptions) {
	return func(o *SecondaryOptions) {
		b := &bent{ReadWriteCloser: o.Links[lockstep.Logging]}
		if in != nil {
			b.in = in(b)
		}
		if out != nil {
			b.out = out(b)
		}
		o.Links[lockstep.Logging] = b
	}
}

// goesOnAlone holds that the first host goes on alone, that both say why, and the secondary with an
// error of one of these kinds.
func (w *world) goesOnAlone(p, s *host, kinds ...fault.Kind) {
	w.t.Helper()
	w.event("0 unprotected")
	s.waits(w.t)
	var over *Over
	if !errors.As(s.err, &over) || over.Why == lockstep.WhyNone || over.Err == nil {
		w.t.Fatalf("the secondary: %v", s.err)
	}
	ok := len(kinds) == 0
	for _, k := range kinds {
		ok = ok || fault.Is(over.Err, k)
	}
	w.mu.Lock()
	why := w.why[0]
	w.mu.Unlock()
	if !ok || why.Why == lockstep.WhyNone {
		w.t.Errorf("the secondary says %v, and the primary %v: %v", s.err, why.Why, why.Err)
	}
	w.t.Logf("the secondary says %v; the primary: %v: %v", s.err, why.Why, why.Err)
	w.work(2)
	w.judge(p)
}

// TestBadStream: a log that is flipped, repeated or cut, anywhere and in either direction, ends the
// pair, and the machine goes on where it was.
func TestBadStream(t *testing.T) {
	hows := map[string]func(r *rand.Rand, b *bent, p []byte) []byte{
		"flipped":  func(r *rand.Rand, _ *bent, p []byte) []byte { p[r.IntN(len(p))] ^= 1 << r.IntN(8); return p },
		"repeated": func(_ *rand.Rand, _ *bent, p []byte) []byte { return append(p, p...) },
		"cut": func(r *rand.Rand, b *bent, p []byte) []byte {
			_ = b.Close()
			return p[:r.IntN(len(p))]
		},
	}
	for _, c := range []struct {
		how, where string
		back       bool // from the secondary
	}{
		{"flipped", "the head", false},
		{"flipped", "the copy", false},
		{"flipped", "the log", false},
		{"flipped", "the log", true},
		{"flipped", "the head", true},
		{"repeated", "the copy", false},
		{"repeated", "the log", false},
		{"repeated", "the log", true},
		{"cut", "the copy", false},
		{"cut", "the log", false},
		{"cut", "the log", true},
	} {
		name := c.how + ", " + c.where
		if c.back {
			name += ", to the primary"
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 5, patience)
			w.o.Limits.Stalled = 2 * time.Second
			r := rand.New(rand.NewPCG(5, uint64(len(name))))
			var armed, done atomic.Bool
			armed.Store(c.where != "the log")
			came := 0
			on := func(b *bent) func([]byte) []byte {
				return func(p []byte) []byte {
					first := came == 0
					came += len(p)
					if len(p) == 0 || !armed.Load() || c.where == "the copy" && (first || came < 1<<10) || done.Swap(true) {
						return p
					}
					return hows[c.how](r, b, p)
				}
			}
			in, out := on, (func(*bent) func([]byte) []byte)(nil)
			if c.back {
				in, out = out, on
			}
			p := w.boot()
			w.work(1)
			s, _ := w.follow(p, 1, bend(in, out))
			if c.where == "the log" {
				w.event("0 protected")
				w.event("1 protected")
				w.work(1)
				armed.Store(true)
			}
			w.goesOnAlone(p, s)
		})
	}
}

// TestOtherStream: a secondary does not follow the stream of another pair, or of another version of the
// program, and says so.
func TestOtherStream(t *testing.T) {
	head := func(change func(b []byte)) func(*bent) func([]byte) []byte {
		return func(*bent) func([]byte) []byte {
			done := false
			return func(p []byte) []byte {
				if !done && len(p) > 0 {
					done = true
					_, first := lockstep.NewWriter(lockstep.Head{})
					change(p[:len(first)])
					sum := crc32.Checksum(p[:len(first)-4], crc32.MakeTable(crc32.Castagnoli))
					binary.LittleEndian.PutUint32(p[len(first)-4:], sum)
				}
				return p
			}
		}
	}
	for name, change := range map[string]func(b []byte){
		"another pair":    func(b []byte) { b[12] ^= 1 },
		"another version": func(b []byte) { b[7]++ },
		"its own side":    func(b []byte) { b[8] = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 6, patience)
			p := w.boot()
			s, _ := w.follow(p, 1, bend(head(change), nil))
			w.goesOnAlone(p, s, fault.Invalid)
		})
	}
}

// TestClockStepped: the clock of a host goes an hour forth or back, and nobody is suspected; and the
// secondary goes on when it has to.
func TestClockStepped(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		for host := range 2 {
			w := newWorld(t, 7, 20*time.Second)
			var step atomic.Int64
			clock := func() lockstep.Instant { return now() + lockstep.Instant(step.Load()) }
			still := w.o
			if host == 0 {
				w.o.clock = clock
			}
			p := w.boot()
			w.o = still
			s, _ := w.follow(p, 1, func(o *SecondaryOptions) {
				if host == 1 {
					o.clock = clock
				}
			})
			w.event("0 protected")
			w.event("1 protected")
			w.work(1)
			step.Store(int64(by))
			w.work(3)
			w.mu.Lock()
			n := len(w.events)
			w.mu.Unlock()
			if n != 2 || !p.p.Status().Protected {
				t.Errorf("host %d's clock by %v: %v", host, by, w.events)
			}
			p.kill()
			p.waits(t)
			w.event("1 took over")
			w.work(2)
			w.judge(s)
		}
	}
}

// TestTwoSecondaries: of two that both have all of a pair's log, and its links, one goes on.
func TestTwoSecondaries(t *testing.T) {
	w := newWorld(t, 8, patience)
	p := w.boot()
	pl, sl, _ := cables()
	// The second one gets what the first one gets, and what it says nobody hears. The first one
	// is not heard before it has loaded, too: it would else be told the block too early.
	var links [2]Links
	var second atomic.Pointer[Secondary]
	wait := func(p []byte) []byte {
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if s := second.Load(); s != nil && s.Status().State != lockstep.Loading.String() {
				break
			}
		}
		return p
	}
	for i := range sl {
		a, b := net.Pipe()
		go func() {
			defer a.Close()
			buf := make([]byte, 64<<10)
			for {
				if n, err := b.Read(buf); err != nil || n == 0 {
					return
				}
			}
		}()
		links[0][i] = &bent{ReadWriteCloser: sl[i], out: wait, in: func(p []byte) []byte { // a copy
			q := append([]byte(nil), p...)
			_ = b.SetWriteDeadline(time.Now().Add(patience))
			if _, err := b.Write(q); err != nil || len(q) == 0 {
				_ = b.Close()
			}
			return p
		}}
		links[1][i] = a
	}
	session := lockstep.Session{1, 5}
	var both [2]*host
	for i, l := range links {
		both[i] = w.begin(SecondaryOptions{Options: w.options(1), Me: owners[1], Session: session, Links: l})
	}
	second.Store(both[1].s)
	must(t, p.p.TurnOn(pl, session, owners[1]))
	w.event("0 protected")
	w.until("both know", func() bool { return w.heard("1 protected") == 2 })
	w.work(2)
	p.kill()
	p.waits(t)
	w.event("1 took over")
	w.work(2)
	lost, won := both[0], both[1]
	select {
	case <-both[0].ended:
	case <-both[1].ended:
		lost, won = won, lost
	case <-time.After(patience):
		t.Fatal("neither gives up")
	}
	var over *Over
	if !errors.As(lost.err, &over) || !fault.Is(over.Err, fault.Fenced) {
		t.Errorf("the other one: %v", lost.err)
	}
	w.work(2)
	w.judge(won)
}

// heard is how often an event came.
func (w *world) heard(event string) (n int) {
	for _, e := range w.events {
		if e == event {
			n++
		}
	}
	return n
}

// TestBusyWithOne: a second pair is refused, and the first one goes on; who waits for the second one is
// told.
func TestBusyWithOne(t *testing.T) {
	w := newWorld(t, 9, patience)
	p := w.boot()
	s, _ := w.follow(p, 1, nil)
	w.event("0 protected")
	pl, sl, _ := cables()
	session := lockstep.Session{1, 5}
	other := w.begin(SecondaryOptions{Options: w.options(2), Me: owners[2], Session: session, Links: sl})
	if err := p.p.TurnOn(pl, session, vmlock.Owner{Host: 3, Boot: 1}); !fault.Is(err, fault.Busy) {
		t.Errorf("a second secondary: %v", err)
	}
	other.waits(t)
	var over *Over
	if !errors.As(other.err, &over) || over.Why != lockstep.WhyBroken || !fault.Is(over.Err, fault.Unreachable) {
		t.Errorf("the second one: %v", other.err)
	}
	w.work(2)
	if !p.p.Status().Protected {
		t.Error("the first one is gone")
	}
	w.judge(p)
	s.waits(t)
}
