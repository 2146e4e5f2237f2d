package lockstepio

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"steadfast/block"
	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/machineio"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// patience bounds what a test waits for that should take moments.
const patience = 120 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var owners = [...]vmlock.Owner{{Host: 1, Boot: 7}, {Host: 2, Boot: 3}, {Host: 3, Boot: 1}}

// san is a disk of two sectors, with a lock. A read of the first sector is the number in
// the second one, and one more: so what a guest writes there shows what it has read, and
// whether anything was lost, done by two, or done again too late.
type san struct {
	t     *testing.T
	mu    sync.Mutex
	value int
	owner vmlock.Owner // whose writes land
	block vmlock.Block
	away  bool // the lock cannot be reached
	slow  func() time.Duration
	order []string // what landed
}

func newSAN(t *testing.T, seed uint64) *san {
	r := rand.New(rand.NewPCG(seed, 9))
	s := &san{t: t, owner: owners[0], block: vmlock.Block{VM: vmlock.ID{1}, Generation: 1, Owner: owners[0], Attempt: 1, Nonce: [16]byte{1}, Held: true}}
	var mu sync.Mutex
	s.slow = func() time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return time.Duration(r.IntN(500)) * time.Microsecond
	}
	return s
}

// disk is a host's way to it.
type disk struct {
	block.Device
	*san
	owner vmlock.Owner
}

func (d disk) Size() int64 { return 1 << 20 }

func (d disk) Flush() error { return nil }

// ReadAt implements block.Device.
func (d disk) ReadAt(p []byte, off int64) error {
	time.Sleep(d.slow())
	d.mu.Lock()
	defer d.mu.Unlock()
	if off != 0 {
		return fault.New(fault.Invalid, "a read at %d", off)
	}
	copy(p, fmt.Sprintf("%08d", d.value+1))
	return nil
}

// WriteAt implements block.Device.
func (d disk) WriteAt(p []byte, off int64, _ block.Flags) error {
	time.Sleep(d.slow())
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owner != d.san.owner {
		return fault.New(fault.Fenced, "a reservation conflict")
	}
	n, err := strconv.Atoi(string(p[:8]))
	if err != nil || off != block.SectorSize || n != d.value && n != d.value+1 {
		d.t.Errorf("wrote %q at %d, and %d is there", p[:8], off, d.value)
	}
	d.value = n
	d.order = append(d.order, fmt.Sprintf("%d:%d", d.owner.Host, n))
	return nil
}

// landed is how many writes did.
func (s *san) landed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.value
}

func (s *san) setAway(away bool) {
	s.mu.Lock()
	s.away = away
	s.mu.Unlock()
}

// key is a host's way to the lock.
type key struct {
	*san
	me vmlock.Owner
}

func (k key) Change(_ context.Context, partner vmlock.Owner) (b [vmlock.BlockSize]byte, err error) {
	time.Sleep(k.slow())
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.away:
		return b, fault.New(fault.Unreachable, "the storage does not answer")
	case k.block.Owner != k.me:
		return b, fault.New(fault.Fenced, "the lock is host %d's", k.block.Owner.Host)
	}
	k.block.Partner = partner
	k.block.Turn++
	return k.block.Encode(), nil
}

func (k key) Take(_ context.Context, from [vmlock.BlockSize]byte) (b [vmlock.BlockSize]byte, err error) {
	time.Sleep(k.slow())
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.away:
		return b, fault.New(fault.Unreachable, "the storage does not answer")
	case k.block.Encode() != from:
		return b, fault.New(fault.Fenced, "the lock is not as it was")
	}
	k.block.Owner, k.block.Partner = k.me, vmlock.Owner{}
	k.block.Turn++
	k.san.owner = k.me
	return k.block.Encode(), nil
}

// cable is a connection that can be made to lose everything, and tell nobody.
type cable struct {
	net.Conn
	mu  *sync.Mutex
	cut *bool
}

func (c cable) lost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return *c.cut
}

func (c cable) Write(p []byte) (int, error) {
	if c.lost() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c cable) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.lost() && n > 0 {
		// What was on its way is lost, and nothing follows until the end.
		for err == nil {
			_, err = c.Conn.Read(p)
		}
		return 0, err
	}
	return n, err
}

// cables makes two links, and what cuts them.
func cables() (p, s Links, cut func()) {
	var mu sync.Mutex
	lost := false
	for i := range p {
		a, b := net.Pipe()
		p[i], s[i] = cable{a, &mu, &lost}, cable{b, &mu, &lost}
	}
	return p, s, func() {
		mu.Lock()
		lost = true
		mu.Unlock()
	}
}

