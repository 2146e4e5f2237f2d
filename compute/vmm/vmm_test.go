package vmm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
	"steadfast/fault"
	"steadfast/internal/memlock"
)

// TestMain is also the processes that the tests start: Process starts this binary.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case Command:
			if err := Run(os.Stderr); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "forbidden":
			os.Exit(forbidden(os.Args[2]))
		case "parent":
			os.Exit(parent(os.Args[2]))
		}
		if do := hostile[os.Args[1]]; do != nil {
			do(control{os.NewFile(controlFD, "control")})
			os.Exit(0)
		}
	}
	// A wire's sender lives as long as the process that it is made for.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("steadfast/compute/vmm.(*wire).carry"))
}

// patience bounds what a test waits for that should take moments.
const patience = 60 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testFile makes a file of the test's.
func testFile(t *testing.T, name string, content []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	must(t, err)
	t.Cleanup(func() { f.Close() })
	_, err = f.Write(content)
	must(t, err)
	return f
}

// diskBytes is the size of the tests' disks.
const diskBytes = 1 << 20

// obey are Options for machinetest.Obey.
func obey(t *testing.T) Options {
	disk := make([]byte, diskBytes)
	copy(disk, "SECTOR0 and more")
	d := testFile(t, "disk", disk)
	return Options{
		Config: machine.Config{
			Memory: machinetest.ObeyMemory, Disks: []machine.Disk{{Size: diskBytes}}, Nets: []machine.Net{{MAC: [6]byte{2}}},
			Seed: bytes.Repeat([]byte{1}, 32), Wall: 1_800_000_000_000_000_000,
		},
		Kernel: testFile(t, "kernel", machinetest.Obey()), Disks: Files(d),
	}
}

// begin starts a machine and waits until its guest is up.
func begin(t *testing.T, o Options) *Process {
	t.Helper()
	p, err := Start(t.Context(), o)
	must(t, err)
	t.Cleanup(func() { must(t, p.Close()) })
	must(t, p.Console.SetDeadline(time.Now().Add(patience)))
	for _, w := range p.Wires {
		must(t, w.SetDeadline(time.Now().Add(patience)))
	}
	if o.State == nil {
		expect(t, p, machinetest.ObeyUp)
	}
	return p
}

// expect reads what the console says next.
func expect(t *testing.T, p *Process, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(p.Console, b); err != nil || string(b) != want {
		t.Fatalf("the console says %q, %v; want %q", b[:n], err, want)
	}
}

func typed(t *testing.T, p *Process, text string) {
	t.Helper()
	_, err := io.WriteString(p.Console, text)
	must(t, err)
}

