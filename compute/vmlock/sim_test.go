package vmlock

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// The world of these tests: volumes that are a deliberately dumb model of SPC-4's
// reservations, hosts' processes that take the lock of one machine, and a wire
// between them on which commands and answers wait for as long as they like.

var seedFlag = flag.Uint64("seed", 0, "run this seed alone")

// nexus is one of a process's connections to a volume.
type nexus struct {
	by *process
	n  int
}

// volume is a unit: who is registered, who has reserved, and the writes that
// were let in and have not landed.
type volume struct {
	regs   []registration
	holder nexus // by is nil when nothing is reserved
	tasks  []*command
}

type registration struct {
	nexus
	key uint64
}

func (v *volume) find(n nexus) int {
	return slices.IndexFunc(v.regs, func(r registration) bool { return r.nexus == n })
}

// mayWrite: Write Exclusive, Registrants Only. SPC-4, table 68.
func (v *volume) mayWrite(n nexus) bool { return v.holder.by == nil || v.find(n) >= 0 }

// command is on its way to a volume: op of a lock, or nil for a write of data.
type command struct {
	from   *process
	seq    uint64
	op     Op
	volume int
	nexus  int
}

// answer is on its way back.
type answer struct {
	to    *process
	write bool
	Answer
}

// life is whether a process runs.
type life uint8

const (
	alive life = iota
	frozen
	crashed
)

// process is one attempt, and the machine that it runs.
type process struct {
	id         int
	lock       *Lock
	life       life
	held       bool // its machine runs
	letting    bool // it is to release, and writes nothing new
	open       []int
	writes     int // not answered
	conflicted bool
	ended      error
	over       bool
}

// after tells whether p's placement is after o's.
func (p *process) after(o *process) bool {
	a, b := p.lock.cfg, o.lock.cfg
	return a.Generation > b.Generation || a.Generation == b.Generation && a.Attempt > b.Attempt
}

func (p *process) String() string {
	c := p.lock.cfg
	return fmt.Sprintf("process %d (host %d boot %d generation %d attempt %d)", p.id, c.Me.Host, c.Me.Boot, c.Generation, c.Attempt)
}

// world is one run.
type world struct {
	rng     *rand.Rand
	flaw    Flaw
	nexuses []int
	block   [BlockSize]byte
	volumes []*volume
	wire    []*command
	answers []answer
	all     []*process
	current *process // who was told Held last
	calm    bool     // nothing is lost any more
	wrong   string   // what a judge has seen
}

func newWorld(rng *rand.Rand, flaw Flaw, nexuses ...int) *world {
	w := &world{rng: rng, flaw: flaw, nexuses: nexuses, block: Block{VM: ID{1}}.Encode()}
	for range nexuses {
		w.volumes = append(w.volumes, &volume{})
	}
	return w
}

func (w *world) fail(format string, args ...any) {
	if w.wrong == "" {
		w.wrong = fmt.Sprintf(format, args...)
	}
}

// start begins an attempt.
func (w *world) start(me Owner, generation uint64, attempt uint8) *process {
	p := &process{id: len(w.all), open: slices.Clone(w.nexuses)}
	cfg := Config{VM: ID{1}, Me: me, Generation: generation, Attempt: attempt, Nonce: [16]byte{byte(p.id), byte(p.id >> 8), 1}, Nexuses: w.nexuses, Broken: w.flaw}
	l, err := NewLock(cfg)
	if err != nil {
		panic(err)
	}
	p.lock = l
	w.all = append(w.all, p)
	w.step(p, Begin{})
	return p
}

// step gives a process's lock an input and does what it wants.
func (w *world) step(p *process, in Input) {
	for _, e := range p.lock.Step(in) {
		switch e := e.(type) {
		case Do:
			c := &command{from: p, seq: e.Seq, op: e.Op}
			w.wire = append(w.wire, c)
		case Held:
			// Who slept between its last look at the block and this is told
			// late: it is not the holder, and nothing that it writes may land.
			if p.held = true; w.current == nil || p.after(w.current) {
				w.current = p
			}
		case Open:
			p.open[e.Volume]++
		case Stop:
			p.held, p.over, p.ended = false, true, e.Err
		case Done:
			p.held, p.over, p.ended = false, true, e.Err
			if w.flaw == flawTidy && e.Err == nil {
				w.tidy(p)
			}
		case Refused:
		}
	}
}

