// Command ft has a Debian guest live in two processes at once, kills the first one, and prints
// what that costs: the pause of turning it on, the log's bandwidth, what the processor's time
// is worth, and how long nobody answers.
//
//	ft [-guest DIR] [-kills N] [-seconds N] [-verbose]
//
// Both processes are on this host, with a file as disk and a lock in this process. It ends with
// a line "ft: N kills, N lost". Its exit status is 0 if the guest went on each time and its
// work was whole, else 1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/filedisk"
	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
	"steadfast/compute/machineio"
	"steadfast/compute/vmlock"
	"steadfast/compute/vmm"
	"steadfast/fault"
	"steadfast/test/testbed"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == vmm.Command {
		if err := vmm.Run(os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "ft:", err)
		os.Exit(1)
	}
}

// patience bounds what the guest may take for one thing.
const patience = 5 * time.Minute

// lock is the machine's, of all its hosts.
type lock struct {
	mu    sync.Mutex
	block vmlock.Block
}

// key is a host's way to it.
type key struct {
	*lock
	me vmlock.Owner
}

// Change implements lockstepio.Lock.
func (k key) Change(_ context.Context, partner vmlock.Owner) (b [vmlock.BlockSize]byte, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.block.Owner != k.me {
		return b, fault.New(fault.Fenced, "the lock is host %d's", k.block.Owner.Host)
	}
	k.block.Partner = partner
	k.block.Turn++
	return k.block.Encode(), nil
}

// Take implements lockstepio.Lock.
func (k key) Take(_ context.Context, from [vmlock.BlockSize]byte) (b [vmlock.BlockSize]byte, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.block.Encode() != from {
		return b, fault.New(fault.Fenced, "the lock is not as it was")
	}
	k.block.Owner, k.block.Partner = k.me, vmlock.Owner{}
	k.block.Turn++
	return k.block.Encode(), nil
}

// host is a process of the machine.
type host struct {
	*vmm.Process
	me     vmlock.Owner
	events chan told
}

// told is an event, and when it came.
type told struct {
	lockstep.Event
	at time.Time
}

// check is one run.
type check struct {
	ctx     context.Context
	debian  testbed.Debian
	disk    *os.File
	lock    *lock
	console *testbed.Console
	hosts   uint16 // so many there were
	memory  uint64

	mu  sync.Mutex
	now *host // is typed to
}

// Write types on the machine, wherever it is.
func (c *check) Write(p []byte) (int, error) {
	c.mu.Lock()
	h := c.now
	c.mu.Unlock()
	return h.Console.Write(p)
}

func (c *check) moves(h *host) {
	c.mu.Lock()
	c.now = h
	c.mu.Unlock()
}

// options are what all processes have.
func (c *check) options() (*host, vmm.Options) {
	c.hosts++
	h := &host{me: vmlock.Owner{Host: c.hosts, Boot: 1}, events: make(chan told, 1000)}
	return h, vmm.Options{Disks: vmm.Files(c.disk), Pair: &vmm.Pair{
		Lock:  key{c.lock, h.me},
		Event: func(e lockstep.Event) { h.events <- told{e, time.Now()} },
	}}
}

// hear brings what the machine says to the console, and what it sends nowhere.
func (c *check) hear(h *host) {
	go func() { _, _ = io.Copy(c.console, h.Console) }() // until its end
	for _, w := range h.Wires {
		go func() { _, _ = io.Copy(io.Discard, w) }()
	}
}

// boot starts the machine.
func (c *check) boot() (*host, error) {
	h, o := c.options()
	size, err := c.disk.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	kernel, err := os.Open(c.debian.Kernel)
	if err != nil {
		return nil, err
	}
	defer kernel.Close()
	initrd, err := os.Open(c.debian.Initrd)
	if err != nil {
		return nil, err
	}
	defer initrd.Close()
	o.Kernel, o.Initrd = kernel, initrd
	o.Config = machine.Config{
		Memory: c.memory, Disks: []machine.Disk{{Size: size}}, Nets: []machine.Net{{MAC: [6]byte{2, 0, 0, 0, 0, 1}}},
		CommandLine: "console=ttyS0 quiet", Seed: machineio.Seed(), Wall: uint64(time.Now().UnixNano()),
	}
	c.lock.block = vmlock.Block{VM: vmlock.ID{1}, Generation: 1, Owner: h.me, Attempt: 1, Nonce: [16]byte{1}, Held: true}
	if h.Process, err = vmm.Start(c.ctx, o); err != nil {
		return nil, err
	}
	c.hear(h)
	c.moves(h)
	return h, nil
}

