package vmm

import (
	"bytes"
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/netswitch/bridge"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// onePair is a lock, as two hosts see it.
type onePair struct {
	mu    sync.Mutex
	block vmlock.Block
}

type hostLock struct {
	*onePair
	me vmlock.Owner
}

func (l hostLock) Change(_ context.Context, partner vmlock.Owner) (b [vmlock.BlockSize]byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.block.Owner != l.me {
		return b, fault.New(fault.Fenced, "the lock is another's")
	}
	l.block.Partner = partner
	l.block.Turn++
	return l.block.Encode(), nil
}

func (l hostLock) Take(_ context.Context, from [vmlock.BlockSize]byte) (b [vmlock.BlockSize]byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.block.Encode() != from {
		return b, fault.New(fault.Fenced, "the lock is not as it was")
	}
	l.block.Owner, l.block.Partner = l.me, vmlock.Owner{}
	l.block.Turn++
	return l.block.Encode(), nil
}

// streams makes two ends of a link.
func streams(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
}

// twins are two processes of one machine.
type twins struct {
	p, s   *Process
	events [2]chan lockstep.Event
}

// told waits for an event of one of them.
func (w *twins) told(t *testing.T, who int, kind lockstep.EventKind) lockstep.Event {
	t.Helper()
	for {
		select {
		case e := <-w.events[who]:
			if e.Kind == kind {
				return e
			}
		case <-time.After(patience):
			t.Fatalf("process %d does not tell %d", who, kind)
		}
	}
}

// paired starts a machine in two processes that share its disk, and waits until it is protected.
func paired(t *testing.T) *twins {
	t.Helper()
	hosts := [2]vmlock.Owner{{Host: 1, Boot: 1}, {Host: 2, Boot: 1}}
	lock := &onePair{block: vmlock.Block{VM: vmlock.ID{1}, Generation: 1, Owner: hosts[0], Attempt: 1, Nonce: [16]byte{1}, Held: true}}
	w := &twins{}
	var pairs [2]*Pair
	for i := range pairs {
		w.events[i] = make(chan lockstep.Event, 100)
		pairs[i] = &Pair{Lock: hostLock{lock, hosts[i]}, Event: func(e lockstep.Event) { w.events[i] <- e }}
	}
	o := obey(t)
	o.Pair = pairs[0]
	w.p = begin(t, o)
	session := lockstep.Session{9}
	la, lb := streams(t)
	ma, mb := streams(t)
	defer closeAll([]*os.File{la, lb, ma, mb})
	s, err := Start(t.Context(), Options{
		Disks: o.Disks, Nets: 1, Pair: pairs[1],
		Secondary: &Secondary{Me: hosts[1], Session: session, Logging: lb, Management: mb, MemoryMax: machinetest.ObeyMemory},
	})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	must(t, s.Console.SetDeadline(time.Now().Add(patience)))
	must(t, s.Wires[0].SetDeadline(time.Now().Add(patience)))
	w.s = s
	must(t, w.p.TurnOn(t.Context(), session, hosts[1], la, ma, nil))
	w.told(t, 0, lockstep.Protected)
	w.told(t, 1, lockstep.Protected)
	return w
}

// TestPairKilled: the process of a machine dies, and the other one's goes on: disk, console,
// network, and its own answers.
func TestPairKilled(t *testing.T) {
	w := paired(t)
	typed(t, w.p, "xd")
	expect(t, w.p, "xSECTOR0 ok\n")
	a, err := w.p.Status(t.Context())
	must(t, err)
	b, err := w.s.Status(t.Context())
	must(t, err)
	if a.Pair == nil || !a.Pair.Protected || a.Pair.LogBytes == 0 || a.Pair.PauseNS <= 0 || a.Pair.CopyBytes == 0 || b.Pair == nil || !b.Pair.Protected {
		t.Errorf("they are %+v and %+v", a.Pair, b.Pair)
	}
	w.p.Kill()
	<-w.p.Exited()
	must(t, w.s.OtherGone(t.Context()))
	w.told(t, 1, lockstep.TookOver)
	frame := make([]byte, frameMax)
	n, err := w.s.Wires[0].Read(frame)
	if err != nil || !bytes.Equal(frame[:n], bridge.Announcement(bridge.MAC{2})) {
		t.Errorf("it announced %q, %v", frame[:n], err)
	}
	typed(t, w.s, "y")
	// What may not have been read of the other one comes again.
	for b := make([]byte, 1); b[0] != 'y'; {
		_, err := w.s.Console.Read(b)
		must(t, err)
	}
	typed(t, w.s, "dn")
	expect(t, w.s, "SECTOR0 ok\n")
	if n, err = w.s.Wires[0].Read(frame); err != nil || !bytes.Equal(frame[:n], machinetest.ObeyFrame()) {
		t.Errorf("it sent %q, %v", frame[:n], err)
	}
	must(t, w.s.PressPower(t.Context()))
	expect(t, w.s, machinetest.ObeyBye)
	ends(t, w.s, machine.PoweredOff)
}

// TestPairEnds: handing over ends the first process, and turning off the second.
func TestPairEnds(t *testing.T) {
	w := paired(t)
	must(t, w.p.TurnOff(t.Context()))
	w.told(t, 0, lockstep.Unprotected)
	<-w.s.Exited()
	if _, err := w.s.Wait(); !fault.Is(err, fault.Canceled) {
		t.Errorf("the secondary: %v", err)
	}
	typed(t, w.p, "d")
	expect(t, w.p, "SECTOR0 ok\n")

	w = paired(t)
	must(t, w.p.HandOver(t.Context()))
	<-w.p.Exited()
	if _, err := w.p.Wait(); !fault.Is(err, fault.Fenced) {
		t.Errorf("the primary: %v", err)
	}
	w.told(t, 1, lockstep.TookOver)
	typed(t, w.s, "d")
	expect(t, w.s, "SECTOR0 ok\n")
	must(t, w.s.Stop(t.Context()))
	ends(t, w.s, machine.Running)
}

// TestPairRefused: what is no pair is refused, and the machine lives.
func TestPairRefused(t *testing.T) {
	p := begin(t, obey(t))
	if err := p.TurnOn(t.Context(), lockstep.Session{}, vmlock.Owner{Host: 2, Boot: 1}, nil, nil, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("without a lock: %v", err)
	}
	for name, err := range map[string]error{"off": p.TurnOff(t.Context()), "over": p.HandOver(t.Context()), "gone": p.OtherGone(t.Context())} {
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	typed(t, p, "x")
	expect(t, p, "x")
}
