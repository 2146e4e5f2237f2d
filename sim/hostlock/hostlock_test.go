package hostlock

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"steadfast/block"
	"steadfast/compute/vmlock"
	"steadfast/san/lun"
	"steadfast/san/lun/luntest"
	"steadfast/scsi"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run this seed alone")
	seedsFlag = flag.Int("seeds", 400, "how many seeds TestSeeds runs")
)

const (
	target = "iqn.2026-11.io.example:t"
	size   = 4 << 20
)

// flaw is something that the way to the target does wrong.
type flaw uint8

const (
	none    flaw = iota
	noAbort      // PREEMPT instead of PREEMPT AND ABORT
	noFence      // neither, and said to be done
)

// nexus is a process's connection to a volume's target: a port of the device server.
type nexus struct {
	scsi.Port
	tag uint32
}

func (*nexus) UnitAttention(scsi.LUN) {}

// process is one attempt of a host, and the machine that it runs.
type process struct {
	id       int
	cfg      vmlock.Config
	lock     *vmlock.Lock
	nexuses  []*nexus // by volume
	frozen   bool
	crashed  bool
	held     bool
	letting  bool // it writes nothing new, to give the lock back
	over     bool
	ended    error
	writes   int // not answered
	conflict bool
}

func (p *process) String() string {
	return fmt.Sprintf("process %d (host %d boot %d generation %d)", p.id, p.cfg.Me.Host, p.cfg.Me.Boot, p.cfg.Generation)
}

// write is one of a machine's data. It has a place of its own on its volume.
type write struct {
	by   *process
	in   bool          // the device server has it, and it may land
	land chan struct{} // closed when it does
}

// command is on its way to the target: op of a lock, or a write.
type command struct {
	from   *process
	seq    uint64
	op     vmlock.Op
	volume int
	off    int64
}

type answer struct {
	to    *process
	write bool
	vmlock.Answer
}

// world is one run. All but the device server's goroutines is one goroutine; those
// wait for a write to land, or for mu.
type world struct {
	rng     *rand.Rand
	flaw    flaw
	srv     *lun.Server
	volumes []*luntest.RAM
	wire    []*command
	all     []*process
	next    int64
	calm    bool
	tasks   sync.WaitGroup
	aborted int // writes that were not let land

	mu      sync.Mutex
	current *process // who was told Held last
	writes  map[[2]int64]*write
	answers []answer
	wrong   string
}

func (w *world) fail(format string, args ...any) {
	if w.wrong == "" {
		w.wrong = fmt.Sprintf(format, args...)
	}
}

// newWorld makes volumes, the home first, and the device server.
func newWorld(t *testing.T, rng *rand.Rand, f flaw, volumes int) *world {
	w := &world{rng: rng, flaw: f, srv: lun.NewServer(), writes: map[[2]int64]*write{}, next: block.BlockSize}
	var view []lun.Mapping
	for i := range volumes {
		v := luntest.NewRAM(fmt.Sprintf("v%d", i), byte(i+1), size)
		v.Gate = func(op string, off, _ int64) { w.gate(i, op, off) }
		if err := w.srv.AddVolume(v); err != nil {
			t.Fatal(err)
		}
		w.volumes = append(w.volumes, v)
		view = append(view, lun.Mapping{LUN: uint16(i), Volume: v.ID()})
	}
	if err := w.srv.SetView(target, map[string][]lun.Mapping{lun.Any: view}); err != nil {
		t.Fatal(err)
	}
	first := vmlock.Block{VM: vmlock.ID{1}}.Encode()
	if err := w.volumes[vmlock.Home].WriteAt(first[:], 0, 0); err != nil {
		t.Fatal(err)
	}
	return w
}

// gate holds a write in the device server until it is to land, and judges that.
func (w *world) gate(volume int, op string, off int64) {
	if op != "write" || off < block.BlockSize {
		return
	}
	w.mu.Lock()
	x := w.writes[[2]int64{int64(volume), off}]
	x.in = true
	w.mu.Unlock()
	<-x.land
	w.mu.Lock()
	defer w.mu.Unlock()
	if x.by != w.current {
		w.fail("a write of %v landed while %v has the machine", x.by, w.current)
	}
}

