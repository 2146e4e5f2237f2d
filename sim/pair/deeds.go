package pair

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/store"
)

// What is held of the units' family, when all is over. A cell is a
// sector, or a large piece that is written as one. Each is a register, as a block is in
// judge.go; what is more here is what hosts know
// besides answers: a function that ended a command, and a preemption that fenced a host.

func seconds(t instant) string { return fmt.Sprintf("%.6f", time.Duration(t).Seconds()) }

// bounds finds for each command until when it was done, if it was: a host that had
// a later one answered knows that nothing of the earlier lands any more, and so
// does one that ended it by a function.
func (w *world) bounds() {
	next := map[int]instant{}
	for _, d := range slices.Backward(w.deeds) {
		bound, ok := next[d.host]
		if !ok {
			bound = math.MaxInt64
		}
		if d.answered {
			bound = d.ret
			next[d.host] = bound
		}
		d.bound = bound
	}
}

// judge holds everything that is to be held of what hosts saw.
func (w *world) judge() {
	w.bounds()
	w.reservations()
	for _, d := range w.deeds {
		if d.ended != 0 && !d.answered {
			d.bound = max(d.call, min(d.bound, d.ended))
		}
	}
	w.oneWinner()
	w.cuts()
	for u := range dataVolumes {
		for c := range w.cells() {
			if w.failure == "" {
				w.cell(u, c)
			}
		}
	}
}

// touches tells whether a command is about a cell, and which of its values is.
func (d *deed) touches(u, c int) (i int, ok bool) {
	i = c - d.cell
	return i, d.unit == u && i >= 0 && i < len(d.values)
}

// cell holds that one cell was a register.
func (w *world) cell(u, c int) {
	var history []porcupine.Operation
	put := func(client int, in touch, out value, call, ret instant) {
		history = append(history, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: int64(call), Return: int64(ret)})
	}
	for _, d := range w.deeds {
		i, ok := d.touches(u, c)
		if !ok || d.none || d.kind == doRead && !d.answered {
			continue
		}
		v := d.values[i]
		in := touch{write: d.kind != doRead, maybe: !d.answered || d.loose && d.kind == doUnmap, value: v}
		switch {
		case d.kind == doCompare && d.differs >= 0:
			switch {
			case i > d.differs:
				continue
			case i < d.differs:
				in, v = touch{}, d.expected[i]
			default:
				in = touch{differs: true, expected: d.expected[i]}
			}
		case d.kind == doCompare && (d.answered || len(d.values) == 1):
			in.compare, in.expected = true, d.expected[i]
		}
		put(d.host, in, v, d.call, d.bound)
	}
	for _, s := range w.snapped {
		if v, ok := w.inSnapshot(s, u, c); ok && s.answered {
			put(len(w.hosts)+2, touch{}, v, s.call, s.ret)
		}
	}
	for k, t := range w.revivals {
		put(len(w.hosts), touch{loss: w.left(u, c, k)}, 0, t, t)
	}
	if v, ok := w.nodes[0].pool().content(u, c, ""); ok {
		put(len(w.hosts)+1, touch{}, v, w.now, w.now+1)
	}
	switch porcupine.CheckOperationsTimeout(register(), history, 5*time.Second) {
	case porcupine.Illegal:
		w.fail("cell %d of unit %d is no register", c, u)
		w.explainCell(u, c)
	case porcupine.Unknown:
		w.count.undecided++
	case porcupine.Ok:
	}
}

// explainCell adds a cell's commands to the trace.
func (w *world) explainCell(u, c int) {
	for _, d := range w.deeds {
		i, ok := d.touches(u, c)
		if !ok {
			continue
		}
		end := "never"
		if d.bound != math.MaxInt64 {
			end = seconds(d.bound)
		}
		was := ""
		if d.expected != nil {
			was = fmt.Sprintf(" for %d, differs %d", d.expected[i], d.differs)
		}
		w.note("cell %d: host %d, %s to %s, answered %t, none %t, loose %t: %s %d%s", c, d.host, seconds(d.call), end, d.answered, d.none, d.loose, d.kind, d.values[i], was)
	}
	for _, s := range w.snapped {
		v, ok := w.inSnapshot(s, u, c)
		w.note("cell %d: snapshot %s, %s to %s, answered %t: %d, there %t", c, s.name, seconds(s.call), seconds(s.ret), s.answered, v, ok)
	}
	for _, n := range w.nodes[:2] {
		v, ok := n.pool().content(u, c, "")
		w.note("cell %d: %s has %d, %t", c, memberOf(n.index), v, ok)
	}
}