// tidy is what a process must not do: it gives its reservations back.
func (w *world) tidy(p *process) {
	for _, v := range w.volumes {
		v.regs = slices.DeleteFunc(v.regs, func(r registration) bool { return r.by == p })
		if v.holder.by == p {
			v.holder = nexus{}
		}
	}
}

// write has a process's machine write something.
func (w *world) write(p *process, volume, n int) {
	p.writes++
	w.wire = append(w.wire, &command{from: p, volume: volume, nexus: n})
}

// take takes the i-th of a list.
func take[T any](list *[]T, i int) T {
	x := (*list)[i]
	*list = slices.Delete(*list, i, i+1)
	return x
}

// loss is what becomes of a command that is not answered.
type loss uint8

const (
	answered loss = iota
	lostCommand
	lostAnswer
)

// deliver has a command arrive.
func (w *world) deliver(i int, l loss) {
	c := take(&w.wire, i)
	if c.op == nil {
		v := w.volumes[c.volume]
		if !v.mayWrite(nexus{c.from, c.nexus}) {
			w.answers = append(w.answers, answer{c.from, true, Answer{Status: Conflict}})
			return
		}
		v.tasks = append(v.tasks, c)
		return
	}
	a := Answer{Seq: c.seq, Status: Unknown}
	if l != lostCommand {
		got := w.execute(c)
		if l == answered {
			a = got
			a.Seq = c.seq
		}
	}
	w.answers = append(w.answers, answer{c.from, false, a})
}

// execute does a lock's command.
func (w *world) execute(c *command) Answer {
	switch op := c.op.(type) {
	case ReadBlock:
		return Answer{Block: w.block}
	case CompareAndWrite:
		switch {
		case !w.volumes[Home].mayWrite(nexus{c.from, 0}):
			return Answer{Status: Conflict}
		case w.block != op.Old:
			return Answer{Status: Miscompare}
		}
		w.block = op.New
	case Register:
		v, n := w.volumes[op.Volume], nexus{c.from, op.Nexus}
		if i := v.find(n); i >= 0 {
			v.regs[i].key = op.Key
		} else {
			v.regs = append(v.regs, registration{n, op.Key})
		}
	case ReadKeys:
		v := w.volumes[op.Volume]
		var a Answer
		for _, r := range v.regs {
			a.Keys = append(a.Keys, r.key)
			if v.holder == r.nexus {
				a.Holder, a.Type = r.key, ReservationType
			}
		}
		return a
	case Reserve:
		v, n := w.volumes[op.Volume], nexus{c.from, 0}
		if v.find(n) < 0 || v.holder.by != nil && v.holder != n {
			return Answer{Status: Conflict}
		}
		v.holder = n
	case Preempt:
		return w.preempt(c, op)
	}
	return Answer{}
}

// preempt is PREEMPT AND ABORT: all registrations of the other key go, their
// tasks end, and if they had the reservation it is the preemptor's. SPC-4,
// 5.13.11.
func (w *world) preempt(c *command, op Preempt) Answer {
	v, n := w.volumes[op.Volume], nexus{c.from, 0}
	has := func(key uint64) bool {
		return slices.ContainsFunc(v.regs, func(r registration) bool { return r.key == key })
	}
	if i := v.find(n); i < 0 || v.regs[i].key != op.Key || !has(op.Other) {
		return Answer{Status: Conflict}
	}
	gone := map[nexus]bool{}
	for _, r := range v.regs {
		if r.key == op.Other && r.nexus != n {
			gone[r.nexus] = true
			if q := r.by; q == w.current && q.held && q.after(c.from) {
				w.fail("%v preempted %v, which is newer and runs the machine", c.from, q)
			}
		}
	}
	v.regs = slices.DeleteFunc(v.regs, func(r registration) bool { return gone[r.nexus] })
	if w.flaw != flawNoAbort {
		v.tasks = slices.DeleteFunc(v.tasks, func(t *command) bool { return gone[nexus{t.from, t.nexus}] })
	}
	if gone[v.holder] {
		v.holder = n
	}
	return Answer{}
}