// start begins an attempt, on nexuses of its own.
func (w *world) start(t *testing.T, me vmlock.Owner, generation uint64) *process {
	p := &process{id: len(w.all)}
	p.cfg = vmlock.Config{VM: vmlock.ID{1}, Me: me, Generation: generation, Attempt: 1, Nonce: [16]byte{byte(p.id), 1}}
	for v := range w.volumes {
		n := &nexus{}
		name := fmt.Sprintf("iqn.2026-11.io.example:host%d", me.Host)
		port := fmt.Sprintf("%s,i,0x80%06x%04x", name, p.id, v)
		var err error
		if n.Port, err = w.srv.OpenPort(scsi.Nexus{InitiatorName: name, InitiatorPort: port, TargetName: target, TargetPort: 1}, n); err != nil {
			t.Fatal(err)
		}
		p.nexuses = append(p.nexuses, n)
		p.cfg.Nexuses = append(p.cfg.Nexuses, 1)
	}
	l, err := vmlock.NewLock(p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.lock = l
	w.all = append(w.all, p)
	w.step(p, vmlock.Begin{})
	return p
}

// step gives a process's lock an input and does what it wants.
func (w *world) step(p *process, in vmlock.Input) {
	for _, e := range p.lock.Step(in) {
		switch e := e.(type) {
		case vmlock.Do:
			w.wire = append(w.wire, &command{from: p, seq: e.Seq, op: e.Op})
		case vmlock.Held:
			p.held = true
			w.mu.Lock()
			// Who slept between its last look at the block and this is told late: it is
			// not the holder, and nothing that it writes may land.
			if w.current == nil || p.cfg.Generation > w.current.cfg.Generation {
				w.current = p
			}
			w.mu.Unlock()
		case vmlock.Stop:
			p.held, p.over, p.ended = false, true, e.Err
		case vmlock.Done:
			p.held, p.over, p.ended = false, true, e.Err
		default:
		}
	}
}

// write has a process's machine write something.
func (w *world) write(p *process, volume int) {
	p.writes++
	w.next += block.BlockSize
	w.mu.Lock()
	w.writes[[2]int64{int64(volume), w.next}] = &write{by: p, land: make(chan struct{})}
	w.mu.Unlock()
	w.wire = append(w.wire, &command{from: p, volume: volume, off: w.next})
}

// do runs one command from beginning to end, as the initiator and the target do: unit
// attentions are answered by asking again, but for that of a preemption.
func (n *nexus) do(volume int, cdb, out []byte, in int) (vmlock.Status, []byte) {
	for {
		n.tag++
		t := &scsi.Task{LUN: scsi.MakeLUN(volume), Tag: n.tag, Attribute: scsi.Simple, CDB: cdb, DataOut: out, ExpectedIn: in, ExpectedOut: len(out)}
		n.Begin(t)
		if !n.TryExecute(t) && !n.Execute(t) {
			return vmlock.Unknown, nil // it was aborted, and nobody is told
		}
		data := slices.Clone(t.DataIn)
		if t.Release != nil {
			t.Release()
		}
		switch t.Status {
		case scsi.Good:
			return vmlock.Good, data
		case scsi.ReservationConflict:
			return vmlock.Conflict, nil
		case scsi.CheckCondition:
			c, _ := scsi.DecodeSense(t.Sense)
			switch {
			case c.Key == scsi.KeyMiscompare:
				return vmlock.Miscompare, nil
			case c.Key == scsi.KeyUnitAttention && c.ASC == 0x2a && c.ASCQ == 0x05 && scsi.Opcode(cdb[0]) == scsi.OpWrite16:
				return vmlock.Conflict, nil
			case c.Key == scsi.KeyUnitAttention:
				continue
			}
			panic(fmt.Sprintf("% x: %+v", cdb, c))
		default:
			return vmlock.Unknown, nil // TASK ABORTED
		}
	}
}

// execute does a command at the target. It may wait for writes that a preemption ends.
func (w *world) execute(c *command) vmlock.Answer {
	a := vmlock.Answer{Seq: c.seq}
	cdb := make([]byte, 16)
	persist := func(volume int, p scsi.PersistOut) {
		out := scsi.PutPersistOut(cdb, nil, p)
		a.Status, _ = c.from.nexuses[volume].do(volume, cdb, out, 0)
	}
	switch op := c.op.(type) {
	case nil:
		scsi.PutTransfer(cdb, scsi.OpWrite16, uint64(c.off/block.SectorSize), 1, false)
		a.Status, _ = c.from.nexuses[c.volume].do(c.volume, cdb, make([]byte, block.SectorSize), 0)
	case vmlock.ReadBlock:
		scsi.PutTransfer(cdb, scsi.OpRead16, 0, 1, false)
		var data []byte
		a.Status, data = c.from.nexuses[vmlock.Home].do(vmlock.Home, cdb, nil, block.SectorSize)
		copy(a.Block[:], data)
	case vmlock.CompareAndWrite:
		scsi.PutTransfer(cdb, scsi.OpCompareAndWrite, 0, 1, true)
		a.Status, _ = c.from.nexuses[vmlock.Home].do(vmlock.Home, cdb, append(op.Old[:], op.New[:]...), 0)
	case vmlock.Register:
		persist(op.Volume, scsi.PersistOut{Action: scsi.ActionPersistRegisterAny, ActionKey: op.Key, AllPorts: true})
	case vmlock.Reserve:
		persist(op.Volume, scsi.PersistOut{Action: scsi.ActionPersistReserve, Type: vmlock.ReservationType, Key: op.Key})
	case vmlock.Preempt:
		p := scsi.PersistOut{Action: scsi.ActionPersistPreemptAbort, Type: vmlock.ReservationType, Key: op.Key, ActionKey: op.Other}
		switch w.flaw {
		case noFence:
			return a
		case noAbort:
			p.Action = scsi.ActionPersistPreempt
		default:
		}
		persist(op.Volume, p)
	case vmlock.ReadKeys:
		a.Status, a.Keys = c.from.keys(op.Volume)
		if a.Status == vmlock.Good {
			a.Holder, a.Type = c.from.holder(op.Volume)
		}
	}
	return a
}

// keys reads the registered keys.
func (p *process) keys(volume int) (vmlock.Status, []uint64) {
	cdb := make([]byte, 16)
	scsi.PutPersistIn(cdb, scsi.ActionPersistReadKeys, 4096)
	status, b := p.nexuses[volume].do(volume, cdb, nil, 4096)
	_, keys, more, ok := scsi.DecodeKeys(b)
	if status == vmlock.Good && (!ok || more) {
		panic(fmt.Sprintf("keys % x", b))
	}
	return status, keys
}

// holder reads the reservation.
func (p *process) holder(volume int) (key uint64, kind uint8) {
	cdb := make([]byte, 16)
	scsi.PutPersistIn(cdb, scsi.ActionPersistReadReserved, 64)
	_, b := p.nexuses[volume].do(volume, cdb, nil, 64)
	if len(b) >= 8 && binary.BigEndian.Uint32(b[4:]) > 0 {
		_, kind, key, _ = scsi.DecodeReservation(b)
	}
	return key, kind
}

// deliver has a command arrive; its answer may be lost, or the command itself.
func (w *world) deliver(i int) {
	c := w.wire[i]
	w.wire = slices.Delete(w.wire, i, i+1)
	lost := !w.calm && c.op != nil && !c.from.frozen && !c.from.crashed && w.rng.IntN(8) == 0
	if lost && w.rng.IntN(2) == 0 {
		w.answers = append(w.answers, answer{c.from, false, vmlock.Answer{Seq: c.seq, Status: vmlock.Unknown}})
		return
	}
	w.tasks.Go(func() {
		a := w.execute(c)
		if lost {
			a = vmlock.Answer{Seq: c.seq, Status: vmlock.Unknown}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if c.op == nil && a.Status != vmlock.Good {
			w.aborted++
		}
		w.answers = append(w.answers, answer{c.from, c.op == nil, a})
	})
	synctest.Wait() // it has ended, or waits for a write to land
}

// take has a process take an answer.
func (w *world) take(i int) {
	w.mu.Lock()
	a := w.answers[i]
	w.answers = slices.Delete(w.answers, i, i+1)
	w.mu.Unlock()
	p := a.to
	switch {
	case p.crashed:
	case !a.write:
		w.step(p, a.Answer)
	default:
		p.writes--
		if a.Status == vmlock.Conflict {
			p.conflict = true
			w.step(p, vmlock.Conflicted{})
		}
	}
	if p.letting && p.held && p.writes == 0 && !p.frozen && !p.crashed {
		p.letting, p.held = false, false
		w.step(p, vmlock.Release{})
	}
}

// landing returns the writes that are in the device server and have not landed.
func (w *world) landing() (at [][2]int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, x := range w.writes {
		if x.in {
			at = append(at, k)
		}
	}
	slices.SortFunc(at, func(a, b [2]int64) int { return int(a[1] - b[1]) })
	return at
}

// move has one thing happen that is under way; false: nothing is.
func (w *world) move() bool {
	var ready []int
	for i, a := range w.answers {
		if !a.to.frozen {
			ready = append(ready, i)
		}
	}
	landing := w.landing()
	if w.rng.IntN(4) != 0 && len(w.wire)+len(ready) > 0 {
		landing = nil // the drive is slow
	}
	total := len(w.wire) + len(ready) + len(landing)
	if total == 0 {
		return false
	}
	switch k := w.rng.IntN(total); {
	case k < len(w.wire):
		w.deliver(k)
	case k < len(w.wire)+len(ready):
		w.take(ready[k-len(w.wire)])
	default:
		at := landing[k-len(w.wire)-len(ready)]
		w.mu.Lock()
		close(w.writes[at].land)
		delete(w.writes, at)
		w.mu.Unlock()
		synctest.Wait()
	}
	return true
}

// disturb has something happen from outside.
func (w *world) disturb(t *testing.T, generation *uint64) {
	k := w.rng.IntN(100)
	if k < 6 && len(w.all) < 10 {
		*generation++
		w.start(t, vmlock.Owner{Host: uint16(1 + w.rng.IntN(3)), Boot: uint32(*generation)}, *generation)
		return
	}
	if len(w.all) == 0 {
		return
	}
	p := w.all[w.rng.IntN(len(w.all))]
	runs := p.held && !p.letting && !p.frozen && !p.crashed
	switch {
	case k < 12:
		p.frozen = !p.frozen
	case k < 14 && w.rng.IntN(3) == 0:
		p.crashed, p.held = true, false
		if w.rng.IntN(2) == 0 {
			for _, n := range p.nexuses { // its connections end, by and by
				w.tasks.Go(n.Close)
			}
			w.wire = slices.DeleteFunc(w.wire, func(c *command) bool { return c.from == p })
			synctest.Wait()
		}
	case k < 70 && runs && p.writes < 6:
		w.write(p, w.rng.IntN(len(w.volumes)))
	case k < 76 && runs:
		w.step(p, vmlock.Check{})
	case k < 78 && runs:
		p.letting = true
	}
}

// outcome is what a run has seen.
type outcome struct {
	wrong            string
	holders, aborted int
}

// play runs one seed.
func play(t *testing.T, seed uint64, f flaw) (o outcome) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 11))
		w := newWorld(t, rng, f, 1+rng.IntN(2))
		rough := 2 + rng.IntN(5)
		var generation uint64
		was := w.current
		for range 300 {
			if w.rng.IntN(rough) == 0 {
				w.disturb(t, &generation)
			} else {
				w.move()
			}
			if w.current != was {
				was = w.current
				o.holders++
			}
			if w.wrong != "" {
				break
			}
		}
		w.settle(t, generation)
		o.wrong, o.aborted = w.wrong, w.aborted
	})
	return o
}

