package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/block"
	"steadfast/compute/diskwire"
	"steadfast/compute/filedisk"
	"steadfast/compute/lockstepio"
	"steadfast/compute/machine"
	"steadfast/compute/machineio"
	"steadfast/fault"
	"steadfast/internal/memlock"
)

// Command is the hidden command under which the binary is the process of a machine.
const Command = "vmm"

// garbagePercent is how much the heap grows before it is collected, in percent of what is
// in use: most of that is decoded code, in pieces that hold no pointers, so that collecting is
// cheap, and the memory is worth more.
const garbagePercent = 30

// lastPatience is how long a process whose parent has gone waits for its machine's end:
// the log is to be whole if it can be.
const lastPatience = 3 * time.Second

// child is the process of a machine.
type child struct {
	c   control
	log *slog.Logger

	turn sync.Mutex // is held while a request is done and answered
	mu   sync.Mutex // orders replies
	live *machineio.Live
	stop context.CancelFunc
	// machine is the loop's while it lives, and anybody's once ended is closed.
	machine *machine.Machine
	served  []*diskwire.Client // disks that the parent serves
	// primary is the machine's gate from its first pair on, secondary what follows one.
	primary   *lockstepio.Primary
	secondary *lockstepio.Secondary
	locks     chan lockAnswer
	keeping   sync.Mutex
	files     []*os.File // for the state and the log of a machine that differs; under keeping
	dropped   atomic.Uint64
	ended     chan struct{}
}

// Run is the process of a machine: the hidden command. It returns when the machine has
// ended, and the parent was told or has gone. What it prints goes to stderr.
func Run(stderr io.Writer) error {
	debug.SetGCPercent(garbagePercent)
	_ = memlock.Lock() // where it may not, its host may as little, and says so
	if err := confine(); err != nil {
		return err
	}
	if err := unix.SetNonblock(controlFD, true); err != nil {
		return fault.Wrap(fault.Invalid, err, "no control socket: a machine's process is started by its parent")
	}
	c := &child{
		locks: make(chan lockAnswer, 1),
		c:     control{os.NewFile(controlFD, "control")}, ended: make(chan struct{}),
		log: slog.New(slog.NewTextHandler(stderr, nil)),
	}
	parent := make(chan error, 1)
	go func() { parent <- c.serve() }()
	select {
	case err := <-parent:
		if c.stop == nil {
			return err
		}
		c.stop()
		select {
		case <-c.ended:
		case <-time.After(lastPatience):
		}
		return err
	case <-c.ended:
		c.turn.Lock() // who has asked is answered
		return nil
	}
}

// serve answers the parent until it has gone: nil.
func (c *child) serve() error {
	for {
		req, files, err := c.c.receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if fault.Is(err, fault.Failed) {
			return err
		}
		if err := c.answer(&req, files, err); err != nil {
			return err
		}
	}
}

// answer does what a request asks for, unless it was received with an error, and answers.
func (c *child) answer(req *request, files []*os.File, err error) error {
	c.turn.Lock()
	defer c.turn.Unlock()
	var status *Status
	if err == nil {
		status, err = c.do(req, files)
	} else {
		closeAll(files)
	}
	return c.send(reply{ID: req.ID, Error: FailureOf(err), Status: status})
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was done with it
	}
}

func (c *child) send(r reply) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.c.send(r)
}

// do does what a request asks for. The descriptors are its own.
func (c *child) do(req *request, files []*os.File) (*Status, error) {
	if req.Verb == verbStart {
		return nil, c.start(req, files)
	}
	if done, err := c.pairs(req); done {
		closeAll(files)
		return nil, err
	}
	switch {
	case c.live == nil && c.secondary != nil && req.Verb == verbStatus:
		closeAll(files)
		return &Status{Pair: pairStatus(c.secondary.Status())}, nil
	case c.live == nil && c.secondary != nil && req.Verb == verbStop:
		closeAll(files)
		c.stop()
		return nil, nil
	case c.live == nil:
		closeAll(files)
		return nil, fault.New(fault.Invalid, "%q before a machine was started", req.Verb)
	case req.Verb == verbSave && len(files) == 1:
		return nil, c.save(files[0])
	case req.Verb == verbTurnOn:
		return nil, c.turnOn(req, files)
	}
	closeAll(files)
	switch req.Verb {
	case verbStatus:
		s := c.status()
		return &s, nil
	case verbButton:
		c.live.PressPower()
		return nil, nil
	case verbStop:
		c.stop()
		return nil, nil
	}
	return nil, fault.New(fault.Invalid, "%q is nothing that a machine's process does", req.Verb)
}

// kit are the descriptors of a start, by role, and those of each disk.
type kit struct {
	roles map[string][]*os.File
	disks [][]*os.File
}