// land has a write that was let in reach the medium: the judge's moment.
func (w *world) land(v *volume, i int) {
	c := take(&v.tasks, i)
	if c.from != w.current {
		w.fail("a write of %v landed while %v has the machine", c.from, w.current)
	}
	w.answers = append(w.answers, answer{c.from, true, Answer{}})
}

// answer has an answer arrive, unless its process cannot take it.
func (w *world) answer(i int) {
	if w.answers[i].to.life == frozen {
		return
	}
	a := take(&w.answers, i)
	p := a.to
	switch {
	case p.life == crashed:
	case !a.write:
		w.step(p, a.Answer)
	default:
		p.writes--
		if a.Status == Conflict {
			p.conflicted = true
			w.step(p, Conflicted{})
		}
	}
	if p.letting && p.held && p.writes == 0 && p.life == alive {
		p.letting, p.held = false, false
		w.step(p, Release{})
	}
}

// any returns one of n at random.
func (w *world) any(n int) int { return w.rng.IntN(n) }

// move has one thing happen that is under way; false: nothing is.
func (w *world) move() bool {
	var ready []int // answers that can be taken
	for i, a := range w.answers {
		if a.to.life != frozen {
			ready = append(ready, i)
		}
	}
	tasks := 0
	for _, v := range w.volumes {
		tasks += len(v.tasks)
	}
	total := len(w.wire) + tasks + len(ready)
	if total == 0 {
		return false
	}
	k := w.any(total)
	if k < len(w.wire) {
		l := answered
		// Who is frozen or has crashed is told nothing: its command lands.
		if !w.calm && w.wire[k].from.life == alive && w.any(6) == 0 {
			l = loss(1 + w.any(2))
		}
		w.deliver(k, l)
		return true
	}
	if k -= len(w.wire); k < len(ready) {
		w.answer(ready[k])
		return true
	}
	k -= len(ready)
	for _, v := range w.volumes {
		if k < len(v.tasks) {
			w.land(v, k)
			return true
		}
		k -= len(v.tasks)
	}
	return false
}

// disturb has something happen from outside.
func (w *world) disturb(last map[uint16]*process, generation *uint64) {
	switch k := w.any(100); {
	case k < 6 && len(w.all) < 12: // another attempt
		host := uint16(1 + w.any(3))
		old := last[host]
		me := Owner{host, 1}
		if old != nil {
			me = old.lock.cfg.Me
		}
		if old != nil && !old.over {
			me.Boot++ // what the life before still has under way may land
		}
		if old != nil && old.over && old.ended != nil && me == old.lock.cfg.Me && !old.conflicted && w.current != old && w.any(2) == 0 && old.lock.cfg.Generation == *generation {
			last[host] = w.start(me, *generation, old.lock.cfg.Attempt+1)
			return
		}
		*generation++
		last[host] = w.start(me, *generation, 1)
		return
	case len(w.all) == 0:
		return
	case k < 12:
		p := w.all[w.any(len(w.all))]
		if p.life == alive {
			p.life = frozen
		} else if p.life == frozen {
			p.life = alive
		}
	case k < 14:
		if p := w.all[w.any(len(w.all))]; w.any(3) == 0 {
			p.life, p.held = crashed, false
		}
	case k < 60: // a machine writes
		if p := w.all[w.any(len(w.all))]; p.held && !p.letting && p.life == alive && p.writes < 6 {
			v := w.any(len(w.volumes))
			w.write(p, v, w.any(p.open[v]))
		}
	case k < 66:
		if p := w.all[w.any(len(w.all))]; p.held && !p.letting && p.life == alive {
			w.step(p, Check{})
		}
	case k < 72:
		if p := w.all[w.any(len(w.all))]; p.held && !p.letting && p.life == alive {
			v := w.any(len(w.volumes))
			// One that is there, too, which must come to nothing.
			w.step(p, Join{v, w.nexuses[v] + w.any(p.open[v]-w.nexuses[v]+1)})
		}
	case k < 74:
		if p := w.all[w.any(len(w.all))]; p.held && p.life == alive {
			p.letting = true
		}
	}
}

