package host

import (
	"context"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/lockstep"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// lines are the ways between a world's hosts.
type lines struct {
	w     *world
	tasks sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	cut   bool
}

// of is a host's Options.Dial.
func (l *lines) of(from string) func(context.Context, string, lockstep.Link) (net.Conn, error) {
	return func(_ context.Context, host string, _ lockstep.Link) (net.Conn, error) { return l.dial(from, host) }
}

func (l *lines) dial(from, host string) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.w.hosts[host]
	if x == nil || l.cut {
		return nil, fault.New(fault.Unreachable, "no way to %s", host)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	ours, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return nil, err
	}
	theirs, err := listener.Accept()
	if err != nil {
		return nil, err
	}
	l.conns = append(l.conns, ours, theirs)
	l.tasks.Go(func() { x.Accept(theirs, from) })
	return ours, nil
}

// sever ends all lines.
func (l *lines) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

// paired is a world with a machine on h1, protected by a secondary on h2.
func paired(t *testing.T, with ...func(*Options)) (*world, *lines, *terminal) {
	t.Helper()
	w := newWorld(t, true, machinetest.Obey())
	l := &lines{w: w}
	t.Cleanup(l.tasks.Wait)
	with = append(with, func(o *Options) { o.Dial, o.Box = l.of(o.Name), o.Name })
	w.host("h1", with...)
	w.host("h2", with...)
	w.start()
	w.place("h1", 1)
	c := w.hosts["h1"].attach()
	w.ft("h2")
	return w, l, c
}

// ft turns fault tolerance on, with the secondary on a host, and waits until it can go on.
func (w *world) ft(on string) {
	w.t.Helper()
	w.change(w.t, func(v *inventory.View) ([]quorum.Edit, error) {
		return v.SetFT(vm, inventory.FTOn, 1)
	})
	w.pair(on)
}

// pair gives the machine a secondary, and waits until it can go on.
func (w *world) pair(on string) {
	w.t.Helper()
	w.change(w.t, func(v *inventory.View) ([]quorum.Edit, error) {
		return v.Pair(vm, v.Placements[vm].Generation, on, v.Lives[on].Boot, 1)
	})
	until(w.t, "the machine is protected", func() bool {
		p := w.view(w.t).Placements[vm]
		if d := p.Parted; p.Second == nil && d != nil {
			w.t.Fatalf("the pair has ended before it had begun: %s: %s", d.Why, d.Detail)
		}
		return p.Second != nil && p.Second.Host == on && p.Second.Protected
	}, func() {
		for _, x := range w.hosts {
			m, err := x.Machine(w.t.Context(), vm)
			w.t.Logf("%s: %s %s %+v %v %v", x.o.Name, m.Phase, m.Step, m.Pair, m.Silent, err)
		}
	})
}

// on waits until the machine is placed on a host without a secondary.
func (w *world) on(host string) *inventory.Placement {
	w.t.Helper()
	until(w.t, "the machine is on "+host, func() bool {
		p := w.view(w.t).Placements[vm]
		return p.Host == host && p.Second == nil
	})
	return w.view(w.t).Placements[vm]
}

// kill kills the machine's process on a host.
func (x *hostOf) kill() {
	x.w.t.Helper()
	m, err := x.Machine(x.w.t.Context(), vm)
	must(x.w.t, err)
	must(x.w.t, syscall.Kill(m.PID, syscall.SIGKILL))
}

// listen attaches to a machine's console whose guest is up already.
func (x *hostOf) listen() *terminal {
	x.w.t.Helper()
	c := &terminal{}
	until(x.w.t, "the console", func() bool {
		_, err := x.Attach(vm, c)
		return err == nil
	})
	return c
}

