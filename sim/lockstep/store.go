package lockstep

import (
	"slices"
	"time"

	"steadfast/compute/lockstep"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// nexus is the connection of one attempt at the lock to all volumes: as good as one for
// each, for they are made and end together.
type nexus struct {
	by  *proc
	key uint64
}

// volume is a unit with SPC-4's reservations, as dumb as can be.
type volume struct {
	regs   []registration
	holder *nexus
	tasks  []*task // that were let in and have not landed
}

type registration struct {
	nexus *nexus
	key   uint64
}

// task is a command of a disk that is under way.
type task struct {
	from *nexus
	out  lockstep.Out
}

func (v *volume) find(n *nexus) int {
	return slices.IndexFunc(v.regs, func(r registration) bool { return r.nexus == n })
}

func (v *volume) mayWrite(n *nexus) bool { return v.holder == nil || v.find(n) >= 0 }

// store is the SAN: two volumes, one of which has the lock block. It never forgets
// what has landed.
type store struct {
	w       *world
	block   [vmlock.BlockSize]byte
	volumes [2]*volume
	cells   [sectors]cell
	// stuck is what waits for the way to the SAN, by host.
	stuck map[*host][]func()
}

func newStore(w *world) *store {
	return &store{w: w, block: vmlock.Block{VM: theVM}.Encode(), volumes: [2]*volume{{}, {}}, stuck: map[*host][]func(){}}
}

// reach has a command of a host arrive: now, some time, or when there is a way.
func (s *store) reach(h *host, arrive func()) {
	d := s.w.delay(60*time.Microsecond, 300*time.Microsecond)
	if s.w.chance(s.w.profile.late) {
		d += s.w.delay(0, 3*time.Second)
	}
	s.w.after(d, nil, func() {
		if h.away {
			s.stuck[h] = append(s.stuck[h], arrive)
			return
		}
		arrive()
	})
}

// back lets a host's commands through.
func (s *store) back(h *host) {
	h.away = false
	list := s.stuck[h]
	s.stuck[h] = nil
	for _, f := range list {
		f()
	}
}

// do has a lock's command done, and its answer come.
func (s *store) do(p *proc, n *nexus, lock *vmlock.Lock, do vmlock.Do) {
	s.reach(p.host, func() {
		a := vmlock.Answer{Seq: do.Seq, Status: vmlock.Unknown}
		loss := 0
		if s.w.chance(s.w.profile.loss) {
			loss = 1 + s.w.rng.IntN(4)
		}
		if loss != 1 && loss != 2 {
			got := s.execute(n, do.Op)
			if loss == 0 {
				a = got
				a.Seq = do.Seq
			}
		}
		if loss == 2 || loss == 4 {
			a.Status, a.Err = vmlock.Failed, fault.New(fault.Unreachable, "the target does not answer")
		}
		s.w.after(s.w.delay(60*time.Microsecond, 300*time.Microsecond), p, func() {
			if p.lock == lock {
				p.lockStep(a)
			}
		})
	})
}

func (s *store) execute(n *nexus, op vmlock.Op) (a vmlock.Answer) {
	switch op := op.(type) {
	case vmlock.ReadBlock:
		a.Block = s.block
	case vmlock.CompareAndWrite:
		switch {
		case !s.volumes[vmlock.Home].mayWrite(n):
			a.Status = vmlock.Conflict
		case s.block != op.Old:
			a.Status = vmlock.Miscompare
		default:
			s.block = op.New
			s.w.judge.block(n.by, op.Old, op.New)
		}
	case vmlock.Register:
		v := s.volumes[op.Volume]
		if i := v.find(n); i >= 0 {
			v.regs[i].key = op.Key
		} else {
			v.regs = append(v.regs, registration{n, op.Key})
		}
	case vmlock.ReadKeys:
		v := s.volumes[op.Volume]
		for _, r := range v.regs {
			a.Keys = append(a.Keys, r.key)
			if v.holder == r.nexus {
				a.Holder, a.Type = r.key, vmlock.ReservationType
			}
		}
	case vmlock.Reserve:
		v := s.volumes[op.Volume]
		if v.find(n) < 0 || v.holder != nil && v.holder != n {
			a.Status = vmlock.Conflict
		} else {
			v.holder = n
		}
	case vmlock.Preempt:
		a.Status = s.volumes[op.Volume].preempt(n, op)
	}
	return a
}

// preempt is PREEMPT AND ABORT. SPC-4, 5.13.11.
func (v *volume) preempt(n *nexus, op vmlock.Preempt) vmlock.Status {
	other := func(r registration) bool { return r.key == op.Other && r.nexus != n }
	i := v.find(n)
	if i < 0 || v.regs[i].key != op.Key || !slices.ContainsFunc(v.regs, other) {
		return vmlock.Conflict
	}
	gone := map[*nexus]bool{}
	for _, r := range v.regs {
		if other(r) {
			gone[r.nexus] = true
		}
	}
	v.regs = slices.DeleteFunc(v.regs, other)
	v.tasks = slices.DeleteFunc(v.tasks, func(t *task) bool { return gone[t.from] })
	if gone[v.holder] {
		v.holder = n
	}
	return vmlock.Good
}

// issue has a disk's command done.
func (s *store) issue(p *proc, n *nexus, out lockstep.Out) {
	s.reach(p.host, func() {
		v := s.volumes[1]
		t := &task{n, out}
		if out.Kind != toRead && !v.mayWrite(n) {
			s.w.after(s.w.delay(60*time.Microsecond, 300*time.Microsecond), p, func() { p.conflicted(n) })
			return
		}
		v.tasks = append(v.tasks, t)
		d := s.w.delay(50*time.Microsecond, 2*time.Millisecond)
		if s.w.chance(s.w.profile.late) {
			d += s.w.delay(0, 2*time.Second)
		}
		s.w.after(d, nil, func() { s.land(t) })
	})
}

// land has a command reach the medium, unless it was aborted.
func (s *store) land(t *task) {
	v := s.volumes[1]
	i := slices.Index(v.tasks, t)
	if i < 0 {
		return
	}
	v.tasks = slices.Delete(v.tasks, i, i+1)
	var data []byte
	p := t.from.by
	switch t.out.Kind {
	case toRead:
		data = s.cells[t.out.Offset].bytes()
	case toWrite:
		s.w.judge.landed(t.from, t.out)
		s.cells[t.out.Offset] = cellOf(t.out.Data)
	}
	s.w.after(s.w.delay(60*time.Microsecond, 300*time.Microsecond), p, func() { p.completed(t.from, t.out, data) })
}
