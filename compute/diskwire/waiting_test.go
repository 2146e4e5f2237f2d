package diskwire

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"steadfast/block"
	"steadfast/compute/diskwire/diskwiretest"
	"steadfast/fault"
)

// events are what a Waiting has told: the time since the beginning, and whether it was full.
type event struct {
	at   time.Duration
	full bool
}

// tight is a RAM disk that has no space until a time, and tells when it was asked.
type tight struct {
	*diskwiretest.RAM
	mu    sync.Mutex
	began time.Time
	until time.Duration
	then  error
	asked []time.Duration
	told  []event
}

func newTight(until time.Duration) *tight {
	d := &tight{RAM: diskwiretest.NewRAM(diskBytes), began: time.Now(), until: until}
	d.Before = func(r diskwiretest.Request) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		since := time.Since(d.began)
		d.asked = append(d.asked, since)
		if r.Op == diskwiretest.Read || r.Op == diskwiretest.Flush || since >= d.until {
			return d.then
		}
		return fault.New(fault.Full, "no space")
	}
	return d
}

func (d *tight) space(err error) {
	if err != nil && !fault.Is(err, fault.Full) {
		panic(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.told = append(d.told, event{time.Since(d.began), err != nil})
}

func (d *tight) check(t *testing.T, asked []time.Duration, told []event) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	equal := len(asked) == len(d.asked) && len(told) == len(d.told)
	for i := 0; equal && i < len(asked); i++ {
		equal = asked[i] == d.asked[i]
	}
	for i := 0; equal && i < len(told); i++ {
		equal = told[i] == d.told[i]
	}
	if !equal {
		t.Errorf("asked at %v, want %v; told %v, want %v", d.asked, asked, d.told, told)
	}
}

const half = 500 * time.Millisecond

// TestWaits: a write that there is no space for is asked again, ever more rarely, until there
// is; both are told.
func TestWaits(t *testing.T) {
	for name, do := range map[string]func(d block.Device) error{
		"write": func(d block.Device) error { return d.WriteAt(make([]byte, 4096), 0, 0) },
		"zero":  func(d block.Device) error { return d.Zero(0, 4096, block.FUA) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newTight(20 * time.Second)
				must(t, do(NewWaiting(t.Context(), d, d.space)))
				s := time.Second
				d.check(t, []time.Duration{0, half, s + half, 3*s + half, 7*s + half, 12*s + half, 17*s + half, 22*s + half}, []event{{0, true}, {22*s + half, false}})
			})
		})
	}
}

// TestWaitsTogether: of many that are held one that finds space has the others ask at once,
// and the two events are told once.
func TestWaitsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTight(3 * time.Second)
		w := NewWaiting(t.Context(), d, d.space)
		ended := make(chan time.Duration, 2)
		write := func() {
			if err := w.WriteAt(make([]byte, 4096), 0, 0); err != nil {
				t.Error(err)
			}
			ended <- time.Since(d.began)
		}
		go write() // asks at 0, 0.5, 1.5, 3.5
		time.Sleep(2400 * time.Millisecond)
		go write() // asks at 2.4, 2.9, 3.9
		if a, b := <-ended, <-ended; a != 3*time.Second+half || b != a {
			t.Errorf("ended at %v and %v", a, b)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.told) != 2 || d.told[0] != (event{0, true}) || d.told[1] != (event{3*time.Second + half, false}) {
			t.Errorf("told %v", d.told)
		}
	})
}

// TestWaitsNot: other faults and other requests pass, also when one is held; so does
// another fault of what was held.
func TestWaitsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTight(2 * time.Second)
		w := NewWaiting(t.Context(), d, d.space)
		ended := make(chan error)
		go func() { ended <- w.WriteAt(make([]byte, 4096), 0, 0) }()
		synctest.Wait()
		must(t, w.ReadAt(make([]byte, 4096), 0))
		must(t, w.Flush())
		if err := w.Trim(0, 4096); !fault.Is(err, fault.Full) {
			t.Error(err) // it does not take space: not for us to judge
		}
		if err := w.WriteAt(make([]byte, 512), diskBytes, 0); !fault.Is(err, fault.Invalid) {
			t.Error(err)
		}
		if since := time.Since(d.began); since != 0 {
			t.Errorf("that took %v", since)
		}
		d.mu.Lock()
		d.then = fault.New(fault.Fenced, "it is over")
		d.mu.Unlock()
		if err := <-ended; !fault.Is(err, fault.Fenced) {
			t.Error(err)
		}
	})
}

// TestWaitsGone: what is held ends with its context.
func TestWaitsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTight(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		defer cancel()
		err := NewWaiting(ctx, d, d.space).WriteAt(make([]byte, 4096), 0, 0)
		if !fault.Is(err, fault.Canceled) {
			t.Error(err)
		}
		d.check(t, []time.Duration{0, half}, []event{{0, true}, {700 * time.Millisecond, false}})
	})
}
