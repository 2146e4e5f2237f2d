package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"steadfast/compute/vmm/standalone"
	"steadfast/test/testbed"
)

// Sides of a row.
const (
	ours   = 0
	theirs = 1
)

var sideNames = [2]string{"steadfast", qemuName}

// guestMemory is a guest's, in MiB.
const guestMemory = 512

// Ports of the guest that are forwarded to.
const (
	redisPort = 6379
	loadPort  = 5001
)

// guest is a guest that runs, on one of the sides.
type guest struct {
	side   int
	cmd    *exec.Cmd
	in     io.WriteCloser
	screen *screen
	worker int // the process that executes
	run    string
	name   string
	// redis and load are the addresses of this host that lead to the guest's ports.
	redis, load string
	loggedIn    bool
	ended       chan struct{}
}

// start starts a side's guest. Its root disk is thrown away with the next one.
func (m *machineBench) start(side int, arguments string) (*guest, error) {
	port, err := testbed.FreePort("127.0.0.1")
	if err != nil {
		return nil, err
	}
	second, err := testbed.FreePort("127.0.0.1")
	if err != nil {
		return nil, err
	}
	g := &guest{
		side: side, screen: newScreen(), run: filepath.Join(m.dir, "run"), name: "bench", ended: make(chan struct{}),
		redis: fmt.Sprintf("127.0.0.1:%d", port), load: fmt.Sprintf("127.0.0.1:%d", second),
	}
	var argv []string
	switch {
	case m.san != "":
		argv = m.onSAN(side, arguments)
	case side == ours:
		argv = []string{
			m.bin, "machine", "run", "--name", g.name, "--console", "--memory", fmt.Sprintf("%dMiB", guestMemory), "--kernel", m.parts.Kernel, "--initrd", m.parts.Initrd,
			"--append", arguments, "--disk", m.disk(side), "--disk", m.data(side),
			"--net", fmt.Sprintf("user,forward=%s:%d,forward=%s:%d", g.redis, redisPort, g.load, loadPort),
		}
	default:
		argv = append(qemuMachine(),
			"-kernel", m.parts.Kernel, "-initrd", m.parts.Initrd, "-append", arguments,
			"-drive", "file="+m.disk(side)+",format=raw,if=none,id=root", "-device", "virtio-blk-device,drive=root",
			"-drive", "file="+m.data(side)+",format=raw,if=none,id=data", "-device", "virtio-blk-device,drive=data",
			"-netdev", fmt.Sprintf("user,id=net,hostfwd=tcp:%s-:%d,hostfwd=tcp:%s-:%d", g.redis, redisPort, g.load, loadPort),
			"-device", "virtio-net-device,netdev=net", "-device", "virtio-rng-device")
	}
	return g, g.begin(m.ctx, argv)
}

// qemuMachine is how QEMU is started: modern virtio, as ours is, and a console.
func qemuMachine() []string {
	return []string{
		"qemu-system-riscv64", "-machine", "virt", "-accel", "tcg", "-smp", "1", "-m", strconv.Itoa(guestMemory), "-global", "virtio-mmio.force-legacy=false",
		"-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot",
	}
}

// begin starts the process and finds the one that executes.
func (g *guest) begin(ctx context.Context, argv []string) (err error) {
	if err := os.MkdirAll(g.run, 0o700); err != nil {
		return err
	}
	g.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	g.cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+g.run)
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	g.cmd.Stdout, g.cmd.Stderr = g.screen, g.screen
	if g.in, err = g.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := g.cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = g.cmd.Wait() // that it has ended matters, not how
		close(g.ended)
		g.screen.end()
	}()
	g.worker = g.cmd.Process.Pid
	for until := time.Now().Add(10 * time.Second); g.side == ours; time.Sleep(2 * time.Millisecond) {
		children, err := childrenOf(g.cmd.Process.Pid)
		if len(children) == 1 {
			g.worker = children[0]
			break
		}
		if err != nil || time.Now().After(until) {
			return errors.Join(fmt.Errorf("no process of the machine: %s", g.screen.tail()), err, g.kill())
		}
	}
	return nil
}

// childrenOf returns the processes that one has started.
func childrenOf(pid int) (list []int, err error) {
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range names {
		text, e := os.ReadFile(name)
		if e != nil {
			continue // a thread that has ended
		}
		for _, f := range strings.Fields(string(text)) {
			if child, e := strconv.Atoi(f); e == nil {
				list = append(list, child)
			}
		}
	}
	return list, err
}

// processes are those that a guest costs.
func (g *guest) processes() []int {
	return slices.Compact([]int{g.cmd.Process.Pid, g.worker})
}

