package initiator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steadfast/block"
	"steadfast/compute/initiator/initiatortest"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/scsi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come.
const patience = time.Minute

// config returns a configuration for a double, with short times.
func config(t *initiatortest.Target) Config {
	return Config{
		Initiator: "iqn.2026-11.test:i", ISID: iscsi.ISID{0x80, 1, 2, 3, 4, 5},
		Target: initiatortest.Name, Portals: t.Addrs(),
		Log: discard(),
		Times: Times{
			Login: 500 * time.Millisecond, Retry: 10 * time.Millisecond,
			Ping: 60 * time.Millisecond, PingIdle: 200 * time.Millisecond, Dead: 100 * time.Millisecond,
			Command: 2 * time.Second, Logout: 200 * time.Millisecond, Fence: 50 * time.Millisecond,
		},
	}
}

// rig is a double and a disk on it.
type rig struct {
	*testing.T
	target *initiatortest.Target
	disk   *Disk
}

func newRig(t *testing.T, o initiatortest.Options, edit func(*Config)) *rig {
	t.Helper()
	if o.Size == 0 {
		o.Size = 1 << 20
	}
	target, err := initiatortest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(target)
	if edit != nil {
		edit(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d, err := Open(ctx, cfg)
	if err != nil {
		target.Close()
		t.Fatal(err)
	}
	r := &rig{t, target, d}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		target.Close()
		for _, f := range target.Faults() {
			t.Error("the initiator was wrong:", f)
		}
	})
	return r
}

// must fails the test when what must come does not come in time, and with its
// error.
func (r *rig) must(what string, f func() error) {
	r.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		if err != nil {
			r.Fatalf("%s: %v", what, err)
		}
	case <-time.After(patience):
		r.Fatalf("%s: no end; %+v", what, r.disk.State())
	}
}

// until polls for a condition.
func (r *rig) until(what string, ok func() bool) {
	r.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("never: %s; %+v", what, r.disk.State())
		}
	}
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return b
}

// TestDevice has every operation of block.Device, over every way that data
// goes to a target.
func TestDevice(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(*iscsi.Params)
		cfg  func(*Config)
	}{
		{name: "unsolicited"},
		{name: "solicited", edit: func(p *iscsi.Params) { p.InitialR2T = true }},
		{name: "nothing immediate", edit: func(p *iscsi.Params) { p.ImmediateData = false }},
		{name: "R2T only", edit: func(p *iscsi.Params) { p.ImmediateData, p.InitialR2T = false, true }},
		{name: "small bursts", edit: func(p *iscsi.Params) { p.MaxBurstLength, p.FirstBurstLength, p.MaxRecvLength = 1024, 512, 512 }},
		{name: "digests", cfg: func(c *Config) { c.HeaderDigest, c.DataDigest = true, true }},
		{name: "data digest", cfg: func(c *Config) { c.DataDigest = true }},
		{name: "one at a time", cfg: func(c *Config) { c.QueueDepth = 1 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := initiatortest.DefaultParams()
			if tc.edit != nil {
				tc.edit(&p)
			}
			r := newRig(t, initiatortest.Options{Params: p}, tc.cfg)
			testDevice(r, r.disk, 1<<20)
		})
	}
}

