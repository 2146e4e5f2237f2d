// Package luntest has a volume in memory for tests of logical units, with the
// faults and delays a test asks for.
package luntest

import (
	"bytes"
	"slices"
	"sync"
	"sync/atomic"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/lun"
)

// RAM is a volume in memory. Its methods are those of lun.Volume; the fields
// are set before it is used.
type RAM struct {
	// Gate, if not nil, is called before an operation touches the content,
	// without locks: it may block. op is "read", "write", "flush", "trim",
	// "zero", "compare" or "copy".
	Gate func(op string, off, n int64)
	// Fail, if not nil, makes an operation fail with what it returns.
	Fail func(op string, off, n int64) error
	// Cold makes TryReadAt always miss.
	Cold atomic.Bool

	id   [16]byte
	name string

	mu         sync.RWMutex
	data       []byte
	mapped     []bool // by block
	attributes map[string][]byte
	writeCache bool
	readOnly   bool
	watchers   map[int]func(lun.Event)
	next       int
}

var (
	_ lun.Volume        = (*RAM)(nil)
	_ lun.SpaceReporter = (*RAM)(nil)
)

// NewRAM returns a volume of size bytes, a multiple of block.BlockSize.
func NewRAM(name string, id byte, size int64) *RAM {
	return &RAM{
		name: name, id: [16]byte{id, 0xab, 15: id}, data: make([]byte, size), mapped: make([]bool, size/block.BlockSize),
		attributes: map[string][]byte{}, watchers: map[int]func(lun.Event){},
	}
}

// enter checks a request, and runs the test's hooks.
func (r *RAM) enter(op string, off, n int64) error {
	r.mu.RLock()
	size, readOnly := int64(len(r.data)), r.readOnly
	r.mu.RUnlock()
	switch {
	case off < 0 || n < 0 || off+n > size || (off|n)%block.SectorSize != 0:
		return fault.New(fault.Invalid, "%s of %d bytes at %d", op, n, off)
	case readOnly && op != "read" && op != "flush":
		return fault.New(fault.ReadOnly, "read-only")
	}
	if r.Gate != nil {
		r.Gate(op, off, n)
	}
	if r.Fail != nil {
		return r.Fail(op, off, n)
	}
	return nil
}

// ReadAt implements block.Device.
func (r *RAM) ReadAt(p []byte, off int64) error {
	if err := r.enter("read", off, int64(len(p))); err != nil {
		return err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	copy(p, r.data[off:])
	return nil
}

// TryReadAt implements lun.Volume.
func (r *RAM) TryReadAt(p []byte, off int64) bool {
	if r.Cold.Load() {
		return false
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if off < 0 || off > int64(len(r.data))-int64(len(p)) {
		return false
	}
	copy(p, r.data[off:])
	return true
}

// touch marks blocks that a range reaches into as mapped. Under mu.
func (r *RAM) touch(off, n int64) {
	for b := off / block.BlockSize; b*block.BlockSize < off+n; b++ {
		r.mapped[b] = true
	}
}

// erase makes a range read as zeros; blocks that it covers whole become holes,
// as a store makes them of zeros. Under mu.
func (r *RAM) erase(off, n int64) {
	clear(r.data[off : off+n])
	for b := (off + block.BlockSize - 1) / block.BlockSize; (b+1)*block.BlockSize <= off+n; b++ {
		r.mapped[b] = false
	}
}

// WriteAt implements block.Device.
func (r *RAM) WriteAt(p []byte, off int64, _ block.Flags) error {
	if err := r.enter("write", off, int64(len(p))); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.data[off:], p)
	r.touch(off, int64(len(p)))
	return nil
}

// Flush implements block.Device.
func (r *RAM) Flush() error { return r.enter("flush", 0, 0) }

// Trim implements block.Device.
func (r *RAM) Trim(off, n int64) error {
	if err := r.enter("trim", off, n); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.erase(off, n)
	return nil
}

// Zero implements block.Device.
func (r *RAM) Zero(off, n int64, _ block.Flags) error {
	if err := r.enter("zero", off, n); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.erase(off, n)
	return nil
}

// CompareAndWrite implements block.Device.
func (r *RAM) CompareAndWrite(off int64, old, new []byte, _ block.Flags) (int64, error) {
	if err := r.enter("compare", off, int64(len(old))); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if held := r.data[off : off+int64(len(old))]; !bytes.Equal(held, old) {
		for i, b := range old {
			if held[i] != b {
				return int64(i), nil
			}
		}
	}
	copy(r.data[off:], new)
	r.touch(off, int64(len(new)))
	return -1, nil
}

// Size implements block.Device.
func (r *RAM) Size() int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return int64(len(r.data))
}