// TestTakesOver: when the machine's process dies its secondary goes on, with its memory and its
// disk; and so again from there to here, in the same generation.
func TestTakesOver(t *testing.T) {
	w, _, c := paired(t)
	x, y := w.hosts["h1"], w.hosts["h2"]
	x.wrote(c)
	w.s.setSector(diskAt, 0, "SECTOR0 of later")
	before := w.lockBlock()
	if !before.Paired() || before.Partner != (vmlock.Owner{Host: 2, Boot: 1}) {
		t.Errorf("the lock is %+v", before)
	}
	m, err := y.Machine(t.Context(), vm)
	must(t, err)
	if m.Phase != Following || m.Pair == nil || !m.Pair.Secondary || m.Pair.Other != "h1" || m.PID == 0 {
		t.Errorf("the secondary does %+v, %+v", m, m.Pair)
	}
	d := y.listen()
	x.kill()
	p := w.on("h2")
	if p.Generation != 1 || p.Failovers != 1 || p.Parted == nil || p.Parted.Host != "h1" {
		t.Errorf("placed as %+v", p)
	}
	if b := w.lockBlock(); b.Owner != (vmlock.Owner{Host: 2, Boot: 1}) || b.Turn <= before.Turn || b.Generation != 1 {
		t.Errorf("the lock is %+v", b)
	}
	y.types("d")
	y.says(d, "SECTOR0 ok\n")
	if s := w.s.sector(diskAt, 1); s != "SECTOR0 of later" {
		t.Errorf("the disk has %q", s)
	}
	if d.has(machinetest.ObeyUp) > 0 {
		t.Error("the guest began anew")
	}
	until(t, "the old one is forgotten", func() bool { return len(x.Known()) == 0 })
	if y.heard(EventTookOver) != 1 || x.heard(EventProtected) != 1 {
		t.Errorf("people were told %v and %v", x.events, y.events)
	}

	w.pair("h1")
	y.kill()
	w.on("h1")
	e := x.listen()
	x.types("d")
	x.says(e, "SECTOR0 ok\n")
	x.types("q")
	if p := w.ends(); p.Ended != inventory.EndedShutdown {
		t.Errorf("ended as %+v", p)
	}
	if b := w.lockBlock(); b.Held || b.Generation != 1 {
		t.Errorf("the lock is %+v", b)
	}
}

// TestLosesSecondary: a machine whose secondary dies goes on alone, says why, and gets another.
func TestLosesSecondary(t *testing.T) {
	w, l, c := paired(t)
	x, y := w.hosts["h1"], w.hosts["h2"]
	y.kill()
	p := w.on("h1")
	if p.Parted == nil || p.Parted.Why != inventory.PartLostConnection || p.Failovers != 0 {
		t.Errorf("parted as %+v", p.Parted)
	}
	x.wrote(c)
	w.pair("h2")
	l.sever() // both live: one of them goes on
	until(t, "the pair's end", func() bool { return w.view(t).Placements[vm].Second == nil })
	if p := w.view(t).Placements[vm]; p.Host == "h2" {
		x, c = y, y.listen()
	}
	x.types("d")
	x.says(c, "SECTOR0 ok\n")
}

// TestLosesPrimaryBeforeTheyMeet: a secondary whose machine's host is lost before it has connected, or
// whose volumes are away as well, says at once that it cannot go on: who places the machine waits for that.
func TestLosesPrimaryBeforeTheyMeet(t *testing.T) {
	for name, away := range map[string]bool{"waits for links": false, "waits for volumes": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, true, machinetest.Obey())
			l := &lines{w: w, cut: true}
			t.Cleanup(l.tasks.Wait)
			with := func(o *Options) { o.Dial, o.Box = l.of(o.Name), o.Name }
			w.host("h1", with)
			y := w.host("h2", with)
			w.start()
			w.place("h1", 1)
			w.hosts["h1"].attach()
			if away {
				y.way.fail(fault.New(fault.Unreachable, "no storage"))
			}
			w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.SetFT(vm, inventory.FTOn, 1) })
			w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Pair(vm, 1, "h2", 1, 1) })
			phase := Waiting
			if away {
				phase = Starting
			}
			until(t, "the secondary waits", func() bool {
				m, err := y.Machine(t.Context(), vm)
				return err == nil && m.Phase == phase && strings.Contains(m.Step, "waits for")
			})
			w.hosts["h1"].member.cut() // it does not know that it is lost
			t.Cleanup(w.hosts["h1"].member.mend)
			w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.HostLost("h1", 1, 2) })
			p := w.on("h1")
			if d := p.Parted; d == nil || d.Why != inventory.PartLostConnection || !strings.Contains(d.Detail, "before it had connected") {
				t.Errorf("parted as %+v", d)
			}
			until(t, "nothing is left of the secondary", func() bool { return len(y.Known()) == 0 })
		})
	}
}

