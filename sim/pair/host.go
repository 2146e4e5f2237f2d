package pair

import (
	"encoding/binary"
	"fmt"
	"time"

	"steadfast/scsi"
)

// Hosts are the clients of the units' family. What they ask for is in command.go and
// fence.go, and what is held of what they saw in deeds.go. They only know what an
// initiator could: answers, sense data, resets, and what is in blocks.

// host is an initiator. It logs in to the alias, wherever that is, and sends one
// command at a time. When an answer does not come, or the connection is reset, it
// logs in anew.
type host struct {
	world   *world
	index   int
	session int
	in      *node // where it is logged in, or nil
	left    int   // commands to go
	open    int   // index of the command under way in world.deeds, or -1
	stopped bool
	reads   bool // it never writes, except to register
	fence   fence
	again   *deed // to be asked once more: it was not done
}

func (h *host) name() string { return fmt.Sprintf("iqn.2026-11.io.example:h%d", h.index) }

// kind is what a command does.
type kind uint8

const (
	doRead kind = iota + 1
	doWrite
	doCompare
	doFlush
	doSame   // WRITE SAME, of one value or of zeros
	doUnmap  // UNMAP
	doReset  // LOGICAL UNIT RESET
	doPR     // PERSISTENT RESERVE OUT
	doKeys   // PERSISTENT RESERVE IN
	doAction // a snapshot, by the administrator
)

func (k kind) String() string {
	return [...]string{"", "read", "write", "compare", "flush", "same", "unmap", "reset", "pr-out", "pr-in", "action"}[k]
}

// deed is a command as its host saw it.
type deed struct {
	host     int
	kind     kind
	unit     int
	cell     int // first of the unit's cells
	values   []value
	expected []value
	fua      bool
	call     instant
	ret      instant // of an answered one
	answered bool
	none     bool    // it was refused: nothing of it was done
	bound    instant // it was done before, if at all; judge finds it
	alone    bool    // a set of one did it, which writes through
	differs  int     // of a compare: the first cell that differs, or -1
	loose    bool    // of an unmap, or of several operations: each cell was done or not
	abort    bool    // it is to be aborted
	ended    instant // by then a function or a preemption has ended it; 0: none
	arrived  bool
	action   action
	keys     []uint64
	conflict bool
}

func (d *deed) writes() bool {
	return d.kind == doWrite || d.kind == doCompare || d.kind == doSame || d.kind == doUnmap
}

// Cells are what is judged: sectors at the front of each unit, and pieces behind
// that are written as one.
func (w *world) cells() int { return w.cfg.hot + w.cfg.pieces }

const pieceSectors = 1024 // 512 KiB: one operation of the mirror, and of a store

// lba returns where a cell begins, and how many sectors it has.
func (w *world) lba(cell int) (lba uint64, n int) {
	if cell < w.cfg.hot {
		return uint64(cell), 1
	}
	return uint64(1+cell-w.cfg.hot) * pieceSectors, pieceSectors
}

func (h *host) think() {
	w := h.world
	if h.left <= 0 || h.stopped {
		h.stopped = true
		return
	}
	w.after(w.between(0, w.cfg.think), h.ask)
}

// ask begins a command, when the host is logged in.
func (h *host) ask() {
	w := h.world
	if h.in == nil {
		h.login()
		return
	}
	h.left--
	d := h.again
	if d == nil {
		d = h.choose()
	}
	h.again = nil
	d.host, d.call, d.differs = h.index, w.now, -1
	w.count.operations++
	w.deeds = append(w.deeds, d)
	h.open = len(w.deeds) - 1
	h.send(d)
}

// login asks for a session at the alias, again and again.
func (h *host) login() {
	w := h.world
	h.session++
	session := h.session
	w.after(w.delay(), func() {
		n := w.atAlias()
		if n == nil {
			return
		}
		n.in(n.life, func() {
			if s := n.service; s != nil && s.open {
				n.fork(func() { s.login(h, session) })
			}
		})
	})
	w.after(w.between(50*time.Millisecond, 250*time.Millisecond), func() {
		if h.in == nil && h.session == session {
			h.login()
		}
	})
}

