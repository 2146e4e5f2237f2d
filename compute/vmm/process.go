package vmm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"steadfast/compute/diskwire"
	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// program is this program, also when its file was replaced meanwhile.
const program = "/proc/self/exe"

// environment keeps what is below this program from opening files after the sandbox is
// closed: the runtime would look at its control group now and then, and the C library's
// allocator, in a program that has it, at the number of processors.
func environment() []string {
	return []string{"GODEBUG=containermaxprocs=0,updatemaxprocs=0", "MALLOC_ARENA_MAX=1"}
}

// Options are what a machine's process is started with. The files stay the caller's.
type Options struct {
	// Config is what the machine is made up as, Kernel and Initrd (or nil) what it boots;
	// or State is a machine that was saved, and the three are not looked at but for Restarts.
	Config machine.Config
	Kernel *os.File
	Initrd *os.File
	State  *os.File
	// Disks are those of the machine, in order.
	Disks []Disk
	// Nets is how many network cards the machine has; 0: as many as Config.
	Nets int
	// Log, if any, gets the machine's log, and Save its state before the first
	// instruction. HashEvery is machineio.Options'.
	Log, Save *os.File
	HashEvery uint64
	// Restarts has a guest that restarts go on in the same process, and log; of a State
	// that needs its Kernel and Initrd, too.
	Restarts bool
	// Pair is needed by a machine that may live on two hosts, and Secondary, if any, has this
	// process follow one.
	Pair      *Pair
	Secondary *Secondary
}

// Process is a machine's process. Its methods may be called by several goroutines.
type Process struct {
	// Console is the machine's serial port, both ways. The machine waits for who does not
	// read it. Its reader sees the end when the process has ended.
	Console net.Conn
	// Wires are those of the network cards: each read and write is one frame.
	Wires []net.Conn

	cmd     *exec.Cmd
	control *net.UnixConn
	words   *lastWords
	heard   chan struct{} // all that the process will ever say was taken
	exited  chan struct{} // so it was, and the process has ended, and exit is how
	exit    error

	mu sync.Mutex
	id uint64
	// waiting are the requests that are not answered, with nil where nobody waits any more.
	waiting map[uint64]chan reply
	end     *reply
	// broke is what the process has said that none says: it was killed for that.
	broke error
	// patience is takePatience, but in tests.
	patience time.Duration

	pair    *Pair
	events  chan lockstep.Event
	locking bool         // the lock is being asked
	partner vmlock.Owner // the last one that it was given
	follows bool         // it began as a secondary

	// disks are the servers, by disk, nil for files; serving are those that run.
	disks   []*diskwire.Server
	serving sync.WaitGroup
	drained chan struct{}
}

// Bounds of what a process may make its parent wait for, and keep.
const (
	// takePatience is how long a process may take to take a request, and to end when it has
	// closed its control socket.
	takePatience = 5 * time.Second
	// waitingMax is how many requests may be without an answer.
	waitingMax = 64
)

// Start starts a machine in a process of its own, and returns when it runs. Close is to
// follow. Errs as the machine's making up does, with fault.Internal when the process
// cannot be started or dies.
func Start(ctx context.Context, o Options) (*Process, error) {
	p := newProcess()
	p.pair, p.follows = o.Pair, o.Secondary != nil
	if err := p.begin(Command); err != nil {
		return nil, err
	}
	err := p.start(ctx, o)
	go p.drain()
	if p.pair != nil {
		go p.tellEvents()
	}
	if err != nil {
		p.Kill()
		<-p.exited
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func newProcess() *Process {
	return &Process{heard: make(chan struct{}), exited: make(chan struct{}), waiting: map[uint64]chan reply{}, words: &lastWords{}, patience: takePatience, drained: make(chan struct{}), events: make(chan lockstep.Event, eventsMax)}
}

// begin starts the process, and listens to it.
func (p *Process) begin(command string) error {
	theirs, err := p.spawn(command)
	if err != nil {
		return err
	}
	_ = theirs.Close() // the process has it
	go p.listen()
	return nil
}

// spawn starts this program again under a command, and returns its end of the control
// socket.
func (p *Process) spawn(command string) (*os.File, error) {
	ours, theirs, err := pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	p.control = ours.(*net.UnixConn)
	p.cmd = &exec.Cmd{
		Path: program, Args: []string{"steadfast", command}, Dir: "/",
		Env:    environment(),
		Stderr: p.words, ExtraFiles: []*os.File{theirs}, WaitDelay: time.Second,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	started := make(chan error)
	go func() {
		// The kernel takes the end of the thread for that of the parent.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.exit = p.cmd.Wait()
			<-p.heard
		}
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fault.Wrap(fault.Internal, err, "a machine's process cannot be started"), theirs.Close(), ours.Close())
	}
	return theirs, nil
}

// socketBytes is how much is under way in a socket: some large frames.
const socketBytes = 1 << 20

// pair makes a pair of sockets: ours, and a file for the process.
func pair(kind int) (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Limit, err, "a pair of sockets")
	}
	for _, fd := range fds {
		// The kernel takes as much of it as it allows; none is needed.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBytes)
	}
	f, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer f.Close()
	if ours, err = net.FileConn(f); err != nil {
		return nil, nil, errors.Join(fault.Wrap(fault.Internal, err, "a pair of sockets"), theirs.Close())
	}
	return ours, theirs, nil
}