// ends waits for the end of a machine.
func ends(t *testing.T, p *Process, want machine.End) Status {
	t.Helper()
	select {
	case <-p.Exited():
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	s, err := p.Wait()
	if err != nil || s.End != want {
		t.Fatalf("ended: %v, %v; want %v", s.End, err, want)
	}
	return s
}

// TestLife: a machine in a process of its own has its console, disk, network and power
// button, and tells how it does.
func TestLife(t *testing.T) {
	o := obey(t)
	p := begin(t, o)
	before, err := p.Status(t.Context())
	must(t, err)
	typed(t, p, "xd")
	expect(t, p, "xSECTOR0 ok\n")
	sector := make([]byte, 512)
	if _, err := o.Disks[0].File.ReadAt(sector, 512); err != nil || !strings.HasPrefix(string(sector), "SECTOR0 and more\x00") {
		t.Errorf("the second sector is %q, %v", sector[:20], err)
	}
	typed(t, p, "n")
	frame := make([]byte, frameMax)
	n, err := p.Wires[0].Read(frame)
	if err != nil || !bytes.Equal(frame[:n], machinetest.ObeyFrame()) {
		t.Errorf("it sent %q, %v", frame[:n], err)
	}
	_, err = p.Wires[0].Write([]byte("dstdstsrcsrc\x88\xb5pong"))
	must(t, err)
	expect(t, p, "pong")
	after, err := p.Status(t.Context())
	must(t, err)
	if after.End != machine.Running || after.Count <= before.Count || after.GuestNS <= before.GuestNS || after.Counters.Inputs < before.Counters.Inputs+4 {
		t.Errorf("from %+v to %+v", before, after)
	}
	must(t, p.PressPower(t.Context()))
	expect(t, p, machinetest.ObeyBye)
	if end := ends(t, p, machine.PoweredOff); end.Count < after.Count {
		t.Errorf("%+v after %+v", end, after)
	}
	if err := p.PressPower(t.Context()); !fault.Is(err, fault.Stale) {
		t.Errorf("after the end: %v", err)
	}
}

// TestEnds: how a guest ends is told.
func TestEnds(t *testing.T) {
	for key, want := range map[byte]machine.End{
		machinetest.ObeyPowerOff: machine.PoweredOff, machinetest.ObeyRestart: machine.Restarts, machinetest.ObeyWedge: machine.Wedged,
	} {
		p := begin(t, obey(t))
		typed(t, p, string(key))
		ends(t, p, want)
	}
}

// TestFlood: a guest that writes for ever, to nobody who reads it, can be asked and ended.
func TestFlood(t *testing.T) {
	p := begin(t, obey(t))
	typed(t, p, string(rune(machinetest.ObeyFlood)))
	expect(t, p, "####")
	for last := uint64(0); ; {
		s, err := p.Status(t.Context())
		must(t, err)
		// A question costs an instruction; a guest that waits executes no other.
		if s.Count <= last+2 {
			break
		}
		last = s.Count
	}
	must(t, p.Stop(t.Context()))
	ends(t, p, machine.Running)
}

// TestKilled: the death of the process is an error that says so.
func TestKilled(t *testing.T) {
	p := begin(t, obey(t))
	p.Kill()
	if _, err := p.Wait(); !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "killed") {
		t.Error(err)
	}
	if _, err := p.Status(t.Context()); !fault.Is(err, fault.Internal) {
		t.Error(err)
	}
}

// TestBadFile: a request that cannot be sent fails, and the machine lives.
func TestBadFile(t *testing.T) {
	p := begin(t, obey(t))
	f := testFile(t, "saved", nil)
	must(t, f.Close())
	if err := p.Save(t.Context(), f); !fault.Is(err, fault.Internal) {
		t.Error(err)
	}
	_, err := p.Status(t.Context())
	must(t, err)
}

// TestRefused: what cannot be started says why, and leaves no process.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(o *Options)
		kind  fault.Kind
		text  string
	}{
		"no kernel":       {func(o *Options) { o.Kernel = nil }, fault.Invalid, "without the kernel"},
		"an odd kernel":   {func(o *Options) { o.Kernel = testFile(t, "odd", []byte("MZ")) }, fault.Invalid, ""},
		"little memory":   {func(o *Options) { o.Config.Memory = 4096 }, fault.Invalid, "memory"},
		"another disk":    {func(o *Options) { o.Config.Disks[0].Size = 512 }, fault.Invalid, "disk 0"},
		"no disk":         {func(o *Options) { o.Disks = nil }, fault.Invalid, "came with 0"},
		"an odd state":    {func(o *Options) { o.State = testFile(t, "odd", []byte("no")) }, fault.Corrupt, "no saved machine"},
		"a long argument": {func(o *Options) { o.Config.CommandLine = strings.Repeat("x", messageMax) }, fault.Limit, "message"},
	} {
		o := obey(t)
		c.spoil(&o)
		p, err := Start(t.Context(), o)
		if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
		if p != nil {
			must(t, p.Close())
		}
	}
}

// TestRecorded: the state at the beginning and the log replay to the same digests, and a
// state saved on the way goes on in another process.
func TestRecorded(t *testing.T) {
	o := obey(t)
	o.Log, o.Save, o.HashEvery = testFile(t, "log", nil), testFile(t, "state", nil), 10_000
	p := begin(t, o)
	typed(t, p, "xd")
	expect(t, p, "xSECTOR0 ok\n")
	saved := testFile(t, "saved", nil)
	must(t, p.Save(t.Context(), saved))
	typed(t, p, "y")
	expect(t, p, "y")
	must(t, p.PressPower(t.Context()))
	end := ends(t, p, machine.PoweredOff)

	rewind := func(f *os.File) *os.File {
		_, err := f.Seek(0, io.SeekStart)
		must(t, err)
		return f
	}
	m, err := machine.Restore(rewind(o.Save))
	must(t, err)
	defer func() { must(t, m.Release()) }()
	log, err := machine.ReadLog(rewind(o.Log))
	must(t, err)
	r, err := machine.NewReplay(m, log)
	must(t, err)
	must(t, r.Run(1<<64-1))
	if m.Count() != end.Count || m.End() != machine.PoweredOff || r.Compared == 0 || end.Counters.LogBytes == 0 {
		t.Errorf("ended at %d (%v) of %+v, %d digests", m.Count(), m.End(), end, r.Compared)
	}

	q := begin(t, Options{State: rewind(saved), Disks: o.Disks, Nets: 1})
	typed(t, q, "z")
	expect(t, q, "z")
	must(t, q.Stop(t.Context()))
	ends(t, q, machine.Running)
}