func (h *host) loggedIn(n *node, session int) {
	if h.session != session || h.in != nil {
		return
	}
	h.in = n
	h.world.count.logins++
	h.think()
}

// giveUp leaves the command without an answer and logs in anew.
func (h *host) giveUp() {
	w := h.world
	h.in = nil
	h.session++
	if h.open >= 0 {
		d := w.deeds[h.open]
		h.open = -1
		w.count.unanswered++
		h.unknown(d)
	}
	w.after(w.between(0, 50*time.Millisecond), h.think)
}

// send puts the command to the alias.
func (h *host) send(d *deed) {
	w := h.world
	session, at, open := h.session, h.in, h.open
	w.after(w.delay(), func() {
		n := w.atAlias()
		if n == nil {
			return
		}
		n.in(n.life, func() { n.command(h, session, d) })
	})
	if d.abort {
		w.after(w.between(0, 3*time.Millisecond), func() { h.abortTask(d, session, open, at) })
	}
	w.after(w.cfg.patience, func() {
		if h.session == session && h.open == open {
			h.giveUp()
		}
	})
}

// reset tells that the connection is no more: a node knows nothing of it.
func (h *host) reset(session int) {
	if h.session == session && h.in != nil {
		h.giveUp()
	}
}

// command takes a command at a node.
func (n *node) command(h *host, session int, d *deed) {
	s := n.service
	late := n.world.cfg.mutant("late-session")
	if s == nil || s.sessions[h.index] == nil || s.sessions[h.index].number != session && !late || s.sessions[h.index].ending {
		if n.answers() {
			n.world.after(n.world.delay(), func() { h.reset(session) })
		}
		return
	}
	x := s.sessions[h.index]
	d.arrived = true
	if (d.kind == doReset || d.kind == doPR && d.action.verb == prPreempt) && n.world.cfg.mutant("left-behind") {
		n.leaveBehind(d)
	}
	if d.kind == doReset {
		n.manage(x, d, scsi.LogicalUnitResetFunction, 0)
		return
	}
	t := n.world.task(d)
	t.Tag = uint32(h.open + 1)
	x.execute(t, d.unit, func(k *task, answered bool) {
		if answered {
			d.alone = k.alone && k.parts > 0
			d.loose = d.loose || k.parts > 1
			s.reply(x, func() { h.answered(session, d, t) })
		}
	})
}

// leaveBehind has what other hosts do in a unit return before it has landed.
func (n *node) leaveBehind(d *deed) {
	for _, c := range n.behind {
		if c.host != d.host {
			c.finish(errDamaged)
		}
	}
	n.behind = nil
}

// manage does a task management function. What it ends had come before.
func (n *node) manage(x *session, d *deed, f scsi.Function, tag uint32) {
	w, s, h := n.world, n.service, x.host
	session := x.number
	var hit []*deed
	for _, o := range w.deeds {
		if o.arrived && !o.answered && o.unit == d.unit && o.ended == 0 && o.writes() && (f != scsi.AbortTask || o == d) {
			hit = append(hit, o)
		}
	}
	n.fork(func() {
		lun := scsi.MakeLUN(d.unit + 1)
		answer := x.port.Manage(f, lun, tag)
		s.reply(x, func() { h.managed(session, d, f, answer, hit) })
	})
}

// managed takes the answer to a task management function.
func (h *host) managed(session int, d *deed, f scsi.Function, answer scsi.FunctionResponse, hit []*deed) {
	w := h.world
	if h.session != session || h.open < 0 || w.deeds[h.open] != d || answer != scsi.FunctionComplete {
		return
	}
	for _, o := range hit {
		if o.ended == 0 {
			o.ended = w.now
		}
	}
	if f == scsi.AbortTask {
		w.count.aborted++
		h.unknown(d)
	} else {
		w.count.lunResets++
		d.answered, d.ret = true, w.now
	}
	h.open = -1
	h.think()
}

