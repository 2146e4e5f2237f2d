package lockstep

import (
	"fmt"
	"slices"

	"steadfast/compute/lockstep"
	"steadfast/compute/vmlock"
)

// judge knows what may be seen. It stands outside of all hosts, and believes none.
type judge struct {
	w     *world
	wrong string

	current *nexus                           // who was told that it has the lock, last
	rank    [3]uint64                        // generation, turn and attempt that it has it with
	by      *proc                            // who wrote the present block
	over    uint32                           // the life whose guest has ended, and that has no more
	winners map[[vmlock.BlockSize]byte]*proc // who replaced a pairing's block
	told    map[[vmlock.BlockSize]byte]*session

	promises map[serial]promise
	given    map[wish]uint64 // the serial
	bytes    map[serial]byte // of the console
	most     map[uint32]uint64
	best     cell // the last promise that a client has
	excused  map[uint32]bool
}

type serial struct {
	life   uint32
	number uint64
}

type wish struct {
	life uint32
	request
}

func newJudge(w *world) *judge {
	return &judge{
		w: w, winners: map[[vmlock.BlockSize]byte]*proc{}, told: map[[vmlock.BlockSize]byte]*session{}, promises: map[serial]promise{},
		given: map[wish]uint64{}, bytes: map[serial]byte{}, most: map[uint32]uint64{}, excused: map[uint32]bool{},
	}
}

func (j *judge) fail(format string, args ...any) {
	if j.wrong == "" {
		j.wrong = fmt.Sprintf(format, args...)
		j.w.say("JUDGE: %s", j.wrong)
	}
}

func decode(p [vmlock.BlockSize]byte) vmlock.Block {
	b, err := vmlock.Decode(p)
	if err != nil {
		panic(err)
	}
	return b
}

// block: of those who replace the block of a pairing one wins.
func (j *judge) block(by *proc, was, is [vmlock.BlockSize]byte) {
	b, o := decode(is), decode(was)
	j.w.say("block: %v writes turn %d, partner %v, held %t", by, b.Turn, b.Partner, b.Held)
	if j.by = by; b.Paired() && by.session != nil {
		j.told[is] = by.session
	}
	if w := j.winners[was]; w != nil && o.Paired() && w != by {
		j.fail("%v replaced the block of a pairing that %v had replaced", by, w)
	}
	j.winners[was] = by
}

// held: who has the lock; what others send does not land any more. Who slept between its
// last look at the block and this is told late: when a later one has the lock, it is
// nobody.
func (j *judge) held(p *proc) {
	b := decode(p.lock.Block())
	rank := [3]uint64{b.Generation, uint64(b.Turn), uint64(b.Attempt)}
	if slices.Compare(rank[:], j.rank[:]) > 0 {
		j.current, j.rank = p.nexus, rank
	}
}

// landed: nothing of a fenced host lands.
func (j *judge) landed(n *nexus, o lockstep.Out) {
	if n != j.current {
		j.fail("a write of %v to sector %d landed while %v has the machine", n.by, o.Offset, j.current.by)
	}
}

// left: no output before its inputs are acknowledged, by the one that could go on, or has.
func (j *judge) left(p *proc, o lockstep.Out, info sent) {
	b := decode(j.w.store.block)
	x := p.pair
	if x == nil {
		return
	}
	s := x.sides[1]
	paired := b.Paired() && j.told[j.w.store.block] == x && s.told && !s.ended
	won := j.by == s
	if (paired || won) && !s.covers(info) {
		j.fail("output %d of %v, at count %d after input %d, has left, and %v has the log to %d with %d inputs", o.Number, p, info.at, info.inputs, s, s.horizon, s.inputs)
	}
}

// frame: what the machine says once, it says for ever.
func (j *judge) frame(p *proc, a promise) {
	if j.excused[a.Life] {
		return
	}
	at := serial{a.Life, a.Serial}
	if was, ok := j.promises[at]; ok && was != a {
		j.fail("%v says %+v, and %+v was said before", p, a, was)
	}
	j.promises[at] = a
	w := wish{a.Life, a.request}
	if was, ok := j.given[w]; ok && was != a.Serial {
		j.fail("%v answers %+v, and had answered with %d before", p, a, was)
	}
	j.given[w] = a.Serial
}

// console: likewise of each byte.
func (j *judge) console(p *proc, o lockstep.Out) {
	life := p.m.life
	if j.excused[life] {
		return
	}
	at := serial{life, o.ID}
	if was, ok := j.bytes[at]; ok && was != o.Data[0] {
		j.fail("%v says %q on its console, and %q was said there", p, o.Data[0], was)
	}
	// One that was passed over: nobody says it any more.
	if _, ok := j.bytes[serial{life, o.ID - 1}]; !ok && o.ID > 0 {
		j.fail("%v says byte %d on its console, and nobody has said the one before", p, o.ID)
	}
	j.bytes[at] = o.Data[0]
}

// promised: what a client was told outlives the machine.
func (j *judge) promised(p promise) {
	if !j.excused[p.Life] && (p.Life > j.best.Life || p.Life == j.best.Life && p.Serial > j.best.Serial) {
		j.best = p.cell
	}
}

// life: a machine that begins anew finds on its disk what clients were told.
func (j *judge) life(life uint32) {
	c := j.w.store.cells[j.best.Serial%promises]
	if j.best.Serial != 0 && c.Serial < j.best.Serial {
		j.fail("life %d begins without the promise %d, and finds %d", life, j.best.Serial, c.Serial)
	}
	if c.Serial == j.best.Serial && c != j.best && !j.excused[c.Life] {
		j.fail("life %d finds the promise %+v, and a client was told %+v", life, c, j.best)
	}
}

// excuse judges a life no further: it is that of a machine which was changed, and nobody
// could know.
func (j *judge) excuse(life uint32) {
	j.w.counts.excused++
	j.excused[life] = true
}

// anew: a machine is not placed anew while a side that has its lock, or can win it, is well.
func (j *judge) anew() {
	b := decode(j.w.store.block)
	well := func(p *proc) bool {
		return p.m != nil && !p.dead && !p.tainted && p.host.boot == p.owner.Boot && p.host.lost < p.owner.Boot
	}
	if x := j.told[j.w.store.block]; b.Paired() && x != nil && x.sides[1].told {
		for _, p := range x.sides {
			if well(p) {
				j.fail("the machine is placed anew, and %v was well and could have gone on", p)
			}
		}
	}
	if !b.Paired() && b.Held && j.by != nil && b.Owner == j.by.owner && well(j.by) {
		j.fail("the machine is placed anew, and %v was well and had its lock", j.by)
	}
}
