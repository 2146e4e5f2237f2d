package standalone

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"steadfast/compute/filedisk"
	"steadfast/compute/machine"
	"steadfast/compute/machineio"
	"steadfast/compute/usernet"
	"steadfast/compute/vmm"
	"steadfast/fault"
)

// Times.
const (
	// stopPatience is how long a process may take to end its machine when it is told to,
	// before it is killed.
	stopPatience = 5 * time.Second
	// readPatience is how long those that the guest waits for may take to read its last
	// words, once it was ended by force.
	readPatience = time.Second
)

// Options describe a machine.
type Options struct {
	// Name, if any, is what the machine is found by in the folder Sockets.
	Name, Sockets string
	// Kernel and Initrd ("" for none) are files.
	Kernel, Initrd string
	Disks          []Disk
	Nets           []Net
	// Memory is in bytes.
	Memory      uint64
	CommandLine string
	// NoRestart ends the machine where its guest would restart.
	NoRestart bool
	// Record is a folder, which must be empty or not be there: it gets the machine as it
	// began, the log, and what the guest boots from, for where it restarts. HashEvery is how
	// many instructions are between two digests in it.
	Record    string
	HashEvery uint64
	// Outputs get what the guest writes on its serial port; it waits for them.
	Outputs []io.Writer
	// Say tells people what happens; nil: nobody.
	Say func(format string, args ...any)
}

// Disk is a file as a disk.
type Disk struct {
	File     string
	ReadOnly bool
}

// Net is a network card on a user-mode network.
type Net struct {
	MAC  [6]byte
	User usernet.Options
}

// Files of a recording.
const (
	RecordedState  = "state"
	RecordedLog    = "log"
	RecordedKernel = "kernel"
	RecordedInitrd = "initrd"
)

// Machine is a machine. Its methods may be called by several goroutines; Run once.
type Machine struct {
	o        Options
	cfg      machine.Config
	kernel   *os.File
	initrd   *os.File
	disks    []*os.File
	networks []*usernet.Network
	record   [2]*os.File // state and log
	console  *console
	server   *server
	began    time.Time
	stops    chan time.Duration
	done     chan struct{}

	mu       sync.Mutex
	process  *vmm.Process
	restarts int
	end      machine.End
	err      error
}

// Open opens the files, makes the networks, and the socket if the machine has a name.
// Close is to follow.
func Open(o Options) (m *Machine, err error) {
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
	m = &Machine{o: o, console: newConsole(o.Outputs, o.Say), began: time.Now(), stops: make(chan time.Duration), done: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
			m = nil
		}
	}()
	if err := m.openFiles(); err != nil {
		return m, err
	}
	m.cfg.Memory, m.cfg.CommandLine = o.Memory, o.CommandLine
	for i, n := range o.Nets {
		if n.User.MTU > 1<<16-1 {
			return m, fault.New(fault.Invalid, "network card %d has an MTU of %d", i, n.User.MTU)
		}
		n.User.Large = true // the machine's cards take them
		network, err := usernet.New(n.User)
		if err != nil {
			return m, err
		}
		m.networks = append(m.networks, network)
		m.cfg.Nets = append(m.cfg.Nets, machine.Net{MAC: n.MAC, MTU: uint16(n.User.MTU)})
	}
	if o.Record != "" {
		if err := m.openRecord(); err != nil {
			return m, err
		}
	}
	if o.Name != "" {
		m.server, err = serve(m)
	}
	return m, err
}

// openFiles opens what the machine boots from.
func (m *Machine) openFiles() (err error) {
	if m.kernel, err = os.Open(m.o.Kernel); err != nil {
		return fault.Wrap(fault.NotFound, err, "the kernel")
	}
	if m.o.Initrd != "" {
		if m.initrd, err = os.Open(m.o.Initrd); err != nil {
			return fault.Wrap(fault.NotFound, err, "the initial RAM disk")
		}
	}
	for _, d := range m.o.Disks {
		f, err := filedisk.OpenFile(d.File, d.ReadOnly)
		if err != nil {
			return err
		}
		m.disks = append(m.disks, f)
		bytes, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "a disk's file")
		}
		m.cfg.Disks = append(m.cfg.Disks, machine.Disk{Size: bytes, ReadOnly: d.ReadOnly})
	}
	return nil
}