// protect gives the machine a secondary, and returns it when it can go on.
func (c *check) protect(p *host) (*host, error) {
	h, o := c.options()
	var err error
	var ends [2][2]*os.File
	for i := range ends {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		for j, fd := range fds {
			ends[i][j] = os.NewFile(uintptr(fd), "link")
			defer ends[i][j].Close()
		}
	}
	session := lockstep.Session{byte(c.hosts), 7}
	o.Nets = 1
	o.Secondary = &vmm.Secondary{Me: h.me, Session: session, Logging: ends[0][1], Management: ends[1][1], MemoryMax: c.memory}
	if h.Process, err = vmm.Start(c.ctx, o); err != nil {
		return nil, err
	}
	c.hear(h)
	began := time.Now()
	if err := p.TurnOn(c.ctx, session, h.me, ends[0][0], ends[1][0], nil); err != nil {
		return nil, err
	}
	e, err := p.await(c.ctx, lockstep.Protected)
	if err != nil {
		return nil, err
	}
	s, err := p.Status(c.ctx)
	if err != nil {
		return nil, err
	}
	fmt.Printf("turned on in %v, of which the guest stood still for %v; %.1f MB copied\n", e.at.Sub(began).Round(time.Millisecond), time.Duration(s.Pair.PauseNS).Round(100*time.Microsecond), float64(s.Pair.CopyBytes)/1e6)
	return h, nil
}

// await waits for an event.
func (h *host) await(ctx context.Context, kind lockstep.EventKind) (told, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		select {
		case e := <-h.events:
			if e.Kind == kind {
				return e, nil
			}
			if e.Kind == lockstep.Unprotected || e.Kind == lockstep.Diverged {
				return e, fmt.Errorf("host %d: the pair ended: %s: %w", h.me.Host, e.Why, errors.Join(e.Err, errors.New("unprotected")))
			}
		case <-ctx.Done():
			return told{}, ctx.Err()
		}
	}
}

// cpu is the time that a process has had.
func (h *host) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.PID()))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var ticks int64
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100, nil
}

// load is a shell that never waits.
const load = "for n in $(seq 40000); do i=$((n*n)); done"

// cost has the guest compute, and prints what the processor's time is worth.
func (c *check) cost(what string, p, s *host) error {
	before, err := p.Status(c.ctx)
	if err != nil {
		return err
	}
	cpus := func() (list []time.Duration, err error) {
		for _, h := range []*host{p, s} {
			if h == nil {
				continue
			}
			d, err := h.cpu()
			if err != nil {
				return nil, err
			}
			list = append(list, d)
		}
		return list, nil
	}
	from, err := cpus()
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := c.console.Shell(c.ctx, "%s", load); err != nil {
		return err
	}
	took := time.Since(began)
	to, err := cpus()
	if err != nil {
		return err
	}
	after, err := p.Status(c.ctx)
	if err != nil {
		return err
	}
	n := float64(after.Count - before.Count - (after.Idled - before.Idled))
	fmt.Printf("%s: %.0f million instructions in %v; a second of the processor's time: %.1f million", what, n/1e6, took.Round(time.Millisecond), n/1e6/(to[0]-from[0]).Seconds())
	if s != nil {
		fmt.Printf("; of the secondary's: %.1f; %.1f KB/s of log", n/1e6/(to[1]-from[1]).Seconds(), float64(after.Pair.LogBytes-before.Pair.LogBytes)/1e3/took.Seconds())
	}
	fmt.Println()
	return nil
}

// syncs has the guest write a line and sync it, many times, and prints what one takes: some
// writes and flushes, each of which waits for the secondary.
func (c *check) syncs(what string) error {
	const times = 200
	out, err := c.console.Shell(c.ctx, "a=$(date +%%s%%N); for i in $(seq %d); do echo $i > /root/sync; sync /root/sync; done; b=$(date +%%s%%N); echo $(((b-a)/%d))", times, times)
	if err != nil {
		return err
	}
	ns, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		return fmt.Errorf("the guest's time of a sync: %w", err)
	}
	fmt.Printf("%s: a line written and synced takes %v\n", what, time.Duration(ns).Round(10*time.Microsecond))
	return nil
}

// idle prints what a pair costs whose guest does nothing.
func (c *check) idle(p *host, d time.Duration) error {
	a, err := p.Status(c.ctx)
	if err != nil {
		return err
	}
	time.Sleep(d)
	b, err := p.Status(c.ctx)
	if err != nil {
		return err
	}
	fmt.Printf("idle: %.2f KB/s of log\n", float64(b.Pair.LogBytes-a.Pair.LogBytes)/1e3/d.Seconds())
	return nil
}