// TestTurnedOff: a machine that is to have no secondary, or another one, has it so, and people's
// wish is no trouble.
func TestTurnedOff(t *testing.T) {
	w, _, c := paired(t)
	x := w.hosts["h1"]
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) {
		return v.Part(vm, 1, v.Placements[vm].Second.Pair, inventory.PartUser, "as was asked", 1)
	})
	until(t, "the lock says alone", func() bool { return !w.lockBlock().Paired() })
	until(t, "the secondary is gone", func() bool { return len(w.hosts["h2"].Known()) == 0 })
	x.wrote(c)
	w.pair("h2")
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop(vm) })
	if p := w.ends(); p.Ended != inventory.EndedStopped || w.lockBlock().Held {
		t.Errorf("ended as %+v", p)
	}
	until(t, "nothing is left", func() bool { return len(x.Known())+len(w.hosts["h2"].Known()) == 0 })
}

// TestHandsOver: a test of the failover, a host in maintenance and a host that ends in order
// move a machine without its guest noticing.
func TestHandsOver(t *testing.T) {
	w, _, c := paired(t)
	x, y := w.hosts["h1"], w.hosts["h2"]
	x.wrote(c)
	if err := y.HandOver(t.Context(), vm); !fault.Is(err, fault.Busy) {
		t.Error(err)
	}
	must(t, x.HandOver(t.Context(), vm))
	w.on("h2")
	d := y.listen()
	y.types("d")
	y.says(d, "SECTOR0 ok\n")

	w.pair("h1")
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.AskLeave(vm, 1) })
	if p := w.on("h1"); p.Leave || p.Failovers != 2 {
		t.Errorf("placed as %+v", p)
	}
	d = x.listen()
	x.types("d")
	x.says(d, "SECTOR0 ok\n")

	w.pair("h2")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	must(t, x.Leave(ctx))
	w.on("h2")
	d = y.listen()
	y.types("d")
	y.says(d, "SECTOR0 ok\n")
}

// TestEndsByForce: what ends a machine at once ends both.
func TestEndsByForce(t *testing.T) {
	for name, want := range map[string]func(*inventory.View) ([]quorum.Edit, error){
		"off":   func(v *inventory.View) ([]quorum.Edit, error) { return v.PowerOff(vm) },
		"grace": func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop(vm) },
	} {
		t.Run(name, func(t *testing.T) {
			w, _, c := paired(t, func(o *Options) { o.Times.Grace = 50 * time.Millisecond })
			w.hosts["h1"].types("f")
			w.hosts["h1"].says(c, "##########")
			w.change(t, want)
			if p := w.ends(); p.Ended != inventory.EndedStopped || !strings.Contains(p.Detail, "by force") || p.Failovers != 0 {
				t.Errorf("ended as %+v", p)
			}
			until(t, "nothing is left", func() bool { return len(w.hosts["h1"].Known())+len(w.hosts["h2"].Known()) == 0 })
		})
	}
}

// TestResets: a machine that is reset begins anew where it is, and its secondary with it.
func TestResets(t *testing.T) {
	w, _, c := paired(t)
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Reset(vm) })
	until(t, "the guest is up again", func() bool { return c.has(machinetest.ObeyUp) == 2 })
	if p := w.on("h1"); p.Parted == nil || p.Parted.Why != inventory.PartUser {
		t.Errorf("parted as %+v", p.Parted)
	}
	if w.lockBlock().Paired() {
		t.Error("the lock says that it is paired")
	}
	w.pair("h2")
	w.hosts["h1"].wrote(c)
}

// TestOtherBuild: a host that runs another program is not a machine's secondary.
func TestOtherBuild(t *testing.T) {
	w := newWorld(t, true, machinetest.Obey())
	l := &lines{w: w}
	t.Cleanup(l.tasks.Wait)
	w.host("h1", func(o *Options) { o.Dial, o.Build = l.of(o.Name), "1" })
	w.host("h2", func(o *Options) { o.Dial, o.Build = l.of(o.Name), "2" })
	w.start()
	w.place("h1", 1)
	c := w.hosts["h1"].attach()
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) {
		return v.SetFT(vm, inventory.FTOn, 1)
	})
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Pair(vm, 1, "h2", 1, 1) })
	p := w.on("h1")
	if p.Parted == nil || p.Parted.Why != inventory.PartHardware || !strings.Contains(p.Parted.Detail, "need the same") {
		t.Errorf("parted as %+v", p.Parted)
	}
	w.hosts["h1"].wrote(c)
}
