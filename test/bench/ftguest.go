package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"steadfast/compute/filedisk"
	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
	"steadfast/compute/machineio"
	"steadfast/compute/usernet"
	"steadfast/compute/vmlock"
	"steadfast/compute/vmm"
	"steadfast/fault"
	"steadfast/test/testbed"
)

// ftPatience bounds what the guest may take for one thing, its boot too.
const ftPatience = 10 * time.Minute

// durablePort is the guest's, of a Redis that syncs.
const durablePort = redisPort + 1

// ftLock is the machine's lock, of both hosts.
type ftLock struct {
	mu    sync.Mutex
	block vmlock.Block
}

// ftKey is a host's way to it.
type ftKey struct {
	*ftLock
	me vmlock.Owner
}

// Change implements lockstepio.Lock.
func (k ftKey) Change(_ context.Context, partner vmlock.Owner) (b [vmlock.BlockSize]byte, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.block.Owner != k.me {
		return b, fault.New(fault.Fenced, "the lock is host %d's", k.block.Owner.Host)
	}
	k.block.Partner = partner
	k.block.Turn++
	return k.block.Encode(), nil
}

// Take implements lockstepio.Lock: no secondary of a bench is to go on.
func (k ftKey) Take(context.Context, [vmlock.BlockSize]byte) (b [vmlock.BlockSize]byte, err error) {
	return b, fault.New(fault.Fenced, "the lock is the primary's")
}

// ftHost is a process of the machine.
type ftHost struct {
	*vmm.Process
	me     vmlock.Owner
	events chan lockstep.Event
}

// ftGuest is the guest, with or without its secondary.
type ftGuest struct {
	disk    *os.File
	size    int64
	network *usernet.Network
	// Addresses of this host that lead to the guest's Redis, one that syncs, and guestload.
	redisAt, durableAt, loadAt string

	lock    *ftLock
	console *testbed.Console
	hosts   uint16 // so many there were
	primary *ftHost
	second  *ftHost
}

