package host

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/machine/machinetest"
)

// texts returns what events of a type have said.
func (x *hostOf) texts(kind string) (list []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.events {
		if e.Type == kind {
			list = append(list, e.Text)
		}
	}
	return list
}

// TestRestartsAgain: people are told that a guest restarts, and of one that goes on doing so
// not each time, but how often; a reset is always told.
func TestRestartsAgain(t *testing.T) {
	w, x, c := running(t, func(o *Options) { o.Times.Repeat = time.Hour })
	for life := 2; life <= 4; life++ {
		x.types("r")
		until(t, "another life", func() bool { return c.has(machinetest.ObeyUp) == life })
	}
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Reset(vm) })
	until(t, "the life after the reset", func() bool { return c.has(machinetest.ObeyUp) == 5 })
	if said := x.texts(EventAgain); len(said) != 2 || said[0] != "its guest restarts" || said[1] != "it was reset" {
		t.Errorf("said %q", said)
	}
	x.types("q")
	w.ends()
	said := x.texts(EventAgain)
	if len(said) != 3 || !strings.HasPrefix(said[2], "its guest restarts: 2 times in ") {
		t.Errorf("said %q", said)
	}
	if m, r := x.heard(EventStarted), x.heard(EventEnded); m != 1 || r != 1 {
		t.Errorf("began %d times and ended %d times", m, r)
	}
}

// TestRestartsSeldom: one that restarts now and then is told of each time.
func TestRestartsSeldom(t *testing.T) {
	_, x, c := running(t, func(o *Options) { o.Times.Repeat = time.Nanosecond })
	for life := 2; life <= 3; life++ {
		x.types("r")
		until(t, "another life", func() bool { return c.has(machinetest.ObeyUp) == life })
	}
	if said := x.texts(EventAgain); len(said) != 2 || said[1] != "its guest restarts" {
		t.Errorf("said %q", said)
	}
}

// TestDamagedLock: a machine whose lock block is overwritten while it runs ends as one that has
// failed, and people are told that it was no other host.
func TestDamagedLock(t *testing.T) {
	for name, damage := range map[string]func([]byte){
		"rubbish":         func(p []byte) { p[100] ^= 1 },
		"nothing":         func(p []byte) { clear(p[:512]) },
		"another machine": func(p []byte) { copy(p, lockOf(t, [16]byte{9})) },
	} {
		t.Run(name, func(t *testing.T) {
			w, x, _ := running(t)
			w.s.mu.Lock()
			damage(w.s.volumes[homeAt].data)
			w.s.mu.Unlock()
			p := w.ends()
			if p.Ended != inventory.EndedFailed || !strings.Contains(p.Detail, "was overwritten while the machine ran") {
				t.Errorf("ended as %+v", p)
			}
			x.awaits(EventEnded)
			if n := x.heard(EventFenced); n != 0 {
				t.Errorf("%d hosts have taken it over", n)
			}
		})
	}
}

// TestCPUTime: the time that a process has had is told, and of none that is not there.
func TestCPUTime(t *testing.T) {
	before := cpuTime(os.Getpid())
	until(t, "this process has worked", func() bool {
		for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); {
			_ = bytes.Repeat([]byte("work"), 1<<16)
		}
		return cpuTime(os.Getpid()) > before
	})
	if got := cpuTime(1 << 30); got != 0 {
		t.Errorf("a process that there is not has had %v", got)
	}
	w, x, c := running(t)
	x.types("f")
	x.says(c, "##########")
	until(t, "the machine has worked", func() bool {
		list := x.Known()
		return len(list) == 1 && list[0].Name == vm && list[0].Phase == Running && list[0].CPU > 0 && list[0].Status.Count == 0
	})
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.HostLost("h1", 1, 2) })
}

// logged is a log that is read while it is written.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) has(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}

// TestNotAdded: a host that is not in the inventory waits, says so once, and begins when
// it was added; its lives are named by its member's. One that is taken out waits again.
func TestNotAdded(t *testing.T) {
	w := newWorld(t, false, nil)
	log := &logged{}
	x := &hostOf{w: w, member: w.member("h9"), way: w.s.way("h9"), dir: t.TempDir()}
	h, err := Open(Options{
		Name: "h9", Member: x.member, Boot: 7, Memory: 1 << 30, Open: x.way.open, Consoles: x.dir, Temp: x.dir,
		Times: times, Event: x.event, Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	must(t, err)
	t.Cleanup(func() {
		must(t, h.Close())
		x.member.tasks.Wait()
	})
	until(t, "it is told", func() bool { return log.has("steadfast host add h9") == 1 })
	for i := range 5 { // it looks again with each change, and says nothing new
		name := string(rune('a' + i))
		w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateDatacenter("dc-" + name) })
	}
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.AddHost("h9", "c", inventory.Links{}) })
	until(t, "the host is up", func() bool { return h.State().Boot == 1 })
	if id := w.view(t).Lives["h9"].ID; !strings.HasPrefix(id, "7.1.") {
		t.Errorf("its life is called %q", id)
	}
	if n := log.has("steadfast host add h9"); n != 1 {
		t.Errorf("said %d times", n)
	}
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.HostLost("h9", 1, 2) })
	until(t, "another life", func() bool { return h.State().Boot == 2 })
	if id := w.view(t).Lives["h9"].ID; !strings.HasPrefix(id, "7.2.") {
		t.Errorf("its second life is called %q", id)
	}
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.RemoveHost("h9") })
	until(t, "it is told again", func() bool { return log.has("steadfast host add h9") == 2 })
	if s := h.State(); s.Boot != 0 || s.Why == nil {
		t.Errorf("one that was taken out is %+v", s)
	}
}