// kill ends the guest.
func (g *guest) kill() error {
	err := g.cmd.Process.Kill()
	<-g.ended
	if errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("the guest had ended: %s", g.screen.tail())
	}
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		// It ends with its parent, and has the disk's lock till then.
		if _, gone := cpuTime(g.worker); gone != nil || zombie(g.worker) {
			return err
		}
		if time.Now().After(until) {
			return errors.Join(err, errors.New("the machine's process has outlived its parent"))
		}
	}
}

// zombie tells whether a process has ended and nobody has asked how.
func zombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	return err != nil || strings.HasPrefix(rest, "Z")
}

// spent returns the instructions that ours has executed so far (0 of the other), those not
// counted that passed while it waited, and the CPU time of the process that executes,
// in seconds.
func (g *guest) spent(ctx context.Context) (executed, seconds float64, err error) {
	before, err := cpuTime(g.worker)
	if err != nil || g.side != ours {
		return 0, before.Seconds(), err
	}
	info, err := standalone.Find(ctx, filepath.Join(g.run, "steadfast", "machines"), g.name)
	if err != nil {
		return 0, 0, err
	}
	after, err := cpuTime(g.worker)
	return float64(info.Status.Count - info.Status.Idled), (before + after).Seconds() / 2, err
}

// bootPatience is how long a guest may take to boot, and orderPatience a command in it.
const (
	bootPatience  = 3 * time.Minute
	orderPatience = 2 * time.Minute
)

// prompt waits until one can log in, or is.
func (g *guest) prompt(ctx context.Context) (at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	text, at, err := g.screen.await(ctx, "login: ", "# ")
	g.loggedIn = text == "# "
	return at, err
}

// login logs in, if that was not done, and ends the Redis that the guest has started itself.
func (g *guest) login(ctx context.Context) error {
	if !g.loggedIn {
		if _, err := io.WriteString(g.in, "root\n"); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, bootPatience)
		defer cancel()
		if _, _, err := g.screen.await(wait, "# "); err != nil {
			return err
		}
		g.loggedIn = true
	}
	_, err := g.order(ctx, "stty -echo; redis-cli shutdown nosave 2>/dev/null; [ -b /dev/vdb ] && [ $(cat /sys/block/vdb/size) = "+strconv.Itoa(dataBytes/512)+" ]")
	return err
}

// order has the guest run a command, and returns what it has printed. It errs when the
// command does.
func (g *guest) order(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, orderPatience)
	defer cancel()
	g.screen.forget()
	// The echo of the line must not be taken for its end.
	if _, err := io.WriteString(g.in, command+"; echo d0''ne=$?=\n"); err != nil {
		return "", err
	}
	if _, _, err := g.screen.await(ctx, "d0ne="); err != nil {
		return "", err
	}
	text := g.screen.before()
	if _, _, err := g.screen.await(ctx, "="); err != nil {
		return "", err
	}
	if status := g.screen.before(); status != "0" {
		return "", fmt.Errorf("in the guest, %q ended with status %s:\n%s", command, status, text)
	}
	return text, nil
}

// screen is the other end of a guest's console.
type screen struct {
	mu    sync.Mutex
	text  []byte // that nobody waited for
	past  []byte // the end of what was waited for
	ahead string // what was before the last thing that was waited for
	want  []string
	found chan sight
	over  chan struct{}
}

// sight is what was seen, and when.
type sight struct {
	what string
	at   time.Time
}

func newScreen() *screen { return &screen{over: make(chan struct{})} }

// Write implements io.Writer.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, p...)
	s.look()
	return len(p), nil
}

// look looks for what is waited for.
func (s *screen) look() {
	for _, w := range s.want {
		i := bytes.Index(s.text, []byte(w))
		if i < 0 {
			continue
		}
		s.ahead = string(s.text[:i])
		s.past = append(s.past, s.text[:i+len(w)]...)
		s.past = s.past[max(0, len(s.past)-2048):]
		s.text = append([]byte(nil), s.text[i+len(w):]...)
		s.want = nil
		s.found <- sight{w, time.Now()}
		return
	}
}

func (s *screen) end() { close(s.over) }

// await waits until one of some texts is on the screen, forgets what is up to it, and returns
// it, and when it came.
func (s *screen) await(ctx context.Context, what ...string) (string, time.Time, error) {
	found := make(chan sight, 1)
	s.mu.Lock()
	s.want, s.found = what, found
	s.look()
	s.mu.Unlock()
	var err error
	select {
	case f := <-found:
		return f.what, f.at, nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-s.over:
		err = errors.New("the guest has ended")
	}
	return "", time.Time{}, fmt.Errorf("waiting for %q on the guest's console: %w; there is:\n%s", what, err, s.tail())
}

// before returns what was on the screen before what was awaited last.
func (s *screen) before() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ahead
}

// forget forgets what is on the screen.
func (s *screen) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.past, s.text = append(s.past, s.text...), nil
}

// tail returns the end of what was printed.
func (s *screen) tail() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := append(bytes.Clone(s.past), s.text...)
	return string(all[max(0, len(all)-2048):])
}