// TestInherited: a descriptor that the parent has open, and forgot to close on execve(2),
// is not the process's.
func TestInherited(t *testing.T) {
	var fds [2]int
	must(t, unix.Pipe2(fds[:], 0))
	r := os.NewFile(uintptr(fds[0]), "leak")
	defer r.Close()
	begin(t, obey(t))
	must(t, unix.Close(fds[1]))
	over := make(chan error, 1)
	go func() {
		_, err := r.Read(make([]byte, 1))
		over <- err
	}()
	select {
	case err := <-over:
		if !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("the process has it")
	}
}

// TestProcess: what the kernel knows of the process is what the package's comment says.
func TestProcess(t *testing.T) {
	p := begin(t, obey(t))
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	must(t, err)
	for _, line := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(string(b), line) {
			t.Errorf("no %q in\n%s", line, b)
		}
	}
	// Root may as a rule; this program, which begins it, tries the same.
	if memlock.Lock() == nil && strings.Contains(string(b), "VmLck:\t       0 kB\n") {
		t.Errorf("its program is not locked in memory:\n%s", b)
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.PID()))
	must(t, err)
	for _, name := range threads {
		b, err := os.ReadFile(name)
		if err == nil && !strings.Contains(string(b), "Seccomp:\t2\n") {
			t.Errorf("%s: a thread without a filter", name)
		}
	}
	if sid, err := unix.Getsid(p.PID()); err != nil || sid != p.PID() {
		t.Errorf("its session is %d, %v", sid, err)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID()))
	if want := strings.Join(environment(), "\x00") + "\x00"; err == nil && string(env) != want {
		t.Errorf("its environment is %q", env)
	}
}

// TestCanceled: who gives up waiting for the start leaves no process.
func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if p, err := Start(ctx, obey(t)); err == nil {
		// It was there before it was looked for.
		must(t, p.Close())
	} else if !fault.Is(err, fault.Canceled) {
		t.Error(err)
	}
}

// TestBadRequests: a packet that is no request is refused, and one that is closed ends it.
func TestBadRequests(t *testing.T) {
	p := newProcess()
	theirs, err := p.spawn(Command)
	must(t, err)
	must(t, theirs.Close())
	must(t, p.control.SetDeadline(time.Now().Add(patience)))
	answer := func(packet string) reply {
		t.Helper()
		_, err := p.control.Write([]byte(packet))
		must(t, err)
		b := make([]byte, messageMax)
		n, err := p.control.Read(b)
		must(t, err)
		return decoded(t, b[:n])
	}
	for packet, want := range map[string]string{
		"nonsense":                           "invalid",
		`{"id":7,"verb":"status"}`:           "before a machine",
		`{"id":7,"verb":"start"}`:            "none",
		`{"id":7,"files":["log"]}`:           "0 descriptors instead of 1",
		strings.Repeat("x", messageMax+1):    "too long",
		`{"id":7,"verb":"start","start":{}}`: "without the kernel",
	} {
		r := answer(packet)
		if r.Error == nil || !strings.Contains(r.Error.Kind+r.Error.Text, want) {
			t.Errorf("%.40q: %+v", packet, r.Error)
		}
	}
	close(p.heard)
	must(t, p.control.Close())
	select {
	case <-p.Exited():
	case <-time.After(patience):
		t.Error("it does not end when its parent's socket is closed")
	}
	if p.exit != nil {
		t.Error(p.exit, p.words.last())
	}
}