// world is a machine, the hosts that it is on, and who looks at it.
type world struct {
	t    *testing.T
	san  *san
	o    Options
	cpus sync.WaitGroup
	full []byte // more of the machine's memory
	// kernel is the guest, if it is another than Obey.
	kernel []byte

	mu      sync.Mutex
	changed sync.Cond
	said    map[uint64]string // by output
	text    map[uint64]string // of the console
	held    int               // changes and streams that left
	asks    int
	events  []string                    // host, and what it was told
	why     [len(owners)]lockstep.Event // the last of each host that says why
	kept    [len(owners)]kept
	live    *machineio.Live
}

// kept is what a side keeps of a machine that differs.
type kept struct {
	state bytes.Buffer
	log   []byte
}

// limits are the product's, but for a host that has much else to do.
func limits(silence time.Duration) lockstep.Limits {
	l := lockstep.DefaultLimits()
	l.Silence, l.Stalled, l.YieldWithin, l.StuckAfter, l.LoadWithin, l.PauseMax = silence, silence, patience, patience, patience, time.Second
	return l
}

func newWorld(t *testing.T, seed uint64, silence time.Duration) *world {
	w := &world{t: t, san: newSAN(t, seed), said: map[uint64]string{}, text: map[uint64]string{}}
	w.changed.L = &w.mu
	w.o = Options{Limits: limits(silence), DigestEvery: 3_000_000}
	t.Cleanup(w.cpus.Wait)
	return w
}

// options are those of a host.
func (w *world) options(host int) Options {
	o := w.o
	o.Lock = key{w.san, owners[host]}
	o.Event = func(e lockstep.Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, fmt.Sprintf("%d %s", host, eventName(e.Kind)))
		if e.Kind == lockstep.Unprotected || e.Kind == lockstep.TookOver {
			w.why[host] = e
		}
		w.changed.Broadcast()
	}
	o.leaves = w.leaves
	o.Keep = func(m *machine.Machine) {
		w.mu.Lock()
		defer w.mu.Unlock()
		must(w.t, m.Save(&w.kept[host].state))
	}
	o.KeepLog = func(log []byte) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.kept[host].log = log
		w.changed.Broadcast()
	}
	return o
}

func eventName(k lockstep.EventKind) string {
	return [...]string{"", "protected", "unprotected", "diverged", "waiting", "took over"}[k]
}

// table is for digests of outputs.
var table = crc64.MakeTable(crc64.ECMA)

// leaves sees an output leave. One of a number is always the same.
func (w *world) leaves(o lockstep.Out) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o.Class == lockstep.Ask {
		w.asks++
		return
	}
	w.held++
	is := fmt.Sprintf("port %d kind %d id %d at %d: %.32q, %x", o.Port, o.Kind, o.ID, o.Offset, o.Data, crc64.Checksum(o.Data, table))
	if was, ok := w.said[o.Number]; ok && was != is {
		w.t.Errorf("output %d was %s, and is %s", o.Number, was, is)
	}
	w.said[o.Number] = is
	if o.Port == machine.PortSerial {
		w.text[o.Number] = string(o.Data)
	}
	w.changed.Broadcast()
}

// until waits for something that a change under the world's lock brings about.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	defer time.AfterFunc(patience, func() { w.changed.Broadcast() }).Stop()
	began := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for !ok() {
		if time.Since(began) >= patience {
			w.t.Fatalf("it takes too long until %s; events %v", what, w.events)
		}
		w.changed.Wait()
	}
}

func (w *world) event(e string) {
	w.t.Helper()
	w.until(e, func() bool { return slices.Contains(w.events, e) })
}

// console is what was said there, each once.
func (w *world) console() string {
	var b strings.Builder
	numbers := make([]uint64, 0, len(w.text))
	for n := range w.text {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		b.WriteString(w.text[n])
	}
	return b.String()
}

// ops are how often the guest has said that it did what it was told.
func (w *world) ops() int {
	n := 0
	for _, s := range w.text {
		if s == "k" {
			n++
		}
	}
	return n
}

// host is a machine's life on one host.
type host struct {
	w      *world
	number int
	live   *machineio.Live
	p      *Primary
	s      *Secondary
	kill   context.CancelFunc
	far    Links         // the primary's ends of a secondary's links
	ended  chan struct{} // its life has, and err is how
	end    machine.End
	err    error
}

// boot starts the machine on the first host.
func (w *world) boot() *host {
	w.t.Helper()
	m, err := machine.New(machine.Config{
		Memory: machinetest.ObeyMemory + uint64(len(w.full)), Disks: []machine.Disk{{Size: 1 << 20}}, Nets: []machine.Net{{MAC: [6]byte{2}}},
		Seed: bytes.Repeat([]byte{1}, 32), Wall: 1_800_000_000_000_000_000,
	})
	must(w.t, err)
	kernel := w.kernel
	if kernel == nil {
		kernel = machinetest.Obey()
	}
	must(w.t, m.Load(kernel, w.full))
	h := &host{w: w, ended: make(chan struct{})}
	h.live, err = machineio.New(m, h.life())
	must(w.t, err)
	ctx, kill := context.WithCancel(context.Background())
	h.kill = kill
	w.t.Cleanup(kill)
	w.cpus.Go(func() {
		defer close(h.ended)
		h.end, h.err = h.live.Run(ctx)
		if h.p != nil {
			h.p.Close()
		}
		must(w.t, m.Release())
	})
	h.p, err = Attach(h.live, w.options(0))
	must(w.t, err)
	w.now(h.live)
	return h
}