// start hands over the descriptors, and waits for the machine to run.
func (p *Process) start(ctx context.Context, o Options) (err error) {
	var files []*os.File
	var roles []string
	give := func(role string, f *os.File) {
		if f != nil {
			files, roles = append(files, f), append(roles, role)
		}
	}
	var passed []*os.File
	defer func() { closeAll(passed) }()
	socket := func(role string, kind int) (net.Conn, error) {
		ours, theirs, err := pair(kind)
		if err == nil {
			passed = append(passed, theirs)
			give(role, theirs)
		}
		return ours, err
	}
	give(roleKernel, o.Kernel)
	give(roleInitrd, o.Initrd)
	give(roleState, o.State)
	defer func() { err = errors.Join(err, p.given()) }()
	for _, d := range o.Disks {
		if d.Device == nil {
			give(roleDisk, d.File)
			p.disks = append(p.disks, nil)
			continue
		}
		s, err := p.serve(d)
		if err != nil {
			return err
		}
		socket, memory := s.Theirs()
		give(roleServed, socket)
		give(roleServed, memory)
	}
	give(roleLog, o.Log)
	give(roleSave, o.Save)
	if p.Console, err = socket(roleConsole, unix.SOCK_STREAM); err != nil {
		return err
	}
	nets := o.Nets
	if nets == 0 {
		nets = len(o.Config.Nets)
	}
	for range nets {
		w, err := socket(roleWire, unix.SOCK_SEQPACKET)
		if err != nil {
			return err
		}
		p.Wires = append(p.Wires, w)
	}
	start := &beginning{Config: o.Config, HashEvery: o.HashEvery, Restarts: o.Restarts}
	if s := o.Secondary; s != nil {
		give(roleLink, s.Logging)
		give(roleLink, s.Management)
		roles, files = s.Kept.give(roles, files)
		start.Secondary = &pairing{Session: s.Session[:], Host: s.Me, MemoryMax: s.MemoryMax}
	}
	_, err = p.ask(ctx, request{Verb: verbStart, Files: roles, Start: start}, files)
	return err
}

// ask sends a request and waits for its answer. Fails with fault.Unreachable when the
// process takes no request.
func (p *Process) ask(ctx context.Context, req request, files []*os.File) (reply, error) {
	answer := make(chan reply, 1)
	p.mu.Lock()
	if len(p.waiting) >= waitingMax && req.Verb != verbLock { // which the process waits for
		p.mu.Unlock()
		return reply{}, fault.New(fault.Unreachable, "the machine's process has not answered %d requests", waitingMax)
	}
	p.id++
	req.ID = p.id
	b, err := encode(req)
	if err != nil {
		p.mu.Unlock()
		return reply{}, err
	}
	p.waiting[req.ID] = answer
	p.mu.Unlock()
	if err := p.send(b, files); err != nil {
		p.mu.Lock()
		delete(p.waiting, req.ID)
		p.mu.Unlock()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return reply{}, fault.New(fault.Unreachable, "the machine's process takes no requests")
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET), errors.Is(err, net.ErrClosed):
			<-p.exited // or is about to
			return reply{}, p.died()
		}
		return reply{}, fault.Wrap(fault.Internal, err, "a request to the machine's process")
	}
	select {
	case r := <-answer:
		return r, r.Error.Err()
	case <-ctx.Done():
		p.mu.Lock()
		if p.waiting[req.ID] != nil {
			p.waiting[req.ID] = nil // it may be answered still
		}
		p.mu.Unlock()
		return reply{}, fault.Wrap(fault.Canceled, ctx.Err(), "waiting for a machine's process")
	case <-p.exited:
	}
	select {
	case r := <-answer: // just before
		return r, r.Error.Err()
	default:
		return reply{}, p.died()
	}
}

// send hands a packet to the process, which may not take it: that ends by takePatience.
func (p *Process) send(b []byte, files []*os.File) error {
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, 0, len(files))
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		oob = unix.UnixRights(fds...)
	}
	err := p.control.SetWriteDeadline(time.Now().Add(p.patience))
	if err == nil {
		_, _, err = p.control.WriteMsgUnix(b, oob, nil)
	}
	runtime.KeepAlive(files)
	return err
}