// bootFT starts the guest, on a disk of that name, and logs in.
func (b *bench) bootFT(parts testbed.Debian, disk string) (g *ftGuest, err error) {
	g = &ftGuest{lock: &ftLock{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	name := filepath.Join(b.dir, disk+".raw")
	if out, err := exec.CommandContext(b.ctx, "cp", "--sparse=always", parts.Disk, name).CombinedOutput(); err != nil {
		return g, fmt.Errorf("cp: %w: %s", err, out)
	}
	if err := b.putFT(name); err != nil {
		return g, err
	}
	if g.disk, err = filedisk.OpenFile(name, false); err != nil {
		return g, err
	}
	if g.size, err = g.disk.Seek(0, io.SeekEnd); err != nil {
		return g, err
	}
	o := usernet.Options{Large: true, Isolated: true, Forwards: []usernet.Forward{
		{Listen: "127.0.0.1:0", GuestPort: redisPort}, {Listen: "127.0.0.1:0", GuestPort: durablePort}, {Listen: "127.0.0.1:0", GuestPort: loadPort},
	}}
	if g.network, err = usernet.New(o); err != nil {
		return g, err
	}
	at := g.network.Forwards()
	g.redisAt, g.durableAt, g.loadAt = at[0].String(), at[1].String(), at[2].String()
	if err := g.start(b.ctx, parts); err != nil {
		return g, err
	}
	return g, g.console.Login(b.ctx)
}

// putFT puts files on the guest's disk: guestload, and a program to compile.
func (b *bench) putFT(disk string) error {
	tool := filepath.Join(b.dir, "guestload-ft")
	build := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", tool, "./test/bench/guestload")
	build.Env = append(os.Environ(), "GOOS=linux", "GOARCH=riscv64", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build guestload: %w: %s", err, out)
	}
	for _, words := range []string{
		"write " + tool + " /usr/bin/guestload", "sif /usr/bin/guestload mode 0100755",
		"write compute/riscv/testdata/bench.c /root/bench.c",
	} {
		if out, err := exec.CommandContext(b.ctx, "debugfs", "-w", "-R", words, disk).CombinedOutput(); err != nil {
			return fmt.Errorf("debugfs: %w: %s", err, out)
		}
	}
	return nil
}

// host is one more, with what its process is started with.
func (g *ftGuest) host() (*ftHost, vmm.Options) {
	g.hosts++
	h := &ftHost{me: vmlock.Owner{Host: g.hosts, Boot: 1}, events: make(chan lockstep.Event, 100)}
	return h, vmm.Options{Disks: vmm.Files(g.disk), Pair: &vmm.Pair{
		Lock: ftKey{g.lock, h.me}, Event: func(e lockstep.Event) { h.events <- e },
	}}
}

// start boots the machine, without a secondary.
func (g *ftGuest) start(ctx context.Context, parts testbed.Debian) error {
	kernel, err := os.Open(parts.Kernel)
	if err != nil {
		return err
	}
	defer kernel.Close()
	initrd, err := os.Open(parts.Initrd)
	if err != nil {
		return err
	}
	defer initrd.Close()
	h, o := g.host()
	o.Kernel, o.Initrd = kernel, initrd
	o.Config = machine.Config{
		Memory: guestMemory << 20, Disks: []machine.Disk{{Size: g.size}}, Nets: []machine.Net{{MAC: [6]byte{2, 0, 0, 0, 0, 1}}},
		CommandLine: "console=ttyS0 quiet", Seed: machineio.Seed(), Wall: uint64(time.Now().UnixNano()),
	}
	g.lock.block = vmlock.Block{VM: vmlock.ID{1}, Generation: 1, Owner: h.me, Attempt: 1, Nonce: [16]byte{1}, Held: true}
	if h.Process, err = vmm.Start(ctx, o); err != nil {
		return err
	}
	g.primary = h
	g.console = testbed.NewConsole(h.Console, io.Discard, ftPatience)
	go func() { _, _ = io.Copy(g.console, h.Console) }() // until its end
	go func() { _ = g.network.Join(h.Wires[0]) }()       // likewise
	return nil
}

// ftStream makes a connection of TCP over this host, as the links of hosts are.
func ftStream() (ends [2]*os.File, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return ends, err
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return ends, err
	}
	defer a.Close()
	b, err := l.Accept()
	if err != nil {
		return ends, err
	}
	defer b.Close()
	for i, c := range []net.Conn{a, b} {
		var e error
		ends[i], e = c.(*net.TCPConn).File()
		err = errors.Join(err, e)
	}
	return ends, err
}

// turnOn gives the machine a secondary, and returns when it is protected.
func (g *ftGuest) turnOn(ctx context.Context) error {
	logging, err := ftStream()
	if err != nil {
		return err
	}
	management, err := ftStream()
	if err != nil {
		return err
	}
	for _, f := range append(logging[:], management[:]...) {
		defer f.Close() // the processes have them
	}
	h, o := g.host()
	session := lockstep.Session{byte(g.hosts), 7}
	o.Nets = 1
	o.Secondary = &vmm.Secondary{Me: h.me, Session: session, Logging: logging[1], Management: management[1], MemoryMax: guestMemory << 20}
	if h.Process, err = vmm.Start(ctx, o); err != nil {
		return err
	}
	g.second = h
	if err := g.primary.TurnOn(ctx, session, h.me, logging[0], management[0], nil); err != nil {
		return err
	}
	return g.primary.await(ctx, lockstep.Protected)
}

// turnOff has it live alone again.
func (g *ftGuest) turnOff(ctx context.Context) error {
	if err := g.primary.TurnOff(ctx); err != nil {
		return err
	}
	if err := g.primary.await(ctx, lockstep.Unprotected); err != nil {
		return err
	}
	s := g.second
	g.second = nil
	<-s.Exited()
	return s.Close()
}

// await waits for an event. Another that ends the pair is an error.
func (h *ftHost) await(ctx context.Context, kind lockstep.EventKind) error {
	ctx, cancel := context.WithTimeout(ctx, orderPatience)
	defer cancel()
	for {
		select {
		case e := <-h.events:
			if e.Kind == kind {
				return nil
			}
			if e.Kind == lockstep.Unprotected || e.Kind == lockstep.Diverged {
				return fmt.Errorf("the pair has ended: %s: %w", e.Why, errors.Join(e.Err, errors.New("not protected")))
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// broken tells whether the pair has ended meanwhile.
func (h *ftHost) broken() error {
	select {
	case e := <-h.events:
		return fmt.Errorf("the pair has ended: %s: %w", e.Why, errors.Join(e.Err, errors.New("not protected")))
	default:
		return nil
	}
}

// close ends all of it.
func (g *ftGuest) close() (err error) {
	for _, h := range []*ftHost{g.second, g.primary} {
		if h != nil {
			err = errors.Join(err, h.Close())
		}
	}
	if g.network != nil {
		err = errors.Join(err, g.network.Close())
	}
	if g.disk != nil {
		err = errors.Join(err, g.disk.Close())
	}
	return err
}