// testDevice compares a device with a slice of bytes.
func testDevice(t *rig, d block.Device, size int) {
	t.Helper()
	if d.Size() != int64(size) {
		t.Fatalf("size %d, want %d", d.Size(), size)
	}
	model := make([]byte, size)
	same := func(what string) {
		t.Helper()
		got := make([]byte, size)
		t.must("read all", func() error { return d.ReadAt(got, 0) })
		if !bytes.Equal(got, model) {
			t.Fatalf("%s: the disk differs", what)
		}
	}
	for i, w := range []struct{ off, n int }{{0, 512}, {4096, 4096}, {512, 130 << 10}, {300 << 10, 512 << 10}, {size - 512, 512}, {1536, 0}} {
		p := pattern(w.n, byte(i+1))
		t.must("write", func() error { return d.WriteAt(p, int64(w.off), block.Flags(i&1)) })
		copy(model[w.off:], p)
	}
	same("writes")
	t.must("flush", d.Flush)
	for _, z := range []struct{ off, n int }{{512, 512}, {8192, 65536}, {100 << 10, 200 << 10}} {
		t.must("zero", func() error { return d.Zero(int64(z.off), int64(z.n), block.FUA) })
		clear(model[z.off : z.off+z.n])
	}
	same("zeroes")
	for _, z := range []struct{ off, n int }{{400<<10 + 512, 100 << 10}, {700<<10 + 512, 1024}} {
		t.must("trim", func() error { return d.Trim(int64(z.off), int64(z.n)) })
		clear(model[z.off : z.off+z.n])
	}
	same("trims")
	place := model[4096 : 4096+1024]
	fresh := pattern(1024, 99)
	t.must("compare and write", func() error {
		at, err := d.CompareAndWrite(4096, place, fresh, 0)
		if err == nil && at != -1 {
			err = fmt.Errorf("differs at %d", at)
		}
		return err
	})
	old := bytes.Clone(place)
	copy(place, fresh)
	if bytes.Equal(old, place) {
		t.Fatal("the test compares nothing")
	}
	want := 0
	for old[want] == place[want] {
		want++
	}
	t.must("compare what differs", func() error {
		at, err := d.CompareAndWrite(4096, old, pattern(1024, 98), 0)
		if err == nil && at != int64(want) {
			err = fmt.Errorf("differs at %d, want %d", at, want)
		}
		return err
	})
	same("compare and write")
	for _, bad := range []error{
		d.ReadAt(make([]byte, 512), int64(size)), d.ReadAt(make([]byte, 100), 0), d.WriteAt(make([]byte, 512), 7, 0),
		d.Trim(-512, 512), d.Zero(0, int64(size)+512, 0),
	} {
		if !fault.Is(bad, fault.Invalid) {
			t.Errorf("%v, want invalid", bad)
		}
	}
}

// TestCHAP logs in with secrets, and with wrong ones.
func TestCHAP(t *testing.T) {
	in := &iscsi.Credentials{Name: "user", Secret: []byte("secret-of-initiator")}
	mutual := &iscsi.Credentials{Name: "target", Secret: []byte("secret-of-the-target")}
	other := &iscsi.Credentials{Name: "user", Secret: []byte("another-secret-it-is")}
	for _, tc := range []struct {
		name         string
		ours, theirs iscsi.Auth
		denied       bool
	}{
		{"one way", iscsi.Auth{In: in}, iscsi.Auth{In: in}, false},
		{"both ways", iscsi.Auth{In: in, Mutual: mutual}, iscsi.Auth{In: in, Mutual: mutual}, false},
		{"wrong", iscsi.Auth{In: other}, iscsi.Auth{In: in}, true},
		{"none", iscsi.Auth{}, iscsi.Auth{In: in}, true},
		{"target is another", iscsi.Auth{In: in, Mutual: other}, iscsi.Auth{In: in, Mutual: mutual}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			target, err := initiatortest.New(initiatortest.Options{Size: 1 << 20, Auth: tc.theirs})
			if err != nil {
				t.Fatal(err)
			}
			defer target.Close()
			cfg := config(target)
			cfg.Auth = tc.ours
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			d, err := Open(ctx, cfg)
			if err == nil {
				defer d.Close()
			}
			if tc.denied != fault.Is(err, fault.Denied) || !tc.denied && err != nil {
				t.Fatal(err)
			}
			if ctx.Err() != nil {
				t.Error("a refusal was waited out")
			}
		})
	}
}

