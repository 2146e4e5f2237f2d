// Package statevol lays out a resource group's state volume: a small volume
// beside the group's own, mirrored like them, that holds what must travel with
// the units when another node takes the group over.
//
//	header   format version, places
//	units    for each unit two slots, written in turn: the state that initiators
//	         can tell of it (package lun: reservations, mode pages, attentions)
//	sessions both ends of each client's connection, for the tickles of who
//	         takes over
//
// A unit's state is the newest whole slot. A save writes the other one, so that
// one which is torn leaves the former. The only slot known to be stable is
// never overwritten: when the newest is not, what is there is flushed first.
// So after a loss of power there is always a state, no older than the last
// durable one, and after anything less than a loss of power the last one
// saved, or the one that was being saved.
//
// The table of sessions is a hint. It is written behind the caller's back,
// without order or durability; a place that does not make sense is free.
//
// It trusts the device to keep what it was given (a store checksums it), to land
// blocks of block.BlockSize whole or not at all, in any order and number until a
// flush, and to serve one State at a time: whoever becomes the owner of a group
// opens it anew. Peek may read beside it.
//
// Locks: each unit's serialises its calls, and is held over the device's; the
// table's is never held over the device's.
package statevol

import (
	"sync"

	"steadfast/block"
	"steadfast/fault"
)

// Bounds.
const (
	// Size is the state volume's length in bytes.
	Size = 16 << 20
	// Units is how many units have a place: 1 to Units.
	Units = 63
	// StateMax bounds a unit's state in bytes.
	StateMax = slotBlocks*block.BlockSize - slotHeader
	// SessionsMax is how many sessions have a place.
	SessionsMax = 4096
)

// State is an open state volume.
type State struct {
	dev      block.Device
	units    [Units]Unit
	sessions Sessions
}

// Open reads a state volume of Size bytes; it formats one that is all zeros.
// Fails with fault.Invalid when the volume is smaller or of another
// version, with fault.Corrupt when it is no state volume, and with the
// device's error. Nothing is changed then.
func Open(dev block.Device) (*State, error) {
	if dev.Size() < Size {
		return nil, fault.New(fault.Invalid, "a state volume of %d bytes, and %d are needed", dev.Size(), Size)
	}
	b := make([]byte, block.BlockSize)
	if err := dev.ReadAt(b, 0); err != nil {
		return nil, fault.Wrap(fault.KindOf(err), err, "state volume")
	}
	fresh, err := checkHeader(b)
	if err != nil {
		return nil, err
	}
	if fresh {
		if err := dev.WriteAt(encodeHeader(), 0, block.FUA); err != nil {
			return nil, fault.Wrap(fault.KindOf(err), err, "format the state volume")
		}
	}
	s := &State{dev: dev}
	for i := range s.units {
		s.units[i] = Unit{dev: dev, number: uint32(i + 1), newest: -1}
	}
	s.sessions.dev = dev
	s.sessions.idle.L = &s.sessions.mu
	if err := s.sessions.load(); err != nil {
		return nil, fault.Wrap(fault.KindOf(err), err, "sessions of the state volume")
	}
	return s, nil
}

// Unit returns the place of a unit, by its volume's number in the group. Fails
// with fault.Limit for one that has none: 0, and those beyond Units.
func (s *State) Unit(n uint32) (*Unit, error) {
	if n < 1 || n > Units {
		return nil, fault.New(fault.Limit, "volume number %d has no place in the state volume (1 to %d)", n, Units)
	}
	return &s.units[n-1], nil
}

// Sessions returns the table of sessions.
func (s *State) Sessions() *Sessions { return &s.sessions }

// Close returns when nothing is being written to the device any more; what the
// table of sessions has not written is dropped. Units are not to be used from
// then on. The device stays open.
func (s *State) Close() { s.sessions.close() }

// Unit keeps one unit's state. It is what lun.StateKeeper asks for.
type Unit struct {
	dev    block.Device
	number uint32

	mu     sync.Mutex
	loaded bool
	seq    uint64 // the greatest that was used
	newest int    // slot of the newest state, -1 for none
	stable bool   // the newest slot is known to be stable
	failed error  // a flush that failed: what is stable is unknown from then on
}