func (w *world) now(l *machineio.Live) {
	w.mu.Lock()
	w.live = l
	w.mu.Unlock()
}

// life is what a machine lives with.
func (h *host) life() machineio.Options {
	return machineio.Options{Disks: []block.Device{disk{san: h.w.san, owner: owners[h.number]}}, Wires: []machineio.Wire{nil}, Serial: io.Discard}
}

// follow makes a secondary on a host, and turns it on.
func (w *world) follow(p *host, number int, change func(*SecondaryOptions)) (*host, func()) {
	w.t.Helper()
	session := lockstep.Session{byte(number), 5}
	pl, sl, cut := cables()
	o := SecondaryOptions{Options: w.options(number), Me: owners[number], Session: session, Links: sl}
	if change != nil {
		change(&o)
	}
	h := w.begin(o)
	h.far = pl
	must(w.t, p.p.TurnOn(pl, session, owners[number]))
	return h, cut
}

// begin starts a secondary.
func (w *world) begin(o SecondaryOptions) *host {
	h := &host{w: w, number: slices.Index(owners[:], o.Me), ended: make(chan struct{}), s: NewSecondary(o)}
	ctx, kill := context.WithCancel(context.Background())
	h.kill = kill
	w.t.Cleanup(kill)
	w.cpus.Go(func() {
		defer close(h.ended)
		h.end, h.err = h.lives(ctx)
	})
	return h
}

// lives executes, and goes on.
func (h *host) lives(ctx context.Context) (machine.End, error) {
	t, err := h.s.Run(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { must(h.w.t, t.Machine.Release()) }()
	live, p, err := t.Live(h.life())
	if err != nil {
		return 0, err
	}
	h.w.mu.Lock()
	h.live, h.p, h.w.live = live, p, live
	h.w.mu.Unlock()
	defer p.Close()
	return live.Run(ctx)
}

// typed types on the machine, wherever it is.
func (w *world) typed(b byte) {
	w.mu.Lock()
	l := w.live
	w.mu.Unlock()
	l.Type([]byte{b})
}

// work has the guest do n things, as a client does: what is not answered it asks again.
func (w *world) work(n int) {
	w.t.Helper()
	for range n {
		w.mu.Lock()
		was := w.ops()
		w.mu.Unlock()
		w.typed(machinetest.ObeyDisk)
		again := time.NewTicker(500 * time.Millisecond)
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case <-again.C:
					w.typed(machinetest.ObeyDisk)
				case <-stop:
					return
				}
			}
		}()
		w.until("it was done", func() bool { return w.ops() > was })
		close(stop)
		again.Stop()
	}
}

func (h *host) waits(t *testing.T) {
	t.Helper()
	select {
	case <-h.ended:
	case <-time.After(patience):
		t.Fatalf("host %d does not end", h.number)
	}
}

// judge ends the guest, and holds that all that it did was done once, in order.
func (w *world) judge(last *host) {
	w.t.Helper()
	w.typed(machinetest.ObeyPowerOff)
	last.waits(w.t)
	if last.err != nil || last.end != machine.PoweredOff {
		w.t.Fatalf("ended: %v, %v", last.end, last.err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	said := strings.TrimPrefix(w.console(), machinetest.ObeyUp)
	want, n := strings.Builder{}, 0
	for want.Len() < len(said) {
		n++
		fmt.Fprintf(&want, "%08dok\n", n)
	}
	if said != want.String() {
		w.t.Errorf("the console says %q", said)
	}
	w.san.mu.Lock()
	defer w.san.mu.Unlock()
	if w.san.value != n {
		w.t.Errorf("the guest did %d things, and the disk says %d", n, w.san.value)
	}
	// As an uninterrupted run writes: each once more, but for what was issued again.
	at, hosts := 0, 0
	host := ""
	for _, o := range w.san.order {
		h, v, _ := strings.Cut(o, ":")
		value, _ := strconv.Atoi(v)
		if h != host {
			host, hosts = h, hosts+1
		} else if value == at {
			w.t.Errorf("a write landed twice from one host: %v", w.san.order)
		}
		at = value
	}
	if hosts > len(owners) {
		w.t.Errorf("writes from %d hosts in turn: %v", hosts, w.san.order)
	}
}