// ID implements lun.Volume.
func (r *RAM) ID() [16]byte { return r.id }

// Name implements lun.Volume.
func (r *RAM) Name() string { return r.name }

// WriteCache implements lun.Volume.
func (r *RAM) WriteCache() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.writeCache
}

// SetWriteCache implements lun.Volume.
func (r *RAM) SetWriteCache(on bool) error {
	r.mu.Lock()
	r.writeCache = on
	r.mu.Unlock()
	r.tell(lun.Changed)
	return nil
}

// ReadOnly implements lun.Volume.
func (r *RAM) ReadOnly() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.readOnly
}

// SetReadOnly changes whether writes are refused.
func (r *RAM) SetReadOnly(on bool) {
	r.mu.Lock()
	r.readOnly = on
	r.mu.Unlock()
	r.tell(lun.Changed)
}

// Mapped implements lun.Volume.
func (r *RAM) Mapped(off, limit int64) (mapped bool, n int64, err error) {
	if err := r.enter("read", off, 0); err != nil {
		return false, 0, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	first := off / block.BlockSize
	mapped = r.mapped[first]
	end := first + 1
	for end < int64(len(r.mapped)) && r.mapped[end] == mapped && end*block.BlockSize < off+limit {
		end++
	}
	return mapped, min(end*block.BlockSize-off, limit), nil
}

// Space implements lun.SpaceReporter: what is not mapped is free.
func (r *RAM) Space() (available, used int64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, m := range r.mapped {
		if m {
			used += block.BlockSize
		}
	}
	return int64(len(r.data)) - used, used
}

// CopyFrom implements lun.Volume. Where the distance is a multiple of
// block.BlockSize, holes of the source are holes of the copy.
func (r *RAM) CopyFrom(dst int64, from lun.Volume, src, n int64, _ block.Flags) error {
	p := make([]byte, n)
	if err := from.ReadAt(p, src); err != nil {
		return err
	}
	var holes [][2]int64 // of p: offset, length
	for at := int64(0); at < n; {
		mapped, run, err := from.Mapped(src+at, n-at)
		if err != nil {
			return err
		}
		if !mapped {
			holes = append(holes, [2]int64{at, run})
		}
		at += run
	}
	if err := r.enter("copy", dst, n); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.data[dst:], p)
	r.touch(dst, n)
	for _, h := range holes {
		r.erase(dst+h[0], h[1])
	}
	return nil
}

// Attribute implements lun.Volume.
func (r *RAM) Attribute(key string) ([]byte, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return bytes.Clone(r.attributes[key]), nil
}

// SetAttribute implements lun.Volume.
func (r *RAM) SetAttribute(key string, value []byte) error {
	if err := r.enter("attribute", 0, 0); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if value == nil {
		delete(r.attributes, key)
		return nil
	}
	r.attributes[key] = bytes.Clone(value)
	return nil
}

// Watch implements lun.Volume.
func (r *RAM) Watch(fn func(lun.Event)) (stop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.next
	r.next++
	r.watchers[id] = fn
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watchers, id)
	}
}

// Tell reports an event to whoever watches.
func (r *RAM) Tell(e lun.Event) { r.tell(e) }

func (r *RAM) tell(e lun.Event) {
	r.mu.RLock()
	fns := make([]func(lun.Event), 0, len(r.watchers))
	for _, fn := range r.watchers {
		fns = append(fns, fn)
	}
	r.mu.RUnlock()
	for _, fn := range fns {
		fn(e)
	}
}

// Grow makes the volume n bytes longer.
func (r *RAM) Grow(n int64) {
	r.mu.Lock()
	r.data = append(slices.Clip(r.data), make([]byte, n)...)
	r.mapped = append(slices.Clip(r.mapped), make([]bool, n/block.BlockSize)...)
	r.mu.Unlock()
	r.tell(lun.Resized)
}

// Bytes returns a copy of the content.
func (r *RAM) Bytes() []byte {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return bytes.Clone(r.data)
}
