package main

import (
	"bufio"
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/compute/machine/machinetest"
)

// TestUpScripts runs the transcripts of "steadfast up" with hosts. $D/kernel is
// machinetest.Obey.
func TestUpScripts(t *testing.T) {
	dir, err := os.MkdirTemp("", "sf") // sockets' paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &pair{site: site{&app{}, dir}, options: upOptions{poolSize: guestPoolMin}}
	if err := os.WriteFile(p.path(madeFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if why := p.guestLacks(); why != "" {
		t.Skip("hosts and a machine cannot be here: " + why)
	}
	if err := os.Remove(p.path(madeFile)); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "up"), RequireUniqueNames: true, RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"await": awaitScript},
		Setup: func(e *testscript.Env) error {
			e.Setenv("D", dir)
			return os.WriteFile(filepath.Join(dir, "kernel"), machinetest.Obey(), 0o600)
		},
	})
}

// TestFreeMemory reads what the kernel writes.
func TestFreeMemory(t *testing.T) {
	const text = "MemTotal:       24689764 kB\nMemFree:        20179468 kB\nMemAvailable:   23306240 kB\nBuffers:          104 kB\n"
	if got := freeMemory(text); got != 23306240<<10 {
		t.Errorf("%d", got)
	}
	for _, text := range []string{"", "MemFree: 1 kB\n", "MemAvailable: x kB\n"} {
		if got := freeMemory(text); got != 0 {
			t.Errorf("%q: %d", text, got)
		}
	}
}

// TestMemoryLacks: what is short says what to do, by whose bound it is.
func TestMemoryLacks(t *testing.T) {
	const text = "MemAvailable:    8388608 kB\n"
	for _, c := range []struct {
		meminfo string
		limit   int64
		want    string
	}{
		{text, 0, ""},
		{text, 4 << 30, ""},
		{text, 1 << 30, "1 GiB of memory are free, and they need 3 GiB; this program's control group or container allows no more: raise its memory limit"},
		{"MemAvailable: 2097152 kB\n", 4 << 30, "2 GiB of memory are free, and they need 3 GiB; end other programs, or use a computer with more"},
	} {
		if got := memoryLacks(c.meminfo, c.limit); got != c.want {
			t.Errorf("%q, %d: %q; want %q", c.meminfo, c.limit, got, c.want)
		}
	}
}

// TestGuestLacks: what keeps a machine from being made is said; what was made once is only
// in want of memory.
func TestGuestLacks(t *testing.T) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	if freeMemory(string(b)) < guestMemoryMin {
		t.Skip("this computer has too little memory free to see the other reasons")
	}
	p, out := newPair(t)
	p.options.poolSize = guestPoolMin - 1
	if why := p.guestLacks(); !strings.Contains(why, "--pool-size 1 GiB does") && !strings.Contains(why, "make room there") {
		t.Errorf("small pools: %q", why)
	}
	if vm, err := p.openGuest(0); vm != nil || err != nil || !strings.HasPrefix(out.String(), "NO HOSTS AND NO MACHINE") {
		t.Errorf("%v, %v, %q", vm, err, out)
	}
	if err := writeJSON(p.path(madeFile), 1); err != nil {
		t.Fatal(err)
	}
	if why := p.guestLacks(); why != "" {
		t.Errorf("made: %q", why)
	}
	vm, err := p.openGuest(3)
	if err != nil || vm == nil || vm.at.Port() < upService || vm.at.Port() >= upService+upPorts {
		t.Errorf("%v, %v", vm, err)
	}
}

// TestEndOrder: hosts first, whose machines need their disks, then the copy that is not the
// newest; the switch last.
func TestEndOrder(t *testing.T) {
	for owner, want := range map[string]string{"": "h1 h2 h3 a b w switch", "b": "h1 h2 h3 a b w switch", "a": "h1 h2 h3 b a w switch"} {
		for range 2 { // it changes nothing
			if got := strings.Join(endOrder(owner), " "); got != want {
				t.Errorf("owner %q: %s", owner, got)
			}
		}
	}
	if !slices.Equal(upHosts[:], []string{"h1", "h2", "h3"}) {
		t.Errorf("hosts %v", upHosts)
	}
}