// LoadState returns the newest state, and nothing when none was saved. Fails
// with fault.Corrupt when there was one and it cannot be read.
func (u *Unit) LoadState() ([]byte, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.load()
}

// load is LoadState. Under mu.
func (u *Unit) load() ([]byte, error) {
	newest, slots, err := readSlots(u.dev, u.number)
	if err != nil {
		return nil, err
	}
	if !u.loaded || newest != u.newest {
		u.stable = false
	}
	u.loaded, u.newest = true, newest
	if newest < 0 {
		return nil, nil
	}
	u.seq = max(u.seq, slots[newest].seq)
	return slots[newest].state, nil
}

// SaveState replaces the state, which is not retained. With durable it is
// stable when SaveState returns nil, whatever the device's write cache allows.
// A failure leaves the former state or the new one. Fails with fault.Limit for
// more than StateMax bytes, and with the device's error; after a flush that
// failed it fails for good.
func (u *Unit) SaveState(state []byte, durable bool) error {
	if len(state) > StateMax {
		return fault.New(fault.Limit, "a unit's state of %d bytes, more than the %d there are", len(state), StateMax)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.loaded {
		if _, err := u.load(); err != nil {
			return err
		}
	}
	if u.failed != nil {
		return u.failed
	}
	if u.newest >= 0 && !u.stable {
		// The slot about to be overwritten may be the only stable one.
		if err := u.dev.Flush(); err != nil {
			u.failed = fault.Wrap(fault.KindOf(err), err, "flush the state volume")
			return u.failed
		}
		u.stable = true
	}
	to := 0
	if u.newest == 0 {
		to = 1
	}
	var flags block.Flags
	if durable {
		flags = block.FUA
	}
	u.seq++ // each number once, also of a write that failed
	if err := u.dev.WriteAt(encodeSlot(u.number, u.seq, state), slotOffset(u.number, to), flags); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "state of a unit")
	}
	u.newest, u.stable = to, durable
	return nil
}

// Clear forgets the state, durably: for a number that another volume will get.
func (u *Unit) Clear() error { return u.SaveState(nil, true) }

// Peek returns a unit's state as dev holds it, like Unit.LoadState, without an
// open State: for a node that does not own the group, whose copy follows the
// owner's. While the owner saves it may be the former one.
func Peek(dev block.Device, n uint32) ([]byte, error) {
	if n < 1 || n > Units {
		return nil, fault.New(fault.Limit, "volume number %d has no place in the state volume (1 to %d)", n, Units)
	}
	newest, slots, err := readSlots(dev, n)
	if err != nil || newest < 0 {
		return nil, err
	}
	return slots[newest].state, nil
}

// readSlots reads both slots of a unit and says which is the newest, -1 for
// none.
func readSlots(dev block.Device, unit uint32) (newest int, slots [2]slot, err error) {
	for i := range slots {
		if slots[i], err = readSlot(dev, unit, i); err != nil {
			return -1, slots, fault.Wrap(fault.KindOf(err), err, "state of a unit")
		}
	}
	newest, err = newestOf(slots)
	return newest, slots, err
}

func readSlot(dev block.Device, unit uint32, i int) (slot, error) {
	at := slotOffset(unit, i)
	b := make([]byte, block.BlockSize)
	if err := dev.ReadAt(b, at); err != nil {
		return slot{}, err
	}
	if n := slotLen(b); n > len(b) {
		b = append(b, make([]byte, n-len(b))...)
		if err := dev.ReadAt(b[block.BlockSize:], at+block.BlockSize); err != nil {
			return slot{}, err
		}
	}
	return decodeSlot(unit, b), nil
}

// newestOf says which of a unit's slots counts, -1 for none. Of a first save
// that was torn there is none yet; two slots that are both torn are no
// outcome of any order of writes.
func newestOf(slots [2]slot) (int, error) {
	a, b := slots[0], slots[1]
	switch {
	case a.kind == slotWhole && b.kind == slotWhole && a.seq == b.seq, a.kind == slotTorn && b.kind == slotTorn:
		return -1, fault.New(fault.Corrupt, "both copies of a unit's state are damaged")
	case a.kind == slotWhole && (b.kind != slotWhole || a.seq > b.seq):
		return 0, nil
	case b.kind == slotWhole:
		return 1, nil
	}
	return -1, nil
}
