package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"steadfast/block"
	"steadfast/compute/filedisk"
	"steadfast/compute/image"
	"steadfast/compute/machine"
	"steadfast/compute/machineio"
	"steadfast/compute/usernet"
)

// cacheDir keeps the guest.
const cacheDir = ".cache/machine"

// buildGuest makes the guest, if it is not there: a small Debian with Redis.
func buildGuest(ctx context.Context) (string, error) {
	dir := filepath.Join(cacheDir, "guest")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	b := &image.Builder{
		Cache: filepath.Join(cacheDir, "image"), Runner: machineio.Runner{Memory: 512 << 20},
		Say: func(format string, args ...any) { fmt.Printf("note  guest: "+format+"\n", args...) },
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", err
	}
	_, err := b.Build(ctx, image.Spec{Name: "check", Profile: "minimal", Packages: []string{"redis-server", "redis-tools"}, SizeBytes: 512 << 20}, dir)
	return dir, err
}

// recorded is a life that was recorded.
type recorded struct {
	start, middle string // saved states
	log           string
	middleAt, end uint64 // counts
}

// screen is the other end of the serial port.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
	copy io.Writer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.copy != nil {
		_, _ = s.copy.Write(p)
	}
	return s.text.Write(p)
}

// await waits until one of some texts is on the screen, and forgets what is before it.
func (s *screen) await(ctx context.Context, what ...string) (found string, err error) {
	for ctx.Err() == nil {
		s.mu.Lock()
		for _, w := range what {
			if i := bytes.Index(s.text.Bytes(), []byte(w)); i >= 0 {
				s.text.Next(i + len(w))
				found = w
				break
			}
		}
		s.mu.Unlock()
		if found != "" {
			return found, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "", fmt.Errorf("waiting for %q: %w", what, context.Cause(ctx))
}

// bootTime is how long a guest may take to boot, on a machine with other work.
const bootTime = 15 * time.Minute

// guestFiles are the names under which a guest's parts may be.
func guestFiles(dir string) (kernel, initrd, disk string, err error) {
	find := func(names ...string) string {
		for _, n := range names {
			if _, e := os.Stat(filepath.Join(dir, n)); e == nil {
				return filepath.Join(dir, n)
			}
		}
		err = errors.Join(err, fmt.Errorf("there is none of %v in %s", names, dir))
		return ""
	}
	return find("kernel"), find("initrd", "initrd.gz"), find("root.ext4", "disk.raw"), err
}

// record boots the guest and has it work until enough has happened.
func (c *check) record(ctx context.Context) (r *recorded, err error) {
	kernel, initrd, disk, err := guestFiles(c.guest)
	if err != nil {
		return nil, err
	}
	r = &recorded{start: c.file(startName), middle: c.file(middleName), log: c.file(logName)}
	copied := c.file("disk")
	if err := copyFile(copied, disk); err != nil {
		return nil, err
	}
	d, err := filedisk.Open(copied, false)
	if err != nil {
		return nil, err
	}
	// A replay has none: it is renamed, which its log need not know.
	defer func() { err = errors.Join(err, d.Close(), os.Rename(copied, copied+".gone")) }()
	m, err := c.load(kernel, initrd, d.Size())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Release()) }()
	if err := save(m, r.start); err != nil {
		return nil, err
	}
	f, err := os.Create(r.log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	log, err := machine.NewLog(f)
	if err != nil {
		return nil, err
	}
	s := &screen{}
	if c.verbose {
		s.copy = os.Stdout
	}
	network, err := usernet.New(usernet.Options{Isolated: true, Large: true, Forwards: []usernet.Forward{{Listen: "127.0.0.1:0", GuestPort: 6379}}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, network.Close()) }()
	l, err := machineio.New(m, machineio.Options{Disks: []block.Device{d}, Wires: []machineio.Wire{network}, Serial: s, Log: log, HashEvery: max(c.instructions/500, 1_000_000)})
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(ctx)
	var others sync.WaitGroup
	others.Go(func() {
		for {
			select {
			case frame := <-network.Frames():
				l.Frame(0, frame)
			case <-life.Done():
				return
			}
		}
	})
	var worked error
	others.Go(func() {
		defer end()
		worked = c.work(life, l, s, network.Forwards()[0].String(), r)
	})
	began := time.Now()
	_, err = l.Run(life)
	end()
	others.Wait()
	if err := errors.Join(err, worked, ctx.Err()); err != nil {
		return nil, err
	}
	r.end = m.Count()
	n := l.Counters()
	fmt.Printf("note  recorded %d instructions (%d of them waiting), %d inputs and %d changes of the clock's rate, %d outputs, a log of %d bytes, in %v; the clock's lag %v\n",
		m.Count(), m.Idled(), n.Inputs-n.Syncs, n.Syncs, n.Outputs, n.LogBytes, time.Since(began).Round(time.Millisecond), n.Lag)
	return r, nil
}

func (c *check) load(kernel, initrd string, diskSize int64) (*machine.Machine, error) {
	k, err := os.ReadFile(kernel)
	if err != nil {
		return nil, err
	}
	i, err := os.ReadFile(initrd)
	if err != nil {
		return nil, err
	}
	m, err := machine.New(machine.Config{
		Memory: 512 << 20, Disks: []machine.Disk{{Size: diskSize}}, Nets: []machine.Net{{MAC: [6]byte{2, 0, 0, 0, 0, 1}}},
		CommandLine: "console=ttyS0 quiet", Seed: machineio.Seed(), Wall: uint64(time.Now().UnixNano()),
	})
	if err != nil {
		return nil, err
	}
	return m, m.Load(k, i)
}

func save(m *machine.Machine, name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(m.Save(f), f.Close())
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // it was only read
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// work uses the guest's console, disk and network until enough has happened.
func (c *check) work(ctx context.Context, l *machineio.Live, s *screen, redis string, r *recorded) error {
	boot, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	found, err := s.await(boot, "login: ", "# ")
	if err != nil {
		return err
	}
	if found == "login: " {
		c.typeIn(boot, l, "root\n")
		if _, err := s.await(boot, "# "); err != nil {
			return err
		}
	}
	fmt.Printf("note  booted, at %d instructions\n", counted(l))
	// What Debian has started listens to nobody outside.
	if err := c.order(boot, l, s, "redis-cli shutdown nosave 2>/dev/null; redis-server --bind 0.0.0.0 --protected-mode no --appendonly yes --appendfsync always --dir /tmp --daemonize yes"); err != nil {
		return err
	}
	saved := false
	for round := 0; ctx.Err() == nil; round++ {
		n, count := l.Counters(), counted(l)
		if !saved && round > 2 {
			saved = true
			var err error
			l.Call(func(m *machine.Machine) { err, r.middleAt = save(m, r.middle), m.Count() })
			if err != nil {
				return err
			}
		}
		if count >= c.instructions && n.Inputs-n.Syncs >= c.inputs && round > 5 {
			return nil
		}
		if err := c.order(boot, l, s, fmt.Sprintf("dd if=/dev/urandom of=/tmp/f%d bs=64k count=20 2>/dev/null; sync; md5sum /tmp/f%d; date", round%4, round%4)); err != nil {
			return err
		}
		if err := useRedis(boot, redis, 400); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// counted is how many instructions the guest has executed.
func counted(l *machineio.Live) (count uint64) {
	l.Call(func(m *machine.Machine) { count = m.Count() })
	return count
}

// typeIn types a text, a little at a time: a terminal in the guest holds no more.
func (c *check) typeIn(ctx context.Context, l *machineio.Live, text string) {
	line := []byte(text)
	for len(line) > 0 && ctx.Err() == nil {
		n := l.Type(line[:min(len(line), 16)])
		line = line[n:]
		time.Sleep(5 * time.Millisecond)
	}
}

// order types a command and waits for its end.
func (c *check) order(ctx context.Context, l *machineio.Live, s *screen, command string) error {
	const done = "d0ne"
	// The echo of the line must not be taken for its end.
	c.typeIn(ctx, l, command+"; echo d0''ne\n")
	_, err := s.await(ctx, done)
	return err
}

// useRedis sets and gets keys, and checks the answers.
func useRedis(ctx context.Context, address string, rounds int) error {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		err = speakRedis(conn, rounds)
		if e := conn.Close(); err == nil || ctx.Err() != nil {
			return errors.Join(err, e)
		}
		time.Sleep(200 * time.Millisecond) // it is not up yet
	}
}

func speakRedis(conn net.Conn, rounds int) error {
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	for i := range rounds {
		if _, err := fmt.Fprintf(conn, "SET k%d v%d\r\nGET k%d\r\n", i, i*i, i); err != nil {
			return err
		}
		want := fmt.Sprintf("+OK\r\n$%d\r\nv%d\r\n", len(fmt.Sprintf("v%d", i*i)), i*i)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(in, got); err != nil {
			return err
		}
		if string(got) != want {
			return fmt.Errorf("redis answered %q, not %q", got, want)
		}
	}
	return nil
}