// kill kills the process that the machine lives in while it writes to its disk, and looks
// at what is there when all is done.
func (c *check) kill(p, s *host, round int) error {
	const lines = 150
	c.console.Forget()
	if err := c.console.Type(fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i >> /root/f%d; sync /root/f%d; echo \"=$i=\"; done; echo \"=all\"=", lines, round, round)); err != nil {
		return err
	}
	if _, err := c.console.Await(c.ctx, fmt.Sprintf("=%d=", 20+round*13%100)); err != nil {
		return err
	}
	killed := time.Now()
	p.Kill()
	<-p.Exited()
	gone := time.Now()
	if err := s.OtherGone(c.ctx); err != nil {
		return err
	}
	c.moves(s)
	e, err := s.await(c.ctx, lockstep.TookOver)
	if err != nil {
		return err
	}
	c.console.Forget()
	if _, err := c.console.Await(c.ctx, "="); err != nil {
		return err
	}
	fmt.Printf("killed: dead after %v, the lock taken %v later, the next word of the guest %v after the kill\n", gone.Sub(killed).Round(100*time.Microsecond), e.at.Sub(gone).Round(100*time.Microsecond), time.Since(killed).Round(100*time.Microsecond))
	if _, err := c.console.Await(c.ctx, "=all="); err != nil {
		return err
	}
	out, err := c.console.Shell(c.ctx, "wc -l < /root/f%d; md5sum < /root/f%d; seq %d | md5sum; dmesg | grep -ciE 'i/o error|ext4-fs error|call trace' || true", round, round, lines)
	if err != nil {
		return err
	}
	f := strings.Fields(out)
	if len(f) != 6 || f[0] != strconv.Itoa(lines) || f[1] != f[3] || f[5] != "0" {
		return fmt.Errorf("the guest's work is not whole: %q", out)
	}
	return nil
}

func run(ctx context.Context) (err error) {
	guest := flag.String("guest", "", "folder of the guest (default: the one that is kept)")
	kills := flag.Int("kills", 2, "how often the machine's process is killed")
	seconds := flag.Int("seconds", 5, "how long the idle guest is looked at")
	memory := flag.Uint64("memory", 512, "of the guest, in MiB")
	verbose := flag.Bool("verbose", false, "print the guest's console")
	flag.Parse()
	c := &check{ctx: ctx, lock: &lock{}, memory: *memory << 20}
	if c.debian, err = testbed.NewDebian(ctx, *guest); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "steadfast-ft-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := copyFile(dir+"/disk", c.debian.Disk); err != nil {
		return err
	}
	if c.disk, err = filedisk.OpenFile(dir+"/disk", false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.disk.Close()) }()
	tee := io.Discard
	if *verbose {
		tee = os.Stdout
	}
	c.console = testbed.NewConsole(c, tee, patience)
	p, err := c.boot()
	if err != nil {
		return err
	}
	lost := 0
	defer func() {
		fmt.Printf("ft: %d kills, %d lost\n", *kills, lost)
	}()
	err = c.story(p, *kills, time.Duration(*seconds)*time.Second)
	if err != nil {
		lost++
		err = fmt.Errorf("%w; the console ends with %q", err, c.console.Tail(300))
	}
	return err
}

// story is what the machine goes through.
func (c *check) story(p *host, kills int, idle time.Duration) (err error) {
	hosts := []*host{p}
	defer func() {
		for _, h := range hosts {
			err = errors.Join(err, h.Close())
		}
	}()
	began := time.Now()
	if err := c.console.Login(c.ctx); err != nil {
		return err
	}
	fmt.Printf("booted in %v\n", time.Since(began).Round(time.Millisecond))
	if err := errors.Join(c.cost("off", p, nil), c.syncs("off")); err != nil {
		return err
	}
	for round := range kills {
		time.Sleep(idle)
		s, err := c.protect(p)
		if err != nil {
			return err
		}
		hosts = append(hosts, s)
		if round == 0 {
			if err := c.idle(p, idle); err != nil {
				return err
			}
			if err := errors.Join(c.cost("on", p, s), c.syncs("on")); err != nil {
				return err
			}
		}
		if err := c.kill(p, s, round); err != nil {
			return err
		}
		p = s
	}
	if err := c.console.Type("poweroff"); err != nil {
		return err
	}
	select {
	case <-p.Exited():
	case <-time.After(patience):
		return errors.New("the guest does not switch itself off")
	}
	if end, err := p.Wait(); err != nil || end.End != machine.PoweredOff {
		return fmt.Errorf("the guest ended: %s, %w", end.End, err)
	}
	return nil
}

// copyFile copies the disk: the guest writes to it.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