// TestOpenWaits opens a disk whose target comes later, and gives one up.
func TestOpenWaits(t *testing.T) {
	r := newRig(t, initiatortest.Options{}, nil)
	cfg := config(r.target)
	cfg.ISID[5]++
	cfg.Portals = []string{"127.0.0.1:1"}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, cfg); !fault.Is(err, fault.Unreachable) {
		t.Fatalf("%v, want unreachable", err)
	}
	for _, edit := range []func(*Config){
		func(c *Config) { c.Portals = nil },
		func(c *Config) { c.ISID = iscsi.ISID{} },
		func(c *Config) { c.Target = "x" },
		func(c *Config) { c.LUN = 1 << 20 },
	} {
		cfg := config(r.target)
		edit(&cfg)
		if _, err := Open(t.Context(), cfg); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v, want invalid", err)
		}
	}
}

// TestPauseOnly cuts the connection over and over under load: nobody sees more
// than a pause.
func TestPauseOnly(t *testing.T) {
	r := newRig(t, initiatortest.Options{}, nil)
	stop := make(chan struct{})
	var users sync.WaitGroup
	for i := range 8 {
		users.Go(func() {
			for n := byte(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				p := pattern(9<<10, n+byte(i))
				off := int64(i) * 64 << 10
				if err := r.disk.WriteAt(p, off, 0); err != nil {
					r.Errorf("write: %v", err)
					return
				}
				got := make([]byte, len(p))
				if err := r.disk.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
					r.Errorf("read: %v, or wrong", err)
					return
				}
			}
		})
	}
	for i := range 20 {
		at := r.target.Logins.Load()
		r.target.Cut(1, i%3 == 0)
		time.Sleep(2 * time.Millisecond) // for how long it is cut
		r.target.Mend(1)
		r.until("back", func() bool { return r.target.Logins.Load() > at })
	}
	close(stop)
	r.must("users", func() error { users.Wait(); return nil })
	s := r.disk.State()
	if s.Losses < 20 || s.Pending != 0 {
		t.Errorf("state %+v", s)
	}
}

