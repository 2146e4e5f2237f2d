package lockstepio

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/lockstep"
	"steadfast/internal/memlock"
)

var fullLoad = flag.Duration("full-load", 0, "how long TestFullLoad loads the processors")

// sideOf is the environment's word for which side of a pair a process of TestFullLoad is.
const sideOf = "LOCKSTEPIO_SIDE"

// TestFullLoad has both sides of a pair, in a process each, execute a guest that never waits, and beside
// them one more process for each processor do nothing but compute: nobody is taken for dead, with the
// product's limits.
func TestFullLoad(t *testing.T) {
	if *fullLoad == 0 {
		t.Skip("this loads all processors: go test ./compute/lockstepio -run TestFullLoad -full-load 5m -timeout 0")
	}
	var ends [2][]*os.File
	for range lockstep.Links {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		must(t, err)
		for i, fd := range fds {
			ends[i] = append(ends[i], os.NewFile(uintptr(fd), "link"))
		}
	}
	self, err := os.Executable()
	must(t, err)
	names := append([]string{"primary", "secondary"}, slices.Repeat([]string{"burner"}, runtime.NumCPU())...)
	var wg sync.WaitGroup
	for i, name := range names {
		c := exec.CommandContext(t.Context(), self, "-test.run", "^TestFullLoadSide$", "-test.v", "-test.timeout", "0", "-full-load", fullLoad.String())
		c.Env = append(os.Environ(), sideOf+"="+name)
		if i < len(ends) {
			c.ExtraFiles = ends[i]
		}
		wg.Go(func() {
			out, err := c.CombinedOutput()
			if i < len(ends) {
				t.Logf("%s:\n%s", name, out)
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	wg.Wait()
	for _, list := range ends {
		for _, f := range list {
			must(t, f.Close())
		}
	}
}

// TestFullLoadSide is one of its processes.
func TestFullLoadSide(t *testing.T) {
	side := os.Getenv(sideOf)
	switch side {
	case "":
		t.Skip("this is TestFullLoad's")
	case "burner":
		parent := os.Getppid()
		for end := time.Now().Add(*fullLoad); time.Now().Before(end) && os.Getppid() == parent; {
			for second := time.Now().Add(time.Second); time.Now().Before(second); {
				continue
			}
		}
		return
	}
	if err := memlock.Lock(); err != nil { // as a machine's process does
		t.Log(err)
	}
	var l Links
	for i := range l {
		l[i] = os.NewFile(uintptr(3+i), "link")
	}
	w := newWorld(t, 1, patience)
	w.o = Options{}
	var heard, silence atomic.Int64
	w.o.meets = func(lockstep.Message) {
		at := int64(now())
		if was := heard.Swap(at); was > 0 && at-was > silence.Load() {
			silence.Store(at - was)
		}
	}
	session := lockstep.Session{4}
	if side == "secondary" {
		s := w.begin(SecondaryOptions{Options: w.options(1), Me: owners[1], Session: session, Links: l})
		<-s.ended
		t.Logf("the longest silence was %v", time.Duration(silence.Load()).Round(time.Millisecond))
		var over *Over
		if !errors.As(s.err, &over) || over.Why != lockstep.WhyAsked {
			t.Errorf("the secondary: %v", s.err)
		}
		return
	}
	p := w.boot()
	must(t, p.p.TurnOn(l, session, owners[1]))
	w.event("0 protected")
	var lags []time.Duration
	said, before := time.Now(), 0
	for end := time.Now().Add(*fullLoad); time.Now().Before(end) && p.p.Status().Protected; time.Sleep(10 * time.Millisecond) {
		w.typed('d')
		s := p.p.Status()
		lags = append(lags, time.Duration(s.LagNS))
		if time.Since(said) > time.Minute {
			said = time.Now()
			did := w.san.landed()
			fmt.Printf("%v: log %d bytes, %d counts, %d writes\n", time.Until(end).Round(time.Second), s.LogBytes, p.count(t), did)
			if did == before {
				t.Errorf("the guest does nothing any more")
				break
			}
			before = did
		}
	}
	t.Logf("the longest silence was %v; lag %s", time.Duration(silence.Load()).Round(time.Millisecond), percentiles(lags))
	if s := p.p.Status(); !s.Protected || w.heard("0 unprotected") > 0 {
		t.Errorf("the primary: %+v, %v %v", s, w.why[0].Why, w.why[0].Err)
	}
	p.p.TurnOff()
	w.event("0 unprotected")
	w.judge(p)
}

// percentiles describes durations.
func percentiles(list []time.Duration) string {
	if len(list) == 0 {
		return "unknown"
	}
	s := slices.Clone(list)
	slices.Sort(s)
	at := func(p int) time.Duration { return s[(len(s)-1)*p/100].Round(100 * time.Microsecond) }
	return fmt.Sprintf("p50 %v, p95 %v, p99 %v, most %v, of %d", at(50), at(95), at(99), at(100), len(s))
}
