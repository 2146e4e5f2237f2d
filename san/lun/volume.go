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