func (h *host) abortTask(d *deed, session, open int, at *node) {
	w := h.world
	if h.session != session || h.open != open {
		return
	}
	n := w.atAlias()
	if n == nil || n != at {
		return
	}
	n.in(n.life, func() {
		if s := n.service; s != nil && s.sessions[h.index] != nil && s.sessions[h.index].number == session && !s.sessions[h.index].ending && d.arrived {
			n.manage(s.sessions[h.index], d, scsi.AbortTask, uint32(open+1))
		}
	})
}

// answered takes an answer.
func (h *host) answered(session int, d *deed, t *scsi.Task) {
	w := h.world
	if h.session != session || h.open < 0 || w.deeds[h.open] != d {
		return
	}
	h.open = -1
	w.note("host %d has its answer to %s of cell %d of unit %d: %s", h.index, d.kind, d.cell, d.unit, verdict(t))
	d.ret = w.now
	h.judgeAnswer(d, t)
	if t.Release != nil {
		t.Release()
	}
	h.think()
}

// judgeAnswer notes what an answer means.
func (h *host) judgeAnswer(d *deed, t *scsi.Task) {
	w := h.world
	check, _ := scsi.DecodeSense(t.Sense)
	switch {
	case t.Status == scsi.Good:
		d.answered = true
		h.good(d, t)
	case t.Status == scsi.ReservationConflict:
		d.none, d.conflict = true, true
		w.count.conflicts++
		h.conflicted(d)
	case t.Status != scsi.CheckCondition: // TASK ABORTED: it was done or not
		h.unknown(d)
	case check.Key == scsi.KeyUnitAttention:
		w.count.attentions++
		d.none = true
		if h.left++; w.chance(0.9) {
			c := *d
			c.none, c.answered, c.arrived, c.ret = false, false, false, 0
			h.again = &c
		}
	case check.Key == scsi.KeyNotReady:
		d.none = true
	case check.Key == scsi.KeyMiscompare:
		d.answered, d.differs = true, int(check.Information)/sector
		w.count.differed++
		w.learn(d)
	case check.Key == scsi.KeyDataProtect:
		w.count.refused++
		d.none = !d.loose
		h.unknown(d)
	default:
		w.count.damaged++
		h.unknown(d)
	}
}

// good takes what a command that was done says.
func (h *host) good(d *deed, t *scsi.Task) {
	w := h.world
	switch d.kind {
	case doRead:
		if d.cell >= w.cfg.hot {
			v, ok := valueOf(t.DataIn[:sector])
			if !ok {
				w.fail("a sector of piece %d is torn", d.cell)
			}
			d.values[0] = v
			break
		}
		for i := range d.values {
			v, ok := valueOf(t.DataIn[i*sector : (i+1)*sector])
			if !ok {
				w.fail("sector %d of unit %d is torn", d.cell+i, d.unit)
			}
			d.values[i] = v
		}
	case doCompare:
		w.count.compared++
	case doPR:
		h.reserved(d)
	case doKeys:
		n := binary.BigEndian.Uint32(t.DataIn[4:]) / 8
		for i := range n {
			d.keys = append(d.keys, binary.BigEndian.Uint64(t.DataIn[8+8*i:]))
		}
	default:
	}
	w.learn(d)
}

// learn notes what some host last saw of cells: compares expect it.
func (w *world) learn(d *deed) {
	if d.differs >= 0 || d.kind != doRead && !d.writes() {
		return
	}
	for i, v := range d.values {
		w.seen[d.unit*w.cells()+d.cell+i] = v
	}
}

func verdict(t *scsi.Task) string {
	if t.Status == scsi.CheckCondition {
		if c, ok := scsi.DecodeSense(t.Sense); ok {
			return fmt.Sprintf("%xh/%02xh/%02xh", c.Key, c.ASC, c.ASCQ)
		}
	}
	return fmt.Sprintf("status %02xh", uint8(t.Status))
}