// left lists what a cell may hold after the k-th time that every memory was lost.
func (w *world) left(u, c, k int) (out []value) {
	after, t := instant(-1), w.revivals[k]
	if k > 0 {
		after = w.revivals[k-1]
	}
	flushed := instant(-1)
	for _, d := range w.deeds {
		if d.kind == doFlush && d.answered && d.ret <= t {
			flushed = max(flushed, d.call)
		}
	}
	latest := instant(-1) // call of the last write that is stable
	for _, d := range w.deeds {
		if _, ok := d.touches(u, c); !ok || !d.writes() || d.none || !d.answered || d.differs >= 0 || d.loose || d.call <= after || d.ret > t {
			continue
		}
		if d.ret <= flushed || d.alone || d.fua && (d.kind == doWrite || d.kind == doCompare) {
			latest = max(latest, d.call)
		}
	}
	switch {
	case latest >= 0:
	case k > 0:
		out = w.left(u, c, k-1)
	default:
		out = append(out, 0)
	}
	for _, d := range w.deeds {
		i, ok := d.touches(u, c)
		if ok && d.writes() && !d.none && d.differs < 0 && d.call <= t && (!d.answered || d.ret > after) && !(d.answered && d.ret < latest) {
			out = append(out, d.values[i])
		}
	}
	return out
}

// oneWinner holds that of those who broke the lock from one state one did.
func (w *world) oneWinner() {
	won := map[value]*deed{}
	for _, d := range w.deeds {
		if d.kind != doCompare || d.unit != 0 || d.cell != 0 || !d.answered || d.differs >= 0 {
			continue
		}
		w.count.locks++
		if e := d.expected[0]; e != 0 {
			if o := won[e]; o != nil {
				w.fail("host %d at %s and host %d at %s both took the lock of %d", o.host, seconds(o.ret), d.host, seconds(d.ret), e)
			}
			won[e] = d
		}
	}
}

// snapped is a snapshot of both units, as the administrator saw it.
type snapped struct {
	name      string
	call, ret instant
	answered  bool
	refused   bool
	deleted   bool // its deletion was asked for
}

// inSnapshot returns what a snapshot has of a cell, on the first node that has it.
func (w *world) inSnapshot(s *snapped, u, c int) (value, bool) {
	for _, n := range w.nodes[:2] {
		if slices.Contains(n.pool().snapshots(volumeNames[uint32(u+1)]), s.name) {
			return n.pool().content(u, c, s.name)
		}
	}
	return 0, false
}

// cuts holds that each snapshot is of one moment, over all units: whoever wrote what
// it has, what was answered before that was asked for is in it, too.
func (w *world) cuts() {
	for _, s := range w.snapped {
		if s.refused {
			continue
		}
		latest := instant(-1)
		has := map[[2]int]value{}
		for u := range dataVolumes {
			for c := range w.cells() {
				v, ok := w.inSnapshot(s, u, c)
				if !ok {
					continue
				}
				has[[2]int{u, c}] = v
				if v == 0 {
					continue
				}
				for _, d := range w.deeds {
					if i, ok := d.touches(u, c); ok && d.writes() && !d.none && d.values[i] == v {
						latest = max(latest, d.call)
					}
				}
			}
		}
		if len(has) > 0 {
			w.count.cutsJudged++
			w.cutAt(s, latest, has)
		}
	}
}

// cutAt holds that all that was answered before an instant is in a snapshot. It is when
// the newest write in the snapshot was asked for: the snapshot was taken after that, and
// one that lacks what was there before is of two moments.
func (w *world) cutAt(s *snapped, latest instant, has map[[2]int]value) {
	if slices.ContainsFunc(w.revivals, func(t instant) bool { return t <= latest }) {
		return // what was answered may be gone
	}
	for u := range dataVolumes {
		for c := range w.cells() {
			v, ok := has[[2]int{u, c}]
			if !ok {
				continue
			}
			newest := instant(-1) // call of the last write that ended before
			written := instant(-1)
			for _, d := range w.deeds {
				i, ok := d.touches(u, c)
				if !ok || !d.writes() || d.none || d.differs >= 0 {
					continue
				}
				if d.answered && !d.loose && d.ret < latest {
					newest = max(newest, d.call)
				}
				if d.values[i] == v {
					written = max(written, d.bound)
				}
			}
			if written < newest && newest >= 0 {
				w.fail("snapshot %s has %d in cell %d of unit %d, which was overwritten at %s, and something that was written at %s", s.name, v, c, u, seconds(newest), seconds(latest))
			}
		}
	}
}