// newKit sorts the descriptors of a start.
func newKit(roles []string, files []*os.File) (kit, error) {
	k := kit{roles: map[string][]*os.File{}}
	for i := 0; i < len(roles); i++ {
		switch role := roles[i]; {
		case role == roleDisk:
			k.disks = append(k.disks, files[i:i+1])
		case role == roleServed && i+1 < len(roles) && roles[i+1] == roleServed:
			k.disks = append(k.disks, files[i:i+2])
			i++
		case role == roleServed:
			return k, fault.New(fault.Invalid, "a disk that is served has a socket and a memory: one came")
		default:
			k.roles[role] = append(k.roles[role], files[i])
		}
	}
	return k, nil
}

// one returns the descriptor of a role, or nil.
func (k kit) one(role string) *os.File {
	if len(k.roles[role]) == 0 {
		return nil
	}
	return k.roles[role][0]
}

// start makes up a machine and runs it.
func (c *child) start(req *request, files []*os.File) error {
	if c.live != nil || c.secondary != nil || req.Start == nil {
		closeAll(files)
		return fault.New(fault.Invalid, "a second machine, or none, for one process")
	}
	k, err := newKit(req.Files, files)
	if err != nil {
		closeAll(files)
		return err
	}
	if req.Start.Secondary != nil {
		return c.follows(req, k)
	}
	m, err := makeUp(req.Start, k)
	if err != nil {
		return err
	}
	o, err := c.options(m, k)
	if err != nil {
		return err
	}
	o.HashEvery, o.Restarts = req.Start.HashEvery, req.Start.Restarts
	if f := k.one(roleSave); f != nil {
		if err := save(m, f); err != nil {
			return err
		}
	}
	l, err := machineio.New(m, o)
	if err != nil {
		return err
	}
	debug.FreeOSMemory() // what was loaded is in the guest's memory, which is not the heap's
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.begins(l, m, o, k)
	go c.run(ctx)
	return nil
}

// begins brings what comes to a machine whose life is about to be lived.
func (c *child) begins(l *machineio.Live, m *machine.Machine, o machineio.Options, k kit) {
	c.follow(l, m.Config(), o.Disks)
	c.machine, c.live = m, l
	for i, f := range k.roles[roleWire] {
		go c.frames(i, f)
	}
	if f := k.one(roleConsole); f != nil {
		go c.typed(f)
	}
}

// makeUp makes up a machine from a state, or from a kernel.
func makeUp(start *beginning, k kit) (m *machine.Machine, err error) {
	boot := reload(k, func() uint64 {
		if m != nil {
			return m.Config().Memory
		}
		return start.Config.Memory
	})
	if start.Restarts {
		defer func() {
			if err == nil {
				m.Reload = boot
			}
		}()
	} else {
		defer closeAll(append(k.roles[roleKernel], k.roles[roleInitrd]...))
	}
	if f := k.one(roleState); f != nil {
		defer f.Close()
		return machine.Restore(f)
	}
	kernel, initrd, err := boot()
	if err != nil {
		return nil, err
	}
	if m, err = machine.New(start.Config); err != nil {
		return nil, err
	}
	return m, m.Load(kernel, initrd)
}

// reload reads what a machine boots from; each is at most so many bytes long.
func reload(k kit, most func() uint64) func() (kernel, initrd []byte, err error) {
	return func() (kernel, initrd []byte, err error) {
		if kernel, err = contents(k.one(roleKernel), "the kernel", most()); err != nil {
			return nil, nil, err
		}
		if f := k.one(roleInitrd); f != nil {
			initrd, err = contents(f, "the initial RAM disk", most())
		}
		return kernel, initrd, err
	}
}

// contents reads a file of at most so many bytes from its beginning.
func contents(f *os.File, what string, most uint64) ([]byte, error) {
	if f == nil {
		return nil, fault.New(fault.Invalid, "a machine without %s", what)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fault.Wrap(fault.Failed, err, "reading "+what)
	}
	if uint64(size) > most {
		return nil, fault.New(fault.Invalid, "%s is larger than the machine's memory", what)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.Wrap(fault.Failed, err, "reading "+what)
	}
	return b, nil
}

// options makes what the machine lives with of the descriptors.
func (c *child) options(m *machine.Machine, k kit) (o machineio.Options, err error) {
	cfg := m.Config()
	if len(k.disks) != len(cfg.Disks) || len(k.roles[roleWire]) != len(cfg.Nets) {
		return o, fault.New(fault.Invalid, "a machine of %d disks and %d network cards came with %d and %d", len(cfg.Disks), len(cfg.Nets), len(k.disks), len(k.roles[roleWire]))
	}
	o.Logger, o.LetGo = c.log, c.letGo
	for i, files := range k.disks {
		d, err := c.disk(files, cfg.Disks[i])
		if err != nil {
			return o, fault.Wrap(fault.KindOf(err), err, fmt.Sprintf("disk %d", i))
		}
		o.Disks = append(o.Disks, d)
	}
	for _, f := range k.roles[roleWire] {
		w := newWire(f, &c.dropped)
		go w.carry()
		o.Wires = append(o.Wires, w)
	}
	if f := k.one(roleConsole); f != nil {
		o.Serial = f
	}
	if f := k.one(roleLog); f != nil {
		o.Log, err = machine.NewLog(f)
	}
	return o, err
}