// play runs one seed and returns what the judges saw, and how far it came.
func play(seed uint64, flaw Flaw) (wrong string, holders int) {
	rng := rand.New(rand.NewPCG(seed, 7))
	w := newWorld(rng, flaw, 1+rng.IntN(2), 1+rng.IntN(2))
	rough := 2 + rng.IntN(6) // the less, the more is disturbed
	last := map[uint16]*process{}
	var generation uint64
	was := w.current
	for range 500 {
		if w.any(rough) == 0 {
			w.disturb(last, &generation)
		} else {
			w.move()
		}
		if w.current != was {
			was = w.current
			holders++
		}
		if w.wrong != "" {
			return w.wrong, holders
		}
	}
	return w.settle(generation), holders
}

// settle stops the faults: all wake, what is under way arrives, and one more
// attempt must get the lock and the volumes.
func (w *world) settle(generation uint64) string {
	w.calm = true
	for _, p := range w.all {
		if p.life == frozen {
			p.life = alive
		}
	}
	run := func() {
		for n := 0; w.wrong == "" && w.move(); n++ {
			if n > 20_000 {
				w.fail("it does not come to rest")
			}
		}
	}
	run()
	p := w.start(Owner{9, 1}, generation+1, 1)
	run()
	if w.wrong == "" && (!p.held || w.current != p) {
		w.fail("the last attempt did not get the lock: %v", p.ended)
	}
	for v, n := range w.nexuses {
		for i := range n {
			w.write(p, v, i)
		}
	}
	run()
	if p.conflicted {
		w.fail("the last holder cannot write")
	}
	w.step(p, Check{})
	run()
	if w.wrong == "" && !p.held {
		w.fail("the last holder lost the lock: %v", p.ended)
	}
	return w.wrong
}

// TestSeeds: whatever happens, no write lands after another's takeover, nobody
// older preempts a holder, and in the end someone gets the lock.
func TestSeeds(t *testing.T) {
	if *seedFlag != 0 {
		if wrong, _ := play(*seedFlag, flawNone); wrong != "" {
			t.Fatal(wrong)
		}
		return
	}
	seeds, holders := uint64(12_000), 0
	if testing.Short() {
		seeds = 2500
	}
	for seed := uint64(1); seed <= seeds; seed++ {
		wrong, n := play(seed, flawNone)
		if holders += n; wrong != "" {
			t.Fatalf("-seed=%d: %s", seed, wrong)
		}
	}
	// Else the world is too rough for anything to go wrong in it.
	if uint64(holders) < 2*seeds {
		t.Errorf("%d seeds had %d holders before their end", seeds, holders)
	}
}

// TestFlaws breaks each rule, and sees the judges notice.
func TestFlaws(t *testing.T) {
	for name, f := range map[string]Flaw{
		"write before preempting": flawWriteFirst, "preempt before the lock": flawPreemptFirst, "nonce not checked": flawNonceUnchecked,
		"key reused": flawKeyReused, "no look before preempting": flawNoLook, "join without a look": flawNoJoinCheck,
		"reservation given back": flawTidy, "preempt without abort": flawNoAbort,
	} {
		t.Run(name, func(t *testing.T) {
			const most = 20_000
			for seed := uint64(1); seed <= most; seed++ {
				if wrong, _ := play(seed, f); wrong != "" {
					t.Logf("seed %d: %s", seed, wrong)
					return
				}
			}
			t.Errorf("%d seeds, and nobody noticed", most)
		})
	}
}

// drive has a process's lock get n answers, or as many as it asks for, and
// returns how many those were.
func (w *world) drive(p *process, n int) int {
	for done := 0; done < n; done++ {
		i := slices.IndexFunc(w.wire, func(c *command) bool { return c.from == p && c.op != nil })
		if i < 0 {
			return done
		}
		w.deliver(i, answered)
		w.answer(slices.IndexFunc(w.answers, func(a answer) bool { return a.to == p && !a.write }))
	}
	return n
}

