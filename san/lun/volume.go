package lun

import "steadfast/block"

// Volume is what a logical unit serves. A store's volume is one, but for the
// type of CopyFrom's argument.
type Volume interface {
	block.Device

	// TryReadAt is ReadAt if that needs no waiting, and else returns false
	// with p undefined.
	TryReadAt(p []byte, off int64) bool
	// ID is random, unique, and stays the same for the volume's whole life.
	ID() [16]byte
	// Name is the volume's present name, for people.
	Name() string
	// WriteCache reports whether writes are answered before they are stable.
	WriteCache() bool
	// SetWriteCache changes that; turning it off flushes first.
	SetWriteCache(on bool) error
	// ReadOnly reports whether writes are refused.
	ReadOnly() bool
	// Mapped tells whether the byte at off is backed by data, and for how many
	// bytes from off (at least one, at most limit) that stays so.
	Mapped(off, limit int64) (mapped bool, n int64, err error)
	// CopyFrom makes [dst, dst+n) read as [src, src+n) of from, as one write
	// for ordering.
	CopyFrom(dst int64, from Volume, src, n int64, flags block.Flags) error
	// Attribute returns a value kept with the volume, nil when unset.
	Attribute(key string) ([]byte, error)
	// SetAttribute stores a value durably before it returns; nil deletes.
	SetAttribute(key string, value []byte) error
	// Watch registers fn, which is called with no lock held and must not
	// block, when something happened that initiators should learn of.
	Watch(fn func(Event)) (stop func())
}

// StateMax bounds in bytes what a StateKeeper is given. RegistrationsMax
// registrations fit, each by another initiator port of 255 bytes on another
// target of 223: the longest names there are.
const StateMax = 31*block.BlockSize - 64

// StateKeeper is a Volume that keeps what initiators can tell of its unit
// beside its content where whoever serves the unit next finds it: reservations
// and registrations, with APTPL or without, mode pages, and unit attentions
// that are still to be told. What RESERVE(6) reserved is not among it: a
// takeover is a loss of every I_T nexus.
//
// The state is loaded by AddVolume and ReplaceVolume, and saved before a change
// is in force and before its answer. Both may wait for another node. They are
// never called twice at once for one unit, and no lock is held meanwhile that
// a read or a write of the unit needs.
type StateKeeper interface {
	// SaveState replaces the state; it is not retained. When it returns nil the
	// state is what the next to serve the unit loads, and with durable so
	// also when all nodes have lost power in between. A failure leaves the
	// former state or the new one. At most StateMax bytes.
	SaveState(state []byte, durable bool) error
	// LoadState returns what was saved last, and nothing when nothing was.
	LoadState() ([]byte, error)
}

// SpaceReporter is a Volume that can tell how much room there is; the logical
// block provisioning log page carries it. Bytes.
type SpaceReporter interface {
	// Space returns what the pool has free for all its volumes, and what this
	// volume's content takes up.
	Space() (available, used int64)
}

// Event is what a volume tells through Watch.
type Event uint8

// Events of a volume.
const (
	Resized   Event = iota // capacity data has changed
	Threshold              // the pool's thin threshold was crossed
	Changed                // write cache or read-only changed
	Replaced               // the content was rolled back
)
