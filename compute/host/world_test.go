package host

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/compute/vmm"
	"steadfast/fault"
)

// TestMain is also the processes that the tests start: vmm starts this binary.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == vmm.Command {
		if err := vmm.Run(os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if kids := children(); len(kids) > 0 && code == 0 {
			fmt.Fprintln(os.Stderr, "processes are left:", kids)
			code = 1
		}
		os.Exit(code)
	}))
}

// children are the processes that this one has.
func children() (list []string) {
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		list = append(list, strings.Fields(string(b))...)
	}
	return list
}

// patience bounds what a test waits for that should take moments.
const patience = 60 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for something to be so, and else has what there is shown.
func until(t testing.TB, what string, so func() bool, show ...func()) {
	t.Helper()
	for over := time.Now().Add(patience); !so(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(over) {
			for _, f := range show {
				f()
			}
			t.Fatal("in vain: ", what)
		}
	}
}

// decided is a quorum of the tests': its state, which members follow.
type decided struct {
	mu      sync.Mutex
	state   *quorum.State
	members []*member
}

func newDecided() *decided { return &decided{state: quorum.NewState()} }

func (d *decided) edit(by string, base quorum.Revision, edits []quorum.Edit) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.state.Clone()
	next.Boots[quorum.Member(by)] = 1
	err := next.Apply(next.Index+1, quorum.Command{Kind: quorum.KindEdit, By: quorum.Incarnation{Member: quorum.Member(by), Boot: 1}, Revision: base, Edits: edits})
	if err != nil {
		return err
	}
	d.state = next
	for _, m := range d.members {
		m.wake()
	}
	return nil
}

func (d *decided) now() *quorum.State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

// member is a Member, which may be behind.
type member struct {
	d    *decided
	name string

	mu     sync.Mutex
	behind *quorum.State // what it sees, while it is cut off
	asked  func()        // is called with each Edit
	wakes  map[int]chan struct{}
	n      int
	tasks  sync.WaitGroup
}

func (d *decided) member(name string) *member {
	m := &member{d: d, name: name, wakes: map[int]chan struct{}{}}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.members = append(d.members, m)
	return m
}

func (m *member) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.wakes {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// cut has the member hear of nothing, nor be heard.
func (m *member) cut() {
	s := m.d.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.behind = s
}

func (m *member) mend() {
	m.mu.Lock()
	m.behind = nil
	m.mu.Unlock()
	m.wake()
}

func (m *member) State() *quorum.State {
	m.mu.Lock()
	s := m.behind
	m.mu.Unlock()
	if s != nil {
		return s
	}
	return m.d.now()
}

func (m *member) Edit(_ context.Context, base quorum.Revision, edits ...quorum.Edit) error {
	m.mu.Lock()
	cut, asked := m.behind != nil, m.asked
	m.mu.Unlock()
	if asked != nil {
		asked()
	}
	if cut {
		return fault.New(fault.Unreachable, "no quorum")
	}
	return m.d.edit(m.name, base, edits)
}

func (m *member) Watch(f func(*quorum.State)) (stop func()) {
	wake := make(chan struct{}, 1)
	wake <- struct{}{}
	ctx, cancel := context.WithCancel(context.Background())
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.n
	m.n++
	m.wakes[i] = wake
	m.tasks.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-wake:
				f(m.State())
			}
		}
	})
	return cancel
}

// change changes the inventory by its rules, as a person or a node would.
func (d *decided) change(t testing.TB, rule func(*inventory.View) ([]quorum.Edit, error)) {
	t.Helper()
	for {
		inv := d.now().Inventory
		v, err := inventory.Read(inv.Entries)
		must(t, err)
		edits, err := rule(v)
		must(t, err)
		if len(edits) == 0 {
			return
		}
		if err := d.edit("n", inv.Revision, edits); !fault.Is(err, fault.Stale) {
			must(t, err)
			return
		}
	}
}

func (d *decided) view(t testing.TB) *inventory.View {
	t.Helper()
	v, err := inventory.Read(d.now().Inventory.Entries)
	must(t, err)
	must(t, v.Check())
	return v
}