// frozenHolder returns a world in which a first holder is frozen, with a write
// on its way to each volume and another let in.
func frozenHolder(t *testing.T) (*world, *process) {
	t.Helper()
	w := newWorld(rand.New(rand.NewPCG(1, 1)), flawNone, 2, 1, 1)
	w.calm = true
	old := w.start(Owner{1, 1}, 1, 1)
	w.drive(old, 1000)
	if !old.held {
		t.Fatalf("the first one did not get the lock: %v", old.ended)
	}
	for v := range w.volumes {
		w.write(old, v, 0)
		w.deliver(len(w.wire)-1, answered)
		w.write(old, v, 0)
	}
	old.life = frozen
	return w, old
}

// steps is how many commands a takeover takes.
func steps(t *testing.T) int {
	t.Helper()
	w, _ := frozenHolder(t)
	n := w.drive(w.start(Owner{2, 1}, 2, 1), 1000)
	if w.current != w.all[1] || n < 10 || n > 40 {
		t.Fatalf("a takeover of three volumes took %d commands", n)
	}
	return n
}

// TestEveryStep ends, freezes or confuses a takeover at each of its commands,
// and lets that command land before each command of the next taker.
func TestEveryStep(t *testing.T) {
	n := steps(t)
	for k := range n {
		for _, l := range []loss{lostCommand, lostAnswer} {
			w, _ := frozenHolder(t)
			p := w.start(Owner{2, 1}, 2, 1)
			w.drive(p, k)
			w.deliver(len(w.wire)-1, l)
			w.answer(len(w.answers) - 1)
			w.drive(p, 1000)
			if w.wrong != "" || !p.held {
				t.Fatalf("command %d of %d got no answer (%d): held %t, %v %s", k, n, l, p.held, p.ended, w.wrong)
			}
			if wrong := w.settle(2); wrong != "" {
				t.Fatalf("command %d got no answer (%d): %s", k, l, wrong)
			}
		}
		for j := range n + 5 {
			for _, fate := range []life{frozen, crashed} {
				w, old := frozenHolder(t)
				a := w.start(Owner{2, 1}, 2, 1)
				w.drive(a, k)
				a.life = fate
				late := w.wire[len(w.wire)-1]
				b := w.start(Owner{3, 1}, 3, 1)
				w.drive(b, j)
				w.deliver(slices.Index(w.wire, late), answered)
				w.drive(b, 1000)
				if w.wrong != "" || !b.held {
					t.Fatalf("the command %d of one (life %d) landed before the command %d of the next: held %t, %v %s", k, fate, j, b.held, b.ended, w.wrong)
				}
				old.life = alive // it wakes last of all
				if wrong := w.settle(3); wrong != "" {
					t.Fatalf("the command %d of one (life %d) landed before the command %d of the next: %s", k, fate, j, wrong)
				}
				if !old.conflicted {
					t.Fatal("the first holder's writes did not conflict")
				}
			}
		}
	}
}

// TestReleaseKeepsTheFence: a lock that was given back is taken by the next one,
// and who froze two holders ago still cannot write.
func TestReleaseKeepsTheFence(t *testing.T) {
	w, old := frozenHolder(t)
	p := w.start(Owner{2, 1}, 2, 1)
	w.drive(p, 1000)
	w.step(p, Release{})
	w.drive(p, 1000)
	b, err := Decode(w.block)
	if err != nil || b.Held || b.Generation != 2 || !p.over || p.ended != nil || p.lock.State() != Over {
		t.Fatalf("after the release: %+v, %v; %v", b, err, p.ended)
	}
	old.life = alive
	for w.move() {
	}
	if w.wrong != "" || !old.conflicted || old.held {
		t.Fatalf("the first holder woke, and did not find out: %s", w.wrong)
	}
	if wrong := w.settle(2); wrong != "" {
		t.Fatal(wrong)
	}
}
