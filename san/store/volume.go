package store

import "steadfast/block"

// Volume is an open volume or snapshot: a block.Device, and what a logical
// unit wants to know beyond that.
type Volume struct{}

var _ block.Device = (*Volume)(nil)

// ReadAt implements block.Device.
func (v *Volume) ReadAt(p []byte, off int64) error { return errTodo }

// TryReadAt is ReadAt if all the range is in memory (or is a hole), and else
// returns false at once, with p undefined. It never waits for a drive.
func (v *Volume) TryReadAt(p []byte, off int64) bool { return false }

// WriteAt implements block.Device.
func (v *Volume) WriteAt(p []byte, off int64, flags block.Flags) error { return errTodo }

// Flush implements block.Device.
func (v *Volume) Flush() error { return errTodo }

// Trim implements block.Device.
func (v *Volume) Trim(off, n int64) error { return errTodo }

// Zero implements block.Device.
func (v *Volume) Zero(off, n int64, flags block.Flags) error { return errTodo }

// CompareAndWrite implements block.Device.
func (v *Volume) CompareAndWrite(off int64, old, new []byte, flags block.Flags) (int64, error) {
	return 0, errTodo
}

// Size implements block.Device.
func (v *Volume) Size() int64 { return 0 }

// ID returns the volume's identifier, from which its NAA name is made.
func (v *Volume) ID() ID { return ID{} }

// Name returns the volume's present name.
func (v *Volume) Name() string { return "" }

// WriteCache reports whether writes are answered before they are stable.
func (v *Volume) WriteCache() bool { return false }

// SetWriteCache changes that; turning it off flushes first. Kept with the
// volume.
func (v *Volume) SetWriteCache(on bool) error { return errTodo }

// ReadOnly reports whether writes are refused.
func (v *Volume) ReadOnly() bool { return false }

// Mapped tells whether the block at off is backed by data, and for how many
// bytes from off (at most max) that stays so.
func (v *Volume) Mapped(off, max int64) (mapped bool, n int64, err error) { return false, 0, errTodo }

// CopyFrom makes [dst, dst+n) of v read as [src, src+n) of from, by reference
// where both are of one pool and all three numbers are multiples of
// block.BlockSize, and by copying else. As one write to v for ordering.
func (v *Volume) CopyFrom(dst int64, from *Volume, src, n int64, flags block.Flags) error {
	return errTodo
}

// Attribute returns a small value kept with the volume (nil when unset), and
// SetAttribute stores one durably before it returns (nil deletes). At most
// 64 KiB each. Persistent reservations live here.
func (v *Volume) Attribute(key string) ([]byte, error) { return nil, errTodo }

// SetAttribute stores a value; see Attribute.
func (v *Volume) SetAttribute(key string, value []byte) error { return errTodo }

// Watch registers fn to be called, without locks held and without blocking,
// when something happened that the volume's users should learn of.
func (v *Volume) Watch(fn func(VolumeEvent)) (stop func()) { return func() {} }

// Close ends this opening.
func (v *Volume) Close() error { return errTodo }

// VolumeEvent is what Watch reports.
type VolumeEvent uint8

// Volume events.
const (
	VolumeResized   VolumeEvent = iota // capacity data has changed
	VolumeThreshold                    // the pool's thin threshold was crossed
	VolumeChanged                      // write cache or read-only changed
	VolumeReplaced                     // the content was rolled back
)