// content reads a cell of this node's copy, or of a snapshot. ok is false when
// it cannot be read.
func (p *pool) content(u, c int, snapshot string) (v value, ok bool) {
	lba, _ := p.world.lba(c)
	b := bufpool.Get(sector)
	defer bufpool.Put(b)
	name := volumeNames[uint32(u+1)]
	vol := p.views[name+"@"+snapshot]
	if vol == nil {
		var err error
		if snapshot == "" {
			vol, err = p.OpenVolume(name)
		} else {
			vol, err = p.OpenSnapshot(name, snapshot)
		}
		if err != nil {
			return 0, false
		}
		if p.views == nil {
			p.views = map[string]*store.Volume{}
		}
		p.views[name+"@"+snapshot] = vol
	}
	if err := vol.ReadAt(b, int64(lba)*sector); err != nil {
		return 0, false
	}
	v, whole := valueOf(b)
	if !whole {
		p.world.fail("a sector of cell %d of unit %d is torn on %s", c, u, memberOf(p.index))
	}
	return v, true
}

// same holds that both nodes have the same: volumes, and snapshots that both have.
func (w *world) same() {
	a, b := w.nodes[0].pool(), w.nodes[1].pool()
	for _, number := range slices.Sorted(maps.Keys(volumeNames)) {
		w.sameContent(a, b, volumeNames[number], "")
	}
	w.samePoolSnapshots(a, b)
	for v := uint32(1); v <= dataVolumes; v++ {
		for _, s := range a.snapshots(volumeNames[v]) {
			if s == keptName {
				w.fail("%s keeps the state from before a resync that has ended", memberOf(0))
			}
			if !slices.Contains(b.snapshots(volumeNames[v]), s) {
				w.count.lone++ // it could not be read whole
				continue
			}
			w.count.snapshots++
			w.sameContent(a, b, volumeNames[v], s)
		}
	}
	w.wholeSnapshots(a)
}

// wholeSnapshots holds that a snapshot is one of each volume or of none, whatever
// crashed when it was taken, deleted or made by a resync; and that one is there when
// that was answered.
func (w *world) wholeSnapshots(p *pool) {
	for _, s := range w.snapped {
		there := 0
		for v := uint32(1); v <= dataVolumes; v++ {
			if slices.Contains(p.snapshots(volumeNames[v]), s.name) {
				there++
			}
		}
		switch {
		case there == dataVolumes || s.deleted && there == 0 || s.refused && there == 0:
		case s.answered && !s.deleted && w.count.lies == 0 && !w.unreadable[value(momentOf(s.name))] && len(w.revivals) == 0:
			w.fail("snapshot %s was taken, and %s has %d of its %d parts", s.name, memberOf(p.index), there, dataVolumes)
		case there > 0 && w.count.lies == 0 && !w.unreadable[value(momentOf(s.name))]:
			w.fail("snapshot %s is on %s of %d of the %d volumes", s.name, memberOf(p.index), there, dataVolumes)
		}
	}
}

// sameContent compares all that either node has of a volume.
func (w *world) sameContent(a, b *pool, name, snapshot string) {
	parts := map[int64]bool{}
	for _, p := range []*pool{a, b} {
		err := p.Changed(name, "", snapshot, func(r store.Range) bool {
			for off := r.Offset / block.BlockSize; off < (r.Offset+r.Length+block.BlockSize-1)/block.BlockSize; off++ {
				parts[off] = true
			}
			return true
		})
		if err != nil {
			w.fail("%s of %s cannot be listed: %v", name, memberOf(p.index), err)
			return
		}
	}
	var views [2]*store.Volume
	for i, p := range []*pool{a, b} {
		var err error
		if snapshot == "" {
			views[i], err = p.OpenVolume(name)
		} else {
			views[i], err = p.OpenSnapshot(name, snapshot)
		}
		if err != nil {
			w.fail("%s of %s cannot be opened: %v", name, memberOf(i), err)
			return
		}
	}
	x, y := bufpool.Get(block.BlockSize), bufpool.Get(block.BlockSize)
	defer bufpool.Put(x)
	defer bufpool.Put(y)
	for _, at := range slices.Sorted(maps.Keys(parts)) {
		ex, ey := views[0].ReadAt(x, at*block.BlockSize), views[1].ReadAt(y, at*block.BlockSize)
		switch {
		case fault.Is(ex, fault.Corrupt) != fault.Is(ey, fault.Corrupt) && snapshot == "":
			w.fail("block %d of %s cannot be read on one node, and was not healed: %v, %v", at, name, ex, ey)
		case ex != nil || ey != nil:
			w.count.unread++
		case !bytes.Equal(x, y):
			v, _ := valueOf(x[:sector])
			u, _ := valueOf(y[:sector])
			w.fail("block %d of %s@%s differs: it begins with %d on a, %d on b", at, name, snapshot, v, u)
		}
	}
}