// Names of the tests' site.
const (
	group = "g1"
	vm    = "m1"
	vmID  = "0123456789abcdef0123456789abcdef"
)

var (
	homeAt = At{group, "home"}
	diskAt = At{group, "disk"}
)

const diskBytes = 1 << 20

// world is a site with one machine and some hosts.
type world struct {
	t testing.TB
	*decided
	s     *san
	hosts map[string]*hostOf
}

// hostOf is a host with all that it has.
type hostOf struct {
	*Host
	w      *world
	member *member
	way    *way
	dir    string

	mu     sync.Mutex
	events []Event
}

// times are the tests' clocks: impatient where that makes things happen only.
var times = Times{Check: 20 * time.Millisecond, Grace: time.Hour, Force: 20 * time.Second, Drain: 20 * time.Second, Retry: 20 * time.Millisecond, Edit: time.Minute}

// newWorld makes a site, with HA or not.
func newWorld(t testing.TB, ha bool, kernel []byte) *world {
	w := &world{t: t, decided: newDecided(), s: newSAN(), hosts: map[string]*hostOf{}}
	t.Cleanup(func() {
		if len(w.s.faults) > 0 {
			t.Error(w.s.faults)
		}
	})
	w.s.add(homeAt, 4<<20)
	w.s.add(diskAt, diskBytes)
	w.s.setSector(diskAt, 0, "SECTOR0 and more")
	record, err := json.Marshal(map[string]any{"name": group, "volumes": []map[string]any{{"name": "home", "size": 4 << 20}, {"name": "disk", "size": diskBytes}}})
	must(t, err)
	must(t, w.edit("n", w.now().Inventory.Revision, []quorum.Edit{{Key: "group/" + group, Value: record}}))
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateDatacenter("dc") })
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateCluster("c", "dc", ha) })
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.AddDatastore("ds", "dc", group) })
	hw := inventory.Hardware{
		Memory: machinetest.ObeyMemory, Disks: []inventory.Disk{{Name: "root", Volume: "disk", Bytes: diskBytes}},
		Nets: []inventory.Net{{MAC: "02:00:5e:00:53:01", Network: "lan"}},
	}
	w.change(t, func(v *inventory.View) ([]quorum.Edit, error) {
		return v.CreateMachine(inventory.Machine{Name: vm, ID: vmID, Cluster: "c", Datastore: "ds", Home: "home", Hardware: hw})
	})
	w.home(kernel, hw)
	return w
}

// home makes the machine's home volume.
func (w *world) home(kernel []byte, hw inventory.Hardware) {
	v, err := w.s.way("admin").open(w.t.Context(), homeAt, [6]byte{1})
	must(w.t, err)
	id, err := vmlock.ParseID(vmID)
	must(w.t, err)
	must(w.t, vmhome.Format(v, id, 0))
	if kernel == nil {
		return
	}
	h, err := vmhome.Open(v)
	must(w.t, err)
	d := vmhome.Definition{Name: vm, ID: vmID, Hardware: hw, Policy: inventory.Restart}
	must(w.t, h.Save(d, &vmhome.Source{Name: "vmlinux", Bytes: int64(len(kernel)), Reader: bytes.NewReader(kernel)}, nil))
}