// listen takes the process's replies until it has ended. One that says what makes no
// sense is no machine of ours any more, and is killed; so is one that stops talking and
// does not end.
func (p *Process) listen() {
	b := make([]byte, messageMax)
	for {
		n, _, flags, _, err := p.control.ReadMsgUnix(b, nil)
		if err != nil || n == 0 {
			break
		}
		if err := p.take(b[:n], flags); err != nil {
			p.violated(err)
			break
		}
	}
	close(p.heard)
	late := time.NewTimer(p.patience)
	defer late.Stop()
	select {
	case <-p.exited:
	case <-late.C:
		p.Kill()
	}
}

// take judges a packet of the process's: an answer to what was asked, once, or the end
// of the machine, once.
func (p *Process) take(b []byte, flags int) error {
	var r reply
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || json.Unmarshal(b, &r) != nil {
		return fault.New(fault.Internal, "a packet of %d bytes that is no reply", len(b))
	}
	if r.Status != nil && r.Status.End > machine.Wedged {
		return fault.New(fault.Internal, "an end of a machine that there is not")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.ID == 0 && r.Pair != nil {
		return p.heardOf(r.Pair)
	}
	if r.ID == 0 {
		if p.end != nil {
			return fault.New(fault.Internal, "a second end of a machine")
		}
		p.end = &r
		return nil
	}
	answer, asked := p.waiting[r.ID]
	if !asked {
		return fault.New(fault.Internal, "an answer to what was not asked")
	}
	delete(p.waiting, r.ID)
	if answer != nil {
		answer <- r
	}
	return nil
}

// died says how the process has ended, without the end of its machine.
func (p *Process) died() error {
	p.mu.Lock()
	end, broke := p.end, p.broke
	p.mu.Unlock()
	how := "by itself"
	switch {
	case broke != nil:
		return fault.New(fault.Internal, "the machine's process was killed, for it has sent %w%s", broke, p.words.last())
	case end != nil:
		return fault.New(fault.Stale, "the machine has ended")
	case p.exit != nil:
		how = p.exit.Error()
	}
	return fault.New(fault.Internal, "the machine's process has ended (%s) without the end of its machine%s", how, p.words.last())
}

// PID is the process's identifier.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// PressPower presses the machine's power button.
func (p *Process) PressPower(ctx context.Context) error {
	_, err := p.ask(ctx, request{Verb: verbButton}, nil)
	return err
}

// Stop ends the machine at once, whatever its guest does; its log has an end then.
func (p *Process) Stop(ctx context.Context) error {
	_, err := p.ask(ctx, request{Verb: verbStop}, nil)
	return err
}

// Kill ends the process. Nothing that was not flushed is kept.
func (p *Process) Kill() { _ = p.cmd.Process.Kill() } // it has ended, then

// Status tells how the machine does.
func (p *Process) Status(ctx context.Context) (Status, error) {
	r, err := p.ask(ctx, request{Verb: verbStatus}, nil)
	if err != nil || r.Status == nil {
		return Status{}, err
	}
	return *r.Status, nil
}

// Save writes the state that the machine has now to a file, which stays the caller's.
func (p *Process) Save(ctx context.Context, f *os.File) error {
	_, err := p.ask(ctx, request{Verb: verbSave, Files: []string{roleSave}}, []*os.File{f})
	return err
}

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Wait returns when the process has ended, and how its machine was left: Running if it was
// stopped. Fails with what the machine could not go on for, or fault.Internal when
// the process died.
func (p *Process) Wait() (Status, error) {
	<-p.exited
	p.mu.Lock()
	end, broke := p.end, p.broke
	p.mu.Unlock()
	if end == nil || end.Status == nil || broke != nil {
		return Status{}, p.died()
	}
	return *end.Status, end.Error.Err()
}

// Close ends the process, if it has not ended, and closes its sockets.
func (p *Process) Close() error {
	p.Kill()
	<-p.exited
	err := p.control.Close()
	for _, c := range append([]net.Conn{p.Console}, p.Wires...) {
		if c == nil {
			continue
		}
		if e := c.Close(); !errors.Is(e, net.ErrClosed) { // who relays it may have
			err = errors.Join(err, e)
		}
	}
	return err
}

// wordsMax is how much is kept of what a process prints, in bytes.
const wordsMax = 8 << 10

// lastWords keeps the end of what a process prints.
type lastWords struct {
	mu  sync.Mutex
	end []byte
}

// Write implements io.Writer.
func (w *lastWords) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = append(w.end, p...)
	if over := len(w.end) - wordsMax; over > 0 {
		w.end = append(w.end[:0], w.end[over:]...)
	}
	return len(p), nil
}

// last returns it, to be put behind a sentence: a line each, or nothing.
func (w *lastWords) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := bytes.TrimSpace(w.end)
	if len(text) == 0 {
		return ""
	}
	return ":\n" + printable(string(text))
}

// printable is a text of a process without what a terminal would obey.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}