// disk makes a disk of its descriptors: a file, or socket and memory of one that the
// parent serves. A file is as large as it was; what is served may have grown since.
func (c *child) disk(files []*os.File, cfg machine.Disk) (block.Device, error) {
	if len(files) == 1 {
		d, err := filedisk.FromFile(files[0], cfg.ReadOnly)
		if err == nil && d.Size() != cfg.Size {
			err = fault.New(fault.Invalid, "it has %d bytes, and the machine's has %d", d.Size(), cfg.Size)
		}
		return d, err
	}
	d, err := diskwire.Open(files[0], files[1])
	if err != nil {
		return nil, err
	}
	if d.Size() < cfg.Size {
		return nil, errors.Join(fault.New(fault.Invalid, "it has %d bytes, and the machine's has %d", d.Size(), cfg.Size), d.Close())
	}
	c.served = append(c.served, d)
	return d, nil
}

// letGo ends what disks that the parent serves have under way: it may be held there for
// minutes, and the machine has ended.
func (c *child) letGo() {
	for _, d := range c.served {
		if err := d.Close(); err != nil {
			c.log.Error("a disk was let go", slog.Any("error", err))
		}
	}
}

// follow tells the guest of the sizes that its disks get, and those which they have got
// since it was made up.
func (c *child) follow(l *machineio.Live, cfg machine.Config, disks []block.Device) {
	for i, d := range disks {
		if d, ok := d.(*diskwire.Client); ok {
			d.OnResize(cfg.Disks[i].Size, func(size int64) { l.Resize(i, size) })
		}
	}
}

// typed brings what is typed to the serial port, no faster than it is taken.
func (c *child) typed(f *os.File) {
	b := make([]byte, 4096)
	for {
		n, err := f.Read(b)
		if err != nil {
			return
		}
		for p := b[:n]; len(p) > 0; {
			p = p[c.live.Type(p):]
			// When the loop has answered, it has taken what was there.
			if len(p) > 0 && !c.live.Call(func(*machine.Machine) {}) {
				return
			}
		}
	}
}

// run lives the machine's life, and tells of its end.
func (c *child) run(ctx context.Context) {
	defer close(c.ended)
	_, err := c.live.Run(ctx)
	c.turn.Lock()
	p := c.primary
	c.turn.Unlock()
	if p != nil {
		p.Close()
	}
	s := c.statusOf(c.machine)
	s.Counters = c.live.Counters()
	if p != nil {
		s.Pair = pairStatus(p.Status())
	}
	c.tellEnd(s, err)
}

// tellEnd tells the parent of the end.
func (c *child) tellEnd(s Status, err error) {
	if e := c.send(reply{Error: FailureOf(err), Status: &s}); e != nil {
		c.log.Error("the parent was not told of the machine's end", slog.Any("error", e))
	}
}

func (c *child) statusOf(m *machine.Machine) Status {
	return Status{End: m.End(), Count: m.Count(), Idled: m.Idled(), GuestNS: m.Now(), FramesDropped: c.dropped.Load()}
}

// status asks the loop; when that has ended, the machine is as it was left.
func (c *child) status() (s Status) {
	take := func(m *machine.Machine) { s = c.statusOf(m) }
	if !c.live.Call(take) {
		take(c.machine)
	}
	s.Counters = c.live.Counters()
	if c.primary != nil {
		s.Pair = pairStatus(c.primary.Status())
	}
	return s
}

// save writes the machine's state between two instructions.
func (c *child) save(f *os.File) (err error) {
	if !c.live.Call(func(m *machine.Machine) { err = save(m, f) }) {
		closeAll([]*os.File{f})
		return fault.New(fault.Stale, "the machine has ended")
	}
	return err
}

// save writes a machine's state to a file, for good, and closes it.
func save(m *machine.Machine, f *os.File) error {
	err := m.Save(f)
	if e := f.Sync(); err == nil && !errors.Is(e, unix.EINVAL) { // a pipe has nothing to sync
		err = fault.Wrap(fault.Failed, e, "saving a machine")
	}
	if e := f.Close(); err == nil {
		err = fault.Wrap(fault.Failed, e, "saving a machine")
	}
	return err
}
