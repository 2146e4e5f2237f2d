package lun

import (
	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// returningMax bounds the nexuses that are away for which a unit keeps what
// they are to be told when they come back.
const returningMax = 1024

// kept is what was found beside a volume.
type kept struct {
	unitState
	// carried: another may have served the unit before us, so that its
	// initiators have lost their nexuses, and the unit has not lost power.
	carried bool
	// resized: the capacity is another than when the state was saved.
	resized bool
}

// load reads what is kept with a volume. To serve the volume without
// reservations that cannot be read could let a fenced host write, so then it
// fails.
func load(v Volume) (kept, error) {
	var k kept
	var err error
	switch keeper, ok := v.(StateKeeper); {
	case isStandby(v):
		return kept{carried: true}, nil // its state is read when it is asked for
	case ok:
		k, err = loadState(v, keeper)
	default:
		k.reservations, err = loadAttribute(v)
	}
	if err != nil {
		return kept{}, fault.Wrap(fault.KindOf(err), err, "reservations of volume "+v.Name())
	}
	return k, nil
}

// loadState reads the state of a StateKeeper. When it tells another capacity
// than there is, or when there is none yet, it is saved as it is now: from then
// on whoever takes the unit over knows that it has been served before.
func loadState(v Volume, keeper StateKeeper) (k kept, err error) {
	b, err := keeper.LoadState()
	if err != nil {
		return k, err
	}
	if len(b) > 0 {
		if k.unitState, err = decodeState(b); err != nil {
			return k, err
		}
	}
	// A place may have been another volume's before: not ours then.
	k.carried = len(b) > 0 && k.volume == v.ID()
	now := k.unitState
	if !k.carried {
		// A volume that was none of a StateKeeper brings its attribute along. It
		// is deleted, lest it come back one day as if it were new.
		k.unitState = unitState{}
		if k.reservations, err = loadAttribute(v); err != nil {
			return k, err
		}
		now = k.unitState
	}
	now.volume, now.blocks = v.ID(), blocksOf(v)
	k.resized = k.carried && k.blocks != now.blocks
	if k.carried && !k.resized {
		return k, nil
	}
	if err := saveState(keeper, now, now.reservations.Persist); err != nil {
		return k, err
	}
	if !k.carried && now.reservations.Persist {
		return k, v.SetAttribute(attributeName, nil)
	}
	return k, nil
}

// loadAttribute reads what APTPL kept with a volume.
func loadAttribute(v Volume) (reserve.State, error) {
	b, err := v.Attribute(attributeName)
	if err != nil || b == nil {
		return reserve.State{}, err
	}
	return reserve.Decode(b)
}

// blocksOf returns a volume's capacity in logical blocks.
func blocksOf(v Volume) uint64 { return uint64(v.Size() / block.SectorSize) }

// adopt puts what was kept in force, for the volume that the unit has. Nexuses
// that are there already have lost what another node knew of them. Under mu.
func (u *unit) adopt(k kept) {
	u.mode, u.pr, u.legacy = k.mode, k.reservations, nil
	u.sense.Store(k.mode.DescriptorSense)
	u.greeting, u.returning = powerOn, map[reserve.Nexus]attention{}
	if k.carried {
		u.greeting = nexusLost
	}
	if k.resized {
		// Whoever saw it change may not have lived to say so.
		u.greeting |= capacityChanged
	}
	for _, n := range k.nexuses {
		u.returning[n.nexus] = n.pending
	}
	for i := range u.nexuses {
		i.raise(u.welcome(i.nexus))
	}
	u.refresh()
}

// welcome returns what a nexus is to be told when it begins. Under mu.
func (u *unit) welcome(n reserve.Nexus) attention {
	a := u.greeting | u.returning[n]
	delete(u.returning, n)
	return a
}

// state returns the unit's state as it is with a mode, with reservations and
// after notices. Under mu.
func (u *unit) state(m scsi.Mode, pr reserve.State, notices []reserve.Notice) unitState {
	st := unitState{volume: u.id, blocks: u.blocks.Load(), mode: m, reservations: pr}
	pending := make(map[reserve.Nexus]attention, len(u.returning)+len(u.nexuses))
	for n, a := range u.returning {
		pending[n] = a
	}
	for i := range u.nexuses {
		pending[i.nexus] |= attention(i.set.Load())
	}
	for _, n := range notices {
		pending[n.To] |= noticed[n.What]
	}
	for n, a := range pending {
		st.nexuses = append(st.nexuses, nexusState{n, a})
	}
	return st
}

// keep stores a change of reservations, before it is in force: all of the
// unit's state with a StateKeeper, and else what is to outlive a loss of power.
// It changes nothing in the unit. Under persist, without mu.
func (u *unit) keep(old, next reserve.State, notices []reserve.Notice) error {
	durable := old.Persist || next.Persist
	if keeper, ok := u.vol().(StateKeeper); ok {
		u.mu.Lock()
		st := u.state(u.mode, next, notices)
		u.mu.Unlock()
		return saveState(keeper, st, durable)
	}
	if !durable {
		return nil
	}
	var value []byte
	if next.Persist {
		var err error
		if value, err = reserve.Encode(next); err != nil {
			return err
		}
	}
	return u.vol().SetAttribute(attributeName, value)
}

// keepMode stores a change of mode pages with a StateKeeper. It need not
// outlive a loss of power: the state before it has the same reservations.
// Under persist, without mu.
func (u *unit) keepMode(m scsi.Mode) error {
	keeper, ok := u.vol().(StateKeeper)
	if !ok {
		return nil
	}
	u.mu.Lock()
	st := u.state(m, u.pr, nil)
	u.mu.Unlock()
	return saveState(keeper, st, false)
}

func saveState(keeper StateKeeper, st unitState, durable bool) error {
	b, err := encodeState(st)
	if err != nil {
		return err
	}
	return keeper.SaveState(b, durable)
}

// refusal turns an error of storing a unit's state into what the initiator is
// told: what has no room is for a want of registration resources.
func refusal(err error) *scsi.Check {
	switch {
	case err == nil:
		return nil
	case fault.Is(err, fault.Limit):
		return verdict(reserve.NoResources)
	}
	return failed(err, -1)
}

// notify raises what a change of reservations has nexuses told; one that is
// away is told when it comes back, where a state is kept at all, or before by
// another node that it comes to: notify returns what there is for such. Under mu.
func (u *unit) notify(notices []reserve.Notice) (away []Notice) {
	_, keeps := u.vol().(StateKeeper)
	for _, n := range notices {
		here := false
		for i := range u.nexuses {
			if i.nexus == n.To {
				i.raise(noticed[n.What])
				here = true
			}
		}
		if here || !keeps {
			continue
		}
		told := noticeOf(noticed[n.What])
		told.To = n.To
		away = append(away, told)
		if len(u.returning) < returningMax {
			u.returning[n.To] |= noticed[n.What]
		}
	}
	return away
}

// errStandby is that another node serves a unit: only it can change its state.
var errStandby = scsi.Fail(scsi.KeyNotReady, 0x04, 0x0b)

// told returns the mode and reservations that a nexus is to be told of. For a
// unit that another node serves they are those that it saved last.
func (u *unit) told() (scsi.Mode, reserve.State, error) {
	if v, ok := u.vol().(*Standby); ok {
		st, err := v.state()
		return st.mode, st.reservations, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.mode, u.pr, nil
}

// elsewhere reports whether another node serves the unit.
func (u *unit) elsewhere() bool { return isStandby(u.vol()) }

// AddVolume makes v a unit, with the reservations that are kept with it, or
// with all of its state when v is a StateKeeper. Fails with fault.Exists when
// it is one already, with fault.Busy while it is being taken away, and with
// what reading or saving its state gave.
func (s *Server) AddVolume(v Volume) error {
	if err := s.occupy(v.ID(), v.Name(), false); err != nil {
		return err
	}
	defer s.vacate(v.ID())
	u, err := newUnit(s, v)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.units[u.id] = u
	gone, grown := s.remap("")
	s.mu.Unlock()
	s.settle(gone, grown)
	return nil
}

// ReplaceVolume has the unit of v's identifier go on with v in the place of the
// volume that it had, and with the state kept with v: how a unit that
// initiators see on standby ports becomes one that is served here, and the
// other way round. Nexuses stay, and are told that they were lost: what
// RESERVE(6) reserved is free, and tasks in the former volume end with
// what it answers. Access states are SetUnitPorts' to change: before for a node
// that loses a unit, and after for one that gets it. Fails with fault.NotFound,
// fault.Busy, or as AddVolume does, and then changes nothing.
func (s *Server) ReplaceVolume(v Volume) error {
	if err := s.occupy(v.ID(), v.Name(), true); err != nil {
		return err
	}
	defer s.vacate(v.ID())
	u, err := s.unit(v.ID())
	if err != nil {
		return err
	}
	before := u.blocks.Load()
	if err := u.replace(v); err != nil {
		return err
	}
	var a attention
	if u.blocks.Load() != before {
		a = capacityChanged
	}
	attend(u.all(nil), a)
	return nil
}

// replace gives the unit another volume, with what is kept with it. While it
// holds persist no change of the state is under way on the former volume, nor
// begins before the new one's state is in force.
func (u *unit) replace(v Volume) error {
	u.persist.Lock()
	defer u.persist.Unlock()
	k, err := load(v)
	if err != nil {
		return err
	}
	u.stopWatch()
	former := u.standby()
	u.mu.Lock()
	u.device.Store(&v)
	u.adopt(k)
	u.mu.Unlock()
	u.watch(v)
	if former != nil {
		former.end()
	}
	return nil
}

// occupy begins a change of what volume a unit has: one at a time for each.
func (s *Server) occupy(id [16]byte, name string, there bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.changing[id]:
		return fault.New(fault.Busy, "the logical unit of volume %s is just being changed", name)
	case s.units[id] != nil && !there:
		return fault.New(fault.Exists, "volume %s is a logical unit already", name)
	case s.units[id] == nil && there:
		return fault.New(fault.NotFound, "volume %s is no logical unit", name)
	}
	s.changing[id] = true
	return nil
}

// vacate ends what occupy began.
func (s *Server) vacate(id [16]byte) {
	s.mu.Lock()
	delete(s.changing, id)
	s.mu.Unlock()
}
