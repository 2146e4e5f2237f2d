package standalone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/machineio"
	"steadfast/compute/usernet"
	"steadfast/compute/vmm"
	"steadfast/fault"
)

// TestMain is also the processes of machines, and one that records until it is killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case vmm.Command:
			if err := vmm.Run(os.Stderr); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "record":
			os.Exit(recorder(os.Args[2]))
		}
	}
	os.Exit(m.Run())
}

const patience = 60 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// screen keeps what a guest writes.
type screen struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{}
}

func newScreen() *screen { return &screen{changed: make(chan struct{}, 1)} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	s.text.Write(p)
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return len(p), nil
}

// await waits until so much was written.
func (s *screen) await(t *testing.T, want string) {
	t.Helper()
	if !s.awaitFor(t, want, patience) {
		t.FailNow()
	}
}

// awaitFor is await with another patience, which any goroutine may call.
func (s *screen) awaitFor(t *testing.T, want string, patience time.Duration) bool {
	t.Helper()
	for over := time.After(patience); ; {
		s.mu.Lock()
		got := s.text.String()
		s.mu.Unlock()
		if strings.Contains(got, want) {
			return true
		}
		select {
		case <-s.changed:
		case <-over:
			t.Errorf("no %q in %q", want, got)
			return false
		}
	}
}

// files makes the files of a machine with machinetest.Obey.
func files(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "kernel"), machinetest.Obey(), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "disk"), make([]byte, 1<<20), 0o600))
	return options(dir)
}

func options(dir string) Options {
	return Options{
		Kernel: filepath.Join(dir, "kernel"), Disks: []Disk{{File: filepath.Join(dir, "disk")}},
		Nets: []Net{{MAC: [6]byte{2}}}, Memory: machinetest.ObeyMemory,
	}
}

// sockets makes a folder for sockets, whose paths are short.
func sockets(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sf")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "machines")
}

// ending is what Run returned.
type ending struct {
	end machine.End
	err error
}

// runs runs a machine.
func runs(t *testing.T, o Options) (*Machine, *screen, chan ending) {
	t.Helper()
	s := newScreen()
	o.Outputs = append(o.Outputs, s)
	m, err := Open(o)
	must(t, err)
	ended := make(chan ending, 1)
	go func() {
		end, err := m.Run(context.Background())
		ended <- ending{end, err}
	}()
	t.Cleanup(func() {
		m.Stop(0)
		<-m.done
		must(t, m.Close())
	})
	s.await(t, machinetest.ObeyUp)
	return m, s, ended
}

func within[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatal("it takes too long")
	}
	return v
}

// TestRun: a machine restarts with the files and the network that it had, and powers off.
func TestRun(t *testing.T) {
	o := files(t)
	o.Nets[0].User.Forwards = []usernet.Forward{{Listen: "127.0.0.1:0", GuestPort: 80}}
	m, s, ended := runs(t, o)
	if list := m.Forwards(); len(list) != 1 {
		t.Error(list)
	}
	m.Type([]byte("xd"))
	s.await(t, "up\nx\x00\x00\x00\x00\x00\x00\x00\x00ok\n")
	m.Type([]byte{machinetest.ObeyRestart})
	s.await(t, "ok\nup\n")
	if i, err := m.Info(t.Context()); err != nil || i.Restarts != 1 || i.Status.Count == 0 {
		t.Errorf("%+v, %v", i, err)
	}
	m.Stop(Forever)
	if e := within(t, ended); e.err != nil || e.end != machine.PoweredOff {
		t.Error(e)
	}
	s.await(t, "ok\nup\nbye\n")
}

// TestEndings: how a machine ends is what Run returns.
func TestEndings(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(m *Machine)
		end  machine.End
		kind fault.Kind
	}{
		"wedged":   {func(m *Machine) { m.Type([]byte{machinetest.ObeyWedge}) }, machine.Wedged, fault.Failed},
		"forced":   {func(m *Machine) { m.Stop(0) }, machine.Running, fault.Canceled},
		"too late": {flooded, machine.Running, fault.Canceled},
		"killed":   {func(m *Machine) { m.process.Kill() }, machine.Running, fault.Internal},
	} {
		m, _, ended := runs(t, files(t))
		c.do(m)
		if e := within(t, ended); !fault.Is(e.err, c.kind) || e.end != c.end {
			t.Errorf("%s: %v", name, e)
		}
	}
	o := files(t)
	o.NoRestart = true
	m, _, ended := runs(t, o)
	m.Type([]byte{machinetest.ObeyRestart})
	if e := within(t, ended); e.err != nil || e.end != machine.Restarts {
		t.Error(e)
	}
}

