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
	"sync"
	"time"

	"steadfast/block"
	"steadfast/compute/filedisk"
	"steadfast/compute/machine"
	"steadfast/compute/machineio"
	"steadfast/compute/usernet"
)

// recorded is a life that was recorded.
type recorded struct {
	start, middle string // saved states
	log           string
	middleAt, end uint64 // counts
}

// screen is the other end of the serial port. The machine's loop writes to it and the guest's
// user reads, so it has a lock.
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

// How long a guest may take to boot, and for one command, on a machine with other work. The
// whole has no bound: how much a guest is to do is the caller's choice.
const (
	bootTime = 15 * time.Minute
	stepTime = 5 * time.Minute
)

// record boots the guest and has it work until enough has happened.
func (c *check) record(ctx context.Context) (r *recorded, err error) {
	r = &recorded{start: c.file(startName), middle: c.file(middleName), log: c.file(logName)}
	copied := c.file("disk")
	if err := copyFile(copied, c.debian.Disk); err != nil {
		return nil, err
	}
	d, err := filedisk.Open(copied, false)
	if err != nil {
		return nil, err
	}
	// A replay has none: it is renamed, which its log need not know.
	defer func() { err = errors.Join(err, d.Close(), os.Rename(copied, copied+".gone")) }()
	m, err := c.load(c.debian.Kernel, c.debian.Initrd, d.Size())
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
	if err := c.live(ctx, m, d, log, r); err != nil {
		return nil, err
	}
	r.end = m.Count()
	return r, nil
}

// live has a machine live with its disk, a network and a console, and work, until enough has
// happened.
//
// Three goroutines: the machine's loop, the only one that touches the machine; one that
// brings frames from the network; and one that is the user of the guest. The last ends the life,
// and whichever fails ends the others: all are waited for before anything they use is closed.
func (c *check) live(ctx context.Context, m *machine.Machine, d block.Device, log *machine.LogWriter, r *recorded) (err error) {
	s := &screen{}
	if c.verbose {
		s.copy = os.Stdout
	}
	network, err := usernet.New(usernet.Options{Isolated: true, Large: true, Forwards: []usernet.Forward{{Listen: "127.0.0.1:0", GuestPort: 6379}}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, network.Close()) }()
	l, err := machineio.New(m, machineio.Options{Disks: []block.Device{d}, Wires: []machineio.Wire{network}, Serial: s, Log: log, HashEvery: max(c.instructions/500, 1_000_000)})
	if err != nil {
		return err
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
		return err
	}
	n := l.Counters()
	fmt.Printf("note  recorded %d instructions (%d of them waiting), %d inputs and %d changes of the clock's rate, %d outputs, a log of %d bytes, in %v; the clock's lag %v\n",
		m.Count(), m.Idled(), n.Inputs-n.Syncs, n.Syncs, n.Outputs, n.LogBytes, time.Since(began).Round(time.Millisecond), n.Lag)
	return nil
}

// load makes up the machine at count 0. Its seed and wall clock are of this moment, and in its
// saved state: no two runs of the check are alike, and the replays of one are.
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
	if err := m.Load(k, i); err != nil {
		return nil, errors.Join(err, m.Release())
	}
	return m, nil
}

func save(m *machine.Machine, name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(m.Save(f), f.Close())
}

// copyFile copies the disk that was built: the guest writes to it, and the next run of the check
// is to find it as it was.
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
	if err := c.order(ctx, l, s, "redis-cli shutdown nosave 2>/dev/null; redis-server --bind 0.0.0.0 --protected-mode no --appendonly yes --appendfsync always --dir /tmp --daemonize yes"); err != nil {
		return err
	}
	saved := false
	for round := 0; ctx.Err() == nil; round++ {
		n, count := l.Counters(), counted(l)
		if !saved && round > 2 {
			// Not at once after booting: what work has made of devices, queues and the clock's
			// rate is to be in the state.
			saved = true
			var err error
			l.Call(func(m *machine.Machine) { err, r.middleAt = save(m, r.middle), m.Count() })
			if err != nil {
				return err
			}
		}
		// A guest that waits has counts pass as well, so it has to have worked some rounds, too.
		if count >= c.instructions && n.Inputs-n.Syncs >= c.inputs && round > 5 {
			return nil
		}
		if err := c.order(ctx, l, s, fmt.Sprintf("dd if=/dev/urandom of=/tmp/f%d bs=64k count=20 2>/dev/null; sync; md5sum /tmp/f%d; date", round%4, round%4)); err != nil {
			return err
		}
		if err := useRedis(ctx, redis, 400); err != nil {
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
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	// The echo of the line must not be taken for its end.
	c.typeIn(ctx, l, command+"; echo d0''ne\n")
	_, err := s.await(ctx, done)
	return err
}

// errWrong is what a guest whose memory, disk or network loses something comes to. It is no
// matter of waiting longer.
var errWrong = errors.New("redis answers with what was not set")

// useRedis sets and gets keys, and checks the answers. The forward takes a connection before
// the server in the guest listens, and cuts it then: so it is tried again until it is up.
func useRedis(ctx context.Context, address string, rounds int) error {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		err = speakRedis(conn, rounds)
		if e := conn.Close(); err == nil || errors.Is(err, errWrong) || ctx.Err() != nil {
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
		if got[0] == '-' {
			return fmt.Errorf("redis refuses: %q", got) // it is still loading
		}
		if string(got) != want {
			return fmt.Errorf("%w: %q, not %q", errWrong, got, want)
		}
	}
	return nil
}