// TestClose ends what waits, and what comes after.
func TestClose(t *testing.T) {
	r := newRig(t, initiatortest.Options{}, nil)
	r.target.Cut(1, true)
	r.until("down", func() bool { return !r.disk.State().Paths[0].Up })
	result := make(chan error, 1)
	go func() { result <- r.disk.WriteAt(make([]byte, 512), 0, 0) }()
	r.until("waiting", func() bool { return r.disk.State().Pending == 1 })
	if s := r.disk.State(); s.Waiting == 0 || s.Pauses == 0 {
		t.Errorf("no pause in %+v", s)
	}
	r.must("close", r.disk.Close)
	if err := <-result; !fault.Is(err, fault.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
	if err := r.disk.Flush(); !fault.Is(err, fault.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
}

// TestResize follows a disk that grows.
func TestResize(t *testing.T) {
	r := newRig(t, initiatortest.Options{Strike: once(initiatortest.Command, 12, initiatortest.UnitAttention)}, nil)
	r.target.Resize(2 << 20)
	r.until("larger", func() bool {
		r.must("read", func() error { return r.disk.ReadAt(make([]byte, 512), 0) })
		return r.disk.Size() == 2<<20
	})
	r.must("write", func() error { return r.disk.WriteAt(make([]byte, 512), 2<<20-512, 0) })
}

// once strikes at the n-th time that a step is passed.
func once(at initiatortest.Step, n int, f initiatortest.Fault) func(uint16, initiatortest.Step) initiatortest.Fault {
	var mu sync.Mutex
	return func(_ uint16, s initiatortest.Step) initiatortest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if s != at {
			return initiatortest.None
		}
		if n--; n == 0 {
			return f
		}
		return initiatortest.None
	}
}

// TestPaths chooses by access states, and follows when they change.
func TestPaths(t *testing.T) {
	r := newRig(t, initiatortest.Options{Groups: []uint16{1, 2}}, nil)
	both := func(s State) bool { return len(s.Paths) == 2 && s.Paths[0].Up && s.Paths[1].Up }
	r.until("both up", func() bool { return both(r.disk.State()) })
	write := func() error { return r.disk.WriteAt(pattern(512, 1), 0, 0) }
	for range 3 {
		for _, active := range []uint16{1, 2} {
			r.target.SetAccess(active, scsi.ActiveOptimized)
			r.target.SetAccess(3-active, scsi.Standby)
			r.must("write", write)
		}
	}
	// Nothing serves: a pause, until something does.
	r.target.SetAccess(1, scsi.Transitioning)
	r.target.SetAccess(2, scsi.Standby)
	result := make(chan error, 1)
	go func() { result <- write() }()
	r.until("a pause", func() bool { return r.disk.State().Waiting > 0 })
	r.target.SetAccess(2, scsi.ActiveNonOptimized)
	r.must("write", func() error { return <-result })
}

// TestDoubtWaits loses a write's answer on one path: it goes to the other only
// when the first was logged in to again, and nothing that overlaps it before;
// reads and other writes go on.
func TestDoubtWaits(t *testing.T) {
	r, first, second := doubt(t, nil)
	r.target.Mend(1)
	r.must("first", func() error { return <-first })
	r.must("second", func() error { return <-second })
	if got := r.target.Peek(0, 4096); !bytes.Equal(got, pattern(4096, 2)) {
		t.Error("the later write is not there")
	}
}

// doubt makes a disk of two paths, of which one is lost with a write in doubt,
// and another that overlaps it waits.
func doubt(t *testing.T, prepare func(*rig)) (r *rig, first, second chan error) {
	return doubtWith(t, prepare, func(*rig, uint16, initiatortest.Step) initiatortest.Fault { return initiatortest.None })
}

// doubtWith is doubt with more that goes wrong.
func doubtWith(t *testing.T, prepare func(*rig), more func(*rig, uint16, initiatortest.Step) initiatortest.Fault) (r *rig, first, second chan error) {
	var mu sync.Mutex
	var known *rig
	armed := false
	r = newRig(t, initiatortest.Options{Groups: []uint16{1, 2}, Strike: func(g uint16, s initiatortest.Step) initiatortest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if armed && g == 1 && s == initiatortest.Command {
			armed = false
			// Before the write is lost, or it would be back at once.
			r.target.Refuse(1)
			return initiatortest.Late
		}
		return more(known, g, s)
	}}, nil)
	mu.Lock()
	known = r
	mu.Unlock()
	r.until("both up", func() bool {
		s := r.disk.State()
		return len(s.Paths) == 2 && s.Paths[0].Up && s.Paths[1].Up
	})
	if prepare != nil {
		prepare(r)
	}
	r.target.SetAccess(2, scsi.ActiveNonOptimized)
	r.must("read", func() error { // learns of it, sooner or later
		for r.disk.State().Paths[1].Access != scsi.ActiveNonOptimized && r.disk.State().Paths[0].Access != scsi.ActiveNonOptimized {
			r.disk.mu.Lock()
			for _, c := range r.disk.conns {
				c.tell()
			}
			r.disk.mu.Unlock()
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	first, second = make(chan error, 1), make(chan error, 1)
	for lost := false; !lost; {
		mu.Lock()
		armed = true
		mu.Unlock()
		go func() { first <- r.disk.WriteAt(pattern(4096, 1), 0, 0) }()
		r.until("in doubt", func() bool {
			for _, p := range r.disk.State().Paths {
				lost = lost || p.Group == 1 && p.InDoubt == 1 && p.Portal == ""
			}
			return lost || len(first) > 0
		})
		if !lost {
			<-first // it was a probe that the fault struck
		}
	}
	go func() { second <- r.disk.WriteAt(pattern(4096, 2), 0, 0) }()
	r.must("read beside", func() error { return r.disk.ReadAt(make([]byte, 4096), 0) })
	r.must("write beside", func() error { return r.disk.WriteAt(pattern(4096, 3), 8192, 0) })
	select {
	case err := <-first:
		t.Fatal("a write in doubt was answered", err)
	case err := <-second:
		t.Fatal("a write overtook one in doubt", err)
	default:
	}
	return r, first, second
}

// TestReservations registers, reserves, preempts and reads.
func TestReservations(t *testing.T) {
	for _, all := range []bool{true, false} {
		t.Run(fmt.Sprint("all ports ", all), func(t *testing.T) {
			r := newRig(t, initiatortest.Options{}, nil)
			if !all {
				r.target.ForgetAllPorts()
			}
			ctx, d := t.Context(), r.disk
			r.must("register", func() error { return d.Register(ctx, 0xa1) })
			r.must("reserve", func() error { return d.Reserve(ctx, WriteExclusiveRegistrants) })
			r.must("reserve again", func() error { return d.Reserve(ctx, WriteExclusiveRegistrants) })
			r.target.SetKey(9, 0xb2)
			r.must("read keys", func() error {
				keys, err := d.ReadKeys(ctx)
				if len(keys) != 2 {
					err = fmt.Errorf("%x, %w", keys, err)
				}
				return err
			})
			r.must("preempt", func() error { return d.PreemptAbort(ctx, WriteExclusiveRegistrants, 0xb2) })
			if keys := r.target.Keys(); len(keys) != 1 || keys[1] != 0xa1 {
				t.Errorf("keys %x", keys)
			}
			if err := d.PreemptAbort(ctx, WriteExclusiveRegistrants, 0xb2); !fault.Is(err, fault.Fenced) {
				t.Errorf("%v, want fenced", err)
			}
			r.must("read reservation", func() error {
				held, err := d.ReadReservation(ctx)
				if held != (Reservation{5, 0xa1}) {
					err = fmt.Errorf("%+v, %w", held, err)
				}
				return err
			})
			r.must("write", func() error { return d.WriteAt(make([]byte, 512), 0, 0) })
			// Another preempts us: a frozen host wakes to a conflict.
			r.target.SetKey(1, 0)
			r.target.SetKey(9, 0xb2)
			if err := d.WriteAt(make([]byte, 512), 0, 0); err == nil {
				t.Error("a write of who is not registered was taken")
			} else if !fault.Is(err, fault.Fenced) {
				t.Errorf("%v, want fenced", err)
			}
			r.must("register", func() error { return d.Register(ctx, 0xa2) })
			r.must("clear", func() error { return d.Clear(ctx) })
			if keys := r.target.Keys(); len(keys) != 0 {
				t.Errorf("keys %x", keys)
			}
		})
	}
}

// TestFence has a path fenced by another that holds a reservation: writes in
// doubt go on without the path.
func TestFence(t *testing.T) {
	r, first, second := doubt(t, func(r *rig) {
		r.must("register", func() error { return r.disk.Register(r.Context(), 0xa1) })
		r.must("reserve", func() error { return r.disk.Reserve(r.Context(), WriteExclusiveRegistrants) })
	})
	r.must("first", func() error { return <-first })
	r.must("second", func() error { return <-second })
	if got := r.target.Peek(0, 4096); !bytes.Equal(got, pattern(4096, 2)) {
		t.Error("the later write is not there")
	}
	if s := r.disk.State(); s.Fences != 1 || r.target.Preempts.Load() != 1 {
		t.Errorf("state %+v", s)
	}
	// The path comes back, and is not used: its registration is gone.
	r.target.Mend(1)
	r.until("barred", func() bool {
		for _, p := range r.disk.State().Paths {
			if p.Group == 1 {
				return p.Up && p.Barred
			}
		}
		return false
	})
	r.must("write", func() error { return r.disk.WriteAt(pattern(4096, 4), 0, 0) })
	r.must("register", func() error { return r.disk.Register(r.Context(), 0xa1) })
	r.until("not barred", func() bool {
		s := r.disk.State()
		return !s.Paths[0].Barred && !s.Paths[1].Barred
	})
}

// TestPreemptDoubt loses the answer to PREEMPT AND ABORT.
func TestPreemptDoubt(t *testing.T) {
	for _, f := range []initiatortest.Fault{initiatortest.Drop, initiatortest.AbortedCommand} {
		t.Run(fmt.Sprint(f), func(t *testing.T) {
			var mu sync.Mutex
			armed := false
			step := initiatortest.Response
			if f == initiatortest.AbortedCommand {
				step = initiatortest.Command
			}
			r := newRig(t, initiatortest.Options{Strike: func(_ uint16, s initiatortest.Step) initiatortest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if armed && s == step {
					armed = false
					return f
				}
				return initiatortest.None
			}}, nil)
			ctx, d := t.Context(), r.disk
			r.must("register", func() error { return d.Register(ctx, 0xa1) })
			r.target.SetKey(9, 0xb2)
			mu.Lock()
			armed = true
			mu.Unlock()
			r.must("preempt", func() error { return d.PreemptAbort(ctx, WriteExclusiveRegistrants, 0xb2) })
			held, err := d.ReadReservation(ctx)
			if err != nil || held != (Reservation{5, 0xa1}) {
				t.Errorf("held by %+v, %v", held, err)
			}
			if resets := r.target.Resets.Load(); (resets == 1) != (f == initiatortest.Drop) {
				t.Errorf("%d resets", resets)
			}
			if keys := r.target.Keys(); len(keys) != 1 {
				t.Errorf("keys %x", keys)
			}
		})
	}
}

// TestDiscover lists the targets.
func TestDiscover(t *testing.T) {
	target, err := initiatortest.New(initiatortest.Options{Size: 4096, Groups: []uint16{1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	found, err := Discover(t.Context(), target.Addr(1), config(target))
	if err != nil || len(found) != 1 || found[0].Target != initiatortest.Name || len(found[0].Addresses) != 2 {
		t.Fatalf("%+v, %v", found, err)
	}
	if a := found[0].Addresses[1]; a.Group != 2 || a.Address != target.Addr(2) {
		t.Errorf("%+v", a)
	}
}

// TestUnknown has a COMPARE AND WRITE lose its answer: it is not repeated, and
// reading tells.
func TestUnknown(t *testing.T) {
	for _, f := range []initiatortest.Fault{initiatortest.Late, initiatortest.AbortedCommand, initiatortest.TaskAborted, initiatortest.TargetFailure, initiatortest.Drop} {
		t.Run(fmt.Sprint(f), func(t *testing.T) {
			var mu sync.Mutex
			armed := false
			r := newRig(t, initiatortest.Options{Strike: func(_ uint16, s initiatortest.Step) initiatortest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if armed && s == initiatortest.Command {
					armed = false
					return f
				}
				return initiatortest.None
			}}, nil)
			mu.Lock()
			armed = true
			mu.Unlock()
			fresh := pattern(512, 7)
			r.must("compare and write", func() error {
				_, err := r.disk.CompareAndWrite(0, make([]byte, 512), fresh, 0)
				if !errors.Is(err, ErrUnknown) || !fault.Is(err, fault.Unreachable) {
					return fmt.Errorf("%w, want unknown", err)
				}
				return nil
			})
			// By now it has landed or never will: nothing changes any more.
			one := make([]byte, 512)
			r.must("read", func() error { return r.disk.ReadAt(one, 0) })
			if !bytes.Equal(one, fresh) && !bytes.Equal(one, make([]byte, 512)) {
				t.Error("neither old nor new")
			}
			r.must("write", func() error { return r.disk.WriteAt(pattern(512, 8), 0, 0) })
			if got := r.target.Peek(0, 512); !bytes.Equal(got, pattern(512, 8)) {
				t.Error("a command that was over landed")
			}
		})
	}
}
