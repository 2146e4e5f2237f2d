package vmm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// hostile are processes that a guest has taken over: what they do to their parent, once
// it has asked for something.
var hostile = map[string]func(c control){
	"nonsense":  func(c control) { flood(c, "{") },
	"unasked":   func(c control) { flood(c, `{"id":99}`) },
	"twice":     func(c control) { flood(c, `{"id":1}`) },
	"two-ends":  func(c control) { flood(c, `{"id":0}`) },
	"no-end":    func(c control) { flood(c, `{"id":0,"status":{"end":200}}`) },
	"other-way": func(c control) { flood(c, `{"id":"1","status":[]}`) },
	"deep":      func(c control) { flood(c, strings.Repeat("[", messageMax)) },
	"long":      func(c control) { flood(c, `{"id":1,"x":"`+strings.Repeat("x", 2*messageMax)+`"}`) },
	"empty":     func(c control) { flood(c, "") },
	"gifts":     func(c control) { flood(c, `{"id":1}`, 0, 1, 2) },
	"pair":      func(c control) { flood(c, `{"pair":{"event":{"kind":1}}}`) },
	"no-event":  func(c control) { flood(c, `{"pair":{"event":{"kind":99}}}`) },
	"no-word":   func(c control) { flood(c, `{"pair":{}}`) },
	"locks":     func(c control) { flood(c, `{"pair":{"lock":{}}}`) },
	"takes":     func(c control) { flood(c, `{"pair":{"lock":{"from":"`+strings.Repeat("AAAA", 170)+`AAA="}}}`) },
	"shares":    func(c control) { flood(c, `{"pair":{"lock":{"partner":{"Host":9,"Boot":1}}}}`) },
	"silent": func(c control) {
		listened(c)
		_ = c.f.Close()
		forever()
	},
	"deaf": func(control) { forever() },
	"disk": hostileDisk,
	"painter": func(c control) {
		listened(c)
		fmt.Fprint(os.Stderr, "\x1b[2Jwords\a")
		_, _ = c.f.Write([]byte(`{"id":1,"error":{"kind":"full","text":"a \u001b[31m\u0007text"}}`))
	},
}

// listened waits for the first request.
func listened(c control) {
	_, _ = c.f.Read(make([]byte, messageMax)) // of a parent that has gone there is none
}

// flood sends a packet for as long as there is a parent, with descriptors.
func flood(c control, packet string, fds ...int) {
	listened(c)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		raw, err := c.f.SyscallConn()
		if err != nil || raw.Control(func(fd uintptr) { err = unix.Sendmsg(int(fd), []byte(packet), oob, nil, 0) }) != nil || err != nil {
			return
		}
	}
}

// forever is longer than any parent lives, which ends this process.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

// taken starts a process that was taken over.
func taken(t *testing.T, name string) *Process {
	t.Helper()
	p := newProcess()
	p.patience = 100 * time.Millisecond
	must(t, p.begin(name))
	t.Cleanup(func() { must(t, p.Close()) })
	return p
}

// exits waits for a process's end.
func exits(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Exited():
	case <-time.After(patience):
		t.Fatal("it is not ended")
	}
}