// host adds a host, and begins it. Its clocks may be changed before.
func (w *world) host(name string, with ...func(*Options)) *hostOf {
	w.t.Helper()
	w.change(w.t, func(v *inventory.View) ([]quorum.Edit, error) { return v.AddHost(name, "c", inventory.Links{}) })
	x := &hostOf{w: w, member: w.member(name), way: w.s.way(name), dir: w.t.TempDir()}
	o := Options{
		Name: name, Member: x.member, Boot: 1, Memory: 1 << 30, CPUs: 2, Open: x.way.open,
		Attach: func(context.Context, string, int, inventory.Net) (Attachment, error) {
			return Attachment{Wire: &sink{}}, nil
		},
		Consoles: x.dir, Temp: x.dir, Times: times, Event: x.event,
	}
	if testing.Verbose() {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("host", name)
	}
	for _, f := range with {
		f(&o)
	}
	h, err := Open(o)
	must(w.t, err)
	x.Host = h
	w.hosts[name] = x
	w.t.Cleanup(func() {
		x.way.thaw()
		must(w.t, x.Close())
		x.way.flying.Wait()
		x.member.tasks.Wait()
		left, err := filepath.Glob(filepath.Join(x.dir, "boot-*"))
		if err != nil || len(left) > 0 {
			w.t.Errorf("files are left: %v, %v", left, err)
		}
	})
	until(w.t, "the host is up", func() bool { return x.State().Boot != 0 })
	return x
}

func (x *hostOf) event(e Event) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.events = append(x.events, e)
}

// heard counts events of a type.
func (x *hostOf) heard(kind string) (n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.events {
		if e.Type == kind {
			n++
		}
	}
	return n
}

func (x *hostOf) awaits(kind string) {
	x.w.t.Helper()
	until(x.w.t, "the event "+kind, func() bool { return x.heard(kind) > 0 })
}

// sink is a network that nobody is on.
type sink struct{ frames bytes.Buffer }

func (s *sink) Join(wire net.Conn) error {
	_, _ = io.Copy(&s.frames, wire)
	return nil
}

func (s *sink) Close() error { return nil }

// start has the machine run, as what is wanted of it.
func (w *world) start() {
	w.t.Helper()
	w.change(w.t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Start(vm) })
}

// place places the machine.
func (w *world) place(on string, generation uint64) {
	w.t.Helper()
	w.change(w.t, func(v *inventory.View) ([]quorum.Edit, error) {
		return v.Place(inventory.Placement{Machine: vm, Host: on, Boot: v.Lives[on].Boot, Generation: generation, Reason: "a test"}, 1)
	})
}

// ends waits until the machine's placement has ended, and returns it.
func (w *world) ends() *inventory.Placement {
	w.t.Helper()
	until(w.t, "the placement's end", func() bool { return !w.view(w.t).Placements[vm].Active() })
	return w.view(w.t).Placements[vm]
}

// terminal is who is attached to a console.
type terminal struct {
	mu     sync.Mutex
	text   bytes.Buffer
	closed bool
}

func (c *terminal) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *terminal) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

// has tells how often something was written.
func (c *terminal) has(s string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Count(c.text.String(), s)
}

func (c *terminal) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// attach attaches to the machine's console, once its guest is up.
func (x *hostOf) attach() *terminal {
	x.w.t.Helper()
	var c *terminal
	until(x.w.t, "the guest is up", func() bool {
		switch {
		case c == nil || c.isClosed(): // that placement has ended
			next := &terminal{}
			if _, err := x.Attach(vm, next); err == nil {
				c = next
			}
			return false
		default:
			return c.has(machinetest.ObeyUp) > 0
		}
	})
	return c
}

func (x *hostOf) says(c *terminal, text string) {
	x.w.t.Helper()
	until(x.w.t, fmt.Sprintf("the guest says %q", text), func() bool { return c.has(text) > 0 })
}

func (x *hostOf) types(what string) {
	x.w.t.Helper()
	must(x.w.t, x.Type(vm, []byte(what)))
}

// lockBlock reads the machine's lock block.
func (w *world) lockBlock() vmlock.Block {
	w.t.Helper()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	b, err := vmlock.Decode([vmlock.BlockSize]byte(w.s.volumes[homeAt].data))
	must(w.t, err)
	return b
}

// lockOf is the lock block of a machine that nobody holds.
func lockOf(t testing.TB, id vmlock.ID) []byte {
	t.Helper()
	p := vmlock.Block{VM: id, Generation: 1, Owner: vmlock.Owner{Host: 1, Boot: 1}, Attempt: 1, Nonce: [16]byte{1}}.Encode()
	_, err := vmlock.Decode(p)
	must(t, err)
	return p[:]
}
