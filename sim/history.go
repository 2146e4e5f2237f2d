package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"steadfast/fault"
	"steadfast/san/drive/drivetest"
	"steadfast/san/store"
	"steadfast/san/store/storetest"
)

// history is one world: a pool on simulated drives, its model, and what has
// happened to them.
type history struct {
	seed    uint64
	rand    *rand.Rand
	system  storetest.System
	world   *drivetest.World
	disks   []*drivetest.Disk // drives of the pool, and of an AddDrive cut by a crash
	pool    storetest.Pool
	model   *storetest.Model
	devices map[string]storetest.Device // open volumes
	profile profile

	now     store.Instant
	ids     uint64
	stamp   storetest.Stamp
	names   int // volumes, snapshots and disks named so far
	awake   bool
	lenient bool // damage was injected: reads may fail

	killOnly bool // no power losses
	damages  int  // blocks damaged at rest

	surviving bool // a drive fails: operations may meet it
	halted    bool // it was the only one

	step   int
	trace  []string
	live   func(line string) // sees each line of the trace as it comes; may be nil
	event  store.Event       // the last one
	counts counts
}

// counts say what a history was made of, so that a run can show that it was
// not made of nothing.
type counts struct {
	operations, crashes, boundaries, full, found, asked int
}

func (c *counts) add(o counts) {
	c.operations += o.operations
	c.crashes += o.crashes
	c.boundaries += o.boundaries
	c.full += o.full
	c.found += o.found
	c.asked += o.asked
}

// newHistory makes a world with an empty pool.
func newHistory(seed uint64, system storetest.System, family string, live func(string)) (*history, error) {
	h := &history{
		seed: seed, live: live, rand: rand.New(rand.NewPCG(seed, 0x5af)), system: system, world: drivetest.NewWorld(),
		model: storetest.NewModel(), devices: map[string]storetest.Device{}, now: 1_700_000_000_000_000_000,
	}
	if live != nil {
		h.world.Watch(live)
	}
	h.profile = drawProfile(h.rand, family)
	for range h.profile.drives {
		h.newDisk()
	}
	pool, err := system.Create("pool", h.options(), h.drives())
	if err != nil {
		return nil, fmt.Errorf("create the pool: %w", err)
	}
	h.pool = pool
	h.note("%s: %s on %v", family, h.profile.name, h.disks)
	return h, nil
}

func (h *history) newDisk() *drivetest.Disk {
	size := int64(64+8*h.rand.IntN(9)) << 20
	d := h.world.NewDisk(h.name("d"), size, rand.New(rand.NewPCG(h.seed, uint64(h.names))))
	h.disks = append(h.disks, d)
	return d
}

func (h *history) name(prefix string) string {
	h.names++
	return fmt.Sprintf("%s%d", prefix, h.names)
}

func (h *history) drives() []store.NamedDrive {
	var out []store.NamedDrive
	for _, d := range h.disks {
		out = append(out, store.NamedDrive{Name: d.Name(), Drive: d.Open()})
	}
	return out
}

func (h *history) options() store.Options {
	return store.Options{
		CacheBytes: 16 << 20,
		Now: func() store.Instant {
			h.now += 1000
			return h.now
		},
		NewID: func() (id store.ID) {
			h.ids++
			for i := range id {
				id[i] = byte(h.ids * 0x9e3779b97f4a7c15 >> (8 * (i % 8)))
			}
			id[15] = byte(h.ids)
			return id
		},
		Notify: func(e store.Event) {
			if e != h.event { // once is enough to read
				h.note("event %d %s %s %s", e.Kind, e.Volume, e.Drive, e.Text)
			}
			h.event = e
		},
		Wake: func() { h.awake = true },
	}
}

// note adds a line to the trace.
func (h *history) note(format string, args ...any) {
	line := fmt.Sprintf("%5d %6d  ", h.step, h.world.Boundaries()) + fmt.Sprintf(format, args...)
	h.trace = append(h.trace, line)
	if h.live != nil {
		h.live(line)
	}
}

