package lun

import (
	"sync"
	"sync/atomic"

	"steadfast/fault"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// attributeName is under what name a volume keeps its reservations (APTPL).
const attributeName = "scsi-reservations"

// unit is one logical unit.
type unit struct {
	srv *Server
	id  [16]byte
	// device is the volume; ReplaceVolume changes it.
	device atomic.Pointer[Volume]
	// stopWatch ends the volume's reports. Under persist.
	stopWatch func()

	blocks    atomic.Uint64 // capacity in logical blocks
	protected atomic.Bool   // the volume is read-only, or SWP is set
	sense     atomic.Bool   // D_SENSE
	count     counters

	// persist serialises changes of reservations and of mode pages with their
	// being stored, so that what is on disk never lags behind an answer, nor
	// overtakes it.
	persist sync.Locker

	mu      sync.Mutex
	changed Cond // the task set changed
	set     taskSet
	nexuses map[*itl]struct{}
	mode    scsi.Mode // WriteCache is the volume's
	pr      reserve.State
	legacy  *itl // who holds what RESERVE(6) reserved
	// greeting is what every nexus is told when it begins, and returning what
	// those are still to be told which are away.
	greeting  attention
	returning map[reserve.Nexus]attention
	closed    bool // it is no unit any more, and takes no task
}

// vol returns the volume that the unit has now. What holds on to it may find it
// replaced: then it fails as the former one does.
func (u *unit) vol() Volume { return *u.device.Load() }

// newUnit returns the unit of a volume, with what is kept with it. Fails as
// load does.
func newUnit(s *Server, v Volume) (*unit, error) {
	k, err := load(v)
	if err != nil {
		return nil, err
	}
	u := &unit{srv: s, id: v.ID(), nexuses: map[*itl]struct{}{}, persist: s.waits.Lock()}
	u.changed = s.waits.Cond(&u.mu)
	u.set.tasks.prev, u.set.tasks.next = &u.set.tasks, &u.set.tasks
	u.device.Store(&v)
	u.mu.Lock()
	u.adopt(k)
	u.mu.Unlock()
	u.watch(v)
	return u, nil
}

// watch begins to follow what v reports. Under persist, or before anyone else
// knows the unit.
func (u *unit) watch(v Volume) {
	u.stopWatch = v.Watch(u.event)
	u.reload() // and what was before
}

// reload reads what the volume says about itself.
func (u *unit) reload() {
	u.blocks.Store(blocksOf(u.vol()))
	u.mu.Lock()
	u.protected.Store(u.vol().ReadOnly() || u.mode.SoftwareProtect)
	u.mu.Unlock()
}

// event passes on what the volume reports. It does not block.
func (u *unit) event(e Event) {
	before := u.blocks.Load()
	u.reload()
	a := modeChanged
	switch e {
	case Resized:
		a = capacityChanged
	case Threshold:
		a = thresholdReached
	case Replaced:
		a = mediumChanged
	case Changed:
	}
	if u.blocks.Load() != before {
		a |= capacityChanged // a rollback may also bring back another size
	}
	attend(u.all(nil), a)
}

// all lists the unit's nexuses, but for except.
func (u *unit) all(except *itl) []*itl {
	u.mu.Lock()
	defer u.mu.Unlock()
	list := make([]*itl, 0, len(u.nexuses))
	for i := range u.nexuses {
		if i != except {
			list = append(list, i)
		}
	}
	return list
}

// attach makes i a nexus of its unit, with what such a one is told first.
// Without unit.mu.
func (i *itl) attach() {
	u := i.unit
	u.mu.Lock()
	i.raise(u.welcome(i.nexus))
	u.nexuses[i] = struct{}{}
	u.allow(i) // the others may what they might before
	u.mu.Unlock()
}

// refresh tells every nexus what it may do now. Under mu.
func (u *unit) refresh() {
	for i := range u.nexuses {
		u.allow(i)
	}
}

// allow tells one nexus what it may do now. Under mu.
func (u *unit) allow(i *itl) {
	var d uint32
	access := u.pr.Access(i.nexus)
	if !access.Read {
		d |= denyRead
	}
	if !access.Write {
		d |= denyWrite
	}
	if u.legacy != nil && u.legacy != i {
		d |= denyLegacy
	}
	if i.readOnly {
		d |= denyProtect
	}
	if i.access != scsi.ActiveOptimized && i.access != scsi.ActiveNonOptimized || u.elsewhere() {
		d |= denyAccess
	}
	i.denied.Store(d)
}

// reset is LOGICAL UNIT RESET: all tasks end, what RESERVE(6) reserved is
// free, mode pages are as they were made; persistent reservations stay. Every
// nexus hears of it. It returns false when the mode pages could not be saved:
// they are as before then. SAM-5, 6.3.3.
func (u *unit) reset(by *port) bool {
	done, brought := u.beginReset(by)
	brought()
	return done
}

// beginReset is reset but for the wait until nexuses of other nodes were told,
// which is brought.
func (u *unit) beginReset(by *port) (done bool, brought func()) {
	u.abort(by, func(*task) bool { return true })
	done, brought = u.resetMode(), func() {}
	if !by.far { // who passed it on tells its own
		u.persist.Lock()
		brought = u.tellAway(everyone(resetOccurred, reserve.Nexus{}))
		u.persist.Unlock()
	}
	u.mu.Lock()
	u.legacy = nil
	u.refresh()
	u.mu.Unlock()
	u.reload()
	attend(u.all(nil), resetOccurred)
	return done, brought
}

// resetMode makes the mode pages what they are by default.
func (u *unit) resetMode() bool {
	u.persist.Lock()
	defer u.persist.Unlock()
	u.mu.Lock()
	old := u.mode
	u.mu.Unlock()
	if old.WriteCache = false; old == (scsi.Mode{}) {
		return true
	}
	if u.keepMode(scsi.Mode{}) != nil {
		return false
	}
	u.mu.Lock()
	u.mode = scsi.Mode{}
	u.sense.Store(false)
	u.mu.Unlock()
	return true
}

// cleared tells other nexuses that tasks of theirs were ended by a function
// that reaches across nexuses, unless the tasks' answers do (TAS).
// SAM-5, 5.6.2.
func (a aborting) cleared(by *port) {
	a.unit.mu.Lock()
	tas := a.unit.mode.TaskAborted
	a.unit.mu.Unlock()
	if tas {
		return
	}
	for _, i := range a.hit {
		if i.port != by {
			i.raise(commandsCleared)
			i.tell()
		}
	}
}

// close ends the unit; its nexuses must be gone. It returns when nothing that
// other nodes passed on is left.
func (u *unit) close() {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	u.abort(nil, func(*task) bool { return true })
	u.persist.Lock()
	defer u.persist.Unlock()
	u.stopWatch()
}

// clearReservations takes every registration and reservation off the unit, for
// an administrator whose host died holding one.
func (u *unit) clearReservations() error {
	brought := func() {}
	defer func() { brought() }()
	u.persist.Lock()
	defer u.persist.Unlock()
	if u.elsewhere() {
		return fault.New(fault.Fenced, "volume %s is served by another node: clear its reservations there", u.vol().Name())
	}
	u.mu.Lock()
	old := u.pr
	var told []reserve.Notice
	for _, r := range old.Registrations {
		told = append(told, reserve.Notice{To: r.Nexus, What: reserve.ReservationsPreempted})
	}
	u.mu.Unlock()
	next := reserve.State{Generation: old.Generation + 1}
	if err := u.keep(old, next, told); err != nil {
		return err
	}
	u.mu.Lock()
	u.pr = next
	u.legacy = nil
	u.refresh()
	away := u.notify(told)
	u.mu.Unlock()
	brought = u.tellAway(away)
	attend(u.all(nil), reservationsPreempted)
	return nil
}
