package host

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"steadfast/compute/initiator"
	"steadfast/compute/vmm"
	"steadfast/compute/vmm/standalone"
	"steadfast/fault"
)

// Phase is where a machine is on this host.
type Phase string

// Phases.
const (
	// Of a secondary only.
	Waiting   Phase = "waiting" // for the machine's host
	Following Phase = "following"

	Starting Phase = "starting"
	Running  Phase = "running"
	Stopping Phase = "stopping"
	Ended    Phase = "ended" // and the inventory does not say so yet
)

// Machine is how a machine does on this host.
type Machine struct {
	Name       string
	Generation uint64 // of its placement
	Phase      Phase
	// Step says what is done or waited for, or how it ended.
	Step  string
	Since time.Time // of the phase
	// PID is its process's; 0: it has none. Status is what that says; Silent why it says
	// nothing.
	PID int
	CPU time.Duration // that the process has had; 0 without one
	// Resident is the memory that the process has, in bytes.
	Resident uint64
	Status   vmm.Status
	Silent   error
	// Restarts are those that its guest wanted, Resets those that people did.
	Restarts, Resets int
	// Full is what the storage says while the machine waits for space, by disk.
	Full  map[string]string
	Disks []Disk
	// Pair is how it does as one of a pair; nil: it is not.
	Pair *PairStatus
}

// Disk is how a machine's volume does.
type Disk struct {
	// Name is the disk's, or empty for the home volume.
	Name, Volume string
	State        initiator.State
}

// State is how this host does.
type State struct {
	// Boot is the number of its life; 0: it is not entered, and Why says why.
	Boot uint32
	Why  error
}

// State tells how this host does.
func (h *Host) State() State {
	h.mu.Lock()
	defer h.mu.Unlock()
	return State{h.boot, h.why}
}

// find returns a machine's run.
func (h *Host) find(machine string) (*run, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.runs[machine]
	if r == nil {
		return nil, fault.New(fault.NotFound, "the machine %q does not run on this host", machine)
	}
	return r, nil
}

// Machine tells how one does. Its process may take until ctx ends to say. Fails with
// fault.NotFound.
func (h *Host) Machine(ctx context.Context, name string) (Machine, error) {
	r, err := h.find(name)
	if err != nil {
		return Machine{}, err
	}
	return r.describe(ctx), nil
}

// Known tells what this host knows of all, by name, without asking their processes: Status
// and Silent are not there.
func (h *Host) Known() (list []Machine) {
	for _, r := range h.all() {
		m, _ := r.known()
		list = append(list, m)
	}
	return list
}

// all returns the runs, by their machines' names.
func (h *Host) all() []*run {
	h.mu.Lock()
	defer h.mu.Unlock()
	runs := make([]*run, 0, len(h.runs))
	for _, r := range h.runs {
		runs = append(runs, r)
	}
	slices.SortFunc(runs, func(a, b *run) int { return cmp.Compare(a.m.Name, b.m.Name) })
	return runs
}

// Machines tells how all do, by name.
func (h *Host) Machines(ctx context.Context) []Machine {
	runs := h.all()
	list := make([]Machine, len(runs))
	var all sync.WaitGroup
	for i, r := range runs {
		all.Go(func() { list[i] = r.describe(ctx) }) // one that does not answer holds up none
	}
	all.Wait()
	return list
}

// describe tells how a machine does. Its process is asked.
func (r *run) describe(ctx context.Context) Machine {
	m, p := r.known()
	if p == nil {
		return m
	}
	m.Status, m.Silent = p.Status(ctx)
	if fault.Is(m.Silent, fault.Stale) {
		m.Silent = nil // it has just ended
	}
	if m.Pair != nil && m.Status.Pair != nil {
		m.Pair.Status = *m.Status.Pair
	}
	return m
}

// known tells what is known of a machine, and its process or nil.
func (r *run) known() (Machine, *vmm.Process) {
	r.mu.Lock()
	t := r.told
	m := Machine{
		Name: r.m.Name, Generation: r.generation, Phase: t.phase, Step: t.step, Since: t.since,
		Restarts: t.restarts, Resets: t.resets, Full: map[string]string{},
	}
	for disk, why := range t.full {
		m.Full[r.m.Disks[disk].Name] = why
	}
	if p := t.pair; p != nil {
		m.Pair = &PairStatus{Secondary: r.pair != 0 && !r.took, Pair: p.number, Other: p.other, LogBytesPerSecond: p.rate}
		m.Pair.Protected = p.protected
	}
	r.mu.Unlock()
	for i, v := range t.volumes {
		d := Disk{Volume: r.m.Home, State: v.State()}
		if i > 0 {
			d.Name, d.Volume = r.m.Disks[i-1].Name, r.m.Disks[i-1].Volume
		}
		m.Disks = append(m.Disks, d)
	}
	if t.process != nil {
		m.PID = t.process.PID()
		m.CPU, m.Resident = cpuTime(m.PID), resident(m.PID)
	}
	return m, t.process
}

// ticksPerSecond is the unit of times in /proc, USER_HZ: 100 on all that Linux runs on here.
const ticksPerSecond = 100

// cpuTime reads what processor time a process has had, its own and the system's for it; 0 when it
// cannot be read, or has just ended.
func cpuTime(pid int) time.Duration {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// proc_pid_stat(5): after the command's name, which may have anything in it, the state is
	// field 3, utime 14 and stime 15.
	_, rest, found := bytes.Cut(b[max(bytes.LastIndexByte(b, ')'), 0):], []byte(") "))
	f := bytes.Fields(rest)
	if !found || len(f) < 13 {
		return 0
	}
	var ticks uint64
	for _, field := range f[11:13] {
		n, err := strconv.ParseUint(string(field), 10, 53)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / ticksPerSecond)
}

// resident reads what memory a process has, in bytes; 0 when it cannot be read.
func resident(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	// proc_pid_statm(5): the second field, in pages.
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(string(f[1]), 10, 50)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}

// Attach gives w what the machine's guest writes on its serial port, after the last lines
// of before, until the machine has ended: w is closed then, and when it is too far behind. leave
// ends it sooner. Fails with fault.NotFound.
func (h *Host) Attach(machine string, w io.WriteCloser) (leave func(), err error) {
	c, err := h.console(machine)
	if err != nil {
		return nil, err
	}
	return c.Attach(w), nil
}

// Type types on the machine's serial port. It waits for a guest, and for it to take that,
// until the machine has ended. Fails with fault.NotFound.
func (h *Host) Type(machine string, p []byte) error {
	c, err := h.console(machine)
	if err != nil {
		return err
	}
	c.Type(p)
	return nil
}

func (h *Host) console(machine string) (*standalone.Console, error) {
	r, err := h.find(machine)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.console == nil {
		return nil, fault.New(fault.Busy, "the machine %q has not begun yet; try again", machine)
	}
	return r.console, nil
}