// run does the first n operations of the history, or all of them if n is 0.
func (h *history) run(n int) error {
	total := h.profile.operations
	if n > 0 {
		total = min(n, total)
	}
	for h.step = 1; h.step <= total; h.step++ {
		h.now += store.Instant(h.rand.Int64N(200_000_000))
		if err := h.operation(); err != nil {
			return err
		}
		if err := h.afterwards(); err != nil {
			return err
		}
	}
	return h.finish()
}

// operation does one operation that the profile draws.
func (h *history) operation() error {
	h.counts.operations++
	total := 0
	for _, a := range actions {
		total += h.profile.weight(a.name)
	}
	pick := h.rand.IntN(total)
	for _, a := range actions {
		if pick -= h.profile.weight(a.name); pick < 0 {
			h.plan(a.name)
			if err := a.run(h); err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			return nil
		}
	}
	return nil
}

// plan may let the world end soon: anywhere, but more often where an operation
// is about to do several dependent writes.
func (h *history) plan(action string) {
	if !h.profile.crashes {
		return
	}
	switch {
	case slices.Contains([]string{"maintain", "reopen", "drain", "evacuate", "snapshot"}, action):
		if h.rand.IntN(20) == 0 {
			h.world.EndAfter(1 + h.rand.IntN(12))
		}
	case h.rand.IntN(60) == 0:
		h.world.EndAfter(1 + h.rand.IntN(60))
	}
}

// afterwards lets time pass after an operation: a crash that hit it, and
// background work that was asked for.
func (h *history) afterwards() error {
	if h.world.Ended() {
		return h.recoverPool()
	}
	if h.halted {
		return nil
	}
	if h.awake && h.rand.IntN(3) > 0 {
		h.awake = false
		if err := h.maintain(1 + h.rand.IntN(4)); err != nil {
			return err
		}
	}
	if h.world.Ended() {
		return h.recoverPool()
	}
	return nil
}

// maintain lends the pool up to n pieces of time.
func (h *history) maintain(n int) error {
	for range n {
		more, err := h.pool.Maintain()
		if h.world.Ended() {
			return nil
		}
		if err != nil {
			return h.unlessDamaged(h.unlessBounded(fmt.Errorf("maintain: %w", err)))
		}
		if !more {
			break
		}
	}
	return nil
}

// quietMax bounds the pieces of background work a pool may have, in pieces.
const quietMax = 20000

// drain lends time until there is no work left. It reports false if the world
// ended before, or if damage or a lack of space keeps the pool from resting:
// an error of one piece of work must not keep the others from being done, so it
// is asked some more.
func (h *history) drain() (bool, error) {
	patience := 0
	if h.lenient {
		patience = 200
	}
	for range quietMax {
		h.now += 50_000_000
		more, err := h.pool.Maintain()
		switch {
		case h.world.Ended():
			return false, nil
		case err != nil && patience > 0:
			patience--
		case err != nil:
			return false, h.unlessDamaged(h.unlessBounded(fmt.Errorf("maintain: %w", err)))
		case !more:
			return true, nil
		}
	}
	return false, errors.New("background work does not come to an end")
}

// settle tells the model what became of an operation. With an error it had no
// effect, unless the world ended in it.
func (h *history) settle(op storetest.Op, durable bool, err error) error {
	how := "durable"
	if !durable {
		how = "cached"
	}
	h.note("%v, %s: %v", op, how, short(err))
	switch {
	case err == nil:
		h.model.Answered(op, durable)
	case h.world.Ended():
		h.model.Unanswered(op)
	case fault.Is(err, fault.Full):
		return h.judgeFull(op, err)
	case h.lenient && fault.Is(err, fault.Corrupt):
		return h.partly(op)
	case h.surviving && fault.Is(err, fault.Failed):
		return h.metFailure(op)
	case h.killOnly && h.lenient && fault.Is(err, fault.Failed): // the pool has stopped
		h.model.Unanswered(op)
		return h.die()
	default:
		return fmt.Errorf("%v: %w", op, err)
	}
	return nil
}

// mustBe demands a refusal of one kind.
func (h *history) mustBe(kind fault.Kind, err error) error {
	switch {
	case err == nil:
		return fmt.Errorf("was done and should have been refused (%v)", kind)
	case fault.Is(err, kind):
		return nil
	}
	return h.pass(fmt.Errorf("should have been refused as %v: %w", kind, err))
}