// TestTakenOver: a process that says what makes no sense, for ever or once, is ended for
// it, who waits for it is told so, and its parent has nothing of it.
func TestTakenOver(t *testing.T) {
	before := 0
	for _, name := range []string{"nonsense", "unasked", "twice", "two-ends", "no-end", "other-way", "deep", "long", "gifts", "empty", "silent", "pair"} {
		t.Run(name, func(t *testing.T) {
			p := taken(t, name)
			_, err := p.Status(t.Context())
			if !fault.Is(err, fault.Internal) && (err != nil || name != "twice") {
				t.Errorf("its status: %v", err)
			}
			exits(t, p)
			if _, err := p.Wait(); !fault.Is(err, fault.Internal) {
				t.Errorf("it has ended: %v", err)
			}
			if _, err := p.Status(t.Context()); !fault.Is(err, fault.Internal) {
				t.Errorf("its status afterwards: %v", err)
			}
		})
		if before == 0 {
			before = descriptors(t) // the first one makes those that every process has
		}
		// The runtime, too, has one for a moment now and then.
		end := time.Now().Add(patience)
		for ; descriptors(t) > before && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		if now := descriptors(t); now > before {
			t.Errorf("%s: %d descriptors, and %d before", name, now, before)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

// TestDeaf: a process that takes and answers nothing keeps nobody longer than that.
func TestDeaf(t *testing.T) {
	p := taken(t, "deaf")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var err error
	for range waitingMax + 1 {
		if err = p.PressPower(gone); fault.Is(err, fault.Unreachable) {
			break
		}
	}
	if !fault.Is(err, fault.Unreachable) {
		t.Errorf("after many requests: %v", err)
	}
	packet := bytes.Repeat([]byte{'x'}, messageMax)
	for err = nil; err == nil; {
		err = p.send(packet, nil)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a request that is not taken: %v", err)
	}
	p.Kill()
	exits(t, p)
}

// TestPainter: what a process says does nothing to the terminal that it gets to.
func TestPainter(t *testing.T) {
	p := taken(t, "painter")
	_, err := p.Status(t.Context())
	if !fault.Is(err, fault.Full) || !strings.Contains(err.Error(), "a ?[31m?text") {
		t.Errorf("its status: %q", err)
	}
	exits(t, p)
	if _, err := p.Wait(); err == nil || !strings.Contains(err.Error(), "?[2Jwords?") {
		t.Errorf("it has ended: %q", err)
	}
}

// floodMax is what the process of a guest of 64 MiB that floods the world may take, in KiB.
const floodMax = 400 << 10

// TestFloods: a guest that asks all that it can of the world has a process that stays small,
// answers, and ends when it is told to.
func TestFloods(t *testing.T) {
	for name, script := range machinetest.Floods() {
		t.Run(name, func(t *testing.T) {
			o := obey(t)
			kernel, _ := machinetest.Hostile(script)
			o.Kernel = testFile(t, "hostile", kernel)
			p, err := Start(t.Context(), o)
			must(t, err)
			t.Cleanup(func() { must(t, p.Close()) })
			read := name != "serial" // which nobody reads
			if read {
				go func() { _, _ = io.Copy(io.Discard, p.Console) }()
			}
			var s Status
			enough := uint64(5000)
			if testing.Short() {
				enough = 300
			}
			for over := time.Now().Add(patience); s.Counters.Outputs < enough && s.Count < 1000*enough; {
				if s, err = p.Status(t.Context()); err != nil || time.Now().After(over) {
					t.Fatalf("%+v, %v", s, err)
				}
			}
			most := peak(t, p.PID())
			t.Logf("after %d instructions, %d outputs and %d inputs it has taken %d KiB", s.Count, s.Counters.Outputs, s.Counters.Inputs, most)
			if most > floodMax && !testing.Short() || // the race detector takes more than all of it
				s.Counters.Outputs == 0 {
				t.Error("that is no flood, or not held back")
			}
			must(t, p.Stop(t.Context()))
			_ = p.Console.Close() // or it waits for who reads the rest
			ends(t, p, machine.Running)
		})
	}
}

// peak is the most memory that a process has had, in KiB.
func peak(t *testing.T, pid int) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return kib
}

// stuckLock is a lock that never answers, and counts who asks.
type stuckLock struct{ asked chan struct{} }

func (l stuckLock) Change(ctx context.Context, _ vmlock.Owner) (b [vmlock.BlockSize]byte, err error) {
	l.asked <- struct{}{}
	<-ctx.Done()
	return b, ctx.Err()
}

func (l stuckLock) Take(ctx context.Context, _ [vmlock.BlockSize]byte) ([vmlock.BlockSize]byte, error) {
	return l.Change(ctx, vmlock.Owner{})
}

// TestTakenOverPair: of a pair such a process says no more than one does that is none: it takes
// no lock over that is its own, shares it with nobody but whom it was given, and asks once
// at a time.
func TestTakenOverPair(t *testing.T) {
	for _, name := range []string{"pair", "no-event", "no-word", "locks", "takes", "shares"} {
		t.Run(name, func(t *testing.T) {
			l := stuckLock{make(chan struct{}, 10)}
			let := make(chan struct{})
			p := newProcess()
			p.patience = 100 * time.Millisecond
			p.pair = &Pair{Lock: l, Event: func(lockstep.Event) { <-let }}
			must(t, p.begin(name))
			t.Cleanup(func() { must(t, p.Close()) })
			done := make(chan struct{})
			go func() { defer close(done); p.tellEvents() }()
			_, err := p.Status(t.Context())
			if !fault.Is(err, fault.Internal) {
				t.Errorf("its status: %v", err)
			}
			exits(t, p)
			close(let)
			<-done
			if n := len(l.asked); n > 1 || n == 1 && name != "locks" {
				t.Errorf("the lock was asked %d times", n)
			}
		})
	}
}