// TestNewestMachine: a node that was just started does not know the newest placement.
func TestNewestMachine(t *testing.T) {
	old, now, other := &steadfastv1.Machine{Generation: 1}, &steadfastv1.Machine{Generation: 2}, &steadfastv1.Machine{Generation: 2}
	for _, c := range []struct {
		seen []*steadfastv1.Machine
		want *steadfastv1.Machine
	}{
		{[]*steadfastv1.Machine{nil, nil}, nil},
		{[]*steadfastv1.Machine{nil, old}, old},
		{[]*steadfastv1.Machine{old, now}, now},
		{[]*steadfastv1.Machine{now, old}, now},
		{[]*steadfastv1.Machine{now, other}, now},
	} {
		if got := newestMachine(c.seen); got != c.want {
			t.Errorf("%v: %v; want %v", c.seen, got, c.want)
		}
	}
}

// TestMachineText says how a machine is.
func TestMachineText(t *testing.T) {
	for want, m := range map[string]*steadfastv1.Machine{
		"redis is running on h1":             {Name: "redis", State: "running", Host: "h1"},
		"redis is waiting (no host is up)":   {Name: "redis", State: "waiting", Detail: "no host is up"},
		"redis is stopped (it powered off)":  {Name: "redis", State: "stopped", Detail: "it powered off"},
		"redis is stopping on h2 (the user)": {Name: "redis", State: "stopping", Host: "h2", Detail: "the user"},
	} {
		if got := machineText(m); got != want {
			t.Errorf("%q; want %q", got, want)
		}
	}
	for want, p := range map[string]*steadfastv1.Protection{
		"":                                   nil,
		", Protected (secondary h3)":         {Protected: true, SecondaryHost: "h3"},
		", Not Protected: Need Secondary VM": {Why: "Need Secondary VM"},
	} {
		if got := protectionText(&steadfastv1.Machine{Protection: p}); got != want {
			t.Errorf("%q; want %q", got, want)
		}
	}
}

// TestNotes: where there is no terminal, of many lines some are printed.
func TestNotes(t *testing.T) {
	p, out := newPair(t)
	w := p.notes()
	for _, text := range []string{"reading the ", "index\nunpacking\r\n", strings.Repeat("  1 of 40: one\n", 2*noteEvery), "\rrest"} {
		if n, err := w.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatal(n, err)
		}
	}
	if want := "  reading the index\n  unpacking\n  1 of 40: one\n  1 of 40: one\n"; out.String() != want {
		t.Errorf("%q; want %q", out.String(), want)
	}
	out.Reset()
	p.screen.terminal = true
	if _, err := w.Write([]byte(" of it\n  2 of 40: two\n")); err != nil || out.String() != "  rest of it\r\x1b[K  2 of 40: two" {
		t.Errorf("%q, %v", out, err)
	}
}

// TestProbe: answers are counted by who gives them; silence is told when it is worth it.
func TestProbe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var answer atomic.Value
	answer.Store("-LOADING Redis is loading\r\n")
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil && line == "PING\r\n" {
				_, _ = conn.Write([]byte(answer.Load().(string)))
			}
			_ = conn.Close()
		}
	}()
	if ping(context.Background(), l.Addr().String()) {
		t.Error("a Redis that loads has answered")
	}
	answer.Store("+PONG\r\n")
	p := startProbe(l.Addr().String())
	for end := time.Now().Add(time.Minute); !p.answers() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	p.end()
	if !p.answers() {
		t.Fatal("it has not answered")
	}
	p = &probe{}
	at := time.Now()
	if got := p.line(at); got != "its Redis has not answered yet" {
		t.Errorf("%q", got)
	}
	p.heard(at)
	p.heard(at.Add(2500 * time.Millisecond))
	if got := p.line(at.Add(3 * time.Second)); got != "its Redis answers, longest silence 2.5 s" {
		t.Errorf("%q", got)
	}
	if got := p.line(at.Add(10 * time.Second)); got != "its Redis is silent for 8 s, longest silence 2.5 s" {
		t.Errorf("%q", got)
	}
}