// settle stops the faults: all wake, what is under way arrives, and one more attempt must
// get the lock and be able to write.
func (w *world) settle(t *testing.T, generation uint64) {
	w.calm = true
	for _, p := range w.all {
		p.frozen = false
	}
	run := func() {
		for n := 0; w.move(); n++ {
			if n > 20_000 {
				w.fail("it does not come to rest")
				break
			}
		}
	}
	run()
	if w.wrong == "" {
		p := w.start(t, vmlock.Owner{Host: 9, Boot: 1}, generation+1)
		run()
		if !p.held || w.current != p {
			w.fail("the last attempt did not get the lock: %v", p.ended)
		}
		for v := range w.volumes {
			w.write(p, v)
		}
		run()
		if p.conflict || p.writes != 0 {
			w.fail("the last holder cannot write")
		}
	}
	for at := range w.writes {
		close(w.writes[at].land)
	}
	w.tasks.Wait()
	w.srv.Close()
}

// TestSeeds: no write of a host lands after another was told Held, and in the end
// somebody gets the lock.
func TestSeeds(t *testing.T) {
	first, n := uint64(1), uint64(*seedsFlag)
	if testing.Short() {
		n = min(n, 100)
	}
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	}
	var sum outcome
	for seed := first; seed < first+n; seed++ {
		o := play(t, seed, none)
		if o.wrong != "" {
			t.Fatalf("-seed=%d: %s", seed, o.wrong)
		}
		sum.holders, sum.aborted = sum.holders+o.holders, sum.aborted+o.aborted
	}
	t.Logf("%d seeds: %d holders, %d writes refused or ended", n, sum.holders, sum.aborted)
	// Else the world is too rough, or too gentle, for anything to go wrong in it.
	if *seedFlag == 0 && (uint64(sum.holders) < n || uint64(sum.aborted) < n/2) {
		t.Errorf("%d seeds had %d holders before their end, and %d writes that were not let land", n, sum.holders, sum.aborted)
	}
}

// TestFlaws fences less than the procedure says, and sees the judge notice.
func TestFlaws(t *testing.T) {
	for name, f := range map[string]flaw{"preempt without abort": noAbort, "no preempt": noFence} {
		t.Run(name, func(t *testing.T) {
			const most = 5000
			for seed := uint64(1); seed <= most; seed++ {
				if o := play(t, seed, f); o.wrong != "" {
					t.Logf("seed %d: %s", seed, o.wrong)
					return
				}
			}
			t.Errorf("%d seeds, and nobody noticed", most)
		})
	}
}