// openRecord makes the folder of a recording and its files.
func (m *Machine) openRecord() error {
	if err := os.MkdirAll(m.o.Record, 0o700); err != nil {
		return fault.Wrap(fault.Denied, err, "the recording's folder")
	}
	for i, name := range []string{RecordedState, RecordedLog} {
		f, err := os.OpenFile(filepath.Join(m.o.Record, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		switch {
		case errors.Is(err, os.ErrExist):
			return fault.New(fault.Exists, "there is a recording in %s already", m.o.Record)
		case err != nil:
			return fault.Wrap(fault.Denied, err, "a recording's file")
		}
		m.record[i] = f
	}
	for name, f := range map[string]*os.File{RecordedKernel: m.kernel, RecordedInitrd: m.initrd} {
		if f == nil {
			continue
		}
		if err := copyFile(filepath.Join(m.o.Record, name), f); err != nil {
			return fault.Wrap(fault.Failed, err, "copying what the guest boots from to the recording")
		}
	}
	return nil
}

func copyFile(name string, from *os.File) error {
	to, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	size, err := from.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = io.Copy(to, io.NewSectionReader(from, 0, size))
	}
	return errors.Join(err, to.Close())
}

// Forwards are the addresses of this host at which connections to the guest are taken.
func (m *Machine) Forwards() (list []net.Addr) {
	for _, n := range m.networks {
		list = append(list, n.Forwards()...)
	}
	return list
}

// Close closes everything; after Run, or instead of it.
func (m *Machine) Close() error {
	var err error
	m.console.end()
	if m.server != nil {
		err = m.server.close()
	}
	for _, n := range m.networks {
		err = errors.Join(err, n.Close())
	}
	for _, f := range append([]*os.File{m.kernel, m.initrd, m.record[0], m.record[1]}, m.disks...) {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// Type types on the serial port; it waits for a life of the guest, and until it takes that.
func (m *Machine) Type(p []byte) { m.console.typeIn(p) }

// Forever is a grace that does not end.
const Forever time.Duration = 1<<63 - 1

// Stop presses the power button, and ends the machine by force if it has not
// powered itself off when the grace is over: at once for 0. It does not wait.
func (m *Machine) Stop(grace time.Duration) {
	select {
	case m.stops <- grace:
	case <-m.done:
	}
}

// Run runs the machine until its end, and returns how it ended; who is attached to the
// console has the rest of it then, and is let go. Fails with fault.Canceled
// when it was ended by force, fault.Failed when its processor was wedged, and as
// vmm.Process.Wait does. ctx's end is an end by force.
func (m *Machine) Run(ctx context.Context) (end machine.End, err error) {
	defer close(m.done)
	for stopping := false; ; {
		end, stopping, err = m.live(ctx)
		if err != nil || end != machine.Restarts || m.o.NoRestart || m.o.Record != "" || stopping {
			break
		}
		m.o.Say("the guest restarts")
		m.mu.Lock()
		m.restarts++
		m.mu.Unlock()
	}
	switch {
	case err != nil:
	case end == machine.Running:
		err = fault.New(fault.Canceled, "the machine was ended by force")
	case end == machine.Wedged:
		err = fault.New(fault.Failed, "the guest's processor can do nothing any more: its trap handler traps")
	}
	m.console.end()
	m.mu.Lock()
	m.end, m.err = end, err
	m.mu.Unlock()
	return end, err
}

// config is what a life begins as.
func (m *Machine) config() machine.Config {
	cfg := m.cfg
	cfg.Seed = machineio.Seed()
	cfg.Wall = uint64(time.Now().UnixNano())
	return cfg
}

// live runs one life of the guest. stopping tells that somebody has asked for its end.
func (m *Machine) live(ctx context.Context) (end machine.End, stopping bool, err error) {
	p, err := vmm.Start(ctx, vmm.Options{
		Config: m.config(), Kernel: m.kernel, Initrd: m.initrd, Disks: vmm.Files(m.disks...),
		Save: m.record[0], Log: m.record[1], HashEvery: m.o.HashEvery,
		Restarts: m.o.Record != "" && !m.o.NoRestart,
	})
	if err != nil {
		return machine.Running, false, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	m.mu.Lock()
	m.process = p
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.process = nil
		m.mu.Unlock()
	}()
	m.console.connect(p.Console)
	defer m.console.connect(nil)
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(m.console, p.Console) // it ends with the process
	}()
	var joined sync.WaitGroup
	for i, n := range m.networks {
		joined.Go(func() {
			if err := n.Join(p.Wires[i]); err != nil {
				m.o.Say("network card %d has lost its network: %v", i, err)
			}
		})
	}
	stopping, forced := m.watch(ctx, p)
	joined.Wait()
	stopping = m.awaitRead(ctx, read, forced) || stopping
	s, err := p.Wait()
	return s.End, stopping, err
}

// awaitRead returns when those that the guest waits for have its last words, or by
// readPatience once the end is by force, which may be asked for here, too: stopping.
func (m *Machine) awaitRead(ctx context.Context, read <-chan struct{}, forced bool) (stopping bool) {
	var late <-chan time.Time
	canceled := ctx.Done()
	if forced {
		late, canceled = time.After(readPatience), nil
	}
	for {
		select {
		case <-read:
			return stopping
		case <-late: // somebody does not read
			return stopping
		case <-canceled:
			stopping, canceled = true, nil
			late = time.After(readPatience)
		case grace := <-m.stops:
			if stopping = true; late == nil || grace == 0 {
				late = time.After(max(grace, readPatience))
			}
		}
	}
}

// watch returns when the process has ended, which it sees to when it is asked to.
func (m *Machine) watch(ctx context.Context, p *vmm.Process) (stopping, forced bool) {
	var over, kill <-chan time.Time
	canceled := ctx.Done()
	force := func() {
		forced, over, canceled = true, nil, nil
		kill = time.After(stopPatience)
		go m.order("it is to end", p.Stop)
	}
	for {
		select {
		case <-p.Exited():
			return stopping, forced
		case grace := <-m.stops:
			stopping = true
			switch {
			case forced:
			case grace == 0:
				force()
			default:
				go m.order("its power button is pressed", p.PressPower)
				if grace != Forever {
					over = time.After(grace)
				}
			}
		case <-over:
			m.o.Say("the guest has not powered off in time")
			force()
		case <-canceled:
			stopping = true
			force()
		case <-kill:
			kill = nil
			m.o.Say("the machine's process does not answer, and is killed")
			p.Kill()
		}
	}
}

// order has a process do something, for as long as somebody may want it.
func (m *Machine) order(what string, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	if err := do(ctx); err != nil && !fault.Is(err, fault.Stale) {
		m.o.Say("the machine's process was not told that %s: %v", what, err)
	}
}

// Info is a machine as others see it.
type Info struct {
	Name        string     `json:"name"`
	PID         int        `json:"pid"` // of the process that runs it, not the guest's
	Began       time.Time  `json:"began"`
	Restarts    int        `json:"restarts"`
	Memory      uint64     `json:"memory"`
	Kernel      string     `json:"kernel"`
	CommandLine string     `json:"command_line"`
	Disks       []string   `json:"disks"`
	Forwards    []string   `json:"forwards"`
	Record      string     `json:"record,omitempty"`
	State       string     `json:"state"` // Status.End's name
	Status      vmm.Status `json:"status"`
}

// Info tells how the machine does. Fails when its process does not answer, and has what
// is known without that then.
func (m *Machine) Info(ctx context.Context) (Info, error) {
	i, p := m.about()
	if p == nil {
		return i, nil // between two lives
	}
	s, err := p.Status(ctx)
	if err == nil {
		i.Status, i.State = s, s.End.String()
		i.Restarts += s.Counters.Restarts
	} else if fault.Is(err, fault.Stale) {
		err = nil // it has just ended
	}
	return i, err
}

// about is what is known of the machine without asking its process, which it returns, too.
func (m *Machine) about() (Info, *vmm.Process) {
	i := Info{
		Name: m.o.Name, PID: os.Getpid(), Began: m.began, Memory: m.o.Memory, Kernel: m.o.Kernel, CommandLine: m.o.CommandLine,
		Disks: []string{}, Forwards: []string{}, Record: m.o.Record,
	}
	for _, d := range m.o.Disks {
		name := d.File
		if d.ReadOnly {
			name += ",ro"
		}
		i.Disks = append(i.Disks, name)
	}
	for _, a := range m.Forwards() {
		i.Forwards = append(i.Forwards, a.String())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	i.Restarts, i.Status.End, i.State = m.restarts, m.end, m.end.String()
	return i, m.process
}

// machineName is what a machine can be called.
var machineName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)

// CheckName fails with fault.Invalid for what a machine cannot be called.
func CheckName(name string) error {
	if !machineName.MatchString(name) {
		return fault.New(fault.Invalid, "a machine cannot be called %q: small letters, digits, dots and dashes, at most 63", name)
	}
	return nil
}
