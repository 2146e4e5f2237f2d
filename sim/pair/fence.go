package pair

import (
	"encoding/binary"
	"math"
	"slices"
	"time"

	"steadfast/scsi"
)

// fenced is the unit that hosts fence each other from, as a cluster's do: who wants
// to write registers; one of them reserves the unit for registrants only; who
// suspects another preempts it and aborts what it has under way. Nobody
// gives the reservation up, so from the first on there always is one.
const fenced = 1

// verb is what a PERSISTENT RESERVE OUT does.
type verb uint8

const (
	prRegister verb = iota + 1
	prReserve
	prPreempt // and abort
)

// action is a PERSISTENT RESERVE OUT.
type action struct {
	verb   verb
	key    uint64 // the host's
	victim int
	aptpl  bool
}

// fence is what a host believes.
type fence struct {
	registered, reserved bool
}

func keyOf(host int) uint64 { return 0xace0 + uint64(host) }

func (a action) encode() (cdb, list []byte) {
	cdb, list = make([]byte, 10), make([]byte, 24)
	cdb[0] = byte(scsi.OpPersistentOut)
	binary.BigEndian.PutUint32(cdb[5:], 24)
	switch a.verb {
	case prRegister:
		cdb[1] = 0x06
		binary.BigEndian.PutUint64(list[8:], a.key)
		if a.aptpl {
			list[20] = 1
		}
	case prReserve:
		cdb[1], cdb[2] = 0x01, 0x05
		binary.BigEndian.PutUint64(list, a.key)
	case prPreempt:
		cdb[1], cdb[2] = 0x05, 0x05
		binary.BigEndian.PutUint64(list, a.key)
		binary.BigEndian.PutUint64(list[8:], keyOf(a.victim))
	}
	return cdb, list
}

// fencing draws a command about reservations, or none.
func (h *host) fencing(d *deed) bool {
	w := h.world
	d.kind, d.action = doPR, action{key: keyOf(h.index), aptpl: w.cfg.aptpl}
	switch {
	case w.chance(0.05):
		d.kind = doKeys
	case h.reads:
		return false
	case !h.fence.registered && w.chance(0.6):
		d.action.verb = prRegister
	case h.fence.registered && !h.fence.reserved:
		d.action.verb = prReserve
	case h.fence.registered && w.chance(0.08):
		d.action.verb, d.action.victim = prPreempt, w.rand.IntN(len(w.hosts)-1)
		if d.action.victim >= h.index {
			d.action.victim++
		}
	default:
		return false
	}
	return true
}

// reserved takes the answer GOOD.
func (h *host) reserved(d *deed) {
	w := h.world
	switch d.action.verb {
	case prRegister:
		w.count.registered++
		h.fence.registered = true
	case prReserve:
		w.count.reserved++
		h.fence.reserved = true
	case prPreempt:
		w.count.preempted++
	}
	if d.action.aptpl && !w.calm && w.chance(0.03) { // what was answered is to be there
		w.after(w.between(0, 5*time.Millisecond), func() {
			if !w.calm {
				w.blackout(w.between(10*time.Millisecond, 2*time.Second))
			}
		})
	}
}

// conflicted takes RESERVATION CONFLICT.
func (h *host) conflicted(d *deed) {
	if d.unit != fenced {
		h.world.fail("host %d gets a conflict on a unit that nobody reserves", h.index)
	}
	if d.kind == doPR && d.action.verb == prReserve {
		h.fence.reserved = true // another has it
		return
	}
	if d.kind != doPR || d.action.verb != prPreempt {
		h.fence.registered = false
	}
}

// unknown notes that it is not known whether a command was done.
func (h *host) unknown(d *deed) {
	if d.kind == doPR && d.action.verb == prRegister {
		h.fence.registered = false
	}
}

// reservations holds what hosts may rely on, and bounds writes by preemptions that
// were answered. It comes before the registers are judged.
func (w *world) reservations() {
	if !w.cfg.fence {
		return
	}
	var prs []*deed
	held := instant(math.MaxInt64) // the unit surely is reserved from here on
	for _, d := range w.deeds {
		if d.kind != doPR || d.none {
			continue
		}
		prs = append(prs, d)
		if d.answered && d.action.verb == prReserve {
			held = min(held, d.ret)
		}
	}
	for _, p := range prs {
		if p.answered && p.action.verb == prPreempt && p.ret >= held {
			w.excluded(p, prs)
		}
	}
	for _, r := range prs {
		if r.answered && r.action.verb == prRegister {
			w.included(r, prs)
		}
	}
}

// The two judges below see a command as a stretch of time, from its call to the instant
// by which it was done (bound), and say nothing where two of them overlap: then either
// may have come first, and what follows may be right.

// lost tells whether what was answered before from may be gone at some time up to
// to: all nodes had lost what they had in memory.
func (w *world) lost(from, to instant) bool {
	return !w.cfg.aptpl && slices.ContainsFunc(w.revivals, func(t instant) bool { return from <= t && t <= to })
}

// excluded holds that the victim of a preemption writes nothing, from its answer on
// until it asks to be registered anew.
func (w *world) excluded(p *deed, prs []*deed) {
	victim, until := p.action.victim, instant(math.MaxInt64)
	for _, r := range prs {
		if r.host != victim || r.action.verb != prRegister {
			continue
		}
		switch {
		case r.call >= p.ret:
			until = min(until, r.call)
		case r.bound > p.call:
			return // it may have come after the preemption
		}
	}
	for _, d := range w.deeds {
		if d.host != victim || d.unit != fenced || !d.writes() || d.none {
			continue
		}
		if w.lost(p.call, min(d.bound, until)) {
			continue
		}
		switch {
		case d.call > p.ret && d.call < until && d.answered && d.differs < 0:
			w.fail("host %d writes to cell %d at %v, and was fenced at %v", victim, d.cell, seconds(d.call), seconds(p.ret))
		case d.call > p.ret && d.bound <= until && !d.answered:
			d.none = true
			w.count.fencedOff++
		case d.call <= p.ret && !d.answered && d.arrived && (d.ended == 0 || d.ended > p.ret):
			d.ended = p.ret
			w.count.fencedOff++
		}
	}
}

// included holds that a host that is registered is known to be, until somebody
// may have preempted it.
func (w *world) included(r *deed, prs []*deed) {
	until := instant(math.MaxInt64)
	for _, p := range prs {
		if p.action.verb != prPreempt || p.action.victim != r.host {
			continue
		}
		switch {
		case p.call >= r.ret:
			until = min(until, p.call)
		case p.bound > r.call:
			return
		}
	}
	for _, d := range w.deeds {
		if d.unit != fenced || d.call <= r.ret || d.ret >= until || d.ret == 0 || w.lost(r.call, d.ret) {
			continue
		}
		w.count.relied++
		switch {
		case d.host == r.host && d.conflict && (d.writes() || d.kind == doPR && d.action.verb == prRegister):
			w.fail("host %d is registered since %v, and is told of a conflict at %v", r.host, seconds(r.ret), seconds(d.ret))
		case d.kind == doKeys && d.answered && !slices.Contains(d.keys, keyOf(r.host)):
			w.fail("host %d is registered since %v, and its key is not there at %v", r.host, seconds(r.ret), seconds(d.ret))
		}
	}
}