// flooded has a machine not listen any more, and stops it with little patience.
func flooded(m *Machine) {
	a, b := io.Pipe()
	m.console.attach(b)
	m.Type([]byte{machinetest.ObeyFlood})
	p := make([]byte, 1)
	for p[0] != '#' {
		if _, err := io.ReadFull(a, p); err != nil {
			return
		}
	}
	_ = a.Close()
	m.Stop(time.Millisecond)
}

// TestTypedEarly: what is typed before there is a guest is not lost, and who types does not
// wait for one that never comes.
func TestTypedEarly(t *testing.T) {
	s := newScreen()
	o := files(t)
	o.Outputs = []io.Writer{s}
	m, err := Open(o)
	must(t, err)
	typed := make(chan struct{})
	go func() {
		m.Type([]byte{'x', machinetest.ObeyPowerOff})
		close(typed)
	}()
	end, err := m.Run(t.Context())
	if err != nil || end != machine.PoweredOff {
		t.Error(end, err)
	}
	within(t, typed)
	s.await(t, "x")
	m.Type([]byte("late"))
	must(t, m.Close())
}

// TestBusyDisk: a disk that a machine has is no other's.
func TestBusyDisk(t *testing.T) {
	o := files(t)
	runs(t, o)
	if _, err := Open(o); !fault.Is(err, fault.Busy) {
		t.Error(err)
	}
	o.Disks[0].File += "x"
	if _, err := Open(o); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

// TestSocket: a machine with a name is found, shown, attached to and stopped; its name
// is free when it has died.
func TestSocket(t *testing.T) {
	o := files(t)
	o.Name, o.Sockets = "m1", sockets(t)
	_, _, ended := runs(t, o)
	info, err := os.Stat(filepath.Join(o.Sockets, "m1"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
	other := files(t)
	other.Name, other.Sockets = o.Name, o.Sockets
	if _, err := Open(other); !fault.Is(err, fault.Exists) {
		t.Errorf("a second m1: %v", err)
	}
	list, err := List(t.Context(), o.Sockets)
	if err != nil || len(list) != 1 || list[0].Name != "m1" || list[0].Status.Count == 0 || list[0].Memory != machinetest.ObeyMemory {
		t.Errorf("%+v, %v", list, err)
	}
	at, err := Attach(t.Context(), o.Sockets, "m1")
	must(t, err)
	defer at.Close()
	must(t, at.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(at, "hey")
	must(t, err)
	want := machinetest.ObeyUp + "hey"
	b := make([]byte, len(want))
	if _, err := io.ReadFull(at, b); err != nil || string(b) != want {
		t.Errorf("the console says %q, %v", b, err)
	}
	brief, err := Attach(t.Context(), o.Sockets, "m1")
	must(t, err)
	must(t, brief.Leave())
	if got, err := io.ReadAll(brief); err != nil || string(got) != want {
		t.Errorf("who leaves at once has read %q, %v", got, err)
	}
	must(t, brief.Close())
	if _, err := Find(t.Context(), o.Sockets, "m2"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	end, err := StopOther(t.Context(), o.Sockets, "m1", false)
	if err != nil || end != machine.PoweredOff {
		t.Error(end, err)
	}
	if rest, err := io.ReadAll(at); err != nil || string(rest) != machinetest.ObeyBye {
		t.Errorf("the console's end is %q, %v", rest, err)
	}
	within(t, ended)
}

// TestForce: one that does not listen to its power button is ended by force.
func TestForce(t *testing.T) {
	o := files(t)
	o.Name, o.Sockets = "m1", sockets(t)
	m, s, ended := runs(t, o)
	m.Type([]byte{machinetest.ObeyFlood})
	s.await(t, "###")
	if end, err := StopOther(t.Context(), o.Sockets, "m1", true); !fault.Is(err, fault.Canceled) || end != machine.Running {
		t.Error(end, err)
	}
	within(t, ended)
}

// TestUnanswered: a machine whose process does not answer is no obstacle to the list of others,
// and can be ended by force.
func TestUnanswered(t *testing.T) {
	o := files(t)
	o.Name, o.Sockets = "m1", sockets(t)
	m, _, ended := runs(t, o)
	l, err := net.Listen("unix", filepath.Join(o.Sockets, "m0"))
	must(t, err)
	defer l.Close()
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			c.Close()
		}
	}()
	list, err := List(t.Context(), o.Sockets)
	if len(list) != 1 || !fault.Is(err, fault.Unreachable) || !strings.Contains(err.Error(), `"m0"`) {
		t.Errorf("%d machines, %v", len(list), err)
	}
	_, p := m.about()
	must(t, unix.Kill(p.PID(), unix.SIGSTOP))
	if end, err := StopOther(t.Context(), o.Sockets, "m1", true); !fault.Is(err, fault.Internal) || end != machine.Running {
		t.Error(end, err)
	}
	within(t, ended)
}

// gate is an output that takes nothing until it is opened.
type gate chan struct{}

func (g gate) Write(p []byte) (int, error) {
	<-g
	return len(p), nil
}

// TestUnread: where the guest's last words are not read, a machine that has ended can be ended
// by force still.
func TestUnread(t *testing.T) {
	o, shut := files(t), make(gate)
	o.Outputs = []io.Writer{shut}
	m, err := Open(o)
	must(t, err)
	defer func() { must(t, m.Close()) }()
	defer close(shut)
	ended := make(chan ending, 1)
	go func() {
		end, err := m.Run(t.Context())
		ended <- ending{end, err}
	}()
	m.Type([]byte{machinetest.ObeyPowerOff}) // it returns when there is a process
	_, p := m.about()
	within(t, p.Exited())
	m.Stop(0)
	if e := within(t, ended); e.err != nil || e.end != machine.PoweredOff {
		t.Error(e)
	}
}

// TestConsoleLog: a console's log does not grow without end, and the last of it is kept.
func TestConsoleLog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	must(t, os.WriteFile(name, []byte("before\n"), 0o600))
	l, err := OpenConsoleLog(name)
	must(t, err)
	l.most = 10
	for _, p := range []string{"one", "two", "three", "longer than a log", "last"} {
		_, err := io.WriteString(l, p)
		must(t, err)
	}
	must(t, l.Close())
	for file, want := range map[string]string{name: "last", name + ".1": "longer than a log"} {
		if b, err := os.ReadFile(file); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", file, b, err)
		}
	}
	if all, err := os.ReadDir(filepath.Dir(name)); err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
	l, err = OpenConsoleLog(os.DevNull)
	must(t, err)
	l.bytes = 2 * consoleLogMax
	_, err = io.WriteString(l, "nobody keeps that")
	must(t, errors.Join(err, l.Close()))
}

// slow is a client that reads nothing: a write ends when it is closed.
type slow struct{ closed chan struct{} }

func (s *slow) Write(p []byte) (int, error) {
	<-s.closed
	return 0, os.ErrClosed
}

func (s *slow) Close() error {
	close(s.closed)
	return nil
}

// TestSlowClient: who has attached and does not read is dropped; others lose nothing.
func TestSlowClient(t *testing.T) {
	out := &bytes.Buffer{}
	said := 0
	c := newConsole([]io.Writer{broken{}, out}, func(string, ...any) { said++ })
	s := &slow{make(chan struct{})}
	k := c.attach(s)
	piece := bytes.Repeat([]byte("x"), behindMax/8)
	for range 20 {
		_, err := c.Write(piece)
		must(t, err)
	}
	if out.Len() != 20*len(piece) || said != 1 {
		t.Errorf("%d bytes, and people were told %d times of the broken one", out.Len(), said)
	}
	within(t, s.closed)
	within(t, k.done)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.clients) != 0 {
		t.Error("it is still there")
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

// TestEscape: commands are found wherever the pieces are cut.
func TestEscape(t *testing.T) {
	const typed = "ab\x01xc\x01\x01d\x01Dq\x01zend\x01"
	for size := 1; size <= len(typed); size++ {
		var e Escape
		var guest, keys []byte
		for rest := []byte(typed); len(rest) > 0; {
			p := rest[:min(size, len(rest))]
			rest = rest[len(p):]
			for len(p) > 0 {
				var text []byte
				var k Key
				text, k, p = e.Feed(p)
				if guest = append(guest, text...); k != 0 {
					keys = append(keys, byte(k))
				}
			}
		}
		if string(guest) != "abc\x01dqend" || string(keys) != "xd?" {
			t.Errorf("in pieces of %d: %q and %q", size, guest, keys)
		}
	}
}

// TestRecord: a recording goes on where the guest restarts, is replayed, and is not
// written over.
func TestRecord(t *testing.T) {
	o := files(t)
	o.Record, o.HashEvery = filepath.Join(t.TempDir(), "rec"), 10_000
	m, s, ended := runs(t, o)
	m.Type([]byte("x"))
	s.await(t, "x")
	m.Type([]byte{machinetest.ObeyRestart})
	s.await(t, machinetest.ObeyUp+"x"+machinetest.ObeyUp)
	info, err := m.Info(t.Context())
	if err != nil || info.Restarts != 1 {
		t.Errorf("%d restarts, %v", info.Restarts, err)
	}
	m.Type([]byte("yd"))
	s.await(t, "ok\n")
	m.Type([]byte{machinetest.ObeyPowerOff})
	if e := within(t, ended); e.err != nil || e.end != machine.PoweredOff {
		t.Fatal(e)
	}
	r := replayed(t, o.Record)
	if r.Machine.End() != machine.PoweredOff || r.Compared() == 0 || !r.Contents.Whole {
		t.Errorf("%v, %+v", r.Machine.End(), r.Contents)
	}
	again := files(t)
	again.Record = o.Record
	if _, err := Open(again); !fault.Is(err, fault.Exists) {
		t.Error(err)
	}
}

// TestRecordNoRestart: a recording ends where the guest would restart, if it is to.
func TestRecordNoRestart(t *testing.T) {
	o := files(t)
	o.Record, o.HashEvery, o.NoRestart = filepath.Join(t.TempDir(), "rec"), 10_000, true
	m, _, ended := runs(t, o)
	m.Type([]byte{machinetest.ObeyRestart})
	if e := within(t, ended); e.err != nil || e.end != machine.Restarts {
		t.Fatal(e)
	}
	if r := replayed(t, o.Record); r.Machine.End() != machine.Restarts || !r.Contents.Whole {
		t.Errorf("%v, %+v", r.Machine.End(), r.Contents)
	}
}

func replayed(t *testing.T, dir string) *machineio.Recording {
	t.Helper()
	r, err := machineio.OpenRecording(filepath.Join(dir, RecordedState), filepath.Join(dir, RecordedLog))
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	r.BootFrom(filepath.Join(dir, RecordedKernel), filepath.Join(dir, RecordedInitrd))
	must(t, r.Run(t.Context(), 1<<64-1, nil, nil))
	return r
}

// recorder is a process that records a machine until it is killed.
func recorder(dir string) int {
	o := options(dir)
	o.Record, o.HashEvery, o.Outputs = filepath.Join(dir, "rec"), 10_000, []io.Writer{os.Stdout}
	m, err := Open(o)
	if err == nil {
		_, err = m.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// TestRecorderKilled: what a recorder that is killed has logged can be replayed. The
// log may be whole: the machine's process ends it in order if it is given the time.
func TestRecorderKilled(t *testing.T) {
	dir := filepath.Dir(files(t).Kernel)
	cmd := exec.Command("/proc/self/exe", "record", dir)
	s := newScreen()
	cmd.Stdout, cmd.Stderr = s, os.Stderr
	must(t, cmd.Start())
	s.await(t, machinetest.ObeyUp)
	log := filepath.Join(dir, "rec", RecordedLog)
	for over := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if st, err := os.Stat(log); err == nil && st.Size() > 64 {
			break
		}
		if time.Now().After(over) {
			t.Fatal("nothing is logged")
		}
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	r := replayed(t, filepath.Join(dir, "rec"))
	if r.Machine.Count() != r.Contents.Last || r.Machine.Count() == 0 {
		t.Errorf("at %d of %d", r.Machine.Count(), r.Contents.Last)
	}
}

// TestAskedAtOnce: machines that take their time do so together.
func TestAskedAtOnce(t *testing.T) {
	dir := sockets(t)
	must(t, os.MkdirAll(dir, 0o700))
	const machines = 4
	var asked, served sync.WaitGroup
	asked.Add(machines)
	all := make(chan struct{})
	go func() {
		asked.Wait()
		close(all)
	}()
	for i := range machines {
		l, err := net.Listen("unix", filepath.Join(dir, fmt.Sprintf("m%d", i)))
		must(t, err)
		served.Go(func() {
			defer l.Close()
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			asked.Done()
			<-all // it answers when the last one was asked, and never if they take turns
		})
	}
	list, err := List(t.Context(), dir)
	if len(list) != 0 || !fault.Is(err, fault.Unreachable) {
		t.Errorf("%d machines, %v", len(list), err)
	}
	for i := range machines {
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("\"m%d\"", i)) {
			t.Errorf("m%d is missing in %v", i, err)
		}
	}
	select {
	case <-all:
		served.Wait()
	case <-time.After(time.Minute):
		t.Fatal("they were not asked at once")
	}
}