// judgeFull says whether a pool may call itself full.
func (h *history) judgeFull(op storetest.Op, err error) error {
	h.counts.full++
	if h.bounded() {
		return h.partly(op)
	}
	if _, ok := op.(storetest.Clear); ok {
		return fmt.Errorf("%v must work in a full pool: %w", op, err)
	}
	if h.lenient { // what damage holds on to is not in the model
		return nil
	}
	st := h.pool.Status()
	stored := h.model.Now().Stored() * 4096
	if (stored+st.Metadata+st.Reclaimable)*100 < st.Capacity*80 {
		return fmt.Errorf("%v: %w, although %d bytes are stored and %d reclaimable of %d", op, err, stored, st.Reclaimable, st.Capacity)
	}
	return nil
}

// partly takes over what an operation left that found the filesystem below
// full, or damage: a large one is several, and the first may have been done.
func (h *history) partly(op storetest.Op) error {
	h.model.Unanswered(op)
	got, err := h.read()
	if err != nil {
		return err
	}
	return h.model.Recover(got.State, false)
}

// unlessBounded forgives a pool on a small filesystem that finds no room.
func (h *history) unlessBounded(err error) error {
	if fault.Is(err, fault.Full) && h.bounded() {
		h.note("%v", err)
		return nil
	}
	return err
}

// bounded tells whether a filesystem below has been made small.
func (h *history) bounded() bool {
	return slices.ContainsFunc(h.disks, func(d *drivetest.Disk) bool { return d.Bounded() })
}

// device returns an open volume.
func (h *history) device(name string) (storetest.Device, error) {
	if d := h.devices[name]; d != nil {
		return d, nil
	}
	d, err := h.pool.OpenVolume(name)
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", name, err)
	}
	h.devices[name] = d
	return d, nil
}

// closeDevice closes a volume if it is open.
func (h *history) closeDevice(name string) error {
	d := h.devices[name]
	if d == nil {
		return nil
	}
	delete(h.devices, name)
	return d.Close()
}

// read reads the whole pool.
func (h *history) read() (*storetest.Observed, error) {
	r := storetest.Reader{Rand: h.rand, Attributes: attributeKeys, Forgive: h.lenient}
	return r.Read(h.pool)
}

// compare reads the whole pool and holds it against the model.
func (h *history) compare() error {
	got, err := h.read()
	if err != nil {
		return err
	}
	return h.model.Compare(got.State)
}

// account lets the pool come to rest and holds its figures against the model.
func (h *history) account() error {
	quiet, err := h.drain()
	if err != nil || !quiet {
		return err
	}
	got, err := h.read()
	if err != nil {
		return err
	}
	if err := h.model.Compare(got.State); err != nil {
		return err
	}
	if h.lenient { // bad blocks stay stored, for nobody
		return nil
	}
	if err := h.model.Now().Account(got); err != nil {
		return err
	}
	if got.Status.Reclaimable != 0 && !h.bounded() {
		return fmt.Errorf("a pool at rest has %d bytes to reclaim", got.Status.Reclaimable)
	}
	return nil
}

// finish ends a history: everything as it should be, before and after a last
// clean restart.
func (h *history) finish() error {
	h.step++
	h.world.Endless()
	for _, last := range []func() error{h.account, h.reopen, h.askSince} {
		if err := last(); err != nil {
			return fmt.Errorf("at the end: %w", err)
		}
	}
	h.counts.boundaries = h.world.Boundaries()
	return nil
}

// report renders a failure with the end of the trace.
func (h *history) report(err error, whole bool) string {
	lines := h.trace
	const most = 40
	if !whole && len(lines) > most {
		lines = lines[len(lines)-most:]
	}
	return fmt.Sprintf("seed %d, operation %d: %v\n(operation, boundary, what)\n%s", h.seed, h.step, err, strings.Join(lines, "\n"))
}

// short renders an error for the trace.
func short(err error) string {
	if err == nil {
		return "ok"
	}
	return fmt.Sprintf("%v (%v)", fault.KindOf(err), err)
}
